"""`inspect`: fetch the headers of an array's streams, many at once and nothing else."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import operator
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple, TypeVar

import numpy as np

from tinc_codec.bitstream.header import Header, read_header_only
from tinc_codec.bitstream.reader import byte_view
from tinc_codec.errors import (
    CorruptStreamError,
    FormatError,
    TruncatedStreamError,
    UnsupportedDataError,
)
from tinc_codec.inspection.layout import ArrayLayout, array_layout, only_array
from tinc_codec.inspection.report import ChunkReport, InspectReport, bounds_within, describe_chunk

# No header of today's sections is longer, and stores take as long for fewer.
_FIRST_BYTES = 256
# Enough to hide the latency of a store; zarr's own limit of 10 is meant for whole chunks.
_CONCURRENT_REQUESTS = 64

_T = TypeVar("_T")
_R = TypeVar("_R")
# Bytes from start to stop of the object of a grid position, fewer where it ends before; the last
# -start bytes where start is negative. None where there is no such object.
_Fetch = Callable[[tuple[int, ...], int, int], Awaitable[bytes | None]]
_Run = Callable[[Coroutine[Any, Any, InspectReport]], InspectReport]


class _Stream(NamedTuple):
    """Where a stream is: in which object of the store, and which part of it."""

    coordinates: tuple[int, ...]
    key: tuple[int, ...]
    offset: int = 0
    size_bytes: int | None = None


def inspect(source: Any, *, storage_options: dict[str, Any] | None = None) -> InspectReport:
    """Report what an array's chunk headers say: bytes by part and quality reached, per chunk.

    Nothing is decoded: damage to a chunk's body does not show. Headers are read by byte range,
    many at once; a shard costs one more request, for its index. With zarr 2, stores other than
    local folders and fsspec hand over whole chunks.

    Parameters
    ----------
    source : zarr.Array, zarr.Group, str, path, store, bytes-like or ndarray of uint8
        An array in the v2 or v3 format, plain or sharded; where one is, as a path, fsspec URL or
        store; a group with one array, or one array stored with TINC; or the bytes of one stream.
    storage_options : dict, optional
        For the fsspec file system of a URL.

    Returns
    -------
    InspectReport
        Frozen; `str` of it is a small table, `.chunks` has a row per stored chunk.

    Raises
    ------
    UnsupportedDataError
        If the array is not stored with TINC, a filter changes values before TINC, or a compressor
        behind TINC hides the headers.
    ConfigError
        If a group holds no array, or several.
    FormatError
        If a header is damaged, or does not fit the array or the size stored; names the chunk.
    FileNotFoundError
        If there is nothing (zarr 2 raises its own PathNotFoundError).
    """
    if isinstance(source, np.ndarray) and (source.ndim != 1 or source.dtype != np.uint8):
        raise UnsupportedDataError(
            f"an ndarray of shape {source.shape} and dtype {source.dtype} is not the bytes of a "
            "stream (one axis, uint8)"
        )
    if isinstance(source, bytes | bytearray | memoryview | np.ndarray):
        return _inspect_stream(byte_view(source))
    import zarr

    if not isinstance(source, zarr.Array | zarr.Group):
        source = zarr.open(source, mode="r", storage_options=storage_options)
    array = only_array(source) if isinstance(source, zarr.Group) else source
    layout = array_layout(array)
    fetch, run = _zarr3_access(array) if hasattr(array, "store_path") else _zarr2_access(array)
    return run(_inspect_array(layout, fetch))


def _inspect_stream(data: memoryview) -> InspectReport:
    header = read_header_only(data)
    assert header.layout is not None
    _check_size(header, len(data))
    shape = header.info.shape
    chunk = describe_chunk(header, (0,) * len(shape), shape, shape)
    return InspectReport(
        name="stream",
        shape=shape,
        dtype=header.info.dtype,
        chunk_shape=shape,
        shard_shape=None,
        codec={},
        chunks=(chunk,),
        extra_bytes={},
    )


async def _inspect_array(layout: ArrayLayout, fetch: _Fetch) -> InspectReport:
    streams: Iterable[_Stream]
    extra_bytes: dict[str, int] = {}
    if layout.index is None:
        streams = (_Stream(position, position) for position in _grid(layout, layout.chunk_shape))
    else:
        assert layout.shard_shape is not None
        shards = _grid(layout, layout.shard_shape)
        found = await _map_bounded(partial(_read_index, layout, fetch), shards)
        indices = [entries for entries in found if entries is not None]
        extra_bytes["shard index"] = len(indices) * layout.index.size_bytes
        streams = list(itertools.chain.from_iterable(indices))
        # Zarr may store chunks of nothing but padding, behind the end of the array.
        outside = [stream for stream in streams if not _is_within(stream.coordinates, layout)]
        if outside:
            streams = [stream for stream in streams if _is_within(stream.coordinates, layout)]
            extra_bytes["chunks outside"] = sum(stream.size_bytes or 0 for stream in outside)
    rows = await _map_bounded(partial(_read_chunk, layout, fetch), streams)
    present = (row for row in rows if row is not None)
    chunks = tuple(sorted(present, key=lambda chunk: chunk.coordinates))
    if layout.trailing_bytes:
        extra_bytes["zarr's checksum"] = len(chunks) * layout.trailing_bytes
    return InspectReport(
        name=layout.name,
        shape=layout.shape,
        dtype=layout.dtype,
        chunk_shape=layout.chunk_shape,
        shard_shape=layout.shard_shape,
        codec=layout.codec,
        chunks=chunks,
        extra_bytes=extra_bytes,
    )


def _grid(layout: ArrayLayout, chunk_shape: tuple[int, ...]) -> Iterable[tuple[int, ...]]:
    counts = (-(-n // c) for n, c in zip(layout.shape, chunk_shape, strict=True))
    return itertools.product(*map(range, counts))


def _is_within(coordinates: tuple[int, ...], layout: ArrayLayout) -> bool:
    return 0 not in bounds_within(coordinates, layout.chunk_shape, layout.shape)


async def _read_index(
    layout: ArrayLayout, fetch: _Fetch, position: tuple[int, ...]
) -> list[_Stream] | None:
    """Find the streams of a shard; None where the shard is missing."""
    index = layout.index
    assert index is not None
    start, stop = (0, index.size_bytes) if index.at_start else (-index.size_bytes, 0)
    data = await fetch(position, start, stop)
    if data is None:
        return None
    with _naming(f"shard {position} of {layout.name}"):
        entries = index.read(data)
    origin = [i * n for i, n in zip(position, index.grid_shape, strict=True)]
    return [
        _Stream(tuple(map(operator.add, origin, local)), position, offset, length)
        for local, offset, length in entries
    ]


async def _read_chunk(layout: ArrayLayout, fetch: _Fetch, stream: _Stream) -> ChunkReport | None:
    """Make the row of a chunk; None where it is missing."""
    with _naming(f"chunk {stream.coordinates} of {layout.name}"):
        found = await _read_header(fetch, stream)
        if found is None:
            return None
        header, size_bytes = found
        info = header.info
        fits = np.can_cast(info.dtype, layout.dtype, "equiv")
        if info.shape != layout.chunk_shape or not fits:
            raise CorruptStreamError(
                f"the stream has shape {info.shape} and dtype {info.dtype}, "
                f"but the array's chunks have {layout.chunk_shape} and {layout.dtype}"
            )
        if size_bytes is not None:
            _check_size(header, size_bytes - layout.trailing_bytes)
    return describe_chunk(header, stream.coordinates, layout.chunk_shape, layout.shape)


async def _read_header(fetch: _Fetch, stream: _Stream) -> tuple[Header, int | None] | None:
    """Fetch as much of a stream as its header takes; with the stored size, where that shows."""
    data, wanted = b"", _FIRST_BYTES
    while True:
        stop = wanted if stream.size_bytes is None else min(wanted, stream.size_bytes)
        part = await fetch(stream.key, stream.offset + len(data), stream.offset + stop)
        if part is None:
            return None
        data += part
        size_bytes = len(data) if len(data) < stop else stream.size_bytes
        try:
            return read_header_only(data), size_bytes
        except TruncatedStreamError as error:
            if len(data) == size_bytes:
                raise
            wanted = max(2 * wanted, error.needed or 0)


def _check_size(header: Header, size_bytes: int) -> None:
    assert header.layout is not None
    declared = header.layout.total_bytes
    if size_bytes < declared:
        raise TruncatedStreamError(
            f"the stream declares {declared} bytes and has {size_bytes}", needed=declared
        )
    if size_bytes > declared:
        raise CorruptStreamError(f"{size_bytes - declared} bytes follow the end of the stream")


@contextlib.contextmanager
def _naming(subject: str) -> Iterator[None]:
    """Put what is damaged in front of an error's message; its class and attributes stay."""
    try:
        yield
    except FormatError as error:
        error.args = (f"{subject}: {error}",)
        raise


