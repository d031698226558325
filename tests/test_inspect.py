"""`tinc_codec.inspect`: what it says, how little it reads for it, and what it refuses."""

import asyncio
import itertools
import json
import math
import subprocess
import sys
import zipfile
from pathlib import Path

import google_crc32c
import numpy as np
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

import tinc_codec
from tests.faces import CHUNKS, CODEC, smooth_volume
from tinc_codec import (
    ConfigError,
    CorruptStreamError,
    FormatError,
    TruncatedStreamError,
    UnsupportedDataError,
    inspect,
    metrics,
)
from tinc_codec.bitstream.header import Header, write_stream
from tinc_codec.bitstream.sections import KNOWN_SECTIONS, Section
from tinc_codec.codec import encode_chunk
from tinc_codec.inspection import reader
from tinc_codec.inspection.quality import PooledQuality
from tinc_codec.inspection.report import InspectReport, describe_chunk
from tinc_codec.volume.chunk import analyse

zarr = pytest.importorskip("zarr", minversion="3.1")

from zarr.codecs import ShardingCodec  # noqa: E402
from zarr.storage import LocalStore, MemoryStore, WrapperStore, ZipStore  # noqa: E402

V3 = {"serializer": CODEC, "compressors": None}
DOORS = {
    "v2": {"zarr_format": 2, "compressors": CODEC},
    "v2-F": {"zarr_format": 2, "compressors": CODEC, "order": "F"},
    "v3": V3,
    "v3-shards": {**V3, "shards": (32, 32, 16)},
    "v3-shards-index-first": {
        **V3,
        "shards": {"shape": (32, 32, 16), "index_location": "start"},
    },
}
SHAPE = (40, 20, 16)
GOLDEN = sorted((Path(__file__).parent / "golden").rglob("*.tinc"))


def volume() -> np.ndarray:
    """Six chunks of 16³: ordinary, constant, all fill value (left out by zarr), ragged, padded."""
    values = smooth_volume(SHAPE)
    values[16:32, :16] = 7
    values[:16, 16:] = 0
    values[36:, :16] = 0
    return values


def fake_stream(
    shape: tuple[int, ...] = CHUNKS, dtype: str = "<f4", psnr: float = 30.0, body_bytes: int = 600
) -> bytes:
    """Build a stream that is whole and well formed up to the tree's body, without a fit."""
    array = np.arange(math.prod(shape)).reshape(shape).astype(dtype)
    info, _ = analyse(array)
    return write_stream(Header(info, psnr, 2.0, {Section.TREE: bytes(body_bytes)}))


def create_filled(store, shape, streams=None, **options):
    """Create an array whose chunks are fake streams, or those given by key."""
    codec = {} if "zarr_format" in options else V3
    array = zarr.create_array(store, shape=shape, chunks=CHUNKS, dtype="f4", **codec, **options)
    prototype = zarr.buffer.default_buffer_prototype()
    grid = np.ndindex(*array.cdata_shape)
    keys = [array.metadata.encode_chunk_key(position) for position in grid]
    for key, stream in (streams or dict.fromkeys(keys, fake_stream())).items():
        value = prototype.buffer.from_bytes(stream)
        zarr.core.sync.sync((array.store_path / key).set(value))
    return array


class CountingStore(WrapperStore):
    """A store that notes every request for chunk data, and how many were open at once."""

    def __init__(self, store):
        super().__init__(store)
        self.requests = []
        self.open_requests = self.most_open = 0

    async def get(self, key, prototype, byte_range=None):
        self.open_requests += 1
        self.most_open = max(self.most_open, self.open_requests)
        # Time for others to start, as over a network.
        await asyncio.sleep(0.001)
        value = await self._store.get(key, prototype, byte_range)
        self.open_requests -= 1
        self.requests.append((key, byte_range, 0 if value is None else len(value)))
        return value


