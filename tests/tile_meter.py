"""What is decoded of features in tiles, counted where it is decoded."""

import math
from dataclasses import dataclass

import numpy as np
import pytest

from tinc_codec.entropy import tile_coder
from tinc_codec.entropy.range_symbols import DIRECTION, ENCODING
from tinc_codec.entropy.tile_plan import Plan
from tinc_codec.entropy.tiles import TiledBands


@dataclass
class TileCounts:
    """How much was decoded since the last `clear`.

    Attributes
    ----------
    symbols : int
        Of corners, of levels that are not cut, and of tiles.
    finest, next : int
        Tiles whose finest level was decoded, and those of which only the next one was.
    """

    symbols: int = 0
    finest: int = 0
    next: int = 0

    def clear(self) -> None:
        self.symbols = self.finest = self.next = 0


def _size(plan: Plan, n_bands: int, place: np.ndarray) -> int:
    """Count the symbols of the first bands of a tile."""
    edges = np.array(plan.edges)
    shapes = np.clip(plan.shapes[:n_bands] - place * edges, 0, edges)
    return int(shapes.prod(axis=1).sum())


def count_tiles(monkeypatch: pytest.MonkeyPatch) -> TileCounts:
    """Count what is decoded from now on."""
    counts = TileCounts()
    corner, level, tiles = tile_coder.code_corner, tile_coder.code_level, TiledBands.tiles

    def count_corner(state, words, tables, values, context, rest):
        counts.symbols += 0 if state[DIRECTION] == ENCODING else math.prod(rest.shape)
        return corner(state, words, tables, values, context, rest)

    def count_level(state, words, tables, values, plan, shifts, n_bands, place, *rest):
        counts.symbols += 0 if state[DIRECTION] == ENCODING else _size(plan, n_bands, place)
        return level(state, words, tables, values, plan, shifts, n_bands, place, *rest)

    def count_some(self, volume, numbers, finest, *rest, **options):
        counts.finest += int((finest == 0).sum())
        counts.next += int((finest == 1).sum())
        return tiles(self, volume, numbers, finest, *rest, **options)

    monkeypatch.setattr(tile_coder, "code_corner", count_corner)
    monkeypatch.setattr(tile_coder, "code_level", count_level)
    monkeypatch.setattr(TiledBands, "tiles", count_some)
    return counts
