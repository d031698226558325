"""A whole stream: header, sections and checksum <-> bytes."""

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import google_crc32c

from tinc_codec.bitstream.reader import ByteReader, byte_view
from tinc_codec.bitstream.scalars import (
    dtype_code,
    float32_bound,
    read_dtype,
    read_scalar,
    write_scalar,
)
from tinc_codec.bitstream.sections import (
    MODEL_SECTIONS,
    SINCE_MINOR,
    Section,
    minor_of,
    read_section_table,
    write_section_table,
)
from tinc_codec.bitstream.varint import write_varint
from tinc_codec.bitstream.version import MAGIC, MAJOR, MINOR, read_version, unknown_value
from tinc_codec.errors import (
    CorruptStreamError,
    FormatError,
    LimitError,
    TruncatedStreamError,
)
from tinc_codec.volume.chunk import ChunkInfo
from tinc_codec.volume.support import MAX_NDIM

FLAG_FORTRAN = 1
FLAG_PADDING = 2
FLAG_MASK = 4
FLAG_NO_FINITE = 8
_KNOWN_FLAGS = FLAG_FORTRAN | FLAG_PADDING | FLAG_MASK | FLAG_NO_FINITE

CRC_BYTES = 4
_QUALITY = struct.Struct("<ff")
_CRC = struct.Struct("<I")


@dataclass(frozen=True)
class Layout:
    """Where the bytes of a stream go.

    Attributes
    ----------
    header_bytes : int
        From the magic to the end of the section table.
    section_bytes : mapping of int to int
        Length per section id, in the order of the stream.
    """

    header_bytes: int
    section_bytes: Mapping[int, int]

    @property
    def total_bytes(self) -> int:
        """Length of the whole stream, checksum included."""
        return self.header_bytes + sum(self.section_bytes.values()) + CRC_BYTES


@dataclass(frozen=True)
class Header:
    """All that a stream says, its sections still encoded.

    Attributes
    ----------
    info : ChunkInfo
    psnr : float
        Achieved PSNR in dB over the valid finite voxels; inf where they are exact. Stored as
        float32, rounded down.
    max_error : float
        Largest absolute error over the valid finite voxels, in the data's units. Stored as
        float32, rounded up, so that it stays a bound; inf where float32 cannot hold it.
    sections : mapping of int to bytes or memoryview
        Body per section id; empty from `read_header_only`.
    version : tuple of int
        (major, minor) found in the stream.
    layout : Layout or None
        Filled by the readers.
    """

    info: ChunkInfo
    psnr: float
    max_error: float
    sections: Mapping[int, bytes | memoryview]
    version: tuple[int, int] = (MAJOR, MINOR)
    layout: Layout | None = field(default=None, compare=False)


def write_stream(header: Header) -> bytes:
    """Encode a stream of the current version.

    Parameters
    ----------
    header : Header
        `version` and `layout` are not used.

    Raises
    ------
    ValueError
        If the header contradicts itself, so that no reader would accept it.

    References
    ----------
    `docs/format.md` §2
    """
    section_bytes = {section_id: len(body) for section_id, body in header.sections.items()}
    contradiction = _contradiction(header.info, section_bytes)
    if contradiction is None and (math.isnan(header.psnr) or not header.max_error >= 0):
        contradiction = f"psnr {header.psnr} or max_error {header.max_error} is not a bound"
    if contradiction is not None:
        raise ValueError(f"header: {contradiction}")
    # The lowest version that describes the stream, so that older readers take what they can.
    minor = max((minor_of(*section) for section in header.sections.items()), default=0)
    parts: list[bytes | memoryview] = [
        _write_head(header.info, header.psnr, header.max_error, section_bytes, minor)
    ]
    parts += [header.sections[section_id] for section_id in sorted(header.sections)]
    content = b"".join(parts)
    return content + _CRC.pack(google_crc32c.value(content))


