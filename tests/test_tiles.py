"""Features in tiles: the range coder, parts that stand alone, boxes decoded lazily, and damage."""

import math
import threading
from dataclasses import dataclass, replace
from itertools import pairwise

import constriction
import google_crc32c
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.faces import psnr, smooth_volume
from tests.memory import AllocationMeter
from tests.strategies import seeds
from tests.test_features import (
    KINDS,
    flipped,
    low_passes_of,
    some_features,
    some_shifts,
    some_symbols,
    with_lengths,
)
from tinc_codec import TINC, ConfigError, CorruptStreamError, FormatError
from tinc_codec.bitstream.header import CRC_BYTES, Header, read_stream, write_stream
from tinc_codec.bitstream.sections import Section, has_tiles
from tinc_codec.bitstream.varint import MAX_VARINT, write_varint
from tinc_codec.bitstream.version import MAGIC
from tinc_codec.codec import decode_chunk, decode_region, encode_chunk
from tinc_codec.entropy.bands import LowPass
from tinc_codec.entropy.buckets import MAX_MAGNITUDE, N_BUCKETS
from tinc_codec.entropy.feature_tables import N_CONTEXTS, bucket_model, flag_model
from tinc_codec.entropy.pyramid import Level
from tinc_codec.entropy.range_symbols import (
    OFFSET,
    RANGE,
    bucket_tables,
    decode_bits,
    decode_places,
    encode_bits,
    encode_places,
    finish_encoding,
    flag_tables,
    has_words_left,
    new_state,
    start_decoding,
    start_encoding,
)
from tinc_codec.entropy.tile_plan import TILED_LEVELS, tiling_of
from tinc_codec.entropy.tile_walk import to_bytes, to_words
from tinc_codec.entropy.tiles import TiledBands, count_parts, decode_tiled, encode_tiled
from tinc_codec.errors import TruncatedStreamError
from tinc_codec.model import wavelet
from tinc_codec.model.coefficients import coefficients_of
from tinc_codec.model.feature_voxels import FeatureVoxels
from tinc_codec.model.features import (
    decode_features,
    feature_levels,
    no_shifts,
    parse_features,
    read_features,
    whole_edge,
    write_features,
)
from tinc_codec.params import EncodingParams
from tinc_codec.volume.chunk import analyse

EDGES = (16, 32, 64)
SENTINEL = np.int32(-12345)

# The range coder


class Writer:
    """Symbols and raw bits -> words."""

    def __init__(self, size: int) -> None:
        self.state = new_state()
        self._words = np.empty(2 * size + 8, np.uint32)
        start_encoding(self.state)

    def symbols(self, tables, contexts: np.ndarray, symbols: np.ndarray) -> None:
        places = np.arange(len(symbols), dtype=np.int32)
        same = np.arange(256, dtype=np.uint16)
        encode_places(
            self.state, self._words, tables, places, contexts, same, symbols.astype(np.uint16)
        )

    def bits(self, n: int, value: int) -> None:
        encode_bits(self.state, self._words, n, value)

    def finish(self) -> np.ndarray:
        return self._words[: finish_encoding(self.state, self._words)].copy()


class Reader:
    """Words -> symbols and raw bits; None and -1 where they are no code."""

    def __init__(self, words: np.ndarray) -> None:
        self.state, self.words = new_state(), words
        start_decoding(self.state, words)

    def symbols(self, tables, contexts: np.ndarray) -> np.ndarray | None:
        places = np.arange(len(contexts), dtype=np.int32)
        found = np.zeros(len(contexts), np.uint16)
        same = np.arange(256, dtype=np.uint16)
        is_code = decode_places(self.state, self.words, tables, places, contexts, same, found)
        return found if is_code else None

    def bits(self, n: int) -> int:
        return int(decode_bits(self.state, self.words, n))


def improbable(tables) -> np.ndarray:
    """Per context the symbol of the smallest share."""
    return np.diff(tables.cumulative.astype(np.int64), axis=1).argmin(axis=1)


def some_run(rng: np.random.Generator, tables, kind: str, n: int):
    contexts = rng.integers(0, N_CONTEXTS, n).astype(np.uint8)
    last = tables.cumulative.shape[1] - 2
    if kind == "any":
        return contexts, rng.integers(0, last, n, endpoint=True)
    if kind == "last":
        return contexts, np.full(n, last)
    if kind == "improbable":
        return contexts, improbable(tables)[contexts]
    return contexts, np.zeros(n, np.int64)


RUNS = ("any", "last", "improbable", "first")


