"""A range coder of adaptive binary decisions: counts, probabilities, bytes.

Integers only, so that every machine reads the same. The mask, the corrections and the lattice are
coded with it.

References
----------
`docs/format.md` §5
"""

import numpy as np

from tinc_codec.kernels import copy_row, helper

_MAX_COUNT = 1 << 20
_MASK_32 = 0xFFFFFFFF
_TOP = 1 << 24
_EVEN = 1 << 15
_SLACK_BYTES = 16

# State of the coder: low or code, range, byte in wait, bytes waiting, position.
LOW, RANGE, _CACHE, PENDING, POSITION = range(5)
# Virtual zero bytes that a decoder may read past the end, since an encoder leaves them out.
TAIL_BYTES = 4


@helper
def estimate_bit(counts, context):  # type: ignore[no-untyped-def]
    """Estimate the probability of a one, 1 to 65535 of 65536, from counts of zeros and ones."""
    zeros, ones = np.int64(counts[context, 0]), np.int64(counts[context, 1])
    return max(1, ((2 * ones + 1) << 16) // (2 * (zeros + ones) + 2))


@helper
def count_bit(counts, context, bit):  # type: ignore[no-untyped-def]
    """Count a decision; both counts are halved before one grows too large."""
    counts[context, bit] += 1
    if counts[context, bit] >= _MAX_COUNT:
        counts[context, 0] >>= 1
        counts[context, 1] >>= 1


@helper
def shift_low(state, out):  # type: ignore[no-untyped-def]
    """Move the top byte out, held back as long as a carry may still change it."""
    low = state[LOW]
    if low < 0xFF000000 or low > _MASK_32:
        carry = low >> 32
        position = state[POSITION]
        byte = state[_CACHE]
        for _ in range(state[PENDING]):
            # The first byte is always zero and is not part of the output.
            if position >= 0:
                out[position] = (byte + carry) & 0xFF
            position += 1
            byte = 0xFF
        state[POSITION] = position
        state[PENDING] = 0
        state[_CACHE] = (low >> 24) & 0xFF
    state[PENDING] += 1
    state[LOW] = (low & 0x00FFFFFF) << 8


@helper
def encode_bit(state, out, probability, bit):  # type: ignore[no-untyped-def]
    """Code a decision; the probability of a 1 is in units of 2^-16."""
    # The rarer value gets the rounded-down share, so that the common one costs no more than due.
    rare = probability <= 1 << 15
    share = probability if rare else (1 << 16) - probability
    bound = (state[RANGE] >> 16) * share
    if (bit == 1) == rare:
        state[RANGE] = bound
    else:
        state[LOW] += bound
        state[RANGE] -= bound
    while state[RANGE] < _TOP:
        state[RANGE] <<= 8
        shift_low(state, out)


@helper
def decode_bit(state, payload, probability):  # type: ignore[no-untyped-def]
    """Decode what `encode_bit` coded."""
    rare = probability <= 1 << 15
    share = probability if rare else (1 << 16) - probability
    bound = (state[RANGE] >> 16) * share
    if state[LOW] < bound:
        state[RANGE] = bound
        bit = 1 if rare else 0
    else:
        state[LOW] -= bound
        state[RANGE] -= bound
        bit = 0 if rare else 1
    while state[RANGE] < _TOP:
        state[RANGE] <<= 8
        state[LOW] = (state[LOW] << 8) | next_byte(state, payload)
    return bit


@helper
def next_byte(state, payload):  # type: ignore[no-untyped-def]
    """Take the next byte, 0 beyond the end."""
    position = state[POSITION]
    state[POSITION] += 1
    return np.int64(payload[position]) if position < payload.size else np.int64(0)


@helper
def with_room(state, out, n_bytes):  # type: ignore[no-untyped-def]
    """Give `out`, or a larger copy of it, with room for `n_bytes` more and the end."""
    needed = state[POSITION] + state[PENDING] + n_bytes + _SLACK_BYTES
    if needed <= out.size:
        return out
    grown = np.empty(2 * needed, np.uint8)
    copy_row(out, grown)
    return grown


@helper
def finish_code(state, out):  # type: ignore[no-untyped-def]
    """Write the end of a code, for which `out` has room; returns the number of all bytes."""
    # Of the numbers that the decoder would take alike, the one with the most trailing zeros.
    n_tail = TAIL_BYTES
    for n_bytes in range(TAIL_BYTES + 1):
        step = np.int64(1) << (32 - 8 * n_bytes)
        rounded = (state[LOW] + step - 1) // step * step
        if rounded < state[LOW] + state[RANGE]:
            state[LOW] = rounded
            n_tail = n_bytes
            break
    n_payload = state[POSITION] + state[PENDING] + n_tail
    for _ in range(TAIL_BYTES + 1):
        shift_low(state, out)
    return n_payload


@helper
def start_encoder():  # type: ignore[no-untyped-def]
    """Give the state of a coder that writes."""
    return np.array([0, _MASK_32, 0, 1, -1], np.int64)


@helper
def start_decoder(payload):  # type: ignore[no-untyped-def]
    """Give the state of a coder that reads; and whether an encoder can have begun so."""
    state = np.array([0, _MASK_32, 0, 0, 0], np.int64)
    for _ in range(TAIL_BYTES):
        state[LOW] = (state[LOW] << 8) | next_byte(state, payload)
    return state, state[LOW] < state[RANGE]


@helper
def is_beyond(state, payload):  # type: ignore[no-untyped-def]
    """Tell whether more was read than any encoder leaves out: nothing that follows means much."""
    return state[POSITION] > payload.size + TAIL_BYTES


@helper
def is_at_end(state, payload):  # type: ignore[no-untyped-def]
    """Tell whether a payload is as long as its decisions, which are all taken."""
    return payload.size <= state[POSITION] <= payload.size + TAIL_BYTES


@helper
def code_plain(state, stream, value, n_bits, decoding):  # type: ignore[no-untyped-def]
    """Code the lowest bits of an int64, the highest of them first; returns them."""
    if not decoding:
        for i in range(n_bits - 1, -1, -1):
            encode_bit(state, stream, _EVEN, (value >> i) & 1)
        return value
    read = np.int64(0)
    for _ in range(n_bits):
        read = (read << 1) | np.int64(decode_bit(state, stream, _EVEN))
    return read
