"""Voxels on a lattice of equal steps: what a small largest error needs, with no model beside it.

Every voxel is rounded to the nearest point of a lattice, and the points' indices are coded one by
one, each predicted from those before. A step of one on integers gives exact data.

References
----------
`docs/format.md` §14
"""

import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from tinc_codec.bitstream.reader import ByteReader, byte_view
from tinc_codec.bitstream.scalars import read_scalar, write_scalar
from tinc_codec.bitstream.varint import write_varint
from tinc_codec.errors import CorruptStreamError, TruncatedStreamError
from tinc_codec.volume.chunk import FINITE, ChunkInfo

MAX_TOP = (1 << 24) - 1
"""Largest index of a lattice point."""
_MAX_INTEGER_STEP = (1 << 33) - 1
_SLAB_VOXELS = 1 << 20
"""Voxels of a slab: slabs are coded by themselves, at once, and each learns anew."""
_TABLE_POINTS = 1 << 16
_BUFFER_VOXELS = 1 << 16


@dataclass(frozen=True)
class Points:
    """The points of a lattice: origin + step * (index - below), limited to the range of values.

    Attributes
    ----------
    origin : np.generic
        Of the chunk's dtype, within its range: decoded exactly.
    step : float
        > 0; whole for integers.
    below : int
        Index of the origin.
    top : int
        Largest index, at most `MAX_TOP`.
    """

    origin: Any
    step: float
    below: int
    top: int


@dataclass(frozen=True, eq=False)
class Lattice:
    """A chunk as lattice points.

    Attributes
    ----------
    points : Points
    indices : ndarray of int32
        Shape (B, z, y, x), 0 to `points.top`; any of these where a voxel is not finite.
    """

    points: Points
    indices: np.ndarray


