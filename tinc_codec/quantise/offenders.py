"""Offenders against a largest error: found voxel by voxel, coded by adaptive binary decisions.

Rows are cut into segments of 8 voxels. A decision per segment says whether it holds an offender,
then one per voxel which; contexts are the offenders around, all of them before in C order. Writer
and reader share one walk, so that they cannot disagree about contexts.

References
----------
`docs/format.md` §11
"""

import math

import numpy as np

from tinc_codec.kernels import copy_row, helper, kernel
from tinc_codec.quantise.scale import half_octave
from tinc_codec.volume.range_coder import (
    code_plain,
    count_bit,
    decode_bit,
    encode_bit,
    estimate_bit,
    finish_code,
    is_at_end,
    is_beyond,
    start_decoder,
    start_encoder,
)

INTEGER, FLOAT16, FLOAT32, FLOAT64 = range(4)
"""How values are rounded to their dtype."""
FLOATS = {2: FLOAT16, 4: FLOAT32, 8: FLOAT64}
"""By size in bytes."""

SEGMENT = 8
MAX_MULTIPLE_BITS = 31
_LEVELS = 14
_MOST_PREVIOUS = 2
_MOST_NEAR, _MOST_DIAGONAL = 3, 3
_VOXEL_STATES = SEGMENT + 1
_MOST_SIGNS = 4
# Adaptive decisions take at most 16 bits.
_DECISION_BYTES = 2
_SLACK_BYTES = 16


@kernel(inline="always")
def _rounded(x, kind):  # type: ignore[no-untyped-def]
    """Round a float64 within the dtype's range to the dtype; integers half to even."""
    if kind == INTEGER:
        return np.rint(x)
    if kind == FLOAT32:
        return np.float64(np.float32(x))
    if kind == FLOAT16:
        _, exponent = math.frexp(x)
        shift = 11 - max(exponent, -13)
        return math.ldexp(np.rint(math.ldexp(x, shift)), -shift)
    return x


@kernel(inline="always")
def _ends(t, tolerance, mapping):  # type: ignore[no-untyped-def]
    """Give what the least and the largest t of any device stand for, not rounded; NaN is any t."""
    scale, low, span, value_min, value_max = mapping
    # Exact, and faster than two divisions.
    inverse = 1 / scale
    lower, upper = t - tolerance, t + tolerance
    lower = min(lower, 1.0) if lower > 0 else 0.0
    upper = max(upper, 0.0) if upper < 1 else 1.0
    lower, upper = (lower * span + low) * inverse, (upper * span + low) * inverse
    return min(max(lower, value_min), value_max), min(max(upper, value_min), value_max)


@kernel
def count_suspects(original, values, mapping, tolerance, safe_error):  # type: ignore[no-untyped-def]
    """Count the voxels that are farther off than `safe_error` before rounding on some device.

    Parameters
    ----------
    original : ndarray of float64
        Shape (n,).
    values : ndarray of float32
        Shape (n,): t.
    mapping : tuple of float
        From `volume.chunk.value_mapping`.
    tolerance, safe_error : float
    """
    found = 0
    for i in range(len(original)):
        lower, upper = _ends(np.float64(values[i]), tolerance, mapping)
        safe = (original[i] - lower <= safe_error) & (upper - original[i] <= safe_error)
        found += not safe
    return found


@kernel
def correct_offenders(  # type: ignore[no-untyped-def]
    original, values, classes, mapping, kind, tolerance, safe_error, max_error, quantum, largest,
    start, positions, multiples,
):  # fmt: skip
    """Find a correction for each offender.

    Parameters
    ----------
    original, values, mapping, tolerance, safe_error
        As for `count_suspects`.
    classes : ndarray of uint8
        Shape (n,), 0 where a voxel counts.
    kind : int
        `INTEGER`, `FLOAT16`, `FLOAT32` or `FLOAT64`.
    max_error : float
    quantum : float
        What multiples are of; 0 for none.
    largest : int
        Multiples beyond are not used.
    start : int
        Position of the first voxel.
    positions : ndarray of int64
        Room for all suspects; written.
    multiples : ndarray of int32
        Same shape; written, 0 where no multiple keeps to the largest error.

    Returns
    -------
    int
        Number of offenders.
    """
    value_min, value_max = mapping[3], mapping[4]
    n = 0
    for i in range(len(original)):
        lower, upper = _ends(np.float64(values[i]), tolerance, mapping)
        wanted = original[i]
        if wanted - lower <= safe_error and upper - wanted <= safe_error:
            continue
        if classes[i] != 0:
            continue
        lower, upper = _rounded(lower, kind), _rounded(upper, kind)
        if abs(wanted - lower) <= max_error and abs(wanted - upper) <= max_error:
            continue
        multiple = 0.0
        if quantum > 0:
            multiple = np.rint((wanted - (lower / 2 + upper / 2)) / quantum)
            if not abs(multiple) <= largest:
                multiple = 0.0
        if multiple != 0:
            move = multiple * quantum
            lower = _rounded(min(max(lower + move, value_min), value_max), kind)
            upper = _rounded(min(max(upper + move, value_min), value_max), kind)
            if not (abs(wanted - lower) <= max_error and abs(wanted - upper) <= max_error):
                multiple = 0.0
        positions[n] = start + i
        multiples[n] = np.int32(multiple)
        n += 1
    return n


