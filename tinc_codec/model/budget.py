"""Bytes -> the shape of a tree: levels, and how wide each node may be."""

import math
from itertools import product

import numpy as np

from tinc_codec.model.octree_mlp import (
    MAX_LEVELS,
    MAX_WIDTH,
    TreeShape,
    axis_splits,
    uniform_widths,
)
from tinc_codec.model.section import fixed_bytes, parameter_limit
from tinc_codec.params import EncodingParams

BITS_PER_WEIGHT = 5.2
"""At a given size, wider trees at fewer bits or narrower ones at more lose; see benchmarks."""
_PARAMETERS_PER_LEAF = 60
_DEFAULT_LAYERS = 2
DEFAULT_W0 = 15.0
_SHARES = {
    1: (1.0,),
    2: (0.2, 0.8),
    3: (0.15, 0.42, 0.43),
    4: (0.12, 0.20, 0.30, 0.38),
}
_DEEP_SHARES = (0.010, 0.075, 0.37, 0.545)
"""Of an octree of four levels: a small root, since every voxel is decoded through it."""
_DEEP_LEAVES = 512
_ROOT_GROWTH = 1.2
_ROOT_PENALTY = 0.25
AOI_THRESHOLD = 0.05
"""Voxels above this part of the value range are of interest (`node_split="aoi"`)."""
_WIDTH_RANGE = 3.0


def plan_shape(
    batched_shape: tuple[int, int, int, int], limit_bytes: int, params: EncodingParams
) -> TreeShape:
    """Choose a tree of equal nodes per level whose section will have about the given length.

    Parameters
    ----------
    batched_shape : tuple of int
        Volumes and voxels per axis, (B, Z, Y, X).
    limit_bytes : int
        For the whole section, at least `smallest_section`.
    params : EncodingParams
        More levels than the grid has room for become as many as it has.

    Returns
    -------
    TreeShape
        Its `fixed_bytes` are within the limit.

    References
    ----------
    TINC, arXiv 2211.06689, section 3.3 (inter-level allocation).
    """
    volumes, *axes = batched_shape
    grid = (axes[0], axes[1], axes[2])
    w0 = DEFAULT_W0 if params.w0 == "auto" else float(np.float32(params.w0))
    possible = len(axis_splits(grid, MAX_LEVELS)) + 1
    most = possible if params.levels == "auto" else min(int(params.levels), possible)
    for levels in range(most, 0, -1):
        layers = _layers(levels, params)
        # What a section of this many levels holds besides its symbols.
        fixed = fixed_bytes(
            TreeShape(grid, layers, uniform_widths(grid, levels, (1,) * levels), w0), volumes
        )
        budget = (limit_bytes - fixed) * 8 / BITS_PER_WEIGHT / volumes
        budget = min(budget, parameter_limit(volumes * math.prod(grid)) / volumes)
        widths = _level_widths(grid, layers, _shares(grid, levels, params), budget)
        shape = TreeShape(grid, layers, uniform_widths(grid, levels, widths), w0)
        fits = shape.parameter_count <= budget
        wanted = (
            params.levels != "auto"
            or shape.parameter_count >= _PARAMETERS_PER_LEAF * shape.leaf_count
        )
        if fits and (wanted or levels == 1):
            return shape
    return _smallest_shape(grid)


def is_possible(shape: TreeShape, volumes: int, limit_bytes: int) -> bool:
    """Tell whether a section of this shape is allowed and can be as short as the limit."""
    allowed = parameter_limit(volumes * math.prod(shape.grid))
    return fixed_bytes(shape, volumes) <= limit_bytes and shape.parameter_count * volumes <= allowed


def smallest_section(batched_shape: tuple[int, int, int, int]) -> int:
    """Bytes of the smallest tree section that a chunk of (B, Z, Y, X) valid voxels can have."""
    volumes, z, y, x = batched_shape
    return fixed_bytes(_smallest_shape((z, y, x)), volumes)


def _smallest_shape(grid: tuple[int, int, int]) -> TreeShape:
    return TreeShape(grid, (1,), ((1,),), DEFAULT_W0)


def _shares(grid: tuple[int, int, int], levels: int, params: EncodingParams) -> list[float]:
    """Part of the parameters per level (inter-level allocation)."""
    if params.level_split == "auto":
        leaves = math.prod(math.prod(split) for split in axis_splits(grid, levels))
        shares = _SHARES.get(levels, (1.0,) * levels)
        if levels == len(_DEEP_SHARES) and leaves >= _DEEP_LEAVES:
            shares = _DEEP_SHARES
    else:
        assert not isinstance(params.level_split, str)
        shares = tuple(params.level_split)[:levels]
    return [share / sum(shares) for share in shares]


def _layers(levels: int, params: EncodingParams) -> tuple[int, ...]:
    if params.layers == "auto":
        return (_DEFAULT_LAYERS,) * levels
    if isinstance(params.layers, int):
        return (params.layers,) * levels
    return tuple(params.layers)[:levels]


