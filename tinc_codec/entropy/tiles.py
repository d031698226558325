"""Quantised wavelet bands <-> parts that are coded apart, so that a look at little needs few.

The corner and all levels but the two finest are one part of a volume; each of those two is cut into
tiles. A tile's contexts see nothing of other tiles of its level, so that it can be decoded without
them; of the level that is not cut they see what is around the tile, too.

References
----------
`docs/format.md` §10.9
"""

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from tinc_codec.entropy.bands import LowPass
from tinc_codec.entropy.pyramid import BANDS, BLOCK_EDGE, Level, Shape, low_pass_slices
from tinc_codec.entropy.tile_coder import Shifts, TileCoder, around, count_bands
from tinc_codec.entropy.tile_plan import TILED_LEVELS, Tiling, tiling_of
from tinc_codec.errors import CorruptStreamError


def encode_tiled(
    symbols: np.ndarray,
    levels: tuple[Level, ...],
    low_passes: Sequence[LowPass],
    shifts: Shifts,
    edge: int,
) -> list[bytes]:
    """Code quantised coefficients in parts.

    Parameters
    ----------
    symbols : ndarray of int32
        As for `bands.encode_bands`.
    levels : tuple of Level
        Finest first, at least two.
    low_passes : sequence of LowPass
        Per volume.
    shifts : sequence of sequences of int
        Per level and band.
    edge : int
        See `Tiling`.

    Returns
    -------
    list of bytes
        Per volume, corner and levels that are not cut; per volume and tile the coarser of the two
        levels that are; and likewise the finest one.
    """
    tiling = tiling_of(levels, edge)
    parts: list[list[bytes]] = [[] for _ in range(TILED_LEVELS + 1)]
    for volume, low_pass in zip(np.ascontiguousarray(symbols), low_passes, strict=True):
        sizes = [n + BLOCK_EDGE for n in levels[TILED_LEVELS - 1].low]
        coder = TileCoder.encoding(2 * math.prod(sizes))
        coarser, _ = coder.coarse(tiling, volume, low_pass, shifts)
        parts[TILED_LEVELS].append(coder.finish())
        for place in tiling.places:
            fields = around(coarser, tiling.plans[TILED_LEVELS - 1], place)
            for level in reversed(range(TILED_LEVELS)):
                plan = tiling.plans[level]
                coder = TileCoder.encoding(BANDS * math.prod(plan.edges))
                fields = coder.level(plan, shifts[level], len(plan.masks), place, fields, volume)
                parts[level].append(coder.finish())
    return [part for level in reversed(parts) for part in level]


def count_parts(levels: tuple[Level, ...], volumes: int, edge: int) -> int:
    """Return how many parts `encode_tiled` gives."""
    return volumes * (1 + TILED_LEVELS * len(tiling_of(levels, edge)))


