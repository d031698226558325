"""Adaptive binary arithmetic coding of voxel classes, contexts from voxels already coded.

Integers only, so that every machine reads the same mask. Encoder and decoder share the model: a
voxel's 17 causal neighbours choose a pair of counts; until a pair has been met often, its estimate
leans on that of the nearest 10, and theirs on one half. Rows are cut into segments; where all
segments around one are alike, a single decision says that it continues them. Another one says
that a volume repeats the one before, as the frames of a series often do.
"""

import numpy as np

from tinc_codec.kernels import helper, kernel
from tinc_codec.volume.range_coder import (
    count_bit,
    decode_bit,
    encode_bit,
    estimate_bit,
    finish_code,
    is_at_end,
    is_beyond,
    start_decoder,
    start_encoder,
    with_room,
)

# Room for the farthest neighbours: two planes, rows and columns before, one row and column after.
MARGIN_BEFORE, MARGIN_AFTER = 2, 1

SEGMENT = 8
_MIXED = 2

_N_CONTEXTS = 1 << 17
_NEAREST = (1 << 10) - 1
_INHERITED_WEIGHT = 4

# Three decisions of at most 16 bits each and a share of the segment's; slack for the rest.
_MAX_BYTES_PER_VOXEL = 7


@helper
def _context(padded, b, z, y, x):  # type: ignore[no-untyped-def]
    """Collect the 17 causal neighbours, one bit each: not finite. The nearest come first."""
    previous = b > 0 and padded[b - 1, z, y, x] > 0
    return (
        (padded[b, z - 1, y, x] > 0)
        | (padded[b, z, y - 1, x] > 0) << 1
        | (padded[b, z, y, x - 1] > 0) << 2
        | (padded[b, z - 1, y - 1, x] > 0) << 3
        | (padded[b, z - 1, y, x - 1] > 0) << 4
        | (padded[b, z - 1, y, x + 1] > 0) << 5
        | (padded[b, z - 1, y + 1, x] > 0) << 6
        | (padded[b, z, y - 1, x - 1] > 0) << 7
        | (padded[b, z, y - 1, x + 1] > 0) << 8
        | previous << 9
        | (padded[b, z - 1, y - 1, x - 1] > 0) << 10
        | (padded[b, z - 1, y - 1, x + 1] > 0) << 11
        | (padded[b, z - 1, y + 1, x - 1] > 0) << 12
        | (padded[b, z - 1, y + 1, x + 1] > 0) << 13
        | (padded[b, z - 2, y, x] > 0) << 14
        | (padded[b, z, y - 2, x] > 0) << 15
        | (padded[b, z, y, x - 2] > 0) << 16
    )


@helper
def _kind_context(padded, b, z, y, x):  # type: ignore[no-untyped-def]
    """Collect the classes of the three neighbours before, two bits each."""
    before = np.int64(padded[b, z - 1, y, x])
    above = np.int64(padded[b, z, y - 1, x])
    left = np.int64(padded[b, z, y, x - 1])
    return before | above << 2 | left << 4


@helper
def _surroundings(segments, b, z, y, s):  # type: ignore[no-untyped-def]
    """Give the one class, 0 or 1, of all 15 causal neighbour segments, or `_MIXED`."""
    common = segments[b, z, y, s - 1]
    if common == _MIXED or segments[b, z, y - 2, s] != common or segments[b, z - 2, y, s] != common:
        return _MIXED
    if b > 0 and segments[b - 1, z, y, s] != common:
        return _MIXED
    for near in range(s - 1, s + 2):
        if (
            segments[b, z, y - 1, near] != common
            or segments[b, z - 1, y - 1, near] != common
            or segments[b, z - 1, y, near] != common
            or segments[b, z - 1, y + 1, near] != common
        ):
            return _MIXED
    return common


@helper
def _summary(padded, b, z, y, start, stop):  # type: ignore[no-untyped-def]
    """Give the one class, 0 or 1, of a segment's voxels, or `_MIXED`."""
    first = padded[b, z, y, start]
    if first > 1:
        return _MIXED
    for x in range(start + 1, stop):
        if padded[b, z, y, x] != first:
            return _MIXED
    return first


@helper
def _repeats(padded, b):  # type: ignore[no-untyped-def]
    """Tell whether a volume equals the one before it."""
    for z in range(padded.shape[1]):
        for y in range(padded.shape[2]):
            for x in range(padded.shape[3]):
                if padded[b, z, y, x] != padded[b - 1, z, y, x]:
                    return False
    return True


