"""Write a store with whatever zarr is installed, for `read_store` in another environment.

Run from the repository root: `python -m tests.compat.write_store FOLDER FORMAT`. The folder
receives `store.zarr` and `expected.npz`, with the original and the decoded values of every array.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import zarr

from tests.faces import CHUNKS, CODEC, smooth_volume

ZARR_2 = zarr.__version__.startswith("2.")
ARRAYS = {
    2: {
        "f4-C": {"dtype": "<f4", "order": "C"},
        "f4-F": {"dtype": "<f4", "order": "F"},
        "big-endian-F": {"dtype": ">f4", "order": "F"},
        "u2": {"dtype": "<u2"},
        "u1": {"dtype": "|u1"},
    },
    3: {
        "f4": {"dtype": "<f4"},
        "u1": {"dtype": "|u1"},
        "f8-shards": {"dtype": "<f8", "shards": (32, 16, 16)},
        "u2-shards": {"dtype": "<u2", "shards": (32, 16, 16)},
    },
}
"""Name and options of the arrays of each Zarr format."""


def create(group, name, zarr_format, **options):
    """Create an array in a group, in the words of the installed zarr."""
    if ZARR_2:
        return group.create_dataset(name, compressor=CODEC, **options)
    if zarr_format == 2:
        return group.create_array(name, compressors=CODEC, **options)
    return group.create_array(name, serializer=CODEC, compressors=None, **options)


def write(folder: Path, zarr_format: int = 2) -> None:
    """Write `store.zarr` and `expected.npz` into a folder."""
    options = {} if ZARR_2 else {"zarr_format": zarr_format}
    group = zarr.open_group(str(folder / "store.zarr"), mode="w", **options)
    expected = {}
    for name, settings in ARRAYS[zarr_format].items():
        original = smooth_volume((20, 16, 16), settings["dtype"])
        fill_value = np.nan if original.dtype.kind == "f" else 0
        if original.dtype.kind == "f":
            original[2:5, 3:9, :] = np.nan
        array = create(
            group,
            name,
            zarr_format,
            shape=original.shape,
            chunks=CHUNKS,
            fill_value=fill_value,
            **settings,
        )
        array[:] = original
        expected[f"{name}.original"] = original
        expected[f"{name}.decoded"] = array[:]
    np.savez(folder / "expected.npz", **expected)


if __name__ == "__main__":
    write(Path(sys.argv[1]), int(sys.argv[2]))
