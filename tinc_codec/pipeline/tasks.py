"""What a worker does: read voxels of the source, encode their chunks, store each under its key.

A task holds no voxels (unless the source is in memory) but where they are read and where the
chunks go; it can be pickled to another process or another machine.
"""

import functools
import itertools
import json
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from typing import Any

import numpy as np

from tinc_codec.codec import encode_chunk
from tinc_codec.errors import ConfigError, FormatError, TargetError
from tinc_codec.inspection.report import ChunkReport
from tinc_codec.params import MAX_RATIO
from tinc_codec.pipeline.objects import compare_object, pack_shard, read_object
from tinc_codec.pipeline.stores import RECORD, StoreAddress, read_key, write_key
from tinc_codec.pipeline.target import Position, Target, blocks
from tinc_codec.pipeline.volumes import LazyArray

__all__ = [
    "READ_BYTES",
    "RECORD",
    "Job",
    "Outcome",
    "Task",
    "encode_voxels",
    "failures",
    "run_task",
]

READ_BYTES = 64 << 20
"""Of the source, that a worker reads at once, where it is more than a chunk."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """What all tasks of a run share.

    Parameters
    ----------
    token : str
        Of this run alone.
    source : LazyArray or None
        None where the voxels come with the task.
    store : StoreAddress
    target : Target
    record : mapping
        What `RECORD` of the destination holds, apart from "complete", while this run goes on.
    compare : bool
        Chunks that are there already are compared with the source, which may have changed.
    """

    token: str
    source: LazyArray | None
    store: StoreAddress
    target: Target
    record: Mapping[str, Any]
    compare: bool


@dataclass(frozen=True)
class Task:
    """Chunks or shards that are made one after the other.

    Parameters
    ----------
    positions : tuple of Position
        Their box in the grid, or what is still to be done of it.
    voxels : ndarray, optional
        That box of the source.
    """

    positions: tuple[Position, ...]
    voxels: np.ndarray | None = field(default=None, repr=False)

    def box(self, target: Target) -> tuple[slice, ...]:
        """Return the box of voxels that all positions lie in."""
        return _union([target.box(position) for position in self.positions])


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of a chunk or shard.

    Attributes
    ----------
    position : Position
    status : {"done", "found", "failed"}
        "found" was there already, whole.
    chunks : tuple of ChunkReport
        The chunk, or those of the shard; none if it failed.
    size_bytes : int
        Stored under the key.
    reason : str or None
        Why it failed.
    encode_seconds : float
        Of `seconds`, within the codec.
    seconds : float
        All in all, but for what was read at once for several.
    worker_deaths : int
        Processes that ended while they worked on it.
    """

    position: Position
    status: str
    chunks: tuple[ChunkReport, ...] = ()
    size_bytes: int = 0
    reason: str | None = None
    encode_seconds: float = 0.0
    seconds: float = 0.0
    worker_deaths: int = 0


def run_task(job: Job, task: Task) -> list[Outcome]:
    """Make the chunks or shards of a task; what one of them raises is its outcome.

    Parameters
    ----------
    job : Job
    task : Task

    Returns
    -------
    list of Outcome
        One per position, in their order.
    """
    found = _version()
    if found != job.record["version"]:
        reason = f"this worker has tinc_codec {found}, the run is of {job.record['version']}"
        return failures(task, ConfigError(reason))
    store = _store(job)
    return [_attempt(job, store, position, voxels) for position, voxels in _with_voxels(job, task)]


@functools.cache
def _version() -> str:
    return version("tinc_codec")


def failures(task: Task, error: BaseException) -> list[Outcome]:
    """Give the outcomes of a task that could not run at all."""
    return [_failure(position, error) for position in task.positions]


def _failure(position: Position, error: BaseException, seconds: float = 0.0) -> Outcome:
    reason = f"{type(error).__name__}: {error}"
    return Outcome(position=position, status="failed", reason=reason, seconds=seconds)


_lock = threading.Lock()
_opened: dict[str, Any] = {}
_MOST_OPENED = 4


def _store(job: Job) -> Any:
    """Open the store of a job once in this process; connections are worth keeping."""
    with _lock:
        if job.token not in _opened:
            if len(_opened) >= _MOST_OPENED:
                del _opened[next(iter(_opened))]
            _opened[job.token] = job.store.open()
        return _opened[job.token]


_Voxels = Iterator[tuple[Position, np.ndarray]]


def _with_voxels(job: Job, task: Task) -> Iterator[tuple[Position, _Voxels]]:
    """Yield each position with an iterator of its chunks and their voxels."""
    target = job.target
    if target.shards is not None:
        for position in task.positions:
            yield position, _shard_voxels(job, task, position)
        return
    box = task.box(target)
    try:
        whole = _read(job, task, box)
    except Exception:
        # A part of what was to be read at once may well be readable; else each chunk says why not.
        for position in task.positions:
            yield position, _chunk_voxels(job, task, position)
    else:
        for position in task.positions:
            yield position, iter([(position, whole[_within(target.box(position), box)])])


