"""`tinc plan`."""

__all__ = ["plan_command"]


def plan_command() -> None:
    """Not written yet."""
    raise NotImplementedError
