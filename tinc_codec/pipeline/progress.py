"""How far a run is: what it counts, what it reports in the end, and how that is shown."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from tinc_codec.inspection.quality import PooledQuality, decibel_text
from tinc_codec.inspection.report import ChunkReport
from tinc_codec.pipeline.target import Position, Target
from tinc_codec.pipeline.tasks import Outcome

__all__ = ["Failure", "Meter", "Progress", "Report", "Summary", "show_progress"]

_MOST_LISTED = 1000
_PLAIN_SECONDS = 10.0


@dataclass(frozen=True)
class Failure:
    """A chunk, or a shard where there are shards, that is not there.

    Attributes
    ----------
    position : tuple of int
        In the grid of chunks (shards).
    reason : str
    """

    position: Position
    reason: str


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a run is. Chunks are shards where there are shards.

    Attributes
    ----------
    n_chunks : int
        Of the whole array.
    n_done, n_skipped, n_failed : int
        Made by this run; found whole; failed in this run.
    n_voxels, n_finished_voxels : int
        Of the whole array, and of chunks that are done or skipped.
    raw_bytes, stored_bytes : int
        Of chunks that are done or skipped, decoded (within the array) and as stored.
    psnr : float
        In dB, of these chunks as one volume; NaN before the first, inf where they are exact.
    max_error : float
        Of these chunks; NaN before the first.
    seconds : float
        Since the first chunk of this run was begun.
    voxels_per_second : float
        Made by this run; NaN before the first.
    remaining_seconds : float
        Expected; NaN before the first.
    """

    n_chunks: int
    n_done: int
    n_skipped: int
    n_failed: int
    n_voxels: int
    n_finished_voxels: int
    raw_bytes: int
    stored_bytes: int
    psnr: float
    max_error: float
    seconds: float
    voxels_per_second: float
    remaining_seconds: float

    @property
    def ratio(self) -> float:
        """`raw_bytes` over `stored_bytes`; NaN before the first chunk."""
        return self.raw_bytes / self.stored_bytes if self.stored_bytes else math.nan


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What a run has done. Chunks are shards where there are shards.

    Attributes
    ----------
    source, destination : str
    shape, chunks : tuple of int
    shards : tuple of int or None
    dtype : str
    complete : bool
        Every chunk is there.
    n_chunks, n_done, n_skipped, n_failed : int
        Of the whole array; made by this run; found whole; failed.
    n_damaged : int
        Of those made by this run, how many were there but damaged.
    failures : tuple of Failure
        The first thousand.
    raw_bytes, stored_bytes : int
        Of all chunks that are there, decoded (within the array) and as stored.
    psnr : float
        In dB, of all chunks that are there as one volume, its range of values as peak; from the
        chunks' headers. inf where they are exact, NaN where there is none.
    psnr_min : float
        Of the worst chunk, its own range as peak.
    max_error : float
        In the data's units.
    seconds : float
        From the first look at the source to the end.
    encode_seconds : float
        Within the codec, over all workers.
    worker_deaths : int
        Processes of this run that ended unexpectedly and were replaced.
    """

    source: str
    destination: str
    shape: tuple[int, ...]
    chunks: tuple[int, ...]
    shards: tuple[int, ...] | None
    dtype: str
    complete: bool
    n_chunks: int
    n_done: int
    n_skipped: int
    n_failed: int
    n_damaged: int
    failures: tuple[Failure, ...]
    raw_bytes: int
    stored_bytes: int
    psnr: float
    psnr_min: float
    max_error: float
    seconds: float
    encode_seconds: float
    worker_deaths: int

    @property
    def ratio(self) -> float:
        """`raw_bytes` over `stored_bytes`; NaN where nothing is stored."""
        return self.raw_bytes / self.stored_bytes if self.stored_bytes else math.nan

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values, for JSON."""
        return {**asdict(self), "ratio": self.ratio}


