"""What every subcommand shares: where messages go, JSON for machines, exit statuses."""

import json
import math
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Console

if TYPE_CHECKING:
    from rich.progress import Progress

__all__ = ["BROKEN", "REFUSED", "counting", "messages", "print_json", "refusals"]

BROKEN = 1
"""Exit status: the command ran, and something is not as it should be (a broken promise, a failed
chunk)."""
REFUSED = 2
"""Exit status: nothing was done, because of a wrong argument or a file that cannot be used."""

messages = Console(stderr=True)
"""Progress, tables for people and errors; standard output is for results that are piped on."""


def print_json(record: Mapping[str, Any]) -> None:
    """Print one JSON object; NaN and infinities, which JSON lacks, become strings."""
    json.dump(_plain(record), sys.stdout, indent=2)
    sys.stdout.write("\n")


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if hasattr(value, "item") and not isinstance(value, (str, bytes)):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def counting(*unit: str) -> "Progress":
    """Make a bar for what can be counted, gone in the end; a unit stands behind the numbers."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    return Progress(
        "{task.description}", BarColumn(), MofNCompleteColumn(), *unit, TimeRemainingColumn(),
        console=messages, transient=True,
    )  # fmt: skip


@contextmanager
def refusals() -> Iterator[None]:
    """Turn errors that a user can mend into one line and the exit status `REFUSED`."""
    import typer

    from tinc_codec.errors import TincError

    try:
        yield
    except (TincError, OSError) as error:
        messages.print(f"[red]error:[/] {type(error).__name__}: ", end="")
        messages.print(str(error), markup=False, highlight=False)
        raise typer.Exit(REFUSED) from error
