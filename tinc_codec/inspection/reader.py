"""`inspect`: fetch the headers of an array's streams, many at once and nothing else."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from typing import Any, TypeVar

import numpy as np

from tinc_codec.bitstream.header import Header, read_header_only
from tinc_codec.bitstream.reader import byte_view
from tinc_codec.errors import CorruptStreamError, TruncatedStreamError, UnsupportedDataError
from tinc_codec.inspection.access import (
    Fetch,
    Stream,
    grid,
    is_within,
    naming,
    open_stored,
    read_index,
    store_access,
)
from tinc_codec.inspection.layout import ArrayLayout, array_layout
from tinc_codec.inspection.report import ChunkReport, InspectReport, describe_chunk

# No header of today's sections is longer, and stores take as long for fewer.
_FIRST_BYTES = 256
# Enough to hide the latency of a store; zarr's own limit of 10 is meant for whole chunks.
_CONCURRENT_REQUESTS = 64

_T = TypeVar("_T")
_R = TypeVar("_R")


def inspect(source: Any, *, storage_options: dict[str, Any] | None = None) -> InspectReport:
    """Report what an array's chunk headers say: bytes by part and quality reached, per chunk.

    Nothing is decoded: damage to a chunk's body does not show. Headers are read by byte range,
    many at once; a shard costs one more request, for its index. With zarr 2, stores other than
    local folders and fsspec hand over whole chunks.

    Parameters
    ----------
    source : zarr.Array, zarr.Group, str, path, store, bytes-like or ndarray of uint8
        An array in the v2 or v3 format, plain or sharded; where one is, as a path, fsspec URL or
        store; a group with one array, or one array stored with TINC, or an OME-Zarr image, of which
        level 0 is meant; or the bytes of one stream.
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
    array = open_stored(source, storage_options)
    layout = array_layout(array)
    fetch, run = store_access(array)
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


async def _inspect_array(layout: ArrayLayout, fetch: Fetch) -> InspectReport:
    streams: Iterable[Stream]
    extra_bytes: dict[str, int] = {}
    if layout.index is None:
        streams = (Stream(position, position) for position in grid(layout, layout.chunk_shape))
    else:
        assert layout.shard_shape is not None
        shards = grid(layout, layout.shard_shape)
        found = await _map_bounded(partial(read_index, layout, fetch), shards)
        indices = [entries for entries in found if entries is not None]
        extra_bytes["shard index"] = len(indices) * layout.index.size_bytes
        streams = list(itertools.chain.from_iterable(indices))
        # Zarr may store chunks of nothing but padding, behind the end of the array.
        outside = [stream for stream in streams if not is_within(stream.coordinates, layout)]
        if outside:
            streams = [stream for stream in streams if is_within(stream.coordinates, layout)]
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


async def _read_chunk(layout: ArrayLayout, fetch: Fetch, stream: Stream) -> ChunkReport | None:
    """Make the row of a chunk; None where it is missing."""
    with naming(f"chunk {stream.coordinates} of {layout.name}"):
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


async def _read_header(fetch: Fetch, stream: Stream) -> tuple[Header, int | None] | None:
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
