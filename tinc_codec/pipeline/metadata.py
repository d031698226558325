"""What a volume says of itself, as OME-Zarr and CF attributes, and back.

References
----------
OME-Zarr 0.4 and 0.5, "multiscales" metadata; CF Conventions 1.12, chapters 3 and 8.
"""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tinc_codec.errors import ConfigError
from tinc_codec.pipeline.volumes import VolumeInfo

__all__ = [
    "AXES",
    "cf_attributes",
    "default_axes",
    "info_from_ome",
    "json_ready",
    "ome_attributes",
    "plain_info",
    "unit_name",
]

AXES = ("t", "c", "z", "y", "x")
"""Every axis that a volume may have, in the order in which it has them."""
_TYPES = {"t": "time", "c": "channel", "z": "space", "y": "space", "x": "space"}
# Attributes that OME-Zarr keeps on the group, beside "multiscales".
_GROUP_ATTRIBUTES = ("omero",)
# Values longer than this, tables and the like, are no attributes of a volume.
_MAX_VALUES = 4096

_UNITS = {
    "a": "angstrom",
    "å": "angstrom",
    "nm": "nanometer",
    "um": "micrometer",
    "µm": "micrometer",
    "μm": "micrometer",
    "micron": "micrometer",
    "microns": "micrometer",
    "\\u00b5m": "micrometer",
    "mm": "millimeter",
    "cm": "centimeter",
    "m": "meter",
    "km": "kilometer",
    "in": "inch",
    "ft": "foot",
    "ns": "nanosecond",
    "us": "microsecond",
    "µs": "microsecond",
    "μs": "microsecond",
    "ms": "millisecond",
    "msec": "millisecond",
    "s": "second",
    "sec": "second",
    "min": "minute",
    "h": "hour",
    "hr": "hour",
    "d": "day",
    "degrees": "degree",
    "degrees_north": "degree",
    "degrees_east": "degree",
}


def unit_name(text: str | None) -> str | None:
    """Return the UDUNITS-2 name of a unit as files abbreviate it; None for none.

    "days since 2000-01-01" gives "day". Names that are not known come back as they are.
    """
    if text is None:
        return None
    text = text.split(" since ")[0].strip()
    if text.lower() in ("", "1", "none", "pixel", "pixels", "voxel", "unknown"):
        return None
    if text in _UNITS:
        return _UNITS[text]
    lowered = text.lower()
    if lowered in _UNITS:
        return _UNITS[lowered]
    singular = lowered.removesuffix("s").replace("metre", "meter")
    if singular in _UNITS.values():
        return singular
    return text


def default_axes(ndim: int) -> tuple[str, ...]:
    """Return the names of `ndim` axes (2 to 5) of which nothing is known: the last of "tczyx".

    Raises
    ------
    ConfigError
        If there are fewer or more axes.
    """
    if not 2 <= ndim <= len(AXES):
        raise ConfigError(
            f"an array of {ndim} axes is no volume: 2 (y, x) to 5 (t, c, z, y, x) are expected"
        )
    # Four axes are a series of volumes much more often than their channels.
    return ("t", "z", "y", "x") if ndim == 4 else AXES[-ndim:]


def plain_info(
    name: str,
    axes: Sequence[str],
    *,
    scale: Mapping[str, float] | None = None,
    translation: Mapping[str, float] | None = None,
    units: Mapping[str, str | None] | None = None,
    attributes: Mapping[str, Any] | None = None,
) -> VolumeInfo:
    """Build a `VolumeInfo` from what is known by name of axis.

    Steps that are not known, not finite or not over 0 become 1; places that are not known 0.
    """
    scale, translation, units = scale or {}, translation or {}, units or {}
    return VolumeInfo(
        name=name,
        axes=tuple(axes),
        scale=tuple(_positive(scale.get(axis, 1.0)) for axis in axes),
        translation=tuple(_finite(translation.get(axis, 0.0)) for axis in axes),
        units=tuple(units.get(axis) for axis in axes),
        attributes=json_ready(attributes or {}),
    )


def _positive(value: Any) -> float:
    value = float(value)
    return value if math.isfinite(value) and value > 0 else 1.0


def _finite(value: Any) -> float:
    value = float(value)
    return value if math.isfinite(value) else 0.0


