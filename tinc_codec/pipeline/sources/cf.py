"""What NetCDF and Xarray say of an array: coordinates, units and missing values (CF)."""

import base64
import contextlib
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tinc_codec.pipeline.metadata import AXES, default_axes, plain_info, unit_name
from tinc_codec.pipeline.volumes import VolumeInfo

__all__ = ["Coordinate", "info_from_cf", "missing_values"]

_NAMES = {
    "t": "t", "time": "t",
    "c": "c", "channel": "c", "channels": "c", "band": "c",
    "z": "z", "depth": "z", "height": "z", "altitude": "z", "lev": "z", "level": "z", "plev": "z",
    "slice": "z", "plane": "z",
    "y": "y", "lat": "y", "latitude": "y", "row": "y",
    "x": "x", "lon": "x", "longitude": "x", "col": "x", "column": "x",
}  # fmt: skip
_NOT_KEPT = (
    "_ARRAY_DIMENSIONS", "_FillValue", "missing_value", "coordinates", "grid_mapping",
)  # fmt: skip


@dataclass(frozen=True)
class Coordinate:
    """Values along an axis, and their attributes."""

    values: np.ndarray[Any, Any]
    attributes: Mapping[str, Any] = field(default_factory=dict)


def info_from_cf(
    name: str,
    ndim: int,
    dimensions: tuple[str, ...] | None,
    coordinates: Mapping[str, Coordinate],
    attributes: Mapping[str, Any],
) -> VolumeInfo:
    """Describe an array by its dimensions and their coordinates.

    Parameters
    ----------
    name : str
    ndim : int
    dimensions : tuple of str, or None
        One per axis.
    coordinates : mapping
        Of those dimensions that have some. Values that rise by equal steps give scale and
        translation; others are not carried over.
    attributes : mapping
        Of the array.

    Raises
    ------
    ConfigError
        If there are not 2 to 5 axes.
    """
    axes = _axes(ndim, dimensions, coordinates)
    scale: dict[str, float] = {}
    translation: dict[str, float] = {}
    units: dict[str, str | None] = {}
    for axis, dimension in zip(axes, dimensions or (), strict=False):
        coordinate = coordinates.get(dimension)
        if coordinate is None:
            continue
        units[axis] = unit_name(_text(coordinate.attributes.get("units")))
        step = _step(coordinate.values)
        if step:
            scale[axis], translation[axis] = step, float(coordinate.values[0])
    kept = {key: value for key, value in attributes.items() if key not in _NOT_KEPT}
    if dimensions is not None and dimensions != axes:
        kept["source_dimensions"] = list(dimensions)
    return plain_info(
        name, axes, scale=scale, translation=translation, units=units, attributes=kept
    )


def _axes(
    ndim: int, dimensions: tuple[str, ...] | None, coordinates: Mapping[str, Coordinate]
) -> tuple[str, ...]:
    """Name axes by their dimensions where all are understood and in order, else by their places."""
    found = []
    for dimension in dimensions or ():
        coordinate = coordinates.get(dimension)
        marked = _text(coordinate.attributes.get("axis")) if coordinate else None
        axis = (marked or "").lower() or _NAMES.get(dimension.lower())
        if axis not in AXES:
            return default_axes(ndim)
        found.append(axis)
    in_order = sorted({*found}, key=AXES.index) == found
    return tuple(found) if found and in_order and {"y", "x"} <= {*found} else default_axes(ndim)


def _step(values: np.ndarray[Any, Any]) -> float | None:
    if values.dtype.kind not in "iuf" or len(values) < 2:
        return None
    steps = np.diff(values.astype("f8"))
    mean = float(steps.mean())
    # Coordinates are often float32: a thousandth of a step is their rounding.
    even = mean > 0 and np.allclose(steps, mean, rtol=0, atol=1e-3 * mean)
    return mean if even else None


def missing_values(attributes: Mapping[str, Any], dtype: np.dtype[Any]) -> tuple[float, ...]:
    """Return the values that stand for a missing one: `_FillValue` and `missing_value`.

    NaN, which the codec keeps by itself, is none of them.
    """
    found: list[float] = []
    for key in ("_FillValue", "missing_value"):
        if key not in attributes or dtype.kind not in "iuf":
            continue
        value = attributes[key]
        if isinstance(value, str):
            value = _decoded(value, dtype)
        with contextlib.suppress(TypeError, ValueError):
            found += [float(item) for item in np.ravel(np.asarray(value, dtype="f8"))]
    return tuple(sorted({value for value in found if np.isfinite(value)}))


def _decoded(text: str, dtype: np.dtype[Any]) -> Any:
    """Decode the way in which xarray writes a `_FillValue` of floats into attributes of Zarr."""
    try:
        return struct.unpack("<d", base64.standard_b64decode(text))[0]
    except (struct.error, ValueError):
        return text


def _text(value: Any) -> str | None:
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return value if isinstance(value, str) else None
