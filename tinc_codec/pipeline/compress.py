"""`compress`: a whole volume into a Zarr store, on one machine or a cluster."""

import math
import os
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from tinc_codec import config
from tinc_codec.errors import ConfigError
from tinc_codec.numcodecs import TINC
from tinc_codec.params import EncodingParams
from tinc_codec.pipeline.cluster import run_distributed
from tinc_codec.pipeline.destination import Destination, open_destination
from tinc_codec.pipeline.engines import run_processes, run_threads
from tinc_codec.pipeline.progress import Meter, Report, Summary, show_progress
from tinc_codec.pipeline.sources import open_source
from tinc_codec.pipeline.sources.files import local_path
from tinc_codec.pipeline.stores import StoreAddress, store_address
from tinc_codec.pipeline.target import Position, Target, blocks, choose_layout
from tinc_codec.pipeline.tasks import READ_BYTES, Job, Outcome, Task
from tinc_codec.pipeline.volumes import Volume
from tinc_codec.volume.support import check_supported

__all__ = ["compress"]

# Chunks that one task makes where they are small, so that handing it out costs little.
_TASK_VOXELS = 1 << 20
_LEAST_REPORT_SECONDS = 0.1


def compress(
    src: Any,
    dst: Any,
    *,
    ratio: float | None = None,
    psnr: float | None = None,
    max_error: float | None = None,
    effort: int | None = None,
    model: str | None = None,
    tile: int | None = None,
    codec: TINC | None = None,
    chunks: int | Sequence[int] | None = None,
    shards: int | Sequence[int] | None = None,
    levels: int | None = None,
    zarr_format: int = 3,
    scheduler: str | None = None,
    workers: int | None = None,
    variable: str | None = None,
    overwrite: bool = False,
    progress: Report | bool = False,
    source_options: Mapping[str, Any] | None = None,
    storage_options: Mapping[str, Any] | None = None,
) -> Summary:
    """Compress a volume into a Zarr store, chunk by chunk, and go on where an earlier run ended.

    The store is an OME-Zarr group (0.5; 0.4 in the Zarr v2 format) with the array "0". Every chunk
    is stored whole or not at all; the same call again finishes what was interrupted, makes anew
    what failed or is damaged, and touches nothing else. The source is only read.

    Parameters
    ----------
    src : str, path, array or Volume
        What `tinc_codec.pipeline.sources.open_source` opens: a file, a Zarr, a URL, an array.
    dst : str, path or zarr.abc.store.Store
        A local path, an fsspec URL, or a store.
    ratio, psnr, max_error : float, optional
        What is promised of every chunk; exactly one of them. Chunks that reach beyond the end of
        the volume get less room, so that the ratio holds for the voxels of the volume.
    effort, model, tile
        As for `tinc_codec.TINC`.
    codec : TINC, optional
        With further settings, instead of the six above.
    chunks, shards : int or sequence of int, optional
        Edge along the axes of space, or one entry per axis. By default chunks of up to 128³ that
        divide the volume evenly, and no shards.
    levels : int, optional
        Levels of resolution beside the full one, decoded from the same chunks.
    zarr_format : {3, 2}
    scheduler : {"threads", "processes"} or str, optional
        Where chunks are encoded, or the address of a dask.distributed scheduler (tcp://...). By
        default processes of this machine where there is more than one worker.
    workers : int, optional
        Chunks that are encoded at once: by default one per CPU (one in all with a GPU), on a
        cluster one per thread of it.
    variable : str, optional
        Which array of the source.
    overwrite : bool
        Start anew; removes what is at `dst`, if it is Zarr.
    progress : callable or bool
        Is called with a `Progress` as chunks are finished; True shows it on standard error.
    source_options, storage_options : mapping, optional
        For the fsspec file systems of `src` and `dst`.

    Returns
    -------
    Summary
        `complete` says whether every chunk is there; `failures` which are not, and why.

    Raises
    ------
    ConfigError
        If a parameter is out of range; if `dst` holds something else, was begun with other
        settings or from another source (names them), or is being written by another run.
    UnsupportedDataError
        If the codec does not store such arrays.
    OSError
        If the source cannot be opened, the metadata not be written, or the scheduler of a cluster
        is lost.
    """
    started = time.monotonic()
    params = _params(
        codec, ratio=ratio, psnr=psnr, max_error=max_error, effort=effort, model=model, tile=tile
    )
    _check_workers(workers)
    _check_zarr()
    volume = open_source(src, variable=variable, storage_options=source_options)
    shape = tuple(map(int, volume.array.shape))
    dtype = np.dtype(volume.array.dtype)
    check_supported(dtype, shape)
    target = choose_layout(
        shape, dtype, params, chunks=chunks, shards=shards, levels=levels, zarr_format=zarr_format
    )
    address = store_address(dst, storage_options)
    _check_apart(src, address)
    is_file = bool(volume.identity)
    scheduler, n_workers = _choose_scheduler(scheduler, workers, address, is_file, target)
    with ExitStack() as stack:
        report = stack.enter_context(show_progress()) if progress is True else progress or None
        destination = stack.enter_context(
            open_destination(address, target, volume, overwrite=overwrite)
        )
        meter = Meter(target)
        finished = np.zeros(target.grid_shape, dtype=bool)
        n_damaged = _scan(destination, meter, finished)
        if not finished.all():
            destination.begin()
            job = Job(
                token=uuid.uuid4().hex,
                source=volume.array if is_file else None,
                store=address,
                target=target,
                record=destination.record,
                compare=destination.compare,
            )
            tasks = _tasks(target, volume.chunks, finished)
            outcomes = _run(job, tasks, scheduler, n_workers, volume)
            # A generator that is left by an interrupt must end its workers here and now.
            stack.callback(outcomes.close)  # type: ignore[attr-defined]
            _follow(meter, outcomes, report)
        elif report is not None:
            report(meter.progress())
        if meter.n_failed == 0:
            destination.finish()
    return meter.summary(
        source=volume.info.name if not isinstance(src, (str, os.PathLike)) else os.fspath(src),
        destination=str(address),
        n_damaged=n_damaged,
        seconds=time.monotonic() - started,
    )


