"""How long a part or a coarse level of one chunk takes, against all of it.

python -m benchmarks.partial

The first request for a chunk checks and parses its bytes; later ones find them parsed. Through zarr
the bytes are read from a local directory each time.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from benchmarks import records, volumes
from tinc_codec import TINC, config
from tinc_codec.codec import decode_chunk, decode_level, decode_region, encode_chunk
from tinc_codec.model.opened import CACHE
from tinc_codec.params import EncodingParams

MODELS = ("tree", "features", "lattice")
LEVELS = (1, 2, 3)
_BOX = 32


Part = tuple[slice, ...]


def parts(shape: tuple[int, ...], count: int) -> dict[str, list[Part]]:
    """Name the parts to read of a chunk of three axes: of each kind so many, anywhere in it."""
    generator = np.random.default_rng(0)
    whole = [slice(0, n) for n in shape]
    named: dict[str, list[Part]] = {}
    for _ in range(count):
        place = [int(generator.integers(n)) for n in shape]
        voxel = [slice(m, m + 1) for m in place]
        named.setdefault("voxel", []).append(tuple(voxel))
        for axis, name in enumerate("zyx"):
            plane = tuple(voxel[a] if a == axis else whole[a] for a in range(3))
            named.setdefault(f"plane {name}", []).append(plane)
        starts = [int(generator.integers(max(1, n - _BOX + 1))) for n in shape]
        named.setdefault("box", []).append(tuple(slice(m, m + _BOX) for m in starts))
    return named


def median_ms(
    call: Callable[[], Any], repeats: int, prepare: Callable[[], None] = lambda: None
) -> float:
    """Time calls, each after a preparation that does not count; one more goes before them."""
    prepare()
    call()
    times = []
    for _ in range(repeats):
        prepare()
        times.append(seconds_of(call))
    return 1000 * statistics.median(times)


def in_turns_ms(
    read_all: Callable[[], Any], reads: list[Callable[[], Any]]
) -> tuple[float, float, float]:
    """Time all of a chunk, the first request for a part and the same again, for each in turn."""
    times = []
    for read in [reads[0], *reads]:
        CACHE.clear()
        whole = seconds_of(read_all)
        CACHE.clear()
        times.append((whole, seconds_of(read), seconds_of(read)))
    # The first turn may still compile.
    whole_ms, first_ms, again_ms = (
        1000 * statistics.median(turns) for turns in zip(*times[1:], strict=True)
    )
    return whole_ms, first_ms, again_ms


def seconds_of(call: Callable[[], Any]) -> float:
    """Time one call."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def measure(volume: np.ndarray, params: EncodingParams, repeats: int) -> list[dict[str, Any]]:
    """Measure one chunk, decoded by the codec's functions and read through zarr."""
    stream = encode_chunk(volume, params)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.zarr"
        array = zarr.create_array(
            path, shape=volume.shape, chunks=volume.shape, dtype=volume.dtype,
            serializer=TINC(**params.to_config()), compressors=None,
        )  # fmt: skip
        key = path.joinpath("c", *"0" * volume.ndim)
        key.parent.mkdir(parents=True)
        key.write_bytes(stream)
        doors: dict[str, tuple[Callable[[], Any], Callable[[Part], Any]]] = {
            "codec": (lambda: decode_chunk(stream), lambda part: decode_region(stream, part)),
            "zarr": (lambda: array[...], lambda part: array[part]),
        }
        for door, (read_all, read) in doors.items():
            asked: dict[str, list[Callable[[], Any]]] = {
                name: [partial(read, part) for part in found]
                for name, found in parts(volume.shape, repeats).items()
            }
            if door == "codec":
                asked |= {
                    f"level {k}": [partial(decode_level, stream, k)] * repeats for k in LEVELS
                }
            for name, calls in asked.items():
                whole_ms, first, again = in_turns_ms(read_all, calls)
                rows.append(
                    {
                        "model": params.model,
                        "effort": params.effort,
                        "tile": params.tile,
                        "door": door,
                        "part": name,
                        "size_bytes": len(stream),
                        "whole_ms": round(whole_ms, 3),
                        "first_ms": round(first, 3),
                        "again_ms": round(again, 3),
                        "first_share": round(first / whole_ms, 4),
                        "again_share": round(again / whole_ms, 4),
                    }
                )
    return rows


def main() -> None:
    """Measure a central crop stored as a tree, as features and as a lattice."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", help="directory of *.npz (default: $TINC_DATA)")
    parser.add_argument("--volume", default="mri_t1")
    parser.add_argument("--crop", type=int, default=128)
    parser.add_argument("--ratio", type=float, default=64)
    parser.add_argument("--max-error", type=float, default=8, help="of lattices")
    parser.add_argument("--effort", type=int, nargs="+", default=[0, 4])
    parser.add_argument("--tile", nargs="+", default=["auto", "32"], help="of all but trees")
    parser.add_argument("--repeats", type=int, default=21)
    options = parser.parse_args()
    volume = volumes.load(options.volume, options.crop, options.data)
    rows = []
    tiles = [tile if tile == "auto" else int(tile) for tile in options.tile]
    for model, effort in itertools.product(MODELS, options.effort):
        # Lattices are the same at all efforts.
        if model == "lattice" and effort != options.effort[0]:
            continue
        for tile in ["auto"] if model == "tree" else tiles:
            params = EncodingParams(
                ratio=None if model == "lattice" else options.ratio,
                max_error=options.max_error if model == "lattice" else None,
                effort=effort, model=model, tile=tile,
            )  # fmt: skip
            for row in measure(volume, params, options.repeats):
                print(row)
                rows.append({"volume": options.volume, "shape": volume.shape, **row})
    path = records.save("partial", rows, threads=config.resolve_threads())
    print(path)


if __name__ == "__main__":
    main()
