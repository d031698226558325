"""CUDA and the CPU make the same of a stream, up to rounding; a fit works on either."""

import numpy as np
import pytest
import torch

from tests.faces import brain, smooth_volume
from tests.trees import SHAPE, draw, some_blocks, some_parameters, some_weights
from tinc_codec import config
from tinc_codec.bitstream.header import read_stream
from tinc_codec.codec import (
    decode_chunk,
    decode_chunks,
    decode_chunks_on_device,
    encode_chunk,
    encode_chunks,
)
from tinc_codec.fit.gradient import FusedGradient, TorchGradient
from tinc_codec.metrics import max_error, psnr
from tinc_codec.model import torch_wavelet
from tinc_codec.model import wavelet as compiled_wavelet
from tinc_codec.model.evaluate import evaluate_torch
from tinc_codec.model.features import TOLERANCE as FEATURES_TOLERANCE
from tinc_codec.params import EncodingParams

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]
QUICK = EncodingParams(ratio=8, effort=0)
# docs/format.md §7.6, for each of the two.
TOLERANCE = 2 * 2.0**-16
SLACK = {"tree": TOLERANCE, "features": FEATURES_TOLERANCE}

both_models = pytest.mark.parametrize("model", SLACK)


@both_models
@pytest.mark.parametrize("dtype", ["u1", "<u2", ">i4", "<f2", ">f4", "<f8"])
@pytest.mark.parametrize("shape", [(20, 17, 24), (3, 9, 16, 8), (60, 50), (900,)])
def test_decoding_agrees(dtype, shape, model):
    array = smooth_volume(shape, dtype)
    with config.set(device="cpu"):
        stream = encode_chunk(array, EncodingParams(ratio=8, effort=0, model=model))
        expected = decode_chunk(stream)
    with config.set(device="cuda"):
        found = decode_chunk(stream)
    assert found.dtype == expected.dtype
    assert found.shape == expected.shape
    allowed = SLACK[model] * float(np.ptp(array.astype("f8")))
    allowed += 1 if array.dtype.kind in "iu" else 0.1 if array.dtype.itemsize == 2 else 0
    assert np.abs(found.astype("f8") - expected.astype("f8")).max() <= allowed


def test_masks_padding_and_constants():
    array = smooth_volume((20, 20, 20))
    array[:, 5:9, 3] = np.nan
    array[15:] = 7
    constant = np.full((20, 20, 20), 2.5, "<f4")
    with config.set(device="cuda"):
        streams = encode_chunks([array, constant], QUICK)
        found = decode_chunks(streams)
    np.testing.assert_array_equal(np.isnan(found[0]), np.isnan(array))
    np.testing.assert_array_equal(found[0][15:], array[15:])
    np.testing.assert_array_equal(found[1], constant)


def test_evaluation_agrees():
    parameters = some_parameters(SHAPE, 3)
    scaling = np.array([[0.5, 0.25]] * 3, dtype=np.float32)
    found, expected = (
        evaluate_torch(SHAPE, parameters[None], scaling[None], device).cpu().numpy()
        for device in ("cuda", "cpu")
    )
    np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("masked", [False, True])
def test_gradients_agree(masked):
    blocks = some_blocks(SHAPE, 3)
    weights = some_weights(SHAPE, 3) if masked else None
    parameters = torch.from_numpy(some_parameters(SHAPE, 3))
    expected = FusedGradient(SHAPE, blocks, weights, 30, 1)(parameters, *draw(SHAPE))
    found = TorchGradient(SHAPE, blocks, weights, 30, "cuda")(parameters.cuda(), *draw(SHAPE))
    for a, b in zip(expected, found, strict=True):
        torch.testing.assert_close(b.cpu(), a, rtol=1e-3, atol=1e-4 * float(a.abs().max()))


@pytest.mark.parametrize("grid", [(1, 1, 900), (13, 8, 9), (64, 64, 64), (3, 40, 61)])
def test_inverse_wavelets_agree(grid):
    rng = np.random.default_rng(0)
    coefficients = compiled_wavelet.forward(rng.random((2, *grid), dtype=np.float32))
    expected = compiled_wavelet.inverse(coefficients)
    found = torch_wavelet.inverse(torch.from_numpy(coefficients).cuda()).cpu().numpy()
    np.testing.assert_allclose(found, expected, rtol=0, atol=FEATURES_TOLERANCE)


