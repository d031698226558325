"""Levels as arrays: open one without a trace, or add some to an OME-Zarr group for everybody.

References
----------
OME-Zarr 0.5, "multiscales" metadata.
"""

from __future__ import annotations

import contextlib
import copy
import json
import posixpath
import re
from collections.abc import Mapping, Sequence
from typing import Any

from tinc_codec.errors import ConfigError, UnsupportedDataError
from tinc_codec.inspection.access import open_stored
from tinc_codec.model.levels import MAX_LEVEL, level_shape

try:
    import zarr
    from zarr.core.buffer import default_buffer_prototype
    from zarr.core.sync import sync
    from zarr.errors import ContainsArrayError, ContainsGroupError
    from zarr.storage import LocalStore, StorePath
except ImportError as error:
    raise ConfigError(
        "levels need zarr 3.1 or later, whose v3 format they are stored in"
    ) from error

from tinc_codec.levels.codec import NAME, TINCLevelCodec
from tinc_codec.levels.source import Source

_OME_VERSION = "0.5"
_AXES = ("t", "c", "z", "y", "x")
_TYPES = {"t": "time", "c": "channel", "z": "space", "y": "space", "x": "space"}


def open_level(source: Any, level: int, *, storage_options: dict[str, Any] | None = None) -> Any:
    """Open a lower resolution of an array, decoded from the array's own chunks; nothing is written.

    Parameters
    ----------
    source : zarr.Array, zarr.Group, str, path or store
        An array in the Zarr v3 format stored with TINC, plain or sharded, or where one is; of a
        group, level 0 of its OME-Zarr image, or its only such array.
    level : int
        0 is the array itself; each further one is half as large along the last three axes,
        rounded up. 2^level has to divide the array's chunks there.
    storage_options : dict, optional
        For the fsspec file system of a URL.

    Returns
    -------
    zarr.Array
        Read-only; can be pickled where its store can. A voxel is the mean of the 2^level decoded
        voxels per axis that it covers, to some 40 dB and better: see `codec.decode_level`.

    Raises
    ------
    ConfigError
        If the array has no such level, or a group holds no array, or several.
    UnsupportedDataError
        If it is not stored with TINC, or in the v2 format, or with a compressor behind TINC.
    FileNotFoundError
        If there is nothing.
    """
    array = open_stored(source, storage_options)
    place = array.store_path
    store = place.store
    if not place.read_only:
        # Stores that cannot be both are left as they are: the codec refuses to write.
        with contextlib.suppress(NotImplementedError):
            store = store.with_read_only(True)
    if level == 0:
        metadata: Any = array.metadata.to_dict()
    else:
        metadata = _level_metadata(Source.of(array), level, ".")
    opened = zarr.AsyncArray(metadata=metadata, store_path=StorePath(store, place.path))
    return zarr.Array(opened)


