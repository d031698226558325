"""`tinc levels`."""

__all__ = ["levels_command"]


def levels_command() -> None:
    """Not written yet."""
    raise NotImplementedError