@both_models
@pytest.mark.parametrize("dtype", ["u1", ">u2", "<f4", "<f8"])
@pytest.mark.parametrize(("encoder", "decoder"), [("cpu", "cuda"), ("cuda", "cpu")])
def test_promises_made_on_one_device_hold_on_the_other(dtype, encoder, decoder, model):
    array = (brain(32) * 100.0).astype(dtype) if dtype != "u1" else brain(32)
    for target in ({"psnr": 22.0}, {"max_error": 0.25}, {"max_error": 9.0}):
        params = EncodingParams(effort=0, model=model, **target)
        with config.set(device=encoder):
            stream = encode_chunk(array, params)
        with config.set(device=decoder):
            found = decode_chunk(stream)
        if params.psnr is not None:
            assert psnr(array, found) >= params.psnr
        else:
            assert max_error(array, found) <= params.max_error


def test_chunks_of_all_models_are_decoded_together():
    arrays = [brain(24), smooth_volume((24, 24, 24)), smooth_volume((2, 20, 20, 20))]
    with config.set(device="cpu"):
        streams = [
            encode_chunk(array, EncodingParams(ratio=8, effort=0, model=model))
            for array in arrays
            for model in ("tree", "features", "tree")
        ]
        expected = decode_chunks(streams)
    with config.set(device="cuda"):
        found = decode_chunks(streams)
    for one, other in zip(found, expected, strict=True):
        allowed = TOLERANCE * float(np.ptp(other.astype("f8"))) + (other.dtype.kind == "u")
        assert np.abs(one.astype("f8") - other.astype("f8")).max() <= allowed


@both_models
def test_a_fit_keeps_its_promise_and_its_quality(model):
    array = smooth_volume((24, 24, 24))
    reached = {}
    for device in ("cpu", "cuda"):
        with config.set(device=device):
            stream = encode_chunk(array, EncodingParams(ratio=16, effort=1, model=model))
        assert len(stream) * 16 <= array.nbytes
        reached[device] = read_stream(stream, max_decoded_bytes=1 << 30).psnr
    assert reached["cuda"] > reached["cpu"] - 2


@both_models
def test_a_batch_on_a_gpu(model):
    arrays = [smooth_volume((16, 16, 16)) * scale for scale in (1, 2, 5)]
    with config.set(device="cuda"):
        streams = encode_chunks(arrays, EncodingParams(ratio=8, effort=0, model=model))
    for stream, array in zip(streams, arrays, strict=True):
        assert len(stream) * 8 <= array.nbytes
        with config.set(device="cpu"):
            assert decode_chunk(stream).shape == array.shape


# Memory, by CUDA's own accounting.


def peak_bytes(call):
    """Run a call; return how much more than before it torch held on the device at most."""
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    result = call()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before, result


