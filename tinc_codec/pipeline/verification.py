"""What `verify` returns: a row per chunk, and figures of the whole volume from them."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from tinc_codec.inspection.quality import PooledQuality
from tinc_codec.pipeline.checks import Breach, ChunkCheck
from tinc_codec.pipeline.comparison import ErrorBins

__all__ = ["PromiseSummary", "Verification"]


@dataclass(frozen=True)
class PromiseSummary:
    """How a promise of the codec's settings fared.

    Attributes
    ----------
    bound : float
        What is promised of every chunk.
    worst : float
        The worst chunk's; NaN where no chunk could be read.
    n_broken : int
        Chunks that break it.
    """

    bound: float
    worst: float
    n_broken: int


@dataclass(frozen=True, eq=False)
class Verification:
    """What became of a volume: every chunk decoded and compared with its source.

    Attributes
    ----------
    name : str
        Where the compressed array is.
    shape, chunk_shape : tuple of int
        In voxels; with shards, `chunk_shape` is that of the inner chunks.
    shard_shape : tuple of int or None
    dtype : np.dtype
    codec : mapping
        The codec's settings, as stored.
    chunks : tuple of ChunkCheck
        One per chunk of the array, stored or not, in C order (with shards, shard by shard). Empty
        where shape or dtype differ.
    array_breaches : tuple of Breach
        Of the array as a whole: "shape" and "dtype".
    extra_bytes : mapping of str to int
        Stored beside the streams: indices of shards, checksums that zarr appends.
    bins : ErrorBins or None
        As given to `verify`.
    error_counts : ndarray of int64 or None
        One per bin.
    """

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    chunk_shape: tuple[int, ...]
    shard_shape: tuple[int, ...] | None
    codec: Mapping[str, Any]
    chunks: tuple[ChunkCheck, ...]
    array_breaches: tuple[Breach, ...]
    extra_bytes: Mapping[str, int]
    bins: ErrorBins | None = None
    error_counts: np.ndarray | None = None

    @property
    def breaches(self) -> tuple[Breach, ...]:
        """Every promise that is broken: of the array, then of the chunks in their order."""
        of_chunks = (breach for chunk in self.chunks for breach in chunk.breaches)
        return (*self.array_breaches, *of_chunks)

    @property
    def ok(self) -> bool:
        """Whether everything that was promised is true."""
        return not self.breaches

    @property
    def broken_chunks(self) -> tuple[tuple[int, ...], ...]:
        """Coordinates of the chunks that break a promise."""
        return tuple(chunk.coordinates for chunk in self.chunks if chunk.breaches)

    @property
    def grid_shape(self) -> tuple[int, ...]:
        """Chunks per axis."""
        return tuple(-(-n // c) for n, c in zip(self.shape, self.chunk_shape, strict=True))

    @property
    def n_missing(self) -> int:
        """Chunks that are not stored and read as the fill value."""
        return sum(not chunk.size_bytes for chunk in self.chunks)

    @property
    def raw_bytes(self) -> int:
        """Bytes of the array's voxels."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def stored_bytes(self) -> int:
        """Bytes of all streams and what is stored beside them; metadata not counted."""
        return sum(chunk.size_bytes for chunk in self.chunks) + sum(self.extra_bytes.values())

    @property
    def part_bytes(self) -> dict[str, int]:
        """Stored bytes by part: header, every section by name, checksum, `extra_bytes`."""
        parts: Counter[str] = Counter()
        for chunk in self.chunks:
            parts.update(chunk.parts or {"damaged": chunk.size_bytes})
        return {name: n for name, n in {**parts, **self.extra_bytes}.items() if n}

    @property
    def ratio(self) -> float:
        """`raw_bytes` over `stored_bytes`; NaN where nothing is stored."""
        return self.raw_bytes / self.stored_bytes if self.stored_bytes else math.nan

    @property
    def value_range(self) -> tuple[float, float]:
        """Extremes of the finite voxels of the source; NaN where there is none."""
        found = [chunk for chunk in self.chunks if chunk.n_finite]
        if not found:
            return math.nan, math.nan
        return min(chunk.value_min for chunk in found), max(chunk.value_max for chunk in found)

    @property
    def psnr(self) -> float:
        """PSNR in dB of all chunks that can be read, with the whole range of values as peak.

        inf where all are exact, NaN where there is no finite voxel.
        """
        quality = PooledQuality()
        quality.widen(*self.value_range)
        for chunk in self.chunks:
            quality.add(chunk.n_finite, chunk.log_mse)
        return quality.psnr

    @property
    def psnr_min(self) -> float:
        """PSNR of the worst chunk in dB, with its own range as peak; NaN where none can be read."""
        return min((c.psnr for c in self.chunks if not math.isnan(c.psnr)), default=math.nan)

    @property
    def psnr_median(self) -> float:
        """Median over the chunks that are not exact, in dB; inf where all are."""
        found = [chunk.psnr for chunk in self.chunks if not math.isnan(chunk.psnr)]
        inexact = [psnr for psnr in found if psnr < math.inf]
        return statistics.median(inexact) if inexact else math.inf if found else math.nan

    @property
    def max_error(self) -> float:
        """Largest absolute error of a finite voxel; NaN where no chunk can be read."""
        found = [chunk.max_error for chunk in self.chunks if not math.isnan(chunk.max_error)]
        return max(found, default=math.nan)

    @property
    def promises(self) -> dict[str, PromiseSummary]:
        """How what the codec's settings promise fared, by name: one of ratio, psnr, max_error."""
        broken = Counter(breach.promise for breach in self.breaches)
        raw = math.prod(self.chunk_shape) * self.dtype.itemsize
        largest = max((chunk.size_bytes for chunk in self.chunks), default=0)
        worst = {
            "ratio": raw / largest if largest else math.nan,
            "psnr": self.psnr_min,
            "max_error": self.max_error,
        }
        return {
            name: PromiseSummary(float(self.codec[name]), worst[name], broken[name])
            for name in worst
            if name in self.codec
        }

    def chunk_map(self, field: str = "psnr") -> np.ndarray:
        """Lay a numeric field of `ChunkCheck` out on the grid of chunks.

        Returns
        -------
        ndarray of float64
            Shape `grid_shape`.
        """
        grid = np.full(self.grid_shape, np.nan)
        for chunk in self.chunks:
            grid[chunk.coordinates] = getattr(chunk, field)
        return grid

    def to_record(self) -> dict[str, Any]:
        """Return the figures and every breach as a mapping for JSON."""
        return {
            "ok": self.ok,
            "array": self.name,
            "shape": self.shape,
            "dtype": self.dtype.str,
            "chunk_shape": self.chunk_shape,
            "shard_shape": self.shard_shape,
            "codec": dict(self.codec),
            "n_chunks": len(self.chunks),
            "n_missing": self.n_missing,
            "n_broken": len(self.broken_chunks),
            "raw_bytes": self.raw_bytes,
            "stored_bytes": self.stored_bytes,
            "ratio": self.ratio,
            "psnr": self.psnr,
            "psnr_min": self.psnr_min,
            "psnr_median": self.psnr_median,
            "max_error": self.max_error,
            "promises": {
                name: {"bound": p.bound, "worst": p.worst, "n_broken": p.n_broken}
                for name, p in self.promises.items()
            },
            "breaches": [
                {
                    "chunk": breach.coordinates,
                    "promise": breach.promise,
                    "value": breach.value,
                    "bound": breach.bound,
                    "text": breach.text,
                }
                for breach in self.breaches
            ],
        }
