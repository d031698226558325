"""`tinc levels`."""

from typing import Annotated, Any

import typer

from tinc_codec.cli.console import messages, print_json, refusals

__all__ = ["levels_command"]


def levels_command(
    dst: Annotated[
        str, typer.Argument(metavar="DST", help="A Zarr group (v3 format): path or fsspec URL.")
    ],
    count: Annotated[
        int,
        typer.Option(
            "--count", "-n", min=0, help="Levels there are afterwards beside level 0; 0 removes."
        ),
    ] = 3,
    as_json: Annotated[bool, typer.Option("--json", help="Print what was done as JSON.")] = False,
) -> None:
    """Add lower resolutions that are decoded from level 0's own chunks.

    Makes DST an OME-Zarr 0.5 image of several resolutions for any viewer that has tinc_codec
    installed. Only metadata is written, about a kilobyte per level; no voxel is stored twice.

    Examples:

        tinc levels brain.zarr

        tinc levels s3://bucket/brain.zarr -n 4 --json

        tinc levels brain.zarr -n 0
    """
    with refusals():
        from tinc_codec.levels.multiscale import add_levels

        paths = add_levels(dst, count)
        import zarr

        group: Any = zarr.open_group(dst, mode="r", use_consolidated=False)
        shapes = [list(group[path].shape) for path in paths]
    if as_json:
        levels = [{"path": path, "shape": shape} for path, shape in zip(paths, shapes, strict=True)]
        print_json({"group": dst, "levels": levels})
        return
    for number, (path, shape) in enumerate(zip(paths, shapes, strict=True)):
        messages.print(f"level {number}: {path}, {' × '.join(map(str, shape))}", highlight=False)
