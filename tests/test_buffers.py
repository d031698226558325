"""Arrays read as torch tensors, through our NDBuffer; on the CPU, where no cupy is needed."""

import importlib.metadata
import subprocess
import sys

import numpy as np
import pytest

from tests.faces import CHUNKS, CODEC, smooth_volume
from tinc_codec import TINC, CorruptStreamError, config
from tinc_codec.codec import decode_chunks, decode_chunks_on_device, encode_chunks
from tinc_codec.params import MAX_EFFORT, EncodingParams

zarr = pytest.importorskip("zarr", minversion="3.1")
torch = pytest.importorskip("torch")

from zarr.storage import MemoryStore  # noqa: E402

from tinc_codec.torch_buffer import TorchNDBuffer, enable  # noqa: E402

SHAPE = (40, 20, 18)
DTYPES = ("u1", "u2", "u4", "i1", "i2", "i4", "f2", "f4", "f8")


@pytest.fixture(params=["compiled", "torch"], autouse=True)
def device(request, monkeypatch):
    """Decode with the CPU's kernels, and with the code that GPUs run: "cpu:0" is not compiled."""
    if request.param == "torch":
        monkeypatch.setattr(config, "resolve_device", lambda: "cpu:0")
    return request.param


@pytest.fixture(params=["plain", "shards"])
def shards(request):
    return (32, 32, 32) if request.param == "shards" else None


def create(shape=SHAPE, dtype="<f4", codec=CODEC, **options):
    return zarr.create_array(
        MemoryStore(),
        shape=shape,
        chunks=CHUNKS,
        dtype=dtype,
        serializer=codec,
        compressors=None,
        **options,
    )


def as_numpy(tensor):
    assert isinstance(tensor, torch.Tensor)
    return tensor.numpy()


@pytest.mark.parametrize("dtype", ["u1", "u2", "u4", "i4", "f2", "f4"])
def test_every_selection_gives_a_tensor(dtype, shards):
    array = create(dtype=dtype, shards=shards, fill_value=3)
    array[:32] = smooth_volume((32, *SHAPE[1:]), dtype)
    rng = np.random.default_rng(0)
    mask = rng.random(SHAPE) < 0.02
    rows, columns = np.array([0, 17, 39]), np.array([1, 17])
    selections = {
        "all": lambda a: a[:],
        "box": lambda a: a[3:37:3, 5, 2:9],
        "plane": lambda a: a[..., 4],
        "missing": lambda a: a[33:],
        "rows": lambda a: a.oindex[rows, :, columns],
        "rows and a plane": lambda a: a.oindex[rows, 3, 2:5],
        "mask": lambda a: a.get_mask_selection(mask),
        "flags": lambda a: a.oindex[mask[:, 0, 0], :, :],
    }
    if shards is None:
        selections["block"] = lambda a: a.blocks[1, 0]
    expected = {name: select(array) for name, select in selections.items()}
    with enable():
        found = {name: select(array) for name, select in selections.items()}
        one, scalar = array[3, 4, 5], array.get_basic_selection((3, 4, 5))
    for name, tensor in found.items():
        np.testing.assert_array_equal(as_numpy(tensor), expected[name], err_msg=name)
        assert tensor.dtype == getattr(torch, np.dtype(dtype).name)
    # As with NumPy, one makes an array without axes, the other a scalar.
    assert as_numpy(one).shape == ()
    assert isinstance(scalar, np.generic)
    assert as_numpy(one) == scalar == expected["all"][3, 4, 5]
    assert isinstance(array[:2], np.ndarray)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_scattered_points_are_arrays_since_zarr_makes_them_so(shards):
    array = create(shards=shards)
    array[:32] = smooth_volume((32, *SHAPE[1:]))
    rng = np.random.default_rng(0)
    points = tuple(rng.integers(0, n, 9) for n in SHAPE)
    for select in (
        lambda: array.vindex[points],
        lambda: array.vindex[np.ix_(points[0], points[1], points[2][:2])],
    ):
        expected = select()
        with enable():
            found = select()
        assert isinstance(found, np.ndarray)
        np.testing.assert_array_equal(found, expected)


def test_the_line_of_zarrs_configuration(shards):
    array = create(shards=shards)
    array[:] = smooth_volume(SHAPE)
    expected = array[:]
    with zarr.config.set({"ndbuffer": "tinc_codec.torch_buffer.TorchNDBuffer"}):
        np.testing.assert_array_equal(as_numpy(array[:]), expected)


def test_voxels_that_are_not_finite(shards):
    original = smooth_volume(SHAPE)
    original[3:9, 2:8, 1:5] = np.nan
    original[1, 1, 1], original[2, 2, 2] = np.inf, -np.inf
    array = create(shards=shards, fill_value=np.nan)
    array[:] = original
    expected = array[:]
    with enable():
        found = as_numpy(array[:])
    np.testing.assert_array_equal(found, expected)
    for is_kind in (np.isnan, np.isposinf, np.isneginf):
        np.testing.assert_array_equal(is_kind(found), is_kind(original))


