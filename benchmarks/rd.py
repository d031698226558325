"""Rate and distortion of TINC and of its peers on the same crops, in the same run, as tables.

python -m benchmarks.rd --markdown                           # all of it; auto:9 takes hours
python -m benchmarks.rd --only features:0 SPERR --ratios 64  # (re)run these, keep the others
python -m benchmarks.rd --missing                            # go on after an interruption
python -m benchmarks.rd --show --markdown                    # tables of what is there

A codec is a peer's name or `model:effort` of TINC. Each result is kept as soon as it is there, in
`results/rd.json`, one row per (volume, ratio, codec) with its own date and commit.
"""

from __future__ import annotations

import argparse
import datetime
import json
import statistics
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from benchmarks import plots, records, volumes
from benchmarks.peers import PEERS, SizeNotReached
from benchmarks.tables import Cell, Grid, gain_cell, number_cell, to_markdown, to_rich
from tinc_codec import config
from tinc_codec.bitstream.header import read_stream
from tinc_codec.bitstream.sections import Section
from tinc_codec.codec import decode_chunk, encode_chunk
from tinc_codec.errors import TargetError
from tinc_codec.metrics import measure
from tinc_codec.params import EncodingParams

RATIOS = (16.0, 32.0, 64.0, 128.0, 256.0, 512.0)
MODELS = ("features", "lattice", "tree", "auto")
SETTINGS = ("features:0", "lattice:0", "tree:4", "auto:4", "auto:9")
REFERENCES = ("HEVC", "SPERR")
KEY = ("volume", "ratio", "codec")
SPEED_RATIO = 64.0
PAGES = Path(__file__).resolve().parent

Row = dict[str, Any]


def parse_setting(setting: str) -> tuple[str, int]:
    """Split `model:effort`.

    Raises
    ------
    ValueError
        If the model is unknown or the effort is no integer.
    """
    model, _, effort = setting.partition(":")
    if model not in MODELS or not effort.isdecimal():
        names = ", ".join(f"{model}:EFFORT" for model in MODELS)
        raise ValueError(f"{setting!r} is not one of {names}")
    return model, int(effort)


def check_codecs(
    parser: argparse.ArgumentParser, codecs: Iterable[str], peers: Iterable[str]
) -> None:
    """End the program with a message if a codec is neither one of the peers nor a setting."""
    for codec in set(codecs) - set(peers):
        try:
            parse_setting(codec)
        except ValueError as unknown:
            parser.error(f"{unknown}, {', '.join(peers)}")


def run_setting(volume: np.ndarray, setting: str, **target: float) -> Row:
    """Encode and decode with TINC and describe the result.

    Parameters
    ----------
    volume : ndarray, (z, y, x)
    setting : str
        `model:effort`.
    **target : float
        One of `ratio` and `max_error`, as `EncodingParams` takes them.

    Raises
    ------
    TargetError
        If the target cannot be met.
    """
    model, effort = parse_setting(setting)
    params = EncodingParams.from_config({"model": model, "effort": effort, **target})
    start = time.perf_counter()
    stream = encode_chunk(volume, params)
    encoded = time.perf_counter()
    decoded = decode_chunk(stream)
    end = time.perf_counter()
    quality = measure(volume, decoded)
    sections = read_stream(stream, max_decoded_bytes=config.get().max_decoded_bytes).sections
    return {
        "size_bytes": len(stream),
        "psnr": quality.psnr,
        "max_error": quality.max_error,
        "encode_s": encoded - start,
        "decode_s": end - encoded,
        "section_bytes": {Section(key).name.lower(): len(body) for key, body in sections.items()},
        "device": config.resolve_device(),
    }


def warm_up(volume: np.ndarray, setting: str, **target: float) -> None:
    """Compile what a setting needs on such data, so that the compiler is not measured."""
    model, effort = parse_setting(setting)
    run_setting(volumes.central_crop(volume, 32), f"{model}:{min(effort, 1)}", **target)


def run_case(volume: np.ndarray, ratio: float, codec: str) -> Row:
    """Measure one codec at one ratio; `psnr` is None and `limit` says why where it cannot be met.

    Sizes are real bytes of everything that is needed to decode, times in seconds.
    """
    try:
        if codec in PEERS:
            return asdict(PEERS[codec](volume, int(volume.nbytes / ratio)))
        return run_setting(volume, codec, ratio=ratio)
    except (SizeNotReached, TargetError) as limit:
        return {"psnr": None, "limit": str(limit)}


def provenance() -> Row:
    """Say when and from which commit a row comes."""
    return {"date": datetime.date.today().isoformat(), "commit": records.commit()}


