"""What `compress` costs beside the codec: time, workers, memory.

python -m benchmarks.pipeline
python -m benchmarks.pipeline --only memory        # writes 8 GB into the folder for temporary files

Overhead is the wall time of `compress` with one worker of one thread over the time that the same
chunks take in a loop around the codec, in one process that has done it once before; both in turns,
since clocks and neighbours change, and added up. Memory is the
largest sum of resident sets of the command and all its workers, looked at 20 times a second; more
than the limit ends the run.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from benchmarks import records, volumes
from tinc_codec import config
from tinc_codec.codec import encode_chunk
from tinc_codec.params import EncodingParams
from tinc_codec.pipeline.compress import compress

PARTS = ("overhead", "workers", "memory")
_POLL_SECONDS = 0.05
_PIECE_BYTES = 64 << 20


def fill_volume(tile: np.ndarray, edge: int) -> np.ndarray:
    """Repeat a crop, mirrored so that there are no seams, up to a cube."""
    mirrored = tile
    for axis in range(3):
        mirrored = np.concatenate([mirrored, np.flip(mirrored, axis)], axis)
    repeats = [-(-edge // n) for n in mirrored.shape]
    return np.ascontiguousarray(np.tile(mirrored, repeats)[:edge, :edge, :edge])


def encode_all(volume: np.ndarray, chunk: int, params: EncodingParams) -> float:
    """Return the seconds that encoding all chunks takes, one after the other on one thread."""
    with config.set(threads=1):
        encode_chunk(volume[:chunk, :chunk, :chunk], params)
        start = time.perf_counter()
        for z in range(0, volume.shape[0], chunk):
            for y in range(0, volume.shape[1], chunk):
                for x in range(0, volume.shape[2], chunk):
                    part = volume[z : z + chunk, y : y + chunk, x : x + chunk]
                    encode_chunk(np.ascontiguousarray(part), params)
        return time.perf_counter() - start


def measure_overhead(
    volume: np.ndarray, folder: Path, options: argparse.Namespace
) -> list[dict[str, Any]]:
    """Compare `compress` on one worker of one thread with the chunks alone, in turns."""
    np.save(folder / "volume.npy", volume)
    params = EncodingParams(ratio=options.ratio, effort=options.effort)
    alone_s = 0.0
    wall_s = dict.fromkeys(("threads", "processes"), 0.0)
    in_codec_s = dict.fromkeys(wall_s, 0.0)
    for _ in range(options.rounds):
        alone_s += encode_all(volume, options.chunk, params)
        with config.set(threads=1):
            for scheduler in wall_s:
                summary, seconds = _compress(folder, options, scheduler=scheduler, workers=1)
                wall_s[scheduler] += seconds
                in_codec_s[scheduler] += summary.encode_seconds
    return [
        {
            "part": "overhead",
            "scheduler": scheduler,
            "shape": volume.shape,
            "chunk": options.chunk,
            "effort": options.effort,
            "rounds": options.rounds,
            "alone_s": round(alone_s, 3),
            "wall_s": round(wall_s[scheduler], 3),
            "in_codec_s": round(in_codec_s[scheduler], 3),
            "overhead": round(wall_s[scheduler] / alone_s - 1, 4),
            "beside_codec": round(wall_s[scheduler] / in_codec_s[scheduler] - 1, 4),
        }
        for scheduler in wall_s
    ]


def measure_workers(
    volume: np.ndarray, folder: Path, options: argparse.Namespace
) -> list[dict[str, Any]]:
    """Compare two worker processes with one, one thread each, their start included."""
    np.save(folder / "volume.npy", volume)
    seconds = []
    with config.set(threads=1):
        for workers in (1, 2):
            _, wall_s = _compress(folder, options, scheduler="processes", workers=workers)
            seconds.append(wall_s)
    return [
        {
            "part": "workers",
            "shape": volume.shape,
            "chunk": options.chunk,
            "effort": options.effort,
            "one_s": round(seconds[0], 3),
            "two_s": round(seconds[1], 3),
            "speedup": round(seconds[0] / seconds[1], 3),
        }
    ]


def _compress(
    folder: Path, options: argparse.Namespace, *, scheduler: str, workers: int
) -> tuple[Any, float]:
    start = time.perf_counter()
    summary = compress(
        folder / "volume.npy",
        folder / "volume.zarr",
        ratio=options.ratio,
        effort=options.effort,
        chunks=options.chunk,
        scheduler=scheduler,
        workers=workers,
        overwrite=True,
    )
    assert summary.complete, summary.failures[:3]
    return summary, time.perf_counter() - start


def write_large(path: Path, tile: np.ndarray, size_bytes: int) -> tuple[int, ...]:
    """Write a `.npy` of about so many bytes in pieces; its planes differ throughout."""
    edge = 1024 if size_bytes >= 1 << 30 else 256
    plane = fill_volume(tile[:, : edge // 2, : edge // 2], edge)[: 2 * len(tile)]
    depth = max(1, size_bytes // (4 * edge * edge))
    rng = np.random.default_rng(0)
    with path.open("wb") as stream:
        header = {"descr": "<f4", "fortran_order": False, "shape": (depth, edge, edge)}
        np.lib.format.write_array_header_1_0(stream, header)
        for z in range(depth):
            gain = np.float32(1 + 0.2 * np.sin(z / 50))
            noise = rng.normal(0, 0.5, (edge, edge)).astype("f4")
            (plane[z % len(plane)].astype("f4") * gain + noise).tofile(stream)
    return depth, edge, edge


def measure_memory(
    tile: np.ndarray, folder: Path, options: argparse.Namespace
) -> list[dict[str, Any]]:
    """Run the command on a large source; more memory than allowed ends it."""
    source = folder / "large.npy"
    shape = write_large(source, tile, int(options.memory_gb * 1e9))
    limit_bytes = int(options.limit_gb * 1e9)
    start = time.perf_counter()
    run = subprocess.Popen(
        [
            sys.executable, "-c", "from tinc_codec.cli.app import main; main()", "compress",
            str(source), str(folder / "large.zarr"), "--ratio", str(options.ratio),
            "--effort", str(options.effort), "--workers", "2", "--json",
        ],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    peak = 0
    while run.poll() is None:
        peak = max(peak, resident_bytes(run.pid))
        if peak > limit_bytes:
            run.kill()
            raise SystemExit(f"{peak / 1e9:.2f} GB, the limit is {options.limit_gb} GB")
        time.sleep(_POLL_SECONDS)
    assert run.stdout is not None
    summary = json.loads(run.stdout.read())
    assert run.returncode == 0, summary["failures"]
    return [
        {
            "part": "memory",
            "shape": shape,
            "source_gb": round(source.stat().st_size / 1e9, 2),
            "chunks": summary["chunks"],
            "workers": 2,
            "effort": options.effort,
            "limit_gb": options.limit_gb,
            "peak_gb": round(peak / 1e9, 3),
            "wall_s": round(time.perf_counter() - start, 1),
            "ratio": round(summary["ratio"], 2),
            "psnr": round(summary["psnr"], 2),
        }
    ]


def resident_bytes(pid: int) -> int:
    """Add up the resident sets of a process and all below it; shared pages count every time."""
    total = 0
    try:
        tree = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        return 0
    for process in tree:
        try:
            total += process.memory_info().rss
        except psutil.NoSuchProcess:
            continue
    return total


def main() -> None:
    """Measure what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", help="directory of *.npz (default: $TINC_DATA)")
    parser.add_argument("--volume", default="mri_t1")
    parser.add_argument("--edge", type=int, default=512, help="of the volume that is timed")
    parser.add_argument("--chunk", type=int, default=128)
    parser.add_argument("--ratio", type=float, default=64)
    parser.add_argument("--effort", type=int, default=0)
    parser.add_argument(
        "--rounds", type=int, default=3, help="of overhead, loop and command in turns"
    )
    parser.add_argument("--memory-gb", type=float, default=8)
    parser.add_argument("--limit-gb", type=float, default=2)
    parser.add_argument("--only", choices=PARTS)
    parser.add_argument("--results", type=Path, default=records.RESULTS)
    options = parser.parse_args()
    tile = volumes.load(options.volume, 128, options.data)
    path = options.results / "pipeline.json"
    kept = json.loads(path.read_text())["rows"] if options.only and path.exists() else []
    rows = [row for row in kept if row["part"] != options.only]
    for part in PARTS:
        if options.only in (None, part):
            with tempfile.TemporaryDirectory() as name:
                measure = {
                    "overhead": lambda folder: measure_overhead(
                        fill_volume(tile, options.edge), folder, options
                    ),
                    "workers": lambda folder: measure_workers(
                        fill_volume(tile, options.edge), folder, options
                    ),
                    "memory": lambda folder: measure_memory(tile, folder, options),
                }[part]
                found = measure(Path(name))
            print(*found, sep="\n", flush=True)
            rows += found
    print(records.save("pipeline", rows, options.results))


if __name__ == "__main__":
    main()