def test_constant_chunks_and_padding(shards):
    array = create(dtype="u2", shards=shards, fill_value=65535)
    array[:] = 4096
    array[:16, :16, :16] = 9
    with enable():
        found = as_numpy(array[:])
    np.testing.assert_array_equal(found, array[:])
    assert (found[16:] == 4096).all()


@pytest.mark.parametrize("dtype", ["u2", "u4", "i1", "f2", "f4"])
def test_writing_from_numpy(dtype, shards):
    original = smooth_volume(SHAPE, dtype)
    options = {"dtype": dtype, "shards": shards, "fill_value": 0}
    expected = create(**options)
    expected[:] = original
    with enable():
        array = create(**options)
        array[:] = original
        # An exact chunk may be written to in parts.
        array[16:32] = 0
        array[20, 3:9, 2:5] = original[20, 3:9, 2:5]
        found = as_numpy(array[:16])
        assert int(as_numpy(array[16:32]).astype("f8").max()) > 0
    np.testing.assert_array_equal(found, expected[:16])


def test_the_v2_format_and_other_codecs(tmp_path):
    original = smooth_volume((16, 16, 16), ">f4")
    v2 = zarr.create_array(
        tmp_path / "v2", data=original, chunks=CHUNKS, zarr_format=2, compressors=CODEC, order="F"
    )
    labels = zarr.create_array(tmp_path / "labels", data=np.arange(24).reshape(4, 6) > 9)
    counts = zarr.create_array(tmp_path / "counts", data=np.arange(24, dtype="u8"))
    with enable():
        found, mask, numbers = v2[:], labels[:, 1:], counts[:]
    np.testing.assert_array_equal(as_numpy(found), v2[:])
    np.testing.assert_array_equal(as_numpy(mask), labels[:, 1:])
    # Torch can hardly compute with uint64.
    np.testing.assert_array_equal(numbers, counts[:])
    assert isinstance(numbers, np.ndarray)


def test_an_array_without_voxels(shards):
    array = create((0, 20, 18), shards=shards)
    with enable():
        assert tuple(array[:].shape) == (0, 20, 18)


def test_a_chunk_of_another_array_is_refused(tmp_path):
    def made(name, shape, dtype):
        array = zarr.create_array(
            tmp_path / name, shape=shape, chunks=shape, dtype=dtype, serializer=CODEC,
            compressors=None,
        )  # fmt: skip
        array[:] = smooth_volume(shape, dtype)
        return array, tmp_path / name / "c" / "0" / "0" / "0"

    array, file = made("a", CHUNKS, "f4")
    for name, shape, dtype in (("b", (16, 16, 8), "f4"), ("c", CHUNKS, "i4")):
        _, other = made(name, shape, dtype)
        file.write_bytes(other.read_bytes())
        with enable(), pytest.raises(CorruptStreamError, match="the array's chunks have"):
            array[:]


# What stays on the device is what comes back as NumPy.


@pytest.mark.parametrize(
    ("dtype", "model"),
    [(dtype, "features") for dtype in (*DTYPES, ">u2", ">f4")]
    + [(dtype, "tree") for dtype in ("u2", ">f4")],
)
def test_tensors_hold_what_arrays_hold(dtype, model, monkeypatch):
    volume = smooth_volume((2, 12, 13, 14), dtype)
    padded = smooth_volume((18, 17, 16), dtype)
    padded[:, 9:], padded[..., 12:] = padded[0, 0, 0], padded[0, 0, 0]
    chunks = [volume, padded, np.full((20, 20), 7, dtype), volume[:, ::-1]]
    if np.dtype(dtype).kind == "f":
        holes = volume.copy()
        holes[0, 2:5, 3], holes[1, 1, 1, 1:4] = np.nan, -np.inf
        chunks += [holes, np.full((20, 20), np.nan, dtype)]
    monkeypatch.setattr("tinc_codec.fit.plan.STEPS_BY_EFFORT", (25,) * (MAX_EFFORT + 1))
    streams = encode_chunks(chunks, EncodingParams(ratio=2, effort=0, model=model))
    for found, expected in zip(
        decode_chunks_on_device(streams), decode_chunks(streams), strict=True
    ):
        assert found.shape == expected.shape
        np.testing.assert_array_equal(as_numpy(found), expected)


