"""The newest zarr, in an environment of its own with Python 3.12 or later and without torch.

Run as `pytest tests/compat` where zarr 3.2 or later is installed; skipped elsewhere. Stores are
exchanged with the environments that `TINC_OTHER_PYTHON` (zarr 3.1) and `TINC_ZARR2_PYTHON` (zarr
2.18) name.
"""

import subprocess
import sys

import numpy as np
import pytest

from tests.compat.others import check_exchange
from tests.compat.read_store import check
from tests.compat.write_store import ARRAYS, write
from tests.faces import CHUNKS, CODEC, assert_close, smooth_volume

zarr = pytest.importorskip("zarr")
if tuple(map(int, zarr.__version__.split(".")[:2])) < (3, 2):
    pytest.skip("needs zarr 3.2 or later", allow_module_level=True)

PIPELINES = ["BatchedCodecPipeline", "FusedCodecPipeline"]


@pytest.mark.parametrize("pipeline", PIPELINES)
@pytest.mark.parametrize("zarr_format", [2, 3])
def test_the_store_of_the_exchange_reads_here(tmp_path, zarr_format, pipeline):
    with zarr.config.set({"codec_pipeline.path": f"zarr.core.codec_pipeline.{pipeline}"}):
        write(tmp_path, zarr_format)
        assert check(tmp_path) == sorted(ARRAYS[zarr_format])


@pytest.mark.parametrize("writer", ["here", "there"])
@pytest.mark.parametrize("zarr_format", [2, 3])
def test_stores_are_exchanged_with_zarr_3_1(tmp_path, writer, zarr_format):
    check_exchange("TINC_OTHER_PYTHON", tmp_path, writer, zarr_format)


@pytest.mark.parametrize("writer", ["here", "there"])
def test_stores_are_exchanged_with_zarr_2(tmp_path, writer):
    check_exchange("TINC_ZARR2_PYTHON", tmp_path, writer, 2)


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_reading_needs_no_import(tmp_path, zarr_format):
    write(tmp_path, zarr_format)
    name = sorted(ARRAYS[zarr_format])[0]
    code = (
        "import numpy, zarr\n"
        f"array = zarr.open({str(tmp_path / 'store.zarr' / name)!r}, mode='r')\n"
        f"numpy.save({str(tmp_path / 'decoded.npy')!r}, array[:])"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
    with np.load(tmp_path / "expected.npz") as expected:
        np.testing.assert_array_equal(
            np.load(tmp_path / "decoded.npy"), expected[f"{name}.decoded"]
        )


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_dask_and_xarray_have_their_doors(tmp_path, zarr_format):
    da = pytest.importorskip("dask.array")
    xr = pytest.importorskip("xarray")
    original = smooth_volume((20, 16, 16))
    dataset = xr.Dataset({"v": (("z", "y", "x"), original)})
    codecs = (
        {"compressors": CODEC} if zarr_format == 2 else {"serializer": CODEC, "compressors": None}
    )
    dataset.to_zarr(
        tmp_path / "a.zarr",
        encoding={"v": {"chunks": CHUNKS, **codecs}},
        zarr_format=zarr_format,
        consolidated=False,
    )
    with xr.open_zarr(tmp_path / "a.zarr", consolidated=False) as opened:
        decoded = opened["v"].values
    assert_close(original, decoded)
    lazy = da.from_zarr(tmp_path / "a.zarr" / "v")
    np.testing.assert_array_equal(lazy.compute(scheduler="threads"), decoded)
