"""The wavelet of the features: CDF 9/7 by lifting, on any shape, whole or for a region.

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
Ranges = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]
"""[start, stop) along z, y, x."""

Fetch = Callable[[int, int, Slices], np.ndarray]
"""(level, mask, slices within that band) -> float32 coefficients [volume, z, y, x]."""

_BAND_ORDER = (4, 2, 1, 6, 5, 3, 7)
_REACH = 4
"""Samples on either side of a window that its ends can spoil in the inverse of one level."""

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
        z, y, x = (_halved(n) if n >= LEAST_SPLIT else n for n in shapes[-1])
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
    shapes = level_shapes(grid)
    for shape, low in pairwise(shapes):
        z, y, x = (
            _needed_low(ranges[-1][a], shape[a]) if shape[a] != low[a] else ranges[-1][a]
            for a in range(3)
        )
        ranges.append((z, y, x))
    return tuple(ranges)


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
    grid = _grid_of(coefficients)
    shape = shape_of_level(grid, skip_levels)
    out = np.empty((len(coefficients), *shape), np.float32)
    with Team(threads) as team:
        for group in _groups(out):
            _inverse_group(_dense(coefficients[group]), _dense(out[group]), skip_levels, team)
    if skip_levels:
        out *= np.float32(level_gain(grid, skip_levels))
    return out


def inverse_region(coefficients: np.ndarray, region: Ranges, threads: int = 1) -> np.ndarray:
    """Return a region of `inverse`, bit for bit, at a cost that goes with the region's size.

    Parameters
    ----------
    coefficients : ndarray of float32
        Shape (volume, z, y, x).
    region : three (start, stop)
        As for `needed_ranges`.
    threads : int

    Returns
    -------
    ndarray of float32
        Shape (volume, *sizes of the region).
    """
    grid = _grid_of(coefficients)
    shapes = level_shapes(grid)
    placed = [{band.mask: band.slices for band in level} for level in bands(grid)]

    def fetch(level: int, mask: int, box: Slices) -> np.ndarray:
        whole = placed[level][mask] if mask else _slices((0, n) for n in shapes[-1])
        z, y, x = (
            slice(s.start + b.start, s.start + b.stop) for s, b in zip(whole, box, strict=True)
        )
        return coefficients[:, z, y, x]

    return inverse_windows(fetch, grid, region, threads)


def inverse_windows(fetch: Fetch, grid: Triple, region: Ranges, threads: int = 1) -> np.ndarray:
    """Compute `inverse_region` from coefficients that are asked for, band by band.

    Parameters
    ----------
    fetch : callable
        Is called once for every band of every level, coarsest first, with the level (0 is the
        finest, as in `bands`), the mask and the slices within the band, and returns float32
        coefficients [volume, z, y, x]. Mask 0 at level `len(bands(grid))` is the coarsest
        low-pass corner.
    grid, region, threads
        As for `inverse_region`.

    Returns
    -------
    ndarray of float32
        Shape (volume, *sizes of the region).
    """
    levels = bands(grid)
    shapes = level_shapes(grid)
    ranges = needed_ranges(grid, region)
    low = np.ascontiguousarray(fetch(len(levels), 0, _slices(ranges[-1])), np.float32)
    with Team(threads) as team:
        for level in reversed(range(len(levels))):
            shape, lows = shapes[level], ranges[level + 1]
            split = _split_axes(shape)
            highs = [
                (first, min(last, n // 2)) for (first, last), n in zip(lows, shape, strict=True)
            ]
            z, y, x = (_length(lows[a]) + (_length(highs[a]) if split[a] else 0) for a in range(3))
            rest = np.empty((len(low), z, y, x), np.float32)
            for mask in (band.mask for band in levels[level]):
                box = _slices(highs[a] if _is_high(mask, a) else lows[a] for a in range(3))
                where = _band(mask, (z, y, x), _grid_of(low)).slices
                rest[:, *where] = fetch(level, mask, box)
            window = np.empty_like(rest)
            _inverse_level(low, rest, window, np.empty_like(rest), split, team)
            origin = [2 * lows[a][0] if split[a] else lows[a][0] for a in range(3)]
            wanted = _slices(
                (first - o, last - o)
                for (first, last), o in zip(ranges[level], origin, strict=True)
            )
            low = np.ascontiguousarray(window[:, *wanted])
    return low


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
    shapes = level_shapes(_grid_of(volumes))
    scratch = np.empty(volumes.size, np.float32)
    source = volumes
    for shape, corner in pairwise(shapes):
        low = np.empty((len(volumes), *corner), np.float32)
        half_way = scratch[: source.size].reshape(source.shape)
        _forward_level(source, low, coefficients, half_way, _split_axes(shape), team)
        source = low
    coefficients[:, *_slices((0, n) for n in shapes[-1])] = source


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
    corner = _grid_of(low)

    def planes(first: int, last: int) -> None:
        lifting.forward_planes(source, half_way, split[1], split[2], first, last)

    def depth(first: int, last: int) -> None:
        lifting.forward_depth(half_way, low, rest, split[0], corner, first, last)

    team.share(planes, count * z, source.size)
    team.share(depth, count * y, source.size)


def _inverse_group(coefficients: np.ndarray, out: np.ndarray, skip_levels: int, team: Team) -> None:
    shapes = level_shapes(_grid_of(coefficients))
    count = len(coefficients)
    scratch = np.empty(out.size, np.float32)
    low = np.ascontiguousarray(coefficients[:, *_slices((0, n) for n in shapes[-1])])
    for level in reversed(range(skip_levels, len(shapes) - 1)):
        shape = (count, *shapes[level])
        target = out if level == skip_levels else np.empty(shape, np.float32)
        half_way = scratch[: target.size].reshape(shape)
        _inverse_level(low, coefficients, target, half_way, _split_axes(shapes[level]), team)
        low = target
    if skip_levels == len(shapes) - 1:
        np.copyto(out, low)


def _inverse_level(
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
    corner = _grid_of(low)

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


def _grid_of(volumes: np.ndarray) -> Triple:
    z, y, x = volumes.shape[1:]
    return z, y, x


def _halved(size: int) -> int:
    return (size + 1) // 2


def _length(interval: tuple[int, int]) -> int:
    return interval[1] - interval[0]


def _is_high(mask: int, axis: int) -> bool:
    return bool(mask & (4 >> axis))


def _split_axes(shape: Triple) -> tuple[bool, bool, bool]:
    z, y, x = (n >= LEAST_SPLIT for n in shape)
    return z, y, x


def _slices(ranges: Iterable[tuple[int, int]]) -> Slices:
    z, y, x = (slice(start, stop) for start, stop in ranges)
    return z, y, x


def _band(mask: int, shape: Triple, low: Triple) -> Band:
    """Place a band in a corner of some shape whose low-pass part is low."""
    ends = [(low[a], shape[a]) if _is_high(mask, a) else (0, low[a]) for a in range(3)]
    z, y, x = (_length(interval) for interval in ends)
    return Band(mask, _slices(ends), (z, y, x))


def _needed_low(needed: tuple[int, int], size: int) -> tuple[int, int]:
    start = max(0, needed[0] - _REACH)
    stop = min(size, needed[1] + _REACH)
    return start // 2, _halved(stop)
