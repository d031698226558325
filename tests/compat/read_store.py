"""Check a store that `write_store` wrote in another environment.

Run from the repository root: `python -m tests.compat.read_store FOLDER`; a mismatch ends it
with an error.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import zarr

from tests.faces import assert_close

SETTINGS = {"ratio": 8, "effort": 0}


def check(folder: Path) -> list[str]:
    """Compare every array of the store with what its writer saw; return their names."""
    group = zarr.open_group(str(folder / "store.zarr"), mode="r")
    names = sorted(group.array_keys())
    with np.load(folder / "expected.npz") as expected:
        assert names == sorted({key.rpartition(".")[0] for key in expected})
        for name in names:
            array, decoded = group[name], group[name][:]
            original, seen = expected[f"{name}.original"], expected[f"{name}.decoded"]
            assert stored_settings(array) == SETTINGS
            assert array.dtype == decoded.dtype == original.dtype
            assert_close(original, decoded)
            # Other versions of the compilers may round differently, by far less than the error.
            exact = np.issubdtype(seen.dtype, np.integer)
            np.testing.assert_allclose(decoded, seen, rtol=0, atol=1 if exact else 1e-3)
            np.testing.assert_array_equal(array[3:18:2, 5, 1:3], decoded[3:18:2, 5, 1:3])
    return names


def stored_settings(array) -> dict:
    """Return the codec's parameters as the array's metadata hold them."""
    if zarr.__version__.startswith("2."):
        return {key: value for key, value in array.compressor.get_config().items() if key != "id"}
    codec = array.compressors[0] if array.metadata.zarr_format == 2 else array.serializer
    return codec.params.to_config()


if __name__ == "__main__":
    print("read", *check(Path(sys.argv[1])))
