"""A second reader of the features section, written from docs/format.md §9 and §10, slow and plain.

Symbols are exact integers, the transform is float64, and of the package only the file of tables is
used, which is part of the format. What the document says is rejected is a `ValueError`.
"""

import functools
import itertools
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tests.tree_reference import RangeDecoder

TABLES = Path(__file__).parent.parent / "tinc_codec" / "entropy" / "feature_tables.npz"
ORDER = (4, 2, 1, 6, 5, 3, 7)
PARITIES = (0, 7, 3, 5, 6, 1, 2, 4)
FACES = ((-1, 0, 0), (1, 0, 0), (0, -1, 0), (0, 1, 0), (0, 0, -1), (0, 0, 1))
TOTAL = 1 << 24

Triple = tuple[int, int, int]
Fields = dict[int, np.ndarray]


@dataclass
class Level:
    """§9.1: one level of the transform."""

    fine: Triple
    low: Triple
    splits: tuple[bool, bool, bool]
    bands: dict[int, tuple[slice, ...]]


@dataclass
class ReferenceFeatures:
    """A parsed section; levels from the finest, symbols [volume, z, y, x], edge 0 without tiles."""

    levels: list[Level]
    step_code: int
    centroids: list[tuple[int, int]]
    shifts: list[dict[int, int]]
    corners: list[tuple[int, int]]
    symbols: np.ndarray
    edge: int = 0


def axes_of(bits: int) -> list[bool]:
    """Which of z, y, x the bits of a band's number or of a pattern name."""
    return [bool(bits & bit) for bit in (4, 2, 1)]


def levels_of(grid: Triple) -> list[Level]:
    """§9.1: the levels, finest first."""
    levels = []
    fine = grid
    while max(fine) >= 8:
        splits = tuple(n >= 8 for n in fine)
        low = tuple(math.ceil(n / 2) if split else n for n, split in zip(fine, splits, strict=True))
        bands = {}
        for band in ORDER:
            high = axes_of(band)
            if all(split or not h for h, split in zip(high, splits, strict=True)):
                bands[band] = tuple(
                    slice(a, b) if h else slice(0, a)
                    for h, a, b in zip(high, low, fine, strict=True)
                )
        levels.append(Level(fine, low, splits, bands))
        fine = low
    return levels


def bucket_ranges() -> list[tuple[int, int]]:
    """§10.1: smallest magnitude and bits of the remainder per bucket."""
    octaves = [((4 + j) << (e - 2), e - 2) for e in range(3, 24) for j in range(4)]
    return [(n, 0) for n in range(8)] + octaves


BUCKETS = bucket_ranges()
STANDS_FOR = np.array(
    [base if base < 32768 else 32768 + bucket - 56 for bucket, (base, _) in enumerate(BUCKETS)]
)


