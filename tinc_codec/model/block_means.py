"""Means over blocks of 2^k voxels, from the few coarse numbers of a model that decide them.

Of features: the mean of what all but the finest bands stand for is a short filter of the
coarse bands themselves, so that no voxel is ever computed. Of trees: a few points per block, placed
so that the mean of a smooth function comes out.
"""

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from tinc_codec.kernels import kernel
from tinc_codec.model.coefficients import coefficients_of
from tinc_codec.model.evaluate import evaluate_grid
from tinc_codec.model.features import decode_features, parse_features
from tinc_codec.model.render import Tree
from tinc_codec.model.wavelet import Triple, bands, forward, inverse, level_shapes

DIRECT_LEVELS = 3
"""Coarser means are means of these: they cost next to nothing any more.

To level k, the bands of level k - 1 contribute that are high-pass along at most k axes. On
`mni152_t1`, at ratios of 16 to 256, in chunks of 64^3 and 128^3, that is what 40 dB and more take.
"""

_SPARSE_BITS = 0.01
"""Level 1 does without level 0's bands where these have fewer signs and such per voxel.

On all volumes measured, 41.8 dB and more are reached then. It is the case at ratios from 64 on for
bytes, from 128 on for others.
"""

_LONGEST_AXIS = 512
"""Filters of longer axes are those of one with as many voxels beside a multiple of 8."""

_ROUNDING = 2.0**-19

_LARGE = 1e200
"""Values from which on sums over all blocks may overflow."""

_GAUSS_2 = (-1.0, 1.0)
_GAUSS_3 = (-math.sqrt(1.8), 0.0, math.sqrt(1.8))
_TETRAHEDRON = ((1, 1, 1), (1, -1, -1), (-1, 1, -1), (-1, -1, 1))


