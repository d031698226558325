"""One chunk against its source: what it is worth, and which of its promises it breaks."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import google_crc32c
import numpy as np

from tinc_codec.bitstream.header import Header, read_header_only
from tinc_codec.bitstream.sections import Section
from tinc_codec.codec import decode_chunk
from tinc_codec.errors import CorruptStreamError, FormatError, LimitError
from tinc_codec.params import EncodingParams
from tinc_codec.pipeline.comparison import Comparison, compare

__all__ = [
    "Breach",
    "ChunkCheck",
    "Promises",
    "check_missing",
    "check_stream",
    "check_unread",
    "same_dtype",
]

_CRC_BYTES = 4
# What two decoders may differ by, as a part of the chunk's range (docs/format.md §7.6, §9.5).
_DECODER_TOLERANCE = 2.0**-15
# Beyond it a header does not describe its chunk: float32, and the last bits of another decoder.
_STATED_TOLERANCE = 1e-3


@dataclass(frozen=True, slots=True)
class Breach:
    """A promise that is not kept.

    Attributes
    ----------
    coordinates : tuple of int or None
        Of the chunk, in the grid of (inner) chunks; None for the array as a whole.
    promise : str
        "ratio", "psnr" or "max_error", which the codec's settings promise; "finite" (the places of
        NaN and infinities), "range" (no value beyond the source's), "stated psnr" and "stated
        max_error" (the header says what is true), which every chunk promises; "stored" (it is
        there), "stream" (it can be read, its checksum is right); "shape" and "dtype" of the array.
    value, bound : float or None
        What was found and what was promised, where these are numbers. "finite" counts voxels.
    text : str
        One sentence.
    """

    coordinates: tuple[int, ...] | None
    promise: str
    value: float | None
    bound: float | None
    text: str


@dataclass(frozen=True, slots=True)
class ChunkCheck:
    """What was measured of one chunk, within the array.

    Attributes
    ----------
    coordinates : tuple of int
        In the grid of (inner) chunks.
    size_bytes : int
        Of its stream; 0 where the chunk is missing, which stands for the fill value.
    parts : mapping of str to int
        Of these, the bytes of the header and of every section, by name.
    psnr : float
        In dB, the chunk's own range of valid values as peak; NaN where it cannot be read.
    max_error : float
        Largest absolute error of a finite voxel, in the data's units; NaN where it cannot be read.
    stated_psnr, stated_max_error : float
        What its header says; NaN where it has none.
    n_finite : int
        Finite voxels of the source.
    value_min, value_max : float
        Of these; NaN where there is none.
    log_mse : float
        log10 of their mean squared error, of the data's units squared; -inf where they are exact.
    breaches : tuple of Breach
    """

    coordinates: tuple[int, ...]
    size_bytes: int
    parts: Mapping[str, int]
    psnr: float
    max_error: float
    stated_psnr: float
    stated_max_error: float
    n_finite: int
    value_min: float
    value_max: float
    log_mse: float
    breaches: tuple[Breach, ...]


@dataclass(frozen=True, kw_only=True)
class Promises:
    """What every chunk of an array has to keep to.

    Parameters
    ----------
    params : EncodingParams
        As stored in the array's metadata.
    chunk_shape : tuple of int
    dtype : np.dtype
        Of the array.
    trailing_bytes : int
        Of the CRC-32C that zarr put behind every stream; 0 or a few times 4.
    """

    params: EncodingParams
    chunk_shape: tuple[int, ...]
    dtype: np.dtype[Any]
    trailing_bytes: int = 0

    @property
    def raw_bytes(self) -> int:
        """Bytes of a chunk as the codec counts them: whole, with the padding of edge chunks."""
        return math.prod(self.chunk_shape) * self.dtype.itemsize


def check_stream(
    data: bytes, original: np.ndarray, coordinates: tuple[int, ...], promises: Promises
) -> tuple[ChunkCheck, np.ndarray | None]:
    """Decode a stored chunk, compare it with its source and check all it promises.

    Parameters
    ----------
    data : bytes
        The stream, and the checksums behind it.
    original : ndarray
        The source within the array: the chunk's shape or, at the array's end, less.
    coordinates : tuple of int
    promises : Promises

    Returns
    -------
    check : ChunkCheck
    decoded : ndarray or None
        Same shape as `original`; None where the stream is damaged.

    Raises
    ------
    LimitError
        If the chunk is larger than `tinc_codec.config` allows.
    """
    try:
        stream = _without_checksums(data, promises.trailing_bytes)
        header = read_header_only(stream)
        decoded = decode_chunk(stream)
        _check_layout(decoded, promises)
    except LimitError:
        raise
    except FormatError as error:
        return check_unread(coordinates, f"{type(error).__name__}: {error}", len(data)), None
    decoded = decoded[tuple(map(slice, original.shape))]
    extent = tuple(map(min, header.info.valid_extent, original.shape))
    found = compare(original, decoded, extent)
    inside = extent == header.info.valid_extent
    breaches = _breaches(found, header, inside, len(stream), coordinates, promises)
    row = _row(
        coordinates,
        found,
        size_bytes=len(stream),
        parts=_parts(header),
        stated=(header.psnr, header.max_error),
        breaches=tuple(breaches),
    )
    return row, decoded


def check_missing(
    fill_value: Any, original: np.ndarray, coordinates: tuple[int, ...]
) -> tuple[ChunkCheck, np.ndarray]:
    """Check a chunk that is not stored: it reads as the fill value, which must be its source.

    Parameters
    ----------
    fill_value : scalar
    original : ndarray
    coordinates : tuple of int

    Returns
    -------
    check : ChunkCheck
    decoded : ndarray
        Filled, same shape and dtype as `original`.
    """
    decoded = np.full_like(original, fill_value)
    found = compare(original, decoded, original.shape)
    breaches: tuple[Breach, ...] = ()
    if found.max_error or found.n_misplaced:
        text = (
            f"is missing: it reads as the fill value {fill_value}, "
            "and its source holds something else"
        )
        breaches = (Breach(coordinates, "stored", None, None, text),)
    return _row(coordinates, found, breaches=breaches), decoded


def check_unread(coordinates: tuple[int, ...], reason: str, size_bytes: int) -> ChunkCheck:
    """Give the row of a chunk that cannot be read."""
    nan = math.nan
    breach = Breach(coordinates, "stream", None, None, f"cannot be read: {reason}")
    return ChunkCheck(
        coordinates, size_bytes, {}, nan, nan, nan, nan, 0, nan, nan, nan, (breach,)
    )  # fmt: skip


def same_dtype(one: np.dtype[Any], other: np.dtype[Any]) -> bool:
    """Tell whether two dtypes are the same but for the byte order."""
    return np.can_cast(one, other, "equiv")


def _row(
    coordinates: tuple[int, ...],
    found: Comparison,
    *,
    breaches: tuple[Breach, ...],
    size_bytes: int = 0,
    parts: Mapping[str, int] | None = None,
    stated: tuple[float, float] = (math.nan, math.nan),
) -> ChunkCheck:
    return ChunkCheck(
        coordinates=coordinates,
        size_bytes=size_bytes,
        parts=parts or {},
        psnr=found.psnr,
        max_error=found.max_error,
        stated_psnr=stated[0],
        stated_max_error=stated[1],
        n_finite=found.n_finite,
        value_min=found.value_min,
        value_max=found.value_max,
        log_mse=found.log_mse,
        breaches=breaches,
    )


def _breaches(
    found: Comparison,
    header: Header,
    inside: bool,
    stream_bytes: int,
    coordinates: tuple[int, ...],
    promises: Promises,
) -> Iterator[Breach]:
    """Name what a chunk breaks; `inside` tells that nothing of its valid extent was cut off."""
    params = promises.params
    if params.ratio is not None:
        limit = math.floor(Fraction(promises.raw_bytes) / Fraction(params.ratio))
        if stream_bytes > limit:
            text = f"takes {stream_bytes} bytes, ratio={params.ratio:g} allows {limit}"
            ratio = promises.raw_bytes / stream_bytes
            yield Breach(coordinates, "ratio", ratio, params.ratio, text)
    if params.psnr is not None and found.psnr < _loosened(params.psnr):
        text = f"has a PSNR of {found.psnr:.4f} dB, psnr={params.psnr:g} is promised"
        yield Breach(coordinates, "psnr", found.psnr, params.psnr, text)
    if params.max_error is not None and not found.max_error <= params.max_error:
        text = f"is off by {found.max_error:g}, max_error={params.max_error:g} is promised"
        yield Breach(coordinates, "max_error", found.max_error, params.max_error, text)
    if found.n_misplaced:
        text = f"has {found.n_misplaced} voxels with NaN or an infinity in the wrong place"
        yield Breach(coordinates, "finite", found.n_misplaced, 0, text)
    if found.decoded_min < found.value_min or found.decoded_max > found.value_max:
        below = found.decoded_min < found.value_min
        value = found.decoded_min if below else found.decoded_max
        bound = found.value_min if below else found.value_max
        text = f"holds {value:g}, its source lies in {found.value_min:g} to {found.value_max:g}"
        yield Breach(coordinates, "range", value, bound, text)
    if not inside:
        return
    if not _psnr_agree(found.psnr, header.psnr):
        text = f"has a PSNR of {found.psnr:.4f} dB, its header says {header.psnr:.4f}"
        yield Breach(coordinates, "stated psnr", found.psnr, header.psnr, text)
    if not _errors_agree(found, header):
        text = f"is off by {found.max_error:g}, its header says {header.max_error:g}"
        yield Breach(coordinates, "stated max_error", found.max_error, header.max_error, text)


def _loosened(psnr: float) -> float:
    """Give the PSNR that is left of one when another decoder's rounding comes on top."""
    return -10 * math.log10(10 ** (-psnr / 10) + _DECODER_TOLERANCE**2)


