"""`compress`: what it writes, what it says, what it refuses, and the command around it."""

from __future__ import annotations

import itertools
import json
import math
import os
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from tests.faces import psnr, smooth_volume
from tests.servers import s3_server
from tinc_codec import TINC, ConfigError, UnsupportedDataError
from tinc_codec.params import EncodingParams
from tinc_codec.pipeline.metadata import plain_info
from tinc_codec.pipeline.sources import open_source
from tinc_codec.pipeline.target import blocks, choose_layout

zarr = pytest.importorskip("zarr", minversion="3.1")

from zarr.storage import LocalStore, MemoryStore  # noqa: E402

from tinc_codec.cli.app import app  # noqa: E402
from tinc_codec.inspection.reader import inspect  # noqa: E402
from tinc_codec.pipeline.compress import compress  # noqa: E402

FAST = {"ratio": 16, "effort": 0, "model": "features", "workers": 1}
SHAPE = (40, 30, 50)


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "head.npy"
    np.save(path, smooth_volume(SHAPE))
    return path


def layout(shape, **options):
    defaults = {"chunks": None, "shards": None, "levels": None, "zarr_format": 3}
    params = EncodingParams(ratio=64)
    return choose_layout(shape, np.dtype("f4"), params, **{**defaults, **options})


@pytest.mark.parametrize(
    ("zarr_format", "shards", "scheduler"),
    [
        (3, None, "threads"),
        (3, (32, 32, 64), "processes"),
        (3, (32, 32, 64), "threads"),
        (2, None, "threads"),
    ],
)
def test_what_is_written_reads_as_plain_zarr(tmp_path, source, zarr_format, shards, scheduler):
    target = tmp_path / "a.zarr"
    options = {"zarr_format": zarr_format, "shards": shards, "scheduler": scheduler}
    summary = compress(source, target, chunks=(16, 16, 32), **options, **{**FAST, "workers": 2})
    volume = np.load(source)
    array = zarr.open_group(target, mode="r")["0"]
    assert (array.chunks, array.shards) == ((16, 16, 32), shards)
    assert array.metadata.zarr_format == zarr_format
    decoded = array[...]
    assert decoded.dtype == volume.dtype
    assert summary.complete
    assert summary.psnr == pytest.approx(psnr(volume, decoded), abs=1e-3)
    assert summary.max_error == pytest.approx(np.abs(volume - decoded).max(), rel=1e-6)
    assert summary.raw_bytes == volume.nbytes
    chunks = (path for path in (target / "0").rglob("*") if path.is_file())
    assert summary.stored_bytes == sum(p.stat().st_size for p in chunks if p.name.isdecimal())
    report = inspect(target)
    assert (report.n_missing, report.ratio) == (0, pytest.approx(summary.ratio, rel=1e-9))


def test_equal_bytes_however_it_runs(tmp_path, source):
    """Sharding aside, the streams are those that zarr's own write of whole chunks gives."""
    plain, sharded = tmp_path / "plain.zarr", tmp_path / "sharded.zarr"
    by_zarr = tmp_path / "zarr.zarr"
    options = {"chunks": (20, 30, 25), **FAST}
    compress(source, plain, **options)
    compress(source, sharded, shards=(40, 30, 50), **options)
    codec = TINC(ratio=16, effort=0, model="features")
    zarr.create_array(
        by_zarr, data=np.load(source), chunks=(20, 30, 25), serializer=codec, compressors=None
    )
    for position in itertools.product(range(2), range(1), range(2)):
        key = "/".join(map(str, position))
        assert (plain / "0/c" / key).read_bytes() == (by_zarr / "c" / key).read_bytes()
    joined = b"".join((plain / f"0/c/{z}/0/{x}").read_bytes() for z in (0, 1) for x in (0, 1))
    assert (sharded / "0/c/0/0/0").read_bytes().startswith(joined)


