"""Write a v2-format store with whatever zarr is installed, for `read_store` in another environment.

Run from the repository root: `python -m tests.compat.write_store FOLDER`. The folder receives
`store.zarr` and `expected.npz`, with the original and the decoded values of every array.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import zarr

from tests.faces import CHUNKS, CODEC, smooth_volume

ARRAYS = {
    "f4-C": ("<f4", "C"),
    "f4-F": ("<f4", "F"),
    "big-endian-F": (">f4", "F"),
    "u2": ("<u2", "C"),
    "u1": ("|u1", "C"),
}


def create(group, name, **options):
    """Create an array in a group, in the words of the installed zarr."""
    if zarr.__version__.startswith("2."):
        return group.create_dataset(name, compressor=CODEC, **options)
    return group.create_array(name, compressors=CODEC, **options)


def write(folder: Path) -> None:
    """Write `store.zarr` and `expected.npz` into a folder."""
    options = {} if zarr.__version__.startswith("2.") else {"zarr_format": 2}
    group = zarr.open_group(str(folder / "store.zarr"), mode="w", **options)
    expected = {}
    for name, (dtype, order) in ARRAYS.items():
        original = smooth_volume((20, 16, 16), dtype)
        fill_value = np.nan if original.dtype.kind == "f" else 0
        if original.dtype.kind == "f":
            original[2:5, 3:9, :] = np.nan
        array = create(
            group,
            name,
            shape=original.shape,
            chunks=CHUNKS,
            dtype=dtype,
            order=order,
            fill_value=fill_value,
        )
        array[:] = original
        expected[f"{name}.original"] = original
        expected[f"{name}.decoded"] = array[:]
    np.savez(folder / "expected.npz", **expected)


if __name__ == "__main__":
    write(Path(sys.argv[1]))
