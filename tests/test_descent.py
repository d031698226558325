"""The descent on symbols: its linear algebra, and that it wins what it is for."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import faces
from tests.strategies import seeds
from tinc_codec.fit.adjoint import adjoint
from tinc_codec.fit.descent import DescentFit, descend_to_size, missing_of, squared_norms
from tinc_codec.fit.feature_search import fit_to_quality, fit_to_size
from tinc_codec.fit.features import ABOVE, BELOW, EXACT, FREE, FeatureFit, FeatureTarget, demands_of
from tinc_codec.model.coefficients import coefficients_of
from tinc_codec.model.features import read_features
from tinc_codec.model.wavelet import inverse

GRID = (36, 33, 40)

grids = st.tuples(st.integers(1, 20), st.integers(1, 20), st.integers(1, 20))


def target_of(number=0, base=None, volumes=1):
    """Crops of a real volume, in [0.01, 0.99]: no voxel leaves freedom."""
    brain = faces.brain(64)
    crops = [
        brain[9 * i : 9 * i + GRID[0], 9 * i : 9 * i + GRID[1], 7 * i : 7 * i + GRID[2]]
        for i in range(number, number + volumes)
    ]
    values = 0.01 + 0.98 * np.stack(crops).astype(np.float32) / 255
    return FeatureTarget(values, None, base)


def descent_of(target, seed=0):
    return DescentFit(FeatureFit(target, 1), seed)


def squared_error(target, values):
    return float(np.square(values.astype(np.float64) - target.values).sum())


class TestLinearAlgebra:
    @given(grids, seeds)
    @settings(deadline=None, max_examples=30)
    def test_norms_are_those_of_the_basis_functions(self, grid, seed):
        place = tuple(int(np.random.default_rng(seed).integers(n)) for n in grid)
        unit = np.zeros((1, *grid), dtype=np.float32)
        unit[(0, *place)] = 1
        expected = np.square(inverse(unit).astype(np.float64)).sum()
        assert squared_norms(grid)[place] == pytest.approx(expected, rel=1e-4)

    @given(grids, seeds)
    @settings(deadline=None, max_examples=20)
    def test_the_adjoint_is_the_transpose_of_the_inverse(self, grid, seed):
        rng = np.random.default_rng(seed)
        coefficients, volumes = rng.standard_normal((2, 2, *grid)).astype(np.float32)
        first = np.vdot(adjoint(volumes), coefficients)
        again = np.vdot(adjoint(volumes, threads=2), coefficients)
        expected = np.vdot(volumes, inverse(coefficients.copy()))
        scale = np.linalg.norm(volumes) * np.linalg.norm(coefficients)
        assert first == again
        assert abs(first - expected) < 1e-5 * scale


def test_what_is_missing_depends_on_what_is_demanded():
    shape = (1, 1, 2, 4)
    values = np.array([[0, 0, 1, 0.5], [0, 0, 1, 0.5]], dtype=np.float32).reshape(shape)
    decoded = np.array([[-0.25, 0.25, 1.5, 0.75], [-1, 1, 0.75, 0.25]], np.float32).reshape(shape)
    demands = np.array([[BELOW, BELOW, ABOVE, EXACT], [FREE, FREE, ABOVE, EXACT]], np.uint8)
    target = FeatureTarget(values, demands.reshape(shape))
    missing = missing_of(target, decoded).reshape(2, 4)
    np.testing.assert_array_equal(missing, [[0, -0.25, 0, -0.25], [0, 0, 0.25, 0.25]])


class TestDescent:
    def test_it_has_less_error_than_the_closed_form_at_as_many_bytes(self):
        target = target_of()
        closed = fit_to_size(FeatureFit(target, 1), 1500, 4)
        descended, _ = descend_to_size(target, 1500, 25, 1)
        assert len(descended.section) <= 1500
        assert squared_error(target, descended.values) < 0.97 * squared_error(target, closed.values)

    @pytest.mark.parametrize("limit", [100, 300, 1000])
    def test_it_is_never_worse_than_the_closed_form(self, limit):
        target = target_of()
        closed = fit_to_size(FeatureFit(target, 1), limit, 3)
        descended, _ = descend_to_size(target, limit, 10, 1)
        assert len(descended.section) <= limit
        assert squared_error(target, descended.values) <= squared_error(target, closed.values)

    def test_room_that_is_too_small_gives_nothing(self):
        assert descend_to_size(target_of(), 10, 5, 1) is None

    def test_many_passes_do_not_run_away(self):
        target = target_of(2)
        some, many = (fit_to_size(descent_of(target), 1500, passes) for passes in (25, 100))
        assert squared_error(target, many.values) < 1.02 * squared_error(target, some.values)

    def test_its_section_decodes_to_its_values(self):
        target = target_of(1, volumes=2)
        code = fit_to_size(descent_of(target), 1800, 6)
        decoded = inverse(coefficients_of(read_features(code.section, GRID, 2)))
        np.testing.assert_allclose(decoded, code.values, atol=1e-6)

    def test_the_seed_decides_the_bytes(self):
        target = target_of(2)
        one, same, other = (
            fit_to_size(descent_of(target, seed), 1500, 6).section for seed in (1, 1, 2)
        )
        assert one == same
        assert one != other

    def test_features_are_fitted_to_what_a_base_leaves(self):
        base = np.full((1, *GRID), 0.25, dtype=np.float32)
        based = target_of(base=base)
        with_base = fit_to_size(descent_of(based), 1500, 15)
        without = fit_to_size(descent_of(target_of()), 1500, 15)
        ratio = squared_error(based, with_base.values) / squared_error(based, without.values)
        assert 0.95 < ratio < 1.05

    def test_a_value_range_that_clips_is_no_worse(self):
        exact = target_of(1)
        values = np.clip(1.6 * exact.values - 0.6, 0, 1).astype(np.float32)
        free = FeatureTarget(values, demands_of(values, None))
        errors = [
            squared_error(free, np.clip(fit_to_size(descent_of(fitted), 1500, 25).values, 0, 1))
            for fitted in (free, FeatureTarget(values, None))
        ]
        assert errors[0] < 0.98 * errors[1]

    def test_a_quality_is_reached(self):
        target = target_of()

        def measure(values):
            return -10 * np.log10(squared_error(target, values) / values.size)

        closed = fit_to_quality(FeatureFit(target, 1), 34.0, measure, 4)
        descended = fit_to_quality(descent_of(target), 34.0, measure, 30)
        assert measure(descended.values) >= 34.0
        assert len(descended.section) < len(closed.section)
