"""A region of the features' wavelet: the bits of the whole, at a cost that goes with its size.

A level is undone within a window that is wide enough for its ends to spoil nothing of what is
needed of it.
"""

from itertools import pairwise

import numpy as np

from tinc_codec.model.wavelet import (
    Team,
    Triple,
    grid_of,
    halved,
    inverse_level,
    level_shapes,
    slices_of,
    split_axes,
)
from tinc_codec.volume.chunk import Ranges

_REACH = 4
"""Samples on either side of a window that its ends can spoil in the inverse of one level."""

_SMALL = 1 << 15
"""Samples of the widest window up to which all levels are undone at once: calls cost more there."""

_NARROW = 32
_NARROW_ROWS = 1024
"""Samples that a region has along x at most, and rows at least, for `_inverse_narrow`."""


def needed_ranges(grid: Triple, region: Ranges) -> tuple[Ranges, ...]:
    """Say which low-pass samples of every level a region of the volume depends on.

    Parameters
    ----------
    grid : tuple of int
    region : three (start, stop)
        0 <= start < stop <= size along z, y, x.

    Returns
    -------
    tuple
        One entry for each of `level_shapes(grid)`, the region itself first: (start, stop) along
        z, y, x. The high-pass samples needed beside them are those of the same numbers, as far
        as there are such.
    """
    ranges = [region]
    for shape, low in pairwise(level_shapes(grid)):
        z, y, x = (
            _needed_low(ranges[-1][a], shape[a]) if shape[a] != low[a] else ranges[-1][a]
            for a in range(3)
        )
        ranges.append((z, y, x))
    return tuple(ranges)


def depended_ranges(grid: Triple, region: Ranges) -> tuple[tuple[Ranges, Ranges], ...]:
    """Say which samples of every level's bands any voxel of a region depends on.

    These are fewer than the windows of `inverse_region` hold: what else is in a window does not
    reach the region.

    Parameters
    ----------
    grid, region
        As for `needed_ranges`.

    Returns
    -------
    tuple
        Per level, finest first, the ranges of low-pass and of high-pass samples along each axis;
        along an axis that is not split both are the range of samples.
    """
    found = []
    needed = region
    for shape, low in pairwise(level_shapes(grid)):
        axes = [
            (_support(needed[a], low[a]) if shape[a] != low[a] else (needed[a], needed[a]))
            for a in range(3)
        ]
        (l_z, h_z), (l_y, h_y), (l_x, h_x) = axes
        needed = l_z, l_y, l_x
        found.append((needed, (h_z, h_y, h_x)))
    return tuple(found)


def inverse_region(coefficients: np.ndarray, region: Ranges, threads: int = 1) -> np.ndarray:
    """Return a region of `wavelet.inverse`, bit for bit.

    Parameters
    ----------
    coefficients : ndarray of float32
        Shape (volume, z, y, x).
    region : three (start, stop)
        As for `needed_ranges`.
    threads : int

    Returns
    -------
    ndarray
        float32, shape (volume, *sizes of the region).
    """
    shapes = level_shapes(grid_of(coefficients))
    ranges = needed_ranges(shapes[0], region)
    low = np.ascontiguousarray(coefficients[:, *slices_of(ranges[-1])])
    levels = list(reversed(range(len(shapes) - 1)))
    if not levels:
        return low
    splits = [split_axes(shapes[level]) for level in levels]
    spans = np.array([
        [_spans(*axis) for axis in zip(ranges[level + 1], shapes[level], split, strict=True)]
        for level, split in zip(levels, splits, strict=True)
    ])  # fmt: skip
    insides = [
        _inside(ranges[level], ranges[level + 1], split)
        for level, split in zip(levels, splits, strict=True)
    ]
    if len(low) * spans[:, :, 1::2].sum(axis=2).prod(axis=1).max() <= _SMALL:
        from tinc_codec.model import lifting

        return lifting.inverse_windows(
            coefficients, low, spans, np.array(splits), np.array(insides)
        )
    (z, z_stop), (y, y_stop), (x, x_stop) = region
    # Rows of few samples are lifted side by side rather than one by one.
    is_narrow = x_stop - x <= _NARROW and (z_stop - z) * (y_stop - y) >= _NARROW_ROWS
    inverse_window = _inverse_narrow if is_narrow else _inverse_window
    with Team(threads) as team:
        for window, split, inside in zip(spans, splits, insides, strict=True):
            found = inverse_window(coefficients, low, window, split, team)
            low = found[:, *slices_of(inside)]
    return np.ascontiguousarray(low)


