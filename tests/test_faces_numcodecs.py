import copy
import json
import pickle

import numcodecs
import numpy as np
import pytest

from tests.faces import CODEC, assert_close, smooth_volume
from tinc_codec import TINC, ConfigError, FormatError, LimitError, UnsupportedDataError, config
from tinc_codec.metrics import measure

CODECS = [
    TINC(ratio=64),
    TINC(ratio=12.5, effort=9, seed=3),
    TINC(ratio=64, levels=2, layers=[1, 2], level_split=[3, 1.5], w0=12, node_split="aoi"),
    TINC(psnr=45.5, model="features"),
    TINC(max_error=0, model="tree", levels=3),
]


@pytest.mark.parametrize("codec", CODECS)
def test_configuration_round_trips(codec):
    stored = json.loads(json.dumps(codec.get_config()))
    named = json.loads(json.dumps(codec))
    for twin in (
        numcodecs.get_codec(stored),
        TINC.from_config(stored),
        TINC(**named["configuration"]),
        pickle.loads(pickle.dumps(codec)),
        copy.copy(codec),
        copy.deepcopy(codec),
        eval(repr(codec)),
    ):
        assert type(twin) is TINC
        assert twin == codec
        assert not twin != codec  # noqa: SIM202 - dict brings a != of its own
        assert hash(twin) == hash(codec)
        assert twin.params == codec.params
    assert named == {"name": "tinc", "configuration": codec.params.to_config()} == codec
    assert stored["id"] == "tinc"


def test_equality_tells_codecs_apart():
    assert len({*CODECS, *CODECS}) == len(CODECS)
    assert TINC(ratio=64) == TINC(ratio=np.float32(64), effort=4)
    assert TINC(ratio=64) != TINC(ratio=32)
    assert TINC(ratio=64) != {"id": "tinc", "ratio": 64}
    assert TINC(ratio=64) != "auto"


def test_a_codec_cannot_be_changed():
    codec = TINC(ratio=64)
    for change in (
        lambda: codec.update(name="other"),
        lambda: codec.pop("name"),
        lambda: codec.popitem(),
        lambda: codec.clear(),
        lambda: codec.setdefault("level", 1),
        lambda: codec.__setitem__("name", "other"),
        lambda: codec.__delitem__("name"),
        lambda: codec.__ior__({"name": "other"}),
    ):
        with pytest.raises(TypeError, match="TINC is immutable"):
            change()
    with pytest.raises(AttributeError, match="TINC is immutable"):
        codec.params = None
    assert codec == TINC(ratio=64)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "exactly one of ratio, psnr, max_error"),
        ({"ratio": 1}, "ratio=1"),
        ({"ratio": 64, "max_error": 1}, "found ratio and max_error"),
        ({"psnr": 0}, "psnr=0"),
        ({"max_error": -1}, "max_error=-1"),
        ({"ratio": 64, "model": "wavelet"}, "model='wavelet'"),
        ({"ratio": 64, "effort": 10}, "effort=10"),
    ],
)
def test_bad_parameters_are_refused_at_construction(arguments, message):
    with pytest.raises(ConfigError, match=message):
        TINC(**arguments)


def test_stored_configuration_is_checked():
    with pytest.raises(ConfigError, match="id='zfpy' is not 'tinc'"):
        TINC.from_config({"id": "zfpy", "ratio": 8})
    with pytest.raises(ConfigError, match="unknown parameter mode"):
        numcodecs.get_codec({"id": "tinc", "ratio": 8, "mode": 3})
    with pytest.raises(ConfigError, match="not a mapping"):
        TINC.from_config("tinc")
    with pytest.raises(TypeError):
        TINC(64)


