"""The store behind a server: opened read-only, and no way out of it."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import zarr
from zarr.abc.store import ByteRequest, Store
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.storage import FsspecStore, LocalStore, StorePath, WrapperStore, ZipStore

from tinc_codec.errors import UnsupportedDataError

__all__ = ["GuardedStore", "open_source"]


class GuardedStore(WrapperStore[Store]):
    """A store that reads no file beyond its root through a symbolic link.

    Links within the root are followed.
    """

    def __init__(self, store: Store) -> None:
        super().__init__(store)
        root = _local_root(store)
        self._root = None if root is None else os.path.realpath(root)

    def _is_inside(self, key: str) -> bool:
        if self._root is None:
            return True
        real = os.path.realpath(os.path.join(self._root, key))
        return real == self._root or real.startswith(self._root.rstrip(os.sep) + os.sep)

    async def get(
        self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        """Read a value or a part of it; None if it is missing or beyond the root."""
        if not self._is_inside(key):
            return None
        return await super().get(key, prototype, byte_range)

    async def get_partial_values(
        self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, ByteRequest | None]]
    ) -> list[Buffer | None]:
        """Read parts of values."""
        return [await self.get(key, prototype, part) for key, part in key_ranges]

    async def exists(self, key: str) -> bool:
        """Whether there is a value within the root."""
        return self._is_inside(key) and await super().exists(key)

    async def getsize(self, key: str) -> int:
        """Return the size of a value in bytes, without reading it where the store can tell."""
        if not self._is_inside(key):
            raise FileNotFoundError(key)
        return await self._store.getsize(key)


def _local_root(store: Store) -> str | None:
    """Return the folder of a store of local files, else None."""
    if isinstance(store, LocalStore):
        return str(store.root)
    if isinstance(store, FsspecStore):
        from fsspec.implementations.local import LocalFileSystem

        if isinstance(getattr(store.fs, "sync_fs", store.fs), LocalFileSystem):
            return store.path
    return None


def open_source(
    source: Any, storage_options: dict[str, Any] | None = None
) -> tuple[GuardedStore, zarr.Array | zarr.Group]:
    """Open what is to be served.

    Parameters
    ----------
    source : str, path, store, zarr.Array or zarr.Group
        A local folder or zip file, or an fsspec URL, with an array or a group at its root.
    storage_options : dict, optional
        For the fsspec file system of a URL.

    Returns
    -------
    store : GuardedStore
    node : zarr.Array or zarr.Group
        Where in the store it is, and what it says of itself; it is not guarded.

    Raises
    ------
    FileNotFoundError
        If there is neither an array nor a group.
    UnsupportedDataError
        If it cannot be opened: damaged metadata, an unknown codec, a URL of an unknown kind.
    """
    if isinstance(source, str | os.PathLike) and _is_local_zip(source):
        source = ZipStore(Path(source), mode="r")
    if isinstance(source, StorePath):
        source = zarr.open(source, mode="r")
    if not isinstance(source, zarr.Array | zarr.Group):
        try:
            source = zarr.open(source, mode="r", storage_options=storage_options)
        except (ImportError, KeyError, TypeError, ValueError) as error:
            raise UnsupportedDataError(f"{source} cannot be opened as a Zarr: {error}") from error
    return GuardedStore(source.store_path.store), source


def _is_local_zip(source: str | os.PathLike[str]) -> bool:
    return Path(source).suffix == ".zip" and Path(source).is_file()
