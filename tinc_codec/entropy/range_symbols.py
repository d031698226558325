"""Symbols <-> words of a range coder, compiled: for loops that cannot stop for calls of Python.

constriction's range coder (`constriction.stream.queue`) writes and reads the same words from the
same tables; whoever writes long runs of one table uses it. A band that is decoded while its
contexts follow from what was decoded just before has short runs, and tiles have shorter ones. Long
runs are read here, too: a voxel of a tree waits for all weights.

References
----------
`docs/format.md` §8.2 to §8.4, §10.9
"""

from functools import cache
from typing import NamedTuple

import numpy as np

from tinc_codec.entropy.feature_tables import load_tables
from tinc_codec.kernels import helper, kernel

OFFSET, RANGE, POSITION, DIRECTION = range(4)
"""Of a coder's state, uint64: the offset into the range when decoding, the lower end of the range
when encoding; how large the range is; the next word; whether it encodes."""
ENCODING = 1
_TOTAL_BITS = 24
_GUIDE_BITS = 8
_RUN_GUIDE_BITS = 10
_LONGEST_SCAN = 8
"""Symbols among which one is found by looking at all; where there are more, they are halved."""
_FULL = np.uint64(2**64 - 1)
_LEAST_RANGE = np.uint64(2**32)
_WORD_BITS = np.uint64(32)


class SymbolTables(NamedTuple):
    """Tables of some contexts.

    Attributes
    ----------
    cumulative : ndarray of uint32
        Shape (context, symbol + 1): where each symbol's share of 2^24 begins.
    guide : ndarray of uint8
        Shape (context, 2^8): the last symbol that begins at or below each 2^16.
    """

    cumulative: np.ndarray
    guide: np.ndarray


def _tables(probabilities: np.ndarray) -> SymbolTables:
    cumulative = np.array([_cumulative(row) for row in probabilities])
    guide = np.array([_guide(row, _GUIDE_BITS)[:-1] for row in cumulative])
    return SymbolTables(cumulative, guide.astype(np.uint8))


@kernel
def _cumulative(probabilities):  # type: ignore[no-untyped-def]
    """Say where each symbol's share of 2^24 begins and the last one ends, uint32 (symbol + 1)."""
    n = len(probabilities)
    sums, cumulative = np.zeros(n + 1), np.empty(n + 1, np.uint32)
    # One rounded addition after the other, as the format says.
    for symbol in range(n):
        sums[symbol + 1] = sums[symbol] + probabilities[symbol]
    scale = ((1 << _TOTAL_BITS) - n) / sums[n]
    for symbol in range(n):
        cumulative[symbol] = np.int64(np.floor(sums[symbol] * scale)) + symbol
    cumulative[n] = 1 << _TOTAL_BITS
    return cumulative


@kernel
def _guide(cumulative, bits):  # type: ignore[no-untyped-def]
    """Give the last symbol that begins at or below each 2^-bits of all, int32 (2^bits + 1)."""
    guide = np.empty((1 << bits) + 1, np.int32)
    mark = 0
    for symbol in range(len(cumulative) - 1):
        end = np.int64(cumulative[symbol + 1]) - 1
        while mark <= end >> (_TOTAL_BITS - bits):
            guide[mark] = symbol
            mark += 1
    guide[mark] = len(cumulative) - 2
    return guide


@cache
def bucket_tables() -> SymbolTables:
    """Return the tables of the buckets in all contexts."""
    return _tables(load_tables().buckets)


@cache
def flag_tables() -> SymbolTables:
    """Return the tables of a block's presence in all contexts."""
    present = load_tables().present
    return _tables(np.stack([1 - present, present], axis=1))


def new_state() -> np.ndarray:
    """Make room for a coder's state, which `start_decoding` or `start_encoding` fills."""
    return np.empty(DIRECTION + 1, np.uint64)


@kernel
def start_decoding(state, words):  # type: ignore[no-untyped-def]
    """Take the first two words; uint32, those past the end are 0."""
    state[OFFSET] = _word(words, 0) << _WORD_BITS | _word(words, 1)
    state[RANGE] = _FULL
    state[POSITION] = 2
    state[DIRECTION] = 0


@kernel
def has_words_left(state, words):  # type: ignore[no-untyped-def]
    """Say whether some words told nothing, now that the last symbol is decoded."""
    needed = np.uint64(0) if state[RANGE] == _FULL else state[POSITION]
    return needed < np.uint64(words.size)


@kernel(inline="always")
def _word(words, position):  # type: ignore[no-untyped-def]
    return np.uint64(words[position]) if position < words.size else np.uint64(0)


@kernel
def decode_places(state, words, tables, places, contexts, value_of, field):  # type: ignore[no-untyped-def]
    """Decode the symbols of some places.

    Parameters
    ----------
    state : ndarray of uint64
    words : ndarray of uint32
    tables : SymbolTables
    places : ndarray of int32
    contexts : ndarray of uint8
        Per place.
    value_of : ndarray of uint16
        What stands for a symbol in `field`.
    field : ndarray of uint16

    Returns
    -------
    bool
        False where the words are no code of anything.
    """
    cumulative, guide = tables.cumulative, tables.guide
    offset, size = state[OFFSET], state[RANGE]
    position = np.int64(state[POSITION])
    for i in range(len(places)):
        context = np.uint64(contexts[i])
        unit = size >> np.uint64(_TOTAL_BITS)
        quantile = offset // unit
        if quantile >> np.uint64(_TOTAL_BITS):
            return False
        symbol = np.uint64(guide[context, quantile >> np.uint64(_TOTAL_BITS - _GUIDE_BITS)])
        while np.uint64(cumulative[context, symbol + np.uint64(1)]) <= quantile:
            symbol += np.uint64(1)
        begin = np.uint64(cumulative[context, symbol])
        offset -= unit * begin
        size = unit * (np.uint64(cumulative[context, symbol + np.uint64(1)]) - begin)
        if size < _LEAST_RANGE:
            size <<= _WORD_BITS
            offset = offset << _WORD_BITS | _word(words, position)
            position += 1
        field[places[i]] = value_of[symbol]
    state[OFFSET], state[RANGE], state[POSITION] = offset, size, position
    return True


