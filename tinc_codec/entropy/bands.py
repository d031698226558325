"""Quantised wavelet bands <-> bits: blocks that are present, buckets, signs and remainders.

Levels go from the coarsest to the finest, bands in the order of `MASKS`, and a band in eight
phases; all symbols of a phase that share a context are one call of constriction's range coder.

References
----------
`docs/format.md` §10
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import pairwise
from typing import Any

import constriction
import numpy as np
from numba import njit

from tinc_codec.entropy.contexts import (
    BANDS,
    BLOCK_EDGE,
    BUCKET_BASE,
    BUCKET_BITS,
    MASKS,
    REPRESENTED,
    block_sums,
    coarse_features,
    order_by_context,
    phase_contexts,
    present_block_sums,
    represent_band,
    stencil,
    total_of_bands,
)
from tinc_codec.entropy.feature_tables import (
    COARSE,
    LEVEL_CLASSES,
    N_CONTEXTS,
    PHASE_ORDER,
    bucket_model,
    flag_model,
    load_tables,
)
from tinc_codec.errors import CorruptStreamError

Shape = tuple[int, int, int]

_COMPILE = {"nogil": True, "cache": True, "error_model": "numpy"}

BLOCKED_SIZE = 4096
"""Bands of so many coefficients or more say which of their blocks are present."""
_NO_SHIFTS = (0, 0, 0)
_NO_SUMS = np.empty(0, dtype=np.int32)


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
        halved = sum(bit for a, b, bit in zip(self.fine, self.low, (4, 2, 1), strict=True) if a > b)
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

    def band_shape(self, mask: int) -> Shape:
        """Return the shape of a band."""
        z, y, x = (
            f - n if mask & bit else n
            for f, n, bit in zip(self.fine, self.low, (4, 2, 1), strict=True)
        )
        return z, y, x

    def band_slices(self, mask: int) -> tuple[slice, ...]:
        """Return where a band lies among the coefficients of its volume."""
        return tuple(
            slice(n, f) if mask & bit else slice(0, n)
            for f, n, bit in zip(self.fine, self.low, (4, 2, 1), strict=True)
        )

    def is_blocked(self, mask: int) -> bool:
        """Tell whether a band's blocks can be absent."""
        z, y, x = self.band_shape(mask)
        return z * y * x >= BLOCKED_SIZE

    def blocks(self, mask: int) -> Shape:
        """Return the number of blocks of a band along each axis."""
        z, y, x = (-(-n // BLOCK_EDGE) for n in self.band_shape(mask))
        return z, y, x

    @cached_property
    def padded_blocks(self) -> Shape:
        """Shape of one band's array of blocks with a margin of one."""
        z, y, x = (-(-n // BLOCK_EDGE) + 2 for n in self.low)
        return z, y, x

    def every_block(self, mask: int) -> np.ndarray:
        """List all blocks of a band, int32 (number, 3)."""
        return _every(self.blocks(mask))


@lru_cache(maxsize=64)
def _every(shape: Shape) -> np.ndarray:
    places = np.argwhere(np.ones(shape, dtype=bool)).astype(np.int32)
    places.flags.writeable = False
    return places.copy()


@lru_cache(maxsize=64)
def levels_of(shapes: tuple[Shape, ...]) -> tuple[Level, ...]:
    """Describe the levels between shapes, finest first, each the low-pass of the one before."""
    pairs = list(pairwise(shapes))
    shifts = [tuple(int(a > b) for a, b in zip(*pair, strict=True)) for pair in pairs[1:]]
    return tuple(
        Level(number, fine, low, shift, number + 1 < len(pairs))  # type: ignore[arg-type]
        for number, ((fine, low), shift) in enumerate(
            zip(pairs, [*shifts, _NO_SHIFTS][: len(pairs)], strict=True)
        )
    )


@lru_cache(maxsize=1024)
def _stencils(kind: str, weights_class: int, mask: int, padded: Shape) -> tuple[Any, ...]:
    """Give per phase (offsets, weights), and the coarse weights with the bias, all int32."""
    tables = load_tables()
    weights = tables.coefficient_weights if kind == "coefficient" else tables.flag_weights
    rows = weights[weights_class, mask - 1]
    return tuple(
        (*stencil(row, mask, phase, padded), np.ascontiguousarray(row[: COARSE + 4]))
        for phase, row in enumerate(rows)
    )


class LevelState:
    """What contexts of one level of one volume are made from.

    Attributes
    ----------
    magnitudes : ndarray of uint16
        Shape (band, *padded): what represents each coefficient, index mask - 1.
    """

    def __init__(self, level: Level, parent: "LevelState | None") -> None:
        self.level = level
        self.magnitudes = np.zeros((BANDS, *level.padded), dtype=np.uint16)
        self.block_sums = np.zeros((BANDS, *level.padded_blocks), dtype=np.uint16)
        if parent is None:
            self._coarse = np.zeros_like(self.magnitudes)
        else:
            self._coarse = parent.magnitudes
        self._coarse_total = _total(self._coarse)
        self._is_top = parent is None

    @cached_property
    def _coarse_blocks(self) -> tuple[np.ndarray, np.ndarray]:
        sums = np.zeros_like(self.block_sums)
        if not self._is_top:
            edges = np.array([BLOCK_EDGE >> shift for shift in self.level.shifts])
            for band, out in zip(self._coarse, sums, strict=True):
                block_sums(band, edges, out)
        return sums, _total(sums)

    def coefficient_phases(self, mask: int, blocks: np.ndarray, shift: int) -> "Phases":
        """Prepare the contexts of a band's coefficients within some of its blocks."""
        level = self.level
        own, total = self._coarse[mask - 1], self._coarse_total
        return Phases(
            self.magnitudes, mask, own, total, level.shifts, blocks, BLOCK_EDGE,
            level.band_shape(mask),
            _stencils("coefficient", level.weights_class, mask, level.padded), shift,
        )  # fmt: skip

    def flag_phases(self, mask: int) -> "Phases":
        """Prepare the contexts of a band's flags, one per block."""
        level = self.level
        sums, total = self._coarse_blocks
        shape = level.blocks(mask)
        groups = _every(tuple(-(-n // BLOCK_EDGE) for n in shape))
        return Phases(
            self.block_sums, mask, sums[mask - 1], total, _NO_SHIFTS, groups, BLOCK_EDGE, shape,
            _stencils("flag", level.weights_class, mask, level.padded_blocks), 0,
        )  # fmt: skip

    def finish_band(self, mask: int, blocks: np.ndarray) -> None:
        """Let the bands that follow see this one's blocks, of which only some hold anything."""
        present_block_sums(self.magnitudes[mask - 1], blocks, self.block_sums[mask - 1])


def _total(bands: np.ndarray) -> np.ndarray:
    total = np.empty(bands.shape[1:], dtype=np.uint16)
    total_of_bands(bands.reshape(len(bands), -1), total.reshape(-1))
    return total


class Phases:
    """The phases of one band: places and contexts, from what is known when each is reached."""

    def __init__(
        self,
        bands: np.ndarray,
        mask: int,
        own: np.ndarray,
        total: np.ndarray,
        shifts: Shape,
        blocks: np.ndarray,
        edge: int,
        shape: Shape,
        stencils: tuple[Any, ...],
        shift: int,
    ) -> None:
        self.flat = bands.reshape(-1)
        self.blocks = blocks
        self._geometry = shifts, blocks, edge, shape
        self._stencils = stencils
        self._shift = shift
        padded = bands.shape[1:]
        self._start = (mask - 1) * int(np.prod(padded))
        self._strides = (padded[1] * padded[2], padded[2])
        room = len(blocks) * (edge // 2) ** 3
        self._places = np.empty(room, dtype=np.int32)
        self._contexts = np.empty(room, dtype=np.uint8)
        self._coarse = np.empty((*(n - 2 for n in own.shape), 4), dtype=np.int32)
        coarse_features(own, total, self._coarse)

    def arguments(self, phase: int) -> tuple[Any, ...]:
        """Return what `contexts.phase_contexts` needs before its outputs."""
        offsets, weights, coarse_weights = self._stencils[phase]
        return (
            self.flat, self._start, self._strides, self._coarse, coarse_weights, *self._geometry,
            PHASE_ORDER[phase], offsets, weights, self._shift,
        )  # fmt: skip

    def contexts(self, phase: int) -> tuple[np.ndarray, np.ndarray]:
        """Compute a phase's places in `flat` (int32) and contexts (uint8); valid until the next."""
        n = phase_contexts(*self.arguments(phase), self._places, self._contexts, _NO_SUMS)
        return self._places[:n], self._contexts[:n]


_BUCKET_OF = np.zeros(1 << 16, dtype=np.uint8)
_BUCKET_OF[REPRESENTED] = np.arange(len(REPRESENTED))
"""Bucket by what represents it."""


def represent(symbols: np.ndarray) -> np.ndarray:
    """Replace signed symbols by what represents their magnitudes in contexts, as uint16."""
    buckets = np.searchsorted(BUCKET_BASE, np.abs(symbols), side="right") - 1
    return REPRESENTED[buckets]


class BandCoder:
    """The walk over levels, bands and phases that whoever codes symbols has in common."""

    def code_level(
        self,
        level: Level,
        parent: LevelState | None,
        shifts: Sequence[int],
        n_bands: int | None = None,
    ) -> LevelState:
        """Code the bands of one level of one volume.

        Parameters
        ----------
        level : Level
        parent : LevelState or None
            Of the next coarser level.
        shifts : sequence of int
            Per band, what is added to its contexts.
        n_bands : int, optional
            Only the first ones; whatever follows them in the code is then lost.
        """
        state = LevelState(level, parent)
        for mask, shift in list(zip(level.masks, shifts, strict=True))[:n_bands]:
            self.begin_band(state, mask)
            blocks = level.every_block(mask)
            if level.is_blocked(mask):
                phases = state.flag_phases(mask)
                for phase in range(len(PHASE_ORDER)):
                    self.code_flags(phases, phase)
                flags = state.block_sums[mask - 1][inside(level.blocks(mask))]
                blocks = np.argwhere(flags).astype(np.int32)
            if len(blocks):
                phases = state.coefficient_phases(mask, blocks, shift)
                for phase in range(len(PHASE_ORDER)):
                    self.code_coefficients(state, mask, phases, phase)
            state.finish_band(mask, blocks)
        return state

    def begin_band(self, state: LevelState, mask: int) -> None:
        """Make known what the coder needs of a band; a decoder needs nothing."""

    def code_flags(self, phases: Phases, phase: int) -> None:
        """Code which blocks of a phase are present: ones in `phases.flat`."""
        raise NotImplementedError

    def code_coefficients(self, state: LevelState, mask: int, phases: Phases, phase: int) -> None:
        """Code the magnitudes of a phase in `phases.flat`."""
        raise NotImplementedError


def inside(shape: Shape) -> tuple[slice, ...]:
    """Index the band without its margin."""
    return tuple(slice(1, n + 1) for n in shape)


def _by_context(contexts: np.ndarray) -> tuple[np.ndarray, list[tuple[int, int, int]]]:
    """Sort positions by context: the order, and (context, start, stop) for each that occurs."""
    order = np.empty(len(contexts), dtype=np.int32)
    counts = np.empty(N_CONTEXTS, dtype=np.int64)
    order_by_context(contexts, len(contexts), order, counts)
    runs, start = [], 0
    for context in np.flatnonzero(counts).tolist():
        stop = start + int(counts[context])
        runs.append((context, start, stop))
        start = stop
    return order, runs


class _Encoder(BandCoder):
    def __init__(self, symbols: np.ndarray, coder: Any) -> None:
        self._symbols, self._coder = symbols, coder

    def begin_band(self, state: LevelState, mask: int) -> None:
        band = self._symbols[state.level.band_slices(mask)]
        represent_band(band, state.magnitudes[mask - 1], state.block_sums[mask - 1])

    def code_flags(self, phases: Phases, phase: int) -> None:
        places, contexts = phases.contexts(phase)
        self._code(phases.flat[places], contexts, flag_model)

    def code_coefficients(self, state: LevelState, mask: int, phases: Phases, phase: int) -> None:
        places, contexts = phases.contexts(phase)
        self._code(_BUCKET_OF[phases.flat[places]], contexts, bucket_model)

    def _code(self, symbols: np.ndarray, contexts: np.ndarray, model: Any) -> None:
        order, runs = _by_context(contexts)
        ordered = symbols[order].astype(np.int32)
        for context, start, stop in runs:
            self._coder.encode(ordered[start:stop], model(context))


class _Decoder(BandCoder):
    def __init__(self, coder: Any) -> None:
        self._coder = coder

    def code_flags(self, phases: Phases, phase: int) -> None:
        places, contexts = phases.contexts(phase)
        order, symbols = self._decode(contexts, flag_model)
        phases.flat[places[order]] = symbols

    def code_coefficients(self, state: LevelState, mask: int, phases: Phases, phase: int) -> None:
        places, contexts = phases.contexts(phase)
        order, buckets = self._decode(contexts, bucket_model)
        phases.flat[places[order]] = REPRESENTED[buckets]

    def _decode(self, contexts: np.ndarray, model: Any) -> tuple[np.ndarray, np.ndarray]:
        order, runs = _by_context(contexts)
        symbols = np.empty(len(contexts), dtype=np.int32)
        for context, start, stop in runs:
            symbols[start:stop] = self._coder.decode(model(context), stop - start)
        return order, symbols


@dataclass(frozen=True)
class LowPass:
    """How the symbols of the coarsest low-pass corner of a volume are coded.

    Attributes
    ----------
    context : int
        The one whose table they share.
    centre : int
        Subtracted from them.
    """

    context: int
    centre: int


def choose_low_pass(corner: np.ndarray) -> LowPass:
    """Find the cheapest way to code a corner of int32 symbols."""
    centre = int(np.rint(corner.mean()))
    buckets = np.searchsorted(BUCKET_BASE, np.abs(corner - centre).reshape(-1), side="right") - 1
    tables = load_tables().buckets
    return LowPass(int(np.argmax(np.log2(tables[:, buckets]).sum(axis=1))), centre)


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


_SINGLE_SEGMENTS = 2


@dataclass(frozen=True)
class Segment:
    """The code of some levels.

    Attributes
    ----------
    coded : bytes-like
        Range-coded words without trailing zero bytes.
    plain : bytes-like
        Signs and remainders, 8 bits to a byte.
    """

    coded: bytes | memoryview
    plain: bytes | memoryview


def encode_bands(
    symbols: np.ndarray,
    levels: tuple[Level, ...],
    low_passes: Sequence[LowPass],
    shifts: Sequence[Sequence[int]],
) -> list[Segment]:
    """Code quantised coefficients.

    Parameters
    ----------
    symbols : ndarray of int32
        Shape (B, z, y, x): the low-pass corner first on each axis, then the bands, coarsest to
        finest; magnitudes up to `MAX_MAGNITUDE`.
    levels : tuple of Level
        Finest first.
    low_passes : sequence of LowPass
        Per volume.
    shifts : sequence of sequences of int
        Per level and band.

    Returns
    -------
    list of Segment
        As many as `segments_of` gives.
    """
    segments = []
    states: list[LevelState | None] = [None] * len(symbols)
    for number, group in enumerate(segments_of(levels)):
        encoder = constriction.stream.queue.RangeEncoder()
        bits = _PlainBits()
        if number == 0:
            for volume, low_pass in zip(symbols, low_passes, strict=True):
                corner = volume[low_pass_slices(levels, volume.shape)] - np.int32(low_pass.centre)
                buckets = _BUCKET_OF[represent(corner.reshape(-1))].astype(np.int32)
                encoder.encode(buckets, bucket_model(low_pass.context))
                bits.append(corner)
        for level in group:
            for index, volume in enumerate(symbols):
                coder = _Encoder(volume, encoder)
                states[index] = coder.code_level(level, states[index], shifts[level.number])
                for mask in level.masks:
                    bits.append(volume[level.band_slices(mask)])
        words = encoder.get_compressed().astype("<u4").tobytes().rstrip(b"\0")
        segments.append(Segment(words, bits.tobytes()))
    return segments


def decode_bands(
    segments: Sequence[Segment],
    grid: Shape,
    levels: tuple[Level, ...],
    low_passes: Sequence[LowPass],
    shifts: Sequence[Sequence[int]],
    *,
    finest: int = 0,
    most_high: int = 3,
) -> np.ndarray:
    """Decode what `encode_bands` wrote.

    Parameters
    ----------
    segments : sequence of Segment
        The first ones of `segments_of`; what the others would hold stays 0.
    finest : int
        Number of the finest level that is wanted, 0 to `len(levels)`; those below it cost nothing.
    most_high : int
        Of that level, the bands that are high-pass along at most so many axes are enough; of the
        last volume the others are not decoded.

    Returns
    -------
    ndarray of int32
        Shape (B, *what the finest wanted level takes apart): the grid for level 0.

    Raises
    ------
    CorruptStreamError
        If the bits are no code of such symbols.
    """
    corner_slices = low_pass_slices(levels, grid)
    fine = (*(level.fine for level in levels), tuple(s.stop for s in corner_slices))[finest]
    symbols = np.zeros((len(low_passes), *fine), dtype=np.int32)
    states: list[LevelState | None] = [None] * len(symbols)
    groups = segments_of(levels)
    for number, (segment, group) in enumerate(zip(segments, groups, strict=False)):
        wanted = [level for level in group if level.number >= finest]
        if number and not wanted:
            break
        is_whole = len(wanted) == len(group)
        decoder = _range_decoder(segment.coded)
        bits = np.frombuffer(segment.plain, dtype=np.uint8).copy()
        position = 0
        try:
            if number == 0:
                for volume, low_pass in zip(symbols, low_passes, strict=True):
                    corner = volume[corner_slices]
                    buckets = decoder.decode(bucket_model(low_pass.context), corner.size)
                    magnitudes = REPRESENTED[buckets].reshape(corner.shape)
                    position = _unpack(magnitudes, *_BUCKETS, bits, position, corner)
                    corner += np.int32(low_pass.centre)
            for level in wanted:
                for index, volume in enumerate(symbols):
                    masks = level.masks
                    if level.number == finest and index == len(symbols) - 1:
                        # In coding order, bands of fewer high axes come first.
                        masks = tuple(m for m in masks if m.bit_count() <= most_high)
                        is_whole = is_whole and masks == level.masks
                    coder = _Decoder(decoder)
                    state = coder.code_level(level, states[index], shifts[level.number], len(masks))
                    states[index] = state
                    for mask in masks:
                        band = volume[level.band_slices(mask)]
                        magnitudes = state.magnitudes[mask - 1][inside(band.shape)]
                        position = _unpack(magnitudes, *_BUCKETS, bits, position, band)
        except (AssertionError, ValueError) as error:
            raise CorruptStreamError(f"features: {error}") from error
        if position < 0 or (
            is_whole and ((position + 7) // 8 != len(bits) or _has_rest(bits, position))
        ):
            raise CorruptStreamError(
                f"features: {len(bits)} bytes of signs and remainders do not fit the magnitudes"
            )
        if is_whole and not decoder.maybe_exhausted():
            raise CorruptStreamError("features: words follow the last symbol")
    return symbols


def _range_decoder(coded: bytes | memoryview) -> Any:
    raw = bytes(coded)
    if raw.endswith(b"\0"):
        raise CorruptStreamError("features: a code ends in a zero byte")
    words = np.frombuffer(raw + b"\0" * (-len(raw) % 4), dtype="<u4").astype(np.uint32)
    return constriction.stream.queue.RangeDecoder(words)


_BUCKETS = _BUCKET_OF, BUCKET_BASE, BUCKET_BITS


class _PlainBits:
    """Signs and remainders, appended band after band."""

    def __init__(self) -> None:
        self._bytes = np.zeros(1 << 10, dtype=np.uint8)
        self._position = 0

    def append(self, symbols: np.ndarray) -> None:
        """Append those of the symbols that are not 0, in C order."""
        # A symbol has at most its sign and the 21 bits that tell it from others of its bucket.
        needed = (self._position + 22 * int(np.count_nonzero(symbols))) // 8 + 1
        if needed > len(self._bytes):
            grown = np.zeros(2 * needed, dtype=np.uint8)
            grown[: len(self._bytes)] = self._bytes
            self._bytes = grown
        self._position = _pack(symbols, BUCKET_BASE, BUCKET_BITS, self._bytes, self._position)

    def tobytes(self) -> bytes:
        """Return the bits, the last byte filled up with zeros."""
        return self._bytes[: (self._position + 7) // 8].tobytes()


def low_pass_slices(levels: tuple[Level, ...], grid: Shape) -> tuple[slice, ...]:
    """Return where the low-pass corner lies among the coefficients."""
    return tuple(slice(0, n) for n in (levels[-1].low if levels else grid))


def _has_rest(bits: np.ndarray, position: int) -> bool:
    return bool(position % 8 and bits[-1] >> (position % 8))


@njit(**_COMPILE)
def _pack(symbols, bases, widths, out, position):  # type: ignore[no-untyped-def]
    """Write sign and remainder of every symbol that is not 0, lowest bit first."""
    for z in range(symbols.shape[0]):
        for y in range(symbols.shape[1]):
            for x in range(symbols.shape[2]):
                value = np.int64(symbols[z, y, x])
                if value == 0:
                    continue
                magnitude = abs(value)
                bits = np.int64(value < 0)
                width = 1
                if magnitude >= 8:
                    bucket = np.searchsorted(bases, magnitude, side="right") - 1
                    bits |= (magnitude - bases[bucket]) << 1
                    width += widths[bucket]
                for i in range(width):
                    out[position >> 3] |= ((bits >> i) & 1) << (position & 7)
                    position += 1
    return position


@njit(**_COMPILE)
def _unpack(magnitudes, bucket_of, bases, widths, bits, position, out):  # type: ignore[no-untyped-def]
    """Read what `_pack` wrote; the position after it, -1 once the bits have run out."""
    if position < 0:
        return position
    available = 8 * len(bits)
    for z in range(out.shape[0]):
        for y in range(out.shape[1]):
            for x in range(out.shape[2]):
                represented = magnitudes[z, y, x]
                if represented == 0:
                    continue
                bucket = bucket_of[represented]
                width = 1 + widths[bucket]
                if position + width > available:
                    return -1
                value = np.int64(0)
                for i in range(width):
                    value |= np.int64((bits[position >> 3] >> (position & 7)) & 1) << i
                    position += 1
                magnitude = bases[bucket] + (value >> 1)
                out[z, y, x] = -magnitude if value & 1 else magnitude
    return position
