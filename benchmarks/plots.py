"""Rate-distortion curves of what `benchmarks.rd` measured, one panel per volume.

python -m benchmarks.plots        # benchmarks/results/rd.json -> benchmarks/plots/rd.png
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl

from benchmarks import records

mpl.use("Agg")
from matplotlib import pyplot as plt

PLOTS = Path(__file__).resolve().parent / "plots"
COLUMNS = 3
DPI = 110
# Its curve drops by 20 dB where its steps of a power of two end: in full, all others were a band.
CUT_OFF = frozenset({"ZFP"})


def plot(rows: Sequence[Mapping[str, Any]], path: Path) -> Path:
    """Draw PSNR against the ratio, one line per codec, and return where the PNG was written.

    Parameters
    ----------
    rows : sequence of mappings
        With `volume`, `ratio`, `codec` and `psnr` in dB (None where a codec did not get there);
        volumes and codecs are drawn in the order in which they first appear.
    path : path
        Its directory is made.

    Raises
    ------
    ValueError
        If there is nothing to draw.
    """
    reached = [row for row in rows if row["psnr"] is not None and math.isfinite(row["psnr"])]
    if not reached:
        raise ValueError("no row has a PSNR: run `python -m benchmarks.rd` first")
    names = list(dict.fromkeys(row["volume"] for row in reached))
    styles = _styles(list(dict.fromkeys(row["codec"] for row in reached)))
    columns = min(COLUMNS, len(names))
    lines = -(-len(names) // columns)
    figure, panels = plt.subplots(
        lines, columns, figsize=(3.4 * columns, 2.9 * lines), squeeze=False, layout="constrained"
    )
    for panel, name in zip(panels.flat, names, strict=False):
        of_volume = [row for row in reached if row["volume"] == name]
        _draw(panel, name, of_volume, styles)
    for panel in panels.flat[len(names) :]:
        panel.axis("off")
    handles = [mpl.lines.Line2D([], [], label=codec, **style) for codec, style in styles.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=5, frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=DPI)
    plt.close(figure)
    return path


def _draw(
    panel: Any, name: str, rows: list[Mapping[str, Any]], styles: dict[str, dict[str, Any]]
) -> None:
    for codec, style in styles.items():
        points = sorted((row["ratio"], row["psnr"]) for row in rows if row["codec"] == codec)
        if points:
            panel.plot(*zip(*points, strict=True), **style)
    framed = [row["psnr"] for row in rows if row["codec"] not in CUT_OFF]
    if framed:
        panel.set_ylim(bottom=min(framed) - 1)
    ratios = sorted({row["ratio"] for row in rows})
    panel.set_xscale("log", base=2)
    panel.set_xticks(ratios, [f"{ratio:g}" for ratio in ratios])
    panel.minorticks_off()
    panel.grid(alpha=0.3)
    panel.set_title(name, fontsize="medium")
    panel.set_xlabel("ratio", fontsize="small")
    panel.set_ylabel("PSNR, dB", fontsize="small")
    panel.tick_params(labelsize="small")


def _styles(codecs: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Give peers dashed lines and our own, named model:effort, solid ones above them."""
    styles = {}
    for index, codec in enumerate(codecs):
        ours = ":" in codec
        styles[codec] = {
            "color": f"C{index % 10}",
            "linestyle": "-" if ours else "--",
            "linewidth": 1.8 if ours else 1.0,
            "marker": "o" if ours else "s",
            "markersize": 4 if ours else 3,
            "zorder": 3 if ours else 2,
        }
    return styles


def main() -> None:
    """Draw the kept results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--name", default="rd", help="stem of the results' and the plot's file")
    arguments = parser.parse_args()
    record = json.loads((records.RESULTS / f"{arguments.name}.json").read_text())
    print(plot(record["rows"], PLOTS / f"{arguments.name}.png"))


if __name__ == "__main__":
    main()
