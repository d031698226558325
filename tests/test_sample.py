"""`sample`: values at real coordinates, from every kind of array."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.faces import brain, smooth_volume
from tests.trees import some_parameters
from tinc_codec import TINC, ConfigError, FormatError, UnsupportedDataError, sample
from tinc_codec.codec import decode_chunk, encode_chunk
from tinc_codec.model.evaluate import add_values
from tinc_codec.model.octree_mlp import TreeShape, axis_splits, uniform_widths
from tinc_codec.model.opened import open_sections
from tinc_codec.model.points import evaluate_points, leaf_numbers
from tinc_codec.model.render import Tree

zarr = pytest.importorskip("zarr", minversion="3.1")

from zarr.storage import MemoryStore  # noqa: E402

from tinc_codec.bitstream.header import read_stream  # noqa: E402

FEATURES = TINC(ratio=8, model="features", effort=0)
TREE = TINC(ratio=8, model="tree", effort=0)
DOORS = {
    "v3": {"serializer": FEATURES, "compressors": None},
    "shards": {"serializer": FEATURES, "compressors": None, "shards": (32, 16, 32)},
    "v2": {"zarr_format": 2, "compressors": FEATURES},
}


def stored(volume: np.ndarray, chunks: tuple[int, ...], **options):
    array = zarr.create_array(
        MemoryStore(), shape=volume.shape, chunks=chunks, dtype=volume.dtype, **options
    )
    array[:] = volume
    return array


def points_in(shape: tuple[int, ...], n: int = 500) -> np.ndarray:
    return np.random.default_rng(0).random((n, len(shape))) * (np.array(shape) - 1)


def linear(decoded: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Interpolate linearly, the plain way."""
    base = np.minimum(np.floor(points).astype(int), np.maximum(np.array(decoded.shape) - 2, 0))
    total = np.zeros(len(points))
    for corner in itertools.product((0, 1), repeat=decoded.ndim):
        weight = np.prod(np.where(corner, points - base, 1 - (points - base)), axis=-1)
        index = np.minimum(base + corner, np.array(decoded.shape) - 1)
        total += weight * decoded[tuple(index.T)].astype("f8")
    return total


@pytest.mark.parametrize("door", DOORS)
def test_features_are_interpolated_linearly(door):
    array = stored(brain(40), (16, 16, 16), **DOORS[door])
    decoded = array[:]
    points = points_in(decoded.shape)
    found = sample(array, points)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, linear(decoded, points), atol=1e-4)
    grid = np.stack(np.meshgrid(*(np.arange(0, 40, 3),) * 3, indexing="ij"), axis=-1)
    whole = sample(array, grid)
    assert whole.shape == (14, 14, 14)
    np.testing.assert_array_equal(whole, decoded[::3, ::3, ::3])


@pytest.mark.parametrize("dtype", ["u1", ">f4"])
def test_trees_go_through_the_voxels(dtype):
    volume = smooth_volume((20, 16, 24), dtype)
    array = stored(volume, (16, 16, 16), serializer=TREE, compressors=None)
    decoded = array[:]
    every = np.stack(np.meshgrid(*map(np.arange, volume.shape), indexing="ij"), axis=-1)
    np.testing.assert_allclose(sample(array, every), decoded, rtol=1e-5)


def test_a_tree_is_the_function_it_is():
    """Within a leaf, off the voxels, where nothing was clipped."""
    stream = encode_chunk(smooth_volume((16, 16, 16)), TREE.params)
    array = stored(smooth_volume((16, 16, 16)), (16, 16, 16), serializer=TREE, compressors=None)
    chunk = open_sections(read_stream(stream, max_decoded_bytes=1 << 20))
    tree, info = chunk.tree, chunk.info
    size = np.array(tree.shape.leaf_size)
    points = np.random.default_rng(1).random((300, 3)) * (size - 1)
    leaves = np.zeros(300, np.int64)
    t = evaluate_points(tree, 0, points, leaves, 1).astype("f8")
    inside = (t > 0.05) & (t < 0.95)
    low, span = float(info.value_min), float(info.value_max) - float(info.value_min)
    expected = low + span * t
    found = sample(array, points)
    np.testing.assert_allclose(found[inside], expected[inside], rtol=2e-4)
    # It is no interpolation of the voxels.
    between = linear(decode_chunk(stream), points)
    assert np.abs(found - between)[inside].max() > 3 * np.abs(found - expected)[inside].max()


def test_values_are_continuous_where_leaves_and_chunks_meet():
    volume = smooth_volume((32, 16, 16)) + 5 * np.random.default_rng(0).random((32, 16, 16))
    array = stored(volume.astype("f4"), (16, 16, 16), serializer=TREE, compressors=None)
    z = np.linspace(0, 31, 31 * 400 + 1)
    line = np.stack([z, np.full_like(z, 7.5), np.full_like(z, 8.25)], axis=-1)
    steps = np.abs(np.diff(sample(array, line)))
    # No step of a four hundredth voxel is more than a fiftieth of the largest one of a voxel.
    assert steps.max() < np.abs(np.diff(array[:], axis=0)).max() / 50


def test_both_models_in_one_chunk():
    rng = np.random.default_rng(0)
    volume = smooth_volume((32, 32, 32)) + rng.normal(0, 1, (32, 32, 32)).astype("f4")
    codec = TINC(ratio=24, model="auto", effort=5)
    array = stored(volume, (32, 32, 32), serializer=codec, compressors=None)
    points = points_in(volume.shape, 100)
    whole = np.rint(points)
    np.testing.assert_allclose(
        sample(array, whole), array.vindex[tuple(whole.astype(int).T)], rtol=1e-5
    )


