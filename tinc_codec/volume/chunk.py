"""A chunk of a Zarr array <-> normalised float32 volumes and the facts that bring it back."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from tinc_codec.volume.extend import extend_known
from tinc_codec.volume.padding import bit_patterns, trailing_padding
from tinc_codec.volume.support import check_supported

__all__ = [
    "ChunkInfo",
    "allocate",
    "analyse",
    "check_supported",
    "denormalise",
    "fill_constant",
    "finish",
    "is_constant",
    "normalise",
    "valid_view",
    "value_mapping",
]

FINITE, NAN, POSITIVE_INFINITY, NEGATIVE_INFINITY = 0, 1, 2, 3
_NOT_FINITE = ((NAN, np.nan), (POSITIVE_INFINITY, np.inf), (NEGATIVE_INFINITY, -np.inf))
SPATIAL_NDIM = 3
Ranges = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]
"""A box: [start, stop) along z, y, x."""

_BUFFER_VOXELS = 1 << 16


@dataclass(frozen=True, eq=False)
class ChunkInfo:
    """What a chunk needs besides its model to come back with the right shape, type and range.

    Two are equal when every field is, values compared by bit pattern so that NaN equals itself.

    Attributes
    ----------
    dtype : np.dtype
        One of the supported dtypes, with its byte order.
    order : {"C", "F"}
        Memory order of the array that decoding returns.
    shape : tuple of int
        1 to 5 axes, each at least 1; the last three (or fewer) are spatial, (z, y, x).
    valid_extent : tuple of int
        Per axis, 1 to its size; voxels beyond hold `pad_value`.
    pad_value : np.generic or None
        Scalar of `dtype` in native byte order; None where `valid_extent` is `shape`.
    value_min, value_max : np.generic or None
        Finite extremes within the valid extent, native byte order; None without a finite voxel.
    """

    dtype: np.dtype
    order: str
    shape: tuple[int, ...]
    valid_extent: tuple[int, ...]
    pad_value: Any
    value_min: Any
    value_max: Any

    @property
    def size_bytes(self) -> int:
        """Size of the decoded chunk in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def has_padding(self) -> bool:
        """Whether any axis ends in padding."""
        return self.valid_extent != self.shape

    @property
    def batched_shape(self) -> tuple[int, int, int, int]:
        """The valid extent as (B, Z, Y, X): leading axes joined, missing spatial axes of size 1."""
        lead, spatial = self.valid_extent[:-SPATIAL_NDIM], self.valid_extent[-SPATIAL_NDIM:]
        z, y, x = (1,) * (SPATIAL_NDIM - len(spatial)) + spatial
        return math.prod(lead), z, y, x

    @property
    def valid_slices(self) -> tuple[slice, ...]:
        """Index of the valid extent in an array of `shape`."""
        return tuple(slice(0, n) for n in self.valid_extent)

    def _key(self) -> tuple[Any, ...]:
        values = (self.pad_value, self.value_min, self.value_max)
        bits = tuple(None if v is None else np.asarray(v).tobytes() for v in values)
        return self.dtype.str, self.order, self.shape, self.valid_extent, bits

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ChunkInfo) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())


def analyse(array: Any) -> tuple[ChunkInfo, np.ndarray | None]:
    """Describe a chunk: its layout, padding, value range and where it is not finite.

    Parameters
    ----------
    array : array-like
        Any strides and byte order; it is only read.

    Returns
    -------
    info : ChunkInfo
    classes : ndarray of uint8 or None
        Shape `info.valid_extent`: 0 finite, 1 NaN, 2 +Inf, 3 -Inf; None where all are finite.

    Raises
    ------
    UnsupportedDataError
        See `check_supported`.
    """
    array = np.asarray(array)
    check_supported(array.dtype, array.shape)
    # Through the string, since a dtype may carry metadata or be a platform's second name.
    dtype = np.dtype(array.dtype.str)
    shape = tuple(int(n) for n in array.shape)
    extent = trailing_padding(array)
    pad_value = None
    if extent != shape:
        pad_value = np.asarray(array[(-1,) * array.ndim]).astype(dtype.newbyteorder("="))[()]
    valid = array[tuple(slice(0, n) for n in extent)]
    value_min, value_max, classes = _value_range(valid)
    info = ChunkInfo(
        dtype=dtype,
        order="F" if array.flags.f_contiguous and not array.flags.c_contiguous else "C",
        shape=shape,
        valid_extent=extent,
        pad_value=pad_value,
        value_min=value_min,
        value_max=value_max,
    )
    return info, classes


