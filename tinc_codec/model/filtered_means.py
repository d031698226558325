"""Means over blocks of two voxels of features behind a post-filter, from two voxels of eight.

What a post-filter adds has means over blocks of two that count (mni152_t1 at 64x: without them
38 dB to the means of what is decoded, and 2.6 dB lost to the original), over larger ones little.
"""

from itertools import pairwise, product

import numpy as np

from tinc_codec.kernels import kernel
from tinc_codec.model.block_means import feature_means
from tinc_codec.model.coefficients import coefficients_of
from tinc_codec.model.evaluate import map_jobs
from tinc_codec.model.features import decode_features, feature_step, parse_features
from tinc_codec.model.filtering import condition, gather_alternate, room_for_tile, run_layers
from tinc_codec.model.fused import TILE
from tinc_codec.model.postfilter import REACH, PostFilter, layer_table
from tinc_codec.model.wavelet import Triple, inverse

_FINE_STEP = 0.1
"""In t: where coefficients have smaller steps, as at 16x, means do without what a post-filter adds.

In 12 streams its root mean square is 24 to 33 dB below the step, so that it is below -44 dB here.
"""

_OWN, _NEXT = np.float32(0.58), np.float32(0.06)
"""Of what two voxels of a block receive, and those of the six blocks next to it.

Two differ from all eight by noise, so that neighbours help. Least squares on `mni152_t1`, `mri_t1`
and `mri_flair` at 16 to 256x give 0.45 to 0.73 and 0.04 to 0.08, and errors 41 to 52 dB down, where
the two alone have 39 to 48 dB.
"""


def filtered_means(
    section: bytes | memoryview, postfilter: PostFilter, grid: Triple, volumes: int, threads: int
) -> np.ndarray:
    """Decode features and estimate their means behind a post-filter over blocks of level 1.

    Parameters
    ----------
    section : bytes-like
        Features.
    postfilter : PostFilter
    grid : tuple of int
        Spatial part of the valid extent.
    volumes : int
    threads : int

    Returns
    -------
    ndarray of float32
        Shape (volumes, z, y, x), the axes of the grid halved and rounded up; in t, not clipped.

    Raises
    ------
    FormatError
        If the section is damaged.
    """
    parsed = parse_features(section, grid, volumes)
    if feature_step(parsed.step_code) <= _FINE_STEP:
        return feature_means(section, grid, volumes, 1, threads)
    values = inverse(coefficients_of(decode_features(parsed, threads=threads)), threads)
    z, y, x = (-(-n // 2) for n in grid)
    means = np.empty((volumes, z, y, x), np.float32)
    added = np.empty_like(means)
    halves = np.empty((volumes, 2, 2 * (z + REACH), 2 * (y + REACH), x + REACH), np.float32)
    table, constants = layer_table(postfilter.widths), postfilter.conditioning.constants

    def split(volume: int, first: int, last: int) -> None:
        _split(values[volume], first, last, halves[volume])

    def add_up(volume: int, first: int, last: int) -> None:
        _add_up(halves[volume], first, last, means[volume])
        _filter_diagonals(
            postfilter.parameters, table, constants, halves[volume], first, last, added[volume]
        )

    for work, count in ((split, halves.shape[2]), (add_up, z * y)):
        shares = 4 * threads if threads > 1 else 1
        bounds = list(pairwise(count * i // shares for i in range(shares + 1)))
        map_jobs(work, [(v, *share) for v, share in product(range(volumes), bounds)], threads)
    for volume in range(volumes):
        _smooth(added[volume], means[volume])
    return means


@kernel
def _split(volume, first, last, halves):  # type: ignore[no-untyped-def]
    """Clip a volume [z, y, x] to [0, 1], and part even and odd voxels of its rows.

    Planes first to last - 1 of halves [parity, z, y, x], which have `REACH` voxels around, the last
    repeated at the ends. So are those of blocks at the far ends, which keeps their means.
    """
    depth, height, length = volume.shape
    for z in range(first, last):
        plane = volume[min(max(z - REACH, 0), depth - 1)]
        for y in range(halves.shape[2]):
            row = plane[min(max(y - REACH, 0), height - 1)]
            for parity in range(2):
                out = halves[parity, z, y]
                for i in range(out.shape[0]):
                    value = row[min(max(2 * i + parity - REACH, 0), length - 1)]
                    out[i] = min(max(value, np.float32(0)), np.float32(1))


@kernel
def _add_up(halves, first, last, means):  # type: ignore[no-untyped-def]
    """Compute the means of blocks of two voxels, rows first to last - 1 of means [z, y, x]."""
    margin = REACH // 2
    for row in range(first, last):
        z = 2 * (row // means.shape[1]) + REACH
        y = 2 * (row % means.shape[1]) + REACH
        out = means[row // means.shape[1], row % means.shape[1]]
        for x in range(out.shape[0]):
            total = np.float32(0)
            for corner in range(8):
                voxel = halves[corner & 1, z + (corner >> 2), y + (corner >> 1 & 1), x + margin]
                total += voxel
            out[x] = np.float32(0.125) * total


@kernel
def _filter_diagonals(parameters, table, constants, halves, first, last, added):  # type: ignore[no-untyped-def]
    """Compute what the first and the last voxel of blocks receive, half of it each.

    Rows first to last - 1 of added [z, y, x]; halves as for `gather_alternate`.
    """
    _, height, length = added.shape
    a, z, activity, centre = room_for_tile(table)
    for x_start in range(0, length, TILE):
        run = min(TILE, length - x_start)
        rows = TILE // run
        for row_start in range(first, last, rows):
            row_stop = min(row_start + rows, last)
            n = (row_stop - row_start) * run
            for corner in range(2):
                for row in range(row_start, row_stop):
                    begin = (row - row_start) * run
                    pz = 2 * (row // height) + corner
                    py = 2 * (row % height) + corner
                    gather_alternate(
                        halves, pz, py, corner, x_start, run, a, activity, centre, begin
                    )
                condition(constants, centre, a, activity, n)
                run_layers(parameters, table, a, z, n)
                for row in range(row_start, row_stop):
                    begin = (row - row_start) * run
                    out = added[row // height, row % height, x_start : x_start + run]
                    for s in range(run):
                        i = begin + s
                        filtered = centre[i] + activity[i] * z[0, i]
                        filtered = min(max(filtered, np.float32(0)), np.float32(1))
                        half = np.float32(0.5) * (filtered - centre[i])
                        out[s] = half if corner == 0 else out[s] + half


@kernel
def _smooth(added, means):  # type: ignore[no-untyped-def]
    """Add what blocks and those next to them receive to means, both [z, y, x]."""
    depth, height, length = added.shape
    for z in range(depth):
        for y in range(height):
            own = added[z, y]
            above, below = added[max(z - 1, 0), y], added[min(z + 1, depth - 1), y]
            before, after = added[z, max(y - 1, 0)], added[z, min(y + 1, height - 1)]
            out = means[z, y]
            for x in range(length):
                beside = own[max(x - 1, 0)] + own[min(x + 1, length - 1)]
                around = above[x] + below[x] + before[x] + after[x] + beside
                out[x] += _OWN * own[x] + _NEXT * around
