"""Wavelet coefficients -> symbols, by rate-distortion: what is not worth its bits becomes 0.

The symbols are chosen in the order in which they are coded, each in its true context, and a block
is dropped where all it holds is not worth it.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from tinc_codec.entropy.bands import BandCoder
from tinc_codec.entropy.buckets import BUCKET_BITS, REPRESENTED, bucket_of
from tinc_codec.entropy.contexts import (
    PHASE_PARITIES,
    context_of,
    first_of_phase,
    sums_of_phase,
)
from tinc_codec.entropy.feature_tables import PHASE_ORDER, load_tables
from tinc_codec.entropy.phases import LevelState, Phases
from tinc_codec.entropy.pyramid import BLOCK_EDGE, Level, low_pass_slices
from tinc_codec.kernels import kernel

_LEAST_KEPT = 0.6
"""In steps; a block whose coefficients are all below is not considered."""
CENTROIDS = (0.02, 0.02)
"""How far within their bins magnitudes 1 and above are assumed to lie below their integer."""


@cache
def coefficient_bits() -> np.ndarray:
    """Tabulate the bits of a bucket in a context, sign and remainder included; float32."""
    tables = load_tables().buckets
    bits = -np.log2(tables / tables.sum(axis=1, keepdims=True))
    bits[:, 1:] += 1 + BUCKET_BITS[1:]
    return bits.astype(np.float32)


@cache
def flag_bits() -> np.ndarray:
    """Tabulate the bits of (absent, present) in a context; float32."""
    present = load_tables().present
    return -np.log2(np.stack([1 - present, present], axis=1)).astype(np.float32)


@dataclass(frozen=True)
class Choice:
    """Symbols of a volume and what they cost.

    Attributes
    ----------
    symbols : ndarray of int32
        Shape of the volume, in the layout of its coefficients.
    size_bits : float
        Estimated length of their code.
    """

    symbols: np.ndarray
    size_bits: float


def choose_symbols(
    coefficients: np.ndarray,
    levels: tuple[Level, ...],
    step: float,
    lmbda: float,
    shifts: Sequence[Sequence[int]],
    threads: int = 1,
) -> Choice:
    """Quantise a volume's coefficients.

    Parameters
    ----------
    coefficients : ndarray of float32
        Shape (z, y, x).
    levels : tuple of Level
    step : float
    lmbda : float
        Distortion in squared steps that one bit is worth.
    shifts : sequence of sequences of int
        Per level and band.
    threads : int

    Returns
    -------
    Choice
    """
    with ThreadPoolExecutor(threads) if threads > 1 else nullcontext() as pool:
        return _choose(
            _Chooser(coefficients, step, lmbda, threads, pool), coefficients, levels, step, shifts
        )


def _choose(
    chooser: "_Chooser",
    coefficients: np.ndarray,
    levels: tuple[Level, ...],
    step: float,
    shifts: Sequence[Sequence[int]],
) -> Choice:
    corner = low_pass_slices(levels, coefficients.shape)
    low = np.rint(coefficients[corner] / step)
    chooser.symbols[corner] = low
    spread = np.abs(low - np.rint(low.mean()))
    state: LevelState | None = None
    for level in reversed(levels):
        state = chooser.code_level(level, state, shifts[level.number])
    return Choice(chooser.symbols, chooser.size_bits + float(np.log2(2 * spread + 1).sum()) + 16)


class _Chooser(BandCoder):
    def __init__(
        self,
        coefficients: np.ndarray,
        step: float,
        lmbda: float,
        threads: int,
        pool: ThreadPoolExecutor | None,
    ) -> None:
        self._coefficients = np.ascontiguousarray(coefficients)
        self._threads, self._pool = threads, pool
        self._inverse_step = np.float32(1.0 / step)
        self._lmbda = np.float32(lmbda)
        self.symbols = np.zeros(coefficients.shape, dtype=np.int32)
        self.size_bits = 0.0

    def begin_band(self, state: LevelState, mask: int) -> None:
        level = state.level
        if level.is_blocked(mask):
            threshold = np.float32(_LEAST_KEPT / self._inverse_step)
            _worth_a_look(
                self._coefficients, level.band_begin(mask), level.band_shape(mask), threshold,
                state.block_sums[mask - 1],
            )  # fmt: skip

    def code_coefficients(self, state: LevelState, mask: int, phases: Phases) -> None:
        level, blocks = state.level, phases.blocks
        begin, shape = level.band_begin(mask), level.band_shape(mask)
        gains = np.zeros(len(blocks), dtype=np.float32)
        bits = np.zeros(len(blocks), dtype=np.float32)
        for phase in range(len(PHASE_ORDER)):
            arguments = phases.arguments(phase)

            def work(first: int, last: int, arguments: tuple[Any, ...] = arguments) -> None:
                part = slice(first, last)
                _choose_phase(
                    *arguments[:3], blocks[part], *arguments[4:], self._coefficients, self.symbols,
                    begin, self._inverse_step, self._lmbda, coefficient_bits(), gains[part],
                    bits[part],
                )  # fmt: skip

            self._share(work, len(blocks))
        if level.is_blocked(mask):
            least = self._lmbda * np.float32(_FLAG_BITS)
            _drop_blocks(
                state.magnitudes[mask - 1], self.symbols, begin, shape, blocks, gains, bits, least,
                state.block_sums[mask - 1],
            )  # fmt: skip
            self.size_bits += _count_flags(state.flag_phases(mask))
        self.size_bits += float(bits.sum())

    def _share(self, work: Callable[[int, int], None], count: int) -> None:
        """Call work(first, last) so that range(count) is covered, on all threads if it is long."""
        shares = min(self._threads, count // _BLOCKS_PER_THREAD)
        if self._pool is None or shares < 2:
            work(0, count)
            return
        bounds = [count * i // shares for i in range(shares + 1)]
        others = [self._pool.submit(work, *bounds[i : i + 2]) for i in range(1, shares)]
        work(0, bounds[1])
        for other in others:
            other.result()


_BLOCKS_PER_THREAD = 500
_FLAG_BITS = 3.0
"""What a block's presence costs beyond its absence, about."""


