"""`decompress`: from a Zarr that `compress` wrote to a file that every program reads."""

import contextlib
import errno
import itertools
import math
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from tinc_codec.errors import ConfigError, FormatError, UnsupportedDataError
from tinc_codec.pipeline import writers
from tinc_codec.pipeline.sources.files import local_path
from tinc_codec.pipeline.sources.zarr import FoundArray, find_array, open_zarr
from tinc_codec.pipeline.tasks import RECORD
from tinc_codec.pipeline.volumes import Volume, VolumeInfo
from tinc_codec.pipeline.writers import Box, RawFile, Sink

__all__ = ["DecompressReport", "decompress"]

# Voxels that are decoded at once, where a chunk is not larger.
_BOX_BYTES = 64 << 20


@dataclass(frozen=True, kw_only=True)
class DecompressReport:
    """What `decompress` has done.

    Attributes
    ----------
    destination, kind : str
        Where it is, and "Zarr", "NIfTI", "TIFF" or "NumPy".
    shape : tuple of int
    dtype : str
    axes : tuple of str
    raw_bytes : int
        Of the decoded voxels.
    size_bytes : int or None
        Of what was written; None behind a URL.
    seconds : float
    """

    destination: str
    kind: str
    shape: tuple[int, ...]
    dtype: str
    axes: tuple[str, ...]
    raw_bytes: int
    size_bytes: int | None
    seconds: float


