"""What values before a post-filter lack, told by errors behind it: the filter's transpose.

A descent on features that are filtered afterwards follows the gradient of the error that a reader
sees, (o - F(t))^2, to t itself: through the network, the differences that it sees, and the
activity that divides them.
"""

from itertools import pairwise

import numpy as np

from tinc_codec.fit.features import ABOVE, BELOW, EXACT, FREE, FeatureTarget
from tinc_codec.fit.filter_layers import FAST, forward
from tinc_codec.fit.fused import input_gradient
from tinc_codec.kernels import helper, kernel
from tinc_codec.model.evaluate import map_jobs
from tinc_codec.model.filtering import (
    ACTIVITY,
    FAR,
    NEAR,
    condition,
    gather_row,
    pad,
)
from tinc_codec.model.fused import TILE
from tinc_codec.model.postfilter import N_INPUTS, OFFSETS, REACH, PostFilter, layer_table

_N_TAPS = len(OFFSETS)
_SLABS = 8
_EDGE = 8
"""Of the blocks in which steepness is measured."""


def missing_before(
    target: FeatureTarget, values: np.ndarray, postfilter: PostFilter, threads: int
) -> tuple[np.ndarray, float]:
    """Say how t should change, and the squared error behind the filter.

    That is `gradient_before`, divided by how steep the filter is in each block of 8^3 voxels where
    it is steeper than 1. Divided by its square, steps would be those to the nearest minimum; they
    are so short then that most are lost when symbols are rounded.
    """
    missing, lacking = gradient_before(target, values, postfilter, threads)
    for volume, errors in zip(missing, lacking, strict=True):
        _temper(volume, errors)
    np.square(lacking, out=lacking)
    return missing, float(lacking.sum(dtype=np.float64))


