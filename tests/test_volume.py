"""The volume room: what a chunk holds, and that all of it comes back."""

import math
import struct

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests import strategies
from tests.mask_reference import decode_reference
from tinc_codec.errors import CorruptStreamError, TincError, UnsupportedDataError
from tinc_codec.volume.chunk import (
    ChunkInfo,
    allocate,
    analyse,
    check_supported,
    denormalise,
    fill_constant,
    finish,
    is_constant,
    normalise,
    valid_view,
)
from tinc_codec.volume.extend import extend_known
from tinc_codec.volume.mask import decode_classes, encode_classes
from tinc_codec.volume.padding import trailing_padding


def restore(array: np.ndarray) -> tuple[np.ndarray, ChunkInfo]:
    """Take a chunk through the room and back, as a codec with a perfect model would."""
    info, classes = analyse(array)
    volumes = normalise(array, info, classes)
    out = allocate(info)
    if is_constant(info):
        fill_constant(out, info)
        return finish(out, info, classes), info
    view = valid_view(out, info)
    denormalise(volumes, info, out=view)
    return finish(out, info, classes, view), info


def rounding_error(info: ChunkInfo) -> float:
    """The error that the dtype itself brings, at most."""
    if info.dtype.kind in "iu":
        return 0.5
    limits = np.finfo(info.dtype)
    largest = max(abs(float(info.value_min)), abs(float(info.value_max)))
    return max(float(limits.eps) * largest, float(limits.smallest_subnormal))


def bits_of(array: np.ndarray) -> bytes:
    return np.ascontiguousarray(array).tobytes()


@given(strategies.arrays())
def test_every_chunk_comes_back_with_its_layout_range_and_special_voxels(array):
    before = array.copy()
    decoded, info = restore(array)

    assert bits_of(array) == bits_of(before), "the input must not change"
    assert decoded.shape == array.shape
    assert decoded.dtype.str == array.dtype.str
    is_fortran = array.flags.f_contiguous and not array.flags.c_contiguous
    assert decoded.flags.f_contiguous if is_fortran else decoded.flags.c_contiguous

    native = array.astype(array.dtype.newbyteorder("="))
    result = decoded.astype(array.dtype.newbyteorder("="))
    if array.dtype.kind == "f":
        np.testing.assert_array_equal(np.isnan(result), np.isnan(native))
        np.testing.assert_array_equal(np.isposinf(result), np.isposinf(native))
        np.testing.assert_array_equal(np.isneginf(result), np.isneginf(native))
    outside = np.ones(array.shape, bool)
    outside[info.valid_slices] = False
    assert bits_of(decoded[outside]) == bits_of(array[outside])

    finite = np.isfinite(native) & ~outside
    if not finite.any():
        assert info.value_min is None
        return
    low, high = float(info.value_min), float(info.value_max)
    assert (low, high) == (float(native[finite].min()), float(native[finite].max()))
    values = result[finite].astype(np.float64) * 0.5
    assert ((values >= low * 0.5) & (values <= high * 0.5)).all()
    # In halves, where the range of float64 data fits in float64.
    error = np.abs(values - native[finite].astype(np.float64) * 0.5)
    tolerance = (high * 0.5 - low * 0.5) * 2.0**-23 + rounding_error(info)
    assert error.max() <= tolerance
    if array.dtype.kind in "iu" or array.dtype.itemsize == 2:
        # Wider floats can span more than the 53 bits in which the range is added to its start.
        assert result[finite].min() == low
        assert result[finite].max() == high


@given(strategies.arrays(kinds="iu"))
def test_integers_within_24_bits_of_range_are_exact(array):
    decoded, info = restore(array)
    if info.value_min is None or int(info.value_max) - int(info.value_min) < 2**22:
        np.testing.assert_array_equal(decoded, array)


@given(strategies.arrays())
def test_normalised_volumes_fill_zero_to_one(array):
    info, classes = analyse(array)
    volumes = normalise(array, info, classes)
    assert volumes.dtype == np.float32
    assert volumes.shape == info.batched_shape
    assert volumes.flags.c_contiguous
    assert math.prod(volumes.shape) == math.prod(info.valid_extent)
    assert ((volumes >= 0) & (volumes <= 1)).all()
    if is_constant(info):
        assert (volumes == 0).all()
    else:
        assert volumes.min() == 0
        assert volumes.max() == 1


@given(strategies.arrays(max_ndim=4))
def test_the_valid_view_is_one_in_up_to_four_axes(array):
    info, _ = analyse(array)
    out = allocate(info)
    view = valid_view(out, info)
    assert view.shape == info.batched_shape
    assert np.may_share_memory(view, out)


