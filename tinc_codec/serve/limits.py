"""How much a server may use, and how long a client may take."""

from __future__ import annotations

import numbers
import re
from dataclasses import dataclass

from tinc_codec import config
from tinc_codec.errors import ConfigError

__all__ = ["Limits", "parse_bytes"]

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*(k|m|g|t)?(i)?b?", re.IGNORECASE)
_POWERS = {None: 0, "k": 1, "m": 2, "g": 3, "t": 4}


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Bounds of one server.

    What it holds in memory is at most `cache_bytes`, and a decoded chunk per connection and per
    decode that runs.

    Parameters
    ----------
    cache_bytes : int
        Decoded chunks that are kept, at least 0.
    max_decodes : int or None
        Chunks decoded at once, at least 1; None: one per CPU.
    max_connections : int
        Connections open at once; what comes beyond them is answered 503.
    max_headers : int
        Headers of a request.
    max_path_chars : int
        Length of a request's path.
    idle_s : float
        Seconds that a connection may stay open without a request.
    send_s : float
        Seconds that a client may take to receive a piece of 256 KiB; it is cut off then.

    Raises
    ------
    ConfigError
        If a value is out of range.
    """

    cache_bytes: int = 10**9
    max_decodes: int | None = None
    max_connections: int = 128
    max_headers: int = 64
    max_path_chars: int = 2048
    idle_s: float = 60.0
    send_s: float = 30.0

    def __post_init__(self) -> None:
        _check_integer("cache_bytes", self.cache_bytes, 0)
        if self.max_decodes is not None:
            _check_integer("max_decodes", self.max_decodes, 1)
        for name in ("max_connections", "max_headers", "max_path_chars"):
            _check_integer(name, getattr(self, name), 1)
        for name in ("idle_s", "send_s"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name}={getattr(self, name)!r} is not a number > 0")

    @property
    def decodes(self) -> int:
        """Chunks decoded at once, at least 1."""
        return self.max_decodes or config.available_cpus()


def _check_integer(name: str, value: object, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < least:
        raise ConfigError(f"{name}={value!r} is not an integer >= {least}")


def parse_bytes(text: str) -> int:
    """Read a number of bytes: "1000", "64 MB" (10^6), "1.5GiB" (2^30).

    Raises
    ------
    ConfigError
        If it is none.
    """
    found = _SIZE.fullmatch(text.strip())
    if found is None or (found[3] and not found[2]):
        raise ConfigError(f"{text!r} is not a number of bytes such as 500MB, 1GB or 2GiB")
    unit = 1024 if found[3] else 1000
    return int(float(found[1]) * unit ** _POWERS[found[2] and found[2].lower()])
