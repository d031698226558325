"""The model room: blocks, layout, and one function evaluated in four ways."""

import math
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import tree_reference
from tests.trees import grids, info_for, some_parameters, tree_shapes
from tinc_codec.errors import CorruptStreamError
from tinc_codec.model.evaluate import evaluate, evaluate_torch
from tinc_codec.model.octree_mlp import (
    MAX_LEVELS,
    MIN_LEAF,
    TreeShape,
    axis_splits,
    uniform_widths,
)
from tinc_codec.volume.chunk import allocate, denormalise, valid_view
from tinc_codec.volume.partition import to_blocks

# Float32 against float64 through several sine layers, on networks as they are initialised.
TOLERANCE = 2e-5
CUBE = TreeShape((16, 12, 20), (2, 1), ((7,), (5, 3, 6, 2, 4, 5, 1, 8)), 12.0)


def reference_values(shape: TreeShape, parameters: np.ndarray) -> np.ndarray:
    """The network's output [z, y, x] in float64, by `tree_reference`."""
    parts = tree_reference.tensor_shapes(shape.grid, list(shape.layers), list(shape.widths))
    matrices, position = [], 0
    for nodes in parts:
        matrices.append([])
        for rows, columns in nodes:
            values = parameters[position : position + rows * columns].astype(np.float64)
            matrices[-1].append(values.reshape(rows, columns))
            position += rows * columns
    assert position == len(parameters)
    return tree_reference.evaluate(shape.grid, list(shape.layers), shape.w0, matrices)


def compiled_values(
    shape: TreeShape, parameters: np.ndarray, scaling: np.ndarray, threads: int = 1
) -> np.ndarray:
    """What the compiled path makes of t, in float64, [volume, z, y, x]."""
    info = info_for("<f8", (len(parameters), *shape.grid))
    out = allocate(info)
    evaluate(shape, parameters, scaling, info, out, threads)
    return out


def unit_scaling(volumes: int) -> np.ndarray:
    return np.array([[0.5, 0.25]] * volumes, dtype=np.float32)


