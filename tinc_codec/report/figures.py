"""Figures of a report and of a plan, drawn with matplotlib without a screen."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tinc_codec.errors import ConfigError
from tinc_codec.pipeline.sources.extras import import_extra

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from tinc_codec.pipeline.comparison import ErrorBins
    from tinc_codec.pipeline.plan import Plan
    from tinc_codec.report.comparison import Curve
    from tinc_codec.report.planes import Plane

__all__ = [
    "PAGE_WIDTH",
    "chunk_map_figure",
    "data_uri",
    "histogram_figure",
    "peers_figure",
    "plan_figure",
    "planes_figure",
    "save_figure",
]

_INK, _FAINT, _ACCENT, _WARN = "#1c2733", "#8a97a6", "#14679e", "#b3431e"
_STYLE = {
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.edgecolor": _FAINT,
    "axes.labelcolor": _INK,
    "axes.titlecolor": _INK,
    "axes.titlesize": 10,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "grid.color": "#e3e8ee",
    "text.color": _INK,
    "figure.facecolor": "white",
    # Text stays text, and the same figure gives the same bytes.
    "svg.fonttype": "none",
    "svg.hashsalt": "tinc_codec",
}
PAGE_WIDTH = 10.0
"""Of a figure that takes the whole width of a page, in inches."""
_DPI = 150
# Told apart by their shapes as well as by their colours (Okabe and Ito).
_SERIES = (
    ("#d55e00", "s"), ("#009e73", "^"), ("#cc79a7", "v"),
    ("#e69f00", "D"), ("#56b4e9", "P"), ("#7a7a7a", "X"),
)  # fmt: skip


def data_uri(figure: Figure, kind: str) -> str:
    """Draw a figure as "png" or "svg" and give it as a data URI."""
    out = io.BytesIO()
    with _styled():
        metadata = {"Date": None} if kind == "svg" else {}
        figure.savefig(out, format=kind, dpi=_DPI, metadata=metadata)
    media = "image/svg+xml" if kind == "svg" else f"image/{kind}"
    return f"data:{media};base64,{base64.b64encode(out.getvalue()).decode()}"


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure in the format that the suffix names.

    Raises
    ------
    ConfigError
        If the suffix is none that matplotlib writes.
    """
    known = figure.canvas.get_supported_filetypes()
    if path.suffix.lstrip(".").lower() not in known:
        raise ConfigError(f"{path}: the suffix is not one of {', '.join(sorted(known))}")
    with _styled():
        figure.savefig(path, dpi=_DPI)


def planes_figure(
    plane: Plane, limits: tuple[float, float], difference_limit: float, unit: str
) -> Figure:
    """Draw a plane before, after, and the difference.

    Parameters
    ----------
    plane : Plane
    limits : tuple of float
        Values that are drawn black and white.
    difference_limit : float
        Difference at the ends of its scale; what is beyond is drawn as the end.
    unit : str
        Of the values, "" where it is not known.
    """
    height, width = plane.before.shape
    shape = height * plane.aspect / width
    # Three panels and two scales; a tall plane is drawn narrower.
    panel = 2.75
    with _figure(PAGE_WIDTH, min(5.5, max(1.2, panel * shape)) + 0.35, "compressed") as figure:
        axes = figure.subplots(1, 3)
        grey = {"cmap": "gray", "vmin": limits[0], "vmax": limits[1]}
        reach = {"cmap": "RdBu_r", "vmin": -difference_limit, "vmax": difference_limit}
        for ax, title, values, scale in zip(
            axes,
            ("before", "after", "after − before"),
            (plane.before, plane.after, plane.difference),
            (grey, grey, reach),
            strict=True,
        ):
            image = ax.imshow(values, aspect=plane.aspect, interpolation="nearest", **scale)
            ax.set_title(title, loc="left")
            ax.set_xticks([])
            ax.set_yticks([])
            ax.set_facecolor("#f3d9b1")
            for spine in ax.spines.values():
                spine.set_visible(False)
            if title != "before":
                found = np.abs(values[np.isfinite(values)])
                beyond = bool(found.size) and found.max() > difference_limit
                bar = figure.colorbar(
                    image,
                    ax=[ax] if title != "after" else list(axes[:2]),
                    shrink=0.9,
                    pad=0.015,
                    aspect=28,
                    extend="both" if beyond and title != "after" else "neither",
                )
                bar.outline.set_visible(False)
                bar.ax.tick_params(length=2, labelsize=8)
                if unit:
                    bar.set_label(unit, fontsize=8)
    return figure