@kernel(inline="always")
def _code(state, stream, counts, context, bit, decoding):  # type: ignore[no-untyped-def]
    """Code one adaptive decision; returns it."""
    probability = estimate_bit(counts, context)
    if decoding:
        bit = decode_bit(state, stream, probability)
    else:
        encode_bit(state, stream, probability, bit)
    count_bit(counts, context, bit)
    return bit


@helper
def _code_magnitude(state, stream, counts, magnitude, decoding):  # type: ignore[no-untyped-def]
    """Code 1 to 2^31 - 1: how many bits follow the leading one, then those bits."""
    length = 0
    while length < MAX_MULTIPLE_BITS - 1:
        more = _code(state, stream, counts, length, int(magnitude >> (length + 1) > 0), decoding)
        if more == 0:
            break
        length += 1
    leading = np.int64(1) << length
    return leading | code_plain(state, stream, magnitude & (leading - 1), length, decoding)


@kernel(inline="always")
def _segment_level(holds, z, y, s):  # type: ignore[no-untyped-def]
    """Sum up offenders in the segments before and around; `holds` keeps three planes."""
    here, before, farther = holds[z % 3], holds[(z - 1) % 3], holds[(z - 2) % 3]
    nearest = np.int64(before[y, s]) + here[y - 1, s]
    around = (
        np.int64(before[y - 1, s]) + before[y + 1, s] + before[y, s - 1] + before[y, s + 1]
        + here[y - 1, s - 1] + here[y - 1, s + 1] + here[y, s - 1] + here[y - 2, s]
        + farther[y, s]
    )  # fmt: skip
    return half_octave(2 * nearest + around)


@kernel(inline="always")
def _surroundings(cells, z, y, x):  # type: ignore[no-untyped-def]
    """Sum up three neighbours that share a face and six that share an edge, all before."""
    here, before = cells[z % 2], cells[(z - 1) % 2]
    faces = np.int64(before[y, x]) + here[y - 1, x] + here[y, x - 1]
    edges = (
        np.int64(before[y - 1, x]) + before[y + 1, x] + before[y, x - 1] + before[y, x + 1]
        + here[y - 1, x - 1] + here[y - 1, x + 1]
    )  # fmt: skip
    return faces, edges


@helper
def _grown(array, n, limit):  # type: ignore[no-untyped-def]
    """Give `array`, or a larger copy with room for `n` + 1 entries and at most `limit`."""
    if n < array.size:
        return array
    larger = np.empty(min(limit, 2 * array.size + 64), array.dtype)
    copy_row(array, larger)
    return larger