@given(strategies.arrays())
def test_equal_chunks_have_equal_descriptions_whatever_their_strides(array):
    info, classes = analyse(array)
    copied, copied_classes = analyse(np.array(array, order=info.order))
    assert info == copied
    assert hash(info) == hash(copied)
    assert (classes is None) == (copied_classes is None)
    if classes is not None:
        np.testing.assert_array_equal(classes, copied_classes)
        assert classes.flags.c_contiguous


@pytest.mark.parametrize("order", ["C", "F"])
def test_five_axes_padded_on_each_come_back(order):
    array = np.zeros((3, 4, 5, 6, 7), np.uint8, order=order)
    array[:2, :3, :4, :5, :6] = np.random.default_rng(0).integers(1, 255, (2, 3, 4, 5, 6))
    decoded, info = restore(array)
    assert info.valid_extent == (2, 3, 4, 5, 6)
    assert info.batched_shape == (6, 4, 5, 6)
    np.testing.assert_array_equal(decoded, array)


@pytest.mark.parametrize("dtype", ["<f4", ">f4", "<f2", ">f8"])
def test_padding_keeps_the_payload_of_a_signalling_nan(dtype):
    dtype = np.dtype(dtype)
    exponent = {2: 0x7C00, 4: 0x7F800000, 8: 0x7FF0000000000000}[dtype.itemsize]
    unsigned = np.dtype(dtype.str.replace("f", "u"))
    array = np.random.default_rng(0).random((4, 5, 6)).astype(dtype)
    array.view(unsigned)[2:] = exponent + 1
    decoded, info = restore(array)
    assert info.valid_extent == (2, 5, 6)
    assert (decoded.view(unsigned)[2:] == exponent + 1).all()


def test_a_chunk_of_one_bit_pattern_has_no_padding():
    for value in (0.0, -0.0, 3.5, np.nan, -np.inf):
        array = np.full((3, 4, 5), value, np.float32)
        decoded, info = restore(array)
        assert not info.has_padding
        assert is_constant(info)
        np.testing.assert_array_equal(decoded, array)
        if not np.isnan(value):
            assert np.signbit(decoded).all() == np.signbit(value)


def test_a_constant_inside_padding_of_another_value():
    array = np.full((4, 4, 4), -1, np.int16)
    array[:3, :2] = 500
    decoded, info = restore(array)
    assert info.valid_extent == (3, 2, 4)
    assert is_constant(info)
    np.testing.assert_array_equal(decoded, array)


def test_zeros_of_both_signs_do_not_depend_on_their_order():
    array = np.array([0.0, -0.0, 0.0, -0.0, 1.0], np.float32)
    for variant in (array, array[::-1]):
        assert not np.signbit(analyse(variant)[0].value_min)
    assert not np.signbit(analyse(array[:4][::-1])[0].value_min)


def test_the_last_voxel_alone_is_no_padding():
    assert trailing_padding(np.arange(5)) == (5,)
    assert trailing_padding(np.array([1, 2, 3, 3])) == (2,)


def test_denormalise_survives_what_a_damaged_model_may_say():
    values = np.array([np.nan, -np.inf, np.inf, -5, 5, 0.5], np.float32)
    for dtype in strategies.DTYPE_NAMES:
        info, _ = analyse(np.array([10, 20, 14], dtype))
        expected = np.array([10, 10, 20, 10, 20, 15], dtype)
        np.testing.assert_array_equal(denormalise(values, info), expected)


def test_the_full_range_of_float64_does_not_overflow():
    limit = np.finfo(np.float64).max
    array = np.array([-limit, 0, limit / 2, limit])
    decoded, _ = restore(array)
    np.testing.assert_allclose(decoded, array, atol=limit * 1e-7, rtol=0)


@pytest.mark.parametrize(
    ("dtype", "advice"),
    [
        ("?", "lossless"),
        ("c8", "real"),
        ("S3", "lossless"),
        ("U3", "lossless"),
        ("O", "lossless"),
        ([("a", "f4"), ("b", "u1")], "field"),
        ("V8", "field"),
        ("M8[s]", "lossless"),
        ("m8[s]", "lossless"),
        ("i8", "int32"),
        ("u8", "labels"),
        ("longdouble", "float64"),
    ],
)
def test_unsupported_dtypes_are_refused_with_advice(dtype, advice):
    with pytest.raises(UnsupportedDataError, match=advice) as caught:
        check_supported(dtype, (4, 4))
    assert isinstance(caught.value, TypeError)
    with pytest.raises(UnsupportedDataError, match=advice):
        analyse(np.zeros((4, 4), dtype))


@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (1,) * 6])
def test_unsupported_shapes_are_refused(shape):
    with pytest.raises(UnsupportedDataError):
        analyse(np.zeros(shape, np.float32))


