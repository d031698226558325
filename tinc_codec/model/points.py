"""A tree at any coordinates: the continuous function that its leaves are, compiled."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np

from tinc_codec.kernels import kernel
from tinc_codec.model.fused import FAST, TILE, affine, sine
from tinc_codec.model.octree_mlp import TreeShape
from tinc_codec.model.render import Tree

_POINTS_PER_THREAD = 1 << 15


def leaf_numbers(shape: TreeShape, voxels: Sequence[np.ndarray]) -> np.ndarray:
    """Find the leaves that cover voxels.

    Parameters
    ----------
    shape : TreeShape
    voxels : three arrays of int
        Indices along z, y, x within the grid; they are broadcast together.

    Returns
    -------
    ndarray of int64
        In Morton order, as everywhere.
    """
    size = np.array(shape.leaf_size)
    places = shape.leaf_origins // size
    numbers = np.empty(places.max(axis=0) + 1, dtype=np.int64)
    numbers[tuple(places.T)] = np.arange(len(places))
    z, y, x = (index // n for index, n in zip(voxels, size.tolist(), strict=True))
    return numbers[z, y, x]


def evaluate_points(
    tree: Tree, volume: int, coordinates: np.ndarray, leaves: np.ndarray, threads: int
) -> np.ndarray:
    """Evaluate leaves of one volume at points, each by itself.

    Parameters
    ----------
    tree : Tree
    volume : int
    coordinates : ndarray
        Shape (n, 3): (z, y, x) in voxels, 0 the centre of the first one; need not lie within the
        leaf.
    leaves : ndarray of int
        Shape (n,): from `leaf_numbers`.
    threads : int

    Returns
    -------
    ndarray of float32
        Shape (n,): t, not clipped. At the centre of a voxel of the leaf it is, up to float32's
        rounding, what decoding the volume gives.

    References
    ----------
    `docs/format.md` §7.5
    """
    shape = tree.shape
    # Narrow numbers are sorted by radix.
    narrow = leaves.astype(np.uint16 if shape.leaf_count <= 1 << 16 else np.int64)
    order = np.argsort(narrow, kind="stable")
    counts = np.bincount(leaves, minlength=shape.leaf_count)
    ends = np.concatenate([[0], np.cumsum(counts)])
    axes = list(shape.axes)
    places = np.ascontiguousarray(coordinates[order][:, axes].T, dtype=np.float32)
    step, shift = shape.coordinate_map[:, axes, None]
    places = places * step - shift
    values = np.empty(len(order), dtype=np.float32)
    offset, gain = tree.scaling[volume]

    def work(first: int, last: int) -> None:
        _evaluate(
            tree.parameters[volume], shape.leaf_paths, ends, places, np.float32(shape.w0),
            shape.max_width, first, last, np.float32(gain), np.float32(offset), values,
        )  # fmt: skip

    shares = max(1, min(threads, len(order) // _POINTS_PER_THREAD))
    # Leaves are shared out so that each thread has about as many points.
    bounds = np.searchsorted(ends, [len(order) * i // shares for i in range(shares + 1)])
    bounds[-1] = shape.leaf_count
    pairs = list(pairwise(bounds.tolist()))
    if shares > 1:
        with ThreadPoolExecutor(shares) as pool:
            list(pool.map(lambda pair: work(*pair), pairs))
    else:
        work(0, shape.leaf_count)
    out = np.empty_like(values)
    out[order] = values
    return out


@kernel(fastmath=FAST)
def _evaluate(  # type: ignore[no-untyped-def]
    parameters, paths, ends, places, w0, width, first, last, gain, offset, out
):
    """Evaluate leaves first to last - 1 at their points, ends[leaf] to ends[leaf + 1] - 1."""
    n_layers = paths.shape[1]
    a = np.empty((width, TILE), np.float32)
    z = np.empty((width, TILE), np.float32)
    for leaf in range(first, last):
        for start in range(ends[leaf], ends[leaf + 1], TILE):
            n = min(TILE, ends[leaf + 1] - start)
            for axis in range(places.shape[0]):
                for s in range(n):
                    a[axis, s] = places[axis, start + s]
            for k in range(n_layers):
                weight, bias, n_out, n_in = paths[leaf, k]
                affine(parameters, weight, bias, n_out, n_in, a, z, n)
                if k < n_layers - 1:
                    sine(z, w0, a, n_out, n)
            for s in range(n):
                out[start + s] = z[0, s] * gain + offset