class Reader:
    """Bytes that run out."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def take(self, n: int) -> bytes:
        if n > len(self.data):
            raise ValueError("truncated")
        taken, self.data = self.data[:n], self.data[n:]
        return taken

    def varint(self) -> int:
        groups = []
        while not groups or groups[-1] >= 128:
            if len(groups) == 9:
                raise ValueError("varint too long")
            groups.append(self.take(1)[0])
        if len(groups) > 1 and groups[-1] == 0:
            raise ValueError("varint with a needless byte")
        return sum((group & 127) << 7 * i for i, group in enumerate(groups))

    def signed(self) -> int:
        return int.from_bytes(self.take(1), "little", signed=True)


def integer_weights(table: list[int]) -> list[int]:
    """§8.2: 24-bit cumulative weights."""
    scale = (TOTAL - len(table)) / sum(table)
    below, weights = 0, []
    for j, p in enumerate(table):
        weights.append(math.floor(below * scale) + j)
        below += p
    return [*weights, TOTAL]


@dataclass
class Tables:
    """§10.6."""

    coefficient_weights: np.ndarray
    flag_weights: np.ndarray
    buckets: list[list[int]]
    present: list[list[int]]


@functools.cache
def load_tables() -> Tables:
    with np.load(TABLES) as arrays:
        return Tables(
            arrays["coefficient_weights"].astype(np.int64),
            arrays["flag_weights"].astype(np.int64),
            [integer_weights(row) for row in arrays["buckets"].tolist()],
            [integer_weights([65536 - n, n]) for n in arrays["present"].tolist()],
        )


class SegmentReader:
    """§10.2: one segment's code and plain bits."""

    def __init__(self, code: bytes, plain: bytes, tables: Tables) -> None:
        if code.endswith(b"\0"):
            raise ValueError("the code ends in a zero byte")
        self.tables = tables
        self.coder = RangeDecoder(code)
        self.bits = np.unpackbits(np.frombuffer(plain, np.uint8), bitorder="little").tolist()
        self.position = 0

    def buckets(self, contexts: list[int]) -> list[int]:
        return [self.coder.symbol(self.tables.buckets[context]) for context in contexts]

    def decisions(self, contexts: list[int]) -> list[int]:
        return [self.coder.symbol(self.tables.present[context]) for context in contexts]

    def take_bits(self, n: int) -> int:
        taken = self.bits[self.position : self.position + n]
        if len(taken) < n:
            raise ValueError("plain bits run out")
        self.position += n
        return sum(bit << i for i, bit in enumerate(taken))

    def magnitudes_to_symbols(self, buckets: np.ndarray) -> np.ndarray:
        """§10.7: signs and remainders, in C order."""
        symbols = np.zeros(buckets.size, np.int64)
        for i, bucket in enumerate(buckets.reshape(-1).tolist()):
            if bucket:
                base, width = BUCKETS[bucket]
                sign = self.take_bits(1)
                magnitude = base + self.take_bits(width)
                symbols[i] = -magnitude if sign else magnitude
        return symbols.reshape(buckets.shape)

    def finish(self) -> None:
        """§10.8 and §8.4: nothing may be left."""
        if self.coder.taken < len(self.coder.words) or self.coder.offset >= 2**33 - 1:
            raise ValueError("words are left")
        if math.ceil(self.position / 8) * 8 != len(self.bits) or any(self.bits[self.position :]):
            raise ValueError("plain bits are left")


def at(field: np.ndarray, places: np.ndarray, offset: Triple = (0, 0, 0)) -> np.ndarray:
    """§10.4: a field's values at places [n, 3] moved by an offset, 0 outside of its extent."""
    moved = places + np.array(offset)
    inside = ((moved >= 0) & (moved < field.shape)).all(axis=1)
    out = np.zeros(len(places), np.int64)
    out[inside] = field[tuple(moved[inside].T)]
    return out


def near(field: np.ndarray, places: np.ndarray) -> np.ndarray:
    return sum(at(field, places, offset) for offset in FACES)


def diagonal(field: np.ndarray, places: np.ndarray, pattern: int) -> np.ndarray:
    steps = [(-1, 1) if named else (0,) for named in axes_of(pattern)]
    return sum(at(field, places, offset) for offset in itertools.product(*steps))


def block_sums(field: np.ndarray, edges: Triple) -> np.ndarray:
    """Sums over blocks, at most 65535."""
    for axis, edge in enumerate(edges):
        starts = range(0, field.shape[axis], edge)
        field = np.add.reduceat(field, starts, axis=axis)
    return np.minimum(field, 65535)


def total(fields: Fields) -> np.ndarray:
    """T: the sum of fields of unequal extents, at most 65535."""
    extent = np.max([field.shape for field in fields.values()], axis=0)
    out = np.zeros(extent, np.int64)
    for field in fields.values():
        out[tuple(slice(0, n) for n in field.shape)] += field
    return np.minimum(out, 65535)


