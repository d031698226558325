"""Libraries that only some sources need."""

import importlib
from typing import Any

from tinc_codec.errors import ConfigError

__all__ = ["import_extra"]


def import_extra(module: str, extra: str) -> Any:
    """Import an optional library.

    Raises
    ------
    ConfigError
        If it is not installed; says what to install.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ConfigError(
            f"{module} is needed and not installed: pip install 'tinc_codec[{extra}]'"
        ) from error
