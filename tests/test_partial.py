"""Parts of a chunk: the bits of the whole chunk, at the cost of the part, through every door."""

import itertools
import math
import threading
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tests import strategies
from tests.faces import smooth_volume
from tests.filters import some_section
from tests.test_features import some_features
from tests.test_section import section_for
from tests.tile_meter import count_tiles
from tinc_codec import TINC, ConfigError, CorruptStreamError, FormatError, config
from tinc_codec.bitstream.header import Header, read_stream, write_stream
from tinc_codec.bitstream.sections import Section
from tinc_codec.codec import decode_chunk, decode_region, encode_chunk, open_chunk
from tinc_codec.errors import LimitError
from tinc_codec.model import features as features_module
from tinc_codec.model import fused, lifting, wavelet_windows
from tinc_codec.model.features import write_features
from tinc_codec.model.octree_mlp import MAX_LEVELS, TreeShape, axis_splits, uniform_widths
from tinc_codec.model.opened import CACHE, ChunkCache
from tinc_codec.model.section import parameter_limit, write_tree
from tinc_codec.params import EncodingParams
from tinc_codec.quantise.corrections import Corrections, write_corrections
from tinc_codec.volume.chunk import ChunkInfo, analyse, is_constant
from tinc_codec.volume.mask import encode_classes

zarr = pytest.importorskip("zarr", minversion="3.1")

from tinc_codec.volume.selection import cover  # noqa: E402

MODELS = (
    "tree", "features", "both", "filtered tree", "filtered both", "tiled", "filtered both tiled"
)  # fmt: skip
TILE = 16
# 2^-4 and 2^-6: what these stand for stays near [0, 1], so that little of it is clipped.
TREE_STEP_CODE, FEATURES_STEP_CODE = 64, 640


def tree_body(info: ChunkInfo, seed: int, widths: tuple[int, ...] = (5, 4, 3)) -> bytes | None:
    """A tree of up to three levels with random symbols; None where none is allowed so large."""
    volumes, *grid = info.batched_shape
    levels = min(len(widths), len(axis_splits(tuple(grid), MAX_LEVELS)) + 1)
    shape = TreeShape(
        tuple(grid), (2,) * levels, uniform_widths(tuple(grid), levels, widths[:levels]), 9.0
    )
    if volumes * shape.parameter_count > parameter_limit(volumes * math.prod(grid)):
        return None
    section, _ = section_for(shape, volumes, seed)
    offsets, gains = (0.4,) * volumes, (0.3,) * volumes
    codes = (TREE_STEP_CODE,) * len(section.step_codes)
    return write_tree(replace(section, offsets=offsets, gains=gains, step_codes=codes))


def features_body(info: ChunkInfo, seed: int, tile: int = 0) -> bytes:
    volumes, *grid = info.batched_shape
    found, low_passes = some_features(seed, tuple(grid), volumes)
    return write_features(replace(found, step_code=FEATURES_STEP_CODE, tile=tile), low_passes)


def corrections_body(info: ChunkInfo, seed: int, share: float) -> bytes:
    """Corrections of both kinds; an absolute of 0 is `value_min`, which every chunk has."""
    rng = np.random.default_rng(seed)
    positions = np.flatnonzero(rng.random(math.prod(info.batched_shape)) < share)
    multiples = rng.integers(-2, 2, len(positions), dtype=np.int32, endpoint=True)
    absolutes = rng.integers(0, 2, np.count_nonzero(multiples == 0), dtype=np.uint64)
    quantum = 1.0 if info.dtype.kind != "f" else float(info.value_max) / 7 - info.value_min / 7
    return write_corrections(Corrections(positions, multiples, absolutes, abs(quantum)), info)


