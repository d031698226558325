"""A chunk's sections -> the voxels of a box, bit for bit those that the whole chunk has there.

What a box cannot do without, the decoded symbols of all sections, is kept for recently used chunks.
"""

import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise, product
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np

from tinc_codec.bitstream.header import Header
from tinc_codec.bitstream.sections import Section
from tinc_codec.errors import ConfigError
from tinc_codec.model.evaluate import store_values
from tinc_codec.model.render import Tree, read_model
from tinc_codec.model.wavelet import Ranges, inverse_region
from tinc_codec.volume.chunk import (
    SPATIAL_NDIM,
    ChunkInfo,
    allocate,
    fill_constant,
    finish,
    valid_view,
)
from tinc_codec.volume.mask import decode_classes

if TYPE_CHECKING:
    from tinc_codec.model.postfilter import PostFilter
    from tinc_codec.quantise.corrections import Corrections

CACHE_BYTES = 64 << 20
"""Memory that opened chunks may keep: eight of 128^3 voxels with features."""

_VOXELS_PER_THREAD = 1 << 16


@dataclass(frozen=True, eq=False)
class OpenChunk:
    """A chunk whose sections are decoded, ready to give any of its voxels; it is never changed.

    Attributes
    ----------
    info : ChunkInfo
    tree : Tree or None
    coefficients : ndarray of float32 or None
        Of the features, shape (B, z, y, x) as in `model.wavelet`.
    postfilter : PostFilter or None
    corrections : Corrections or None
    classes : ndarray of uint8 or None
        Shape `info.valid_extent`.
    """

    info: ChunkInfo
    tree: Tree | None
    coefficients: np.ndarray | None
    postfilter: "PostFilter | None"
    corrections: "Corrections | None"
    classes: np.ndarray | None

    @property
    def size_bytes(self) -> int:
        """Memory of the decoded sections in bytes."""
        found = [self.coefficients, self.classes]
        if self.tree is not None:
            found.append(self.tree.parameters)
        if self.corrections is not None:
            c = self.corrections
            found += [c.positions, c.multiples, c.absolutes]
        if self.postfilter is not None:
            found.append(self.postfilter.parameters)
        return sum(array.nbytes for array in found if array is not None)


def open_sections(header: Header) -> OpenChunk:
    """Decode all sections of a stream.

    Parameters
    ----------
    header : Header
        From `bitstream.header.read_stream`.

    Raises
    ------
    FormatError
        If a section is damaged.
    """
    info, classes, coefficients = header.info, None, None
    if Section.MASK in header.sections:
        classes = decode_classes(header.sections[Section.MASK], info.valid_extent)
    model = read_model(header)
    if model is None:
        return OpenChunk(info, None, None, None, None, classes)
    if model.features is not None:
        from tinc_codec.model.features import coefficients_of

        coefficients = coefficients_of(model.features)
    return OpenChunk(info, model.tree, coefficients, model.postfilter, model.corrections, classes)


class _Sized(Protocol):
    @property
    def size_bytes(self) -> int: ...


_Kept = TypeVar("_Kept", bound=_Sized)


class ChunkCache:
    """The most recently used opened chunks, found by the bytes of their streams; thread-safe.

    Attributes
    ----------
    size_bytes : int
        What the chunks and their streams take together.
    """

    def __init__(self) -> None:
        self.size_bytes = 0
        self._chunks: OrderedDict[bytes, Any] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._chunks)

    def open(self, stream: bytes, header: Header, limit_bytes: int = CACHE_BYTES) -> OpenChunk:
        """Return the chunk of a stream, opened now or before.

        Parameters
        ----------
        stream : bytes
            The whole stream: equal bytes are one chunk, so that nothing can be mistaken.
        header : Header
            What `read_stream` made of it.
        limit_bytes : int
            How large the cache may be afterwards; a chunk that is larger is not kept.

        Raises
        ------
        FormatError
            If a section is damaged.
        """
        return self.keep(stream, partial(open_sections, header), limit_bytes)

    def keep(self, key: bytes, make: Callable[[], _Kept], limit_bytes: int = CACHE_BYTES) -> _Kept:
        """Return what was made for a key, now or before.

        Parameters
        ----------
        key : bytes
            Tells everything that what is made depends on.
        make : callable
            Makes it: an object that is never changed, with its memory as `size_bytes`.
        limit_bytes : int
            As for `open`.
        """
        with self._lock:
            kept = self._chunks.get(key)
            if kept is not None:
                self._chunks.move_to_end(key)
                return kept
        # Not under the lock: two threads may make one thing twice, none waits for another's.
        made = make()
        n_bytes = made.size_bytes + len(key)
        with self._lock:
            if n_bytes <= limit_bytes and key not in self._chunks:
                self._chunks[key] = made
                self.size_bytes += n_bytes
            while self.size_bytes > limit_bytes:
                oldest, dropped = self._chunks.popitem(last=False)
                self.size_bytes -= dropped.size_bytes + len(oldest)
        return made

    def clear(self) -> None:
        """Forget all chunks."""
        with self._lock:
            self._chunks.clear()
            self.size_bytes = 0

    def after_fork(self) -> None:
        """Take a new lock: a thread of the parent may have held the old one."""
        self._lock = threading.Lock()


