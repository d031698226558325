"""Features and post-filters that are fitted in turns: gradients through filters, and promises."""

import numpy as np
import pytest

from tinc_codec.bitstream.header import read_stream
from tinc_codec.bitstream.sections import Section
from tinc_codec.codec import decode_chunk, encode_chunk
from tinc_codec.errors import ConfigError
from tinc_codec.fit.features import ABOVE, BELOW, EXACT, FREE, FeatureTarget
from tinc_codec.fit.filtered import filtered_to_quality, filtered_to_size
from tinc_codec.fit.postfilter import FilterPlan, fit_postfilter, plan_of, section_bytes
from tinc_codec.fit.through_filter import gradient_before, missing_before
from tinc_codec.metrics import psnr
from tinc_codec.model.filtering import apply_postfilter
from tinc_codec.model.postfilter import (
    Conditioning,
    PostFilter,
    parameter_count,
    read_postfilter,
)
from tinc_codec.params import EncodingParams


def a_filter(widths=(6, 5), size=0.3, seed=0):
    generator = np.random.default_rng(seed)
    parameters = size * generator.normal(size=parameter_count(widths))
    return PostFilter(widths, Conditioning(300, 120, 30), parameters.astype(np.float32))


def edges(shape=(40, 36, 44), seed=0):
    """Smooth bodies with sharp surfaces, in [0, 1]."""
    generator = np.random.default_rng(seed)
    z, y, x = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    out = 0.1 + 0.05 * x
    for _ in range(6):
        centre, size = generator.uniform(-0.8, 0.8, 3), generator.uniform(0.2, 0.6)
        distance = np.sqrt((z - centre[0]) ** 2 + (y - centre[1]) ** 2 + (x - centre[2]) ** 2)
        out += np.where(distance < size, generator.uniform(0.05, 0.2), 0.0)
    return np.clip(out, 0, 1).astype(np.float32)[None]


def squares_behind(target, values, postfilter):
    missing = target.values - apply_postfilter(values, postfilter, 1)
    if target.demands is not None:
        missing[(target.demands == BELOW) & (missing > 0)] = 0
        missing[(target.demands == ABOVE) & (missing < 0)] = 0
        missing[target.demands == FREE] = 0
    return float(np.square(missing, dtype=np.float64).sum())


class TestThroughTheFilter:
    @pytest.mark.parametrize("demanded", [False, True])
    @pytest.mark.parametrize("shape", [(2, 9, 7, 11), (1, 1, 2, 30), (1, 5, 1, 1)])
    def test_it_is_the_gradient(self, shape, demanded):
        generator = np.random.default_rng(1)
        values = generator.uniform(0.2, 0.8, shape).astype(np.float32)
        wanted = generator.uniform(0, 1, shape).astype(np.float32)
        demands = None
        if demanded:
            kinds = np.array([EXACT, EXACT, BELOW, ABOVE, FREE], np.uint8)
            demands = generator.choice(kinds, shape)
        target, postfilter = FeatureTarget(wanted, demands), a_filter(size=0.1)
        direction = generator.normal(size=shape).astype(np.float32)
        gradient, lacking = gradient_before(target, values, postfilter, 2)
        squares = squares_behind(target, values, postfilter)
        assert float(np.square(lacking).sum()) == pytest.approx(squares, rel=1e-4)
        step = np.float32(1e-3)
        there, back = (
            squares_behind(target, values + sign * step * direction, postfilter) for sign in (1, -1)
        )
        # ReLUs and magnitudes have kinks within the step.
        slope = (there - back) / (2 * float(step))
        expected = -2 * float(np.vdot(gradient, direction))
        scale = float(np.linalg.norm(gradient) * np.linalg.norm(direction))
        assert slope == pytest.approx(expected, abs=0.02 * scale)

    def test_a_step_along_it_makes_the_error_smaller(self):
        values, target = edges() * np.float32(0.9), FeatureTarget(edges(), None)
        steep = a_filter(size=0.5)
        missing, squares = missing_before(target, values, steep, 1)
        assert squares == pytest.approx(squares_behind(target, values, steep), rel=1e-4)
        ahead = squares_behind(target, values + np.float32(0.05) * missing, steep)
        assert ahead < squares

    def test_a_filter_that_changes_nothing_leaves_the_error_itself(self):
        values = np.clip(edges() + 0.02, 0.05, 0.95)
        target = FeatureTarget(edges(), None)
        silent = PostFilter((4,), Conditioning(300, 120, 30), np.zeros(parameter_count((4,)), "f4"))
        missing, _ = missing_before(target, values, silent, 1)
        np.testing.assert_allclose(missing, target.values - values, atol=1e-6)

    def test_threads_change_no_bits(self):
        values, target = edges() * np.float32(0.9), FeatureTarget(edges(), None)
        one, two = (missing_before(target, values, a_filter(), n)[0] for n in (1, 2))
        np.testing.assert_array_equal(one, two)

    def test_values_beyond_the_range_are_only_led_back(self):
        values = np.full((1, 6, 6, 6), 1.5, np.float32)
        values[0, :3] = -0.5
        target = FeatureTarget(np.full(values.shape, 0.5, np.float32), None)
        missing, _ = missing_before(target, values, a_filter(size=0.05), 1)
        assert (missing[values < 0] >= 0).all()
        assert (missing[values > 1] <= 0).all()