@both_models
def test_a_limit_is_held_while_decoding(model):
    with config.set(device="cpu"):
        stream = encode_chunk(
            smooth_volume((64, 64, 64)), EncodingParams(ratio=16, effort=0, model=model)
        )
    with config.set(device="cuda"):
        needed, expected = peak_bytes(lambda: decode_chunks([stream] * 24))
        for limit in (needed * 2, needed // 2 + (64 << 20), 1 << 20):
            with config.set(device_memory_bytes=limit):
                held, found = peak_bytes(lambda: decode_chunks([stream] * 24))
            assert held <= limit
            for one, other in zip(found, expected, strict=True):
                np.testing.assert_allclose(one, other, rtol=0, atol=0.1)


def test_a_limit_is_held_while_fitting():
    arrays = [smooth_volume((32, 32, 32)) * scale for scale in range(1, 9)]
    params = EncodingParams(ratio=16, effort=0, model="tree")
    with config.set(device="cuda"):
        needed, _ = peak_bytes(lambda: encode_chunks(arrays, params))
        limit = needed // 2 + (32 << 20)
        with config.set(device_memory_bytes=limit):
            held, streams = peak_bytes(lambda: encode_chunks(arrays, params))
    assert held <= limit
    assert all(len(stream) * 16 <= arrays[0].nbytes for stream in streams)


# Results that stay on the device.


@both_models
@pytest.mark.parametrize("dtype", ["u1", "<u2", "<u4", ">i4", "<f2", ">f4", "<f8"])
def test_tensors_on_the_device_hold_what_arrays_hold(dtype, model):
    volume = smooth_volume((2, 20, 17, 24), dtype)
    padded = volume.copy()
    padded[:, 11:], padded[..., 20:] = volume[0, 0, 0, 0], volume[0, 0, 0, 0]
    chunks = [volume, volume[:, ::-1], padded, np.full((20, 20), 7, dtype)]
    if np.dtype(dtype).kind == "f":
        chunks.append(volume.copy())
        chunks[-1][0, 3:7, 4] = np.nan
        chunks[-1][1, 2, 2, 2:5] = -np.inf
    for promise in ({"ratio": 4}, {"max_error": 2.0}):
        params = EncodingParams(effort=0, model=model, **promise)
        with config.set(device="cpu"):
            streams = encode_chunks(chunks, params)
        with config.set(device="cuda"):
            arrays, tensors = decode_chunks(streams), decode_chunks_on_device(streams)
        for tensor, array in zip(tensors, arrays, strict=True):
            assert tensor.is_cuda
            np.testing.assert_array_equal(tensor.cpu().numpy(), array)


def stored(shards, dtype="<f4", **options):
    zarr = pytest.importorskip("zarr", minversion="3.1")
    from tests.faces import CHUNKS, CODEC

    array = zarr.create_array(
        {},
        shape=(40, 20, 18),
        chunks=CHUNKS,
        shards=shards,
        dtype=dtype,
        serializer=CODEC,
        compressors=None,
        **options,
    )
    array[:32] = smooth_volume((32, 20, 18), dtype)
    return array


both_layouts = pytest.mark.parametrize("shards", [None, (32, 32, 32)], ids=["plain", "shards"])


@both_layouts
@pytest.mark.parametrize("dtype", ["u1", "u2", "u4", "f2", "f4"])
def test_zarr_gives_torch_tensors_on_the_device(shards, dtype):
    from tinc_codec.torch_buffer import enable

    with config.set(device="cuda"):
        array = stored(shards, dtype, fill_value=3)
        mask = np.random.default_rng(0).random((40, 20, 18)) < 0.02
        rows = np.array([0, 17, 39])
        for select in (
            lambda: array[:],
            lambda: array[3:37:3, 5, 2:9],
            lambda: array.oindex[rows, :, [1, 17]],
            lambda: array.get_mask_selection(mask),
        ):
            expected = select()
            with enable():
                found = select()
            assert found.is_cuda
            np.testing.assert_array_equal(found.cpu().numpy(), expected)


@both_layouts
def test_zarr_gives_cupy_arrays(shards):
    cupy = pytest.importorskip("cupy")
    zarr = pytest.importorskip("zarr", minversion="3.1")
    with config.set(device="cuda"):
        array = stored(shards, fill_value=3)
        expected = array[:]
        with zarr.config.enable_gpu():
            found = array[:]
        assert isinstance(found, cupy.ndarray)
        np.testing.assert_array_equal(cupy.asnumpy(found), expected)


def test_nothing_passes_through_the_host(monkeypatch):
    from tinc_codec.torch_buffer import enable

    with config.set(device="cuda"):
        array = stored(None)
        copies = []
        plain = torch.Tensor.cpu

        def cpu(tensor, *rest, **options):
            copies.append(tensor.numel())
            return plain(tensor, *rest, **options)

        monkeypatch.setattr(torch.Tensor, "cpu", cpu)
        with enable():
            assert array[:].is_cuda
    assert copies == []


def test_many_chunks_are_few_launches(monkeypatch):
    from tinc_codec.model import torch_render

    counts = []

    def evaluate(models, device, plain=torch_render._evaluate):
        counts.append(len(models))
        return plain(models, device)

    with config.set(device="cuda"):
        zarr = pytest.importorskip("zarr", minversion="3.1")
        with zarr.config.set({"codec_pipeline.batch_size": 64}):
            array = stored(None)
        monkeypatch.setattr(torch_render, "_evaluate", evaluate)
        array[:32]
    # Four shapes: at the ends of the array chunks are partly padding.
    assert counts == [2, 2, 2, 2]
