"""Parameters -> voxels, on the CPU or on a GPU, in the chunk's dtype."""

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from itertools import pairwise, product
from typing import Any

import numpy as np

from tinc_codec.model.octree_mlp import TreeShape
from tinc_codec.volume.chunk import ChunkInfo, value_mapping

_Boxes = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Each leaf's origin and extent in an array, and the coordinates of the array's positions."""

_SLAB_VALUES = 1 << 26
"""Activations held on a GPU at once, in values: 256 MiB."""


def evaluate(
    shape: TreeShape,
    parameters: np.ndarray,
    scaling: np.ndarray,
    info: ChunkInfo,
    out: np.ndarray,
    threads: int,
) -> None:
    """Evaluate all volumes of a chunk at every voxel, on the CPU.

    Parameters
    ----------
    shape : TreeShape
    parameters : ndarray of float32
        Shape (volume, parameter).
    scaling : ndarray of float32
        Shape (volume, 2): offset and gain; a voxel is offset + gain * f in [0, 1], clipped.
    info : ChunkInfo
        Says what 0 and 1 stand for.
    out : ndarray
        Shape (volume, z, y, x), `info.dtype`, any strides.
    threads : int
    """
    mapping, is_integer = value_mapping(info), info.dtype.kind in "iu"
    _through_native(
        out,
        lambda target: _run_leaves(
            shape, _voxel_boxes(shape), parameters, scaling, target, threads, mapping, is_integer
        ),
    )


def add_values(
    shape: TreeShape, parameters: np.ndarray, scaling: np.ndarray, values: np.ndarray, threads: int
) -> None:
    """Add what a tree says of t, not clipped, to float32 values [volume, z, y, x], on the CPU."""
    _run_leaves(shape, _voxel_boxes(shape), parameters, scaling, values, threads)


def evaluate_grid(
    shape: TreeShape,
    parameters: np.ndarray,
    scaling: np.ndarray,
    places: Sequence[np.ndarray],
    threads: int,
) -> np.ndarray:
    """Evaluate all volumes on a grid of places, which need not be voxels, on the CPU.

    Parameters
    ----------
    shape, parameters, scaling, threads
        As for `evaluate`.
    places : three arrays
        Ascending, along z, y, x in voxels: 0 is the centre of the first. Between voxels a place
        belongs to the nearest one's leaf, and all are nearest to one of the grid.

    Returns
    -------
    ndarray of float32
        Shape (volume, *numbers of places): t, not clipped.
    """
    from tinc_codec.model import fused

    table = np.zeros((3, max(map(len, places))), np.float32)
    first, stop = shape.leaf_origins, shape.leaf_origins + shape.leaf_extents
    starts, stops = np.empty_like(first), np.empty_like(first)
    for axis, line in enumerate(places):
        table[axis, : len(line)] = line
        nearest = np.floor(np.asarray(line) + 0.5)
        starts[:, axis] = np.searchsorted(nearest, first[:, axis])
        stops[:, axis] = np.searchsorted(nearest, stop[:, axis])
    boxes = starts, stops - starts, fused.coordinate_table(table, shape.coordinate_map)
    out = np.zeros((len(parameters), *map(len, places)), np.float32)
    _run_leaves(shape, boxes, parameters, scaling, out, threads)
    return out


def store_values(values: np.ndarray, info: ChunkInfo, out: np.ndarray, threads: int) -> None:
    """Map t to the data's values on the CPU: twin of `volume.chunk.denormalise`, compiled.

    Parameters
    ----------
    values : ndarray of float32
        Shape (volume, z, y, x).
    info : ChunkInfo
    out : ndarray
        Same shape, `info.dtype`, any strides.
    threads : int
    """
    from tinc_codec.model import fused

    mapping, is_integer = value_mapping(info), info.dtype.kind in "iu"
    if values.shape[3] < _SHORT and out.flags.c_contiguous:
        # Rows of few voxels cost more than their voxels.
        merged = len(values), 1, values.shape[1], math.prod(values.shape[2:])
        values, out = np.ascontiguousarray(values).reshape(merged), out.reshape(merged)
    rows = math.prod(values.shape[:3])

    def fill(target: np.ndarray) -> None:
        def work(first: int, last: int) -> None:
            fused.store_rows(values, mapping, is_integer, first, last, target)

        shares = min(threads, max(1, values.size // _SHARE_VOXELS))
        bounds = [rows * i // shares for i in range(shares + 1)]
        map_jobs(work, list(pairwise(bounds)), threads)

    _through_native(out, fill)


_SHARE_VOXELS = 1 << 19
_SHORT = 16
"""Voxels along x below which the rows of a plane are stored as one."""


def _through_native(out: np.ndarray, fill: Callable[[np.ndarray], None]) -> None:
    """Fill an array through one of a dtype that the compiler knows."""
    target, native = out, out.dtype.newbyteorder("=")
    if not out.dtype.isnative or native == np.float16:
        # The compiler knows neither; from float64, a float16 is rounded once.
        target = np.empty(out.shape, dtype=np.float64 if native == np.float16 else native)
    fill(target)
    if target is not out:
        np.copyto(out, target, casting="same_kind")


def map_jobs(work: Callable[..., None], jobs: list[tuple[Any, ...]], threads: int) -> None:
    """Call `work` with each job's arguments, on as many threads as there may be."""
    if threads > 1 and len(jobs) > 1:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(lambda job: work(*job), jobs))
    else:
        for job in jobs:
            work(*job)