def stream_of(array: np.ndarray, model: str, seed: int = 0, share: float = 0.0) -> bytes:
    """A stream with the facts of an array and made-up models."""
    info, classes = analyse(array)
    model, is_filtered = model.removeprefix("filtered "), model.startswith("filtered ")
    model, tile = model.removesuffix("tiled").strip(), TILE * model.endswith("tiled")
    sections = {} if classes is None else {int(Section.MASK): encode_classes(classes)}
    if not is_constant(info):
        tree = tree_body(info, seed) if model in ("tree", "both") else None
        if tree is not None:
            sections[int(Section.TREE)] = tree
        if model != "tree" or tree is None:
            sections[int(Section.FEATURES)] = features_body(info, seed, tile)
        if is_filtered:
            sections[int(Section.POSTFILTER)] = some_section((7, 4), seed)
        if share:
            sections[int(Section.CORRECTIONS)] = corrections_body(info, seed, share)
    return write_stream(Header(info, 0.0, 0.0, sections))


def bits(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array).view(f"u{array.dtype.itemsize}")


def assert_same_bits(found: np.ndarray, expected: np.ndarray) -> None:
    assert found.dtype == expected.dtype
    assert found.shape == expected.shape
    np.testing.assert_array_equal(bits(found), bits(expected))


@st.composite
def boxes(draw: st.DrawFn, shape: tuple[int, ...]) -> tuple[slice, ...]:
    """Whole axes, planes, intervals; now and then none of an axis."""
    parts = []
    for n in shape:
        start = draw(st.integers(0, n - 1))
        stop = draw(st.one_of(st.just(start + 1), st.integers(start, n), st.just(n)))
        parts.append(draw(st.sampled_from([slice(start, stop), slice(0, n)])))
    return tuple(parts)


@pytest.fixture(autouse=True)
def empty_cache():
    CACHE.clear()


@pytest.fixture
def evaluated(monkeypatch):
    """Count voxels that trees and wavelets evaluate and feature sections that are taken apart."""
    counts = {"tree": 0, "wavelet": 0, "read": 0}
    leaves, read = fused.evaluate_leaves, features_module.parse_features

    def count_leaves(parameters, paths, origins, extents, *rest):
        first, last = rest[4:6]
        counts["tree"] += int(extents[first:last].prod(axis=1).sum())
        leaves(parameters, paths, origins, extents, *rest)

    def counting(undo):
        def count_windows(coefficients, low, spans, *rest):
            windows = spans.reshape(-1, 3, 4)[:, :, 1::2].sum(axis=2)
            counts["wavelet"] += len(low) * int(windows.prod(axis=1).sum())
            return undo(coefficients, low, spans, *rest)

        return count_windows

    def count_read(*arguments):
        counts["read"] += 1
        return read(*arguments)

    monkeypatch.setattr(fused, "evaluate_leaves", count_leaves)
    for room, name in (
        (lifting, "inverse_windows"), (wavelet_windows, "_inverse_window"),
        (wavelet_windows, "_inverse_narrow"),
    ):  # fmt: skip
        monkeypatch.setattr(room, name, counting(getattr(room, name)))
    monkeypatch.setattr(features_module, "parse_features", count_read)
    return counts


