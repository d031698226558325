"""`write_report`: measure, draw, and write the page."""

from __future__ import annotations

import datetime
import importlib.metadata
import math
import os
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tinc_codec.errors import ConfigError, FormatError
from tinc_codec.inspection.access import open_stored
from tinc_codec.inspection.reader import inspect
from tinc_codec.pipeline.checks import ChunkCheck
from tinc_codec.pipeline.comparison import ErrorBins
from tinc_codec.pipeline.sources import open_source
from tinc_codec.pipeline.sources.extras import import_extra
from tinc_codec.pipeline.verification import Verification
from tinc_codec.pipeline.verify import verify
from tinc_codec.pipeline.volumes import LazyArray, Volume
from tinc_codec.report import figures
from tinc_codec.report.comparison import PeerReport, compare_peers
from tinc_codec.report.elements import Figure
from tinc_codec.report.page import PageContent, render_page
from tinc_codec.report.planes import Plane, ReadableArray, read_planes
from tinc_codec.report.wording import decibel_text

__all__ = ["write_report"]

_N_BINS = 201
# Parts of the voxels that the grey scale leaves out at each end, and the difference's scale.
_CLIPPED, _CLIPPED_DIFFERENCE = 0.5, 99.5

Step = Callable[[str, int], None]


def write_report(
    src: Any,
    dst: Any,
    path: str | os.PathLike[str] = "report.html",
    *,
    variable: str | None = None,
    workers: int | None = None,
    peers: bool = True,
    storage_options: dict[str, Any] | None = None,
    on_stage: Step = lambda _stage, _total: None,
    on_step: Callable[[], None] = lambda: None,
) -> Verification:
    """Write a page that shows what compression did to a volume.

    Everything is decoded and compared, as `tinc_codec.verify` does; memory stays within a few
    chunks per worker and a few planes.

    Parameters
    ----------
    src, dst, variable, workers, storage_options
        As for `tinc_codec.verify`.
    path : str or path
        The HTML file; one that is there is replaced.
    peers : bool
        Whether other codecs, where they are installed, encode one chunk for comparison. That takes
        up to a minute or two.
    on_stage : callable
        Called with the name of each stage and the number of its steps.
    on_step : callable
        Called after each step.

    Returns
    -------
    Verification
        Whether every promise is kept. The page is written either way.

    Raises
    ------
    ConfigError
        If matplotlib is not installed, or as `tinc_codec.verify`.
    UnsupportedDataError
        As `tinc_codec.verify`.
    OSError
        If the page cannot be written.
    """
    import_extra("matplotlib", "report")
    path = Path(path)
    if not path.parent.is_dir():
        raise ConfigError(f"{path}: there is no folder {path.parent}")
    volume = open_source(src, variable=variable)
    array = open_stored(dst, storage_options)
    found = verify(
        volume,
        array,
        workers=workers,
        bins=_error_bins(array, volume.array),
        on_start=lambda total: on_stage("decoding and comparing", total),
        on_chunk=lambda _: on_step(),
    )
    content = _gather(src, volume, array, found, peers, on_stage, on_step)
    # A reader of an older page must not find half a new one.
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        draft.write_text(render_page(content), encoding="utf-8")
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
    return found


def _gather(
    src: Any,
    volume: Volume,
    array: Any,
    found: Verification,
    peers: bool,
    on_stage: Step,
    on_step: Callable[[], None],
) -> PageContent:
    info = volume.info
    unit = info.attributes.get("units")
    unit = unit if isinstance(unit, str) else ""
    compared = None
    if peers and found.chunks:
        compared = compare_peers(
            found,
            volume.array,
            on_start=lambda total: on_stage("other codecs", total),
            on_step=on_step,
        )
    on_stage("drawing", 1)
    worst = _worst_chunk(found)
    planes: list[Figure] = []
    worst_planes: list[Figure] = []
    if found.chunks and len(found.shape) > 1:
        readable = ReadableArray(array, found.chunk_shape)
        planes = _plane_figures(volume, readable, None, unit)
        if worst is not None and math.prod(found.grid_shape) > 1:
            box = tuple(
                slice(i * c, min((i + 1) * c, n))
                for i, c, n in zip(worst.coordinates, found.chunk_shape, found.shape, strict=True)
            )
            worst_planes = _plane_figures(volume, readable, box, unit)
    content = PageContent(
        source=src if isinstance(src, str) else _name_of(src, info.name),
        info=info,
        found=found,
        planes=planes,
        worst_planes=worst_planes,
        worst=worst,
        histogram=_histogram(found, unit),
        chunk_map=_chunk_map(found, info.axes),
        peers=compared,
        peers_plot=None if compared is None else _peers_plot(compared),
        peers_note=(
            "Every chunk is constant, exact or damaged: there is nothing to compare."
            if peers
            else "Not asked for."
        ),
        made=_made(),
    )
    on_step()
    return content


def _name_of(src: Any, name: str) -> str:
    return os.fspath(src) if isinstance(src, os.PathLike) else f"{name} (in memory)"