def test_what_comes_along(tmp_path, source):
    volume = open_source(source)
    info = plain_info(
        "head", ("z", "y", "x"), scale={"z": 2.0, "y": 0.5, "x": 0.5}, translation={"z": -7.0},
        units=dict.fromkeys("zyx", "millimeter"),
        attributes={"units": "K", "long_name": "temperature", "lossy_compression_generations": 2},
    )  # fmt: skip
    compress(replace(volume, info=info), tmp_path / "a.zarr", chunks=32, **FAST)
    group = zarr.open_group(tmp_path / "a.zarr", mode="r")
    (image,) = group.attrs["ome"]["multiscales"]
    assert group.attrs["ome"]["version"] == "0.5"
    assert [axis["unit"] for axis in image["axes"]] == ["millimeter"] * 3
    (dataset,) = image["datasets"]
    assert dataset["coordinateTransformations"] == [
        {"type": "scale", "scale": [2.0, 0.5, 0.5]},
        {"type": "translation", "translation": [-7.0, 0.0, 0.0]},
    ]
    array = group[dataset["path"]]
    assert array.metadata.dimension_names == ("z", "y", "x")
    assert dict(array.attrs) == {
        "units": "K", "long_name": "temperature", "lossy_compression": "tinc_info",
        "lossy_compression_generations": 3, "lossy_compression_ratio": 16.0,
    }  # fmt: skip
    assert group.attrs["tinc_info"]["algorithm"] == "tinc"
    record = group.attrs["tinc_codec"]
    assert record["complete"] is True
    assert record["settings"]["codec"] == {"ratio": 16, "effort": 0, "model": "features"}
    assert record["source"]["size_bytes"] == source.stat().st_size


def test_the_v2_format_is_ome_zarr_04_and_xarray_s(tmp_path, source):
    compress(source, tmp_path / "a.zarr", chunks=32, zarr_format=2, **FAST)
    group = zarr.open_group(tmp_path / "a.zarr", mode="r")
    assert group.attrs["multiscales"][0]["version"] == "0.4"
    assert group["0"].attrs["_ARRAY_DIMENSIONS"] == ["z", "y", "x"]
    assert (tmp_path / "a.zarr/0/1/0/1").is_file()


def test_levels(tmp_path, source):
    target = tmp_path / "a.zarr"
    compress(source, target, chunks=32, levels=2, **FAST)
    group = zarr.open_group(target, mode="r")
    paths = [entry["path"] for entry in group.attrs["ome"]["multiscales"][0]["datasets"]]
    assert paths == ["0", "1", "2"]
    full = group["0"][...]
    assert group["2"].shape == (10, 8, 13)
    means = full[:40, :28, :48].reshape(10, 4, 7, 4, 12, 4).mean((1, 3, 5))
    assert psnr(means, group["2"][:, :7, :12]) > 35
    before = {path: path.stat().st_mtime_ns for path in target.rglob("*")}
    assert compress(source, target, chunks=32, levels=2, **FAST).n_skipped == 4
    assert {path: path.stat().st_mtime_ns for path in target.rglob("*")} == before


@pytest.mark.parametrize("dtype", ["u1", ">i2", "f8", "f2"])
def test_dtypes_and_axes(tmp_path, dtype):
    volume = smooth_volume((2, 1, 20, 21, 22)).astype(dtype)
    np.save(tmp_path / "a.npy", volume)
    summary = compress(tmp_path / "a.npy", tmp_path / "a.zarr", chunks=16, **FAST)
    array = zarr.open_array(tmp_path / "a.zarr/0", mode="r")
    assert array.chunks == (1, 1, 16, 16, 16)
    assert array.dtype == np.dtype(dtype).newbyteorder("=")
    assert summary.psnr == pytest.approx(psnr(volume, array[...]), abs=0.02)


def test_bounds_hold_and_nan_stay(tmp_path):
    volume = smooth_volume(SHAPE)
    volume[:3] = np.nan
    volume[20, 20, 20:30] = np.inf
    np.save(tmp_path / "a.npy", volume)
    summary = compress(tmp_path / "a.npy", tmp_path / "a.zarr", max_error=0.5, effort=0, chunks=32)
    decoded = zarr.open_array(tmp_path / "a.zarr/0", mode="r")[...]
    finite = np.isfinite(volume)
    np.testing.assert_array_equal(volume[~finite], decoded[~finite])
    largest = np.abs(volume[finite] - decoded[finite]).max()
    assert largest <= summary.max_error <= 0.5


