"""`sample`: an array's values at real coordinates, between its voxels."""

from __future__ import annotations

import asyncio
import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from tinc_codec import config
from tinc_codec.errors import ConfigError, CorruptStreamError
from tinc_codec.inspection.access import (
    Fetch,
    Stream,
    naming,
    open_stored,
    read_index,
    store_access,
)
from tinc_codec.inspection.layout import ArrayLayout, array_layout
from tinc_codec.model.opened import OpenChunk
from tinc_codec.model.region import render_region
from tinc_codec.volume.chunk import value_mapping

_SPATIAL_NDIM = 3
_CONCURRENT_REQUESTS = 64
_POINTS = 1 << 18
"""Points that are worked on at once: about 100 MB of corners, weights and the like."""


def sample(
    array: Any, coordinates: Any, *, storage_options: dict[str, Any] | None = None
) -> np.ndarray:
    """Evaluate an array at real coordinates.

    At the centres of voxels the values are the decoded voxels. Between them, what the features,
    the rounding to integers and corrections make of a voxel is interpolated linearly along each
    axis, while a tree is evaluated as the continuous function that it is. Where leaves of a tree or
    chunks meet, over the one voxel from centre to centre, the functions on both sides are
    blended with the same linear weights, so that values are continuous everywhere. They
    stay within the range of the chunks that take part, and are NaN where a voxel that has a share
    in them is.

    Parameters
    ----------
    array : zarr.Array, zarr.Group, str, path or store
        Stored with TINC, in the v2 or v3 format, plain or sharded; of a group, level 0 of its
        OME-Zarr image, or its only such array.
    coordinates : array-like of real numbers
        Shape (..., 3): (z, y, x) in voxels, integers at their centres; fewer for arrays of one or
        two axes. Within half a voxel of the outermost centres they count as on them.
    storage_options : dict, optional
        For the fsspec file system of a URL.

    Returns
    -------
    ndarray of float32, or float64 for float64 and 32-bit integers
        Shape (..., without the last axis); of arrays of more than three axes those before the
        spatial ones come first.

    Raises
    ------
    ConfigError
        If the coordinates are not of this shape, not finite, or outside of the array.
    UnsupportedDataError
        If the array is not stored with TINC, or with a compressor behind it.
    FormatError
        If a chunk that is needed is damaged; names it.
    """
    array = open_stored(array, storage_options)
    layout = array_layout(array)
    n_spatial = min(len(layout.shape), _SPATIAL_NDIM)
    lead = layout.shape[: len(layout.shape) - n_spatial]
    points = _checked(coordinates, layout.shape[len(lead) :])
    dtype = np.result_type(layout.dtype.newbyteorder("="), np.float32)
    out = np.empty((*lead, math.prod(points.shape[:-1])), dtype=dtype)
    flat = points.reshape(-1, n_spatial)
    for position in np.ndindex(*lead):
        for first in range(0, len(flat), _POINTS):
            part = slice(first, first + _POINTS)
            out[(*position, part)] = _sample_volume(array, layout, position, flat[part])
    return out.reshape((*lead, *points.shape[:-1]))


def _checked(coordinates: Any, shape: Sequence[int]) -> np.ndarray:
    points = np.asarray(coordinates)
    if points.dtype.kind not in "iuf" or points.ndim < 1 or points.shape[-1] != len(shape):
        raise ConfigError(
            f"coordinates of shape {points.shape} and dtype {points.dtype}: real numbers of shape "
            f"(..., {len(shape)}) are expected, one per spatial axis"
        )
    points = points.astype(np.float64)
    last = np.array(shape, dtype=np.float64) - 1
    # Also where they are NaN.
    outside = ~((points >= -0.5) & (points <= last + 0.5)).all(axis=-1)
    if outside.any():
        raise ConfigError(
            f"{np.count_nonzero(outside)} of the coordinates, {points[outside][0].tolist()} the "
            f"first of them, are outside of the array, -0.5 to {(last + 0.5).tolist()}"
        )
    return np.clip(points, 0.0, last)


