"""The web application: requests in, metadata and decoded chunks out."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import re
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Collection, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from aiohttp import hdrs, web

from tinc_codec.errors import ConfigError
from tinc_codec.serve.cache import Abandoned, Body, ChunkCache
from tinc_codec.serve.catalogue import Catalogue, Node
from tinc_codec.serve.chunks import ChunkReader
from tinc_codec.serve.exchange import allowed_origin, is_allowed_host, matches_tag
from tinc_codec.serve.keys import METADATA_NAMES, split_key
from tinc_codec.serve.limits import Limits
from tinc_codec.serve.metadata import Compressor, check_compressor
from tinc_codec.serve.responses import (
    headers_of,
    not_modified,
    plain,
    send_body,
    send_pieces,
    send_range,
)
from tinc_codec.serve.stores import open_source
from tinc_codec.serve.viewers import is_multiscale

__all__ = ["SERVICE", "VIEWER_ORIGINS", "Service", "app"]

VIEWER_ORIGINS = (
    "https://neuroglancer-demo.appspot.com",
    "https://avivator.gehlenborglab.org",
    "https://hms-dbmi.github.io",
    "https://ome.github.io",
)
"""Where neuroglancer, Avivator, vizarr and the OME-NGFF validator are: pages that may read."""

_METHODS = "GET, HEAD, OPTIONS"
_BINARY = "application/octet-stream"
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^/\s]+")
# How much is read at once of a chunk that is passed on.
_STORED_PIECE_BYTES = 4 * 2**20
_READER_THREADS = 32
_MAX_READERS = 64
_PREFLIGHT_SECONDS = 3600

_log = logging.getLogger("tinc_codec.serve")
_T = TypeVar("_T")


def app(
    source: Any,
    *,
    name: str = "",
    storage_options: dict[str, Any] | None = None,
    compressor: Compressor = "none",
    allow_origins: Iterable[str] = VIEWER_ORIGINS,
    allow_hosts: Iterable[str] | None = (),
    limits: Limits | None = None,
) -> web.Application:
    """Make a web application that offers an array or a group as an ordinary Zarr, read-only.

    Arrays of TINC, in shards and levels too, are decoded chunk by chunk as they are asked for;
    arrays of other codecs are passed on byte for byte.

    Parameters
    ----------
    source : str, path, store, zarr.Array or zarr.Group
        A local folder or zip file, or an fsspec URL.
    name : str
        First segment of every path; "" for none.
    storage_options : dict, optional
        For the fsspec file system of a URL.
    compressor : {"none", "gzip", "zstd", "blosc"}
        What decoded chunks are compressed with, without loss: pays on slow networks.
    allow_origins : iterable of str
        Origins ("https://example.org") whose pages may read, beside those of this machine; "*"
        for any.
    allow_hosts : iterable of str, or None
        Names under which the server may be asked, beside those of the loopback; None for any.
    limits : Limits, optional

    Returns
    -------
    aiohttp.web.Application
        To run with `serve` or `background`, which hold the limits on connections too, or as a
        part of another application.

    Raises
    ------
    ConfigError
        If a parameter is out of range.
    FileNotFoundError
        If there is neither an array nor a group.
    UnsupportedDataError
        If what is there cannot be opened.
    """
    check_compressor(compressor)
    if name and split_key(name) != (name,):
        raise ConfigError(f"name={name!r} cannot be a segment of a URL")
    origins = frozenset(map(_check_origin, allow_origins))
    store, node = open_source(source, storage_options)
    service = Service(
        Catalogue(store, node.store_path.path, compressor),
        name=name,
        is_multiscale=is_multiscale(node.attrs.asdict()),
        compressor=compressor,
        allow_origins=origins,
        allow_hosts=None if allow_hosts is None else frozenset(allow_hosts),
        limits=limits or Limits(),
        close=store.close if isinstance(source, str | os.PathLike) else None,
    )
    application = web.Application()
    application[SERVICE] = service
    application.router.add_route("*", "/{key:.*}", service.handle)
    application.on_response_prepare.append(service.add_headers)
    application.cleanup_ctx.append(service.lifetime)
    return application


class Service:
    """Answers requests; one per application."""

    def __init__(
        self,
        catalogue: Catalogue,
        *,
        name: str,
        is_multiscale: bool,
        compressor: Compressor,
        allow_origins: Collection[str],
        allow_hosts: Collection[str] | None,
        limits: Limits,
        close: Callable[[], None] | None,
    ) -> None:
        self.limits = limits
        self.is_multiscale = is_multiscale
        self.cache = ChunkCache(limits.cache_bytes)
        self._catalogue = catalogue
        self._name = name
        self._compressor = compressor
        self._origins = allow_origins
        self._hosts = allow_hosts
        self._close = close
        self._readers: OrderedDict[tuple[tuple[str, ...], str], ChunkReader] = OrderedDict()
        # Chunks wait for the network in one pool and for the processor in the other, whose size
        # is the limit of decodes: a decode whose client has left still counts until it ends.
        self._reading = ThreadPoolExecutor(_READER_THREADS, "tinc-serve-read")
        self._decoding = ThreadPoolExecutor(limits.decodes, "tinc-serve-decode")

    async def lifetime(self, _: web.Application) -> AsyncIterator[None]:
        """Close the pools, and the store if it was opened here, when the application ends."""
        yield
        for pool in (self._reading, self._decoding):
            pool.shutdown(wait=False, cancel_futures=True)
        if self._close is not None:
            self._close()

    async def add_headers(self, request: web.Request, response: web.StreamResponse) -> None:
        """Say who may read an answer, be it an error: a viewer must see a 404 to go on."""
        headers = response.headers
        headers["X-Content-Type-Options"] = "nosniff"
        origin = allowed_origin(request.headers.get(hdrs.ORIGIN), self._origins)
        if origin != "*":
            headers[hdrs.VARY] = "Origin"
        if origin is None:
            return
        headers[hdrs.ACCESS_CONTROL_ALLOW_ORIGIN] = origin
        headers[hdrs.ACCESS_CONTROL_EXPOSE_HEADERS] = (
            "Accept-Ranges, Content-Length, Content-Range, ETag"
        )
        if request.method == hdrs.METH_OPTIONS:
            headers[hdrs.ACCESS_CONTROL_ALLOW_METHODS] = _METHODS
            headers[hdrs.ACCESS_CONTROL_ALLOW_HEADERS] = (
                "Cache-Control, If-None-Match, If-Range, Pragma, Range"
            )
            headers[hdrs.ACCESS_CONTROL_MAX_AGE] = str(_PREFLIGHT_SECONDS)
            # Chromium asks before a public page may reach a private address.
            if "Access-Control-Request-Private-Network" in request.headers:
                headers["Access-Control-Allow-Private-Network"] = "true"

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Answer a request."""
        refusal = self._refusal(request)
        if refusal is not None:
            return refusal
        if request.method == hdrs.METH_OPTIONS:
            return web.Response(status=204, headers={hdrs.ALLOW: _METHODS})
        path: str = request.match_info["key"]
        if path in ("", self._name, f"{self._name}/"):
            return web.Response(text=f"A read-only Zarr: /{self._name}\n")
        segments = split_key(path)
        if segments is not None and self._name:
            segments = segments[1:] if segments[0] == self._name else None
        if not segments:
            return plain(404, "no such key")
        try:
            if segments[-1] in METADATA_NAMES:
                return await self._answer_metadata(request, segments[:-1], segments[-1])
            return await self._answer_chunk(request, segments)
        except Exception as error:
            # A file that is damaged in a way nobody thought of must not look like a missing
            # chunk, nor end the server. Messages may hold paths of this machine: to the log.
            key = "/".join(segments)
            _log.warning("%s cannot be read: %s: %s", key, type(error).__name__, error)
            return plain(500, f"{key} cannot be read: {type(error).__name__}, see the server's log")

    def _refusal(self, request: web.Request) -> web.Response | None:
        """Answer what is refused whatever it asks for."""
        if self._hosts is not None and not is_allowed_host(
            request.headers.get("Host"), self._hosts
        ):
            return plain(421, "this server goes by the name of localhost only")
        if request.method not in (hdrs.METH_GET, hdrs.METH_HEAD, hdrs.METH_OPTIONS):
            refused = plain(405, "read-only")
            refused.headers[hdrs.ALLOW] = _METHODS
        elif len(request.raw_headers) > self.limits.max_headers:
            refused = plain(431, f"more than {self.limits.max_headers} headers")
        elif len(request.raw_path) > self.limits.max_path_chars:
            refused = plain(414, f"a path of more than {self.limits.max_path_chars} characters")
        elif request.body_exists:
            refused = plain(413, "a request has no body here")
        else:
            return None
        # What follows on this connection is of no interest any more: it may be a large body.
        refused.force_close()
        return refused

    async def _read(self, function: Callable[..., _T], *arguments: Any) -> _T:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._reading, function, *arguments)

    async def _answer_metadata(
        self, request: web.Request, path: tuple[str, ...], name: str
    ) -> web.StreamResponse:
        document = await self._read(self._catalogue.metadata, path, name)
        if document is None:
            return plain(404, "no such key")
        return await self._send(request, _tagged(document), "application/json")

    async def _answer_chunk(
        self, request: web.Request, segments: tuple[str, ...]
    ) -> web.StreamResponse:
        located = self._catalogue.locate(segments, known=True)
        if located is None:
            located = await self._read(self._catalogue.locate, segments)
        if located is None:
            return plain(404, "no such key")
        node, chunk_key = located
        position = None if node.keys is None else node.keys.parse(chunk_key)
        if position is None:
            return plain(404, "no such key")
        if not node.decoded:
            return await self._pass_on(request, self._catalogue.key(node.path, chunk_key))
        key = (node.path, node.digest, position)
        body = self.cache.peek(key)
        if body is None:
            reader = await self._reader(node)
            early = await self._answer_undecoded(request, reader, position)
            if early is not None:
                return early

            async def make(wanted: Callable[[], bool]) -> Body | None:
                return await self._make(reader, position, wanted)

            body = await self.cache.get(key, make)
        return _missing() if body is None else await self._send(request, body, _BINARY)

    async def _reader(self, node: Node) -> ChunkReader:
        key = (node.path, node.digest)
        reader = self._readers.get(key)
        if reader is None:
            reader = await self._read(ChunkReader, self._catalogue, node, self._compressor)
            self._readers[key] = reader
            if len(self._readers) > _MAX_READERS:
                self._readers.popitem(last=False)
        self._readers.move_to_end(key)
        return reader

    async def _make(
        self, reader: ChunkReader, position: tuple[int, ...], wanted: Callable[[], bool]
    ) -> Body | None:
        """Read and decode a chunk, unless everyone who asked for it has left meanwhile."""
        loop = asyncio.get_running_loop()
        if not reader.has_streams:
            return await loop.run_in_executor(
                self._decoding, _if_wanted, wanted, reader.read, position
            )
        stream = await self._read(_if_wanted, wanted, reader.stored, position)
        if stream is None:
            return None
        return await loop.run_in_executor(self._decoding, _if_wanted, wanted, reader.decode, stream)

    async def _answer_undecoded(
        self, request: web.Request, reader: ChunkReader, position: tuple[int, ...]
    ) -> web.StreamResponse | None:
        """Answer what the stream of a chunk tells without being decoded; None if it does not."""
        expected = request.headers.get(hdrs.IF_NONE_MATCH)
        is_head = request.method == hdrs.METH_HEAD and reader.size_bytes is not None
        if not reader.has_streams or not (is_head or expected):
            return None
        stream = await self._read(reader.stored, position)
        if stream is None:
            return _missing()
        tag = reader.tag(stream)
        if matches_tag(expected, tag):
            return not_modified(tag)
        if not is_head:
            return None
        size_bytes = reader.size_bytes or 0
        return await send_pieces(
            request, 200, headers_of(tag, _BINARY), size_bytes, None, self.limits.send_s
        )

    async def _pass_on(self, request: web.Request, key: str) -> web.StreamResponse:
        """Send a stored chunk as it is, or a part of it, reading no more than that."""
        size_bytes = await self._read(self._catalogue.size_bytes, key)
        if size_bytes is None:
            return _missing()
        if size_bytes <= _STORED_PIECE_BYTES:
            data = await self._read(self._catalogue.read, key)
            return _missing() if data is None else await self._send(request, _tagged(data), _BINARY)

        async def pieces(start: int, stop: int) -> AsyncIterator[bytes]:
            for first in range(start, stop, _STORED_PIECE_BYTES):
                last = min(stop, first + _STORED_PIECE_BYTES)
                data = await self._read(self._catalogue.read, key, first, last)
                if data is None or len(data) != last - first:
                    raise OSError(f"{key} changed while it was sent")
                yield data

        return await send_range(request, size_bytes, None, _BINARY, pieces, self.limits.send_s)

    async def _send(
        self, request: web.Request, body: Body, content_type: str
    ) -> web.StreamResponse:
        return await send_body(request, body, content_type, self.limits.send_s)


SERVICE = web.AppKey("SERVICE", Service)


def _if_wanted(wanted: Callable[[], bool], function: Callable[[Any], _T], argument: Any) -> _T:
    if not wanted():
        raise Abandoned
    return function(argument)


def _missing() -> web.Response:
    return plain(404, "no such chunk: all of it is the fill value")


def _tagged(data: bytes) -> Body:
    return Body(data, f'"{hashlib.blake2b(data, digest_size=16).hexdigest()}"')


def _check_origin(origin: str) -> str:
    if origin in ("*", "null") or _ORIGIN.fullmatch(origin):
        return origin
    raise ConfigError(f"allow_origins: {origin!r} is neither '*' nor like 'https://example.org:80'")
