"""The code that GPUs run, run on torch's CPU device: under the name "cpu:0" nothing is compiled."""

import numpy as np
import pytest

from tinc_codec import config
from tinc_codec.bitstream.header import read_stream
from tinc_codec.codec import decode_chunks, encode_chunks
from tinc_codec.fit import plan as plan_module
from tinc_codec.metrics import max_error, psnr
from tinc_codec.model.features import TOLERANCE
from tinc_codec.params import MAX_EFFORT, EncodingParams


@pytest.fixture
def torch_device(monkeypatch):
    monkeypatch.setattr(config, "resolve_device", lambda: "cpu:0")


def smooth(shape, dtype):
    axes = np.meshgrid(*(np.linspace(0, 2, n) for n in shape), indexing="ij")
    wave = sum(np.sin(axis + i) for i, axis in enumerate(axes))
    return (20 + 15 * (wave - wave.min())).astype(dtype)


MODELS = ("tree", "features")
DTYPES = ("u1", "u2", "u4", "i1", "i2", "i4", "f2", "f4", "f8", ">i2", ">f4")


# What the two may differ by in t; a tree of a short fit amplifies rounding more.
SLACK = {"tree": 2.0**-10, "features": TOLERANCE}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("model", MODELS)
def test_a_batch_decodes_as_on_the_cpu(dtype, model, monkeypatch):
    chunks = [smooth((16, 12, 9), dtype), smooth((16, 12, 9), dtype)[::-1], smooth((24, 20), dtype)]
    streams = encode_chunks(chunks, EncodingParams(ratio=2, effort=0, model=model))
    compiled = decode_chunks(streams)
    monkeypatch.setattr(config, "resolve_device", lambda: "cpu:0")
    for one, other in zip(decode_chunks(streams), compiled, strict=True):
        assert one.dtype == other.dtype
        assert one.shape == other.shape
        span = float(np.ptp(other.astype("f8")))
        # One rounding to the dtype may go either way.
        unit = 1 if np.dtype(dtype).kind in "iu" else float(np.spacing(np.abs(other).max()))
        difference = np.abs(one.astype("f8") - other.astype("f8")).max()
        assert difference <= unit + span * SLACK[model]


@pytest.mark.parametrize("model", MODELS)
def test_a_batch_is_fitted(torch_device, model):
    chunks = [smooth((16, 16, 16), "f4"), smooth((16, 16, 16), "f4")[:, ::-1]]
    streams = encode_chunks(chunks, EncodingParams(ratio=8, effort=0, model=model))
    assert all(
        len(stream) <= chunk.nbytes / 8 for stream, chunk in zip(streams, chunks, strict=True)
    )
    for chunk, decoded in zip(chunks, decode_chunks(streams), strict=True):
        assert psnr(chunk, decoded) > 25


@pytest.mark.parametrize("model", MODELS)
def test_voxels_that_are_not_finite(torch_device, model):
    chunk = smooth((16, 16, 16), "f4")
    chunk[3:6, 2:9, 1] = np.nan
    (stream,) = encode_chunks([chunk], EncodingParams(ratio=8, effort=0, model=model))
    (decoded,) = decode_chunks([stream])
    np.testing.assert_array_equal(np.isnan(decoded), np.isnan(chunk))


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("dtype", ["u1", ">i2", "<f4", "<f8"])
def test_promises_made_on_one_device_hold_on_the_other(dtype, model, monkeypatch):
    monkeypatch.setattr(plan_module, "STEPS_BY_EFFORT", (25,) * (MAX_EFFORT + 1))
    chunk = smooth((16, 12, 9), dtype)
    chunk[3:5, 4:, 2] += 7
    for target in ({"psnr": 8.0}, {"max_error": 0.25}, {"max_error": 3.0}):
        params = EncodingParams(effort=0, model=model, **target)
        for encoder, decoder in (("cpu", "cpu:0"), ("cpu:0", "cpu")):
            monkeypatch.setattr(config, "resolve_device", lambda device=encoder: device)
            (stream,) = encode_chunks([chunk], params)
            monkeypatch.setattr(config, "resolve_device", lambda device=decoder: device)
            (decoded,) = decode_chunks([stream])
            if params.psnr is not None:
                assert psnr(chunk, decoded) >= params.psnr
            else:
                assert max_error(chunk, decoded) <= params.max_error
                assert read_stream(stream, max_decoded_bytes=1 << 30).max_error <= params.max_error
