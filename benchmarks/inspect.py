"""How long `tinc inspect` takes on an array of many chunks, and how little it reads.

python -m benchmarks.inspect

Every chunk is the same real stream: only headers are read, so nothing else matters. The arrays are
in a local folder, plain (a file per chunk) and in shards.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.storage import LocalStore, WrapperStore

import tinc_codec
from benchmarks import records
from tinc_codec import TINC

EDGE = 16
CODEC = TINC(ratio=16, effort=0, model="features")
SHARD = 10
REPEATS = 3


class CountingStore(WrapperStore[LocalStore]):
    """Adds up what is read of a store."""

    requests = 0
    n_bytes = 0

    async def get(self, key: str, prototype: Any, byte_range: Any = None) -> Any:
        """Read, and count."""
        found = await super().get(key, prototype, byte_range)
        self.requests += 1
        self.n_bytes += 0 if found is None else len(found)
        return found


def create(path: Path, n_chunks: int, *, sharded: bool) -> Any:
    """Create an array of about so many chunks, in a row of layers of `SHARD` by `SHARD` chunks."""
    layers = max(1, n_chunks // SHARD**2)
    shape = (layers * EDGE, SHARD * EDGE, SHARD * EDGE)
    rng = np.random.default_rng(0)
    chunk = np.cumsum(rng.normal(size=(EDGE,) * 3), axis=0).astype("f4")
    edge = min(SHARD, layers) * EDGE
    shards = (edge, SHARD * EDGE, SHARD * EDGE) if sharded else None
    array = zarr.create_array(
        path, shape=shape, chunks=(EDGE,) * 3, shards=shards, dtype="f4", serializer=CODEC,
        compressors=None,
    )  # fmt: skip
    stream = CODEC.encode(chunk)
    if not sharded:
        for position in np.ndindex(layers, SHARD, SHARD):
            key = path / array.metadata.encode_chunk_key(position)
            key.parent.mkdir(parents=True, exist_ok=True)
            key.write_bytes(stream)
        return array
    # One shard through zarr, the others are copies of its file.
    array[:edge] = np.tile(chunk, (edge // EDGE, SHARD, SHARD))
    first = (path / array.metadata.encode_chunk_key((0, 0, 0))).read_bytes()
    for number in range(1, -(-shape[0] // edge)):
        key = path / array.metadata.encode_chunk_key((number, 0, 0))
        key.parent.mkdir(parents=True, exist_ok=True)
        key.write_bytes(first)
    return array


def measure(folder: Path, n_chunks: int) -> Iterator[dict[str, Any]]:
    """Measure an array of about so many chunks, plain and sharded.

    Yields
    ------
    dict
        "inspect_s" is the best of `REPEATS` calls in one process, "command_s" that of the command,
        from its start to its end.
    """
    for sharded in (False, True):
        path = folder / ("sharded" if sharded else "plain")
        create(path, n_chunks, sharded=sharded)
        store = CountingStore(LocalStore(path, read_only=True))
        report = tinc_codec.inspect(zarr.open_array(store, mode="r"))
        command = [sys.executable, "-c", "from tinc_codec.cli.app import main; main()"]
        yield {
            "layout": path.name,
            "n_chunks": len(report.chunks),
            "stored_bytes": report.stored_bytes,
            "requests": store.requests,
            "bytes_read": store.n_bytes,
            "inspect_s": _best_s(partial(tinc_codec.inspect, path)),
            "command_s": _best_s(
                partial(
                    subprocess.run,
                    [*command, "inspect", str(path), "--map"],
                    check=True,
                    capture_output=True,
                )
            ),
        }


def _best_s(call: Callable[[], Any]) -> float:
    seconds = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def main() -> None:
    """Measure, print a line each and keep the rows as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--chunks", type=int, default=10_000)
    arguments = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for row in measure(Path(folder), arguments.chunks):
            print(
                f"{row['layout']}: {row['n_chunks']:,} chunks, inspect {row['inspect_s']:.2f} s, "
                f"command {row['command_s']:.2f} s, {row['requests']:,} requests for "
                f"{row['bytes_read']:,} of {row['stored_bytes']:,} bytes",
                flush=True,
            )
            rows.append(row)
    print(f"kept in {records.save('inspect', rows, chunk_edge=EDGE).name}")


if __name__ == "__main__":
    main()
