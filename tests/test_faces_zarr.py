"""Every door through the real zarr 3: v2 format in both orders, v3 format plain and sharded."""

import json
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.faces import CHUNKS, CODEC, assert_close, smooth_volume
from tinc_codec import TINC, FormatError, TargetError, UnsupportedDataError
from tinc_codec.metrics import measure

zarr = pytest.importorskip("zarr", minversion="3.1")

DOORS = {
    "v2": {"zarr_format": 2, "compressors": CODEC},
    "v2-F": {"zarr_format": 2, "compressors": CODEC, "order": "F"},
    "v3": {"serializer": CODEC, "compressors": None},
    "v3-shards": {"serializer": CODEC, "compressors": None, "shards": (32, 16, 16)},
}
# One full chunk and three edge chunks, inside two shards.
SHAPE = (40, 16, 16)


@pytest.fixture(params=DOORS, ids=list(DOORS))
def door(request):
    return request.param


def create(path, door, shape=SHAPE, dtype="<f4", **options):
    """Create an array at `path` through one of the doors."""
    return zarr.create_array(
        path, shape=shape, chunks=CHUNKS[: len(shape)], dtype=dtype, **DOORS[door], **options
    )


def chunk_files(path: Path) -> list[Path]:
    """Return the files of a store that hold encoded chunks, in name order."""
    files = [file for file in path.rglob("*") if file.is_file()]
    return sorted(file for file in files if file.name not in ("zarr.json", ".zarray", ".zattrs"))


def test_a_volume_comes_back_after_reopening(tmp_path, door):
    original = smooth_volume(SHAPE)
    kept = original.copy()
    array = create(tmp_path / "a.zarr", door)
    array[:] = original
    np.testing.assert_array_equal(original, kept)

    reopened = zarr.open(tmp_path / "a.zarr", mode="r")
    decoded = reopened[:]
    assert_close(original, decoded)
    assert decoded.dtype == original.dtype
    np.testing.assert_array_equal(reopened[3:37:3, 5, 2:9], decoded[3:37:3, 5, 2:9])
    np.testing.assert_array_equal(reopened.oindex[[1, 39], :, [0]], decoded[[1, 39]][:, :, [0]])
    np.testing.assert_array_equal(
        reopened.vindex[[1, 39], [2, 3], [0, 0]], decoded[[1, 39], [2, 3], [0, 0]]
    )
    index_bytes = 2 * 16 + 4
    for file in chunk_files(tmp_path / "a.zarr"):
        assert file.stat().st_size <= (2 if "shards" in door else 1) * 16**3 * 4 / 8 + index_bytes


@pytest.mark.parametrize(
    "codec",
    [TINC(psnr=40, effort=0), TINC(max_error=2, effort=0), TINC(ratio=8, effort=0, model="tree")],
    ids=repr,
)
@pytest.mark.parametrize("zarr_format", [2, 3])
def test_a_promise_is_one_about_every_chunk(tmp_path, zarr_format, codec):
    if codec.params.model == "tree":
        # Fitting a tree needs it; the environment of the newest zarr has none.
        pytest.importorskip("torch")
    original = smooth_volume(SHAPE)
    original[:16] /= 50
    original[5:8, 3] = np.nan
    doors = {2: {"compressors": codec}, 3: {"serializer": codec, "compressors": None}}
    zarr.create_array(
        tmp_path / "a.zarr",
        data=original,
        chunks=CHUNKS,
        zarr_format=zarr_format,
        **doors[zarr_format],
    )
    decoded = zarr.open(tmp_path / "a.zarr", mode="r")[:]
    np.testing.assert_array_equal(np.isnan(decoded), np.isnan(original))
    for start in range(0, SHAPE[0], CHUNKS[0]):
        chunk = slice(start, start + CHUNKS[0])
        quality = measure(original[chunk], decoded[chunk])
        assert quality.psnr >= (codec.params.psnr or 0)
        assert quality.max_error <= (codec.params.max_error or np.inf)
    for file in chunk_files(tmp_path / "a.zarr"):
        assert file.stat().st_size <= 16**3 * 4 / (codec.params.ratio or 1)


