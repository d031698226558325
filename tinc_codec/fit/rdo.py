"""Wavelet coefficients -> symbols, by rate-distortion: what is not worth its bits becomes 0.

The symbols are chosen in the order in which they are coded, each in its true context, and a block
is dropped where all it holds is not worth it.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache

import numpy as np
from numba import njit

from tinc_codec.entropy.bands import (
    BandCoder,
    Level,
    LevelState,
    Phases,
    inside,
    low_pass_slices,
)
from tinc_codec.entropy.contexts import (
    BLOCK_EDGE,
    BUCKET_BITS,
    REPRESENTED,
    bucket_of,
    context_of,
)
from tinc_codec.entropy.feature_tables import PHASE_ORDER, load_tables

_COMPILE = {"nogil": True, "cache": True, "error_model": "numpy"}

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
        self._coefficients = coefficients
        self._threads, self._pool = threads, pool
        self._flag_bits = 0.0
        self._inverse_step = np.float32(1.0 / step)
        self._lmbda = np.float32(lmbda)
        self.symbols = np.zeros(coefficients.shape, dtype=np.int32)
        self.size_bits = 0.0
        self._gains = np.empty(0, dtype=np.float32)
        self._bits = np.empty(0, dtype=np.float32)

    def begin_band(self, state: LevelState, mask: int) -> None:
        level = state.level
        blocks = level.blocks(mask)
        flags = np.ones(blocks, dtype=np.uint16)
        if level.is_blocked(mask):
            band = self._coefficients[level.band_slices(mask)]
            flags[...] = 0
            _worth_a_look(band, np.float32(_LEAST_KEPT / self._inverse_step), flags)
            state.block_sums[mask - 1][inside(blocks)] = flags
        number = int(np.count_nonzero(flags))
        self._gains = np.zeros(number, dtype=np.float32)
        self._bits = np.zeros(number, dtype=np.float32)

    def code_flags(self, phases: Phases, phase: int) -> None:
        if phase == 0:
            self._flag_bits = 0.0
        places, contexts = phases.contexts(phase)
        self._flag_bits += float(flag_bits()[contexts, phases.flat[places]].sum())

    def code_coefficients(self, state: LevelState, mask: int, phases: Phases, phase: int) -> None:
        slices = state.level.band_slices(mask)
        arguments = phases.arguments(phase)
        blocks = phases.blocks

        def work(first: int, last: int) -> None:
            part = slice(first, last)
            _choose_phase(
                *arguments[:6], blocks[part], *arguments[7:], self._coefficients[slices],
                self.symbols[slices], self._inverse_step, self._lmbda, coefficient_bits(),
                self._gains[part], self._bits[part],
            )  # fmt: skip

        self._share(work, len(blocks))
        if phase < len(PHASE_ORDER) - 1:
            return
        if state.level.is_blocked(mask):
            least = self._lmbda * np.float32(_FLAG_BITS)
            _drop_blocks(
                state.magnitudes[mask - 1], self.symbols[slices], blocks, self._gains, self._bits,
                least,
            )  # fmt: skip
            self._recount_flags(state, mask, blocks[self._gains <= least])
        self.size_bits += float(self._bits.sum())

    def _recount_flags(self, state: LevelState, mask: int, dropped: np.ndarray) -> None:
        flags = state.block_sums[mask - 1]
        flags[tuple(dropped.T + 1)] = 0
        phases = state.flag_phases(mask)
        for phase in range(len(PHASE_ORDER)):
            self.code_flags(phases, phase)
        self.size_bits += self._flag_bits

    def _share(self, work: Callable[[int, int], None], count: int) -> None:
        """Call work(first, last) so that range(count) is covered, on all threads if it is long."""
        shares = min(self._threads, count // _BLOCKS_PER_THREAD)
        if self._pool is None or shares < 2:
            work(0, count)
            return
        bounds = [count * i // shares for i in range(shares + 1)]
        list(self._pool.map(work, bounds[:-1], bounds[1:]))


_BLOCKS_PER_THREAD = 500
_FLAG_BITS = 3.0
"""What a block's presence costs beyond its absence, about."""


