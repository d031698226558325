"""Levels: lower resolutions decoded from the chunks of the full one, in any reader of Zarr."""

from __future__ import annotations

import contextlib
import io
import json
import pickle
import warnings

import dask.array as da
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.faces import brain, smooth_volume
from tests.servers import BUCKET, http_server, s3_server
from tests.test_examples import run
from tests.tile_meter import count_tiles
from tests.trees import some_parameters
from tinc_codec import TINC, ConfigError, FormatError, UnsupportedDataError, codec
from tinc_codec.bitstream.header import read_stream, write_stream
from tinc_codec.bitstream.sections import Section
from tinc_codec.codec import decode_chunk, decode_level, encode_chunk
from tinc_codec.entropy.bands import choose_low_pass
from tinc_codec.entropy.pyramid import low_pass_slices
from tinc_codec.model.block_means import coarse_shape, feature_means, tree_means
from tinc_codec.model.coefficients import coefficients_of
from tinc_codec.model.evaluate import add_values
from tinc_codec.model.features import Features, feature_levels, no_shifts, write_features
from tinc_codec.model.levels import level_shape
from tinc_codec.model.octree_mlp import TreeShape, uniform_widths
from tinc_codec.model.opened import CACHE
from tinc_codec.model.render import Tree
from tinc_codec.model.wavelet import inverse

zarr = pytest.importorskip("zarr", minversion="3.1")

from zarr.storage import FsspecStore, MemoryStore, ObjectStore, ZipStore  # noqa: E402

from tinc_codec import add_levels, open_level  # noqa: E402
from tinc_codec.levels import TINCLevelCodec  # noqa: E402

FAST = TINC(ratio=16, model="features", effort=0)
PLAIN = {"serializer": FAST, "compressors": None}
DOORS = {
    "plain": {"chunks": (32, 32, 32)},
    "shards": {"chunks": (16, 16, 16), "shards": (48, 32, 16)},
    "other keys": {"chunks": (32, 32, 32), "chunk_key_encoding": {"name": "v2", "separator": "."}},
}


def block_means(volume: np.ndarray, level: int) -> np.ndarray:
    """Mean over blocks of 2^level voxels along the last three axes, as far as they reach."""
    means = volume.astype("f8")
    for axis in range(max(0, volume.ndim - 3), volume.ndim):
        starts = np.arange(0, volume.shape[axis], 1 << level)
        counts = np.diff([*starts, volume.shape[axis]])
        shape = [-1 if a == axis else 1 for a in range(volume.ndim)]
        means = np.add.reduceat(means, starts, axis=axis) / counts.reshape(shape)
    return means


def level_psnr(decoded: np.ndarray, level: np.ndarray, number: int) -> float:
    """PSNR in dB of a level against block means, with the range of what is decoded as peak."""
    mse = np.mean((level.astype("f8") - block_means(decoded, number)) ** 2)
    return float(10 * np.log10(np.ptp(decoded.astype("f8")) ** 2 / mse))


def stream_of(volume: np.ndarray, **options) -> bytes:
    settings = {"ratio": 16, "model": "features", "effort": 0, **options}
    return encode_chunk(volume, TINC(**settings).params)


