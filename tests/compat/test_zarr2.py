"""The doors of zarr 2.18 with numcodecs 0.15, in an environment of their own.

Run as `pytest tests/compat` where zarr 2 is installed; skipped elsewhere. With `TINC_OTHER_PYTHON`
naming the interpreter of an environment with zarr 3, stores are exchanged in both directions.
"""

import pickle
import subprocess
import sys

import numcodecs
import numpy as np
import pytest

from tests.compat.others import check_exchange
from tests.compat.read_store import check
from tests.compat.write_store import ARRAYS, write
from tests.faces import CHUNKS, CODEC, assert_close, smooth_volume
from tinc_codec import TINC, FormatError, UnsupportedDataError

zarr = pytest.importorskip("zarr")
if not zarr.__version__.startswith("2."):
    pytest.skip("needs zarr 2", allow_module_level=True)

SHAPE = (20, 16, 16)


def create(path, order="C", shape=SHAPE, dtype="<f4", **options):
    """Create an array the way zarr 2 users do."""
    return zarr.open(
        str(path),
        mode="w",
        shape=shape,
        chunks=CHUNKS,
        dtype=dtype,
        order=order,
        compressor=CODEC,
        **options,
    )


@pytest.mark.parametrize("dtype", ["|u1", "<u2", ">i2", "<f4", ">f4", "<f8"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_a_volume_comes_back_after_reopening(tmp_path, dtype, order):
    original = smooth_volume(SHAPE, dtype)
    kept = original.copy()
    create(tmp_path / "a.zarr", order, dtype=dtype)[:] = original
    np.testing.assert_array_equal(original, kept)
    reopened = zarr.open(str(tmp_path / "a.zarr"), mode="r")
    decoded = reopened[:]
    assert (decoded.dtype, reopened.order) == (original.dtype, order)
    assert_close(original, decoded)
    # A read of exactly one chunk decodes straight into zarr's own array.
    np.testing.assert_array_equal(reopened[:16], decoded[:16])
    np.testing.assert_array_equal(reopened[3:18:2, 5, 1:3], decoded[3:18:2, 5, 1:3])
    out = np.empty(SHAPE, dtype, order=order)
    reopened.get_basic_selection(out=out)
    np.testing.assert_array_equal(out, decoded)


def test_nan_fill_partial_writes_and_missing_chunks(tmp_path):
    array = create(tmp_path / "a.zarr", fill_value=np.nan)
    array[2:10, 3:7, :] = 5
    reopened = zarr.open(str(tmp_path / "a.zarr"), mode="r")
    expected = np.full(SHAPE, np.nan, "f4")
    expected[2:10, 3:7, :] = 5
    np.testing.assert_array_equal(reopened[:], expected)
    assert reopened.nchunks_initialized == 1


def test_groups_registry_and_pickle(tmp_path):
    original = smooth_volume(CHUNKS)
    group = zarr.open_group(str(tmp_path / "g.zarr"), mode="w")
    group.create_dataset("a/b", data=original, chunks=CHUNKS, compressor=CODEC)
    array = zarr.open_group(str(tmp_path / "g.zarr"), mode="r")["a/b"]
    assert array.compressor == CODEC == numcodecs.get_codec(CODEC.get_config())
    assert isinstance(array.compressor, TINC)
    assert_close(original, array[:])
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(array))[:], array[:])


def test_reading_needs_no_import(tmp_path):
    original = smooth_volume(CHUNKS)
    create(tmp_path / "a.zarr", shape=CHUNKS)[:] = original
    code = (
        "import numpy, zarr\n"
        f"numpy.save({str(tmp_path / 'decoded.npy')!r}, zarr.open({str(tmp_path / 'a.zarr')!r})[:])"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
    assert_close(original, np.load(tmp_path / "decoded.npy"))


def test_a_damaged_chunk_raises_our_error(tmp_path):
    create(tmp_path / "a.zarr", shape=CHUNKS)[:] = smooth_volume(CHUNKS)
    file = tmp_path / "a.zarr" / "0.0.0"
    intact = file.read_bytes()
    for damaged in (intact[:-1], intact[:30] + bytes([intact[30] ^ 16]) + intact[31:], b"TINC"):
        file.write_bytes(damaged)
        with pytest.raises(FormatError):
            zarr.open(str(tmp_path / "a.zarr"), mode="r")[:]


@pytest.mark.parametrize("dtype", ["?", "i8", "u8", "c8", "U3", "M8[s]"])
def test_unsupported_dtypes_are_refused(tmp_path, dtype):
    array = create(tmp_path / "a.zarr", dtype=dtype)
    with pytest.raises(UnsupportedDataError):
        array[:] = np.ones(SHAPE, "i1").astype(dtype)


def test_dask_reads(tmp_path):
    da = pytest.importorskip("dask.array")
    original = smooth_volume(SHAPE)
    create(tmp_path / "a.zarr")[:] = original
    for scheduler in ("threads", "synchronous"):
        assert_close(original, da.from_zarr(str(tmp_path / "a.zarr")).compute(scheduler=scheduler))


def test_the_store_of_the_exchange_reads_here(tmp_path):
    write(tmp_path)
    assert check(tmp_path) == sorted(ARRAYS[2])


@pytest.mark.parametrize("writer", ["here", "there"])
def test_stores_are_exchanged_with_zarr_3(tmp_path, writer):
    check_exchange("TINC_OTHER_PYTHON", tmp_path, writer, 2)
