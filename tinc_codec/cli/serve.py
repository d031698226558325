"""`tinc serve`."""

__all__ = ["serve_command"]


def serve_command() -> None:
    """Not written yet."""
    raise NotImplementedError
