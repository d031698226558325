"""How hot loops are compiled, all of them alike: `@kernel`, and `@helper` for their parts.

A kernel is compiled when it is first called with arguments of some types, and kept on disk for the
processes that follow. Every further combination of types costs its compilation again, for seconds:
callers keep to one, and pass no literals where others pass variables. So does a slice assigned to a
slice, for the message of an error that cannot occur: `copy_row` does it instead.
"""

from collections.abc import Callable
from contextlib import suppress
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

from numba import njit
from numba.core.sigutils import normalize_signature

__all__ = ["copy_row", "helper", "kernel"]

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
    _guard(getattr(compiled, "_cache", None))
    return compiled


def helper(function: Callable[..., Any] | None = None, /, **options: Any) -> Any:
    """Compile a function that kernels alone call, in less time than `kernel` takes.

    Python must not: there is nothing that would turn its objects into a kernel's arguments, and
    the process would crash. `tests/test_kernels.py` looks for such calls.
    """
    return kernel(function, no_cpython_wrapper=True, **options)


def _guard(kept: Any) -> None:
    """Let what numba keeps of a kernel on disk neither fail a call nor change what it computes."""
    if not hasattr(kept, "_cache_file"):
        return
    # By itself it would look at the file of the kernel alone, not at those of what it calls.
    kept._cache_file._source_stamp = kept._cache_file._source_stamp, _sources()
    load, save = kept.load_overload, kept.save_overload

    def load_if_right(signature: Any, context: Any) -> Any:
        # Two processes that compile for two types at once may give both files one name.
        with suppress(Exception):
            found = load(signature, context)
            if found and found.signature.args == normalize_signature(signature)[0]:
                return found
        return None

    def save_if_possible(*arguments: Any) -> None:
        try:
            save(*arguments)
        except OSError:
            # The disk may be full, or the folder gone.
            return
        except Exception:
            # What is there is damaged.
            with suppress(Exception):
                kept.flush()
                save(*arguments)

    kept.load_overload, kept.save_overload = load_if_right, save_if_possible


@cache
def _sources() -> str:
    """Tell one state of this file and of the rooms with kernels, all constants in, from others."""
    texts = {path: path.read_bytes() for path in sorted(Path(__file__).parent.rglob("*.py"))}
    rooms = {path.parent for path, text in texts.items() if b"from tinc_codec.kernels " in text}
    digest = sha256()
    for path, text in texts.items():
        if path.parent in rooms or path == Path(__file__):
            digest.update(text)
    return digest.hexdigest()


@helper
def copy_row(source, target):  # type: ignore[no-untyped-def]
    """Copy a row to the beginning of another one."""
    for i in range(len(source)):
        target[i] = source[i]