def add_levels(group: Any, n: int, *, storage_options: dict[str, Any] | None = None) -> list[str]:
    """Make a group an OME-Zarr 0.5 image whose levels 1 to n are decoded from level 0's chunks.

    Only metadata is written: a `zarr.json` of about a kilobyte per level, the group's, and the
    names of its axes into that of level 0 where it has none. Levels
    that are there already stay as they are, those beyond n go. Where anything fails, all is as it
    was. Where level 0 is resized or stored anew, call it again.

    Parameters
    ----------
    group : zarr.Group, str, path or store
        With level 0 in it: what its OME-Zarr metadata name first, the array "0", or its only array
        stored with TINC. Axes, units, scale and translation are kept where there are such
        metadata; else axes are called by the array's dimension names, or z, y, x (with t in front
        of three, t and c of four), and voxels are 1 wide.
    n : int
        How many levels there are afterwards beside level 0; 0 removes them.
    storage_options : dict, optional
        For the fsspec file system of a URL.

    Returns
    -------
    list of str
        Paths of all levels in the group, level 0 first.

    Raises
    ------
    ConfigError
        If the group cannot be written, the chunks do not allow n levels, or something that is no
        level of level 0 is in a level's place.
    UnsupportedDataError
        If level 0 is not stored with TINC, or in the v2 format, or with a compressor behind TINC.
    FileNotFoundError
        If there is nothing.
    """
    given, group = group, _open_anew(group, storage_options)
    if type(n) is not int or n < 0:
        raise ConfigError(f"n={n!r} is not an integer of 0 or more")
    if group.metadata.zarr_format != 3:
        raise UnsupportedDataError(
            f"{group.store_path}: is in the Zarr v2 format; levels need the v3 format"
        )
    if group.read_only:
        raise ConfigError(f"{group.store_path}: cannot be written; open_level needs no writing")
    attributes = copy.deepcopy(dict(group.attrs))
    first = _level_0(group, attributes)
    source = Source.of(group[first])
    check_level(source, n)
    paths = [first, *(_level_path(first, level) for level in range(1, n + 1))]
    attributes["ome"] = _multiscales(attributes.get("ome"), source, paths, group.name)
    for path in paths[1:]:
        _check_vacant(group, path)
    axes = [axis["name"] for axis in attributes["ome"]["multiscales"][0]["axes"]]
    documents = _documents(source, paths, axes)
    stale = dict.fromkeys(_stale_levels(group, first, n))
    _write(group, {**documents, **stale}, attributes)
    if isinstance(given, zarr.Group):
        given.metadata.attributes.update(attributes)
    return paths


def _open_anew(group: Any, storage_options: dict[str, Any] | None) -> Any:
    """Open a group for writing; one that is open is opened again, unless it is read-only."""
    if isinstance(group, zarr.Array):
        raise ConfigError(_NO_GROUP.format(group.store_path))
    if not isinstance(group, zarr.Group):
        try:
            return zarr.open_group(
                group, mode="r+", storage_options=storage_options, use_consolidated=False
            )
        except (ContainsArrayError, FileNotFoundError) as error:
            with contextlib.suppress(FileNotFoundError, ContainsGroupError):
                zarr.open_array(group, mode="r", storage_options=storage_options)
                raise ConfigError(_NO_GROUP.format(group)) from error
            raise
    if group.read_only:
        return group
    # Consolidated metadata may be older than what is there.
    return zarr.open_group(group.store_path, mode="r+", use_consolidated=False)


_NO_GROUP = (
    "{} is an array, and levels are arrays beside it in a group: open_level(array, k) gives one "
    "without writing; `tinc compress --levels` writes groups"
)


def check_level(source: Source, level: int) -> None:
    """Refuse a level that an array does not have.

    Raises
    ------
    ConfigError
        Says how many there are.
    """
    if type(level) is not int or not 0 <= level <= MAX_LEVEL:
        raise ConfigError(f"level={level!r} is not an integer in 0 to {MAX_LEVEL}")
    chunks = source.layout.chunk_shape
    sizes = chunks[-3:]
    most = min((n & -n).bit_length() - 1 for n in sizes)
    if level > most:
        raise ConfigError(
            f"level {level} of {source.layout.name} needs chunks that {1 << level} divides along "
            f"the last {len(sizes)} axes; chunks of {chunks} allow "
            f"{f'levels 1 to {most}' if most else 'none'}"
        )


def _documents(source: Source, paths: Sequence[str], axes: list[str]) -> dict[str, Any]:
    """Make the metadata of the arrays that are to be written, by path; level 0's path is first."""
    documents: dict[str, Any] = {}
    # OME-Zarr 0.5 wants the names of the axes with every array.
    if source.array.metadata.dimension_names is None:
        documents[paths[0]] = {**source.array.metadata.to_dict(), "dimension_names": axes}
    for level, path in enumerate(paths[1:], start=1):
        relative = posixpath.relpath("/" + paths[0], "/" + path)
        document = _level_metadata(source, level, relative)
        documents[path] = {**document, "dimension_names": document.get("dimension_names") or axes}
    return documents


