"""Maps of chunks and curves, drawn with characters."""

import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np
from rich.columns import Columns
from rich.console import Group, RenderableType
from rich.text import Text

__all__ = ["chunk_map", "curve"]

_BARS = "▁▂▃▄▅▆▇█"
# From the worst to the best, dark to light as well, for those who do not see the hues.
_COLOURS = ("#440154", "#46327e", "#365c8d", "#277f8e", "#1fa187", "#4ac16d", "#a0da39", "#fde725")
_MISSING, _EXACT = "·", "="
# Layers, rows and columns; larger grids are drawn by their worst.
_MOST_DRAWN = (24, 64, 64)


def chunk_map(
    grid: np.ndarray,
    title: str,
    *,
    low_is_bad: bool = True,
    label: Callable[[float], str] = "{:.4g}".format,
) -> RenderableType:
    """Draw a value per chunk: one character each, one map per layer of chunks.

    Parameters
    ----------
    grid : ndarray of float64
        A value per chunk, NaN where none is stored; inf counts as exact where low is bad. Of more
        than three axes the worst along the leading ones is shown.
    title : str
    low_is_bad : bool
        Whether small values are the worst; these are drawn short and dark.
    label : callable
        How the ends of the scale are written.
    """
    layers = _three_axes(grid, low_is_bad)
    n_layers = layers.shape[0]
    steps = [max(1, -(-n // most)) for n, most in zip(layers.shape, _MOST_DRAWN, strict=True)]
    layers = _worst_of_blocks(layers, steps, low_is_bad)
    finite = layers[np.isfinite(layers)]
    worst, best = _ends(finite, low_is_bad) if finite.size else (0.0, 0.0)

    def goodness(value: float) -> float:
        return max(0.0, (value - worst) / (best - worst)) if best != worst else 1.0

    maps = []
    for number, layer in enumerate(layers):
        text = Text(no_wrap=True)
        if len(layers) > 1:
            first = number * steps[0]
            last = min(first + steps[0], n_layers) - 1
            text.append(f"z {first}\n" if first == last else f"z {first}–{last}\n", "dim")
        for row in layer:
            # Neighbours that look the same are one piece of text.
            for (character, style), run in itertools.groupby(_cell(v, goodness) for v in row):
                text.append(character * len(list(run)), style)
            text.append("\n")
        maps.append(text)
    legend = Text(no_wrap=False)
    legend.append(f"{label(worst)} ", "dim")
    for bar, colour in zip(_BARS, _COLOURS, strict=True):
        legend.append(bar, colour)
    legend.append(f" {label(best)}{' and better' * bool(finite.size)}", "dim")
    if np.isnan(layers).any():
        legend.append(f"   {_MISSING} not stored", "dim")
    if np.isinf(layers).any():
        legend.append(f"   {_EXACT} exact", "dim")
    if max(steps) > 1:
        legend.append(f"   the worst of {' × '.join(map(str, steps))} chunks each", "dim")
    return Group(Text(title, "bold"), Columns(maps, padding=(0, 2)), legend)


def curve(
    x: Sequence[float],
    y: Sequence[float],
    *,
    title: str,
    unit: str,
    width: int = 60,
    height: int = 10,
) -> Text:
    """Draw points over a logarithmic axis, joined by dots.

    Parameters
    ----------
    x : sequence of float
        Ascending, > 0; written below the axis.
    y : sequence of float
        Finite.
    title, unit : str
    width, height : int
        Of the plot in characters, without its labels.
    """
    low, high = min(y), max(y)
    margin = 0.05 * (high - low) or 1.0
    low, high = low - margin, high + margin
    logs = [math.log(value) for value in x]
    reach = (logs[-1] - logs[0]) or 1.0
    columns = [round((value - logs[0]) / reach * (width - 1)) for value in logs]
    rows = [round((high - value) / (high - low) * (height - 1)) for value in y]
    canvas = [[" "] * width for _ in range(height)]
    for column in range(columns[0], columns[-1] + 1):
        canvas[round(float(np.interp(column, columns, rows)))][column] = "·"
    for column, row in zip(columns, rows, strict=True):
        canvas[row][column] = "●"
    text = Text(no_wrap=True)
    text.append(f"{title}\n", "bold")
    for number, line in enumerate(canvas):
        value = high - number / (height - 1) * (high - low)
        text.append(f"{value:8.2f} {unit} │" if number % 3 == 0 else " " * (10 + len(unit)) + "│")
        text.append("".join(line) + "\n", "cyan")
    text.append(" " * (10 + len(unit)) + "└" + "─" * width + "\n")
    labels = [" "] * (width + 6)
    for column, value in zip(columns, x, strict=True):
        written = f"{value:g}×"
        start = min(column, len(labels) - len(written))
        if all(character == " " for character in labels[max(0, start - 1) : start + len(written)]):
            labels[start : start + len(written)] = written
    text.append(" " * (11 + len(unit)) + "".join(labels).rstrip())
    return text


def _cell(value: float, goodness: Callable[[float], float]) -> tuple[str, str]:
    if math.isnan(value):
        return _MISSING, "dim"
    if math.isinf(value):
        return (_EXACT, "green") if value > 0 else ("!", "bold red")
    step = min(len(_BARS) - 1, int(goodness(value) * len(_BARS)))
    return _BARS[step], _COLOURS[step]


def _ends(values: np.ndarray, low_is_bad: bool) -> tuple[float, float]:
    """Choose the ends of the scale: the worst, and what one in fifty is better than."""
    if low_is_bad:
        return float(values.min()), float(np.percentile(values, 98, method="nearest"))
    return float(values.max()), float(np.percentile(values, 2, method="nearest"))


def _three_axes(grid: np.ndarray, low_is_bad: bool) -> np.ndarray:
    if grid.ndim > 3:
        grid = grid.reshape(-1, *grid.shape[-3:])
        worst = np.fmin if low_is_bad else np.fmax
        return worst.reduce(grid, axis=0)
    return grid.reshape((1,) * (3 - grid.ndim) + grid.shape)


def _worst_of_blocks(grid: np.ndarray, steps: Sequence[int], low_is_bad: bool) -> np.ndarray:
    """Give the worst of every block of cells, NaN where all are."""
    worst = np.fmin if low_is_bad else np.fmax
    for axis, step in enumerate(steps):
        if step > 1:
            grid = worst.reduceat(grid, np.arange(0, grid.shape[axis], step), axis=axis)
    return grid