def gradient_before(
    target: FeatureTarget, values: np.ndarray, postfilter: PostFilter, threads: int
) -> tuple[np.ndarray, np.ndarray]:
    """Compute J^T (o - F(t)): half the negative gradient of the squared error behind a filter.

    Parameters
    ----------
    target : FeatureTarget
    values : ndarray of float32
        Shape (B, z, y, x): t before the filter F, not clipped.
    postfilter : PostFilter
    threads : int

    Returns
    -------
    ndarray of float32
        Same shape; J is the Jacobian of F. Where t is beyond [0, 1], only what leads back.
    ndarray of float32
        Same shape: o - F(t), 0 where it meets what is demanded.
    """
    table, constants = layer_table(postfilter.widths), postfilter.conditioning.constants
    out, lacking = np.zeros_like(values), np.empty_like(values)
    depth = values.shape[1]
    # Slabs write into margins that they share with the next: even ones first, then odd ones.
    thickness = max(2 * REACH, -(-depth // _SLABS))
    bounds = [*range(0, depth, thickness), depth]
    if len(bounds) > 2 and bounds[-1] - bounds[-2] < 2 * REACH:
        del bounds[-2]
    slabs = list(pairwise(bounds))
    for number, volume in enumerate(values):
        padded = pad(volume)
        gradient = np.zeros_like(padded)
        demands = np.zeros((0, 0, 0), np.uint8)
        if target.demands is not None:
            demands = target.demands[number]

        def work(
            first: int,
            last: int,
            padded: np.ndarray = padded,
            gradient: np.ndarray = gradient,
            demands: np.ndarray = demands,
            number: int = number,
        ) -> None:
            _add_slab(
                postfilter.parameters, table, constants, padded, target.values[number], demands,
                first, last, gradient, lacking[number],
            )  # fmt: skip

        for parity in (0, 1):
            map_jobs(work, slabs[parity::2], threads)
        _fold(gradient, volume, out[number])
    return out, lacking


@kernel(fastmath=FAST)
def _add_slab(  # type: ignore[no-untyped-def]
    parameters, table, constants, padded, wanted, demands, first, last, gradient, lacking
):  # fmt: skip
    """Add what planes first to last - 1 ask of the padded values, and write what they lack."""
    _, height, length = wanted.shape
    layers = len(table)
    width = N_INPUTS
    for layer in range(layers):
        width = max(width, table[layer, 2])
    x = np.empty((layers, width, TILE), np.float32)
    slope = np.ones((layers, width, TILE), np.float32)
    z = np.empty((width, TILE), np.float32)
    d = np.empty((width, TILE), np.float32)
    scratch = np.empty((width + 1) * width, np.float32)
    activity = np.empty(TILE, np.float32)
    centre = np.empty(TILE, np.float32)
    error = np.empty(TILE, np.float32)
    by_activity = np.empty(TILE, np.float32)
    mean = constants[0]
    for depth in range(first, last):
        for row in range(height):
            for start in range(0, length, TILE):
                n = min(TILE, length - start)
                gather_row(padded, depth, row, start, n, x[0], activity, np.int64(0))
                for s in range(n):
                    centre[s] = padded[depth + REACH, row + REACH, start + REACH + s]
                condition(constants, centre, x[0], activity, n)
                forward(parameters, table, x, slope, z, n)
                for s in range(n):
                    lack = wanted[depth, row, start + s] - centre[s] - activity[s] * z[0, s]
                    demand = demands[depth, row, start + s] if demands.size else np.uint8(EXACT)
                    if (
                        demand == FREE
                        or (demand == BELOW and lack > 0)
                        or (demand == ABOVE and lack < 0)
                    ):
                        lack = np.float32(0)
                    error[s] = lack
                    lacking[depth, row, start + s] = lack
                    by_activity[s] = lack * z[0, s]
                    d[0, s] = lack * activity[s]
                for layer in range(layers - 1, -1, -1):
                    at, _, n_out, n_in = table[layer]
                    input_gradient(parameters, at, n_out, n_in, d, slope[layer], z, scratch, n)
                    z, d = d, z
                for s in range(n):
                    a = activity[s]
                    near = mean * NEAR
                    far = mean * FAR
                    total = by_activity[s]
                    for k in range(_N_TAPS):
                        total -= d[k, s] * x[0, k, s] / a
                    total += d[_N_TAPS, s] * np.float32(4) * near / ((a + near) * (a + near))
                    total += d[_N_TAPS + 1, s] * np.float32(4) * far / ((a + far) * (a + far))
                    by_activity[s] = total * ACTIVITY
                    error[s] += d[_N_TAPS + 2, s] * constants[2]
                _scatter(padded, depth, row, start, n, d, activity, by_activity, error, gradient)


@helper(fastmath=FAST)
def _scatter(padded, depth, row, start, n, d, activity, by_activity, error, gradient):  # type: ignore[no-untyped-def]
    """Give neighbours and centres of n voxels of a row their parts."""
    z = depth + REACH
    y = row + REACH
    x = start + REACH
    own = padded[z, y, x : x + n]
    for k in range(_N_TAPS):
        dz = OFFSETS[k, 0]
        dy = OFFSETS[k, 1]
        dx = OFFSETS[k, 2]
        for sign in (-1, 1):
            zz = z + sign * dz
            yy = y + sign * dy
            xx = x + sign * dx
            there = padded[zz, yy, xx : xx + n]
            target = gradient[zz, yy, xx : xx + n]
            row_d = d[k]
            for s in range(n):
                difference = there[s] - own[s]
                part = row_d[s] / activity[s]
                if difference > 0:
                    part += by_activity[s]
                elif difference < 0:
                    part -= by_activity[s]
                target[s] += part
                error[s] -= part
    mine = gradient[z, y, x : x + n]
    for s in range(n):
        mine[s] += error[s]


@kernel(fastmath=FAST)
def _temper(missing, lacking):  # type: ignore[no-untyped-def]
    """Divide each block by how much larger it is than the errors behind the filter."""
    depth, height, length = missing.shape
    for z in range(0, depth, _EDGE):
        for y in range(0, height, _EDGE):
            for x in range(0, length, _EDGE):
                block = missing[z : z + _EDGE, y : y + _EDGE, x : x + _EDGE]
                error = lacking[z : z + _EDGE, y : y + _EDGE, x : x + _EDGE]
                before = np.float32(0)
                behind = np.float32(1e-30)
                for a in range(block.shape[0]):
                    for b in range(block.shape[1]):
                        for c in range(block.shape[2]):
                            before += block[a, b, c] * block[a, b, c]
                            behind += error[a, b, c] * error[a, b, c]
                if before > behind:
                    factor = np.sqrt(behind / before)
                    for a in range(block.shape[0]):
                        for b in range(block.shape[1]):
                            for c in range(block.shape[2]):
                                block[a, b, c] *= factor


@kernel(fastmath=FAST)
def _fold(gradient, values, out):  # type: ignore[no-untyped-def]
    """Transpose `filtering.pad`: add up what repeats a voxel; leave out what leads further away."""
    for z in range(gradient.shape[0]):
        zz = min(max(z - REACH, 0), out.shape[0] - 1)
        for y in range(gradient.shape[1]):
            yy = min(max(y - REACH, 0), out.shape[1] - 1)
            for x in range(gradient.shape[2]):
                xx = min(max(x - REACH, 0), out.shape[2] - 1)
                out[zz, yy, xx] += gradient[z, y, x]
    for z in range(out.shape[0]):
        for y in range(out.shape[1]):
            for x in range(out.shape[2]):
                t = values[z, y, x]
                if (t < 0 and out[z, y, x] < 0) or (t > 1 and out[z, y, x] > 0):
                    out[z, y, x] = np.float32(0)
