"""Stores as the pipeline uses them: where one is, whose it is, and a few blocking calls."""

import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tinc_codec.errors import ConfigError
from tinc_codec.pipeline.sources.files import local_path

__all__ = [
    "PARTIAL",
    "RECORD",
    "ROOT_KEYS",
    "StoreAddress",
    "clear_store",
    "local_root",
    "locked",
    "read_attributes",
    "read_key",
    "root_entries",
    "store_address",
    "stored_format",
    "write_group",
    "write_key",
]

RECORD = "tinc_codec"
"""Attribute of the group that says what wrote it, from what, how, and whether it is complete."""
ROOT_KEYS = ("zarr.json", ".zgroup", ".zattrs", ".zarray", ".zmetadata")
# What zarr's LocalStore writes to before it renames; a killed process leaves it behind.
PARTIAL = re.compile(r".*\.[0-9a-f]{32}\.partial")


@dataclass(frozen=True)
class StoreAddress:
    """A store that any process opens by itself.

    Parameters
    ----------
    place : str or zarr.abc.store.Store
        An absolute path, an fsspec URL, or a store that can be pickled.
    storage_options : mapping
        For the fsspec file system of a URL.
    """

    place: Any
    storage_options: Mapping[str, Any] = field(default_factory=dict, repr=False)

    def open(self) -> Any:
        """Return a zarr store."""
        from zarr.storage import FsspecStore, LocalStore

        if not isinstance(self.place, str):
            return self.place
        if "://" in self.place or "::" in self.place:
            return FsspecStore.from_url(self.place, storage_options=dict(self.storage_options))
        return LocalStore(self.place)

    def __str__(self) -> str:
        return str(self.place)


def store_address(dst: Any, storage_options: Mapping[str, Any] | None) -> StoreAddress:
    """Return where a destination is, in a form that every process understands.

    Parameters
    ----------
    dst : str, path or zarr.abc.store.Store
    storage_options : mapping or None

    Raises
    ------
    ConfigError
        If it is nothing of this kind, or a zip file, in which a chunk cannot be written safely.
    """
    if not isinstance(dst, (str, os.PathLike)):
        from zarr.abc.store import Store

        if not isinstance(dst, Store):
            raise ConfigError(f"dst: a {type(dst).__name__} is neither a path, a URL nor a store")
        return StoreAddress(dst)
    place = os.fspath(dst)
    if not place:
        raise ConfigError("dst is an empty path")
    if place.lower().endswith(".zip"):
        raise ConfigError(
            f"dst={place!r}: parts of a zip file cannot be written on their own; "
            "compress into a folder and zip that without compression"
        )
    path = local_path(place)
    return StoreAddress(str(path)) if path else StoreAddress(place, dict(storage_options or {}))


def local_root(address: StoreAddress) -> Path | None:
    """Return the folder of a local store; None for others."""
    from zarr.storage import LocalStore

    if isinstance(address.place, LocalStore):
        return Path(address.place.root).absolute()
    return local_path(address.place) if isinstance(address.place, str) else None


def write_group(store: Any, zarr_format: int, attributes: Mapping[str, Any]) -> None:
    """Store the metadata of the root group, in one piece in the v3 format."""
    if zarr_format == 3:
        metadata = {"zarr_format": 3, "node_type": "group", "attributes": attributes}
        write_key(store, "zarr.json", _json(metadata))
        return
    # The record first: a group without it would be somebody else's.
    write_key(store, ".zattrs", _json(attributes))
    write_key(store, ".zgroup", _json({"zarr_format": 2}))


def _json(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, indent=2, allow_nan=False).encode()


def stored_format(store: Any) -> int | None:
    """Return the Zarr format of the group in the root; None where there is no group."""
    if read_key(store, "zarr.json") is not None:
        return 3
    found = [key for key in (".zgroup", ".zattrs") if read_key(store, key) is not None]
    return 2 if found else None


def read_attributes(store: Any, zarr_format: int) -> dict[str, Any]:
    """Return the attributes of the root group; something else, not empty, if it is no group."""
    key = "zarr.json" if zarr_format == 3 else ".zattrs"
    try:
        found = json.loads(read_key(store, key) or b"{}")
        attributes = found.get("attributes", {}) if zarr_format == 3 else found
        # An array's metadata, at the root, are those of something else.
        is_group = zarr_format == 2 or found.get("node_type") == "group"
        return dict(attributes) if is_group else {"node_type": "array"}
    except (ValueError, TypeError, AttributeError):
        return {"damaged": key}


def root_entries(store: Any) -> list[str]:
    """List what lies in the root of a store, half-written files apart."""

    async def listed() -> list[str]:
        return sorted([name async for name in store.list_dir("")])

    return [name for name in _sync(listed()) if name and not PARTIAL.fullmatch(name)]


def clear_store(store: Any, entries: list[str]) -> None:
    """Remove all, the root's metadata last: until then it is known what this was."""

    async def clear() -> None:
        for name in sorted(entries, key=lambda name: name in ROOT_KEYS):
            if name not in ROOT_KEYS:
                with suppress(ValueError, NotADirectoryError):
                    await store.delete_dir(name)
            await store.delete(name)

    _sync(clear())


@contextmanager
def locked(root: Path | None) -> Iterator[None]:
    """Hold the folder of a local store; the system lets go of it when the process ends."""
    if root is None:
        yield
        return
    try:
        import fcntl
    except ImportError:  # Windows has no such locks.
        yield
        return
    root.mkdir(parents=True, exist_ok=True)
    folder = os.open(root, os.O_RDONLY)
    try:
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(f"another run is writing {root}; wait for it, or end it") from None
        except OSError:
            # Some network file systems lock no folders.
            pass
        yield
    finally:
        os.close(folder)


def _sync(coroutine: Any) -> Any:
    from zarr.core.sync import sync

    return sync(coroutine)


def read_key(store: Any, key: str) -> bytes | None:
    """Fetch what is stored under a key; None for nothing."""
    from zarr.buffer.cpu import buffer_prototype

    found = _sync(store.get(key, buffer_prototype))
    return None if found is None else bytes(found.to_bytes())


def write_key(store: Any, key: str, data: bytes) -> None:
    """Store under a key; in local folders and buckets as a whole or not at all."""
    from zarr.buffer.cpu import buffer_prototype

    _sync(store.set(key, buffer_prototype.buffer.from_bytes(data)))
