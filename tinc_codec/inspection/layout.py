"""Where an array keeps its streams, as its metadata tells it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import google_crc32c
import numpy as np

from tinc_codec.errors import ConfigError, CorruptStreamError, UnsupportedDataError

_TINC, _SHARDING, _CRC = "tinc", "sharding_indexed", "crc32c"
_CRC_BYTES = 4
_ABSENT = 2**64 - 1


@dataclass(frozen=True)
class ShardIndex:
    """How the index of a shard is stored.

    Attributes
    ----------
    grid_shape : tuple of int
        Inner chunks per axis of a shard.
    at_start : bool
        Whether it opens the shard; else it closes it.
    entry_dtype : np.dtype
        Of offsets and lengths: uint64 in either byte order.
    n_checksums : int
        CRC-32C behind it, 0 or 1.
    """

    grid_shape: tuple[int, ...]
    at_start: bool
    entry_dtype: np.dtype
    n_checksums: int

    @property
    def size_bytes(self) -> int:
        """Stored size of the index."""
        return 16 * math.prod(self.grid_shape) + _CRC_BYTES * self.n_checksums

    def read(self, data: bytes) -> list[tuple[tuple[int, ...], int, int]]:
        """Decode an index.

        Parameters
        ----------
        data : bytes

        Returns
        -------
        list of (coordinates within the shard, offset in bytes, length in bytes)
            Of the chunks that are stored, in C order.

        Raises
        ------
        CorruptStreamError
            If its size or checksum is wrong, or a chunk is empty or beyond any file.
        """
        if len(data) != self.size_bytes:
            raise CorruptStreamError(f"index: {self.size_bytes} bytes expected, {len(data)} found")
        content = data[: len(data) - _CRC_BYTES * self.n_checksums]
        crc = data[len(content) :]
        if self.n_checksums and google_crc32c.value(content) != int.from_bytes(crc, "little"):
            raise CorruptStreamError("index: CRC-32C does not match")
        table = np.frombuffer(content, self.entry_dtype).reshape(*self.grid_shape, 2)
        entries = []
        for local in np.ndindex(*self.grid_shape):
            offset, length = map(int, table[local])
            if (offset, length) == (_ABSENT, _ABSENT):
                continue
            if length == 0 or offset + length >= 2**63:
                raise CorruptStreamError(
                    f"index: chunk {local} has offset {offset} and length {length}"
                )
            entries.append((local, offset, length))
        return entries


@dataclass(frozen=True)
class ArrayLayout:
    """What has to be known of an array to read the headers of its streams.

    Attributes
    ----------
    name : str
    shape, chunk_shape : tuple of int
    dtype : np.dtype
    codec : mapping
        Configuration of the TINC codec.
    trailing_bytes : int
        Bytes that zarr appends to every stream.
    shard_shape : tuple of int or None
    index : ShardIndex or None
        None without shards.
    """

    name: str
    shape: tuple[int, ...]
    chunk_shape: tuple[int, ...]
    dtype: np.dtype
    codec: Mapping[str, Any]
    trailing_bytes: int
    shard_shape: tuple[int, ...] | None = None
    index: ShardIndex | None = None


def array_layout(array: Any) -> ArrayLayout:
    """Read the layout off the metadata of an open array.

    Parameters
    ----------
    array : zarr.Array
        Of zarr 2.18, or 3.1 and later; v2 or v3 format.

    Raises
    ------
    UnsupportedDataError
        If its chunks are not TINC streams that can be read in part.
    """
    name = array_name(array)
    is_zarr3 = hasattr(array, "store_path")
    if is_zarr3 and array.metadata.zarr_format == 3:
        codecs = array.metadata.to_dict()["codecs"]
    else:
        holder = array.metadata if is_zarr3 else array
        stages = [*(holder.filters or ()), holder.compressor]
        configs = [dict(stage.get_config()) for stage in stages if stage is not None]
        codecs = [{"name": config.pop("id"), "configuration": config} for config in configs]
    shard_shape = index = None
    if len(codecs) == 1 and codecs[0]["name"] == _SHARDING:
        sharding = codecs[0]["configuration"]
        codecs = sharding["codecs"]
        shard_shape = tuple(array.shards)
        index = _shard_index(sharding, shard_shape, name)
    config, trailing_bytes = _find_tinc(codecs, name)
    return ArrayLayout(
        name=name,
        shape=tuple(array.shape),
        chunk_shape=tuple(array.chunks),
        dtype=np.dtype(array.dtype),
        codec=config,
        trailing_bytes=trailing_bytes,
        shard_shape=shard_shape,
        index=index,
    )


def array_name(array: Any) -> str:
    """Say where an open array or group is."""
    if hasattr(array, "store_path"):
        return str(array.store_path)
    return "/".join(filter(None, (getattr(array.store, "path", ""), array.path))) or "/"


def only_array(group: Any) -> Any:
    """Choose the array that is meant by a group.

    That is level 0 where the group is an OME-Zarr image (0.4 or 0.5), else its only array, or its
    only one of TINC streams.

    Parameters
    ----------
    group : zarr.Group
        Searched to any depth.

    Raises
    ------
    ConfigError
        If there is no such array, or more than one; names them all.
    """
    level_0 = _level_0_path(group.attrs)
    if level_0 is not None and hasattr(group.get(level_0), "dtype"):
        return group[level_0]
    if hasattr(group, "members"):
        found = list(group.members(max_depth=None))
    else:
        found = []
        group.visititems(lambda path, node: found.append((path, node)))
    arrays = {path: node for path, node in found if hasattr(node, "dtype")}
    ours = [path for path, node in sorted(arrays.items()) if _is_tinc(node)]
    if len(ours) == 1:
        return arrays[ours[0]]
    if len(arrays) == 1:
        return next(iter(arrays.values()))
    raise ConfigError(
        f"{array_name(group)}: is a group of {len(arrays)} arrays, {len(ours)} of them stored "
        f"with TINC; give the path of one. TINC: {', '.join(ours) or 'none'}; "
        f"others: {', '.join(sorted(set(arrays) - set(ours))) or 'none'}"
    )


def _level_0_path(attributes: Mapping[str, Any]) -> str | None:
    """Read the path of the largest array off the metadata of an OME-Zarr image; None if it isn't.

    Nothing is known of what others wrote, so every step is checked.
    """
    ome = attributes.get("ome")
    images = (ome if isinstance(ome, Mapping) else attributes).get("multiscales")
    levels = _first(images).get("datasets")
    path = _first(levels).get("path")
    return path if isinstance(path, str) else None


def _first(entries: Any) -> Mapping[str, Any]:
    if isinstance(entries, Sequence) and entries and isinstance(entries[0], Mapping):
        return entries[0]
    return {}


def _is_tinc(array: Any) -> bool:
    try:
        array_layout(array)
    except UnsupportedDataError:
        return False
    return True


def _find_tinc(codecs: Sequence[Mapping[str, Any]], name: str) -> tuple[Mapping[str, Any], int]:
    """Give our configuration and how many bytes follow each stream."""
    names = [codec["name"] for codec in codecs]
    if _TINC not in names:
        raise UnsupportedDataError(
            f"{name}: is not stored with TINC; its codecs are {', '.join(names) or 'none'}"
        )
    position = names.index(_TINC)
    before, after = names[:position], names[position + 1 :]
    if before:
        raise UnsupportedDataError(
            f"{name}: {', '.join(before)} changes the values before TINC sees them, so that the "
            "quality in the headers is not that of the array"
        )
    hiding = [codec for codec in after if codec != _CRC]
    if hiding:
        raise UnsupportedDataError(
            f"{name}: {', '.join(hiding)} is applied to the TINC streams and hides their headers; "
            "arrays written with compressors=None can be inspected"
        )
    return codecs[position].get("configuration", {}), _CRC_BYTES * len(after)


def _shard_index(
    sharding: Mapping[str, Any], shard_shape: tuple[int, ...], name: str
) -> ShardIndex:
    codecs = sharding["index_codecs"]
    names = [codec["name"] for codec in codecs]
    if names not in (["bytes"], ["bytes", _CRC]):
        raise UnsupportedDataError(
            f"{name}: shard index codecs {', '.join(names)} are not bytes, or bytes and {_CRC}"
        )
    endian = codecs[0].get("configuration", {}).get("endian", "little")
    return ShardIndex(
        grid_shape=tuple(n // c for n, c in zip(shard_shape, sharding["chunk_shape"], strict=True)),
        at_start=sharding["index_location"] == "start",
        entry_dtype=np.dtype("<u8" if endian == "little" else ">u8"),
        n_checksums=len(codecs) - 1,
    )