@pytest.fixture(scope="module")
def doors(tmp_path_factory):
    """One volume stored through every door: folder, original."""
    folder = tmp_path_factory.mktemp("doors")
    original = volume()
    for name, options in DOORS.items():
        zarr.create_array(folder / name, data=original, chunks=CHUNKS, **options)
    return folder, original


class TestReport:
    @pytest.mark.parametrize("door", DOORS)
    def test_figures_are_those_of_the_whole_array(self, doors, door):
        folder, original = doors
        decoded = zarr.open_array(folder / door, mode="r")[:]
        report = inspect(folder / door)
        assert (report.shape, report.chunk_shape, report.grid_shape) == (SHAPE, CHUNKS, (3, 2, 1))
        assert (report.shard_shape is not None) == ("shards" in door)
        assert report.dtype == original.dtype
        assert report.codec == CODEC.params.to_config()
        assert [chunk.coordinates for chunk in report.chunks] == [
            (0, 0, 0), (1, 0, 0), (1, 1, 0), (2, 0, 0), (2, 1, 0),
        ]  # fmt: skip
        assert [chunk.constant for chunk in report.chunks] == [False, True, False, False, False]
        assert (report.n_missing, report.raw_bytes) == (1, original.nbytes - 16 * 4 * 16 * 4)

        files = [path for path in (folder / door).rglob("*") if path.is_file()]
        chunk_files = [path for path in files if not path.name.startswith((".z", "zarr.json"))]
        assert report.stored_bytes == sum(path.stat().st_size for path in chunk_files)
        assert report.ratio == report.raw_bytes / report.stored_bytes
        largest = max(chunk.size_bytes for chunk in report.chunks)
        assert 8 <= report.chunk_ratio_min == 16**3 * 4 / largest < 10
        assert ("shard index" in report.part_bytes) == ("shards" in door)
        for name in {name for chunk in report.chunks for name in chunk.sections}:
            assert report.part_bytes[name] == sum(c.sections.get(name, 0) for c in report.chunks)

        missing = np.zeros(SHAPE, bool)
        missing[:16, 16:] = True
        assert report.psnr == pytest.approx(
            metrics.psnr(original, decoded, valid=~missing), abs=1e-4
        )
        assert report.max_error == pytest.approx(metrics.max_error(original, decoded), rel=1e-6)
        assert report.psnr_min == min(chunk.psnr for chunk in report.chunks)
        found = sorted(chunk.psnr for chunk in report.chunks)[:4]
        assert report.psnr_median == (found[1] + found[2]) / 2

    def test_a_map_and_a_table(self, doors):
        folder, _ = doors
        report = inspect(folder / "v3-shards")
        sizes = report.chunk_map("size_bytes")
        assert sizes.shape == (3, 2, 1)
        assert np.isnan(sizes[0, 1, 0])
        assert np.nansum(sizes) == sum(chunk.size_bytes for chunk in report.chunks)
        lines = str(report).splitlines()
        assert lines[0].endswith("v3-shards")
        labels = ["array", "codec", "chunks", "bytes", "ratio"]
        labels += [*report.part_bytes, "PSNR", "by chunk", "max error"]
        assert [line[:16].strip() for line in lines[1:]] == labels
        assert "5 stored, 1 missing; 1 constant, " in str(report)
        assert "TINC(ratio=8, effort=0)" in str(report)
        assert max(map(len, lines[1:])) <= 90

    def test_every_known_section_has_its_name(self):
        values = np.arange(16, dtype="f4")
        values[3] = np.nan
        info, _ = analyse(values)
        alone = {Section.MASK, Section.LATTICE}
        for sections in (KNOWN_SECTIONS - {Section.LATTICE}, alone):
            bodies = {section: bytes(10 + section) for section in sections}
            (chunk,) = inspect(write_stream(Header(info, 30.0, 1.0, bodies))).chunks
            named = {section.name.lower(): 10 + section for section in sorted(sections)}
            assert chunk.sections == named
            assert set(chunk.models) == set(named) - {"mask", "corrections"}
            assert chunk.size_bytes == chunk.header_bytes + sum(named.values()) + 4

    def test_an_array_without_a_chunk(self, tmp_path):
        zarr.create_array(tmp_path / "a", shape=SHAPE, chunks=CHUNKS, dtype="f4", **V3)
        report = inspect(tmp_path / "a")
        assert (report.chunks, report.n_missing, report.stored_bytes) == ((), 6, 0)
        assert np.isnan([report.ratio, report.psnr, report.psnr_min, report.max_error]).all()
        assert "0 stored, 6 missing" in str(report)


