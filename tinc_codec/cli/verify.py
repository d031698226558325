"""`tinc verify`."""

import math
from collections import Counter
from typing import TYPE_CHECKING

import typer

from tinc_codec.cli.console import BROKEN, counting, print_json, refusals
from tinc_codec.cli.options import Compressed, DecodesAtOnce, Json, Original, Variable
from tinc_codec.inspection.quality import decibel_text

if TYPE_CHECKING:
    from rich.console import RenderableType

    from tinc_codec.pipeline.verification import Verification

__all__ = ["verify_command"]

_LISTED = 20


def verify_command(
    src: Original,
    dst: Compressed,
    variable: Variable = None,
    workers: DecodesAtOnce = None,
    json: Json = False,
) -> None:
    """Decode everything, compare it with the source, and check every promise.

    Checked of every chunk: what the settings promise (ratio, PSNR or maximum error), the places of
    NaN and infinities, the range of values, the checksum, and that its header states the quality
    that was measured.

    Exit status: 0 if all promises are kept; 1 if not, with the chunks that break one, or where the
    array is not that of the source; 2 if one of them cannot be opened.

    [bold]Examples[/]

    tinc verify brain.nii.gz brain.zarr

    tinc verify scan.h5 s3://bucket/scan.zarr --variable /t0/channel0 --json
    """
    from rich.console import Console

    with refusals(), counting("chunks") as progress:
        from tinc_codec.pipeline.verify import verify

        bar = progress.add_task("verifying", total=None)
        found = verify(
            src,
            dst,
            variable=variable,
            workers=workers,
            on_start=lambda total: progress.update(bar, total=total),
            on_chunk=lambda _: progress.advance(bar),
        )
    if json:
        print_json(found.to_record())
    else:
        Console(highlight=False).print(_summary(found), soft_wrap=True)
    if not found.ok:
        raise typer.Exit(BROKEN)


def _summary(found: "Verification") -> "RenderableType":
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2))
    table.add_row("array", f"{found.name}  {found.shape} {found.dtype.str}")
    if found.chunks:
        table.add_row("chunks", f"{len(found.chunks):,}, {found.n_missing:,} of them not stored")
        table.add_row(
            "bytes",
            f"{found.raw_bytes:,} raw, {found.stored_bytes:,} stored: {found.ratio:.2f}×",
        )
        table.add_row("PSNR", f"{decibel_text(found.psnr)}, of the volume as a whole")
        least, median = decibel_text(found.psnr_min), decibel_text(found.psnr_median)
        table.add_row("  by chunk", f"{least} least, {median} median")
        table.add_row("max error", f"{found.max_error:.6g}")
    for name, promise in found.promises.items():
        sign = "≤" if name == "max_error" else "≥"
        kept = f"broken by {promise.n_broken:,}" if promise.n_broken else "kept"
        verdict = f"worst {promise.worst:.6g}, {kept}"
        if math.isnan(promise.worst):
            verdict = "nothing could be measured"
        table.add_row("promise", f"{name} {sign} {promise.bound:g}: {verdict}")
    if found.ok:
        return Group(table, Text("every promise is kept", "bold green"))
    heading = "the array is not that of this source"
    if found.chunks:
        n_broken = len(found.broken_chunks)
        kinds = Counter(breach.promise for breach in found.breaches).most_common()
        counted = ", ".join(f"{name} {count:,}" for name, count in kinds)
        heading = f"{n_broken:,} of {len(found.chunks):,} chunks break a promise: {counted}"
    listing = Text(f"{heading}\n", "bold red")
    for breach in found.breaches[:_LISTED]:
        where = "" if breach.coordinates is None else f"chunk {breach.coordinates} "
        listing.append(f"  {where}{breach.text}\n", "not bold default")
    rest = len(found.breaches) - _LISTED
    if rest > 0:
        listing.append(f"  and {rest:,} more: --json lists all\n", "not bold default")
    return Group(table, listing)
