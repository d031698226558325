"""Where the streams of an open array are, and how any part of their bytes is fetched."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import operator
from collections.abc import Callable, Coroutine, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, TypeVar

from tinc_codec.errors import FormatError
from tinc_codec.inspection.layout import ArrayLayout, array_layout, only_array
from tinc_codec.inspection.report import bounds_within

_T = TypeVar("_T")
# Bytes from start to stop of the object of a grid position, fewer where it ends before; the last
# -start bytes where start is negative, all from start on where stop is None. None where there is no
# such object.
Fetch = Callable[[tuple[int, ...], int, int | None], Coroutine[Any, Any, bytes | None]]
Run = Callable[[Coroutine[Any, Any, _T]], _T]


class Stream(NamedTuple):
    """Where a stream is: in which object of the store, and which part of it.

    Attributes
    ----------
    coordinates : tuple of int
        Of the chunk, in the grid of (inner) chunks.
    key : tuple of int
        Grid position of the object: the chunk's own, or its shard's.
    offset : int
        In bytes, within the object.
    size_bytes : int or None
        None where the stream is the whole object.
    """

    coordinates: tuple[int, ...]
    key: tuple[int, ...]
    offset: int = 0
    size_bytes: int | None = None


def open_stored(source: Any, storage_options: dict[str, Any] | None = None) -> Any:
    """Open the array that a path, URL, store, group or array means.

    Parameters
    ----------
    source : zarr.Array, zarr.Group, str, path or store
    storage_options : dict, optional
        For the fsspec file system of a URL.

    Returns
    -------
    zarr.Array
        The array itself, level 0 of an OME-Zarr image, or what `only_array` finds in a group.

    Raises
    ------
    ConfigError
        If a group holds no array, or several.
    FileNotFoundError
        If there is nothing (zarr 2 raises its own PathNotFoundError).
    """
    import zarr

    if not isinstance(source, zarr.Array | zarr.Group):
        source = zarr.open(source, mode="r", storage_options=storage_options)
    return only_array(source) if isinstance(source, zarr.Group) else source


def store_access(array: Any) -> tuple[Fetch, Run[Any]]:
    """Give how to fetch bytes of an array's objects, and what runs a coroutine that does.

    Parameters
    ----------
    array : zarr.Array
        Of zarr 2.18, or 3.1 and later.

    Returns
    -------
    fetch : coroutine function
        (grid position, start, stop) to bytes, fewer where the object ends before stop, the last
        -start bytes where start is negative, all from start on where stop is None; None where
        there is no such object.
    run : callable
        Runs a coroutine to its end, from any thread but zarr's own.
    """
    return _zarr3_access(array) if hasattr(array, "store_path") else _zarr2_access(array)


class StoredArray:
    """The streams of an array, read whole, from any thread.

    Parameters
    ----------
    array : zarr.Array

    Attributes
    ----------
    array : zarr.Array
    layout : ArrayLayout

    Raises
    ------
    UnsupportedDataError
        If its chunks are not TINC streams that can be read one by one.
    """

    def __init__(self, array: Any) -> None:
        self.array = array
        self.layout = array_layout(array)
        self._fetch, self._run = store_access(array)

    def objects(self) -> Iterator[tuple[int, ...]]:
        """Give the grid positions of the array's objects in its store: chunks, or shards."""
        return iter(grid(self.layout, self.layout.shard_shape or self.layout.chunk_shape))

    def chunks_of(self, position: tuple[int, ...]) -> list[tuple[int, ...]]:
        """List the coordinates of the chunks that an object holds, those within the array."""
        index = self.layout.index
        if index is None:
            return [position]
        places = itertools.product(*map(range, index.grid_shape))
        found = (inner_coordinates(self.layout, position, place) for place in places)
        return [coordinates for coordinates in found if is_within(coordinates, self.layout)]

    def streams_of(self, position: tuple[int, ...]) -> dict[tuple[int, ...], Stream]:
        """Find the streams of an object by the coordinates of their chunks.

        Chunks that a shard does not hold are left out. Whether an object without an index is there
        at all shows only when it is read.

        Raises
        ------
        CorruptStreamError
            If the index of a shard is damaged.
        """
        if self.layout.index is None:
            return {position: Stream(position, position)}
        found = self._run(read_index(self.layout, self._fetch, position)) or []
        return {stream.coordinates: stream for stream in found}

    def read(self, stream: Stream) -> bytes | None:
        """Fetch a stream and what zarr appended to it; None where it is missing."""
        stop = None if stream.size_bytes is None else stream.offset + stream.size_bytes
        return self._run(self._fetch(stream.key, stream.offset, stop))