class TestPooledPsnr:
    @given(
        st.sampled_from(["u1", "i4", "f4", "f8"]),
        st.tuples(st.integers(1, 9), st.integers(1, 9)),
        st.tuples(st.integers(1, 5), st.integers(1, 5)),
        st.sampled_from([0, 17, math.nan]),
        st.booleans(),
        st.integers(0, 2**32 - 1),
    )
    @example("u1", (9, 9), (5, 5), 17, True, 0)
    def test_it_is_the_psnr_of_the_whole(self, dtype, shape, chunks, fill, half_flat, seed):
        rng = np.random.default_rng(seed)
        fill = 0 if math.isnan(fill) and dtype[0] != "f" else fill
        original = rng.integers(0, 30, shape).astype(dtype)
        if half_flat:
            original[shape[0] // 2 :] = 17
        decoded = original.copy()
        rows = []
        for position in np.ndindex(*(-(-n // c) for n, c in zip(shape, chunks, strict=True))):
            place = tuple(slice(i * c, (i + 1) * c) for i, c in zip(position, chunks, strict=True))
            chunk = np.full(chunks, fill, dtype)
            # A margin of a single voxel is stored as data.
            assume(chunk.size - original[place].size != 1)
            inside = tuple(slice(0, n) for n in original[place].shape)
            chunk[inside] = original[place]
            info, classes = analyse(chunk)
            changed = chunk.copy()
            sections = {} if classes is None else {Section.MASK: b"m"}
            valid = info.valid_slices
            if info.value_min is not None and info.value_min < info.value_max:
                changed[valid] += rng.integers(0, 3, info.valid_extent).astype(dtype)
                sections[Section.TREE] = b"t"
            decoded[place] = changed[inside]
            quality = metrics.measure(chunk[valid], changed[valid])
            stream = write_stream(Header(info, quality.psnr, quality.max_error, sections))
            rows.append(describe_chunk(reader.read_header_only(stream), position, chunks, shape))
        report = InspectReport("a", shape, np.dtype(dtype), chunks, None, {}, tuple(rows), {})
        assert report.psnr == pytest.approx(metrics.psnr(original, decoded), abs=1e-3)
        assert report.raw_bytes == original.nbytes

    @pytest.mark.parametrize("scale", [5e-324, 1e-200, 1.0, 1e300, 8e307])
    @pytest.mark.parametrize("psnr", [30.0, 3000.0, -3000.0])
    def test_any_scale(self, scale, psnr):
        array = np.array([-2, -1, 1, 2]) * scale
        info, _ = analyse(array)
        report = inspect(write_stream(Header(info, psnr, 0.0, {Section.TREE: b"t"})))
        assert report.psnr == pytest.approx(psnr, abs=1e-3)

    @pytest.mark.parametrize(
        ("values", "psnr", "pooled"),
        [
            ([1.0, 2.0], math.inf, math.inf),
            ([1.0, 2.0], -math.inf, -math.inf),
            # A constant chunk is exact, whatever its header says.
            ([3.0, 3.0], 20.0, math.inf),
            ([math.nan, math.nan], math.inf, math.nan),
            # Padding of NaN has no error, and no part in the mean either.
            ([1.0, 2.0, 3.0, math.nan, math.nan], 30.0, 30.0),
        ],
    )
    def test_limits(self, values, psnr, pooled):
        info, classes = analyse(np.array(values))
        sections = {} if classes is None else {Section.MASK: b"m"}
        if values[0] < values[1]:
            sections[Section.TREE] = b"t"
        report = inspect(write_stream(Header(info, psnr, 1.0, sections)))
        assert report.psnr == pytest.approx(pooled, nan_ok=True)
        assert str(report)


class TestPooledQuality:
    @pytest.mark.parametrize("scale", [1e-300, 1.0, 8e307])
    @pytest.mark.parametrize("errors", [(0.5, 2.0, 0.01), (1e-8, 1e-8, 1e-8), (1e3, 1e-3, 0.0)])
    def test_parts_are_one_volume_in_any_order(self, scale, errors):
        # Spans of up to 4 × 8e307, which no float64 holds; so do not the squares of any.
        counts = (10, 30, 7)
        mean_square = sum(n * e**2 for n, e in zip(counts, errors, strict=True)) / sum(counts)
        for order in itertools.permutations(range(3)):
            quality = PooledQuality()
            for part in order:
                quality.widen(-2.0 * scale / (part + 1), 2.0 * scale / (part + 1))
                log_error = math.log10(errors[part]) if errors[part] else -math.inf
                quality.add(counts[part], 2 * (log_error + math.log10(scale)))
            expected = 20 * math.log10(4) - 10 * math.log10(mean_square)
            assert quality.psnr == pytest.approx(expected, abs=1e-9)

    @pytest.mark.parametrize(
        ("log_errors", "psnr"),
        [
            ([], math.nan),
            ([-math.inf, -math.inf], math.inf),
            ([-math.inf, 3.0, math.inf, 2.0], -math.inf),
        ],
    )
    def test_limits(self, log_errors, psnr):
        quality = PooledQuality()
        quality.widen(0.0, 1.0)
        quality.add(0, math.inf)
        for log_error in log_errors:
            quality.add(5, log_error)
        assert quality.psnr == pytest.approx(psnr, nan_ok=True)

    def test_an_error_where_there_is_no_range(self):
        quality = PooledQuality()
        quality.widen(3.0, 3.0)
        quality.add(5, 0.0)
        assert quality.psnr == -math.inf


class TestSources:
    @pytest.fixture(scope="class")
    @staticmethod
    def plain(doors):
        folder, _ = doors
        return folder / "v3", inspect(folder / "v3")

    def test_array_path_and_store(self, plain):
        path, expected = plain
        sources = [str(path), zarr.open_array(path, mode="r"), LocalStore(path, read_only=True)]
        for source in sources:
            assert inspect(source) == expected

    def test_memory_and_zip(self, plain, tmp_path):
        path, expected = plain
        prototype = zarr.buffer.default_buffer_prototype()
        files = {str(file.relative_to(path)): file for file in path.rglob("*") if file.is_file()}
        memory = {k: prototype.buffer.from_bytes(f.read_bytes()) for k, f in files.items()}
        assert inspect(MemoryStore(memory)).chunks == expected.chunks
        with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
            for key, file in files.items():
                archive.write(file, key)
        store = ZipStore(tmp_path / "a.zip", mode="r")
        assert inspect(store).chunks == expected.chunks
        store.close()

    @pytest.mark.parametrize("door", ["v2", "v3", "v3-shards"])
    def test_fsspec_url(self, doors, door):
        fsspec = pytest.importorskip("fsspec")
        folder, _ = doors
        memory = fsspec.filesystem("memory")
        memory.put(f"{folder / door}/", f"/inspect-{door}", recursive=True)
        try:
            report = inspect(f"memory://inspect-{door}", storage_options={})
        finally:
            memory.rm(f"/inspect-{door}", recursive=True)
        assert report.chunks == inspect(folder / door).chunks
        assert report.part_bytes == inspect(folder / door).part_bytes

    def test_a_group_of_one_array_or_of_one_of_ours(self):
        group = zarr.create_group({})
        with pytest.raises(ConfigError, match="group of 0 arrays"):
            inspect(group)
        group.create_array("lat", data=np.arange(16.0))
        with pytest.raises(UnsupportedDataError, match="lat: is not stored with TINC"):
            inspect(group)
        options = {"shape": SHAPE, "chunks": CHUNKS, "dtype": "f4", **V3}
        group.create_array("scans/t1", **options)
        assert inspect(group).name.endswith("scans/t1")
        group.create_array("t2", **options)
        with pytest.raises(ConfigError, match=r"3 arrays, 2 of them.*scans/t1, t2; others: lat"):
            inspect(group)

    @pytest.mark.parametrize(
        "wrap", [bytes, bytearray, memoryview, lambda b: np.frombuffer(b, "u1")]
    )
    def test_the_bytes_of_one_stream(self, wrap):
        stream = fake_stream((4, 5), "<u2", psnr=33.0)
        report = inspect(wrap(stream))
        assert (report.shape, report.dtype, report.codec) == ((4, 5), np.dtype("<u2"), {})
        assert (report.stored_bytes, report.n_missing) == (len(stream), 0)
        assert report.psnr == pytest.approx(33.0) == report.psnr_min
        assert "settings unknown" in str(report)

    @pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
    def test_golden_streams(self, path):
        data = path.read_bytes()
        report = inspect(data)
        with np.load(path.with_suffix(".npz")) as kept:
            assert report.shape == kept["voxels"].shape
            assert report.raw_bytes == kept["voxels"].nbytes
        assert report.stored_bytes == len(data)
        assert str(report)


class TestBytesFetched:
    """Only headers and shard indices are fetched, many at once."""

    @pytest.mark.parametrize("options", [{}, DOORS["v2"]], ids=["v3", "v2"])
    def test_plain_chunks(self, options):
        n_chunks, n_missing = 300, 2
        store = CountingStore(MemoryStore())
        shape = (16, 16, 16 * n_chunks)
        array = create_filled(store, shape, **options)
        for last in range(n_missing):
            zarr.core.sync.sync(
                (array.store_path / array.metadata.encode_chunk_key((0, 0, last))).delete()
            )
        store.requests.clear()
        store.most_open = 0
        report = inspect(array)
        assert (len(report.chunks), report.n_missing) == (n_chunks - n_missing, n_missing)
        assert len(store.requests) == n_chunks
        assert all(byte_range is not None for _, byte_range, _ in store.requests)
        fetched = sum(size for _, _, size in store.requests)
        assert fetched == 256 * len(report.chunks) < report.stored_bytes / 2
        assert 32 <= store.most_open <= 64

    def test_shards(self):
        store = CountingStore(MemoryStore())
        shards = {**V3, "shards": (32, 32, 32)}
        array = zarr.create_array(
            store, shape=(32, 32, 64), chunks=CHUNKS, dtype="f4", **shards, fill_value=0
        )
        # Constant chunks need no fit; one of the eight of the second shard stays empty.
        values = np.ones(array.shape, "f4")
        values[:16, :16, 32:48] = 0
        array[:] = values
        store.requests.clear()
        report = inspect(array)
        assert (len(report.chunks), report.n_missing) == (15, 1)
        found = [chunk.coordinates for chunk in report.chunks]
        assert found == [p for p in np.ndindex(2, 2, 4) if p != (0, 0, 2)]
        assert report.part_bytes["shard index"] == 2 * (8 * 16 + 4)
        assert len(store.requests) == 2 + 15
        assert sum(size for _, _, size in store.requests) == report.stored_bytes

    @pytest.mark.parametrize("door", ["v3", "v3-shards"])
    def test_a_header_longer_than_the_first_request(self, doors, door, monkeypatch):
        folder, _ = doors
        expected = inspect(folder / door)
        monkeypatch.setattr(reader, "_FIRST_BYTES", 5)
        store = CountingStore(LocalStore(folder / door, read_only=True))
        array = zarr.open_array(store, mode="r")
        store.requests.clear()
        report = inspect(array)
        assert report.chunks == expected.chunks
        # Each request doubles what is there: 5, 10, 20, 40 bytes.
        assert 3 * len(report.chunks) < len(store.requests) <= 4 * len(report.chunks) + 3
        fetched = sum(size for _, _, size in store.requests)
        assert fetched <= 40 * len(report.chunks) + report.extra_bytes.get("shard index", 0)


class TestRefusals:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"compressors": None}, "not stored with TINC; its codecs are bytes"),
            ({"zarr_format": 2, "compressors": None}, "its codecs are none"),
            ({"serializer": CODEC}, "zstd is applied .* compressors=None"),
            (
                {**V3, "filters": [{"name": "transpose", "configuration": {"order": [2, 1, 0]}}]},
                "transpose changes the values",
            ),
            (
                {"serializer": ShardingCodec(chunk_shape=CHUNKS, codecs=[
                    ShardingCodec(chunk_shape=(8, 8, 8), codecs=[CODEC])]), "compressors": None},
                "its codecs are sharding_indexed",
            ),
            (
                {"serializer": ShardingCodec(chunk_shape=CHUNKS, codecs=[CODEC])},
                "its codecs are sharding_indexed, zstd",
            ),
        ],
    )  # fmt: skip
    @pytest.mark.filterwarnings("ignore:Combining a `sharding_indexed` codec")
    def test_codecs(self, options, message):
        array = zarr.create_array(
            {}, shape=(32, 32, 32), chunks=(32, 32, 32), dtype="f4", **options
        )
        with pytest.raises(UnsupportedDataError, match=message):
            inspect(array)

    def test_v2_filters_and_outer_compressors(self):
        from numcodecs import Delta, Zstd

        options = {"shape": SHAPE, "chunks": CHUNKS, "dtype": "f4", "zarr_format": 2}
        delta = zarr.create_array({}, **options, filters=[Delta("f4")], compressors=CODEC)
        with pytest.raises(UnsupportedDataError, match="delta changes the values"):
            inspect(delta)
        outer = zarr.create_array({}, **options, filters=[CODEC], compressors=Zstd())
        with pytest.raises(UnsupportedDataError, match="zstd is applied"):
            inspect(outer)

    def test_what_is_no_source(self, tmp_path):
        with pytest.raises(UnsupportedDataError, match=r"ndarray of shape \(2, 2\) and dtype"):
            inspect(np.zeros((2, 2)))
        with pytest.raises(FileNotFoundError):
            inspect(tmp_path / "nothing.zarr")
        with pytest.raises(TypeError):
            inspect(7)

    def test_a_checksum_appended_by_zarr_is_no_obstacle(self):
        options = {"serializer": CODEC, "compressors": [{"name": "crc32c"}]}
        array = zarr.create_array({}, data=np.ones(SHAPE, "f4"), chunks=CHUNKS, **options)
        report = inspect(array)
        assert report.part_bytes["zarr's checksum"] == 4 * 6
        files = array.store._store_dict
        sizes = [len(value) for key, value in files.items() if key != "zarr.json"]
        assert report.stored_bytes == sum(sizes)


