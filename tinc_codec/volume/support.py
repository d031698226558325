"""Which arrays this codec stores, and what to do with the others."""

from typing import Any

import numpy as np

from tinc_codec.errors import UnsupportedDataError

MAX_NDIM = 5

_SUPPORTED = frozenset({"u1", "u2", "u4", "i1", "i2", "i4", "f2", "f4", "f8"})
_LOSSLESS = "use a lossless codec such as Blosc with Zstd"
_ADVICE = {
    "b": f"a mask has no values in between; {_LOSSLESS}",
    "c": "store the real and the imaginary part, or magnitude and phase, as two arrays",
    "S": f"text cannot be approximated; {_LOSSLESS}",
    "U": f"text cannot be approximated; {_LOSSLESS}",
    "T": f"text cannot be approximated; {_LOSSLESS}",
    "O": f"objects cannot be approximated; {_LOSSLESS}",
    "V": "store each field of a structured array as an array of its own",
    "M": f"times cannot be approximated; {_LOSSLESS}",
    "m": f"times cannot be approximated; {_LOSSLESS}",
    "i": f"64-bit integers are usually labels, which must stay exact; {_LOSSLESS}, "
    "or cast intensities to int32 or float32",
    "u": f"64-bit integers are usually labels, which must stay exact; {_LOSSLESS}, "
    "or cast intensities to uint32 or float32",
    "f": "cast to float64 or float32",
}


def check_supported(dtype: Any, shape: tuple[int, ...]) -> None:
    """Refuse what this codec cannot store, before any work is done.

    Parameters
    ----------
    dtype : dtype-like
    shape : tuple of int

    Raises
    ------
    UnsupportedDataError
        With advice on what to do instead.
    """
    dtype = np.dtype(dtype)
    if f"{dtype.kind}{dtype.itemsize}" not in _SUPPORTED:
        advice = _ADVICE.get(dtype.kind, _LOSSLESS)
        raise UnsupportedDataError(
            f"dtype {dtype} is not supported (supported: int8 to int32, uint8 to uint32, float16 "
            f"to float64): {advice}"
        )
    if not 1 <= len(shape) <= MAX_NDIM:
        raise UnsupportedDataError(
            f"an array of {len(shape)} axes is not supported (supported: 1 to {MAX_NDIM}); "
            "reshape it, or chunk the other axes as arrays of their own"
        )
    if 0 in shape:
        raise UnsupportedDataError(f"shape {tuple(shape)} has an axis of size 0: nothing to store")