def _inverse_window(
    coefficients: np.ndarray,
    low: np.ndarray,
    spans: np.ndarray,
    split: tuple[bool, bool, bool],
    team: Team,
) -> np.ndarray:
    """Undo a level in a window.

    Parameters
    ----------
    coefficients : ndarray of float32
        Shape (volume, z, y, x).
    low : ndarray of float32
        Low-pass samples of the window.
    spans : ndarray of int64
        From `_spans` per axis.
    split : tuple of bool
        Per axis.
    team : Team

    Returns
    -------
    ndarray of float32
        Shape (volume, z, y, x).
    """
    from tinc_codec.model import lifting

    rest = np.empty((len(low), *spans[:, 1::2].sum(axis=1)), np.float32)
    lifting.gather_window(coefficients, spans, rest)
    window = np.empty_like(rest)
    inverse_level(np.ascontiguousarray(low), rest, window, np.empty_like(rest), split, team)
    return window


def _inverse_narrow(
    coefficients: np.ndarray,
    low: np.ndarray,
    spans: np.ndarray,
    split: tuple[bool, bool, bool],
    team: Team,
) -> np.ndarray:
    """Do what `_inverse_window` does, in the same order, with the axis x in front of the others."""
    from tinc_codec.model import lifting

    z, y, x = spans[:, 1::2].sum(axis=1).tolist()
    rest = np.empty((len(low), x, z, y), np.float32)

    def gather(first: int, last: int) -> None:
        lifting.gather_narrow(coefficients, spans, first, last, rest)

    team.share(gather, z, rest.size)
    corner = low.transpose(0, 3, 1, 2)
    n_x, n_z, n_y = corner.shape[1:]
    rest[:, :n_x, :n_z, :n_y] = corner
    half_way, window = np.empty_like(rest), np.empty_like(rest)

    def planes(first: int, last: int) -> None:
        lifting.inverse_planes(rest, half_way, split[0], split[1], first, last)

    def depth(first: int, last: int) -> None:
        lifting.inverse_depth(half_way, half_way, window, split[2], (n_x, z, y), first, last)

    team.share(planes, len(low) * x, rest.size)
    team.share(depth, len(low) * z, rest.size)
    return window.transpose(0, 2, 3, 1)


def _needed_low(needed: tuple[int, int], size: int) -> tuple[int, int]:
    start = max(0, needed[0] - _REACH)
    stop = min(size, needed[1] + _REACH)
    return start // 2, halved(stop)


def _support(needed: tuple[int, int], n_low: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """Say which low-pass and high-pass samples some samples depend on: through four liftings."""
    first, last = needed[0] // 2, (needed[1] - 1) // 2
    # An odd sample is lifted once more than an even one.
    stop = min(n_low, last + 2 + (needed[1] - 1) % 2)
    return (max(0, first - 1), stop), (max(0, first - 2), stop)


def _spans(lows: tuple[int, int], size: int, is_split: bool) -> tuple[int, int, int, int]:
    """Say where a window's samples begin along an axis and how many: low-pass, then high-pass."""
    first, stop = lows
    if not is_split:
        return first, stop - first, 0, 0
    return first, stop - first, halved(size) + first, min(stop, size // 2) - first


def _inside(ranges: Ranges, lows: Ranges, split: tuple[bool, bool, bool]) -> list[tuple[int, int]]:
    """Say where in a window of some low-pass samples the ranges lie."""
    origins = (
        2 * first if halves else first for (first, _), halves in zip(lows, split, strict=True)
    )
    return [
        (start - origin, stop - origin)
        for (start, stop), origin in zip(ranges, origins, strict=True)
    ]
