"""The constant margin at the far ends of a chunk: found once, stored as one value."""

import numpy as np

# One voxel always equals itself, so the last of a one-dimensional chunk would count as a margin.
MIN_PADDING_VOXELS = 2


def bit_patterns(array: np.ndarray) -> np.ndarray:
    """View an array of 1-, 2-, 4- or 8-byte numbers as unsigned integers of the same byte order.

    Parameters
    ----------
    array : ndarray
        Any shape and strides.

    Returns
    -------
    ndarray
        A view of `array`, same shape, dtype uint8 to uint64.
    """
    return array.view(np.dtype(f"u{array.dtype.itemsize}").newbyteorder(array.dtype.byteorder))


def trailing_padding(array: np.ndarray) -> tuple[int, ...]:
    """Find the extent that is left when the constant planes at the far end of each axis go.

    A plane is padding when all its voxels have the bit pattern of the chunk's very last voxel.

    Parameters
    ----------
    array : ndarray
        Any shape without zero-size axes.

    Returns
    -------
    tuple of int
        The extent per axis, at least 1; the full shape where there is no padding, where the whole
        array is one bit pattern, and where fewer than `MIN_PADDING_VOXELS` voxels would go.

    References
    ----------
    `docs/format.md` §3
    """
    bits = bit_patterns(array)
    pad = bits[(-1,) * bits.ndim]
    candidates = [a for a in range(bits.ndim) if (bits[(slice(None),) * a + (-1,)] == pad).all()]
    if not candidates:
        return array.shape
    differs = bits != pad
    extent = list(array.shape)
    for axis in candidates:
        others = tuple(a for a in range(bits.ndim) if a != axis)
        used = np.flatnonzero(differs.any(axis=others))
        if used.size == 0:
            return array.shape
        extent[axis] = int(used[-1]) + 1
    kept_voxels = int(np.prod(extent, dtype=np.int64))
    if array.size - kept_voxels < MIN_PADDING_VOXELS:
        return array.shape
    return tuple(extent)
