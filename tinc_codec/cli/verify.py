"""`tinc verify`."""

__all__ = ["verify_command"]


def verify_command() -> None:
    """Not written yet."""
    raise NotImplementedError
