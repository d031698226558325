"""Normalised volumes -> the blocks of a tree's leaves."""

import numpy as np


def to_blocks(
    volumes: np.ndarray, origins: np.ndarray, extents: np.ndarray, block_voxels: int
) -> np.ndarray:
    """Cut volumes into blocks, each packed without the part beyond the volume.

    Parameters
    ----------
    volumes : ndarray
        Shape (B, Z, Y, X), any dtype.
    origins, extents : ndarray of int64
        Shape (block, 3): first voxel and voxels per axis, (z, y, x).
    block_voxels : int
        Voxels of a full block.

    Returns
    -------
    ndarray
        Shape (B, block, block_voxels); a block's voxels in C order first, then zeros.
    """
    out = np.zeros((len(volumes), len(origins), block_voxels), dtype=volumes.dtype)
    for block, (origin, extent) in enumerate(zip(origins, extents, strict=True)):
        index = tuple(slice(o, o + n) for o, n in zip(origin, extent, strict=True))
        piece = volumes[(slice(None), *index)]
        out[:, block, : piece[0].size] = piece.reshape(len(volumes), -1)
    return out
