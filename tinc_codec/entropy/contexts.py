"""Contexts of wavelet coefficients: how large the next one is likely to be, in integers only.

A coefficient's context is a weighted sum of magnitudes already known, on a logarithmic scale:
the coarser level around its place, the bands of its own level that came before, and those
neighbours in its own band that an earlier phase coded. A phase holds the positions of one parity
per axis, so a phase can be coded at once. Blocks of 4 x 4 x 4 coefficients that hold nothing are
absent; which ones are is coded in the same way, from sums over blocks.

What comes from outside of the band is summed up once for all phases by `outer_sums`; a phase then
adds what its own band holds, block by block. Fields are padded by one on all sides and flat.

References
----------
`docs/format.md` §10.3 to §10.5
"""

import numpy as np
from llvmlite import ir  # type: ignore[import-untyped]
from numba import types
from numba.extending import intrinsic

from tinc_codec.entropy.feature_tables import N_CONTEXTS, PHASE_ORDER, WEIGHT_BITS
from tinc_codec.entropy.pyramid import BLOCK_EDGE
from tinc_codec.kernels import helper, kernel

_LEAST_EXPONENT = WEIGHT_BITS - 7
"""Sums below 2^-7 share the first context."""
PHASE_PARITIES = np.array(PHASE_ORDER, dtype=np.int64)


@intrinsic
def _leading_zeros(typing_context, value):  # type: ignore[no-untyped-def]
    """Count the leading zeros of an int64 that is not 0."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        return builder.ctlz(arguments[0], ir.Constant(ir.IntType(1), 1))

    return types.int64(types.int64), generate


@kernel(inline="always")
def context_of(total, shift):  # type: ignore[no-untyped-def]
    """Quantise a sum to quarters of an octave."""
    # The largest of those that share the first context has an index of 0 by the same formula.
    v = max(np.int64(total), (1 << _LEAST_EXPONENT) - 1)
    exponent = 63 - _leading_zeros(v)
    index = 1 + (exponent - _LEAST_EXPONENT) * 4 + ((v >> (exponent - 2)) & 3)
    return min(max(index + shift, 0), N_CONTEXTS - 1)


@kernel(inline="always")
def first_of_phase(blocks, index, parity, shape):  # type: ignore[no-untyped-def]
    """Return a block's first position of a parity, and how many (0 to 2) there are per axis."""
    z = np.int64(blocks[index, 0]) * BLOCK_EDGE + (parity >> 2)
    y = np.int64(blocks[index, 1]) * BLOCK_EDGE + ((parity >> 1) & 1)
    x = np.int64(blocks[index, 2]) * BLOCK_EDGE + (parity & 1)
    n_z = min((shape[0] - z + 1) >> 1, 2)
    n_y = min((shape[1] - y + 1) >> 1, 2)
    n_x = min((shape[2] - x + 1) >> 1, 2)
    return z, y, x, n_z, n_y, n_x


@kernel(inline="always")
def sums_of_phase(  # type: ignore[no-untyped-def]
    field, outer, place, step_z, step_y, step_x, taps, offsets, weights
):
    """Sum up what is known about up to eight positions of a block that share a parity.

    Parameters
    ----------
    field : ndarray of uint16
        The band's own.
    outer : ndarray of uint32
        From `outer_sums`.
    place : int
        Of the first position.
    step_z, step_y, step_x : int
        To the next one along each axis; 0 where the block has no other.
    taps, offsets, weights
        One phase of a `stencils.Stencil`.

    Returns
    -------
    tuple of eight int
        In C order.
    """
    # Unsigned, since the compiler else looks at each for a position counted from the end.
    a = np.uint64(step_x)
    b = np.uint64(step_y)
    c = np.uint64(step_y + step_x)
    d = np.uint64(step_z)
    e = np.uint64(step_z + step_x)
    f = np.uint64(step_z + step_y)
    g = np.uint64(step_z + step_y + step_x)
    at = np.uint64(place)
    s0, s1, s2, s3 = outer[at], outer[at + a], outer[at + b], outer[at + c]
    s4, s5, s6, s7 = outer[at + d], outer[at + e], outer[at + f], outer[at + g]
    for i in range(taps):
        at = np.uint64(place + offsets[i])
        weight = np.uint32(weights[i])
        s0 += weight * np.uint32(field[at])
        s1 += weight * np.uint32(field[at + a])
        s2 += weight * np.uint32(field[at + b])
        s3 += weight * np.uint32(field[at + c])
        s4 += weight * np.uint32(field[at + d])
        s5 += weight * np.uint32(field[at + e])
        s6 += weight * np.uint32(field[at + f])
        s7 += weight * np.uint32(field[at + g])
    return s0, s1, s2, s3, s4, s5, s6, s7


