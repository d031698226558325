"""`tinc_codec.pipeline.verify`: every promise, broken one by one, in every kind of array."""

import json
import math
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest

from tests.faces import smooth_volume
from tinc_codec import TINC, ConfigError, LimitError, UnsupportedDataError, config, metrics
from tinc_codec.bitstream.header import Header, read_stream, write_stream
from tinc_codec.codec import encode_chunk
from tinc_codec.inspection.reader import inspect
from tinc_codec.pipeline.comparison import ErrorBins, compare
from tinc_codec.pipeline.verify import verify
from tinc_codec.pipeline.volumes import Volume, VolumeInfo

zarr = pytest.importorskip("zarr", minversion="3.1")

from zarr.codecs import Crc32cCodec  # noqa: E402

CHUNKS = (16, 16, 16)
SHAPE = (40, 20, 16)
EXACT = TINC(max_error=0.4, effort=0, model="features")
SMALL = TINC(ratio=8, effort=0, model="features")
GOOD = TINC(psnr=40, effort=0, model="features")
DOORS = {
    "v3": {"serializer": SMALL, "compressors": None},
    "v3-psnr": {"serializer": GOOD, "compressors": None},
    "v3-max_error": {"serializer": EXACT, "compressors": None},
    "v3-crc": {"serializer": SMALL, "compressors": [Crc32cCodec()]},
    "v3-shards": {"serializer": SMALL, "compressors": None, "shards": (32, 32, 16)},
    "v2": {"zarr_format": 2, "compressors": SMALL},
    "v2-F": {"zarr_format": 2, "compressors": GOOD, "order": "F"},
}


def volume(dtype: str = "<f4") -> np.ndarray:
    """Six chunks of 16³: ordinary, constant, all fill value (left out by zarr), ragged, padded."""
    values = smooth_volume(SHAPE, dtype)
    values[16:32, :16] = 7
    values[:16, 16:] = 0
    values[36:, :16] = 0
    if values.dtype.kind == "f":
        values[33, :3, :3] = (np.nan, np.inf, -np.inf)
    return values


def create(path: Path, values: np.ndarray, door: str = "v3") -> Path:
    zarr.create_array(path, data=values, chunks=CHUNKS, **DOORS[door])
    return path


def chunk_file(path: Path, *position: int) -> Path:
    return path.joinpath("c", *map(str, position))


def change_codec(path: Path, **settings: float) -> None:
    """Let the metadata promise something else than what was kept."""
    metadata = json.loads((path / "zarr.json").read_text())
    metadata["codecs"][0]["configuration"] = {**settings, "effort": 0}
    (path / "zarr.json").write_text(json.dumps(metadata))


def change_header(path: Path, **changes: float) -> None:
    """Let the header of a stream say something else, under a checksum that is right."""
    header = read_stream(path.read_bytes(), max_decoded_bytes=2**30)
    sections = {key: bytes(body) for key, body in header.sections.items()}
    stated = {"psnr": header.psnr, "max_error": header.max_error, **changes}
    path.write_bytes(write_stream(Header(header.info, sections=sections, **stated)))


def promises(found) -> set[str]:
    return {breach.promise for breach in found.breaches}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """An array behind every door, and its source."""
    folder = tmp_path_factory.mktemp("verify")
    for door in DOORS:
        create(folder / door, volume(), door)
    return folder


@pytest.fixture
def copy(made, tmp_path):
    """Make a copy of an array that a test may damage."""

    def make(door: str = "v3") -> Path:
        shutil.copytree(made / door, tmp_path / door)
        return tmp_path / door

    return make


