"""The array that a level is decoded from: which one it is, and where."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from zarr.storage import FsspecStore, LocalStore, ObjectStore, StorePath

from tinc_codec.errors import ConfigError, UnsupportedDataError
from tinc_codec.inspection.access import Fetch, store_access
from tinc_codec.inspection.layout import ArrayLayout, array_layout

__all__ = ["Source", "place_of_source"]


@dataclass(frozen=True, eq=False)
class Source:
    """The array that a level is decoded from.

    Attributes
    ----------
    array : zarr.Array
    layout : ArrayLayout
    fetch : coroutine function
        See `inspection.access.store_access`.
    """

    array: Any
    layout: ArrayLayout
    fetch: Fetch

    @classmethod
    def of(cls, array: Any) -> Source:
        """Describe an open array of the v3 format.

        Raises
        ------
        UnsupportedDataError
            If it is of the v2 format, or its chunks are not TINC streams that can be read alone.
        """
        if array.metadata.zarr_format != 3:
            raise UnsupportedDataError(
                f"{array.store_path}: is in the Zarr v2 format, in which a reader decodes whole "
                "chunks and no level can be found; store it in the v3 format to have levels"
            )
        grid = array.metadata.to_dict()["chunk_grid"]
        if grid["name"] != "regular":
            raise UnsupportedDataError(
                f"{array.store_path}: has a chunk grid {grid['name']!r}; levels need a regular one"
            )
        return cls(array, array_layout(array), store_access(array)[0])

    @property
    def object_shape(self) -> tuple[int, ...]:
        """Voxels of what the store keeps under one key: a chunk, or a shard."""
        return self.layout.shard_shape or self.layout.chunk_shape


def place_of_source(place: StorePath, source: str) -> StorePath:
    """Follow a path from an array, out of its store too where someone opened the array by itself.

    Parameters
    ----------
    place : StorePath
        Of the array.
    source : str
        Relative, with "..".

    Raises
    ------
    ConfigError
        If it leads out of a store that has no outside.
    """
    names, n_out = [name for name in place.path.split("/") if name], 0
    for name in source.split("/"):
        if name == "..":
            n_out += not names
            del names[-1:]
        elif name not in ("", "."):
            names.append(name)
    store = place.store if n_out == 0 else _enclosing_store(place.store, n_out)
    return StorePath(store, "/".join(names))


def _enclosing_store(store: Any, n_up: int) -> Any:
    """Open a store of the folder so many above that of another one, read-only."""
    if isinstance(store, LocalStore):
        return LocalStore(store.root.absolute().parents[n_up - 1], read_only=True)
    if isinstance(store, FsspecStore):
        path = store.path.rstrip("/").rsplit("/", n_up)[0]
        return FsspecStore(store.fs, read_only=True, path=path)
    inner: Any = getattr(store, "store", None)
    if isinstance(store, ObjectStore) and hasattr(inner, "prefix"):
        # What the stores of obstore for S3, GCS and Azure are made of.
        prefix = str(inner.prefix or "").strip("/")
        if len(prefix.split("/")) >= n_up and prefix:
            options = {
                name: getattr(inner, name, None)
                for name in ("config", "client_options", "retry_options", "credential_provider")
            }
            given = {name: value for name, value in options.items() if value is not None}
            above = "/".join(prefix.split("/")[:-n_up])
            return ObjectStore(type(inner)(prefix=above or None, **given), read_only=True)
    raise ConfigError(
        f"{store}: this level is decoded from an array beside it, which a store opened at the "
        "level itself cannot reach; open the group, then the level in it"
    )