@helper
def _estimate_finite(counts, nearest_counts, context):  # type: ignore[no-untyped-def]
    zeros, ones = np.int64(counts[context, 0]), np.int64(counts[context, 1])
    inherited = estimate_bit(nearest_counts, context & _NEAREST) * _INHERITED_WEIGHT
    return max(1, ((ones << 16) + inherited) // (zeros + ones + _INHERITED_WEIGHT))


@kernel
def encode_voxels(padded):  # type: ignore[no-untyped-def]
    """Encode classes 0 to 3.

    Parameters
    ----------
    padded : ndarray of uint8
        Shape (B, Z + 3, Y + 3, X + 3), margins of zeros.

    Returns
    -------
    ndarray of uint8
        The payload.

    References
    ----------
    `docs/format.md` §5
    """
    n_volumes, n_z, n_y, n_x = padded.shape
    counts = np.zeros((_N_CONTEXTS, 2), np.uint32)
    nearest_counts = np.zeros((_NEAREST + 1, 2), np.uint32)
    infinite_counts = np.zeros((64, 2), np.uint32)
    negative_counts = np.zeros((64, 2), np.uint32)
    segment_counts = np.zeros((2, 2), np.uint32)
    volume_counts = np.zeros((1, 2), np.uint32)
    n_segments = (n_x - MARGIN_BEFORE - MARGIN_AFTER + SEGMENT - 1) // SEGMENT
    segments = np.zeros((n_volumes, n_z, n_y, n_segments + 2), np.uint8)
    state = start_encoder()
    out = np.empty(1024, np.uint8)
    for b in range(n_volumes):
        if b > 0:
            out = with_room(state, out, 0)
            bit = 0 if _repeats(padded, b) else 1
            encode_bit(state, out, estimate_bit(volume_counts, 0), bit)
            count_bit(volume_counts, 0, bit)
            if bit == 0:
                segments[b] = segments[b - 1]
                continue
        for z in range(2, n_z - 1):
            for y in range(2, n_y - 1):
                out = with_room(state, out, _MAX_BYTES_PER_VOXEL * n_x)
                for s in range(1, n_segments + 1):
                    start = MARGIN_BEFORE + SEGMENT * (s - 1)
                    stop = min(start + SEGMENT, n_x - MARGIN_AFTER)
                    summary = _summary(padded, b, z, y, start, stop)
                    segments[b, z, y, s] = summary
                    around = _surroundings(segments, b, z, y, s)
                    if around != _MIXED:
                        bit = 1 if summary != around else 0
                        encode_bit(state, out, estimate_bit(segment_counts, around), bit)
                        count_bit(segment_counts, around, bit)
                        if bit == 0:
                            continue
                    for x in range(start, stop):
                        voxel = padded[b, z, y, x]
                        context = _context(padded, b, z, y, x)
                        probability = _estimate_finite(counts, nearest_counts, context)
                        bit = 1 if voxel > 0 else 0
                        encode_bit(state, out, probability, bit)
                        count_bit(counts, context, bit)
                        count_bit(nearest_counts, context & _NEAREST, bit)
                        if voxel > 0:
                            kind = _kind_context(padded, b, z, y, x)
                            bit = 1 if voxel > 1 else 0
                            encode_bit(state, out, estimate_bit(infinite_counts, kind), bit)
                            count_bit(infinite_counts, kind, bit)
                            if voxel > 1:
                                bit = 1 if voxel > 2 else 0
                                encode_bit(state, out, estimate_bit(negative_counts, kind), bit)
                                count_bit(negative_counts, kind, bit)
    return out[: finish_code(state, out)].copy()


@kernel
def decode_voxels(payload, padded):  # type: ignore[no-untyped-def]
    """Decode classes 0 to 3 into the inside of an array of zeros; the twin of `encode_voxels`.

    Parameters
    ----------
    payload : ndarray of uint8
    padded : ndarray of uint8
        Shape (B, Z + 3, Y + 3, X + 3); written.

    Returns
    -------
    bool
        Whether an encoder can have written this payload for this shape, as far as its start and
        its length tell.
    """
    n_volumes, n_z, n_y, n_x = padded.shape
    counts = np.zeros((_N_CONTEXTS, 2), np.uint32)
    nearest_counts = np.zeros((_NEAREST + 1, 2), np.uint32)
    infinite_counts = np.zeros((64, 2), np.uint32)
    negative_counts = np.zeros((64, 2), np.uint32)
    segment_counts = np.zeros((2, 2), np.uint32)
    volume_counts = np.zeros((1, 2), np.uint32)
    n_segments = (n_x - MARGIN_BEFORE - MARGIN_AFTER + SEGMENT - 1) // SEGMENT
    segments = np.zeros((n_volumes, n_z, n_y, n_segments + 2), np.uint8)
    state, can_begin = start_decoder(payload)
    if not can_begin:
        return False
    for b in range(n_volumes):
        if b > 0:
            bit = decode_bit(state, payload, estimate_bit(volume_counts, 0))
            count_bit(volume_counts, 0, bit)
            if bit == 0:
                padded[b] = padded[b - 1]
                segments[b] = segments[b - 1]
                continue
        for z in range(2, n_z - 1):
            for y in range(2, n_y - 1):
                if is_beyond(state, payload):
                    return False
                for s in range(1, n_segments + 1):
                    start = MARGIN_BEFORE + SEGMENT * (s - 1)
                    stop = min(start + SEGMENT, n_x - MARGIN_AFTER)
                    around = _surroundings(segments, b, z, y, s)
                    if around != _MIXED:
                        bit = decode_bit(state, payload, estimate_bit(segment_counts, around))
                        count_bit(segment_counts, around, bit)
                        if bit == 0:
                            padded[b, z, y, start:stop] = around
                            segments[b, z, y, s] = around
                            continue
                    for x in range(start, stop):
                        context = _context(padded, b, z, y, x)
                        probability = _estimate_finite(counts, nearest_counts, context)
                        bit = decode_bit(state, payload, probability)
                        count_bit(counts, context, bit)
                        count_bit(nearest_counts, context & _NEAREST, bit)
                        if bit == 1:
                            voxel = 1
                            kind = _kind_context(padded, b, z, y, x)
                            bit = decode_bit(state, payload, estimate_bit(infinite_counts, kind))
                            count_bit(infinite_counts, kind, bit)
                            if bit == 1:
                                probability = estimate_bit(negative_counts, kind)
                                bit = decode_bit(state, payload, probability)
                                count_bit(negative_counts, kind, bit)
                                voxel = 2 + bit
                            padded[b, z, y, x] = voxel
                    segments[b, z, y, s] = _summary(padded, b, z, y, start, stop)
    return is_at_end(state, payload)
