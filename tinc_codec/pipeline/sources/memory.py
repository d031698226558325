"""Arrays that are in memory or open already: NumPy, Dask, xarray, Zarr."""

from typing import Any

import numpy as np

from tinc_codec.errors import ConfigError
from tinc_codec.pipeline.metadata import default_axes, plain_info
from tinc_codec.pipeline.sources.boxes import box_of
from tinc_codec.pipeline.sources.cf import Coordinate, info_from_cf
from tinc_codec.pipeline.sources.views import DaskArray, NativeArray
from tinc_codec.pipeline.volumes import LazyArray, Volume
from tinc_codec.volume.support import check_supported

__all__ = ["open_memory"]


def open_memory(src: Any) -> Volume:
    """Wrap an array that is in memory or open already.

    Parameters
    ----------
    src : numpy.ndarray, dask.array.Array, xarray.DataArray, or anything indexed like an array

    Raises
    ------
    ConfigError
        If it is nothing of this kind.
    UnsupportedDataError
        If the codec does not store such arrays.
    """
    if not all(hasattr(src, name) for name in ("shape", "dtype", "__getitem__")):
        raise ConfigError(
            f"a {type(src).__name__} is neither a path, a URL nor an array (NumPy, Dask, "
            "xarray.DataArray, Zarr)"
        )
    check_supported(src.dtype, tuple(src.shape))
    if hasattr(src, "dims") and hasattr(src, "coords"):
        return _open_xarray(src)
    info = plain_info("volume", default_axes(len(src.shape)))
    return Volume(_lazy(src), info, {}, _chunks(src))


def _lazy(array: Any) -> LazyArray:
    return DaskArray(array) if hasattr(array, "__dask_graph__") else NativeArray(array)


def _chunks(array: Any) -> tuple[int, ...] | None:
    """Return the shape of a Dask array's largest chunk, or a Zarr array's."""
    chunks = getattr(array, "chunks", None)
    if not chunks:
        return None
    return tuple(int(max(part)) if isinstance(part, tuple) else int(part) for part in chunks)


class _Variable:
    """An xarray variable that may be lazy, read as NumPy."""

    def __init__(self, variable: Any) -> None:
        self._variable = variable
        self.shape = tuple(int(size) for size in variable.shape)
        self.dtype = np.dtype(variable.dtype).newbyteorder("=")

    def __getitem__(self, selection: tuple[slice, ...]) -> np.ndarray[Any, Any]:
        part = self._variable[box_of(selection, self.shape)]
        return np.asarray(part.values, dtype=self.dtype)


def _open_xarray(src: Any) -> Volume:
    dimensions = tuple(str(name) for name in src.dims)
    coordinates = {
        name: Coordinate(np.asarray(src.coords[name].values), src.coords[name].attrs)
        for name in dimensions
        if name in src.coords and src.coords[name].ndim == 1
    }
    name = str(src.name) if src.name is not None else "volume"
    info = info_from_cf(name, src.ndim, dimensions, coordinates, src.attrs)
    lazy = DaskArray(src.data) if src.chunks is not None else _Variable(src.variable)
    return Volume(lazy, info, {}, _chunks(src))
