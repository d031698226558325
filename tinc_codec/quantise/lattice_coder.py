"""Indices of lattice points <-> bytes: predicted from neighbours, coded by adaptive decisions.

A voxel is predicted from 19 voxels before it in C order by weights that learn as they go, then by
the mean error that predictions of its kind had. What is left is coded bit by bit, in contexts of
how far off its neighbours were and how much they differ. Integers only: every machine reads the
same. Writer and reader share one walk, so that they cannot disagree.

References
----------
`docs/format.md` §14
"""

import numpy as np

from tinc_codec.kernels import copy_row, helper, kernel
from tinc_codec.quantise.scale import half_octave
from tinc_codec.volume.range_coder import (
    code_plain,
    decode_bit,
    encode_bit,
    finish_code,
    is_at_end,
    is_beyond,
    start_decoder,
    start_encoder,
    with_room,
)

_TAPS = 19
_FIRST_WEIGHTS = (20000, 20000, 20000, -20000, 0, -20000, -20000, 0, 0, 0, 0, 0, 20000) + (0,) * 6
_WEIGHT_BITS, _MAX_WEIGHT = 16, 1 << 17
_FRACTION_BITS = 4
_RATE_SHIFT = 3
_STEP_BITS = 12
_MEANS = 1 << 12
_MOST_IN_MEAN = 128
_LEVELS = 64
_FRACTIONS, _SIGN_FRACTIONS = 3, 9
_KINDS = 4 * _FRACTIONS
_UNARY = 20
_HALVES = 32
_PROBABILITY_BITS, _COUNT_BITS = 22, 10
_MOST_COUNTED = 255
_MAX_ESCAPE_BITS = 25
# Unary decisions, sign, escape and remainder: at most 16 bits each.
_BYTES_PER_VOXEL = 256
_FIRST_ESTIMATE = (1 << (_PROBABILITY_BITS - 1)) << _COUNT_BITS
_RECIPROCALS = (1 << 17) // (2 * np.arange(_MOST_COUNTED + 1, dtype=np.int64) + 3)
"""Of count + 3/2, in 2^-16."""


@kernel(inline="always")
def _code(state, stream, estimates, context, bit, decoding):  # type: ignore[no-untyped-def]
    """Code one adaptive decision; returns it."""
    estimate = np.int64(estimates[context])
    probability = estimate >> _COUNT_BITS
    count = estimate & ((1 << _COUNT_BITS) - 1)
    share = min(max(probability >> (_PROBABILITY_BITS - 16), 1), (1 << 16) - 1)
    if decoding:
        bit = decode_bit(state, stream, share)
    else:
        encode_bit(state, stream, share, bit)
    target = ((1 << _PROBABILITY_BITS) - 1) * bit
    probability += ((target - probability) * _RECIPROCALS[count]) >> 16
    if count < _MOST_COUNTED:
        count += 1
    estimates[context] = probability << _COUNT_BITS | count
    return bit


@helper
def _code_escape(state, stream, value, decoding):  # type: ignore[no-untyped-def]
    """Code 1 to 2^26 - 1: the number of its bits in unary, then all but the first; 0 if damaged."""
    length = 0
    while True:
        more = np.int64(value >> (length + 1) > 0)
        if code_plain(state, stream, more, 1, decoding) == 0:
            break
        length += 1
        if length > _MAX_ESCAPE_BITS:
            return np.int64(0)
    leading = np.int64(1) << length
    return leading | code_plain(state, stream, value & (leading - 1), length, decoding)


@helper
def _start_row(values, z, y):  # type: ignore[no-untyped-def]
    """Set what stands for neighbours outside the volume, before a row is coded."""
    row = values[z % 3, y + 2]
    row[0] = row[1] = values[z % 3, y + 1, 2]
    if y == 0 and z > 0:
        before = values[(z - 1) % 3, 2]
        copy_row(before, values[z % 3, 0])
        copy_row(before, values[z % 3, 1])
        row[0] = row[1] = before[2]


@helper
def _end_row(values, misses, z, y, n_y, n_x):  # type: ignore[no-untyped-def]
    """Continue a coded row to the right, and a plane beyond its last one."""
    row = values[z % 3, y + 2]
    row[n_x + 2] = row[n_x + 3] = row[n_x + 1]
    if y == n_y - 1:
        copy_row(row, values[z % 3, n_y + 2])
        misses[z % 3, n_y + 2] = 0


