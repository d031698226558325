"""Writes to parts of chunks: said once, within the promise, and nothing lost when they fail."""

import shutil
import subprocess
import sys
import time
import warnings

import numpy as np
import pytest

from tests.faces import CHUNKS, assert_close, psnr, smooth_volume
from tinc_codec import TINC, TargetError
from tinc_codec.bitstream.header import read_stream
from tinc_codec.codec import decode_chunk, encode_chunk
from tinc_codec.errors import PartialWriteWarning
from tinc_codec.params import EncodingParams
from tinc_codec.rewrite import open_old, rewrite_chunk

zarr = pytest.importorskip("zarr", minversion="3.1")

from zarr.storage import LocalStore, MemoryStore  # noqa: E402

LOSSY = TINC(ratio=8, effort=0)
EXACT = TINC(max_error=0, effort=0)
SHAPE = (40, 16, 16)


@pytest.fixture(params=["plain", "shards"])
def shards(request):
    return (32, 16, 16) if request.param == "shards" else None


@pytest.fixture(params=["memory", "local"])
def store(request, tmp_path):
    return MemoryStore() if request.param == "memory" else LocalStore(tmp_path / "a.zarr")


def create(store, codec, shape=SHAPE, dtype="<f4", **options):
    return zarr.create_array(
        store,
        shape=shape,
        chunks=options.pop("chunks", CHUNKS[: len(shape)]),
        dtype=dtype,
        serializer=codec,
        compressors=None,
        **options,
    )


def contents(store):
    """Return all that a store holds, metadata left out."""
    if isinstance(store, MemoryStore):
        found = {key: value.to_bytes() for key, value in store._store_dict.items()}
    else:
        found = {str(p.relative_to(store.root)): p.read_bytes() for p in settled(store.root)}
    return {key: value for key, value in found.items() if not key.endswith("zarr.json")}


def settled(root):
    """List the files once none is half written: zarr raises before it is done with other chunks."""
    for _ in range(1000):
        files = [path for path in root.rglob("*") if path.is_file()]
        half = [path for path in files if path.suffix == ".partial"]
        if not half:
            return files
        time.sleep(0.01)
    raise AssertionError(f"left over: {half}")


def noisy(shape, dtype, seed=0):
    rough = smooth_volume(shape, "<f8") + np.random.default_rng(seed).normal(0, 3, shape)
    return np.clip(rough, 0, 120).astype(dtype)


@pytest.mark.parametrize(
    "codec", [LOSSY, TINC(psnr=30, effort=0), TINC(max_error=1, effort=0)], ids=repr
)
def test_a_partial_overwrite_is_said(store, shards, codec):
    array = create(store, codec, shards=shards)
    array[:] = smooth_volume(SHAPE)
    with pytest.warns(PartialWriteWarning, match="a part of a chunk with lossy data") as found:
        array[3:7, 2:9, 5] = 50
    assert len(found) == 1
    name = next(iter(codec.params.to_config()))
    assert f"TINC({name}=" in str(found[0].message)
    assert ("takes more bytes" in str(found[0].message)) == (name == "max_error")
    expected = smooth_volume(SHAPE)
    expected[3:7, 2:9, 5] = 50
    assert psnr(expected, array[:]) > 25


def test_it_is_said_once(shards):
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("default")
        for _ in range(2):
            array = create(MemoryStore(), LOSSY, shards=shards)
            array[:] = smooth_volume(SHAPE)
            for z in (0, 5, 20, 37):
                array[z, 3:9] = 50
    assert [warning.category for warning in found] == [PartialWriteWarning]


SCRIPT = """
import warnings
import numpy as np, zarr
from tinc_codec import TINC
warnings.simplefilter("ignore", DeprecationWarning)
array = zarr.create_array({}, shape=(16, 16, 16), chunks=(16, 16, 16), dtype="f4",
                          serializer=TINC(ratio=8, effort=0), compressors=None)
array[:] = np.random.default_rng(0).random((16, 16, 16))
for z in range(3):
    array[z] = 0.5
"""


def test_a_user_sees_it_on_the_terminal():
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("PartialWriteWarning: a part of a chunk") == 1


def test_as_an_error_it_leaves_the_old_chunk(store, shards):
    array = create(store, LOSSY, shards=shards)
    array[:] = smooth_volume(SHAPE)
    before = contents(store)
    assert before
    with warnings.catch_warnings():
        warnings.simplefilter("error", PartialWriteWarning)
        for write in (
            lambda: array.__setitem__((slice(3, 7), 2), 50),
            lambda: array.set_coordinate_selection(([1, 39], [2, 3], [0, 0]), [5, 6]),
            lambda: array.oindex.__setitem__(([1, 5], [0, 3], slice(None)), 5),
        ):
            with pytest.raises(PartialWriteWarning):
                write()
    assert contents(store) == before


