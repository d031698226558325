"""A Dataset whose variables have a codec each, stored through xarray and read back.

python examples/xarray_store.py [DIRECTORY]
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np
import xarray as xr

from tinc_codec import TINC
from tinc_codec.metrics import max_error, psnr
from tinc_codec.xarray import record_lossiness

VOLUME = Path(__file__).parent / "data" / "mni152_t1_crop.npz"


def main(directory: Path) -> None:
    """Store a scan, a field with missing values and a label map; print what comes back."""
    scan = np.load(VOLUME)["volume"][32:, 64:, :64]
    field = np.where(scan > 20, scan / np.float32(255), np.float32(np.nan))
    dims = ("z", "y", "x")
    dataset = xr.Dataset(
        {
            "scan": (dims, scan),
            "field": (dims, field, {"units": "1"}),
            "labels": (dims, (scan > 120).astype("u1")),
        },
        coords={name: (name, np.arange(64.0), {"units": "mm"}) for name in dims},
    )

    # Each variable is stored its own way; labels are names, so they keep xarray's lossless default.
    chunks = {"chunks": (64, 64, 64), "compressors": None}
    encoding = {
        "scan": {"serializer": TINC(ratio=64, effort=0), **chunks},
        "field": {"serializer": TINC(ratio=128, effort=0), **chunks},
    }
    # Optional: attributes that tell whoever opens the store what was lost.
    recorded = record_lossiness(dataset, encoding)
    path = directory / "dataset.zarr"
    recorded.to_zarr(path, encoding=encoding, zarr_format=3, consolidated=False, mode="w")

    # Reading needs no import of tinc_codec, only that it is installed.
    with xr.open_zarr(path, consolidated=False) as opened:
        for name in ("scan", "field", "labels"):
            original, decoded = dataset[name].values, opened[name].values
            promised = opened[name].attrs.get("lossy_compression_ratio")
            print(
                f"{name}: {decoded.dtype}, "
                + (f"{promised:g}x, " if promised else "lossless, ")
                + f"PSNR {psnr(original, decoded):.2f} dB, "
                f"max error {max_error(original, decoded):.3g}, "
                f"missing {np.isnan(decoded.astype('f4')).mean():.1%}"
            )
        about = opened[opened["scan"].attrs["lossy_compression"]].attrs
        print(f"algorithm {about['algorithm']}, {about['implementation']}")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as folder:
            main(Path(folder))
