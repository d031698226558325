"""Bytes -> shapes: limits respected, settings obeyed, bytes where they are needed."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.trees import grids
from tinc_codec.model.budget import (
    allocate_nodes,
    node_importance,
    plan_shape,
    smallest_section,
)
from tinc_codec.model.octree_mlp import (
    MAX_LEVELS,
    MAX_WIDTH,
    TreeShape,
    axis_splits,
    uniform_widths,
)
from tinc_codec.model.section import fixed_bytes, parameter_limit
from tinc_codec.params import EncodingParams

CUBE = (1, 64, 64, 64)


def params(**changes) -> EncodingParams:
    return EncodingParams(ratio=64, **changes)


@st.composite
def settings_of_trees(draw: st.DrawFn) -> EncodingParams:
    levels = draw(st.one_of(st.just("auto"), st.integers(1, MAX_LEVELS)))
    layers, split = draw(st.one_of(st.just("auto"), st.integers(1, 8))), "auto"
    if levels != "auto":
        per_level = st.lists(st.integers(1, 8), min_size=levels, max_size=levels)
        layers = draw(st.one_of(st.just(layers), per_level))
        shares = st.lists(st.floats(0.01, 1), min_size=levels, max_size=levels)
        split = draw(st.one_of(st.just("auto"), shares))
    return params(levels=levels, layers=layers, level_split=split)


class TestLimits:
    @settings(max_examples=200)
    @given(grids(10**6), st.integers(1, 4), settings_of_trees(), st.floats(0, 6))
    def test_every_shape_leaves_room_for_its_own_header(self, grid, volumes, chosen, exponent):
        batched = (volumes, *grid)
        limit = max(smallest_section(batched), int(10**exponent))
        shape = plan_shape(batched, limit, chosen)
        assert shape.grid == grid
        assert fixed_bytes(shape, volumes) <= limit
        voxels = volumes * math.prod(grid)
        smallest = TreeShape(grid, (1,), ((1,),), shape.w0)
        assert (
            shape.parameter_count * volumes <= parameter_limit(voxels)
            or shape.widths == smallest.widths
        )
        assert all(1 <= width <= MAX_WIDTH for row in shape.widths for width in row)

    @settings(max_examples=60)
    @given(grids(10**6), st.integers(1, 3))
    def test_smallest_section(self, grid, volumes):
        batched = (volumes, *grid)
        least = smallest_section(batched)
        assert fixed_bytes(plan_shape(batched, least, params()), volumes) <= least
        assert least < 60 + 8 * volumes

    def test_more_bytes_give_more_parameters(self):
        counts = [
            plan_shape(CUBE, limit, params()).parameter_count
            for limit in (100, 300, 1000, 3000, 10_000, 30_000)
        ]
        assert counts == sorted(counts)
        assert counts[0] < counts[-1] / 50

    @pytest.mark.parametrize("limit", [2000, 4000, 16_000])
    def test_a_weight_gets_a_sensible_number_of_bits(self, limit):
        shape = plan_shape(CUBE, limit, params())
        bits = 8 * (limit - fixed_bytes(shape, 1)) / shape.parameter_count
        assert 4 <= bits <= 7

    def test_volumes_share_the_bytes(self):
        one = plan_shape(CUBE, 8000, params())
        four = plan_shape((4, 64, 64, 64), 32_000, params())
        assert four.parameter_count == pytest.approx(one.parameter_count, rel=0.1)


class TestSettings:
    @pytest.mark.parametrize("levels", [1, 2, 3, 4])
    def test_levels(self, levels):
        assert plan_shape(CUBE, 20_000, params(levels=levels)).levels == levels

    def test_levels_stop_where_the_grid_does(self):
        assert plan_shape((1, 8, 8, 8), 4000, params(levels=5)).levels == 2
        assert plan_shape((1, 7, 7, 7), 4000, params(levels=5)).levels == 1

    def test_layers(self):
        shape = plan_shape(CUBE, 20_000, params(levels=3, layers=3))
        assert shape.layers == (3, 3, 3)
        shape = plan_shape(CUBE, 20_000, params(levels=3, layers=(1, 4, 2)))
        assert shape.layers == (1, 4, 2)
        shape = plan_shape(CUBE, 20_000, params(layers=1))
        assert set(shape.layers) == {1}

    def test_w0(self):
        assert plan_shape(CUBE, 4000, params(w0=22.5)).w0 == 22.5
        assert plan_shape(CUBE, 4000, params(w0=0.1)).w0 == float(np.float32(0.1))
        assert plan_shape(CUBE, 4000, params(w0=1000)).w0 == 1000

    @pytest.mark.parametrize("split", [(1, 1, 1), (8, 1, 1), (1, 1, 8), (0.1, 0.8, 0.1)])
    def test_level_split(self, split):
        chosen = params(levels=3, level_split=split)
        shape = plan_shape(CUBE, 60_000, chosen)
        sizes = np.zeros(3)
        for tensor in shape.tensors:
            sizes[tensor.level] += tensor.stop - tensor.start
        wanted = np.array(split) / sum(split)
        # Widths are whole, and the root takes up what the others leave.
        np.testing.assert_allclose(sizes / sizes.sum(), wanted, atol=0.12)

    def test_the_default_gives_the_root_more_than_an_even_split(self):
        shape = plan_shape(CUBE, 4000, params())
        assert shape.levels >= 2
        assert shape.widths[0][0] > shape.widths[1][0] > shape.widths[-1][0] / 2

    def test_planes_and_lines(self):
        assert len(plan_shape((1, 1, 256, 256), 4000, params()).axes) == 2
        assert len(plan_shape((1, 1, 1, 4000), 4000, params()).axes) == 1


def tree(levels: int = 3, grid: tuple[int, int, int] = (32, 32, 32)) -> TreeShape:
    return TreeShape(grid, (2,) * levels, uniform_widths(grid, levels, (20, 10, 6)[:levels]), 15.0)


class TestNodes:
    def busy_corner(self) -> np.ndarray:
        """Noise in the block of the last leaf at level 1, a faint ramp elsewhere."""
        rng = np.random.default_rng(0)
        volume = np.zeros((1, 32, 32, 32), np.float32)
        volume += np.linspace(0, 0.04, 32, dtype=np.float32)
        volume[:, 16:, 16:, 16:] = rng.random((16, 16, 16))
        return volume

    @pytest.mark.parametrize("rule", ["aoi", "variance"])
    def test_busier_nodes_get_wider(self, rule):
        importance = node_importance(tree(), self.busy_corner(), rule)
        assert [len(row) for row in importance] == [1, 8, 64]
        assert importance[1].argmax() == 7
        shape = allocate_nodes(tree(), importance)
        assert shape.widths[0] == tree().widths[0]
        busy, others = shape.widths[1][7], shape.widths[1][:7]
        assert busy > max(others)
        leaves = np.array(shape.widths[2]).reshape(8, 8)
        assert leaves[7].min() > leaves[:7].max()

    def test_aoi_counts_voxels_above_the_threshold(self):
        volumes = np.zeros((2, 32, 32, 32), np.float32)
        volumes[0, :16, :16, :16] = 1
        volumes[1, 0, 0, 0] = 1
        importance = node_importance(tree(2), volumes, "aoi")
        assert importance[0].tolist() == [16**3 + 1]
        assert importance[1].tolist() == [16**3 + 1] + [0] * 7

    def test_variance_is_the_deviation_within_a_block(self):
        volumes = self.busy_corner()
        importance = node_importance(tree(2), volumes, "variance")
        assert importance[1][7] == pytest.approx(volumes[:, 16:, 16:, 16:].std())

    @settings(max_examples=60)
    @given(
        grids(30_000), st.integers(1, 3), st.integers(0, 99), st.sampled_from(["aoi", "variance"])
    )
    def test_the_size_stays_about_the_same(self, grid, levels, seed, rule):
        levels = min(levels, len(axis_splits(grid, levels)) + 1)
        shape = tree(levels, grid)
        rng = np.random.default_rng(seed)
        volumes = rng.random((2, *grid), dtype=np.float32) ** rng.integers(1, 30)
        found = allocate_nodes(shape, node_importance(shape, volumes, rule))
        assert [len(row) for row in found.widths] == [len(row) for row in shape.widths]
        ratio = found.parameter_count / shape.parameter_count
        assert 0.7 < ratio < 1.3

    @pytest.mark.parametrize("value", [0.0, 1.0])
    @pytest.mark.parametrize("rule", ["aoi", "variance"])
    def test_nothing_to_tell_nodes_apart(self, rule, value):
        volumes = np.full((1, 32, 32, 32), value, np.float32)
        found = allocate_nodes(tree(), node_importance(tree(), volumes, rule))
        assert all(len(set(row)) == 1 for row in found.widths)
        assert found.widths == tree().widths
