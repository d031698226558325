"""Reading and writing through xarray, whose float variables are filled with NaN at the edges."""

import numpy as np
import pytest

from tests.faces import CHUNKS, CODEC, assert_close, smooth_volume

xr = pytest.importorskip("xarray")
pytest.importorskip("zarr", minversion="3.1")

DOORS = {
    "v2": (2, {"compressors": CODEC, "chunks": CHUNKS}),
    "v3": (3, {"serializer": CODEC, "compressors": None, "chunks": CHUNKS}),
    "v3-shards": (
        3,
        {"serializer": CODEC, "compressors": None, "chunks": CHUNKS, "shards": (32, 32, 32)},
    ),
}


@pytest.mark.parametrize("door", DOORS)
def test_a_dataset_comes_back(tmp_path, door):
    zarr_format, encoding = DOORS[door]
    original = smooth_volume((20, 18, 17))
    original[2:5, 3, :] = np.nan
    dataset = xr.Dataset({"v": (("z", "y", "x"), original)}, attrs={"about": "test"})
    dataset.to_zarr(
        tmp_path / "a.zarr", encoding={"v": encoding}, zarr_format=zarr_format, consolidated=False
    )
    for chunks in (None, {}):
        with xr.open_zarr(tmp_path / "a.zarr", chunks=chunks, consolidated=False) as opened:
            assert_close(original, opened["v"].values)
            assert opened["v"].dtype == original.dtype
            assert opened.attrs == {"about": "test"}
