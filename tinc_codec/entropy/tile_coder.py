"""One part of tiled bands <-> its bytes: a range coder, and the walks that use it.

References
----------
`docs/format.md` §10.9
"""

from collections.abc import Sequence

import numpy as np

from tinc_codec.entropy.bands import LowPass
from tinc_codec.entropy.buckets import REPRESENTED, REPRESENTED_BUCKET
from tinc_codec.entropy.pyramid import BANDS, Level, low_pass_slices
from tinc_codec.entropy.range_symbols import (
    SymbolTables,
    bucket_tables,
    finish_encoding,
    flag_tables,
    has_words_left,
    new_state,
    start_decoding,
    start_encoding,
)
from tinc_codec.entropy.tile_plan import TILED_LEVELS, Plan, Tiling
from tinc_codec.entropy.tile_walk import code_corner, code_level, room_for, to_bytes, to_words
from tinc_codec.errors import CorruptStreamError

Shifts = Sequence[Sequence[int]]
"""Per level and band: added to the contexts."""

_BUCKETS = REPRESENTED_BUCKET.astype(np.uint16)
"""Bucket by what stands for it, of the type of its inverse: both compile to one function."""
_FLAGS = np.arange(2, dtype=np.uint16)
"""Flags stand for themselves."""
_ORIGIN = np.zeros(3, np.int64)


def _tables() -> tuple[SymbolTables, SymbolTables]:
    return bucket_tables(), flag_tables()


class TileCoder:
    """A range coder in one direction, and what the walks take besides.

    Parameters
    ----------
    words : ndarray of uint32
        What is decoded, or room for what is coded.
    is_encoder : bool
    """

    def __init__(self, words: np.ndarray, *, is_encoder: bool) -> None:
        self._words = words
        self._state = new_state()
        self._is_encoder = is_encoder
        if is_encoder:
            start_encoding(self._state)
        else:
            start_decoding(self._state, words)
        values = (_BUCKETS if is_encoder else REPRESENTED, _FLAGS)
        self._arguments = self._state, words, _tables(), values

    @classmethod
    def encoding(cls, n_symbols: int) -> "TileCoder":
        """Make an encoder of at most so many symbols."""
        return cls(room_for(n_symbols), is_encoder=True)

    @classmethod
    def decoding(cls, code: np.ndarray) -> "TileCoder":
        """Make a decoder of a part's bytes, uint8."""
        return cls(to_words(code), is_encoder=False)

    def finish(self) -> bytes:
        """Return what was coded."""
        return to_bytes(self._words[: finish_encoding(self._state, self._words)]).tobytes()

    def check_end(self) -> None:
        """Refuse words that told nothing, now that all is decoded."""
        if has_words_left(self._state, self._words):
            raise CorruptStreamError("features: words follow the last symbol")

    def coarse(
        self,
        tiling: Tiling,
        symbols: np.ndarray,
        low_pass: LowPass,
        shifts: Shifts,
        finest: int = TILED_LEVELS,
        most_high: int = 3,
    ) -> tuple[np.ndarray, bool]:
        """Code a volume's first part: its corner and the levels that are not cut.

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
        levels, plans = tiling.levels, tiling.plans
        corner = symbols[low_pass_slices(levels, symbols.shape)]
        rest = np.empty(corner.shape, np.int32)
        if self._is_encoder:
            np.subtract(corner, np.int32(low_pass.centre), out=rest)
        _check(code_corner(*self._arguments, low_pass.context, rest))
        np.add(rest, np.int32(low_pass.centre), out=corner)
        fields, is_whole = np.zeros((BANDS, *plans[-1].padded), np.uint16), True
        for level, plan in reversed(list(zip(levels, plans, strict=True))[finest:]):
            n_bands = count_bands(level, most_high if level.number == finest else 3)
            is_whole = n_bands == len(level.masks)
            fields = self.level(plan, shifts[level.number], n_bands, _ORIGIN, fields, symbols)
        return fields, is_whole

    def level(
        self,
        plan: Plan,
        shifts: Sequence[int],
        n_bands: int,
        place: np.ndarray,
        parent: np.ndarray,
        symbols: np.ndarray,
    ) -> np.ndarray:
        """Code what a tile holds of a level.

        Parameters
        ----------
        plan : Plan
        shifts : sequence of int
            Per band: added to its contexts.
        n_bands : int
            Only the first ones.
        place : ndarray of int64
            Of the tile in the grid of tiles.
        parent : ndarray of uint16
            Shape (BANDS, *padded): what stands for the coarser level's magnitudes.
        symbols : ndarray of int32
            Of the volume.

        Returns
        -------
        ndarray of uint16
            Shape (BANDS, *padded): what stands for the magnitudes.

        Raises
        ------
        CorruptStreamError
        """
        fields = np.zeros((BANDS, *plan.padded), np.uint16)
        _check(
            code_level(
                *self._arguments, plan, np.array(shifts, dtype=np.int64), n_bands, place,
                parent.reshape(BANDS, -1), parent.shape[1:], fields, symbols,
            )
        )  # fmt: skip
        return fields


def around(coarser: np.ndarray, plan: Plan, place: np.ndarray) -> np.ndarray:
    """Cut what is around a tile from the coarser level's fields, uint16 (BANDS, *padded)."""
    out = np.zeros((BANDS, *plan.parent_padded), np.uint16)
    starts = (
        int(at) * edge >> s for at, edge, s in zip(place, plan.edges, plan.shifts, strict=True)
    )
    part = coarser[:, *(slice(a, a + n) for a, n in zip(starts, plan.parent_padded, strict=True))]
    out[:, *(slice(0, n) for n in part.shape[1:])] = part
    return out


def count_bands(level: Level, most_high: int) -> int:
    """Count the bands of a level that have at most so many high axes: in coding order the first."""
    return sum(mask.bit_count() <= most_high for mask in level.masks)


def _check(is_code: bool) -> None:
    if not is_code:
        raise CorruptStreamError("features: a tile's bytes are no code of symbols")
