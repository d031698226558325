"""Fetch the chunks of an array or of a shard, and decode what is selected of a level of them."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tinc_codec.errors import CorruptStreamError
from tinc_codec.inspection.access import inner_coordinates, naming
from tinc_codec.inspection.layout import ArrayLayout
from tinc_codec.levels.source import Source
from tinc_codec.model.levels import level_shape

if TYPE_CHECKING:
    from zarr.core.array_spec import ArraySpec

__all__ = ["read_selected"]


async def read_selected(
    source: Source,
    level: int,
    position: tuple[int, ...],
    selection: tuple[Any, ...],
    spec: ArraySpec,
    gate: asyncio.Semaphore,
) -> np.ndarray | None:
    """Decode what is selected of the level of an object: a chunk, or a shard.

    Parameters
    ----------
    source : Source
    level : int
        1 or more.
    position : tuple of int
        Of the object, in the grid of chunks (shards).
    selection : tuple
        As zarr selects within a chunk: slices, integers or arrays of them.
    spec : ArraySpec
        Of the level's array: shape of its chunks, and fill value.
    gate : asyncio.Semaphore
        Held during a request.

    Returns
    -------
    ndarray or None
        None where the object is missing.

    Raises
    ------
    FormatError
        If a stream or an index is damaged; names the chunk or shard.
    """
    layout = source.layout
    if layout.index is None:
        async with gate:
            data = await source.fetch(position, 0, None)
        if data is None:
            return None
        voxels = await asyncio.to_thread(_decode, layout, level, position, data)
        return np.array(voxels[selection])
    cells = level_shape(layout.chunk_shape, level)
    touched = _touched(selection, cells, layout.index.grid_shape)
    streams = await _fetch_streams(source, position, touched, gate)
    if streams is None:
        return None
    # What is neither selected nor beside it is never touched, and takes no memory.
    joined = np.empty(spec.shape, dtype=layout.dtype)

    async def fill(local: tuple[int, ...], data: bytes | None) -> None:
        place = tuple(slice(i * n, (i + 1) * n) for i, n in zip(local, cells, strict=True))
        if data is None:
            joined[place] = spec.fill_value
            return
        coordinates = inner_coordinates(layout, position, local)
        joined[place] = await asyncio.to_thread(_decode, layout, level, coordinates, data)

    await asyncio.gather(*itertools.starmap(fill, streams.items()))
    return np.array(joined[selection])


def _touched(
    selection: tuple[Any, ...], cells: tuple[int, ...], grid: tuple[int, ...]
) -> list[tuple[int, ...]]:
    """List the chunks of a shard that hold any of a selection."""
    flags = np.zeros(grid, dtype=bool)
    parts = tuple(
        slice(part.start // n, -(-part.stop // n)) if isinstance(part, slice) else part // n
        for part, n in zip(selection, cells, strict=True)
    )
    flags[parts] = True
    return [tuple(place) for place in np.argwhere(flags).tolist()]


async def _fetch_streams(
    source: Source,
    position: tuple[int, ...],
    wanted: Sequence[tuple[int, ...]],
    gate: asyncio.Semaphore,
) -> dict[tuple[int, ...], bytes | None] | None:
    """Fetch streams of a shard: its index and their ranges, or all of it where all are wanted.

    Returns
    -------
    dict of (local coordinates to bytes, None where missing), or None
        None where the shard is missing.
    """
    index = source.layout.index
    assert index is not None

    async def fetch(start: int, stop: int | None) -> bytes | None:
        async with gate:
            return await source.fetch(position, start, stop)

    whole = None
    if len(wanted) == int(np.prod(index.grid_shape)):
        whole = head = await fetch(0, None)
        if whole is not None:
            head = whole[: index.size_bytes] if index.at_start else whole[-index.size_bytes :]
    else:
        head = await fetch(*((0, index.size_bytes) if index.at_start else (-index.size_bytes, 0)))
    if head is None:
        return None
    with naming(f"shard {position} of {source.layout.name}"):
        places = {local: (first, first + n) for local, first, n in index.read(head)}

    async def stream(local: tuple[int, ...]) -> bytes | None:
        if local not in places:
            return None
        start, stop = places[local]
        return await fetch(start, stop) if whole is None else whole[start:stop]

    return dict(zip(wanted, await asyncio.gather(*map(stream, wanted)), strict=True))


def _decode(
    layout: ArrayLayout, level: int, coordinates: tuple[int, ...], data: bytes
) -> np.ndarray:
    """Decode a level of the chunk at some coordinates of the grid of (inner) chunks."""
    from tinc_codec.codec import decode_level

    extent = [
        max(1, min(n - i * c, c))
        for n, i, c in zip(layout.shape, coordinates, layout.chunk_shape, strict=True)
    ]
    stream = data[: len(data) - layout.trailing_bytes]
    with naming(f"chunk {coordinates} of {layout.name}"):
        voxels = decode_level(stream, level, extent)
        _check_decoded(voxels, level, layout)
    return voxels


def _check_decoded(voxels: np.ndarray, level: int, layout: ArrayLayout) -> None:
    expected = level_shape(layout.chunk_shape, level)
    if voxels.shape != expected or not np.can_cast(voxels.dtype, layout.dtype, "equiv"):
        raise CorruptStreamError(
            f"its level {level} has shape {voxels.shape} and dtype {voxels.dtype}, but those of "
            f"the array's chunks have {expected} and {layout.dtype}"
        )
