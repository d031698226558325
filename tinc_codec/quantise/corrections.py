"""Corrections of the voxels at which a chunk's models miss a largest error.

A correction is a multiple of one quantum, added to what is decoded, or the value itself where what
is decoded differs too much between devices.

References
----------
`docs/format.md` §11
"""

import math
from dataclasses import dataclass

import numpy as np

from tinc_codec.bitstream.reader import ByteReader, byte_view
from tinc_codec.bitstream.varint import write_varint
from tinc_codec.errors import CorruptStreamError
from tinc_codec.volume.chunk import ChunkInfo, value_mapping

_BUFFER_VOXELS = 1 << 15
_MAX_MULTIPLE = (1 << 24) - 1
_MAX_INTEGER_QUANTUM = (1 << 33) - 1
_QUANTUM_BYTES = 8
_SAMPLED_VOXELS = 1 << 18
_SAMPLED_PLANES, _SLAB_PLANES = 32, 8
_SAMPLED_OFFENDERS = 1000
_QUANTUM_MARGIN = 1 - 2.0**-20
# A little less than one half, for the rounding of float64.
_SAFE_ROUNDING = 0.5 - 2.0**-16


@dataclass(frozen=True, eq=False)
class Corrections:
    """What is changed after decoding, voxel by voxel.

    Attributes
    ----------
    positions : ndarray of int64
        Shape (n,), ascending, in C order over (B, z, y, x).
    multiples : ndarray of int32
        Shape (n,): multiples of `quantum` to add; 0 where the value is in `absolutes`.
    absolutes : ndarray of uint64
        One per multiple 0: how many values of the dtype lie between `value_min` and this one.
    quantum : float
        In the data's units, 0 or more; whole for integer dtypes.
    """

    positions: np.ndarray
    multiples: np.ndarray
    absolutes: np.ndarray
    quantum: float

    def __len__(self) -> int:
        return len(self.positions)


def find_corrections(
    original: np.ndarray,
    values: np.ndarray,
    info: ChunkInfo,
    classes: np.ndarray | None,
    max_error: float,
    tolerance: float,
) -> Corrections:
    """Find the voxels that decode with too large an error on some device, and what mends them.

    Parameters
    ----------
    original : ndarray
        Shape (B, z, y, x), `info.dtype` in any strides and byte order.
    values : ndarray of float32
        Same shape: t, as this device computes it.
    info : ChunkInfo
        Not constant.
    classes : ndarray of uint8 or None
        As many voxels: 0 finite, else the voxel is left alone.
    max_error : float
        Largest absolute error, 0 or more, in the data's units.
    tolerance : float
        Largest difference between t here and on any other device.

    Returns
    -------
    Corrections
        Possibly empty. Applied to what any device within the tolerance decodes, it leaves no
        finite voxel with a larger error.
    """
    from tinc_codec.quantise import offenders

    max_error, tolerance = float(max_error), float(tolerance)
    mapping = value_mapping(info)
    kind = offenders.INTEGER if info.dtype.kind != "f" else offenders.FLOATS[info.dtype.itemsize]
    safe_error = _safe_error(info, max_error)
    quantum = _choose_quantum(info, max_error, tolerance)
    if classes is None:
        classes = np.broadcast_to(np.uint8(0), original.shape)
    blocks = np.nditer(
        [original, values, classes.reshape(original.shape)],
        flags=["external_loop", "buffered"],
        op_flags=[["readonly"], ["readonly"], ["readonly"]],
        op_dtypes=[np.float64, np.float32, np.uint8],
        order="C",
        buffersize=_BUFFER_VOXELS,
        casting="same_kind",
    )
    found = []
    start = 0
    with blocks:
        for block in blocks:
            # Copies, since compiled code is specialised for writable, contiguous memory.
            wanted, t, left_out = (part.copy() for part in block)
            n = offenders.count_suspects(wanted, t, mapping, tolerance, safe_error)
            if n:
                positions, multiples = np.empty(n, np.int64), np.empty(n, np.int32)
                n = offenders.correct_offenders(
                    wanted, t, left_out, mapping, kind, tolerance, safe_error, max_error, quantum,
                    _MAX_MULTIPLE, start, positions, multiples,
                )  # fmt: skip
                found.append((positions[:n], multiples[:n]))
            start += len(wanted)
    empty = np.empty(0, np.int64), np.empty(0, np.int32)
    positions, multiples = (np.concatenate(parts) for parts in zip(empty, *found, strict=True))
    exact = original[np.unravel_index(positions[multiples == 0], original.shape)]
    return Corrections(positions, multiples, _ordinals(exact, info), quantum)