STREAM = fake_stream()
CONSTANT = encode_chunk(np.ones(CHUNKS, "f4"), CODEC.params)


class TestDamage:
    @pytest.mark.parametrize(
        ("data", "error", "message"),
        [
            (b"T", TruncatedStreamError, "magic"),
            (b"JUNK" + STREAM[4:], CorruptStreamError, "magic"),
            (STREAM[:18], TruncatedStreamError, "value_max"),
            (STREAM[:200], TruncatedStreamError, r"declares \d+ bytes and has 200"),
            (CONSTANT + b"x", CorruptStreamError, "1 bytes follow the end"),
            (fake_stream((8, 16, 16)), CorruptStreamError, r"shape \(8, 16, 16\)"),
            (fake_stream(dtype="<f8"), CorruptStreamError, "dtype float64"),
        ],
        ids=["short", "magic", "header", "body", "long", "shape", "dtype"],
    )
    @pytest.mark.parametrize("sharded", [False, True])
    def test_a_damaged_chunk_is_named(self, data, error, message, sharded):
        streams, options = {"c/0/0/0": STREAM, "c/1/0/0": data}, {}
        if sharded:
            index = np.array([[0, len(STREAM)], [len(STREAM), len(data)]], "<u8").tobytes()
            crc = google_crc32c.value(index).to_bytes(4, "little")
            streams = {"c/0/0/0": STREAM + data + index + crc}
            options = {"shards": (32, 16, 16)}
        array = create_filled({}, (32, 16, 16), streams, **options)
        with pytest.raises(error, match=rf"chunk \(1, 0, 0\) of memory://.*{message}"):
            inspect(array)

    @pytest.mark.parametrize(
        ("index", "message"),
        [
            ([[0, 10**6]], r"chunk \(0, 0, 0\).*bytes follow the end"),
            ([[10**6, len(STREAM)]], r"chunk \(0, 0, 0\).*magic"),
            ([[2**63, len(STREAM)]], r"shard \(0, 0, 0\).*index: chunk \(0, 0, 0\) has offset"),
            ([[0, 0]], r"shard \(0, 0, 0\).*length 0"),
            ([], r"shard \(0, 0, 0\).*index: 20 bytes expected"),
        ],
    )
    def test_a_lying_shard_index(self, index, message):
        table = np.array(index, "<u8").tobytes()
        crc = google_crc32c.value(table).to_bytes(4, "little")
        shard = (STREAM if index else b"") + table + crc
        array = create_filled({}, CHUNKS, {"c/0/0/0": shard}, shards=CHUNKS)
        with pytest.raises(FormatError, match=message):
            inspect(array)

    def test_a_flipped_bit_in_a_shard_index(self, doors):
        folder, _ = doors
        shard = bytearray((folder / "v3-shards/c/0/0/0").read_bytes())
        shard[-10] ^= 1
        array = create_filled({}, SHAPE, {"c/0/0/0": bytes(shard)}, shards=(32, 32, 16))
        with pytest.raises(CorruptStreamError, match=r"shard \(0, 0, 0\).*CRC-32C"):
            inspect(array)

    @pytest.mark.parametrize("stream", [STREAM, CONSTANT])
    def test_every_truncation_of_one_stream(self, stream):
        for size in range(len(stream)):
            with pytest.raises(TruncatedStreamError):
                inspect(stream[:size])


