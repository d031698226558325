"""`tinc plan`."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from tinc_codec.cli.console import messages, print_json, refusals

if TYPE_CHECKING:
    from rich.table import Table

    from tinc_codec.pipeline.plan import Plan

__all__ = ["plan_command"]

_Number = TypeVar("_Number", int, float)


def plan_command(
    src: Annotated[str, typer.Argument(metavar="SRC", help="A file, a Zarr, or a URL of one.")],
    ratios: Annotated[
        str, typer.Option(metavar="R,R,…", help="Ratios to try, each over 1.")
    ] = "16,32,64,128,256",
    effort: Annotated[int, typer.Option(min=0, max=9, help="Encode time spent on quality.")] = 4,
    model: Annotated[
        str, typer.Option(help="What a chunk's bytes go to: auto, features or tree.")
    ] = "auto",
    chunks: Annotated[
        str | None,
        typer.Option(metavar="N or N,N,N", help="Voxels per chunk, as for `tinc compress`."),
    ] = None,
    samples: Annotated[int, typer.Option(min=1, help="Chunks to fit.")] = 4,
    workers: Annotated[
        int | None,
        typer.Option(min=1, help="Workers the time is reckoned for; by default one per CPU."),
    ] = None,
    variable: Annotated[
        str | None, typer.Option(help="Which array of SRC, where there are several.")
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw the table: a PNG, SVG or PDF.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
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
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    with (
        refusals(),
        Progress(
            "{task.description}", BarColumn(), MofNCompleteColumn(), "fits",
            TimeRemainingColumn(), console=messages, transient=True,
        ) as progress,
    ):  # fmt: skip
        from tinc_codec.pipeline.plan import plan

        bar = progress.add_task("fitting samples", total=None)
        found = plan(
            src,
            ratios=_numbers("ratios", ratios, float),
            effort=effort,
            model=model,
            chunks=None if chunks is None else _edges(chunks),
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
        return
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

    shape = " × ".join(map(str, found.shape))
    table = Table(
        title=f"{found.name}: {shape} {found.dtype.name}, {_bytes(found.raw_bytes)}; "
        f"{found.n_chunks:,} chunks of {' × '.join(map(str, found.chunks))}; "
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
            _decibel(row.psnr),
            _decibel(row.psnr_min),
            f"{row.max_error:.4g}",
            _duration(row.encode_s),
            _bytes(row.size_bytes),
        )
    return table


def _edges(text: str) -> int | list[int]:
    edges = _numbers("chunks", text, int)
    return edges[0] if len(edges) == 1 else edges


def _numbers(field: str, text: str, kind: type[_Number]) -> list[_Number]:
    from tinc_codec.errors import ConfigError

    try:
        return [kind(part) for part in text.split(",")]
    except ValueError as error:
        raise ConfigError(f"{field}={text!r} is not a list of numbers such as 16,32") from error


def _decibel(psnr: float) -> str:
    return "exact" if psnr == math.inf else f"{psnr:.2f} dB"


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02} min"


def _bytes(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 999.5:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:,.3g} TB"
