"""Dtypes, single values and bounds as bytes."""

from typing import Any

import numpy as np

from tinc_codec.bitstream.reader import ByteReader
from tinc_codec.bitstream.version import unknown_value

DTYPE_CODES = {1: "u1", 2: "u2", 3: "u4", 4: "i1", 5: "i2", 6: "i4", 7: "f2", 8: "f4", 9: "f8"}
BIG_ENDIAN = 0x80
_CODE_OF_DTYPE = {name: code for code, name in DTYPE_CODES.items()}


def dtype_code(dtype: np.dtype) -> int:
    """Encode a supported dtype and its byte order as one byte.

    References
    ----------
    `docs/format.md` §3
    """
    return _CODE_OF_DTYPE[dtype.str[1:]] | BIG_ENDIAN * (dtype.str[0] == ">")


def read_dtype(reader: ByteReader, version: tuple[int, int]) -> np.dtype:
    """Take a dtype; the twin of `dtype_code`.

    Raises
    ------
    FormatError
        If the code is none of the known, or gives a single byte a byte order.
    """
    code = reader.read_u8("dtype code")
    name = DTYPE_CODES.get(code & ~BIG_ENDIAN)
    if name is None or (code & BIG_ENDIAN and name.endswith("1")):
        raise unknown_value(f"dtype code: {code:#04x} is unknown", version)
    return np.dtype((">" if code & BIG_ENDIAN else "<") + name)


def write_scalar(value: Any) -> bytes:
    """Encode a NumPy scalar, little-endian, its bit pattern kept."""
    array = np.asarray(value)
    return array.astype(array.dtype.newbyteorder("<")).tobytes()


def read_scalar(reader: ByteReader, dtype: np.dtype, field: str) -> Any:
    """Take a NumPy scalar of `dtype`, native byte order; the twin of `write_scalar`."""
    body = reader.read_bytes(dtype.itemsize, field)
    return np.frombuffer(body, dtype=dtype.newbyteorder("<")).astype(dtype.newbyteorder("="))[0]


def float32_bound(value: float, direction: float) -> float:
    """Round to float32 towards -inf or +inf, so that a bound stays one.

    Parameters
    ----------
    value : float
    direction : float
        -inf or inf.
    """
    with np.errstate(over="ignore", under="ignore"):
        rounded = np.float32(value)
        # As Python floats: NumPy would round `value` to float32 before it compares.
        exceeds = float(rounded) > value if direction < 0 else float(rounded) < value
        if exceeds:
            rounded = np.nextafter(rounded, np.float32(direction))
    return float(rounded)
