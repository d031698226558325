"""Voxels on a lattice of equal steps: what a small largest error needs, with no model beside it.

Every voxel is rounded to the nearest point of a lattice, and the points' indices are coded one by
one, each predicted from those before. A step of one on integers gives exact data.

References
----------
`docs/format.md` §14
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from tinc_codec.volume.chunk import ChunkInfo

MAX_TOP = (1 << 24) - 1
"""Largest index of a lattice point."""
_TABLE_POINTS = 1 << 16
_BUFFER_VOXELS = 1 << 16


@dataclass(frozen=True)
class Points:
    """The points of a lattice: origin + step * (index - below), limited to the range of values.

    Attributes
    ----------
    origin : np.generic
        Of the chunk's dtype, within its range: decoded exactly.
    step : float
        > 0; whole for integers.
    below : int
        Index of the origin.
    top : int
        Largest index, at most `MAX_TOP`.
    """

    origin: Any
    step: float
    below: int
    top: int


@dataclass(frozen=True, eq=False)
class Lattice:
    """A chunk as lattice points.

    Attributes
    ----------
    points : Points
    indices : ndarray of int32
        Shape (B, z, y, x), 0 to `points.top`; any of these where a voxel is not finite.
    """

    points: Points
    indices: np.ndarray


def place_points(info: ChunkInfo, origin: Any, step: float) -> Points | None:
    """Lay a lattice over the values of a chunk that is not constant; None where it has too many.

    Parameters
    ----------
    info : ChunkInfo
    origin : np.generic
        A value of the chunk's dtype within its range.
    step : float
        > 0; whole for integers.
    """
    if info.dtype.kind == "f":
        with np.errstate(over="ignore"):
            start, span = (
                float(origin) - float(info.value_min),
                float(info.value_max) - float(origin),
            )
            counts = np.rint(np.array([start, span]) / step)
        if not (counts.sum() <= MAX_TOP):
            return None
        below, above = (int(count) for count in counts)
    else:
        whole, value = int(step), int(origin)
        below = (value - int(info.value_min) + whole // 2) // whole
        above = (int(info.value_max) - value + whole // 2) // whole
        if below + above > MAX_TOP:
            return None
    return Points(origin, step, below, below + above)


def to_lattice(original: np.ndarray, info: ChunkInfo, points: Points) -> Lattice:
    """Round voxels to the nearest points.

    Parameters
    ----------
    original : ndarray
        Shape (B, z, y, x), `info.dtype` in any strides and byte order.
    info : ChunkInfo
    points : Points
        From `place_points`.
    """
    indices = np.empty(original.shape, np.int32)
    wide: Any = np.float64 if info.dtype.kind == "f" else np.int64
    blocks = np.nditer(
        [original, indices],
        flags=["external_loop", "buffered", "growinner"],
        op_flags=[["readonly"], ["writeonly"]],
        op_dtypes=[wide, np.int32],
        buffersize=_BUFFER_VOXELS,
        casting="same_kind",
    )
    with blocks, np.errstate(all="ignore"):
        for values, found in blocks:
            if info.dtype.kind == "f":
                near = np.rint((values - float(points.origin)) / points.step) + points.below
                # What is not finite is not coded.
                near = np.nan_to_num(near, nan=0.0)
            else:
                step = int(points.step)
                near = (values - int(points.origin) + step // 2) // step + points.below
            found[...] = np.clip(near, 0, points.top)
    return Lattice(points, indices)


def from_lattice(lattice: Lattice, info: ChunkInfo, out: np.ndarray) -> None:
    """Write the values of lattice points into voxels; the twin of `to_lattice`.

    Parameters
    ----------
    lattice : Lattice
    info : ChunkInfo
    out : ndarray
        Shape (B, z, y, x), `info.dtype` in any strides and byte order.
    """
    points = lattice.points
    if points.top < min(_TABLE_POINTS, out.size):
        out[...] = values_of(points, np.arange(points.top + 1), info)[lattice.indices]
        return
    for part in _planes(out.shape):
        out[part] = values_of(points, lattice.indices[part], info)


def values_of(points: Points, indices: np.ndarray, info: ChunkInfo) -> np.ndarray:
    """Give what indices stand for, in the chunk's dtype.

    References
    ----------
    `docs/format.md` §14.1
    """
    steps = indices.astype(np.int64) - points.below
    if info.dtype.kind == "f":
        # Two operations, each rounded to float64; what overflows is limited like all else.
        low, high = float(info.value_min), float(info.value_max)
        with np.errstate(over="ignore"):
            moved = steps * points.step + float(points.origin)
        return np.clip(moved, low, high).astype(info.dtype)
    steps *= int(points.step)
    steps += int(points.origin)
    return np.clip(steps, int(info.value_min), int(info.value_max)).astype(info.dtype)


def _planes(shape: tuple[int, ...]) -> Iterator[tuple[int, int]]:
    return ((volume, z) for volume in range(shape[0]) for z in range(shape[1]))