def test_leading_axes_come_first():
    volume = np.stack([smooth_volume((8, 9, 10)), 2 * smooth_volume((8, 9, 10))])[:, None]
    array = stored(volume, (2, 1, 8, 8, 8), serializer=FEATURES, compressors=None)
    decoded = array[:]
    points = points_in((8, 9, 10), 30).reshape(5, 6, 3)
    found = sample(array, points)
    assert found.shape == (2, 1, 5, 6)
    for number in (0, 1):
        expected = linear(decoded[number, 0], points.reshape(-1, 3)).reshape(5, 6)
        np.testing.assert_allclose(found[number, 0], expected, rtol=1e-5)


@pytest.mark.parametrize("shape", [(300,), (12, 30)])
@pytest.mark.parametrize("model", ["features", "tree"])
def test_fewer_axes(shape, model):
    codec = TINC(ratio=2, model=model, effort=0)
    volume = smooth_volume(shape, "<f8")
    array = stored(volume, (200, 20)[: len(shape)], serializer=codec, compressors=None)
    points = points_in(shape, 50)
    if model == "tree":
        points = np.rint(points)
    found = sample(array, points)
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, linear(array[:], points), rtol=1e-6)


def test_missing_chunks_and_voxels():
    array = zarr.create_array(
        MemoryStore(), shape=(16, 16, 16), chunks=(8, 16, 16), dtype="f4", fill_value=-1,
        serializer=FEATURES, compressors=None,
    )  # fmt: skip
    volume = smooth_volume((8, 16, 16))
    volume[4, 4, 4] = np.nan
    volume[2, 2, 2] = np.inf
    array[:8] = volume
    decoded = array[:]
    points = [[12, 3, 3.5], [7.25, 8, 8], [4, 4, 4], [4, 4, 4.5], [4, 4, 5], [2, 2.5, 2]]
    found = sample(array, points)
    assert found[0] == -1
    np.testing.assert_allclose(found[1], 0.75 * decoded[7, 8, 8] - 0.25, rtol=1e-6)
    np.testing.assert_array_equal(np.isnan(found), [False, False, True, True, False, False])
    assert found[4] == decoded[4, 4, 5]
    assert found[5] == np.inf


def test_the_edge():
    array = stored(smooth_volume((9, 9, 9)), (8, 8, 8), serializer=FEATURES, compressors=None)
    decoded = array[:]
    corners = [[-0.5, 0, 0], [8.5, 8.5, 8.5], [3, -0.25, 8.4]]
    np.testing.assert_array_equal(
        sample(array, corners), [decoded[0, 0, 0], decoded[8, 8, 8], decoded[3, 0, 8]]
    )
    assert sample(array, np.empty((0, 3))).shape == (0,)
    assert sample(array, [4, 4, 4]).shape == ()
    for outside in ([[0, 0, -0.6]], [[8.6, 0, 0]], [[np.nan, 0, 0]], [[0, np.inf, 0]]):
        with pytest.raises(ConfigError, match=r"1 of the coordinates, .* outside of the array"):
            sample(array, outside)
    for wrong in (np.zeros((4, 2)), np.zeros((4, 3), bool), np.zeros((4, 3), complex), 3.0):
        with pytest.raises(ConfigError, match=r"real numbers of shape \(\.\.\., 3\)"):
            sample(array, wrong)


def test_other_arrays_and_damage(tmp_path):
    with pytest.raises(UnsupportedDataError, match="not stored with TINC"):
        sample(zarr.create_array(MemoryStore(), shape=(8, 8, 8), dtype="f4"), [[0, 0, 0]])
    path = tmp_path / "a.zarr"
    array = zarr.create_array(
        path, shape=(8, 8, 8), chunks=(8, 8, 8), dtype="f4", serializer=FEATURES, compressors=None
    )
    array[:] = smooth_volume((8, 8, 8))
    np.testing.assert_array_equal(sample(path, [[1, 2, 3]]), array[1, 2, 3])
    chunk = path / "c" / "0" / "0" / "0"
    chunk.write_bytes(chunk.read_bytes()[:-1])
    with pytest.raises(FormatError, match=r"chunk \(0, 0, 0\) of .*a\.zarr"):
        sample(array, [[1, 2, 3]])


@given(st.tuples(*[st.integers(1, 40)] * 3), st.integers(1, 3), st.integers(0, 9))
def test_points_of_a_tree_are_its_voxels(grid, levels, seed):
    levels = min(levels, len(axis_splits(grid, levels)) + 1)
    shape = TreeShape(grid, (1,) * levels, uniform_widths(grid, levels, (3,) * levels), 5.0)
    scaling = np.array([[0.5, 0.3]], np.float32)
    tree = Tree(shape, some_parameters(shape, 1, seed), scaling)
    expected = np.zeros((1, *grid), np.float32)
    add_values(shape, tree.parameters, scaling, expected, 1)
    voxels = np.argwhere(np.ones(grid, bool))
    np.random.default_rng(seed).shuffle(voxels)
    leaves = leaf_numbers(shape, tuple(voxels.T))
    for threads in (1, 3):
        found = evaluate_points(tree, 0, voxels, leaves, threads)
        np.testing.assert_allclose(found, expected[0][tuple(voxels.T)], atol=1e-6)
