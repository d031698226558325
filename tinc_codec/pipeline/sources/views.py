"""Arrays in memory, and other arrays seen in another way."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from tinc_codec.pipeline.sources.boxes import box_of
from tinc_codec.pipeline.volumes import LazyArray

__all__ = ["AxesView", "DaskArray", "MissingAsNaN", "NativeArray", "nan_dtype"]


@dataclass(frozen=True)
class NativeArray:
    """Anything that is indexed like an array: a NumPy, Zarr or HDF5 array, a lazy one of xarray."""

    inner: Any

    @property
    def shape(self) -> tuple[int, ...]:
        """Voxels along each axis."""
        return tuple(int(size) for size in self.inner.shape)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of a voxel, in the byte order of this machine."""
        return np.dtype(self.inner.dtype).newbyteorder("=")

    def __getitem__(self, selection: tuple[slice, ...]) -> np.ndarray[Any, Any]:
        """Read a box."""
        return np.asarray(self.inner[box_of(selection, self.shape)], dtype=self.dtype)


@dataclass(frozen=True)
class DaskArray(NativeArray):
    """A Dask array; a box is computed by the thread that asks for it."""

    def __getitem__(self, selection: tuple[slice, ...]) -> np.ndarray[Any, Any]:
        """Compute a box."""
        part = self.inner[box_of(selection, self.shape)]
        # The caller runs many boxes at once; a pool under each would multiply its memory.
        return np.asarray(part.compute(scheduler="synchronous"), dtype=self.dtype)


@dataclass(frozen=True)
class AxesView:
    """An array with its axes in another order, some axes of one voxel left out.

    Parameters
    ----------
    inner : LazyArray
    order : tuple of int
        Axes of `inner` in the order in which they are seen; the others have one voxel.
    """

    inner: LazyArray
    order: tuple[int, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """Voxels along each axis."""
        return tuple(self.inner.shape[axis] for axis in self.order)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of a voxel."""
        return self.inner.dtype

    def __getitem__(self, selection: tuple[slice, ...]) -> np.ndarray[Any, Any]:
        """Read a box."""
        box = dict(zip(self.order, box_of(selection, self.shape), strict=True))
        ndim = len(self.inner.shape)
        part = self.inner[tuple(box.get(axis, slice(0, 1)) for axis in range(ndim))]
        dropped = tuple(axis for axis in range(ndim) if axis not in box)
        return part.transpose(*self.order, *dropped).reshape(
            tuple(part.shape[axis] for axis in self.order)
        )


def nan_dtype(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Return the float type that holds all values of a type, and NaN."""
    if dtype.kind == "f":
        return dtype
    return np.dtype("f4" if dtype.itemsize <= 2 else "f8")


@dataclass(frozen=True)
class MissingAsNaN:
    """An array with NaN where a value says that there is none.

    Parameters
    ----------
    inner : LazyArray
        Of integers or floats.
    missing : tuple of float
    """

    inner: LazyArray
    missing: tuple[float, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """Voxels along each axis."""
        return self.inner.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of a voxel: floats."""
        return nan_dtype(self.inner.dtype)

    def __getitem__(self, selection: tuple[slice, ...]) -> np.ndarray[Any, Any]:
        """Read a box."""
        part = self.inner[selection]
        # Compared as the type that is stored: 1e20 is no float32.
        marks = np.array(self.missing).astype(part.dtype)
        found = part.astype(self.dtype)
        found[np.isin(part, marks)] = np.nan
        return found