def _params(codec: TINC | None, **given: Any) -> EncodingParams:
    settings = {name: value for name, value in given.items() if value is not None}
    if codec is None:
        return EncodingParams(**settings)
    if settings:
        raise ConfigError(f"codec={codec!r} says it all; found {', '.join(settings)} beside it")
    if not isinstance(codec, TINC):
        raise ConfigError(f"codec={codec!r} is not a TINC")
    return codec.params


def _check_workers(workers: int | None) -> None:
    if workers is not None and (
        isinstance(workers, bool) or workers != int(workers) or workers < 1
    ):
        raise ConfigError(f"workers={workers!r} is not an integer >= 1")


def _check_zarr() -> None:
    found = version("zarr")
    if tuple(map(int, found.split(".")[:2])) < (3, 1):
        raise ConfigError(f"compress needs zarr 3.1 or later; found {found}")


def _check_apart(src: Any, address: StoreAddress) -> None:
    """Refuse a destination that is the source, holds it, or lies in it: it is only read."""
    if not isinstance(src, (str, os.PathLike)) or not isinstance(address.place, str):
        return
    source, target = local_path(os.fspath(src)), local_path(address.place)
    if source is None or target is None:
        same = os.fspath(src).rstrip("/") == address.place.rstrip("/")
    else:
        source, target = Path(source).resolve(), Path(target).resolve()
        same = source == target or source in target.parents or target in source.parents
    if same:
        raise ConfigError(f"dst={address} and src={os.fspath(src)} lie in each other")


def _choose_scheduler(
    scheduler: str | None,
    workers: int | None,
    address: StoreAddress,
    is_file: bool,
    target: Target,
) -> tuple[str, int | None]:
    """Return "threads", "processes" or an address, and how many tasks run at once."""
    from zarr.storage import MemoryStore

    place = address.place
    in_memory = isinstance(place, MemoryStore) or str(place).startswith("memory:")
    if scheduler is not None and "://" in scheduler:
        if not is_file or in_memory:
            which = "dst" if in_memory else "src"
            raise ConfigError(
                f"{which} is in the memory of this process, where the workers of "
                f"scheduler={scheduler!r} cannot reach it"
            )
        return scheduler, workers
    if scheduler not in (None, "threads", "processes"):
        raise ConfigError(
            f"scheduler={scheduler!r} is not 'threads', 'processes' or an address (tcp://...)"
        )
    if workers is None:
        # A GPU is shared badly by processes that know nothing of each other.
        workers = config.available_cpus() if config.resolve_device() == "cpu" else 1
        workers = min(workers, math.prod(target.grid_shape))
    if in_memory and scheduler == "processes":
        raise ConfigError(f"dst={address} is in memory: it needs scheduler='threads'")
    if scheduler is None:
        # Threads share one interpreter, which keeps them from being faster than one.
        scheduler = "threads" if in_memory or workers == 1 else "processes"
    return scheduler, workers


def _scan(destination: Destination, meter: Meter, finished: np.ndarray) -> int:
    """Count the chunks that are there; mark those that need not be looked at again."""

    def found(position: Position, chunks: Any, size_bytes: int) -> None:
        if not destination.compare:
            finished[position] = True
            meter.skip(position, chunks, size_bytes)

    return destination.scan(found)


def _tasks(
    target: Target, source_chunks: tuple[int, ...] | None, finished: np.ndarray
) -> Iterator[Task]:
    """Divide what is not finished into tasks that read the source as it is best read."""
    unit = target.object_shape
    extent = [1] * len(unit)
    if target.shards is None:
        extent = [-(-s // c) for s, c in zip(source_chunks or unit, unit, strict=True)]
        if target.params.effort < 5:
            extent[-1] = max(extent[-1], _TASK_VOXELS // math.prod(unit))
    object_bytes = math.prod(unit) * np.dtype(target.dtype).itemsize
    for block in blocks(target.grid_shape, extent, object_bytes, READ_BYTES):
        open_positions = np.argwhere(~finished[np.ix_(*block)])
        if len(open_positions):
            start = [part.start for part in block]
            yield Task(tuple(tuple(map(int, row)) for row in open_positions + start))


def _run(
    job: Job,
    tasks: Iterator[Task],
    scheduler: str,
    n_workers: int | None,
    volume: Volume,
) -> Iterator[Outcome]:
    array = None if job.source is not None else volume.array
    if scheduler == "threads":
        return run_threads(job, tasks, n_workers or 1, array)
    if scheduler == "processes":
        return run_processes(job, tasks, n_workers or 1, array)
    return run_distributed(job, tasks, scheduler, n_workers)


def _follow(meter: Meter, outcomes: Iterator[Outcome], report: Report | None) -> None:
    """Count outcomes as they come and show them, but not more often than can be seen."""
    meter.start()
    shown, is_shown = -math.inf, False
    for outcome in outcomes:
        meter.add(outcome)
        now = time.monotonic()
        is_shown = report is not None and now - shown >= _LEAST_REPORT_SECONDS
        if report is not None and is_shown:
            shown = now
            report(meter.progress())
    if report is not None and not is_shown:
        report(meter.progress())