@kernel
def phase_contexts(  # type: ignore[no-untyped-def]
    field, outer, padded, blocks, shape, phase, taps, offsets, weights, shift, places, contexts,
    sums
):  # fmt: skip
    """Compute the contexts of one phase of a band.

    Parameters
    ----------
    field, outer : ndarray
        See `sums_of_phase`.
    padded : tuple of int
        Shape of both.
    blocks : ndarray of int32
        (number, 3): the blocks that are present.
    shape : tuple of int
        Of the band.
    phase : int
    taps, offsets, weights : ndarray of int64
        From `stencils.Stencil`.
    shift : int
        Added to every context.
    places, contexts : ndarray
        Receive index into `field` (int32) and context (uint8).
    sums : ndarray of uint32
        Receives the sums themselves where it is not empty.

    Returns
    -------
    int
        Number of positions.
    """
    n = 0
    width, plane = padded[2], padded[1] * padded[2]
    parity = PHASE_PARITIES[phase]
    for t in range(len(blocks)):
        z, y, x, n_z, n_y, n_x = first_of_phase(blocks, t, parity, shape)
        if n_z < 1 or n_y < 1 or n_x < 1:
            continue
        first = (z + 1) * plane + (y + 1) * width + x + 1
        step_z, step_y, step_x = 2 * (n_z - 1) * plane, 2 * (n_y - 1) * width, 2 * (n_x - 1)
        found = sums_of_phase(
            field, outer, first, step_z, step_y, step_x, taps[phase], offsets[phase],
            weights[phase],
        )  # fmt: skip
        for i in range(8):
            k_z, k_y, k_x = i >> 2, (i >> 1) & 1, i & 1
            if k_z < n_z and k_y < n_y and k_x < n_x:
                places[n] = first + k_z * step_z + k_y * step_y + k_x * step_x
                contexts[n] = context_of(np.uint32(found[i]), shift)
                if len(sums):
                    sums[n] = found[i]
                n += 1
    return n


@helper
def order_by_context(places, contexts, ordered, runs):  # type: ignore[no-untyped-def]
    """Sort places by context, keeping their order within each.

    Parameters
    ----------
    places : ndarray of int32
    contexts : ndarray of uint8
    ordered : ndarray of int32
        Receives the places.
    runs : ndarray of int64
        Shape (`N_CONTEXTS`, 2): receives (context, number of places) of those that occur.

    Returns
    -------
    int
        How many contexts occur.
    """
    begins = np.zeros(N_CONTEXTS, np.int64)
    for i in range(len(places)):
        begins[contexts[i]] += 1
    n_runs = 0
    begin = 0
    for context in range(N_CONTEXTS):
        count = begins[context]
        begins[context] = begin
        begin += count
        if count:
            runs[n_runs, 0] = context
            runs[n_runs, 1] = count
            n_runs += 1
    for i in range(len(places)):
        context = contexts[i]
        ordered[begins[context]] = places[i]
        begins[context] += 1
    return n_runs


@kernel
def ordered_phase(  # type: ignore[no-untyped-def]
    field, outer, padded, blocks, shape, phase, taps, offsets, weights, shift, places, contexts,
    ordered, runs
):  # fmt: skip
    """Do `phase_contexts` and `order_by_context`; the numbers of places and of contexts."""
    n = phase_contexts(
        field, outer, padded, blocks, shape, phase, taps, offsets, weights, shift, places, contexts,
        np.empty(0, np.uint32),
    )  # fmt: skip
    return n, order_by_context(places[:n], contexts[:n], ordered, runs)


@kernel
def ordered_symbols(  # type: ignore[no-untyped-def]
    field, outer, padded, blocks, shape, taps, offsets, weights, shift, places, contexts, ordered,
    symbol_of, symbols, runs
):  # fmt: skip
    """Do `ordered_phase` for all phases of a band whose field is whole, and look up its symbols.

    Parameters
    ----------
    symbol_of : ndarray
        Symbol by what stands for it in `field`.
    symbols : ndarray of int32
        Receives them in coding order.
    runs : ndarray of int64
        As in `order_by_context`, for all phases.

    Returns
    -------
    int
        How many runs there are.
    """
    start = 0
    n_runs = 0
    for phase in range(8):
        n, more = ordered_phase(
            field, outer, padded, blocks, shape, phase, taps, offsets, weights, shift, places,
            contexts, ordered, runs[n_runs:],
        )  # fmt: skip
        for i in range(n):
            symbols[start + i] = symbol_of[field[ordered[i]]]
        start += n
        n_runs += more
    return n_runs


@kernel
def place_symbols(symbols, places, value_of, field):  # type: ignore[no-untyped-def]
    """Write what stands for symbols to their places."""
    for i in range(len(places)):
        field[places[i]] = value_of[symbols[i]]
