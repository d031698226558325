"""`open_source`: find out what a source is and open it, for reading only."""

import importlib
import os
from collections.abc import Callable, Mapping
from typing import Any

from tinc_codec.errors import ConfigError
from tinc_codec.pipeline.sources.files import local_path
from tinc_codec.pipeline.sources.memory import open_memory
from tinc_codec.pipeline.volumes import Volume

__all__ = ["open_source"]

_SUFFIXES = {
    ".npy": "NumPy",
    ".npz": "NumPy",
    ".nii": "NIfTI",
    ".nii.gz": "NIfTI",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".tf8": "TIFF",
    ".btf": "TIFF",
    ".h5": "HDF5",
    ".hdf5": "HDF5",
    ".he5": "HDF5",
    ".hdf": "HDF5",
    ".nc": "NetCDF",
    ".nc4": "NetCDF",
    ".mnc": "HDF5",
    ".ims": "HDF5",
    ".zarr": "Zarr",
    ".zip": "Zarr",
}
_ROOT_FILES = ("zarr.json", ".zarray", ".zgroup", ".zattrs", ".zmetadata")


def open_source(
    src: Any,
    *,
    variable: str | None = None,
    storage_options: Mapping[str, Any] | None = None,
) -> Volume:
    """Open a volume; its voxels are read when they are asked for, and nothing is ever written.

    Parameters
    ----------
    src : str, path, array or Volume
        A file (NumPy `.npy` or `.npz`, NIfTI, TIFF, HDF5 or NetCDF), a Zarr array or group, a
        folder of TIFF files, or an fsspec URL of one of them (s3://, https://, memory://); or an
        array: NumPy, Dask, xarray.DataArray, Zarr. A Volume is given back as it is.
    variable : str, optional
        Which array of a file or a group is meant, where there are several.
    storage_options : mapping, optional
        For the fsspec file system of a URL.

    Returns
    -------
    Volume
        Axes in the order t, c, z, y, x. The array can be pickled and read from many threads and
        processes. Values are those that are stored: `scale_factor` and `add_offset` stay
        attributes. Where an attribute declares a missing value, floats with NaN are read.

    Raises
    ------
    FileNotFoundError
        If there is nothing.
    ConfigError
        If it is of no known kind, does not tell which array is meant, is damaged, or the library
        that reads it is not installed.
    UnsupportedDataError
        If the codec does not store such arrays.
    """
    if isinstance(src, Volume):
        return src
    if not isinstance(src, (str, os.PathLike)):
        return _open_object(src, variable)
    location = os.fspath(src)
    if not location:
        raise ConfigError("src is an empty path")
    return _opener(location)(location, storage_options, variable)


def _open_object(src: Any, variable: str | None) -> Volume:
    if type(src).__module__.partition(".")[0] == "zarr":
        return _reader("zarr", "open_zarr")(src, None, variable)
    if variable is not None and not hasattr(src, "data_vars"):
        raise ConfigError(f"variable={variable!r} has no meaning for a {type(src).__name__}")
    if hasattr(src, "data_vars"):
        from tinc_codec.pipeline.sources.choice import choose

        facts = {str(k): (tuple(v.shape), v.dtype) for k, v in src.data_vars.items()}
        src = src[choose("the dataset", facts, variable)]
    return open_memory(src)


def _opener(location: str) -> Callable[[Any, Mapping[str, Any] | None, str | None], Volume]:
    path = local_path(location)
    if path is not None and not path.exists():
        if any(mark in path.name for mark in "*?["):
            return _reader("tiff", "open_tiff_files")
        raise FileNotFoundError(f"there is no {path}")
    kind = _kind(location)
    if path is not None and path.is_dir():
        if any((path / name).exists() for name in _ROOT_FILES):
            return _reader("zarr", "open_zarr")
        if kind != "Zarr" and any(_kind(name) == "TIFF" for name in os.listdir(path)):
            return _reader("tiff", "open_tiff_files")
        raise ConfigError(
            f"{path} is a folder, but no Zarr array or group (it has none of "
            f"{', '.join(_ROOT_FILES)}) and holds no TIFF files"
        )
    if kind is None and path is None:
        # Zarr on a server needs no suffix.
        return _reader("zarr", "open_zarr")
    if kind is None:
        raise ConfigError(
            f"{location} has a suffix that is not known; known are {', '.join(_SUFFIXES)}"
        )
    return {
        "NumPy": _reader("numpy", "open_numpy"),
        "NIfTI": _reader("nifti", "open_nifti"),
        "TIFF": _reader("tiff", "open_tiff"),
        "HDF5": _reader("hdf5", "open_hdf5"),
        "NetCDF": _reader("hdf5", "open_hdf5"),
        "Zarr": _reader("zarr", "open_zarr"),
    }[kind]


def _kind(location: str) -> str | None:
    name = location.split("?")[0].rstrip("/").lower()
    found = [suffix for suffix in _SUFFIXES if name.endswith(suffix)]
    return _SUFFIXES[max(found, key=len)] if found else None


def _reader(
    module: str, function: str
) -> Callable[[Any, Mapping[str, Any] | None, str | None], Volume]:
    def read(location: Any, options: Mapping[str, Any] | None, variable: str | None) -> Volume:
        found = importlib.import_module(f"tinc_codec.pipeline.sources.{module}")
        return getattr(found, function)(location, options, variable)

    return read