def _run_leaves(
    shape: TreeShape,
    boxes: _Boxes,
    parameters: np.ndarray,
    scaling: np.ndarray,
    target: np.ndarray,
    threads: int,
    mapping: tuple[float, float, float, float, float] | None = None,
    is_integer: bool = False,
) -> None:
    """Evaluate every leaf in its box of target; as for `fused.evaluate_leaves`."""
    from tinc_codec.model import fused

    shares = max(1, min(shape.leaf_count, 4 * threads)) if threads > 1 else 1
    bounds = [shape.leaf_count * i // shares for i in range(shares + 1)]

    def work(volume: int, first: int, last: int) -> None:
        offset, gain = scaling[volume]
        fused.evaluate_leaves(
            parameters[volume], shape.leaf_paths, *boxes, np.array(shape.axes),
            np.float32(shape.w0), shape.max_width, first, last, np.float32(gain),
            np.float32(offset), mapping, is_integer, target[volume],
        )  # fmt: skip

    jobs = [
        (volume, *pair) for volume, pair in product(range(len(parameters)), list(pairwise(bounds)))
    ]
    map_jobs(work, jobs, threads)


def _voxel_boxes(shape: TreeShape) -> _Boxes:
    return shape.leaf_origins, shape.leaf_extents, voxel_coordinates(shape)


@lru_cache(maxsize=32)
def voxel_coordinates(shape: TreeShape) -> np.ndarray:
    """Give the coordinates of all voxels, as `fused.evaluate_leaves` takes them; only read."""
    from tinc_codec.model import fused

    places = np.tile(np.arange(max(shape.grid), dtype=np.float32), (3, 1))
    return np.asarray(fused.coordinate_table(places, shape.coordinate_map))


def evaluate_torch(
    shape: TreeShape, parameters: np.ndarray, scaling: np.ndarray, device: str
) -> Any:
    """Evaluate many chunks of one shape on a torch device.

    Parameters
    ----------
    shape : TreeShape
    parameters : ndarray of float32
        Shape (chunk, volume, parameter).
    scaling : ndarray of float32
        Shape (chunk, volume, 2).
    device : str

    Returns
    -------
    torch.Tensor of float32
        Shape (chunk, volume, z, y, x), on the device; in [0, 1] up to clipping.
    """
    import torch

    from tinc_codec.model.torch_tree import TorchTree

    chunks, volumes = parameters.shape[:2]
    flat = torch.from_numpy(parameters.reshape(chunks * volumes, -1)).to(device)
    affine = torch.from_numpy(scaling.reshape(chunks * volumes, 2, 1, 1)).to(device)
    tree = TorchTree(shape, device)
    size = torch.tensor(shape.leaf_size, device=device)
    positions = torch.stack(
        torch.meshgrid(*(torch.arange(n, device=device) for n in shape.leaf_size), indexing="ij"),
        dim=-1,
    ).reshape(-1, 3)
    origins = torch.from_numpy(shape.leaf_origins).to(device)
    step, shift = torch.from_numpy(shape.coordinate_map).to(device)
    absolute = origins[:, None] + positions
    coordinates = (absolute * step - shift)[:, :, list(shape.axes)]
    padded = [int(n) for n in (origins.amax(dim=0) + size).tolist()]
    where = (absolute[..., 0] * padded[1] + absolute[..., 1]) * padded[2] + absolute[..., 2]
    out = torch.empty(len(flat), padded[0] * padded[1] * padded[2], device=device)
    per_model = max(1, coordinates.shape[0] * coordinates.shape[1] * shape.max_width)
    models = max(1, _SLAB_VALUES // per_model)
    with torch.no_grad():
        for first in range(0, len(flat), models):
            part = slice(first, first + models)
            values = affine[part, 0] + affine[part, 1] * tree(flat[part], coordinates)
            out[part, where.reshape(-1)] = values.reshape(len(values), -1)
    z, y, x = shape.grid
    return out.reshape(chunks, volumes, *padded)[:, :, :z, :y, :x]