def test_first_and_complete_writes_say_nothing(shards):
    original = smooth_volume((40, 20, 18))
    array = create(MemoryStore(), LOSSY, original.shape, shards=(32, 32, 32) if shards else None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # Parts of chunks that are not there.
        array[2:9, 3, 4:8] = 5
        array = create(
            MemoryStore(), LOSSY, original.shape, shards=(32, 32, 32) if shards else None
        )
        for _ in range(3):
            # Edge chunks are complete where their voxels within the array are.
            array[:] = original
            array[32:, 16:, 16:] = original[32:, 16:, 16:]
            array.oindex[np.arange(16), np.arange(16), np.arange(16)] = original[:16, :16, :16]
            array[16:32, :16, :16] = 3
        array[17, 3, 4:8] = 5
    assert_close(original[:16], array[:16])


@pytest.mark.parametrize("size", [15, 16, 17, 30, 31, 33])
def test_the_last_chunk_of_a_line_is_complete_too(size):
    array = create(MemoryStore(), TINC(psnr=40, effort=0), (size,))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(2):
            array[:] = smooth_volume((size,))
    assert_close(smooth_volume((size,)), array[:])


def test_exact_chunks_lose_nothing_and_say_nothing(shards):
    array = create(MemoryStore(), EXACT, dtype="u1", shards=shards)
    expected = noisy(SHAPE, "u1")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        array[:] = expected
        array[3:7, 2] = 9
    expected[3:7, 2] = 9
    np.testing.assert_array_equal(array[:], expected)


def test_growing_arrays_say_it_where_data_is_encoded_again():
    original = smooth_volume(SHAPE)
    array = create(MemoryStore(), LOSSY, (24, 16, 16))
    array[:] = original[:24]
    with pytest.warns(PartialWriteWarning):
        array.append(original[24:])
    assert_close(original, array[:])


def test_what_the_codec_cannot_know(tmp_path):
    """In the v2 format, and where other codecs follow, no warning: encode sees whole chunks."""
    for number, options in enumerate(
        (
            {"zarr_format": 2, "compressors": LOSSY},
            {"serializer": LOSSY, "compressors": [{"name": "gzip", "configuration": {"level": 1}}]},
        )
    ):
        array = zarr.create_array(
            tmp_path / str(number), shape=(16, 16, 16), chunks=CHUNKS, dtype="f4", **options
        )
        array[:] = smooth_volume(CHUNKS)
        array[3] = 50
        assert np.abs(array[3] - 50).max() < 30


def test_every_selection_writes_what_numpy_would(shards):
    rng = np.random.default_rng(1)
    shape = (40, 20, 18)
    expected = noisy(shape, "<i2")
    array = create(
        MemoryStore(), EXACT, shape, "i2", shards=(32, 32, 32) if shards else None, fill_value=3
    )
    expected[:16, :16, :16] = 3
    array[16:] = expected[16:]
    array[:16, 16:] = expected[:16, 16:]
    array[:16, :, 16:] = expected[:16, :, 16:]
    mask = rng.random(shape) < 0.01
    points = tuple(rng.integers(0, n, 30) for n in shape)
    rows, columns = np.array([1, 17, 39]), np.array([0, 17])

    def both(write, twin=None):
        write(array)
        (twin or write)(expected)
        np.testing.assert_array_equal(array[:], expected)

    def values(*size):
        return rng.integers(0, 99, size).astype("i2")

    for key in (
        (3, 4, 5),
        (slice(2, 30, 3), 7, slice(1, 18, 5)),
        (slice(None), 19),
        (Ellipsis, 2),
        (-1,),
    ):
        some = values(*expected[key].shape)
        both(lambda a, k=key, v=some: _set(a, k, v))
        both(lambda a, k=key: _set(a, k, 11))
    numbers = values(30)
    unique = np.unique(np.ravel_multi_index(points, shape), return_index=True)[1]
    points, numbers = tuple(part[unique] for part in points), numbers[unique]
    both(lambda a: a.set_coordinate_selection(points, numbers), lambda e: _set(e, points, numbers))
    marked = values(int(mask.sum()))
    both(lambda a: a.set_mask_selection(mask, marked), lambda e: _set(e, mask, marked))
    # Before zarr 3.2 no codec could write these to shards.
    if shards is None or not zarr.__version__.startswith(("3.0.", "3.1.")):
        block, flat = values(3, 20, 2), values(3, 18)
        both(
            lambda a: a.set_orthogonal_selection((rows, slice(None), columns), block),
            lambda e: _set(e, np.ix_(rows, np.arange(20), columns), block),
        )
        both(
            lambda a: a.set_orthogonal_selection((rows, 4, slice(None)), flat),
            lambda e: _set(e, (rows, 4), flat),
        )


def _set(array, key, values):
    array[key] = values


def test_chunks_as_good_as_missing_are_removed(store, shards):
    array = create(store, LOSSY, fill_value=7, shards=shards)
    array[:] = smooth_volume(SHAPE)
    array[:16] = 7
    array[16:] = 7
    assert contents(store) == {}
    array[3, 4, 5] = 9
    array[3, 4] = 7
    assert contents(store) == {}
    with zarr.config.set({"array.write_empty_chunks": True}):
        array = create(store, LOSSY, fill_value=7, shards=shards, overwrite=True)
        array[:16] = 7
        assert len(contents(store)) == 1


def test_the_users_array_is_left_alone(shards):
    original = smooth_volume(SHAPE)
    kept = original.copy()
    array = create(MemoryStore(), LOSSY, shards=shards)
    array[:] = original
    np.testing.assert_array_equal(original, kept)


# Promises over several rewrites.

PARTS = [
    (slice(2, 7), slice(None), slice(3, 9)),
    (slice(0, 1), slice(None), slice(None)),
    (slice(5, 30), slice(4, 9), slice(6, 15)),
    (slice(None, None, 3), slice(7, 8), slice(None)),
    (slice(33, 40), slice(0, 5), slice(None)),
]


@pytest.mark.parametrize("grows", [False, True], ids=["within the range", "beyond the range"])
@pytest.mark.parametrize("dtype", ["u1", "<i4", "<f2", "<f4"])
def test_untouched_voxels_stay_within_max_error_of_the_original(dtype, grows, shards):
    bound = 4 if np.dtype(dtype).kind in "iu" else 1.5
    truth = noisy(SHAPE, dtype)
    array = create(MemoryStore(), TINC(max_error=bound, effort=0), dtype=dtype, shards=shards)
    array[:] = truth
    for number, part in enumerate(PARTS):
        new = noisy(truth[part].shape, dtype, number + 1)
        if grows:
            new = (new + np.asarray(15 * number, dtype)).astype(dtype)
        with pytest.warns(PartialWriteWarning):
            array[part] = new
        truth[part] = new
        assert np.abs(array[:].astype("f8") - truth.astype("f8")).max() <= bound


def test_within_the_range_untouched_voxels_do_not_move():
    params = EncodingParams(max_error=2, effort=0)
    original = noisy((24, 20, 16), "<f4")
    stream = encode_chunk(original, params)
    old = open_old(stream)
    array, touched = old.decode(), np.zeros(original.shape, dtype=bool)
    before = array.copy()
    touched[3:5, 2:9] = True
    array[touched] = noisy(original.shape, "<f4", 1)[touched].clip(original.min(), original.max())
    found = decode_chunk(rewrite_chunk(old, array, touched, params))
    np.testing.assert_array_equal(found[~touched], before[~touched])
    assert np.abs(found - array)[touched].max() <= 2


def rewritten(params, original, dtype="<f4", parts=4):
    """Rewrite parts of a chunk; yields stream, voxels that it was made of, and what was read."""
    truth = original.copy()
    stream = encode_chunk(original, params)
    for number in range(parts):
        old = open_old(stream)
        array, touched = old.decode(), np.zeros(truth.shape, dtype=bool)
        touched[5 * number : 5 * number + 4, 3 : 12 + number] = True
        new = noisy(truth.shape, dtype, number)
        array[touched] = truth[touched] = new[touched]
        stream = rewrite_chunk(old, array, touched, params)
        yield stream, truth, array


@pytest.mark.parametrize(
    "promise", [{"psnr": 30}, {"ratio": 12}, {"max_error": 3}], ids=lambda p: next(iter(p))
)
@pytest.mark.parametrize("dtype", ["u1", "<f4"])
def test_the_header_bounds_the_error_against_the_original(promise, dtype):
    params = EncodingParams(effort=0, **promise)
    original = noisy((20, 20, 16), dtype)
    for stream, truth, array in rewritten(params, original, dtype):
        header = read_stream(stream, max_decoded_bytes=1 << 30)
        found = decode_chunk(stream)
        error = np.abs(found.astype("f8") - truth.astype("f8"))
        assert error.max() <= header.max_error
        span = float(header.info.value_max) - float(header.info.value_min)
        assert 10 * np.log10(span**2 / np.mean(error**2)) >= header.psnr
        # The promise itself is about what was read before the write.
        if params.psnr is not None:
            assert psnr(array, found) >= 30
        if params.ratio is not None:
            assert len(stream) * 12 <= original.nbytes


@pytest.mark.parametrize("model", ["features", "tree"])
def test_missing_values_and_padding(model):
    if model == "tree":
        pytest.importorskip("torch")
    params = EncodingParams(max_error=3, effort=0, model=model)
    truth = noisy((20, 18, 16), "<f4")
    truth[:, 15:] = -7
    truth[4:8, 2:9, 1] = np.nan
    truth[1, 1, 1] = np.inf
    stream = encode_chunk(truth, params)
    for number, value in enumerate((np.nan, 60.0, -np.inf, -7.0)):
        old = open_old(stream)
        array, touched = old.decode(), np.zeros(truth.shape, dtype=bool)
        touched[3 * number : 3 * number + 4, 2:14] = True
        array[touched] = truth[touched] = value
        stream = rewrite_chunk(old, array, touched, params)
        found = decode_chunk(stream)
        finite = np.isfinite(truth)
        np.testing.assert_array_equal(found[~finite], truth[~finite])
        np.testing.assert_array_equal(found[:, 15:], truth[:, 15:])
        assert np.abs(found[finite] - truth[finite]).max() <= 3


def test_a_chunk_becomes_constant():
    params = EncodingParams(max_error=3, effort=0)
    truth = np.full((16, 16, 16), 5, "<f4")
    truth[:2, :2] = noisy((2, 2, 16), "<f4")
    truth[0, 0, 0] = 100
    old = open_old(encode_chunk(truth, params))
    array, touched = old.decode(), np.ones(truth.shape, dtype=bool)
    touched[5] = False
    array[touched] = array[5, 0, 0]
    array[5] = array[5, 0, 0]
    found = decode_chunk(rewrite_chunk(old, array, touched, params))
    assert np.abs(found[5] - truth[5]).max() <= 3
    assert np.abs(found - array).max() <= 3


# Failures.


def test_a_failed_encode_leaves_the_old_chunk(store, shards):
    array = create(store, TINC(psnr=300, effort=0), shards=shards)
    array[:] = 3.25
    before = contents(store)
    with pytest.raises(TargetError, match="psnr=300 dB"):
        array[3:9, 2] = np.random.default_rng(0).random((6, 16))
    assert contents(store) == before
    assert (array[:] == np.float32(3.25)).all()


def test_each_chunk_of_a_failed_write_is_old_or_new(store):
    array = create(store, TINC(psnr=300, effort=0), (64, 16, 16))
    array[:] = 3.25
    before = contents(store)
    new = np.full((64, 16, 16), 5, "f4")
    new[20:24] = np.random.default_rng(0).random((4, 16, 16))
    with pytest.raises(TargetError):
        array[:] = new
    after = contents(store)
    assert after.keys() == before.keys()
    assert after["c/1/0/0"] == before["c/1/0/0"]
    decoded = array[:]
    for z in (0, 32, 48):
        assert (decoded[z : z + 16] == 3.25).all() or (decoded[z : z + 16] == 5).all()


@pytest.mark.parametrize(("batch_size", "shards"), [(8, None), (1, (64, 16, 16))])
def test_a_batch_or_a_shard_is_stored_when_all_of_it_is_encoded(store, batch_size, shards):
    with zarr.config.set({"codec_pipeline.batch_size": batch_size}):
        array = create(store, TINC(psnr=300, effort=0), (64, 16, 16), shards=shards)
    array[:] = 3.25
    before = contents(store)
    new = np.full((64, 16, 16), 5, "f4")
    new[60:] = np.random.default_rng(0).random((4, 16, 16))
    with pytest.raises(TargetError):
        array[:] = new
    assert contents(store) == before


def test_a_damaged_old_chunk_is_not_merged(tmp_path):
    array = create(LocalStore(tmp_path), LOSSY)
    array[:] = smooth_volume(SHAPE)
    file = tmp_path / "c" / "0" / "0" / "0"
    shutil.copyfile(tmp_path / "c" / "1" / "0" / "0", file)
    file.write_bytes(file.read_bytes()[:-1])
    damaged = file.read_bytes()
    with pytest.raises(ValueError, match="bytes"):
        array[3] = 5
    assert file.read_bytes() == damaged
    # What needs nothing of it replaces it.
    array[:16] = smooth_volume(CHUNKS)
    assert_close(smooth_volume(CHUNKS), array[:16])
