"""How fast `tinc serve` answers: chunks never asked for, chunks asked for before, many clients.

python -m benchmarks.serve

The server is a process of its own, the clients are connections of this one, each asking for the
next chunk once it has the last. A cold chunk is decoded, a cached one comes from memory, one that
is passed on is a file of an array stored with zarr's own default codec.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import zarr

from benchmarks import records, volumes
from tinc_codec import TINC, config
from tinc_codec.codec import decode_chunk

COMPRESSORS = ("none", "gzip", "zstd", "blosc")
# Chunks asked for before anything is timed: the first decode loads compiled code.
WARM_UP = 2


def write_store(path: Path, volume: np.ndarray, chunk: int, tinc: TINC) -> list[str]:
    """Write the volume twice, with TINC and with zarr's default; return the keys of the chunks."""
    group = zarr.create_group(path)
    for name, codecs in {"tinc": {"serializer": tinc, "compressors": None}, "other": {}}.items():
        group.create_array(name, data=volume, chunks=(chunk,) * volume.ndim, **codecs)
    grid = [-(-n // chunk) for n in volume.shape]
    return ["/".join(map(str, ("c", *position))) for position in np.ndindex(*grid)]


def decode_ms(path: Path, keys: Sequence[str]) -> float:
    """Return the median time of decoding a stored chunk, without a server."""
    times = []
    for key in keys:
        stream = (path / "tinc" / key).read_bytes()
        start = time.perf_counter()
        decode_chunk(stream)
        times.append(time.perf_counter() - start)
    return 1000 * statistics.median(times[WARM_UP:])


@contextmanager
def running(path: Path, compressor: str) -> Iterator[str]:
    """Run `tinc serve` in a process of its own; gives its URL."""
    code = "from tinc_codec.cli.app import main; main()"
    command = [sys.executable, "-c", code, "serve", str(path), "--json", "--compressor", compressor]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            lines = itertools.takewhile(lambda line: line != "}\n", process.stdout)
            yield json.loads("".join([*lines, "}"]))["url"]
        finally:
            process.terminate()


async def load(urls: Sequence[str], clients: int) -> tuple[list[float], int, float]:
    """Ask for all URLs, `clients` at a time; return latencies in s, bytes received, and seconds."""
    remaining = iter(urls)
    latencies: list[float] = []
    received = 0

    async def client(session: aiohttp.ClientSession) -> None:
        nonlocal received
        for url in remaining:
            start = time.perf_counter()
            async with session.get(url) as response:
                response.raise_for_status()
                body = await response.read()
            received += len(body)
            latencies.append(time.perf_counter() - start)

    connector = aiohttp.TCPConnector(limit=clients)
    async with aiohttp.ClientSession(connector=connector) as session:
        start = time.perf_counter()
        await asyncio.gather(*(client(session) for _ in range(clients)))
        return latencies, received, time.perf_counter() - start


def summary(urls: Sequence[str], clients: int, chunk_voxels: int) -> dict[str, Any]:
    """Measure a load and sum it up."""
    latencies, received, seconds = asyncio.run(load(urls, clients))
    return {
        "clients": clients,
        "requests": len(urls),
        "body_bytes": received // len(urls),
        "median_ms": round(1000 * statistics.median(latencies), 3),
        "p95_ms": round(1000 * float(np.percentile(latencies, 95)), 3),
        "requests_per_s": round(len(urls) / seconds, 1),
        "mvoxels_per_s": round(len(urls) * chunk_voxels / seconds / 1e6, 1),
        "mbytes_per_s": round(received / seconds / 1e6, 1),
    }


def measure(
    path: Path,
    keys: Sequence[str],
    *,
    compressor: str,
    clients: int,
    rounds: int,
    chunk_voxels: int,
) -> Iterator[dict[str, Any]]:
    """Measure one server: every chunk once, then every chunk `rounds` times, then the others."""
    with running(path, compressor) as url:
        chunks = [f"{url}/tinc/{key}" for key in keys]
        others = [f"{url}/other/{key}" for key in keys]
        asyncio.run(load([*chunks[:WARM_UP], *others[:WARM_UP]], 1))
        loads = {
            "cold": chunks[WARM_UP:],
            "cached": chunks * rounds,
            "passed on": others * rounds,
        }
        for state, urls in loads.items():
            yield {
                "compressor": compressor,
                "state": state,
                **summary(urls, clients, chunk_voxels),
            }


def main() -> None:
    """Measure a tiled crop with each number of clients and each compressor."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", help="directory of *.npz (default: $TINC_DATA)")
    parser.add_argument("--volume", default="mri_t1")
    parser.add_argument("--crop", type=int, default=128)
    parser.add_argument("--tile", type=int, default=3, help="repeats of the crop along each axis")
    parser.add_argument("--chunk", type=int, default=64, help="edge of the chunks in voxels")
    parser.add_argument("--ratio", type=float, default=64)
    parser.add_argument("--effort", type=int, default=0)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--compressors", nargs="+", choices=COMPRESSORS, default=["none"])
    parser.add_argument("--rounds", type=int, default=5, help="times each cached chunk is read")
    parser.add_argument("--name", default="serve", help="of the result file")
    options = parser.parse_args()
    crop = volumes.load(options.volume, options.crop, options.data)
    volume = np.tile(crop, (options.tile,) * crop.ndim)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "served.zarr"
        tinc = TINC(ratio=options.ratio, effort=options.effort)
        keys = write_store(path, volume, options.chunk, tinc)
        shared = {
            "volume": options.volume,
            "dtype": str(volume.dtype),
            "chunk": options.chunk,
            "decode_ms": round(decode_ms(path, keys), 3),
        }
        for compressor, clients in itertools.product(options.compressors, options.clients):
            for row in measure(
                path,
                keys,
                compressor=compressor,
                clients=clients,
                rounds=options.rounds,
                chunk_voxels=options.chunk**volume.ndim,
            ):
                rows.append({**shared, **row})
                print(rows[-1])
    print(records.save(options.name, rows, threads=config.resolve_threads()))


if __name__ == "__main__":
    main()