def apply_corrections(view: np.ndarray, corrections: Corrections, info: ChunkInfo) -> None:
    """Correct decoded voxels in place.

    Parameters
    ----------
    view : ndarray
        Shape (B, z, y, x), `info.dtype` in any strides and byte order, from
        `volume.chunk.denormalise`.
    corrections : Corrections
        Of this chunk.
    info : ChunkInfo
    """
    n_absolute = 0
    low, high = float(info.value_min), float(info.value_max)
    for start in range(0, len(corrections), _BUFFER_VOXELS):
        part = slice(start, start + _BUFFER_VOXELS)
        multiples = corrections.multiples[part]
        places = np.unravel_index(corrections.positions[part], view.shape)
        with np.errstate(over="ignore", under="ignore"):
            values = view[places].astype(np.float64) + multiples * corrections.quantum
            corrected = np.clip(values, low, high).astype(info.dtype)
        is_absolute = multiples == 0
        following = n_absolute + int(np.count_nonzero(is_absolute))
        corrected[is_absolute] = _from_ordinals(corrections.absolutes[n_absolute:following], info)
        n_absolute = following
        view[places] = corrected


def write_corrections(corrections: Corrections, info: ChunkInfo) -> bytes:
    """Write the section.

    Parameters
    ----------
    corrections : Corrections
    info : ChunkInfo
        The chunk that they are of.

    References
    ----------
    `docs/format.md` §11
    """
    from tinc_codec.quantise.offenders import encode_offenders

    if info.dtype.kind == "f":
        quantum = np.array(corrections.quantum, dtype="<f8").tobytes()
    else:
        quantum = write_varint(int(corrections.quantum))
    # Copies, since compiled code is specialised for writable, contiguous memory.
    payload = encode_offenders(
        corrections.positions.copy(),
        corrections.multiples.copy(),
        corrections.absolutes.view(np.int64).copy(),
        info.batched_shape,
        _absolute_bits(info),
    )
    return quantum + payload.tobytes()


def size_of(corrections: Corrections, info: ChunkInfo) -> int:
    """Estimate the bytes of `write_corrections(corrections, info)` to within about a tenth.

    Large volumes are sampled: slabs of 8 planes out of each 32, on which the code is written.
    """
    batch, n_z, n_y, n_x = info.batched_shape
    n_slabs = n_z // _SAMPLED_PLANES
    if batch * n_z * n_y * n_x < _SAMPLED_VOXELS or n_slabs == 0:
        return len(write_corrections(corrections, info))
    plane, row = np.divmod(corrections.positions, n_y * n_x)
    volume, z = np.divmod(plane, n_z)
    slab, z = np.divmod(z, _SAMPLED_PLANES)
    kept = (z < _SLAB_PLANES) & (slab < n_slabs)
    n_kept = int(np.count_nonzero(kept))
    if n_kept < _SAMPLED_OFFENDERS:
        return len(write_corrections(corrections, info))
    from tinc_codec.quantise.offenders import encode_offenders

    planes = ((volume * n_slabs + slab) * _SLAB_PLANES + z)[kept]
    payload = encode_offenders(
        planes * (n_y * n_x) + row[kept],
        corrections.multiples[kept],
        corrections.absolutes[kept[corrections.multiples == 0]].view(np.int64),
        (batch * n_slabs, _SLAB_PLANES, n_y, n_x),
        _absolute_bits(info),
    )
    return math.ceil(len(payload) * len(corrections) / n_kept) + _QUANTUM_BYTES


