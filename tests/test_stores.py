"""Stores, against the real thing: what they hold, and that reading fetches no more than it must."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import pytest

from tests.faces import CHUNKS, CODEC, assert_close, smooth_volume
from tests.servers import BUCKET, Recorder, http_server, parse_range, s3_server
from tinc_codec import FormatError

zarr = pytest.importorskip("zarr", minversion="3.1")
for module in ("moto", "s3fs", "aiohttp", "obstore"):
    pytest.importorskip(module)

from obstore.store import HTTPStore, S3Store  # noqa: E402
from zarr.storage import (  # noqa: E402
    FsspecStore,
    LocalStore,
    MemoryStore,
    ObjectStore,
    ZipStore,
)

DOORS = {
    "v2": {"zarr_format": 2, "compressors": CODEC},
    "v3": {"serializer": CODEC, "compressors": None},
    "v3-shards": {"serializer": CODEC, "compressors": None, "shards": (32, 16, 16)},
}
SHAPE = (40, 16, 16)
ALLOW_HTTP = {"allow_http": True}


@pytest.fixture(scope="module")
def s3(tmp_path_factory):
    with s3_server(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A folder, and the server that publishes it."""
    folder = tmp_path_factory.mktemp("site")
    with http_server(folder) as server:
        yield folder, server


def memory(folder, s3):
    shared = {}
    return lambda mode: MemoryStore(shared, read_only=mode == "r")


def local(folder, s3):
    return lambda mode: LocalStore(folder / "a.zarr", read_only=mode == "r")


def zipped(folder, s3):
    return lambda mode: ZipStore(folder / "a.zip", mode=mode)


def fsspec_memory(folder, s3):
    return lambda mode: FsspecStore.from_url(f"memory://{folder}", read_only=mode == "r")


def s3_through_s3fs(folder, s3):
    url = s3.url(f"{folder.name}/s3fs.zarr")
    options = s3.storage_options
    return lambda mode: FsspecStore.from_url(url, options, read_only=mode == "r")


def s3_through_obstore(folder, s3):
    bucket = S3Store(BUCKET, prefix=f"{folder.name}/obstore.zarr", **s3.obstore_options)
    return lambda mode: ObjectStore(bucket, read_only=mode == "r")


STORES = [memory, local, zipped, fsspec_memory, s3_through_s3fs, s3_through_obstore]


def write(store, door: str) -> np.ndarray:
    """Write all but the last chunk of an array; return the original, NaN where it is missing."""
    original = smooth_volume(SHAPE)
    original[3:7, 5, :] = np.nan
    array = zarr.create_array(
        store, shape=SHAPE, chunks=CHUNKS, dtype="f4", fill_value=np.nan, **DOORS[door]
    )
    array[:32] = original[:32]
    original[32:] = np.nan
    return original


@functools.cache
def decoded(door: str) -> np.ndarray:
    """Return what a store in memory gives back after `write`."""
    store = MemoryStore()
    write(store, door)
    return zarr.open_array(store, mode="r")[:]


def check_reads(array, door: str) -> None:
    """Compare selections of every kind with a whole read from memory."""
    expected = decoded(door)
    np.testing.assert_array_equal(array[:], expected)
    np.testing.assert_array_equal(array[3:38:5, 7, 1:3], expected[3:38:5, 7, 1:3])
    np.testing.assert_array_equal(array.oindex[[1, 20, 39], :, 4], expected[[1, 20, 39], :, 4])
    points = ([1, 20, 39], [0, 5, 15], [2, 2, 9])
    np.testing.assert_array_equal(array.vindex[points], expected[points])


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("opener", STORES, ids=lambda opener: opener.__name__)
def test_what_is_written_comes_back(tmp_path, s3, opener, door):
    store = opener(tmp_path, s3)
    with store("w") as target:
        original = write(target, door)
    with store("r") as source:
        array = zarr.open_array(source, mode="r")
        assert_close(original, array[:])
        check_reads(array, door)


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("client", ["fsspec", "obstore"])
def test_a_plain_web_server_is_read(site, client, door):
    folder, server = site
    path = folder / f"{client}-{door}.zarr"
    original = write(path, door)
    array = zarr.open_array(http_store(server, path.name, client), mode="r")
    assert_close(original, array[:])
    check_reads(array, door)


