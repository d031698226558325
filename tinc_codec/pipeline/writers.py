"""Files that a decoded volume is written to: voxels box by box, at their places in the file.

A writer makes the file with its header first and leaves room for the voxels; nothing of the volume
is ever held but the box at hand.
"""

import gzip
import math
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np

from tinc_codec.errors import ConfigError
from tinc_codec.pipeline.metadata import cf_attributes, ome_attributes
from tinc_codec.pipeline.sources.extras import import_extra
from tinc_codec.pipeline.sources.nifti import SPACE_UNITS, TIME_UNITS
from tinc_codec.pipeline.volumes import VolumeInfo

__all__ = ["WRITERS", "Box", "RawFile", "Sink", "file_dtype", "file_order", "kind_of"]

Box = tuple[slice, ...]
Sink = Callable[[Box, np.ndarray[Any, Any]], None]
"""Takes the voxels of a box of the volume, and writes them."""

WRITERS = {
    ".npy": "NumPy",
    ".nii": "NIfTI",
    ".nii.gz": "NIfTI",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".zarr": "Zarr",
}
"""What a suffix of the destination means."""

_GZIP_LEVEL = 6
_BLOCK_BYTES = 1 << 20
_BIGTIFF_BYTES = (1 << 32) - (1 << 25)
# NIfTI-1 keeps lengths as int16.
_NIFTI1_LONGEST = 32767
_METERS = {
    "angstrom": 1e-10,
    "nanometer": 1e-9,
    "micrometer": 1e-6,
    "millimeter": 1e-3,
    "centimeter": 1e-2,
    "meter": 1.0,
    "kilometer": 1e3,
    "inch": 0.0254,
    "foot": 0.3048,
}
_OME_UNITS = {
    "angstrom": "Å",
    "nanometer": "nm",
    "micrometer": "µm",
    "millimeter": "mm",
    "centimeter": "cm",
    "meter": "m",
    "kilometer": "km",
    "inch": "in",
    "foot": "ft",
    "nanosecond": "ns",
    "microsecond": "µs",
    "millisecond": "ms",
    "second": "s",
    "minute": "min",
    "hour": "h",
    "day": "d",
}


def kind_of(path: str) -> str:
    """Return what a destination is to be, by its suffix.

    Raises
    ------
    ConfigError
        If the suffix is not known; lists those that are.
    """
    name = path.rstrip("/").lower()
    for suffix, kind in WRITERS.items():
        if name.endswith(suffix):
            return kind
    raise ConfigError(f"DST {path!r} has none of the suffixes {', '.join(WRITERS)}")