def coarse_shape(grid: Triple, level: int) -> Triple:
    """Return how many blocks of 2^level voxels cover a grid along each axis."""
    z, y, x = (-(-n // (1 << level)) for n in grid)
    return z, y, x


def feature_means(
    section: bytes | memoryview, grid: Triple, volumes: int, level: int, threads: int
) -> np.ndarray:
    """Decode the means over blocks from a features section; of the finest bands nothing is read.

    Parameters
    ----------
    section : bytes-like
    grid : tuple of int
        Spatial part of the valid extent.
    volumes : int
    level : int
        1 or more: blocks of 2^level voxels per axis, those at the far ends possibly smaller.
    threads : int

    Returns
    -------
    ndarray of float32
        Shape (volumes, *coarse_shape(grid, level)), in t.

    Raises
    ------
    FormatError
        If the part of the section that is needed is damaged.
    """
    direct = min(level, DIRECT_LEVELS)
    shapes = level_shapes(grid)
    coarsest = len(shapes) - 1
    parsed = parse_features(section, grid, volumes)
    finest = min(direct - 1, coarsest)
    if direct == 1 and coarsest > 0:
        finest = int(parsed.finest_sign_bits < _SPARSE_BITS * volumes * math.prod(grid))
    most_high = direct if finest < direct else 3
    features = decode_features(parsed, skip_levels=finest, most_high=most_high, threads=threads)
    coefficients = coefficients_of(features)
    corner = _slices(shapes[min(direct, coarsest)])
    parts = {0: inverse(np.ascontiguousarray(coefficients[:, *corner]), threads)}
    for band in bands(shapes[finest])[0] if finest < min(direct, coarsest) else ():
        if band.mask.bit_count() <= direct:
            part = coefficients[:, *band.slices]
            if part.any():
                parts[band.mask] = np.ascontiguousarray(part)
    filters = [_mean_filters(n, direct) for n in grid]
    return _coarser(_filtered(parts, filters), grid, direct, level)


def tree_means(tree: Tree, level: int, threads: int) -> np.ndarray:
    """Estimate the means of a tree over blocks from 4 of 8, 8 of 64 or 27 of 512 points.

    Parameters
    ----------
    tree : Tree
    level : int
        As for `feature_means`.
    threads : int

    Returns
    -------
    ndarray of float32
        Shape (volumes, *coarse shape), in t, not clipped.
    """
    direct = min(level, DIRECT_LEVELS)
    grid = tree.shape.grid
    out = np.zeros((len(tree.parameters), *coarse_shape(grid, direct)), np.float32)
    for nodes, weights in _rules(direct):
        places = [_nodes_of(n, direct, row) for n, row in zip(grid, nodes, strict=True)]
        found = evaluate_grid(tree.shape, tree.parameters, tree.scaling, places, threads)
        filters = [_runs(n, row) for n, row in zip(out.shape[1:], weights, strict=True)]
        out += _filtered({0: found}, filters)
    return _coarser(out, grid, direct, level)


def voxel_means(voxels: np.ndarray, level: int) -> np.ndarray:
    """Compute the means of voxels themselves over blocks of the last three axes.

    Parameters
    ----------
    voxels : ndarray
        Of any real dtype and up to three and more axes.
    level : int
        As for `feature_means`.

    Returns
    -------
    ndarray of float64
        Over those of a block that are finite; NaN where none is.
    """
    wide = np.ascontiguousarray(voxels, np.float64)
    n_lead = max(0, wide.ndim - 3)
    z, y, x = (1,) * (3 - wide.ndim) + wide.shape[n_lead:]
    blocks = coarse_shape((z, y, x), level)
    sums = np.zeros((math.prod(wide.shape[:n_lead]), *blocks))
    counts = np.zeros_like(sums)
    # Sums of the largest float64 overflow, their means do not.
    is_large = (
        voxels.dtype.itemsize == 8 and np.abs(wide).max(where=np.isfinite(wide), initial=0) > _LARGE
    )
    scale = 2.0 ** (-3 * level if is_large else 0)
    _add_blocks(wide.reshape(-1, z, y, x), level, scale, sums, counts)
    with np.errstate(invalid="ignore"):
        means = sums / counts / scale
    return means.reshape(*wide.shape[:n_lead], *blocks[3 - (wide.ndim - n_lead) :])


@kernel
def _add_blocks(voxels, level, scale, sums, counts):  # type: ignore[no-untyped-def]
    """Add up the finite voxels [volume, z, y, x] of blocks, times a scale, and count them."""
    block = 1 << level
    for volume in range(voxels.shape[0]):
        for z in range(voxels.shape[1]):
            for y in range(voxels.shape[2]):
                row = voxels[volume, z, y]
                row_sums = sums[volume, z >> level, y >> level]
                row_counts = counts[volume, z >> level, y >> level]
                for i in range(row_sums.shape[0]):
                    total, count = 0.0, 0
                    for x in range(i << level, min(row.shape[0], (i << level) + block)):
                        if np.isfinite(row[x]):
                            total += row[x] * scale
                            count += 1
                    row_sums[i] += total
                    row_counts[i] += count


def _slices(shape: Triple) -> tuple[slice, slice, slice]:
    z, y, x = (slice(0, n) for n in shape)
    return z, y, x


class _Filters(NamedTuple):
    """What makes block means along an axis of one level's low- and high-pass samples.

    Each is (starts, taps): mean j is the sum over i of taps[j, i] * sample[starts[j] + i].
    """

    low: tuple[np.ndarray, np.ndarray]
    high: tuple[np.ndarray, np.ndarray] | None


@lru_cache(maxsize=256)
def _mean_filters(size: int, level: int) -> _Filters:
    """Find the filters of an axis: low- and high-pass samples of level - 1 to means of 2^level.

    They are read off the transform itself, sample by sample, so that ends, odd sizes and axes too
    short to be split need no case of their own.
    """
    block = 1 << level
    if size > _LONGEST_AXIS:
        return _stretched(_mean_filters(_LONGEST_AXIS - block + size % block, level), size, level)
    shapes = level_shapes((1, 1, size))
    fine, low = (shapes[min(k, len(shapes) - 1)][2] for k in (level - 1, level))
    basis = np.zeros((fine, 1, 1, size), np.float32)
    basis[:low, ..., :low] = forward(np.eye(low, dtype=np.float32).reshape(low, 1, 1, low))
    basis[range(low, fine), 0, 0, range(low, fine)] = 1
    lines = inverse(basis)[:, 0, 0].astype(np.float64)
    starts = np.arange(0, size, block)
    counts = np.minimum(block, size - starts)
    means = np.add.reduceat(lines, starts, axis=1) / counts
    return _Filters(_banded(means[:low].T), _banded(means[low:].T) if fine > low else None)


def _banded(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Keep of each row the run that holds all that is more than float32's rounding."""
    held = np.abs(matrix) > _ROUNDING * np.abs(matrix).max()
    first = held.argmax(axis=1)
    last = matrix.shape[1] - held[:, ::-1].argmax(axis=1)
    width = int((last - first).max())
    starts = np.minimum(first, matrix.shape[1] - width)
    taps = np.take_along_axis(matrix, starts[:, None] + np.arange(width), axis=1)
    return starts, taps.astype(np.float32)


def _stretched(filters: _Filters, size: int, level: int) -> _Filters:
    """Make the filters of a long axis from a short one's: both ends, and its middle repeated."""

    def stretch(band: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        starts, taps = band
        n, more = len(starts), -(-size // (1 << level)) - len(starts)
        rows = np.concatenate([np.arange(n // 2), np.full(more, n // 2), np.arange(n // 2, n)])
        shifts = np.concatenate([np.zeros(n // 2, int), np.arange(more), np.full(n - n // 2, more)])
        return starts[rows] + shifts, taps[rows]

    return _Filters(stretch(filters.low), None if filters.high is None else stretch(filters.high))


def _filtered(parts: dict[int, np.ndarray], filters: list[_Filters]) -> np.ndarray:
    """Sum up what bands [volume, z, y, x], by their masks, give together: z first, x last.

    Whole rows are added up along z and y, for all bands; along x few are left.
    """
    for axis in range(3):
        bit = 4 >> axis
        merged: dict[int, np.ndarray] = {}
        for mask, part in sorted(parts.items()):
            band = filters[axis].high if mask & bit else filters[axis].low
            assert band is not None
            shape = part.shape
            outer, inner = math.prod(shape[: axis + 1]), math.prod(shape[axis + 2 :])
            target = merged.get(mask & ~bit)
            if target is None:
                sizes = (*shape[: axis + 1], len(band[0]), *shape[axis + 2 :])
                target = merged[mask & ~bit] = np.zeros(sizes, np.float32)
            _add_filtered(part.reshape(outer, -1, inner), *band, target.reshape(outer, -1, inner))
        parts = merged
    return parts[0]


@kernel
def _add_filtered(source, starts, taps, target):  # type: ignore[no-untyped-def]
    """Add filtered lines along the middle one of three axes."""
    for outer in range(source.shape[0]):
        for j in range(target.shape[1]):
            if source.shape[2] == 1:
                total = np.float32(0)
                for i in range(taps.shape[1]):
                    total += taps[j, i] * source[outer, starts[j] + i, 0]
                target[outer, j, 0] += total
            else:
                row = target[outer, j]
                for i in range(taps.shape[1]):
                    weight = taps[j, i]
                    line = source[outer, starts[j] + i]
                    for x in range(row.shape[0]):
                        row[x] += weight * line[x]


def _runs(count: int, weights: np.ndarray) -> _Filters:
    """Make the filter that adds up runs of as many values as there are weights."""
    return _Filters((len(weights) * np.arange(count), np.tile(weights, (count, 1))), None)


def _rules(level: int) -> list[tuple[list[tuple[float, ...]], list[np.ndarray]]]:
    """List sets of points of a block: nodes per axis, in deviations, and the nodes' weights.

    Half of the 8 voxels on level 1, every other one; products of Gauss' rules after that.
    """
    if level == 1:
        one = np.ones(1, np.float32)
        quarter = np.full(1, 0.25, np.float32)
        return [([(float(d),) for d in corner], [quarter, one, one]) for corner in _TETRAHEDRON]
    nodes = _GAUSS_2 if level == 2 else _GAUSS_3
    weights = (1 / 2, 1 / 2) if level == 2 else (5 / 18, 8 / 18, 5 / 18)
    return [([nodes] * 3, [np.array(weights, np.float32)] * 3)]


def _nodes_of(size: int, level: int, nodes: tuple[float, ...]) -> np.ndarray:
    """Place the nodes of all blocks of an axis, in voxels; a block's variance is its voxels'."""
    starts = np.arange(0, size, 1 << level)
    counts = np.minimum(1 << level, size - starts)
    centres, deviations = starts + (counts - 1) / 2, np.sqrt((counts**2 - 1) / 12)
    return np.asarray(centres[:, None] + deviations[:, None] * np.array(nodes)).reshape(-1)


def _coarser(means: np.ndarray, grid: Triple, level: int, wanted: int) -> np.ndarray:
    """Make the means of larger blocks from those of smaller ones [volume, z, y, x]."""
    if wanted == level:
        return means
    for axis, size in enumerate(grid, start=1):
        starts = np.arange(0, size, 1 << level)
        shape = [-1 if a == axis else 1 for a in range(4)]
        counts = np.minimum(1 << level, size - starts).astype(np.float32).reshape(shape)
        groups = np.arange(0, len(starts), 1 << (wanted - level))
        totals = np.add.reduceat(means * counts, groups, axis=axis)
        means = totals / np.add.reduceat(counts, groups, axis=axis)
    return means
