"""Chunk <-> bytes: the one place where the stages meet."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from tinc_codec import config
from tinc_codec.bitstream.header import Header, overhead_bytes, read_stream, write_stream
from tinc_codec.bitstream.reader import byte_view
from tinc_codec.bitstream.sections import Section
from tinc_codec.decode import decode_streams
from tinc_codec.errors import TargetError
from tinc_codec.metrics import measure
from tinc_codec.params import EncodingParams
from tinc_codec.volume.chunk import (
    ChunkInfo,
    analyse,
    is_constant,
    normalise,
)
from tinc_codec.volume.mask import encode_classes

if TYPE_CHECKING:
    from tinc_codec.model.opened import OpenChunk

__all__ = [
    "decode_chunk",
    "decode_chunks",
    "decode_chunks_on_device",
    "decode_level",
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

    As many at once as memory has room for: see `device_memory_bytes` in `tinc_codec.config`.

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
    for part, device in _parts(jobs, params):
        for job, stream in zip(part, _encode_part(part, params, device), strict=True):
            streams[job.index] = stream
    return [stream for stream in streams if stream is not None]


_PART_VOXELS = 1 << 24
"""Voxels of the chunks that are encoded together: 64 MiB of float32."""
_TREES_PART_VOXELS = 1 << 26
"""The same where they are fitted in one batch."""


def _parts(jobs: Sequence[_Job], params: EncodingParams) -> Iterator[tuple[list[_Job], str]]:
    """Cut jobs into parts of one shape that memory has room for, each with a torch device."""
    if not jobs:
        return
    device = config.resolve_device()
    shapes: dict[tuple[int, int, int, int], list[_Job]] = {}
    for job in jobs:
        shapes.setdefault(job.info.batched_shape, []).append(job)
    for shape, group in shapes.items():
        voxels = _TREES_PART_VOXELS if params.model == "tree" else _PART_VOXELS
        most, place = max(1, voxels // math.prod(shape)), device
        if device != "cpu":
            most = min(most, _most_on_device(shape, group, params, device))
            most, place = (most, device) if most else (1, "cpu")
        for first in range(0, len(group), most):
            yield group[first : first + most], place


def _most_on_device(
    shape: tuple[int, int, int, int], jobs: Sequence[_Job], params: EncodingParams, device: str
) -> int:
    """Count the chunks that one fit may hold on a device; 0 where not even one has room."""
    from tinc_codec.fit.memory import fit_bytes

    most = len(jobs)
    # Without a ratio, trees of up to four bytes per voxel are tried.
    least_ratio_bytes = max(64, 4 * math.prod(shape))
    section = max(job.limit_bytes or least_ratio_bytes for job in jobs)
    limit = config.resolve_device_memory(device)
    while most and fit_bytes(shape, section, params, most) > limit:
        most //= 2
    return most


def _encode_part(jobs: Sequence[_Job], params: EncodingParams, device: str) -> list[bytes]:
    """Encode chunks that are not constant, together."""
    from tinc_codec.fit.sharing import encode_models
    from tinc_codec.fit.work import Work

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
        with config.device_slot() if device != "cpu" else nullcontext():
            models = encode_models(works, params, device, threads)
    return _seal(jobs, models, params)


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


def _seal(
    jobs: Sequence[_Job], models: Sequence[Mapping[int, bytes]], params: EncodingParams
) -> list[bytes]:
    """Build streams, decode them as a reader will, and record what they achieve.

    Raises
    ------
    TargetError
        If what a reader gets breaks the promise.
    """
    sections = [{**job.sections, **model} for job, model in zip(jobs, models, strict=True)]
    drafts = [
        write_stream(Header(job.info, 0.0, 0.0, bodies))
        for job, bodies in zip(jobs, sections, strict=True)
    ]
    for job, draft in zip(jobs, drafts, strict=True):
        _check_limit(len(draft), job.limit_bytes, job.array)
    streams = []
    for job, bodies, decoded in zip(jobs, sections, decode_streams(drafts), strict=True):
        valid = job.info.valid_slices
        finite = None if job.classes is None else job.classes == 0
        quality = measure(np.asarray(job.array)[valid], decoded[valid], finite)
        if params.psnr is not None and quality.psnr < params.psnr:
            raise TargetError(f"psnr={params.psnr:g} dB was not reached: {quality.psnr:.3f} dB")
        if params.max_error is not None and not quality.max_error <= params.max_error:
            raise TargetError(f"max_error={params.max_error:g} was not kept: {quality.max_error:g}")
        streams.append(write_stream(Header(job.info, quality.psnr, quality.max_error, bodies)))
    return streams


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
    return decode_streams(streams)


def decode_chunks_on_device(streams: Sequence[Any]) -> list[Any]:
    """Decode chunks and leave them on the device that `config.resolve_device` names.

    Parameters and errors as in `decode_chunk`.

    Returns
    -------
    list of torch.Tensor
        Shape and dtype of each original, in native byte order. On the CPU they share memory with
        what `decode_chunks` returns.
    """
    return decode_streams(streams, on_device=True)


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


def decode_level(data: Any, level: int, extent: Sequence[int] | None = None) -> np.ndarray:
    """Decode a chunk 2^level times smaller along its last three axes, on the CPU.

    Levels that were decoded lately are kept, with the chunks of which parts were read.

    Parameters
    ----------
    data : bytes-like or ndarray of uint8
        What `encode_chunk` returned.
    level : int
        1 to 30.
    extent : sequence of int, optional
        How many voxels of the chunk belong to its array along each axis; all by default.

    Returns
    -------
    ndarray
        Read-only, of the chunk's dtype: about the means of blocks of decoded voxels, see
        `model.levels.render_level`.

    Raises
    ------
    FormatError
        As `decode_chunk`.
    ConfigError
        If the level is out of range.
    """
    from tinc_codec.model.levels import render_level
    from tinc_codec.model.opened import CACHE

    settings = config.get()
    header = read_stream(data, max_decoded_bytes=settings.max_decoded_bytes)
    room = tuple(header.info.shape if extent is None else extent)

    with config.cpu_slots() as threads:
        return CACHE.keep(
            f"level {level} of {room}: ".encode() + bytes(byte_view(data)),
            lambda: render_level(header, level, room, threads),
            settings.cache_bytes,
        ).voxels


def open_chunk(data: Any) -> "OpenChunk":
    """Check a stream and decode its sections, to decode parts of the chunk from them.

    Chunks that were opened lately are kept, so that the next part costs only itself.

    Parameters and errors as in `decode_chunk`.
    """
    from tinc_codec.model.opened import CACHE

    settings = config.get()
    header = read_stream(data, max_decoded_bytes=settings.max_decoded_bytes)
    return CACHE.open(bytes(byte_view(data)), header, settings.cache_bytes)
