"""The README's lines, run: store a volume in both Zarr formats, and read it back lazily.

python examples/quickstart.py [DIRECTORY]
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import dask.array as da
import numpy as np
import zarr

from tinc_codec import TINC
from tinc_codec.metrics import max_error, psnr

VOLUME = Path(__file__).parent / "data" / "mni152_t1_crop.npz"


def main(directory: Path) -> None:
    """Store 64³ voxels twice at 1/64 of their bytes, and print what comes back."""
    volume = np.load(VOLUME)["volume"][16:80, 32:96, 32:96]
    codec = TINC(ratio=64, effort=0)  # effort 0: seconds; the default takes longer and is better

    # Zarr v3 format
    zarr.create_array(
        directory / "v3.zarr",
        data=volume,
        chunks=(64, 64, 64),
        serializer=codec,
        compressors=None,
        overwrite=True,
    )

    # Zarr v2 format (with zarr 2.18, leave out zarr_format)
    old = zarr.open(
        directory / "v2.zarr",
        mode="w",
        zarr_format=2,
        shape=volume.shape,
        chunks=(64, 64, 64),
        dtype=volume.dtype,
        compressor=codec,
    )
    old[:] = volume

    # Reading needs no import of tinc_codec, only that it is installed.
    for name in ("v3.zarr", "v2.zarr"):
        decoded = da.from_zarr(directory / name).compute()
        print(
            f"{name}: {decoded.shape} {decoded.dtype}, PSNR {psnr(volume, decoded):.2f} dB, "
            f"max error {max_error(volume, decoded):g}"
        )


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as folder:
            main(Path(folder))