def test_the_ratio_holds_for_the_voxels_of_the_volume(tmp_path):
    """Chunks at the end, mostly padding, get no more room than their voxels are worth."""
    volume = smooth_volume((34, 40, 40)) + np.random.default_rng(0).normal(size=(34, 40, 40))
    np.save(tmp_path / "a.npy", volume.astype("f4"))
    summary = compress(tmp_path / "a.npy", tmp_path / "a.zarr", chunks=32, **FAST)
    assert summary.ratio >= 16


def test_arrays_in_memory(tmp_path):
    volume = smooth_volume(SHAPE)
    options = {"chunks": 16, **FAST, "workers": 2}
    store = MemoryStore()
    summary = compress(volume, store, **options)
    assert (summary.complete, summary.source) == (True, "volume")
    assert psnr(volume, zarr.open_group(store, mode="r")["0"][...]) > 30
    for scheduler in ("threads", "processes"):
        compress(volume, tmp_path / f"{scheduler}.zarr", scheduler=scheduler, **options)
    first, second = (
        {p.relative_to(root): p.read_bytes() for p in root.rglob("*") if p.is_file()}
        for root in (tmp_path / "threads.zarr", tmp_path / "processes.zarr")
    )
    assert first == second
    # Nothing else tells whether they are the same, so that chunks are compared.
    volume[0, 0, 0] += 5
    again = compress(volume, tmp_path / "threads.zarr", **options)
    assert [failure.position for failure in again.failures] == [(0, 0, 0)]


def test_a_bucket_from_worker_processes(tmp_path, source):
    for module in ("moto", "s3fs"):
        pytest.importorskip(module)
    with s3_server(tmp_path) as server:
        options = {"storage_options": server.storage_options, "chunks": (40, 30, 25), **FAST}
        url = server.url("head.zarr")
        assert compress(source, url, scheduler="processes", **options).n_done == 2
        assert compress(source, url, **options).n_skipped == 2
        with pytest.raises(ConfigError, match=r"codec.ratio was 16.0, is 17"):
            compress(source, url, **{**options, "ratio": 17})
        group = zarr.open_group(url, mode="r", storage_options=server.storage_options)
        assert psnr(np.load(source), group["0"][...]) > 30
        assert compress(source, url, overwrite=True, **{**options, "ratio": 17}).n_done == 2
        keys = {answer.key for answer in server.answers() if answer.method == "PUT"}
        assert keys == {
            "head.zarr/zarr.json", "head.zarr/0/zarr.json",
            "head.zarr/0/c/0/0/0", "head.zarr/0/c/0/0/1",
        }  # fmt: skip


def test_progress(tmp_path, source):
    seen = []
    compress(source, tmp_path / "a.zarr", chunks=16, progress=seen.append, **FAST)
    last = seen[-1]
    assert (last.n_done, last.n_chunks) == (24, 24)
    assert (last.n_finished_voxels, last.remaining_seconds) == (math.prod(SHAPE), 0)
    assert last.ratio >= 16
    assert last.voxels_per_second > 0
    compress(source, tmp_path / "a.zarr", chunks=16, progress=seen.append, **FAST)
    assert (seen[-1].n_skipped, seen[-1].n_done) == (24, 0)


