"""Lattices <-> bytes: the section, cut into slabs that are coded by themselves.

References
----------
`docs/format.md` §14
"""

import math
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from tinc_codec.bitstream.reader import ByteReader, byte_view
from tinc_codec.bitstream.scalars import read_scalar, write_scalar
from tinc_codec.bitstream.varint import write_varint
from tinc_codec.errors import CorruptStreamError, TruncatedStreamError
from tinc_codec.quantise.lattice import MAX_TOP, Lattice, Points, place_points, to_lattice
from tinc_codec.volume.chunk import FINITE, ChunkInfo

_MAX_INTEGER_STEP = (1 << 33) - 1
_SLAB_VOXELS = 1 << 20
"""Voxels of a slab: slabs are coded by themselves, at once, and each learns anew."""
_TABLE_BYTES, _BYTES_PER_PLACE = 1 << 18, 24
"""Of a slab's state, what does not depend on the shape, and what three planes take."""


def write_lattice(
    lattice: Lattice,
    info: ChunkInfo,
    classes: np.ndarray | None,
    threads: int,
    most_planes: int | None = None,
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
    most_planes : int, optional
        In a slab, of volumes that have more.

    References
    ----------
    `docs/format.md` §14
    """
    planes = _planes_per_slab(lattice.indices.shape)
    if most_planes is not None and most_planes < lattice.indices.shape[1]:
        planes = min(planes, most_planes)
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
    coded = parse_lattice(data, info)
    volumes, n_z, n_y, n_x = coded.shape
    indices = np.empty((volumes * n_z, n_y, n_x), np.int32)
    stops = {number: part.stop - part.start for number, part in enumerate(coded.slabs)}
    decode_slabs(coded, classes, stops, indices, threads)
    return Lattice(coded.points, indices.reshape(coded.shape))


@dataclass(frozen=True)
class CodedLattice:
    """A section whose slabs are not decoded yet.

    Attributes
    ----------
    points : Points
    shape : tuple of int
        (B, z, y, x).
    slabs : tuple of slice
        Where each lies in the stack of all volumes' planes.
    payloads : tuple of bytes-like
        Their codes.
    """

    points: Points
    shape: tuple[int, int, int, int]
    slabs: tuple[slice, ...]
    payloads: tuple[bytes | memoryview, ...]


def parse_lattice(data: bytes | memoryview, info: ChunkInfo) -> CodedLattice:
    """Read all of the section but its slabs; parameters and errors as for `read_lattice`."""
    reader = ByteReader(byte_view(data))
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
    slabs = tuple(_slabs(shape, planes))
    lengths = [reader.read_varint("lattice: length of a slab") for _ in slabs]
    payloads = tuple(reader.read_bytes(length, "lattice: a slab") for length in lengths)
    if reader.remaining:
        raise CorruptStreamError(f"lattice: {reader.remaining} bytes follow the last slab")
    return CodedLattice(points, shape, slabs, payloads)


class SlabState(NamedTuple):
    """How far a slab is decoded, and what goes on from there; never changed.

    Attributes
    ----------
    planes : int
        Decoded so far.
    coder : ndarray of int64
    memory : tuple of ndarrays
        See `lattice_coder.start_slab`; empty where nothing is left to decode.
    """

    planes: int
    coder: np.ndarray
    memory: tuple[np.ndarray, ...]


def state_bytes(slab: slice, shape: tuple[int, int, int, int]) -> int:
    """Bound the memory of a slab's state; a single plane is begun and finished at once."""
    _, _, n_y, n_x = shape
    if slab.stop - slab.start == 1:
        return 0
    return _TABLE_BYTES + _BYTES_PER_PLACE * (n_y + 4) * (n_x + 4)


def decode_slabs(
    coded: CodedLattice,
    classes: np.ndarray | None,
    stops: Mapping[int, int],
    indices: np.ndarray,
    threads: int,
    begun: Mapping[int, SlabState] | None = None,
) -> dict[int, SlabState]:
    """Decode some slabs, or go on with them.

    Parameters
    ----------
    coded : CodedLattice
    classes : ndarray of uint8 or None
        As for `read_lattice`.
    stops : mapping of int to int
        By slab: up to which of its planes, at least.
    indices : ndarray of int32
        Shape (B * z, y, x): receives the indices of the voxels of these planes.
    threads : int
    begun : mapping of int to SlabState, optional
        Slabs of which the first planes are decoded.

    Returns
    -------
    dict of int to SlabState
        How far they are now.

    Raises
    ------
    CorruptStreamError
        If what was decoded of one is not what an encoder writes.
    """
    from tinc_codec.quantise.lattice_coder import decode_planes, start_slab

    skipped, n_z = _skipped(classes, indices.shape), coded.shape[1]

    def decode(number: int) -> SlabState | None:
        part, stop = coded.slabs[number], stops[number]
        payload = np.frombuffer(coded.payloads[number], np.uint8).copy()
        before = None if begun is None else begun.get(number)
        if before is not None:
            if before.planes >= stop:
                return before
            first, coder = before.planes, before.coder.copy()
            memory = tuple(array.copy() for array in before.memory)
        else:
            first = 0
            coder, memory, can_begin = start_slab(payload, indices[part].shape, n_z)
            if not can_begin:
                return None
        left_out = skipped[part] if skipped.size else skipped
        is_valid = decode_planes(
            payload, coder, memory, first, stop, left_out, n_z, coded.points.top, indices[part]
        )
        if not is_valid:
            return None
        return SlabState(stop, coder, memory if part.start + stop < part.stop else ())

    with ThreadPoolExecutor(max(1, min(threads, len(stops)))) as pool:
        states = dict(zip(stops, pool.map(decode, stops), strict=True))
    found = {number: state for number, state in states.items() if state is not None}
    if len(found) < len(states):
        wrong = min(states.keys() - found.keys())
        raise CorruptStreamError(
            f"lattice: the {len(coded.payloads[wrong])} bytes of slab {wrong} do not code its "
            "voxels"
        )
    return found


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