class TestRegion:
    @settings(max_examples=100)
    @given(
        strategies.arrays(max_voxels=2500),
        st.sampled_from(MODELS),
        st.sampled_from([0.0, 0.02, 0.5]),
        strategies.seeds,
        st.data(),
    )
    def test_any_box_of_any_chunk_has_the_bits_of_the_whole(self, array, model, share, seed, data):
        stream = stream_of(array, model, seed, share)
        whole = decode_chunk(stream)
        for _ in range(3):
            box = data.draw(boxes(array.shape))
            assert_same_bits(decode_region(stream, box), whole[box])

    @pytest.mark.parametrize("model", MODELS)
    @pytest.mark.parametrize("shape", [(61, 53, 70), (2, 33, 47, 40), (3, 2, 20, 31, 17)])
    def test_boxes_of_large_chunks(self, shape, model):
        array = smooth_volume(shape)
        stream = stream_of(array, model, 3, 0.01)
        whole = decode_chunk(stream)
        rng = np.random.default_rng(0)
        for _ in range(12):
            starts = [int(rng.integers(n)) for n in shape]
            lengths = [int(rng.choice([1, 2, 33, n])) for n in shape]
            box = tuple(
                slice(a, min(a + k, n)) for a, k, n in zip(starts, lengths, shape, strict=True)
            )
            assert_same_bits(decode_region(stream, box), whole[box])

    @pytest.mark.parametrize("model", MODELS)
    def test_threads_change_nothing(self, model):
        stream = stream_of(smooth_volume((64, 64, 64)), model)
        box = (slice(1, 63), slice(0, 60), slice(3, 64))
        found = []
        for threads in (1, 3):
            with config.set(threads=threads):
                found.append(decode_region(stream, box))
        assert_same_bits(*found)
        assert_same_bits(found[0], decode_chunk(stream)[box])

    @pytest.mark.parametrize("model", MODELS)
    def test_other_devices_give_their_own_bits(self, monkeypatch, tmp_path, model):
        """The torch path, on torch's CPU device: the name keeps it from being compiled."""
        pytest.importorskip("torch")
        monkeypatch.setattr(config, "resolve_device", lambda: "cpu:0")
        original = smooth_volume((16, 16, 16))
        stream = stream_of(original, model, 0, 0.1)
        whole = decode_chunk(stream)
        box = (slice(3, 7), slice(0, 16), slice(15, 16))
        assert_same_bits(decode_region(stream, box), whole[box])
        array = array_of(tmp_path / "a.zarr", TINC(ratio=8, effort=0), original, None, (16, 16, 16))
        (tmp_path / "a.zarr" / "c" / "0" / "0" / "0").write_bytes(stream)
        assert_same_bits(array[box], whole[box])

    @pytest.mark.parametrize("order", ["C", "F"])
    def test_byte_and_memory_order_are_kept(self, order):
        array = np.asarray(smooth_volume((20, 20, 20), ">i2"), order=order)
        found = decode_region(stream_of(array, "features"), (slice(1, 9),) * 3)
        assert found.dtype.str == ">i2"
        assert found.flags.f_contiguous if order == "F" else found.flags.c_contiguous
        assert found.flags.writeable

    def test_slices_are_taken_as_numpy_takes_them(self):
        stream = stream_of(smooth_volume((12, 10, 11)), "features")
        whole = decode_chunk(stream)
        box = (slice(-3, None), slice(None, 99), slice(7, 3))
        assert_same_bits(decode_region(stream, box), whole[box])
        assert_same_bits(decode_region(stream, (slice(None),) * 3), whole)

    @pytest.mark.parametrize(
        "region", [(slice(0, 2),), (slice(0, 2), slice(0, 4, 2), slice(0, 1)), (0, 1, 2)]
    )
    def test_other_regions_are_refused(self, region):
        with pytest.raises(ConfigError, match="region="):
            decode_region(stream_of(smooth_volume((4, 4, 4)), "features"), region)


@pytest.fixture
def tiles(monkeypatch):
    """Count what is decoded of features in tiles."""
    return count_tiles(monkeypatch)


