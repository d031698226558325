"""Reading and writing through dask: nothing special to call."""

import numpy as np
import pytest

from tests.faces import CHUNKS, CODEC, assert_close, smooth_volume

da = pytest.importorskip("dask.array")
zarr = pytest.importorskip("zarr", minversion="3.1")

DOORS = {
    "v2": {"zarr_format": 2, "compressors": CODEC},
    "v3": {"serializer": CODEC, "compressors": None},
}


@pytest.fixture(scope="module", params=DOORS, ids=list(DOORS))
def store(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("dask") / "a.zarr"
    original = smooth_volume((32, 16, 20))
    array = zarr.create_array(
        path, shape=original.shape, chunks=CHUNKS, dtype="f4", **DOORS[request.param]
    )
    array[:] = original
    return path, original, array[:]


@pytest.mark.parametrize(
    "scheduler",
    [
        {"scheduler": "synchronous"},
        {"scheduler": "threads", "num_workers": 4},
        {"scheduler": "processes", "num_workers": 2},
    ],
    ids=lambda options: options["scheduler"],
)
def test_every_scheduler_reads_the_same(store, scheduler):
    path, original, decoded = store
    lazy = da.from_zarr(path)
    assert lazy.chunks == ((16, 16), (16,), (16, 4))
    result = lazy.compute(**scheduler)
    np.testing.assert_array_equal(result, decoded)
    assert_close(original, result)


def test_only_what_is_asked_for_is_read(store):
    path, _, decoded = store
    lazy = da.from_zarr(path)[20:, 3, ::2]
    np.testing.assert_array_equal(lazy.compute(scheduler="threads"), decoded[20:, 3, ::2])


@pytest.mark.parametrize("door", DOORS)
def test_dask_writes(tmp_path, door):
    original = smooth_volume((32, 16, 16))
    lazy = da.from_array(original, chunks=CHUNKS)
    lazy.to_zarr(tmp_path / "a.zarr", **DOORS[door])
    assert_close(original, zarr.open(tmp_path / "a.zarr", mode="r")[:])
