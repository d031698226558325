"""The levels and bands of a wavelet pyramid, and the segments in which they are coded.

References
----------
`docs/format.md` §9.1, §10.2
"""

from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import pairwise

import numpy as np

from tinc_codec.entropy.feature_tables import LEVEL_CLASSES

Shape = tuple[int, int, int]

MASKS = (4, 2, 1, 6, 5, 3, 7)
"""Bands in the order in which they are coded: axes of high frequency, 4 z, 2 y, 1 x."""
BANDS = len(MASKS)
BLOCK_EDGE = 4
BLOCKED_SIZE = 4096
"""Bands of so many coefficients or more say which of their blocks are present."""
NO_SHIFTS = (0, 0, 0)
_AXES = (4, 2, 1)
_SINGLE_SEGMENTS = 2


@dataclass(frozen=True)
class Level:
    """Geometry of one level of a wavelet pyramid.

    Attributes
    ----------
    number : int
        0 is the finest.
    fine, low : tuple of int
        Shape before and after this level's split.
    shifts : tuple of int
        Per axis, 1 where the next coarser level splits it; a coefficient at p has its parent at
        p >> shift.
    has_parent : bool
        Whether there is a coarser level.
    """

    number: int
    fine: Shape
    low: Shape
    shifts: Shape
    has_parent: bool

    @cached_property
    def masks(self) -> tuple[int, ...]:
        """Bands that exist, in coding order."""
        halved = sum(bit for a, b, bit in zip(self.fine, self.low, _AXES, strict=True) if a > b)
        return tuple(mask for mask in MASKS if mask & ~halved == 0)

    @cached_property
    def padded(self) -> Shape:
        """Shape of one band's array with a margin of one."""
        z, y, x = self.low
        return z + 2, y + 2, x + 2

    @property
    def weights_class(self) -> int:
        """Which of the static weights are this level's."""
        return min(self.number, LEVEL_CLASSES - 2) if self.has_parent else LEVEL_CLASSES - 1

    def band_begin(self, mask: int) -> Shape:
        """Return where a band begins among the coefficients of its volume."""
        return self._boxes[mask - 1][0]

    def band_shape(self, mask: int) -> Shape:
        """Return the shape of a band."""
        return self._boxes[mask - 1][1]

    @cached_property
    def _boxes(self) -> tuple[tuple[Shape, Shape], ...]:
        """Per mask, where a band begins and its shape."""
        return tuple(_box(self.fine, self.low, mask) for mask in range(1, BANDS + 1))

    def band_slices(self, mask: int) -> tuple[slice, ...]:
        """Return where a band lies among the coefficients of its volume."""
        begin, shape = self._boxes[mask - 1]
        return tuple(slice(first, first + n) for first, n in zip(begin, shape, strict=True))

    def is_blocked(self, mask: int) -> bool:
        """Tell whether a band's blocks can be absent."""
        z, y, x = self.band_shape(mask)
        return z * y * x >= BLOCKED_SIZE

    def blocks(self, mask: int) -> Shape:
        """Return the number of blocks of a band along each axis."""
        return blocks_of(self.band_shape(mask))

    @cached_property
    def padded_blocks(self) -> Shape:
        """Shape of one band's array of blocks with a margin of one."""
        z, y, x = blocks_of(self.low)
        return z + 2, y + 2, x + 2

    def every_block(self, mask: int) -> np.ndarray:
        """List all blocks of a band, int32 (number, 3); it is only read."""
        return every_place(self.blocks(mask))


def _box(fine: Shape, low: Shape, mask: int) -> tuple[Shape, Shape]:
    ends = [(n, f) if mask & bit else (0, n) for f, n, bit in zip(fine, low, _AXES, strict=True)]
    (z0, z1), (y0, y1), (x0, x1) = ends
    return (z0, y0, x0), (z1 - z0, y1 - y0, x1 - x0)


def blocks_of(shape: Shape) -> Shape:
    """Return the number of blocks that cover a shape along each axis."""
    z, y, x = (-(-n // BLOCK_EDGE) for n in shape)
    return z, y, x


@lru_cache(maxsize=64)
def every_place(shape: Shape) -> np.ndarray:
    """List all places of a shape in C order, int32 (number, 3); it is only read."""
    return np.argwhere(np.ones(shape, dtype=bool)).astype(np.int32, order="C")


def inside(shape: Shape) -> tuple[slice, ...]:
    """Index the band without its margin."""
    return tuple(slice(1, n + 1) for n in shape)


@lru_cache(maxsize=64)
def levels_of(shapes: tuple[Shape, ...]) -> tuple[Level, ...]:
    """Describe the levels between shapes, finest first, each the low-pass of the one before."""
    pairs = list(pairwise(shapes))
    shifts = [tuple(int(a > b) for a, b in zip(*pair, strict=True)) for pair in pairs[1:]]
    return tuple(
        Level(number, fine, low, shift, number + 1 < len(pairs))  # type: ignore[arg-type]
        for number, ((fine, low), shift) in enumerate(
            zip(pairs, [*shifts, NO_SHIFTS][: len(pairs)], strict=True)
        )
    )


def low_pass_slices(levels: tuple[Level, ...], grid: Shape) -> tuple[slice, ...]:
    """Return where the low-pass corner lies among the coefficients."""
    return tuple(slice(0, n) for n in (levels[-1].low if levels else grid))


def segments_of(levels: tuple[Level, ...]) -> list[tuple[Level, ...]]:
    """Group levels into segments that are coded apart, so that coarse ones can be read alone.

    Returns
    -------
    list of tuples of Level
        In coding order, coarsest first; the finest levels have segments of their own. There is
        always a first one: it holds the low-pass corner too.
    """
    coarse = levels[: _SINGLE_SEGMENTS - 1 : -1]
    return [coarse, *((level,) for level in levels[:_SINGLE_SEGMENTS][::-1])]
