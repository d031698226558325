"""Shape of a TINC tree: its blocks, its layers, and where each parameter lies."""

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from tinc_codec.errors import CorruptStreamError

MAX_LEVELS = 6
MAX_LAYERS = 8
MAX_WIDTH = 255
MAX_W0 = 1000.0
MIN_LEAF = 4
"""An axis is split no further once its blocks would get shorter than this, in voxels."""


def axis_splits(grid: tuple[int, int, int], levels: int) -> list[tuple[int, int, int]]:
    """Say along which axes the nodes of each level are halved.

    An axis is halved where it is longer than half the node's longest axis, so that blocks stay
    near cubes: an octree in a cube, a quadtree in a plane, a binary tree along a line.

    Parameters
    ----------
    grid : tuple of int
        Voxels per axis (z, y, x).
    levels : int
        Levels of nodes, the root included.

    Returns
    -------
    list of tuple of int
        Per level below the root, 1 or 2 per axis. It ends early where blocks get too small.

    References
    ----------
    `docs/format.md` §7
    """
    counts = [1, 1, 1]
    splits = []
    for _ in range(levels - 1):
        sizes = [-(-n // c) for n, c in zip(grid, counts, strict=True)]
        longest = max(sizes)
        split = tuple(2 if 2 * s > longest and s >= 2 * MIN_LEAF else 1 for s in sizes)
        if split == (1, 1, 1):
            break
        counts = [c * s for c, s in zip(counts, split, strict=True)]
        splits.append((split[0], split[1], split[2]))
    return splits


@dataclass(frozen=True)
class Tensor:
    """One kind of parameter of one layer, over all nodes of a level.

    Attributes
    ----------
    level, layer : int
        `layer` counts within the node; the linear head of the leaves follows their last layer.
    kind : str
        "weight" or "bias".
    start, stop : int
        Its range in a volume's parameter vector; node after node, rows (outputs) first.
    """

    level: int
    layer: int
    kind: str
    start: int
    stop: int


@dataclass(frozen=True)
class TreeShape:
    """Everything about a tree but the values of its parameters.

    Every node owns `layers[level]` sine layers, sin(w0 (W x + b)), as wide as the node. The root
    takes the voxel's coordinates in [-1, 1] (one per axis longer than 1), any other node its
    parent's output; leaves end in a linear head.

    Attributes
    ----------
    grid : tuple of int
        Voxels per axis (z, y, x).
    layers : tuple of int
        Sine layers per node, one entry per level; its length is the number of levels.
    widths : tuple of tuple of int
        Per level, the width of each node, in Morton order (children of a node together, z
        slowest).
    w0 : float
        Frequency factor of all sine layers, a float32 value.

    References
    ----------
    TINC, arXiv 2211.06689, section 3; `docs/format.md` §7.
    """

    grid: tuple[int, int, int]
    layers: tuple[int, ...]
    widths: tuple[tuple[int, ...], ...]
    w0: float

    def __post_init__(self) -> None:
        if not 1 <= len(self.layers) <= MAX_LEVELS:
            raise CorruptStreamError(f"levels: {len(self.layers)} not in 1 to {MAX_LEVELS}")
        if len(self.splits) != len(self.layers) - 1:
            raise CorruptStreamError(
                f"levels: {len(self.layers)} are too many for a grid of {self.grid}"
            )
        if not all(1 <= n <= MAX_LAYERS for n in self.layers):
            raise CorruptStreamError(f"layers: {self.layers} not in 1 to {MAX_LAYERS}")
        if [len(row) for row in self.widths] != self.node_counts:
            raise CorruptStreamError("widths: not one per node")
        if not all(min(row) >= 1 and max(row) <= MAX_WIDTH for row in self.widths):
            raise CorruptStreamError(f"widths: not in 1 to {MAX_WIDTH}")
        if not 0 < self.w0 <= MAX_W0:
            raise CorruptStreamError(f"w0: {self.w0} is not a number in (0, {MAX_W0:g}]")

    @property
    def levels(self) -> int:
        """Levels of nodes, the root included."""
        return len(self.layers)

    @cached_property
    def splits(self) -> list[tuple[int, int, int]]:
        """See `axis_splits`."""
        return axis_splits(self.grid, len(self.layers))

    @property
    def children(self) -> list[int]:
        """Children per node, one entry per level but the last."""
        return [math.prod(split) for split in self.splits]

    @property
    def node_counts(self) -> list[int]:
        """Nodes per level."""
        return [math.prod(self.children[:level]) for level in range(len(self.layers))]

    @property
    def leaf_count(self) -> int:
        """Number of leaves."""
        return math.prod(self.children)

    @property
    def leaf_size(self) -> tuple[int, int, int]:
        """Voxels per leaf and axis; the last leaf of an axis may reach beyond the grid."""
        z, y, x = (
            -(-n // math.prod(split[axis] for split in self.splits))
            for axis, n in enumerate(self.grid)
        )
        return z, y, x

    @cached_property
    def axes(self) -> tuple[int, ...]:
        """Axes whose coordinates the root takes; axis x where the grid is a single voxel."""
        return tuple(axis for axis in range(3) if self.grid[axis] > 1) or (2,)

    @cached_property
    def coordinate_map(self) -> np.ndarray:
        """float32 [2, 3]: step and shift; voxel i of an axis lies at i * step - shift.

        The grid is centred and its longest axis spans [-1, 1]; a voxel has the same size along
        every axis, so that a flat chunk is not stretched into a cube.
        """
        step = 2.0 / max(1, max(self.grid) - 1)
        shifts = [(n - 1) / 2 * step for n in self.grid]
        return np.array([[step] * 3, shifts], dtype=np.float32)

    @cached_property
    def leaf_origins(self) -> np.ndarray:
        """int64 [leaf, 3]: each leaf's first voxel, in Morton order."""
        origins = np.zeros((1, 3), dtype=np.int64)
        for split in self.splits:
            offsets = np.stack(np.meshgrid(*map(np.arange, split), indexing="ij"), -1)
            origins = origins[:, None] * np.array(split) + offsets.reshape(1, -1, 3)
            origins = origins.reshape(-1, 3)
        return origins * np.array(self.leaf_size)

    @cached_property
    def leaf_extents(self) -> np.ndarray:
        """int64 [leaf, 3]: voxels of each leaf within the grid; an axis of 0 is an empty leaf."""
        room = np.array(self.grid) - self.leaf_origins
        return np.clip(room, 0, np.array(self.leaf_size))

    @cached_property
    def _layout(self) -> tuple[list[Tensor], list[np.ndarray], int]:
        """Tensors; per level int64 [node, layer, (weight, bias, outputs, inputs)]; parameters."""
        tensors: list[Tensor] = []
        tables = []
        position = 0
        for level, count in enumerate(self.node_counts):
            width = np.array(self.widths[level], dtype=np.int64)
            if level == 0:
                inputs = np.full(count, len(self.axes), dtype=np.int64)
            else:
                inputs = np.repeat(
                    np.array(self.widths[level - 1], dtype=np.int64), self.children[level - 1]
                )
            is_leaf = level == self.levels - 1
            table = np.empty((count, self.layers[level] + is_leaf, 4), dtype=np.int64)
            for layer in range(table.shape[1]):
                outputs = width if layer < self.layers[level] else np.ones_like(width)
                for column, (kind, sizes) in enumerate(
                    (("weight", outputs * inputs), ("bias", outputs))
                ):
                    ends = position + np.cumsum(sizes)
                    table[:, layer, column] = ends - sizes
                    tensors.append(Tensor(level, layer, kind, position, int(ends[-1])))
                    position = int(ends[-1])
                table[:, layer, 2], table[:, layer, 3] = outputs, inputs
                inputs = outputs
            tables.append(table)
        return tensors, tables, position

    @property
    def tensors(self) -> list[Tensor]:
        """All tensors, in the order of the parameter vector: root to leaves, weights first."""
        return self._layout[0]

    @property
    def parameter_count(self) -> int:
        """Parameters of one volume."""
        return self._layout[2]

    @property
    def node_tables(self) -> list[np.ndarray]:
        """Per level int64 [node, layer, 4]: offsets of weight and bias, outputs, inputs."""
        return self._layout[1]

    @cached_property
    def leaf_paths(self) -> np.ndarray:
        """int64 [leaf, layer, 4]: the rows of `node_tables` from the root to each leaf's head."""
        rows = [
            np.repeat(table, self.leaf_count // len(table), axis=0) for table in self.node_tables
        ]
        return np.ascontiguousarray(np.concatenate(rows, axis=1))

    @property
    def max_width(self) -> int:
        """Widest input or output of any layer."""
        return max(3, max(max(row) for row in self.widths))

    @property
    def multiply_adds(self) -> float:
        """Multiply-adds per voxel, averaged over the leaves."""
        return float((self.leaf_paths[:, :, 2] * self.leaf_paths[:, :, 3]).sum() / self.leaf_count)


def uniform_widths(
    grid: tuple[int, int, int], levels: int, widths: tuple[int, ...]
) -> tuple[tuple[int, ...], ...]:
    """Give all nodes of a level the same width.

    Parameters
    ----------
    grid : tuple of int
    levels : int
        No more than `axis_splits` allows.
    widths : tuple of int
        One per level.
    """
    counts = [1]
    for split in axis_splits(grid, levels):
        counts.append(counts[-1] * math.prod(split))
    return tuple((width,) * count for width, count in zip(widths, counts, strict=True))