def place_points(info: ChunkInfo, origin: Any, step: float) -> Points | None:
    """Lay a lattice over the values of a chunk that is not constant; None where it has too many.

    Parameters
    ----------
    info : ChunkInfo
    origin : np.generic
        A value of the chunk's dtype within its range.
    step : float
        > 0; whole for integers.
    """
    if info.dtype.kind == "f":
        with np.errstate(over="ignore"):
            start, span = (
                float(origin) - float(info.value_min),
                float(info.value_max) - float(origin),
            )
            counts = np.rint(np.array([start, span]) / step)
        if not (counts.sum() <= MAX_TOP):
            return None
        below, above = (int(count) for count in counts)
    else:
        whole, value = int(step), int(origin)
        below = (value - int(info.value_min) + whole // 2) // whole
        above = (int(info.value_max) - value + whole // 2) // whole
        if below + above > MAX_TOP:
            return None
    return Points(origin, step, below, below + above)


def to_lattice(original: np.ndarray, info: ChunkInfo, points: Points) -> Lattice:
    """Round voxels to the nearest points.

    Parameters
    ----------
    original : ndarray
        Shape (B, z, y, x), `info.dtype` in any strides and byte order.
    info : ChunkInfo
    points : Points
        From `place_points`.
    """
    indices = np.empty(original.shape, np.int32)
    wide: Any = np.float64 if info.dtype.kind == "f" else np.int64
    blocks = np.nditer(
        [original, indices],
        flags=["external_loop", "buffered", "growinner"],
        op_flags=[["readonly"], ["writeonly"]],
        op_dtypes=[wide, np.int32],
        buffersize=_BUFFER_VOXELS,
        casting="same_kind",
    )
    with blocks, np.errstate(all="ignore"):
        for values, found in blocks:
            if info.dtype.kind == "f":
                near = np.rint((values - float(points.origin)) / points.step) + points.below
                # What is not finite is not coded.
                near = np.nan_to_num(near, nan=0.0)
            else:
                step = int(points.step)
                near = (values - int(points.origin) + step // 2) // step + points.below
            found[...] = np.clip(near, 0, points.top)
    return Lattice(points, indices)


def from_lattice(lattice: Lattice, info: ChunkInfo, out: np.ndarray) -> None:
    """Write the values of lattice points into voxels; the twin of `to_lattice`.

    Parameters
    ----------
    lattice : Lattice
    info : ChunkInfo
    out : ndarray
        Shape (B, z, y, x), `info.dtype` in any strides and byte order.
    """
    points = lattice.points
    if points.top < min(_TABLE_POINTS, out.size):
        out[...] = values_of(points, np.arange(points.top + 1), info)[lattice.indices]
        return
    for part in _planes(out.shape):
        out[part] = values_of(points, lattice.indices[part], info)


def values_of(points: Points, indices: np.ndarray, info: ChunkInfo) -> np.ndarray:
    """Give what indices stand for, in the chunk's dtype.

    References
    ----------
    `docs/format.md` §14.1
    """
    steps = indices.astype(np.int64) - points.below
    if info.dtype.kind == "f":
        # Two operations, each rounded to float64; what overflows is limited like all else.
        low, high = float(info.value_min), float(info.value_max)
        with np.errstate(over="ignore"):
            moved = steps * points.step + float(points.origin)
        return np.clip(moved, low, high).astype(info.dtype)
    steps *= int(points.step)
    steps += int(points.origin)
    return np.clip(steps, int(info.value_min), int(info.value_max)).astype(info.dtype)


def write_lattice(
    lattice: Lattice, info: ChunkInfo, classes: np.ndarray | None, threads: int
) -> bytes:
    """Write the section.

    Parameters
    ----------
    lattice : Lattice
    info : ChunkInfo
    classes : ndarray of uint8 or None
        As many voxels, 0 where one is finite.
    threads : int
        Slabs coded at once.

    References
    ----------
    `docs/format.md` §14
    """
    planes = _planes_per_slab(lattice.indices.shape)
    payloads = _encode_slabs(lattice, classes, planes, threads)
    points = lattice.points
    head = write_scalar(points.origin)
    if info.dtype.kind == "f":
        head += np.array(points.step, dtype="<f8").tobytes()
    else:
        head += write_varint(int(points.step))
    head += write_varint(planes)
    return head + b"".join([*(write_varint(len(body)) for body in payloads), *payloads])


def estimate_bytes(
    original: np.ndarray, info: ChunkInfo, points: Points, groups: int, planes: int
) -> int:
    """Estimate the bytes that voxels take on a lattice from groups of planes, rather too high.

    Parameters
    ----------
    original, info, points
        As for `to_lattice`; voxels that are not finite count as well.
    groups, planes : int
        Per volume: how many groups are looked at, and of how many planes each.
    """
    n_z = original.shape[1]
    if groups * planes >= n_z:
        some, planes = original, n_z
    else:
        starts = [n_z * (2 * group + 1) // (2 * groups) - planes // 2 for group in range(groups)]
        # As volumes of their own, which learn from each other.
        parts = [original[:, start : start + planes] for start in starts]
        some = np.concatenate(parts)
    lattice = to_lattice(some, info, points)
    n_bytes = sum(map(len, _encode_slabs(lattice, None, len(some) * planes, 1)))
    return n_bytes * original.size // some.size


def read_lattice(
    data: bytes | memoryview, info: ChunkInfo, classes: np.ndarray | None, threads: int
) -> Lattice:
    """Read the section; the twin of `write_lattice`.

    Parameters
    ----------
    data : bytes-like
    info : ChunkInfo
        Not constant. Memory stays near 5 bytes per voxel of its valid extent and 24 per voxel of
        a plane of each slab that is decoded at once, whatever `data` says.
    classes : ndarray of uint8 or None
        As many voxels, 0 where one is finite.
    threads : int

    Raises
    ------
    CorruptStreamError
        If a field is out of its range, or a slab is not what an encoder writes.
    TruncatedStreamError
        If the section ends early.

    References
    ----------
    `docs/format.md` §14
    """
    from tinc_codec.quantise.lattice_coder import decode_slab

    view = byte_view(data)
    reader = ByteReader(view)
    points = _read_points(reader, info)
    shape = info.batched_shape
    planes = reader.read_varint("lattice: planes per slab")
    if not _is_cut(planes, shape):
        raise CorruptStreamError(
            f"lattice: {planes} planes per slab do not fit {shape[0]} volumes of {shape[1]}"
        )
    # Lengths first, so that few bytes cannot ask for a large array or for many slabs.
    count = _slab_count(shape, planes)
    if count > reader.remaining:
        raise TruncatedStreamError(
            f"lattice: lengths of {count} slabs expected, {reader.remaining} bytes found"
        )
    parts = list(_slabs(shape, planes))
    lengths = [reader.read_varint("lattice: length of a slab") for _ in parts]
    payloads = [
        np.frombuffer(reader.read_bytes(length, "lattice: a slab"), np.uint8).copy()
        for length in lengths
    ]
    if reader.remaining:
        raise CorruptStreamError(f"lattice: {reader.remaining} bytes follow the last slab")
    indices = np.empty((shape[0] * shape[1], *shape[2:]), np.int32)
    skipped = _skipped(classes, indices.shape)

    def decode(part: slice, payload: np.ndarray) -> bool:
        left_out = skipped[part] if skipped.size else skipped
        return bool(decode_slab(payload, left_out, shape[1], points.top, indices[part]))

    with ThreadPoolExecutor(max(1, min(threads, len(parts)))) as pool:
        valid = list(pool.map(decode, parts, payloads))
    if not all(valid):
        raise CorruptStreamError(
            f"lattice: the {len(payloads[valid.index(False)])} bytes of slab {valid.index(False)} "
            "do not code its voxels"
        )
    return Lattice(points, indices.reshape(shape))


def _read_points(reader: ByteReader, info: ChunkInfo) -> Points:
    origin = read_scalar(reader, info.dtype, "lattice: origin")
    # A NaN is in no range.
    if not info.value_min <= origin <= info.value_max:
        raise CorruptStreamError(
            f"lattice: origin {origin} not in {info.value_min} to {info.value_max}"
        )
    if info.dtype.kind == "f":
        step = float(np.frombuffer(reader.read_bytes(8, "lattice: step"), "<f8")[0])
        if not (math.isfinite(step) and step > 0):
            raise CorruptStreamError(f"lattice: step {step} is not finite and positive")
    else:
        step = float(reader.read_varint("lattice: step"))
        if not 1 <= step <= _MAX_INTEGER_STEP:
            raise CorruptStreamError(f"lattice: step {step:g} not in 1 to 2**33 - 1")
    points = place_points(info, origin, step)
    if points is None:
        raise CorruptStreamError(f"lattice: steps of {step} make more than {MAX_TOP + 1} points")
    return points


def _encode_slabs(
    lattice: Lattice, classes: np.ndarray | None, planes: int, threads: int
) -> list[bytes]:
    from tinc_codec.quantise.lattice_coder import encode_slab

    shape = lattice.indices.shape
    stack = np.ascontiguousarray(lattice.indices).reshape(-1, *shape[2:])
    skipped = _skipped(classes, stack.shape)

    def encode(part: slice) -> bytes:
        left_out = skipped[part] if skipped.size else skipped
        return bytes(encode_slab(stack[part], left_out, shape[1], lattice.points.top))

    parts = list(_slabs(shape, planes))
    with ThreadPoolExecutor(max(1, min(threads, len(parts)))) as pool:
        return list(pool.map(encode, parts))


def _skipped(classes: np.ndarray | None, shape: tuple[int, ...]) -> np.ndarray:
    """Give what of a stack of planes is not coded, as compiled code takes it."""
    if classes is None:
        return np.empty((0, 0, 0), np.uint8)
    return np.not_equal(classes, FINITE).astype(np.uint8).reshape(shape)


def _planes_per_slab(shape: tuple[int, ...]) -> int:
    """Choose how many planes are coded together: a part of a volume, or whole volumes."""
    volumes, n_z, n_y, n_x = shape
    voxels = n_y * n_x
    if n_z * voxels >= _SLAB_VOXELS:
        slabs = max(1, n_z * voxels // _SLAB_VOXELS)
        return -(-n_z // slabs)
    return n_z * min(volumes, max(1, _SLAB_VOXELS // (n_z * voxels)))


def _is_cut(planes: int, shape: tuple[int, ...]) -> bool:
    volumes, n_z = shape[:2]
    return 1 <= planes <= n_z or (planes % n_z == 0 and 1 <= planes <= volumes * n_z)


def _slab_count(shape: tuple[int, ...], planes: int) -> int:
    """Count what `_slabs` gives."""
    volumes, n_z = shape[:2]
    return volumes * -(-n_z // planes) if planes <= n_z else -(-volumes * n_z // planes)


def _slabs(shape: tuple[int, ...], planes: int) -> Iterator[slice]:
    """Cut the stack of all planes, so that no slab holds a part of one volume and of another."""
    volumes, n_z = shape[:2]
    run = max(planes, n_z)
    for first in range(0, volumes * n_z, run):
        stop = min(first + run, volumes * n_z)
        for start in range(first, stop, planes):
            yield slice(start, min(start + planes, stop))


def _planes(shape: tuple[int, ...]) -> Iterator[tuple[int, int]]:
    return ((volume, z) for volume in range(shape[0]) for z in range(shape[1]))
