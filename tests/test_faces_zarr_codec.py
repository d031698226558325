"""The Zarr v3 codec class itself: what zarr's pipeline hands it and gets back."""

import asyncio
import pickle

import numpy as np
import pytest

from tests.faces import CHUNKS, CODEC, assert_close, smooth_volume
from tinc_codec import ConfigError, CorruptStreamError, UnsupportedDataError, codec

zarr = pytest.importorskip("zarr", minversion="3.1")

from zarr.abc.codec import ArrayBytesCodec  # noqa: E402
from zarr.core.array_spec import ArrayConfig, ArraySpec  # noqa: E402
from zarr.core.buffer import default_buffer_prototype  # noqa: E402
from zarr.dtype import Bool  # noqa: E402
from zarr.registry import get_codec_class  # noqa: E402

from tinc_codec.zarr import TINCCodec  # noqa: E402


@pytest.fixture
def batches(monkeypatch):
    """Record how many chunks reach each call of the codec."""
    sizes = {"encode": [], "decode": []}

    def recording(kind, function):
        def call(chunks, *rest):
            sizes[kind].append(len(chunks))
            return function(chunks, *rest)

        return call

    monkeypatch.setattr(codec, "encode_chunks", recording("encode", codec.encode_chunks))
    monkeypatch.setattr(codec, "decode_chunks", recording("decode", codec.decode_chunks))
    return sizes


def create(path, **options):
    """Create a plain v3 array of three chunks."""
    return zarr.create_array(
        path,
        shape=(48, 16, 16),
        chunks=CHUNKS,
        dtype="f4",
        serializer=CODEC,
        compressors=None,
        **options,
    )


def test_it_is_found_by_name_and_round_trips():
    assert get_codec_class("tinc") is TINCCodec
    built = TINCCodec.from_dict(dict(CODEC))
    assert isinstance(built, ArrayBytesCodec)
    assert built.to_dict() == CODEC
    assert built == TINCCodec(CODEC.params) == pickle.loads(pickle.dumps(built))
    assert hash(built) == hash(TINCCodec(CODEC.params))
    with pytest.raises(NotImplementedError):
        built.compute_encoded_size(1, None)


@pytest.mark.parametrize(
    ("named", "message"),
    [
        ({"name": "zfp", "configuration": {"ratio": 8}}, "codec name 'zfp' is not 'tinc'"),
        ({"name": "tinc"}, "exactly one of ratio"),
        ({"name": "tinc", "configuration": {"ratio": 8, "mode": 1}}, "unknown parameter mode"),
        ({"name": "tinc", "configuration": [8]}, "not a mapping"),
    ],
)
def test_stored_configuration_is_checked(named, message):
    with pytest.raises(ConfigError, match=message):
        TINCCodec.from_dict(named)


@pytest.mark.parametrize("shards", [None, (48, 16, 16)])
def test_what_zarr_hands_over_as_a_batch_is_one_call(tmp_path, batches, shards):
    original = smooth_volume((48, 16, 16))
    with zarr.config.set({"codec_pipeline.batch_size": 8}):
        array = create(tmp_path / "a.zarr", shards=shards)
        array[:] = original
        assert batches["encode"] == [3]
        batches["decode"].clear()
        assert_close(original, array[:])
        assert batches["decode"] == [3]


def test_missing_chunks_stay_missing_in_a_batch(tmp_path, batches):
    with zarr.config.set({"codec_pipeline.batch_size": 8}):
        array = create(tmp_path / "a.zarr", fill_value=5)
        array[16:32] = smooth_volume(CHUNKS)
        decoded = array[:]
        assert batches == {"encode": [1], "decode": [1]}
    assert (decoded[:16] == 5).all()
    assert (decoded[32:] == 5).all()


def test_a_chunk_of_another_array_is_refused(tmp_path):
    target = create(tmp_path / "a.zarr")
    target[:] = smooth_volume((48, 16, 16))
    for number, (shape, dtype) in enumerate([((16, 16, 8), "f4"), ((16, 16, 16), "i4")]):
        path = tmp_path / f"{number}.zarr"
        other = zarr.create_array(
            path, shape=shape, chunks=shape, dtype=dtype, serializer=CODEC, compressors=None
        )
        other[:] = smooth_volume(shape, dtype)
        stray = (path / "c" / "0" / "0" / "0").read_bytes()
        (tmp_path / "a.zarr" / "c" / "1" / "0" / "0").write_bytes(stray)
        with pytest.raises(CorruptStreamError, match="the array's chunks have"):
            target[:]


def test_encode_checks_the_data_again():
    """A pipeline that calls neither `validate` nor `evolve_from_array_spec` is no way around."""
    spec = ArraySpec(
        shape=(4,),
        dtype=Bool(),
        fill_value=False,
        config=ArrayConfig(order="C", write_empty_chunks=False),
        prototype=default_buffer_prototype(),
    )
    chunk = spec.prototype.nd_buffer.from_numpy_array(np.ones(4, "?"))
    with pytest.raises(UnsupportedDataError):
        asyncio.run(TINCCodec(CODEC.params).encode([(chunk, spec)]))


def test_an_outer_compressor_still_works(tmp_path):
    original = smooth_volume(CHUNKS)
    array = zarr.create_array(
        tmp_path / "a.zarr", shape=CHUNKS, chunks=CHUNKS, dtype="f4", serializer=CODEC
    )
    array[:] = original
    assert_close(original, zarr.open(tmp_path / "a.zarr", mode="r")[:])