def test_a_promise_that_cannot_be_kept_leaves_the_old_chunk(tmp_path, door):
    codec = TINC(psnr=300, effort=0)
    options = {key: codec if value is CODEC else value for key, value in DOORS[door].items()}
    array = zarr.create_array(
        tmp_path / "a.zarr", shape=SHAPE, chunks=CHUNKS, dtype="f4", **options
    )
    array[:] = 3.25
    before = [file.read_bytes() for file in chunk_files(tmp_path / "a.zarr")]
    with pytest.raises(TargetError, match="psnr=300 dB"):
        array[:16] = np.random.default_rng(0).random(CHUNKS)
    assert [file.read_bytes() for file in chunk_files(tmp_path / "a.zarr")] == before
    assert (zarr.open(tmp_path / "a.zarr", mode="r")[:] == np.float32(3.25)).all()


@pytest.mark.parametrize("dtype", ["u1", ">u2", "<i2", ">i4", "<f2", ">f4", "<f8"])
def test_dtypes_and_byte_orders(tmp_path, door, dtype):
    original = smooth_volume((16, 16, 16), dtype)
    array = create(
        tmp_path / "a.zarr", door, (16, 16, 16) if "shards" not in door else (32, 16, 16), dtype
    )
    array[:16] = original
    reopened = zarr.open(tmp_path / "a.zarr", mode="r")
    assert_close(original, reopened[:16])
    # Data types of the v3 format have no byte order.
    assert reopened.dtype == (
        np.dtype(dtype) if "v2" in door else np.dtype(dtype).newbyteorder("=")
    )


def test_nan_fill_and_nan_data_are_exact(tmp_path, door):
    original = smooth_volume((18, 16, 16))
    original[3:9, 2:8, :] = np.nan
    array = create(tmp_path / "a.zarr", door, original.shape, fill_value=np.nan)
    array[:] = original
    assert_close(original, zarr.open(tmp_path / "a.zarr", mode="r")[:])


def test_missing_chunks_read_as_the_fill_value(tmp_path, door):
    array = create(tmp_path / "a.zarr", door, fill_value=7)
    array[16:32] = smooth_volume((16, 16, 16))
    reopened = zarr.open(tmp_path / "a.zarr", mode="r")
    assert (reopened[:16] == 7).all()
    assert (reopened[32:] == 7).all()
    assert_close(smooth_volume((16, 16, 16)), reopened[16:32])
    assert len(chunk_files(tmp_path / "a.zarr")) == 1


def test_a_constant_chunk_and_a_partial_write_are_exact(tmp_path, door):
    array = create(tmp_path / "a.zarr", door)
    array[:] = 3.25
    assert (zarr.open(tmp_path / "a.zarr", mode="r")[:] == np.float32(3.25)).all()
    array[4:12, 3, 5:9] = 90
    changed = array[:16]
    expected = np.full((16, 16, 16), 3.25, "f4")
    expected[4:12, 3, 5:9] = 90
    assert np.abs(changed - expected).max() <= 90 - 3.25
    assert (array[16:] == np.float32(3.25)).all()


@pytest.mark.parametrize("shape", [(900,), (20, 18), (2, 16, 16, 16), (1, 2, 8, 8, 8)])
def test_other_numbers_of_axes(tmp_path, shape):
    original = smooth_volume(shape)
    for name, options in (("v2", DOORS["v2"]), ("v3", DOORS["v3"])):
        array = zarr.create_array(tmp_path / name, shape=shape, chunks=shape, dtype="f4", **options)
        array[:] = original
        assert_close(original, zarr.open(tmp_path / name, mode="r")[:])


def test_an_array_without_voxels(tmp_path, door):
    array = create(tmp_path / "a.zarr", door, (0, 16, 16))
    assert array[:].shape == (0, 16, 16)
    assert zarr.open(tmp_path / "a.zarr", mode="r").shape == (0, 16, 16)