class TestPlan:
    def test_effort_0_has_no_filter(self):
        assert plan_of(0, 1 << 20, 1 << 21) is None

    def test_a_filter_takes_a_small_part(self):
        for effort in range(1, 10):
            plans = {n: plan_of(effort, n, 1 << 20) for n in (100, 1000, 8000, 32_000, 1 << 20)}
            assert plans[100] is None
            sizes = {n: section_bytes(plan.widths) for n, plan in plans.items() if plan is not None}
            assert sizes.keys() >= {32_000, 1 << 20}
            assert all(size <= 0.1 * n_bytes for n_bytes, size in sizes.items())


class TestTraining:
    def test_it_mends_what_is_blurred(self):
        sharp = edges()
        blurred = sharp.copy()
        for axis in (1, 2, 3):
            blurred = (blurred + np.roll(blurred, 1, axis) + np.roll(blurred, -1, axis)) / 3
        target = FeatureTarget(sharp, None)
        found = fit_postfilter(blurred, target, FilterPlan((8, 8), 200), 400, 1)
        assert found is not None
        assert len(found.section) <= 400
        assert found.gain_db > 1
        filtered = apply_postfilter(blurred, read_postfilter(found.section), 1)
        errors = np.square(np.clip(filtered, 0, 1) - sharp, dtype=np.float64).sum()
        assert found.squared_error == pytest.approx(errors, rel=1e-3)
        # Going on from it never makes it worse.
        more = fit_postfilter(blurred, target, FilterPlan((8, 8), 100), 400, 1, 1, found)
        assert more is not None
        assert more.squared_error <= found.squared_error

    def test_nothing_to_mend_gives_nothing(self):
        flat = np.full((1, 8, 8, 8), 0.5, np.float32)
        assert fit_postfilter(flat, FeatureTarget(flat, None), FilterPlan((8,), 20), 400, 1) is None

    def test_a_single_voxel_above_an_empty_background(self):
        volume = np.zeros((64, 64, 64), np.uint8)
        volume[5, 60, 7] = 106
        stream = encode_chunk(volume, EncodingParams(ratio=64, effort=4))
        assert decode_chunk(stream)[5, 60, 7] > 90

    def test_no_room_gives_nothing(self):
        values = edges() * np.float32(0.9)
        plan = FilterPlan((8,), 20)
        assert fit_postfilter(values, FeatureTarget(edges(), None), plan, 20, 1) is None


class TestSections:
    @pytest.mark.parametrize("effort", [1, 4])
    def test_a_filter_pays_within_the_same_bytes(self, effort):
        target, limit = FeatureTarget(edges(), None), 6000
        params = EncodingParams(ratio=64, effort=effort)
        found = filtered_to_size(target, limit, limit, params, "cpu", 1)
        assert found is not None
        assert found.postfilter is not None
        assert len(found.features) + len(found.postfilter) <= limit

    def test_none_is_written_where_there_is_no_room(self):
        target = FeatureTarget(edges(), None)
        found = filtered_to_size(target, 200, 200, EncodingParams(ratio=64, effort=4), "cpu", 1)
        assert found is not None
        assert found.postfilter is None

    @pytest.mark.parametrize("effort", [1, 4])
    @pytest.mark.parametrize("wanted", [36.0, 42.0])
    def test_quality_is_kept_in_fewer_bytes(self, effort, wanted):
        volume = np.round(edges()[0] * 1000).astype(np.uint16)
        stream = encode_chunk(volume, EncodingParams(psnr=wanted, effort=effort))
        assert psnr(volume, decode_chunk(stream)) >= wanted
        plain = encode_chunk(volume, EncodingParams(psnr=wanted, effort=0))
        assert len(stream) < len(plain)

    def test_a_quality_beyond_reach_is_said(self):
        target = FeatureTarget(edges(), None)
        params = EncodingParams(psnr=300.0, effort=4)
        assert filtered_to_quality(target, 300.0, lambda values: 100.0, params, 1) is None

    def test_bounded_errors_have_no_filter(self):
        volume = np.round(edges()[0] * 1000).astype(np.uint16)
        stream = encode_chunk(volume, EncodingParams(max_error=20, effort=4))
        header = read_stream(stream, max_decoded_bytes=1 << 30)
        assert Section.POSTFILTER not in header.sections
        assert np.abs(decode_chunk(stream).astype(int) - volume).max() <= 20


def test_contradictions_are_still_refused():
    with pytest.raises(ConfigError):
        EncodingParams(ratio=64, psnr=30.0)
