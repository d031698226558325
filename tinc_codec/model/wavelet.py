"""The wavelet of the features: CDF 9/7 by lifting, on any shape.

Coefficients of a volume lie in an array of its shape (Mallat's layout): splitting an axis of n
samples puts the ceil(n / 2) low-pass ones first and the others behind; the next level works on
the corner where all axes are low. The forward transform takes x, y, z in turn, the inverse z, y,
x; `docs/format.md` has the constants. `model.torch_wavelet` is the differentiable twin.
"""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from itertools import pairwise
from types import TracebackType
from typing import NamedTuple, Self

import numpy as np

from tinc_codec.errors import ConfigError

LEAST_SPLIT = 8
"""An axis of fewer samples is left alone."""

Triple = tuple[int, int, int]
Slices = tuple[slice, slice, slice]

_BAND_ORDER = (4, 2, 1, 6, 5, 3, 7)

_VOXELS_PER_THREAD = 100_000
"""Smaller shares cost more to hand out than they save."""

_GROUP_VOXELS = 1 << 22
"""Volumes are transformed together up to this many voxels, which bounds the scratch memory."""


class Band(NamedTuple):
    """One band of one level: which axes are high (4 z, 2 y, 1 x), where it lies, its shape."""

    mask: int
    slices: Slices
    shape: Triple


@lru_cache(maxsize=64)
def level_shapes(grid: Triple) -> tuple[Triple, ...]:
    """List the low-pass shapes, from the grid itself to the coarsest.

    Every axis of at least `LEAST_SPLIT` samples is halved, rounding up, from one to the next.
    """
    shapes = [grid]
    while max(shapes[-1]) >= LEAST_SPLIT:
        z, y, x = (halved(n) if n >= LEAST_SPLIT else n for n in shapes[-1])
        shapes.append((z, y, x))
    return tuple(shapes)


@lru_cache(maxsize=64)
def bands(grid: Triple) -> tuple[tuple[Band, ...], ...]:
    """List the bands of every level, finest first, fewest high axes first within a level.

    The coarsest low-pass corner, of shape `level_shapes(grid)[-1]`, is not among them.
    """
    shapes = level_shapes(grid)
    return tuple(
        tuple(
            _band(mask, shape, low)
            for mask in _BAND_ORDER
            if all(shape[a] != low[a] for a in range(3) if _is_high(mask, a))
        )
        for shape, low in pairwise(shapes)
    )


def level_gain(grid: Triple, level: int) -> float:
    """Return what makes low-pass samples of a level voxel values: the inverse of their DC gain."""
    shapes = level_shapes(grid)
    splits = sum(shapes[k][a] != shapes[k + 1][a] for k in range(level) for a in range(3))
    return float(2 ** (-splits / 2))


def forward(volumes: np.ndarray, threads: int = 1) -> np.ndarray:
    """Transform volumes.

    Parameters
    ----------
    volumes : ndarray of float32
        Shape (volume, z, y, x).
    threads : int

    Returns
    -------
    ndarray of float32
        Coefficients of the same shape.
    """
    volumes = np.ascontiguousarray(volumes, np.float32)
    coefficients = np.empty_like(volumes)
    with Team(threads) as team:
        for group in _groups(volumes):
            _forward_group(_dense(volumes[group]), _dense(coefficients[group]), team)
    return coefficients


def inverse(coefficients: np.ndarray, threads: int = 1, *, skip_levels: int = 0) -> np.ndarray:
    """Undo `forward`, or go back only to a coarser level.

    Parameters
    ----------
    coefficients : ndarray of float32
        Shape (volume, z, y, x).
    threads : int
    skip_levels : int
        How many of the finest levels to leave out.

    Returns
    -------
    ndarray of float32
        Shape (volume, *level_shapes(grid)[skip_levels]), scaled so that a constant volume keeps
        its value on every level.

    Raises
    ------
    ConfigError
        If there are not as many levels.
    """
    coefficients = np.ascontiguousarray(coefficients, np.float32)
    grid = grid_of(coefficients)
    shape = shape_of_level(grid, skip_levels)
    out = np.empty((len(coefficients), *shape), np.float32)
    with Team(threads) as team:
        for group in _groups(out):
            _inverse_group(_dense(coefficients[group]), _dense(out[group]), skip_levels, team)
    if skip_levels:
        out *= np.float32(level_gain(grid, skip_levels))
    return out


def shape_of_level(grid: Triple, level: int) -> Triple:
    """Return one of `level_shapes`.

    Raises
    ------
    ConfigError
        If there is no such level.
    """
    shapes = level_shapes(grid)
    if not 0 <= level < len(shapes):
        raise ConfigError(f"level {level} of a grid {grid} that has levels 0 to {len(shapes) - 1}")
    return shapes[level]


