"""`tinc plan`."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tinc_codec.cli.console import counting, print_json, refusals
from tinc_codec.cli.options import ChunkEdges, Effort, Json, Model, Tile, Variable, edges
from tinc_codec.inspection.quality import decibel_text

if TYPE_CHECKING:
    from rich.table import Table

    from tinc_codec.pipeline.plan import Plan

__all__ = ["plan_command"]


def plan_command(
    src: Annotated[str, typer.Argument(metavar="SRC", help="A file, a Zarr, or a URL of one.")],
    ratios: Annotated[
        str, typer.Option(metavar="R,R,…", help="Ratios to try, each over 1.")
    ] = "16,32,64,128,256",
    effort: Effort = 4,
    model: Model = "auto",
    tile: Tile = None,
    chunks: ChunkEdges = None,
    samples: Annotated[int, typer.Option(min=1, help="Chunks to fit.")] = 4,
    workers: Annotated[
        int | None,
        typer.Option(min=1, help="Workers the time is reckoned for; by default one per CPU."),
    ] = None,
    variable: Variable = None,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw the table: a PNG, SVG or PDF.")
    ] = None,
    json: Json = False,
) -> None:
    """Fit a few chunks at several ratios: what quality, how long, how many bytes.

    A few chunks that stand for the volume are compressed, nothing is
    written. The table says what PSNR and largest error to expect at each
    ratio, how long the whole volume would take on this machine, and how
    large the result would be.

    [bold]Examples[/]

    tinc plan brain.nii.gz

    tinc plan scan.zarr --ratios 8,16,32 --effort 0 --samples 8

    tinc plan s3://bucket/scan.zarr --plot plan.png --json
    """
    with refusals(), counting("fits") as progress:
        from tinc_codec.pipeline.plan import plan

        bar = progress.add_task("fitting samples", total=None)
        found = plan(
            src,
            ratios=_ratios(ratios),
            effort=effort,
            model=model,
            tile=tile,
            chunks=edges("chunks", chunks),
            samples=samples,
            workers=workers,
            variable=variable,
            on_start=lambda total: progress.update(bar, total=total),
            on_step=lambda: progress.advance(bar),
        )
        if plot is not None:
            from tinc_codec.report.figures import plan_figure, save_figure

            save_figure(plan_figure(found), plot)
    if json:
        print_json(found.to_record())
    else:
        _show(found)


def _show(found: "Plan") -> None:
    from rich.console import Console

    console = Console(highlight=False)
    console.print(_table(found))
    drawn = [row for row in found.rows if math.isfinite(row.psnr)]
    if len(drawn) > 1:
        from tinc_codec.cli.charts import curve

        drawn.sort(key=lambda row: row.ratio)
        console.print()
        console.print(
            curve(
                [row.ratio for row in drawn],
                [row.psnr for row in drawn],
                title="PSNR against ratio",
                unit="dB",
            )
        )
    for row in found.rows:
        if row.refused is not None:
            console.print(f"\n{row.ratio:g}×: {row.refused}", markup=False)
    console.print(f"\n{found.basis}", style="dim")


def _table(found: "Plan") -> "Table":
    from rich.table import Table

    from tinc_codec.report.wording import size_text, times_text

    table = Table(
        title=f"{found.name}: {times_text(found.shape)} {found.dtype.name}, "
        f"{size_text(found.raw_bytes)}; "
        f"{found.n_chunks:,} chunks of {times_text(found.chunks)}; "
        f"effort {found.effort}, model {found.model}",
        title_justify="left",
    )
    for heading in ("ratio", "PSNR", "worst chunk", "max error", "time", "bytes"):
        table.add_column(heading, justify="right")
    for row in found.rows:
        if math.isnan(row.encode_s):
            table.add_row(f"{row.ratio:g}×", "not possible", *("–",) * 4)
            continue
        mark = "*" if row.refused else ""
        table.add_row(
            f"{row.ratio:g}×{mark}",
            decibel_text(row.psnr),
            decibel_text(row.psnr_min),
            f"{row.max_error:.4g}",
            _duration(row.encode_s),
            size_text(row.size_bytes),
        )
    return table


def _ratios(text: str) -> list[float]:
    from tinc_codec.errors import ConfigError

    try:
        return [float(part) for part in text.split(",")]
    except ValueError as error:
        raise ConfigError(f"ratios={text!r} is not a list of numbers such as 16,32") from error


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02} min"
