"""Which voxels are not finite <-> bytes, exactly."""

import math

import numpy as np

from tinc_codec.errors import CorruptStreamError
from tinc_codec.volume.chunk import SPATIAL_NDIM

N_CLASSES = 4
# Smaller modes are the class that every voxel has.
MODE_CODED = N_CLASSES


def encode_classes(classes: np.ndarray) -> bytes:
    """Encode the class of every voxel of a chunk's valid extent.

    Parameters
    ----------
    classes : ndarray of uint8
        1 to 5 axes, the last three (z, y, x); 0 finite, 1 NaN, 2 +Inf, 3 -Inf.

    Returns
    -------
    bytes
        One byte where all voxels are of one class.

    References
    ----------
    `docs/format.md` §5
    """
    first = int(classes.flat[0])
    if (classes == first).all():
        return bytes([first])
    from tinc_codec.volume.mask_coder import encode_voxels

    padded = _padded(classes.shape)
    _inside(padded)[...] = classes.reshape(_inside(padded).shape)
    return bytes([MODE_CODED]) + encode_voxels(padded).tobytes()


def decode_classes(data: bytes | memoryview, shape: tuple[int, ...]) -> np.ndarray:
    """Decode the class of every voxel; the twin of `encode_classes`.

    Parameters
    ----------
    data : bytes-like
    shape : tuple of int
        The chunk's valid extent. Memory stays near one or two bytes per voxel of it, whatever
        `data` says.

    Returns
    -------
    ndarray of uint8
        Of `shape`, C order.

    Raises
    ------
    CorruptStreamError
        If the mode is unknown or the length does not fit the content.

    References
    ----------
    `docs/format.md` §5
    """
    if len(data) == 0:
        raise CorruptStreamError("mask: empty, at least 1 byte expected")
    mode = data[0]
    if mode > MODE_CODED:
        raise CorruptStreamError(f"mask: mode {mode} not in 0 to {MODE_CODED}")
    if mode < N_CLASSES:
        if len(data) > 1:
            raise CorruptStreamError(f"mask: {len(data)} bytes where mode {mode} has 1")
        return np.full(shape, mode, dtype=np.uint8)
    from tinc_codec.volume.mask_coder import decode_voxels

    padded = _padded(shape)
    # A copy, since compiled code is specialised for writable, contiguous memory.
    payload = np.frombuffer(data, dtype=np.uint8)[1:].copy()
    if not decode_voxels(payload, padded):
        raise CorruptStreamError(f"mask: {payload.size} bytes do not code {shape} voxels")
    return _inside(padded).reshape(shape)


def _padded(shape: tuple[int, ...]) -> np.ndarray:
    from tinc_codec.volume.mask_coder import MARGIN_AFTER, MARGIN_BEFORE

    spatial = (1,) * (SPATIAL_NDIM - len(shape)) + shape[-SPATIAL_NDIM:]
    margin = MARGIN_BEFORE + MARGIN_AFTER
    volumes = math.prod(shape[:-SPATIAL_NDIM])
    return np.zeros((volumes, *(n + margin for n in spatial)), dtype=np.uint8)


def _inside(padded: np.ndarray) -> np.ndarray:
    from tinc_codec.volume.mask_coder import MARGIN_AFTER, MARGIN_BEFORE

    inside = slice(MARGIN_BEFORE, -MARGIN_AFTER)
    return padded[:, inside, inside, inside]