@kernel(inline="always")
def _collect(values, base, a, b, c, j, up, mid, down, k, f):  # type: ignore[no-untyped-def]
    """Write by how much the neighbours differ from `base`: planes a, b, c, the last ones."""
    f[0] = values[a, j, k - 1] - base
    f[1] = values[a, j - 1, k] - base
    f[2] = values[b, mid, k] - base
    f[3] = values[a, j - 1, k - 1] - base
    f[4] = values[a, j - 1, k + 1] - base
    f[5] = values[b, mid, k - 1] - base
    f[6] = values[b, up, k] - base
    f[7] = values[b, mid, k + 1] - base
    f[8] = values[b, down, k] - base
    f[9] = values[a, j, k - 2] - base
    f[10] = values[a, j - 2, k] - base
    f[11] = values[c, mid, k] - base
    f[12] = values[b, up, k - 1] - base
    f[13] = values[b, up, k + 1] - base
    f[14] = values[b, down, k - 1] - base
    f[15] = values[b, down, k + 1] - base
    f[16] = values[a, j - 1, k - 2] - base
    f[17] = values[a, j - 2, k - 1] - base
    f[18] = values[a, j - 2, k + 1] - base


@kernel(inline="always")
def _is_flat(f):  # type: ignore[no-untyped-def]
    """Tell whether all neighbours are alike."""
    found = np.int64(0)
    for t in range(_TAPS):
        found |= f[t]
    return found == 0


@kernel(inline="always")
def _missed_around(misses, a, b, c, j, up, mid, down, k):  # type: ignore[no-untyped-def]
    """Add up by how much the neighbours missed their predictions."""
    return (
        2 * (misses[a, j, k - 1] + misses[a, j - 1, k] + misses[b, mid, k])
        + misses[a, j - 1, k - 1] + misses[a, j - 1, k + 1] + misses[b, mid, k - 1]
        + misses[b, up, k] + misses[b, mid, k + 1] + misses[b, down, k]
        + misses[a, j, k - 2] + misses[a, j - 2, k] + misses[c, mid, k]
    )  # fmt: skip


@kernel(inline="always")
def _roughness(f):  # type: ignore[no-untyped-def]
    """Add up by how much neighbours differ from each other."""
    return (
        abs(f[0] - f[3]) + abs(f[1] - f[3]) + abs(f[1] - f[4])
        + abs(f[2] - f[5]) + abs(f[2] - f[6]) + abs(f[2] - f[7]) + abs(f[2] - f[8])
        + abs(f[0] - f[5]) + abs(f[1] - f[6])
    )  # fmt: skip


@kernel(inline="always")
def _guess(weights, base, f, highest):  # type: ignore[no-untyped-def]
    """Predict from weighted differences; the sum of their squares, and their texture."""
    moved, norm = np.int64(0), np.int64(0)
    for t in range(_TAPS):
        moved += weights[t] * f[t]
        norm += f[t] * f[t]
    guess = (base << _FRACTION_BITS) + (moved >> (_WEIGHT_BITS - _FRACTION_BITS))
    guess = min(max(guess, -(1 << _FRACTION_BITS)), highest + (1 << _FRACTION_BITS))
    relative = guess - (base << _FRACTION_BITS)
    texture = np.int64(0)
    for t in range(9):
        texture |= np.int64((f[t] << _FRACTION_BITS) > relative) << t
    return guess, norm, texture


@kernel(inline="always")
def _learn(weights, f, norm, missed):  # type: ignore[no-untyped-def]
    """Move the weights towards those that would have predicted better."""
    if norm > 0 and missed != 0:
        step = (missed << _STEP_BITS) // (norm + 16)
        for t in range(_TAPS):
            weight = weights[t] + ((step * f[t]) >> _RATE_SHIFT)
            weights[t] = min(max(weight, -_MAX_WEIGHT), _MAX_WEIGHT)


