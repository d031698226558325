"""What contexts of a level are made from, and a band's contexts phase by phase.

References
----------
`docs/format.md` §10.3 to §10.5
"""

from functools import cached_property
from typing import Any

import numpy as np

from tinc_codec.entropy.buckets import represent_band
from tinc_codec.entropy.contexts import ordered_phase, ordered_symbols, phase_contexts
from tinc_codec.entropy.feature_tables import N_CONTEXTS, PHASE_ORDER
from tinc_codec.entropy.outer_sums import (
    block_sums,
    near_sums,
    outer_sums,
    present_blocks,
    total_of_bands,
)
from tinc_codec.entropy.pyramid import (
    BANDS,
    BLOCK_EDGE,
    NO_SHIFTS,
    Level,
    Shape,
    blocks_of,
    every_place,
)
from tinc_codec.entropy.stencils import Stencil, stencil_of

Runs = list[list[int]]
"""[context, number of places], in coding order."""

_EDGES = (BLOCK_EDGE, BLOCK_EDGE, BLOCK_EDGE)
_NO_SUMS = np.empty(0, dtype=np.uint32)


class _Coarser:
    """Fields of the coarser level, with what is around each place of them.

    Parameters
    ----------
    fields : ndarray of uint16
        Shape (band, *padded).
    """

    def __init__(self, fields: np.ndarray) -> None:
        self.padded: Shape = fields.shape[1:]
        self._flat = fields.reshape(BANDS, -1)
        self._total = np.empty(self._flat.shape[1], dtype=np.uint16)
        total_of_bands(self._flat, self._total)
        self._total_near = self._near(self._total)

    def of_band(self, mask: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Return what `outer_sums` wants of one band and of all of them."""
        own = self._flat[mask - 1]
        return own, self._near(own), self._total, self._total_near

    def _near(self, field: np.ndarray) -> np.ndarray:
        out = np.empty(field.shape, dtype=np.uint32)
        near_sums(field, self.padded[2], self.padded[1] * self.padded[2], out)
        return out


class Phases:
    """The phases of one band: places and contexts, from what is known when each is reached.

    Parameters
    ----------
    fields : ndarray of uint16
        Shape (band, *padded): all bands of the level; those before this one are complete.
    mask : int
        The band.
    coarser : _Coarser
        Of the next coarser level.
    shifts : tuple of int
        Position p has its place there at p >> shifts.
    blocks : ndarray of int32
        (number, 3): where the positions are.
    shape : tuple of int
        Of the band.
    stencil : Stencil
    shift : int
        Added to every context.

    Attributes
    ----------
    field : ndarray of uint16
        The band's own, flat: what it holds is found in it or written to it, phase by phase.
    """

    def __init__(
        self,
        fields: np.ndarray,
        mask: int,
        coarser: _Coarser,
        shifts: Shape,
        blocks: np.ndarray,
        shape: Shape,
        stencil: Stencil,
        shift: int,
    ) -> None:
        flat = fields.reshape(BANDS, -1)
        self.field = flat[mask - 1]
        self.blocks = blocks
        padded = fields.shape[1:]
        outer = np.empty(self.field.shape, dtype=np.uint32)
        outer_sums(
            flat, padded, coarser.of_band(mask), coarser.padded, shifts, stencil.coarse,
            stencil.others, stencil.other_weights, blocks, shape, outer,
        )  # fmt: skip
        self._geometry = self.field, outer, padded, blocks, shape
        self._taps = stencil.taps, stencil.offsets, stencil.weights
        self._shift = shift
        room = len(blocks) * (BLOCK_EDGE // 2) ** 3
        self._places = np.empty(room, dtype=np.int32)
        self._contexts = np.empty(room, dtype=np.uint8)
        self._ordered = np.empty(room, dtype=np.int32)
        self._runs = np.empty((N_CONTEXTS, 2), dtype=np.int64)

    def arguments(self, phase: int) -> tuple[Any, ...]:
        """Return what `contexts.phase_contexts` needs before its outputs."""
        return (*self._geometry, phase, *self._taps, self._shift)

    def contexts(self, phase: int, sums: np.ndarray = _NO_SUMS) -> tuple[np.ndarray, np.ndarray]:
        """Compute a phase's places in `field` (int32) and contexts (uint8); valid until the next.

        The sums go to `sums`, uint32, where it is not empty.
        """
        n = phase_contexts(*self.arguments(phase), self._places, self._contexts, sums)
        return self._places[:n], self._contexts[:n]

    def ordered(self, phase: int) -> tuple[np.ndarray, Runs]:
        """List a phase's places in coding order, int32, valid until the next; and their runs."""
        n, n_runs = ordered_phase(
            *self.arguments(phase), self._places, self._contexts, self._ordered, self._runs
        )
        return self._ordered[:n], self._runs[:n_runs].tolist()

    def symbols(self, symbol_of: np.ndarray) -> tuple[np.ndarray, Runs]:
        """List the symbols of all phases in coding order, int32, and their runs.

        Parameters
        ----------
        symbol_of : ndarray
            Symbol by what stands for it in `field`, which is complete.
        """
        found = np.empty(len(PHASE_ORDER) * len(self._places), dtype=np.int32)
        runs = np.empty((len(PHASE_ORDER) * N_CONTEXTS, 2), dtype=np.int64)
        n_runs = ordered_symbols(
            *self._geometry, *self._taps, self._shift, self._places, self._contexts,
            self._ordered, symbol_of, found, runs,
        )  # fmt: skip
        return found, runs[:n_runs].tolist()


class LevelState:
    """What contexts of one level of one volume are made from.

    Attributes
    ----------
    magnitudes : ndarray of uint16
        Shape (band, *padded): what stands for each coefficient, index mask - 1.
    block_sums : ndarray of uint16
        Shape (band, *padded_blocks): their sums per block, before that the flags of the blocks.
    """

    def __init__(self, level: Level, parent: "LevelState | None") -> None:
        self.level = level
        self.magnitudes = np.zeros((BANDS, *level.padded), dtype=np.uint16)
        self.block_sums = np.zeros((BANDS, *level.padded_blocks), dtype=np.uint16)
        self._parent = None if parent is None else parent.magnitudes

    @cached_property
    def _coarser(self) -> _Coarser:
        return _Coarser(np.zeros_like(self.magnitudes) if self._parent is None else self._parent)

    @cached_property
    def _coarser_blocks(self) -> _Coarser:
        sums = np.zeros_like(self.block_sums)
        if self._parent is not None:
            z, y, x = (BLOCK_EDGE >> shift for shift in self.level.shifts)
            blocks = every_place(blocks_of(self.level.low))
            for band, out in zip(self._parent, sums, strict=True):
                block_sums(band, blocks, (z, y, x), out)
        return _Coarser(sums)

    def represent(self, mask: int, symbols: np.ndarray) -> None:
        """Make a band of a volume's symbols, int32 [z, y, x], and its blocks' flags known."""
        begin, shape = self.level.band_begin(mask), self.level.band_shape(mask)
        represent_band(symbols, begin, shape, self.magnitudes[mask - 1], self.block_sums[mask - 1])

    def coefficient_phases(
        self, mask: int, blocks: np.ndarray, shift: int, stencil: Stencil | None = None
    ) -> Phases:
        """Prepare the contexts of a band's coefficients within some of its blocks."""
        level = self.level
        return Phases(
            self.magnitudes, mask, self._coarser, level.shifts, blocks, level.band_shape(mask),
            stencil or stencil_of("coefficient", level.weights_class, mask, level.padded), shift,
        )  # fmt: skip

    def flag_phases(self, mask: int, stencil: Stencil | None = None) -> Phases:
        """Prepare the contexts of a band's flags, one per block."""
        level = self.level
        shape = level.blocks(mask)
        return Phases(
            self.block_sums, mask, self._coarser_blocks, NO_SHIFTS, every_place(blocks_of(shape)),
            shape, stencil or stencil_of("flag", level.weights_class, mask, level.padded_blocks), 0,
        )  # fmt: skip

    def present_blocks(self, mask: int) -> np.ndarray:
        """List the blocks of a band whose flags are set, int32 (number, 3)."""
        flags = self.block_sums[mask - 1]
        z, y, x = self.level.blocks(mask)
        blocks = np.empty((z * y * x, 3), dtype=np.int32)
        return blocks[: present_blocks(flags, blocks)]

    def finish_band(self, mask: int, blocks: np.ndarray) -> None:
        """Let the bands that follow see this one's blocks, of which only some hold anything."""
        block_sums(self.magnitudes[mask - 1], blocks, _EDGES, self.block_sums[mask - 1])
