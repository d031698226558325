"""How levels are cut into tiles, and all that coding a level of a tile takes besides its symbols.

References
----------
`docs/format.md` §10.9
"""

from collections.abc import Sequence
from functools import cached_property, lru_cache
from itertools import product
from typing import NamedTuple

import numpy as np

from tinc_codec.entropy.pyramid import BANDS, BLOCK_EDGE, Level, Shape, blocks_of
from tinc_codec.entropy.stencils import Kind, stencil_of

TILED_LEVELS = 2
"""The finest levels, which are cut into tiles."""
LEAST_EDGE, MOST_EDGE = 16, 1 << 30
"""Voxels of a tile along each axis."""


class Stencils(NamedTuple):
    """The stencils of all bands of a level, index mask - 1; see `stencils.Stencil`."""

    coarse: np.ndarray
    n_others: np.ndarray
    others: np.ndarray
    other_weights: np.ndarray
    taps: np.ndarray
    offsets: np.ndarray
    weights: np.ndarray


class Plan(NamedTuple):
    """What coding a tile of a level takes, besides its symbols.

    Attributes
    ----------
    masks : ndarray of int64
        The bands, in coding order.
    begins, shapes : ndarray of int64
        Shape (band, 3): where each lies among the coefficients of its volume.
    edges : tuple of int
        Coefficients of a tile along each axis.
    tiles : tuple of int
        Number of tiles along each axis.
    padded, padded_blocks : tuple of int
        Of a tile's arrays of coefficients and of blocks, with a margin of one.
    parent_padded : tuple of int
        Of the coarser level's array of coefficients for a tile, likewise.
    shifts : tuple of int
        As `Level.shifts`.
    coefficients, flags : Stencils
    """

    masks: np.ndarray
    begins: np.ndarray
    shapes: np.ndarray
    edges: Shape
    tiles: Shape
    padded: Shape
    padded_blocks: Shape
    parent_padded: Shape
    shifts: Shape
    coefficients: Stencils
    flags: Stencils


def _stencils(kind: Kind, level: Level, padded: Shape) -> Stencils:
    found = [stencil_of(kind, level.weights_class, mask, padded) for mask in range(1, BANDS + 1)]
    others = np.zeros((BANDS, BANDS), dtype=np.int64)
    other_weights = np.zeros((BANDS, BANDS, 8, 2), dtype=np.uint32)
    for band, stencil in enumerate(found):
        others[band, : len(stencil.others)] = stencil.others
        other_weights[band, : len(stencil.others)] = stencil.other_weights
    return Stencils(
        np.stack([stencil.coarse for stencil in found]),
        np.array([len(stencil.others) for stencil in found]),
        others,
        other_weights,
        np.stack([stencil.taps for stencil in found]),
        np.stack([stencil.offsets for stencil in found]),
        np.stack([stencil.weights for stencil in found]),
    )


def _margined(shape: Shape) -> Shape:
    z, y, x = shape
    return z + 2, y + 2, x + 2


def _plan(level: Level, edges: Shape) -> Plan:
    padded, padded_blocks = _margined(edges), _margined(blocks_of(edges))
    t_z, t_y, t_x = (-(-n // edge) for n, edge in zip(level.low, edges, strict=True))
    p_z, p_y, p_x = (-(-edge // (1 << s)) for edge, s in zip(edges, level.shifts, strict=True))
    return Plan(
        np.array(level.masks),
        np.array([level.band_begin(mask) for mask in level.masks]),
        np.array([level.band_shape(mask) for mask in level.masks]),
        edges,
        (t_z, t_y, t_x),
        padded,
        padded_blocks,
        _margined((p_z, p_y, p_x)),
        level.shifts,
        _stencils("coefficient", level, padded),
        _stencils("flag", level, padded_blocks),
    )


class Tiling:
    """The tiles of a grid: cubes of voxels, and what the two finest levels' bands have there.

    Coarser levels are one tile each.

    Parameters
    ----------
    levels : tuple of Level
        Finest first, at least two.
    edge : int
        Voxels of a tile along each axis, a power of two from `LEAST_EDGE` on.

    Attributes
    ----------
    levels : tuple of Level
    grid : tuple of int
        Number of tiles along each axis.
    """

    def __init__(self, levels: tuple[Level, ...], edge: int) -> None:
        self.levels = levels
        self._edges: list[Shape] = []
        sizes = [edge] * 3
        for level in levels:
            if level.number >= TILED_LEVELS:
                sizes = [MOST_EDGE] * 3
            halves = (fine > low for fine, low in zip(level.fine, level.low, strict=True))
            sizes = [size // 2 if half else size for size, half in zip(sizes, halves, strict=True)]
            # Nothing is allocated for more than there is.
            z, y, x = (min(size, _whole(n)) for size, n in zip(sizes, level.low, strict=True))
            self._edges.append((z, y, x))
        z, y, x = (-(-n // size) for n, size in zip(levels[0].low, self._edges[0], strict=True))
        self.grid: Shape = z, y, x

    def __len__(self) -> int:
        z, y, x = self.grid
        return z * y * x

    @cached_property
    def places(self) -> np.ndarray:
        """All tiles in C order, int64 (number, 3)."""
        return np.array(list(product(*map(range, self.grid))), dtype=np.int64)

    @cached_property
    def plans(self) -> tuple[Plan, ...]:
        """How a tile of each level is coded, finest first."""
        return tuple(_plan(*pair) for pair in zip(self.levels, self._edges, strict=True))

    def touched(self, level: int, ranges: Sequence[tuple[int, int]]) -> tuple[slice, ...]:
        """Return which tiles hold some of a level: (start, stop) per axis of its bands."""
        return tuple(
            slice(start // edge, -(-stop // edge))
            for (start, stop), edge in zip(ranges, self._edges[level], strict=True)
        )


@lru_cache(maxsize=16)
def tiling_of(levels: tuple[Level, ...], edge: int) -> Tiling:
    """Return the tiles of a grid."""
    return Tiling(levels, edge)


def _whole(n: int) -> int:
    """Round up to blocks."""
    return -(-n // BLOCK_EDGE) * BLOCK_EDGE
