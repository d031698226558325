"""Resolutions of a volume for a viewer, all decoded from the chunks of the full one.

python examples/levels.py [DIRECTORY]

Writes `brain.zarr`, an OME-Zarr 0.5 image of three resolutions, and of each a picture of its
middle plane, `level_0.png` and so on, into the directory (a temporary one by default).
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import dask.array as da
import numpy as np
import zarr
from matplotlib import image

import tinc_codec
from tinc_codec import TINC

VOLUME = Path(__file__).parent / "data" / "mni152_t1_crop.npz"


def main(directory: Path) -> None:
    """Store a volume, add two levels, and read all three as a viewer does."""
    volume = np.load(VOLUME)["volume"][16:80, 16:112, 16:112]
    path = directory / "brain.zarr"
    group = zarr.open_group(path, mode="w")
    full = group.create_array(
        "0", shape=volume.shape, dtype=volume.dtype, chunks=(32, 32, 32),
        serializer=TINC(ratio=32, effort=0), compressors=None,
    )  # fmt: skip
    full[:] = volume
    before = size_bytes(path)
    tinc_codec.add_levels(group, 2)
    print(f"two levels take {size_bytes(path) - before} bytes beside the {before} of the volume")

    # What napari-ome-zarr hands to napari: one lazy array per resolution, largest first.
    # napari.Viewer().add_image(levels, multiscale=True)
    opened = zarr.open_group(path, mode="r")
    datasets = opened.attrs["ome"]["multiscales"][0]["datasets"]
    levels = [da.from_zarr(opened[dataset["path"]]) for dataset in datasets]
    for number, level in enumerate(levels):
        plane = level[level.shape[0] // 2].compute()
        image.imsave(directory / f"level_{number}.png", plane, cmap="gray", vmin=0, vmax=255)
        print(f"level {number}: {level.shape}, plane {plane.shape}, mean {plane.mean():.1f}")

    # Between the voxels: a line through the volume, at a tenth of a voxel.
    line = np.linspace((32, 48, 8), (32, 48, 88), 801)
    values = tinc_codec.sample(full, line)
    print(f"{len(values)} values along a line, {values.min():.1f} to {values.max():.1f}")


def size_bytes(path: Path) -> int:
    """Count the bytes of all files in a folder."""
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as folder:
            main(Path(folder))
