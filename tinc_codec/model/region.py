"""An opened chunk -> the voxels of a box, bit for bit those that the whole chunk has there."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import pairwise, product
from typing import TYPE_CHECKING

import numpy as np

from tinc_codec.errors import ConfigError
from tinc_codec.model.evaluate import store_values, voxel_coordinates
from tinc_codec.model.opened import OpenChunk
from tinc_codec.model.render import Tree
from tinc_codec.volume.chunk import (
    SPATIAL_NDIM,
    ChunkInfo,
    Ranges,
    allocate,
    fill_constant,
    finish,
    valid_view,
)

if TYPE_CHECKING:
    from tinc_codec.quantise.corrections import Corrections

__all__ = ["check_region", "render_region"]

_VOXELS_PER_THREAD = 1 << 16


def check_region(region: Sequence[slice], shape: tuple[int, ...]) -> tuple[slice, ...]:
    """Return a region with starts and stops that lie within a shape, as NumPy takes slices.

    Raises
    ------
    ConfigError
        If it is not one slice of step 1 per axis.
    """
    region = tuple(region)
    if len(region) != len(shape) or not all(isinstance(part, slice) for part in region):
        raise ConfigError(f"region={region!r} is not one slice for each of {len(shape)} axes")
    bounds = []
    for part, n in zip(region, shape, strict=True):
        start, stop, step = part.indices(n)
        if step != 1:
            raise ConfigError(f"region={region!r} has a step of {step}, only 1 is allowed")
        bounds.append(slice(start, max(start, stop)))
    return tuple(bounds)


def render_region(chunk: OpenChunk, region: Sequence[slice], threads: int) -> np.ndarray:
    """Decode a box of a chunk on the CPU.

    Parameters
    ----------
    chunk : OpenChunk
    region : sequence of slice
        One per axis of the chunk, of step 1; may be empty or reach into the padding.
    threads : int

    Returns
    -------
    ndarray
        Shape of the region; dtype, byte order and memory order of the chunk. The bits are those
        that decoding the whole chunk on the CPU gives.

    Raises
    ------
    ConfigError
        See `check_region`.
    """
    info = chunk.info
    region = check_region(region, info.shape)
    box = replace(
        info,
        shape=tuple(part.stop - part.start for part in region),
        valid_extent=tuple(
            max(0, min(part.stop, n) - part.start)
            for part, n in zip(region, info.valid_extent, strict=True)
        ),
    )
    out = allocate(box)
    if 0 in box.valid_extent:
        return finish(out, box, None)
    valid = tuple(
        slice(part.start, part.start + n) for part, n in zip(region, box.valid_extent, strict=True)
    )
    classes = None if chunk.classes is None else chunk.classes[valid]
    if chunk.is_constant:
        fill_constant(out, box)
        return finish(out, box, classes)
    view = valid_view(out, box)
    volumes, ranges = _place(info, valid)
    if chunk.lattice is not None:
        view[...] = chunk.lattice.box(volumes, ranges, threads)
        return finish(out, box, classes, view)
    store_values(_filtered(chunk, volumes, ranges, threads), box, view, threads)
    if chunk.corrections is not None:
        from tinc_codec.quantise.corrections import apply_corrections

        inside = _corrections_inside(chunk.corrections, info.batched_shape, volumes, ranges)
        apply_corrections(view, inside, info)
    return finish(out, box, classes, view)


def _place(info: ChunkInfo, valid: tuple[slice, ...]) -> tuple[np.ndarray, Ranges]:
    """Say which volumes (int64, ascending) and which ranges along z, y, x some valid voxels are."""
    n_lead = max(0, len(valid) - SPATIAL_NDIM)
    numbers = np.arange(info.batched_shape[0]).reshape(info.valid_extent[:n_lead])
    spatial = [(part.start, part.stop) for part in valid[n_lead:]]
    z, y, x = [(0, 1)] * (SPATIAL_NDIM - len(spatial)) + spatial
    return numbers[valid[:n_lead]].reshape(-1), (z, y, x)


def _filtered(chunk: OpenChunk, volumes: np.ndarray, ranges: Ranges, threads: int) -> np.ndarray:
    """Evaluate a box as `render.model_values` does: t as float32 [volume, z, y, x]."""
    if chunk.postfilter is None:
        return _values(chunk, volumes, ranges, threads)
    from tinc_codec.model.filtering import apply_postfilter
    from tinc_codec.model.postfilter import REACH

    grid = chunk.info.batched_shape[1:]
    z, y, x = (
        (max(0, start - REACH), min(n, stop + REACH))
        for (start, stop), n in zip(ranges, grid, strict=True)
    )
    inner = [
        slice(start - first, stop - first)
        for (start, stop), (first, _) in zip(ranges, (z, y, x), strict=True)
    ]
    wider = _values(chunk, volumes, (z, y, x), threads)
    return apply_postfilter(wider, chunk.postfilter, threads, inner)


def _values(chunk: OpenChunk, volumes: np.ndarray, ranges: Ranges, threads: int) -> np.ndarray:
    """Evaluate a box before its post-filter: t as float32 [volume, z, y, x], not clipped."""
    sizes = tuple(stop - start for start, stop in ranges)
    # A leaf's kernel writes where its voxels lie in the whole grid. With room in front for as many
    # elements as the box's corner is away, voxel `corner` of that grid is the box's first; the
    # room is never touched.
    strides = (sizes[1] * sizes[2], sizes[2], 1)
    corner = 0
    if chunk.tree is not None:
        corner = sum(start * step for (start, _), step in zip(ranges, strides, strict=True))
    voxels = sizes[0] * strides[0]
    flat = np.zeros(corner + len(volumes) * voxels, np.float32)
    values = flat[corner:].reshape(len(volumes), *sizes)
    if chunk.features is not None:
        for run in _runs(volumes):
            values[run] = chunk.features.box(volumes[run].tolist(), ranges, threads)
    if chunk.tree is not None:
        targets = [
            np.lib.stride_tricks.as_strided(
                flat[number * voxels :],
                shape=tuple(stop for _, stop in ranges),
                strides=tuple(flat.itemsize * step for step in strides),
            )
            for number in range(len(volumes))
        ]
        _add_leaves(chunk.tree, volumes, ranges, targets, threads)
    return values


def _runs(volumes: np.ndarray) -> list[slice]:
    """Cut ascending numbers where one is left out."""
    ends = [0, *(np.flatnonzero(np.diff(volumes) != 1) + 1).tolist(), len(volumes)]
    return [slice(*pair) for pair in pairwise(ends)]


def _add_leaves(
    tree: Tree, volumes: np.ndarray, ranges: Ranges, targets: list[np.ndarray], threads: int
) -> None:
    """Add what a tree says within some ranges: whole leaves as far as they lie in them.

    Every voxel is computed by itself, in an order of operations that does not depend on the
    others, so that a part of a leaf has the bits of the whole.
    """
    from tinc_codec.model import fused

    shape = tree.shape
    low, high = np.array(ranges).T
    starts = np.maximum(shape.leaf_origins, low)
    extents = np.minimum(shape.leaf_origins + shape.leaf_extents, high) - starts
    touched = (extents > 0).all(axis=1)
    paths, starts, extents = shape.leaf_paths[touched], starts[touched], extents[touched]

    def work(volume: int, target: np.ndarray, first: int, last: int) -> None:
        offset, gain = tree.scaling[volume]
        fused.evaluate_leaves(
            tree.parameters[volume], paths, starts, extents, voxel_coordinates(shape),
            np.array(shape.axes), np.float32(shape.w0), shape.max_width, first, last,
            np.float32(gain), np.float32(offset), None, False, target,
        )  # fmt: skip

    voxels = len(volumes) * int(extents.prod(axis=1).sum())
    workers = max(1, min(threads, voxels // _VOXELS_PER_THREAD))
    shares = min(len(paths), 4 * workers) if workers > 1 else 1
    bounds = pairwise(len(paths) * i // shares for i in range(shares + 1))
    jobs = [
        (volume, target, *share)
        for (volume, target), share in product(
            zip(volumes.tolist(), targets, strict=True), list(bounds)
        )
    ]
    if workers == 1:
        for job in jobs:
            work(*job)
        return
    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(lambda job: work(*job), jobs))


def _corrections_inside(
    corrections: "Corrections",
    shape: tuple[int, int, int, int],
    volumes: np.ndarray,
    ranges: Ranges,
) -> "Corrections":
    """Select the corrections of a box, with positions counted in the box."""
    starts, stops = zip(*ranges, strict=True)
    # Positions ascend: only those from the box's first voxel to its last need a look.
    first = np.ravel_multi_index((volumes[0], *starts), shape)
    last = np.ravel_multi_index((volumes[-1], *(stop - 1 for stop in stops)), shape)
    begin, end = np.searchsorted(corrections.positions, [first, last + 1])
    volume, *places = np.unravel_index(corrections.positions[begin:end], shape)
    inside = np.isin(volume, volumes)
    for place, (start, stop) in zip(places, ranges, strict=True):
        inside &= (place >= start) & (place < stop)
    positions = np.ravel_multi_index(
        (
            np.searchsorted(volumes, volume[inside]),
            *(place[inside] - start for place, start in zip(places, starts, strict=True)),
        ),
        (len(volumes), *(stop - start for start, stop in ranges)),
    )
    multiples = corrections.multiples[begin:end]
    n_before = int(np.count_nonzero(corrections.multiples[:begin] == 0))
    kept = np.flatnonzero(inside[multiples == 0]) + n_before
    return replace(
        corrections,
        positions=positions,
        multiples=multiples[inside],
        absolutes=corrections.absolutes[kept],
    )
