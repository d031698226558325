"""The code that GPUs run, run on torch's CPU device: under the name "cpu:0" nothing is compiled."""

import numpy as np
import pytest

from tinc_codec import config
from tinc_codec.codec import decode_chunks, encode_chunks
from tinc_codec.metrics import psnr
from tinc_codec.params import EncodingParams


@pytest.fixture
def torch_device(monkeypatch):
    monkeypatch.setattr(config, "resolve_device", lambda: "cpu:0")


def smooth(shape, dtype):
    axes = np.meshgrid(*(np.linspace(0, 2, n) for n in shape), indexing="ij")
    wave = sum(np.sin(axis + i) for i, axis in enumerate(axes))
    return (20 + 15 * (wave - wave.min())).astype(dtype)


PARAMS = EncodingParams(ratio=8, effort=0)
DTYPES = ("u1", "u2", "u4", "i1", "i2", "i4", "f2", "f4", "f8", ">i2", ">f4")


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_batch_decodes_as_on_the_cpu(dtype, monkeypatch):
    chunks = [smooth((16, 12, 9), dtype), smooth((16, 12, 9), dtype)[::-1], smooth((24, 20), dtype)]
    streams = encode_chunks(chunks, EncodingParams(ratio=2, effort=0))
    compiled = decode_chunks(streams)
    monkeypatch.setattr(config, "resolve_device", lambda: "cpu:0")
    for one, other in zip(decode_chunks(streams), compiled, strict=True):
        assert one.dtype == other.dtype
        assert one.shape == other.shape
        span = float(np.ptp(other.astype("f8")))
        unit = 1 if np.dtype(dtype).kind in "iu" else 0
        difference = np.abs(one.astype("f8") - other.astype("f8")).max()
        assert difference <= unit + span * 2**-10


def test_a_batch_is_fitted(torch_device):
    chunks = [smooth((16, 16, 16), "f4"), smooth((16, 16, 16), "f4")[:, ::-1]]
    streams = encode_chunks(chunks, PARAMS)
    assert all(
        len(stream) <= chunk.nbytes / 8 for stream, chunk in zip(streams, chunks, strict=True)
    )
    for chunk, decoded in zip(chunks, decode_chunks(streams), strict=True):
        assert psnr(chunk, decoded) > 25


def test_voxels_that_are_not_finite(torch_device):
    chunk = smooth((16, 16, 16), "f4")
    chunk[3:6, 2:9, 1] = np.nan
    (stream,) = encode_chunks([chunk], PARAMS)
    (decoded,) = decode_chunks([stream])
    np.testing.assert_array_equal(np.isnan(decoded), np.isnan(chunk))
