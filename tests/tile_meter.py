"""What is decoded of features in tiles, counted where it is decoded."""

import math
from dataclasses import dataclass

import numpy as np
import pytest

from tinc_codec.entropy import tiles as tiles_module
from tinc_codec.entropy.tile_plan import TILED_LEVELS, Plan


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
    corner, level, tiles = (
        tiles_module.code_corner,
        tiles_module.code_level,
        tiles_module.decode_tiles,
    )

    def count_corner(state, words, is_encoder, tables, values, context, rest):
        counts.symbols += 0 if is_encoder else math.prod(rest.shape)
        return corner(state, words, is_encoder, tables, values, context, rest)

    def count_level(state, words, is_encoder, tables, values, plan, shifts, n_bands, place, *rest):
        counts.symbols += 0 if is_encoder else _size(plan, n_bands, place)
        return level(state, words, is_encoder, tables, values, plan, shifts, n_bands, place, *rest)

    def count_some(
        code, begins, firsts, numbers, places, finest, n_bands, tables, values, fine, coarse, *rest
    ):  # fmt: skip
        for number, least in zip(numbers, finest, strict=True):
            counts.finest += int(least == 0)
            counts.next += int(least == 1)
            for at, plan in enumerate((fine, coarse)[:TILED_LEVELS]):
                counts.symbols += _size(plan, n_bands[at], places[number]) if at >= least else 0
        return tiles(
            code, begins, firsts, numbers, places, finest, n_bands, tables, values, fine, coarse,
            *rest,
        )  # fmt: skip

    monkeypatch.setattr(tiles_module, "code_corner", count_corner)
    monkeypatch.setattr(tiles_module, "code_level", count_level)
    monkeypatch.setattr(tiles_module, "decode_tiles", count_some)
    return counts