def test_a_dtype_with_metadata_is_the_plain_dtype():
    array = np.zeros(4, np.dtype("f4", metadata={"unit": "mm"}))
    array[0] = 1
    assert analyse(array)[0].dtype.metadata is None


@given(strategies.seeds, st.sampled_from([(1, 1, 1, 9), (2, 5, 6, 7), (3, 8, 1, 4)]))
def test_unknown_voxels_take_means_of_known_ones(seed, shape):
    rng = np.random.default_rng(seed)
    values = rng.random(shape).astype(np.float32)
    known = rng.random(shape) < 0.3
    known.flat[0] = True
    original = values.copy()
    values[~known] = np.nan
    extend_known(values, known)
    np.testing.assert_array_equal(values[known], original[known])
    low, high = original[known].min(), original[known].max()
    assert (values >= low - 1e-6).all()
    assert (values <= high + 1e-6).all()


def test_unknown_voxels_continue_their_side():
    values = np.zeros((1, 1, 4, 16), np.float32)
    values[..., 8:] = 1
    known = np.ones(values.shape, bool)
    known[..., :2] = known[..., 14:] = False
    values[~known] = np.nan
    extend_known(values, known)
    assert (values[..., :8] == 0).all()
    assert (values[..., 8:] == 1).all()


def sphere(n: int) -> np.ndarray:
    grid = np.indices((n, n, n)) - (n - 1) / 2
    return ((grid**2).sum(axis=0) < (0.4 * n) ** 2).astype(np.uint8)


@given(strategies.classes())
def test_masks_come_back_exactly(classes):
    data = encode_classes(classes)
    decoded = decode_classes(memoryview(data), classes.shape)
    assert decoded.dtype == np.uint8
    np.testing.assert_array_equal(decoded, classes)


@settings(max_examples=25)
@given(strategies.classes(max_voxels=150))
def test_masks_are_what_the_document_says(classes):
    data = encode_classes(classes)
    np.testing.assert_array_equal(decode_reference(data, classes.shape), classes)


def test_masks_in_fortran_order_and_strided():
    classes = sphere(16)[::2, :, ::3]
    for variant in (classes, np.asfortranarray(classes)):
        np.testing.assert_array_equal(decode_classes(encode_classes(variant), (8, 16, 6)), classes)


@pytest.mark.parametrize("code", [0, 1, 2, 3])
def test_one_class_costs_one_byte(code):
    classes = np.full((5, 6), code, np.uint8)
    assert encode_classes(classes) == bytes([code])


def test_mask_sizes_stay_small():
    assert len(encode_classes(sphere(64))) <= 850
    slab = np.zeros((64, 64, 64), np.uint8)
    slab[:3] = slab[:, :, 50:] = 1
    assert len(encode_classes(slab)) <= 40
    noise = (np.random.default_rng(0).random((32, 32, 32)) < 0.5).astype(np.uint8)
    assert len(encode_classes(noise)) <= 1.1 * noise.size / 8
    repeated = np.stack([sphere(32)] * 8)
    assert len(encode_classes(repeated)) <= len(encode_classes(sphere(32))) + 2


def test_golden_mask():
    classes = np.zeros((3, 4, 5), np.uint8)
    classes[1, 1:3, 1:4] = 1
    classes[2, 3, 4] = 2
    classes[0, 0, 0] = 3
    golden = bytes.fromhex("0408c819a8432a2f27")
    assert encode_classes(classes) == golden
    np.testing.assert_array_equal(decode_classes(golden, classes.shape), classes)


@given(st.binary(max_size=64), strategies.shapes())
@example(b"", (3,))
@example(b"\x04", (3, 4))
@example(b"\x04\xff\xff\xff\xff\xff", (3, 4))
def test_random_bytes_as_mask(data, shape):
    try:
        decoded = decode_classes(data, shape)
    except CorruptStreamError:
        return
    assert decoded.shape == shape
    assert decoded.max() <= 3


def test_damaged_masks_are_refused_or_of_the_right_shape():
    classes = sphere(12)
    data = encode_classes(classes)
    for n_bytes in range(len(data)):
        outcome_of_mask(data[:n_bytes], classes.shape)
    for position in range(len(data)):
        for bit in range(8):
            damaged = bytearray(data)
            damaged[position] ^= 1 << bit
            outcome_of_mask(bytes(damaged), classes.shape)
    for tail in (b"\x00" * 9, struct.pack("<Q", 2**63)):
        with pytest.raises(CorruptStreamError):
            decode_classes(data + tail, classes.shape)


def outcome_of_mask(data: bytes, shape: tuple[int, ...]) -> None:
    try:
        decoded = decode_classes(data, shape)
    except TincError as error:
        assert isinstance(error, CorruptStreamError)  # noqa: PT017
    else:
        assert decoded.shape == shape