def grid(layout: ArrayLayout, chunk_shape: tuple[int, ...]) -> Iterable[tuple[int, ...]]:
    """List the grid positions of an array cut into pieces of this shape, in C order."""
    counts = (-(-n // c) for n, c in zip(layout.shape, chunk_shape, strict=True))
    return itertools.product(*map(range, counts))


def is_within(coordinates: tuple[int, ...], layout: ArrayLayout) -> bool:
    """Tell whether a chunk has a voxel of the array."""
    return 0 not in bounds_within(coordinates, layout.chunk_shape, layout.shape)


def inner_coordinates(
    layout: ArrayLayout, shard: tuple[int, ...], local: tuple[int, ...]
) -> tuple[int, ...]:
    """Give the coordinates, in the grid of inner chunks, of a chunk within a shard."""
    assert layout.index is not None
    origin = map(operator.mul, shard, layout.index.grid_shape)
    return tuple(map(operator.add, origin, local))


async def read_index(
    layout: ArrayLayout, fetch: Fetch, position: tuple[int, ...]
) -> list[Stream] | None:
    """Find the streams of a shard; None where the shard is missing.

    Raises
    ------
    CorruptStreamError
        If the index is damaged; names the shard.
    """
    index = layout.index
    assert index is not None
    start, stop = (0, index.size_bytes) if index.at_start else (-index.size_bytes, 0)
    data = await fetch(position, start, stop)
    if data is None:
        return None
    with naming(f"shard {position} of {layout.name}"):
        entries = index.read(data)
    return [
        Stream(inner_coordinates(layout, position, local), position, offset, length)
        for local, offset, length in entries
    ]


@contextlib.contextmanager
def naming(subject: str) -> Iterator[None]:
    """Put what is damaged in front of an error's message; its class and attributes stay."""
    try:
        yield
    except FormatError as error:
        error.args = (f"{subject}: {error}",)
        raise


def _zarr3_access(array: Any) -> tuple[Fetch, Run[Any]]:
    from zarr.abc.store import (
        ByteRequest,
        OffsetByteRequest,
        RangeByteRequest,
        SuffixByteRequest,
    )
    from zarr.buffer.cpu import buffer_prototype
    from zarr.core.sync import sync

    async def fetch(position: tuple[int, ...], start: int, stop: int | None) -> bytes | None:
        path = array.store_path / array.metadata.encode_chunk_key(position)
        part: ByteRequest | None
        if start < 0:
            part = SuffixByteRequest(-start)
        elif stop is not None:
            part = RangeByteRequest(start, stop)
        else:
            part = OffsetByteRequest(start) if start else None
        found = await path.get(buffer_prototype, part)
        return None if found is None else found.to_bytes()

    # A store's connections belong to zarr's own event loop.
    return fetch, sync


def _zarr2_access(array: Any) -> tuple[Fetch, Run[Any]]:
    store = array.chunk_store

    def read(key: str, start: int, stop: int | None) -> bytes | None:
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
                return file.read(-1 if stop is None else stop - start)
        except FileNotFoundError:
            return None

    async def fetch(position: tuple[int, ...], start: int, stop: int | None) -> bytes | None:
        return await asyncio.to_thread(read, array._chunk_key(position), start, stop)

    def run(coroutine: Coroutine[Any, Any, _T]) -> _T:
        # In a thread of its own, since the caller's may run an event loop (in a notebook, say).
        with ThreadPoolExecutor(1) as executor:
            return executor.submit(asyncio.run, coroutine).result()

    return fetch, run