@helper
def _walk(state, stream, shape, width, positions, multiples, absolutes, decoding):  # type: ignore[no-untyped-def]
    """Code all offenders, or decode them into the arrays, which then are replaced as they grow.

    Returns
    -------
    positions, multiples, absolutes : ndarray
    n, n_absolute : int
        Entries of the arrays in use; n is -1 where the stream ended long before.
    """
    n_volumes, n_z, n_y, n_x = shape
    n_voxels = n_volumes * n_z * n_y * n_x
    n_segments = (n_x + SEGMENT - 1) // SEGMENT
    holds = np.zeros((3, n_y + 3, n_segments + 2), np.uint8)
    present = np.zeros((2, n_y + 2, n_x + 2), np.uint8)
    signs = np.zeros((2, n_y + 2, n_x + 2), np.int8)
    segment_counts = np.zeros((_LEVELS * (_MOST_PREVIOUS + 1), 2), np.uint32)
    n_around = (_MOST_NEAR + 1) * (_MOST_DIAGONAL + 1)
    voxel_counts = np.zeros((n_around * (_LEVELS // 2) * _VOXEL_STATES, 2), np.uint32)
    kind_counts = np.zeros((2, 2), np.uint32)
    sign_counts = np.zeros((2 * _MOST_SIGNS + 1, 2), np.uint32)
    length_counts = np.zeros((MAX_MULTIPLE_BITS - 1, 2), np.uint32)
    n, n_absolute, was_absolute = 0, 0, 0
    row_start = np.int64(0)
    for _ in range(n_volumes):
        holds[:] = 0
        present[:] = 0
        signs[:] = 0
        for z in range(n_z):
            holds[z % 3] = 0
            present[z % 2] = 0
            signs[z % 2] = 0
            for y in range(n_y):
                if decoding and is_beyond(state, stream):
                    return positions, multiples, absolutes, -1, 0
                for s in range(n_segments):
                    start, stop = s * SEGMENT, min((s + 1) * SEGMENT, n_x)
                    level = _segment_level(holds, z, y + 2, s + 1)
                    context = level * (_MOST_PREVIOUS + 1)
                    context += min(np.int64(holds[z % 3, y + 2, s]), _MOST_PREVIOUS)
                    bit = 0
                    if not decoding:
                        bit = int(n < positions.size and positions[n] < row_start + stop)
                    if _code(state, stream, segment_counts, context, bit, decoding) == 0:
                        continue
                    found = 0
                    for x in range(start, stop):
                        bit = int(n < positions.size and positions[n] == row_start + x)
                        left = stop - 1 - x
                        if found == 0 and left == 0:
                            bit = 1
                        else:
                            faces, edges = _surroundings(present, z, y + 1, x + 1)
                            context = faces * (_MOST_DIAGONAL + 1) + min(edges, _MOST_DIAGONAL)
                            context = context * (_LEVELS // 2) + level // 2
                            context = context * _VOXEL_STATES + (0 if found else left)
                            bit = _code(state, stream, voxel_counts, context, bit, decoding)
                        if bit == 0:
                            continue
                        found += 1
                        if decoding:
                            positions = _grown(positions, n, n_voxels)
                            multiples = _grown(multiples, n, n_voxels)
                            positions[n] = row_start + x
                            multiples[n] = 0
                        multiple = np.int64(multiples[n])
                        kind = int(multiple == 0)
                        kind = _code(state, stream, kind_counts, was_absolute, kind, decoding)
                        was_absolute = kind
                        present[z % 2, y + 1, x + 1] = 1
                        if kind:
                            if decoding:
                                absolutes = _grown(absolutes, n_absolute, n_voxels)
                                absolutes[n_absolute] = 0
                            value = absolutes[n_absolute]
                            absolutes[n_absolute] = code_plain(
                                state, stream, value, width, decoding
                            )
                            n_absolute += 1
                        else:
                            faces, edges = _surroundings(signs, z, y + 1, x + 1)
                            lean = min(max(2 * faces + edges, -_MOST_SIGNS), _MOST_SIGNS)
                            negative = int(multiple < 0)
                            context = lean + _MOST_SIGNS
                            negative = _code(
                                state, stream, sign_counts, context, negative, decoding
                            )
                            magnitude = _code_magnitude(
                                state, stream, length_counts, abs(multiple), decoding
                            )
                            multiples[n] = -magnitude if negative else magnitude
                            signs[z % 2, y + 1, x + 1] = -1 if negative else 1
                        n += 1
                    holds[z % 3, y + 2, s + 1] = found
                row_start += n_x
    return positions, multiples, absolutes, n, n_absolute


@helper
def _most_bytes(multiples, n_absolute, shape, width):  # type: ignore[no-untyped-def]
    """Bound the size of the code."""
    n_segments = shape[0] * shape[1] * shape[2] * ((shape[3] + SEGMENT - 1) // SEGMENT)
    decisions = n_segments + min(multiples.size, n_segments) * SEGMENT
    plain = np.int64(width) * n_absolute
    for multiple in multiples:
        decisions += 2
        magnitude = abs(np.int64(multiple))
        while magnitude > 0:
            decisions += 1
            plain += 1
            magnitude >>= 1
    return decisions * _DECISION_BYTES + plain // 8 + _SLACK_BYTES


@kernel
def encode_offenders(positions, multiples, absolutes, shape, width):  # type: ignore[no-untyped-def]
    """Encode corrections.

    Parameters
    ----------
    positions : ndarray of int64
        Shape (n,), ascending.
    multiples : ndarray of int32
        Shape (n,), 0 where the next of `absolutes` stands.
    absolutes : ndarray of int64
        Bits, of which the lowest `width` are coded.
    shape : tuple of int
        (B, z, y, x).
    width : int
        0 to 64.

    Returns
    -------
    ndarray of uint8

    References
    ----------
    `docs/format.md` §11
    """
    state = start_encoder()
    out = np.empty(_most_bytes(multiples, absolutes.size, shape, width), np.uint8)
    _walk(state, out, shape, width, positions, multiples, absolutes, False)
    return out[: finish_code(state, out)].copy()


@kernel
def decode_offenders(payload, shape, width):  # type: ignore[no-untyped-def]
    """Decode corrections; the twin of `encode_offenders`.

    Returns
    -------
    positions, multiples, absolutes : ndarray
        Memory stays below 32 bytes per voxel of `shape` and some per row, whatever the payload
        says.
    bool
        Whether an encoder can have written this payload, as far as its start and its length tell.
    """
    positions = np.empty(0, np.int64)
    multiples = np.empty(0, np.int32)
    absolutes = np.empty(0, np.int64)
    state, can_begin = start_decoder(payload)
    if not can_begin:
        return positions, multiples, absolutes, False
    positions, multiples, absolutes, n, n_absolute = _walk(
        state, payload, shape, width, positions, multiples, absolutes, True
    )
    if n < 0:
        return positions[:0], multiples[:0], absolutes[:0], False
    return positions[:n], multiples[:n], absolutes[:n_absolute], is_at_end(state, payload)
