"""The `tinc` command itself: its subcommands and how it starts."""

from typing import Annotated

import typer

from tinc_codec.cli.compress import compress_command
from tinc_codec.cli.decompress import decompress_command
from tinc_codec.cli.inspect import inspect_command
from tinc_codec.cli.levels import levels_command
from tinc_codec.cli.plan import plan_command
from tinc_codec.cli.report import report_command
from tinc_codec.cli.serve import serve_command
from tinc_codec.cli.verify import verify_command
from tinc_codec.cli.warm_up import warm_up_command

__all__ = ["app", "main"]

app = typer.Typer(
    help="Compress volumes into Zarr stores, check them, look at them.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
)

app.command("compress")(compress_command)
app.command("plan")(plan_command)
app.command("inspect")(inspect_command)
app.command("verify")(verify_command)
app.command("report")(report_command)
app.command("decompress")(decompress_command)
app.command("levels")(levels_command)
app.command("serve")(serve_command)
app.command("warm-up")(warm_up_command)


def _version(wanted: bool) -> None:
    if wanted:
        import tinc_codec

        typer.echo(f"tinc_codec {tinc_codec.__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    """Compress volumes into Zarr stores, check them, look at them."""


def main() -> None:
    """Run the `tinc` command."""
    app()