def histogram_figure(bins: ErrorBins, counts: np.ndarray, unit: str) -> Figure:
    """Draw how often which error occurs, counts on a logarithmic axis."""
    with _figure(PAGE_WIDTH, 3.0) as figure:
        ax = figure.subplots()
        width = (bins.high - bins.low) / bins.n_bins
        ax.bar(bins.centres, counts, width=width, color=_ACCENT, linewidth=0)
        ax.set_yscale("log")
        ax.set_ylim(0.7, max(10.0, 2.0 * float(counts.max())))
        ax.set_xlim(bins.low, bins.high)
        ax.set_xlabel(f"error (after − before){f' in {unit}' if unit else ''}")
        ax.set_ylabel("voxels")
        ax.grid(axis="y")
        ax.set_axisbelow(True)
    return figure


def chunk_map_figure(grid: np.ndarray, axes_names: Sequence[str], label: str) -> Figure:
    """Draw the worst value along each axis of a grid of chunks.

    Parameters
    ----------
    grid : ndarray of float64
        One to three axes; low is bad, NaN cannot be read and is worst, inf is exact.
    axes_names : sequence of str
        One per axis of the grid.
    label : str
        What the values are.
    """
    grid = grid.reshape((1,) * (3 - grid.ndim) + grid.shape)
    names = ["", *axes_names] if len(axes_names) == 2 else ["", "", *axes_names][-3:]
    finite = grid[np.isfinite(grid)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
    views = [axis for axis in range(3) if names[axis]] if grid.shape[0] > 1 else [0]
    columns = [grid.shape[1 if axis == 2 else 2] for axis in views]
    rows = max(grid.shape[1 if axis == 0 else 0] for axis in views)
    # One size of cell for all views, such that they stay within the width and a height.
    cell = min((PAGE_WIDTH - 1.2 - 0.75 * len(views)) / sum(columns), 2.8 / rows)
    width = max(3.0, cell * sum(columns) + 1.2 + 0.75 * len(views))
    with _figure(width, cell * rows + 1.25) as figure:
        panels = np.atleast_1d(figure.subplots(1, len(views), width_ratios=columns))
        for ax, axis in zip(panels, views, strict=True):
            worst = np.minimum.reduce(grid, axis=axis)
            shown = np.where(np.isinf(worst) & (worst > 0), high, worst)
            image = ax.imshow(
                shown, cmap="viridis", vmin=low, vmax=high if high > low else low + 1,
                interpolation="nearest", origin="upper",
            )  # fmt: skip
            ax.set_facecolor("#d9dee4")
            down, across = (name for number, name in enumerate(names) if number != axis)
            ax.set_xlabel(f"chunk along {across}" if across else "chunk")
            ax.set_ylabel(f"chunk along {down}" if down else "")
            if names[axis]:
                ax.set_title(f"worst along {names[axis]}", loc="left")
            ax.set_yticks(range(0, shown.shape[0], -(-shown.shape[0] // 8)))
            ax.set_xticks(range(0, shown.shape[1], -(-shown.shape[1] // 8)))
        bar = figure.colorbar(image, ax=list(panels), pad=0.015, aspect=24)
        bar.set_label(label)
        bar.outline.set_visible(False)
    return figure


def peers_figure(curves: Sequence[Curve], raw_bytes: int, ratio: float) -> Figure:
    """Draw PSNR against ratio, a line per codec; the first is ours.

    Parameters
    ----------
    curves : sequence of Curve
    raw_bytes : int
        Of what was encoded.
    ratio : float
        At which the table compares them.
    """
    with _figure(PAGE_WIDTH, 3.8) as figure:
        ax = figure.subplots()
        ax.axvline(ratio, color=_FAINT, linewidth=0.8, linestyle=(0, (4, 3)))
        for number, curve in enumerate(curves):
            points = sorted((raw_bytes / p.size_bytes, p.psnr) for p in curve.points)
            points = [(x, y) for x, y in points if math.isfinite(y)]
            colour, marker = (_ACCENT, "o") if number == 0 else _SERIES[(number - 1) % 6]
            ax.plot(
                [x for x, _ in points],
                [y for _, y in points],
                marker=marker,
                markersize=6 if number == 0 else 5,
                linewidth=2.2 if number == 0 else 1.2,
                color=colour,
                label=curve.name,
                zorder=3 if number == 0 else 2,
            )
        _ratio_axis(ax, [raw_bytes / p.size_bytes for curve in curves for p in curve.points])
        ax.set_ylabel("PSNR in dB")
        ax.grid(True)
        ax.set_axisbelow(True)
        ax.legend(frameon=False, loc="center left", bbox_to_anchor=(1.01, 0.5))
    return figure


def plan_figure(plan: Plan) -> Figure:
    """Draw a plan: PSNR and time against ratio."""
    rows = [row for row in plan.rows if math.isfinite(row.psnr)]
    rows.sort(key=lambda row: row.ratio)
    with _figure(PAGE_WIDTH, 3.4) as figure:
        quality, seconds = figure.subplots(1, 2)
        ratios = [row.ratio for row in rows]
        quality.plot(ratios, [row.psnr for row in rows], "o-", color=_ACCENT, label="volume")
        quality.plot(
            ratios, [row.psnr_min for row in rows], "s--", color=_WARN, label="worst sample"
        )
        quality.set_ylabel("PSNR in dB")
        quality.set_title(f"{plan.name}: expected quality", loc="left")
        quality.legend(frameon=False)
        seconds.plot(ratios, [row.encode_s for row in rows], "o-", color=_ACCENT)
        seconds.set_ylim(bottom=0)
        seconds.set_ylabel("seconds")
        workers = f"{plan.workers} worker{'s' * (plan.workers > 1)}"
        seconds.set_title(f"time for the whole volume, {workers}", loc="left")
        for ax in (quality, seconds):
            _ratio_axis(ax, ratios)
            ax.grid(True)
            ax.set_axisbelow(True)
    return figure


def _ratio_axis(ax: Axes, ratios: Sequence[float]) -> None:
    from matplotlib.ticker import FuncFormatter, NullLocator

    ax.set_xscale("log", base=2)
    ax.set_xlabel("ratio")
    if ratios:
        exponents = range(math.floor(math.log2(min(ratios))), math.ceil(math.log2(max(ratios))) + 1)
        ax.set_xticks([2.0**exponent for exponent in exponents])
        ax.set_xlim(min(ratios) / 1.15, max(ratios) * 1.15)
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}×"))
    ax.xaxis.set_minor_locator(NullLocator())


@contextmanager
def _figure(width: float, height: float, layout: str = "constrained") -> Iterator[Figure]:
    """Give an empty figure of a size in inches, in our style; without pyplot and its state."""
    with _styled():
        module: Any = import_extra("matplotlib.figure", "report")
        figure = module.Figure(figsize=(width, height), layout=layout)
        yield figure


@contextmanager
def _styled() -> Iterator[None]:
    matplotlib: Any = import_extra("matplotlib", "report")
    with matplotlib.rc_context(_STYLE):
        yield