def test_chunks_behind_the_end_of_the_array_count_as_bytes_only():
    # zarr-python leaves them out, other writers need not.
    table = [[k * len(STREAM), len(STREAM)] for k in range(4)]
    index = np.array(table, "<u8").tobytes()
    crc = google_crc32c.value(index).to_bytes(4, "little")
    shard = {"c/0/0/0": 4 * STREAM + index + crc}
    array = create_filled({}, (32, 10, 16), shard, shards=(32, 32, 16))
    report = inspect(array)
    assert [chunk.coordinates for chunk in report.chunks] == [(0, 0, 0), (1, 0, 0)]
    assert (report.n_missing, report.part_bytes["chunks outside"]) == (0, 2 * len(STREAM))
    assert report.stored_bytes == len(shard["c/0/0/0"])
    assert report.raw_bytes == 32 * 10 * 16 * 4


def test_the_name_is_a_function_and_loads_little():
    code = (
        "import inspect as standard, json, sys\n"
        "import tinc_codec.inspection.reader, tinc_codec\n"
        f"report = tinc_codec.inspect(bytes.fromhex({STREAM.hex()!r}))\n"
        "assert standard.signature(tinc_codec.inspect).parameters['source']\n"
        "from tinc_codec import inspect\n"
        "assert inspect is tinc_codec.inspect and 'inspect' in tinc_codec.__all__\n"
        "print(json.dumps([report.psnr, sorted(sys.modules)]))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    psnr, modules = json.loads(done.stdout)
    assert psnr == pytest.approx(30.0)
    assert not {"torch", "numba", "zarr", "constriction"} & {*modules}
    assert callable(tinc_codec.inspect)