def _level_metadata(source: Source, level: int, path: str) -> dict[str, Any]:
    """Make the metadata of a level's array; `path` leads from it to its source."""
    check_level(source, level)
    found: dict[str, Any] = copy.deepcopy(source.array.metadata.to_dict())
    return {
        **found,
        "shape": level_shape(source.layout.shape, level),
        "chunk_grid": {
            "name": "regular",
            "configuration": {"chunk_shape": level_shape(source.object_shape, level)},
        },
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "codecs": [TINCLevelCodec(level, path).to_dict()],
    }


def _level_0(group: Any, attributes: Mapping[str, Any]) -> str:
    """Find the path of level 0 within a group."""
    datasets = _datasets(attributes.get("ome"))
    if datasets:
        others = [d["path"] for d in datasets[1:] if not _is_level(group.get(d["path"]))]
        if others:
            raise ConfigError(
                f"{group.store_path}: its OME-Zarr metadata name resolutions that are stored: "
                f"{', '.join(others)}; levels are for a single one"
            )
        path = str(datasets[0]["path"])
    elif isinstance(group.get("0"), zarr.Array):
        path = "0"
    else:
        path = open_stored(group).path.removeprefix(group.path).strip("/")
    if not isinstance(group.get(path), zarr.Array):
        raise ConfigError(f"{group.store_path}: level 0, {path!r}, is no array in it")
    return path


def _datasets(ome: Any) -> list[Any]:
    images = ome.get("multiscales", []) if isinstance(ome, Mapping) else []
    if len(images) > 1:
        raise ConfigError(f"the OME-Zarr metadata hold {len(images)} images, 1 is expected")
    return list(images[0].get("datasets", [])) if images else []


def _is_level(node: Any) -> bool:
    if not isinstance(node, zarr.Array) or node.metadata.zarr_format != 3:
        return False
    codecs: Any = node.metadata.to_dict()["codecs"]
    return [codec["name"] for codec in codecs] == [NAME]


def _level_path(first: str, level: int) -> str:
    """Name a level after level 0: "1" after "0", "s1" after "s0", "image_1" after "image"."""
    found = re.fullmatch(r"(|.*[^0-9])0", first)
    return f"{found[1]}{level}" if found else f"{first}_{level}"


def _check_vacant(group: Any, path: str) -> None:
    node = group.get(path)
    if node is not None and not _is_level(node):
        raise ConfigError(
            f"{group.store_path}: {path!r} is there already and no level of a TINC array; "
            "remove it or rename level 0"
        )


def _stale_levels(group: Any, first: str, n: int) -> list[str]:
    """List the paths of levels that an earlier call added beyond n."""
    stale: list[str] = []
    while _is_level(group.get(_level_path(first, n + 1 + len(stale)))):
        stale.append(_level_path(first, n + 1 + len(stale)))
    return stale


def _multiscales(ome: Any, source: Source, paths: Sequence[str], name: str) -> dict[str, Any]:
    """Make the OME-Zarr attributes, on top of what there is."""
    record: dict[str, Any] = dict(ome) if isinstance(ome, Mapping) else {}
    image = dict((record.get("multiscales") or [{}])[0])
    ndim = len(source.layout.shape)
    if "axes" not in image:
        image = {"name": name.strip("/") or "image", **image, "axes": _axes(source)}
    if len(image["axes"]) != ndim:
        raise ConfigError(f"the OME-Zarr metadata have {len(image['axes'])} axes, {ndim} expected")
    scale, translation, first = _placed(image, ndim)
    spatial = range(max(0, ndim - 3), ndim)
    datasets = [{"path": paths[0], "coordinateTransformations": first}]
    for level, path in enumerate(paths[1:], start=1):
        size = [float(1 << level) if axis in spatial else 1.0 for axis in range(ndim)]
        moved = [t + (f - 1) / 2 * s for t, f, s in zip(translation, size, scale, strict=True)]
        larger = [f * s for f, s in zip(size, scale, strict=True)]
        transforms = [
            {"type": "scale", "scale": larger},
            {"type": "translation", "translation": moved},
        ]
        datasets.append({"path": path, "coordinateTransformations": transforms})
    image["datasets"] = datasets
    return {**record, "version": record.get("version", _OME_VERSION), "multiscales": [image]}


