"""What is said of a volume and of its compression, in the metadata of the destination."""

import json
from collections.abc import Mapping
from contextlib import suppress
from importlib.metadata import version
from typing import Any

import numpy as np

from tinc_codec.errors import ConfigError
from tinc_codec.numcodecs import TINC
from tinc_codec.params import EncodingParams
from tinc_codec.pipeline.metadata import cf_attributes, ome_attributes
from tinc_codec.pipeline.stores import RECORD, StoreAddress
from tinc_codec.pipeline.target import ARRAY, Target
from tinc_codec.pipeline.volumes import Volume

__all__ = ["array_metadata", "check_record", "group_attributes", "new_record"]

# Facts of a source that a copy of it changes and its voxels need not.
_DATES = ("modified_ns", "files_sha256", "Last-Modified", "LastModified", "mtime")
_CONTAINER = "tinc_info"


def new_record(target: Target, volume: Volume) -> dict[str, Any]:
    """Return what `stores.RECORD` is to hold, apart from "complete": version, source, settings."""
    record = {
        "version": version("tinc_codec"),
        "source": {"name": volume.info.name, **volume.identity},
        "settings": target.to_record(),
    }
    # As it will be read again.
    found: dict[str, Any] = json.loads(json.dumps(record))
    return found


def check_record(address: StoreAddress, old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    """Refuse to go on with other settings; tell whether the chunks need a look at the source."""
    found = _differences(_full_settings(old["settings"]), _full_settings(new["settings"]))
    before, after = dict(old.get("source", {})), dict(new["source"])
    dates = [key for key in _DATES if before.pop(key, None) != after.pop(key, None)]
    found += _differences(before, after, "source.")
    if not old.get("complete"):
        found += _differences({"version": old.get("version")}, {"version": new["version"]})
    if found:
        listed = "; ".join(f"{field} was {a!r}, is {b!r}" for field, a, b in found)
        raise ConfigError(
            f"{address} was begun otherwise: {listed}. Use what was used then, choose another "
            "destination, or start anew with overwrite=True (--overwrite)"
        )
    # Arrays in memory tell nothing of themselves but their shape and dtype.
    return bool(dates) or set(after) == {"name"}


def _full_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings with the codec's defaults told, under plain names."""
    codec = settings.get("codec", {})
    with suppress(ConfigError):
        params = EncodingParams.from_config(codec)
        codec = {name: getattr(params, name) for name in params.__dataclass_fields__}
    rest = {key: value for key, value in settings.items() if key != "codec"}
    return {**rest, **{f"codec.{name}": value for name, value in codec.items()}}


def _differences(
    old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = ""
) -> list[tuple[str, Any, Any]]:
    keys = [*new, *(key for key in old if key not in new)]
    return [
        (prefix + key, old.get(key), new.get(key)) for key in keys if old.get(key) != new.get(key)
    ]


def group_attributes(target: Target, volume: Volume, record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the attributes of a group that is begun: OME-Zarr, lossiness, the record."""
    return {
        **ome_attributes(volume.info, target.zarr_format, [ARRAY]),
        _CONTAINER: _lossiness(target, volume)[1],
        RECORD: {**record, "complete": False},
    }


def _lossiness(target: Target, volume: Volume) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the array's attributes, with what it promises, and those of the container."""
    import xarray as xr

    from tinc_codec.xarray import record_lossiness

    described = record_lossiness(
        xr.Dataset({ARRAY: ((), 0, cf_attributes(volume.info))}),
        {ARRAY: {"serializer": TINC(**target.params.to_config())}},
        container=_CONTAINER,
    )
    return dict(described[ARRAY].attrs), dict(described[_CONTAINER].attrs)


def array_metadata(target: Target, volume: Volume) -> list[tuple[str, bytes]]:
    """Build the array's metadata as zarr would; the key that makes it an array comes last."""
    import zarr
    from zarr.storage import MemoryStore

    attributes = _lossiness(target, volume)[0]
    codec = TINC(**target.params.to_config())
    options: dict[str, Any] = {"serializer": codec, "compressors": None, "shards": target.shards}
    options["dimension_names"] = volume.info.axes
    if target.zarr_format == 2:
        separator = {"name": "v2", "separator": "/"}
        options = {"compressors": codec, "chunk_key_encoding": separator}
        # Xarray's name for what the v3 format calls dimension_names.
        attributes["_ARRAY_DIMENSIONS"] = list(volume.info.axes)
    stored: dict[str, Any] = {}
    zarr.create_array(
        MemoryStore(stored),
        name=ARRAY,
        shape=target.shape,
        chunks=target.chunks,
        dtype=np.dtype(target.dtype),
        fill_value=target.fill_value,
        zarr_format=target.zarr_format,  # type: ignore[arg-type]
        attributes=attributes,
        **options,
    )
    keys = sorted(key for key in stored if key.startswith(f"{ARRAY}/"))
    keys.sort(key=lambda key: key.endswith(".zarray"))
    return [(key, stored[key].to_bytes()) for key in keys]
