"""`tinc compress`."""

__all__ = ["compress_command"]


def compress_command() -> None:
    """Not written yet."""
    raise NotImplementedError
