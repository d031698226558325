"""The walk over the bands of a tile, compiled: one for both ways, so that both see the same.

References
----------
`docs/format.md` §10.9
"""

import numpy as np

from tinc_codec.entropy.buckets import (
    BUCKET_BASE,
    BUCKET_BITS,
    REPRESENTED_BUCKET,
    nonzero_places,
    represent_band,
)
from tinc_codec.entropy.contexts import PHASE_PARITIES, phase_contexts
from tinc_codec.entropy.outer_sums import (
    block_sums,
    near_sums,
    outer_sums,
    present_blocks,
    total_of_bands,
)
from tinc_codec.entropy.pyramid import BANDS, BLOCK_EDGE
from tinc_codec.entropy.range_symbols import (
    DIRECTION,
    ENCODING,
    decode_bits,
    decode_places,
    encode_bits,
    encode_places,
)
from tinc_codec.kernels import helper, kernel

_WORDS_PER_SYMBOL = 2
"""At most: 24 bits and 22 more."""
_SLACK = 64


@helper
def _mirror(field, shape, parity, sides):  # type: ignore[no-untyped-def]
    """Extend a padded field where there are other tiles: what lies at 1 and n - 2 at -1 and n.

    Both are of one parity, so that a phase knows either or none.

    Parameters
    ----------
    field : ndarray of uint16
        Shape (z, y, x), with a margin of one.
    shape : tuple of int
        Of what it holds.
    parity : int
        Of the phase that was coded last.
    sides : ndarray of bool
        Shape (3, 2): per axis, whether a tile comes before and after this one.
    """
    for axis in range(3):
        n = shape[axis]
        for side in range(2):
            source = n - 2 if side else 1
            # Nothing new lies where the phase has no positions.
            if not sides[axis, side] or n < 2 or (source & 1) != (parity >> (2 - axis)) & 1:
                continue
            target = n + 1 if side else 0
            if axis == 0:
                for y in range(1, shape[1] + 1):
                    for x in range(1, shape[2] + 1):
                        field[target, y, x] = field[source + 1, y, x]
            elif axis == 1:
                for z in range(shape[0] + 2):
                    for x in range(1, shape[2] + 1):
                        field[z, target, x] = field[z, source + 1, x]
            else:
                for z in range(shape[0] + 2):
                    for y in range(shape[1] + 2):
                        field[z, y, target] = field[z, y, source + 1]


@helper
def _code_phases(  # type: ignore[no-untyped-def]
    state, words, tables, values, fields, padded, band, coarse, coarse_padded, shifts,
    stencils, blocks, shape, shift, sides, room
):  # fmt: skip
    """Code what a band holds in some blocks, or the flags of its blocks, phase by phase.

    Parameters
    ----------
    fields : ndarray of uint16
        Shape (BANDS, place).
    coarse : tuple of two ndarrays
        The coarser level's bands, uint16 (BANDS, place), and their sum.
    values : ndarray
        What turns symbols into what stands for them in `fields`, or back.
    sides : ndarray of bool
        See `_mirror`.
    room : tuple of two ndarrays
        Places and contexts, as for `phase_contexts`.
    """
    width, plane = coarse_padded[2], coarse_padded[1] * coarse_padded[2]
    own, total = coarse[0][band], coarse[1]
    own_near, total_near = np.empty(own.size, np.uint32), np.empty(own.size, np.uint32)
    near_sums(own, width, plane, own_near)
    near_sums(total, width, plane, total_near)
    outer = np.empty(fields.shape[1], np.uint32)
    n_others = stencils.n_others[band]
    outer_sums(
        fields, padded, (own, own_near, total, total_near), coarse_padded, shifts,
        stencils.coarse[band], stencils.others[band, :n_others],
        stencils.other_weights[band, :n_others], blocks, shape, outer,
    )  # fmt: skip
    is_encoder = state[DIRECTION] == ENCODING
    field = fields[band]
    extended = field.reshape(padded)
    places, contexts = room
    taps, offsets, weights = stencils.taps[band], stencils.offsets[band], stencils.weights[band]
    no_sums = np.empty(0, np.uint32)
    for phase in range(8):
        n = phase_contexts(
            field, outer, padded, blocks, shape, phase, taps, offsets, weights, shift, places,
            contexts, no_sums,
        )  # fmt: skip
        if is_encoder:
            encode_places(state, words, tables, places[:n], contexts, values, field)
        elif not decode_places(state, words, tables, places[:n], contexts, values, field):
            return False
        if sides.any():
            _mirror(extended, shape, PHASE_PARITIES[phase], sides)
    return True