def decompress(
    src: Any,
    dst: str | os.PathLike[str],
    *,
    level: int = 0,
    variable: str | None = None,
    overwrite: bool = False,
    allow_missing: bool = False,
    storage_options: Mapping[str, Any] | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> DecompressReport:
    """Decode a volume and write it to a file.

    Memory holds one row of chunks, 64 MiB where chunks allow it. The file has its name only when
    it is complete: before, it is `.NAME.*.part` beside it.

    Parameters
    ----------
    src : str, path, zarr.Array or zarr.Group
        A path or an fsspec URL of an array or a group.
    dst : str or path
        By its suffix: `.zarr` (OME-Zarr in the format of `src`, Blosc with Zstd; here a URL will
        do), `.nii`, `.nii.gz`, `.tif`, `.tiff` (OME-TIFF, BigTIFF over 4 GiB) or `.npy`.
    level : int
        Level of resolution, 0 the finest.
    variable : str, optional
        Path of an array or group within the group.
    overwrite : bool
        Replace `dst` where there is one.
    allow_missing : bool
        Go on where `compress` has not finished, or chunks are missing of what it did: they are
        written as NaN, or as 0 of integers.
    storage_options : mapping, optional
        For the fsspec file systems of URLs.
    on_progress : callable, optional
        Called with the bytes that are done and those that there are.

    Returns
    -------
    DecompressReport

    Raises
    ------
    FileExistsError
        If there is a `dst` and `overwrite` is not given.
    FileNotFoundError
        If there is no `src`, or no folder for `dst`.
    ConfigError
        If `src` is no Zarr, or one that `compress` has not finished; if `dst` lies in `src` or has
        it in itself, has a suffix that is not known, an axis is not one that the
        file has, or the library that writes it is not installed.
    FormatError
        If a chunk is damaged; names it, or its voxels. If chunks are missing of an array that
        `compress` has finished. Nothing is left at `dst` then.
    OSError
        If the disk is too small.
    """
    begun = time.monotonic()
    location = os.fspath(dst)
    kind = writers.kind_of(location)
    path = local_path(location)
    if path is None and kind != "Zarr":
        raise ConfigError(f"DST {location} is a URL; only Zarr is written to one")
    if not overwrite:
        _check_free(path, location, storage_options)
    found = _find(src, variable, level, storage_options)
    if path is not None and found.location:
        _check_apart(path, found.location)
    about = dict(found.group.attrs) if found.group is not None else {}
    record = about.get(RECORD)
    if isinstance(record, Mapping) and not record.get("complete", True) and not allow_missing:
        raise ConfigError(
            "SRC is not complete: the same `tinc compress` again finishes it; allow_missing=True "
            "(--allow-missing) decodes what is there"
        )
    if not allow_missing:
        _check_whole(found if level == 0 else _find(src, variable, 0, storage_options), record)
    volume = open_zarr(found.location or found.node, storage_options, found.path or None)
    volume = replace(volume, info=found.info)
    dtype = writers.file_dtype(kind, volume.array.dtype)
    raw_bytes = math.prod(volume.array.shape) * dtype.itemsize
    if path is not None and not path.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {path.parent}")
    if kind == "Zarr":
        layout = {
            "zarr_format": int(getattr(found.array.metadata, "zarr_format", 2)),
            "chunks": tuple(found.array.chunks),
            "shards": getattr(found.array, "shards", None),
            "group_attributes": _container(found.info, about),
            "storage_options": storage_options,
        }
        _to_zarr(volume, path, location, layout, on_progress)
    else:
        assert path is not None
        _to_file(volume, path, kind, dtype, on_progress)
    return DecompressReport(
        destination=location,
        kind=kind,
        shape=volume.array.shape,
        dtype=str(dtype),
        axes=volume.info.axes,
        raw_bytes=raw_bytes,
        size_bytes=None if path is None else _size_of(path),
        seconds=time.monotonic() - begun,
    )


def _container(info: VolumeInfo, about: Mapping[str, Any]) -> dict[str, Any]:
    """Return the group's attribute that tells what the voxels have been through, if it has one."""
    name = info.attributes.get("lossy_compression")
    return {name: about[name]} if isinstance(name, str) and name in about else {}


def _find(
    src: Any, variable: str | None, level: int, storage_options: Mapping[str, Any] | None
) -> FoundArray:
    if isinstance(src, (str, os.PathLike)):
        src = os.fspath(src)
    elif type(src).__module__.partition(".")[0] != "zarr":
        raise ConfigError(f"SRC is a {type(src).__name__}, not a path, URL or object of zarr")
    found = find_array(src, storage_options, variable, level=level)
    if level == 0:
        return found
    finest = find_array(src, storage_options, variable)
    return replace(found, info=_at_level(found.info, finest.info))


def _check_whole(found: FoundArray, record: Any) -> None:
    """Refuse an array whose stored objects are not what they were: zarr reads those as fill value.

    Of one that `compress` has written, which stores every chunk, all must be there.

    Raises
    ------
    FormatError
    """
    from tinc_codec.inspection.reader import inspect

    try:
        stored = inspect(found.array)
    except UnsupportedDataError:
        # Not ours, or behind another compressor.
        return
    if isinstance(record, Mapping) and stored.n_missing:
        count = math.prod(stored.grid_shape)
        raise FormatError(
            f"{stored.n_missing} of {count} chunks are missing of SRC, which was complete: "
            "the same `tinc compress` again writes them; allow_missing=True "
            "(--allow-missing) decodes what is there"
        )


def _at_level(info: VolumeInfo, finest: VolumeInfo) -> VolumeInfo:
    """Move the affines that a NIfTI header has left from voxels of level 0 to those of a level."""
    kept = info.attributes.get("nifti")
    if not isinstance(kept, Mapping):
        return info
    change = np.eye(4)
    facts = zip(
        info.axes, info.scale, info.translation, finest.scale, finest.translation, strict=True
    )
    for axis, step, first, finest_step, finest_first in facts:
        if axis in "xyz":
            place = "xyz".index(axis)
            change[place, place] = step / finest_step
            change[place, 3] = (first - finest_first) / finest_step
    moved = {
        key: (np.array(kept[key]) @ change).tolist()
        for key in ("affine", "qform", "sform")
        if key in kept
    }
    return replace(info, attributes={**info.attributes, "nifti": {**kept, **moved}})


def _check_apart(path: Path, source: str) -> None:
    other = local_path(source)
    if other is None:
        return
    ours, theirs = path.resolve(), other.resolve()
    if ours == theirs or ours in theirs.parents or theirs in ours.parents:
        raise ConfigError(f"DST {path} and SRC {other} lie in one another; choose another DST")


def _check_free(
    path: Path | None, location: str, storage_options: Mapping[str, Any] | None
) -> None:
    if path is not None:
        taken = path.exists()
    else:
        from fsspec.core import url_to_fs

        system, inner = url_to_fs(location, **(storage_options or {}))
        taken = system.exists(inner)
    if taken:
        raise FileExistsError(
            f"{location} exists; overwrite=True (--overwrite) replaces it, once the new one is "
            "complete"
        )


def _to_file(
    volume: Volume,
    path: Path,
    kind: str,
    dtype: np.dtype[Any],
    on_progress: Callable[[int, int], None] | None,
) -> None:
    shape, info = volume.array.shape, volume.info
    raw_bytes = math.prod(shape) * dtype.itemsize
    with _staging(path) as folder:
        free = shutil.disk_usage(folder).free
        if free < raw_bytes:
            message = f"{path} needs {raw_bytes} bytes; its disk has {free}"
            raise OSError(errno.ENOSPC, message)
        raw = folder / "raw"
        if kind == "NumPy":
            offset = writers.start_npy(raw, shape, dtype)
        elif kind == "NIfTI":
            offset = writers.start_nifti(raw, shape, dtype, info)
        else:
            offset = writers.start_tiff(raw, shape, dtype, info)
        with RawFile(raw, offset, shape, dtype, writers.file_order(kind, info.axes)) as file:
            _copy(volume, volume.chunks or shape, file.write, on_progress)
        if path.name.lower().endswith(".gz"):
            packed = folder / "packed"
            writers.pack_gzip(raw, packed)
            raw = packed
        raw.replace(path)


def _to_zarr(
    volume: Volume,
    path: Path | None,
    location: str,
    layout: Mapping[str, Any],
    on_progress: Callable[[int, int], None] | None,
) -> None:
    unit = layout["shards"] or layout["chunks"]

    def write(target: str) -> None:
        array = writers.start_zarr(
            target, volume.array.shape, volume.array.dtype, volume.info, **layout
        )
        _copy(volume, unit, array.__setitem__, on_progress)

    if path is None:
        write(location)
        return
    with _staging(path) as folder:
        write(str(folder / "new"))
        if path.exists():
            path.rename(folder / "old")
        try:
            (folder / "new").rename(path)
        except OSError:
            if (folder / "old").exists():
                (folder / "old").rename(path)
            raise


@contextlib.contextmanager
def _staging(path: Path) -> Iterator[Path]:
    """Make a folder beside a destination, on the same disk, and remove it in the end."""
    with tempfile.TemporaryDirectory(
        prefix=f".{path.name}.", suffix=".part", dir=path.parent
    ) as folder:
        yield Path(folder)


def _copy(
    volume: Volume,
    unit: tuple[int, ...],
    write: Sink,
    on_progress: Callable[[int, int], None] | None,
) -> None:
    array = volume.array
    total = math.prod(array.shape) * array.dtype.itemsize
    done = 0
    for box in boxes(array.shape, unit, _BOX_BYTES // array.dtype.itemsize):
        try:
            voxels = array[box]
        except FormatError as error:
            places = ", ".join(f"{part.start}:{part.stop}" for part in box)
            raise FormatError(f"voxels [{places}] cannot be decoded: {error}") from error
        write(box, voxels)
        done += voxels.nbytes
        # Not to be held beside the next.
        del voxels
        if on_progress is not None:
            on_progress(done, total)


def boxes(shape: tuple[int, ...], unit: tuple[int, ...], most: int) -> Iterator[Box]:
    """Cut an array into boxes of whole chunks.

    Parameters
    ----------
    shape : tuple of int
    unit : tuple of int
        Shape of a chunk.
    most : int
        Voxels in a box of more than one chunk. Rows are joined before columns.

    Yields
    ------
    tuple of slice
    """
    sizes = [min(part, size) for part, size in zip(unit, shape, strict=True)]
    for axis in reversed(range(len(shape))):
        others = math.prod(sizes) // sizes[axis]
        count = max(1, most // (others * sizes[axis]))
        sizes[axis] = min(shape[axis], sizes[axis] * count)
        if sizes[axis] < shape[axis]:
            break
    starts = [range(0, size, step) for size, step in zip(shape, sizes, strict=True)]
    for corner in itertools.product(*starts):
        yield tuple(
            slice(first, min(first + step, size))
            for first, step, size in zip(corner, sizes, shape, strict=True)
        )


def _size_of(path: Path) -> int:
    if path.is_file():
        return path.stat().st_size
    return sum(found.stat().st_size for found in path.rglob("*") if found.is_file())