class TestWhole:
    @pytest.mark.parametrize("door", DOORS)
    @pytest.mark.parametrize("workers", [1, 3])
    def test_figures_are_those_of_the_arrays(self, made, door, workers):
        original = volume()
        decoded = zarr.open_array(made / door, mode="r")[...]
        found = verify(original, made / door, workers=workers)
        assert found.ok
        assert found.breaches == () == found.broken_chunks
        assert found.psnr == pytest.approx(metrics.psnr(original, decoded), abs=1e-9)
        assert found.max_error == metrics.max_error(original, decoded)
        assert len(found.chunks) == 6
        assert found.n_missing == 1
        coordinates = [chunk.coordinates for chunk in found.chunks]
        assert coordinates == list(np.ndindex(3, 2, 1))
        report = inspect(made / door)
        assert found.stored_bytes == report.stored_bytes
        assert found.part_bytes == {name: n for name, n in report.part_bytes.items() if n}
        assert found.ratio == original.nbytes / report.stored_bytes
        assert found.psnr_min == pytest.approx(report.psnr_min, abs=1e-4)
        assert (found.shard_shape is not None) == ("shards" in door)

    @pytest.mark.parametrize(
        ("door", "name", "bound"),
        [("v3", "ratio", 8), ("v2-F", "psnr", 40), ("v3-max_error", "max_error", 0.4)],
    )
    def test_the_promise_of_the_settings(self, made, door, name, bound):
        found = verify(volume(), made / door)
        (promise,) = found.promises.values()
        assert list(found.promises) == [name]
        assert (promise.bound, promise.n_broken) == (bound, 0)
        worst = [getattr(chunk, name) for chunk in found.chunks] if name != "ratio" else None
        if name == "ratio":
            stored = max(chunk.size_bytes for chunk in found.chunks)
            assert promise.worst == 16**3 * 4 / stored >= bound
        else:
            assert promise.worst == (min(worst) if name == "psnr" else max(worst))

    @pytest.mark.parametrize("dtype", ["uint8", "int16", ">f4", "f8"])
    def test_dtypes(self, tmp_path, dtype):
        values = volume(dtype)
        assert verify(values, create(tmp_path / "a", values)).ok

    def test_byte_orders_are_no_difference(self, made):
        assert verify(volume().astype(">f4"), made / "v3").ok

    def test_two_and_five_axes(self, tmp_path):
        for shape, chunks in (((30, 20), (16, 16)), ((2, 2, 9, 9, 9), (1, 2, 8, 8, 8))):
            values = smooth_volume(shape, "uint16")
            path = tmp_path / str(len(shape))
            zarr.create_array(path, data=values, chunks=chunks, serializer=GOOD, compressors=None)
            found = verify(values, path)
            assert found.ok
            assert found.psnr == pytest.approx(
                metrics.psnr(values, zarr.open_array(path, mode="r")[...])
            )

    def test_constant_and_empty_volumes_are_exact(self, tmp_path):
        for number, value in enumerate((3.0, np.nan, 0.0)):
            values = np.full(SHAPE, value, "f4")
            found = verify(values, create(tmp_path / str(number), values))
            assert found.ok
            assert found.max_error == 0
            assert math.isnan(found.psnr) if math.isnan(value) else found.psnr == math.inf

    def test_a_range_that_no_float64_holds(self, tmp_path):
        waves = smooth_volume((16, 16, 16), "f8") - 60
        values = waves * (np.finfo("f8").max / np.abs(waves).max())
        create(tmp_path / "a.zarr", values)
        found = verify(values, tmp_path / "a.zarr")
        assert found.ok
        assert found.psnr == pytest.approx(inspect(tmp_path / "a.zarr").psnr, abs=1e-3)
        assert found.psnr < 200

    def test_level_0_of_an_ome_zarr_group(self, tmp_path):
        multiscales = [{"datasets": [{"path": "full"}, {"path": "half"}], "axes": []}]
        group = zarr.create_group(tmp_path / "a", attributes={"ome": {"multiscales": multiscales}})
        values = volume()
        for name, part in (("full", values), ("half", values[::2, ::2, ::2])):
            group.create_array(name, shape=part.shape, chunks=CHUNKS, dtype="f4", **DOORS["v3"])[
                ...
            ] = part
        found = verify(values, tmp_path / "a")
        assert found.ok
        assert found.name.endswith("full")

    def test_a_volume_and_a_path_as_source(self, made, tmp_path):
        np.save(tmp_path / "a.npy", volume())
        assert verify(tmp_path / "a.npy", made / "v3").ok
        info = VolumeInfo(
            name="a",
            axes=("z", "y", "x"),
            scale=(1.0,) * 3,
            translation=(0.0,) * 3,
            units=(None,) * 3,
        )
        assert verify(Volume(volume(), info), made / "v3").ok

    def test_errors_are_counted(self, made):
        original = volume()
        bins = ErrorBins(low=-0.5, high=0.5, n_bins=20)
        found = verify(original, made / "v3", bins=bins)
        decoded = zarr.open_array(made / "v3", mode="r")[...]
        with np.errstate(invalid="ignore"):
            errors = (decoded.astype("f8") - original)[np.isfinite(original)]
        expected, edges = np.histogram(np.clip(errors, -0.5, 0.5), bins=20, range=(-0.5, 0.5))
        np.testing.assert_array_equal(found.error_counts, expected)
        np.testing.assert_allclose(bins.centres, (edges[1:] + edges[:-1]) / 2, atol=1e-12)