async def _map_bounded(
    function: Callable[[_T], Awaitable[_R]], arguments: Iterable[_T]
) -> list[_R]:
    """Call a coroutine function for all arguments, a bounded number at a time; order is kept."""
    results: dict[int, _R] = {}
    remaining = enumerate(arguments)

    async def work() -> None:
        # All workers draw from one iterator, so that a million chunks are not a million tasks.
        for number, argument in remaining:
            results[number] = await function(argument)

    workers = [asyncio.create_task(work()) for _ in range(_CONCURRENT_REQUESTS)]
    try:
        await asyncio.gather(*workers)
    finally:
        for worker in workers:
            worker.cancel()
    return [results[number] for number in range(len(results))]


def _zarr3_access(array: Any) -> tuple[_Fetch, _Run]:
    from zarr.abc.store import RangeByteRequest, SuffixByteRequest
    from zarr.buffer.cpu import buffer_prototype
    from zarr.core.sync import sync

    async def fetch(position: tuple[int, ...], start: int, stop: int) -> bytes | None:
        path = array.store_path / array.metadata.encode_chunk_key(position)
        part = SuffixByteRequest(-start) if start < 0 else RangeByteRequest(start, stop)
        found = await path.get(buffer_prototype, part)
        return None if found is None else found.to_bytes()

    # A store's connections belong to zarr's own event loop.
    return fetch, sync


def _zarr2_access(array: Any) -> tuple[_Fetch, _Run]:
    store = array.chunk_store

    def read(key: str, start: int, stop: int) -> bytes | None:
        if not (hasattr(store, "path") and hasattr(store, "_normalize_key")):
            found = store.get(key)
            return None if found is None else bytes(memoryview(found)[start:stop])
        # A DirectoryStore or an FSStore; the others have no byte ranges.
        path = f"{store.path}/{store._normalize_key(key)}"
        try:
            if hasattr(store, "fs"):
                return bytes(store.fs.cat_file(path, start=start, end=stop))
            with open(path, "rb") as file:
                file.seek(start)
                return file.read(stop - start)
        except FileNotFoundError:
            return None

    async def fetch(position: tuple[int, ...], start: int, stop: int) -> bytes | None:
        return await asyncio.to_thread(read, array._chunk_key(position), start, stop)

    def run(coroutine: Coroutine[Any, Any, InspectReport]) -> InspectReport:
        # In a thread of its own, since the caller's may run an event loop (in a notebook, say).
        with ThreadPoolExecutor(1) as executor:
            return executor.submit(asyncio.run, coroutine).result()

    return fetch, run
