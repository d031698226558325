"""A Dask reduction over a volume in a bucket: written, opened lazily and reduced by its URL.

python examples/dask_bucket.py [URL]

URL is anything that fsspec opens, `s3://bucket/brain.zarr` with s3fs installed for one, and
defaults to a temporary folder. Credentials and the address of an S3-compatible server come from
the usual environment variables: AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_ENDPOINT_URL.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import dask.array as da
import numpy as np

from tinc_codec import TINC

VOLUME = Path(__file__).parent / "data" / "mni152_t1_crop.npz"


def main(url: str) -> None:
    """Write a volume to the URL, chunk by chunk, and print its statistics from there."""
    volume = np.load(VOLUME)["volume"][16:80, 32:96, 32:96]

    # Chunks are encoded in parallel, one for each task of the scheduler.
    lazy = da.from_array(volume, chunks=(32, 32, 32))
    lazy.to_zarr(url, overwrite=True, serializer=TINC(ratio=16, effort=0), compressors=None)

    # Nothing is read before `compute`; then each task fetches and decodes one chunk.
    brain = da.from_zarr(url)
    print(f"{brain.shape} {brain.dtype} in {brain.npartitions} chunks at {url}")
    mean, deviation, brightest = da.compute(brain.mean(), brain.std(), brain.max(axis=0))
    print(f"mean {mean:.2f} (original {volume.mean():.2f})")
    print(f"standard deviation {deviation:.2f} (original {volume.std():.2f})")
    error = np.abs(brightest.astype(float) - volume.max(axis=0)).mean()
    print(f"maximum projection {brightest.shape}, mean error {error:.2f}")
    print(f"one plane costs {brain[40].npartitions} of the chunks")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(sys.argv[1])
    else:
        with tempfile.TemporaryDirectory() as folder:
            main(f"{folder}/brain.zarr")
