"""Reading and writing through dask: nothing special to call, on any of its schedulers."""

import itertools
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.faces import CHUNKS, CODEC, assert_close, smooth_volume
from tests.servers import s3_server
from tinc_codec import TINC

da = pytest.importorskip("dask.array")
zarr = pytest.importorskip("zarr", minversion="3.1")

DOORS = {
    "v2": {"zarr_format": 2, "compressors": CODEC},
    "v3": {"serializer": CODEC, "compressors": None},
}
SCHEDULERS = {
    "synchronous": {},
    "threads": {"num_workers": 4},
    "processes": {"num_workers": 2},
}


@pytest.fixture(scope="module")
def client():
    """A client of a cluster of two worker processes."""
    distributed = pytest.importorskip("distributed")
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, processes=True, dashboard_address=":0"
        ) as cluster,
        distributed.Client(cluster, set_as_default=False) as client,
    ):
        yield client


@pytest.fixture(params=[*SCHEDULERS, "distributed"])
def scheduler(request):
    """Keywords of `compute` that choose where it runs."""
    if request.param == "distributed":
        return {"scheduler": request.getfixturevalue("client")}
    return {"scheduler": request.param, **SCHEDULERS[request.param]}


@pytest.fixture(scope="module", params=DOORS, ids=list(DOORS))
def store(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("dask") / "a.zarr"
    original = smooth_volume((32, 16, 20))
    array = zarr.create_array(
        path, shape=original.shape, chunks=CHUNKS, dtype="f4", **DOORS[request.param]
    )
    array[:] = original
    return path, original, array[:]


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
def test_every_scheduler_writes_the_same(tmp_path, scheduler, door):
    original = smooth_volume((32, 16, 16))
    expected = np.concatenate([CODEC.decode(CODEC.encode(half)) for half in np.split(original, 2)])
    lazy = da.from_array(original, chunks=CHUNKS)
    lazy.to_zarr(tmp_path / "a.zarr", compute=False, **DOORS[door]).compute(**scheduler)
    array = zarr.open_array(tmp_path / "a.zarr", mode="r")
    assert array.nchunks_initialized == 2
    np.testing.assert_array_equal(array[:], expected)


def test_workers_share_a_bucket(tmp_path, client):
    pytest.importorskip("moto")
    pytest.importorskip("s3fs")
    original = smooth_volume((32, 16, 16))
    with s3_server(tmp_path) as server:
        place = {"url": server.url("a.zarr"), "storage_options": server.storage_options}
        lazy = da.from_array(original, chunks=CHUNKS)
        lazy.to_zarr(**place, compute=False, **DOORS["v3"]).compute(scheduler=client)
        read = da.from_zarr(**place)
        assert_close(original, read.compute(scheduler=client))
        found = (read - original).std().compute(scheduler=client)
    assert found < original.std() / 10


REDUCTION = """
import sys
from pathlib import Path
import dask
import dask.array as da

def peak_bytes():
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))

lazy = da.from_zarr(sys.argv[1])
with dask.config.set(scheduler="threads", num_workers=2):
    lazy.blocks[0, 0, 0].mean(dtype="f8").compute()
    before = peak_bytes()
    mean = float(lazy.mean(dtype="f8").compute())
print(mean, peak_bytes() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak from Linux")
def test_a_reduction_holds_a_few_chunks_per_worker(tmp_path):
    """512 MiB are reduced by two threads within five chunks of 8 MiB for each of them."""
    edge, chunks = 128, 4
    array = zarr.create_array(
        tmp_path / "a.zarr",
        shape=(edge * chunks,) * 3,
        chunks=(edge,) * 3,
        dtype="f4",
        serializer=TINC(ratio=8000, effort=0),
        compressors=None,
    )
    array[:edge, :edge, :edge] = smooth_volume((edge,) * 3)
    # All chunks are copies of the one that was encoded.
    first = tmp_path / "a.zarr" / "c" / "0" / "0" / "0"
    for place in list(itertools.product(map(str, range(chunks)), repeat=3))[1:]:
        path = tmp_path.joinpath("a.zarr", "c", *place)
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(first, path)
    assert (array.nbytes, array.nchunks_initialized) == (512 << 20, chunks**3)
    done = subprocess.run(
        [sys.executable, "-c", REDUCTION, str(tmp_path / "a.zarr")],
        check=True,
        capture_output=True,
        text=True,
        timeout=300,
    )
    mean, growth_bytes = map(float, done.stdout.split())
    assert mean == pytest.approx(array[:edge, :edge, :edge].mean(dtype="f8"), rel=1e-6)
    assert growth_bytes <= 2 * 5 * 4 * edge**3