class TestQuality:
    @pytest.mark.parametrize("ratio", [16, 64, 256])
    def test_levels_are_block_means_of_what_is_decoded(self, ratio):
        stream = stream_of(brain(64), ratio=ratio)
        decoded = decode_chunk(stream)
        for level in range(1, 7):
            found = decode_level(stream, level)
            assert found.dtype == decoded.dtype
            assert level_psnr(decoded, found, level) >= 40

    @pytest.mark.parametrize("order", ["C", "F"])
    def test_trees(self, order):
        volume = np.asarray(brain(32).astype("f4"), order=order)
        stream = stream_of(volume, model="tree", ratio=64)
        decoded = decode_chunk(stream)
        for level in (1, 2, 3, 4):
            found = decode_level(stream, level)
            assert found.flags.f_contiguous == (order == "F")
            assert level_psnr(decoded, found, level) >= 40

    @pytest.mark.parametrize(
        ("ratio", "box"),
        [(16, (64, 64, 64)), (64, (64, 64, 64)), (64, (63, 60, 57)), (128, (64, 64, 64))],
    )
    def test_behind_a_post_filter(self, ratio, box):
        volume = brain(64)[tuple(slice(0, n) for n in box)]
        stream = stream_of(volume, ratio=ratio, effort=1)
        header = read_stream(stream, max_decoded_bytes=1 << 30)
        decoded = decode_chunk(stream)
        for level in (1, 2, 3):
            assert level_psnr(decoded, decode_level(stream, level), level) >= 40
        filtered = level_psnr(decoded, decode_level(stream, 1), 1)
        del header.sections[Section.POSTFILTER]
        plain = level_psnr(decoded, decode_level(write_stream(header), 1), 1)
        assert filtered > plain + 2 if ratio > 16 else filtered == plain

    def test_behind_a_post_filter_volumes_are_apart(self):
        volumes = np.stack([brain(32), brain(32)[::-1]]).astype("f4")
        stream = stream_of(volumes, ratio=32, effort=1)
        assert Section.POSTFILTER in read_stream(stream, max_decoded_bytes=1 << 30).sections
        decoded, level = decode_chunk(stream), decode_level(stream, 1)
        assert level_psnr(decoded, level, 1) >= 38
        for found, wanted in zip(level, block_means(decoded, 1), strict=True):
            assert np.abs(found - wanted).mean() < 0.01 * np.ptp(decoded)

    def test_trees_behind_a_post_filter_are_decoded(self):
        limit = 1 << 30
        other = read_stream(stream_of(brain(64), ratio=64, effort=1), max_decoded_bytes=limit)
        plain = stream_of(brain(32).astype("f4"), model="tree")
        header = read_stream(plain, max_decoded_bytes=limit)
        header.sections[Section.POSTFILTER] = other.sections[Section.POSTFILTER]
        stream = write_stream(header)
        decoded = decode_chunk(stream)
        assert (decoded != decode_chunk(plain)).any()
        np.testing.assert_allclose(decode_level(stream, 1), block_means(decoded, 1), rtol=1e-6)

    def test_max_error_leaves_corrections_out(self):
        stream = stream_of(brain(32), ratio=None, max_error=1)
        decoded = decode_chunk(stream)
        assert level_psnr(decoded, decode_level(stream, 1), 1) >= 40

    @pytest.mark.parametrize("tile", ["auto", 16])
    def test_symbols_decoded_shrink_with_the_level(self, monkeypatch, tile):
        """The cost that does not depend on the machine: coefficients that are decoded."""
        stream = stream_of(brain(64), tile=tile)
        counts = count_tiles(monkeypatch)
        costs = []
        for decode in (decode_chunk, *(lambda s, k=k: decode_level(s, k) for k in (1, 2, 3))):
            CACHE.clear()
            counts.clear()
            decode(stream)
            costs.append(counts.symbols)
        full, *levels = costs
        assert full == 64**3
        assert levels[0] < full
        assert levels[1] < full / 3
        assert levels[2] < full / 12


@st.composite
def coarse_features(draw):
    """Features of which only what a level looks at is not 0, and the level."""
    level = draw(st.integers(1, 5))
    edges = st.sampled_from([1, 2, 5, 8, 9, 13, 16, 21, 32, 37])
    grid = draw(st.tuples(edges, edges, edges))
    volumes = draw(st.integers(1, 2))
    levels = feature_levels(grid)
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    symbols = np.zeros((volumes, *grid), np.int32)
    corner = (slice(None), *low_pass_slices(levels, grid))
    symbols[corner] = rng.integers(-99, 99, symbols[corner].shape)
    # Level 0 is left out where little is in it.
    finest = draw(st.sampled_from([0, 1])) if level == 1 else min(level, 3) - 1
    for one in levels[finest:]:
        for mask in one.masks:
            if one.number == finest and finest < level and mask.bit_count() > level:
                continue
            band = (slice(None), *one.band_slices(mask))
            symbols[band] = rng.integers(-5, 5, symbols[band].shape)
    return Features(symbols, 700, ((0, 0),) * len(levels), no_shifts(levels)), grid, level


class TestMeans:
    @given(coarse_features())
    def test_of_features_are_exact_for_the_bands_that_count(self, drawn):
        features, grid, level = drawn
        corner = low_pass_slices(feature_levels(grid), grid)
        section = write_features(features, [choose_low_pass(v[corner]) for v in features.symbols])
        found = feature_means(section, grid, len(features.symbols), level, 1)
        symbols = features.symbols.copy()
        volume = inverse(coefficients_of(Features(symbols, *(700, features.centroids, ()))))
        expected = block_means(volume, level)
        np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(volume).max() + 1e-9)

    @pytest.mark.parametrize("size", [1000, 1001, 1006])
    def test_of_long_axes(self, size):
        levels = feature_levels((1, 1, size))
        symbols = np.zeros((1, 1, 1, size), np.int32)
        coarse = levels[2].fine[2]
        symbols[..., :coarse] = np.random.default_rng(0).integers(-9, 9, coarse)
        low = choose_low_pass(symbols[0][low_pass_slices(levels, (1, 1, size))])
        features = Features(symbols, 700, ((0, 0),) * len(levels), no_shifts(levels))
        section = write_features(features, [low])
        volume = inverse(coefficients_of(features))
        for level in (3, 4):
            found = feature_means(section, (1, 1, size), 1, level, 1)
            np.testing.assert_allclose(found, block_means(volume, level), atol=1e-5)

    @pytest.mark.parametrize("level", [1, 2, 3, 5])
    def test_of_trees(self, level):
        scaling = np.array([[0.4, 0.2], [0.1, -0.3]], np.float32)
        grid = (16, 31, 32)
        shape = TreeShape(grid, (1, 1), uniform_widths(grid, 2, (5, 3)), 3.0)
        tree = Tree(shape, some_parameters(shape, 2), scaling)
        volume = np.zeros((2, *shape.grid), np.float32)
        add_values(shape, tree.parameters, scaling, volume, 1)
        found = tree_means(tree, level, 2)
        assert found.shape == (2, *coarse_shape(shape.grid, level))
        np.testing.assert_allclose(found, block_means(volume, level), atol=2e-3)


