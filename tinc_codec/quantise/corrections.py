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
_QUANTUM_MARGIN = 1 - 2.0**-20
_NO_CLASSES = np.empty(0, dtype=np.uint8)


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

    mapping = value_mapping(info)
    kind = {2: offenders.FLOAT16, 4: offenders.FLOAT32, 8: offenders.FLOAT64}[info.dtype.itemsize] \
        if info.dtype.kind == "f" else offenders.INTEGER
    quantum = _choose_quantum(info, max_error, tolerance)
    operands = [original, values]
    dtypes = [np.dtype(np.float64), np.dtype(np.float32)]
    if classes is not None:
        operands.append(classes.reshape(original.shape))
        dtypes.append(np.dtype(np.uint8))
    blocks = np.nditer(
        operands,
        flags=["external_loop", "buffered", "growinner"],
        op_flags=[["readonly"]] * len(operands),
        op_dtypes=dtypes,
        order="C",
        buffersize=_BUFFER_VOXELS,
        casting="same_kind",
    )
    found = []
    start = 0
    with blocks:
        for block in blocks:
            wanted, t = np.ascontiguousarray(block[0]), np.ascontiguousarray(block[1])
            counting = np.ascontiguousarray(block[2]) if classes is not None else _NO_CLASSES
            n = offenders.count_offenders(
                wanted, t, counting, mapping, kind, tolerance, max_error
            )
            if n:
                positions, multiples = np.empty(n, np.int64), np.empty(n, np.int32)
                offenders.correct_offenders(
                    wanted, t, counting, mapping, kind, tolerance, max_error, quantum,
                    _MAX_MULTIPLE, start, positions, multiples,
                )  # fmt: skip
                found.append((positions, multiples))
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
    """Count the bytes of `write_corrections(corrections, info)`."""
    return len(write_corrections(corrections, info))


def read_corrections(data: bytes | memoryview, info: ChunkInfo) -> Corrections:
    """Read the section; the twin of `write_corrections`.

    Parameters
    ----------
    data : bytes-like
    info : ChunkInfo
        Not constant. Memory stays below 20 bytes per voxel of its valid extent, whatever `data`
        says; 12 where no voxel is absolute.

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
    scale, _, span, value_min, value_max = value_mapping(info)
    slack = tolerance * span / scale
    if info.dtype.kind != "f":
        bound = math.floor(min(max_error, span))
        ambiguous = math.ceil(2 * slack) if 2 * slack >= 1 else 0
        return float(max(2 * bound + 1 - ambiguous, bound, 1))
    bound = min(max_error, float(np.finfo(np.float64).max) / 4)
    largest = info.dtype.newbyteorder("=").type(max(abs(value_min), abs(value_max)))
    rounding = abs(float(np.spacing(largest)))
    return max(2 * (bound - slack - rounding) * _QUANTUM_MARGIN, bound)


def _absolute_bits(info: ChunkInfo) -> int:
    return _largest_ordinal(info).bit_length()


def _largest_ordinal(info: ChunkInfo) -> int:
    return int(_ordinals(np.array([info.value_max]), info)[0])


def _ordinals(values: np.ndarray, info: ChunkInfo) -> np.ndarray:
    """Count the values of the dtype from `value_min` to each of these, as uint64; -0 counts as 0."""
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