CACHE = ChunkCache()
"""The chunks that this process has opened."""

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=CACHE.after_fork)


def check_region(region: Sequence[slice], shape: tuple[int, ...]) -> tuple[slice, ...]:
    """Return a region with starts and stops that lie within a shape, as NumPy takes slices.

    Raises
    ------
    ConfigError
        If it is not one slice of step 1 per axis.
    """
    region = tuple(region)
    if len(region) != len(shape) or not all(isinstance(part, slice) for part in region):
        raise ConfigError(f"region={region!r} is not one slice for each of {len(shape)} axes")
    bounds = []
    for part, n in zip(region, shape, strict=True):
        start, stop, step = part.indices(n)
        if step != 1:
            raise ConfigError(f"region={region!r} has a step of {step}, only 1 is allowed")
        bounds.append(slice(start, max(start, stop)))
    return tuple(bounds)


def render_region(chunk: OpenChunk, region: Sequence[slice], threads: int) -> np.ndarray:
    """Decode a box of a chunk on the CPU.

    Parameters
    ----------
    chunk : OpenChunk
    region : sequence of slice
        One per axis of the chunk, of step 1; may be empty or reach into the padding.
    threads : int

    Returns
    -------
    ndarray
        Shape of the region; dtype, byte order and memory order of the chunk. The bits are those
        that decoding the whole chunk on the CPU gives.

    Raises
    ------
    ConfigError
        See `check_region`.
    """
    info = chunk.info
    region = check_region(region, info.shape)
    box = replace(
        info,
        shape=tuple(part.stop - part.start for part in region),
        valid_extent=tuple(
            max(0, min(part.stop, n) - part.start)
            for part, n in zip(region, info.valid_extent, strict=True)
        ),
    )
    out = allocate(box)
    if 0 in box.valid_extent:
        return finish(out, box, None)
    valid = tuple(
        slice(part.start, part.start + n) for part, n in zip(region, box.valid_extent, strict=True)
    )
    classes = None if chunk.classes is None else chunk.classes[valid]
    if chunk.tree is None and chunk.coefficients is None:
        fill_constant(out, box)
        return finish(out, box, classes)
    view = valid_view(out, box)
    volumes, ranges = _place(info, valid)
    store_values(_filtered(chunk, volumes, ranges, threads), box, view, threads)
    if chunk.corrections is not None:
        from tinc_codec.quantise.corrections import apply_corrections

        inside = _corrections_inside(chunk.corrections, info.batched_shape, volumes, ranges)
        apply_corrections(view, inside, info)
    return finish(out, box, classes, view)


def _place(info: ChunkInfo, valid: tuple[slice, ...]) -> tuple[np.ndarray, Ranges]:
    """Say which volumes (int64, ascending) and which ranges along z, y, x some valid voxels are."""
    n_lead = max(0, len(valid) - SPATIAL_NDIM)
    numbers = np.arange(info.batched_shape[0]).reshape(info.valid_extent[:n_lead])
    spatial = [(part.start, part.stop) for part in valid[n_lead:]]
    z, y, x = [(0, 1)] * (SPATIAL_NDIM - len(spatial)) + spatial
    return numbers[valid[:n_lead]].reshape(-1), (z, y, x)


def _filtered(chunk: OpenChunk, volumes: np.ndarray, ranges: Ranges, threads: int) -> np.ndarray:
    """Evaluate a box as `render.model_values` does: t as float32 [volume, z, y, x]."""
    if chunk.postfilter is None:
        return _values(chunk, volumes, ranges, threads)
    from tinc_codec.model.filtering import apply_postfilter
    from tinc_codec.model.postfilter import REACH

    grid = chunk.info.batched_shape[1:]
    z, y, x = (
        (max(0, start - REACH), min(n, stop + REACH))
        for (start, stop), n in zip(ranges, grid, strict=True)
    )
    inner = [
        slice(start - first, stop - first)
        for (start, stop), (first, _) in zip(ranges, (z, y, x), strict=True)
    ]
    wider = _values(chunk, volumes, (z, y, x), threads)
    return apply_postfilter(wider, chunk.postfilter, threads, inner)