def file_dtype(kind: str, dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Return the type that a file of this kind holds: neither NIfTI nor OME-TIFF know float16."""
    return np.dtype("f4") if dtype == np.float16 and kind in ("NIfTI", "TIFF") else dtype


def file_order(kind: str, axes: tuple[str, ...]) -> tuple[int, ...]:
    """Return the order in which a file has the axes, from slowest to fastest."""
    if kind == "NIfTI" and axes[:2] == ("t", "c"):
        # Components are its slowest axis.
        return (1, 0, *range(2, len(axes)))
    return tuple(range(len(axes)))


class RawFile:
    """Voxels in a file, one after the other, that are written by boxes.

    Parameters
    ----------
    path : Path
    offset : int
        Of the first voxel, in bytes.
    shape : tuple of int
        Of the volume.
    dtype : numpy.dtype
        In the file.
    order : tuple of int
        Axes of the volume, from the file's slowest to its fastest.
    """

    def __init__(
        self,
        path: Path,
        offset: int,
        shape: tuple[int, ...],
        dtype: np.dtype[Any],
        order: tuple[int, ...],
    ) -> None:
        self._offset = offset
        self._order = order
        self._dtype = dtype
        self._shape = tuple(shape[axis] for axis in order)
        self._stream = path.open("r+b", buffering=0)
        # A hole that reads as zeros; a TIFF has room already, and more behind it.
        end = offset + math.prod(shape) * dtype.itemsize
        self._stream.truncate(max(end, self._stream.seek(0, os.SEEK_END)))

    def write(self, box: Box, voxels: np.ndarray[Any, Any]) -> None:
        """Write the voxels of a box of the volume."""
        part = np.ascontiguousarray(voxels.transpose(self._order), dtype=self._dtype)
        starts = [box[axis].start for axis in self._order]
        # From this axis on the box is one piece of the file.
        split = len(self._shape)
        while split and part.shape[split - 1 :] == self._shape[split - 1 :]:
            split -= 1
        split = max(split - 1, 0)
        for index in np.ndindex(*part.shape[:split]):
            place = [start + i for start, i in zip(starts, index, strict=False)]
            place += starts[split:]
            position = int(np.ravel_multi_index(place, self._shape))
            self._stream.seek(self._offset + position * self._dtype.itemsize)
            data = part[index].data.cast("B")
            while len(data):
                data = data[self._stream.write(data) :]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()


def start_npy(path: Path, shape: tuple[int, ...], dtype: np.dtype[Any]) -> int:
    """Write the header of a `.npy` file and return where its voxels begin."""
    header = {
        "descr": np.lib.format.dtype_to_descr(dtype),
        "fortran_order": False,
        "shape": shape,
    }
    with path.open("wb") as stream:
        np.lib.format.write_array_header_1_0(stream, header)
        return stream.tell()


def start_tiff(path: Path, shape: tuple[int, ...], dtype: np.dtype[Any], info: VolumeInfo) -> int:
    """Write the pages of an OME-TIFF that is not compressed; return where its voxels begin."""
    tifffile = import_extra("tifffile", "tiff")
    size_bytes = math.prod(shape) * dtype.itemsize
    tifffile.imwrite(
        path,
        shape=shape,
        dtype=dtype,
        ome=True,
        bigtiff=size_bytes > _BIGTIFF_BYTES,
        photometric="minisblack",
        metadata=_ome_metadata(info),
    )
    with tifffile.TiffFile(path) as opened:
        offset = opened.series[0].dataoffset
    assert offset is not None
    return int(offset)


def _ome_metadata(info: VolumeInfo) -> dict[str, Any]:
    found: dict[str, Any] = {"axes": "".join(info.axes).upper(), "Name": info.name}
    for axis, step, unit in zip(info.axes, info.scale, info.units, strict=True):
        if axis in "zyx":
            key = f"PhysicalSize{axis.upper()}"
            # Without a unit OME would mean micrometers.
            found |= {key: step, f"{key}Unit": _OME_UNITS.get(unit or "", "pixel")}
        elif axis == "t" and unit in _OME_UNITS:
            found |= {"TimeIncrement": step, "TimeIncrementUnit": _OME_UNITS[unit]}
    labels = info.attributes.get("channel_names")
    if labels and "c" in info.axes:
        found["Channel"] = {"Name": list(labels)}
    if isinstance(info.attributes.get("description"), str):
        found["Description"] = info.attributes["description"]
    return found


def start_nifti(path: Path, shape: tuple[int, ...], dtype: np.dtype[Any], info: VolumeInfo) -> int:
    """Write the header of a `.nii` file and return where its voxels begin."""
    nibabel = import_extra("nibabel", "nifti")
    sizes = dict(zip(info.axes, shape, strict=True))
    in_file = [sizes.get(axis, 1) for axis in ("x", "y", "z", "t", "c")]
    last = max(3, 4 if "t" in sizes else 0, 5 if "c" in sizes else 0)
    long = max(in_file) > _NIFTI1_LONGEST
    header = (nibabel.Nifti2Header if long else nibabel.Nifti1Header)()
    header.set_data_shape(in_file[:last])
    header.set_data_dtype(dtype)
    _describe(header, info, last)
    header["magic"] = b"n+2" if long else b"n+1"
    header["vox_offset"] = 544 if long else 352
    with path.open("wb") as stream:
        header.write_to(stream)
    return int(header["vox_offset"])


def _describe(header: Any, info: VolumeInfo, ndim: int) -> None:
    kept = info.attributes.get("nifti")
    kept = kept if isinstance(kept, Mapping) else {}
    space, factor = _nifti_unit(info)
    scale = dict(zip(info.axes, info.scale, strict=True))
    translation = dict(zip(info.axes, info.translation, strict=True))
    units = dict(zip(info.axes, info.units, strict=True))
    zooms = [scale.get(axis, 1.0) * factor for axis in "xyz"]
    header.set_zooms((zooms + [scale.get("t", 1.0), 1.0])[:ndim])
    times = {name: code for code, name in TIME_UNITS.items()}
    header.set_xyzt_units(space, times.get(units.get("t") or "", "unknown"))
    if "t" not in units and kept.get("xyzt_units", 0) % 8 == header["xyzt_units"] % 8:
        # A unit of time goes along where there is no such axis.
        header["xyzt_units"] = kept.get("xyzt_units", 0)
    header["toffset"] = translation.get("t", 0.0)
    if not kept:
        affine = np.diag([*zooms, 1.0])
        affine[:3, 3] = [translation.get(axis, 0.0) * factor for axis in "xyz"]
        header.set_sform(affine, code="scanner")
    if "qform" in kept:
        header.set_qform(np.array(kept["qform"]), kept.get("qform_code", 1))
    if "sform" in kept:
        header.set_sform(np.array(kept["sform"]), kept.get("sform_code", 1))
    for key in ("descrip", "intent_name", "aux_file", "intent_code", "cal_min", "cal_max"):
        if key in kept:
            header[key] = kept[key]
    slope = info.attributes.get("scale_factor", 1.0)
    intercept = info.attributes.get("add_offset", 0.0)
    header.set_slope_inter(float(slope), float(intercept))


def _nifti_unit(info: VolumeInfo) -> tuple[str, float]:
    """Return NIfTI's name of the unit of space, and what lengths are to be multiplied by."""
    found = {unit for axis, unit in zip(info.axes, info.units, strict=True) if axis in "zyx"}
    if len(found) != 1:
        return "unknown", 1.0
    (unit,) = found
    names = {name: code for code, name in SPACE_UNITS.items()}
    if unit in names:
        return names[unit], 1.0
    if unit in _METERS:
        return "mm", _METERS[unit] / _METERS["millimeter"]
    return "unknown", 1.0


def pack_gzip(raw: Path, packed: Path) -> None:
    """Compress a file into another one."""
    with (
        raw.open("rb") as source,
        # The same voxels give the same bytes: no date, no name.
        packed.open("wb") as target,
        gzip.GzipFile("", "wb", _GZIP_LEVEL, target, 0) as stream,
    ):
        shutil.copyfileobj(source, stream, _BLOCK_BYTES)


def start_zarr(
    location: str,
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
    info: VolumeInfo,
    *,
    zarr_format: int,
    chunks: tuple[int, ...],
    shards: tuple[int, ...] | None,
    group_attributes: Mapping[str, Any],
    storage_options: Mapping[str, Any] | None,
) -> Any:
    """Make an OME-Zarr group with one level, Blosc with Zstd and no voxels; return its array."""
    import zarr

    options: dict[str, Any]
    if not hasattr(zarr, "create_group"):
        raise ConfigError(f"writing Zarr needs zarr 3 or later; {zarr.__version__} is installed")
    attributes = cf_attributes(info)
    if zarr_format == 3:
        from zarr.codecs import BloscCodec

        options = {
            "compressors": BloscCodec(cname="zstd", clevel=5, shuffle="shuffle"),
            "dimension_names": info.axes,
        }
    else:
        from numcodecs import Blosc

        options = {
            "compressors": Blosc(cname="zstd", clevel=5, shuffle=Blosc.SHUFFLE),
            "chunk_key_encoding": {"name": "v2", "separator": "/"},
        }
        # Where xarray looks for the names of axes in this format.
        attributes["_ARRAY_DIMENSIONS"] = list(info.axes)
    group = zarr.create_group(
        store=location,
        zarr_format=3 if zarr_format == 3 else 2,
        # The caller has looked whether something may be replaced.
        overwrite=True,
        attributes={**ome_attributes(info, zarr_format, ["0"]), **group_attributes},
        storage_options=dict(storage_options) if storage_options else None,
    )
    return group.create_array(
        "0",
        shape=shape,
        dtype=dtype,
        chunks=chunks,
        shards=shards,
        fill_value=math.nan if dtype.kind == "f" else 0,
        attributes=attributes,
        **options,
    )
