"""Chunks whose sections are decoded, and the cache of those that were used last.

A box of a chunk cannot do without the decoded symbols of all its sections, those of a lattice's
slabs and of the features' tiles apart.
"""

import os
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np

from tinc_codec.bitstream.header import Header
from tinc_codec.bitstream.sections import Section
from tinc_codec.model.render import Tree, read_model
from tinc_codec.volume.chunk import ChunkInfo
from tinc_codec.volume.mask import decode_classes

if TYPE_CHECKING:
    from tinc_codec.model.feature_voxels import FeatureVoxels
    from tinc_codec.model.lattice_voxels import LatticeVoxels
    from tinc_codec.model.postfilter import PostFilter
    from tinc_codec.quantise.corrections import Corrections

__all__ = ["CACHE", "CACHE_BYTES", "ChunkCache", "OpenChunk", "open_sections"]

CACHE_BYTES = 64 << 20
"""Memory that opened chunks may keep: eight of 128^3 voxels with features."""


@dataclass(frozen=True, eq=False)
class OpenChunk:
    """A chunk whose sections are decoded, ready to give any of its voxels.

    Attributes
    ----------
    info : ChunkInfo
    tree : Tree or None
    features : FeatureVoxels or None
    postfilter : PostFilter or None
    corrections : Corrections or None
    classes : ndarray of uint8 or None
        Shape `info.valid_extent`.
    lattice : LatticeVoxels or None
    """

    info: ChunkInfo
    tree: Tree | None
    features: "FeatureVoxels | None"
    postfilter: "PostFilter | None"
    corrections: "Corrections | None"
    classes: np.ndarray | None
    lattice: "LatticeVoxels | None" = None

    @property
    def is_constant(self) -> bool:
        """Whether no model stands for the voxels."""
        return self.tree is None and self.features is None and self.lattice is None

    @property
    def size_bytes(self) -> int:
        """Memory of the decoded sections in bytes."""
        found = [self.classes]
        if self.tree is not None:
            found.append(self.tree.parameters)
        if self.corrections is not None:
            c = self.corrections
            found += [c.positions, c.multiples, c.absolutes]
        if self.postfilter is not None:
            found.append(self.postfilter.parameters)
        parts = [part.size_bytes for part in (self.features, self.lattice) if part is not None]
        return sum(parts) + sum(array.nbytes for array in found if array is not None)


def open_sections(header: Header) -> OpenChunk:
    """Decode all sections of a stream but a lattice's slabs and the tiles of features.

    Parameters
    ----------
    header : Header
        From `bitstream.header.read_stream`.

    Raises
    ------
    FormatError
        If a section is damaged.
    """
    info, classes, features = header.info, None, None
    if Section.MASK in header.sections:
        classes = decode_classes(header.sections[Section.MASK], info.valid_extent)
    if Section.LATTICE in header.sections:
        from tinc_codec.model.lattice_voxels import LatticeVoxels
        from tinc_codec.quantise.lattice_section import parse_lattice

        coded = parse_lattice(header.sections[Section.LATTICE], info)
        lattice = LatticeVoxels(coded, info, classes)
        return OpenChunk(info, None, None, None, None, classes, lattice)
    model = read_model(header, with_features=False)
    if model is None:
        return OpenChunk(info, None, None, None, None, classes)
    if Section.FEATURES in header.sections:
        from tinc_codec.model.feature_voxels import FeatureVoxels
        from tinc_codec.model.features import parse_features

        volumes, z, y, x = info.batched_shape
        section = header.sections[Section.FEATURES]
        features = FeatureVoxels(parse_features(section, (z, y, x), volumes))
    return OpenChunk(info, model.tree, features, model.postfilter, model.corrections, classes)


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
            Makes it: an object that threads may share, with its memory as `size_bytes`.
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