def load_rows(path: Path) -> list[Row]:
    """Read the rows kept so far, none where there is no file."""
    if not path.exists():
        return []
    rows: list[Row] = json.loads(path.read_text())["rows"]
    return rows


def merge(rows: Iterable[Row], fresh: Iterable[Row], key: Sequence[str] = KEY) -> list[Row]:
    """Replace the rows that have the key of a fresh one, keep the others, sort by key.

    Peers come before our own settings, in the order of `PEERS`.
    """
    merged = {tuple(row[field] for field in key): row for row in [*rows, *fresh]}
    return sorted(
        merged.values(),
        key=lambda row: [
            codec_order(row[field]) if field == "codec" else row[field] for field in key
        ],
    )


def keep(path: Path, row: Row, key: Sequence[str] = KEY, **facts: Any) -> None:
    """Merge a row into the results at `path`, with facts that hold for all rows."""
    records.save(path.stem, merge(load_rows(path), [row], key), path.parent, **facts)


def codec_order(codec: str) -> tuple[int, int]:
    """Give the place of a codec in tables."""
    if codec in PEERS:
        return list(PEERS).index(codec), 0
    model, effort = parse_setting(codec)
    return len(PEERS) + MODELS.index(model), effort


def psnr_grid(rows: Sequence[Mapping[str, Any]], ratio: float) -> Grid:
    """Lay out PSNR in dB: a line per volume, a column per codec, the best one bold."""
    found, names, codecs = _at_ratio(rows, ratio)
    lines = []
    for name in names:
        values = [found.get((name, codec)) for codec in codecs]
        best = max((round(value, 2) for value in values if value is not None), default=None)
        lines.append((name, tuple(number_cell(value, ".2f", best) for value in values)))
    return Grid(f"PSNR at {ratio:g}×, dB", "volume", tuple(codecs), tuple(lines))


def difference_grid(rows: Sequence[Mapping[str, Any]], ratio: float, reference: str) -> Grid:
    """Lay out how far our settings are above a peer, in dB; gains are bold, the mean comes last."""
    found, names, codecs = _at_ratio(rows, ratio)
    ours = [codec for codec in codecs if codec not in PEERS]
    lines = []
    gains: dict[str, list[float]] = {codec: [] for codec in ours}
    for name in names:
        cells = []
        for codec in ours:
            value, other = found.get((name, codec)), found.get((name, reference))
            if value is None or other is None:
                cells.append(Cell("–"))
                continue
            gains[codec].append(value - other)
            cells.append(gain_cell(value - other))
        lines.append((name, tuple(cells)))
    means = tuple(
        gain_cell(statistics.fmean(values)) if values else Cell("–") for values in gains.values()
    )
    return Grid(
        f"dB over {reference} at {ratio:g}×", "volume", tuple(ours), (*lines, ("mean", means))
    )


def speed_grid(rows: Sequence[Mapping[str, Any]], ratio: float) -> Grid:
    """Lay out the median speed of each codec over the volumes, in million voxels per second."""
    timed = [row for row in rows if row["ratio"] == ratio and row["psnr"] is not None]
    codecs = sorted({row["codec"] for row in timed}, key=codec_order)
    lines = []
    for direction in ("encode", "decode"):
        cells = []
        for codec in codecs:
            speed = statistics.median(
                np.prod(row["shape"]) / row[f"{direction}_s"] / 1e6
                for row in timed
                if row["codec"] == codec
            )
            cells.append(Cell(f"{speed:.3g}"))
        lines.append((direction, tuple(cells)))
    return Grid(f"Million voxels per second at {ratio:g}×", "", tuple(codecs), tuple(lines))


def share_grid(rows: Sequence[Mapping[str, Any]], codec: str) -> Grid:
    """Lay out how many of a setting's bytes went to the tree, in percent, per volume and ratio."""
    shares = {}
    for row in rows:
        sizes = row.get("section_bytes", {})
        tree, features = sizes.get("tree", 0), sizes.get("features", 0)
        if row["codec"] == codec and tree + features:
            shares[row["volume"], row["ratio"]] = 100 * tree / (tree + features)
    names = sorted({name for name, _ in shares})
    ratios = sorted({ratio for _, ratio in shares})
    return Grid(
        f"Bytes of {codec} in the tree, %",
        "volume",
        tuple(f"{ratio:g}×" for ratio in ratios),
        tuple(
            (name, tuple(number_cell(shares.get((name, ratio)), ".0f") for ratio in ratios))
            for name in names
        ),
    )