class TestCost:
    @pytest.mark.parametrize("axis", [0, 1, 2])
    def test_a_plane_evaluates_a_plane(self, evaluated, axis):
        stream = stream_of(smooth_volume((64, 64, 64)), "both")
        box = [slice(0, 64)] * 3
        box[axis] = slice(30, 31)
        decode_region(stream, tuple(box))
        assert evaluated["tree"] == 64 * 64
        # Nine neighbouring planes of the finest level, as many of each coarser, smaller one.
        assert 64 * 64 <= evaluated["wavelet"] < 64**3 // 4

    def test_a_voxel_evaluates_a_voxel(self, evaluated):
        decode_region(stream_of(smooth_volume((64, 64, 64)), "both"), (slice(30, 31),) * 3)
        assert evaluated["tree"] == 1
        assert 1 <= evaluated["wavelet"] < 64**3 // 30

    @pytest.mark.parametrize("axis", [0, 1, 2])
    def test_a_plane_behind_a_filter_evaluates_five(self, evaluated, axis):
        stream = stream_of(smooth_volume((64, 64, 64)), "filtered both")
        box = [slice(0, 64)] * 3
        box[axis] = slice(30, 31)
        decode_region(stream, tuple(box))
        assert evaluated["tree"] == 5 * 64 * 64
        assert 64 * 64 <= evaluated["wavelet"] < 64**3 // 3
        evaluated["tree"] = 0
        decode_region(stream, (slice(0, 1), slice(63, 64), slice(10, 11)))
        assert evaluated["tree"] == 3 * 3 * 5

    def test_all_decodes_all_symbols_once(self, tiles):
        stream = stream_of(smooth_volume((64, 64, 64)), "tiled")
        for _ in range(2):
            decode_region(stream, (slice(0, 64),) * 3)
        assert tiles.symbols == 64**3
        assert (tiles.finest, tiles.next) == (64, 0)

    @pytest.mark.parametrize("model", ["tiled", "filtered both tiled"])
    @pytest.mark.parametrize("axis", [0, 1, 2])
    def test_a_plane_decodes_a_layer_of_tiles(self, tiles, axis, model):
        stream = stream_of(smooth_volume((64, 64, 64)), model)
        box = [slice(0, 64)] * 3
        box[axis] = slice(24, 25)
        decode_region(stream, tuple(box))
        # Of the layers on either side only the level after the finest.
        assert (tiles.finest, tiles.next) == (16, 32)
        assert tiles.symbols < 64**3 * 3 // 8

    def test_a_voxel_decodes_a_tile(self, tiles):
        stream = stream_of(smooth_volume((64, 64, 64)), "tiled")
        decode_region(stream, (slice(24, 25),) * 3)
        assert (tiles.finest, tiles.next) == (1, 26)
        assert tiles.symbols < 64**3 // 8
        # At a corner there are fewer beside it.
        CACHE.clear()
        tiles.clear()
        decode_region(stream, (slice(0, 1),) * 3)
        assert (tiles.finest, tiles.next) == (1, 0)
        assert tiles.symbols == 16**3 + 16**3 - 4**3

    def test_tiles_are_decoded_once(self, tiles):
        stream = stream_of(smooth_volume((64, 64, 64)), "tiled")
        decode_region(stream, (slice(24, 25),) * 3)
        before = tiles.symbols
        decode_region(stream, (slice(20, 26), slice(24, 25), slice(22, 26)))
        assert tiles.symbols == before
        # The level after the finest is decoded once more where the finest is wanted later.
        decode_region(stream, (slice(40, 41), slice(24, 25), slice(24, 25)))
        assert tiles.finest == 2
        assert before < tiles.symbols < 2 * before

    def test_padding_evaluates_nothing(self, evaluated):
        array = smooth_volume((32, 32, 32))
        array[20:] = 7
        stream = stream_of(array, "both")
        assert (decode_region(stream, (slice(22, 30), slice(0, 5), slice(0, 5))) == 7).all()
        assert (evaluated["tree"], evaluated["wavelet"]) == (0, 0)

    def test_sections_are_read_once(self, evaluated):
        stream = stream_of(smooth_volume((32, 32, 32)), "features")
        for plane in range(5):
            decode_region(stream, (slice(plane, plane + 1), slice(0, 32), slice(0, 32)))
        assert evaluated["read"] == 1


def opened(cache, stream, limit_bytes=1 << 20):
    return cache.open(stream, read_stream(stream, max_decoded_bytes=1 << 30), limit_bytes)


