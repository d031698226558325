"""Implicit neural compression (TINC) of volumes, as a codec for Zarr.

Everything public is imported on first use, so that `import tinc_codec` costs nothing and
neither numba, torch nor zarr is loaded before it is needed.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tinc_codec import config
    from tinc_codec.errors import (
        ConfigError,
        CorruptStreamError,
        FormatError,
        LimitError,
        PartialWriteWarning,
        TargetError,
        TincError,
        TruncatedStreamError,
        UnsupportedDataError,
        UnsupportedVersionError,
    )
    from tinc_codec.inspection.reader import inspect
    from tinc_codec.levels.multiscale import add_levels, open_level
    from tinc_codec.levels.sampling import sample
    from tinc_codec.numcodecs import TINC
    from tinc_codec.pipeline.compress import compress
    from tinc_codec.pipeline.decompress import decompress
    from tinc_codec.pipeline.plan import plan
    from tinc_codec.pipeline.verify import verify
    from tinc_codec.report.writing import write_report

    __version__: str

__all__ = [
    "TINC",
    "ConfigError",
    "CorruptStreamError",
    "FormatError",
    "LimitError",
    "PartialWriteWarning",
    "TargetError",
    "TincError",
    "TruncatedStreamError",
    "UnsupportedDataError",
    "UnsupportedVersionError",
    "__version__",
    "add_levels",
    "compress",
    "config",
    "decompress",
    "inspect",
    "open_level",
    "plan",
    "sample",
    "verify",
    "write_report",
]

_MODULES = {
    "TINC": "tinc_codec.numcodecs",
    "add_levels": "tinc_codec.levels.multiscale",
    "compress": "tinc_codec.pipeline.compress",
    "decompress": "tinc_codec.pipeline.decompress",
    "inspect": "tinc_codec.inspection.reader",
    "open_level": "tinc_codec.levels.multiscale",
    "plan": "tinc_codec.pipeline.plan",
    "sample": "tinc_codec.levels.sampling",
    "verify": "tinc_codec.pipeline.verify",
    "write_report": "tinc_codec.report.writing",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: Any
    if name == "config":
        value = importlib.import_module("tinc_codec.config")
    elif name == "__version__":
        value = importlib.import_module("importlib.metadata").version("tinc_codec")
    else:
        module = importlib.import_module(_MODULES.get(name, "tinc_codec.errors"))
        value = getattr(module, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
