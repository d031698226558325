"""What a whole volume is to the pipeline, wherever it is kept."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

__all__ = ["LazyArray", "Volume", "VolumeInfo"]


class LazyArray(Protocol):
    """An array of which parts are read on demand; it can be pickled to another process."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Voxels along each axis."""
        ...

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of a voxel."""
        ...

    def __getitem__(self, selection: tuple[slice, ...]) -> np.ndarray[Any, Any]:
        """Read a box; slices of step 1, one per axis."""
        ...


@dataclass(frozen=True, kw_only=True)
class VolumeInfo:
    """What a volume is called and where its voxels lie.

    Parameters
    ----------
    name : str
        Without a path or a suffix.
    axes : tuple of str
        One name per axis, from slowest to fastest: "t", "c", "z", "y", "x".
    scale : tuple of float
        Distance of neighbouring voxels along each axis, in `units`.
    translation : tuple of float
        Where the centre of voxel 0 lies along each axis, in `units`.
    units : tuple of (str or None)
        UDUNITS-2 names, as OME-Zarr has them ("millimeter", "second"); None where unknown.
    attributes : mapping
        CF attributes ("units" of the values, "long_name") and whatever else the source says of
        itself and JSON can hold.
    """

    name: str
    axes: tuple[str, ...]
    scale: tuple[float, ...]
    translation: tuple[float, ...]
    units: tuple[str | None, ...]
    attributes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Volume:
    """An opened volume.

    Parameters
    ----------
    array : LazyArray
    info : VolumeInfo
    identity : mapping
        JSON-ready facts that change when the source changes (its size in bytes, time of change,
        shape, dtype): a rerun compares them. Empty for arrays in memory.
    chunks : tuple of int, or None
        How the source is best read; None where it makes no difference.
    """

    array: LazyArray
    info: VolumeInfo
    identity: Mapping[str, Any] = field(default_factory=dict)
    chunks: tuple[int, ...] | None = None