class TestCache:
    def streams(self, count):
        return [stream_of(smooth_volume((16, 16, 16)), "features", seed) for seed in range(count)]

    def test_the_least_recently_used_goes_first(self):
        a, b, c = self.streams(3)
        cache = ChunkCache()
        first = opened(cache, a)
        assert first.size_bytes == 4 * 16**3
        assert cache.size_bytes == first.size_bytes + len(a)
        second = opened(cache, b)
        assert opened(cache, a) is first
        # Room for two of them and all streams.
        limit = 2 * first.size_bytes + len(a) + len(b) + len(c)
        opened(cache, c, limit)
        assert len(cache) == 2
        assert cache.size_bytes <= limit
        assert opened(cache, a) is first
        assert opened(cache, b) is not second

    def test_what_is_larger_than_all_is_not_kept(self):
        (a,) = self.streams(1)
        cache = ChunkCache()
        assert opened(cache, a, 1000) is not opened(cache, a, 1000)
        assert (len(cache), cache.size_bytes) == (0, 0)

    def test_a_smaller_limit_empties_it(self):
        a, b = self.streams(2)
        cache = ChunkCache()
        opened(cache, a)
        opened(cache, b, 0)
        assert (len(cache), cache.size_bytes) == (0, 0)

    @pytest.mark.parametrize("model", ["filtered both", "filtered both tiled"])
    def test_all_that_a_chunk_holds_counts(self, model):
        array = smooth_volume((16, 16, 16))
        array[3:5] = np.nan
        stream = stream_of(array, model, 0, 0.1)
        chunk = opened(ChunkCache(), stream)
        kept = chunk.corrections
        parts = [chunk.classes, chunk.tree.parameters, chunk.postfilter.parameters]
        parts += [kept.positions, kept.multiples, kept.absolutes]
        n_bytes = chunk.features.size_bytes
        # Coefficients, and the code where there are tiles.
        code_bytes = n_bytes - 4 * 16**3
        assert 0 < code_bytes < len(stream) if model.endswith("tiled") else code_bytes == 0
        assert chunk.size_bytes == n_bytes + sum(part.nbytes for part in parts)

    def test_a_changed_limit_on_decoded_bytes_holds_for_kept_chunks(self):
        (a,) = self.streams(1)
        open_chunk(a)
        with config.set(max_decoded_bytes=1000), pytest.raises(LimitError):
            open_chunk(a)

    def test_threads_share_it(self):
        streams = self.streams(4)
        wholes = [decode_chunk(stream) for stream in streams]
        limit = 3 * 4 * 16**3
        cache = ChunkCache()
        failures = []

        def work(seed):
            rng = np.random.default_rng(seed)
            for number in rng.integers(0, 4, 40).tolist():
                opened(cache, streams[number], limit)
                box = tuple(slice(a, a + 3) for a in rng.integers(0, 13, 3).tolist())
                found = decode_region(streams[number], box)
                if not np.array_equal(bits(found), bits(wholes[number][box])):
                    failures.append((number, box))

        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failures == []
        assert cache.size_bytes <= limit
        assert len(cache) >= 1


class TestDamage:
    @pytest.mark.parametrize("model", MODELS)
    def test_every_flipped_byte_is_found(self, model):
        stream = stream_of(smooth_volume((9, 8, 8)), model, 0, 0.1)
        box = (slice(0, 1),) * 3
        decode_region(stream, box)
        for position in range(len(stream)):
            damaged = bytearray(stream)
            damaged[position] ^= 0x10
            with pytest.raises(FormatError):
                decode_region(bytes(damaged), box)

    def test_every_truncation_is_found(self):
        stream = stream_of(smooth_volume((9, 8, 8)), "both")
        for length in range(len(stream)):
            with pytest.raises(FormatError):
                decode_region(stream[:length], (slice(0, 1),) * 3)


SHAPE, CHUNKS = (70, 45, 50), (32, 30, 32)
SELECTIONS = {
    "voxel": ("basic", (40, 3, 49)),
    "plane": ("basic", (slice(None), 31, slice(None))),
    "line": ("basic", (5, slice(None), 7)),
    "box": ("basic", (slice(20, 41), slice(3, 9), slice(30, 35))),
    "ellipsis": ("basic", (..., 33)),
    "steps": ("basic", (slice(1, 70, 7), slice(2, 40, 3), slice(0, 50, 25))),
    "rare steps": ("basic", (slice(0, 70, 31), slice(0, 45, 20), slice(0, 50, 24))),
    "all": ("basic", (slice(None),) * 3),
    "rows": ("orthogonal", ([1, 2, 40, 69], slice(3, 8), [49, 0])),
    "far rows": ("orthogonal", ([0, 31], [0], slice(None))),
    "mask of an axis": ("orthogonal", (np.arange(70) % 23 == 0, slice(0, 4), 7)),
    "points": ("coordinate", ([0, 31, 30, 69, 5], [0, 29, 1, 44, 44], [0, 31, 31, 49, 2])),
    "one point": ("coordinate", ([63], [44], [31])),
    "block": ("block", (1, 0, slice(0, 2))),
}


