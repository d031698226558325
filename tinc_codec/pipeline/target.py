"""How a volume is laid out in the destination: its chunks, shards, keys and what encodes them."""

import itertools
import math
import numbers
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tinc_codec.errors import ConfigError
from tinc_codec.params import EncodingParams

__all__ = ["ARRAY", "Position", "Target", "blocks", "choose_layout"]

ARRAY = "0"
"""Name of the array in its group."""

Position = tuple[int, ...]
"""Coordinates in a grid of chunks or shards."""

_CHUNK_EDGE = 128
_CHUNK_STEP = 8
_SPATIAL_NDIM = 3
_MAX_LEVELS = 16


@dataclass(frozen=True, kw_only=True)
class Target:
    """An array that is going to be written.

    Parameters
    ----------
    shape : tuple of int
    dtype : str
        Of NumPy, in the byte order of this machine.
    chunks : tuple of int
    shards : tuple of int, or None
        A multiple of `chunks` on every axis.
    zarr_format : {2, 3}
    levels : int
        Levels of resolution beside the full one.
    params : EncodingParams
    """

    shape: tuple[int, ...]
    dtype: str
    chunks: tuple[int, ...]
    shards: tuple[int, ...] | None
    zarr_format: int
    levels: int
    params: EncodingParams

    @property
    def object_shape(self) -> tuple[int, ...]:
        """Voxels of what is stored under one key: a shard, or a chunk where there are none."""
        return self.shards or self.chunks

    @property
    def grid_shape(self) -> tuple[int, ...]:
        """Keys per axis."""
        return tuple(-(-n // c) for n, c in zip(self.shape, self.object_shape, strict=True))

    @property
    def inner_grid(self) -> tuple[int, ...]:
        """Chunks per axis of a shard; all 1 where there are none."""
        return tuple(s // c for s, c in zip(self.object_shape, self.chunks, strict=True))

    @property
    def fill_value(self) -> float | int:
        """What a chunk that is missing reads as: NaN where the dtype has it, else 0."""
        return math.nan if np.dtype(self.dtype).kind == "f" else 0

    @property
    def chunk_bytes(self) -> int:
        """Size of a decoded chunk."""
        return math.prod(self.chunks) * np.dtype(self.dtype).itemsize

    @property
    def prefix(self) -> str:
        """What the keys of all chunks begin with."""
        return f"{ARRAY}/c/" if self.zarr_format == 3 else f"{ARRAY}/"

    def key(self, position: Position) -> str:
        """Return the key of a chunk or shard in the store of the group."""
        return self.prefix + "/".join(map(str, position))

    def position(self, key: str) -> Position | None:
        """Return which chunk or shard a key is of; None for every other key."""
        parts = key.removeprefix(self.prefix).split("/")
        if not key.startswith(self.prefix) or len(parts) != len(self.shape):
            return None
        # A number that is written in another way ("01") is another key.
        if any(not part.isdecimal() or str(int(part)) != part for part in parts):
            return None
        position = tuple(map(int, parts))
        inside = all(i < n for i, n in zip(position, self.grid_shape, strict=True))
        return position if inside else None

    def box(self, position: Position) -> tuple[slice, ...]:
        """Return where the voxels of a chunk or shard lie in the array."""
        return self._box(position, self.object_shape)

    def chunk_box(self, coordinates: Position) -> tuple[slice, ...]:
        """Return where the voxels of a chunk, inner or not, lie in the array."""
        return self._box(coordinates, self.chunks)

    def _box(self, position: Position, unit: tuple[int, ...]) -> tuple[slice, ...]:
        return tuple(
            slice(i * c, min((i + 1) * c, n))
            for i, c, n in zip(position, unit, self.shape, strict=True)
        )

    def n_voxels(self, position: Position) -> int:
        """Count the voxels of a chunk or shard within the array."""
        return math.prod(part.stop - part.start for part in self.box(position))

    def chunks_of(self, position: Position) -> list[Position]:
        """List the chunks of a shard (or the chunk itself) that hold a part of the array."""
        start = [i * n for i, n in zip(position, self.inner_grid, strict=True)]
        stop = [
            min(first + n, -(-size // c))
            for first, n, size, c in zip(
                start, self.inner_grid, self.shape, self.chunks, strict=True
            )
        ]
        return list(itertools.product(*map(range, start, stop)))

    def to_record(self) -> dict[str, Any]:
        """Return what is compared when a run goes on; JSON-ready."""
        return {
            "shape": list(self.shape),
            "dtype": np.dtype(self.dtype).name,
            "chunks": list(self.chunks),
            "shards": None if self.shards is None else list(self.shards),
            "zarr_format": self.zarr_format,
            "levels": self.levels,
            "codec": self.params.to_config(),
        }


def blocks(
    counts: Sequence[int], extent: Sequence[int], unit_bytes: int, limit_bytes: int
) -> Iterator[tuple[range, ...]]:
    """Divide a grid into boxes, in C order; at least one cell each.

    Parameters
    ----------
    counts : sequence of int
        Cells of the grid per axis.
    extent : sequence of int
        Cells that a box is wanted to have.
    unit_bytes : int
        Of a cell.
    limit_bytes : int
        That a box should not exceed: it grows along the last axis first.

    Yields
    ------
    tuple of range
        One per axis.
    """
    chosen = [1] * len(counts)
    for axis in reversed(range(len(counts))):
        wanted = min(extent[axis], counts[axis])
        chosen[axis] = max(1, min(wanted, limit_bytes // unit_bytes))
        unit_bytes *= chosen[axis]
        if chosen[axis] < wanted:
            break
    starts = itertools.product(*map(range, [0] * len(counts), counts, chosen))
    for start in starts:
        yield tuple(
            range(first, min(first + size, n))
            for first, size, n in zip(start, chosen, counts, strict=True)
        )


def choose_layout(
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
    params: EncodingParams,
    *,
    chunks: int | Sequence[int] | None,
    shards: int | Sequence[int] | None,
    levels: int | None,
    zarr_format: int,
) -> Target:
    """Check and complete what is asked for.

    Parameters
    ----------
    shape : tuple of int
    dtype : np.dtype
    params : EncodingParams
    chunks, shards : int, sequence of int, or None
        An integer is the edge along the axes of space, of which there are three at most; a
        sequence has one entry per axis, or one per axis of space. Other axes have chunks of one
        voxel. None chooses chunks of up to 128 voxels that divide the volume with little left.
    levels : int or None
        Levels of resolution beside the full one.
    zarr_format : int

    Raises
    ------
    ConfigError
        If a value is out of range, or they do not fit each other.
    """
    if zarr_format not in (2, 3):
        raise ConfigError(f"zarr_format={zarr_format!r} is not 2 or 3")
    if 0 in shape:
        raise ConfigError(f"the source has shape {shape}: there is nothing to compress")
    levels = 0 if levels is None else _integer("levels", levels, 0, _MAX_LEVELS)
    if zarr_format == 2 and (levels or shards is not None):
        field, value = ("levels", levels) if levels else ("shards", shards)
        raise ConfigError(f"{field}={value!r} needs zarr_format=3; found 2")
    longest = max(shape[-_SPATIAL_NDIM:])
    if levels and 2 ** (levels - 1) >= longest:
        enough = math.ceil(math.log2(longest))
        raise ConfigError(
            f"levels={levels} is not in 0 to {enough}: level {enough} of shape {shape} is a single "
            "voxel"
        )
    step = 2**levels
    outer = None if shards is None else _per_axis("shards", shards, len(shape))
    if chunks is not None:
        wanted = _per_axis("chunks", chunks, len(shape))
    elif outer is not None:
        wanted = tuple(map(_largest_divisor, outer))
    else:
        wanted = _default_chunks(shape, step)
    if outer is not None and any(s % c for s, c in zip(outer, wanted, strict=True)):
        raise ConfigError(f"shards={outer} is not a multiple of chunks={wanted} on every axis")
    units = [1] * (len(shape) - _SPATIAL_NDIM) + [step] * min(len(shape), _SPATIAL_NDIM)
    # More than the volume would be padding.
    chosen = tuple(min(c, -(-n // u) * u) for c, n, u in zip(wanted, shape, units, strict=True))
    if any(c % u for c, u in zip(chosen, units, strict=True)):
        raise ConfigError(
            f"levels={levels} needs chunks that {step} divides along the axes of space; "
            f"found chunks={chosen}"
        )
    sharded = outer and tuple(
        min(s // w * c, -(-n // c) * c)
        for s, w, c, n in zip(outer, wanted, chosen, shape, strict=True)
    )
    return Target(
        shape=shape,
        dtype=dtype.newbyteorder("=").str,
        chunks=chosen,
        shards=sharded,
        zarr_format=zarr_format,
        levels=levels,
        params=params,
    )


def _default_chunks(shape: tuple[int, ...], step: int) -> tuple[int, ...]:
    """Divide axes of space evenly, so that chunks at the end are not mostly padding."""
    lead = len(shape) - _SPATIAL_NDIM
    chosen = []
    for axis, size in enumerate(shape):
        if axis < lead:
            chosen.append(1)
        elif size <= _CHUNK_EDGE:
            chosen.append(-(-size // step) * step)
        else:
            edge = -(-size // -(-size // _CHUNK_EDGE))
            unit = math.lcm(_CHUNK_STEP, step)
            chosen.append(-(-edge // unit) * unit)
    return tuple(chosen)


def _per_axis(field: str, value: int | Sequence[int], ndim: int) -> tuple[int, ...]:
    n_spatial = min(ndim, _SPATIAL_NDIM)
    entries = tuple(value) if isinstance(value, Sequence) else (value,) * n_spatial
    if len(entries) == n_spatial:
        entries = (1,) * (ndim - n_spatial) + entries
    if len(entries) != ndim:
        raise ConfigError(
            f"{field}={value!r} has {len(entries)} entries; the volume has {ndim} axes"
        )
    return tuple(_integer(field, entry, 1, 2**31) for entry in entries)


def _largest_divisor(edge: int) -> int:
    return max(n for n in range(1, min(edge, _CHUNK_EDGE) + 1) if edge % n == 0)


def _integer(field: str, value: Any, low: int, high: int) -> int:
    is_integer = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if not is_integer or not low <= int(value) <= high:
        raise ConfigError(f"{field}: {value!r} is not an integer {low} to {high}")
    return int(value)
