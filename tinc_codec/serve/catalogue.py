"""What a store holds, found node by node as clients ask; only this can be asked for."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from zarr.abc.store import RangeByteRequest
from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import sync

from tinc_codec.errors import UnsupportedDataError
from tinc_codec.serve.keys import METADATA_NAMES, ChunkKeys
from tinc_codec.serve.metadata import (
    Compressor,
    is_decoded,
    parse_document,
    served_array,
    served_bytes,
)
from tinc_codec.serve.stores import GuardedStore

__all__ = ["Catalogue", "Node"]

_MAX_NODES = 4096
_NAMES = {3: ("zarr.json",), 2: (".zarray", ".zattrs", ".zgroup", ".zmetadata")}


@dataclass(frozen=True)
class Node:
    """A group or an array of the store.

    Attributes
    ----------
    path : tuple of str
        From the root that is served.
    zarr_format : int
        2 or 3.
    digest : str
        Of its metadata document: what was decoded under another one is not used any more.
    document : mapping
        Its metadata, as it is stored; empty for a group.
    decoded : bool
        Whether chunks are decoded; else they are passed on as they are.
    keys : ChunkKeys or None
        None for a group, and for an array whose chunks have unknown names.
    is_array : bool
    """

    path: tuple[str, ...]
    zarr_format: Literal[2, 3]
    digest: str
    is_array: bool
    document: Mapping[str, Any]
    decoded: bool = False
    keys: ChunkKeys | None = None


class Catalogue:
    """The groups and arrays of a store; its methods block and may be called from any thread."""

    def __init__(self, store: GuardedStore, root: str, compressor: Compressor) -> None:
        self.store = store
        self._root = tuple(filter(None, root.split("/")))
        self._compressor = compressor
        self._nodes: OrderedDict[tuple[str, ...], Node] = OrderedDict()
        self._lock = threading.Lock()

    def key(self, path: Sequence[str], rest: str = "") -> str:
        """Return the store's key of something at or below a node."""
        return "/".join(filter(None, (*self._root, *path, rest)))

    def read(self, key: str, start: int | None = None, stop: int = 0) -> bytes | None:
        """Read a value of the store, or its bytes from `start` to before `stop`."""
        part = None if start is None else RangeByteRequest(start, stop)
        found = sync(self.store.get(key, default_buffer_prototype(), part))
        return None if found is None else found.to_bytes()

    def size_bytes(self, key: str) -> int | None:
        """Return the size of a value of the store; None if it is missing."""
        try:
            return sync(self.store.getsize(key))
        except FileNotFoundError:
            return None

    def metadata(self, path: tuple[str, ...], name: str) -> bytes | None:
        """Return a metadata document as it is served; None if there is no such document.

        The store is read anew, so that what has changed is seen.

        Raises
        ------
        UnsupportedDataError
            If the document cannot be read or the array not be served.
        """
        assert name in METADATA_NAMES
        node = self._load(path)
        if node is None or name not in _NAMES[node.zarr_format]:
            return None
        raw = self.read(self.key(path, name))
        return None if raw is None else served_bytes(name, raw, self._compressor)

    def locate(self, segments: tuple[str, ...], *, known: bool = False) -> tuple[Node, str] | None:
        """Find the array that a path leads into, and what of the path names the chunk.

        Parameters
        ----------
        segments : tuple of str
        known : bool
            Look only at what was read before; nothing blocks then.

        Returns
        -------
        (Node, str) or None
        """
        for length in range(len(segments)):
            path = segments[:length]
            node = self._known(path) if known else self._known(path) or self._load(path)
            if node is None:
                return None
            if node.is_array:
                return node, "/".join(segments[length:])
        return None

    def _known(self, path: tuple[str, ...]) -> Node | None:
        with self._lock:
            node = self._nodes.get(path)
            if node is not None:
                self._nodes.move_to_end(path)
            return node

    def _load(self, path: tuple[str, ...]) -> Node | None:
        """Read a node of which all ancestors are groups; None if there is none."""
        if path:
            parent = self._known(path[:-1]) or self._load(path[:-1])
            if parent is None or parent.is_array:
                return None
        for name in ("zarr.json", ".zarray", ".zgroup"):
            raw = self.read(self.key(path, name))
            if raw is not None:
                node = _read_node(path, name, raw, self._compressor)
                break
        else:
            node = None
        with self._lock:
            if node is None:
                self._nodes.pop(path, None)
                return None
            self._nodes[path] = node
            self._nodes.move_to_end(path)
            while len(self._nodes) > _MAX_NODES:
                self._nodes.popitem(last=False)
        return node


def _read_node(path: tuple[str, ...], name: str, raw: bytes, compressor: Compressor) -> Node:
    document = parse_document(raw)
    zarr_format: Literal[2, 3] = 3 if name == "zarr.json" else 2
    digest = hashlib.blake2b(raw, digest_size=16).hexdigest()
    if name == ".zgroup" or (zarr_format == 3 and document.get("node_type") == "group"):
        return Node(path, zarr_format, digest, False, {})
    try:
        decoded = is_decoded(document)
        served = served_array(document, compressor) if decoded else document
        keys = _chunk_keys(served, zarr_format)
    except UnsupportedDataError as error:
        raise UnsupportedDataError(f"array {'/'.join(path)!r}: {error}") from error
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UnsupportedDataError(
            f"array {'/'.join(path)!r}: its metadata cannot be read: {error!r}"
        ) from error
    return Node(path, zarr_format, digest, True, document, decoded, keys)


def _chunk_keys(document: Mapping[str, Any], zarr_format: int) -> ChunkKeys | None:
    shape = document["shape"]
    if zarr_format == 2:
        return ChunkKeys.v2(document, _grid_shape(shape, document["chunks"]))
    grid = document["chunk_grid"]
    if grid["name"] != "regular":
        return None
    return ChunkKeys.v3(document, _grid_shape(shape, grid["configuration"]["chunk_shape"]))


def _grid_shape(shape: Sequence[int], chunk_shape: Sequence[int]) -> tuple[int, ...]:
    return tuple(-(-n // c) for n, c in zip(shape, chunk_shape, strict=True))
