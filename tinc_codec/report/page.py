"""The page of a report: one HTML file that needs nothing beside itself."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files

from tinc_codec.numcodecs import TINC
from tinc_codec.pipeline.checks import ChunkCheck
from tinc_codec.pipeline.verification import Verification
from tinc_codec.pipeline.volumes import VolumeInfo
from tinc_codec.report.comparison import PeerReport
from tinc_codec.report.elements import Figure, figure, section, table
from tinc_codec.report.wording import (
    coordinates_text,
    decibel_text,
    figure_text,
    range_share,
    size_text,
    times_text,
    unit_suffix,
    voxel_size,
    voxels_text,
)

__all__ = ["PageContent", "render_page"]

_WORST = 10
_BREACHES = 50
# Parts of a stream; colours from the palette of Okabe and Ito.
_PART_COLOURS = (
    "#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#999999", "#f0e442",
)  # fmt: skip
_PLANES = (
    "Planes through the middle. Before and after share one grey scale, which leaves out the half "
    "per cent of voxels at either end; the difference has a scale of its own. What is not finite, "
    "or cannot be read, is ochre."
)
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


@dataclass(frozen=True, kw_only=True)
class PageContent:
    """All that a page says.

    Attributes
    ----------
    source : str
        What was compressed, as it was given.
    info : VolumeInfo
    found : Verification
    planes, worst_planes : sequence of Figure
        Through the middle of the volume and of its worst chunk.
    worst : ChunkCheck or None
        The chunk that `worst_planes` show.
    histogram, chunk_map, peers_plot : Figure or None
    peers : PeerReport or None
    peers_note : str
        Why there are no peers, where `peers` is None.
    made : str
        Date and versions.
    """

    source: str
    info: VolumeInfo
    found: Verification
    planes: Sequence[Figure]
    worst_planes: Sequence[Figure]
    worst: ChunkCheck | None
    histogram: Figure | None
    chunk_map: Figure | None
    peers: PeerReport | None
    peers_plot: Figure | None
    peers_note: str
    made: str


def render_page(content: PageContent) -> str:
    """Write the page.

    Returns
    -------
    str
        HTML without scripts and without anything to fetch; a policy in its head forbids both.
    """
    style = files("tinc_codec.report").joinpath("page.css").read_text(encoding="utf-8")
    title = f"{content.info.name}: what compression kept"
    sections = [
        _facts(content),
        _slices(content),
        _errors(content),
        _chunks(content),
        _bytes(content.found),
        _peers(content),
    ]
    return "\n".join(
        [
            "<!DOCTYPE html>",
            '<html lang="en">',
            "<head>",
            '<meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{escape(_POLICY)}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{escape(title)}</title>",
            f"<style>\n{style}</style>",
            "</head>",
            "<body>",
            _header(content),
            "<main>",
            *filter(None, sections),
            "</main>",
            _footer(content),
            "</body>",
            "</html>",
            "",
        ]
    )


def _header(content: PageContent) -> str:
    found = content.found
    lead = f"{times_text(found.shape)} voxels, {found.dtype.name}"
    size = voxel_size(content.info)
    if size:
        lead += f", {size} each"
    verdict = '<p class="verdict kept">✓ Every promise is kept</p>'
    if not found.ok:
        n_broken = len(found.broken_chunks)
        text = f"{n_broken:,} of {len(found.chunks):,} chunks break a promise"
        if not found.chunks:
            text = "The array is not that of this source"
        verdict = f'<p class="verdict broken">✗ {escape(text)}</p>'
    unit = unit_suffix(content.info)
    cards = [
        (
            "Size",
            f"{found.ratio:.1f}×",
            f"{size_text(found.raw_bytes)} → {size_text(found.stored_bytes)}",
        ),
        ("PSNR", decibel_text(found.psnr), "of the volume as a whole"),
        ("Worst chunk", decibel_text(found.psnr_min), f"median {decibel_text(found.psnr_median)}"),
        ("Largest error", figure_text(found.max_error) + unit, range_share(found)),
    ]
    for name, promise in found.promises.items():
        sign = "≤" if name == "max_error" else "≥"
        words = {"ratio": "ratio", "psnr": "PSNR", "max_error": "error"}[name]
        kept = "kept by every chunk"
        if promise.n_broken:
            kept = f"broken by {promise.n_broken:,}"
        elif any(breach.promise == "stream" for breach in found.breaches):
            kept = "kept by every chunk that can be read"
        bound = {"ratio": f"{promise.bound:g}×", "psnr": f"{promise.bound:g} dB"}
        text = bound.get(name, f"{promise.bound:g}{unit}")
        cards.append((f"Promised {words}", f"{sign} {text}", kept))
    listed = "".join(
        f"<div><dt>{escape(label)}</dt><dd>{escape(value)}<small>{escape(note)}</small></dd></div>"
        for label, value, note in cards
    )
    return (
        f"<header>\n<h1>{escape(content.info.name)}</h1>\n"
        f'<p class="lead">{escape(lead)}</p>\n{verdict}\n<dl class="cards">{listed}</dl>\n</header>'
    )


def _facts(content: PageContent) -> str:
    found, info = content.found, content.info
    low, high = found.value_range
    shards = f" in shards of {times_text(found.shard_shape)}" if found.shard_shape else ""
    layout = f"{times_text(found.grid_shape)} of {times_text(found.chunk_shape)} voxels{shards}"
    if found.n_missing:
        layout += f"; {found.n_missing:,} of {len(found.chunks):,} not stored, all fill value"
    place = found.name.removeprefix("file://")
    rows = [
        ("source", f"<code>{escape(content.source)}</code>"),
        ("compressed", f"<code>{escape(place)}</code>"),
        (
            "axes",
            escape(" × ".join(map(str.__add__, info.axes, map(" ({:,})".format, found.shape)))),
        ),
        ("voxel size", escape(voxel_size(info) or "not known")),
        (
            "values",
            escape(
                f"{found.dtype.name}, {figure_text(low)} to {figure_text(high)}{unit_suffix(info)}"
            ),
        ),
        ("chunks", escape(layout)),
        ("codec", f"<code>{escape(repr(TINC(**found.codec)))}</code>"),
        ("bytes", f"{found.raw_bytes:,} raw, {found.stored_bytes:,} stored"),
    ]
    body = "".join(f'<tr><th scope="row">{label}</th><td>{text}</td></tr>' for label, text in rows)
    facts = f'<table class="facts"><tbody>{body}</tbody></table>'
    return f"<section>\n<h2>The volume</h2>\n{facts}{_breaches(found)}</section>"


def _breaches(found: Verification) -> str:
    if found.ok:
        return ""
    rows = [
        [
            "the array" if breach.coordinates is None else coordinates_text(breach.coordinates),
            escape(breach.promise),
            escape(breach.text),
        ]
        for breach in found.breaches[:_BREACHES]
    ]
    caption = (
        f"The first {_BREACHES} of {len(found.breaches):,}" if found.breaches[_BREACHES:] else ""
    )
    return "<h3>Broken promises</h3>" + table(["chunk", "promise", "found"], rows, caption=caption)


def _slices(content: PageContent) -> str:
    if not content.planes:
        return ""
    parts = [
        "<h2>Before and after</h2>",
        f"<p>{_PLANES}</p>",
        *map(figure, content.planes),
    ]
    if content.worst is not None and content.worst_planes:
        where = coordinates_text(content.worst.coordinates)
        parts += [
            f"<h3>The worst chunk: {where}, {decibel_text(content.worst.psnr)}</h3>",
            *map(figure, content.worst_planes),
        ]
    return section(parts)


def _errors(content: PageContent) -> str:
    if content.histogram is None:
        return ""
    return section(["<h2>Errors</h2>", figure(content.histogram)])


def _chunks(content: PageContent) -> str:
    found = content.found
    if content.chunk_map is None:
        return ""
    ordered = sorted(
        (chunk for chunk in found.chunks if not math.isnan(chunk.psnr)),
        key=lambda chunk: (chunk.psnr, -chunk.max_error, chunk.coordinates),
    )
    rows = [
        [
            coordinates_text(chunk.coordinates),
            escape(voxels_text(chunk.coordinates, found, content.info)),
            decibel_text(chunk.psnr),
            figure_text(chunk.max_error),
            f"{chunk.size_bytes:,}",
        ]
        for chunk in ordered[:_WORST]
    ]
    return section(
        [
            "<h2>Quality by chunk</h2>",
            "<p>PSNR of each chunk, with the chunk's own range of values as peak.</p>",
            figure(content.chunk_map),
            table(
                ["chunk", "voxels", "PSNR", "largest error", "bytes"],
                rows,
                caption=f"The {len(rows)} worst of {len(found.chunks):,} chunks",
                numbers=(2, 3, 4),
            ),
        ]
    )


def _bytes(found: Verification) -> str:
    parts = found.part_bytes
    total = sum(parts.values())
    if not total:
        return ""
    ordered = sorted(parts.items(), key=lambda part: -part[1])
    coloured = [
        (name, size_bytes, _PART_COLOURS[number % len(_PART_COLOURS)])
        for number, (name, size_bytes) in enumerate(ordered)
    ]
    bar = "".join(
        f'<span style="width:{100 * size_bytes / total:.3f}%;background:{colour}"></span>'
        for _, size_bytes, colour in coloured
    )
    rows = [
        [
            f'<span class="swatch" style="background:{colour}"></span>{escape(name)}',
            f"{size_bytes:,}",
            f"{size_bytes / total:.1%}" if size_bytes >= 5e-4 * total else "&lt; 0.1%",
        ]
        for name, size_bytes, colour in coloured
    ]
    return section(
        [
            "<h2>Where the bytes go</h2>",
            f'<div class="bar" aria-hidden="true">{bar}</div>',
            table(["part", "bytes", "share"], rows, numbers=(1, 2)),
        ]
    )


def _peers(content: PageContent) -> str:
    peers = content.peers
    if peers is None:
        return section(["<h2>Beside other codecs</h2>", f"<p>{escape(content.peers_note)}</p>"])
    ours = peers.curves[0].at(peers.asked_bytes)
    assert ours is not None
    rows = []
    for curve in peers.curves:
        point = curve.at(peers.asked_bytes)
        if point is None:
            rows.append([escape(curve.name), *("–",) * 4, escape(curve.missing or "")])
            continue
        note = "" if curve.missing is None else curve.missing
        if point.size_bytes > 1.02 * peers.asked_bytes:
            note = "cannot go as low"
        elif point.size_bytes < 0.95 * peers.asked_bytes:
            note = "its best within this size"
        rows.append(
            [
                escape(curve.name),
                f"{point.size_bytes:,}",
                f"{peers.raw_bytes / point.size_bytes:.1f}×",
                decibel_text(point.psnr),
                figure_text(point.max_error),
                escape(note),
            ]
        )
    own = "as it is stored" if peers.stored else "its middle, encoded again"
    text = (
        f"Chunk {coordinates_text(peers.coordinates)} ({times_text(peers.shape)} voxels, {own}), "
        f"and the same voxels encoded by others in as many bytes ({ours.size_bytes:,}): the "
        "closest size at or below it that was found. PSNR is relative to the range of "
        "these voxels."
    )
    compared = table(
        ["codec", "bytes", "ratio", "PSNR", "largest error", "remark"],
        rows,
        numbers=(1, 2, 3, 4),
        ours=0,
    )
    plot = "" if content.peers_plot is None else figure(content.peers_plot)
    return section(["<h2>Beside other codecs</h2>", f"<p>{text}</p>", compared, plot])


def _footer(content: PageContent) -> str:
    return (
        "<footer>\n<p>PSNR is 20 log₁₀(range ÷ root mean squared error), over finite voxels: the "
        "range is that of the whole volume for the volume, of the chunk for a chunk. Every chunk "
        "was decoded and compared with its source; a promise is kept when each chunk keeps it. "
        "Ratios count all stored bytes of the chunks, not the metadata.</p>\n"
        f"<p>{escape(content.made)}</p>\n</footer>"
    )
