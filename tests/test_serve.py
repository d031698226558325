"""`tinc serve`: real servers on loopback, read by zarr, a browser, and clients that misbehave."""

from __future__ import annotations

import asyncio
import hashlib
import http.client
import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest

from tests.browser.chromium import find_chromium, open_page
from tests.faces import CHUNKS, CODEC, smooth_volume
from tests.servers import http_server
from tinc_codec import ConfigError, LimitError, UnsupportedDataError, config

zarr = pytest.importorskip("zarr", minversion="3.1")
pytest.importorskip("aiohttp")

from aiohttp import web  # noqa: E402
from numcodecs import Delta, Zstd  # noqa: E402
from zarr.codecs import Crc32cCodec, GzipCodec, TransposeCodec  # noqa: E402
from zarr.storage import ZipStore  # noqa: E402

from tinc_codec.serve import Limits, app, background, viewer_links  # noqa: E402
from tinc_codec.serve import chunks as serve_chunks  # noqa: E402
from tinc_codec.serve.application import SERVICE  # noqa: E402
from tinc_codec.serve.cache import Abandoned, Body, ChunkCache  # noqa: E402
from tinc_codec.serve.exchange import (  # noqa: E402
    UnsatisfiableRange,
    allowed_origin,
    is_allowed_host,
    matches_tag,
    parse_range,
)
from tinc_codec.serve.keys import ChunkKeys, split_key  # noqa: E402
from tinc_codec.serve.limits import parse_bytes  # noqa: E402

SHAPE = (40, 36, 20)
ATTRIBUTES = {"ome": {"version": "0.5", "multiscales": [{"name": "a", "axes": []}]}, "note": "µm"}
PLAIN_TINC = {"serializer": CODEC, "compressors": None}
# Name, dtype and settings of the arrays in the v3 group.
ARRAYS = {
    "plain": ("f4", {**PLAIN_TINC, "fill_value": np.nan}),
    "sharded": ("f4", {**PLAIN_TINC, "shards": (32, 32, 16)}),
    "bytes": ("u1", PLAIN_TINC),
    "doubles": (">f8", PLAIN_TINC),
    "dots": ("i2", {**PLAIN_TINC, "chunk_key_encoding": {"name": "v2", "separator": "."}}),
    "transposed": ("f4", {**PLAIN_TINC, "filters": [TransposeCodec(order=(2, 0, 1))]}),
    "checked": ("f4", {"serializer": CODEC, "compressors": [Crc32cCodec()]}),
    "foreign": ("f4", {"compressors": [GzipCodec()]}),
    "foreign_shards": ("f4", {"shards": (32, 32, 16)}),
}
V2_ARRAYS = {
    "plain": ("<f4", {"compressors": CODEC}),
    "fortran": (">u2", {"compressors": CODEC, "order": "F"}),
    "nested": (
        "<i2",
        {"compressors": CODEC, "chunk_key_encoding": {"name": "v2", "separator": "/"}},
    ),
    "filtered": ("<i4", {"compressors": CODEC, "filters": [Delta(dtype="<i4")]}),
    "foreign": ("<f4", {"compressors": Zstd()}),
}
# Large enough not to fit the buffers of a socket, so that a client that does not read is felt.
HEAVY_SHAPE = (3, 2048, 2048)


def fill(group, arrays: dict) -> None:
    for name, (dtype, settings) in arrays.items():
        array = group.create_array(
            name, shape=SHAPE, chunks=CHUNKS, dtype=dtype, attributes={"of": name}, **settings
        )
        array[:] = smooth_volume(SHAPE, dtype)


def write_store(path: Path, zarr_format: int) -> None:
    """Write a group with arrays of all kinds, one of them two groups down, one with gaps."""
    group = zarr.create_group(path, zarr_format=zarr_format, attributes=ATTRIBUTES)
    fill(group, ARRAYS if zarr_format == 3 else V2_ARRAYS)
    settings = PLAIN_TINC if zarr_format == 3 else {"compressors": CODEC}
    deep = (
        group.create_group("a")
        .create_group("b")
        .create_array("deep", shape=SHAPE, chunks=CHUNKS, dtype="f4", fill_value=7, **settings)
    )
    deep[:16] = smooth_volume((16, *SHAPE[1:]))


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    """Folders of one group each, by format; not to be changed."""
    folder = tmp_path_factory.mktemp("stores")
    for zarr_format in (2, 3):
        write_store(folder / f"v{zarr_format}.zarr", zarr_format)
    heavy = zarr.create_array(
        folder / "v3.zarr" / "heavy", shape=HEAVY_SHAPE, chunks=HEAVY_SHAPE, dtype="u1",
        compressors=None,
    )  # fmt: skip
    heavy[:] = np.arange(256, dtype="u1")[:, np.newaxis].repeat(8, 1).reshape(1, 1, -1)
    return {zarr_format: folder / f"v{zarr_format}.zarr" for zarr_format in (2, 3)}


@pytest.fixture(scope="module")
def url(stores):
    with background(app(stores[3])) as url:
        yield url


@pytest.fixture(scope="module")
def url_v2(stores):
    with background(app(stores[2])) as url:
        yield url


@contextmanager
def small_server(folder: Path, **settings):
    """Serve one small array of 2 × 1 × 1 chunks; gives its URL, service and path."""
    path = folder / "small.zarr"
    array = zarr.create_array(path, shape=(32, 16, 16), chunks=CHUNKS, dtype="f4", **PLAIN_TINC)
    array[:] = smooth_volume(array.shape)
    application = app(path, **settings)
    with background(application) as url:
        yield url, application[SERVICE], path


