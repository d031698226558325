"""`tinc decompress`."""

from typing import Annotated

import typer

from tinc_codec.cli.console import messages, print_json, refusals
from tinc_codec.cli.options import Json

__all__ = ["decompress_command"]


def decompress_command(
    src: Annotated[
        str, typer.Argument(metavar="SRC", help="A Zarr array or group: a path or an fsspec URL.")
    ],
    dst: Annotated[
        str,
        typer.Argument(
            metavar="DST", help="The file to write: .zarr, .nii, .nii.gz, .tif, .tiff or .npy."
        ),
    ],
    level: Annotated[int, typer.Option(min=0, help="Level of resolution, 0 the finest.")] = 0,
    variable: Annotated[
        str | None, typer.Option(help="Path of an array or a group within SRC.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace DST.")] = False,
    allow_missing: Annotated[
        bool,
        typer.Option(
            "--allow-missing",
            help="Decode what is there of a SRC that is not finished; the rest is NaN, or 0.",
        ),
    ] = False,
    json: Json = False,
) -> None:
    """Decode a volume and write it to a file that every program reads.

    Voxel size, units, axes and attributes go along as far as the file can hold them: all of them
    into Zarr, the affine that they came with into NIfTI, sizes and units into OME-TIFF, none into
    NumPy. DST has its name only when it is complete.

    Exit status: 0 if DST is there; 2 if not.

    [bold]Examples[/]

    tinc decompress brain.zarr brain.nii.gz

    tinc decompress s3://bucket/scan.zarr scan.ome.tif --level 2

    tinc decompress brain.zarr plain.zarr --overwrite --json
    """
    with refusals():
        from dataclasses import asdict

        from rich.progress import (
            BarColumn,
            DownloadColumn,
            Progress,
            TimeRemainingColumn,
            TransferSpeedColumn,
        )

        from tinc_codec.pipeline.decompress import decompress

        columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
        with Progress(
            *columns, console=messages, disable=not messages.is_terminal, transient=True
        ) as progress:
            task = progress.add_task("")
            report = decompress(
                src,
                dst,
                level=level,
                variable=variable,
                overwrite=overwrite,
                allow_missing=allow_missing,
                on_progress=lambda done, total: progress.update(task, completed=done, total=total),
            )
    if json:
        print_json(asdict(report))
        return
    shape = " × ".join(map(str, report.shape))
    size = "" if report.size_bytes is None else f", {report.size_bytes:,} bytes"
    messages.print(
        f"{report.destination}: {report.kind}, {shape} {report.dtype}{size}, "
        f"{report.seconds:.1f} s",
        markup=False,
        highlight=False,
    )
