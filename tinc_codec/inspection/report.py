"""What `tinc_codec.inspect` returns: facts per chunk, and figures of the whole array from them."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from tinc_codec.bitstream.header import Header
from tinc_codec.bitstream.sections import Section
from tinc_codec.inspection.quality import PooledQuality, decibel_text, log10_span
from tinc_codec.volume.chunk import is_constant

_NO_MODELS = frozenset({Section.MASK, Section.CORRECTIONS})


@dataclass(frozen=True, slots=True)
class ChunkReport:
    """What the header of one stored chunk says.

    Attributes
    ----------
    coordinates : tuple of int
        Position in the grid of chunks; inside shards, in the grid of inner chunks.
    size_bytes : int
        Stored bytes, as the header declares them.
    header_bytes : int
        Of these, from the magic to the end of the section table.
    sections : mapping of str to int
        Bytes per section, by the name in `bitstream.sections.Section`, in the order of the stream.
    psnr : float
        In dB, with the chunk's own range of values as peak; inf where it is exact.
    max_error : float
        Largest absolute error, in the data's units.
    constant : bool
        Whether all finite voxels are equal, which needs no model, or none is finite.
    value_min, value_max : float
        Extremes of the finite valid voxels; NaN where none is finite.
    valid_voxels : int
        Voxels within the array and within the valid extent of the stream; 0 where none is finite.
    padding_voxels : int
        Voxels within the array that the stream keeps as padding, exactly; 0 where not finite.
    pad_value : float
        NaN where there is no padding.
    """

    coordinates: tuple[int, ...]
    size_bytes: int
    header_bytes: int
    sections: Mapping[str, int]
    psnr: float
    max_error: float
    constant: bool
    value_min: float
    value_max: float
    valid_voxels: int
    padding_voxels: int
    pad_value: float

    @property
    def models(self) -> tuple[str, ...]:
        """Names of the sections that are models of the voxels; none if constant."""
        return tuple(name for name in self.sections if Section[name.upper()] not in _NO_MODELS)

    def add_to(self, quality: PooledQuality) -> None:
        """Add the chunk's voxels within the array to the quality of a volume."""
        if self.valid_voxels:
            log_mse = -math.inf
            if not self.constant and self.psnr < math.inf:
                log_mse = 2 * log10_span(self.value_min, self.value_max) - self.psnr / 10
            quality.widen(self.value_min, self.value_max)
            quality.add(self.valid_voxels, log_mse)
        if self.padding_voxels:
            quality.widen(self.pad_value, self.pad_value)
            quality.add(self.padding_voxels, -math.inf)


