"""Arguments and options that several subcommands take: the same words everywhere.

What a subcommand has for itself stands in its own module.
"""

from typing import Annotated

import typer

__all__ = [
    "ChunkEdges",
    "Compressed",
    "DecodesAtOnce",
    "Effort",
    "Json",
    "Model",
    "Original",
    "Tile",
    "Variable",
    "edges",
]

Original = Annotated[
    str, typer.Argument(metavar="SRC", help="The source: a file, a Zarr, or a URL of one.")
]
Compressed = Annotated[
    str, typer.Argument(metavar="DST", help="What `tinc compress` made of it: a path or a URL.")
]
Variable = Annotated[str | None, typer.Option(help="Which array of SRC, where there are several.")]
Effort = Annotated[int, typer.Option(min=0, max=9, help="Encode time spent on quality.")]
Model = Annotated[str, typer.Option(help="What bytes go to: auto, features, tree or lattice.")]
Tile = Annotated[
    int | None,
    typer.Option(
        min=16, help="Edge of the parts of a chunk that can be decoded alone. Default: 64."
    ),
]
ChunkEdges = Annotated[
    str | None,
    typer.Option(help="Edge of the chunks: 64, or per axis 64,64,64. Default: up to 128."),
]
DecodesAtOnce = Annotated[
    int | None, typer.Option(min=1, help="Chunks decoded at once; by default one per CPU.")
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


def edges(field: str, text: str | None) -> int | tuple[int, ...] | None:
    """Read "64" or "64,64,64".

    Raises
    ------
    ConfigError
        If it is neither; names the field.
    """
    if text is None:
        return None
    from tinc_codec.errors import ConfigError

    try:
        entries = tuple(int(entry) for entry in text.split(","))
    except ValueError:
        raise ConfigError(
            f"{field}={text!r} is not an edge (64) or one per axis (64,64,64)"
        ) from None
    return entries[0] if len(entries) == 1 else entries
