"""The main job at full size: a whole volume into a Zarr store, and back through Dask.

python -m benchmarks.volume --volume mri_t1 --effort 3
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import dask.array as da
import zarr

from benchmarks import records, volumes
from tinc_codec import TINC
from tinc_codec.codec import decode_chunk, encode_chunk
from tinc_codec.metrics import measure
from tinc_codec.params import EncodingParams


def main() -> None:
    """Compress, read back in another way than written, measure, keep the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", help="directory of *.npz (default: $TINC_DATA)")
    parser.add_argument("--volume", default="mri_t1")
    parser.add_argument("--ratio", type=float, default=64)
    parser.add_argument("--effort", type=int, default=3)
    parser.add_argument("--chunk", type=int, default=64, help="edge of the chunks in voxels")
    options = parser.parse_args()
    volume = volumes.load(options.volume, None, options.data)
    decode_chunk(encode_chunk(volume[:16, :16, :16], EncodingParams(ratio=4, effort=0)))
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder) / "volume.zarr"
        start = time.perf_counter()
        zarr.create_array(
            store,
            data=volume,
            chunks=(options.chunk,) * 3,
            serializer=TINC(ratio=options.ratio, effort=options.effort),
            compressors=None,
        )
        encode_s = time.perf_counter() - start
        files = [path for path in store.rglob("*") if path.is_file() and path.name != "zarr.json"]
        stored = sum(path.stat().st_size for path in files)
        start = time.perf_counter()
        decoded = da.from_zarr(store).compute()
        decode_s = time.perf_counter() - start
    quality = measure(volume, decoded)
    row = {
        "volume": options.volume,
        "shape": volume.shape,
        "dtype": str(volume.dtype),
        "chunk": options.chunk,
        "chunks": len(files),
        "ratio_asked": options.ratio,
        "effort": options.effort,
        "stored_bytes": stored,
        "ratio": round(volume.nbytes / stored, 2),
        "psnr": round(quality.psnr, 2),
        "max_error": quality.max_error,
        "encode_s": round(encode_s, 1),
        "decode_s": round(decode_s, 3),
        "encode_mvoxels_per_s": round(volume.size / encode_s / 1e6, 4),
        "decode_mvoxels_per_s": round(volume.size / decode_s / 1e6, 1),
    }
    print(row)
    records.save("volume", [row])


if __name__ == "__main__":
    main()