class Meter:
    """Adds up what becomes of the chunks of an array.

    Parameters
    ----------
    target : Target
    """

    def __init__(self, target: Target) -> None:
        self._target = target
        self._n_chunks = math.prod(target.grid_shape)
        self._n_voxels = math.prod(target.shape)
        self._started = time.monotonic()
        self._itemsize = target.chunk_bytes // math.prod(target.chunks)
        self.n_done = self.n_skipped = self.n_failed = self.worker_deaths = 0
        self.failures: list[Failure] = []
        self._finished_voxels = self._made_voxels = self._failed_voxels = 0
        self.stored_bytes = 0
        self.encode_seconds = 0.0
        self._quality = PooledQuality()
        self.psnr_min = self.max_error = math.nan

    def start(self) -> None:
        """Begin to measure the time."""
        self._started = time.monotonic()

    def skip(self, position: Position, chunks: tuple[ChunkReport, ...], size_bytes: int) -> None:
        """Count a chunk that is there."""
        self.n_skipped += 1
        self._count(position, chunks, size_bytes)

    def add(self, outcome: Outcome) -> None:
        """Count what became of a chunk."""
        self.worker_deaths += outcome.worker_deaths
        self.encode_seconds += outcome.encode_seconds
        if outcome.status == "failed":
            self.n_failed += 1
            self._failed_voxels += self._target.n_voxels(outcome.position)
            if len(self.failures) < _MOST_LISTED:
                self.failures.append(Failure(outcome.position, outcome.reason or "unknown"))
            return
        if outcome.status == "found":
            self.n_skipped += 1
        else:
            self.n_done += 1
            self._made_voxels += self._target.n_voxels(outcome.position)
        self._count(outcome.position, outcome.chunks, outcome.size_bytes)

    def _count(self, position: Position, chunks: tuple[ChunkReport, ...], size_bytes: int) -> None:
        self._finished_voxels += self._target.n_voxels(position)
        self.stored_bytes += size_bytes
        for chunk in chunks:
            chunk.add_to(self._quality)
            if not math.isnan(chunk.psnr):
                self.psnr_min = min(chunk.psnr, _or(self.psnr_min, math.inf))
                self.max_error = max(chunk.max_error, _or(self.max_error, 0.0))

    @property
    def psnr(self) -> float:
        """PSNR in dB of what is there, as one volume."""
        return self._quality.psnr

    @property
    def raw_bytes(self) -> int:
        """Bytes of what is there, decoded."""
        return self._finished_voxels * self._itemsize

    def progress(self) -> Progress:
        """Return how far the run is now."""
        seconds = time.monotonic() - self._started
        rate = self._made_voxels / seconds if self._made_voxels and seconds else math.nan
        left = self._n_voxels - self._finished_voxels - self._failed_voxels
        return Progress(
            n_chunks=self._n_chunks,
            n_done=self.n_done,
            n_skipped=self.n_skipped,
            n_failed=self.n_failed,
            n_voxels=self._n_voxels,
            n_finished_voxels=self._finished_voxels,
            raw_bytes=self.raw_bytes,
            stored_bytes=self.stored_bytes,
            psnr=self.psnr,
            max_error=self.max_error,
            seconds=seconds,
            voxels_per_second=rate,
            remaining_seconds=left / rate if left else 0.0,
        )

    def summary(self, *, source: str, destination: str, n_damaged: int, seconds: float) -> Summary:
        """Return what the run has done, with what is not counted here; see `Summary`."""
        target = self._target
        return Summary(
            source=source,
            destination=destination,
            shape=target.shape,
            chunks=target.chunks,
            shards=target.shards,
            dtype=np.dtype(target.dtype).name,
            complete=self.n_failed == 0,
            n_chunks=self._n_chunks,
            n_done=self.n_done,
            n_skipped=self.n_skipped,
            n_failed=self.n_failed,
            n_damaged=n_damaged,
            failures=tuple(self.failures),
            raw_bytes=self.raw_bytes,
            stored_bytes=self.stored_bytes,
            psnr=self.psnr,
            psnr_min=self.psnr_min,
            max_error=self.max_error,
            seconds=seconds,
            encode_seconds=self.encode_seconds,
            worker_deaths=self.worker_deaths,
        )


def _or(value: float, default: float) -> float:
    return default if math.isnan(value) else value


Report = Callable[[Progress], None]


@contextmanager
def show_progress() -> Iterator[Report]:
    """Show progress on standard error: a bar on a terminal, else a line every ten seconds.

    Yields
    ------
    callable
        Takes a `Progress`.
    """
    from rich.console import Console

    console = Console(stderr=True)
    if console.is_terminal:
        with _bar(console) as report:
            yield report
        return
    last = -math.inf

    def line(progress: Progress) -> None:
        nonlocal last
        now = time.monotonic()
        finished = progress.n_done + progress.n_skipped + progress.n_failed == progress.n_chunks
        if finished or now - last >= _PLAIN_SECONDS:
            last = now
            console.print(_text(progress), markup=False, highlight=False, soft_wrap=True)

    yield line


@contextmanager
def _bar(console: Any) -> Iterator[Report]:
    from rich.progress import BarColumn, TaskProgressColumn, TextColumn
    from rich.progress import Progress as Display

    columns = (BarColumn(bar_width=30), TaskProgressColumn(), TextColumn("{task.description}"))
    with Display(*columns, console=console) as display:
        bar = display.add_task("starting", total=None)

        def report(progress: Progress) -> None:
            finished = progress.n_finished_voxels
            display.update(
                bar, total=progress.n_voxels, completed=finished, description=_text(progress)
            )

        yield report


def _text(progress: Progress) -> str:
    parts = [f"{progress.n_done + progress.n_skipped:,}/{progress.n_chunks:,}"]
    if progress.n_failed:
        parts.append(f"{progress.n_failed:,} failed")
    if not math.isnan(progress.voxels_per_second):
        parts.append(f"{progress.voxels_per_second / 1e6:.2f} Mvoxel/s")
    if progress.stored_bytes:
        parts.append(f"ratio {progress.ratio:.1f}")
    if not math.isnan(progress.psnr):
        exact = "" if progress.psnr == math.inf else "PSNR "
        parts.append(f"{exact}{decibel_text(progress.psnr)}")
    if not math.isnan(progress.remaining_seconds):
        parts.append(f"{_duration(progress.remaining_seconds)} left")
    return "  ".join(parts)


def _duration(seconds: float) -> str:
    whole = round(seconds)
    hours, minutes = whole // 3600, whole // 60 % 60
    return f"{hours}:{minutes:02}:{whole % 60:02}" if hours else f"{minutes}:{whole % 60:02}"