class TestRangeSymbols:
    @settings(max_examples=150)
    @given(
        st.lists(
            st.one_of(
                st.tuples(st.sampled_from(RUNS), st.booleans(), st.integers(0, 70)),
                st.tuples(st.just("bits"), st.integers(1, 22), st.integers(0, 40)),
            ),
            max_size=8,
        ),
        seeds,
    )
    def test_what_is_written_comes_back(self, runs, seed):
        rng = np.random.default_rng(seed)
        writer = Writer(sum(n for *_, n in runs))
        written = []
        for kind, which, n in runs:
            if kind == "bits":
                values = rng.integers(0, 1 << which, n).tolist()
                for value in values:
                    writer.bits(which, value)
                written.append((kind, which, values))
                continue
            tables = flag_tables() if which else bucket_tables()
            contexts, symbols = some_run(rng, tables, kind, n)
            writer.symbols(tables, contexts, symbols)
            written.append((tables, contexts, symbols))
        words = writer.finish()
        # Zeros at the end are left out, and filled up.
        packed = to_bytes(words)
        assert len(packed) == 0 or packed[-1] != 0
        reader = Reader(to_words(packed))
        for tables, contexts, symbols in written:
            if tables == "bits":
                assert [reader.bits(contexts) for _ in symbols] == symbols
            else:
                np.testing.assert_array_equal(reader.symbols(tables, contexts), symbols)
        assert not has_words_left(reader.state, reader.words)

    @pytest.mark.parametrize("beyond", [-1, 1])
    def test_a_carry_goes_through_many_words(self, beyond):
        """Parts of the range are chosen that hold a word's end, so that words of ones pile up."""
        writer, values = Writer(40), []

        def part(end: int) -> int:
            unit = int(writer.state[RANGE]) >> 22
            return (end - int(writer.state[OFFSET])) // unit

        writer.bits(22, 12345)
        values.append(12345)
        values.append(part((int(writer.state[OFFSET]) // 2**32 + 1) * 2**32))
        writer.bits(22, values[-1])
        for _ in range(12):
            assert int(writer.state[OFFSET]) + int(writer.state[RANGE]) > 2**64
            values.append(part(2**64))
            writer.bits(22, values[-1])
        values.append(part(2**64) + beyond)
        writer.bits(22, values[-1])
        words = writer.finish()
        # With the carry, words of ones became zeros.
        piled = words[1:-3]
        assert len(piled) > 6
        assert (piled == (0 if beyond > 0 else 2**32 - 1)).all()
        reader = Reader(words)
        assert [reader.bits(22) for _ in values] == values

    @settings(max_examples=40)
    @given(st.lists(st.sampled_from(RUNS), max_size=6), st.booleans(), seeds)
    def test_constriction_does_the_same(self, kinds, is_flags, seed):
        rng = np.random.default_rng(seed)
        tables, model = (flag_tables(), flag_model) if is_flags else (bucket_tables(), bucket_model)
        runs = [some_run(rng, tables, kind, int(rng.integers(1, 60))) for kind in kinds]
        contexts = np.concatenate([[], *(run[0] for run in runs)]).astype(np.uint8)
        symbols = np.concatenate([[], *(run[1] for run in runs)]).astype(np.int32)
        writer = Writer(len(symbols))
        writer.symbols(tables, contexts, symbols)
        theirs = constriction.stream.queue.RangeDecoder(writer.finish())
        found = [theirs.decode(model(context)) for context in contexts.tolist()]
        assert found == symbols.tolist()
        encoder = constriction.stream.queue.RangeEncoder()
        for context, symbol in zip(contexts.tolist(), symbols.tolist(), strict=True):
            encoder.encode(symbol, model(context))
        reader = Reader(encoder.get_compressed())
        np.testing.assert_array_equal(reader.symbols(tables, contexts), symbols)

    def test_tables_leave_every_symbol_a_share(self):
        for tables, n in ((bucket_tables(), N_BUCKETS), (flag_tables(), 2)):
            shares = np.diff(tables.cumulative.astype(np.int64), axis=1)
            assert shares.shape == (N_CONTEXTS, n)
            assert shares.min() > 0
            assert (shares.sum(axis=1) == 1 << 24).all()
            # The guide never points behind the symbol.
            marks = np.arange(256) << 16
            for row, guide in zip(tables.cumulative, tables.guide, strict=True):
                assert (row[guide] <= marks).all()
                assert (row[guide.astype(int) + 1] > marks).all()

    @pytest.mark.parametrize("n", [1, 7, 22])
    def test_words_beyond_any_code_are_refused(self, n):
        ones = np.full(3, 2**32 - 1, np.uint32)
        assert Reader(ones).bits(n) == -1
        assert Reader(ones).symbols(bucket_tables(), np.zeros(1, np.uint8)) is None


# Tiles


@st.composite
def tiled_grids(draw: st.DrawFn, max_voxels: int = 60_000) -> tuple[int, int, int]:
    """Grids of two levels or more."""
    longest = draw(st.integers(15, 80))
    middle = draw(st.integers(1, min(80, max_voxels // longest)))
    last = draw(st.integers(1, min(80, max(1, max_voxels // longest // middle))))
    z, y, x = draw(st.permutations([longest, middle, last]))
    return z, y, x


@dataclass(frozen=True)
class Case:
    """Symbols and their code."""

    symbols: np.ndarray
    levels: tuple[Level, ...]
    bands: TiledBands

    @property
    def grid(self) -> tuple[int, int, int]:
        _, z, y, x = self.symbols.shape
        return z, y, x


def some_case(seed: int, grid, volumes: int = 1, kind: str = "sparse", edge: int = 16) -> Case:
    rng = np.random.default_rng(seed)
    levels = feature_levels(grid)
    symbols = some_symbols(rng, kind, volumes, grid)
    # Blocks that are absent, whole tiles of them.
    symbols[..., grid[2] // 2 :] *= rng.random((*symbols.shape[:3], 1)) < 0.3
    low_passes, shifts = low_passes_of(symbols, levels), some_shifts(rng, levels)
    parts = encode_tiled(symbols, levels, low_passes, shifts, edge)
    assert len(parts) == count_parts(levels, volumes, edge)
    return Case(symbols, levels, bands_of(parts, levels, low_passes, shifts, edge))


def bands_of(parts, levels, low_passes, shifts, edge) -> TiledBands:
    code = np.frombuffer(b"".join(parts), np.uint8)
    sizes = np.array([len(part) for part in parts], np.int64)
    return TiledBands(code, sizes, levels, low_passes, shifts, edge)


def parts_of(bands: TiledBands) -> list[bytes]:
    ends = np.concatenate([[0], np.cumsum(bands.sizes)]).tolist()
    return [bands.code[start:stop].tobytes() for start, stop in pairwise(ends)]


def tile_boxes(levels: tuple[Level, ...], edge: int, place, finest: int) -> list[tuple[slice, ...]]:
    """Where a tile's coefficients lie, from the geometry of the levels alone."""
    boxes = []
    sizes = [edge] * 3
    for level in levels[:TILED_LEVELS]:
        sizes = [
            size // 2 if fine > low else size
            for size, fine, low in zip(sizes, level.fine, level.low, strict=True)
        ]
        for band in level.masks if level.number >= finest else ():
            whole = level.band_slices(band)
            boxes.append(
                tuple(
                    slice(min(s.start + p * n, s.stop), min(s.start + (p + 1) * n, s.stop))
                    for s, p, n in zip(whole, place, sizes, strict=True)
                )
            )
    return boxes


class TestTiles:
    @settings(max_examples=60)
    @given(tiled_grids(), st.integers(1, 2), st.sampled_from(KINDS), st.sampled_from(EDGES), seeds)
    def test_symbols_come_back(self, grid, volumes, kind, edge, seed):
        case = some_case(seed, grid, volumes, kind, edge)
        found = decode_tiled(case.bands, grid)
        assert found.dtype == np.int32
        np.testing.assert_array_equal(found, case.symbols)
        np.testing.assert_array_equal(decode_tiled(case.bands, grid, threads=3), found)

    @settings(max_examples=30)
    @given(tiled_grids(20_000), st.sampled_from(KINDS), st.sampled_from(EDGES), seeds, st.data())
    def test_low_levels_can_be_read_alone(self, grid, kind, edge, seed, data):
        case = some_case(seed, grid, 2, kind, edge)
        finest = data.draw(st.integers(0, len(case.levels)))
        most_high = data.draw(st.integers(1, 3))
        found = decode_tiled(case.bands, grid, finest=finest, most_high=most_high)
        fine = wavelet.level_shapes(grid)[finest]
        assert found.shape == (2, *fine)
        expected = case.symbols[:, *(slice(0, n) for n in fine)].copy()
        for mask in case.levels[finest].masks if finest < len(case.levels) else ():
            if mask.bit_count() > most_high:
                band = case.levels[finest].band_slices(mask)
                expected[:, *band] = found[:, *band] = 0
        np.testing.assert_array_equal(found, expected)

    @settings(max_examples=30)
    @given(tiled_grids(), st.sampled_from(KINDS), st.sampled_from(EDGES), seeds, st.data())
    def test_a_tile_gives_its_own_box_and_touches_nothing_else(self, grid, kind, edge, seed, data):
        case = some_case(seed, grid, 2, kind, edge)
        volume = data.draw(st.integers(0, 1))
        number = data.draw(st.integers(0, len(case.bands.tiling) - 1))
        finest = data.draw(st.integers(0, 1))
        coarser = coarse_of(case.bands, volume)
        expected = np.full(grid, SENTINEL)
        room = expected.copy()
        place = np.unravel_index(number, case.bands.tiling.grid)
        for box in tile_boxes(case.levels, edge, place, finest):
            expected[box] = case.symbols[volume][box]
            room[box] = 0
        case.bands.tiles(volume, np.array([number]), np.array([finest]), coarser, room)
        np.testing.assert_array_equal(room, expected)

    @settings(max_examples=25)
    @given(tiled_grids(30_000), st.sampled_from(EDGES), seeds)
    def test_tiles_cover_what_is_tiled_once(self, grid, edge, seed):
        levels = feature_levels(grid)
        counts = np.zeros(grid, int)
        counts[tuple(slice(0, n) for n in levels[TILED_LEVELS - 1].low)] = 1
        for place in tiling_of(levels, edge).places:
            for box in tile_boxes(levels, edge, place, 0):
                counts[box] += 1
        assert (counts == 1).all()

    @settings(max_examples=30)
    @given(tiled_grids(), st.sampled_from(["sparse", "small", "extreme"]), seeds, st.data())
    def test_a_tile_needs_no_byte_of_another(self, grid, kind, seed, data):
        case = some_case(seed, grid, 2, kind, 16)
        bands, n_tiles = case.bands, len(case.bands.tiling)
        number = data.draw(st.integers(0, n_tiles - 1))
        volume = data.draw(st.integers(0, 1))
        finest = data.draw(st.integers(0, 1))
        rng = np.random.default_rng(seed)
        own = {volume, 2 + volume * n_tiles + number}
        if finest == 0:
            own.add(2 + (2 + volume) * n_tiles + number)
        parts = [
            part if i in own else rng.integers(1, 255, len(part)).astype(np.uint8).tobytes()
            for i, part in enumerate(parts_of(bands))
        ]
        damaged = bands_of(parts, case.levels, bands.low_passes, bands.shifts, 16)
        expected, found = np.zeros(grid, np.int32), np.zeros(grid, np.int32)
        for room, source in ((expected, bands), (found, damaged)):
            source.tiles(
                volume, np.array([number]), np.array([finest]), coarse_of(source, volume), room
            )
        np.testing.assert_array_equal(found, expected)

    def test_what_is_absent_costs_next_to_nothing(self):
        grid = (64, 64, 64)
        levels = feature_levels(grid)
        symbols = np.zeros((1, *grid), np.int32)
        empty = encode_tiled(symbols, levels, [LowPass(0, 0)], no_shifts(levels), 16)
        assert b"".join(empty) == b""
        symbols[0, 40:44, 40:44, 40:44] = 3
        one = encode_tiled(symbols, levels, [LowPass(0, 0)], no_shifts(levels), 16)
        assert sum(map(len, one)) < 80
        assert sum(map(bool, one)) == 1

    def test_tiles_cost_little_beside_one(self):
        """Contexts that end at a tile's faces are nearly as good."""
        grid = (64, 64, 64)
        levels = feature_levels(grid)
        axes = np.meshgrid(*(np.linspace(0, 3, n) for n in grid), indexing="ij")
        rough = np.random.default_rng(2).normal(0, 1, grid) * (axes[0] > 1.7)
        volume = (np.sin(5 * axes[1]) * 20 + rough).astype(np.float32)
        symbols = np.rint(wavelet.forward(volume[None])).astype(np.int32)
        low_passes = low_passes_of(symbols, levels)
        sizes = [
            sum(map(len, encode_tiled(symbols, levels, low_passes, no_shifts(levels), edge)))
            for edge in (64, 32)
        ]
        assert sizes[0] <= sizes[1] < 1.03 * sizes[0]


def coarse_of(bands: TiledBands, volume: int) -> np.ndarray:
    """What tiles take from the levels that are not cut."""
    low = bands.levels[TILED_LEVELS - 1].low
    return bands.coarse(volume, np.zeros(low, np.int32))


# Boxes


def some_section(seed: int, grid, volumes: int = 1, kind: str = "small", edge: int = 16) -> bytes:
    features, low_passes = some_features(seed, grid, volumes, kind)
    body = write_features(replace(features, tile=edge), low_passes)
    assert has_tiles(body)
    return body


@st.composite
def boxes(draw: st.DrawFn, grid) -> tuple[tuple[int, int], ...]:
    """Voxels, planes, intervals, whole axes."""
    ranges = []
    for n in grid:
        start = draw(st.integers(0, n - 1))
        stop = draw(st.one_of(st.just(start + 1), st.integers(start + 1, n)))
        ranges.append(draw(st.sampled_from([(start, stop), (start, stop), (0, n)])))
    return tuple(ranges)


def whole_of(body: bytes, grid, volumes: int) -> np.ndarray:
    return wavelet.inverse(coefficients_of(read_features(body, grid, volumes)))


def at(ranges) -> tuple[slice, ...]:
    return tuple(slice(*pair) for pair in ranges)


@pytest.fixture
def decoded(monkeypatch):
    """List what `TiledBands.tiles` is asked for: volume, tile, finest level."""
    found = []
    tiles = TiledBands.tiles

    def watched(self, volume, numbers, finest, *rest, **options):
        found.extend((volume, *pair) for pair in zip(numbers, finest, strict=True))
        tiles(self, volume, numbers, finest, *rest, **options)

    monkeypatch.setattr(TiledBands, "tiles", watched)
    return found


class TestBoxes:
    @settings(max_examples=40)
    @given(tiled_grids(30_000), st.integers(1, 3), st.sampled_from([16, 32]), seeds, st.data())
    def test_any_box_has_the_bits_of_the_whole(self, grid, volumes, edge, seed, data):
        body = some_section(seed, grid, volumes, "small", edge)
        whole = whole_of(body, grid, volumes)
        voxels = FeatureVoxels(parse_features(body, grid, volumes))
        for _ in range(4):
            ranges = data.draw(boxes(grid))
            first = data.draw(st.integers(0, volumes - 1))
            last = data.draw(st.integers(first, volumes - 1))
            found = voxels.box(range(first, last + 1), ranges, data.draw(st.integers(1, 3)))
            expected = whole[first : last + 1, *at(ranges)]
            np.testing.assert_array_equal(found.view(np.uint32), expected.view(np.uint32))

    @pytest.mark.parametrize("edge", [16, 32])
    def test_threads_share_one(self, edge):
        grid, volumes = (48, 40, 44), 2
        body = some_section(3, grid, volumes, "small", edge)
        whole = whole_of(body, grid, volumes)
        voxels = FeatureVoxels(parse_features(body, grid, volumes))
        failures: list[object] = []
        together = threading.Barrier(4)

        def work(seed: int) -> None:
            rng = np.random.default_rng(seed)
            together.wait()
            for _ in range(25):
                starts = rng.integers(0, np.array(grid) - 6)
                ranges = tuple((int(a), int(a + rng.integers(1, 6))) for a in starts)
                volume = int(rng.integers(volumes))
                try:
                    found = voxels.box([volume], ranges, 1)[0]
                except Exception as error:
                    failures.append(error)
                    return
                if not np.array_equal(found, whole[volume][at(ranges)]):
                    failures.append(ranges)

        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failures == []

    def test_a_voxel_decodes_few_tiles(self, decoded):
        grid = (64, 64, 64)
        body = some_section(1, grid, 2)
        voxels = FeatureVoxels(parse_features(body, grid, 2))
        assert decoded == []
        voxels.box([1], ((24, 25),) * 3, 1)
        # One tile to the finest level, those around it only to the next one.
        assert {volume for volume, *_ in decoded} == {1}
        assert sum(finest == 0 for *_, finest in decoded) == 1
        assert len(decoded) == 3**3
        before = list(decoded)
        voxels.box([1], ((23, 25), (24, 25), (24, 26)), 1)
        assert decoded == before

    @pytest.mark.parametrize("axis", [0, 1, 2])
    def test_a_plane_decodes_few_tiles(self, decoded, axis):
        grid = (64, 64, 64)
        voxels = FeatureVoxels(parse_features(some_section(1, grid), grid, 1))
        ranges = [(0, 64)] * 3
        ranges[axis] = (24, 25)
        voxels.box([0], tuple(ranges), 1)
        assert sum(finest == 0 for *_, finest in decoded) == 16
        assert len(decoded) == 3 * 16

    def test_each_tile_is_decoded_once(self, decoded):
        grid = (40, 36, 50)
        voxels = FeatureVoxels(parse_features(some_section(2, grid), grid, 1))
        for z in range(0, 40, 3):
            voxels.box([0], ((z, z + 1), (0, 36), (0, 50)), 1)
        voxels.box([0], ((0, 40), (0, 36), (0, 50)), 1)
        tiles = [number for _, number, finest in decoded if finest == 0]
        n_tiles = 3 * 3 * 4
        assert sorted(tiles) == list(range(n_tiles))
        coarse = [number for _, number, finest in decoded if finest == 1]
        assert len(set(coarse)) == len(coarse)

    def test_damage_is_found_where_it_is_needed(self):
        grid = (64, 16, 16)
        features, low_passes = some_features(4, grid, kind="small")
        body = write_features(replace(features, tile=16), low_passes)
        section = parse_features(body, grid, 1)
        parts = parts_of(section.tiles)
        # Ones are no code, whatever the tables are.
        parts[-1] = b"\xff" * len(parts[-1])
        tiles = section.tiles
        tiles = bands_of(parts, tiles.levels, tiles.low_passes, tiles.shifts, 16)
        voxels = FeatureVoxels(replace(section, tiles=tiles))
        expected = whole_of(body, grid, 1)
        for _ in range(2):
            near = ((0, 20), (0, 16), (0, 16))
            np.testing.assert_array_equal(voxels.box([0], near, 1), expected[:, :20])
            with pytest.raises(CorruptStreamError, match="no code"):
                voxels.box([0], ((63, 64), (0, 1), (0, 1)), 1)

    def test_its_size_is_that_of_coefficients_and_code(self):
        grid = (20, 24, 17)
        section = parse_features(some_section(1, grid, 2), grid, 2)
        voxels = FeatureVoxels(section)
        assert voxels.size_bytes == 4 * 2 * math.prod(grid) + section.tiles.code.nbytes


# The section


class TestSection:
    @settings(max_examples=40)
    @given(
        tiled_grids(10_000),
        st.integers(1, 3),
        st.sampled_from(KINDS),
        st.sampled_from(EDGES),
        seeds,
    )
    def test_sections_come_back(self, grid, volumes, kind, edge, seed):
        features, low_passes = some_features(seed, grid, volumes, kind)
        features = replace(features, tile=edge)
        body = write_features(features, low_passes)
        found = read_features(body, grid, volumes)
        np.testing.assert_array_equal(found.symbols, features.symbols)
        assert found.step_code == features.step_code
        assert (found.centroids, found.shifts) == (features.centroids, features.shifts)
        assert found.tile == edge
        assert write_features(found, low_passes) == body
        assert (body[2] >> 2, body[3]) == (1, edge.bit_length() - 1)

    def test_coarse_features_can_be_read_alone(self):
        grid = (40, 33, 20)
        body = some_section(5, grid, 2)
        section = parse_features(body, grid, 2)
        whole = coefficients_of(read_features(body, grid, 2))
        for skip, shape in enumerate(wavelet.level_shapes(grid)):
            found = decode_features(section, skip_levels=skip)
            coarse = wavelet.inverse(coefficients_of(found))
            assert coarse.shape == (2, *shape)
            gained = coarse * np.float32(wavelet.level_gain(grid, skip))
            np.testing.assert_array_equal(gained, wavelet.inverse(whole, skip_levels=skip))

    @pytest.mark.parametrize("grid", [(7, 7, 7), (14, 3, 9), (1, 1, 8)])
    def test_grids_of_fewer_levels_are_one_segment(self, grid):
        assert len(feature_levels(grid)) < TILED_LEVELS
        features, low_passes = some_features(1, grid)
        body = write_features(replace(features, tile=16), low_passes)
        assert body == write_features(features, low_passes)
        assert not has_tiles(body)

    @pytest.mark.parametrize(
        ("grid", "edge"), [((1, 1, 1), 16), ((16, 3, 9), 16), ((1, 17, 1), 32), ((9, 64, 65), 128)]
    )
    def test_edges_of_whole_grids(self, grid, edge):
        assert whole_edge(grid) == edge

    @pytest.mark.parametrize("grid", [(64, 64, 64), (1, 200, 30), (1, 1, 700)])
    def test_a_whole_grid_is_one_tile(self, grid):
        assert len(tiling_of(feature_levels(grid), whole_edge(grid))) == 1


GRID = (9, 17, 18)
HEAD = 4
"""Bytes up to the edge of tiles."""


def small_parts() -> tuple[bytes, list[bytes]]:
    """A section of `GRID` up to its lengths, and its parts."""
    features, low_passes = some_features(5, GRID, kind="sparse", plain=True)
    body = write_features(replace(features, tile=16), low_passes)
    parts = parts_of(parse_features(body, GRID, 1).tiles)
    tail = with_lengths(b"", parts)
    assert body.endswith(tail)
    return body[: -len(tail)], parts


class TestDamage:
    @pytest.fixture(scope="class")
    @classmethod
    def body(cls) -> bytes:
        return with_lengths(*small_parts())

    def test_the_section_has_tiles_on_two_axes(self, body):
        assert parse_features(body, GRID, 1).tiles.tiling.grid == (1, 2, 2)
        assert len(body) < 1000

    def test_every_truncation(self, body):
        for length in range(len(body)):
            with pytest.raises(TruncatedStreamError):
                read_features(body[:length], GRID, 1)

    def test_bytes_after_the_end(self, body):
        for extra in (b"\0", b"\1", bytes(100)):
            with pytest.raises(CorruptStreamError, match="follow"):
                read_features(body + extra, GRID, 1)

    def test_every_bit_flipped(self, body):
        accepted = 0
        with AllocationMeter() as meter:
            for bit in range(8 * len(body)):
                try:
                    found = read_features(flipped(body, bit), GRID, 1)
                except FormatError:
                    continue
                accepted += 1
                assert found.symbols.shape == (1, *GRID)
                assert np.abs(found.symbols).max() <= 2 * MAX_MAGNITUDE
                assert np.isfinite(coefficients_of(found)).all()
        assert 0 < accepted < 8 * len(body)
        assert meter.peak_bytes < 2_000_000

    def test_boxes_of_every_bit_flipped(self, body):
        for bit in range(0, 8 * len(body), 3):
            try:
                voxels = FeatureVoxels(parse_features(flipped(body, bit), GRID, 1))
                found = voxels.box([0], ((3, 5), (16, 17), (0, 18)), 1)
            except FormatError:
                continue
            assert found.shape == (1, 2, 1, 18)

    @settings(max_examples=150)
    @given(st.binary(max_size=150), st.sampled_from([4, 5, 7]), st.integers(4, 30))
    def test_random_bytes(self, body, flags, bits):
        head = bytes([0, 2, flags, bits])
        try:
            found = read_features(head + body, GRID, 1)
        except FormatError:
            return
        assert found.symbols.shape == (1, *GRID)

    @settings(max_examples=100)
    @given(st.lists(st.binary(max_size=30), min_size=9, max_size=9), seeds)
    def test_random_code(self, parts, seed):
        head, _ = small_parts()
        parts = [part.rstrip(b"\0") for part in parts]
        try:
            found = read_features(with_lengths(head, parts), GRID, 1)
        except FormatError:
            return
        assert np.abs(found.symbols).max() <= 2 * MAX_MAGNITUDE

    @pytest.mark.parametrize("flags", [8, 12, 0x0F, 0x44, 0x84])
    def test_reserved_flags(self, body, flags):
        with pytest.raises(CorruptStreamError, match=f"reserved flags set in {flags:#04x}"):
            read_features(body[:2] + bytes([flags]) + body[3:], GRID, 1)

    @pytest.mark.parametrize("bits", [0, 3, 31, 64, 255])
    def test_edges_out_of_range(self, body, bits):
        with pytest.raises(CorruptStreamError, match=rf"tiles of 2\^{bits} voxels"):
            read_features(body[:3] + bytes([bits]) + body[4:], GRID, 1)

    def test_the_largest_edge_is_one_tile(self):
        features, low_passes = some_features(5, GRID)
        bodies = [
            write_features(replace(features, tile=1 << bits), low_passes) for bits in (5, 16, 30)
        ]
        for body in bodies:
            np.testing.assert_array_equal(read_features(body, GRID, 1).symbols, features.symbols)
            assert body[HEAD:] == bodies[0][HEAD:]

    @pytest.mark.parametrize("grid", [(1, 1, 7), (14, 14, 14), (8, 1, 1)])
    def test_tiles_of_grids_of_fewer_levels(self, body, grid):
        with pytest.raises(CorruptStreamError, match=r"tiles of [01] levels"):
            read_features(body, grid, 1)

    @pytest.mark.parametrize("part", range(9))
    def test_a_part_that_ends_in_a_zero_byte(self, part):
        head, parts = small_parts()
        parts[part] += b"\0"
        with pytest.raises(CorruptStreamError, match="zero byte"):
            read_features(with_lengths(head, parts), GRID, 1)

    @pytest.mark.parametrize("part", range(9))
    def test_words_that_are_left_over(self, part):
        head, parts = small_parts()
        # To whole words, so that what follows begins a new one.
        parts[part] += bytes(-len(parts[part]) % 4 + 8) + b"\1"
        with pytest.raises(CorruptStreamError, match="words follow"):
            read_features(with_lengths(head, parts), GRID, 1)

    # In the last tile the level after the finest has no coefficients, and its part no bytes.
    @pytest.mark.parametrize("part", range(9))
    def test_parts_of_ones(self, part):
        head, parts = small_parts()
        parts[part] = b"\xff" * 8
        with pytest.raises(CorruptStreamError, match="words follow" if part == 4 else "no code"):
            read_features(with_lengths(head, parts), GRID, 1)

    @pytest.mark.parametrize("absurd", [MAX_VARINT, 1 << 40, 2000])
    @pytest.mark.parametrize("position", [0, 4, 8])
    def test_absurd_lengths(self, position, absurd):
        head, parts = small_parts()
        lengths = [len(part) for part in parts]
        lengths[position] = absurd
        with AllocationMeter() as meter, pytest.raises(TruncatedStreamError):
            read_features(head + b"".join([*map(write_varint, lengths), *parts]), GRID, 1)
        assert meter.peak_bytes < 1_000_000

    @pytest.mark.parametrize("grid", [(1, 1, 1 << 30), (1 << 10, 1 << 10, 1 << 10)])
    def test_more_parts_than_bytes(self, body, grid):
        with AllocationMeter() as meter, pytest.raises(TruncatedStreamError, match=r"\d parts in"):
            read_features(body[:6] + bytes(60), grid, 1)
        assert meter.peak_bytes < 2_000_000

    def test_more_volumes_than_bytes(self, body):
        with AllocationMeter() as meter, pytest.raises(TruncatedStreamError):
            read_features(body[:4] + bytes(60), (1, 9, 16), 1 << 40)
        assert meter.peak_bytes < 1_000_000

    @pytest.mark.parametrize("kind", ["zero", "small"])
    @pytest.mark.parametrize("edge", [16, 128])
    def test_memory_goes_with_the_voxels(self, kind, edge):
        grid = (80, 96, 88)
        body = some_section(2, grid, kind=kind, edge=edge)
        with AllocationMeter() as meter:
            read_features(body, grid, 1)
        assert meter.peak_bytes < 10 * math.prod(grid) + 3 * len(body)

    def test_streams_of_older_versions_hold_no_tiles(self):
        array = np.random.default_rng(0).integers(0, 99, GRID).astype("u1")
        info, _ = analyse(array)
        body = with_lengths(*small_parts())
        stream = write_stream(Header(info, 30.0, 9.0, {Section.FEATURES: body}))
        at_minor = len(MAGIC) + 1
        assert stream[at_minor] == 4
        assert decode_chunk(stream).shape == GRID
        for minor in (1, 2, 3):
            older = bytearray(stream[:-CRC_BYTES])
            older[at_minor] = minor
            older += google_crc32c.value(bytes(older)).to_bytes(CRC_BYTES, "little")
            with pytest.raises(CorruptStreamError, match=rf"does not exist in version 1\.{minor}"):
                read_stream(bytes(older), max_decoded_bytes=1 << 30)

    @pytest.mark.parametrize(("dtype", "order"), [("|u1", "C"), (">f4", "F")])
    def test_damaged_streams_decode_to_an_error_or_the_right_shape(self, dtype, order):
        array = np.asarray(np.random.default_rng(4).integers(0, 99, GRID), dtype, order=order)
        info, _ = analyse(array)
        body = with_lengths(*small_parts())
        region = (slice(0, 9), slice(5, 6), slice(1, 18))
        for bit in range(0, 8 * len(body), 7):
            stream = write_stream(Header(info, 40.0, 1.0, {Section.FEATURES: flipped(body, bit)}))
            try:
                found = decode_chunk(stream)
            except FormatError:
                continue
            assert (found.shape, found.dtype.str) == (array.shape, dtype)
            np.testing.assert_array_equal(decode_region(stream, region), found[region])


# Through the doors

SHAPE, CHUNKS = (50, 40, 44), (40, 40, 32)
OPTIONS = {"ratio": 16, "model": "features", "effort": 0}


class TestZarr:
    @pytest.fixture(scope="class", params=[None, (80, 40, 64)], ids=["plain", "sharded"])
    @classmethod
    def stored(cls, request, tmp_path_factory):
        zarr = pytest.importorskip("zarr", minversion="3.1")
        path = tmp_path_factory.mktemp("tiles") / "a.zarr"
        array = zarr.create_array(
            path,
            shape=SHAPE,
            chunks=CHUNKS,
            shards=request.param,
            dtype="f4",
            serializer=TINC(**OPTIONS, tile=16),
            compressors=None,
        )
        array[...] = smooth_volume(SHAPE)
        return path, zarr.open_array(path, mode="r")

    def test_parts_equal_the_whole(self, stored):
        _, array = stored
        whole = array[...]
        assert psnr(smooth_volume(SHAPE), whole) > 30
        for selection in [
            (24, 24, 24),
            (slice(None), 20, slice(None)),
            (45, slice(None), slice(None)),
            (slice(3, 8), slice(30, 40), slice(28, 36)),
            (slice(0, 50, 20), 1, slice(None)),
        ]:
            np.testing.assert_array_equal(array[selection], whole[selection])
        points = tuple(np.random.default_rng(0).integers(0, n, 20) for n in SHAPE)
        np.testing.assert_array_equal(array.vindex[points], whole[points])

    def test_the_metadata_name_the_tile(self, stored):
        path, array = stored
        text = (path / "zarr.json").read_text()
        assert '"tile": 16' in text
        codec = array.metadata.codecs[-1]
        configuration = codec.to_dict()["configuration"]
        inner = configuration.get("codecs", [codec.to_dict()])
        assert {**OPTIONS, "tile": 16} in [part["configuration"] for part in inner]


class TestEncoder:
    @pytest.mark.parametrize("tile", ["auto", 16, 32, 65536])
    @pytest.mark.parametrize("shape", [(40, 36, 33), (2, 24, 40, 30), (90, 70)])
    def test_the_ratio_is_kept_with_any_tile(self, tile, shape):
        array = smooth_volume(shape)
        stream = encode_chunk(array, EncodingParams(**OPTIONS, tile=tile))
        assert len(stream) * 16 <= array.nbytes
        header = read_stream(stream, max_decoded_bytes=1 << 30)
        body = header.sections[Section.FEATURES]
        assert header.version == (1, 4)
        assert has_tiles(body)
        _, *grid = header.info.batched_shape
        section = parse_features(body, tuple(grid), header.info.batched_shape[0])
        whole = whole_edge(tuple(grid))
        if tile == "auto":
            assert min(64, whole) <= section.tiles.edge <= whole
        else:
            assert section.tiles.edge == min(tile, whole)
        assert psnr(array, decode_chunk(stream)) >= header.psnr - 1e-3

    @pytest.mark.parametrize("target", [{"psnr": 45.0}, {"max_error": 2.0}])
    def test_other_promises_are_kept(self, target):
        array = smooth_volume((40, 36, 33))
        found = decode_chunk(
            encode_chunk(array, EncodingParams(model="features", effort=0, tile=16, **target))
        )
        if "psnr" in target:
            assert psnr(array, found) >= target["psnr"]
        else:
            assert np.abs(found.astype(float) - array.astype(float)).max() <= 2.0

    def test_a_small_tile_costs_little_quality(self):
        array = smooth_volume((48, 48, 48))
        found = {
            tile: psnr(
                array, decode_chunk(encode_chunk(array, EncodingParams(**OPTIONS, tile=tile)))
            )
            for tile in ("auto", 16)
        }
        assert found["auto"] - 2 < found[16]

    @pytest.mark.parametrize("shape", [(7, 7, 7), (10,), (3, 14, 9)])
    def test_small_chunks_have_no_tiles(self, shape):
        array = smooth_volume(shape)
        options = {"psnr": 30.0, "model": "features", "effort": 0}
        streams = [
            encode_chunk(array, EncodingParams(**options, tile=tile)) for tile in ("auto", 16)
        ]
        assert streams[0] == streams[1]
        assert read_stream(streams[0], max_decoded_bytes=1 << 30).version == (1, 1)


class TestParameter:
    @pytest.mark.parametrize("tile", [15, 8, 131072, True, "x", 16.0, 0, -16, None])
    def test_values_out_of_range(self, tile):
        message = r'tile=.* is not an integer 16 to 65536 or "auto"'
        with pytest.raises(ConfigError, match=message) as caught:
            TINC(ratio=16, tile=tile)
        assert f"tile={tile!r}" in str(caught.value)

    @pytest.mark.parametrize("tile", [17, 48, 65535])
    def test_other_than_powers_of_two(self, tile):
        with pytest.raises(ConfigError, match=f"tile={tile} is not a power of two"):
            TINC(ratio=16, tile=tile)

    def test_trees_have_none(self):
        with pytest.raises(ConfigError, match=r'tile=16 is a setting of features.*"tree"'):
            TINC(ratio=16, model="tree", tile=16)
        assert TINC(ratio=16, model="tree", tile="auto") == TINC(ratio=16, model="tree")

    @pytest.mark.parametrize("tile", [16, 64, 65536, np.int64(32), "auto"])
    def test_values_come_back(self, tile):
        codec = TINC(ratio=16, tile=tile)
        assert codec.params.tile == tile
        assert TINC.from_config(codec.get_config()) == codec
        assert codec.params.to_config() == (
            {"ratio": 16} | ({} if tile == "auto" else {"tile": tile})
        )
