"""Magnitudes in buckets: what is coded of a coefficient, what stands for it in later sums.

References
----------
`docs/format.md` §10.1
"""

import numpy as np

from tinc_codec.entropy.pyramid import BLOCK_EDGE
from tinc_codec.kernels import helper, kernel

MAX_MAGNITUDE = (1 << 24) - 1
_EXACT = 8
_PARTS_PER_OCTAVE = 4
_LARGEST_REPRESENTED = 1 << 15


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


def _bucket_by_representative() -> np.ndarray:
    buckets = np.zeros(1 << 16, dtype=np.uint8)
    buckets[REPRESENTED] = np.arange(N_BUCKETS)
    return buckets


REPRESENTED_BUCKET = _bucket_by_representative()
"""Bucket by what stands for it: uint8."""


def buckets_of(symbols: np.ndarray) -> np.ndarray:
    """Return the buckets of signed symbols, int32 of the same shape."""
    found = np.searchsorted(BUCKET_BASE, np.abs(symbols), side="right") - 1
    return found.astype(np.int32)


@helper
def bucket_of(magnitude):  # type: ignore[no-untyped-def]
    """Return the bucket of a magnitude."""
    if magnitude < _EXACT:
        return magnitude
    exponent = 3
    while magnitude >> (exponent + 1):
        exponent += 1
    return _EXACT + (exponent - 3) * _PARTS_PER_OCTAVE + ((magnitude >> (exponent - 2)) & 3)


@helper
def nonzero_places(row, places):  # type: ignore[no-untyped-def]
    """List where a row of integers is not 0; return at how many places.

    `places`, int64, has room for one more than the row has.
    """
    any_bit = 0
    for x in range(len(row)):
        any_bit |= row[x]
    n = 0
    if any_bit:
        for x in range(len(row)):
            # Written anyway: a branch that nobody can foresee costs more.
            places[np.uint64(n)] = x
            n += row[x] != 0
    return n


@kernel
def represent_band(volume, begin, shape, magnitudes, flags):  # type: ignore[no-untyped-def]
    """Write what stands for a band's symbols, and 1 where a block holds any, into padded arrays.

    Parameters
    ----------
    volume : ndarray of int32
        Symbols (z, y, x), in C order.
    begin, shape : tuple of int
        Where the band lies in it.
    magnitudes, flags : ndarray of uint16
        0 so far.
    """
    places = np.empty(shape[2] + 1, np.int64)
    for z in range(shape[0]):
        for y in range(shape[1]):
            symbols = volume[begin[0] + z, begin[1] + y, begin[2] : begin[2] + shape[2]]
            out = magnitudes[z + 1, y + 1, 1:]
            row = flags[1 + z // BLOCK_EDGE, 1 + y // BLOCK_EDGE, 1:]
            for i in range(nonzero_places(symbols, places)):
                x = places[i]
                out[x] = REPRESENTED[bucket_of(abs(symbols[x]))]
                row[x // BLOCK_EDGE] = 1