def is_constant(info: ChunkInfo) -> bool:
    """Tell whether all finite voxels of the valid extent are equal, or there are none.

    Such a chunk needs no model: `fill_constant` and `finish` restore it exactly.
    """
    return info.value_min is None or bool(info.value_min == info.value_max)


def normalise(array: Any, info: ChunkInfo, classes: np.ndarray | None) -> np.ndarray:
    """Map the valid extent of a chunk linearly to [0, 1], `value_min` to 0, `value_max` to 1.

    Voxels that are not finite get smooth continuations of their finite surroundings. A constant
    chunk gives zeros. The arithmetic is float64, rounded to float32 once.

    Parameters
    ----------
    array : array-like
        The chunk that `analyse` saw.
    info : ChunkInfo
    classes : ndarray of uint8 or None

    Returns
    -------
    ndarray of float32
        Shape (B, Z, Y, X), C order.
    """
    out = np.zeros(info.batched_shape, dtype=np.float32)
    if is_constant(info):
        return out
    valid = np.asarray(array)[info.valid_slices]
    scale, low, span = _scaled_range(info)
    blocks = np.nditer(
        [valid, out.reshape(info.valid_extent)],
        flags=["external_loop", "buffered", "growinner"],
        op_flags=[["readonly"], ["writeonly"]],
        op_dtypes=[np.float64, np.float32],
        buffersize=_BUFFER_VOXELS,
        casting="same_kind",
    )
    with blocks, np.errstate(all="ignore"):
        for values, mapped in blocks:
            block = values * scale
            block -= low
            block /= span
            mapped[...] = block
    if classes is not None:
        extend_known(out, classes.reshape(info.batched_shape) == FINITE)
    return out


def denormalise(values: np.ndarray, info: ChunkInfo, out: np.ndarray | None = None) -> np.ndarray:
    """Map [0, 1] back to the data's units; the inverse of `normalise` up to rounding.

    Values are clipped to [0, 1] (NaN counts as 0), mapped in float64, rounded half to even for
    integer dtypes, and never leave [`value_min`, `value_max`].

    Parameters
    ----------
    values : ndarray of float32
        Any shape.
    info : ChunkInfo
        With a finite range.
    out : ndarray, optional
        Same shape, any strides, `info.dtype` in any byte order.

    Returns
    -------
    ndarray
        `out`, or a new C-order array of `info.dtype` in native byte order.
    """
    native = info.dtype.newbyteorder("=")
    if out is None:
        out = np.empty(values.shape, dtype=native)
    scale, low, span = _scaled_range(info)
    is_integer = native.kind in "iu"
    blocks = np.nditer(
        [values, out],
        flags=["external_loop", "buffered", "growinner"],
        op_flags=[["readonly"], ["writeonly"]],
        op_dtypes=[np.float64, native],
        buffersize=_BUFFER_VOXELS,
        casting="same_kind",
    )
    with blocks, np.errstate(under="ignore"):
        for t, mapped in blocks:
            # fmax and fmin pass over NaN, which a damaged model may produce.
            block = np.fmin(np.fmax(t, 0.0), 1.0)
            block *= span
            block += low
            block /= scale
            if is_integer:
                np.rint(block, out=block)
            np.clip(block, float(info.value_min), float(info.value_max), out=block)
            mapped[...] = block
    return out


def allocate(info: ChunkInfo) -> np.ndarray:
    """Make the array that decoding fills: shape, byte order and memory order of the original."""
    return np.empty(info.shape, dtype=info.dtype, order="F" if info.order == "F" else "C")