def _error_bins(array: Any, source: LazyArray) -> ErrorBins:
    """Choose bins that reach to the largest error that any header states."""
    try:
        reach = inspect(array).max_error
    except FormatError:
        reach = math.nan
    if not math.isfinite(reach):
        # Not known before all is decoded: errors beyond count in the outermost bins.
        middle = tuple(slice(n // 2, n // 2 + 1) for n in source.shape[:-2])
        plane = np.asarray(source[(*middle, *map(slice, source.shape[-2:]))], np.float64)
        plane = plane[np.isfinite(plane)]
        reach = float(np.ptp(plane)) / 4 if plane.size else 0.0
    if np.dtype(array.dtype).kind in "iu":
        # Bins of whole units, one around 0.
        width = max(1, math.ceil(reach / (_N_BINS // 2)))
        per_side = max(1, math.ceil(reach / width))
        edge = width * (per_side + 0.5)
        return ErrorBins(low=-edge, high=edge, n_bins=2 * per_side + 1)
    reach = reach or 1.0
    return ErrorBins(low=-reach, high=reach, n_bins=_N_BINS)


def _worst_chunk(found: Verification) -> ChunkCheck | None:
    readable = [chunk for chunk in found.chunks if chunk.psnr < math.inf]
    return min(readable, key=lambda chunk: (chunk.psnr, chunk.coordinates), default=None)


def _plane_figures(
    volume: Volume, compressed: LazyArray, box: tuple[slice, ...] | None, unit: str
) -> list[Figure]:
    info = volume.info
    planes = read_planes(volume.array, compressed, info.axes, info.scale, box)
    limits = _limits(planes)
    reach = _reach(planes)
    drawn = []
    for plane in planes:
        figure = figures.planes_figure(plane, limits, reach, unit)
        where = f"{plane.axis} = {plane.place}" if plane.axis else "the whole image"
        step = f", every {plane.step}th voxel" if plane.step > 1 else ""
        drawn.append(
            Figure(
                figures.data_uri(figure, "png"),
                f"Plane {where}, three pictures: before, after, and the difference.",
                f"{where}; {plane.rows} from top to bottom, {plane.columns} from left to "
                f"right{step}.",
            )
        )
    return drawn


def _limits(planes: list[Plane]) -> tuple[float, float]:
    values = np.concatenate([plane.before[np.isfinite(plane.before)] for plane in planes])
    if not values.size:
        return 0.0, 1.0
    low, high = map(float, np.percentile(values, [_CLIPPED, 100 - _CLIPPED]))
    if low == high:
        low, high = float(values.min()), float(values.max())
    return (low, high) if low < high else (low - 0.5, high + 0.5)


def _reach(planes: list[Plane]) -> float:
    """Choose the end of the difference's scale, the same for all planes."""
    differences = [np.abs(plane.difference).ravel() for plane in planes]
    values = np.concatenate(differences)
    values = values[np.isfinite(values) & (values > 0)]
    return float(np.percentile(values, _CLIPPED_DIFFERENCE)) if values.size else 1.0


def _histogram(found: Verification, unit: str) -> Figure | None:
    if found.bins is None or found.error_counts is None or not found.error_counts.any():
        return None
    figure = figures.histogram_figure(found.bins, found.error_counts, unit)
    n = int(found.error_counts.sum())
    centre = int(found.error_counts[found.bins.n_bins // 2])
    width = (found.bins.high - found.bins.low) / found.bins.n_bins
    what = "exact" if width == 1 and found.dtype.kind in "iu" else f"within {width / 2:.3g}"
    return Figure(
        figures.data_uri(figure, "svg"),
        "Histogram of the errors of all voxels, counts on a logarithmic axis.",
        f"All {n:,} finite voxels in bins of {width:.3g}; {centre / n:.1%} are {what}.",
    )


def _chunk_map(found: Verification, axes: tuple[str, ...]) -> Figure | None:
    if math.prod(found.grid_shape) < 2 or not found.chunks:
        return None
    grid = found.chunk_map()
    lead = max(0, grid.ndim - 3)
    # What cannot be read is NaN, and shows through whatever is in front of it.
    grid = np.minimum.reduce(grid.reshape(-1, *grid.shape[lead:]), axis=0)
    figure = figures.chunk_map_figure(grid, axes[lead:], "PSNR in dB")
    worst, median = decibel_text(found.psnr_min), decibel_text(found.psnr_median)
    return Figure(
        figures.data_uri(figure, "png"),
        f"Maps of the PSNR of the chunks, seen along each axis: worst {worst}, median {median}.",
        "Each cell is the worst of the chunks behind it along the axis named; those that are exact "
        "have the brightest colour, damaged ones are grey.",
        width=min(1.0, figure.get_figwidth() / figures.PAGE_WIDTH),
    )


def _peers_plot(compared: PeerReport) -> Figure:
    drawn = [curve for curve in compared.curves if curve.points]
    ratio = compared.raw_bytes / compared.asked_bytes
    figure = figures.peers_figure(drawn, compared.raw_bytes, ratio)
    return Figure(
        figures.data_uri(figure, "svg"),
        f"PSNR against ratio for {', '.join(curve.name for curve in drawn)}.",
        f"The same voxels at other sizes. TINC's other points: effort {compared.effort}. "
        "The dashed line is the size of the table.",
    )


def _made() -> str:
    version = importlib.metadata.version("tinc_codec")
    today = datetime.date.today().isoformat()
    return (
        f"Made on {today} by tinc_codec {version}, Python {platform.python_version()}, "
        f"NumPy {np.__version__}. This page needs no other file and no connection."
    )
