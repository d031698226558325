"""Quantised wavelet bands <-> parts that are coded apart, so that a look at little needs few.

The corner and all levels but the two finest are one part of a volume; each of those two is cut into
tiles. A tile's contexts see nothing of other tiles of its level, so that it can be decoded without
them; of the level that is not cut they see what is around the tile, too.

References
----------
`docs/format.md` §10.9
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from tinc_codec.entropy.bands import LowPass
from tinc_codec.entropy.buckets import REPRESENTED, REPRESENTED_BUCKET
from tinc_codec.entropy.pyramid import BANDS, Level, Shape, low_pass_slices
from tinc_codec.entropy.range_symbols import (
    SymbolTables,
    bucket_tables,
    finish_encoding,
    flag_tables,
    has_words_left,
    start_decoding,
    start_encoding,
)
from tinc_codec.entropy.tile_plan import TILED_LEVELS, Tiling, tiling_of
from tinc_codec.entropy.tile_walk import (
    code_corner,
    code_level,
    decode_tiles,
    encode_tile,
    room_for,
    to_bytes,
    to_words,
)
from tinc_codec.errors import CorruptStreamError

Shifts = Sequence[Sequence[int]]

_BUCKETS = REPRESENTED_BUCKET.astype(np.uint16)
"""Bucket by what stands for it, of the type of its inverse: both compile to one function."""
_FLAGS = np.arange(2, dtype=np.uint16)
"""Flags stand for themselves."""
_STATE_WORDS = 3


def _tables() -> tuple[SymbolTables, SymbolTables]:
    return bucket_tables(), flag_tables()


def _added(row: Sequence[int]) -> np.ndarray:
    return np.array(row, dtype=np.int64)


class _CoarseCoder:
    """Codes the first part of a volume: its corner and the levels that are not cut.

    Parameters
    ----------
    tiling : Tiling
    state, words : ndarray
        Of the range coder.
    is_encoder : bool
    """

    def __init__(
        self, tiling: Tiling, state: np.ndarray, words: np.ndarray, *, is_encoder: bool
    ) -> None:
        values = (_BUCKETS if is_encoder else REPRESENTED, _FLAGS)
        self._tiling = tiling
        self._coder = state, words, is_encoder, _tables(), values

    def code(
        self, symbols: np.ndarray, low_pass: LowPass, shifts: Shifts, finest: int, most_high: int
    ) -> tuple[np.ndarray, bool]:
        """Code corner and levels.

        Returns
        -------
        ndarray of uint16
            Shape (BANDS, *padded): what stands for the magnitudes of the finest level of them.
        bool
            Whether all bands were coded.

        Raises
        ------
        CorruptStreamError
        """
        levels, plans = self._tiling.levels, self._tiling.plans
        corner = symbols[low_pass_slices(levels, symbols.shape)]
        rest = np.ascontiguousarray(corner - np.int32(low_pass.centre))
        if not self._coder[2]:
            rest[...] = 0
        _check(code_corner(*self._coder, low_pass.context, rest))
        np.add(rest, np.int32(low_pass.centre), out=corner)
        padded = plans[-1].padded
        fields, is_whole = np.zeros((BANDS, *padded), np.uint16), True
        for level, plan in reversed(list(zip(levels, plans, strict=True))[finest:]):
            parent, parent_padded = fields.reshape(BANDS, -1), padded
            n_bands = _count_bands(level, most_high if level.number == finest else 3)
            is_whole = n_bands == len(level.masks)
            padded = plan.padded
            fields = np.zeros((BANDS, *padded), np.uint16)
            _check(
                code_level(
                    *self._coder, plan, _added(shifts[level.number]), n_bands,
                    np.zeros(3, np.int64), parent, parent_padded, fields, symbols,
                )
            )  # fmt: skip
        return fields, is_whole


def _count_bands(level: Level, most_high: int) -> int:
    # In coding order, bands of fewer high axes come first.
    return sum(mask.bit_count() <= most_high for mask in level.masks)


def _check(is_code: bool) -> None:
    if not is_code:
        raise CorruptStreamError("features: a tile's bytes are no code of symbols")


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
    fine, coarse = tiling.plans[:TILED_LEVELS]
    added = _added(shifts[0]), _added(shifts[1])
    firsts: list[bytes] = []
    tiles: list[tuple[np.ndarray, np.ndarray]] = []
    for volume, low_pass in zip(np.ascontiguousarray(symbols), low_passes, strict=True):
        coarse_size = np.prod([n + 4 for n in levels[TILED_LEVELS - 1].low])
        state, words = np.empty(_STATE_WORDS, np.uint64), room_for(2 * int(coarse_size))
        start_encoding(state)
        coder = _CoarseCoder(tiling, state, words, is_encoder=True)
        coarser, _ = coder.code(volume, low_pass, shifts, TILED_LEVELS, 3)
        firsts.append(to_bytes(words[: finish_encoding(state, words)]).tobytes())
        tiles += [
            encode_tile(place, _tables(), (_BUCKETS, _FLAGS), fine, coarse, added, coarser, volume)
            for place in tiling.places
        ]
    return [
        *firsts,
        *(part.tobytes() for _, part in tiles),
        *(part.tobytes() for part, _ in tiles),
    ]


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
        lasts = self.code[self._ends[1:][self.sizes > 0] - 1]
        if (lasts == 0).any():
            raise CorruptStreamError("features: a part ends in a zero byte")

    @cached_property
    def _ends(self) -> np.ndarray:
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
            Of the volume, or of its corner that holds these levels; 0: receives them.
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
        state = np.empty(_STATE_WORDS, np.uint64)
        words = to_words(self.code[self._ends[volume] : self._ends[volume + 1]])
        start_decoding(state, words)
        coder = _CoarseCoder(self.tiling, state, words, is_encoder=False)
        low_pass = self.low_passes[volume]
        coarser, is_whole = coder.code(symbols, low_pass, self.shifts, finest, most_high)
        if is_whole and finest <= TILED_LEVELS and has_words_left(state, words):
            raise CorruptStreamError("features: words follow the last symbol")
        return coarser

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
            Of the volume, or of what the finest level that is wanted takes apart; 0 where they are
            wanted: receives them.
        most_high : int
            Of that level, bands that are high-pass along more axes are left out.
        threads : int

        Raises
        ------
        CorruptStreamError
        """
        fine, coarse = self.tiling.plans[:TILED_LEVELS]
        n_bands = np.array([len(fine.masks), len(coarse.masks)])
        if len(finest):
            least = int(finest.min())
            n_bands[least] = _count_bands(self.levels[least], most_high)
        volumes, n_tiles = len(self.low_passes), len(self.tiling)
        first = volumes + volume * n_tiles
        firsts = np.array([first + volumes * n_tiles, first])
        added = _added(self.shifts[0]), _added(self.shifts[1])

        def work(share: slice) -> bool:
            # Contiguous: another layout would be compiled anew.
            chosen, least = np.ascontiguousarray([numbers[share], finest[share]])
            return bool(
                decode_tiles(
                    self.code, self._ends, firsts, chosen, self.tiling.places, least, n_bands,
                    _tables(), (REPRESENTED, _FLAGS), fine, coarse, added, coarser, symbols,
                )
            )  # fmt: skip

        # Every n-th tile: those that hold more lie together.
        workers = max(1, min(threads, len(numbers)))
        shares = [slice(number, None, workers) for number in range(workers)]
        if workers == 1:
            _check(work(shares[0]))
            return
        with ThreadPoolExecutor(workers) as pool:
            _check(all(pool.map(work, shares)))


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
    symbols = np.zeros((len(bands.low_passes), *fine), dtype=np.int32)
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