@helper
def _code_rests(state, words, field, begin, shape, symbols):  # type: ignore[no-untyped-def]
    """Code signs and remainders of a band of a tile, which lies at `begin` in its volume."""
    is_encoder = state[DIRECTION] == ENCODING
    found = np.empty(shape[2] + 1, np.int64)
    for z in range(shape[0]):
        for y in range(shape[1]):
            row = field[z + 1, y + 1, 1 : 1 + shape[2]]
            out = symbols[begin[0] + z, begin[1] + y, begin[2] : begin[2] + shape[2]]
            if not is_encoder:
                for x in range(shape[2]):
                    out[x] = 0
            for i in range(nonzero_places(row, found)):
                x = found[i]
                bucket = REPRESENTED_BUCKET[row[x]]
                base, width = BUCKET_BASE[bucket], BUCKET_BITS[bucket] + 1
                if is_encoder:
                    symbol = np.int64(out[x])
                    bits = (abs(symbol) - base) << 1 | np.int64(symbol < 0)
                    encode_bits(state, words, width, bits)
                else:
                    bits = decode_bits(state, words, width)
                    if bits < 0:
                        return False
                    magnitude = base + (bits >> 1)
                    out[x] = -magnitude if bits & 1 else magnitude
    return True


@kernel
def code_level(  # type: ignore[no-untyped-def]
    state, words, tables, values, plan, shifts, n_bands, tile, parent, parent_padded,
    fields, symbols
):  # fmt: skip
    """Code one level of one tile.

    Parameters
    ----------
    tables : tuple of two SymbolTables
        Of buckets and of flags.
    values : tuple of two ndarrays
        See `_code_phases`; of buckets and of flags.
    plan : Plan
    shifts : ndarray of int64
        Per band: added to its contexts.
    n_bands : int
        Only the first ones.
    tile : ndarray of int64
        Its place in the grid of tiles.
    parent : ndarray of uint16
        Shape (BANDS, place): what stands for the coarser level's magnitudes around the tile.
    parent_padded : tuple of int
    fields : ndarray of uint16
        Shape (BANDS, *plan.padded), 0: receives what stands for the tile's magnitudes.
    symbols : ndarray of int32
        Of the volume.
    """
    is_encoder = state[DIRECTION] == ENCODING
    n_blocks = plan.padded_blocks
    every = np.empty((n_blocks[0] * n_blocks[1] * n_blocks[2], 3), np.int32)
    blocks = np.empty_like(every)
    room_size = len(every) * (BLOCK_EDGE // 2) ** 3
    room = np.empty(room_size, np.int32), np.empty(room_size, np.uint8)
    cells = np.zeros((BANDS, *n_blocks), np.uint16)
    flat, flat_cells = fields.reshape(BANDS, -1), cells.reshape(BANDS, -1)
    coarse = parent, _totals(parent)
    coarse_cells = _coarse_cells(
        parent.reshape((BANDS, *parent_padded)), n_blocks, plan.shifts, every
    )
    sides = _sides(plan.tiles, tile)
    # Not literals, for which all would be compiled once more.
    no_shift, edge = np.int64(0), np.int64(BLOCK_EDGE)
    for index in range(n_bands):
        band = plan.masks[index] - 1
        begin, shape = _box(plan.begins[index], plan.shapes[index], plan.edges, tile)
        if shape[0] < 1 or shape[1] < 1 or shape[2] < 1:
            continue
        if is_encoder:
            represent_band(symbols, begin, shape, fields[band], cells[band])
        in_blocks = _blocks_of(shape)
        n = _list_blocks(_blocks_of(in_blocks), every)
        if not _code_phases(
            state, words, tables[1], values[1], flat_cells, n_blocks, band, coarse_cells, n_blocks,
            (no_shift, no_shift, no_shift), plan.flags, every[:n], in_blocks, no_shift, sides, room,
        ):  # fmt: skip
            return False
        n = present_blocks(
            cells[band, : in_blocks[0] + 2, : in_blocks[1] + 2, : in_blocks[2] + 2], blocks
        )
        if n and not _code_phases(
            state, words, tables[0], values[0], flat, plan.padded, band, coarse, parent_padded,
            plan.shifts, plan.coefficients, blocks[:n], shape, shifts[index], sides, room,
        ):  # fmt: skip
            return False
        if not _code_rests(state, words, fields[band], begin, shape, symbols):
            return False
        block_sums(fields[band], blocks[:n], (edge, edge, edge), cells[band])
    return True


@helper
def _totals(bands):  # type: ignore[no-untyped-def]
    out = np.empty(bands.shape[1], np.uint16)
    total_of_bands(bands, out)
    return out


@helper
def _coarse_cells(parent, n_blocks, shifts, every):  # type: ignore[no-untyped-def]
    """Sum up the coarser level in the tile's blocks: per band, uint16 (BANDS, place), and all."""
    cells = np.zeros((BANDS, *n_blocks), np.uint16)
    n = _list_blocks((n_blocks[0] - 2, n_blocks[1] - 2, n_blocks[2] - 2), every)
    edges = (
        BLOCK_EDGE >> shifts[0], BLOCK_EDGE >> shifts[1], BLOCK_EDGE >> shifts[2],
    )  # fmt: skip
    for band in range(BANDS):
        block_sums(parent[band], every[:n], edges, cells[band])
    flat = cells.reshape(BANDS, -1)
    return flat, _totals(flat)


@helper
def _sides(tiles, tile):  # type: ignore[no-untyped-def]
    """Say per axis whether there is a tile before and after this one, bool (3, 2)."""
    sides = np.empty((3, 2), np.bool_)
    for axis in range(3):
        sides[axis, 0] = tile[axis] > 0
        sides[axis, 1] = tile[axis] + 1 < tiles[axis]
    return sides


@helper
def _box(begin, shape, edges, tile):  # type: ignore[no-untyped-def]
    """Return where a tile's part of a band begins in the volume, and its shape, below 1 if none."""
    z, y, x = tile[0] * edges[0], tile[1] * edges[1], tile[2] * edges[2]
    return (begin[0] + z, begin[1] + y, begin[2] + x), (
        min(edges[0], shape[0] - z),
        min(edges[1], shape[1] - y),
        min(edges[2], shape[2] - x),
    )


@helper
def _blocks_of(shape):  # type: ignore[no-untyped-def]
    """Return the number of blocks that cover a shape along each axis."""
    return (
        (shape[0] + BLOCK_EDGE - 1) // BLOCK_EDGE, (shape[1] + BLOCK_EDGE - 1) // BLOCK_EDGE,
        (shape[2] + BLOCK_EDGE - 1) // BLOCK_EDGE,
    )  # fmt: skip


@helper
def _list_blocks(shape, out):  # type: ignore[no-untyped-def]
    """List all places of a shape in C order, int32 (number, 3); return how many."""
    n = 0
    for z in range(shape[0]):
        for y in range(shape[1]):
            for x in range(shape[2]):
                out[n, 0], out[n, 1], out[n, 2] = z, y, x
                n += 1
    return n


@kernel
def code_corner(state, words, tables, values, context, corner):  # type: ignore[no-untyped-def]
    """Code a low-pass corner, int32 [z, y, x], its centre subtracted; all in one context."""
    is_encoder = state[DIRECTION] == ENCODING
    depth, height, width = corner.shape
    first = np.int64(0)
    begin = (first, first, first)
    field = np.zeros((depth + 2, height + 2, width + 2), np.uint16)
    if is_encoder:
        cells = np.zeros(field.shape, np.uint16)
        represent_band(corner, begin, corner.shape, field, cells)
    places = np.empty(corner.size, np.int32)
    n = 0
    for z in range(depth):
        for y in range(height):
            for x in range(width):
                places[n] = ((z + 1) * (height + 2) + y + 1) * (width + 2) + x + 1
                n += 1
    contexts = np.full(n, context, np.uint8)
    if is_encoder:
        encode_places(state, words, tables[0], places, contexts, values[0], field.reshape(-1))
    elif not decode_places(state, words, tables[0], places, contexts, values[0], field.reshape(-1)):
        return False
    return _code_rests(state, words, field, begin, corner.shape, corner)


@kernel
def to_words(code):  # type: ignore[no-untyped-def]
    """Read big-endian words from uint8, the last one filled up with zero bytes."""
    words = np.zeros((code.size + 3) // 4, np.uint32)
    for i in range(code.size):
        words[i >> 2] |= np.uint32(code[i]) << np.uint32(8 * (3 - (i & 3)))
    return words


@kernel
def to_bytes(words):  # type: ignore[no-untyped-def]
    """Write words big-endian as uint8, without zeros at the end; the twin of `to_words`."""
    out = np.empty(4 * len(words), np.uint8)
    n = 0
    for i in range(len(out)):
        out[i] = (words[i >> 2] >> np.uint32(8 * (3 - (i & 3)))) & np.uint32(255)
        if out[i]:
            n = i + 1
    return out[:n]


@kernel
def room_for(n_symbols):  # type: ignore[no-untyped-def]
    """Make room for the words of so many symbols."""
    return np.empty(_WORDS_PER_SYMBOL * n_symbols + _SLACK, np.uint32)
