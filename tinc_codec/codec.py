"""Chunk <-> bytes: the one place where the stages meet."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from tinc_codec import config
from tinc_codec.bitstream.header import Header, overhead_bytes, read_stream, write_stream
from tinc_codec.bitstream.reader import byte_view
from tinc_codec.bitstream.sections import Section
from tinc_codec.errors import TargetError
from tinc_codec.metrics import measure
from tinc_codec.params import EncodingParams
from tinc_codec.volume.chunk import (
    ChunkInfo,
    allocate,
    analyse,
    fill_constant,
    finish,
    is_constant,
    normalise,
    valid_view,
)
from tinc_codec.volume.mask import decode_classes, encode_classes

if TYPE_CHECKING:
    from tinc_codec.model.region import OpenChunk
    from tinc_codec.model.render import ChunkModel

__all__ = [
    "decode_chunk",
    "decode_chunks",
    "decode_region",
    "encode_chunk",
    "encode_chunks",
    "open_chunk",
]


@dataclass(frozen=True)
class _Job:
    """A chunk that waits for its model."""

    index: int
    array: np.ndarray
    info: ChunkInfo
    classes: np.ndarray | None
    sections: dict[int, bytes]
    limit_bytes: int | None


def encode_chunk(array: Any, params: EncodingParams) -> bytes:
    """Encode one chunk.

    Parameters
    ----------
    array : array-like
        1 to 5 axes of a supported dtype; the last three are (z, y, x). It is only read.
    params : EncodingParams

    Returns
    -------
    bytes
        What `params` promises of them, or of what they decode to, is checked by decoding.

    Raises
    ------
    UnsupportedDataError
        If the dtype or the shape is not one that this codec stores.
    TargetError
        If the promise cannot be kept for this chunk.

    References
    ----------
    `docs/format.md`
    """
    return encode_chunks([array], params)[0]


def encode_chunks(arrays: Sequence[Any], params: EncodingParams) -> list[bytes]:
    """Encode chunks; those of one shape are fitted together, with the bytes each has alone.

    Parameters and errors as in `encode_chunk`. One chunk that cannot be encoded fails the call.
    """
    arrays = [np.asarray(array) for array in arrays]
    streams: list[bytes | None] = [None] * len(arrays)
    jobs = []
    for index, array in enumerate(arrays):
        info, classes = analyse(array)
        sections = {} if classes is None else {int(Section.MASK): encode_classes(classes)}
        limit = _limit_bytes(array, params.ratio)
        if is_constant(info):
            stream = write_stream(Header(info, math.inf, 0.0, sections))
            _check_limit(len(stream), limit, array)
            streams[index] = stream
        else:
            jobs.append(_Job(index, array, info, classes, sections, limit))
    if jobs:
        from tinc_codec.fit.sharing import Work, encode_models

        with config.cpu_slots() as threads:
            works = [
                Work(
                    np.asarray(job.array)[job.info.valid_slices].reshape(job.info.batched_shape),
                    normalise(job.array, job.info, job.classes),
                    job.info,
                    job.classes,
                    partial(_room, job),
                    partial(_refuse, job),
                )
                for job in jobs
            ]
            models = encode_models(works, params, config.resolve_device(), threads)
        for job, sections in zip(jobs, models, strict=True):
            streams[job.index] = _seal(job, sections, params)
    return [stream for stream in streams if stream is not None]


def _limit_bytes(array: np.ndarray, ratio: float | None) -> int | None:
    return None if ratio is None else math.floor(Fraction(array.nbytes) / Fraction(ratio))


def _check_limit(size_bytes: int, limit_bytes: int | None, array: np.ndarray) -> None:
    if limit_bytes is None or size_bytes <= limit_bytes:
        return
    hundredths = 100 * array.nbytes // size_bytes
    if math.floor(Fraction(array.nbytes) / Fraction(hundredths / 100)) < size_bytes:
        hundredths -= 1
    raise TargetError(
        f"a chunk of shape {array.shape} and dtype {array.dtype} needs at least {size_bytes} "
        f"bytes, the ratio allows {limit_bytes}; the largest possible ratio for it is "
        f"{hundredths / 100}; use larger chunks or a smaller ratio"
    )


def _total(job: _Job, models: Mapping[int, int]) -> int:
    """Count the bytes of a stream from the lengths of its model sections."""
    lengths = {section: len(body) for section, body in job.sections.items()} | dict(models)
    return overhead_bytes(job.info, lengths) + sum(lengths.values())


def _room(job: _Job, ids: Sequence[int]) -> int:
    """Count the bytes left for the bodies of some model sections together; at most 0: none."""
    assert job.limit_bytes is not None

    def others(model_bytes: int) -> int:
        most = max(1, model_bytes)
        return _total(job, dict.fromkeys(ids, most)) - most * len(ids)

    # The length of the section's length depends on itself: the second answer never grows it.
    return job.limit_bytes - others(job.limit_bytes - others(1))


def _refuse(job: _Job, least: Mapping[int, int]) -> NoReturn:
    """Say that model sections cannot be as short as the limit asks; how short they can be."""
    size_bytes = _total(job, least)
    _check_limit(size_bytes, job.limit_bytes, job.array)
    raise TargetError(f"a chunk of shape {job.array.shape} does not fit {job.limit_bytes} bytes")


def _seal(job: _Job, models: Mapping[int, bytes], params: EncodingParams) -> bytes:
    """Build the stream, decode it as a reader will, and record what it achieves.

    Raises
    ------
    TargetError
        If what a reader gets breaks the promise.
    """
    sections = {**job.sections, **models}
    draft = write_stream(Header(job.info, 0.0, 0.0, sections))
    _check_limit(len(draft), job.limit_bytes, job.array)
    (decoded,) = _decode([draft])
    valid = job.info.valid_slices
    original = np.asarray(job.array)[valid]
    finite = None if job.classes is None else job.classes == 0
    quality = measure(original, decoded[valid], finite)
    if params.psnr is not None and quality.psnr < params.psnr:
        raise TargetError(f"psnr={params.psnr:g} dB was not reached: {quality.psnr:.3f} dB")
    if params.max_error is not None and not quality.max_error <= params.max_error:
        raise TargetError(f"max_error={params.max_error:g} was not kept: {quality.max_error:g}")
    return write_stream(Header(job.info, quality.psnr, quality.max_error, sections))


def decode_chunk(data: Any) -> np.ndarray:
    """Decode one chunk.

    Parameters
    ----------
    data : bytes-like or ndarray of uint8
        What `encode_chunk` returned.

    Returns
    -------
    ndarray
        Shape, dtype, byte order and memory order of the original.

    Raises
    ------
    FormatError
        If the bytes are no intact chunk, or declare one larger than
        `tinc_codec.config.get().max_decoded_bytes`.
    """
    return decode_chunks([data])[0]


def decode_chunks(streams: Sequence[Any]) -> list[np.ndarray]:
    """Decode chunks, in their order; on a GPU those of one shape are evaluated together.

    Parameters and errors as in `decode_chunk`.
    """
    return _decode(streams)


def decode_region(data: Any, region: Sequence[slice]) -> np.ndarray:
    """Decode a box of a chunk; only what it needs is evaluated.

    Parameters
    ----------
    data : bytes-like or ndarray of uint8
        What `encode_chunk` returned.
    region : sequence of slice
        One per axis of the chunk, of step 1.

    Returns
    -------
    ndarray
        Equal to `decode_chunk(data)[region]`, bit for bit.

    Raises
    ------
    FormatError
        As `decode_chunk`.
    ConfigError
        If the region is not one slice of step 1 per axis.
    """
    from tinc_codec.model.region import check_region, render_region

    with config.cpu_slots() as threads:
        if config.resolve_device() != "cpu":
            # The last bits of a GPU depend on how much it evaluates at once.
            whole = decode_chunk(data)
            return whole[check_region(region, whole.shape)].copy()
        return render_region(open_chunk(data), region, threads)


def open_chunk(data: Any) -> "OpenChunk":
    """Check a stream and decode its sections, to decode parts of the chunk from them.

    Chunks that were opened lately are kept, so that the next part costs only itself.

    Parameters and errors as in `decode_chunk`.
    """
    from tinc_codec.model.region import CACHE

    settings = config.get()
    header = read_stream(data, max_decoded_bytes=settings.max_decoded_bytes)
    return CACHE.open(bytes(byte_view(data)), header, settings.cache_bytes)


def _decode(streams: Sequence[Any]) -> list[np.ndarray]:
    limit = config.get().max_decoded_bytes
    headers = [read_stream(data, max_decoded_bytes=limit) for data in streams]
    if any(_has_model(header) for header in headers):
        with config.cpu_slots() as threads:
            device = config.resolve_device()
            if device != "cpu":
                return _decode_together(headers, device, threads)
            # One after the other, so that what is decoded in between is that of one chunk.
            return [out for h in headers for out in _decode_together([h], device, threads)]
    return _decode_together(headers, "cpu", 1)


def _has_model(header: Header) -> bool:
    return bool({Section.TREE, Section.FEATURES} & set(header.sections))


def _decode_together(headers: Sequence[Header], device: str, threads: int) -> list[np.ndarray]:
    """Decode chunks whose bytes are checked; nothing of their size is allocated before."""
    classes = [_classes(header) for header in headers]
    models: list[ChunkModel | None] = [None] * len(headers)
    if any(map(_has_model, headers)):
        from tinc_codec.model.render import read_model, render

        models = [read_model(header) for header in headers]
    outs = [allocate(header.info) for header in headers]
    views = [
        None if model is None else valid_view(out, model.info)
        for model, out in zip(models, outs, strict=True)
    ]
    pairs = [(m, v) for m, v in zip(models, views, strict=True) if m is not None and v is not None]
    if pairs:
        render([model for model, _ in pairs], [view for _, view in pairs], device, threads)
    for header, kinds, out, view in zip(headers, classes, outs, views, strict=True):
        if view is None:
            fill_constant(out, header.info)
        finish(out, header.info, kinds, view)
    return outs


def _classes(header: Header) -> np.ndarray | None:
    if Section.MASK not in header.sections:
        return None
    return decode_classes(header.sections[Section.MASK], header.info.valid_extent)