def scattered(count: int) -> np.ndarray:
    mask = np.zeros(SHAPE, bool)
    mask.flat[np.random.default_rng(count).choice(mask.size, count, replace=False)] = True
    return mask


def select(array, kind, selection):
    """The selection through zarr's own door for it."""
    if kind == "basic":
        return array[selection]
    return getattr(
        array, {"orthogonal": "oindex", "coordinate": "vindex", "block": "blocks"}[kind]
    )[selection]


def expected_of(whole, kind, selection, block_shape):
    if kind == "orthogonal":
        listed = [
            np.arange(n)[part] if not isinstance(part, int) else np.array([part])
            for part, n in zip(selection, whole.shape, strict=True)
        ]
        found = whole[np.ix_(*listed)]
        dropped = tuple(axis for axis, part in enumerate(selection) if isinstance(part, int))
        return found.squeeze(axis=dropped)
    if kind == "block":
        blocks = [part if isinstance(part, slice) else slice(part, part + 1) for part in selection]
        return whole[
            tuple(slice(b.start * n, b.stop * n) for b, n in zip(blocks, block_shape, strict=True))
        ]
    return whole[tuple(np.array(p) if isinstance(p, list) else p for p in selection)]


def array_of(path, codec, original, shards=None, chunks=CHUNKS, fill_value=0):
    array = zarr.create_array(
        path,
        shape=original.shape,
        chunks=chunks,
        shards=shards,
        dtype=original.dtype,
        serializer=codec,
        compressors=None,
        fill_value=fill_value,
    )
    array[...] = original
    return array


@pytest.fixture(scope="module", params=["features", "tiled", "tree", "NaN", "max_error"])
def written(request, tmp_path_factory):
    """Real arrays, plain and sharded, with partly filled chunks at their edges."""
    folder = tmp_path_factory.mktemp("partial")
    original = smooth_volume(SHAPE)
    options = {"ratio": 8, "effort": 0, "model": "features"}
    fill_value = 0
    if request.param == "tiled":
        options["tile"] = TILE
    elif request.param == "tree":
        options = {"ratio": 100, "effort": 0, "model": "tree"}
    elif request.param == "NaN":
        original[10:30, 5:40, 20:40] = np.nan
        fill_value = np.nan
    elif request.param == "max_error":
        rng = np.random.default_rng(0)
        original = np.round(original + 30 * (rng.random(SHAPE) < 0.01)).astype("u1")
        options = {"max_error": 1, "effort": 0, "tile": TILE}
    arrays = {
        "plain": array_of(
            folder / "plain.zarr", TINC(**options), original, None, CHUNKS, fill_value
        ),
        "sharded": array_of(
            folder / "sharded.zarr", TINC(**options), original, (64, 60, 64), CHUNKS, fill_value
        ),
    }
    # Whole chunks, decoded one by one by another way.
    whole = np.empty(SHAPE, original.dtype)
    for z, y, x in itertools.product(range(3), range(2), range(2)):
        stream = (folder / "plain.zarr" / "c" / str(z) / str(y) / str(x)).read_bytes()
        corner = tuple(slice(i * n, (i + 1) * n) for i, n in zip((z, y, x), CHUNKS, strict=True))
        room = whole[corner].shape
        whole[corner] = decode_chunk(stream)[tuple(slice(0, n) for n in room)]
    return arrays, whole


