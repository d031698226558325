"""TIFF, OME-TIFF and ImageJ files, BigTIFF among them, and folders of TIFF slices."""

import glob
import hashlib
import json
import math
import os
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tinc_codec.errors import ConfigError, UnsupportedDataError
from tinc_codec.pipeline.metadata import AXES, plain_info, unit_name
from tinc_codec.pipeline.sources.boxes import RawArray
from tinc_codec.pipeline.sources.choice import choose
from tinc_codec.pipeline.sources.files import SourceFile, local_path, open_file, stem
from tinc_codec.pipeline.sources.tiff_pages import (
    Page,
    TiffPages,
    check_decodable,
    file_of,
    open_tifffile,
    page_of,
)
from tinc_codec.pipeline.sources.views import AxesView
from tinc_codec.pipeline.volumes import LazyArray, Volume, VolumeInfo
from tinc_codec.volume.support import check_supported

__all__ = ["open_tiff", "open_tiff_files"]

_KNOWN_AXES = {"T": "t", "C": "c", "Z": "z", "Y": "y", "X": "x"}
_SUFFIXES = (".tif", ".tiff", ".tf8", ".btf")
# What OME says where it does not say a unit.
_OME_UNITS = {"z": "µm", "y": "µm", "x": "µm", "t": "s"}
_OME_SIZES = {
    "z": "PhysicalSizeZ",
    "y": "PhysicalSizeY",
    "x": "PhysicalSizeX",
    "t": "TimeIncrement",
}


def open_tiff(
    location: str,
    storage_options: Mapping[str, Any] | None = None,
    variable: str | None = None,
) -> Volume:
    """Open a series of pages of a TIFF file, the only one or that of the number `variable`.

    Pages that are not compressed are read by rows, others by strips and tiles. An OME-TIFF of
    several files is opened by any of them.

    Raises
    ------
    ConfigError
        If it is no TIFF file, was cut short, or `variable` is needed or not there.
    UnsupportedDataError
        If the codec does not store such arrays; colour images are among them.
    """
    file = open_file(location, storage_options)
    with open_tifffile(file) as opened:
        series = list(opened.series)
        facts = {
            str(index): (tuple(found.shape), np.dtype(found.dtype or "V"))
            for index, found in enumerate(series)
        }
        chosen = int(choose(location, facts, variable))
        found = series[chosen]
        axes, order = _axes(found, location)
        check_supported(found.dtype, tuple(found.shape[axis] for axis in order))
        array, files, chunks = _lazy_series(found, file, opened.byteorder)
        seen = _seen(array, order)
        name = stem(location) if len(series) == 1 else f"{stem(location)}_{chosen}"
        info = _info(opened, chosen, name, axes)
    identity = {
        **file.identity,
        **_identity_of_files(files),
        "series": chosen,
        "shape": list(seen.shape),
        "dtype": seen.dtype.str,
    }
    return Volume(seen, info, identity, chunks and tuple(chunks[axis] for axis in order))


def open_tiff_files(
    location: str,
    storage_options: Mapping[str, Any] | None = None,
    variable: str | None = None,
) -> Volume:
    """Open the TIFF files of a folder or of a pattern (`slices_*.tif`) as the planes of a volume.

    The order is that of their names, numbers in them compared as numbers.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ConfigError
        If they differ, or are no single planes.
    UnsupportedDataError
        If the codec does not store such arrays.
    """
    path = local_path(location)
    assert path is not None
    paths = sorted(_matching(path), key=_natural)
    if not paths:
        raise FileNotFoundError(f"there is no file {location}")
    files = tuple(open_file(found) for found in paths)
    with open_tifffile(files[0]) as opened:
        parts = opened.series[0].pages
        if opened.is_ome and len({file_of(page) for page in parts if page is not None}) > 1:
            return open_tiff(paths[0], storage_options, variable)
        folder = path if path.is_dir() else path.parent
        info = _info(opened, 0, folder.name, ("z", "y", "x"))
    if variable is not None:
        raise ConfigError(f"{location} is one volume; it has no {variable!r}")
    array = _stack(files, location)
    check_supported(array.dtype, array.shape)
    identity = {
        **_identity_of_files(files),
        "files": len(files),
        "shape": list(array.shape),
        "dtype": array.dtype.str,
    }
    return Volume(array, info, identity, (1, *array.plane))


def _matching(path: Path) -> list[str]:
    if path.is_dir():
        return [str(path / name) for name in os.listdir(path) if _is_tiff(name)]
    return [found for found in glob.glob(str(path)) if _is_tiff(found)]


