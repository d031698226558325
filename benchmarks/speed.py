"""Speed of encoding and decoding: a chunk at a time, and four chunks at once through zarr.

python -m benchmarks.speed --efforts 0                       # effort 0, all volumes
python -m benchmarks.speed --volumes mri_t1 --efforts 0 1 2 3 4 5 6 7 8 9 --repeats 1 --only-chunk

A chunk is given all threads; zarr encodes and decodes several chunks beside each other, which is
what fills the cores. Times are the best of some repeats.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import zarr
from zarr.storage import MemoryStore

from benchmarks import records, volumes
from tinc_codec import TINC, config
from tinc_codec.codec import decode_chunk, encode_chunk
from tinc_codec.metrics import measure
from tinc_codec.params import EncodingParams

CHUNKS = 4


def best_s(call: Callable[[], Any], repeats: int) -> float:
    """Time a call in seconds, the best of some."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)


def measure_chunk(volume: np.ndarray, params: EncodingParams, repeats: int) -> dict[str, Any]:
    """Encode and decode one chunk."""
    stream = encode_chunk(volume, params)
    encode_s = best_s(lambda: encode_chunk(volume, params), repeats)
    decode_s = best_s(lambda: decode_chunk(stream), 3 * repeats)
    return {
        "psnr": round(measure(volume, decode_chunk(stream), None).psnr, 3),
        "size_bytes": len(stream),
        "encode_mvoxel_s": round(volume.size / encode_s / 1e6, 3),
        "decode_mvoxel_s": round(volume.size / decode_s / 1e6, 2),
    }


def measure_array(volume: np.ndarray, params: EncodingParams, repeats: int) -> dict[str, Any]:
    """Write and read an array of some chunks, all of them this volume."""
    whole = np.concatenate([volume] * CHUNKS)
    array = zarr.create_array(
        MemoryStore(), shape=whole.shape, chunks=volume.shape, dtype=whole.dtype,
        serializer=TINC(**params.to_config()), compressors=None,
    )  # fmt: skip

    def write() -> None:
        array[...] = whole

    encode_s = best_s(write, repeats)
    decode_s = best_s(lambda: array[...], repeats)
    return {
        "array_encode_mvoxel_s": round(whole.size / encode_s / 1e6, 3),
        "array_decode_mvoxel_s": round(whole.size / decode_s / 1e6, 2),
    }


def main() -> None:
    """Measure central crops."""
    parser = argparse.ArgumentParser(description=__doc__)
    volumes.add_arguments(parser)
    parser.add_argument("--ratios", nargs="+", type=float, default=[64.0, 256.0])
    parser.add_argument("--efforts", nargs="+", type=int, default=[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only-chunk", action="store_true", help="no arrays")
    parser.add_argument("--name", default="speed", help="stem of the results' file")
    options = parser.parse_args()
    rows = []
    for name in options.volumes:
        volume = volumes.load(name, options.crop, options.data)
        for effort in options.efforts:
            for ratio in options.ratios:
                params = EncodingParams(ratio=ratio, effort=effort, model="features")
                row = {"volume": name, "shape": volume.shape, "effort": effort, "ratio": ratio}
                row |= measure_chunk(volume, params, options.repeats)
                if not options.only_chunk:
                    row |= measure_array(volume, params, options.repeats)
                rows.append(row)
                print(row, flush=True)
    print(records.save(options.name, rows, threads=config.resolve_threads()))


if __name__ == "__main__":
    main()
