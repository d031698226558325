"""`tinc warm-up`."""

from typing import Annotated

import typer

from tinc_codec.cli.console import BROKEN, counting, messages, refusals

__all__ = ["warm_up_command"]


def warm_up_command(
    dtypes: Annotated[
        str, typer.Option("--dtypes", metavar="D,D,…", help="Of the voxels to be coded.")
    ] = "uint8,int16,uint16,float32",
) -> None:
    """Compile now what is else compiled when it is first needed.

    Reading and writing run compiled code, which a machine makes once and
    keeps. In the image of a container, on a cluster's nodes or before a
    measurement, do it beforehand. Where all is there it takes seconds.

    [bold]Examples[/]

    tinc warm-up

    NUMBA_CACHE_DIR=/opt/kernels tinc warm-up --dtypes uint16
    """
    names = [name.strip() for name in dtypes.split(",") if name.strip()]
    with refusals(), counting("steps") as progress:
        from tinc_codec.pipeline.warm_up import count_steps, warm_up

        bar = progress.add_task("compiling", total=count_steps(names))
        found = warm_up(names, on_step=lambda: progress.advance(bar))
    messages.print(f"done in {found.seconds:.0f} s", highlight=False)
    if not found.is_kept:
        messages.print(
            "[red]but nothing is kept:[/] neither the package's folder nor the user's cache can be "
            "written; set NUMBA_CACHE_DIR to a folder that can, here and where chunks are read"
        )
        raise typer.Exit(BROKEN)
