"""Lower resolutions of an array, decoded from its own chunks; and its values between voxels.

`codec` is the Zarr v3 codec of arrays that store no chunk, `multiscale` puts such arrays into
OME-Zarr groups, `sampling` evaluates an array at real coordinates.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tinc_codec.levels.codec import TINCLevelCodec
    from tinc_codec.levels.multiscale import add_levels, open_level
    from tinc_codec.levels.sampling import sample

__all__ = ["TINCLevelCodec", "add_levels", "open_level", "sample"]

_MODULES = {"TINCLevelCodec": "codec", "sample": "sampling"}


def __getattr__(name: str) -> Any:
    # `sample` works with zarr 2.18 too, which has none of what the others need.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module(f"{__name__}.{_MODULES.get(name, 'multiscale')}")
    return getattr(module, name)
