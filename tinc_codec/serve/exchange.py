"""What HTTP asks of an answer: parts of it, whether it changed, and who may see it."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Collection
from urllib.parse import urlsplit

__all__ = [
    "UnsatisfiableRange",
    "allowed_origin",
    "is_allowed_host",
    "is_loopback",
    "matches_tag",
    "parse_range",
]

_RANGE = re.compile(r"bytes=(\d{0,19})-(\d{0,19})")


class UnsatisfiableRange(Exception):
    """A range begins behind the end."""


def parse_range(header: str | None, size_bytes: int) -> tuple[int, int] | None:
    """Read a Range header.

    Parameters
    ----------
    header : str or None
    size_bytes : int
        Of the whole body.

    Returns
    -------
    (start, stop) or None
        None for all of it: no header, several ranges, or no range that can be understood.

    Raises
    ------
    UnsatisfiableRange
        If no byte of the range is there.

    References
    ----------
    RFC 9110, section 14
    """
    found = _RANGE.fullmatch(header.replace(" ", "")) if header else None
    if found is None or not (found[1] or found[2]):
        return None
    if not found[1]:
        start, stop = max(0, size_bytes - int(found[2])), size_bytes
    else:
        start, stop = int(found[1]), size_bytes
        if found[2]:
            if int(found[2]) < start:
                return None
            stop = min(size_bytes, int(found[2]) + 1)
    if start >= stop:
        raise UnsatisfiableRange
    return start, stop


def matches_tag(header: str | None, tag: str) -> bool:
    """Whether an If-None-Match header names a tag, by weak comparison."""
    if header is None:
        return False
    named = (part.strip().removeprefix("W/") for part in header.split(","))
    return any(part in ("*", tag) for part in named)


def is_loopback(host: str) -> bool:
    """Whether a name or an address of this machine is meant by itself: nobody else reaches it."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def is_allowed_host(header: str | None, names: Collection[str]) -> bool:
    """Whether a Host header names this machine's loopback or one of `names`.

    A page from elsewhere can have its own name resolve to 127.0.0.1; the name it was loaded from
    is still in the header.
    """
    host = _hostname(f"//{header}") if header else None
    return host is not None and (is_loopback(host) or host in names)


def allowed_origin(origin: str | None, origins: Collection[str]) -> str | None:
    """Return the Access-Control-Allow-Origin of an answer, None for none.

    Parameters
    ----------
    origin : str or None
        The Origin header.
    origins : collection of str
        Of pages that may read; "*" for all. Those of this machine always may.
    """
    if "*" in origins:
        return "*"
    if origin is None:
        return None
    host = _hostname(origin)
    return origin if origin in origins or (host is not None and is_loopback(host)) else None


def _hostname(url: str) -> str | None:
    try:
        return urlsplit(url).hostname
    except ValueError:
        return None