@dataclass(frozen=True)
class InspectReport:
    """What the headers of all stored chunks say about an array.

    `str` of it is a small table. Everything is as the headers declare it: bodies and checksums
    are not read.

    Attributes
    ----------
    name : str
        Where the array is.
    shape, chunk_shape : tuple of int
        In voxels; with shards, `chunk_shape` is that of the inner chunks.
    shard_shape : tuple of int or None
    dtype : np.dtype
    codec : mapping
        Configuration of the codec as stored in the metadata; empty for a single stream.
    chunks : tuple of ChunkReport
        Of the stored chunks, in C order of their coordinates (with shards, shard by shard).
    extra_bytes : mapping of str to int
        Stored bytes beside the streams: shard indices, checksums that zarr appends.
    """

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    chunk_shape: tuple[int, ...]
    shard_shape: tuple[int, ...] | None
    codec: Mapping[str, Any]
    chunks: tuple[ChunkReport, ...]
    extra_bytes: Mapping[str, int]

    @property
    def grid_shape(self) -> tuple[int, ...]:
        """Chunks per axis."""
        return tuple(-(-n // c) for n, c in zip(self.shape, self.chunk_shape, strict=True))

    @property
    def n_missing(self) -> int:
        """Chunks that are not stored: never written, or all fill value and left out by zarr."""
        return math.prod(self.grid_shape) - len(self.chunks)

    @property
    def raw_bytes(self) -> int:
        """Bytes of the array's voxels in stored chunks, decoded; zarr's padding not counted."""
        voxels = sum(
            math.prod(bounds_within(chunk.coordinates, self.chunk_shape, self.shape))
            for chunk in self.chunks
        )
        return voxels * self.dtype.itemsize

    @property
    def part_bytes(self) -> dict[str, int]:
        """Stored bytes by part: header, every section by name, checksum, `extra_bytes`."""
        parts: Counter[str] = Counter({"header": 0})
        for chunk in self.chunks:
            parts["header"] += chunk.header_bytes
            parts.update(chunk.sections)
        parts["checksum"] = sum(chunk.size_bytes for chunk in self.chunks) - parts.total()
        return {**parts, **self.extra_bytes}

    @property
    def stored_bytes(self) -> int:
        """Bytes of all streams and of `extra_bytes`; metadata not counted."""
        return sum(self.part_bytes.values())

    @property
    def ratio(self) -> float:
        """`raw_bytes` over `stored_bytes`; NaN where nothing is stored."""
        return self.raw_bytes / self.stored_bytes if self.chunks else math.nan

    @property
    def chunk_ratio_min(self) -> float:
        """Smallest ratio of any chunk, its padding counted as raw: what `ratio=` promises.

        NaN where nothing is stored.
        """
        chunk_bytes = math.prod(self.chunk_shape) * self.dtype.itemsize
        return chunk_bytes / max((chunk.size_bytes for chunk in self.chunks), default=math.nan)

    @property
    def psnr(self) -> float:
        """PSNR in dB of all stored chunks as one volume, with the whole range of values as peak.

        That is `tinc_codec.metrics.psnr` of the array before and after, to the headers' float32
        and with these limits. Missing chunks are left out. Padding within the array counts as
        exact, which it is, and padding behind its end does not count. How many voxels of a chunk
        with a mask section are finite is not in its header: all of its valid extent is taken to
        be, so that its error weighs too much. inf where every chunk is exact, NaN where none has
        a finite voxel.
        """
        quality = PooledQuality()
        for chunk in self.chunks:
            chunk.add_to(quality)
        return quality.psnr

    @property
    def psnr_min(self) -> float:
        """PSNR of the worst chunk in dB, with its own range as peak; NaN where none is stored."""
        return min((chunk.psnr for chunk in self.chunks), default=math.nan)

    @property
    def psnr_median(self) -> float:
        """Median of the PSNR of chunks that are not constant, in dB; inf where all are."""
        found = [chunk.psnr for chunk in self.chunks if not chunk.constant]
        if found:
            return statistics.median(found)
        return math.inf if self.chunks else math.nan

    @property
    def max_error(self) -> float:
        """Largest absolute error of any stored chunk; NaN where none is stored."""
        return max((chunk.max_error for chunk in self.chunks), default=math.nan)

    def chunk_map(self, field: str = "psnr") -> np.ndarray:
        """Lay a numeric field of `ChunkReport` out on the grid of chunks.

        Parameters
        ----------
        field : str
            For example "psnr", "max_error" or "size_bytes".

        Returns
        -------
        ndarray of float64
            Shape `grid_shape`; NaN where no chunk is stored.
        """
        grid = np.full(self.grid_shape, np.nan)
        for chunk in self.chunks:
            grid[chunk.coordinates] = getattr(chunk, field)
        return grid

    def to_record(self, *, with_chunks: bool = False) -> dict[str, Any]:
        """Return all figures as a mapping for JSON.

        Parameters
        ----------
        with_chunks : bool
            Whether "chunks" lists a row per stored chunk.
        """
        record: dict[str, Any] = {
            "array": self.name,
            "shape": self.shape,
            "dtype": self.dtype.str,
            "chunk_shape": self.chunk_shape,
            "shard_shape": self.shard_shape,
            "codec": dict(self.codec),
            "n_chunks": math.prod(self.grid_shape),
            "n_missing": self.n_missing,
            "n_constant": sum(chunk.constant for chunk in self.chunks),
            "raw_bytes": self.raw_bytes,
            "stored_bytes": self.stored_bytes,
            "part_bytes": self.part_bytes,
            "ratio": self.ratio,
            "chunk_ratio_min": self.chunk_ratio_min,
            "psnr": self.psnr,
            "psnr_min": self.psnr_min,
            "psnr_median": self.psnr_median,
            "max_error": self.max_error,
        }
        if with_chunks:
            record["chunks"] = [{**asdict(chunk), "models": chunk.models} for chunk in self.chunks]
        return record

    def __str__(self) -> str:
        stored = self.stored_bytes
        n_constant = sum(chunk.constant for chunk in self.chunks)
        models = Counter(" + ".join(chunk.models) for chunk in self.chunks if chunk.models)
        settings = ", ".join(f"{name}={value!r}" for name, value in self.codec.items())
        shards = "" if self.shard_shape is None else f" in shards of {self.shard_shape}"
        rows = [
            ("array", f"{self.shape} {self.dtype.str}, chunks of {self.chunk_shape}{shards}"),
            ("codec", f"TINC({settings})" if settings else "one stream, settings unknown"),
            (
                "chunks",
                f"{len(self.chunks):,} stored, {self.n_missing:,} missing; {n_constant:,} constant"
                + "".join(f", {n:,} with {kinds}" for kinds, n in models.most_common()),
            ),
            ("bytes", f"{self.raw_bytes:,} raw, {stored:,} stored"),
            (
                "ratio",
                f"{self.ratio:.2f}; chunks, with their padding: {self.chunk_ratio_min:.2f} or more",
            ),
        ]
        for part, size_bytes in self.part_bytes.items():
            if size_bytes:
                rows.append((f"  {part}", f"{size_bytes:>15,}  {size_bytes / stored:6.1%}"))
        rows += [
            ("PSNR", decibel_text(self.psnr)),
            (
                "  by chunk",
                f"{decibel_text(self.psnr_min)} least, {decibel_text(self.psnr_median)} median",
            ),
            ("max error", f"{self.max_error:.6g}"),
        ]
        return "\n".join([self.name, *(f"{label:<16}{text}" for label, text in rows)])


def describe_chunk(
    header: Header,
    coordinates: tuple[int, ...],
    chunk_shape: tuple[int, ...],
    shape: tuple[int, ...],
) -> ChunkReport:
    """Make the row of a chunk from its header.

    Parameters
    ----------
    header : Header
        From `read_header_only`.
    coordinates, chunk_shape, shape : tuple of int
        Where the chunk is in which array.
    """
    layout, info = header.layout, header.info
    assert layout is not None
    bounds = bounds_within(coordinates, chunk_shape, shape)
    n_valid = math.prod(map(min, bounds, info.valid_extent))
    pad_value = math.nan if info.pad_value is None else float(info.pad_value)
    return ChunkReport(
        coordinates=coordinates,
        size_bytes=layout.total_bytes,
        header_bytes=layout.header_bytes,
        sections={Section(key).name.lower(): n for key, n in layout.section_bytes.items()},
        psnr=header.psnr,
        max_error=header.max_error,
        constant=is_constant(info),
        value_min=math.nan if info.value_min is None else float(info.value_min),
        value_max=math.nan if info.value_max is None else float(info.value_max),
        valid_voxels=0 if info.value_min is None else n_valid,
        padding_voxels=math.prod(bounds) - n_valid if math.isfinite(pad_value) else 0,
        pad_value=pad_value,
    )


def bounds_within(
    coordinates: tuple[int, ...], chunk_shape: tuple[int, ...], shape: tuple[int, ...]
) -> tuple[int, ...]:
    """Give how much of a chunk lies within the array, per axis."""
    return tuple(
        max(0, min(c, n - i * c)) for i, c, n in zip(coordinates, chunk_shape, shape, strict=True)
    )