class Team:
    """Threads for one transform: the caller's own and a pool that starts when first used."""

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._pool = ThreadPoolExecutor(threads - 1) if threads > 1 else None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._pool is not None:
            self._pool.shutdown()

    def share(self, work: Callable[[int, int], None], count: int, voxels: int) -> None:
        """Call work(first, last) so that range(count) is covered; voxels is what it all costs."""
        shares = min(self._threads, count, voxels // _VOXELS_PER_THREAD)
        if self._pool is None or shares < 2:
            work(0, count)
            return
        bounds = [count * i // shares for i in range(shares + 1)]
        others = [self._pool.submit(work, *bounds[i : i + 2]) for i in range(1, shares)]
        work(0, bounds[1])
        for other in others:
            other.result()


def _forward_group(volumes: np.ndarray, coefficients: np.ndarray, team: Team) -> None:
    shapes = level_shapes(grid_of(volumes))
    scratch = np.empty(volumes.size, np.float32)
    source = volumes
    for shape, corner in pairwise(shapes):
        low = np.empty((len(volumes), *corner), np.float32)
        half_way = scratch[: source.size].reshape(source.shape)
        _forward_level(source, low, coefficients, half_way, split_axes(shape), team)
        source = low
    coefficients[:, *slices_of((0, n) for n in shapes[-1])] = source


def _forward_level(
    source: np.ndarray,
    low: np.ndarray,
    rest: np.ndarray,
    half_way: np.ndarray,
    split: tuple[bool, bool, bool],
    team: Team,
) -> None:
    """Do one level: low takes the corner, rest the other bands; half_way is scratch."""
    from tinc_codec.model import lifting

    count, z, y, _ = source.shape
    corner = grid_of(low)

    def planes(first: int, last: int) -> None:
        lifting.forward_planes(source, half_way, split[1], split[2], first, last)

    def depth(first: int, last: int) -> None:
        lifting.forward_depth(half_way, low, rest, split[0], corner, first, last)

    team.share(planes, count * z, source.size)
    team.share(depth, count * y, source.size)


def _inverse_group(coefficients: np.ndarray, out: np.ndarray, skip_levels: int, team: Team) -> None:
    shapes = level_shapes(grid_of(coefficients))
    count = len(coefficients)
    scratch = np.empty(out.size, np.float32)
    low = np.ascontiguousarray(coefficients[:, *slices_of((0, n) for n in shapes[-1])])
    for level in reversed(range(skip_levels, len(shapes) - 1)):
        shape = (count, *shapes[level])
        target = out if level == skip_levels else np.empty(shape, np.float32)
        half_way = scratch[: target.size].reshape(shape)
        inverse_level(low, coefficients, target, half_way, split_axes(shapes[level]), team)
        low = target
    if skip_levels == len(shapes) - 1:
        np.copyto(out, low)


def inverse_level(
    low: np.ndarray,
    rest: np.ndarray,
    target: np.ndarray,
    half_way: np.ndarray,
    split: tuple[bool, bool, bool],
    team: Team,
) -> None:
    """Undo one level: low is the corner, rest holds the other bands, half_way is scratch."""
    from tinc_codec.model import lifting

    count, z, y, _ = target.shape
    corner = grid_of(low)

    def depth(first: int, last: int) -> None:
        lifting.inverse_depth(low, rest, half_way, split[0], corner, first, last)

    def planes(first: int, last: int) -> None:
        lifting.inverse_planes(half_way, target, split[1], split[2], first, last)

    team.share(depth, count * y, target.size)
    team.share(planes, count * z, target.size)


def _groups(volumes: np.ndarray) -> Iterator[slice]:
    step = max(1, _GROUP_VOXELS // max(1, int(np.prod(volumes.shape[1:]))))
    return (slice(first, first + step) for first in range(0, len(volumes), step))


def _dense(volumes: np.ndarray) -> np.ndarray:
    """Move axes of one sample to the front, where they cost nothing; the bits stay the same."""
    sizes = [n for n in volumes.shape[1:] if n > 1]
    return volumes.reshape(len(volumes), *[1] * (3 - len(sizes)), *sizes)


def grid_of(volumes: np.ndarray) -> Triple:
    """Return the spatial part of the shape of volumes [volume, z, y, x]."""
    z, y, x = volumes.shape[1:]
    return z, y, x


def halved(size: int) -> int:
    """Return how many low-pass samples an axis that is split has."""
    return (size + 1) // 2


def _is_high(mask: int, axis: int) -> bool:
    return bool(mask & (4 >> axis))


def split_axes(shape: Triple) -> tuple[bool, bool, bool]:
    """Tell which axes of a level are split."""
    z, y, x = (n >= LEAST_SPLIT for n in shape)
    return z, y, x


def slices_of(ranges: Iterable[tuple[int, int]]) -> Slices:
    """Index a box by its start and stop along z, y, x."""
    z, y, x = (slice(start, stop) for start, stop in ranges)
    return z, y, x


def _band(mask: int, shape: Triple, low: Triple) -> Band:
    """Place a band in a corner of some shape whose low-pass part is low."""
    ends = [(low[a], shape[a]) if _is_high(mask, a) else (0, low[a]) for a in range(3)]
    z, y, x = (stop - start for start, stop in ends)
    return Band(mask, slices_of(ends), (z, y, x))
