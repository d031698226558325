"""`tinc serve`."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from tinc_codec.cli.console import messages, print_json, refusals

__all__ = ["serve_command"]


class _Compressor(StrEnum):
    """`tinc_codec.serve.metadata.COMPRESSORS`, which would import zarr."""

    none = "none"
    gzip = "gzip"
    zstd = "zstd"
    blosc = "blosc"


_Served = Annotated[
    str,
    typer.Argument(
        metavar="DST", help="A Zarr: folder, zip file or fsspec URL.", show_default=False
    ),
]
_Host = Annotated[
    str, typer.Option(help="Address to listen at. Others than this machine reach 0.0.0.0.")
]
_Port = Annotated[int, typer.Option(min=0, max=65535, help="0: any that is free.")]
_CacheBytes = Annotated[str, typer.Option(help="Memory for decoded chunks, such as 500MB or 2GiB.")]
_MaxDecodes = Annotated[
    int | None, typer.Option(min=1, help="Chunks decoded at once (default: one per CPU).")
]
_AllowOrigin = Annotated[
    list[str] | None,
    typer.Option(
        metavar="ORIGIN",
        help="Web pages that may read, such as https://example.org; '*' for all; may be given "
        "several times (default: neuroglancer, vizarr, Avivator, the OME-NGFF validator). "
        "Pages of this machine always may.",
        show_default=False,
    ),
]
_Recompress = Annotated[
    _Compressor, typer.Option(help="Compress decoded chunks again: for slow networks.")
]
_Json = Annotated[bool, typer.Option("--json", help="Print the URLs as JSON.")]


def serve_command(
    source: _Served,
    host: _Host = "127.0.0.1",
    port: _Port = 0,
    cache_bytes: _CacheBytes = "1GB",
    max_decodes: _MaxDecodes = None,
    allow_origin: _AllowOrigin = None,
    compressor: _Recompress = _Compressor.none,
    json: _Json = False,
) -> None:
    """Offer a Zarr over HTTP to viewers that do not know TINC.

    Chunks are decoded when they are asked for and kept as long as there is room. What is offered
    is an ordinary Zarr: neuroglancer, vizarr, Avivator, zarrita.js and plain zarr open it.
    Nothing can be written. Ctrl-C ends it.

    [bold]Examples[/]

    tinc serve brain.zarr

    tinc serve brain.zarr --port 8080 --cache-bytes 4GB

    tinc serve s3://bucket/brain.zarr --allow-origin https://viewer.example.org
    """
    import logging

    logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    # A request that is no HTTP is refused, which is no reason for a traceback.
    logging.getLogger("aiohttp.server").setLevel(logging.CRITICAL)
    with refusals():
        from tinc_codec.serve import VIEWER_ORIGINS, Limits, app, serve, viewer_links
        from tinc_codec.serve.application import SERVICE
        from tinc_codec.serve.exchange import is_loopback
        from tinc_codec.serve.limits import parse_bytes

        name = served_name(source)
        application = app(
            source,
            name=name,
            compressor=compressor.value,
            allow_origins=VIEWER_ORIGINS if allow_origin is None else allow_origin,
            allow_hosts=() if is_loopback(host) else None,
            limits=Limits(cache_bytes=parse_bytes(cache_bytes), max_decodes=max_decodes),
        )
        if not is_loopback(host):
            _warn_of(host, name)

        def announce(base_url: str) -> None:
            url = f"{base_url}/{name}"
            links = viewer_links(url, multiscale=application[SERVICE].is_multiscale)
            _announce(url, links, json)

        serve(application, host=host, port=port, started=announce)


def _warn_of(host: str, name: str) -> None:
    messages.print(
        f"[yellow]warning:[/] everyone who reaches {host} can read {name}, unencrypted and "
        "without a password; viewers loaded over https cannot. With an ssh tunnel "
        "(ssh -L) to a server on 127.0.0.1 it is the other way round.",
        highlight=False,
    )


def _announce(url: str, links: Mapping[str, str], json: bool) -> None:
    if json:
        print_json({"url": url, "viewers": links})
    else:
        print(url)
        for viewer, link in links.items():
            messages.print(f"{viewer:<18} {link}", markup=False, highlight=False, soft_wrap=True)
        messages.print("Ctrl-C ends it.")
    # Whoever started this in a pipe waits for the URL.
    sys.stdout.flush()


def served_name(source: str) -> str:
    """Name a source as the first segment of its URL: viewers know a Zarr by its suffix."""
    last = re.split(r"[/\\:]", source.rstrip("/\\"))[-1]
    if last in ("", ".", ".."):
        last = Path(source).resolve().name
    stem = re.sub(r"[^A-Za-z0-9._-]", "_", last).removesuffix(".zip").removesuffix(".zarr")
    return f"{stem.strip('.') or 'volume'}.zarr"
