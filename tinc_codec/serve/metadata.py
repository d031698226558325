"""Metadata of arrays of our codecs, rewritten as that of arrays which every client reads.

Everything else, attributes and OME metadata among it, stays as it is. Arrays in the v2 format stay
in it; shards become plain chunks of the size of their inner chunks.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import numpy as np

from tinc_codec.errors import ConfigError, UnsupportedDataError

__all__ = [
    "COMPRESSORS",
    "Compressor",
    "check_compressor",
    "compressor_config",
    "is_decoded",
    "parse_document",
    "served_array",
    "served_bytes",
]

Compressor = Literal["none", "gzip", "zstd", "blosc"]
COMPRESSORS: tuple[Compressor, ...] = get_args(Compressor)

# Names of the codecs whose chunks are decoded here.
_OURS = frozenset({"tinc", "tinc_level"})
_SHARDING = "sharding_indexed"


def check_compressor(compressor: str) -> None:
    """Raise ConfigError if the chunks cannot be served with a compressor of this name."""
    if compressor not in COMPRESSORS:
        raise ConfigError(f"compressor={compressor!r} is not one of {', '.join(COMPRESSORS)}")


def compressor_config(compressor: Compressor) -> dict[str, Any] | None:
    """Return the numcodecs configuration (`.zarray` has the same) of a compressor."""
    match compressor:
        case "gzip" | "zstd":
            return {"id": compressor, "level": 1}
        case "blosc":
            return {"id": "blosc", "cname": "lz4", "clevel": 5, "shuffle": 1, "blocksize": 0}
    return None


def _v3_compressors(compressor: Compressor, dtype: np.dtype[Any]) -> list[dict[str, Any]]:
    match compressor:
        case "gzip":
            return [{"name": "gzip", "configuration": {"level": 1}}]
        case "zstd":
            return [{"name": "zstd", "configuration": {"level": 1, "checksum": False}}]
        case "blosc":
            settings = {"cname": "lz4", "clevel": 5, "shuffle": "shuffle", "blocksize": 0}
            return [{"name": "blosc", "configuration": {**settings, "typesize": dtype.itemsize}}]
    return []


def parse_document(raw: bytes) -> dict[str, Any]:
    """Parse a metadata document.

    Raises
    ------
    UnsupportedDataError
        If it is no JSON object.
    """
    try:
        document = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise UnsupportedDataError(f"a metadata document is no JSON: {error}") from error
    if not isinstance(document, dict):
        raise UnsupportedDataError("a metadata document is no JSON object")
    return document


def is_decoded(document: Mapping[str, Any]) -> bool:
    """Whether an array, by its `zarr.json` or `.zarray`, holds chunks of our codecs."""
    if document.get("zarr_format") == 2:
        stages = [*(document.get("filters") or ()), document.get("compressor")]
        return any(stage is not None and stage.get("id") in _OURS for stage in stages)
    return any(name in _OURS for name in _codec_names(document.get("codecs", ())))


def _codec_names(codecs: Sequence[Any]) -> list[str]:
    """Name all codecs, also those within shards."""
    names = []
    for codec in codecs:
        if isinstance(codec, str):
            names.append(codec)
            continue
        names.append(codec["name"])
        if codec["name"] == _SHARDING:
            names += _codec_names(codec["configuration"]["codecs"])
    return names


def served_array(document: Mapping[str, Any], compressor: Compressor) -> dict[str, Any]:
    """Rewrite the `zarr.json` or `.zarray` of an array of our codecs.

    Chunks become C-ordered and little-endian.

    Raises
    ------
    UnsupportedDataError
        If the array has no regular grid of chunks.
    """
    if document.get("zarr_format") == 2:
        return {
            **document,
            "dtype": np.dtype(document["dtype"]).newbyteorder("<").str,
            "order": "C",
            "filters": None,
            "compressor": compressor_config(compressor),
        }
    grid = document["chunk_grid"]
    if grid["name"] != "regular":
        raise UnsupportedDataError(f"chunk grid {grid['name']!r} is not 'regular'")
    chunk_shape = grid["configuration"]["chunk_shape"]
    for codec in document["codecs"]:
        if isinstance(codec, Mapping) and codec["name"] == _SHARDING:
            chunk_shape = codec["configuration"]["chunk_shape"]
    dtype = np.dtype(document["data_type"])
    # A type of one byte has no byte order, and some readers refuse one.
    plain: dict[str, Any] = {"name": "bytes"}
    if dtype.itemsize > 1:
        plain["configuration"] = {"endian": "little"}
    return {
        **document,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": chunk_shape}},
        "codecs": [plain, *_v3_compressors(compressor, dtype)],
    }


def served_bytes(name: str, raw: bytes, compressor: Compressor) -> bytes:
    """Rewrite a metadata document where it describes arrays of our codecs.

    Parameters
    ----------
    name : str
        One of `keys.METADATA_NAMES`.
    raw : bytes
        As stored.
    compressor : str

    Returns
    -------
    bytes
        `raw` itself where nothing has to change.
    """
    if name in (".zattrs", ".zgroup"):
        return raw
    document = parse_document(raw)
    if name == ".zmetadata":
        changed = _served_members(document.get("metadata") or {}, compressor)
        return _dump({**document, "metadata": changed}) if changed is not None else raw
    if name == ".zarray" or document.get("node_type") == "array":
        return _dump(served_array(document, compressor)) if is_decoded(document) else raw
    consolidated = document.get("consolidated_metadata")
    if not consolidated:
        return raw
    changed = _served_members(consolidated.get("metadata") or {}, compressor)
    if changed is None:
        return raw
    return _dump({**document, "consolidated_metadata": {**consolidated, "metadata": changed}})


def _served_members(members: Mapping[str, Any], compressor: Compressor) -> dict[str, Any] | None:
    """Rewrite consolidated documents; None if there is nothing to rewrite."""
    ours = {
        path: served_array(document, compressor)
        for path, document in members.items()
        if isinstance(document, Mapping) and is_decoded(document)
    }
    return {**members, **ours} if ours else None


def _dump(document: Mapping[str, Any]) -> bytes:
    return json.dumps(document, indent=2).encode()
