"""Contexts of wavelet coefficients: how large the next one is likely to be, in integers only.

A coefficient's context is a weighted sum of magnitudes already known, on a logarithmic scale:
the coarser level around its place, the bands of its own level that came before, and those
neighbours in its own band that an earlier phase coded. A phase holds the positions of one parity
per axis, so a phase can be coded at once. Blocks of 4 x 4 x 4 coefficients that hold nothing are
absent; which ones are is coded in the same way, from sums over blocks.

References
----------
`docs/format.md` §10
"""

import numpy as np
from numba import njit

from tinc_codec.entropy.feature_tables import (
    AROUND,
    INSIDE,
    N_CONTEXTS,
    OWN,
    PHASE_ORDER,
    WEIGHT_BITS,
)

_COMPILE = {"nogil": True, "cache": True, "error_model": "numpy"}

MASKS = (4, 2, 1, 6, 5, 3, 7)
"""Bands in the order in which they are coded: axes of high frequency, 4 z, 2 y, 1 x."""
BANDS = len(MASKS)
BLOCK_EDGE = 4
MAX_MAGNITUDE = (1 << 24) - 1
_EXACT = 8
_PARTS_PER_OCTAVE = 4
_LARGEST_REPRESENTED = 1 << 15
_LEAST_EXPONENT = WEIGHT_BITS - 7
"""Sums below 2^-7 share the first context."""


def _bucket_bases() -> np.ndarray:
    octaves = [
        (1 << exponent) + part * (1 << (exponent - 2))
        for exponent in range(3, 24)
        for part in range(_PARTS_PER_OCTAVE)
    ]
    return np.array([*range(_EXACT), *octaves, MAX_MAGNITUDE + 1], dtype=np.int64)


BUCKET_BASE = _bucket_bases()
"""Smallest magnitude of each bucket, and one beyond the last."""
N_BUCKETS = len(BUCKET_BASE) - 1
BUCKET_BITS = np.log2(np.diff(BUCKET_BASE)).astype(np.int64)
"""Bits that say which magnitude of its bucket a coefficient has."""


def _represented() -> np.ndarray:
    bases = BUCKET_BASE[:-1]
    large = bases >= _LARGEST_REPRESENTED
    # Strictly increasing, so that the number tells the bucket.
    values = np.where(large, _LARGEST_REPRESENTED + np.cumsum(large) - 1, bases)
    return values.astype(np.uint16)


REPRESENTED = _represented()
"""What stands for a bucket's magnitudes in the sums: uint16, strictly increasing."""


def _offsets(pattern: int) -> list[tuple[int, int, int]]:
    """List the neighbours that differ on exactly the axes of a pattern (4 z, 2 y, 1 x)."""
    ranges = [(-1, 1) if pattern & bit else (0,) for bit in (4, 2, 1)]
    return [(z, y, x) for z in ranges[0] for y in ranges[1] for x in ranges[2]]