def _sample_volume(
    array: Any, layout: ArrayLayout, position: tuple[int, ...], points: np.ndarray
) -> np.ndarray:
    """Sample one volume, that at some position along the leading axes, as float64."""
    n_lead = len(position)
    shape, chunks = layout.shape[n_lead:], layout.chunk_shape[n_lead:]
    base = np.minimum(np.floor(points).astype(np.int64), np.maximum(np.array(shape) - 2, 0))
    fraction = points - base
    steps = np.array(list(itertools.product((0, 1), repeat=len(shape))), dtype=np.int64)
    # All corners of all points: (corner, point), those without a share left out.
    weights = np.prod(np.where(steps[:, None] == 1, fraction, 1 - fraction), axis=-1)
    corner, number = np.nonzero(weights)
    voxels = base[number] + steps[corner]
    counts = [-(-n // c) for n, c in zip(shape, chunks, strict=True)]
    cells = np.ravel_multi_index(tuple((voxels // np.array(chunks)).T), counts)
    order = np.argsort(cells, kind="stable")
    found, starts = np.unique(cells[order], return_index=True)
    ends = [*starts[1:].tolist(), len(order)]
    outer = tuple(i // c for i, c in zip(position, layout.chunk_shape[:n_lead], strict=True))
    places = [(*outer, *map(int, np.unravel_index(cell, counts))) for cell in found.tolist()]
    streams = _fetch_streams(array, layout, places)
    out = np.zeros(len(points))
    for place, start, end in zip(places, starts.tolist(), ends, strict=True):
        part = order[start:end]
        origin = [i * c for i, c in zip(place, layout.chunk_shape, strict=True)]
        within = [i - o for i, o in zip(position, origin[:n_lead], strict=True)]
        inside = voxels[part] - origin[n_lead:]
        moved = points[number[part]] - origin[n_lead:]
        if streams[place] is None:
            values = np.full(len(part), _fill_value(array), dtype=np.float64)
        else:
            with naming(f"chunk {place} of {layout.name}"):
                values = _corner_values(streams[place], layout, within, inside, moved)
        with np.errstate(invalid="ignore"):
            np.add.at(out, number[part], weights[corner[part], number[part]] * values)
    return out


def _corner_values(
    stream: Any, layout: ArrayLayout, within: list[int], voxels: np.ndarray, points: np.ndarray
) -> np.ndarray:
    """Say what voxels of a chunk have to say at points near them: float64, one per pair.

    Parameters
    ----------
    stream : bytes
    layout : ArrayLayout
    within : list of int
        Which volume of the chunk, along the leading axes.
    voxels : ndarray of int64
        Shape (n, spatial axes), in the chunk.
    points : ndarray of float64
        Same shape.
    """
    from tinc_codec.codec import open_chunk

    n = len(stream) - layout.trailing_bytes
    with config.cpu_slots() as threads:
        chunk = open_chunk(stream[:n])
        info = chunk.info
        if info.shape != layout.chunk_shape or not np.can_cast(info.dtype, layout.dtype, "equiv"):
            raise CorruptStreamError(
                f"the stream has shape {info.shape} and dtype {info.dtype}, but the array's chunks "
                f"have {layout.chunk_shape} and {layout.dtype}"
            )
        first, last = voxels.min(axis=0), voxels.max(axis=0) + 1
        box = [slice(a, b) for a, b in zip(first.tolist(), last.tolist(), strict=True)]
        region = [slice(i, i + 1) for i in within] + box
        decoded = render_region(chunk, region, threads).reshape([s.stop - s.start for s in box])
        values = decoded[tuple((voxels - first).T)].astype(np.float64)
        if chunk.tree is None:
            return values
        return _moved_along_tree(chunk, within, voxels, points, values, threads)


def _moved_along_tree(
    chunk: OpenChunk,
    within: list[int],
    voxels: np.ndarray,
    points: np.ndarray,
    values: np.ndarray,
    threads: int,
) -> np.ndarray:
    """Add to the values of voxels by how much the tree's leaf there differs at the points."""
    from tinc_codec.model.points import evaluate_points, leaf_numbers

    info, tree = chunk.info, chunk.tree
    assert tree is not None
    held = (voxels < np.array(info.valid_extent[len(within) :])).all(axis=1)
    held &= np.array([i < n for i, n in zip(within, info.valid_extent, strict=False)]).all()
    # What is padding is no part of the tree.
    if not held.any():
        return values
    volume = int(np.ravel_multi_index(within, info.valid_extent[: len(within)])) if within else 0
    missing = ((0, 0), (_SPATIAL_NDIM - voxels.shape[1], 0))
    there, here = (np.pad(a[held], missing) for a in (points, voxels))
    leaves = leaf_numbers(tree.shape, tuple(here.T))
    both = evaluate_points(
        tree, volume, np.concatenate([there, here]), np.concatenate([leaves, leaves]), threads
    ).astype(np.float64)
    scale, _, span, value_min, value_max = value_mapping(info)
    with np.errstate(invalid="ignore"):
        moved = values[held] + (both[: len(there)] - both[len(there) :]) * (span / scale)
    finite = np.isfinite(values[held])
    # NaN is passed on, and neither it nor an infinity is clipped.
    out = values.copy()
    out[held] = np.where(finite, np.clip(moved, value_min, value_max), values[held])
    return out


def _fill_value(array: Any) -> Any:
    found = array.metadata.fill_value if hasattr(array, "metadata") else array.fill_value
    return 0 if found is None else found


def _fetch_streams(
    array: Any, layout: ArrayLayout, places: Sequence[tuple[int, ...]]
) -> dict[tuple[int, ...], bytes | None]:
    """Fetch the streams of chunks by their coordinates; None for those that are missing."""
    fetch, run = store_access(array)
    return dict(zip(places, run(_fetch_all(layout, fetch, places)), strict=True))


async def _fetch_all(
    layout: ArrayLayout, fetch: Fetch, places: Sequence[tuple[int, ...]]
) -> list[bytes | None]:
    gate = asyncio.Semaphore(_CONCURRENT_REQUESTS)

    async def one(stream: Stream | None) -> bytes | None:
        if stream is None:
            return None
        stop = None if stream.size_bytes is None else stream.offset + stream.size_bytes
        async with gate:
            return await fetch(stream.key, stream.offset, stop)

    async def index_of(shard: tuple[int, ...]) -> list[Stream]:
        async with gate:
            return await read_index(layout, fetch, shard) or []

    streams: dict[tuple[int, ...], Stream]
    if layout.index is None:
        streams = {place: Stream(place, place) for place in places}
    else:
        per_shard = layout.index.grid_shape
        shards = {tuple(i // n for i, n in zip(p, per_shard, strict=True)) for p in places}
        found = await asyncio.gather(*map(index_of, sorted(shards)))
        streams = {s.coordinates: s for s in itertools.chain.from_iterable(found)}
    return list(await asyncio.gather(*(one(streams.get(place)) for place in places)))