def grids(rows: Sequence[Mapping[str, Any]]) -> list[Grid]:
    """Give all tables of the rows, ratio by ratio, those without a column left out."""
    tables = []
    for ratio in sorted({row["ratio"] for row in rows}):
        tables.append(psnr_grid(rows, ratio))
        tables += [difference_grid(rows, ratio, reference) for reference in REFERENCES]
    tables.append(speed_grid(rows, SPEED_RATIO))
    shared = sorted({row["codec"] for row in rows if row["codec"].startswith("auto:")})
    tables += [share_grid(rows, codec) for codec in shared]
    return [grid for grid in tables if grid.columns]


def page(record: Mapping[str, Any], name: str) -> str:
    """Write the Markdown page of `results/<name>.json`: its origin, the plots, all tables."""
    rows = record["rows"]
    dates = sorted({row["date"] for row in rows})
    machine = record["machine"]
    introduction = f"""\
# Rate and distortion

Written by `python -m benchmarks.rd --markdown` from `results/{name}.json`; not edited by hand.
Central crops of at most {record["crop"]}³ voxels, real encoded bytes, PSNR with the crop's own
maximum − minimum as its peak. Codecs named `model:effort` are ours; a dash means that the codec
cannot make the crop that small. How the peers are run stands in `README.md` and `peers.py`. Peers
run on one thread, ours on all {machine["cores"]} cores of the machine ({machine["processor"]});
times were taken once. Measured {dates[0]} to {dates[-1]}; each row of the JSON has its own date and
commit.

![PSNR against the ratio, per volume](plots/{name}.png)
"""
    return "\n".join([introduction, *(to_markdown(grid) for grid in grids(rows))])


def _at_ratio(
    rows: Sequence[Mapping[str, Any]], ratio: float
) -> tuple[dict[tuple[str, str], float | None], list[str], list[str]]:
    """Give PSNR by (volume, codec), the volumes and the codecs of one ratio, in their order."""
    chosen = [row for row in rows if row["ratio"] == ratio]
    found = {(row["volume"], row["codec"]): row["psnr"] for row in chosen}
    names = sorted({row["volume"] for row in chosen})
    return found, names, sorted({row["codec"] for row in chosen}, key=codec_order)


def measure_all(arguments: argparse.Namespace, path: Path) -> None:
    """Run what was asked for and keep each result in `path` as soon as it is there."""
    origin = provenance()
    for name in arguments.volumes:
        volume = volumes.load(name, arguments.crop, arguments.data)
        for codec in arguments.only:
            done = {tuple(row[field] for field in KEY) for row in load_rows(path)}
            ratios = [
                ratio
                for ratio in arguments.ratios
                if not (arguments.missing and (name, ratio, codec) in done)
            ]
            if ratios and codec not in PEERS:
                warm_up(volume, codec, ratio=8.0)
            for ratio in ratios:
                row = {"volume": name, "ratio": ratio, "codec": codec, **origin}
                row |= {"shape": volume.shape, "dtype": str(volume.dtype)}
                row |= run_case(volume, ratio, codec)
                keep(path, row, crop=arguments.crop)
                print(_line(row), flush=True)


def _line(row: Row) -> str:
    start = f"{row['volume']} {row['ratio']:g}x {row['codec']}: "
    if row["psnr"] is None:
        return f"{start}{row['limit']}"
    return start + (
        f"{row['psnr']:.2f} dB, {row['size_bytes']} bytes, "
        f"encode {row['encode_s']:.2f} s, decode {row['decode_s']:.3f} s"
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, keep, print the tables, draw the plots."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    volumes.add_arguments(parser)
    parser.add_argument("--ratios", nargs="+", type=float, default=list(RATIOS))
    parser.add_argument(
        "--only",
        nargs="+",
        metavar="CODEC",
        default=[*PEERS, *SETTINGS],
        help="peers and model:effort settings to run (default: %(default)s)",
    )
    parser.add_argument("--missing", action="store_true", help="run what has no result yet")
    parser.add_argument("--show", action="store_true", help="run nothing, show what is there")
    parser.add_argument("--markdown", action="store_true", help="write RD.md")
    parser.add_argument("--name", help="stem of the results' file (default: rd, or rd_CROP)")
    arguments = parser.parse_args(argv)
    check_codecs(parser, arguments.only, PEERS)
    name = arguments.name or ("rd" if arguments.crop == 128 else f"rd_{arguments.crop}")
    path = records.RESULTS / f"{name}.json"
    if not arguments.show:
        measure_all(arguments, path)
    record = json.loads(path.read_text())
    console = Console(width=200)
    for grid in grids(record["rows"]):
        console.print(to_rich(grid))
    print(plots.plot(record["rows"], plots.PLOTS / f"{name}.png"))
    if arguments.markdown:
        path = PAGES / f"{name.upper()}.md"
        path.write_text(page(record, name))
        print(path)


if __name__ == "__main__":
    main()