def stencil(
    weights: np.ndarray, mask: int, phase: int, padded: tuple[int, int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Lay out the sum over bands of one level as offsets into memory.

    Parameters
    ----------
    weights : ndarray of int
        `feature_tables` row for the mask and the phase.
    mask : int
        The band's axes of high frequency: 4 z, 2 y, 1 x.
    phase : int
        Index into `PHASE_ORDER`.
    padded : tuple of int
        Shape of one band's array, with a margin of one on all sides.

    Returns
    -------
    offsets, weights : ndarray of int32
        Relative to the coefficient's own place, bands following each other in memory.
    """
    strides = np.array([padded[1] * padded[2], padded[2], 1])
    size = int(np.prod(padded))
    around = [offset for pattern in (4, 2, 1) for offset in _offsets(pattern)]
    terms: list[tuple[int, int]] = []
    for other in MASKS[: MASKS.index(mask)]:
        start = (other - mask) * size
        if weights[OWN + other - 1]:
            terms.append((start, weights[OWN + other - 1]))
        if weights[AROUND + other - 1]:
            terms += [(start + int(strides @ o), weights[AROUND + other - 1]) for o in around]
    known = PHASE_ORDER[:phase]
    for pattern in range(1, BANDS + 1):
        if PHASE_ORDER[phase] ^ pattern in known and weights[INSIDE + pattern - 1]:
            weight = weights[INSIDE + pattern - 1]
            terms += [(int(strides @ o), weight) for o in _offsets(pattern)]
    table = np.array(terms, dtype=np.int32).reshape(-1, 2)
    return np.ascontiguousarray(table[:, 0]), np.ascontiguousarray(table[:, 1])


@njit(inline="always", **_COMPILE)
def context_of(total, shift):  # type: ignore[no-untyped-def]
    """Quantise a sum to quarters of an octave."""
    index = 0
    if total >= 1 << _LEAST_EXPONENT:
        v = total
        exponent = 0
        if v >= 1 << 16:
            v >>= 16
            exponent += 16
        if v >= 1 << 8:
            v >>= 8
            exponent += 8
        if v >= 1 << 4:
            v >>= 4
            exponent += 4
        if v >= 1 << 2:
            v >>= 2
            exponent += 2
        if v >= 2:
            exponent += 1
        index = 1 + (exponent - _LEAST_EXPONENT) * 4 + ((total >> (exponent - 2)) & 3)
    return min(max(index + shift, 0), N_CONTEXTS - 1)


@njit(**_COMPILE)
def coarse_features(own, total, out):  # type: ignore[no-untyped-def]
    """Collect what the coarser level says about the coefficients below each of its places.

    Parameters
    ----------
    own, total : ndarray of uint16
        Padded magnitudes of the same band and of all bands of the coarser level.
    out : ndarray of int32
        Shape without the padding, and 4: own, around own, total, around total.
    """
    for z in range(out.shape[0]):
        for y in range(out.shape[1]):
            for x in range(out.shape[2]):
                i, j, k = z + 1, y + 1, x + 1
                out[z, y, x, 0] = own[i, j, k]
                out[z, y, x, 1] = (
                    np.int32(own[i - 1, j, k]) + own[i + 1, j, k] + own[i, j - 1, k]
                    + own[i, j + 1, k] + own[i, j, k - 1] + own[i, j, k + 1]
                )  # fmt: skip
                out[z, y, x, 2] = total[i, j, k]
                out[z, y, x, 3] = (
                    np.int32(total[i - 1, j, k]) + total[i + 1, j, k] + total[i, j - 1, k]
                    + total[i, j + 1, k] + total[i, j, k - 1] + total[i, j, k + 1]
                )  # fmt: skip


@njit(**_COMPILE)
def block_sums(magnitudes, edges, out):  # type: ignore[no-untyped-def]
    """Add up a band's padded uint16 magnitudes per block, limited to uint16, padded likewise."""
    out[:] = 0
    for z in range(magnitudes.shape[0] - 2):
        for y in range(magnitudes.shape[1] - 2):
            j = 1 + y // edges[1]
            i = 1 + z // edges[0]
            for x in range(magnitudes.shape[2] - 2):
                v = magnitudes[z + 1, y + 1, x + 1]
                if v:
                    k = 1 + x // edges[2]
                    out[i, j, k] = min(np.int32(out[i, j, k]) + v, 65535)


@njit(**_COMPILE)
def present_block_sums(magnitudes, blocks, out):  # type: ignore[no-untyped-def]
    """As `block_sums` for blocks of `BLOCK_EDGE`, where all but `blocks` hold nothing."""
    out[:] = 0
    depth, height, width = magnitudes.shape
    for t in range(len(blocks)):
        i, j, k = blocks[t]
        total = np.int32(0)
        for z in range(1 + i * BLOCK_EDGE, min(1 + (i + 1) * BLOCK_EDGE, depth - 1)):
            for y in range(1 + j * BLOCK_EDGE, min(1 + (j + 1) * BLOCK_EDGE, height - 1)):
                for x in range(1 + k * BLOCK_EDGE, min(1 + (k + 1) * BLOCK_EDGE, width - 1)):
                    total += magnitudes[z, y, x]
        out[i + 1, j + 1, k + 1] = min(total, 65535)


@njit(**_COMPILE)
def total_of_bands(bands, out):  # type: ignore[no-untyped-def]
    """Add up bands of uint16 [band, place], limited to uint16."""
    for place in range(bands.shape[1]):
        total = np.int32(0)
        for band in range(bands.shape[0]):
            total += bands[band, place]
        out[place] = min(total, 65535)


@njit(**_COMPILE)
def bucket_of(magnitude):  # type: ignore[no-untyped-def]
    """Return the bucket of a magnitude."""
    if magnitude < _EXACT:
        return magnitude
    exponent = 3
    while magnitude >> (exponent + 1):
        exponent += 1
    return _EXACT + (exponent - 3) * _PARTS_PER_OCTAVE + ((magnitude >> (exponent - 2)) & 3)


@njit(**_COMPILE)
def represent_band(symbols, magnitudes, flags):  # type: ignore[no-untyped-def]
    """Write what represents a band's symbols, and 1 where a block holds any, into padded arrays."""
    for z in range(symbols.shape[0]):
        for y in range(symbols.shape[1]):
            for x in range(symbols.shape[2]):
                size = abs(symbols[z, y, x])
                if size:
                    magnitudes[z + 1, y + 1, x + 1] = REPRESENTED[bucket_of(size)]
                    flags[1 + z // BLOCK_EDGE, 1 + y // BLOCK_EDGE, 1 + x // BLOCK_EDGE] = 1


@njit(**_COMPILE)
def phase_contexts(  # type: ignore[no-untyped-def]
    flat, start, strides, coarse, coarse_weights, shifts, blocks, edge, shape, parity, offsets,
    weights, shift, places, contexts, sums
):  # fmt: skip
    """Compute the contexts of one phase of a band.

    Parameters
    ----------
    flat : ndarray of uint16
        All bands of the level, padded, one after the other.
    start, strides : int, tuple of int
        Where the band begins in `flat`, and its strides.
    coarse : ndarray of int32
        From `coarse_features`; position p of the band stands at p >> shifts.
    coarse_weights : ndarray of int32
        Bias, and four for what `coarse` holds.
    blocks : ndarray of int32
        (number, 3): the blocks that are present.
    edge : int
        Positions per block and axis.
    shape : tuple of int
        Of the band.
    parity : int
        Bits 4, 2, 1: which parity on z, y, x.
    offsets, weights : ndarray of int32
        From `stencil`.
    shift : int
        Added to every context.
    places, contexts : ndarray
        Receive index into `flat` (int32) and context (uint8).
    sums : ndarray of int32
        Receives the sums themselves where it is not empty.

    Returns
    -------
    int
        Number of positions.
    """
    n = 0
    taps = len(offsets)
    bias, w0, w1, w2, w3 = coarse_weights
    for t in range(len(blocks)):
        z0, y0, x0 = blocks[t, 0] * edge, blocks[t, 1] * edge, blocks[t, 2] * edge
        z1, y1, x1 = min(z0 + edge, shape[0]), min(y0 + edge, shape[1]), min(x0 + edge, shape[2])
        first_z = z0 + ((parity >> 2) ^ z0) % 2
        first_y = y0 + ((parity >> 1) ^ y0) % 2
        first_x = x0 + (parity ^ x0) % 2
        for z in range(first_z, z1, 2):
            for y in range(first_y, y1, 2):
                row = start + (z + 1) * strides[0] + (y + 1) * strides[1] + 1
                for x in range(first_x, x1, 2):
                    place = row + x
                    above = coarse[z >> shifts[0], y >> shifts[1], x >> shifts[2]]
                    total = bias + w0 * above[0] + w1 * above[1] + w2 * above[2] + w3 * above[3]
                    for i in range(taps):
                        total += weights[i] * np.int32(flat[place + offsets[i]])
                    places[n] = place
                    contexts[n] = context_of(total, shift)
                    if len(sums):
                        sums[n] = total
                    n += 1
    return n


@njit(**_COMPILE)
def order_by_context(contexts, n, order, counts):  # type: ignore[no-untyped-def]
    """Sort positions by context, keeping their order within each."""
    counts[:] = 0
    for i in range(n):
        counts[contexts[i]] += 1
    begins = np.zeros(len(counts), np.int64)
    for c in range(1, len(counts)):
        begins[c] = begins[c - 1] + counts[c - 1]
    for i in range(n):
        c = contexts[i]
        order[begins[c]] = i
        begins[c] += 1
