"""What a look into a stored volume costs: time and bytes fetched, from a directory and from S3.

python -m benchmarks.access

The same array is stored with TINC (features), Blosc-Zstd (lossless) and SPERR at TINC's ratio, in
chunks of one shape (SPERR as float32, which is all it takes), and read through zarr: a voxel, a
plane, a box of 32 x 32 x 32, a chunk. Every read is a first one: nothing of the chunks is kept in
memory. Then a first look at a coarse level, and a mean by Dask with one worker process and with
two, of one thread each.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import dask.array
import numpy as np
import zarr
from zarr.storage import FsspecStore, LocalStore, WrapperStore

from benchmarks import records, volumes
from benchmarks.partial import median_ms
from tests.servers import S3, s3_server
from tinc_codec import TINC, open_level
from tinc_codec.model.opened import CACHE

Part = tuple[slice, ...]
Row = dict[str, Any]


class CountingStore(WrapperStore):
    """A store that counts the bytes that were read from another."""

    size_bytes = 0

    async def get(self, key: str, prototype: Any, byte_range: Any = None) -> Any:
        """Read an object or a part of it."""
        found = await super().get(key, prototype, byte_range)
        if found is not None:
            self.size_bytes += len(found)
        return found


def codecs(ratio: float, chunk: tuple[int, ...], dtype: np.dtype) -> dict[str, dict[str, Any]]:
    """Give what `zarr.create_array` needs for each codec."""
    from imagecodecs import numcodecs as imagecodecs

    imagecodecs.register_codecs(verbose=False)
    bits = 8 * dtype.itemsize / ratio
    sperr = imagecodecs.Sperr(
        level=bits, mode="bpp", dtype="<f4", shape=chunk, chunks=chunk, numthreads=1
    )
    return {
        "TINC": {
            "serializer": TINC(ratio=ratio, effort=0, model="features"), "compressors": None,
        },
        "Blosc-Zstd": {"compressors": zarr.codecs.BloscCodec(cname="zstd")},
        "SPERR": {"compressors": sperr, "zarr_format": 2, "dtype": "f4"},
    }  # fmt: skip


def parts(shape: tuple[int, ...], chunk: int) -> dict[str, Part]:
    """Name what is read, near the centre; the box and the chunk lie within one chunk."""
    middle = [n // 2 for n in shape]
    corner = [m // chunk * chunk for m in middle]
    return {
        "voxel": tuple(slice(m, m + 1) for m in middle),
        "plane": (slice(middle[0], middle[0] + 1), slice(None), slice(None)),
        "box 32": tuple(slice(c + 8, c + 40) for c in corner),
        "chunk": tuple(slice(c, c + chunk) for c in corner),
    }


@contextmanager
def stores(folder: Path) -> Iterator[tuple[dict[str, Callable[[str], Any]], S3]]:
    """Run an S3 server; functions from a name to a store, by kind of store, and the server."""
    with s3_server(folder) as server:
        options = server.storage_options
        kinds = {
            "directory": lambda name: LocalStore(folder / name),
            "S3": lambda name: FsspecStore.from_url(server.url(name), storage_options=options),
        }
        yield kinds, server


def measure_parts(volume: np.ndarray, chunk: int, ratio: float, repeats: int) -> list[Row]:
    """Read parts of one volume from each store, as stored by each codec."""
    rows = []
    with tempfile.TemporaryDirectory() as folder, stores(Path(folder)) as (kinds, _):
        for codec, settings in codecs(ratio, (chunk,) * 3, volume.dtype).items():
            for kind, open_store in kinds.items():
                counting = CountingStore(open_store(codec))
                array = zarr.create_array(
                    counting, shape=volume.shape, chunks=(chunk,) * 3, fill_value=0,
                    **{"dtype": volume.dtype, **settings},
                )  # fmt: skip
                array[...] = volume
                for name, part in parts(volume.shape, chunk).items():
                    milliseconds = median_ms(
                        lambda array=array, part=part: array[part], repeats, CACHE.clear
                    )
                    counting.size_bytes = 0
                    array[part]
                    rows.append({
                        "store": kind, "codec": codec, "part": name,
                        "ms": round(milliseconds, 2), "fetched_bytes": counting.size_bytes,
                    })  # fmt: skip
                    print(rows[-1])
    return rows


def measure_level(volume: np.ndarray, chunk: int, ratio: float, level: int) -> list[Row]:
    """Read a coarse level, and level 0, of a whole volume."""
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder, stores(Path(folder)) as (kinds, server):
        for kind, open_store in kinds.items():
            array = zarr.create_array(
                open_store("levels"), shape=volume.shape, chunks=(chunk,) * 3, dtype=volume.dtype,
                serializer=TINC(ratio=ratio, effort=0, model="features"), compressors=None,
            )  # fmt: skip
            array[...] = volume
            for number in (0, level):
                shown = array if number == 0 else open_level(array, number)
                milliseconds = median_ms(lambda shown=shown: shown[...], 5, CACHE.clear)
                server.forget()
                shown[...]
                row = {"store": kind, "level": number, "shape": list(shown.shape)}
                row["ms"] = round(milliseconds, 1)
                if kind == "S3":
                    # A level reads through a store of its own: what the server sent is counted.
                    row["fetched_bytes"] = sum(answer.size_bytes for answer in server.reads())
                rows.append(row)
                print(rows[-1])
    return rows


def measure_workers(volume: np.ndarray, chunk: int, ratio: float, copies: int) -> list[Row]:
    """Take the mean of many copies of a volume with one worker process and with two."""
    from distributed import Client, LocalCluster

    os.environ["TINC_THREADS"] = "1"
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        tiled = np.tile(volume, (copies, 1, 1))
        array = zarr.create_array(
            Path(folder) / "a.zarr", shape=tiled.shape, chunks=(chunk,) * 3, dtype=tiled.dtype,
            serializer=TINC(ratio=ratio, effort=0, model="features"), compressors=None,
        )  # fmt: skip
        array[...] = tiled
        mean = dask.array.from_zarr(str(Path(folder) / "a.zarr")).mean(dtype="f8")
        for workers in (1, 2):
            with ExitStack() as stack:
                cluster = stack.enter_context(
                    LocalCluster(n_workers=workers, threads_per_worker=1, dashboard_address=":0")
                )
                client = stack.enter_context(Client(cluster))
                client.compute(mean).result()
                times = []
                for _ in range(5):
                    start = time.perf_counter()
                    client.compute(mean).result()
                    times.append(time.perf_counter() - start)
            rows.append({
                "workers": workers, "shape": list(tiled.shape), "seconds": round(min(times), 3),
                "speedup": round(rows[0]["seconds"] / min(times), 2) if rows else 1.0,
            })  # fmt: skip
            print(rows[-1])
    return rows


def main() -> None:
    """Measure all of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", help="directory of *.npz (default: $TINC_DATA)")
    parser.add_argument("--volume", default="mri_t1")
    parser.add_argument("--largest", default="ct_angio", help="for the look at a level")
    parser.add_argument("--chunk", type=int, default=64)
    parser.add_argument("--ratio", type=float, default=64)
    parser.add_argument("--level", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=9)
    options = parser.parse_args()
    volume = volumes.load(options.volume, None, options.data)
    largest = volumes.load(options.largest, None, options.data)
    chunk, ratio = options.chunk, options.ratio
    parts_rows = measure_parts(volume, chunk, ratio, options.repeats)
    levels = measure_level(largest, chunk, ratio, options.level)
    workers = measure_workers(volume, chunk, ratio, 4)
    path = records.save("access", parts_rows, volume=options.volume, largest=options.largest,
                        chunk=chunk, ratio=ratio, levels=levels, workers=workers)  # fmt: skip
    print(path)


if __name__ == "__main__":
    main()