def _is_tiff(name: str) -> bool:
    return name.lower().endswith(_SUFFIXES)


def _natural(path: str) -> list[tuple[int, str]]:
    return [(int(part or 0), text) for text, part in re.findall(r"(\D*)(\d*)", path)]


def _stack(files: Sequence[SourceFile], location: str) -> TiffPages:
    pages: list[Page] = []
    first: tuple[Any, ...] = ()
    for index, file in enumerate(files):
        with open_tifffile(file) as opened:
            page = opened.pages[0]
            facts = (page.shape, opened.byteorder, str(page.dtype), page.hash)
            if len(opened.pages) != 1 or len(page.shape) != 2:
                raise ConfigError(
                    f"{file.location} is not one grey plane: shape {opened.series[0].shape}; give "
                    "a single file as the source, or a folder with one plane in each file"
                )
            if first and facts != first:
                raise ConfigError(
                    f"{file.location} differs from {files[0].location} in shape, dtype or "
                    f"compression: {facts[0]}, {facts[2]}, not {first[0]}, {first[2]}"
                )
            first = facts
            pages.append(page_of(page, index, file.size_bytes, file.location))
    shape, order, dtype, _ = first
    stored = np.dtype(dtype).newbyteorder(order)
    array = TiffPages(tuple(files), tuple(pages), (len(files),), shape, stored, (0, (0,)))
    _check_compressed(array)
    return array


def _check_compressed(array: TiffPages) -> None:
    if not all(page is None or page.contiguous for page in array.pages):
        check_decodable(array.files, array.keyframe)