def sums(
    places: np.ndarray,
    band: int,
    phase: int,
    weights: np.ndarray,
    fields: Fields,
    coarse: Fields,
    coarse_places: np.ndarray,
) -> np.ndarray:
    """§10.4: S at places [n, 3]."""
    w = weights[band - 1, phase].tolist()
    out = np.full(len(places), w[0])
    if band in coarse:
        out += w[1] * at(coarse[band], coarse_places) + w[2] * near(coarse[band], coarse_places)
    if coarse:
        every = total(coarse)
        out += w[3] * at(every, coarse_places) + w[4] * near(every, coarse_places)
    for other in ORDER[: ORDER.index(band)]:
        if other in fields:
            out += w[4 + other] * at(fields[other], places)
            out += w[11 + other] * near(fields[other], places)
    for pattern in range(1, 8):
        if PARITIES.index(PARITIES[phase] ^ pattern) < phase:
            out += w[18 + pattern] * diagonal(fields[band], places, pattern)
    return out


def context_of(s: int, shift: int) -> int:
    """§10.5."""
    context = 0
    if s >= 8:
        e = s.bit_length() - 1
        context = 1 + 4 * (e - 3) + s // 2 ** (e - 2) % 4
    return min(max(context + shift, 0), 95)


def cells_of(shape: tuple[int, ...]) -> list[Triple]:
    """§10.3: all cells of a field, in C order."""
    return list(itertools.product(*(range(math.ceil(n / 4)) for n in shape)))


def places_of(cells: list[Triple], shape: tuple[int, ...], phase: int) -> np.ndarray:
    """§10.3: a phase's positions within some cells, as [n, 3], cell by cell."""
    places = []
    for cell in cells:
        inside = [range(4 * c, min(4 * c + 4, n)) for c, n in zip(cell, shape, strict=True)]
        for z, y, x in itertools.product(*inside):
            if 4 * (z % 2) + 2 * (y % 2) + x % 2 == PARITIES[phase]:
                places.append((z, y, x))
    return np.array(places, dtype=np.int64).reshape(-1, 3)


def by_context(contexts: list[int]) -> list[int]:
    """§10.3: the order in which positions are coded."""
    return sorted(range(len(contexts)), key=lambda i: contexts[i])


@dataclass
class BandContexts:
    """What the contexts of one volume's bands at one level are made from."""

    number: int
    level: Level
    coarser: Level | None
    magnitudes: Fields
    coarse_magnitudes: Fields


def read_band(
    state: BandContexts, band: int, shift: int, block_fields: Fields, segment: SegmentReader
) -> np.ndarray:
    """§10.2: the buckets of a band; its fields are added to those of the level."""
    shape = tuple(s.stop - s.start for s in state.level.bands[band])
    splits = state.coarser.splits if state.coarser else (False,) * 3
    kind = min(state.number, 2) if state.coarser else 3
    cells = cells_of(shape)
    if math.prod(shape) >= 4096:
        edges = tuple(2 if split else 4 for split in splits)
        coarse = {m: block_sums(f, edges) for m, f in state.coarse_magnitudes.items()}
        weights = segment.tables.flag_weights[kind]
        flags = np.zeros([math.ceil(n / 4) for n in shape], np.int64)
        block_fields[band] = flags
        for phase in range(8):
            places = places_of(cells_of(flags.shape), flags.shape, phase)
            found = sums(places, band, phase, weights, block_fields, coarse, places)
            contexts = [context_of(s, 0) for s in found.tolist()]
            order = by_context(contexts)
            flags[tuple(places[order].T)] = segment.decisions([contexts[i] for i in order])
        cells = [cell for cell in cells if flags[cell]]
    weights = segment.tables.coefficient_weights[kind]
    buckets = np.zeros(shape, np.int64)
    state.magnitudes[band] = np.zeros(shape, np.int64)
    for phase in range(8):
        places = places_of(cells, shape, phase)
        coarse_places = places // np.where(splits, 2, 1)
        found = sums(
            places, band, phase, weights, state.magnitudes, state.coarse_magnitudes, coarse_places
        )
        contexts = [context_of(s, shift) for s in found.tolist()]
        order = by_context(contexts)
        where = tuple(places[order].T)
        buckets[where] = segment.buckets([contexts[i] for i in order])
        state.magnitudes[band][where] = STANDS_FOR[buckets[where]]
    block_fields[band] = block_sums(state.magnitudes[band], (4, 4, 4))
    return buckets


