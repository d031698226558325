"""`tinc report`."""

from pathlib import Path
from typing import Annotated

import typer

from tinc_codec.cli.console import BROKEN, counting, messages, print_json, refusals
from tinc_codec.cli.options import Compressed, DecodesAtOnce, Original, Variable

__all__ = ["report_command"]


def report_command(
    src: Original,
    dst: Compressed,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE", help="The page to write.")
    ] = Path("report.html"),
    variable: Variable = None,
    workers: DecodesAtOnce = None,
    peers: Annotated[
        bool, typer.Option(help="Compare one chunk with other codecs that are installed.")
    ] = True,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object as well.")] = False,
) -> None:
    """Write one HTML page that shows what was lost.

    Slices before and after and their difference, a histogram of the
    errors, the quality of every chunk, where the bytes go, and other
    codecs at the same size. The page holds all it needs and loads nothing.

    Exit status: 0; 1 if a promise is broken, which the page says as well;
    2 if nothing was written.

    [bold]Examples[/]

    tinc report brain.nii.gz brain.zarr

    tinc report scan.h5 s3://bucket/scan.zarr -o scan.html --no-peers
    """
    with refusals(), counting() as progress:
        from tinc_codec.report.writing import write_report

        bar = progress.add_task("opening", total=None)
        found = write_report(
            src,
            dst,
            output,
            variable=variable,
            workers=workers,
            peers=peers,
            on_stage=lambda stage, total: progress.reset(bar, description=stage, total=total),
            on_step=lambda: progress.advance(bar),
        )
    if json:
        print_json({"report": str(output), **found.to_record()})
    else:
        print(output)
    if not found.ok:
        count = len(found.broken_chunks)
        messages.print(f"[red]{count:,} of {len(found.chunks):,} chunks break a promise[/]")
        raise typer.Exit(BROKEN)