def read_stream(buffer: Any, *, max_decoded_bytes: int) -> Header:
    """Decode and check a whole stream; nothing of the declared size is allocated.

    Parameters
    ----------
    buffer : bytes-like or ndarray
        The stream and nothing else.
    max_decoded_bytes : int
        Upper limit for the size of the decoded chunk.

    Returns
    -------
    Header
        Its sections are views of `buffer`.

    Raises
    ------
    FormatError
        `TruncatedStreamError` where the stream is shorter than it declares, `LimitError` where
        the chunk would be larger than allowed, `UnsupportedVersionError` where a newer reader is
        needed, `CorruptStreamError` for all else.

    References
    ----------
    `docs/format.md` §2, §6
    """
    view = byte_view(buffer)
    read_version(ByteReader(view))
    _check_crc(view)
    header = _read_head(view)
    layout = header.layout
    assert layout is not None
    _check_length(view, layout)
    if header.info.size_bytes > max_decoded_bytes:
        raise LimitError(
            f"shape {header.info.shape} of {header.info.dtype} is {header.info.size_bytes} bytes "
            f"decoded, the limit is {max_decoded_bytes}; raise max_decoded_bytes in "
            "tinc_codec.config to allow it"
        )
    sections: dict[int, bytes | memoryview] = {}
    start = layout.header_bytes
    for section_id, n_bytes in layout.section_bytes.items():
        sections[section_id] = view[start : start + n_bytes]
        start += n_bytes
    for section_id, body in sections.items():
        if header.version < (MAJOR, minor_of(section_id, body)):
            raise CorruptStreamError(
                f"section {section_id}: holds what does not exist in version "
                f"{header.version[0]}.{header.version[1]}"
            )
    return Header(header.info, header.psnr, header.max_error, sections, header.version, layout)


def read_header_only(prefix: Any) -> Header:
    """Decode the header from the first bytes of a stream, without checksum and size limit.

    Parameters
    ----------
    prefix : bytes-like or ndarray
        From the start of the stream; may reach beyond the header.

    Returns
    -------
    Header
        Without section bodies; `layout` says how long they are.

    Raises
    ------
    FormatError
        As `read_stream`; the attribute `needed` of a `TruncatedStreamError` says how many bytes
        to fetch at least before the next try.
    """
    return _read_head(byte_view(prefix))


def overhead_bytes(info: ChunkInfo, section_bytes: Mapping[int, int]) -> int:
    """Count the bytes of a stream that are not section bodies: header and checksum.

    Parameters
    ----------
    info : ChunkInfo
    section_bytes : mapping of int to int
        Length per section id. The result never falls as a length grows, so the value for a
        section's upper bound holds for every shorter body.
    """
    return len(_write_head(info, math.inf, 0.0, section_bytes)) + CRC_BYTES


def _write_head(
    info: ChunkInfo,
    psnr: float,
    max_error: float,
    section_bytes: Mapping[int, int],
    minor: int = MINOR,
) -> bytes:
    no_finite = info.value_min is None
    flags = (
        FLAG_FORTRAN * (info.order == "F")
        | FLAG_PADDING * info.has_padding
        | FLAG_MASK * (Section.MASK in section_bytes)
        | FLAG_NO_FINITE * no_finite
    )
    out = bytearray(MAGIC)
    table = write_section_table(section_bytes)
    out += bytes([MAJOR, minor, flags, dtype_code(info.dtype), len(info.shape)])
    out += b"".join(map(write_varint, info.shape))
    if info.has_padding:
        out += b"".join(map(write_varint, info.valid_extent))
        out += write_scalar(info.pad_value)
    if not no_finite:
        out += write_scalar(info.value_min) + write_scalar(info.value_max)
    out += _QUALITY.pack(float32_bound(psnr, -math.inf), float32_bound(max_error, math.inf))
    return bytes(out) + table