class TestChunks:
    @pytest.mark.parametrize("dtype", ["<i2", ">u2", "|i1", ">f4", "<f2", "<f8", "<i4"])
    @pytest.mark.parametrize(
        "shape", [(300,), (17, 20), (9, 16, 23), (2, 8, 9, 10), (2, 3, 8, 8, 8)]
    )
    def test_every_dtype_and_number_of_axes(self, dtype, shape):
        stream = stream_of(smooth_volume(shape, dtype), ratio=2)
        decoded = decode_chunk(stream)
        for level in (1, 2):
            found = decode_level(stream, level)
            assert found.dtype == np.dtype(dtype)
            assert found.shape == level_shape(shape, level)
            assert np.abs(found - block_means(decoded, level)).max() <= 2

    def test_constant_chunks_are_exact(self):
        stream = stream_of(np.full((16, 16, 16), -7.25, "f4"))
        np.testing.assert_array_equal(decode_level(stream, 3), np.full((2, 2, 2), -7.25, "f4"))

    def test_not_finite_voxels(self):
        volume = smooth_volume((16, 16, 16))
        volume[:4] = np.nan
        volume[4, 4, 4] = np.inf
        volume[8:12, 8:12, 8:12] = -np.inf
        found = decode_level(stream_of(volume, ratio=8), 2)
        missing = np.zeros((4, 4, 4), bool)
        missing[0] = True
        missing[2, 2, 2] = True
        np.testing.assert_array_equal(np.isnan(found), missing)
        assert np.isfinite(found[~missing]).all()

    def test_padding_within_the_array_counts_and_beyond_it_does_not(self):
        volume = np.full((16, 16, 16), 50, "u1")
        volume[:13] += np.arange(256, dtype="u1").reshape(1, 16, 16) // 8
        volume[13:] = 200
        stream = stream_of(volume, ratio=4)
        decoded = decode_chunk(stream)
        inside = decode_level(stream, 2)
        assert np.abs(inside - block_means(decoded, 2)).max() < 2
        outside = decode_level(stream, 2, (13, 16, 16))
        assert np.abs(outside - block_means(decoded[:13], 2)).max() < 2
        np.testing.assert_array_equal(outside[:3], inside[:3])

    def test_padding_of_nan_does_not_leak(self):
        volume = smooth_volume((16, 16, 16))
        volume[:, 9:] = np.nan
        stream = stream_of(volume, ratio=4)
        found = decode_level(stream, 2)
        assert np.isfinite(found[:, :3]).all()
        assert np.isnan(found[:, 3]).all()
        expected = block_means(decode_chunk(stream)[:, :9], 2)
        np.testing.assert_allclose(found[:, :3], expected, atol=1)

    @pytest.mark.parametrize("extent", [(13, 16, 16), (7, 9, 1)])
    def test_a_chunk_that_goes_beyond_its_array(self, extent):
        volume = smooth_volume((16, 16, 16))
        volume[:2, :2, :2] = np.nan
        volume[0, 5, 0] = np.inf
        stream = stream_of(volume, ratio=4)
        inside = decode_chunk(stream)[tuple(slice(0, n) for n in extent)]
        for level in (1, 2):
            found = decode_level(stream, level, extent)
            assert found.shape == level_shape((16, 16, 16), level)
            held = found[tuple(slice(0, n) for n in level_shape(extent, level))]
            finite = np.isfinite(inside)
            shares = block_means(finite, level)
            with np.errstate(invalid="ignore"):
                expected = block_means(np.where(finite, inside, 0), level) / shares
            np.testing.assert_allclose(held, expected, rtol=1e-6)

    @pytest.mark.parametrize("level", [0, -1, 31])
    def test_levels_there_are(self, level):
        with pytest.raises(ConfigError, match=f"level={level} is not in 1 to 30"):
            decode_level(stream_of(smooth_volume((8, 8, 8)), ratio=4), level)

    def test_damage_shows_wherever_it_is(self):
        stream = bytearray(stream_of(smooth_volume((16, 16, 16)), ratio=4))
        for position in range(0, len(stream), 97):
            damaged = bytes(stream[:position] + bytes([stream[position] ^ 16]))
            with pytest.raises(FormatError):
                decode_level(damaged + bytes(stream[position + 1 :]), 2)


