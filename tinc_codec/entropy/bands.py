"""Quantised wavelet bands <-> bits: blocks that are present, buckets, signs and remainders.

Levels go from the coarsest to the finest, bands in the order of `pyramid.MASKS`, and a band in
eight phases; all symbols of a phase that share a context are one call of constriction's range
coder.

References
----------
`docs/format.md` §10.2, §10.3
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import constriction
import numpy as np

from tinc_codec.entropy.buckets import (
    REPRESENTED,
    REPRESENTED_BUCKET,
    buckets_of,
)
from tinc_codec.entropy.contexts import place_symbols
from tinc_codec.entropy.feature_tables import (
    PHASE_ORDER,
    bucket_model,
    bucket_models,
    flag_models,
    load_tables,
)
from tinc_codec.entropy.phases import LevelState, Phases, Runs
from tinc_codec.entropy.plain_bits import BitReader, BitWriter
from tinc_codec.entropy.pyramid import Level, Shape, low_pass_slices, segments_of
from tinc_codec.errors import CorruptStreamError

_FLAGS = np.arange(2, dtype=np.uint8)
"""Flags stand for themselves."""


class BandCoder:
    """The walk over levels and bands that whoever codes symbols has in common."""

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
                self.code_flags(state, mask)
                blocks = state.present_blocks(mask)
            if len(blocks):
                phases = state.coefficient_phases(mask, blocks, shift)
                self.code_coefficients(state, mask, phases)
            state.finish_band(mask, blocks)
        return state

    def begin_band(self, state: LevelState, mask: int) -> None:
        """Make known what the coder needs of a band; a decoder needs nothing."""

    def code_flags(self, state: LevelState, mask: int) -> None:
        """Code which blocks of a band are present: ones in `state.block_sums`.

        A coder that sets them in `begin_band` and writes nothing has nothing to do here.
        """

    def code_coefficients(self, state: LevelState, mask: int, phases: Phases) -> None:
        """Code the magnitudes of a band, phase by phase, in `phases.field`."""
        raise NotImplementedError


class _Encoder(BandCoder):
    def __init__(self, symbols: np.ndarray, coder: Any) -> None:
        self._symbols, self._coder = symbols, coder

    def begin_band(self, state: LevelState, mask: int) -> None:
        state.represent(mask, self._symbols)

    def code_flags(self, state: LevelState, mask: int) -> None:
        self._encode(*state.flag_phases(mask).symbols(_FLAGS), flag_models())

    def code_coefficients(self, state: LevelState, mask: int, phases: Phases) -> None:
        self._encode(*phases.symbols(REPRESENTED_BUCKET), bucket_models())

    def _encode(self, symbols: np.ndarray, runs: Runs, models: Sequence[Any]) -> None:
        encode = self._coder.encode
        start = 0
        for context, count in runs:
            stop = start + count
            encode(symbols[start:stop], models[context])
            start = stop


class _Decoder(BandCoder):
    def __init__(self, coder: Any) -> None:
        self._coder = coder

    def code_flags(self, state: LevelState, mask: int) -> None:
        self._decode_phases(state.flag_phases(mask), flag_models(), _FLAGS)

    def code_coefficients(self, state: LevelState, mask: int, phases: Phases) -> None:
        self._decode_phases(phases, bucket_models(decoding=True), REPRESENTED)

    def _decode_phases(self, phases: Phases, models: Sequence[Any], value_of: np.ndarray) -> None:
        for phase in range(len(PHASE_ORDER)):
            places, runs = phases.ordered(phase)
            if runs:
                place_symbols(self._decode(runs, models), places, value_of, phases.field)

    def _decode(self, runs: Runs, models: Sequence[Any]) -> np.ndarray:
        decode = self._coder.decode
        return np.concatenate([decode(models[context], count) for context, count in runs])


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
    buckets = buckets_of(corner - centre).reshape(-1)
    tables = load_tables().buckets
    return LowPass(int(np.argmax(np.log2(tables[:, buckets]).sum(axis=1))), centre)


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
    symbols = np.ascontiguousarray(symbols)
    segments = []
    states: list[LevelState | None] = [None] * len(symbols)
    for number, group in enumerate(segments_of(levels)):
        encoder = constriction.stream.queue.RangeEncoder()
        bits = BitWriter()
        if number == 0:
            for volume, low_pass in zip(symbols, low_passes, strict=True):
                _encode_corner(
                    volume[low_pass_slices(levels, volume.shape)], low_pass, encoder, bits
                )
        for level in group:
            for index, volume in enumerate(symbols):
                coder = _Encoder(volume, encoder)
                states[index] = coder.code_level(level, states[index], shifts[level.number])
                for mask in level.masks:
                    bits.append(volume, level.band_begin(mask), level.band_shape(mask))
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
    corner = low_pass_slices(levels, grid)
    fine = (*(level.fine for level in levels), tuple(s.stop for s in corner))[finest]
    symbols = np.zeros((len(low_passes), *fine), dtype=np.int32)
    states: list[LevelState | None] = [None] * len(symbols)
    for number, (segment, group) in enumerate(zip(segments, segments_of(levels), strict=False)):
        wanted = [level for level in group if level.number >= finest]
        if number and not wanted:
            break
        is_whole = len(wanted) == len(group)
        decoder = _range_decoder(segment.coded)
        bits = BitReader(segment.plain)
        try:
            if number == 0:
                for volume, low_pass in zip(symbols, low_passes, strict=True):
                    _decode_corner(volume[corner], low_pass, decoder, bits)
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
                        bits.take(
                            state.magnitudes[mask - 1], 1, volume,
                            level.band_begin(mask), level.band_shape(mask),
                        )  # fmt: skip
        except (AssertionError, ValueError) as error:
            raise CorruptStreamError(f"features: {error}") from error
        bits.finish(is_whole=is_whole)
        if is_whole and not decoder.maybe_exhausted():
            raise CorruptStreamError("features: words follow the last symbol")
    return symbols


def _encode_corner(corner: np.ndarray, low_pass: LowPass, encoder: Any, bits: BitWriter) -> None:
    corner = corner - np.int32(low_pass.centre)
    encoder.encode(buckets_of(corner).reshape(-1), bucket_model(low_pass.context))
    bits.append(corner, (0, 0, 0), corner.shape)


def _decode_corner(corner: np.ndarray, low_pass: LowPass, decoder: Any, bits: BitReader) -> None:
    buckets = decoder.decode(bucket_model(low_pass.context), corner.size)
    magnitudes = REPRESENTED[buckets].reshape(corner.shape)
    found = np.zeros(corner.shape, dtype=np.int32)
    bits.take(magnitudes, 0, found, (0, 0, 0), corner.shape)
    np.add(found, np.int32(low_pass.centre), out=corner)


def _range_decoder(coded: bytes | memoryview) -> Any:
    raw = bytes(coded)
    if raw.endswith(b"\0"):
        raise CorruptStreamError("features: a code ends in a zero byte")
    words = np.frombuffer(raw + b"\0" * (-len(raw) % 4), dtype="<u4").astype(np.uint32)
    return constriction.stream.queue.RangeDecoder(words)