def read(body: bytes, grid: Triple, volumes: int) -> ReferenceFeatures:
    """§9.2 and §10."""
    levels = levels_of(grid)
    reader = Reader(body)
    step_code = int.from_bytes(reader.take(2), "little")
    flags = reader.take(1)[0]
    if step_code > 2047 or flags > 7:
        raise ValueError("step code or flags")
    exponent = reader.take(1)[0] if flags & 4 else 0
    if flags & 4 and (not 4 <= exponent <= 30 or len(levels) < 2):
        raise ValueError("edge, or tiles of less than two levels")
    centroids = [(0, 0)] * len(levels)
    if flags & 1:
        centroids = [(reader.signed(), reader.signed()) for _ in levels]
    shifts = [dict.fromkeys(level.bands, 0) for level in levels]
    if flags & 2:
        shifts = [{band: reader.signed() for band in level.bands} for level in levels]
        if any(abs(shift) > 31 for row in shifts for shift in row.values()):
            raise ValueError("shift")
    corners = []
    for _ in range(volumes):
        context, code = reader.take(1)[0], reader.varint()
        if context > 95 or code > 33554430:
            raise ValueError("context or centre")
        corners.append((context, code // 2 if code % 2 == 0 else -(code + 1) // 2))
    found = ReferenceFeatures(
        levels, step_code, centroids, shifts, corners, np.zeros((volumes, *grid), np.int64)
    )
    if flags & 4:
        found.edge = 2**exponent
        read_parts(reader, found)
    else:
        read_segments(reader, found)
    return found


def read_segments(reader: Reader, features: ReferenceFeatures) -> None:
    """§10.2: the symbols of all segments."""
    levels, corners, symbols = features.levels, features.corners, features.symbols
    volumes = len(symbols)
    groups = [list(range(len(levels) - 1, 1, -1)), *([k] for k in (1, 0) if k < len(levels))]
    lengths = [(reader.varint(), reader.varint()) for _ in groups]
    parts = [(reader.take(code), reader.take(plain)) for code, plain in lengths]
    if reader.data:
        raise ValueError("bytes follow")
    tables = load_tables()
    magnitudes: list[Fields] = [{} for _ in range(volumes)]
    for number, (group, part) in enumerate(zip(groups, parts, strict=True)):
        segment = SegmentReader(*part, tables)
        # Plain bits have an order of their own, but which there are follows from the code.
        waiting: list[tuple[np.ndarray, np.ndarray, int]] = []
        if number == 0:
            low = corner_of(features)
            for volume, (context, centre) in enumerate(corners):
                corner = symbols[volume][tuple(slice(0, n) for n in low)]
                found = segment.buckets([context] * corner.size)
                waiting.append((corner, np.array(found).reshape(low), centre))
        for k in group:
            coarser = levels[k + 1] if k + 1 < len(levels) else None
            for volume in range(volumes):
                state = BandContexts(k, levels[k], coarser, {}, magnitudes[volume])
                block_fields: Fields = {}
                for band, where in levels[k].bands.items():
                    shift = features.shifts[k][band]
                    found = read_band(state, band, shift, block_fields, segment)
                    waiting.append((symbols[volume][where], found, 0))
                magnitudes[volume] = state.magnitudes
        for target, found, centre in waiting:
            target[...] = centre + segment.magnitudes_to_symbols(found)
        segment.finish()


def corner_of(features: ReferenceFeatures) -> tuple[int, ...]:
    """§9.1: the corner's extent."""
    return features.levels[-1].low if features.levels else features.symbols.shape[1:]


class PartReader:
    """§10.9: the code of one part."""

    def __init__(self, part: bytes) -> None:
        if part.endswith(b"\0"):
            raise ValueError("the part ends in a zero byte")
        whole = part.ljust(math.ceil(len(part) / 4) * 4, b"\0")
        self.coder = RangeDecoder(np.frombuffer(whole, ">u4").astype("<u4").tobytes())

    def raw(self, bits: int) -> int:
        coder = self.coder
        unit = coder.range >> bits
        value = coder.offset // unit
        if value >= 2**bits:
            raise ValueError("no raw number")
        coder.offset -= unit * value
        coder.range = unit
        if coder.range < 2**32:
            coder.range *= 2**32
            coder.offset = coder.offset * 2**32 + coder.next_word()
        return value

    def signed(self, buckets: np.ndarray) -> np.ndarray:
        """Signs and remainders: what the symbols of some buckets are."""
        symbols = np.zeros(buckets.size, np.int64)
        for i in np.flatnonzero(buckets):
            base, width = BUCKETS[buckets.flat[i]]
            remainder, sign = divmod(self.raw(1 + width), 2)
            symbols[i] = -(base + remainder) if sign else base + remainder
        return symbols.reshape(buckets.shape)

    def finish(self) -> None:
        if self.coder.taken < len(self.coder.words) or (
            self.coder.words and self.coder.range == 2**64 - 1
        ):
            raise ValueError("words are left")


Sides = list[tuple[bool, bool]]
"""Per axis, whether there is another tile before and behind."""
ALONE: Sides = [(False, False)] * 3


def extended(field: np.ndarray, sides: Sides) -> np.ndarray:
    """§10.9: a field from position -1 on to one beyond its end, 0 where it is not extended."""
    out = np.pad(field, 1)
    for axis, (before, behind) in enumerate(sides):
        size = field.shape[axis]
        # A view, in which position p is at p + 1.
        line = np.moveaxis(out, axis, 0)
        if size >= 2 and before:
            line[0] = line[2]
        if size >= 2 and behind:
            line[size + 1] = line[size - 1]
    return out


@dataclass
class Piece:
    """§10.9: a level of one volume, or what a tile holds of it."""

    number: int
    level: Level
    coarser: Level | None
    bands: dict[int, tuple[slice, ...]]
    sides: Sides
    coarse: Fields
    coarse_blocks: Fields
    """Both G, from position -1 on."""


def read_piece(
    piece: Piece, shifts: dict[int, int], part: PartReader, symbols: np.ndarray
) -> Fields:
    """§10.9: the symbols of all bands; returns what stands for their magnitudes."""
    splits = piece.coarser.splits if piece.coarser else (False,) * 3
    kind = min(piece.number, 2) if piece.coarser else 3
    tables = load_tables()
    fields: Fields = {}
    grown: Fields = {}
    grown_blocks: Fields = {}
    for band, where in piece.bands.items():
        shape = tuple(s.stop - s.start for s in where)
        flags = np.zeros([math.ceil(n / 4) for n in shape], np.int64)
        for phase in range(8):
            grown_blocks[band] = extended(flags, piece.sides)
            places = places_of(cells_of(flags.shape), flags.shape, phase)
            weights = tables.flag_weights[kind]
            contexts = contexts_at(
                places, band, phase, weights, grown_blocks, piece.coarse_blocks, places, 0
            )
            for place, context in zip(places.tolist(), contexts, strict=True):
                flags[tuple(place)] = part.coder.symbol(tables.present[context])
        cells = [cell for cell in cells_of(shape) if flags[cell]]
        buckets = np.zeros(shape, np.int64)
        for phase in range(8):
            grown[band] = extended(STANDS_FOR[buckets], piece.sides)
            places = places_of(cells, shape, phase)
            weights = tables.coefficient_weights[kind]
            contexts = contexts_at(
                places, band, phase, weights, grown, piece.coarse,
                places // np.where(splits, 2, 1), shifts[band],
            )  # fmt: skip
            for place, context in zip(places.tolist(), contexts, strict=True):
                buckets[tuple(place)] = part.coder.symbol(tables.buckets[context])
        symbols[where] = part.signed(buckets)
        fields[band] = STANDS_FOR[buckets]
        grown[band] = extended(fields[band], piece.sides)
        grown_blocks[band] = np.pad(block_sums(fields[band], (4, 4, 4)), 1)
    return fields


def contexts_at(
    places: np.ndarray,
    band: int,
    phase: int,
    weights: np.ndarray,
    fields: Fields,
    coarse: Fields,
    coarse_places: np.ndarray,
    shift: int,
) -> list[int]:
    """§10.4 and §10.5 for fields from position -1 on."""
    if len(places) == 0:
        return []
    found = sums(places + 1, band, phase, weights, fields, coarse, coarse_places + 1)
    return [context_of(s, shift) for s in found.tolist()]


def sums_of_blocks(fields: Fields, coarser: Level | None) -> Fields:
    """§10.4: G for decisions, from position -1 on."""
    if coarser is None:
        return {}
    edges = tuple(2 if split else 4 for split in coarser.splits)
    return {band: np.pad(block_sums(field, edges), 1) for band, field in fields.items()}


def read_parts(reader: Reader, features: ReferenceFeatures) -> None:
    """§10.9: the symbols of all parts."""
    levels, volumes = features.levels, len(features.symbols)
    numbers = [math.ceil(n / features.edge) for n in levels[0].fine]
    tiles = list(itertools.product(*map(range, numbers)))
    count = volumes * (1 + 2 * len(tiles))
    if len(reader.data) < count:
        raise ValueError("more parts than bytes")
    lengths = [reader.varint() for _ in range(count)]
    parts = [PartReader(reader.take(length)) for length in lengths]
    if reader.data:
        raise ValueError("bytes follow")
    coarse = [read_coarse(features, volume, parts[volume]) for volume in range(volumes)]
    following = iter(parts[volumes:])
    held: dict[tuple[int, Triple], Fields] = {}
    for k in (1, 0):
        for volume in range(volumes):
            for tile in tiles:
                sides = [(t > 0, t + 1 < n) for t, n in zip(tile, numbers, strict=True)]
                level, part = levels[k], next(following)
                coarser = levels[k + 1] if k + 1 < len(levels) else None
                first = tuple(t * n for t, n in zip(tile, edges_of(features, k), strict=True))
                if k == 1:
                    around, inside = cut(coarse[volume], features, first)
                else:
                    inside = held[volume, tile]
                    around = {band: extended(field, sides) for band, field in inside.items()}
                blocks = sums_of_blocks(inside, coarser)
                bands = held_of(level, first, edges_of(features, k))
                piece = Piece(k, level, coarser, bands, sides, around, blocks)
                held[volume, tile] = read_piece(
                    piece, features.shifts[k], part, features.symbols[volume]
                )
                part.finish()


def edges_of(features: ReferenceFeatures, k: int) -> list[int]:
    """§10.9: positions of a tile of level k along each axis."""
    return [
        features.edge >> sum(level.splits[axis] for level in features.levels[: k + 1])
        for axis in range(3)
    ]


def held_of(level: Level, first: tuple[int, ...], edges: list[int]) -> dict[int, tuple[slice, ...]]:
    """§10.9: where the coefficients lie that a tile holds of each band, if there are any."""
    held = {}
    for band, where in level.bands.items():
        found = tuple(
            slice(s.start + at, min(s.start + at + edge, s.stop))
            for s, at, edge in zip(where, first, edges, strict=True)
        )
        if all(s.start < s.stop for s in found):
            held[band] = found
    return held


def cut(
    coarse: Fields, features: ReferenceFeatures, first: tuple[int, ...]
) -> tuple[Fields, Fields]:
    """§10.9: of level 2, what is around a tile of level 1, from position -1 on, and its own."""
    if len(features.levels) == 2:
        return {}, {}
    splits = features.levels[2].splits
    begins = [n // 2 if split else n for n, split in zip(first, splits, strict=True)]
    sizes = [n // 2 if split else n for n, split in zip(edges_of(features, 1), splits, strict=True)]
    around, inside = {}, {}
    for band, field in coarse.items():
        # One more than the tile has on each side; position p of the field is at p + 1.
        whole = np.pad(field, 1)
        around[band] = whole[tuple(slice(b, b + n + 2) for b, n in zip(begins, sizes, strict=True))]
        own = field[tuple(slice(b, b + n) for b, n in zip(begins, sizes, strict=True))]
        if own.size:
            inside[band] = own
    return around, inside


def read_coarse(features: ReferenceFeatures, volume: int, part: PartReader) -> Fields:
    """§10.9: the corner and the levels that are not cut; what stands for the finest of them."""
    low = corner_of(features)
    context, centre = features.corners[volume]
    table = load_tables().buckets[context]
    buckets = np.array([part.coder.symbol(table) for _ in range(math.prod(low))]).reshape(low)
    symbols = features.symbols[volume]
    symbols[tuple(slice(0, n) for n in low)] = centre + part.signed(buckets)
    levels, fields = features.levels, {}
    for k in range(len(levels) - 1, 1, -1):
        coarser = levels[k + 1] if k + 1 < len(levels) else None
        around = {band: np.pad(field, 1) for band, field in fields.items()}
        blocks = sums_of_blocks(fields, coarser)
        piece = Piece(k, levels[k], coarser, levels[k].bands, ALONE, around, blocks)
        fields = read_piece(piece, features.shifts[k], part, symbols)
    part.finish()
    return fields


def step_of(code: int) -> np.float32:
    """§9.3: the step of a code."""
    return np.float32(2.0 ** (4 - code / 64))


def coefficients_of(features: ReferenceFeatures) -> np.ndarray:
    """§9.3: the coefficients, float32 [volume, z, y, x]."""
    more = np.zeros((2, *features.symbols.shape[1:]), np.float32)
    for level, pair in zip(features.levels, features.centroids, strict=True):
        for where in level.bands.values():
            more[0][where], more[1][where] = np.float32(pair[0] / 256), np.float32(pair[1] / 256)
    size = np.abs(features.symbols)
    centroid = np.where(size == 1, more[0], more[1])
    values = (size.astype(np.float32) + centroid) * step_of(features.step_code)
    return np.where(size == 0, np.float32(0), np.sign(features.symbols).astype(np.float32) * values)


ALPHA, BETA, GAMMA, DELTA, K, K_INVERSE = (
    float(np.float32(constant))
    for constant in (
        -1.586134342059924, -0.052980118572961, 0.882911075530934, 0.443506852043971,
        1.1496043988602418, 0.869864451624781,
    )
)  # fmt: skip


def merge(lines: np.ndarray) -> np.ndarray:
    """§9.4: undo the split of the last axis, low-pass samples first."""
    n = lines.shape[-1]
    low = math.ceil(n / 2)
    s, d = lines[..., :low] * K_INVERSE, lines[..., low:] * K

    def moved(a: np.ndarray, by: int, count: int) -> np.ndarray:
        return a[..., np.clip(np.arange(count) + by, 0, a.shape[-1] - 1)]

    s = s - DELTA * (moved(d, -1, low) + moved(d, 0, low))
    d = d - GAMMA * (moved(s, 0, n - low) + moved(s, 1, n - low))
    s = s - BETA * (moved(d, -1, low) + moved(d, 0, low))
    d = d - ALPHA * (moved(s, 0, n - low) + moved(s, 1, n - low))
    out = np.empty_like(lines)
    out[..., 0::2], out[..., 1::2] = s, d
    return out


def inverse(coefficients: np.ndarray, levels: list[Level]) -> np.ndarray:
    """§9.4: float64 [volume, z, y, x]."""
    out = coefficients.astype(np.float64)
    for level in reversed(levels):
        box = (slice(None), *(slice(0, n) for n in level.fine))
        for axis, split in enumerate(level.splits, start=1):
            if split:
                lines = np.moveaxis(out[box], axis, -1)
                out[box] = np.moveaxis(merge(lines), -1, axis)
    return out


def values_of(features: ReferenceFeatures) -> np.ndarray:
    """§9: what the features give for t, float64 [volume, z, y, x]."""
    return inverse(coefficients_of(features), features.levels)
