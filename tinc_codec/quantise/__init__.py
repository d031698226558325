"""Float model <-> integers."""
