"""A post-filter applied on the CPU: compiled, row by row; `model.torch_filtering` is its twin.

Every voxel is computed by itself, in an order of operations that does not depend on the others, so
that a part of a chunk has the bits of the whole.
"""

from collections.abc import Sequence
from itertools import pairwise, product

import numpy as np

from tinc_codec.kernels import helper, kernel
from tinc_codec.model.evaluate import map_jobs
from tinc_codec.model.fused import TILE, affine
from tinc_codec.model.postfilter import N_INPUTS, OFFSETS, REACH, PostFilter, layer_table

# As in `model.fused`, and without estimates of reciprocals.
_FAST = {"nnan", "ninf", "nsz", "contract"}
_N_TAPS = len(OFFSETS)
ACTIVITY = np.float32(3.0 / (2 * _N_TAPS))
"""Of the sum of differences: their mean, times three."""
FLOOR = np.float32(1.0 / 128)
"""Of the mean activity: added to every activity."""
NEAR, FAR = np.float32(0.3), np.float32(3.0)
"""Of the mean activity: where the two inputs that tell the activity are 0."""
_SHARE_VOXELS = 1 << 17
_SHORT = 8
"""Runs of fewer voxels are too short to be handled side by side."""


def apply_postfilter(
    values: np.ndarray, postfilter: PostFilter, threads: int, inner: Sequence[slice] | None = None
) -> np.ndarray:
    """Filter the values of a box of a chunk.

    Parameters
    ----------
    values : ndarray of float32
        Shape (B, z, y, x): t, not clipped. It ends where the chunk's valid extent does, or
        `REACH` voxels beyond the inner box.
    postfilter : PostFilter
    threads : int
    inner : sequence of slice, optional
        Which box of the values to filter, along z, y, x; all of it by default.

    Returns
    -------
    ndarray of float32
        Shape (B, *inner): t, not clipped.

    References
    ----------
    `docs/format.md` §13
    """
    if inner is None:
        inner = [slice(0, n) for n in values.shape[1:]]
    sizes = tuple(part.stop - part.start for part in inner)
    out = np.empty((len(values), *sizes), np.float32)
    table, constants = layer_table(postfilter.widths), postfilter.conditioning.constants
    padded = [pad(volume, inner) for volume in values]
    rows = sizes[0] * sizes[1]
    shares = min(4 * threads, max(1, out.size // _SHARE_VOXELS)) if threads > 1 else 1
    bounds = pairwise(rows * i // shares for i in range(shares + 1))

    def work(volume: int, first: int, last: int) -> None:
        _filter_rows(
            postfilter.parameters, table, constants, padded[volume], first, last, out[volume]
        )

    jobs = [(volume, *share) for volume, share in product(range(len(values)), list(bounds))]
    map_jobs(work, jobs, threads)
    return out


def pad(volume: np.ndarray, inner: Sequence[slice] | None = None) -> np.ndarray:
    """Clip a volume's box to [0, 1], with `REACH` voxels around it, the last repeated at its end.

    Parameters
    ----------
    volume : ndarray of float32
        Shape (z, y, x).
    inner : sequence of slice, optional
        As in `apply_postfilter`.
    """
    if inner is None:
        inner = [slice(0, n) for n in volume.shape]
    z, y, x = (part.stop - part.start + 2 * REACH for part in inner)
    padded = np.empty((z, y, x), np.float32)
    _pad(volume, *(part.start - REACH for part in inner), padded)
    return padded


@kernel(fastmath=_FAST)
def _pad(volume, z_first, y_first, x_first, out):  # type: ignore[no-untyped-def]
    for z in range(out.shape[0]):
        plane = volume[min(max(z + z_first, 0), volume.shape[0] - 1)]
        for y in range(out.shape[1]):
            row = plane[min(max(y + y_first, 0), volume.shape[1] - 1)]
            target = out[z, y]
            for x in range(out.shape[2]):
                value = row[min(max(x + x_first, 0), volume.shape[2] - 1)]
                target[x] = min(max(value, np.float32(0)), np.float32(1))


@kernel(fastmath=_FAST)
def condition(constants, centre, inputs, activity, n):  # type: ignore[no-untyped-def]
    """Complete the inputs of n voxels from sums over pairs [tap, n] and sums of differences."""
    mean = constants[0]
    for s in range(n):
        activity[s] = activity[s] * ACTIVITY + mean * FLOOR
    for k in range(_N_TAPS):
        row = inputs[k]
        for s in range(n):
            row[s] = row[s] / activity[s]
    near = inputs[_N_TAPS]
    far = inputs[_N_TAPS + 1]
    own = inputs[_N_TAPS + 2]
    for s in range(n):
        a = activity[s]
        near[s] = np.float32(4) * a / (a + mean * NEAR) - np.float32(2)
        far[s] = np.float32(4) * a / (a + mean * FAR) - np.float32(2)
        own[s] = (centre[s] - constants[1]) * constants[2]


@helper(fastmath=_FAST)
def gather_row(padded, z, y, x, n, inputs, activity, begin):  # type: ignore[no-untyped-def]
    """Sum up n voxels of a row: per pair both differences, over all pairs their magnitudes."""
    z += REACH
    y += REACH
    x += REACH
    centre = padded[z, y, x : x + n]
    total = activity[begin : begin + n]
    for s in range(n):
        total[s] = np.float32(0)
    for k in range(_N_TAPS):
        dz = OFFSETS[k, 0]
        dy = OFFSETS[k, 1]
        dx = OFFSETS[k, 2]
        after = padded[z + dz, y + dy, x + dx : x + dx + n]
        before = padded[z - dz, y - dy, x - dx : x - dx + n]
        _add_pair(after, before, centre, inputs[k, begin : begin + n], total)


@helper(fastmath=_FAST)
def _add_pair(after, before, centre, sums, total):  # type: ignore[no-untyped-def]
    """Sum up both differences to a pair of neighbours, and add their magnitudes to a total."""
    for s in range(len(sums)):
        a = after[s] - centre[s]
        b = before[s] - centre[s]
        sums[s] = a + b
        total[s] += abs(a) + abs(b)


@helper(fastmath=_FAST)
def gather_alternate(halves, z, y, corner, x, n, inputs, activity, centre, begin):  # type: ignore[no-untyped-def]
    """Do what `gather_row` does for n voxels, every other one, and keep them.

    halves [parity, z, y, x] are a padded volume's even and odd voxels along x; the first voxel is
    number 2 * x + corner of row (z, y).
    """
    z += REACH
    y += REACH
    corner += REACH
    total = activity[begin : begin + n]
    own = centre[begin : begin + n]
    first = x + corner // 2
    row = halves[corner & 1, z, y, first : first + n]
    for s in range(n):
        total[s] = np.float32(0)
        own[s] = row[s]
    for k in range(_N_TAPS):
        dz = OFFSETS[k, 0]
        dy = OFFSETS[k, 1]
        dx = OFFSETS[k, 2]
        first = x + (corner + dx) // 2
        after = halves[(corner + dx) & 1, z + dz, y + dy, first : first + n]
        first = x + (corner - dx) // 2
        before = halves[(corner - dx) & 1, z - dz, y - dy, first : first + n]
        _add_pair(after, before, own, inputs[k, begin : begin + n], total)


@helper(fastmath=_FAST)
def room_for_tile(table):  # type: ignore[no-untyped-def]
    """Make room for a tile of voxels: inputs and outputs of layers, activities, own values."""
    width = N_INPUTS
    for layer in range(len(table)):
        width = max(width, table[layer, 2])
    return (
        np.empty((width, TILE), np.float32), np.empty((width, TILE), np.float32),
        np.empty(TILE, np.float32), np.empty(TILE, np.float32),
    )  # fmt: skip


@helper(fastmath=_FAST)
def run_layers(parameters, table, x, z, n):  # type: ignore[no-untyped-def]
    """Evaluate the network for n voxels: from x [input, n] to z[0]; both are written to."""
    for layer in range(len(table)):
        weight, bias, n_out, n_in = table[layer]
        affine(parameters, weight, bias, n_out, n_in, x, z, n)
        if layer < len(table) - 1:
            for o in range(n_out):
                source = z[o]
                target = x[o]
                for s in range(n):
                    target[s] = max(source[s], np.float32(0))


@helper(fastmath=_FAST)
def _gather_short(flat, steps, first, n, inputs, activity, begin):  # type: ignore[no-untyped-def]
    """Do what `gather_row` does, for few voxels quicker: those from flat[first] on."""
    for s in range(n):
        own = flat[first + s]
        total = np.float32(0)
        for k in range(_N_TAPS):
            a = flat[first + s + steps[k]] - own
            b = flat[first + s - steps[k]] - own
            inputs[k, begin + s] = a + b
            total += abs(a) + abs(b)
        activity[begin + s] = total


@kernel(fastmath=_FAST)
def _filter_rows(parameters, table, constants, padded, first, last, out):  # type: ignore[no-untyped-def]
    """Filter rows first to last - 1 of out [z, y, x]."""
    _, height, length = out.shape
    a, z, activity, centre = room_for_tile(table)
    flat = padded.reshape(-1)
    p_row, p_plane = padded.shape[2], padded.shape[1] * padded.shape[2]
    steps = OFFSETS[:, 0] * p_plane + OFFSETS[:, 1] * p_row + OFFSETS[:, 2]
    for x_start in range(0, length, TILE):
        run = min(TILE, length - x_start)
        rows = TILE // run
        for row_start in range(first, last, rows):
            row_stop = min(row_start + rows, last)
            n = (row_stop - row_start) * run
            for row in range(row_start, row_stop):
                begin = (row - row_start) * run
                pz = row // height
                py = row % height
                if run < _SHORT:
                    place = (pz + REACH) * p_plane + (py + REACH) * p_row + x_start + REACH
                    _gather_short(flat, steps, place, run, a, activity, begin)
                else:
                    gather_row(padded, pz, py, x_start, run, a, activity, begin)
                own = padded[pz + REACH, py + REACH, x_start + REACH : x_start + REACH + run]
                for s in range(run):
                    centre[begin + s] = own[s]
            condition(constants, centre, a, activity, n)
            run_layers(parameters, table, a, z, n)
            for row in range(row_start, row_stop):
                begin = (row - row_start) * run
                target = out[row // height, row % height]
                for s in range(run):
                    i = begin + s
                    target[x_start + s] = centre[i] + activity[i] * z[0, i]


@kernel(fastmath=_FAST)
def activities(padded, mean, out):  # type: ignore[no-untyped-def]
    """Compute the activity of every voxel, float32 [z, y, x]; a mean of 0 leaves its floor out."""
    length, first = out.shape[2], np.int64(0)
    inputs = np.empty((_N_TAPS, length), np.float32)
    for z in range(out.shape[0]):
        for y in range(out.shape[1]):
            gather_row(padded, z, y, first, length, inputs, out[z, y], first)
            for s in range(length):
                out[z, y, s] = out[z, y, s] * ACTIVITY + mean * FLOOR


@kernel(fastmath=_FAST)
def inputs_at(padded, places, constants, inputs, activity, centre):  # type: ignore[no-untyped-def]
    """Compute the inputs [input, n], activities and clipped values of voxels; places [n, 3]."""
    for i in range(len(places)):
        z = places[i, 0] + REACH
        y = places[i, 1] + REACH
        x = places[i, 2] + REACH
        own = padded[z, y, x]
        total = np.float32(0)
        for k in range(_N_TAPS):
            dz = OFFSETS[k, 0]
            dy = OFFSETS[k, 1]
            dx = OFFSETS[k, 2]
            a = padded[z + dz, y + dy, x + dx] - own
            b = padded[z - dz, y - dy, x - dx] - own
            inputs[k, i] = a + b
            total += abs(a) + abs(b)
        activity[i] = total
        centre[i] = own
    condition(constants, centre, inputs, activity, len(places))