def _node_size(width: float, inputs: float, layers: int, is_leaf: bool) -> float:
    size = width * (inputs + 1) + (layers - 1) * width * (width + 1)
    return size + width + 1 if is_leaf else size


def _width_for(size: float, inputs: float, layers: int, is_leaf: bool) -> float:
    """Solve `_node_size` for the width."""
    a = float(layers - 1)
    b = inputs + 1 + (layers - 1) + is_leaf
    c = size - is_leaf
    if c <= 0:
        return 0.0
    if a == 0:
        return c / b
    return (math.sqrt(b * b + 4 * a * c) - b) / (2 * a)


def _level_widths(
    grid: tuple[int, int, int], layers: tuple[int, ...], shares: list[float], budget: float
) -> tuple[int, ...]:
    """Spread the budget over the levels.

    Widths are whole numbers, and small ones near the leaves: of the roundings of the ideal widths,
    take the one that comes nearest to the budget with a root near its own ideal.
    """
    levels = len(layers)
    if budget <= 0:
        return (1,) * levels
    axes = max(1, sum(n > 1 for n in grid))
    counts = [1]
    for split in axis_splits(grid, levels):
        counts.append(counts[-1] * math.prod(split))
    ideal: list[float] = []
    for level in range(levels):
        inputs = ideal[-1] if level else float(axes)
        size = shares[level] * budget / counts[level]
        width = _width_for(size, inputs, layers[level], level == levels - 1)
        ideal.append(min(float(MAX_WIDTH), max(1.0, width)))

    def total(widths: tuple[int, ...]) -> float:
        return sum(
            counts[level]
            * _node_size(
                widths[level],
                widths[level - 1] if level else axes,
                layers[level],
                level == levels - 1,
            )
            for level in range(levels)
        )

    best = (1,) * levels
    least = math.inf
    widest = min(MAX_WIDTH, math.ceil(_ROOT_GROWTH * ideal[0]))
    for below in product(*({math.floor(w), math.ceil(w)} for w in ideal[1:])):
        root = 1
        while root < widest and total((root + 1, *below)) <= budget:
            root += 1
        used = total((root, *below)) / budget
        unlike = (1 - used) + _ROOT_PENALTY * abs(math.log(root / ideal[0]))
        if used <= 1 and unlike < least:
            best, least = (root, *below), unlike
    return best


def allocate_nodes(shape: TreeShape, importance: list[np.ndarray]) -> TreeShape:
    """Redistribute each level's parameters over its nodes (intra-level allocation).

    Parameters
    ----------
    shape : TreeShape
        With equal nodes per level.
    importance : list of ndarray of float
        Per level, what each node's share is proportional to; from `node_importance`.

    Returns
    -------
    TreeShape
        With about as many parameters.

    References
    ----------
    TINC, arXiv 2211.06689, section 3.3 (intra-level allocation).
    """
    rows: list[tuple[int, ...]] = []
    for level, row in enumerate(shape.widths):
        if level == 0:
            rows.append(row)
            continue
        is_leaf = level == shape.levels - 1
        layers = shape.layers[level]
        parents = np.repeat(rows[-1], shape.children[level - 1])
        mean_inputs = float(np.mean(shape.widths[level - 1]))
        size = _node_size(row[0], mean_inputs, layers, is_leaf)
        share = importance[level] / max(float(importance[level].mean()), 1e-30)
        share = np.clip(share, 1 / _WIDTH_RANGE, _WIDTH_RANGE)
        share /= share.mean()
        widths = [
            _width_for(size * s, float(inputs), layers, is_leaf)
            for s, inputs in zip(share, parents, strict=True)
        ]
        rows.append(tuple(min(MAX_WIDTH, max(1, round(width))) for width in widths))
    return TreeShape(shape.grid, shape.layers, tuple(rows), shape.w0)


def node_importance(shape: TreeShape, volumes: np.ndarray, rule: str) -> list[np.ndarray]:
    """Measure how much each node's block asks for.

    Parameters
    ----------
    shape : TreeShape
    volumes : ndarray of float32
        Shape (volume, z, y, x), in [0, 1].
    rule : str
        "aoi": the number of voxels above `AOI_THRESHOLD`; "variance": their standard deviation.

    Returns
    -------
    list of ndarray of float64
        Per level, shape (node,).
    """
    importance = []
    ends = shape.leaf_origins + shape.leaf_extents
    for count in shape.node_counts:
        first = shape.leaf_origins.reshape(count, -1, 3).min(axis=1)
        last = ends.reshape(count, -1, 3).max(axis=1)
        blocks = [
            volumes[:, a[0] : b[0], a[1] : b[1], a[2] : b[2]]
            for a, b in zip(first, last, strict=True)
        ]
        if rule == "aoi":
            values = [float((block > AOI_THRESHOLD).sum()) for block in blocks]
        else:
            values = [float(block.std()) if block.size else 0.0 for block in blocks]
        importance.append(np.array(values))
    return importance
