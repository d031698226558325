"""Which boxes of a chunk hold what is selected of it."""

import math
from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np

__all__ = ["Box", "cover"]

_MARGIN = 8
"""Voxels along an axis that a box costs beyond its own: neighbours that a wavelet reaches."""
_BOX_VOXELS = 1 << 14
"""Voxels that could be decoded in the time that a further box takes to set up."""
_GAP = 8
"""Voxels left out in one go from which on it pays to cut a box in two."""
_MOST_RUNS = 64
"""Along an axis; more are taken together."""
_CELL = 16
"""Edge in voxels of the cells that scattered points are gathered in."""

Box = tuple[slice, ...]


def cover(selection: Any, shape: tuple[int, ...]) -> list[Box] | None:
    """Find boxes, not too many, that hold all voxels of a selection.

    Parameters
    ----------
    selection : tuple
        What zarr selects of a chunk: per axis a slice with a positive step, an integer, or an
        array of integers; arrays are broadcast as NumPy does.
    shape : tuple of int
        Of the chunk.

    Returns
    -------
    list of tuple of slice, or None
        Slices of step 1; None where the whole chunk is no dearer or the selection is none of
        the above.
    """
    if not isinstance(selection, tuple) or len(selection) != len(shape):
        return None
    runs = [_runs(part, n) for part, n in zip(selection, shape, strict=True)]
    if not all(runs):
        return None
    bounds = [[(ranges[0][0], ranges[-1][1])] for ranges in runs]
    most = math.prod(shape) // 2
    choices = [bounds] if math.prod(stop - start for ((start, stop),) in bounds) <= most else []
    if runs != bounds and _cost(runs, shape) <= most:
        choices.append(runs)
    best = min(choices, key=lambda axes: _cost(axes, shape), default=None)
    points = _points_cover(selection, shape, most if best is None else _cost(best, shape))
    if points is not None or best is None:
        return points
    return [tuple(slice(*ends) for ends in box) for box in product(*best)]


def _runs(part: Any, size: int) -> list[tuple[int, int]]:
    """List the (start, stop) that an entry of a selection needs; none where it is not understood.

    Neighbours with few voxels between them are taken together.
    """
    if isinstance(part, slice):
        start, stop, step = part.indices(size)
        if step < 1 or start >= stop:
            return []
        last = start + (stop - start - 1) // step * step
        count = (last - start) // step + 1
        if step <= _GAP or count > _MOST_RUNS:
            return [(start, last + 1)]
        return [(first, first + 1) for first in range(start, stop, step)]
    found = np.asarray(part)
    if (
        found.dtype.kind not in "iu"
        or found.size == 0
        or not 0 <= found.min() <= found.max() < size
    ):
        return []
    flags = np.zeros(size, dtype=bool)
    flags[found.reshape(-1)] = True
    needed = np.flatnonzero(flags)
    cuts = np.flatnonzero(np.diff(needed) > _GAP) + 1
    if len(cuts) >= _MOST_RUNS:
        return [(int(needed[0]), int(needed[-1]) + 1)]
    starts = needed[np.concatenate([[0], cuts])]
    stops = needed[np.concatenate([cuts - 1, [-1]])] + 1
    return list(zip(starts.tolist(), stops.tolist(), strict=True))


def _cost(axes: Sequence[list[tuple[int, int]]], shape: tuple[int, ...]) -> int:
    """Estimate what the product of some ranges per axis costs, in voxels decoded."""
    sizes = []
    for axis, (ranges, n) in enumerate(zip(axes, shape, strict=True)):
        margin = _MARGIN if axis >= len(shape) - 3 else 0
        sizes.append(sum(min(n, stop - start + margin) for start, stop in ranges))
    return math.prod(sizes) + _BOX_VOXELS * (math.prod(map(len, axes)) - 1)


def _points_cover(
    selection: tuple[Any, ...], shape: tuple[int, ...], most: int
) -> list[Box] | None:
    """Gather scattered points in the boxes of cells; None if that costs as much as `most`."""
    if not all(isinstance(part, np.ndarray) and part.ndim == 1 for part in selection):
        return None
    points = [part.astype(np.int64) for part in selection]
    if len({len(part) for part in points}) > 1 or len(points[0]) > most:
        return None
    cells = tuple(-(-n // _CELL) for n in shape)
    numbers = np.ravel_multi_index([part // _CELL for part in points], cells)
    order = np.argsort(numbers, kind="stable")
    starts = np.flatnonzero(np.diff(numbers[order], prepend=-1))
    if _BOX_VOXELS * (len(starts) - 1) >= most:
        return None
    ends = [
        zip(
            np.minimum.reduceat(part[order], starts).tolist(),
            (np.maximum.reduceat(part[order], starts) + 1).tolist(),
            strict=True,
        )
        for part in points
    ]
    boxes = list(zip(*ends, strict=True))
    cost = sum(_cost([[pair] for pair in box], shape) for box in boxes)
    if cost + _BOX_VOXELS * (len(boxes) - 1) >= most:
        return None
    return [tuple(slice(*pair) for pair in box) for box in boxes]