def _axes(series: Any, location: str) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Name the axes of a series, in the order t, c, z, y, x, and say where each is in it."""
    named: dict[str, int] = {}
    unknown: list[int] = []
    for axis, (letter, size) in enumerate(zip(series.axes, series.shape, strict=True)):
        if letter == "S":
            if size > 1:
                raise UnsupportedDataError(
                    f"{location} holds colours ({size} samples a pixel, axes {series.axes}): "
                    "split them into channels, or convert to grey"
                )
        elif letter in _KNOWN_AXES:
            named[_KNOWN_AXES[letter]] = axis
        elif size > 1:
            unknown.append(axis)
    # Plain pages one after the other are the planes of a volume; a further axis is time.
    for axis, name in zip(reversed(unknown), [n for n in ("z", "t", "c") if n not in named]):  # noqa: B905
        named[name] = axis
    missing = [axis for axis in unknown if axis not in named.values()]
    if missing or not {"y", "x"} <= {*named}:
        raise ConfigError(
            f"{location} has axes {series.axes} of shape {tuple(series.shape)}, which are not "
            "understood as t, c, z, y, x"
        )
    axes = tuple(name for name in AXES if name in named)
    return axes, tuple(named[name] for name in axes)


def _seen(array: LazyArray, order: tuple[int, ...]) -> LazyArray:
    return array if order == tuple(range(len(array.shape))) else AxesView(array, order)


def _lazy_series(
    series: Any, file: SourceFile, byteorder: str
) -> tuple[LazyArray, tuple[SourceFile, ...], tuple[int, ...] | None]:
    """Return a series as an array, its files and the shape of a strip or tile."""
    stored = np.dtype(series.dtype).newbyteorder(byteorder)
    shape = tuple(int(size) for size in series.shape)
    if series.dataoffset is not None and len(_paths(series, file)) == 1:
        needed = series.dataoffset + math.prod(shape) * stored.itemsize
        if needed > file.size_bytes:
            raise ConfigError(
                f"{file.location} has {file.size_bytes} bytes; its pages need {needed}: it was "
                "cut short"
            )
        return RawArray(file, int(series.dataoffset), stored, shape), (file,), None
    paths = _paths(series, file)
    files = tuple(file if path == file.location else open_file(path) for path in paths)
    keyframe = series.keyframe
    plane = tuple(int(size) for size in keyframe.shape)
    lead = shape[: len(shape) - len(plane)]
    if lead + plane != shape or len(series.pages) != math.prod(lead):
        raise ConfigError(
            f"{file.location}: {len(series.pages)} pages of shape {plane} do not make up the "
            f"series of shape {shape}"
        )
    # Grey planes may have an axis of one sample at either end.
    plane = tuple(int(size) for size in keyframe.shaped[1:4])
    pages = tuple(
        None
        if page is None
        else page_of(page, index, files[index].size_bytes, files[index].location)
        for page in series.pages
        for index in [0 if page is None else paths.index(_path(page, file))]
    )
    place = (paths.index(_path(keyframe, file)), tuple(np.atleast_1d(keyframe.index).tolist()))
    inner = TiffPages(files, pages, lead, plane, stored, place)
    _check_compressed(inner)
    kept = _kept_axes(len(lead), keyframe)
    tile = [1] * len(lead) + [int(size) for size in _chunk(keyframe)]
    view = AxesView(inner, kept)
    return view, files, tuple(tile[axis] for axis in kept)


def _kept_axes(n_lead: int, keyframe: Any) -> tuple[int, ...]:
    """Return which axes of (*lead, z, y, x) a series has: samples and a depth of 1 may be none."""
    letters = [letter for letter in keyframe.axes if letter != "S"]
    return (*range(n_lead), *(n_lead + "ZYX".index(letter) for letter in letters))


def _chunk(keyframe: Any) -> tuple[int, int, int]:
    if keyframe.is_tiled:
        return max(1, keyframe.tiledepth), keyframe.tilelength, keyframe.tilewidth
    return 1, min(keyframe.rowsperstrip, keyframe.imagelength), keyframe.imagewidth


def _path(page: Any, file: SourceFile) -> str:
    # A file behind a URL has no path; it is always the only one.
    return file.location if file.storage_options is not None else file_of(page)


def _paths(series: Any, file: SourceFile) -> list[str]:
    found = (_path(page, file) for page in series.pages if page is not None)
    return list(dict.fromkeys(found))


def _identity_of_files(files: Sequence[SourceFile]) -> dict[str, Any]:
    if len(files) < 2:
        return {}
    facts = [
        [file.location.rpartition("/")[2], file.size_bytes, dict(file.version)] for file in files
    ]
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
    return {"files_sha256": digest}


def _info(opened: Any, series: int, name: str, axes: tuple[str, ...]) -> VolumeInfo:
    if opened.is_ome:
        return _ome_info(opened.ome_metadata, series, name, axes)
    if opened.is_imagej:
        return _imagej_info(opened, name, axes)
    # Resolution tags of plain files mostly hold dots per inch of a printer.
    return plain_info(name, axes)


def _ome_info(xml: str, series: int, name: str, axes: tuple[str, ...]) -> VolumeInfo:
    try:
        images = [node for node in ElementTree.fromstring(xml) if _tag(node) == "Image"]
        image = images[min(series, len(images) - 1)]
        (pixels,) = [node for node in image if _tag(node) == "Pixels"]
    except (ElementTree.ParseError, IndexError, ValueError):
        return plain_info(name, axes)
    scale, units = {}, {}
    for axis, key in _OME_SIZES.items():
        size = _number(pixels.get(key))
        if size:
            scale[axis] = size
            units[axis] = unit_name(pixels.get(f"{key}Unit", _OME_UNITS[axis]))
    labels = [node.get("Name") for node in pixels if _tag(node) == "Channel"]
    attributes: dict[str, Any] = {"channel_names": labels} if all(labels) and labels else {}
    described = [node.text for node in image if _tag(node) == "Description" and node.text]
    if described:
        attributes["description"] = described[0]
    return plain_info(name, axes, scale=scale, units=units, attributes=attributes)


def _tag(node: ElementTree.Element) -> str:
    return node.tag.rpartition("}")[2]


def _imagej_info(opened: Any, name: str, axes: tuple[str, ...]) -> VolumeInfo:
    found = opened.imagej_metadata or {}
    unit = unit_name(str(found.get("unit", "")))
    tags = opened.pages[0].tags
    scale = {"z": _number(found.get("spacing")), "t": _number(found.get("finterval"))}
    if unit:
        # Without a unit the tags hold what plain files hold.
        for axis, tag in (("x", "XResolution"), ("y", "YResolution")):
            if tag in tags and all(tags[tag].value):
                numerator, denominator = tags[tag].value
                scale[axis] = denominator / numerator
    units: dict[str, str | None] = dict.fromkeys("zyx", unit)
    if scale["t"]:
        units["t"] = unit_name(str(found.get("tunit", "s")))
    known = {axis: size for axis, size in scale.items() if size}
    return plain_info(name, axes, scale=known, units=units)


def _number(value: Any) -> float | None:
    try:
        return float(value)
    except (TypeError, ValueError):
        return None