def ask(url: str, path: str, method: str = "GET", body: bytes | None = None, **headers: str):
    """Send one request; return status, headers and body. A path goes out as it is."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=20)
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    try:
        connection.putrequest(method, path, skip_host="Host" in named)
        for name, value in named.items():
            connection.putheader(name, value)
        if body is not None:
            connection.putheader("Content-Length", str(len(body)))
        connection.endheaders(body)
        response = connection.getresponse()
        return response.status, response.headers, response.read()
    finally:
        connection.close()


def decoded(stores, zarr_format: int, name: str) -> np.ndarray:
    return zarr.open_array(stores[zarr_format] / name, mode="r")[:]


# What zarr reads


@pytest.mark.parametrize("name", [*ARRAYS, "a/b/deep"])
def test_zarr_reads_arrays_of_the_v3_format(stores, url, name):
    served = zarr.open_array(f"{url}/{name}", mode="r")
    original = zarr.open_array(stores[3] / name, mode="r")
    np.testing.assert_array_equal(served[:], original[:])
    assert served.attrs.asdict() == original.attrs.asdict()
    np.testing.assert_array_equal(served.fill_value, original.fill_value)
    np.testing.assert_array_equal(served[3:30:4, 35, ::3], original[3:30:4, 35, ::3])


@pytest.mark.parametrize("name", [*V2_ARRAYS, "a/b/deep"])
def test_zarr_reads_arrays_of_the_v2_format(stores, url_v2, name):
    served = zarr.open_array(f"{url_v2}/{name}", mode="r")
    original = zarr.open_array(stores[2] / name, mode="r")
    assert served.metadata.zarr_format == 2
    np.testing.assert_array_equal(served[:], original[:])
    assert served.attrs.asdict() == original.attrs.asdict()


def test_served_metadata_is_ordinary(stores, url, url_v2):
    for name in ("plain", "sharded", "transposed", "checked"):
        document = json.loads(ask(url, f"/{name}/zarr.json")[2])
        assert document["codecs"] == [{"name": "bytes", "configuration": {"endian": "little"}}]
        assert document["chunk_grid"]["configuration"]["chunk_shape"] == [*CHUNKS]
        stored = json.loads((stores[3] / name / "zarr.json").read_bytes())
        kept = set(stored) - {"codecs", "chunk_grid"}
        assert {key: document[key] for key in kept} == {key: stored[key] for key in kept}
    assert json.loads(ask(url, "/bytes/zarr.json")[2])["codecs"] == [{"name": "bytes"}]
    document = json.loads(ask(url_v2, "/fortran/.zarray")[2])
    assert (document["dtype"], document["order"]) == ("<u2", "C")
    assert document["compressor"] is document["filters"] is None


@pytest.mark.parametrize(
    "key",
    ["zarr.json", "a/zarr.json", "foreign/zarr.json", "foreign_shards/c/0/0/0", "foreign/c/2/2/1"],
)
def test_what_is_not_ours_is_passed_on_byte_for_byte(stores, url, key):
    status, _, body = ask(url, f"/{key}")
    assert status == 200
    assert body == (stores[3] / key).read_bytes()


@pytest.mark.parametrize(
    "key", [".zgroup", ".zattrs", "plain/.zattrs", "foreign/.zarray", "foreign/0.1.0"]
)
def test_v2_documents_and_chunks_of_others_are_passed_on(stores, url_v2, key):
    assert ask(url_v2, f"/{key}")[2] == (stores[2] / key).read_bytes()


@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.filterwarnings("ignore:Consolidated metadata is currently not part")
def test_consolidated_metadata_says_the_same(stores, tmp_path, zarr_format):
    path = shutil.copytree(stores[zarr_format], tmp_path / "c.zarr")
    zarr.consolidate_metadata(path, zarr_format=zarr_format)
    with background(app(path)) as url:
        served = zarr.open_consolidated(url)
        assert set(dict(served.arrays())) >= {"plain", "foreign"}
        for name in ("plain", "foreign", "a/b/deep"):
            np.testing.assert_array_equal(served[name][:], decoded(stores, zarr_format, name))
            alone = zarr.open_array(f"{url}/{name}", mode="r", zarr_format=zarr_format)
            assert served[name].metadata.to_dict() == alone.metadata.to_dict()
        assert served.attrs.asdict() == ATTRIBUTES


@pytest.mark.parametrize("compressor", ["gzip", "zstd", "blosc"])
@pytest.mark.parametrize("zarr_format", [2, 3])
def test_compressed_again(stores, compressor, zarr_format):
    with background(app(stores[zarr_format], compressor=compressor)) as url:
        served = zarr.open_array(f"{url}/plain", mode="r", zarr_format=zarr_format)
        np.testing.assert_array_equal(served[:], decoded(stores, zarr_format, "plain"))
        key = "plain/c/0/0/0" if zarr_format == 3 else "plain/0.0.0"
        _, headers, body = ask(url, f"/{key}")
        assert len(body) < 4 * np.prod(CHUNKS)
        assert ask(url, f"/{key}", "HEAD")[1]["Content-Length"] == str(len(body))
        assert ask(url, f"/{key}", If_None_Match=headers["ETag"])[0] == 304


def test_levels_are_served_as_ordinary_chunks(tmp_path):
    levels = pytest.importorskip("tinc_codec.levels")
    path = tmp_path / "levels.zarr"
    group = zarr.create_group(path)
    array = group.create_array(
        "0", shape=(64, 48, 40), chunks=(32, 32, 32), dtype="f4", **PLAIN_TINC
    )
    array[:] = smooth_volume(array.shape)
    levels.add_levels(group, 2)
    with background(app(path)) as url:
        for name in ("0", "1", "2"):
            served = zarr.open_array(f"{url}/{name}", mode="r")
            np.testing.assert_array_equal(served[:], group[name][:])
            assert "tinc" not in json.dumps(json.loads(ask(url, f"/{name}/zarr.json")[2])["codecs"])
    (path / "0/c/1/1/1").write_bytes(b"damaged")
    (path / "0/c/1/0/0").unlink()
    with background(app(path)) as url:
        assert [ask(url, f"/{k}/c/1/1/1")[0] for k in range(3)] == [500] * 3
        assert [ask(url, f"/{k}/c/1/0/0")[0] for k in range(3)] == [404] * 3


def test_an_array_at_the_root(tmp_path):
    with small_server(tmp_path) as (url, _, path):
        np.testing.assert_array_equal(zarr.open_array(url)[:], zarr.open_array(path)[:])


@pytest.mark.parametrize("kind", ["zip", "fsspec zip", "memory", "file", "http", "store", "group"])
def test_sources(stores, tmp_path, kind):
    expected = decoded(stores, 3, "plain")
    folder = tmp_path / "copy.zarr"
    shutil.copytree(stores[3] / "plain", folder / "plain")
    shutil.copy(stores[3] / "zarr.json", folder)
    with http_server(tmp_path) as site:
        if "zip" in kind:
            shutil.make_archive(str(folder), "zip", folder)
        sources = {
            "zip": lambda: f"{folder}.zip",
            "fsspec zip": lambda: f"zip::file://{folder}.zip",
            "memory": lambda: f"memory://{folder}",
            "file": lambda: f"file://{folder}",
            "http": lambda: f"{site.url}/copy.zarr",
            "store": lambda: ZipStore(shutil.make_archive(str(folder), "zip", folder), mode="r"),
            "group": lambda: zarr.open_group(folder, mode="r"),
        }
        if kind == "memory":
            import fsspec

            fsspec.filesystem("memory").put(str(folder), str(folder), recursive=True)
        with background(app(sources[kind]())) as url:
            np.testing.assert_array_equal(zarr.open_array(f"{url}/plain")[:], expected)
            assert ask(url, "/plain/c/9/9/9")[0] == 404


def test_within_another_application(stores):
    outer = web.Application()
    inner = app(stores[3], name="brain.zarr", allow_hosts=None)
    outer.add_subapp("/data/", inner)
    outer[SERVICE] = inner[SERVICE]
    with background(outer) as url:
        served = zarr.open_array(f"{url}/data/brain.zarr/plain", mode="r")
        np.testing.assert_array_equal(served[:], decoded(stores, 3, "plain"))
        assert ask(url, "/data/plain/zarr.json")[0] == 404
        assert ask(url, "/data/other.zarr/plain/zarr.json")[0] == 404


def test_a_store_that_grows_and_changes_while_it_is_served(tmp_path):
    with small_server(tmp_path) as (url, _, path):
        assert ask(url, "/c/0/0/0")[0] == 200
        (path / "c/1/0/0").rename(path / "away")
        assert ask(url, "/c/1/0/0")[0] == 404
        (path / "away").rename(path / "c/1/0/0")
        assert ask(url, "/c/1/0/0")[0] == 200
        before = ask(url, "/c/0/0/0")[1]["ETag"]
        shutil.rmtree(path)
        array = zarr.create_array(
            path, shape=(16, 16, 8), chunks=(16, 16, 8), dtype="i2", **PLAIN_TINC
        )
        array[:] = smooth_volume(array.shape, "i2")
        np.testing.assert_array_equal(zarr.open_array(url, mode="r")[:], array[:])
        assert ask(url, "/c/0/0/0")[1]["ETag"] != before
        assert ask(url, "/c/1/0/0")[0] == 404


def test_missing_chunks_are_fill_values(stores, url, url_v2, tmp_path):
    assert ask(url, "/a/b/deep/c/1/0/0")[0] == 404
    assert ask(url, "/a/b/deep/c/1/0/0", "HEAD")[0] == 404
    assert ask(url, "/a/b/deep/c/1/0/0", If_None_Match='"x"')[0] == 404
    assert ask(url_v2, "/a/b/deep/1.0.0")[0] == 404
    assert (zarr.open_array(f"{url}/a/b/deep")[16:] == 7).all()
    group = zarr.create_group(tmp_path / "gaps.zarr")
    for name in ("sharded", "checked"):
        dtype, settings = ARRAYS[name]
        array = group.create_array(name, shape=SHAPE, chunks=CHUNKS, dtype=dtype, **settings)
        array[:16, :16, :16] = smooth_volume(CHUNKS)
    with background(app(tmp_path / "gaps.zarr")) as gaps:
        for name in ("sharded", "checked"):
            assert ask(gaps, f"/{name}/c/0/0/0")[0] == 200
            assert ask(gaps, f"/{name}/c/1/0/0")[0] == 404
            assert ask(gaps, f"/{name}/c/2/2/1")[0] == 404


# What HTTP asks


def test_head_range_and_revalidation(stores, url):
    for key, name in (("/plain/c/0/1/0", "decoded"), ("/foreign/c/0/1/0", "stored")):
        status, headers, whole = ask(url, key)
        assert status == 200, name
        assert headers["Content-Length"] == str(len(whole))
        assert headers["Accept-Ranges"] == "bytes"
        assert headers["Cache-Control"] == "no-cache"
        tag = headers["ETag"]
        status, headers, body = ask(url, key, "HEAD")
        assert (status, headers["Content-Length"], headers["ETag"], body) == (
            200, str(len(whole)), tag, b""
        )  # fmt: skip
        for asked, start, stop in (
            ("bytes=0-0", 0, 1), ("bytes=100-", 100, None), ("bytes=-7", -7, None),
            ("bytes=10-999999", 10, None),
        ):  # fmt: skip
            status, headers, body = ask(url, key, Range=asked)
            assert (status, body) == (206, whole[start:stop])
            first, last, total = map(int, re.findall(r"\d+", headers["Content-Range"]))
            assert (whole[first : last + 1], total) == (body, len(whole))
        status, headers, _ = ask(url, key, Range="bytes=999999-")
        assert (status, headers["Content-Range"]) == (416, f"bytes */{len(whole)}")
        for asked in ("bytes=0-1,4-5", "bytes=5-2", "bytes=-", "lines=0-1", "bytes=x"):
            assert ask(url, key, Range=asked)[::2] == (200, whole)
        assert ask(url, key, Range="bytes=0-3", If_Range=tag)[0] == 206
        assert ask(url, key, Range="bytes=0-3", If_Range='"other"')[0] == 200
        for expected in (tag, f'"other", W/{tag}', "*"):
            status, headers, body = ask(url, key, If_None_Match=expected)
            assert (status, headers["ETag"], body) == (304, tag, b"")
        assert ask(url, key, If_None_Match='"other"')[0] == 200
    status, headers, body = ask(url, "/plain/zarr.json")
    assert headers["Content-Type"] == "application/json"
    assert ask(url, "/plain/zarr.json", If_None_Match=headers["ETag"])[0] == 304
    assert ask(url, "/plain/zarr.json", Range="bytes=1-4")[2] == body[1:5]


def test_large_chunks_of_others_are_sent_in_pieces_and_by_range(stores, url):
    whole = (stores[3] / "heavy/c/0/0/0").read_bytes()
    status, headers, body = ask(url, "/heavy/c/0/0/0")
    assert (status, body, headers["Content-Length"]) == (200, whole, str(len(whole)))
    middle = 5_000_000
    _, headers, body = ask(url, "/heavy/c/0/0/0", Range=f"bytes={middle}-{middle + 9}")
    assert body == whole[middle : middle + 10]
    assert headers["Content-Range"] == f"bytes {middle}-{middle + 9}/{len(whole)}"
    assert ask(url, "/heavy/c/0/0/0", Range="bytes=-5")[2] == whole[-5:]
    assert ask(url, "/heavy/c/0/0/0", "HEAD")[1]["Content-Length"] == str(len(whole))
    assert ask(url, "/heavy/c/0/0/0", Range=f"bytes={len(whole)}-")[0] == 416


def test_what_costs_no_decode(tmp_path, monkeypatch):
    with small_server(tmp_path) as (url, _, _):
        tag = ask(url, "/c/0/0/0", "HEAD")[1]["ETag"]
        calls = count_decodes(monkeypatch)
        assert ask(url, "/c/0/0/0", If_None_Match=tag)[0] == 304
        assert ask(url, "/c/1/0/0", "HEAD")[1]["Content-Length"] == str(4 * 16**3)
        assert ask(url, "/c/0/0/0", "OPTIONS")[0] == 204
        assert not calls
        assert ask(url, "/c/0/0/0", If_None_Match='"other"')[1]["ETag"] == tag
        assert len(calls) == 1


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "TRACE", "PROPFIND"])
def test_other_methods_are_refused(stores, url, method):
    for path in ("/plain/c/0/0/0", "/plain/zarr.json", "/", "/nothing"):
        status, headers, _ = ask(url, path, method)
        assert (status, headers["Allow"]) == (405, "GET, HEAD, OPTIONS")


def test_pages_from_elsewhere(stores, url):
    viewer = "https://neuroglancer-demo.appspot.com"
    for origin in (viewer, "http://localhost:8080", "http://127.0.0.1", "http://[::1]:1"):
        for path, expected in (("/plain/c/0/0/0", 200), ("/plain/c/8/0/0", 404)):
            status, headers, _ = ask(url, path, Origin=origin)
            assert (status, headers["Access-Control-Allow-Origin"]) == (expected, origin)
            assert "Content-Range" in headers["Access-Control-Expose-Headers"]
            assert headers["Vary"] == "Origin"
    preflight = {
        "Origin": viewer,
        "Access-Control-Request-Method": "GET",
        "Access-Control-Request-Headers": "range",
        "Access-Control-Request-Private-Network": "true",
    }
    status, headers, body = ask(url, "/plain/c/0/0/0", "OPTIONS", **preflight)
    assert (status, body) == (204, b"")
    assert headers["Access-Control-Allow-Methods"] == "GET, HEAD, OPTIONS"
    assert "Range" in headers["Access-Control-Allow-Headers"]
    assert headers["Access-Control-Allow-Private-Network"] == "true"
    for origin in ("https://example.org", "null", "http://localhost.example.org", "http://[bad"):
        assert "Access-Control-Allow-Origin" not in ask(url, "/", Origin=origin)[1]
    with background(app(stores[3], allow_origins=["*"])) as open_url:
        headers = ask(open_url, "/plain/zarr.json", Origin="https://example.org")[1]
        assert headers["Access-Control-Allow-Origin"] == "*"
    with background(app(stores[3], allow_origins=["https://example.org"])) as other:
        assert "Access-Control-Allow-Origin" not in ask(other, "/", Origin=viewer)[1]


def test_names_that_were_made_to_mean_the_loopback(stores, url):
    for host in ("localhost", "localhost:1", "127.0.0.1:80", "127.1.2.3", "[::1]:5"):
        assert ask(url, "/plain/zarr.json", Host=host)[0] == 200, host
    for host in ("example.org", "localhost.example.org", "192.168.1.2", "", "[", "a@b@c", "*"):
        assert ask(url, "/plain/zarr.json", Host=host)[0] in (400, 421), host
    assert exchange(url, b"GET /zarr.json HTTP/1.0\r\n\r\n").startswith(b"HTTP/1.0 421")
    with background(app(stores[3], allow_hosts=["data.example.org"])) as named:
        assert ask(named, "/zarr.json", Host="data.example.org:8080")[0] == 200
        assert ask(named, "/zarr.json", Host="example.org")[0] == 421
    with background(app(stores[3], allow_hosts=None)) as anyone:
        assert ask(anyone, "/zarr.json", Host="example.org")[0] == 200


def exchange(url: str, sent: bytes) -> bytes:
    """Send raw bytes and return all that comes back."""
    parts = urlsplit(url)
    with socket.create_connection((parts.hostname, parts.port), timeout=20) as connection:
        connection.sendall(sent)
        return b"".join(iter(lambda: connection.recv(65536), b""))


# Ways out


ESCAPES = [
    "/../secret", "/%2e%2e/secret", "/%2E%2E/secret", "/plain/../../secret", "/..%2fsecret",
    "/plain/%2e%2e/%2e%2e/secret", "/%252e%252e/secret", "/..%5csecret", "/....//secret",
    "//secret", "/./zarr.json/../../secret", "/plain/c/0/0/..%2f..%2f..%2f..%2f..%2fsecret",
    "/plain/c/0/0/0%00", "/%00/zarr.json", "/zarr.json%00.txt",
    "/plain/c/0/0/0/../../../zarr.json", "/C:/secret", "/plain%0a/zarr.json",
    "/%c0%ae%c0%ae/secret", "/%ff/zarr.json", "/plain?/../x/../y", "/plain/c/0/0/%30%252e",
    "/~/secret", "/plain/%2e/zarr.json", "/plain//zarr.json", "/plain/", "/plain", "/plain/c",
    "/plain/c/0", "/plain/c/0/0", "/plain/c/0/0/0/0", "/plain/c/0/0/00", "/plain/c/0/0/-1",
    "/plain/c/0/0/+0", "/plain/c/0/0/0.0", "/plain/c/0/0/3", "/plain/0/0/0", "/plain/c.0.0.0",
    "/plain/c/0/0/%D9%A0", "/plain/c/0/0/99999999999999999999999", "/notes.txt",
    "/plain/notes.txt", "/plain/c/zarr.json", "/plain/.zarray", "/.zattrs", "/.zmetadata",
    "/sharded/c/0/0/9", "/a/b/c/0/0/0", "/linked/zarr.json", "/plain/c/1/1/1", "/mine/c/0/0/0",
    "/plain/hidden/zarr.json", "/plain/hidden/c/0/0/0",
]  # fmt: skip


def test_no_path_leads_elsewhere(stores, tmp_path):
    path = shutil.copytree(stores[3], tmp_path / "inner" / "store.zarr")
    secret = b"the secret itself"
    for place in (tmp_path / "secret", tmp_path / "inner" / "secret", path / "notes.txt"):
        place.write_bytes(secret)
    shutil.copy(tmp_path / "secret", path / "plain" / "notes.txt")
    # Links to an array, a file and all chunks of an array outside; one that stays inside.
    shutil.copytree(stores[3] / "foreign", tmp_path / "outside")
    (path / "linked").symlink_to(tmp_path / "outside")
    (path / "plain/c/1/1/1").unlink()
    (path / "plain/c/1/1/1").symlink_to(tmp_path / "secret")
    (path / "mine").mkdir()
    shutil.copy(path / "checked/zarr.json", path / "mine")
    (path / "mine/c").symlink_to(stores[3] / "checked/c")
    (path / "inside").symlink_to(path / "foreign")
    # An array in the folder of an array is no node of the hierarchy.
    shutil.copytree(path / "foreign", path / "plain" / "hidden")
    with background(app(path)) as url:
        for escape in ESCAPES:
            status, _, body = ask(url, escape)
            assert status in (400, 404), escape
            assert secret not in body, escape
        assert ask(url, "/inside/c/0/0/0")[2] == (path / "foreign/c/0/0/0").read_bytes()
        absolute = exchange(url, b"GET file:///etc/passwd HTTP/1.1\r\nHost: localhost\r\n"
                                 b"Connection: close\r\n\r\n")  # fmt: skip
        assert absolute.split()[1] in (b"400", b"404")
        assert ask(url, "/plain/c/0/0/0")[0] == 200


def test_a_url_behind_the_server_is_not_left(stores, tmp_path):
    """A store behind a URL would decode once more what was encoded twice."""
    shutil.copytree(stores[3] / "plain", tmp_path / "site" / "open.zarr")
    shutil.copytree(stores[3] / "plain", tmp_path / "site" / "closed.zarr")
    with http_server(tmp_path / "site") as site, background(app(f"{site.url}/open.zarr")) as url:
        site.forget()
        for way in ("..", "%2e%2e", "%252e%252e", "%25252e%25252e", "c/%3f", "c/%23"):
            assert ask(url, f"/{way}/closed.zarr/zarr.json")[0] == 404
            assert ask(url, f"/{way}/closed.zarr/c/0/0/0")[0] == 404
        assert not any("closed" in answer.key for answer in site.answers())


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("a/b", ("a", "b")), ("", None), ("/", None), ("a//b", None), ("a/..", None), ("...", None),
        (". ", None), ("a%2fb", None), ("a\\b", None), ("a\0", None), ("é/µm", ("é", "µm")),
        ("a:b", None), ("x" * 256, None), ("a\u202eb", None), ("a?b", None), ("..a", ("..a",)),
    ],
)  # fmt: skip
def test_keys(key, expected):
    assert split_key(key) == expected


def test_chunk_keys():
    keys = ChunkKeys("c", "/", (2, 3))
    assert keys.parse("c/1/2") == (1, 2)
    for wrong in (
        "c/2/0",
        "c/0",
        "0/0",
        "c/0/0/0",
        "c/00/0",
        "c/0.0",
        "",
        "c",
        "c/ 1/0",
        "c/1_0/0",
    ):
        assert keys.parse(wrong) is None
    assert ChunkKeys("", ".", (2,)).parse("1") == (1,)
    assert ChunkKeys("c", "/", ()).parse("c") == ()
    assert ChunkKeys("", ".", ()).parse("0") == ()
    assert ChunkKeys("", ".", ()).parse("1") is None


def test_ranges_and_names():
    assert parse_range("bytes=0-", 5) == (0, 5)
    assert parse_range(None, 5) is None
    for behind in ("bytes=5-", "bytes=-0"):
        with pytest.raises(UnsatisfiableRange):
            parse_range(behind, 5)
    assert matches_tag('W/"a" , "b"', '"b"')
    assert not matches_tag(None, '"b"')
    assert is_allowed_host("LOCALHOST:1", ())
    assert not is_allowed_host(None, ())
    assert allowed_origin(None, {"*"}) == "*"
    assert allowed_origin(None, {"https://a"}) is None


# Decoding once, and not too much at a time


def count_decodes(
    monkeypatch, seconds: float = 0.0, blocked: threading.Event | None = None
) -> list:
    """Have every decode of the server noted, with how many run at that moment, and last longer."""
    calls: list[int] = []
    running = [0]
    lock = threading.Lock()
    decode = serve_chunks.decode_chunk

    def noted(stream):
        with lock:
            running[0] += 1
            calls.append(running[0])
        try:
            if blocked is not None:
                blocked.wait(20)
            time.sleep(seconds)
            return decode(stream)
        finally:
            with lock:
                running[0] -= 1

    monkeypatch.setattr(serve_chunks, "decode_chunk", noted)
    return calls


def test_32_clients_share_one_decode(tmp_path, monkeypatch):
    calls = count_decodes(monkeypatch, 0.2)
    with small_server(tmp_path) as (url, _, path), ThreadPoolExecutor(32) as clients:
        bodies = set(clients.map(lambda _: ask(url, "/c/0/0/0")[2], range(32)))
        expected = zarr.open_array(path)[:16].astype("<f4").tobytes()
        assert bodies == {expected}
        assert len(calls) == 1
        assert ask(url, "/c/0/0/0")[2] == expected
        assert len(calls) == 1


@pytest.mark.parametrize("limit", [1, 3])
def test_decodes_at_once_are_bounded(stores, monkeypatch, limit):
    calls = count_decodes(monkeypatch, 0.03)
    with (
        background(app(stores[3], limits=Limits(max_decodes=limit))) as url,
        ThreadPoolExecutor(18) as clients,
    ):
        keys = [f"/plain/c/{i}/{j}/{k}" for i, j, k in np.ndindex(3, 3, 2)]
        assert {answer[0] for answer in clients.map(lambda key: ask(url, key), keys)} == {200}
    assert len(calls) == 18
    assert max(calls) == limit


def test_the_cache_keeps_to_its_bytes(stores, monkeypatch):
    calls = count_decodes(monkeypatch)
    chunk_bytes = 4 * 16**3
    limits = Limits(cache_bytes=3 * chunk_bytes + 100)
    application = app(stores[3], limits=limits)
    with background(application) as url:
        cache = application[SERVICE].cache
        keys = [f"/plain/c/{i}/{j}/{k}" for i, j, k in np.ndindex(3, 3, 2)]
        for key in keys:
            ask(url, key)
            assert cache.size_bytes <= limits.cache_bytes
        assert cache.size_bytes == 3 * chunk_bytes
        del calls[:]
        for key in keys[-3:]:
            ask(url, key)
        assert not calls
        ask(url, keys[0])
        assert len(calls) == 1


def test_a_client_that_leaves_costs_no_decode(stores, monkeypatch):
    gate = threading.Event()
    calls = count_decodes(monkeypatch, blocked=gate)
    with background(app(stores[3], limits=Limits(max_decodes=1))) as url:
        parts = urlsplit(url)
        connections = []
        for number in range(3):
            connection = socket.create_connection((parts.hostname, parts.port))
            connection.sendall(b"GET /plain/c/%d/0/0 HTTP/1.1\r\nHost: localhost\r\n\r\n" % number)
            connections.append(connection)
            wait_until(lambda: calls)
        time.sleep(0.2)
        for connection in connections:
            connection.close()
        time.sleep(0.2)
        gate.set()
        # The first was being decoded when its client left; nobody waited for the others.
        assert ask(url, "/plain/c/0/1/0")[0] == 200
        assert len(calls) == 2
        assert ask(url, "/plain/c/0/0/0")[0] == 200
        assert len(calls) == 2
        assert ask(url, "/plain/c/1/0/0")[0] == 200
        assert len(calls) == 3


def wait_until(condition, seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


def test_cache_shares_keeps_and_forgets():
    async def check() -> None:
        cache = ChunkCache(10)
        made: list[str] = []

        def maker(key: str, size_bytes: int = 4, error: Exception | None = None):
            async def make(wanted):
                made.append(key)
                await asyncio.sleep(0.01)
                if not wanted():
                    raise Abandoned
                if error is not None:
                    raise error
                return Body(bytes(size_bytes), key) if size_bytes else None

            return make

        found = await asyncio.gather(*(cache.get("a", maker("a")) for _ in range(5)))
        assert len(made) == 1
        assert len(set(map(id, found))) == 1
        await cache.get("b", maker("b"))
        cache.peek("a")
        await cache.get("c", maker("c"))
        assert cache.size_bytes == 8
        assert (cache.peek("a") is None, cache.peek("b") is None) == (False, True)
        assert len((await cache.get("large", maker("large", 11))).data) == 11
        assert cache.size_bytes == 8
        assert await cache.get("none", maker("none", 0)) is None
        for _ in range(2):
            with pytest.raises(ValueError, match="damaged"):
                await cache.get("bad", maker("bad", error=ValueError("damaged")))
        assert made.count("bad") == 2
        # One of two leaves: the other is served; all leave: it is given up, and made for the next.
        first, second = (asyncio.create_task(cache.get("d", maker("d"))) for _ in range(2))
        await asyncio.sleep(0)
        first.cancel()
        assert (await second).tag == "d"
        lone = asyncio.create_task(cache.get("e", maker("e")))
        await asyncio.sleep(0)
        lone.cancel()
        await asyncio.sleep(0.001)
        assert (await cache.get("e", maker("e"))).tag == "e"
        assert cache.size_bytes <= 10

    asyncio.run(check())


# Damage, and clients that misbehave


def test_damaged_chunks_are_said_and_harm_no_other(tmp_path, caplog):
    with small_server(tmp_path) as (url, _, path):
        intact = (path / "c/0/0/0").read_bytes()
        other = zarr.create_array(tmp_path / "o", shape=(8, 8, 8), chunks=(8, 8, 8), dtype="f4",
                                  **PLAIN_TINC)  # fmt: skip
        other[:] = smooth_volume((8, 8, 8))
        flipped = bytearray(intact)
        flipped[len(intact) // 2] ^= 1
        foreign = (tmp_path / "o/c/0/0/0").read_bytes()
        for damaged in (bytes(flipped), intact[:-3], intact[:5], b"", b"nonsense" * 9, foreign):
            (path / "c/0/0/0").write_bytes(damaged)
            for _ in range(2):
                caplog.clear()
                status, _, body = ask(url, "/c/0/0/0")
                assert status == 500
                assert len(body) < 400
                assert str(tmp_path).encode() not in body
                assert b"c/0/0/0 cannot be read" in body
                (record,) = (r for r in caplog.records if r.name == "tinc_codec.serve")
                assert "c/0/0/0" in record.getMessage()
            assert ask(url, "/c/1/0/0")[0] == 200
        (path / "c/0/0/0").write_bytes(intact)
        assert ask(url, "/c/0/0/0")[0] == 200


def test_damaged_shards_and_metadata(stores, tmp_path):
    path = shutil.copytree(stores[3], tmp_path / "damaged.zarr")
    shard = path / "sharded/c/0/0/0"
    shard.write_bytes(shard.read_bytes()[:-1])
    (path / "checked/c/0/0/0").write_bytes(b"short")
    (path / "plain/zarr.json").write_bytes(b"{")
    (path / "bytes/zarr.json").write_bytes(b"[1]")
    document = json.loads((path / "dots/zarr.json").read_bytes())
    (path / "dots/zarr.json").write_text(json.dumps({**document, "shape": "x"}))
    (path / "foreign/zarr.json").write_text('{"a":' * 100_000)
    with background(app(path)) as url:
        keys = ["sharded/c/0/0/0", "checked/c/0/0/0", "plain/c/0/0/0", "dots/0.0.0"]
        keys += [f"{name}/zarr.json" for name in ("plain", "bytes", "dots", "foreign")]
        for key in keys:
            status, _, body = ask(url, f"/{key}")
            assert status == 500, key
            assert len(body) < 400
            assert str(tmp_path).encode() not in body
        assert ask(url, "/sharded/c/2/0/0")[0] == 200
        assert ask(url, "/doubles/c/0/0/0")[0] == 200


def test_chunks_beyond_the_limit_are_not_allocated(tmp_path, caplog):
    with small_server(tmp_path) as (url, _, _), config.set(max_decoded_bytes=1000):
        assert ask(url, "/zarr.json")[0] == 200
        assert ask(url, "/c/0/0/0")[0] == 500
    assert LimitError.__name__ in caplog.text


def test_requests_that_are_too_large(url):
    many = {f"X-{number}": "1" for number in range(100)}
    assert ask(url, "/zarr.json", **many)[0] == 431
    assert ask(url, "/" + "a/" * 1500)[0] == 414
    assert ask(url, "/zarr.json", body=b"x" * 100)[0] == 413
    assert ask(url, "/zarr.json", X_long="x" * 20_000)[0] == 400
    assert ask(url, "/" + "a" * 20_000)[0] == 400
    assert exchange(url, b"\x00\x01nonsense\r\n\r\n").startswith(b"HTTP/1.0 400")
    assert ask(url, "/zarr.json")[0] == 200


def received_until_closed(connection: socket.socket) -> int:
    """Count the bytes that arrive before the other side closes, with or without ceremony."""
    received = 0
    with suppress(ConnectionResetError):
        while part := connection.recv(65536):
            received += len(part)
    return received


def test_connections_are_bounded_and_not_idle(tmp_path):
    limits = Limits(max_connections=3, idle_s=0.5)
    with small_server(tmp_path, limits=limits) as (url, _, _):
        parts = urlsplit(url)
        silent = [socket.create_connection((parts.hostname, parts.port)) for _ in range(3)]
        silent[0].sendall(b"GET /zarr.json HTTP/1.1\r\nHost: local")
        wait_until(lambda: ask(url, "/zarr.json")[0] == 503, 3)
        for connection in silent:
            connection.settimeout(5)
            assert received_until_closed(connection) == 0
            connection.close()
        wait_until(lambda: ask(url, "/zarr.json")[0] == 200, 3)


def test_a_client_that_does_not_receive_is_cut_off(stores):
    with background(app(stores[3], limits=Limits(send_s=0.5))) as url:
        parts = urlsplit(url)
        slow = socket.socket()
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        slow.settimeout(10)
        slow.connect((parts.hostname, parts.port))
        slow.sendall(b"GET /heavy/c/0/0/0 HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert ask(url, "/plain/c/0/0/0")[0] == 200
        time.sleep(1.5)
        assert received_until_closed(slow) < np.prod(HEAVY_SHAPE)
        slow.close()
        assert ask(url, "/heavy/c/0/0/0")[0] == 200


# Settings and the command


def test_settings_are_checked(tmp_path):
    smallest = zarr.create_group(tmp_path / "smallest.zarr")
    for wrong in (
        {"cache_bytes": -1}, {"max_decodes": 0}, {"max_connections": 0}, {"send_s": 0},
        {"idle_s": float("nan")}, {"max_headers": True}, {"cache_bytes": 1.5},
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            Limits(**wrong)
    with pytest.raises(ConfigError, match="compressor='lzma'"):
        app(tmp_path, compressor="lzma")
    for name in ("a/b", "..", "a%b"):
        with pytest.raises(ConfigError, match="name="):
            app(tmp_path, name=name)
    for origin in ("https://example.org/", "example.org", ""):
        with pytest.raises(ConfigError, match="allow_origins"):
            app(smallest, allow_origins=[origin])
    with pytest.raises(FileNotFoundError):
        app(tmp_path / "nothing.zarr")
    (tmp_path / "zarr.json").write_text("{")
    for source in (tmp_path, "nothing://x"):
        with pytest.raises(UnsupportedDataError, match="cannot be opened"):
            app(source)
    assert [*map(parse_bytes, ("5", "1GB", "1.5 GiB", "64mb", "2k"))] == [
        5, 10**9, 3 * 2**29, 64 * 10**6, 2000
    ]  # fmt: skip
    for text in ("", "GB", "-1", "1XB", "1 i", "1e9"):
        with pytest.raises(ConfigError, match="number of bytes"):
            parse_bytes(text)


def test_a_port_that_is_taken(stores):
    with (
        background(app(stores[3])) as url,
        pytest.raises(OSError, match="in use"),
        background(app(stores[3]), port=urlsplit(url).port),
    ):
        raise AssertionError("two servers at one port")


def test_the_benchmark(tmp_path):
    from benchmarks import serve

    path = tmp_path / "served.zarr"
    keys = serve.write_store(path, smooth_volume((32, 32, 16)), 16, CODEC)
    assert len(keys) == 4
    assert serve.decode_ms(path, keys) > 0
    rows = serve.measure(path, keys, compressor="none", clients=2, rounds=2, chunk_voxels=16**3)
    sizes = {row["state"]: (row["requests"], row["body_bytes"]) for row in rows}
    assert sizes["cold"] == (2, 4 * 16**3)
    assert sizes["cached"] == (8, 4 * 16**3)
    assert sizes["passed on"][0] == 8


def test_viewer_links():
    links = viewer_links("http://127.0.0.1:1/a.zarr", multiscale=True)
    assert {"Python", "neuroglancer", "vizarr", "Avivator"} <= set(links)
    assert "zarr%3A%2F%2Fhttp%3A%2F%2F127.0.0.1%3A1%2Fa.zarr" in links["neuroglancer"]
    assert set(viewer_links("http://h", multiscale=False)) == {"Python", "neuroglancer"}


def test_served_names():
    from tinc_codec.cli.serve import served_name

    assert served_name("/data/brain.zarr/") == "brain.zarr"
    assert served_name("s3://bucket/a b.zarr") == "a_b.zarr"
    assert served_name("brain.zarr.zip") == "brain.zarr"
    assert served_name("zip::file:///x/brain.zip") == "brain.zarr"
    assert served_name(".") == f"{Path.cwd().name}.zarr"


@contextmanager
def command(*arguments: str):
    """Run `tinc serve` in a process of its own."""
    code = "from tinc_codec.cli.app import main; main()"
    with subprocess.Popen(
        [sys.executable, "-c", code, "serve", *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_command_ends_cleanly_with_connections_open(stores, number):
    arguments = ("--json", "--max-decodes", "1", "--cache-bytes", "10MB", "--compressor", "gzip")
    with command(str(stores[3]), *arguments) as process:
        lines = iter(process.stdout.readline, "")
        text = next(lines)
        while not text.rstrip().endswith("}\n}") and text != "{}":
            text += next(lines)
        announced = json.loads(text)
        url = announced["url"]
        assert url.endswith("/v3.zarr")
        assert "vizarr" in announced["viewers"]
        served = zarr.open_array(f"{url}/plain", mode="r")
        np.testing.assert_array_equal(served[:], decoded(stores, 3, "plain"))
        parts = urlsplit(url)
        idle, receiving = (socket.create_connection((parts.hostname, parts.port)) for _ in "12")
        if number == signal.SIGTERM:
            receiving.sendall(b"GET /v3.zarr/heavy/c/0/0/0 HTTP/1.1\r\nHost: localhost\r\n\r\n")
            receiving.recv(1000)
        process.send_signal(number)
        assert process.wait(15) == 0
        idle.close()
        receiving.close()
        assert "Traceback" not in process.stderr.read()


def test_the_command_prints_where_to_look(stores):
    with command(str(stores[3]), "--host", "0.0.0.0") as process:
        url = process.stdout.readline().strip()
        assert ask(url, "/v3.zarr/zarr.json", Host="example.org")[0] == 200
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=15)
    assert "warning" in errors
    assert "neuroglancer" in errors
    assert url.replace("0.0.0.0", "127.0.0.1") in errors
    with command(str(stores[3] / "nothing")) as process:
        _, errors = process.communicate(timeout=30)
        assert process.returncode == 2
        assert "error" in errors
        assert "Traceback" not in errors


# The browser


def checksum(array: np.ndarray) -> str:
    little = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
    return hashlib.sha256(little.tobytes()).hexdigest()


@pytest.fixture(scope="module")
def chromium():
    found = find_chromium()
    if found is None:
        pytest.skip("no Chromium on this machine")
    return found


def test_zarrita_reads_it_in_a_browser(stores, url, url_v2, chromium, tmp_path):
    names = ["plain", "sharded", "bytes", "doubles", "dots", "transposed", "foreign"]
    found = open_page(chromium, tmp_path / "v3", url=url, array=names)
    assert "error" not in found
    assert found["group"] == ATTRIBUTES
    check_page(stores, 3, found, names)
    size = 4 * 16**3
    answers = found["answers"]
    chunk = (stores[3] / "plain").joinpath("c/0/0/0")
    assert chunk.exists()
    assert (answers["chunk"]["status"], answers["chunk"]["size"]) == (200, size)
    assert answers["chunk"]["tag"]
    assert answers["missing"]["status"] == 404
    assert (answers["head"]["status"], answers["head"]["length"]) == (200, str(size))
    assert (answers["range"]["status"], answers["range"]["size"]) == (206, 16)
    assert answers["range"]["range"] == f"bytes 8-23/{size}"
    assert answers["suffix"]["range"] == f"bytes {size - 16}-{size - 1}/{size}"
    assert answers["unchanged"]["status"] == 304
    assert "refused" in answers["put"]
    names = ["plain", "fortran", "nested", "filtered"]
    found = open_page(chromium, tmp_path / "v2", url=url_v2, array=names)
    assert "error" not in found
    check_page(stores, 2, found, names)


def check_page(stores, zarr_format: int, found: dict, names: list[str]) -> None:
    for name in names:
        array = zarr.open_array(stores[zarr_format] / name, mode="r")
        whole, seen = array[:], found["arrays"][name]
        assert (seen["shape"], seen["chunks"]) == ([*SHAPE], [*CHUNKS])
        assert seen["dtype"] == whole.dtype.name
        assert seen["attributes"] == {"of": name}
        assert seen["whole"] == checksum(whole)
        part = whole[2, :, 1:9]
        assert seen["part"] == {"shape": [*part.shape], "data": checksum(part)}
        assert seen["chunk"] == checksum(whole[:16, :16, :16])


def test_pages_of_strangers_read_nothing_in_a_browser(url, chromium, tmp_path):
    found = open_page(
        chromium, tmp_path / "origin", host="stranger.example", url=url, array=["plain"]
    )
    assert not found["arrays"]
    assert all("refused" in answer for answer in found["answers"].values())
    # The stranger's own name made to mean this machine: the page may read the answer, a refusal.
    rebound = url.replace("127.0.0.1", "stranger.example")
    found = open_page(
        chromium, tmp_path / "name", host="stranger.example", url=rebound, array=["plain"]
    )
    assert not found["arrays"]
    statuses = {name: answer.get("status") for name, answer in found["answers"].items()}
    assert set(statuses.values()) <= {None, 421}