class TestSplits:
    @given(grids(10**7), st.integers(1, MAX_LEVELS))
    def test_blocks_get_smaller_without_getting_too_small(self, grid, levels):
        splits = axis_splits(grid, levels)
        assert len(splits) <= levels - 1
        sizes = np.array(grid)
        for split in splits:
            assert set(split) <= {1, 2}
            assert 2 in split
            assert (sizes[np.array(split) == 2] >= 2 * MIN_LEAF).all()
            # The longest axis is always among those halved.
            assert split[int(sizes.argmax())] == 2
            sizes = -(-sizes // np.array(split))
        assert splits == tree_reference.splits_of(grid, len(splits) + 1)
        assert splits == axis_splits(grid, MAX_LEVELS)[: len(splits)]

    def test_cube_plane_and_line(self):
        assert axis_splits((64, 64, 64), 4) == [(2, 2, 2)] * 3
        assert axis_splits((1, 64, 64), 4) == [(1, 2, 2)] * 3
        assert axis_splits((1, 1, 64), 4) == [(1, 1, 2)] * 3
        assert axis_splits((8, 64, 64), 3) == [(1, 2, 2), (1, 2, 2)]
        assert axis_splits((33, 64, 64), 2) == [(2, 2, 2)]
        assert axis_splits((7, 7, 7), 6) == []
        assert axis_splits((8, 8, 8), 6) == [(2, 2, 2)]


class TestShape:
    @given(tree_shapes())
    def test_leaves_cover_the_grid_exactly_once(self, shape):
        covered = np.zeros(shape.grid, dtype=int)
        for origin, extent in zip(shape.leaf_origins, shape.leaf_extents, strict=True):
            assert (extent <= shape.leaf_size).all()
            covered[tuple(slice(o, o + n) for o, n in zip(origin, extent, strict=True))] += 1
        assert (covered == 1).all()
        assert len(shape.leaf_origins) == shape.leaf_count == len(shape.widths[-1])

    @given(tree_shapes())
    def test_leaves_stand_in_morton_order(self, shape):
        positions = tree_reference.positions_of(shape.splits)[-1]
        np.testing.assert_array_equal(
            shape.leaf_origins, np.array(positions) * np.array(shape.leaf_size)
        )

    @given(tree_shapes())
    def test_nodes_cover_their_descendants_blocks(self, shape):
        for count in shape.node_counts:
            inside = shape.leaf_origins.reshape(count, -1, 3)
            spans = inside.max(axis=1) - inside.min(axis=1) + np.array(shape.leaf_size)
            volume = np.prod(spans, axis=1)
            # Siblings' blocks together are a box without holes.
            assert (volume == inside.shape[1] * math.prod(shape.leaf_size)).all()

    @given(tree_shapes())
    def test_layout_has_no_gaps_and_no_overlaps(self, shape):
        position = 0
        for tensor in shape.tensors:
            assert tensor.start == position
            assert tensor.stop > tensor.start
            position = tensor.stop
        assert position == shape.parameter_count
        used = np.zeros(shape.parameter_count, dtype=int)
        for level, table in enumerate(shape.node_tables):
            assert table.shape == (
                shape.node_counts[level],
                shape.layers[level] + (level == shape.levels - 1),
                4,
            )
            for weight, bias, outputs, inputs in table.reshape(-1, 4):
                used[weight : weight + outputs * inputs] += 1
                used[bias : bias + outputs] += 1
        assert (used == 1).all()

    @given(tree_shapes())
    def test_tensors_agree_with_the_format(self, shape):
        parts = tree_reference.tensor_shapes(shape.grid, list(shape.layers), list(shape.widths))
        sizes = [sum(rows * columns for rows, columns in nodes) for nodes in parts]
        assert sizes == [tensor.stop - tensor.start for tensor in shape.tensors]
        kinds = ["weight", "bias"] * (len(parts) // 2)
        assert kinds == [tensor.kind for tensor in shape.tensors]

    @given(tree_shapes())
    def test_paths_share_exactly_the_ancestors(self, shape):
        paths = shape.leaf_paths
        layer = 0
        for level, table in enumerate(shape.node_tables):
            below = shape.leaf_count // shape.node_counts[level]
            ancestors = np.arange(shape.leaf_count) // below
            layers = slice(layer, layer + table.shape[1])
            np.testing.assert_array_equal(paths[:, layers], table[ancestors])
            # Different nodes never share a parameter.
            assert len(np.unique(paths[:, layer, 0])) == shape.node_counts[level]
            layer += table.shape[1]
        assert paths.shape[1] == layer
        # Each layer takes what the one before gives.
        np.testing.assert_array_equal(paths[:, 1:, 3], paths[:, :-1, 2])
        assert (paths[:, 0, 3] == len(shape.axes)).all()
        assert (paths[:, -1, 2] == 1).all()

    @given(tree_shapes())
    def test_coordinates_are_centred_and_isotropic(self, shape):
        (step, *others), shifts = shape.coordinate_map.astype(np.float64)
        assert others == [step, step]
        for n, shift in zip(shape.grid, shifts, strict=True):
            assert -shift == pytest.approx(-((n - 1) * step - shift), abs=1e-6)
            assert abs(shift) <= 1 + 1e-6
        if max(shape.grid) > 1:
            assert max(shifts) == pytest.approx(1.0)

    def test_root_takes_the_axes_that_vary(self):
        assert TreeShape((4, 5, 6), (1,), ((1,),), 1.0).axes == (0, 1, 2)
        assert TreeShape((1, 5, 6), (1,), ((1,),), 1.0).axes == (1, 2)
        assert TreeShape((4, 1, 6), (1,), ((1,),), 1.0).axes == (0, 2)
        assert TreeShape((1, 1, 1), (1,), ((1,),), 1.0).axes == (2,)

    @pytest.mark.parametrize(
        ("layers", "widths", "w0", "message"),
        [
            ((), (), 1.0, "levels"),
            ((1,) * 7, ((1,),) * 7, 1.0, "levels"),
            ((1, 1), ((1,), (1,)), 1.0, "levels"),
            ((0,), ((1,),), 1.0, "layers"),
            ((9,), ((1,),), 1.0, "layers"),
            ((1,), ((0,),), 1.0, "widths"),
            ((1,), ((256,),), 1.0, "widths"),
            ((1,), ((1, 1),), 1.0, "widths"),
            ((1,), ((1,),), 0.0, "w0"),
            ((1,), ((1,),), -1.0, "w0"),
            ((1,), ((1,),), math.nan, "w0"),
            ((1,), ((1,),), math.inf, "w0"),
            ((1,), ((1,),), 1000.1, "w0"),
        ],
    )
    def test_impossible_shapes_are_refused(self, layers, widths, w0, message):
        with pytest.raises(CorruptStreamError, match=message):
            TreeShape((6, 6, 6), layers, widths, w0)

    def test_multiply_adds_count_every_layer(self):
        shape = TreeShape((16, 16, 16), (2, 1), uniform_widths((16, 16, 16), 2, (5, 3)), 1.0)
        assert shape.multiply_adds == 3 * 5 + 5 * 5 + 5 * 3 + 3


class TestBlocks:
    @given(tree_shapes(), st.integers(1, 3))
    def test_blocks_hold_every_voxel_once(self, shape, volumes):
        numbers = np.arange(volumes * math.prod(shape.grid)).reshape(volumes, *shape.grid)
        size = math.prod(shape.leaf_size)
        blocks = to_blocks(numbers, shape.leaf_origins, shape.leaf_extents, size)
        assert blocks.shape == (volumes, shape.leaf_count, size)
        counts = shape.leaf_extents.prod(axis=1)
        packed = np.arange(size) < counts[:, None]
        for volume in range(volumes):
            found = blocks[volume][packed]
            np.testing.assert_array_equal(np.sort(found), np.sort(numbers[volume], axis=None))
        assert (blocks[:, ~packed] == 0).all()
        origin = tuple(shape.leaf_origins[0])
        assert blocks[0, 0, 0] == numbers[(0, *origin)]


class TestFunction:
    @settings(max_examples=60)
    @given(tree_shapes(), st.integers(1, 2), st.integers(0, 99))
    def test_compiled_torch_and_reference_agree(self, shape, volumes, seed):
        parameters = some_parameters(shape, volumes, seed)
        scaling = unit_scaling(volumes)
        expected = np.stack([reference_values(shape, p) for p in parameters])
        expected = 0.5 + 0.25 * expected
        assert np.isfinite(expected).all()
        compiled = compiled_values(shape, parameters, scaling)
        np.testing.assert_allclose(compiled, np.clip(expected, 0, 1), rtol=0, atol=TOLERANCE)
        torch_values = evaluate_torch(shape, parameters[None], scaling[None], "cpu")[0]
        np.testing.assert_allclose(torch_values.numpy(), expected, rtol=0, atol=TOLERANCE)

    def test_wide_nodes(self):
        shape = TreeShape((9, 9, 9), (2, 2), uniform_widths((9, 9, 9), 2, (61, 34)), 15.0)
        parameters = some_parameters(shape)
        expected = 0.5 + 0.25 * reference_values(shape, parameters[0])
        compiled = compiled_values(shape, parameters, unit_scaling(1))[0]
        np.testing.assert_allclose(compiled, np.clip(expected, 0, 1), rtol=0, atol=TOLERANCE)

    def test_many_chunks_at_once_with_torch(self):
        parameters = some_parameters(CUBE, 6).reshape(3, 2, -1)
        scaling = np.random.default_rng(1).uniform(0.2, 0.5, (3, 2, 2)).astype(np.float32)
        together = evaluate_torch(CUBE, parameters, scaling, "cpu").numpy()
        assert together.shape == (3, 2, *CUBE.grid)
        for chunk in range(3):
            alone = evaluate_torch(CUBE, parameters[chunk, None], scaling[chunk, None], "cpu")
            np.testing.assert_allclose(together[chunk], alone[0].numpy(), atol=1e-6)
            compiled = compiled_values(CUBE, parameters[chunk], scaling[chunk])
            np.testing.assert_allclose(compiled, together[chunk].clip(0, 1), atol=TOLERANCE)

    def test_slabs_of_a_gpu_change_nothing(self, monkeypatch):
        parameters = some_parameters(CUBE, 5)[None]
        scaling = unit_scaling(5)[None]
        whole = evaluate_torch(CUBE, parameters, scaling, "cpu").numpy()
        monkeypatch.setattr("tinc_codec.model.evaluate._SLAB_VALUES", 1)
        parts = evaluate_torch(CUBE, parameters, scaling, "cpu").numpy()
        np.testing.assert_allclose(parts, whole, atol=1e-6)

    @pytest.mark.parametrize("threads", [2, 3, 8])
    def test_threads_do_not_change_a_byte(self, threads):
        parameters, scaling = some_parameters(CUBE, 3), unit_scaling(3)
        alone = compiled_values(CUBE, parameters, scaling)
        np.testing.assert_array_equal(
            compiled_values(CUBE, parameters, scaling, threads).view(np.int64),
            alone.view(np.int64),
        )

    def test_calls_from_many_threads_agree(self):
        parameters, scaling = some_parameters(CUBE, 2), unit_scaling(2)
        expected = compiled_values(CUBE, parameters, scaling)
        found = []

        def work() -> None:
            found.append(compiled_values(CUBE, parameters, scaling, 2))

        workers = [threading.Thread(target=work) for _ in range(6)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        assert len(found) == 6
        for values in found:
            np.testing.assert_array_equal(values, expected)


RANGES = {
    "u1": (3, 250),
    "u2": (7, 60000),
    "u4": (0, 2**32 - 1),
    "i1": (-128, 127),
    "i2": (-32768, 32767),
    "i4": (-(2**31), 2**31 - 1),
    "f2": (-60000.0, 65504.0),
    "f4": (-1e30, 3e38),
    "f8": (-1.7e308, 1.7e308),
}


class TestDtypes:
    @pytest.mark.parametrize("dtype", RANGES)
    @pytest.mark.parametrize("byte_order", "<>")
    @pytest.mark.parametrize("order", "CF")
    def test_every_dtype_agrees_with_denormalise(self, dtype, byte_order, order):
        info = info_for(byte_order + dtype, (2, *CUBE.grid), RANGES[dtype], order)
        parameters = some_parameters(CUBE, 2)
        # A gain beyond 1, so that both ends are clipped.
        scaling = np.array([[0.5, 4.0]] * 2, dtype=np.float32)
        out = allocate(info)
        evaluate(CUBE, parameters, scaling, info, valid_view(out, info), 1)
        t = compiled_values(CUBE, parameters, scaling).astype(np.float32)
        assert (t == 0).any()
        assert (t == 1).any()
        expected = denormalise(t, info)
        assert out.dtype == info.dtype
        assert out.flags.f_contiguous == (order == "F")
        # Both round once, from float64 values that may differ in their last bits.
        if info.dtype.kind == "f":
            span = float(info.value_max) / 2 - float(info.value_min) / 2
            np.testing.assert_allclose(
                out.astype("f8") / span,
                expected.astype("f8") / span,
                rtol=np.finfo(expected.dtype).eps if dtype == "f4" else 0,
                atol=0 if dtype == "f2" else 1e-14,
            )
        else:
            difference = out.astype("i8") - expected.astype("i8")
            assert np.abs(difference).max() <= (info.dtype.itemsize == 4)
        assert out.min() == info.value_min
        assert out.max() == info.value_max

    def test_strided_output(self):
        info = info_for("<i2", CUBE.grid, (-100, 1000))
        parameters, scaling = some_parameters(CUBE), unit_scaling(1)
        packed, wide = allocate(info), np.zeros([2 * n for n in CUBE.grid], "<i2")
        strided = wide[::2, ::2, ::2]
        evaluate(CUBE, parameters, scaling, info, packed[None], 1)
        evaluate(CUBE, parameters, scaling, info, strided[None], 1)
        np.testing.assert_array_equal(strided, packed)
        assert (wide[1::2] == 0).all()

    @pytest.mark.parametrize("dtype", RANGES)
    def test_absurd_parameters_stay_within_the_value_range(self, dtype):
        info = info_for("<" + dtype, CUBE.grid, RANGES[dtype])
        rng = np.random.default_rng(5)
        # The largest of everything that a section may hold.
        for w0, gain in ((15.0, 1.0), (1000.0, 256.0), (1e-30, -256.0)):
            shape = TreeShape(CUBE.grid, CUBE.layers, CUBE.widths, float(np.float32(w0)))
            parameters = rng.integers(-32768, 32768, (1, shape.parameter_count), endpoint=True)
            scaling = np.array([[0.5, gain]], dtype=np.float32)
            out = np.empty(info.shape, info.dtype)
            evaluate(shape, parameters.astype(np.float32), scaling, info, out[None], 1)
            assert np.isfinite(out.astype(np.float64)).all()
            assert out.min() >= info.value_min
            assert out.max() <= info.value_max
