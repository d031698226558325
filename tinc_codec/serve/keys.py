"""From the path of a request to a key of the store; what could lead elsewhere is no key."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["METADATA_NAMES", "ChunkKeys", "split_key"]

METADATA_NAMES = frozenset({"zarr.json", ".zarray", ".zattrs", ".zgroup", ".zmetadata"})

# A key is decoded once. What is left of a second encoding is refused, since a store behind a URL
# would decode it again; so is what some file system or URL gives another meaning.
_FORBIDDEN = re.compile(r'[\x00-\x1f\x7f\\%?#:*|<>"]')
_MAX_SEGMENT_CHARS = 255
_NUMBER = re.compile(r"0|[1-9][0-9]{0,17}")


def split_key(path: str) -> tuple[str, ...] | None:
    """Split a path at its slashes; None if it can be no key.

    Parameters
    ----------
    path : str
        Already decoded from its URL, without the slash it begins with.

    Returns
    -------
    tuple of str or None
        No segment is empty, made of dots only, or holds a character with a meaning of its own.
    """
    segments = tuple(path.split("/"))
    return segments if all(map(_is_name, segments)) else None


def _is_name(segment: str) -> bool:
    return (
        0 < len(segment) <= _MAX_SEGMENT_CHARS
        and segment.strip(". ") != ""
        and _FORBIDDEN.search(segment) is None
        and segment.isprintable()
    )


@dataclass(frozen=True)
class ChunkKeys:
    """How the chunks of an array are named.

    Parameters
    ----------
    prefix : str
        "c" in the default encoding of v3, else "".
    separator : str
        "/" or ".".
    grid_shape : tuple of int
        Chunks along each axis.
    """

    prefix: str
    separator: str
    grid_shape: tuple[int, ...]

    def parse(self, key: str) -> tuple[int, ...] | None:
        """Return the grid position of a key; None if it names no chunk of the array."""
        parts = key.split(self.separator)
        if self.prefix and parts.pop(0) != self.prefix:
            return None
        if not self.grid_shape:
            # An array without axes has one chunk.
            return () if parts == ([] if self.prefix else ["0"]) else None
        if len(parts) != len(self.grid_shape) or not all(map(_NUMBER.fullmatch, parts)):
            return None
        position = tuple(map(int, parts))
        within = all(p < n for p, n in zip(position, self.grid_shape, strict=True))
        return position if within else None

    @classmethod
    def v3(cls, document: Mapping[str, Any], grid_shape: Sequence[int]) -> ChunkKeys | None:
        """Read the naming off a `zarr.json`; None if it is unknown."""
        encoding = document["chunk_key_encoding"]
        if isinstance(encoding, str):
            encoding = {"name": encoding}
        settings = encoding.get("configuration") or {}
        match encoding["name"]:
            case "default":
                return cls("c", settings.get("separator", "/"), tuple(grid_shape))
            case "v2":
                return cls("", settings.get("separator", "."), tuple(grid_shape))
        return None

    @classmethod
    def v2(cls, document: Mapping[str, Any], grid_shape: Sequence[int]) -> ChunkKeys:
        """Read the naming off a `.zarray`."""
        return cls("", document.get("dimension_separator", "."), tuple(grid_shape))