def _axes(source: Source) -> list[dict[str, Any]]:
    ndim = len(source.layout.shape)
    if not 2 <= ndim <= len(_AXES):
        raise ConfigError(
            f"{source.layout.name}: an OME-Zarr image has 2 (y, x) to 5 (t, c, z, y, x) axes, not "
            f"{ndim}; open_level needs no such group"
        )
    names = tuple(source.array.metadata.dimension_names or ())
    if tuple(name for name in _AXES if name in names) != names or len(names) != ndim:
        names = ("t", "z", "y", "x") if ndim == 4 else _AXES[-ndim:]
    return [{"name": name, "type": _TYPES[name]} for name in names]


def _placed(
    image: Mapping[str, Any], ndim: int
) -> tuple[list[float], list[float], list[dict[str, Any]]]:
    """Read scale and translation of level 0, and its transformations as they are."""
    scale, translation = [1.0] * ndim, [0.0] * ndim
    datasets = image.get("datasets") or [{}]
    transforms = datasets[0].get("coordinateTransformations")
    if not transforms:
        return scale, translation, [{"type": "scale", "scale": scale}]
    for transform in transforms:
        kind = transform.get("type")
        values = [float(value) for value in transform.get(kind, ())]
        if kind not in ("scale", "translation") or len(values) != ndim:
            raise ConfigError(
                f"the OME-Zarr metadata of level 0 have the transformation {transform!r}; a scale "
                f"and a translation of {ndim} numbers are understood"
            )
        if kind == "scale":
            scale = values
        else:
            translation = values
    return scale, translation, list(transforms)


def _write(group: Any, documents: Mapping[str, Any], attributes: dict[str, Any]) -> None:
    """Write what has changed, the group's own metadata last; undo it all where something fails."""
    root = group.store_path
    own = group.metadata.to_dict()
    own.pop("consolidated_metadata", None)
    wanted: dict[str, bytes | None] = {}
    for path, document in documents.items():
        if document is not None:
            # Through zarr's own class, which writes numbers as the format has them.
            array: Any = zarr.AsyncArray(metadata=document, store_path=root / path)
            (content,) = array.metadata.to_buffer_dict(default_buffer_prototype()).values()
            wanted[f"{path}/zarr.json"] = content.to_bytes()
        else:
            wanted[f"{path}/zarr.json"] = None
    wanted["zarr.json"] = json.dumps({**own, "attributes": attributes}, indent=2).encode()
    was_consolidated = zarr.open_group(root, mode="r").metadata.consolidated_metadata is not None
    if sync(_replace(root, wanted)) and was_consolidated:
        zarr.consolidate_metadata(root.store, path=root.path, zarr_format=3)


async def _replace(root: Any, wanted: Mapping[str, bytes | None]) -> bool:
    """Give objects new contents, or none; tell whether any had another one."""
    done: dict[str, bytes | None] = {}
    try:
        for name, content in wanted.items():
            before = await _content(root / name)
            if not _same_json(before, content):
                done[name] = before
                await _put(root / name, content)
    except BaseException:
        for name, before in reversed(done.items()):
            # What cannot be undone now must not keep the rest from being undone.
            with contextlib.suppress(Exception):
                if await _content(root / name) != before:
                    await _put(root / name, before)
        raise
    return bool(done)


async def _content(place: StorePath) -> bytes | None:
    found = await place.get(default_buffer_prototype())
    return None if found is None else found.to_bytes()


async def _put(place: StorePath, content: bytes | None) -> None:
    if content is not None:
        await place.set(default_buffer_prototype().buffer.from_bytes(content))
        return
    await place.delete()
    if isinstance(place.store, LocalStore):
        # Zarr takes an empty folder for something that it does not know.
        with contextlib.suppress(OSError):
            (place.store.root / place.path).parent.rmdir()


def _same_json(one: bytes | None, other: bytes | None) -> bool:
    if one is None or other is None:
        return one is other
    # Consolidated metadata are made anew after everything else.
    records = [json.loads(text) for text in (one, other)]
    for record in records:
        record.pop("consolidated_metadata", None)
    return bool(records[0] == records[1])