CHANGES = {
    "ratio": ({"ratio": 17}, "codec.ratio was 16.0, is 17"),
    "target": ({"ratio": None, "psnr": 40}, "codec.psnr was None, is 40"),
    "effort": ({"effort": 1}, "codec.effort was 0, is 1"),
    "chunks": ({"chunks": 20}, r"chunks was \[32, 30, 32\], is \[20, 20, 20\]"),
    "shards": ({"shards": 32}, r"shards was None, is \[32, 30, 32\]"),
    "format": ({"zarr_format": 2}, "zarr_format was 3, is 2"),
    "levels": ({"levels": 1}, "levels was 0, is 1"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_other_settings_on_the_same_destination_are_refused(tmp_path, source, change):
    options, message = CHANGES[change]
    target = tmp_path / "a.zarr"
    compress(source, target, chunks=32, **FAST)
    before = {path: path.stat().st_mtime_ns for path in target.rglob("*")}
    with pytest.raises(ConfigError, match=message):
        compress(source, target, **{"chunks": 32, **FAST, **options})
    assert {path: path.stat().st_mtime_ns for path in target.rglob("*")} == before


def test_another_source_on_the_same_destination_is_refused(tmp_path, source):
    target = tmp_path / "a.zarr"
    compress(source, target, chunks=32, **FAST)
    np.save(tmp_path / "head.npy", smooth_volume(SHAPE) + 1)
    with pytest.raises(ConfigError, match=r"source\.head_sha256 was"):
        compress(source, target, chunks=32, **FAST)


def test_overwrite_starts_anew(tmp_path, source):
    target, fresh = tmp_path / "a.zarr", tmp_path / "b.zarr"
    compress(source, target, chunks=16, shards=32, **FAST)
    options = {"chunks": 20, "zarr_format": 2, **FAST}
    compress(source, target, overwrite=True, **options)
    compress(source, fresh, **options)
    first, second = (
        {p.relative_to(root): p.read_bytes() for p in root.rglob("*") if p.is_file()}
        for root in (target, fresh)
    )
    assert first == second


def test_destinations_that_are_something_else_are_refused(tmp_path, source):
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "letter.txt").write_text("dear")
    array, group = tmp_path / "array.zarr", tmp_path / "group.zarr"
    zarr.create_array(array, data=np.ones((4, 4)))
    zarr.create_group(group).create_array("x", data=np.ones(3))
    for target in (folder, array, group):
        before = {p: p.read_bytes() for p in target.rglob("*") if p.is_file()}
        with pytest.raises(ConfigError, match="has not written"):
            compress(source, target, **FAST)
        assert {p: p.read_bytes() for p in target.rglob("*") if p.is_file()} == before
    with pytest.raises(ConfigError, match="no Zarr and is not overwritten"):
        compress(source, folder, overwrite=True, **FAST)
    assert (folder / "letter.txt").read_text() == "dear"
    zarr.create_group(tmp_path / "empty.zarr")
    zarr.create_array(tmp_path / "v2.zarr", data=np.ones((4, 4)), zarr_format=2)
    for target in (array, group, tmp_path / "v2.zarr", tmp_path / "empty.zarr"):
        assert compress(source, target, overwrite=target.name != "empty.zarr", **FAST).complete
    assert not (group / "x").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ratio": None}, "exactly one of ratio, psnr, max_error"),
        ({"codec": TINC(ratio=3)}, "says it all; found ratio"),
        ({"chunks": (8, 8)}, r"2 entries; the volume has 3 axes"),
        ({"chunks": 0}, "chunks: 0 is not an integer 1 to"),
        ({"chunks": 16, "shards": 40}, "is not a multiple of chunks"),
        ({"chunks": 10, "levels": 2}, "levels=2 needs chunks that 4 divides"),
        ({"zarr_format": 4}, "zarr_format=4 is not 2 or 3"),
        ({"zarr_format": 2, "levels": 1}, "levels=1 needs zarr_format=3"),
        ({"levels": 9}, r"levels=9 is not in 0 to \d: level \d of shape .* is a single voxel"),
        ({"workers": 0}, "workers=0 is not an integer >= 1"),
        ({"scheduler": "gpu"}, "scheduler='gpu' is not"),
        ({"tile": 24}, "tile=24 is not a power of two"),
        ({"codec": TINC(ratio=3), "ratio": None, "tile": 32}, "says it all; found .*tile"),
    ],
)
def test_wrong_arguments_are_refused_before_anything_is_written(tmp_path, source, options, message):
    with pytest.raises(ConfigError, match=message):
        compress(source, tmp_path / "a.zarr", **{**FAST, **options})
    assert not (tmp_path / "a.zarr").exists()