def _count_flags(phases: Phases) -> float:
    """Count the bits of a band's flags, all of which are known."""
    total = 0.0
    for phase in range(len(PHASE_ORDER)):
        places, contexts = phases.contexts(phase)
        total += float(flag_bits()[contexts, phases.field[places]].sum())
    return total


@kernel
def _worth_a_look(volume, begin, shape, threshold, flags):  # type: ignore[no-untyped-def]
    """Set the padded flags of a band's blocks with a coefficient of at least the threshold."""
    largest = np.empty(shape[2], np.float32)
    for z0 in range(0, shape[0], BLOCK_EDGE):
        for y0 in range(0, shape[1], BLOCK_EDGE):
            largest[:] = 0
            for z in range(z0, min(z0 + BLOCK_EDGE, shape[0])):
                for y in range(y0, min(y0 + BLOCK_EDGE, shape[1])):
                    row = volume[begin[0] + z, begin[1] + y, begin[2] : begin[2] + shape[2]]
                    for x in range(shape[2]):
                        size = abs(row[x])
                        largest[x] = size if size > largest[x] else largest[x]
            row_of_flags = flags[1 + z0 // BLOCK_EDGE, 1 + y0 // BLOCK_EDGE, 1:]
            for x in range(shape[2]):
                if largest[x] >= threshold:
                    row_of_flags[x // BLOCK_EDGE] = 1


@kernel
def _choose_phase(  # type: ignore[no-untyped-def]
    field, outer, padded, blocks, shape, phase, taps, offsets, weights, shift, coefficients,
    symbols, begin, inverse_step, lmbda, bits, gains, spent
):  # fmt: skip
    """Choose the symbols of one phase; the walk is that of `contexts.phase_contexts`.

    `gains` [block] receives distortion saved, in squared steps, minus lmbda times bits; `spent`
    [block] the bits.
    """
    width, plane = padded[2], padded[1] * padded[2]
    parity = PHASE_PARITIES[phase]
    row, sheet = coefficients.shape[2], coefficients.shape[1] * coefficients.shape[2]
    values, chosen = coefficients.reshape(-1), symbols.reshape(-1)
    for t in range(len(blocks)):
        z, y, x, n_z, n_y, n_x = first_of_phase(blocks, t, parity, shape)
        if n_z < 1 or n_y < 1 or n_x < 1:
            continue
        first = (z + 1) * plane + (y + 1) * width + x + 1
        origin = (begin[0] + z) * sheet + (begin[1] + y) * row + begin[2] + x
        step_z, step_y, step_x = 2 * (n_z - 1) * plane, 2 * (n_y - 1) * width, 2 * (n_x - 1)
        found = sums_of_phase(
            field, outer, first, step_z, step_y, step_x, taps[phase], offsets[phase],
            weights[phase],
        )  # fmt: skip
        gain = np.float32(0)
        used = np.float32(0)
        for i in range(8):
            k_z, k_y, k_x = i >> 2, (i >> 1) & 1, i & 1
            if k_z >= n_z or k_y >= n_y or k_x >= n_x:
                continue
            at = np.uint64(origin + 2 * (k_z * sheet + k_y * row + k_x))
            context = np.uint64(context_of(np.uint32(found[i]), shift))
            value = values[at] * inverse_step
            size = abs(value)
            nearest = np.int32(size + np.float32(0.5))
            best = np.int32(0)
            best_bits = bits[context, np.uint64(0)]
            best_error = size * size
            least = best_error + lmbda * best_bits
            candidate = nearest
            while candidate > 0 and candidate >= nearest - 1:
                error = size - candidate
                error *= error
                rate = bits[context, np.uint64(bucket_of(candidate))]
                if error + lmbda * rate < least:
                    least = error + lmbda * rate
                    best, best_bits, best_error = candidate, rate, error
                candidate -= 1
            gain += size * size - least
            used += best_bits
            if best:
                chosen[at] = -best if value < 0 else best
                place = first + k_z * step_z + k_y * step_y + k_x * step_x
                field[np.uint64(place)] = REPRESENTED[bucket_of(best)]
        gains[t] += gain
        spent[t] += used


@kernel
def _drop_blocks(  # type: ignore[no-untyped-def]
    magnitudes, symbols, begin, shape, blocks, gains, spent, least, flags
):
    """Empty the blocks that gain less than their presence costs."""
    for t in range(len(blocks)):
        if gains[t] > least:
            continue
        spent[t] = 0
        i, j, k = blocks[t]
        flags[i + 1, j + 1, k + 1] = 0
        z0, y0, x0 = i * BLOCK_EDGE, j * BLOCK_EDGE, k * BLOCK_EDGE
        for z in range(z0, min(z0 + BLOCK_EDGE, shape[0])):
            for y in range(y0, min(y0 + BLOCK_EDGE, shape[1])):
                for x in range(x0, min(x0 + BLOCK_EDGE, shape[2])):
                    symbols[begin[0] + z, begin[1] + y, begin[2] + x] = 0
                    magnitudes[z + 1, y + 1, x + 1] = 0
