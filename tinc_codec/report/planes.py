"""Planes through a volume, before and after, read piece by piece."""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tinc_codec.errors import FormatError
from tinc_codec.pipeline.volumes import LazyArray

__all__ = ["Plane", "ReadableArray", "read_plane", "read_planes"]

_SPATIAL_NDIM = 3
_MAX_PIXELS = 768
# Of the source, read at once.
_PIECE_VOXELS = 1 << 22


@dataclass(frozen=True, eq=False)
class Plane:
    """A plane before and after.

    Attributes
    ----------
    axis : str
        Name of the axis it is perpendicular to; "" in a volume of two axes.
    index : tuple of int or slice
        Where it lies: an entry per axis of the array, as it would be indexed.
    rows, columns : str
        Names of its own axes, from top to bottom and from left to right.
    before, after : ndarray
        Two axes, float64; every `step`-th voxel.
    step : int
    aspect : float
        Height of a voxel over its width.
    """

    axis: str
    index: tuple[int | slice, ...]
    rows: str
    columns: str
    before: np.ndarray
    after: np.ndarray
    step: int
    aspect: float

    @property
    def place(self) -> int | None:
        """Number of the plane along its axis, the last that is not a slice; None without one."""
        found = [part for part in self.index if not isinstance(part, slice)]
        return found[-1] if found else None

    @property
    def difference(self) -> np.ndarray:
        """After minus before; NaN where either is not finite."""
        with np.errstate(invalid="ignore"):
            return self.after - self.before


class ReadableArray:
    """An array of which damaged chunks read as NaN.

    Parameters
    ----------
    array : LazyArray
        Stored in chunks that may raise a `FormatError`.
    chunk_shape : tuple of int
    """

    def __init__(self, array: LazyArray, chunk_shape: tuple[int, ...]) -> None:
        self._array = array
        self._chunk_shape = chunk_shape
        self.shape = tuple(array.shape)
        self.dtype = np.dtype(array.dtype)

    def __getitem__(self, selection: tuple[slice, ...]) -> np.ndarray[Any, Any]:
        """Read a box: slices of step 1 with a stop; float64 where a chunk is damaged."""
        try:
            return np.asarray(self._array[selection])
        except FormatError:
            return self._without_damage([slice(s.start or 0, s.stop) for s in selection])

    def _without_damage(self, box: Sequence[slice]) -> np.ndarray[Any, Any]:
        out = np.full([part.stop - part.start for part in box], np.nan)
        grids = zip(box, self._chunk_shape, strict=True)
        pieces = [_pieces(part, size) for part, size in grids]
        for piece in itertools.product(*pieces):
            inside = tuple(
                slice(part.start - whole.start, part.stop - whole.start)
                for part, whole in zip(piece, box, strict=True)
            )
            with contextlib.suppress(FormatError):
                out[inside] = self._array[piece]
        return out


def _pieces(part: slice, size: int) -> list[slice]:
    """Cut a slice at the borders of chunks."""
    firsts = range(part.start // size, -(-part.stop // size))
    return [slice(max(part.start, i * size), min(part.stop, (i + 1) * size)) for i in firsts]


def read_planes(
    source: LazyArray,
    compressed: LazyArray,
    axes: tuple[str, ...],
    scale: tuple[float, ...],
    box: tuple[slice, ...] | None = None,
) -> list[Plane]:
    """Read the planes through the middle of a volume, perpendicular to each axis of space.

    Parameters
    ----------
    source, compressed : LazyArray
        Of the same shape, two axes or more.
    axes : tuple of str
    scale : tuple of float
        Distance of voxels along each axis.
    box : tuple of slice, optional
        The part of the volume that is meant; else all of it.
    """
    box = tuple(map(slice, source.shape)) if box is None else box
    ndim = len(box)
    middle = [(part.start or 0) + (part.stop - (part.start or 0)) // 2 for part in box]
    lead = max(0, ndim - _SPATIAL_NDIM)
    cut = range(lead, ndim) if ndim > lead + 2 else [None]
    planes = []
    for axis in cut:
        shown = [a for a in range(lead, ndim) if a != axis]
        index = tuple(box[a] if a in shown else middle[a] for a in range(ndim))
        step = max(
            1, math.ceil(max(box[a].stop - (box[a].start or 0) for a in shown) / _MAX_PIXELS)
        )
        row, column = shown
        planes.append(
            Plane(
                axis="" if axis is None else axes[axis],
                index=index,
                rows=axes[row],
                columns=axes[column],
                before=read_plane(source, index, step),
                after=read_plane(compressed, index, step),
                step=step,
                aspect=abs(scale[row] / scale[column]) or 1.0,
            )
        )
    return planes


def read_plane(array: LazyArray, index: tuple[int | slice, ...], step: int) -> np.ndarray:
    """Read every step-th voxel of a plane, a few rows at a time.

    Parameters
    ----------
    array : LazyArray
    index : tuple of int or slice
        Two slices with start and stop.
    step : int

    Returns
    -------
    ndarray of float64
        Two axes.
    """
    box = [part if isinstance(part, slice) else slice(part, part + 1) for part in index]
    row, column = (axis for axis, part in enumerate(index) if isinstance(part, slice))
    start, stop = box[row].start or 0, box[row].stop
    width = box[column].stop - (box[column].start or 0)
    n_rows = step * max(1, _PIECE_VOXELS // width // step)
    pieces = []
    for first in range(start, stop, n_rows):
        box[row] = slice(first, min(first + n_rows, stop))
        piece = np.asarray(array[tuple(box)])
        pieces.append(piece.reshape(piece.shape[row], piece.shape[column])[::step, ::step])
    return np.concatenate(pieces).astype(np.float64)