class TestZarr:
    @pytest.mark.parametrize("kind", ["plain", "sharded"])
    @pytest.mark.parametrize("name", SELECTIONS)
    def test_every_selection_equals_the_whole(self, written, kind, name):
        arrays, whole = written
        door, selection = SELECTIONS[name]
        array = arrays[kind]
        found = np.asarray(select(array, door, selection))
        expected = expected_of(whole, door, selection, array.shards or array.chunks)
        assert_same_bits(found, np.asarray(expected))

    @pytest.mark.parametrize("kind", ["plain", "sharded"])
    @pytest.mark.parametrize("count", [1, 20, 3000, 100_000])
    def test_masks(self, written, kind, count):
        arrays, whole = written
        mask = scattered(count)
        found = arrays[kind].get_mask_selection(mask)
        assert_same_bits(found, whole[mask])

    @settings(max_examples=25)
    @given(data=st.data())
    def test_random_basic_selections(self, written, data):
        arrays, whole = written
        parts = []
        for n in SHAPE:
            start = data.draw(st.integers(0, n - 1))
            stop = data.draw(st.integers(start + 1, n))
            step = data.draw(st.sampled_from([1, 1, 2, 9, 40]))
            parts.append(data.draw(st.sampled_from([start, slice(start, stop, step)])))
        kind = data.draw(st.sampled_from(["plain", "sharded"]))
        assert_same_bits(np.asarray(arrays[kind][tuple(parts)]), np.asarray(whole[tuple(parts)]))

    @settings(max_examples=25)
    @given(data=st.data())
    def test_random_points(self, written, data):
        arrays, whole = written
        count = data.draw(st.integers(1, 40))
        rng = np.random.default_rng(data.draw(strategies.seeds))
        points = tuple(rng.integers(0, data.draw(st.integers(1, n)), count) for n in SHAPE)
        kind = data.draw(st.sampled_from(["plain", "sharded"]))
        assert_same_bits(arrays[kind].vindex[points], whole[points])

    @pytest.mark.parametrize("shape", [(100,), (30, 41), (3, 20, 9, 12), (2, 3, 9, 10, 11)])
    def test_other_numbers_of_axes(self, tmp_path, shape):
        array = array_of(
            tmp_path / "a.zarr", TINC(ratio=4, effort=0), smooth_volume(shape), None, shape
        )
        whole = array[...]
        for axis, n in enumerate(shape):
            plane = [slice(None)] * len(shape)
            plane[axis] = n // 2
            assert_same_bits(np.asarray(array[tuple(plane)]), np.asarray(whole[tuple(plane)]))

    @pytest.mark.parametrize("batch_size", [1, 8])
    @pytest.mark.parametrize("shards", [None, (64, 48, 16)])
    def test_missing_chunks_are_fill_value(self, tmp_path, batch_size, shards):
        with zarr.config.set({"codec_pipeline.batch_size": batch_size}):
            path = tmp_path / "a.zarr"
            array = zarr.create_array(
                path, shape=(64, 48, 16), chunks=(16, 48, 16), shards=shards, dtype="f4",
                serializer=TINC(ratio=8, effort=0), compressors=None, fill_value=5,
            )  # fmt: skip
            array[16:32] = smooth_volume((16, 48, 16))
            plane = array[:, 20, :]
            assert (plane[:16] == 5).all()
            assert (plane[32:] == 5).all()
            assert_same_bits(plane[16:32], array[:][16:32, 20])

    def test_a_plane_evaluates_little(self, tmp_path, evaluated):
        original = smooth_volume((64, 64, 64))
        array = array_of(tmp_path / "a.zarr", TINC(ratio=8), original, None, (64, 64, 64))
        (tmp_path / "a.zarr" / "c" / "0" / "0" / "0").write_bytes(stream_of(original, "both"))
        evaluated.update(tree=0, wavelet=0, read=0)
        for plane in range(3):
            assert array[plane].shape == (64, 64)
        assert evaluated["tree"] == 3 * 64 * 64
        assert evaluated["wavelet"] < 3 * 64**3 // 4
        assert evaluated["read"] == 1

    def test_a_plane_decodes_few_tiles(self, tmp_path, tiles):
        original = smooth_volume((64, 64, 64))
        codec = TINC(ratio=8, model="features", effort=0, tile=TILE)
        array = array_of(tmp_path / "a.zarr", codec, original, None, (64, 64, 64))
        # An encoder looks at what it wrote.
        tiles.clear()
        for plane in (24, 25, 26):
            assert array[plane].shape == (64, 64)
        assert (tiles.finest, tiles.next) == (16, 32)

    def test_scattered_points_evaluate_little(self, tmp_path, evaluated):
        original = smooth_volume((64, 64, 64))
        array = array_of(tmp_path / "a.zarr", TINC(ratio=8), original, None, (64, 64, 64))
        (tmp_path / "a.zarr" / "c" / "0" / "0" / "0").write_bytes(stream_of(original, "both"))
        evaluated.update(tree=0, wavelet=0)
        array.vindex[[0, 63], [0, 63], [0, 63]]
        assert evaluated["tree"] == 2
        array.oindex[[0, 63], :, :]
        assert evaluated["tree"] == 2 + 2 * 64 * 64

    def test_damage_is_found_whatever_is_asked(self, tmp_path):
        original = smooth_volume(CHUNKS)
        array = array_of(tmp_path / "a.zarr", TINC(ratio=8, effort=0), original)
        path = tmp_path / "a.zarr" / "c" / "0" / "0" / "0"
        stream = bytearray(path.read_bytes())
        assert array[1, 1, 1] == array[:][1, 1, 1]
        stream[-10] ^= 1
        path.write_bytes(stream)
        with pytest.raises(CorruptStreamError, match="checksum"):
            array[1, 1, 1]

    def test_a_part_of_a_chunk_of_another_array_is_refused(self, tmp_path):
        array = array_of(tmp_path / "a.zarr", TINC(ratio=8, effort=0), smooth_volume(CHUNKS))
        path = tmp_path / "a.zarr" / "c" / "0" / "0" / "0"
        for shape, dtype in [((32, 30, 16), "f4"), (CHUNKS, "i4")]:
            path.write_bytes(
                encode_chunk(smooth_volume(shape, dtype), EncodingParams(ratio=8, effort=0))
            )
            with pytest.raises(CorruptStreamError, match="the array's chunks have"):
                array[1, 1, 1]


