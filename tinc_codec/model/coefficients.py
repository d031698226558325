"""Symbols of features -> wavelet coefficients, all of them or those of some tiles.

References
----------
`docs/format.md` §9.3
"""

import numpy as np

from tinc_codec.entropy.pyramid import low_pass_slices
from tinc_codec.entropy.tile_plan import TILED_LEVELS
from tinc_codec.kernels import kernel
from tinc_codec.model.features import (
    CENTROID_UNIT,
    Features,
    FeatureSection,
    feature_levels,
    feature_step,
)


def coefficients_of(features: Features, out: np.ndarray | None = None) -> np.ndarray:
    """Turn symbols into coefficients.

    Parameters
    ----------
    features : Features
    out : ndarray of float32, optional
        Of the shape of the symbols; by default their own memory, and they are lost.

    Returns
    -------
    ndarray of float32
        Shape (B, z, y, x).
    """
    _, z, y, x = features.symbols.shape
    levels = feature_levels((z, y, x))
    step = np.float32(feature_step(features.step_code))
    if out is None:
        out = features.symbols.view(np.float32)
    corner = tuple(s.stop for s in low_pass_slices(levels, (z, y, x)))
    for symbols, values in zip(features.symbols, out, strict=True):
        _dequantise(symbols, values, (0, 0, 0), corner, step, np.float32(0), np.float32(0))
        for level, (one, more) in zip(levels, features.centroids, strict=True):
            for mask in level.masks:
                _dequantise(
                    symbols, values, level.band_begin(mask), level.band_shape(mask), step,
                    np.float32(one * CENTROID_UNIT), np.float32(more * CENTROID_UNIT),
                )  # fmt: skip
    return out


def dequantise_tiles(
    section: FeatureSection,
    symbols: np.ndarray,
    numbers: np.ndarray,
    finest: np.ndarray,
    out: np.ndarray,
) -> None:
    """Turn the symbols of some tiles into coefficients.

    Parameters
    ----------
    section : FeatureSection
        With tiles.
    symbols : ndarray of int32
        Shape (z, y, x).
    numbers, finest : ndarray of int64
        As for `TiledBands.tiles`.
    out : ndarray of float32
        Shape (z, y, x): receives them.
    """
    assert section.tiles is not None
    tiling, step = section.tiles.tiling, np.float32(feature_step(section.step_code))
    for level, (one, more) in enumerate(section.centroids[:TILED_LEVELS]):
        plan = tiling.plans[level]
        _dequantise_tiles(
            symbols, out, tiling.places[numbers[finest <= level]], plan.edges,
            plan.begins, plan.shapes, step, np.float32(one * CENTROID_UNIT),
            np.float32(more * CENTROID_UNIT),
        )  # fmt: skip


@kernel
def _dequantise_tiles(  # type: ignore[no-untyped-def]
    symbols, values, tiles, edges, begins, shapes, step, one, more
):
    for i in range(len(tiles)):
        z, y, x = tiles[i, 0] * edges[0], tiles[i, 1] * edges[1], tiles[i, 2] * edges[2]
        for band in range(len(begins)):
            shape = (
                min(edges[0], shapes[band, 0] - z), min(edges[1], shapes[band, 1] - y),
                min(edges[2], shapes[band, 2] - x),
            )  # fmt: skip
            if shape[0] > 0 and shape[1] > 0 and shape[2] > 0:
                begin = (begins[band, 0] + z, begins[band, 1] + y, begins[band, 2] + x)
                _dequantise(symbols, values, begin, shape, step, one, more)


@kernel
def _dequantise(symbols, values, begin, shape, step, one, more):  # type: ignore[no-untyped-def]
    """Turn the symbols of one band into its coefficients, which may lie in the same memory."""
    # Through a row of its own: only then can the compiler tell that nothing overlaps.
    found = np.empty(shape[2], np.float32)
    for z in range(begin[0], begin[0] + shape[0]):
        for y in range(begin[1], begin[1] + shape[1]):
            row = symbols[z, y, begin[2] : begin[2] + shape[2]]
            out = values[z, y, begin[2] : begin[2] + shape[2]]
            for x in range(shape[2]):
                symbol = row[x]
                magnitude = np.int32(abs(symbol))
                size = (np.float32(magnitude) + (one if magnitude == 1 else more)) * step
                value = -size if symbol < 0 else size
                found[x] = value if symbol else np.float32(0)
            for x in range(shape[2]):
                out[x] = found[x]
