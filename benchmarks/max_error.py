"""Bytes that TINC and the error-bounded peers need for one largest absolute error.

python -m benchmarks.max_error --markdown
python -m benchmarks.max_error --only features:0 --volumes mri_t1  # (re)run these

Bounds are fractions of the crop's range, and for integers 1, 2 and 4 units too; what lies between
two integers counts as the lower one. Results are kept as those of `benchmarks.rd`, one row per
(volume, bound, codec), in `results/max_error.json`. Every bound is checked on the decoded crop: a
star marks the bytes of a codec that went past it.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from rich.console import Console

from benchmarks import rd, records, volumes
from benchmarks.peers import ERROR_BOUNDED
from benchmarks.rd import Row
from benchmarks.tables import Cell, Grid, to_markdown, to_rich, with_minus

FRACTIONS = (5e-2, 2e-2, 1e-2, 5e-3, 2e-3, 1e-3)
UNITS = (1.0, 2.0, 4.0)
SETTINGS = ("features:0", "lattice:0", "auto:4")
KEY = ("volume", "bound", "codec")


def bounds(
    volume: np.ndarray,
    fractions: Sequence[float] = FRACTIONS,
    units: Sequence[float] = UNITS,
) -> list[float]:
    """Give the bounds to measure, ascending, in the data's units.

    For integers the fractions of the range are rounded down and those below one unit left out.
    """
    span = float(volume.max()) - float(volume.min())
    of_range = [fraction * span for fraction in fractions]
    if volume.dtype.kind == "f":
        return sorted(of_range)
    whole = {float(math.floor(bound)) for bound in of_range} | set(units)
    return sorted(whole - {0.0})


def run_case(volume: np.ndarray, bound: float, codec: str) -> Row:
    """Measure one codec at one bound; `holds` says whether the decoded crop keeps to it."""
    if codec in ERROR_BOUNDED:
        row = asdict(ERROR_BOUNDED[codec](volume, bound))
    else:
        row = rd.run_setting(volume, codec, max_error=bound)
    return {**row, "holds": row["max_error"] <= bound, "ratio": volume.nbytes / row["size_bytes"]}


def bytes_grid(rows: Sequence[Mapping[str, Any]]) -> Grid:
    """Lay out bytes: a line per volume and bound, a column per codec, the fewest bold."""
    codecs = sorted({row["codec"] for row in rows}, key=rd.codec_order)
    lines = []
    for name, bound in sorted({(row["volume"], row["bound"]) for row in rows}):
        chosen = {
            row["codec"]: row for row in rows if (row["volume"], row["bound"]) == (name, bound)
        }
        fewest = min((row["size_bytes"] for row in chosen.values() if row["holds"]), default=None)
        cells = tuple(_bytes_cell(chosen.get(codec), fewest) for codec in codecs)
        lines.append((f"{name}, {bound:.4g}", cells))
    return Grid("Bytes for a largest absolute error", "volume, bound", tuple(codecs), tuple(lines))


def difference_grid(rows: Sequence[Mapping[str, Any]], reference: str) -> Grid:
    """Lay out how many more bytes our settings need than a peer, in percent; fewer is bold."""
    sizes = {(row["volume"], row["bound"], row["codec"]): row["size_bytes"] for row in rows}
    ours = sorted({row["codec"] for row in rows} - set(ERROR_BOUNDED), key=rd.codec_order)
    lines = []
    for name, bound in sorted({(row["volume"], row["bound"]) for row in rows}):
        other = sizes.get((name, bound, reference))
        cells = []
        for codec in ours:
            size = sizes.get((name, bound, codec))
            if size is None or other is None:
                cells.append(Cell("–"))
            else:
                text = with_minus(f"{100 * (size / other - 1):+.1f}")
                cells.append(Cell(text, size < other))
        lines.append((f"{name}, {bound:.4g}", tuple(cells)))
    return Grid(f"Bytes against {reference}, %", "volume, bound", tuple(ours), tuple(lines))


def grids(rows: Sequence[Mapping[str, Any]]) -> list[Grid]:
    """Give all tables of the rows, those without a column left out."""
    tables = [bytes_grid(rows), *(difference_grid(rows, peer) for peer in ERROR_BOUNDED)]
    return [grid for grid in tables if grid.columns]


def page(record: Mapping[str, Any]) -> str:
    """Write the Markdown page of a record."""
    rows = record["rows"]
    dates = sorted({row["date"] for row in rows})
    introduction = f"""\
# Bytes for a largest error

Written by `python -m benchmarks.max_error --markdown` from `results/max_error.json`; not edited by
hand. Central crops of at most {record["crop"]}³ voxels, real encoded bytes. The bound stands beside
the volume, in the data's units; it was checked on every decoded crop, and a star marks the bytes of
a codec that went past it. Integers are rounded after decoding, which SPERR, SZ3 and ZFP are given
the benefit of (a bound of 1 is asked of them as 1.499), and ZFP is asked for the loosest tolerance
whose error still keeps to the bound. Measured {dates[0]} to {dates[-1]}.
"""
    tables = (to_markdown(grid) for grid in grids(rows))
    return "\n".join([introduction, *tables])


def _bytes_cell(row: Mapping[str, Any] | None, fewest: int | None) -> Cell:
    if row is None:
        return Cell("–")
    text = f"{row['size_bytes']:,}"
    return Cell(text, row["size_bytes"] == fewest) if row["holds"] else Cell(f"{text} *")


def measure_all(arguments: argparse.Namespace) -> None:
    """Run what was asked for and keep each result as soon as it is there."""
    path = records.RESULTS / f"{arguments.name}.json"
    origin = rd.provenance()
    for name in arguments.volumes:
        volume = volumes.load(name, arguments.crop, arguments.data)
        wanted = bounds(volume)
        for codec in arguments.only:
            if codec not in ERROR_BOUNDED:
                rd.warm_up(volume, codec, max_error=wanted[-1])
            for bound in wanted:
                row = {"volume": name, "bound": bound, "codec": codec, **origin}
                row |= {"shape": volume.shape, "dtype": str(volume.dtype)}
                row |= run_case(volume, bound, codec)
                rd.keep(path, row, KEY, crop=arguments.crop)
                print(
                    f"{name} {bound:.4g} {codec}: {row['size_bytes']} bytes, max error "
                    f"{row['max_error']:.6g}, {row['psnr']:.2f} dB, "
                    f"encode {row['encode_s']:.2f} s, decode {row['decode_s']:.3f} s",
                    flush=True,
                )


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, keep and print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    volumes.add_arguments(parser)
    parser.add_argument(
        "--only",
        nargs="+",
        metavar="CODEC",
        default=[*ERROR_BOUNDED, *SETTINGS],
        help="SPERR, SZ3, ZFP and model:effort settings to run (default: %(default)s)",
    )
    parser.add_argument("--show", action="store_true", help="run nothing, show what is there")
    parser.add_argument("--markdown", action="store_true", help="write MAX_ERROR.md")
    parser.add_argument("--name", default="max_error", help="stem of the results' file")
    arguments = parser.parse_args(argv)
    rd.check_codecs(parser, arguments.only, ERROR_BOUNDED)
    if not arguments.show:
        measure_all(arguments)
    record = json.loads((records.RESULTS / f"{arguments.name}.json").read_text())
    for grid in grids(record["rows"]):
        Console(width=200).print(to_rich(grid))
    if arguments.markdown:
        path = rd.PAGES / f"{arguments.name.upper()}.md"
        path.write_text(page(record))
        print(path)


if __name__ == "__main__":
    main()