def _values(chunk: OpenChunk, volumes: np.ndarray, ranges: Ranges, threads: int) -> np.ndarray:
    """Evaluate a box before its post-filter: t as float32 [volume, z, y, x], not clipped."""
    sizes = tuple(stop - start for start, stop in ranges)
    # A leaf's kernel writes where its voxels lie in the whole grid. With room in front for as many
    # elements as the box's corner is away, voxel `corner` of that grid is the box's first; the
    # room is never touched.
    strides = (sizes[1] * sizes[2], sizes[2], 1)
    corner = 0
    if chunk.tree is not None:
        corner = sum(start * step for (start, _), step in zip(ranges, strides, strict=True))
    voxels = sizes[0] * strides[0]
    flat = np.zeros(corner + len(volumes) * voxels, np.float32)
    values = flat[corner:].reshape(len(volumes), *sizes)
    if chunk.coefficients is not None:
        for run in _runs(volumes):
            values[run] = inverse_region(
                chunk.coefficients[volumes[run][0] : volumes[run][-1] + 1], ranges, threads
            )
    if chunk.tree is not None:
        targets = [
            np.lib.stride_tricks.as_strided(
                flat[number * voxels :],
                shape=tuple(stop for _, stop in ranges),
                strides=tuple(flat.itemsize * step for step in strides),
            )
            for number in range(len(volumes))
        ]
        _add_leaves(chunk.tree, volumes, ranges, targets, threads)
    return values


def _runs(volumes: np.ndarray) -> list[slice]:
    """Cut ascending numbers where one is left out."""
    ends = [0, *(np.flatnonzero(np.diff(volumes) != 1) + 1).tolist(), len(volumes)]
    return [slice(*pair) for pair in pairwise(ends)]


def _add_leaves(
    tree: Tree, volumes: np.ndarray, ranges: Ranges, targets: list[np.ndarray], threads: int
) -> None:
    """Add what a tree says within some ranges: whole leaves as far as they lie in them.

    Every voxel is computed by itself, in an order of operations that does not depend on the
    others, so that a part of a leaf has the bits of the whole.
    """
    from tinc_codec.model import fused

    shape = tree.shape
    low, high = np.array(ranges).T
    starts = np.maximum(shape.leaf_origins, low)
    extents = np.minimum(shape.leaf_origins + shape.leaf_extents, high) - starts
    touched = (extents > 0).all(axis=1)
    paths, starts, extents = shape.leaf_paths[touched], starts[touched], extents[touched]

    def work(volume: int, target: np.ndarray, first: int, last: int) -> None:
        offset, gain = tree.scaling[volume]
        fused.evaluate_leaves(
            tree.parameters[volume], paths, starts, extents, shape.coordinate_map,
            np.array(shape.axes), np.float32(shape.w0), shape.max_width, first, last,
            np.float32(gain), np.float32(offset), None, False, target,
        )  # fmt: skip

    voxels = len(volumes) * int(extents.prod(axis=1).sum())
    workers = max(1, min(threads, voxels // _VOXELS_PER_THREAD))
    shares = min(len(paths), 4 * workers) if workers > 1 else 1
    bounds = pairwise(len(paths) * i // shares for i in range(shares + 1))
    jobs = [
        (volume, target, *share)
        for (volume, target), share in product(
            zip(volumes.tolist(), targets, strict=True), list(bounds)
        )
    ]
    if workers == 1:
        for job in jobs:
            work(*job)
        return
    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(lambda job: work(*job), jobs))


def _corrections_inside(
    corrections: "Corrections",
    shape: tuple[int, int, int, int],
    volumes: np.ndarray,
    ranges: Ranges,
) -> "Corrections":
    """Select the corrections of a box, with positions counted in the box."""
    starts, stops = zip(*ranges, strict=True)
    # Positions ascend: only those from the box's first voxel to its last need a look.
    first = np.ravel_multi_index((volumes[0], *starts), shape)
    last = np.ravel_multi_index((volumes[-1], *(stop - 1 for stop in stops)), shape)
    begin, end = np.searchsorted(corrections.positions, [first, last + 1])
    volume, *places = np.unravel_index(corrections.positions[begin:end], shape)
    inside = np.isin(volume, volumes)
    for place, (start, stop) in zip(places, ranges, strict=True):
        inside &= (place >= start) & (place < stop)
    positions = np.ravel_multi_index(
        (
            np.searchsorted(volumes, volume[inside]),
            *(place[inside] - start for place, start in zip(places, starts, strict=True)),
        ),
        (len(volumes), *(stop - start for start, stop in ranges)),
    )
    multiples = corrections.multiples[begin:end]
    n_before = int(np.count_nonzero(corrections.multiples[:begin] == 0))
    kept = np.flatnonzero(inside[multiples == 0]) + n_before
    return replace(
        corrections,
        positions=positions,
        multiples=multiples[inside],
        absolutes=corrections.absolutes[kept],
    )
