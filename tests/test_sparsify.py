"""Features whose sparsity is learnt: sizes, survivors, what is near the closed form."""

import numpy as np
import pytest

from tests.test_descent import GRID, squared_error, target_of
from tinc_codec.codec import decode_chunk, encode_chunk
from tinc_codec.entropy.pyramid import low_pass_slices
from tinc_codec.errors import ConfigError
from tinc_codec.fit.feature_search import fit_to_size
from tinc_codec.fit.features import FREE, FeatureFit, FeatureTarget
from tinc_codec.fit.sparsify import (
    METHODS,
    SparsifyPlan,
    TrainedFit,
    sparsify_to_size,
    train_coefficients,
)
from tinc_codec.metrics import psnr
from tinc_codec.model.coefficients import coefficients_of
from tinc_codec.model.features import feature_levels, read_features
from tinc_codec.model.wavelet import inverse
from tinc_codec.params import EncodingParams

LIMIT = 1500


def plan_of(method, **more):
    return SparsifyPlan(method=method, **{"steps": 60, **more})


def survivors(coefficients):
    return np.count_nonzero(coefficients)


class TestPlan:
    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("method", "magic"),
            ("steps", 19),
            ("settling_share", 1.0),
            ("settling_share", -0.1),
            ("learning_rate", 0.0),
            ("coarseness", float("inf")),
            ("coarseness", float("nan")),
        ],
    )
    def test_values_out_of_range_are_named(self, name, value):
        with pytest.raises(ConfigError, match=f"^{name}="):
            SparsifyPlan(**{"method": "smallify", name: value})


@pytest.mark.parametrize("method", METHODS)
class TestMethods:
    def test_the_section_fits_decodes_and_is_near_the_closed_form(self, method):
        target = target_of()
        code = sparsify_to_size(target, LIMIT, plan_of(method), "cpu", 1)
        assert 0.9 * LIMIT < len(code.section) <= LIMIT
        decoded = inverse(coefficients_of(read_features(code.section, GRID, 1)))
        np.testing.assert_allclose(decoded, code.values, atol=1e-6)
        closed = fit_to_size(FeatureFit(target, 1), LIMIT, 4)
        assert squared_error(target, code.values) < 1.2 * squared_error(target, closed.values)

    def test_fewer_survive_where_there_is_less_room(self, method):
        small, large = (
            survivors(train_coefficients(target_of(1), limit, plan_of(method), "cpu", 1))
            for limit in (400, 3000)
        )
        assert 0 < small < large < np.prod(GRID)

    def test_the_low_pass_corner_survives(self, method):
        coefficients = train_coefficients(target_of(2), 400, plan_of(method), "cpu", 1)
        corner = low_pass_slices(feature_levels(GRID), GRID)
        assert coefficients[(slice(None), *corner)].all()

    def test_the_same_seed_gives_the_same_bytes(self, method):
        one, same = (
            sparsify_to_size(target_of(0), LIMIT, plan_of(method, noise=True, seed=7), "cpu", 1)
            for _ in range(2)
        )
        assert one.section == same.section

    def test_voxels_that_do_not_count_are_not_paid_for(self, method):
        exact = target_of(1)
        demands = np.zeros(exact.values.shape, dtype=np.uint8)
        demands[..., 20:] = FREE
        free = FeatureTarget(exact.values, demands)
        errors = []
        for target in (free, exact):
            values = sparsify_to_size(target, LIMIT, plan_of(method), "cpu", 1).values
            errors.append(np.square((values - exact.values)[demands != FREE]).sum())
        assert errors[0] < 0.8 * errors[1]


def test_room_that_is_too_small_gives_nothing():
    assert sparsify_to_size(target_of(), 10, plan_of("smallify"), "cpu", 1) is None


def test_features_are_trained_on_what_a_base_leaves():
    base = np.full((1, *GRID), 0.25, dtype=np.float32)
    target = target_of(base=base)
    with_base = sparsify_to_size(target, LIMIT, plan_of("smallify"), "cpu", 1)
    without = sparsify_to_size(target_of(), LIMIT, plan_of("smallify"), "cpu", 1)
    ratio = squared_error(target, with_base.values) / squared_error(target, without.values)
    assert 0.9 < ratio < 1.1


def test_the_noise_of_settling_changes_the_result():
    plain, noisy = (
        train_coefficients(target_of(), LIMIT, plan_of("rate", noise=noise), "cpu", 1)
        for noise in (False, True)
    )
    assert not np.array_equal(plain, noisy)
    np.testing.assert_array_equal(plain != 0, noisy != 0)


def test_what_was_pruned_stays_0_and_survivors_are_rounded():
    target = target_of()
    coefficients = np.zeros(target.values.shape, dtype=np.float32)
    coefficients[0, 20, 3, 5] = 0.9
    coefficients[0, 3, 15, 25] = -0.31
    fit = TrainedFit(target, coefficients, 1)
    features, _ = fit.quantise(64 * 7)
    assert not fit.learns
    step = 2.0 ** (4 - 7)
    assert features.symbols[0, 20, 3, 5] == round(0.9 / step)
    assert features.symbols[0, 3, 15, 25] == round(-0.31 / step)
    assert np.count_nonzero(features.symbols) == 2


@pytest.mark.parametrize("pruning", ["smallify", "dropout"])
def test_the_codec_prunes_features_as_asked(pruning):
    z, y, x = np.mgrid[:16, :16, :16]
    volume = (np.sin(z / 3) * np.cos(y / 4) + x / 16).astype("f4")
    stream = encode_chunk(volume, EncodingParams(ratio=12, effort=0, pruning=pruning))
    assert len(stream) * 12 <= volume.nbytes
    assert stream != encode_chunk(volume, EncodingParams(ratio=12, effort=0))
    assert psnr(volume, decode_chunk(stream)) > 20


@pytest.mark.parametrize("wrong", [{"ratio": 8, "model": "tree"}, {"psnr": 40}, {"max_error": 1}])
def test_pruning_of_features_needs_features_and_a_size(wrong):
    with pytest.raises(ConfigError, match="pruning='dropout' prunes features to a size"):
        EncodingParams(pruning="dropout", **wrong)