@njit(**_COMPILE)
def _worth_a_look(band, threshold, flags):  # type: ignore[no-untyped-def]
    """Set the flags of blocks with a coefficient of at least the threshold."""
    for z in range(band.shape[0]):
        for y in range(band.shape[1]):
            for x in range(band.shape[2]):
                if abs(band[z, y, x]) >= threshold:
                    flags[z // BLOCK_EDGE, y // BLOCK_EDGE, x // BLOCK_EDGE] = 1


@njit(**_COMPILE)
def _choose_phase(  # type: ignore[no-untyped-def]
    flat, start, strides, coarse, coarse_weights, shifts, blocks, edge, shape, parity, offsets,
    weights, shift, band, symbols, inverse_step, lmbda, bits, gains, spent
):  # fmt: skip
    """Choose the symbols of one phase; the walk is that of `contexts.phase_contexts`.

    `gains` [block] receives distortion saved, in squared steps, minus lmbda times bits; `spent`
    [block] the bits.
    """
    taps = len(offsets)
    bias, w0, w1, w2, w3 = coarse_weights
    for t in range(len(blocks)):
        z0, y0, x0 = blocks[t, 0] * edge, blocks[t, 1] * edge, blocks[t, 2] * edge
        z1, y1, x1 = min(z0 + edge, shape[0]), min(y0 + edge, shape[1]), min(x0 + edge, shape[2])
        first_z = z0 + ((parity >> 2) ^ z0) % 2
        first_y = y0 + ((parity >> 1) ^ y0) % 2
        first_x = x0 + (parity ^ x0) % 2
        gain = np.float32(0)
        used = np.float32(0)
        for z in range(first_z, z1, 2):
            for y in range(first_y, y1, 2):
                row = start + (z + 1) * strides[0] + (y + 1) * strides[1] + 1
                for x in range(first_x, x1, 2):
                    place = row + x
                    above = coarse[z >> shifts[0], y >> shifts[1], x >> shifts[2]]
                    total = bias + w0 * above[0] + w1 * above[1] + w2 * above[2] + w3 * above[3]
                    for i in range(taps):
                        total += weights[i] * np.int32(flat[place + offsets[i]])
                    cost = bits[context_of(total, shift)]
                    value = band[z, y, x] * inverse_step
                    size = abs(value)
                    nearest = np.int32(size + np.float32(0.5))
                    best = np.int32(0)
                    best_bits = cost[0]
                    best_error = size * size
                    least = best_error + lmbda * best_bits
                    candidate = nearest
                    while candidate > 0 and candidate >= nearest - 1:
                        error = size - candidate
                        error *= error
                        rate = cost[bucket_of(candidate)]
                        if error + lmbda * rate < least:
                            least = error + lmbda * rate
                            best, best_bits, best_error = candidate, rate, error
                        candidate -= 1
                    gain += size * size - least
                    used += best_bits
                    if best:
                        symbols[z, y, x] = -best if value < 0 else best
                        flat[place] = REPRESENTED[bucket_of(best)]
                    else:
                        symbols[z, y, x] = 0
                        flat[place] = 0
        gains[t] += gain
        spent[t] += used


@njit(**_COMPILE)
def _drop_blocks(magnitudes, symbols, blocks, gains, spent, least):  # type: ignore[no-untyped-def]
    """Empty the blocks that gain less than their presence costs."""
    for t in range(len(blocks)):
        if gains[t] > least:
            continue
        spent[t] = 0
        z0, y0, x0 = blocks[t, 0] * BLOCK_EDGE, blocks[t, 1] * BLOCK_EDGE, blocks[t, 2] * BLOCK_EDGE
        for z in range(z0, min(z0 + BLOCK_EDGE, symbols.shape[0])):
            for y in range(y0, min(y0 + BLOCK_EDGE, symbols.shape[1])):
                for x in range(x0, min(x0 + BLOCK_EDGE, symbols.shape[2])):
                    symbols[z, y, x] = 0
                    magnitudes[z + 1, y + 1, x + 1] = 0