@pytest.mark.parametrize("dtype", ["u1", "u2", "i4", "f2", "f4", ">f8"])
def test_corrections_on_the_device(dtype):
    rng = np.random.default_rng(0)
    chunk = (rng.random((3, 12, 9, 8)) * 100).astype(dtype)
    for bound in (0, 2, 30):
        if bound or np.dtype(dtype).kind in "iu":
            params = EncodingParams(max_error=bound, effort=0)
            streams = encode_chunks([chunk, chunk[:, ::-1]], params)
            for found, expected in zip(
                decode_chunks_on_device(streams), decode_chunks(streams), strict=True
            ):
                np.testing.assert_array_equal(as_numpy(found), expected)


# The buffer itself.


def test_what_zarr_asks_of_a_buffer():
    array = smooth_volume((4, 5, 6), "u2")
    buffer = TorchNDBuffer.from_numpy_array(array)
    assert (buffer.shape, buffer.dtype, len(buffer)) == ((4, 5, 6), np.dtype("u2"), 4)
    assert buffer.byteorder.value == sys.byteorder
    np.testing.assert_array_equal(buffer.reshape((20, 6)).as_numpy_array(), array.reshape(20, 6))
    np.testing.assert_array_equal(buffer.transpose(None).as_numpy_array(), array.T)
    np.testing.assert_array_equal(
        buffer.transpose((1, 0, 2)).as_numpy_array(), array.transpose(1, 0, 2)
    )
    wide = buffer.astype("f8")
    np.testing.assert_array_equal(wide.as_numpy_array(), array.astype("f8"))
    copy = buffer.copy()
    copy.fill(65535)
    assert copy.all_equal(65535)
    assert not buffer.all_equal(65535)
    copy[1:3] = buffer[1:3]
    copy[np.array([0]), np.array([1])] = 7
    changed = np.full_like(array, 65535)
    changed[1:3], changed[0, 1] = array[1:3], 7
    np.testing.assert_array_equal(copy.as_numpy_array(), changed)
    assert buffer[1:2, 1:2, 1:2].as_scalar() == array[1, 1, 1]
    with pytest.raises(ValueError, match="not a single value"):
        buffer.as_scalar()
    assert TorchNDBuffer.create(shape=(2, 3), dtype="f4").all_equal(0)
    assert TorchNDBuffer.from_tensor(buffer.as_ndarray_like()).dtype == np.dtype("u2")


def test_equality_is_that_of_zarr():
    for value, dtype in ((0.0, "f4"), (-0.0, "f4"), (np.nan, "f2"), (3, "i1"), (True, "?")):
        array = np.full((3, 4), value, dtype)
        buffer = TorchNDBuffer.from_numpy_array(array)
        assert buffer.all_equal(np.dtype(dtype).type(value))
        assert not buffer.all_equal(np.dtype(dtype).type(not value))
        assert not buffer.all_equal(None)
    assert not TorchNDBuffer.create(shape=(2,), dtype="f4", fill_value=-0.0).all_equal(0.0)


def test_arrays_that_torch_has_no_dtype_for_stay_arrays():
    names = np.array([["a", "bc"], ["d", "e"]])
    buffer = TorchNDBuffer.from_numpy_array(names)
    assert buffer.dtype == names.dtype
    np.testing.assert_array_equal(buffer[:, 1].as_numpy_array(), names[:, 1])
    made = TorchNDBuffer.create(shape=(2,), dtype="u8", fill_value=2**64 - 1)
    assert made.all_equal(2**64 - 1)
    np.testing.assert_array_equal(made.transpose(None).copy().as_numpy_array(), [2**64 - 1] * 2)


def test_a_readonly_array_is_copied():
    array = np.arange(6, dtype="f4")
    array.flags.writeable = False
    TorchNDBuffer.from_numpy_array(array).fill(1)
    assert array[0] == 0


def test_zarr_finds_it_without_an_import():
    found = importlib.metadata.entry_points(group="zarr.ndbuffer")
    if "tinc" not in found.names:
        pytest.skip("tinc_codec was installed before it had this entry point")
    code = (
        "import numpy, zarr\n"
        "array = zarr.create_array({}, data=numpy.ones((2, 3)))\n"
        "zarr.config.set({'ndbuffer': 'tinc_codec.torch_buffer.TorchNDBuffer'})\n"
        "assert zarr.registry.get_ndbuffer_class().__name__ == 'TorchNDBuffer'\n"
        "import torch\n"
        "assert isinstance(array[:], torch.Tensor)\n"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_importing_it_loads_no_torch():
    code = "import sys, tinc_codec.torch_buffer; assert 'torch' not in sys.modules"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_a_codec_that_keeps_bounds_is_read_within_them():
    original = smooth_volume(SHAPE, "i2")
    array = create(dtype="i2", codec=TINC(max_error=2, effort=0))
    array[:] = original
    with enable():
        found = as_numpy(array[:])
    assert np.abs(found - original).max() <= 2
