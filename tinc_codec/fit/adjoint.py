"""The transpose of the inverse wavelet transform, compiled: how a change of voxels is felt by each
coefficient.

With the ends of an axis counted twice before and halved after, the transpose of a lifting step is
a lifting step in the other direction, mirrored at the ends as the steps of `model.lifting` are. So
the steps of the inverse run backwards, with even and odd samples in each other's place.
"""

import math
from itertools import pairwise

import numpy as np

from tinc_codec.kernels import helper, kernel
from tinc_codec.model.lifting import ALPHA, BETA, DELTA, GAMMA, HIGH_GAIN, LOW_GAIN
from tinc_codec.model.wavelet import LEAST_SPLIT, Team, Triple, level_shapes

__all__ = ["adjoint"]

_STRIP = 512
"""Samples that pass through the steps side by side; a strip of 128 rows fits a core's cache."""
_DOUBLE = np.float32(2)
_HALF = np.float32(0.5)


def adjoint(volumes: np.ndarray, threads: int = 1) -> np.ndarray:
    """Apply the transpose of `model.wavelet.inverse`.

    Parameters
    ----------
    volumes : ndarray of float32
        Shape (volume, z, y, x).
    threads : int

    Returns
    -------
    ndarray of float32
        Of the same shape, in the layout of coefficients.
    """
    coefficients = np.array(volumes, np.float32, order="C")
    _, z, y, x = coefficients.shape
    with Team(threads) as team:
        for volume in coefficients:
            for shape, _ in pairwise(level_shapes((z, y, x))):
                _adjoint_level(volume, shape, team)
    return coefficients


def _adjoint_level(volume: np.ndarray, shape: Triple, team: Team) -> None:
    split = tuple(n >= LEAST_SPLIT for n in shape)

    def planes(first: int, last: int) -> None:
        _adjoint_planes(volume, shape, split[1], split[2], first, last)

    def depth(first: int, last: int) -> None:
        _adjoint_depth(volume, shape, first, last)

    voxels = math.prod(shape)
    team.share(planes, shape[0], voxels)
    if split[0]:
        team.share(depth, shape[1], voxels)


@kernel
def _adjoint_planes(volume, shape, split_y, split_x, first, last):  # type: ignore[no-untyped-def]
    """Transform planes first to last - 1 of a volume's corner along x and y, in place."""
    _, height, width = shape
    turned = np.empty((width, height), np.float32)
    block = np.empty((height, width), np.float32)
    for z in range(first, last):
        if split_x:
            for y in range(height):
                for x in range(width):
                    turned[x, y] = volume[z, y, x]
            _lift(turned, height)
            half = (width + 1) // 2
            for y in range(height):
                for x in range(width):
                    volume[z, y, x] = turned[_interleaved(x, half), y]
        if split_y:
            for y in range(height):
                for x in range(width):
                    block[y, x] = volume[z, y, x]
            _lift(block, width)
            half = (height + 1) // 2
            for y in range(height):
                source = _interleaved(y, half)
                for x in range(width):
                    volume[z, y, x] = block[source, x]


@kernel
def _adjoint_depth(volume, shape, first, last):  # type: ignore[no-untyped-def]
    """Transform rows first to last - 1 of a volume's corner along z, in place."""
    depth, _, width = shape
    half = (depth + 1) // 2
    block = np.empty((depth, min(width, _STRIP)), np.float32)
    for y in range(first, last):
        for start in range(0, width, _STRIP):
            stop = min(start + _STRIP, width)
            for z in range(depth):
                for x in range(start, stop):
                    block[z, x - start] = volume[z, y, x]
            _lift(block, stop - start)
            for z in range(depth):
                source = _interleaved(z, half)
                for x in range(start, stop):
                    volume[z, y, x] = block[source, x - start]


@helper
def _interleaved(position, half):  # type: ignore[no-untyped-def]
    return 2 * position if position < half else 2 * (position - half) + 1


@helper
def _lift(block, n):  # type: ignore[no-untyped-def]
    """Run the steps along axis 0 of n columns; low-pass results at even rows, high-pass at odd."""
    last = block.shape[0] - 1
    even, odd = np.int64(0), np.int64(1)
    _scale(block[0], _DOUBLE, n)
    _scale(block[last], _DOUBLE, n)
    _step(block, even, ALPHA, n)
    _step(block, odd, BETA, n)
    _step(block, even, GAMMA, n)
    _step(block, odd, DELTA, n)
    for row in range(last + 1):
        _scale(block[row], LOW_GAIN if row % 2 else HIGH_GAIN, n)
    _scale(block[0], _HALF, n)
    _scale(block[last], _HALF, n)


@helper
def _step(block, parity, weight, n):  # type: ignore[no-untyped-def]
    last = block.shape[0] - 1
    for row in range(parity, last + 1, 2):
        before = block[abs(row - 1)]
        after = block[row + 1 if row < last else last - 1]
        target = block[row]
        for x in range(n):
            target[x] -= weight * (before[x] + after[x])


@helper
def _scale(row, factor, n):  # type: ignore[no-untyped-def]
    for x in range(n):
        row[x] *= factor