def read_corrections(data: bytes | memoryview, info: ChunkInfo) -> Corrections:
    """Read the section; the twin of `write_corrections`.

    Parameters
    ----------
    data : bytes-like
    info : ChunkInfo
        Not constant. Memory stays below 32 bytes per voxel of its valid extent and some per row,
        whatever `data` says.

    Raises
    ------
    CorruptStreamError
        If the quantum or a value is out of its range, or the length does not fit the content.
    TruncatedStreamError
        If the section ends within the quantum.

    References
    ----------
    `docs/format.md` §11
    """
    from tinc_codec.quantise.offenders import decode_offenders

    view = byte_view(data)
    reader = ByteReader(view)
    if info.dtype.kind == "f":
        quantum = float(np.frombuffer(reader.read_bytes(8, "corrections: quantum"), "<f8")[0])
        if not (math.isfinite(quantum) and quantum >= 0):
            raise CorruptStreamError(f"corrections: quantum {quantum} is not finite or negative")
    else:
        whole = reader.read_varint("corrections: quantum")
        if not 1 <= whole <= _MAX_INTEGER_QUANTUM:
            raise CorruptStreamError(f"corrections: quantum {whole} not in 1 to 2**33 - 1")
        quantum = float(whole)
    payload = np.frombuffer(view[reader.position :], dtype=np.uint8).copy()
    positions, multiples, bits, fits = decode_offenders(
        payload, info.batched_shape, _absolute_bits(info)
    )
    if not fits:
        raise CorruptStreamError(
            f"corrections: {payload.size} bytes do not code {info.batched_shape} voxels"
        )
    absolutes = bits.view(np.uint64)
    largest = _largest_ordinal(info)
    if absolutes.size and int(absolutes.max()) > largest:
        raise CorruptStreamError(
            f"corrections: a value lies {int(absolutes.max())} steps above value_min, "
            f"at most {largest} allowed"
        )
    return Corrections(positions, multiples, absolutes, quantum)


def _choose_quantum(info: ChunkInfo, max_error: float, tolerance: float) -> float:
    """Give the largest quantum whose multiples keep to the largest error, or nearly so.

    A multiple leaves up to half a quantum; a device's slack and rounding to the dtype come on top.
    """
    scale, _, span, _, _ = value_mapping(info)
    slack = tolerance * span / scale
    if info.dtype.kind != "f":
        whole = math.floor(min(max_error, span))
        ambiguous = math.ceil(2 * slack) if 2 * slack >= 1 else 0
        return float(max(2 * whole + 1 - ambiguous, whole, 1))
    bound = min(max_error, float(np.finfo(np.float64).max) / 4)
    return max(2 * (bound - slack - _spacing(info)) * _QUANTUM_MARGIN, bound)


def _safe_error(info: ChunkInfo, max_error: float) -> float:
    """Give the error before rounding to the dtype that keeps to the largest error after it."""
    if info.dtype.kind != "f":
        return math.floor(min(max_error, float(1 << 33))) + _SAFE_ROUNDING
    return max_error - _spacing(info)


def _spacing(info: ChunkInfo) -> float:
    """Give the largest distance between neighbouring values within a float chunk's range."""
    largest = max(abs(info.value_min), abs(info.value_max))
    return float(largest - np.nextafter(largest, -largest))


def _absolute_bits(info: ChunkInfo) -> int:
    return _largest_ordinal(info).bit_length()


def _largest_ordinal(info: ChunkInfo) -> int:
    return int(_ordinals(np.array([info.value_max]), info)[0])


def _ordinals(values: np.ndarray, info: ChunkInfo) -> np.ndarray:
    """Count the values of the dtype from `value_min` to each of these, as uint64; -0 is 0."""
    native = info.dtype.newbyteorder("=")
    both = np.concatenate([[info.value_min], values]).astype(native)
    if native.kind == "f":
        both += native.type(0)
        ordered = _ordered_bits(both)
    else:
        ordered = both.astype(np.int64).view(np.uint64)
    return ordered[1:] - ordered[0]


def _from_ordinals(ordinals: np.ndarray, info: ChunkInfo) -> np.ndarray:
    native = info.dtype.newbyteorder("=")
    least = np.array([info.value_min], dtype=native)
    if native.kind != "f":
        return (ordinals + least.astype(np.int64).view(np.uint64)).view(np.int64).astype(native)
    ordered = ordinals + _ordered_bits(least + native.type(0))
    sign = np.uint64(1 << (8 * native.itemsize - 1))
    bits = np.where(ordered & sign, ordered ^ sign, ~ordered)
    return bits.astype(f"u{native.itemsize}").view(native)


def _ordered_bits(values: np.ndarray) -> np.ndarray:
    """Give a float's bits as a uint64 that grows with the value."""
    n_bits = 8 * values.dtype.itemsize
    bits = values.view(f"u{values.dtype.itemsize}").astype(np.uint64)
    sign, mask = np.uint64(1 << (n_bits - 1)), np.uint64((1 << n_bits) - 1)
    return np.where(bits & sign, ~bits & mask, bits | sign)
