"""Chunk <-> bytes: the one place where the stages meet."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np

from tinc_codec import config
from tinc_codec.bitstream.header import Header, overhead_bytes, read_stream, write_stream
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
    from tinc_codec.model.octree_mlp import TreeShape

__all__ = ["decode_chunk", "decode_chunks", "encode_chunk", "encode_chunks"]

_DEVICE_VOXELS = 1 << 28


@dataclass(frozen=True)
class _Job:
    """A chunk that waits for its model."""

    index: int
    array: np.ndarray
    info: ChunkInfo
    classes: np.ndarray | None
    sections: dict[int, bytes]
    limit_bytes: int


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
        At most `array.nbytes / params.ratio` of them; checked by decoding.

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
        from tinc_codec.fit.encoder import encode_trees

        with config.cpu_slots() as threads:
            device = config.resolve_device()
            volumes = [normalise(job.array, job.info, job.classes) for job in jobs]
            limits = [_tree_limit(job) for job in jobs]
            bodies = encode_trees(
                volumes,
                [job.classes for job in jobs],
                limits,
                params,
                device,
                threads,
            )
            for job, body in zip(jobs, bodies, strict=True):
                streams[job.index] = _seal(job, body)
    return [stream for stream in streams if stream is not None]


def _limit_bytes(array: np.ndarray, ratio: float | None) -> int:
    assert ratio is not None
    return math.floor(Fraction(array.nbytes) / Fraction(ratio))


def _check_limit(size_bytes: int, limit_bytes: int, array: np.ndarray) -> None:
    if size_bytes <= limit_bytes:
        return
    hundredths = 100 * array.nbytes // size_bytes
    if _limit_bytes(array, hundredths / 100) < size_bytes:
        hundredths -= 1
    raise TargetError(
        f"a chunk of shape {array.shape} and dtype {array.dtype} needs at least {size_bytes} "
        f"bytes, the ratio allows {limit_bytes}; the largest possible ratio for it is "
        f"{hundredths / 100}; use larger chunks or a smaller ratio"
    )


def _tree_limit(job: _Job) -> int:
    """Bytes left for the tree section."""
    from tinc_codec.model.budget import smallest_section

    lengths = {section: len(body) for section, body in job.sections.items()}

    def others(tree_bytes: int) -> int:
        overhead = overhead_bytes(job.info, {**lengths, Section.TREE: tree_bytes})
        return overhead + sum(lengths.values())

    least = smallest_section(job.info.batched_shape)
    _check_limit(others(least) + least, job.limit_bytes, job.array)
    # The length of the section's length depends on itself: the second answer never grows it.
    return job.limit_bytes - others(job.limit_bytes - others(least))


def _seal(job: _Job, body: bytes) -> bytes:
    """Build the stream, decode it as a reader will, and record what it achieves."""
    sections = {**job.sections, int(Section.TREE): body}
    draft = write_stream(Header(job.info, 0.0, 0.0, sections))
    _check_limit(len(draft), job.limit_bytes, job.array)
    (decoded,) = _decode([draft])
    valid = job.info.valid_slices
    original = np.asarray(job.array)[valid]
    finite = None if job.classes is None else job.classes == 0
    quality = measure(original, decoded[valid], finite)
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


def _decode(streams: Sequence[Any]) -> list[np.ndarray]:
    limit = config.get().max_decoded_bytes
    parsed = [_parse(read_stream(data, max_decoded_bytes=limit)) for data in streams]
    outs = [allocate(model.info) for model in parsed]
    views = [
        None if model.tree is None else valid_view(out, model.info)
        for model, out in zip(parsed, outs, strict=True)
    ]
    trees = [
        (model.tree, model.info, view)
        for model, view in zip(parsed, views, strict=True)
        if model.tree is not None and view is not None
    ]
    if trees:
        _evaluate_trees(trees)
    for model, out, view in zip(parsed, outs, views, strict=True):
        if view is None:
            fill_constant(out, model.info)
        finish(out, model.info, model.classes, view)
    return outs


@dataclass(frozen=True)
class _Tree:
    """A tree ready to be evaluated."""

    shape: "TreeShape"
    parameters: np.ndarray
    scaling: np.ndarray


@dataclass(frozen=True)
class _Parsed:
    """A stream whose sections are decoded; nothing of the chunk's size is allocated yet."""

    info: ChunkInfo
    classes: np.ndarray | None
    tree: _Tree | None


def _parse(header: Header) -> _Parsed:
    info = header.info
    classes = tree = None
    if Section.MASK in header.sections:
        classes = decode_classes(header.sections[Section.MASK], info.valid_extent)
    if Section.TREE in header.sections:
        from tinc_codec.model.section import read_tree, tree_parameters

        volumes, z, y, x = info.batched_shape
        section = read_tree(header.sections[Section.TREE], (z, y, x), volumes)
        scaling = np.array([section.offsets, section.gains], dtype=np.float32).T
        tree = _Tree(section.shape, tree_parameters(section, volumes), scaling)
    return _Parsed(info, classes, tree)


def _evaluate_trees(trees: list[tuple[_Tree, ChunkInfo, np.ndarray]]) -> None:
    from tinc_codec.model.evaluate import evaluate, evaluate_batch

    with config.cpu_slots() as threads:
        device = config.resolve_device()
        if device == "cpu":
            for tree, info, view in trees:
                evaluate(tree.shape, tree.parameters, tree.scaling, info, view, device, threads)
            return
        groups: dict[TreeShape, list[tuple[_Tree, ChunkInfo, np.ndarray]]] = {}
        for item in trees:
            groups.setdefault(item[0].shape, []).append(item)
        for shape, items in groups.items():
            # Bounded, so that the decoded float32 of a batch stays within 1 GiB of the device.
            most = max(1, _DEVICE_VOXELS // math.prod(items[0][2].shape))
            for first in range(0, len(items), most):
                batch, infos, views = zip(*items[first : first + most], strict=True)
                evaluate_batch(
                    shape,
                    [tree.parameters for tree in batch],
                    [tree.scaling for tree in batch],
                    infos,
                    views,
                    device,
                )