def _read_head(view: memoryview) -> Header:
    reader = ByteReader(view)
    version = read_version(reader)
    flags = reader.read_u8("flags")
    if flags & ~_KNOWN_FLAGS:
        raise unknown_value(f"flags: reserved bits set in {flags:#04x}", version)
    dtype = read_dtype(reader, version)
    ndim = reader.read_u8("number of axes")
    if not 1 <= ndim <= MAX_NDIM:
        raise CorruptStreamError(f"number of axes: {ndim} not in 1 to {MAX_NDIM}")
    shape = tuple(reader.read_varint(f"size of axis {axis}") for axis in range(ndim))
    if 0 in shape:
        raise CorruptStreamError(f"shape: {shape} has an axis of size 0")
    valid_extent, pad_value = shape, None
    if flags & FLAG_PADDING:
        valid_extent = tuple(reader.read_varint(f"extent of axis {axis}") for axis in range(ndim))
        in_range = all(1 <= e <= n for e, n in zip(valid_extent, shape, strict=True))
        if not in_range or valid_extent == shape:
            raise CorruptStreamError(f"valid extent: {valid_extent} does not fit shape {shape}")
        pad_value = read_scalar(reader, dtype, "pad value")
    value_min = value_max = None
    if not flags & FLAG_NO_FINITE:
        value_min = read_scalar(reader, dtype, "value_min")
        value_max = read_scalar(reader, dtype, "value_max")
    psnr, max_error = _QUALITY.unpack(reader.read_bytes(_QUALITY.size, "psnr and max_error"))
    if math.isnan(psnr) or not max_error >= 0:
        raise CorruptStreamError(f"psnr {psnr} or max_error {max_error} is not a bound")
    section_bytes = read_section_table(reader)
    for section_id in section_bytes:
        if version < (MAJOR, SINCE_MINOR[Section(section_id)]):
            raise CorruptStreamError(
                f"section id: {section_id} does not exist in version {version[0]}.{version[1]}"
            )
    order = "F" if flags & FLAG_FORTRAN else "C"
    info = ChunkInfo(dtype, order, shape, valid_extent, pad_value, value_min, value_max)
    if bool(flags & FLAG_MASK) != (Section.MASK in section_bytes):
        raise CorruptStreamError("flags: mask bit and section table disagree")
    contradiction = _contradiction(info, section_bytes)
    if contradiction is not None:
        raise CorruptStreamError(contradiction)
    return Header(info, psnr, max_error, {}, version, Layout(reader.position, section_bytes))


def _contradiction(info: ChunkInfo, section_bytes: Mapping[int, int]) -> str | None:
    """Name what in a header cannot be true at once, if anything."""
    has_mask = Section.MASK in section_bytes
    has_model = not MODEL_SECTIONS.isdisjoint(section_bytes)
    has_corrections = Section.CORRECTIONS in section_bytes
    if 0 in section_bytes.values():
        return "a section is empty"
    if info.dtype.kind != "f" and (has_mask or info.value_min is None):
        return f"a chunk of {info.dtype} cannot hold voxels that are not finite"
    if has_corrections and not has_model:
        return "corrections need a model to correct"
    if Section.POSTFILTER in section_bytes and not has_model:
        return "a post-filter needs a model to filter"
    if Section.LATTICE in section_bytes and set(section_bytes) - {Section.LATTICE, Section.MASK}:
        return "a lattice stands for all voxels, without another model, filter or corrections"
    if info.value_min is None:
        if has_mask and not has_model:
            return None
        return "a chunk without a finite voxel has a mask and no model"
    low, high = float(info.value_min), float(info.value_max)
    if not (math.isfinite(low) and math.isfinite(high) and low <= high):
        return f"value range: {low} to {high} is not a finite, ascending range"
    if has_model == (low == high):
        needs = "needs no model" if has_model else "needs a model"
        return f"value range: {low} to {high} {needs}"
    return None


def _check_crc(view: memoryview) -> None:
    content = bytes(view[:-CRC_BYTES])
    stored = bytes(view[-CRC_BYTES:])
    if _CRC.pack(google_crc32c.value(content)) == stored:
        return
    try:
        layout = _read_head(view).layout
    except TruncatedStreamError:
        raise
    except FormatError:
        layout = None
    if layout is not None and layout.total_bytes > len(view):
        _check_length(view, layout)
    raise CorruptStreamError("checksum: CRC-32C does not match, the stream is damaged")


def _check_length(view: memoryview, layout: Layout) -> None:
    if len(view) < layout.total_bytes:
        raise TruncatedStreamError(
            f"the stream declares {layout.total_bytes} bytes and has {len(view)}",
            needed=layout.total_bytes,
        )
    if len(view) > layout.total_bytes:
        raise CorruptStreamError(
            f"{len(view) - layout.total_bytes} bytes follow the end of the stream"
        )
