"""`verify`: decode all of a compressed volume and hold it against its source."""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from tinc_codec import config
from tinc_codec.errors import ConfigError, FormatError
from tinc_codec.inspection.access import StoredArray, Stream, open_stored
from tinc_codec.inspection.layout import ArrayLayout
from tinc_codec.inspection.report import bounds_within
from tinc_codec.params import EncodingParams
from tinc_codec.pipeline.checks import (
    Breach,
    ChunkCheck,
    Promises,
    check_missing,
    check_stream,
    check_unread,
    same_dtype,
)
from tinc_codec.pipeline.comparison import ErrorBins
from tinc_codec.pipeline.sources import open_source
from tinc_codec.pipeline.verification import Verification
from tinc_codec.pipeline.volumes import LazyArray

__all__ = ["Verification", "verify"]

# Chunks per worker that may be waiting for their turn, or for one before them to end.
_AHEAD = 2

_T = TypeVar("_T")
_R = TypeVar("_R")


def verify(
    src: Any,
    dst: Any,
    *,
    variable: str | None = None,
    workers: int | None = None,
    storage_options: dict[str, Any] | None = None,
    bins: ErrorBins | None = None,
    on_start: Callable[[int], None] = lambda _: None,
    on_chunk: Callable[[ChunkCheck], None] = lambda _: None,
) -> Verification:
    """Decode all of a compressed volume, compare it with its source and check every promise.

    Memory stays within a few chunks per worker, whatever the volume.

    Parameters
    ----------
    src : str, path, array or Volume
        The source, as `tinc_codec.compress` takes it. It is only read.
    dst : str, path, store, zarr.Array or zarr.Group
        An array stored with TINC, v2 or v3 format, plain or sharded, or a group with one: level 0
        of an OME-Zarr image.
    variable : str, optional
        Which array of `src` is meant, where there are several.
    workers : int, optional
        Chunks that are decoded at once; by default one per CPU.
    storage_options : dict, optional
        For the fsspec file system of `dst`.
    bins : ErrorBins, optional
        Counts all errors, for a histogram.
    on_start : callable
        Called once with the number of chunks.
    on_chunk : callable
        Called with the row of every chunk, in their order, as they are done.

    Returns
    -------
    Verification
        `ok` where nothing is broken. A damaged or missing chunk is a broken promise, not an error.

    Raises
    ------
    UnsupportedDataError
        If `dst` is not stored with TINC, or its streams cannot be read one by one.
    ConfigError
        If an argument is out of range, or a group holds no array, or several.
    FileNotFoundError
        If there is nothing.
    """
    if workers is not None and workers < 1:
        raise ConfigError(f"workers={workers!r} is not an integer >= 1")
    volume = open_source(src, variable=variable)
    stored = StoredArray(open_stored(dst, storage_options))
    layout = stored.layout
    array_breaches = tuple(_array_breaches(volume.array, stored))
    counts = None if bins is None else np.zeros(bins.n_bins, np.int64)
    rows: list[ChunkCheck] = []
    extra_bytes: Counter[str] = Counter()
    if not array_breaches:
        on_start(_count_chunks(layout))
        tasks = _chunks(stored, extra_bytes)
        check = _Checker(volume.array, stored, bins)
        work = _map_bounded(check, tasks, workers or config.available_cpus())
        with closing(work):
            for row, found in work:
                rows.append(row)
                extra_bytes["zarr's checksum"] += layout.trailing_bytes * (row.size_bytes > 0)
                if counts is not None and found is not None:
                    counts += found
                on_chunk(row)
    return Verification(
        name=layout.name,
        shape=layout.shape,
        dtype=layout.dtype,
        chunk_shape=layout.chunk_shape,
        shard_shape=layout.shard_shape,
        codec=layout.codec,
        chunks=tuple(rows),
        array_breaches=array_breaches,
        extra_bytes={name: size_bytes for name, size_bytes in extra_bytes.items() if size_bytes},
        bins=bins,
        error_counts=counts,
    )


@dataclass(frozen=True)
class _Task:
    """A chunk to check: its stream, None where there is none, or why there cannot be one."""

    coordinates: tuple[int, ...]
    stream: Stream | None
    damage: str | None = None


def _count_chunks(layout: ArrayLayout) -> int:
    return math.prod(-(-n // c) for n, c in zip(layout.shape, layout.chunk_shape, strict=True))


def _chunks(stored: StoredArray, extra_bytes: Counter[str]) -> Iterator[_Task]:
    """Go through the chunks of an array, and count the bytes of the indices on the way."""
    index = stored.layout.index
    for position in stored.objects():
        damage, streams = None, {}
        try:
            streams = stored.streams_of(position)
        except FormatError as error:
            damage = f"{type(error).__name__}: {error}"
        if index is not None and streams:
            extra_bytes["shard index"] += index.size_bytes
        for coordinates in stored.chunks_of(position):
            yield _Task(coordinates, streams.get(coordinates), damage)


class _Checker:
    """Checks one chunk after the other, from any thread."""

    def __init__(self, source: LazyArray, stored: StoredArray, bins: ErrorBins | None) -> None:
        layout = stored.layout
        self._source = source
        self._stored = stored
        self._bins = bins
        fill_value = stored.array.fill_value
        self._fill_value = 0 if fill_value is None else fill_value
        self._promises = Promises(
            params=EncodingParams.from_config(layout.codec),
            chunk_shape=layout.chunk_shape,
            dtype=layout.dtype,
            trailing_bytes=layout.trailing_bytes,
        )

    def __call__(self, task: _Task) -> tuple[ChunkCheck, np.ndarray | None]:
        """Give the row of a chunk and its counts of errors, where they are wanted."""
        if task.damage is not None:
            return check_unread(task.coordinates, task.damage, 0), None
        data = None if task.stream is None else self._stored.read(task.stream)
        original = self._read_source(task.coordinates)
        decoded: np.ndarray | None
        if data is None:
            row, decoded = check_missing(self._fill_value, original, task.coordinates)
        else:
            row, decoded = check_stream(data, original, task.coordinates, self._promises)
        if self._bins is None or decoded is None:
            return row, None
        return row, self._bins.count(original, decoded)

    def _read_source(self, coordinates: tuple[int, ...]) -> np.ndarray:
        layout = self._stored.layout
        sizes = bounds_within(coordinates, layout.chunk_shape, layout.shape)
        starts = (i * c for i, c in zip(coordinates, layout.chunk_shape, strict=True))
        box = tuple(slice(start, start + n) for start, n in zip(starts, sizes, strict=True))
        return np.asarray(self._source[box])


def _array_breaches(source: LazyArray, stored: StoredArray) -> Iterator[Breach]:
    layout = stored.layout
    if tuple(source.shape) != layout.shape:
        text = f"shape: the array has {layout.shape}, its source {tuple(source.shape)}"
        yield Breach(None, "shape", None, None, text)
    if not same_dtype(np.dtype(source.dtype), layout.dtype):
        text = f"dtype: the array has {layout.dtype}, its source {np.dtype(source.dtype)}"
        yield Breach(None, "dtype", None, None, text)


def _map_bounded(
    function: Callable[[_T], _R], arguments: Iterable[_T], workers: int
) -> Generator[_R, None, None]:
    """Call a function for all arguments on threads; in order, and never far ahead of the reader."""
    pending: deque[Future[_R]] = deque()
    with ThreadPoolExecutor(workers) as executor:
        try:
            for argument in arguments:
                pending.append(executor.submit(function, argument))
                if len(pending) >= _AHEAD * workers:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()
