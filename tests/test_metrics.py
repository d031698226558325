"""Distortion figures against their definitions."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests import strategies
from tests.memory import AllocationMeter
from tinc_codec.errors import ConfigError
from tinc_codec.metrics import Quality, max_error, measure, psnr


def test_a_figure_worked_out_by_hand():
    original = np.array([0, 100, 50, 25], np.uint8)
    decoded = np.array([0, 99, 50, 26], np.uint8)
    assert psnr(original, decoded) == pytest.approx(10 * math.log10(100**2 / 0.5))
    assert psnr(original, decoded, peak=255) == pytest.approx(10 * math.log10(255**2 / 0.5))
    assert max_error(original, decoded) == 1
    assert max_error(decoded, original) == 1, "unsigned differences must not wrap"


@given(strategies.arrays(kinds="uif", allow_not_finite=False), strategies.seeds)
def test_they_are_what_float64_arithmetic_says(original, seed):
    rng = np.random.default_rng(seed)
    decoded = rng.permuted(original.astype(original.dtype.newbyteorder("=")))
    x, y = original.astype(np.float64), decoded.astype(np.float64)
    found = measure(original, decoded)
    assert found == Quality(psnr(original, decoded), max_error(original, decoded))
    if np.abs(x).max() > 1e150 or 0 < np.abs(x).max() < 1e-150:
        return
    assert found.max_error == np.abs(x - y).max()
    squared = np.mean((x - y) ** 2)
    if squared > 0:
        assert found.psnr == pytest.approx(10 * math.log10((x.max() - x.min()) ** 2 / squared))
    else:
        assert found.psnr == math.inf


@given(strategies.arrays(kinds="f"), st.sampled_from([np.nan, np.inf, 0.0]))
def test_voxels_that_are_not_finite_do_not_count(original, elsewhere):
    finite = np.isfinite(original)
    decoded = np.where(finite, original, elsewhere).astype(original.dtype)
    assert measure(original, decoded) == (math.inf, 0.0)
    assert measure(original, decoded, valid=finite) == (math.inf, 0.0)


def test_only_valid_voxels_count():
    original = np.arange(12.0).reshape(3, 4)
    decoded = original.copy()
    decoded[0] += 5
    valid = np.ones((3, 4), bool)
    valid[0] = False
    assert measure(original, decoded, valid) == (math.inf, 0.0)
    decoded[2, 3] += 1
    assert psnr(original, decoded, valid) == pytest.approx(10 * math.log10(7**2 / (1 / 8)))
    assert measure(original, decoded, np.zeros((3, 4), bool)) == (math.inf, 0.0)


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_a_decoded_voxel_that_is_not_finite_is_an_unbounded_error(wrong):
    original = np.arange(5, dtype=np.float32)
    decoded = original.copy()
    decoded[2] = wrong
    assert measure(original, decoded) == (-math.inf, math.inf)


def test_an_error_where_the_peak_is_zero():
    assert measure(np.ones(3), np.array([1.0, 1.0, 2.0])) == (-math.inf, 1.0)


@pytest.mark.parametrize("size", [1.7e308, 1e200, 1e-200, 1e-310])
def test_extremes_of_float64(size):
    original = np.array([-size, size, 0.0])
    decoded = np.array([-size, size * 0.9, 0.0])
    found = measure(original, decoded)
    assert found.psnr == pytest.approx(10 * math.log10(4 / (0.01 / 3)), abs=1e-6)
    assert found.max_error == pytest.approx(size * 0.1, rel=1e-6)


def test_any_layout_and_byte_order():
    original = np.random.default_rng(0).random((5, 6, 7)).astype(np.float32)
    decoded = original + np.float32(0.25)
    expected = measure(original, decoded)
    for variant in (np.asfortranarray(original), original.astype(">f4"), original[::-1][::-1]):
        assert measure(variant, decoded) == pytest.approx(expected)
    assert measure(original[::2, ::-1], decoded[::2, ::-1]).max_error <= expected.max_error


@pytest.mark.parametrize(
    "arguments",
    [
        (np.zeros(3), np.zeros(4)),
        (np.zeros((3, 1)), np.zeros((1, 3))),
        (np.zeros(3), np.zeros(3), np.ones(2, bool)),
        (np.zeros(3), np.zeros(3), None, -1.0),
        (np.zeros(3), np.zeros(3), None, math.nan),
    ],
)
def test_arguments_that_make_no_sense(arguments):
    with pytest.raises(ConfigError):
        psnr(*arguments)


def test_memory_stays_small():
    original = np.zeros((1, 1, 1 << 21), np.uint8)
    original[..., 0] = 255
    with AllocationMeter() as meter:
        measure(original, original)
    assert meter.peak_bytes < 2 << 20