def stored_image(store, door: str = "plain", n: int = 3, volume: np.ndarray | None = None):
    """Write level 0 into a group of a store, all but one object, and add levels."""
    volume = brain(64)[:, :56, :50] if volume is None else volume
    group = zarr.open_group(store, mode="w")
    options = {**PLAIN, **DOORS[door]}
    array = group.create_array("0", shape=volume.shape, dtype=volume.dtype, fill_value=9, **options)
    # The corner at the end stays missing.
    z, y, _ = array.shards or array.chunks
    array[:z] = volume[:z]
    array[z:, :y] = volume[z:, :y]
    assert add_levels(group, n) == [str(level) for level in range(n + 1)]
    return group


def check_reads(level, expected) -> None:
    """Compare selections of every kind with a whole read."""
    z, y, x = expected.shape
    np.testing.assert_array_equal(level[z // 2], expected[z // 2])
    np.testing.assert_array_equal(level[1:z:3, y - 1, 2:5], expected[1:z:3, y - 1, 2:5])
    np.testing.assert_array_equal(
        level.oindex[[0, z - 1], :, [1, 3]], expected[np.ix_([0, z - 1], range(y), [1, 3])]
    )
    points = ([0, z - 1, 2], [0, y - 1, 1], [x - 1, 0, 3])
    np.testing.assert_array_equal(level.vindex[points], expected[points])
    mask = np.random.default_rng(0).random(expected.shape) < 0.01
    np.testing.assert_array_equal(level[mask], expected[mask])


class TestArrays:
    @pytest.mark.parametrize("door", DOORS)
    def test_plain_zarr_reads_them(self, tmp_path, door):
        stored_image(tmp_path / "a.zarr", door)
        group = zarr.open_group(tmp_path / "a.zarr", mode="r")
        decoded = group["0"][:]
        for number in (1, 2, 3):
            level = group[str(number)]
            whole = level[:]
            assert level.shape == level_shape(decoded.shape, number)
            assert whole.dtype == decoded.dtype
            # Chunks that small have little more than edges at their third level.
            least = 40 if number < 3 else 36
            assert level_psnr(decoded, whole, number) >= least
            check_reads(level, whole)
            # Opened by its own path, its source is outside of the store.
            alone = tmp_path / "a.zarr" / str(number)
            np.testing.assert_array_equal(zarr.open_array(alone, mode="r")[:], whole)
            np.testing.assert_array_equal(da.from_zarr(str(alone)).compute(), whole)
            opened = open_level(group["0"], number)
            assert (opened.shape, opened.chunks) == (level.shape, level.chunks)
            assert opened.read_only
            np.testing.assert_array_equal(pickle.loads(pickle.dumps(opened))[:], whole)

    def test_missing_chunks_are_fill_value(self, tmp_path):
        group = stored_image(tmp_path / "a.zarr")
        for number in (1, 2, 3):
            corner = group[str(number)][32 >> number :, 32 >> number :]
            assert (corner == 9).all()

    def test_no_chunk_is_stored(self, tmp_path):
        stored_image(tmp_path / "a.zarr", "shards")
        for number in "123":
            assert [p.name for p in (tmp_path / "a.zarr" / number).iterdir()] == ["zarr.json"]

    def test_level_0_and_groups(self, tmp_path):
        group = stored_image(tmp_path / "a.zarr")
        decoded = group["0"][:]
        opened = open_level(tmp_path / "a.zarr", 0)
        assert opened.read_only
        np.testing.assert_array_equal(opened[:], decoded)
        np.testing.assert_array_equal(open_level(group, 2)[:], group["2"][:])

    def test_time_and_channels_stay(self):
        volume = np.stack([smooth_volume((16, 16, 16)), smooth_volume((16, 16, 16))[::-1]] * 2)
        array = zarr.create_array(
            MemoryStore(), data=volume.reshape(2, 2, 16, 16, 16), chunks=(1, 2, 8, 8, 16), **PLAIN
        )
        level = open_level(array, 1)
        assert level.shape == (2, 2, 8, 8, 8)
        assert level.chunks == (1, 2, 4, 4, 8)
        assert level_psnr(array[:], level[:], 1) >= 40

    @pytest.mark.parametrize("value", [0, 9, np.ones((4, 4, 4), "u1")])
    def test_writing_is_refused(self, tmp_path, value):
        group = stored_image(tmp_path / "a.zarr")
        for level in (group["2"], open_level(group, 2)):
            before = level[:]
            for selection in (slice(0, 4), (slice(0, 8), slice(0, 8), slice(0, 8))):
                with pytest.raises((ConfigError, ValueError), match=r"cannot be written|read-only"):
                    level[selection] = value if np.isscalar(value) else value[0, 0, 0]
            np.testing.assert_array_equal(level[:], before)
        assert [p.name for p in (tmp_path / "a.zarr" / "2").iterdir()] == ["zarr.json"]

    def test_a_checksum_behind_the_codec(self):
        array = zarr.create_array(
            MemoryStore(), data=brain(32), chunks=(16, 16, 16), serializer=FAST,
            compressors=[zarr.codecs.Crc32cCodec()],
        )  # fmt: skip
        assert level_psnr(array[:], open_level(array, 1)[:], 1) >= 40

    @pytest.mark.parametrize(
        ("options", "error", "message"),
        [
            ({"zarr_format": 2, "compressors": FAST}, UnsupportedDataError, "Zarr v2 format"),
            ({"serializer": FAST}, UnsupportedDataError, "zstd is applied to the TINC streams"),
            ({}, UnsupportedDataError, "is not stored with TINC"),
        ],
    )
    def test_what_has_no_levels(self, options, error, message):
        array = zarr.create_array(MemoryStore(), shape=(16,) * 3, dtype="u1", **options)
        with pytest.raises(error, match=message):
            open_level(array, 1)

    def test_chunks_that_do_not_divide(self):
        array = zarr.create_array(
            MemoryStore(), shape=(60, 40, 40), chunks=(20, 20, 24), dtype="u1", **PLAIN
        )
        assert open_level(array, 2).chunks == (5, 5, 6)
        with pytest.raises(
            ConfigError, match=r"8 divides .* chunks of \(20, 20, 24\) allow levels 1 to 2"
        ):
            open_level(array, 3)
        with pytest.raises(ConfigError, match="level=-1 is not an integer in 0 to 30"):
            open_level(array, -1)

    def test_a_source_that_is_gone_or_another_is_no_fill_value(self, tmp_path):
        group = stored_image(tmp_path / "a.zarr")
        group.create_array(
            "0", shape=(64, 56, 50), chunks=(16, 32, 32), dtype="u1", overwrite=True, **PLAIN
        )
        with pytest.raises(ConfigError, match="made anew; add the levels again"):
            group["1"][:]
        del group["0"]
        with pytest.raises(ConfigError, match="is no array of the Zarr v3 format"):
            zarr.open_group(tmp_path / "a.zarr", mode="r")["1"][:]

    def test_damage_is_named(self, tmp_path):
        group = stored_image(tmp_path / "a.zarr")
        path = tmp_path / "a.zarr" / "0" / "c" / "1" / "0" / "1"
        path.write_bytes(path.read_bytes()[:-9])
        with pytest.raises(FormatError, match=r"chunk \(1, 0, 1\) of .*a\.zarr/0"):
            group["2"][:]

    @pytest.mark.parametrize(
        "configuration",
        [
            {"level": 0, "source": "../0"}, {"level": True, "source": "."}, {"level": 1},
            {"level": 1, "source": "/0"}, {"level": 1, "source": "../0", "more": 1},
        ],
    )  # fmt: skip
    def test_stored_configuration_is_checked(self, configuration):
        with pytest.raises(ConfigError):
            TINCLevelCodec.from_dict({"name": "tinc_level", "configuration": configuration})

    def test_the_codec_is_found_and_pickled(self):
        built = TINCLevelCodec(2, "../0")
        assert zarr.registry.get_codec_class("tinc_level") is TINCLevelCodec
        assert (
            built == TINCLevelCodec.from_dict(built.to_dict()) == pickle.loads(pickle.dumps(built))
        )
        assert len({built, TINCLevelCodec(2, "../0"), TINCLevelCodec(1, "../0")}) == 2


@pytest.fixture(scope="module")
def s3(tmp_path_factory):
    for module in ("moto", "s3fs", "obstore"):
        pytest.importorskip(module)
    with s3_server(tmp_path_factory.mktemp("s3")) as server:
        yield server


class TestStores:
    def test_memory_and_zip(self, tmp_path):
        store = MemoryStore()
        group = stored_image(store)
        expected = group["2"][:]
        np.testing.assert_array_equal(open_level(group["0"], 2)[:], expected)
        with ZipStore(tmp_path / "a.zip", mode="w") as target:
            for key, buffer in store._store_dict.items():
                zarr.core.sync.sync(target.set(key, buffer))
        with ZipStore(tmp_path / "a.zip", mode="r") as source:
            check_reads(zarr.open_group(source, mode="r")["2"], expected)

    @pytest.mark.parametrize("door", ["plain", "shards"])
    def test_a_bucket_and_what_is_fetched(self, s3, door):
        url = s3.url(f"{door}.zarr")
        group = stored_image(FsspecStore.from_url(url, s3.storage_options), door)
        decoded, expected = group["0"][:], group["1"][:]
        s3.forget()
        opened = zarr.open_group(url, mode="r", storage_options=s3.storage_options)
        level = opened["1"]
        np.testing.assert_array_equal(level[2:5, 3, 4:6], expected[2:5, 3, 4:6])
        asked = [answer.key.removeprefix(f"{door}.zarr/") for answer in s3.reads()]
        if door == "plain":
            assert asked == ["zarr.json", "1/zarr.json", "0/zarr.json", "0/c/0/0/0"]
        else:
            # The index of the shard, then one inner chunk.
            assert asked == ["zarr.json", "1/zarr.json", "0/zarr.json", *["0/c/0/0/0"] * 2]
            assert all(answer.requested for answer in s3.reads()[3:])
        check_reads(level, expected)
        # By the level's own URL, through both clients.
        np.testing.assert_array_equal(
            da.from_zarr(f"{url}/1", storage_options=s3.storage_options).compute(), expected
        )
        from obstore.store import S3Store

        for prefix, path in ((f"{door}.zarr", "1"), (f"{door}.zarr/1", "")):
            bucket = S3Store(BUCKET, prefix=prefix, **s3.obstore_options)
            alone = zarr.open_array(ObjectStore(bucket, read_only=True), path=path, mode="r")
            np.testing.assert_array_equal(alone[:], expected)
        assert level_psnr(decoded, expected, 1) >= 40

    def test_a_web_server(self, tmp_path):
        pytest.importorskip("aiohttp")
        group = stored_image(tmp_path / "a.zarr", "shards")
        expected = group["2"][:]
        with http_server(tmp_path) as server:
            for url, path in ((f"{server.url}/a.zarr", "2"), (f"{server.url}/a.zarr/2", "")):
                store = FsspecStore.from_url(url, read_only=True)
                check_reads(zarr.open_array(store, path=path, mode="r"), expected)

    def test_a_store_without_an_outside(self, tmp_path):
        store = MemoryStore()
        group = stored_image(store)
        inner = MemoryStore()
        document = zarr.core.sync.sync((group.store_path / "1/zarr.json").get())
        zarr.core.sync.sync(inner.set("zarr.json", document))
        with pytest.raises(ConfigError, match="open the group, then the level in it"):
            zarr.open_array(inner, mode="r")[:]


class TestGroups:
    def files(self, folder):
        return {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}

    def test_adding_again_changes_nothing(self, tmp_path):
        group = stored_image(tmp_path / "a.zarr")
        before = self.files(tmp_path)
        assert add_levels(tmp_path / "a.zarr", 3) == ["0", "1", "2", "3"]
        assert self.files(tmp_path) == before
        assert add_levels(group, 1) == ["0", "1"]
        assert sorted(dict(zarr.open_group(tmp_path / "a.zarr").arrays())) == ["0", "1"]
        assert len(group.attrs["ome"]["multiscales"][0]["datasets"]) == 2
        assert add_levels(group, 3) == ["0", "1", "2", "3"]
        assert self.files(tmp_path) == before
        assert add_levels(group, 0) == ["0"]

    def test_levels_follow_a_source_that_grew(self, tmp_path):
        group = stored_image(tmp_path / "a.zarr")
        group["0"].resize((80, 56, 50))
        add_levels(group, 3)
        assert group["3"].shape == (10, 7, 7)

    def test_metadata_there_are_kept(self, tmp_path):
        group = zarr.open_group(tmp_path / "a.zarr", mode="w")
        group.create_array(
            "scan/s0", shape=(2, 16, 16, 16), chunks=(1, 16, 16, 16), dtype="f4", **PLAIN
        )
        scale = {"type": "scale", "scale": [1.5, 2.0, 0.5, 0.5]}
        moved = {"type": "translation", "translation": [0.0, 7.0, -3.0, 0.0]}
        axes = [
            {"name": "t", "type": "time", "unit": "second"},
            *({"name": name, "type": "space", "unit": "micrometer"} for name in "zyx"),
        ]
        group.attrs["ome"] = {
            "version": "0.5",
            "multiscales": [
                {
                    "name": "cells",
                    "axes": axes,
                    "datasets": [{"path": "scan/s0", "coordinateTransformations": [scale, moved]}],
                }
            ],
            "omero": {"channels": []},
        }
        group.attrs["mine"] = 1
        assert add_levels(group, 2) == ["scan/s0", "scan/s1", "scan/s2"]
        attributes = zarr.open_group(tmp_path / "a.zarr").attrs
        assert attributes["mine"] == 1
        assert attributes["ome"]["omero"] == {"channels": []}
        (image,) = attributes["ome"]["multiscales"]
        assert (image["name"], image["axes"]) == ("cells", axes)
        assert image["datasets"][0]["coordinateTransformations"] == [scale, moved]
        assert image["datasets"][2] == {
            "path": "scan/s2",
            "coordinateTransformations": [
                {"type": "scale", "scale": [1.5, 8.0, 2.0, 2.0]},
                {"type": "translation", "translation": [0.0, 10.0, -2.25, 0.75]},
            ],
        }
        assert group["scan/s2"].shape == (2, 4, 4, 4)
        assert group["scan/s2"].metadata.dimension_names == ("t", "z", "y", "x")

    def test_axes_by_the_array_and_its_name(self, tmp_path):
        group = zarr.open_group(tmp_path / "a.zarr", mode="w")
        group.create_array(
            "image", shape=(3, 16, 16, 16), chunks=(1, 8, 8, 8), dtype="u1",
            dimension_names=("c", "z", "y", "x"), **PLAIN,
        )  # fmt: skip
        assert add_levels(group, 1) == ["image", "image_1"]
        (image,) = group.attrs["ome"]["multiscales"]
        assert [axis["type"] for axis in image["axes"]] == ["channel", "space", "space", "space"]

    @pytest.mark.parametrize("zarr_format", [2, 3])
    def test_an_array_is_no_group(self, tmp_path, zarr_format):
        path = str(tmp_path / "a.zarr")
        array = zarr.create_array(path, shape=(8,), dtype="u1", zarr_format=zarr_format)
        for group in (path, array):
            with pytest.raises(ConfigError, match=r"is an array, .*open_level\(array, k\)"):
                add_levels(group, 1)
        with pytest.raises(FileNotFoundError):
            add_levels(str(tmp_path / "none.zarr"), 1)

    def test_failures_leave_the_group_as_it_was(self, tmp_path, monkeypatch):
        group = stored_image(tmp_path / "a.zarr", n=1)
        group.create_array("3", shape=(4,), dtype="u1")
        before = self.files(tmp_path)
        with pytest.raises(ConfigError, match="'3' is there already and no level"):
            add_levels(group, 3)
        with pytest.raises(ConfigError, match="allow levels 1 to 5"):
            add_levels(group, 6)
        assert self.files(tmp_path) == before
        # A disk that is full once the level's metadata are written.
        original = zarr.storage.LocalStore.set

        async def failing(self, key, value):
            if key == "zarr.json":
                raise OSError("no space left on device")
            await original(self, key, value)

        monkeypatch.setattr(zarr.storage.LocalStore, "set", failing)
        with pytest.raises(OSError, match="no space"):
            add_levels(group, 2)
        assert self.files(tmp_path) == before

    def test_stored_resolutions_are_not_replaced(self, tmp_path):
        group = stored_image(tmp_path / "a.zarr", n=0)
        ome = group.attrs["ome"]
        group.create_array("half", shape=(4, 4, 4), dtype="u1")
        ome["multiscales"][0]["datasets"].append({"path": "half"})
        group.attrs["ome"] = ome
        with pytest.raises(ConfigError, match="resolutions that are stored: half"):
            add_levels(group, 1)

    def test_refusals(self, tmp_path):
        group = stored_image(tmp_path / "a.zarr", n=0)
        with pytest.raises(ConfigError, match="cannot be written"):
            add_levels(zarr.open_group(tmp_path / "a.zarr", mode="r"), 1)
        with pytest.raises(ConfigError, match="n=-1 is not"):
            add_levels(group, -1)
        with pytest.raises(UnsupportedDataError, match="v2 format"):
            add_levels(zarr.open_group(tmp_path / "b.zarr", mode="w", zarr_format=2), 1)
        line = zarr.open_group(tmp_path / "c.zarr", mode="w")
        line.create_array("0", shape=(64,), chunks=(32,), dtype="f4", **PLAIN)
        with pytest.raises(ConfigError, match=r"2 \(y, x\) to 5"):
            add_levels(line, 1)

    def test_consolidated_metadata_are_made_anew(self, tmp_path):
        stored_image(tmp_path / "a.zarr", n=1)
        with warnings.catch_warnings():
            # Zarr says that the v3 format has no consolidated metadata yet.
            warnings.simplefilter("ignore")
            zarr.consolidate_metadata(tmp_path / "a.zarr")
            add_levels(tmp_path / "a.zarr", 2)
            group = zarr.open_group(tmp_path / "a.zarr", mode="r", use_consolidated=True)
        assert sorted(group.metadata.consolidated_metadata.metadata) == ["0", "1", "2"]
        assert group["2"][:].shape == (16, 14, 13)


class TestReaders:
    """What viewers open images with; none of it knows us."""

    @pytest.fixture
    def image(self, tmp_path):
        stored_image(tmp_path / "a.zarr", n=2)
        group = zarr.open_group(tmp_path / "a.zarr", mode="r")
        return str(tmp_path / "a.zarr"), [group[str(level)][:] for level in range(3)]

    def test_ome_zarr(self, image):
        pytest.importorskip("ome_zarr")
        from ome_zarr.io import parse_url
        from ome_zarr.reader import Reader

        path, expected = image
        (node,) = Reader(parse_url(path))()
        assert len(node.data) == 3
        for found, wanted in zip(node.data, expected, strict=True):
            np.testing.assert_array_equal(found.compute(), wanted)

    def test_ome_zarr_models_find_nothing_wrong(self, image):
        models = pytest.importorskip("ome_zarr_models.v05")
        model = models.Image.from_zarr(zarr.open_group(image[0], mode="r"))
        datasets = model.ome_attributes.multiscales[0].datasets
        assert [dataset.path for dataset in datasets] == ["0", "1", "2"]

    def test_ngff_zarr(self, image):
        ngff_zarr = pytest.importorskip("ngff_zarr")
        path, expected = image
        try:
            found = ngff_zarr.from_ngff_zarr(path).images
        except Exception as error:
            # Since 0.44 it reads through a library in Rust that has no place for other codecs.
            if "codec tinc is not supported" not in str(error):
                raise
            pytest.skip(f"this ngff-zarr: {error}")
        assert [part.translation["z"] for part in found] == [0.0, 0.5, 1.5]
        for part, wanted in zip(found, expected, strict=True):
            np.testing.assert_array_equal(part.data.compute(), wanted)

    def test_ngff_zarr_through_a_server(self, image):
        """Whatever it reads through: what is served has no codec but Zarr's own."""
        ngff_zarr = pytest.importorskip("ngff_zarr")
        pytest.importorskip("aiohttp")
        from tinc_codec.serve import app, background

        path, expected = image
        with background(app(path)) as url:
            found = ngff_zarr.from_ngff_zarr(url).images
            assert [part.translation["z"] for part in found] == [0.0, 0.5, 1.5]
            for part, wanted in zip(found, expected, strict=True):
                np.testing.assert_array_equal(part.data.compute(), wanted)

    def test_napari(self, image):
        reader = pytest.importorskip("napari_ome_zarr")
        path, expected = image
        ((data, about, kind),) = reader.napari_get_reader(path)(path)
        assert kind == "image"
        assert about["scale"] == [1.0, 1.0, 1.0]
        for found, wanted in zip(data, expected, strict=True):
            np.testing.assert_array_equal(np.asarray(found), wanted)


class TestCommand:
    def run(self, *arguments):
        from tinc_codec.cli.app import app

        out = io.StringIO()
        with contextlib.redirect_stdout(out), pytest.raises(SystemExit) as exit_status:
            app(["levels", *map(str, arguments)])
        return exit_status.value.code, out.getvalue()

    def test_it_adds_levels(self, tmp_path):
        stored_image(tmp_path / "a.zarr", n=0)
        code, out = self.run(tmp_path / "a.zarr", "-n", 2, "--json")
        assert code == 0
        levels = json.loads(out)["levels"]
        assert [level["path"] for level in levels] == ["0", "1", "2"]
        assert levels[2]["shape"] == [16, 14, 13]
        assert self.run(tmp_path / "a.zarr", "-n", 6)[0] == 2
        assert self.run(tmp_path / "none.zarr")[0] == 2


def test_levels_are_kept_and_bounded():
    stream = stream_of(brain(32))
    CACHE.clear()
    first = codec.decode_level(stream, 1)
    assert codec.decode_level(stream, 1) is first
    assert not first.flags.writeable
    assert CACHE.size_bytes >= first.nbytes
    with codec.config.set(cache_bytes=0):
        CACHE.clear()
        assert codec.decode_level(stream, 1) is not codec.decode_level(stream, 1)
        assert CACHE.size_bytes == 0


def test_the_example_writes_a_picture_per_level(tmp_path):
    pytest.importorskip("matplotlib")
    output = run("levels.py", tmp_path, cwd=tmp_path)
    assert "level 2: (16, 24, 24), plane (24, 24)" in output
    assert "801 values along a line" in output
    for number in range(3):
        assert (tmp_path / f"level_{number}.png").read_bytes().startswith(b"\x89PNG")