def valid_view(out: np.ndarray, info: ChunkInfo) -> np.ndarray:
    """Show the valid extent of `out` as volumes to be filled.

    Parameters
    ----------
    out : ndarray
        From `allocate`.
    info : ChunkInfo

    Returns
    -------
    ndarray
        Shape (B, Z, Y, X), `info.dtype`; a view of `out` in up to four axes. Two leading axes of
        five cannot always be joined without a copy (Fortran order, padding on the second): then
        it is a separate array, and `finish` needs it to copy it into place.
    """
    return out[info.valid_slices].reshape(info.batched_shape)


def fill_constant(out: np.ndarray, info: ChunkInfo) -> None:
    """Set the valid extent of a constant chunk to its one value (0 where none is finite)."""
    out[info.valid_slices] = 0 if info.value_min is None else info.value_min


def finish(
    out: np.ndarray,
    info: ChunkInfo,
    classes: np.ndarray | None,
    view: np.ndarray | None = None,
) -> np.ndarray:
    """Put back what the model does not carry: padding, NaN and infinities.

    Parameters
    ----------
    out : ndarray
        From `allocate`, its valid extent filled through `view` or by `fill_constant`.
    info : ChunkInfo
    classes : ndarray of uint8 or None
        Shape `info.valid_extent`.
    view : ndarray, optional
        What `valid_view` returned; not needed after `fill_constant`.

    Returns
    -------
    ndarray
        `out`.
    """
    valid = out[info.valid_slices]
    if view is not None and not np.may_share_memory(view, out):
        valid[...] = view.reshape(info.valid_extent)
    if info.pad_value is not None:
        # As integers, so that the payload of a NaN survives too.
        bits = bit_patterns(out)
        pad = bit_patterns(np.asarray(info.pad_value))[()]
        for axis, n in enumerate(info.valid_extent):
            bits[(slice(None),) * axis + (slice(n, None),)] = pad
    if classes is not None:
        for code, value in _NOT_FINITE:
            np.copyto(valid, value, where=classes == code, casting="same_kind")
    return out


def _value_range(valid: np.ndarray) -> tuple[Any, Any, np.ndarray | None]:
    """Find the finite extremes of an array as native scalars, and its classes of voxels."""
    scalar = valid.dtype.type
    if valid.dtype.kind in "iu":
        return scalar(valid.min()), scalar(valid.max()), None
    classes = None
    with np.errstate(invalid="ignore"):
        value_min, value_max = valid.min(), valid.max()
    if not (np.isfinite(value_min) and np.isfinite(value_max)):
        classes = np.zeros(valid.shape, dtype=np.uint8)
        classes[np.isnan(valid)] = NAN
        classes[valid == np.inf] = POSITIVE_INFINITY
        classes[valid == -np.inf] = NEGATIVE_INFINITY
        valid = valid[classes == FINITE]
        if valid.size == 0:
            return None, None, classes
        value_min, value_max = valid.min(), valid.max()
    # Which of 0.0 and -0.0 a reduction returns depends on the machine's vector width.
    if not (value_min == value_max == 0 and np.signbit(valid).all()):
        value_min, value_max = value_min + scalar(0), value_max + scalar(0)
    return scalar(value_min), scalar(value_max), classes


def value_mapping(info: ChunkInfo) -> tuple[float, float, float, float, float]:
    """Give what maps t in [0, 1] to a voxel: clip((low + t * span) / scale, min, max).

    Returns
    -------
    tuple of float
        (scale, low, span, value_min, value_max).
    """
    return *_scaled_range(info), float(info.value_min), float(info.value_max)


def _scaled_range(info: ChunkInfo) -> tuple[float, float, float]:
    """Give (scale, scale * min, scale * (max - min)), all finite; scale is 1 or 0.5."""
    low, high = float(info.value_min), float(info.value_max)
    # The span of a float64 chunk can exceed the largest float64; half of it cannot.
    scale = 1.0 if math.isfinite(high - low) else 0.5
    return scale, low * scale, high * scale - low * scale
