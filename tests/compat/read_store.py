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


def check(folder: Path) -> list[str]:
    """Compare every array of the store with what its writer saw; return their names."""
    group = zarr.open_group(str(folder / "store.zarr"), mode="r")
    names = sorted(group.array_keys())
    with np.load(folder / "expected.npz") as expected:
        assert names == sorted({key.rpartition(".")[0] for key in expected})
        for name in names:
            array, decoded = group[name], group[name][:]
            original, seen = expected[f"{name}.original"], expected[f"{name}.decoded"]
            assert array.compressor.get_config() == {"id": "tinc", "ratio": 8, "effort": 0}
            assert array.dtype == decoded.dtype == original.dtype
            assert_close(original, decoded)
            # Other versions of the compilers may round differently, by far less than the error.
            exact = np.issubdtype(seen.dtype, np.integer)
            np.testing.assert_allclose(decoded, seen, rtol=0, atol=1 if exact else 1e-3)
    return names


if __name__ == "__main__":
    print("read", *check(Path(sys.argv[1])))