class TestCover:
    @settings(max_examples=200)
    @given(st.data())
    def test_it_holds_all_that_is_selected(self, data):
        shape = data.draw(strategies.shapes(max_voxels=200_000, max_ndim=4))
        rng = np.random.default_rng(data.draw(strategies.seeds))
        kind = data.draw(st.sampled_from(["slices", "points", "rows"]))
        if kind == "points":
            count = data.draw(st.integers(1, 30))
            selection = tuple(rng.integers(0, n, count) for n in shape)
        elif kind == "rows":
            rows = [rng.choice(n, int(rng.integers(1, n, endpoint=True))) for n in shape]
            selection = np.ix_(*rows)
        else:
            starts = [int(rng.integers(n)) for n in shape]
            selection = tuple(
                slice(a, int(rng.integers(a, n)) + 1, int(rng.integers(1, 60)))
                for a, n in zip(starts, shape, strict=True)
            )
        found = cover(selection, shape)
        assume(found is not None)
        held = np.zeros(shape, bool)
        for box in found:
            held[box] = True
        assert held[selection].all()
        assert np.count_nonzero(held) <= held.size // 2

    @pytest.mark.parametrize(
        "selection",
        [
            ...,
            (slice(0, 4),),
            (slice(3, 0, -1), 0, 0),
            (slice(2, 2), 0, 0),
            (-1, 0, 0),
            (np.array([True, False] * 32), 0, 0),
        ],
    )
    def test_what_it_does_not_know_takes_the_whole(self, selection):
        assert cover(selection, (64, 64, 64)) is None

    def test_most_of_a_chunk_takes_the_whole(self):
        assert cover((slice(0, 33), slice(0, 64), slice(0, 64)), (64, 64, 64)) is None
        assert cover((slice(0, 32), slice(0, 64), slice(0, 64)), (64, 64, 64)) is not None
        mask = np.nonzero(np.random.default_rng(0).random((64, 64, 64)) < 0.1)
        assert cover(mask, (64, 64, 64)) is None