def _psnr_agree(found: float, stated: float) -> bool:
    if math.isinf(found) or math.isinf(stated):
        return found == stated
    # As mean squared errors, relative to the range.
    x, y = 10 ** (-found / 10), 10 ** (-stated / 10)
    return abs(x - y) <= _STATED_TOLERANCE * y + _DECODER_TOLERANCE**2


def _errors_agree(found: Comparison, header: Header) -> bool:
    if math.isinf(header.max_error):
        return True
    slack = _STATED_TOLERANCE * header.max_error + _DECODER_TOLERANCE * found.span
    if header.info.dtype.kind in "iu" and found.span > 0:
        # A value next to a half is rounded to either side.
        slack += 1
    return abs(found.max_error - header.max_error) <= slack


def _without_checksums(data: bytes, trailing_bytes: int) -> bytes:
    """Check and remove the CRC-32C that zarr appended."""
    for _ in range(0, trailing_bytes, _CRC_BYTES):
        data, stored = data[:-_CRC_BYTES], data[-_CRC_BYTES:]
        if google_crc32c.value(data) != int.from_bytes(stored, "little"):
            raise CorruptStreamError("zarr's CRC-32C behind the stream does not match")
    return data


def _check_layout(decoded: np.ndarray, promises: Promises) -> None:
    if decoded.shape != promises.chunk_shape or not same_dtype(decoded.dtype, promises.dtype):
        raise CorruptStreamError(
            f"the stream has shape {decoded.shape} and dtype {decoded.dtype}, "
            f"but the array's chunks have {promises.chunk_shape} and {promises.dtype}"
        )


def _parts(header: Header) -> dict[str, int]:
    assert header.layout is not None
    parts = {"header": header.layout.header_bytes}
    parts |= {Section(key).name.lower(): n for key, n in header.layout.section_bytes.items()}
    return {**parts, "checksum": header.layout.total_bytes - sum(parts.values())}
