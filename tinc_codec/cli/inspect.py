"""`tinc inspect`."""

__all__ = ["inspect_command"]


def inspect_command() -> None:
    """Not written yet."""
    raise NotImplementedError