@kernel(inline="always")
def _code_miss(  # type: ignore[no-untyped-def]
    state, stream, unary, halves, miss, total, level, kind, decoding
):
    """Code by how much a prediction missed; returns it, -1 where no encoder wrote such."""
    shift = 0
    while (total // 24) >> shift > 3:
        shift += 1
    high = miss >> shift
    found = 0
    while found < _UNARY:
        bit = np.int64(high > found)
        context = (level * _KINDS + kind) * _UNARY + found
        if _code(state, stream, unary, context, bit, decoding) == 0:
            break
        found += 1
    if found == _UNARY:
        beyond = _code_escape(state, stream, high - _UNARY + 1, decoding)
        if beyond == 0:
            return np.int64(-1)
        found = _UNARY + beyond - 1
    if shift > 0:
        context = level * _HALVES + min(found, _HALVES - 1)
        bit = (miss >> (shift - 1)) & 1
        bit = _code(state, stream, halves, context, bit, decoding)
        rest = miss & ((1 << (shift - 1)) - 1)
        rest = code_plain(state, stream, rest, shift - 1, decoding)
        found = (found << shift) | (bit << (shift - 1)) | rest
    return np.int64(found)


@kernel(inline="always")
def _code_sign(  # type: ignore[no-untyped-def]
    state, stream, signs, is_less, expected, top, level, fraction, decoding
):
    """Code on which side a prediction was missed, where either is possible."""
    if expected == 0:
        return np.int64(0)
    if expected == top:
        return np.int64(1)
    context = level * _SIGN_FRACTIONS + ((fraction + 8) >> 1)
    return _code(state, stream, signs, context, is_less, decoding)


@helper
def _new_memory(shape, n_z):  # type: ignore[no-untyped-def]
    """Make what a walk knows before the first plane of a slab of that shape."""
    n_planes, n_y, n_x = shape
    n_kept = min(3, n_z, n_planes)
    return (
        np.zeros((n_kept, n_y + 4, n_x + 4), np.int32),
        np.zeros((n_kept, n_y + 4, n_x + 4), np.int32),
        np.full(_LEVELS * _KINDS * _UNARY, _FIRST_ESTIMATE, np.uint32),
        np.full(_LEVELS * _HALVES, _FIRST_ESTIMATE, np.uint32),
        np.full(_LEVELS * _SIGN_FRACTIONS, _FIRST_ESTIMATE, np.uint32),
        np.zeros(_MEANS, np.int64),
        np.zeros(_MEANS, np.int64),
        np.array(_FIRST_WEIGHTS, np.int64),
    )


@helper
def _walk(  # type: ignore[no-untyped-def]
    state, stream, memory, first, stop, indices, skipped, n_z, top, decoding
):
    """Code planes first to stop - 1 of a slab, or decode them into `indices`.

    Parameters
    ----------
    memory : tuple of ndarrays
        From `_new_memory`, as the planes before have left it.

    Returns
    -------
    stream : ndarray of uint8
        Where the code is: a larger copy, as it grows.
    bool
        False where no encoder can have written it.
    """
    _, n_y, n_x = indices.shape
    values, misses, unary, halves, signs, sums, counts, weights = memory
    f = np.zeros(_TAPS, np.int64)
    has_skipped = skipped.size > 0
    highest = np.int64(top) << _FRACTION_BITS
    for plane in range(first, stop):
        z = plane % n_z
        if z == 0 and plane > 0:
            values[:] = 0
            misses[:] = 0
        a, b, c = z % 3, max(z - 1, 0) % 3, max(z - 2, 0) % 3
        for y in range(n_y):
            if decoding:
                if is_beyond(state, stream):
                    return stream, False
            else:
                stream = with_room(state, stream, _BYTES_PER_VOXEL * n_x)
            _start_row(values, z, y)
            j = y + 2
            # Before the first plane, the row above stands for all that planes before would hold.
            up, mid, down = (j - 1, j - 1, j - 1) if z == 0 else (j - 1, j, j + 1)
            for x in range(n_x):
                k = x + 2
                left, above, before = values[a, j, k - 1], values[a, j - 1, k], values[b, mid, k]
                base = (left + above + before) // 3
                _collect(values, base, a, b, c, j, up, mid, down, k, f)
                is_flat = _is_flat(f)
                if is_flat:
                    # What `_guess` would find, sooner: sparse data are full of it.
                    guess, norm, texture = base << _FRACTION_BITS, np.int64(0), np.int64(0)
                else:
                    guess, norm, texture = _guess(weights, base, f, highest)
                off = _missed_around(misses, a, b, c, j, up, mid, down, k)
                mean = texture * 8 + min(half_octave(off) >> 1, 7)
                refined = guess
                if sums[mean] != 0:
                    refined += sums[mean] // counts[mean]
                refined = min(max(refined, 0), highest)
                expected = (refined + (1 << (_FRACTION_BITS - 1))) >> _FRACTION_BITS
                if has_skipped and skipped[plane, y, x] != 0:
                    if decoding:
                        indices[plane, y, x] = expected
                    values[a, j, k] = expected
                    misses[a, j, k] = 0
                    continue
                fraction = refined - (expected << _FRACTION_BITS)
                total = off if is_flat else off + _roughness(f)
                level = half_octave(total)
                kind = np.int64(expected != 0) | np.int64(left == above and above == before) << 1
                kind = kind * _FRACTIONS + min(abs(fraction) // 3, 2)
                value = np.int64(indices[plane, y, x])
                miss = _code_miss(
                    state, stream, unary, halves, abs(value - expected), total, level, kind,
                    decoding,
                )  # fmt: skip
                if miss < 0:
                    return stream, False
                is_less = np.int64(value < expected)
                if miss > 0:
                    is_less = _code_sign(
                        state, stream, signs, is_less, expected, top, level, fraction, decoding
                    )
                if decoding:
                    value = expected - miss if is_less and miss > 0 else expected + miss
                    if value < 0 or value > top:
                        return stream, False
                    indices[plane, y, x] = value
                values[a, j, k] = value
                misses[a, j, k] = miss
                missed = (value << _FRACTION_BITS) - guess
                sums[mean] += missed
                counts[mean] += 1
                if counts[mean] >= _MOST_IN_MEAN:
                    sums[mean] //= 2
                    counts[mean] >>= 1
                _learn(weights, f, norm, missed)
            _end_row(values, misses, z, y, n_y, n_x)
    return stream, True


@kernel
def encode_slab(indices, skipped, n_z, top):  # type: ignore[no-untyped-def]
    """Encode planes.

    Parameters
    ----------
    indices : ndarray of int32
        Shape (planes, y, x), each 0 to `top`: planes of volumes one after the other, the first of
        them taken for the first of a volume.
    skipped : ndarray of uint8
        Same shape: not 0 where the index does not matter and is not coded; or empty.
    n_z : int
        Planes per volume.
    top : int
        0 to `lattice.MAX_TOP`.

    Returns
    -------
    ndarray of uint8

    References
    ----------
    `docs/format.md` §14
    """
    state = start_encoder()
    out = np.empty(indices.size // 2 + _BYTES_PER_VOXEL * (indices.shape[2] + 1), np.uint8)
    n_planes = indices.shape[0]
    memory = _new_memory(indices.shape, n_z)
    # Not a literal, for which all would be compiled once more.
    out, _ = _walk(
        state, out, memory, np.int64(0), n_planes, indices, skipped, n_z, top, False
    )  # fmt: skip
    return out[: finish_code(state, out)].copy()


@kernel
def start_slab(payload, shape, n_z):  # type: ignore[no-untyped-def]
    """Begin to decode what `encode_slab` wrote.

    Parameters
    ----------
    payload : ndarray of uint8
    shape : tuple of int
        (planes, y, x).
    n_z : int

    Returns
    -------
    state : ndarray of int64
        Of the coder.
    memory : tuple of ndarrays
        Of what was decoded; both are changed by `decode_planes`.
    bool
        Whether an encoder can have begun so.
    """
    state, can_begin = start_decoder(payload)
    return state, _new_memory(shape, n_z), can_begin


@kernel
def decode_planes(  # type: ignore[no-untyped-def]
    payload, state, memory, first, stop, skipped, n_z, top, indices
):
    """Decode the next planes of a slab into `indices`, where they are not skipped.

    Parameters
    ----------
    payload : ndarray of uint8
    state, memory
        From `start_slab`, with planes 0 to first - 1 decoded.
    first, stop : int
        Which planes.
    skipped, n_z, top, indices
        As for `encode_slab`, of the whole slab.

    Returns
    -------
    bool
        Whether an encoder can have written so much of the payload, as far as the range of the
        indices tells, and with the last plane the length.
    """
    _, valid = _walk(
        state, payload, memory, first, stop, indices, skipped, n_z, top, True
    )  # fmt: skip
    return valid and (stop < indices.shape[0] or is_at_end(state, payload))