@dataclass(frozen=True, eq=False)
class TiledBands:
    """What `encode_tiled` wrote, still coded.

    Attributes
    ----------
    code : ndarray of uint8
        All parts, one after the other.
    sizes : ndarray of int64
        Bytes of each part.
    levels : tuple of Level
    low_passes : sequence of LowPass
    shifts : sequence of sequences of int
    edge : int
    """

    code: np.ndarray
    sizes: np.ndarray
    levels: tuple[Level, ...]
    low_passes: Sequence[LowPass]
    shifts: Shifts
    edge: int

    def __post_init__(self) -> None:
        lasts = self.code[self._begins[1:][self.sizes > 0] - 1]
        if (lasts == 0).any():
            raise CorruptStreamError("features: a part ends in a zero byte")

    @cached_property
    def _begins(self) -> np.ndarray:
        """Where each part begins, and where the last one ends."""
        return np.concatenate([[0], np.cumsum(self.sizes)])

    @property
    def finest_bytes(self) -> int:
        """Bytes of the finest level."""
        return int(self.sizes[len(self.low_passes) * (1 + len(self.tiling)) :].sum())

    @cached_property
    def tiling(self) -> Tiling:
        """Where the tiles lie."""
        return tiling_of(self.levels, self.edge)

    def coarse(
        self, volume: int, symbols: np.ndarray, *, finest: int = TILED_LEVELS, most_high: int = 3
    ) -> np.ndarray:
        """Decode the corner and the levels that are not cut.

        Parameters
        ----------
        volume : int
        symbols : ndarray of int32
            Of the volume, or of its corner that holds these levels: receives them.
        finest : int
            Number of the finest level that is wanted, at least 2.
        most_high : int
            Of it, bands that are high-pass along more axes are left out.

        Returns
        -------
        ndarray of uint16
            What `tiles` takes as `coarser`.

        Raises
        ------
        CorruptStreamError
        """
        coder = TileCoder.decoding(self._part(volume))
        low_pass = self.low_passes[volume]
        coarser, is_whole = coder.coarse(
            self.tiling, symbols, low_pass, self.shifts, finest, most_high
        )
        if is_whole and finest <= TILED_LEVELS:
            coder.check_end()
        return coarser

    def _part(self, number: int) -> np.ndarray:
        return self.code[self._begins[number] : self._begins[number + 1]]

    def tiles(
        self,
        volume: int,
        numbers: np.ndarray,
        finest: np.ndarray,
        coarser: np.ndarray,
        symbols: np.ndarray,
        *,
        most_high: int = 3,
        threads: int = 1,
    ) -> None:
        """Decode tiles.

        Parameters
        ----------
        volume : int
        numbers : ndarray of int64
            Which tiles, in C order of their places.
        finest : ndarray of int64
            For each of them: 0 where the finest level is wanted, 1 where the next one is enough.
        coarser : ndarray of uint16
            From `coarse`.
        symbols : ndarray of int32
            Of the volume, or of what the finest level that is wanted takes apart: receives them.
        most_high : int
            Of that level, bands that are high-pass along more axes are left out.
        threads : int

        Raises
        ------
        CorruptStreamError
        """
        plans = self.tiling.plans
        n_bands = [len(plan.masks) for plan in plans[:TILED_LEVELS]]
        if len(finest):
            least = int(finest.min())
            n_bands[least] = count_bands(self.levels[least], most_high)
        volumes, n_tiles = len(self.low_passes), len(self.tiling)

        def work(number: int, finest: int) -> None:
            place = self.tiling.places[number]
            fields = around(coarser, plans[TILED_LEVELS - 1], place)
            for level in reversed(range(finest, TILED_LEVELS)):
                before = volumes * (1 + n_tiles * (TILED_LEVELS - 1 - level))
                part = before + volume * n_tiles + number
                coder = TileCoder.decoding(self._part(part))
                fields = coder.level(
                    plans[level], self.shifts[level], n_bands[level], place, fields, symbols
                )
                if n_bands[level] == len(plans[level].masks):
                    coder.check_end()

        workers = min(threads, len(numbers))
        if workers <= 1:
            for pair in zip(numbers.tolist(), finest.tolist(), strict=True):
                work(*pair)
            return
        with ThreadPoolExecutor(workers) as pool:
            list(pool.map(work, numbers.tolist(), finest.tolist()))


def decode_tiled(
    bands: TiledBands, grid: Shape, *, finest: int = 0, most_high: int = 3, threads: int = 1
) -> np.ndarray:
    """Decode what `encode_tiled` wrote.

    Parameters
    ----------
    bands : TiledBands
    grid : tuple of int
    finest, most_high
        As for `bands.decode_bands`.
    threads : int

    Returns
    -------
    ndarray of int32
        As `bands.decode_bands` returns.

    Raises
    ------
    CorruptStreamError
    """
    levels = bands.levels
    corner = tuple(s.stop for s in low_pass_slices(levels, grid))
    fine = (*(level.fine for level in levels), corner)[finest]
    symbols = np.empty((len(bands.low_passes), *fine), dtype=np.int32)
    numbers = np.arange(len(bands.tiling))
    for index, volume in enumerate(symbols):
        if finest >= TILED_LEVELS:
            bands.coarse(index, volume, finest=finest, most_high=most_high)
            continue
        coarser = bands.coarse(index, volume)
        bands.tiles(
            index, numbers, np.full_like(numbers, finest), coarser, volume, most_high=most_high,
            threads=threads,
        )  # fmt: skip
    return symbols
