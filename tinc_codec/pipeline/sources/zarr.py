"""Zarr arrays and groups of both formats, OME-Zarr among them, from any path or URL."""

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tinc_codec.errors import ConfigError
from tinc_codec.pipeline.metadata import info_from_ome
from tinc_codec.pipeline.sources.boxes import box_of
from tinc_codec.pipeline.sources.cf import Coordinate, info_from_cf, missing_values
from tinc_codec.pipeline.sources.choice import choose
from tinc_codec.pipeline.sources.files import local_path, open_file, stem
from tinc_codec.pipeline.sources.views import MissingAsNaN, NativeArray
from tinc_codec.pipeline.volumes import LazyArray, Volume, VolumeInfo
from tinc_codec.volume.support import check_supported

__all__ = ["FoundArray", "find_array", "open_zarr"]

# Beyond this many files their dates are not compared.
_MAX_FILES = 100_000


class ZarrArray:
    """An array that every process opens anew from where it is.

    Parameters
    ----------
    location, path : str
        A path or URL, and where the array lies in it.
    storage_options : mapping
    array : zarr.Array
    """

    def __init__(
        self, location: str, path: str, storage_options: Mapping[str, Any], array: Any
    ) -> None:
        self._location = location
        self._path = path
        self._storage_options = dict(storage_options)
        self.shape = tuple(int(size) for size in array.shape)
        self._stored = np.dtype(array.dtype)
        self._array = array

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_array": None}

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of a voxel, in the byte order of this machine."""
        return self._stored.newbyteorder("=")

    def __getitem__(self, selection: tuple[slice, ...]) -> np.ndarray[Any, Any]:
        """Read a box.

        Raises
        ------
        OSError
            If the array has gone or is another one now.
        """
        box = box_of(selection, self.shape)
        if self._array is None or local_path(self._location) is not None:
            # Missing chunks read as fill values: an array that has been removed must not.
            self._array = self._open()
        return np.asarray(self._array[box], dtype=self.dtype)

    def _open(self) -> Any:
        array = _open_node(self._location, self._storage_options)
        if self._path:
            array = array[self._path]
        found = tuple(array.shape), np.dtype(array.dtype)
        if found != (self.shape, self._stored):
            raise OSError(
                f"{self._location} has changed since it was opened: it has shape {found[0]} and "
                f"dtype {found[1]}, it had {self.shape} and {self._stored}"
            )
        return array


@dataclass(frozen=True)
class FoundArray:
    """An array of a store, and what is said of it.

    Attributes
    ----------
    array : zarr.Array
    location : str
        Of the node that was opened; empty for one that was open already.
    path : str
        Of the array from there.
    info : VolumeInfo
    node : zarr.Array or zarr.Group
        What was opened, or the group above it that describes it.
    """

    array: Any
    location: str
    path: str
    info: VolumeInfo
    node: Any

    @property
    def group(self) -> Any:
        """The group in which the array lies; None where only the array is known."""
        if not self.path:
            return None
        parent = self.path.rpartition("/")[0]
        return self.node[parent] if parent else self.node


def find_array(
    src: Any,
    storage_options: Mapping[str, Any] | None = None,
    variable: str | None = None,
    *,
    level: int = 0,
) -> FoundArray:
    """Find the array that is meant.

    Parameters
    ----------
    src : str, zarr.Array or zarr.Group
        A path or URL, or what is open already.
    storage_options : mapping, optional
    variable : str, optional
        Path of an array or a group within the group.
    level : int
        Of an OME-Zarr group.

    Raises
    ------
    FileNotFoundError
        If there is nothing.
    ConfigError
        If it is no Zarr, or does not tell which array is meant.
    """
    if not isinstance(src, str):
        name = str(src.path).rpartition("/")[2] or "volume"
        array, path = _resolve(src, "the group", variable, level)
        return FoundArray(array, "", path, _info(src, array, path, name), src)
    options = dict(storage_options or {})
    node = _open_node(src, options)
    if not _is_group(node) and variable is None:
        parent, _, leaf = src.rstrip("/").rpartition("/")
        if leaf in _dataset_paths(parent, options):
            # A level of an OME-Zarr group: the group describes it.
            return find_array(parent, options, leaf, level=level)
    array, path = _resolve(node, src, variable, level)
    return FoundArray(array, src, path, _info(node, array, path, stem(src)), node)


def open_zarr(
    src: Any,
    storage_options: Mapping[str, Any] | None = None,
    variable: str | None = None,
    *,
    level: int = 0,
) -> Volume:
    """Open an array, or an array of a group; parameters are those of `find_array`.

    Raises
    ------
    FileNotFoundError
        If there is nothing.
    ConfigError
        If it is no Zarr, or does not tell which array is meant.
    UnsupportedDataError
        If the codec does not store such arrays.
    """
    found = find_array(src, storage_options, variable, level=level)
    array = found.array
    check_supported(array.dtype, tuple(array.shape))
    lazy: LazyArray = NativeArray(array)
    facts = {
        "shape": [int(size) for size in array.shape],
        "dtype": np.dtype(array.dtype).str,
        "metadata_sha256": _digest(_metadata(array)),
    }
    if found.location:
        lazy = ZarrArray(found.location, found.path, storage_options or {}, array)
        root = local_path(found.location)
        if root is not None:
            facts |= (
                open_file(found.location).identity
                if root.is_file()
                else _files_identity(root / found.path)
            )
    return Volume(_without_missing(lazy, array), found.info, facts, tuple(array.chunks))


def _without_missing(lazy: LazyArray, array: Any) -> LazyArray:
    attributes = dict(array.attrs)
    if getattr(array.metadata, "zarr_format", 2) == 2 and "_ARRAY_DIMENSIONS" in attributes:
        # Xarray's marks in this format; an untold fill value of 0 is a value like others.
        fill = array.fill_value
        if fill is not None and fill != 0:
            attributes.setdefault("_FillValue", fill)
    missing = missing_values(attributes, np.dtype(array.dtype))
    return MissingAsNaN(lazy, missing) if missing else lazy


def _open_node(location: str, options: Mapping[str, Any]) -> Any:
    import zarr

    path = local_path(location)
    if path is not None:
        location = str(path)
        if not path.exists():
            raise FileNotFoundError(f"there is no {location}")
        if path.is_file() and path.suffix == ".zip":
            location = f"zip://::{path}"
    try:
        return zarr.open(location, mode="r", storage_options=dict(options) or None)
    except (FileNotFoundError, ValueError, KeyError) as error:
        if path is None and isinstance(error, FileNotFoundError):
            raise FileNotFoundError(f"there is no Zarr at {location}") from error
        raise ConfigError(f"{location} is no Zarr array or group: {error}") from error


def _is_group(node: Any) -> bool:
    import zarr

    return isinstance(node, zarr.Group)


def _multiscale(attributes: Mapping[str, Any]) -> Any:
    found = attributes.get("ome", attributes)
    return found.get("multiscales") if isinstance(found, Mapping) else None


def _dataset_paths(location: str, options: Mapping[str, Any]) -> list[str]:
    """Return the paths of the levels of an OME-Zarr group; none where there is no such group."""
    if not location or location.endswith(("/", ":")):
        return []
    try:
        group = _open_node(location, options)
    except Exception:
        # A server may answer anything to what nobody has asked for.
        return []
    multiscales = _multiscale(dict(group.attrs)) if _is_group(group) else None
    return [str(entry.get("path")) for entry in multiscales[0]["datasets"]] if multiscales else []


def _resolve(node: Any, location: str, variable: str | None, level: int) -> tuple[Any, str]:
    """Return the array that is meant and its path from the node."""
    if not _is_group(node):
        if variable is not None:
            raise ConfigError(f"{location} is one array; it has no {variable!r}")
        _check_level(location, level, 1)
        return node, ""
    if variable is not None:
        path = variable.strip("/")
        try:
            inner = node[path]
        except KeyError:
            known = ", ".join(sorted(dict(node.members()) if hasattr(node, "members") else node))
            raise ConfigError(f"{location} has no {variable!r}; it has {known}") from None
        found, rest = _resolve(inner, f"{location}/{path}", None, level)
        return found, f"{path}/{rest}".rstrip("/")
    attributes = dict(node.attrs)
    multiscales = _multiscale(attributes)
    if multiscales:
        datasets = multiscales[0].get("datasets", ())
        _check_level(location, level, len(datasets))
        path = str(datasets[level]["path"])
        return node[path], path
    outer = attributes.get("ome", attributes)
    if "bioformats2raw.layout" in outer:
        return _resolve(node, location, "0", level)
    if "plate" in outer:
        raise ConfigError(
            f"{location} is a plate of many images; choose one, such as variable='A/1/0'"
        )
    _check_level(location, level, 1)
    arrays = dict(node.arrays())
    facts = {name: (tuple(a.shape), np.dtype(a.dtype)) for name, a in arrays.items()}
    chosen = choose(location, facts, None)
    return arrays[chosen], chosen


def _check_level(location: str, level: int, count: int) -> None:
    if not 0 <= level < count:
        raise ConfigError(f"{location} has no level {level}: it has 0 to {count - 1}")


def _info(node: Any, array: Any, path: str, name: str) -> VolumeInfo:
    """Find the group that describes an array: the nearest with multiscales, or with coordinates."""
    attributes = dict(array.attrs)
    parts = path.split("/") if path else []
    for count in range(len(parts) - 1, -1, -1):
        group = node["/".join(parts[:count])] if count else node
        if not _is_group(group):
            continue
        multiscales = _multiscale(dict(group.attrs))
        inner = "/".join(parts[count:])
        if multiscales:
            paths = [str(entry.get("path")) for entry in multiscales[0].get("datasets", ())]
            if inner in paths:
                return info_from_ome(
                    dict(group.attrs),
                    level=paths.index(inner),
                    name=name,
                    ndim=array.ndim,
                    array_attributes=attributes,
                )
    if _is_group(node):
        parent = node["/".join(parts[:-1])] if len(parts) > 1 else node
        own = parts[-1]
    else:
        parent, own = None, ""
    dimensions = _dimensions(array)
    coordinates = dict(_coordinates(parent, dimensions)) if parent is not None else {}
    return info_from_cf(
        f"{name}_{own}" if own else name, array.ndim, dimensions, coordinates, attributes
    )


def _dimensions(array: Any) -> tuple[str, ...] | None:
    names = getattr(array.metadata, "dimension_names", None) or array.attrs.get("_ARRAY_DIMENSIONS")
    if not names or len(names) != array.ndim or None in names:
        return None
    return tuple(str(name) for name in names)


def _coordinates(
    group: Any, dimensions: tuple[str, ...] | None
) -> Iterator[tuple[str, Coordinate]]:
    for name in dimensions or ():
        with contextlib.suppress(KeyError):
            found = group[name]
            if not _is_group(found) and found.ndim == 1:
                yield name, Coordinate(np.asarray(found[:]), dict(found.attrs))


def _metadata(array: Any) -> str:
    facts = {"attributes": dict(array.attrs)}
    if hasattr(array.metadata, "to_dict"):
        facts |= array.metadata.to_dict()
    return json.dumps(facts, sort_keys=True, default=str)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _files_identity(folder: Path) -> dict[str, Any]:
    """Return a digest of names, sizes and dates of all files of an array."""
    found = []
    for parent, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(names):
            facts = os.stat(os.path.join(parent, name))
            relative = os.path.relpath(os.path.join(parent, name), folder)
            found.append(f"{relative} {facts.st_size} {facts.st_mtime_ns}")
        if len(found) > _MAX_FILES:
            return {}
    return {"files": len(found), "files_sha256": _digest("\n".join(found))}