@pytest.mark.parametrize("dtype", ["u1", "<i2", ">u2", "<i4", "<f2", "<f4", ">f4", "<f8"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_a_chunk_comes_back_in_its_dtype_byte_order_and_memory_order(dtype, order):
    original = smooth_volume((16, 16, 16), dtype, order)
    original.flags.writeable = False
    before = original.copy(order="K")
    encoded = CODEC.encode(original)
    assert isinstance(encoded, bytes)
    assert len(encoded) <= original.nbytes / 8
    decoded = CODEC.decode(encoded)
    assert_close(original, decoded)
    assert decoded.dtype == original.dtype
    assert decoded.flags.f_contiguous == original.flags.f_contiguous
    np.testing.assert_array_equal(original, before)


@pytest.mark.parametrize(
    "codec",
    [
        TINC(ratio=8, effort=0, model="tree"),
        TINC(ratio=8, effort=0, model="features"),
        TINC(psnr=45, effort=0),
        TINC(max_error=0.5, effort=0),
    ],
    ids=repr,
)
@pytest.mark.parametrize("dtype", ["u1", ">f4"])
def test_every_promise_and_model_goes_through(codec, dtype):
    original = smooth_volume((16, 16, 16), dtype)
    encoded = codec.encode(original)
    decoded = codec.decode(encoded)
    assert_close(original, decoded)
    params = codec.params
    if params.ratio is not None:
        assert len(encoded) <= original.nbytes / params.ratio
    quality = measure(original, decoded)
    assert quality.psnr >= (params.psnr or 0)
    assert quality.max_error <= (params.max_error or np.inf)


def test_a_view_of_the_users_array_is_neither_copied_back_nor_changed():
    array = smooth_volume((20, 18, 34))
    before = array.copy()
    view = array[2:18, 1:17, ::2][:, ::-1, :16]
    assert_close(view, CODEC.decode(CODEC.encode(view)))
    np.testing.assert_array_equal(array, before)


def test_buffers_without_shape_are_flat_bytes():
    flat = bytes(range(256)) * 16
    decoded = CODEC.decode(CODEC.encode(flat))
    assert decoded.shape == (4096,)
    assert decoded.dtype == np.uint8


@pytest.fixture(scope="module")
def chunk():
    original = smooth_volume((16, 16, 16))
    return original, CODEC.encode(original)


@pytest.mark.parametrize(
    "wrap",
    [
        bytes,
        bytearray,
        memoryview,
        lambda data: np.frombuffer(data, "u1"),
        lambda data: np.frombuffer(data, "i1"),
        lambda data: np.frombuffer(data + data, "u1").reshape(2, -1)[0],
    ],
)
def test_payloads_come_in_any_buffer(chunk, wrap):
    assert_close(chunk[0], CODEC.decode(wrap(chunk[1])))


def test_decoding_into_a_given_array(chunk):
    original, encoded = chunk
    expected = CODEC.decode(encoded)
    for out in (
        np.empty_like(original),
        np.empty_like(original, order="F"),
        np.empty((32, 16, 16), original.dtype)[::2],
        np.empty(original.shape, ">f4"),
    ):
        assert CODEC.decode(encoded, out=out) is out
        np.testing.assert_array_equal(out, expected)
    flat = bytearray(original.nbytes)
    assert CODEC.decode(encoded, out=flat) is flat
    assert flat == expected.tobytes()


@pytest.mark.parametrize(
    "out",
    [
        np.empty((16, 16, 15), "f4"),
        np.empty((16, 16, 16), "f8"),
        np.empty((16, 16, 16), "i4"),
        np.empty(16**3 * 4 - 1, "u1"),
        np.empty(16**3 * 8, "u1")[::2],
    ],
)
def test_an_array_that_does_not_fit_is_refused(chunk, out):
    with pytest.raises(FormatError, match=r"decoded chunk has shape \(16, 16, 16\)"):
        CODEC.decode(chunk[1], out=out)


def test_a_damaged_payload_raises_our_error(chunk):
    encoded = chunk[1]
    middle = len(encoded) // 2
    flipped = encoded[:middle] + bytes([encoded[middle] ^ 1]) + encoded[middle + 1 :]
    for payload in (b"", b"TINC", encoded[:-1], encoded[:middle], flipped, encoded + b"\0"):
        with pytest.raises(FormatError):
            CODEC.decode(payload)


def test_the_decoded_size_is_limited_by_the_configuration(chunk):
    size_bytes = chunk[0].nbytes
    with config.set(max_decoded_bytes=size_bytes):
        CODEC.decode(chunk[1])
    with config.set(max_decoded_bytes=size_bytes - 1), pytest.raises(LimitError):
        CODEC.decode(chunk[1])


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((8, 8, 8), "?"),
        np.zeros((8, 8, 8), "i8"),
        np.zeros((8, 8, 8), ">u8"),
        np.zeros((8, 8, 8), "c8"),
        np.zeros((8, 8), "U3"),
        np.zeros((8, 8), "S3"),
        np.zeros((8, 8), "M8[s]"),
        np.zeros((8, 8), [("a", "f4")]),
        np.full((8, 8), None),
        np.zeros((0, 8)),
        np.zeros(()),
        np.zeros((1, 1, 1, 2, 2, 2)),
    ],
    ids=lambda array: f"{array.dtype}{array.shape}",
)
def test_what_cannot_be_encoded_is_refused(array):
    with pytest.raises(UnsupportedDataError):
        CODEC.encode(array)
