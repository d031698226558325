"""`tinc inspect`."""

from enum import StrEnum
from typing import Annotated

import typer

from tinc_codec.cli.console import print_json, refusals
from tinc_codec.cli.options import Json

__all__ = ["inspect_command"]


class Field(StrEnum):
    """What a map of the chunks can show."""

    psnr = "psnr"
    max_error = "max_error"
    size_bytes = "size_bytes"


_TITLES = {
    Field.psnr: "PSNR in dB, per chunk",
    Field.max_error: "maximum error, per chunk",
    Field.size_bytes: "bytes, per chunk",
}


def inspect_command(
    path: Annotated[
        str,
        typer.Argument(metavar="PATH", help="A Zarr array or group: a path or an fsspec URL."),
    ],
    json: Json = False,
    chunks: Annotated[
        bool, typer.Option("--chunks", help="With --json: a row per stored chunk as well.")
    ] = False,
    map_: Annotated[bool, typer.Option("--map", help="Draw the quality of every chunk.")] = False,
    field: Annotated[Field, typer.Option(help="What --map shows.")] = Field.psnr,
) -> None:
    """Show what is stored and how good it is, from the chunks' headers alone.

    Nothing is decoded; headers are fetched by byte range where the store can. Whether the rest of
    a chunk is intact, and how the source was, is for `tinc verify` to say.

    [bold]Examples[/]

    tinc inspect brain.zarr --map

    tinc inspect s3://bucket/brain.zarr --json
    """
    with refusals():
        from tinc_codec.inspection.reader import inspect

        report = inspect(path)
    if json:
        print_json(report.to_record(with_chunks=chunks))
        return
    from rich.console import Console

    console = Console(highlight=False)
    console.print(str(report), markup=False, soft_wrap=True)
    if map_ and report.chunks:
        from tinc_codec.cli.charts import chunk_map

        console.print()
        title = _TITLES[field]
        grid = report.chunk_map(field.value)
        console.print(chunk_map(grid, title, low_is_bad=field is Field.psnr))
