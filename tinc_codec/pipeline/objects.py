"""What lies under one key of the destination: a chunk's stream, or a shard of them."""

import math
from collections.abc import Iterator, Mapping

import google_crc32c
import numpy as np

from tinc_codec import config
from tinc_codec.bitstream.header import Header, read_stream
from tinc_codec.codec import decode_chunk
from tinc_codec.errors import ConfigError, CorruptStreamError
from tinc_codec.inspection.layout import ShardIndex
from tinc_codec.inspection.report import ChunkReport, describe_chunk
from tinc_codec.metrics import measure
from tinc_codec.pipeline.target import Position, Target
from tinc_codec.volume.chunk import analyse

__all__ = ["compare_object", "pack_shard", "read_object"]

# Headers keep quality as float32.
_STATED_TOLERANCE = 1e-6
_ABSENT = 2**64 - 1


def pack_shard(streams: Mapping[Position, bytes], position: Position, target: Target) -> bytes:
    """Join the streams of a shard, with the index behind them as zarr expects it."""
    table = np.full((*target.inner_grid, 2), _ABSENT, dtype="<u8")
    ordered, offset = [], 0
    for coordinates, stream in sorted(streams.items()):
        table[_local(coordinates, position, target)] = offset, len(stream)
        ordered.append(stream)
        offset += len(stream)
    index = table.tobytes()
    checksum = google_crc32c.value(index).to_bytes(4, "little")
    return b"".join([*ordered, index, checksum])


def _local(coordinates: Position, position: Position, target: Target) -> Position:
    return tuple(
        c - p * n for c, p, n in zip(coordinates, position, target.inner_grid, strict=True)
    )


def _streams(data: bytes, position: Position, target: Target) -> dict[Position, bytes]:
    """Return the streams of a stored chunk or shard by the coordinates of their chunks.

    Raises
    ------
    FormatError
        If a chunk is missing from a shard, or its index is damaged.
    """
    if target.shards is None:
        return {position: data}
    index = ShardIndex(target.inner_grid, False, np.dtype("<u8"), 1)
    entries = {
        local: data[offset : offset + length]
        for local, offset, length in index.read(data[-index.size_bytes :])
    }
    found = {}
    for coordinates in target.chunks_of(position):
        local = _local(coordinates, position, target)
        if local not in entries:
            raise CorruptStreamError(f"shard {position}: chunk {coordinates} is missing")
        found[coordinates] = entries[local]
    return found


def _header(stream: bytes, target: Target) -> Header:
    header = read_stream(stream, max_decoded_bytes=config.get().max_decoded_bytes)
    info = header.info
    if info.shape != target.chunks or info.dtype != np.dtype(target.dtype):
        raise CorruptStreamError(
            f"the stream has shape {info.shape} and dtype {info.dtype}, the array's chunks have "
            f"{target.chunks} and {target.dtype}"
        )
    return header


def read_object(data: bytes, position: Position, target: Target) -> tuple[ChunkReport, ...]:
    """Check a stored chunk or shard, checksums included, and report its chunks.

    Parameters
    ----------
    data : bytes
    position : Position
    target : Target

    Raises
    ------
    FormatError
        If it is not whole.
    """
    return tuple(
        describe_chunk(_header(stream, target), coordinates, target.chunks, target.shape)
        for coordinates, stream in _streams(data, position, target).items()
    )


def compare_object(
    data: bytes,
    position: Position,
    target: Target,
    voxels: Iterator[tuple[Position, np.ndarray]],
) -> None:
    """Check that stored chunks were made from these voxels: their quality is what they say.

    Raises
    ------
    ConfigError
        If one was not.
    """
    streams = _streams(data, position, target)
    for coordinates, part in voxels:
        chunk = np.full(target.chunks, target.fill_value, dtype=target.dtype)
        chunk[tuple(slice(0, n) for n in part.shape)] = part
        header = _header(streams[coordinates], target)
        info, classes = analyse(chunk)
        same = info == header.info
        if same:
            inside = info.valid_slices
            finite = None if classes is None else classes == 0
            decoded = decode_chunk(streams[coordinates])
            quality = measure(chunk[inside], decoded[inside], finite)
            same = _agree(quality.psnr, header.psnr) and _agree(quality.max_error, header.max_error)
        if not same:
            raise ConfigError(
                f"chunk {coordinates} was made from other voxels: the source has changed since; "
                "overwrite=True (--overwrite) starts anew"
            )


def _agree(found: float, stated: float) -> bool:
    return math.isclose(found, stated, rel_tol=_STATED_TOLERANCE)