def http_store(server, key: str, client: str):
    """Open a key of the web server through one of its clients."""
    url = f"{server.url}/{key}"
    if client == "fsspec":
        return FsspecStore.from_url(url, read_only=True)
    return ObjectStore(HTTPStore.from_url(url, client_options=ALLOW_HTTP), read_only=True)


@pytest.fixture(scope="module")
def many_chunks(site, s3):
    """Arrays of 8 chunks, plain and in one shard, on both servers; the folder of the files."""
    folder, _ = site
    original = smooth_volume((32, 32, 32))
    for name, shards in {"plain": None, "shards": (32, 32, 32)}.items():
        zarr.create_array(
            folder / name,
            data=original,
            chunks=CHUNKS,
            shards=shards,
            serializer=CODEC,
            compressors=None,
        )
        s3.upload(folder / name, name)
    return folder


@pytest.fixture(params=["s3-s3fs", "s3-obstore", "http-fsspec", "http-obstore"])
def remote(request, many_chunks, site, s3):
    """Open one of the arrays; return it with its server, which forgot how it was opened."""
    protocol, client = request.param.split("-")
    server = s3 if protocol == "s3" else site[1]

    def open_array(name: str) -> tuple[zarr.Array, Recorder]:
        if protocol == "http":
            store = http_store(server, name, client)
        elif client == "s3fs":
            store = FsspecStore.from_url(s3.url(name), s3.storage_options, read_only=True)
        else:
            bucket = S3Store(BUCKET, prefix=name, **s3.obstore_options)
            store = ObjectStore(bucket, read_only=True)
        array = zarr.open_array(store, mode="r")
        server.forget()
        return array, server

    return open_array


def test_one_chunk_of_many_costs_its_own_bytes(many_chunks, remote):
    array, server = remote("plain")
    local = zarr.open_array(many_chunks / "plain", mode="r")
    box = np.s_[16:32, 0:16, 16:32]
    np.testing.assert_array_equal(array[box], local[box])
    reads = server.reads()
    assert {read.key for read in reads} == {"plain/c/1/0/1"}
    # In one piece, or the header first and then what it says is needed.
    assert len(reads) <= 2
    assert total_bytes(reads) <= (many_chunks / "plain/c/1/0/1").stat().st_size


def total_bytes(reads) -> int:
    return sum(read.size_bytes for read in reads)


def test_one_inner_chunk_of_a_shard_costs_its_own_bytes_and_the_index(many_chunks, remote):
    array, server = remote("shards")
    local = zarr.open_array(many_chunks / "shards", mode="r")
    box = np.s_[16:32, 0:16, 16:32]
    np.testing.assert_array_equal(array[box], local[box])
    shard = many_chunks / "shards/c/0/0/0"
    index, place = read_index(shard, 8), 5  # the sixth of 2 × 2 × 2 inner chunks
    first, size_bytes = map(int, index[place])
    index_bytes = index.nbytes + 4  # and its checksum
    allowed = {*range(first, first + size_bytes)}
    allowed |= {*range(shard.stat().st_size - index_bytes, shard.stat().st_size)}
    reads = server.reads()
    for read in reads:
        assert (read.key, read.status) == ("shards/c/0/0/0", 206)
        assert {*range(read.start, read.start + read.size_bytes)} <= allowed
    # The index, and the chunk in one piece or in two.
    assert 2 <= len(reads) <= 3
    assert total_bytes(reads) <= size_bytes + index_bytes < shard.stat().st_size / 4


