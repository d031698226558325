"""Numbers, sizes and places in words."""

from __future__ import annotations

import math
from collections.abc import Iterable

from tinc_codec.inspection import quality
from tinc_codec.pipeline.verification import Verification
from tinc_codec.pipeline.volumes import VolumeInfo

__all__ = [
    "coordinates_text",
    "decibel_text",
    "figure_text",
    "range_share",
    "size_text",
    "times_text",
    "unit_suffix",
    "voxel_size",
    "voxels_text",
]


def voxel_size(info: VolumeInfo) -> str:
    """Write the distance of voxels along the axes of space; "" where nothing is known of it."""
    known = [
        (axis, scale, unit)
        for axis, scale, unit in zip(info.axes, info.scale, info.units, strict=True)
        if axis in ("z", "y", "x")
    ]
    if not known or all(unit is None and scale == 1 for _, scale, unit in known):
        return ""
    lengths = " × ".join(f"{scale:.4g}" for _, scale, _ in known)
    units = {unit for _, _, unit in known}
    if len(units) == 1:
        (unit,) = units
        return f"{lengths} {unit}" if unit else lengths
    return " × ".join(f"{scale:.4g} {unit or ''}".strip() for _, scale, unit in known)


def voxels_text(coordinates: tuple[int, ...], found: Verification, info: VolumeInfo) -> str:
    """Name the voxels of a chunk along each axis, the last one included."""
    sides = zip(info.axes, coordinates, found.chunk_shape, found.shape, strict=True)
    return ", ".join(f"{axis} {i * c}–{min((i + 1) * c, n) - 1}" for axis, i, c, n in sides)


def coordinates_text(coordinates: tuple[int, ...]) -> str:
    """Write where a chunk is."""
    return "(" + ", ".join(map(str, coordinates)) + ")"


def range_share(found: Verification) -> str:
    """Say how much of the range of values the largest error is; "" where that says nothing."""
    low, high = found.value_range
    if not high > low or not math.isfinite(found.max_error):
        return ""
    return f"{found.max_error / (high - low):.1%} of the range of values"


def unit_suffix(info: VolumeInfo) -> str:
    """Give the unit of the values behind a space; "" where it is not known."""
    unit = info.attributes.get("units")
    return f" {unit}" if isinstance(unit, str) and unit else ""


def times_text(numbers: Iterable[int]) -> str:
    """Write a shape."""
    return " × ".join(map(str, numbers))


def figure_text(value: float) -> str:
    """Write a value of the data."""
    return f"{value:.4g}"


def decibel_text(psnr: float) -> str:
    """Write a PSNR."""
    if math.isnan(psnr):
        return "–"
    return quality.decibel_text(psnr)


def size_text(count: float) -> str:
    """Write a number of bytes in its unit."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 999.5:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:,.3g} TB"
