"""Sums over what a band's contexts know from outside of it: the coarser level, earlier bands.

They do not depend on what the band itself holds, so they are made once for all of its phases, row
by row. Fields are padded by one on all sides and flat.

References
----------
`docs/format.md` §10.4
"""

import numpy as np

from tinc_codec.entropy.pyramid import BLOCK_EDGE
from tinc_codec.kernels import helper, kernel


@kernel
def near_sums(field, width, plane, out):  # type: ignore[no-untyped-def]
    """Add up the six neighbours of every place inside.

    Parameters
    ----------
    field : ndarray of uint16
    width, plane : int
        Strides of its rows and planes.
    out : ndarray of uint32
        Of the same size; the margin receives nothing of use.
    """
    n = len(field) - 2 * plane
    row = field[plane - 1 : plane + n + 1]
    before, behind = field[plane - width : plane - width + n], field[plane + width :]
    above, below = field[:n], field[2 * plane :]
    target = out[plane : plane + n]
    for i in range(n):
        target[i] = (
            np.uint32(row[i]) + row[i + 2] + before[i] + behind[i] + above[i] + below[i]
        )  # fmt: skip


@kernel
def outer_sums(  # type: ignore[no-untyped-def]
    fields, padded, coarse, coarse_padded, shifts, coarse_weights, others, other_weights, blocks,
    shape, out
):  # fmt: skip
    """Sum up what the coarser level and earlier bands say about the positions of some blocks.

    Parameters
    ----------
    fields : ndarray of uint16
        Shape (band, place): all bands of the level.
    padded : tuple of int
        Shape of each.
    coarse : tuple of four ndarrays
        Of the coarser level: the same band (uint16) and what is around each of its places
        (uint32), the sum of all bands (uint16) and the same of it (uint32).
    coarse_padded : tuple of int
        Shape of each.
    shifts : tuple of int
        Position p has its place in `coarse` at p >> shifts.
    coarse_weights, others, other_weights : ndarray
        From `stencils.Stencil`.
    blocks : ndarray of int32
        (number, 3), in C order.
    shape : tuple of int
        Of the band.
    out : ndarray of uint32
        Receives the sums, padded likewise; also at positions between blocks of one row.
    """
    width, plane = padded[2], padded[1] * padded[2]
    coarse_width, coarse_plane = coarse_padded[2], coarse_padded[1] * coarse_padded[2]
    strip = min(_STRIP, padded[2])
    patterns = _alternating(other_weights, strip)
    pairs = np.empty((2, _STRIP // 2), np.uint32)
    stop = 0
    while stop < len(blocks):
        start = stop
        while (
            stop < len(blocks)
            and blocks[stop, 0] == blocks[start, 0]
            and blocks[stop, 1] == blocks[start, 1]
        ):
            stop += 1
        z0, y0 = np.int64(blocks[start, 0]) * BLOCK_EDGE, np.int64(blocks[start, 1]) * BLOCK_EDGE
        x0 = np.int64(blocks[start, 2]) * BLOCK_EDGE
        x1 = min((np.int64(blocks[stop - 1, 2]) + 1) * BLOCK_EDGE, shape[2])
        for z in range(z0, min(z0 + BLOCK_EDGE, shape[0])):
            for y in range(y0, min(y0 + BLOCK_EDGE, shape[1])):
                parity = (z & 1) << 2 | (y & 1) << 1
                row = (z + 1) * plane + (y + 1) * width + 1
                above = ((z >> shifts[0]) + 1) * coarse_plane + (
                    ((y >> shifts[1]) + 1) * coarse_width + 1
                )
                for x in range(x0, x1, strip):
                    n = min(strip, x1 - x)
                    target = out[row + x : row + x + n + 1]
                    begin = above + (x >> shifts[2])
                    _coarse_row(
                        coarse[0][begin:], coarse[1][begin:], coarse[2][begin:],
                        coarse[3][begin:], coarse_weights[parity], coarse_weights[parity + 1],
                        shifts[2], n, pairs, target,
                    )  # fmt: skip
                    for i in range(len(others)):
                        _other_row(
                            fields[others[i]], row + x, n, width, plane,
                            patterns[i, parity >> 1, 0], patterns[i, parity >> 1, 1], target,
                        )  # fmt: skip


_STRIP = 256
"""Positions along x, even in number, that are summed up at once."""


@helper
def _alternating(weights, n):  # type: ignore[no-untyped-def]
    """Repeat weights [other, parity, 2] along x; uint32 [other, parity // 2, 2, n]."""
    out = np.empty((len(weights), 4, 2, n), np.uint32)
    for other in range(len(weights)):
        for parity in range(8):
            for kind in range(2):
                out[other, parity >> 1, kind, parity & 1 :: 2] = weights[other, parity, kind]
    return out


@kernel(inline="always")
def _coarse_row(  # type: ignore[no-untyped-def]
    own, own_near, total, total_near, even, odd, shift, n, pairs, out
):
    """Start the sums of n positions of a row, the first of them even."""
    e0, e1, e2, e3, e4 = even
    o0, o1, o2, o3, o4 = odd
    if shift:
        half = (n + 1) // 2
        evens, odds = pairs[0], pairs[1]
        for i in range(half):
            evens[i] = e0 + e1 * own[i] + e2 * own_near[i] + e3 * total[i] + e4 * total_near[i]
            odds[i] = o0 + o1 * own[i] + o2 * own_near[i] + o3 * total[i] + o4 * total_near[i]
        for i in range(half):
            out[np.uint64(2 * i)] = evens[i]
            out[np.uint64(2 * i + 1)] = odds[i]
    else:
        for i in range(0, n, 2):
            out[i] = e0 + e1 * own[i] + e2 * own_near[i] + e3 * total[i] + e4 * total_near[i]
        for i in range(1, n, 2):
            out[i] = o0 + o1 * own[i] + o2 * own_near[i] + o3 * total[i] + o4 * total_near[i]


@kernel(inline="always")
def _other_row(  # type: ignore[no-untyped-def]
    field, place, n, width, plane, own_weights, near_weights, out
):
    """Add one band's part to the sums of n positions from a place on."""
    row = field[place - 1 :]
    before, behind = field[place - width :], field[place + width :]
    above, below = field[place - plane :], field[place + plane :]
    for i in range(n):
        near = np.uint32(row[i]) + row[i + 2] + before[i] + behind[i] + above[i] + below[i]
        out[i] += own_weights[i] * np.uint32(row[i + 1]) + near_weights[i] * np.uint32(near)


@kernel
def block_sums(field, blocks, edges, out):  # type: ignore[no-untyped-def]
    """Add up a padded field of uint16 [z, y, x] in some blocks, limited to uint16.

    Parameters
    ----------
    blocks : ndarray of int32
        (number, 3): all that hold anything.
    edges : tuple of int
        Positions per block and axis.
    out : ndarray of uint16
        One place per block, padded likewise.
    """
    out[:] = 0
    depth, height, width = field.shape
    for t in range(len(blocks)):
        i, j, k = np.int64(blocks[t, 0]), np.int64(blocks[t, 1]), np.int64(blocks[t, 2])
        total = np.int64(0)
        begin, end = 1 + k * edges[2], min(1 + (k + 1) * edges[2], width - 1)
        for z in range(1 + i * edges[0], min(1 + (i + 1) * edges[0], depth - 1)):
            for y in range(1 + j * edges[1], min(1 + (j + 1) * edges[1], height - 1)):
                row = field[z, y]
                for x in range(begin, end):
                    total += row[x]
        out[i + 1, j + 1, k + 1] = min(total, 65535)


@kernel
def total_of_bands(bands, out):  # type: ignore[no-untyped-def]
    """Add up bands of uint16 [band, place], limited to uint16."""
    for place in range(bands.shape[1]):
        total = np.int32(0)
        for band in range(bands.shape[0]):
            total += bands[band, place]
        out[place] = min(total, 65535)


@kernel
def present_blocks(flags, blocks):  # type: ignore[no-untyped-def]
    """List the blocks whose flag is set, int32 (number, 3), in C order; return how many."""
    n = 0
    for z in range(flags.shape[0] - 2):
        for y in range(flags.shape[1] - 2):
            row = flags[z + 1, y + 1]
            for x in range(flags.shape[2] - 2):
                if row[x + 1]:
                    blocks[n, 0], blocks[n, 1], blocks[n, 2] = z, y, x
                    n += 1
    return n
