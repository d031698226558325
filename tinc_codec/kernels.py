"""How hot loops are compiled, all of them alike: `@kernel`, and `@helper` for their parts.

A kernel is compiled when it is first called with arguments of some types, and kept on disk for the
processes that follow. Every further combination of types costs its compilation again, for seconds:
callers keep to one, and pass no literals where others pass variables.
"""

from collections.abc import Callable
from contextlib import suppress
from typing import Any

from numba import njit

__all__ = ["helper", "kernel"]

_OPTIONS = {"nogil": True, "error_model": "numpy", "no_cfunc_wrapper": True}


def kernel(function: Callable[..., Any] | None = None, /, **options: Any) -> Any:
    """Compile a function that releases the GIL and leaves threads to its caller.

    Parameters
    ----------
    function : callable
    **options
        Further ones of numba, such as `fastmath` or `inline`: `@kernel(inline="always")`.

    Returns
    -------
    callable
        It compiles in every process anew where nothing can be written on disk: a reader needs no
        more than what it reads.
    """
    if function is None:
        return lambda decorated: kernel(decorated, **options)
    try:
        compiled = njit(cache=True, **_OPTIONS, **options)(function)
    except RuntimeError:
        # Neither the package's folder nor the user's cache can be written.
        return njit(**_OPTIONS, **options)(function)
    cache = getattr(compiled, "_cache", None)
    if cache is not None:
        cache.save_overload = _tolerant(cache.save_overload)
    return compiled


def helper(function: Callable[..., Any] | None = None, /, **options: Any) -> Any:
    """Compile a function that kernels alone call, in less time than `kernel` takes.

    Python must not: there is nothing that would turn its objects into a kernel's arguments, and
    the process would crash. `tests/test_kernels.py` looks for such calls.
    """
    return kernel(function, no_cpython_wrapper=True, **options)


def _tolerant(save: Callable[..., None]) -> Callable[..., None]:
    """Let a full disk, or a folder that is gone, fail nothing."""

    def save_if_possible(*arguments: Any) -> None:
        with suppress(OSError):
            save(*arguments)

    return save_if_possible