def test_places_that_cannot_be_written_are_refused(tmp_path, source):
    with pytest.raises(ConfigError, match="zip file cannot be written"):
        compress(source, tmp_path / "a.zarr.zip", **FAST)
    with pytest.raises(ConfigError, match="neither a path, a URL nor a store"):
        compress(source, 3, **FAST)
    with pytest.raises(ConfigError, match="in memory: it needs scheduler='threads'"):
        compress(source, MemoryStore(), scheduler="processes", **FAST)
    with pytest.raises(ConfigError, match="workers of scheduler"):
        compress(smooth_volume(SHAPE), tmp_path / "a.zarr", scheduler="tcp://127.0.0.1:1", **FAST)
    inner = tmp_path / "b.zarr"
    zarr.create_array(inner, data=smooth_volume(SHAPE))
    for target in (inner, inner / "c", tmp_path):
        with pytest.raises(ConfigError, match="lie in each other"):
            compress(inner, target, overwrite=True, **FAST)
    with pytest.raises(UnsupportedDataError):
        compress(np.ones(SHAPE, bool), tmp_path / "a.zarr", **FAST)
    assert not (tmp_path / "a.zarr").exists()


def test_a_scheduler_that_is_not_there(tmp_path, source, monkeypatch):
    pytest.importorskip("distributed")
    monkeypatch.setattr("tinc_codec.pipeline.cluster._CONNECT_SECONDS", 0.5)
    with pytest.raises(OSError, match=r"tcp://127\.0\.0\.1:9"):
        compress(source, tmp_path / "a.zarr", scheduler="tcp://127.0.0.1:9", **FAST)


def test_a_cluster_without_workers(tmp_path, source, monkeypatch):
    distributed = pytest.importorskip("distributed")
    monkeypatch.setattr("tinc_codec.pipeline.cluster._NO_WORKER_SECONDS", 0.5)
    monkeypatch.setattr("tinc_codec.pipeline.cluster._COUNT_SECONDS", 0.2)
    with (
        distributed.LocalCluster(n_workers=0, dashboard_address=":0") as cluster,
        pytest.raises(OSError, match=r"has had no worker for 0\.5 s"),
    ):
        compress(source, tmp_path / "a.zarr", scheduler=cluster.scheduler_address, **FAST)


def test_a_store_can_be_given(tmp_path, source):
    compress(source, LocalStore(tmp_path / "a.zarr"), chunks=32, scheduler="processes", **FAST)
    assert psnr(np.load(source), zarr.open_array(tmp_path / "a.zarr/0", mode="r")[...]) > 30