@kernel
def decode_run(state, words, probabilities, symbols):  # type: ignore[no-untyped-def]
    """Decode symbols of one distribution.

    Parameters
    ----------
    state : ndarray of uint64
    words : ndarray of uint32
    probabilities : ndarray of float64
        Per symbol, above 0; not necessarily of sum 1.
    symbols : ndarray of int32
        Filled.

    Returns
    -------
    bool
        False where the words are no code of anything.
    """
    cumulative = _cumulative(probabilities)
    guide = _guide(cumulative, np.int64(_RUN_GUIDE_BITS))
    offset, size = state[OFFSET], state[RANGE]
    position = np.int64(state[POSITION])
    for i in range(len(symbols)):
        unit = size >> np.uint64(_TOTAL_BITS)
        quantile = offset // unit
        if quantile >> np.uint64(_TOTAL_BITS):
            return False
        mark = np.int64(quantile >> np.uint64(_TOTAL_BITS - _RUN_GUIDE_BITS))
        symbol, beyond = np.int64(guide[mark]), np.int64(guide[mark + 1]) + 1
        while beyond - symbol > _LONGEST_SCAN:
            middle = (symbol + beyond) >> 1
            if np.uint64(cumulative[middle]) <= quantile:
                symbol = middle
            else:
                beyond = middle
        while np.uint64(cumulative[symbol + 1]) <= quantile:
            symbol += 1
        begin = np.uint64(cumulative[symbol])
        offset -= unit * begin
        size = unit * (np.uint64(cumulative[symbol + 1]) - begin)
        if size < _LEAST_RANGE:
            size <<= _WORD_BITS
            offset = offset << _WORD_BITS | _word(words, position)
            position += 1
        symbols[i] = symbol
    state[OFFSET], state[RANGE], state[POSITION] = offset, size, position
    return True


@kernel
def decode_bits(state, words, n):  # type: ignore[no-untyped-def]
    """Decode an integer of n bits, at most 24; -1 where the words are no code of anything."""
    unit = state[RANGE] >> np.uint64(n)
    value = state[OFFSET] // unit
    if value >> np.uint64(n):
        return np.int64(-1)
    state[OFFSET] -= unit * value
    state[RANGE] = unit
    if unit < _LEAST_RANGE:
        state[RANGE] = unit << _WORD_BITS
        state[OFFSET] = state[OFFSET] << _WORD_BITS | _word(words, np.int64(state[POSITION]))
        state[POSITION] += np.uint64(1)
    return np.int64(value)


@kernel
def start_encoding(state):  # type: ignore[no-untyped-def]
    """Begin a code."""
    state[OFFSET], state[RANGE], state[POSITION] = 0, _FULL, 0
    state[DIRECTION] = ENCODING


@kernel
def encode_places(state, words, tables, places, contexts, symbol_of, field):  # type: ignore[no-untyped-def]
    """Code what `decode_places` decodes; `symbol_of` is the symbol of what stands in `field`."""
    for i in range(len(places)):
        context, symbol = contexts[i], np.int64(symbol_of[field[places[i]]])
        begin = np.uint64(tables.cumulative[context, symbol])
        share = np.uint64(tables.cumulative[context, symbol + 1]) - begin
        unit = state[RANGE] >> np.uint64(_TOTAL_BITS)
        _narrow(state, words, unit * begin, unit * share)


@kernel
def encode_bits(state, words, n, value):  # type: ignore[no-untyped-def]
    """Code what `decode_bits` decodes."""
    unit = state[RANGE] >> np.uint64(n)
    _narrow(state, words, unit * np.uint64(value), unit)


@helper
def _narrow(state, words, begin, size):  # type: ignore[no-untyped-def]
    """Go on with a part of the range; `words`, uint32, has room for one more."""
    _raise(state, words, begin)
    state[RANGE] = size
    if size < _LEAST_RANGE:
        words[state[POSITION]] = state[OFFSET] >> _WORD_BITS
        state[POSITION] += np.uint64(1)
        state[OFFSET] <<= _WORD_BITS
        state[RANGE] <<= _WORD_BITS


@helper
def _raise(state, words, begin):  # type: ignore[no-untyped-def]
    """Raise the lower end of the range, and what was written before where it overflows."""
    before = state[OFFSET]
    state[OFFSET] = before + begin
    if state[OFFSET] < before:
        position = np.int64(state[POSITION]) - 1
        while words[position] == np.uint32(2**32 - 1):
            words[position] = 0
            position -= 1
        words[position] += np.uint32(1)


@kernel
def finish_encoding(state, words):  # type: ignore[no-untyped-def]
    """Write the number of the range that ends in the most zero bits; return how many words."""
    bits = np.uint64(63)
    while True:
        step = np.uint64(1) << bits
        beyond = (np.uint64(0) - state[OFFSET]) & (step - np.uint64(1))
        if beyond < state[RANGE]:
            break
        bits -= np.uint64(1)
    _raise(state, words, beyond)
    position = np.int64(state[POSITION])
    words[position] = state[OFFSET] >> _WORD_BITS
    words[position + 1] = state[OFFSET] & np.uint64(2**32 - 1)
    return position + 2