class TestBroken:
    """Each promise is broken in one chunk, and that chunk and that promise are named."""

    @pytest.mark.parametrize("door", ["v3", "v3-crc"])
    def test_a_flipped_bit(self, copy, door):
        path = copy(door)
        file = chunk_file(path, 2, 0, 0)
        data = bytearray(file.read_bytes())
        data[len(data) // 2] ^= 4
        file.write_bytes(data)
        found = verify(volume(), path)
        assert found.broken_chunks == ((2, 0, 0),)
        assert promises(found) == {"stream"}
        assert "CRC-32C" in found.breaches[0].text
        assert math.isnan(found.chunks[4].psnr)
        assert found.part_bytes["damaged"] > 0
        assert math.isfinite(found.psnr)

    def test_zarrs_own_checksum(self, copy):
        path = copy("v3-crc")
        file = chunk_file(path, 2, 0, 0)
        file.write_bytes(file.read_bytes()[:-1] + b"!")
        found = verify(volume(), path)
        assert found.broken_chunks == ((2, 0, 0),)
        assert "behind the stream" in found.breaches[0].text

    @pytest.mark.parametrize("kept", [0, 3, 40, -1])
    def test_a_truncated_chunk(self, copy, kept):
        path = copy()
        file = chunk_file(path, 0, 0, 0)
        file.write_bytes(file.read_bytes()[:kept])
        found = verify(volume(), path)
        assert (found.broken_chunks, promises(found)) == (((0, 0, 0),), {"stream"})

    def test_a_missing_chunk(self, copy):
        path = copy()
        chunk_file(path, 0, 0, 0).unlink()
        found = verify(volume(), path)
        assert (found.broken_chunks, promises(found)) == (((0, 0, 0),), {"stored"})
        # It is measured as what a reader gets.
        assert found.max_error == np.nanmax(volume()[:16, :16])

    def test_a_missing_chunk_of_nan(self, tmp_path):
        values = volume()
        path = tmp_path / "a"
        zarr.create_array(path, data=values, chunks=CHUNKS, fill_value=np.nan, **DOORS["v3"])
        chunk_file(path, 0, 0, 0).unlink()
        found = verify(values, path)
        assert (found.broken_chunks, promises(found)) == (((0, 0, 0),), {"stored"})

    def test_a_chunk_of_another_shape(self, copy):
        path = copy()
        chunk_file(path, 0, 0, 0).write_bytes(encode_chunk(np.ones((8, 8), "f4"), SMALL.params))
        found = verify(volume(), path)
        assert (found.broken_chunks, promises(found)) == (((0, 0, 0),), {"stream"})
        assert "shape (8, 8)" in found.breaches[0].text

    def test_the_index_of_a_shard(self, copy):
        path = copy("v3-shards")
        file = chunk_file(path, 0, 0, 0)
        file.write_bytes(file.read_bytes()[:-1] + b"!")
        found = verify(volume(), path)
        assert found.broken_chunks == ((0, 0, 0), (0, 1, 0), (1, 0, 0), (1, 1, 0))
        assert promises(found) == {"stream"}
        assert "index: CRC-32C" in found.breaches[0].text

    def test_an_inner_chunk_of_a_shard(self, copy):
        path = copy("v3-shards")
        file = chunk_file(path, 0, 0, 0)
        data = bytearray(file.read_bytes())
        data[60] ^= 1
        file.write_bytes(data)
        assert len(verify(volume(), path).broken_chunks) == 1

    def test_a_missing_shard(self, copy):
        path = copy("v3-shards")
        chunk_file(path, 1, 0, 0).unlink()
        found = verify(volume(), path)
        assert found.broken_chunks == ((2, 0, 0), (2, 1, 0))
        assert promises(found) == {"stored"}

    @pytest.mark.parametrize(
        ("settings", "promise"),
        [({"ratio": 200}, "ratio"), ({"psnr": 90}, "psnr"), ({"max_error": 1e-5}, "max_error")],
    )
    def test_a_promise_that_was_not_made(self, copy, settings, promise):
        path = copy("v3-psnr")
        change_codec(path, **settings)
        found = verify(volume(), path)
        assert promises(found) == {promise}
        # The constant chunk and the one that is not stored keep them all.
        assert found.broken_chunks == ((0, 0, 0), (1, 1, 0), (2, 0, 0), (2, 1, 0))
        assert found.promises[promise].n_broken == 4
        breach = found.breaches[0]
        assert breach.bound == settings[promise]
        assert (
            breach.value > breach.bound if promise == "max_error" else breach.value < breach.bound
        )

    def test_a_byte_over_the_ratio(self, copy):
        path = copy()
        size_bytes = max(file.stat().st_size for file in path.rglob("c/*/*/*"))
        change_codec(path, ratio=16**3 * 4 / (size_bytes + 0.5))
        assert verify(volume(), path).ok
        change_codec(path, ratio=16**3 * 4 / (size_bytes - 0.5))
        assert promises(verify(volume(), path)) == {"ratio"}

    @pytest.mark.parametrize(
        ("changes", "promise"),
        [
            ({"psnr": 90.0}, "stated psnr"),
            ({"psnr": 10.0}, "stated psnr"),
            ({"psnr": math.inf}, "stated psnr"),
            ({"max_error": 1e-4}, "stated max_error"),
            ({"max_error": 50.0}, "stated max_error"),
        ],
    )
    def test_a_header_that_is_not_true(self, copy, changes, promise):
        path = copy("v3-psnr")
        change_header(chunk_file(path, 0, 0, 0), **changes)
        found = verify(volume(), path)
        assert (found.broken_chunks, promises(found)) == (((0, 0, 0),), {promise})

    def test_a_source_that_changed(self, made):
        values = volume()
        values[3, 3, 3] += 40
        found = verify(values, made / "v3-max_error")
        assert found.broken_chunks == ((0, 0, 0),)
        assert promises(found) == {"max_error", "stated psnr", "stated max_error"}

    def test_nan_in_another_place(self, made):
        values = volume()
        values[5, 5, 5] = np.nan
        values[33, 0, 0] = np.inf
        found = verify(values, made / "v3")
        assert found.broken_chunks == ((0, 0, 0), (2, 0, 0))
        assert {b.promise for b in found.breaches if b.coordinates == (0, 0, 0)} == {"finite"}
        assert [b.value for b in found.breaches if b.promise == "finite"] == [1, 1]

    def test_values_beyond_the_sources(self, made):
        values = volume()
        values[16:32, :16] = 5
        found = verify(values, made / "v3")
        assert found.broken_chunks == ((1, 0, 0),)
        assert "range" in promises(found)

    def test_padding_of_another_source(self, made):
        values = volume()
        values[36:, :16] = 9
        found = verify(values, made / "v3")
        assert (2, 0, 0) in found.broken_chunks
        assert found.chunks[4].max_error == 9

    def test_another_shape_or_dtype(self, made):
        found = verify(volume()[1:], made / "v3")
        assert (promises(found), found.chunks, found.ok) == ({"shape"}, (), False)
        found = verify(volume().astype("f8")[1:], made / "v3")
        assert promises(found) == {"shape", "dtype"}

    def test_the_record_is_json(self, copy):
        path = copy()
        chunk_file(path, 0, 0, 0).unlink()
        record = json.loads(json.dumps(verify(volume(), path).to_record()))
        assert (record["ok"], record["n_broken"], record["n_chunks"]) == (False, 1, 6)
        assert record["breaches"][0]["chunk"] == [0, 0, 0]


class TestRefusals:
    def test_arguments(self, made):
        with pytest.raises(ConfigError, match="workers=0"):
            verify(volume(), made / "v3", workers=0)

    def test_what_is_not_ours(self, tmp_path):
        zarr.create_array(tmp_path / "a", data=volume(), chunks=CHUNKS)
        with pytest.raises(UnsupportedDataError, match="is not stored with TINC"):
            verify(volume(), tmp_path / "a")

    def test_what_is_not_there(self, made, tmp_path):
        with pytest.raises(FileNotFoundError):
            verify(volume(), tmp_path / "a")
        with pytest.raises(FileNotFoundError):
            verify(tmp_path / "a.npy", made / "v3")

    def test_chunks_beyond_the_limit_are_no_damage(self, made):
        with config.set(max_decoded_bytes=100), pytest.raises(LimitError):
            verify(volume(), made / "v3")


class TestMemory:
    def test_it_does_not_run_ahead(self, tmp_path):
        """Workers wait for the reader of the rows, and only so many chunks are read at once."""
        values = np.ones((16, 16, 16 * 60), "f4")
        path = create(tmp_path / "a", values)

        class Counting:
            """An array that counts reads that have begun."""

            shape, dtype = values.shape, values.dtype
            lock, begun = threading.Lock(), 0

            def __getitem__(self, selection):
                assert values[selection].size == 16**3
                with self.lock:
                    self.begun += 1
                return values[selection]

        source = Counting()
        ahead, done = [], 0

        def on_chunk(_):
            nonlocal done
            done += 1
            ahead.append(source.begun - done)

        assert verify(source, path, workers=2, on_chunk=on_chunk).ok
        assert done == 60
        assert max(ahead) <= 4

    def test_an_error_ends_the_work(self, made):
        class Failing:
            """A source that cannot be read."""

            shape, dtype = SHAPE, np.dtype("f4")

            def __getitem__(self, selection):
                raise OSError("gone")

        with pytest.raises(OSError, match="gone"):
            verify(Failing(), made / "v3")


class TestCompare:
    @pytest.mark.parametrize("scale", [1e-300, 1.0, 1e300])
    def test_mean_squared_errors_of_any_scale(self, scale):
        original = np.array([[0.0, 1.0, 2.0, 3.0]]) * scale
        decoded = original + np.array([[0.0, 0.5, -0.5, 0.0]]) * scale
        found = compare(original, decoded, original.shape)
        assert found.log_mse == pytest.approx(math.log10(0.125) + 2 * math.log10(scale), rel=1e-9)

    def test_a_constant_that_comes_back_different(self):
        found = compare(np.ones((2, 2)), np.full((2, 2), 3.0), (2, 2))
        assert (found.psnr, found.max_error) == (-math.inf, 2.0)
        assert found.log_mse == pytest.approx(math.log10(4))