def ome_attributes(info: VolumeInfo, zarr_format: int, datasets: Sequence[str]) -> dict[str, Any]:
    """Return the attributes of a multiscale group: OME-Zarr 0.5, or 0.4 for Zarr format 2.

    Parameters
    ----------
    info : VolumeInfo
        Of level 0.
    zarr_format : {2, 3}
    datasets : sequence of str
        Paths of the levels in the group. Voxels of level k are 2^k times as wide along z, y and
        x, and their first centre lies (2^k - 1) / 2 voxels of level 0 further on.

    Returns
    -------
    dict
        What is to be stored with the group.

    Raises
    ------
    ConfigError
        If an axis is none of t, c, z, y, x or they are in another order, if there are not two
        or three axes of space, or if a length differs from that of `axes`.
    """
    _check_axes(info)
    axes = [
        {"name": name, "type": _TYPES[name]} | ({"unit": unit} if unit else {})
        for name, unit in zip(info.axes, info.units, strict=True)
    ]
    multiscale: dict[str, Any] = {
        "name": info.name,
        "axes": axes,
        "datasets": [
            {"path": path, "coordinateTransformations": _transformations(info, level)}
            for level, path in enumerate(datasets)
        ],
    }
    kept = {key: info.attributes[key] for key in _GROUP_ATTRIBUTES if key in info.attributes}
    if zarr_format == 2:
        return {"multiscales": [{"version": "0.4"} | multiscale]} | kept
    return {"ome": {"version": "0.5", "multiscales": [multiscale]} | kept}


def _check_axes(info: VolumeInfo) -> None:
    axes = info.axes
    if sorted({*axes} & {*AXES}, key=AXES.index) != list(axes):
        raise ConfigError(f"axes {axes} are not some of {AXES}, each once and in that order")
    if sum(_TYPES[name] == "space" for name in axes) < 2:
        raise ConfigError(f"axes {axes}: OME-Zarr needs two or three of z, y and x")
    for field in ("scale", "translation", "units"):
        if len(getattr(info, field)) != len(axes):
            raise ConfigError(f"{field} {getattr(info, field)} has not one entry per axis {axes}")


def _transformations(info: VolumeInfo, level: int) -> list[dict[str, Any]]:
    factors = [2**level if _TYPES[name] == "space" else 1 for name in info.axes]
    return [
        {"type": "scale", "scale": [s * f for s, f in zip(info.scale, factors, strict=True)]},
        {
            "type": "translation",
            "translation": [
                first + (factor - 1) / 2 * step
                for first, step, factor in zip(info.translation, info.scale, factors, strict=True)
            ],
        },
    ]


def cf_attributes(info: VolumeInfo) -> dict[str, Any]:
    """Return the attributes of the array itself: CF's and the source's own, ready for JSON."""
    return {key: value for key, value in info.attributes.items() if key not in _GROUP_ATTRIBUTES}


def info_from_ome(
    attributes: Mapping[str, Any],
    *,
    level: int = 0,
    name: str = "",
    ndim: int = 5,
    array_attributes: Mapping[str, Any] | None = None,
) -> VolumeInfo:
    """Return what a multiscale group says of one of its levels: OME-Zarr 0.1 to 0.5.

    Parameters
    ----------
    attributes : mapping
        Of the group.
    level : int
        Which entry of `datasets`.
    name : str
        Where the group has none.
    ndim : int
        Axes of the array, for the versions before 0.3, which do not say.
    array_attributes : mapping, optional
        Of the array, which become `VolumeInfo.attributes`.

    Raises
    ------
    ConfigError
        If there are no multiscales, no such level, or they contradict themselves.
    """
    ome = attributes.get("ome", attributes)
    try:
        multiscale = ome["multiscales"][0]
        dataset = multiscale["datasets"][level]
        described = multiscale.get("axes") or AXES[-ndim:]
        axes = [{"name": axis} if isinstance(axis, str) else dict(axis) for axis in described]
        names = [str(axis["name"]) for axis in axes]
        scale, translation = np.ones(len(axes)), np.zeros(len(axes))
        for step in (
            *dataset.get("coordinateTransformations", ()),
            *multiscale.get("coordinateTransformations", ()),
        ):
            if "scale" in step:
                scale, translation = scale * step["scale"], translation * step["scale"]
            elif "translation" in step:
                translation = translation + step["translation"]
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise ConfigError(
            f"the group's multiscales of OME-Zarr cannot be used: {error!r}"
        ) from None
    kept = {key: ome[key] for key in _GROUP_ATTRIBUTES if key in ome}
    units = [axis.get("unit") for axis in axes]
    if sorted({*names} & {*AXES}, key=AXES.index) != names:
        # Other names are allowed there; by their places they are what ours are.
        names = list(default_axes(len(names)))
    return plain_info(
        str(multiscale.get("name") or name),
        names,
        scale=dict(zip(names, scale.tolist(), strict=True)),
        translation=dict(zip(names, translation.tolist(), strict=True)),
        units=dict(zip(names, units, strict=True)),
        attributes={**(array_attributes or {}), **kept},
    )


def json_ready(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Return what of some attributes JSON can hold, NumPy's and bytes turned into plain values.

    What it cannot hold (references, NaN within, long tables) is left out.
    """
    found = {str(key): _plain(value) for key, value in attributes.items()}
    return {key: value for key, value in found.items() if _is_json(value)}


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray):
        value = value.tolist() if value.size <= _MAX_VALUES else None
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace").rstrip("\x00")
    return value


def _is_json(value: Any) -> bool:
    if value is None:
        return False
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError):
        return False
    return True
