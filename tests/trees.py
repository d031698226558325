"""Trees for tests: hypothesis strategies of shapes, and parameters that behave like fitted ones."""

import math

import numpy as np
from hypothesis import strategies as st

from tinc_codec.fit.initialise import initial_parameters
from tinc_codec.fit.sampler import LatticeSampler
from tinc_codec.model.octree_mlp import MAX_LEVELS, TreeShape, axis_splits
from tinc_codec.volume.chunk import ChunkInfo
from tinc_codec.volume.partition import to_blocks

UNIT_RANGE = (0.0, 1.0)
SHAPE = TreeShape((12, 9, 10), (2, 1), ((6,), (3, 4, 2, 5, 3, 3, 1, 4)), 10.0)


@st.composite
def grids(draw: st.DrawFn, max_voxels: int = 3000) -> tuple[int, int, int]:
    """Voxels per axis: lines, planes, volumes, odd and flat ones."""
    kind = draw(st.sampled_from(["volume", "plane", "line", "any"]))
    if kind == "line":
        sizes = [1, 1, draw(st.integers(1, 300))]
    elif kind == "plane":
        sizes = [1, draw(st.integers(1, 60)), draw(st.integers(1, 50))]
    elif kind == "volume":
        sizes = [draw(st.integers(2, 20)) for _ in range(3)]
    else:
        sizes = draw(st.permutations([draw(st.integers(1, n)) for n in (90, 9, 4)]))
    while math.prod(sizes) > max_voxels:
        sizes[int(np.argmax(sizes))] //= 2
    return sizes[0], sizes[1], sizes[2]


@st.composite
def tree_shapes(
    draw: st.DrawFn, max_voxels: int = 3000, max_width: int = 9, max_layers: int = 3
) -> TreeShape:
    """Trees with equal and unequal nodes."""
    grid = draw(grids(max_voxels))
    levels = draw(st.integers(1, len(axis_splits(grid, MAX_LEVELS)) + 1))
    layers = tuple(draw(st.integers(1, max_layers)) for _ in range(levels))
    counts = [1]
    for split in axis_splits(grid, levels):
        counts.append(counts[-1] * math.prod(split))
    widths = []
    for count in counts:
        equal = draw(st.integers(1, max_width))
        row = (equal,) * count
        if draw(st.booleans()):
            rng = np.random.default_rng(draw(st.integers(0, 99)))
            row = tuple(rng.integers(1, max_width, count, endpoint=True).tolist())
        widths.append(row)
    w0 = draw(st.sampled_from([1.0, 7.5, 15.0, 30.0]))
    return TreeShape(grid, layers, tuple(widths), w0)


def some_parameters(shape: TreeShape, volumes: int = 1, seed: int = 0) -> np.ndarray:
    """Parameters [volume, parameter] that spread over the network's range."""
    return np.stack([initial_parameters(shape, seed + volume) for volume in range(volumes)])


def info_for(
    dtype: str, shape: tuple[int, ...], limits: tuple[float, float] = UNIT_RANGE, order: str = "C"
) -> ChunkInfo:
    """A chunk without padding whose values span `limits`."""
    scalar = np.dtype(dtype).newbyteorder("=").type
    return ChunkInfo(
        np.dtype(dtype), order, shape, shape, None, scalar(limits[0]), scalar(limits[1])
    )


def blocks_of(shape: TreeShape, volumes: np.ndarray) -> np.ndarray:
    """Volumes [model, z, y, x] as blocks [model, leaf, voxel]."""
    return to_blocks(volumes, shape.leaf_origins, shape.leaf_extents, math.prod(shape.leaf_size))


def some_blocks(shape: TreeShape, models: int = 1, seed: int = 0) -> np.ndarray:
    """Noise to fit."""
    rng = np.random.default_rng(seed)
    return blocks_of(shape, rng.standard_normal((models, *shape.grid)).astype(np.float32))


def some_weights(shape: TreeShape, models: int = 1, seed: int = 0) -> np.ndarray:
    """A mask in which most voxels count."""
    rng = np.random.default_rng(seed)
    return blocks_of(shape, (rng.random((models, *shape.grid)) < 0.6).astype(np.uint8))


def draw(shape: TreeShape, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Starts and strides of one training step."""
    return LatticeSampler(shape.leaf_extents.prod(axis=1), seed).draw()
