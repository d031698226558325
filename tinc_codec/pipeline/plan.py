"""`plan`: what a volume would become at several ratios, from a few chunks of it."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from tinc_codec import config
from tinc_codec.codec import decode_chunk, encode_chunk
from tinc_codec.errors import ConfigError, TargetError
from tinc_codec.inspection.quality import PooledQuality
from tinc_codec.params import EncodingParams
from tinc_codec.pipeline.comparison import compare
from tinc_codec.pipeline.sources import open_source
from tinc_codec.pipeline.target import Position, Target, choose_layout
from tinc_codec.pipeline.tasks import encode_voxels
from tinc_codec.pipeline.volumes import Volume

__all__ = ["RATIOS", "Plan", "PlanRow", "Sample", "plan"]

RATIOS = (16.0, 32.0, 64.0, 128.0, 256.0)
_MAX_PROBED = 64
_PROBE_EDGE = 32
_WARM_UP_EDGE = 16


@dataclass(frozen=True)
class Sample:
    """A chunk that is fitted.

    Attributes
    ----------
    coordinates : tuple of int
        In the grid of chunks.
    spread : float
        Standard deviation of the finite voxels in its middle, in the data's units.
    """

    coordinates: Position
    spread: float


@dataclass(frozen=True, kw_only=True)
class PlanRow:
    """What is expected at a ratio.

    Attributes
    ----------
    ratio : float
        Asked of every chunk.
    psnr : float
        Expected of the whole volume, in dB, with its range (as far as it was seen) as peak; inf
        where all samples come back exactly, NaN where no sample could be encoded.
    psnr_min : float
        Of the worst sample, with its own range as peak.
    max_error : float
        Largest of any sample, in the data's units; the volume's may be larger.
    encode_s : float
        Seconds to read and encode the volume with `Plan.workers` workers.
    size_bytes : float
        Of the result.
    refused : str or None
        Why a sample cannot be made so small; `tinc compress` would fail for such chunks.
    """

    ratio: float
    psnr: float = math.nan
    psnr_min: float = math.nan
    max_error: float = math.nan
    encode_s: float = math.nan
    size_bytes: float = math.nan
    refused: str | None = None


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a volume would become, ratio by ratio.

    Attributes
    ----------
    name : str
    shape, chunks : tuple of int
        Of the volume and of its chunks, in voxels.
    dtype : np.dtype
    n_chunks : int
    effort : int
    model : str
    workers : int
        That `encode_s` counts on.
    samples : tuple of Sample
        From the calmest to the busiest.
    rows : tuple of PlanRow
        One per ratio, in the order asked for.
    """

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    chunks: tuple[int, ...]
    n_chunks: int
    effort: int
    model: str
    workers: int
    samples: tuple[Sample, ...]
    rows: tuple[PlanRow, ...]

    @property
    def raw_bytes(self) -> int:
        """Bytes of the volume's voxels."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def basis(self) -> str:
        """How the estimate is made, in a few sentences."""
        workers = f"{self.workers} worker{'s' * (self.workers > 1)}"
        return (
            f"{len(self.samples)} of {self.n_chunks:,} chunks were fitted: up to {_MAX_PROBED}, "
            "spread evenly, were sorted by the standard deviation in their middle and cut into as "
            "many groups of one size; the middle one of each stands for its group. Their mean "
            "squared error, bytes and time per voxel are taken for the volume's. The time is that "
            f"of one thread, over {workers}; workers that share a memory bus take a little longer. "
            "The largest error of the whole volume may be above that of the samples."
        )

    def to_record(self) -> dict[str, Any]:
        """Return all of it as a mapping for JSON."""
        return {
            "name": self.name,
            "shape": self.shape,
            "dtype": self.dtype.str,
            "chunks": self.chunks,
            "n_chunks": self.n_chunks,
            "raw_bytes": self.raw_bytes,
            "effort": self.effort,
            "model": self.model,
            "workers": self.workers,
            "basis": self.basis,
            "samples": [{"chunk": s.coordinates, "spread": s.spread} for s in self.samples],
            "rows": [
                {
                    "ratio": row.ratio,
                    "psnr": row.psnr,
                    "psnr_min": row.psnr_min,
                    "max_error": row.max_error,
                    "encode_s": row.encode_s,
                    "size_bytes": row.size_bytes,
                    "refused": row.refused,
                }
                for row in self.rows
            ],
        }


def plan(
    src: Any,
    *,
    ratios: Sequence[float] = RATIOS,
    effort: int = 4,
    model: str = "auto",
    tile: int | None = None,
    chunks: int | Sequence[int] | None = None,
    samples: int = 4,
    workers: int | None = None,
    variable: str | None = None,
    on_start: Callable[[int], None] = lambda _: None,
    on_step: Callable[[], None] = lambda: None,
) -> Plan:
    """Fit a few chunks of a volume at several ratios, and say what the whole would become.

    Which chunks: up to 64, spread evenly over the volume, are looked at in their middle (32 voxels
    along each axis of space) and sorted by standard deviation. They are cut into as many groups of
    one size as there are samples, and the middle one of each group stands for it. The same volume
    gives the same samples.

    Parameters
    ----------
    src : str, path, array or Volume
        As for `tinc_codec.compress`. It is only read, and only where samples are.
    ratios : sequence of float
        Each over 1, up to 100,000.
    effort, model, tile
        As for `tinc_codec.TINC`.
    chunks : int, sequence of int, or None
        As for `tinc_codec.compress`.
    samples : int
        Chunks to fit, at least 1.
    workers : int, optional
        That the time is reckoned for; by default one per CPU.
    variable : str, optional
        Which array of `src` is meant, where there are several.
    on_start, on_step : callable
        Called with the number of fits, and after each.

    Returns
    -------
    Plan

    Raises
    ------
    ConfigError
        If an argument is out of range, or the source cannot be opened.
    UnsupportedDataError
        If the codec does not store such arrays.
    """
    if not ratios:
        raise ConfigError("ratios is empty")
    for field, value in (("samples", samples), ("workers", workers)):
        if value is not None and value < 1:
            raise ConfigError(f"{field}={value!r} is not an integer >= 1")
    settings = [
        EncodingParams(
            ratio=ratio, effort=effort, model=model, tile="auto" if tile is None else tile
        )
        for ratio in ratios
    ]
    volume = open_source(src, variable=variable)
    shape, dtype = tuple(volume.array.shape), np.dtype(volume.array.dtype)
    target = choose_layout(
        shape, dtype, settings[0], chunks=chunks, shards=None, levels=None, zarr_format=3
    )
    chosen, value_range = _choose_samples(volume, target, samples)
    workers = workers or config.available_cpus()
    on_start(len(chosen) * len(settings))
    fits: list[list[_Fit]] = [[] for _ in settings]
    with ExitStack() as stack:
        stack.enter_context(config.set(threads=1))
        for number, sample in enumerate(chosen):
            start = time.perf_counter()
            voxels = np.asarray(volume.array[target.chunk_box(sample.coordinates)])
            read_s = time.perf_counter() - start
            value_range = _wider(value_range, voxels)
            if number == 0:
                _warm_up(voxels, settings[0])
            for row, params in zip(fits, settings, strict=True):
                row.append(_fit(voxels, replace(target, params=params), read_s))
                on_step()
    n_chunks = math.prod(target.grid_shape)
    return Plan(
        name=volume.info.name,
        shape=shape,
        dtype=dtype,
        chunks=target.chunks,
        n_chunks=n_chunks,
        effort=effort,
        model=model,
        workers=workers,
        samples=tuple(chosen),
        rows=tuple(
            _extrapolate(params, row, math.prod(shape), min(workers, n_chunks), value_range)
            for params, row in zip(settings, fits, strict=True)
        ),
    )


@dataclass(frozen=True, kw_only=True)
class _Fit:
    """What became of a sample at a ratio."""

    n_voxels: int
    size_bytes: int = 0
    seconds: float = 0.0
    psnr: float = math.nan
    max_error: float = math.nan
    log_mse: float = -math.inf
    n_finite: int = 0
    refused: str | None = None


def _fit(voxels: np.ndarray, target: Target, read_s: float) -> _Fit:
    start = time.perf_counter()
    try:
        stream = encode_voxels(voxels, target)
    except TargetError as error:
        return _Fit(n_voxels=voxels.size, refused=str(error))
    seconds = read_s + time.perf_counter() - start
    decoded = decode_chunk(stream)[tuple(map(slice, voxels.shape))]
    found = compare(voxels, decoded, voxels.shape)
    return _Fit(
        n_voxels=voxels.size,
        size_bytes=len(stream),
        seconds=seconds,
        psnr=found.psnr,
        max_error=found.max_error,
        log_mse=found.log_mse,
        n_finite=found.n_finite,
    )


def _extrapolate(
    params: EncodingParams,
    fits: Sequence[_Fit],
    n_voxels: int,
    workers: int,
    value_range: tuple[float, float],
) -> PlanRow:
    """Take what the samples have per voxel for what the volume has."""
    assert params.ratio is not None
    refused = next((fit.refused for fit in fits if fit.refused is not None), None)
    made = [fit for fit in fits if fit.refused is None]
    if not made:
        return PlanRow(ratio=params.ratio, refused=refused)
    share = n_voxels / sum(fit.n_voxels for fit in made)
    quality = PooledQuality()
    quality.widen(*value_range)
    for fit in made:
        quality.add(fit.n_finite, fit.log_mse)
    return PlanRow(
        ratio=params.ratio,
        psnr=quality.psnr,
        psnr_min=min(fit.psnr for fit in made),
        max_error=max(fit.max_error for fit in made),
        encode_s=share * sum(fit.seconds for fit in made) / workers,
        size_bytes=share * sum(fit.size_bytes for fit in made),
        refused=refused,
    )


def _choose_samples(
    volume: Volume, target: Target, count: int
) -> tuple[list[Sample], tuple[float, float]]:
    """Choose the chunks to fit, and give the range of values that was seen on the way."""
    probed = []
    low, high = math.inf, -math.inf
    for coordinates in _spread_evenly(target.grid_shape):
        box = tuple(map(_middle, target.chunk_box(coordinates)))
        values = np.asarray(volume.array[box], dtype=np.float64)
        low, high = _wider((low, high), values)
        values = values[np.isfinite(values)]
        spread = 0.0
        if values.size:
            with np.errstate(over="ignore"):
                spread = float(values.std())
        probed.append(Sample(coordinates, spread))
    probed.sort(key=lambda sample: (sample.spread, sample.coordinates))
    count = min(count, len(probed))
    chosen = [probed[int((number + 0.5) * len(probed) / count)] for number in range(count)]
    return chosen, (low, high)


def _wider(value_range: tuple[float, float], voxels: np.ndarray) -> tuple[float, float]:
    """Widen a range by the finite values of some voxels."""
    low, high = value_range
    finite = voxels[np.isfinite(voxels)]
    if not finite.size:
        return value_range
    return min(low, float(finite.min())), max(high, float(finite.max()))


def _spread_evenly(grid_shape: tuple[int, ...]) -> Iterator[Position]:
    """Give up to 64 positions of a grid, as evenly spread over all axes as their number allows."""
    counts = [1] * len(grid_shape)
    while True:
        # The axis along which the positions are furthest apart gets one more.
        growing = [axis for axis, n in enumerate(grid_shape) if counts[axis] < n]
        growing = [
            a for a in growing if math.prod(counts) // counts[a] * (counts[a] + 1) <= _MAX_PROBED
        ]
        if not growing:
            break
        counts[max(growing, key=lambda axis: grid_shape[axis] / counts[axis])] += 1
    places = [
        [int((number + 0.5) * n / count) for number in range(count)]
        for n, count in zip(grid_shape, counts, strict=True)
    ]
    return itertools.product(*places)


def _middle(part: slice) -> slice:
    size = min(_PROBE_EDGE, part.stop - part.start)
    start = part.start + (part.stop - part.start - size) // 2
    return slice(start, start + size)


def _warm_up(voxels: np.ndarray, params: EncodingParams) -> None:
    """Load libraries and compile kernels before time is measured."""
    corner = voxels[tuple(slice(0, _WARM_UP_EDGE) for _ in voxels.shape)]
    wave = np.sin(np.arange(corner.size)).reshape(corner.shape)
    small = (100 + 20 * wave).astype(voxels.dtype)
    # Trees of the higher efforts take minutes, beside which nothing of this shows.
    model, effort = ("tree", 0) if params.model == "tree" else ("features", min(params.effort, 6))
    models = {"auto": [model, "lattice"], "lattice": ["lattice"]}.get(params.model, [model])
    for name in models:
        decode_chunk(encode_chunk(small, EncodingParams(ratio=2, effort=effort, model=name)))