@given(
    shape=st.lists(st.integers(1, 700), min_size=2, max_size=5),
    levels=st.integers(0, 4),
)
def test_chunks_that_are_chosen_leave_little_padding(shape, levels):
    # Beyond these, levels are single voxels.
    levels = min(levels, (max(shape[-3:]) - 1).bit_length())
    target = layout(tuple(shape), levels=levels)
    step = 2**levels
    assert target.chunks[:-3] == (1,) * (len(shape) - 3)
    for size, chunk in zip(shape[-3:], target.chunks[-3:], strict=True):
        assert chunk % step == 0
        assert chunk <= max(128, step)
        n_chunks = -(-size // chunk)
        assert n_chunks == -(-size // 128)
        assert n_chunks * chunk - size < n_chunks * max(8, step)


@given(
    counts=st.lists(st.integers(1, 7), min_size=1, max_size=3),
    extent=st.integers(1, 9),
    limit=st.integers(1, 200),
)
def test_blocks_cover_a_grid_once(counts, extent, limit):
    found = [
        list(map(tuple, itertools.product(*b))) for b in blocks(counts, [extent] * 3, 4, limit)
    ]
    assert sorted(itertools.chain(*found)) == list(itertools.product(*map(range, counts)))
    assert all(len(cells) == 1 or 4 * len(cells) <= limit for cells in found)


def test_shards_choose_their_chunks():
    target = layout((300, 200, 90), shards=256)
    assert (target.chunks, target.shards) == ((128, 128, 90), (256, 256, 90))
    assert target.chunks_of((1, 0, 0)) == [(2, 0, 0), (2, 1, 0)]
    assert target.position(target.key((1, 0, 0))) == (1, 0, 0)
    assert target.position("0/c/2/0/0") is None
    assert target.position("0/c/01/0/0") is None
    assert pickle.loads(pickle.dumps(target)) == target


# The command


@pytest.fixture
def run(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)

    def invoke(*arguments: str):
        return CliRunner().invoke(app, ["compress", *arguments])

    return invoke


FAST_OPTIONS = ("--effort", "0", "--model", "features", "--workers", "1")


def test_the_command(run, source):
    found = run("head.npy", "a.zarr", "--ratio", "16", "--chunks", "20,30,25", *FAST_OPTIONS)
    assert found.exit_code == 0, found.output
    assert "4 chunks made, 0 there before, 0 failed" in found.stdout
    assert "4/4" in found.stderr
    assert zarr.open_array("a.zarr/0", mode="r").chunks == (20, 30, 25)
    found = run(
        "head.npy", "a.zarr", "--ratio", "16", "--chunks", "20,30,25", "--json", *FAST_OPTIONS
    )
    record = json.loads(found.stdout)
    assert (record["complete"], record["n_skipped"], record["n_done"]) == (True, 4, 0)
    assert record["destination"] == os.path.abspath("a.zarr")
    assert found.stderr == ""


def test_the_command_s_tiles(run, source):
    options = ("--ratio", "16", "--chunks", "40,30,50", *FAST_OPTIONS)
    found = run("head.npy", "a.zarr", "--tile", "16", *options)
    assert found.exit_code == 0, found.output
    assert '"tile": 16' in Path("a.zarr/0/zarr.json").read_text()
    assert run("head.npy", "b.zarr", *options).exit_code == 0
    assert '"tile"' not in Path("b.zarr/0/zarr.json").read_text()
    whole = zarr.open_array("a.zarr/0", mode="r")[...]
    assert psnr(smooth_volume(SHAPE), whole) > 30
    for tile, message in (
        ("24", "tile=24 is not a power of two"),
        ("131072", "tile=131072 is not"),
    ):
        found = run("head.npy", "c.zarr", "--tile", tile, *options)
        assert found.exit_code == 2
        assert message in " ".join(found.stderr.split())
    for tile in ("8", "x"):
        assert run("head.npy", "c.zarr", "--tile", tile, *options).exit_code == 2
    assert not Path("c.zarr").exists()


def test_the_command_s_refusals(run, source):
    run("head.npy", "a.zarr", "--ratio", "16", "--chunks", "32", *FAST_OPTIONS)
    found = run("head.npy", "a.zarr", "--ratio", "17", "--chunks", "32", *FAST_OPTIONS)
    assert found.exit_code == 2
    assert "codec.ratio was 16.0, is 17.0" in " ".join(found.stderr.split())
    assert run("nothing.npy", "b.zarr").exit_code == 2
    assert run("head.npy", "b.zarr", "--chunks", "a,b").exit_code == 2
    assert run("head.npy", "b.zarr", "--ratio", "8", "--psnr", "40").exit_code == 2
    assert not Path("b.zarr").exists()


def test_the_command_s_failures(run, source):
    found = run("head.npy", "a.zarr", "--psnr", "400", *FAST_OPTIONS, "--json")
    assert found.exit_code == 1
    record = json.loads(found.stdout)
    assert record["complete"] is False
    assert record["failures"][0]["position"] == [0, 0, 0]
    found = run("head.npy", "a.zarr", "--psnr", "400", *FAST_OPTIONS)
    assert found.exit_code == 1
    assert "chunk (0, 0, 0): TargetError" in found.stderr


def test_a_dry_run_is_about_the_tiles_asked_for(run, source):
    refused = run("head.npy", "a.zarr", "--dry-run", "--tile", "24", *FAST_OPTIONS)
    assert refused.exit_code == 2
    assert "tile=24 is not a power of two" in refused.stderr


def test_a_dry_run_writes_nothing(run, source):
    found = run("head.npy", "a.zarr", "--dry-run", "--json", "--ratio", "40", *FAST_OPTIONS)
    assert found.exit_code == 0, found.output
    ratios = [row["ratio"] for row in json.loads(found.stdout)["rows"]]
    assert ratios == [16, 32, 40, 64, 128, 256]
    assert not Path("a.zarr").exists()