def test_reading_needs_no_import(tmp_path, door):
    original = smooth_volume((32, 16, 16))
    create(tmp_path / "a.zarr", door, original.shape)[:] = original
    code = (
        "import sys, numpy, zarr\n"
        f"array = zarr.open({str(tmp_path / 'a.zarr')!r}, mode='r')\n"
        f"numpy.save({str(tmp_path / 'decoded.npy')!r}, array[:])\n"
        "assert 'torch' not in sys.modules, 'reading on a CPU must not import torch'\n"
    )
    environment = {"TINC_DEVICE": "cpu"}
    run_fresh(code, environment)
    assert_close(original, np.load(tmp_path / "decoded.npy"))


def run_fresh(code: str, environment: dict[str, str]) -> None:
    """Run code in a fresh interpreter."""
    import os

    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr


def test_groups(tmp_path):
    original = smooth_volume((16, 16, 16))
    v2 = zarr.open_group(tmp_path / "g2", mode="w", zarr_format=2)
    v2.create_array("a/b", shape=original.shape, chunks=CHUNKS, dtype="f4", compressors=CODEC)
    v3 = zarr.open_group(tmp_path / "g3", mode="w")
    v3.create_array(
        "a/b", shape=original.shape, chunks=CHUNKS, dtype="f4", serializer=CODEC, compressors=None
    )
    for name in ("g2", "g3"):
        zarr.open_group(tmp_path / name, mode="a")["a/b"][:] = original
        assert_close(original, zarr.open_group(tmp_path / name, mode="r")["a/b"][:])


def test_the_short_lines_of_the_readme(tmp_path):
    original = smooth_volume((16, 16, 16))
    for name, options in (
        ("v2", {"zarr_format": 2, "compressor": CODEC}),
        ("v3", {"codecs": [CODEC]}),
    ):
        array = zarr.open(
            tmp_path / name, mode="w", shape=original.shape, chunks=CHUNKS, dtype="f4", **options
        )
        array[:] = original
        assert_close(original, zarr.open(tmp_path / name, mode="r")[:])


def test_pickled_arrays_read(tmp_path, door):
    array = create(tmp_path / "a.zarr", door, fill_value=1)
    array[:16] = smooth_volume((16, 16, 16))
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(array))[:], array[:])


def test_metadata_holds_only_the_codecs_parameters(tmp_path, door):
    create(tmp_path / "a.zarr", door)
    if "v2" in door:
        stored = json.loads((tmp_path / "a.zarr" / ".zarray").read_text())
        assert stored["compressor"] == {"id": "tinc", "ratio": 8, "effort": 0}
        return
    codecs = json.loads((tmp_path / "a.zarr" / "zarr.json").read_text())["codecs"]
    inner = codecs[0]["configuration"]["codecs"] if "shards" in door else codecs
    assert inner == [{"name": "tinc", "configuration": {"ratio": 8, "effort": 0}}]


def test_a_damaged_chunk_raises_our_error(tmp_path, door):
    array = create(tmp_path / "a.zarr", door)
    array[:16] = smooth_volume((16, 16, 16))
    (file,) = chunk_files(tmp_path / "a.zarr")
    intact = file.read_bytes()
    file.write_bytes(intact[:30] + bytes([intact[30] ^ 16]) + intact[31:])
    with pytest.raises(FormatError):
        zarr.open(tmp_path / "a.zarr", mode="r")[:]
    if "shards" not in door:
        for size_bytes in (0, 3, len(intact) - 1):
            file.write_bytes(intact[:size_bytes])
            with pytest.raises(FormatError):
                zarr.open(tmp_path / "a.zarr", mode="r")[:]


@pytest.mark.parametrize("dtype", ["?", "i8", "u8", "c8", "U3", "M8[s]"])
@pytest.mark.filterwarnings("ignore:The data type")
def test_unsupported_dtypes_are_refused_before_any_work(tmp_path, door, dtype, monkeypatch):
    def fail(*_):
        raise AssertionError("the encoder was reached")

    monkeypatch.setattr("tinc_codec.codec.encode_chunks", fail)
    path = tmp_path / "a.zarr"
    if "v3" in door:
        with pytest.raises(UnsupportedDataError):
            create(path, door, dtype=dtype)
        return
    array = create(path, door, dtype=dtype)
    with pytest.raises(UnsupportedDataError):
        array[:] = np.ones(SHAPE, "i1").astype(dtype)
    assert not chunk_files(path)
