"""`tinc decompress`."""

__all__ = ["decompress_command"]


def decompress_command() -> None:
    """Not written yet."""
    raise NotImplementedError