def read_index(shard: Path, chunks: int) -> np.ndarray:
    """Return offset and length of the inner chunks, from the end of a shard."""
    content = shard.read_bytes()[-16 * chunks - 4 : -4]
    return np.frombuffer(content, "<u8").reshape(chunks, 2)


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_consolidated_metadata_is_all_that_opening_reads(s3, zarr_format):
    key = f"group-v{zarr_format}.zarr"
    door = {k: v for k, v in DOORS[f"v{zarr_format}"].items() if k != "zarr_format"}
    store = FsspecStore.from_url(s3.url(key), s3.storage_options)
    group = zarr.create_group(store, zarr_format=zarr_format)
    original = smooth_volume(CHUNKS)
    for name in ("a", "b", "c"):
        group.create_array(name, shape=CHUNKS, chunks=CHUNKS, dtype="f4", **door)[:] = original
    if zarr_format == 3:
        with pytest.warns(zarr.errors.ZarrUserWarning, match="Consolidated metadata"):
            zarr.consolidate_metadata(store)
    else:
        zarr.consolidate_metadata(store)
    s3.forget()
    members = dict(zarr.open_consolidated(store, zarr_format=zarr_format).arrays())
    assert sorted(members) == ["a", "b", "c"]
    read = {answer.key.removeprefix(f"{key}/") for answer in s3.reads()}
    assert read == ({".zmetadata", ".zgroup", ".zattrs"} if zarr_format == 2 else {"zarr.json"})
    assert_close(original, members["b"][:])


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_xarray_opens_a_bucket(s3, zarr_format):
    xr = pytest.importorskip("xarray")
    url = s3.url(f"xarray-v{zarr_format}.zarr")
    original = smooth_volume((16, 16, 20))
    original[2:5, 3, :] = np.nan
    dataset = xr.Dataset(dict.fromkeys(("t1", "t2"), (("z", "y", "x"), original)))
    encoding = {"chunks": CHUNKS, "compressors": CODEC}
    if zarr_format == 3:
        encoding = {"chunks": CHUNKS, "compressors": None, "serializer": CODEC}
    dataset.to_zarr(
        url,
        storage_options=s3.storage_options,
        encoding={"t1": encoding, "t2": encoding},
        zarr_format=zarr_format,
        consolidated=zarr_format == 2,
    )
    with xr.open_zarr(
        url, storage_options=s3.storage_options, consolidated=zarr_format == 2
    ) as opened:
        s3.forget()
        assert_close(original, opened["t2"].compute().values)
        chunks = {answer.key.partition(".zarr/")[2] for answer in s3.reads()}
    if zarr_format == 2:
        assert chunks == {"t2/0.0.0", "t2/0.0.1"}
    else:
        assert chunks == {"t2/c/0/0/0", "t2/c/0/0/1"}


def test_dask_writes_and_reads_a_bucket(s3):
    da = pytest.importorskip("dask.array")
    url = s3.url("dask.zarr")
    original = smooth_volume((32, 16, 16))
    da.from_array(original, chunks=CHUNKS).to_zarr(
        url,
        storage_options=s3.storage_options,
        serializer=CODEC,
        compressors=None,
    )
    lazy = da.from_zarr(url, storage_options=s3.storage_options)
    s3.forget()
    assert_close(original[16:], lazy[16:].compute(scheduler="threads"))
    assert [answer.key for answer in s3.reads()] == ["dask.zarr/c/1/0/0"]


def test_a_damaged_object_raises_our_error(many_chunks, s3, site):
    name = "plain/c/0/0/0"
    body = (many_chunks / name).read_bytes()
    for key, damaged in {"short": body[:-1], "flipped": body[:99] + b"\xff" + body[100:]}.items():
        s3.put(f"{key}.zarr/zarr.json", (many_chunks / "plain/zarr.json").read_bytes())
        s3.put(f"{key}.zarr/c/0/0/0", damaged)
        array = zarr.open_array(s3.url(f"{key}.zarr"), storage_options=s3.storage_options, mode="r")
        with pytest.raises(FormatError):
            array[:16, :16, :16]


@pytest.mark.parametrize("door", DOORS.keys() - {"v2"})
def test_icechunk_round_trip(tmp_path, door):
    icechunk = pytest.importorskip("icechunk")

    def storage():
        return icechunk.local_filesystem_storage(str(tmp_path / "repository"))

    session = icechunk.Repository.create(storage()).writable_session("main")
    original = write(session.store, door)
    session.commit("a volume")
    reopened = icechunk.Repository.open(storage()).readonly_session(branch="main")
    array = zarr.open_array(reopened.store, mode="r")
    assert_close(original, array[:])
    check_reads(array, door)


@pytest.mark.parametrize(
    ("requested", "expected"),
    [
        ("bytes=0-9", (0, 10)),
        ("bytes=90-", (90, 100)),
        ("bytes=-30", (70, 100)),
        ("bytes=-300", (0, 100)),
        ("bytes=95-200", (95, 100)),
        ("bytes=100-", (100, 100)),
        ("bytes=-", (0, 0)),
        ("lines=1-2", (0, 0)),
    ],
)
def test_the_web_server_understands_ranges(requested, expected):
    assert parse_range(requested, 100) == expected
