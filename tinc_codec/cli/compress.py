"""`tinc compress`."""

from typing import TYPE_CHECKING, Annotated

import typer

from tinc_codec.cli.console import BROKEN, messages, print_json, refusals
from tinc_codec.cli.options import ChunkEdges, Effort, Json, Model, Tile, Variable, edges
from tinc_codec.inspection.quality import decibel_text

if TYPE_CHECKING:
    from tinc_codec.pipeline.progress import Summary

__all__ = ["compress_command"]

_INTERRUPTED = 130
_LISTED = 20


_Volume = Annotated[
    str,
    typer.Argument(
        metavar="SRC",
        help="A volume: NIfTI, TIFF, NumPy, HDF5 or NetCDF file, Zarr, or a URL of one.",
    ),
]
_Written = Annotated[
    str, typer.Argument(metavar="DST", help="The Zarr to write: a path or an fsspec URL.")
]
_Ratio = Annotated[
    float | None, typer.Option(help="Bytes before over bytes after, at least. Default: 64.")
]
_Psnr = Annotated[float | None, typer.Option(help="Instead: PSNR of every chunk in dB, at least.")]
_MaxError = Annotated[
    float | None, typer.Option(help="Instead: error of every voxel, in the data's units, at most.")
]
_ShardEdges = Annotated[
    str | None, typer.Option(help="Edge of the shards, a multiple of the chunks'.")
]
_Levels = Annotated[
    int | None, typer.Option(min=0, help="Levels of resolution beside the full one.")
]
_ZarrFormat = Annotated[int, typer.Option(min=2, max=3, help="3: OME-Zarr 0.5; 2: OME-Zarr 0.4.")]
_Scheduler = Annotated[
    str | None,
    typer.Option(
        help="threads, processes, or the address of a dask.distributed scheduler, tcp://..."
    ),
]
_EncodesAtOnce = Annotated[
    int | None, typer.Option(min=1, help="Chunks encoded at once; by default one per CPU.")
]
_Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Start anew: remove the Zarr that is at DST.")
]
_DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Write nothing; show what several ratios would give.")
]


def compress_command(
    src: _Volume,
    dst: _Written,
    ratio: _Ratio = None,
    psnr: _Psnr = None,
    max_error: _MaxError = None,
    effort: Effort = 4,
    model: Model = "auto",
    tile: Tile = None,
    chunks: ChunkEdges = None,
    shards: _ShardEdges = None,
    levels: _Levels = None,
    zarr_format: _ZarrFormat = 3,
    scheduler: _Scheduler = None,
    workers: _EncodesAtOnce = None,
    variable: Variable = None,
    overwrite: _Overwrite = False,
    dry_run: _DryRun = False,
    json: Json = False,
) -> None:
    """Compress a whole volume into a Zarr store.

    Voxel size, units, axes and attributes come along. Stop it whenever you like: the same command
    goes on where it stopped, and leaves alone what is finished. A chunk that fails is reported and
    the rest goes on; the same command tries it again. SRC is only read.

    Exit status: 0 if every chunk is there; 1 if some are not; 2 if it was refused or could not go
    on; 130 after an interrupt.

    [bold]Examples[/]

    tinc compress brain.nii.gz brain.zarr --ratio 64

    tinc compress scan.ome.tif s3://bucket/scan.zarr --max-error 2 --chunks 64 --levels 3

    tinc compress run.h5 run.zarr --variable /t0/u --psnr 50 --scheduler tcp://10.0.0.1:8786

    tinc compress brain.npy brain.zarr --dry-run
    """
    if dry_run:
        from tinc_codec.cli.plan import plan_command
        from tinc_codec.pipeline.plan import RATIOS

        ratios = sorted({*RATIOS, *(() if ratio is None else (ratio,))})
        plan_command(
            src,
            ratios=",".join(f"{ratio:g}" for ratio in ratios),
            effort=effort,
            model=model,
            tile=tile,
            chunks=chunks,
            workers=workers,
            variable=variable,
            json=json,
        )
        return
    if ratio is None and psnr is None and max_error is None:
        ratio = 64.0
    try:
        with refusals():
            from tinc_codec.pipeline.compress import compress

            summary = compress(
                src,
                dst,
                ratio=ratio,
                psnr=psnr,
                max_error=max_error,
                effort=effort,
                model=model,
                tile=tile,
                chunks=edges("chunks", chunks),
                shards=edges("shards", shards),
                levels=levels,
                zarr_format=zarr_format,
                scheduler=scheduler,
                workers=workers,
                variable=variable,
                overwrite=overwrite,
                progress=not json or messages.is_terminal,
            )
    except KeyboardInterrupt:
        again = "the same command" + (" without --overwrite" if overwrite else "")
        messages.print(f"stopped; {again} goes on from here", markup=False)
        raise typer.Exit(_INTERRUPTED) from None
    if json:
        print_json(summary.to_dict())
    else:
        _show(summary)
    if not summary.complete:
        raise typer.Exit(BROKEN)


def _show(summary: "Summary") -> None:
    from rich.console import Console

    kind = "shards" if summary.shards else "chunks"
    counts = f"{summary.n_done:,} {kind} made, {summary.n_skipped:,} there before"
    failed = f"{summary.n_failed:,} failed"
    lines = [f"{summary.destination}: {counts}, {failed}, in {summary.seconds:.1f} s"]
    if summary.n_damaged:
        lines.append(f"{summary.n_damaged:,} were damaged and are made anew")
    if summary.worker_deaths:
        lines.append(f"{summary.worker_deaths:,} worker processes ended and were replaced")
    if summary.stored_bytes:
        lines.append(
            f"{summary.raw_bytes:,} bytes to {summary.stored_bytes:,}, ratio {summary.ratio:.2f}; "
            f"PSNR {decibel_text(summary.psnr)}, "
            f"{decibel_text(summary.psnr_min)} in the worst chunk; "
            f"max error {summary.max_error:.6g}"
        )
    Console().print("\n".join(lines), markup=False, highlight=False, soft_wrap=True)
    if summary.complete:
        return
    for failure in summary.failures[:_LISTED]:
        messages.print(
            f"{kind[:-1]} {failure.position}: {failure.reason}",
            markup=False, highlight=False, soft_wrap=True,
        )  # fmt: skip
    more = summary.n_failed - _LISTED
    if more > 0:
        messages.print(f"and {more:,} more", markup=False)
    messages.print("the same command tries them again", markup=False)
