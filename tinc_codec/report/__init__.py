"""A page that shows what compression did to a volume."""
