"""`tinc report`."""

__all__ = ["report_command"]


def report_command() -> None:
    """Not written yet."""
    raise NotImplementedError