def _chunk_voxels(job: Job, task: Task, position: Position) -> _Voxels:
    yield position, _read(job, task, job.target.box(position))


def _shard_voxels(job: Job, task: Task, position: Position) -> _Voxels:
    """Read a shard in pieces that are small even where the shard is not."""
    target = job.target
    wanted = target.chunks_of(position)
    first = wanted[0]
    counts = [last - start + 1 for start, last in zip(first, wanted[-1], strict=True)]
    for block in blocks(counts, counts, target.chunk_bytes, READ_BYTES):
        inner = [
            tuple(i + start for i, start in zip(index, first, strict=True))
            for index in itertools.product(*block)
        ]
        box = _union([target.chunk_box(coordinates) for coordinates in inner])
        voxels = _read(job, task, box)
        for coordinates in inner:
            yield coordinates, voxels[_within(target.chunk_box(coordinates), box)]


def _union(boxes: list[tuple[slice, ...]]) -> tuple[slice, ...]:
    return tuple(
        slice(min(part.start for part in parts), max(part.stop for part in parts))
        for parts in zip(*boxes, strict=True)
    )


def _within(part: tuple[slice, ...], box: tuple[slice, ...]) -> tuple[slice, ...]:
    return tuple(slice(p.start - b.start, p.stop - b.start) for p, b in zip(part, box, strict=True))


def _read(job: Job, task: Task, box: tuple[slice, ...]) -> np.ndarray:
    if task.voxels is not None:
        return task.voxels[_within(box, task.box(job.target))]
    assert job.source is not None
    found = np.asarray(job.source[box])
    shape = tuple(part.stop - part.start for part in box)
    if found.shape != shape:
        raise OSError(f"the source gave shape {found.shape} where {shape} was asked for")
    return found


def _attempt(job: Job, store: Any, position: Position, voxels: _Voxels) -> Outcome:
    start = time.perf_counter()
    try:
        outcome = _make(job, store, position, voxels)
    except Exception as error:
        return _failure(position, error, time.perf_counter() - start)
    return replace(outcome, seconds=time.perf_counter() - start)


def _make(job: Job, store: Any, position: Position, voxels: _Voxels) -> Outcome:
    target, key = job.target, job.target.key(position)
    there = read_key(store, key)
    if there is not None:
        with suppress(FormatError):
            chunks = read_object(there, position, target)
            if job.compare:
                compare_object(there, position, target, voxels)
            return Outcome(position=position, status="found", chunks=chunks, size_bytes=len(there))
    encode_seconds = 0.0
    streams = {}
    for coordinates, part in voxels:
        start = time.perf_counter()
        try:
            streams[coordinates] = encode_voxels(part, target)
        except Exception as error:
            if target.shards is not None:
                error.args = (f"chunk {coordinates} of the shard: {error}",)
            raise
        encode_seconds += time.perf_counter() - start
    data = streams[position] if target.shards is None else pack_shard(streams, position, target)
    _check_record(job, store)
    write_key(store, key, data)
    return Outcome(
        position=position,
        status="done",
        chunks=read_object(data, position, target),
        size_bytes=len(data),
        encode_seconds=encode_seconds,
    )


def encode_voxels(voxels: np.ndarray, target: Target) -> bytes:
    """Encode a chunk as zarr would store it: whole, filled up where the array ends within it."""
    params = target.params
    if voxels.shape == target.chunks:
        return encode_chunk(np.ascontiguousarray(voxels, dtype=target.dtype), params)
    chunk = np.full(target.chunks, target.fill_value, dtype=target.dtype)
    chunk[tuple(slice(0, n) for n in voxels.shape)] = voxels
    if params.ratio is not None:
        # The promise counts the filling as raw bytes; those who ask for a ratio do not. Where so
        # little room is too little, more is given, up to what is promised.
        ratio = min(float(MAX_RATIO), params.ratio * chunk.size / voxels.size)
        while ratio > params.ratio:
            with suppress(TargetError):
                return encode_chunk(chunk, replace(params, ratio=ratio))
            ratio /= 2
    return encode_chunk(chunk, params)


def _check_record(job: Job, store: Any) -> None:
    """Refuse to write into what another run has started anew in the meantime.

    A worker may outlive the run that gave it its task.

    Raises
    ------
    ConfigError
    """
    key = "zarr.json" if job.target.zarr_format == 3 else ".zattrs"
    data = read_key(store, key)
    attributes = json.loads(data or b"{}")
    if job.target.zarr_format == 3:
        attributes = attributes.get("attributes", {})
    found = {k: v for k, v in attributes.get(RECORD, {}).items() if k != "complete"}
    if found != job.record:
        raise ConfigError("the destination was started anew, or removed, while this run went on")
