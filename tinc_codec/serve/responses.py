"""Answers: bodies whole or in part, sent no faster than the client takes them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable

from aiohttp import hdrs, web

from tinc_codec.serve.cache import Body
from tinc_codec.serve.exchange import UnsatisfiableRange, matches_tag, parse_range

__all__ = ["headers_of", "not_modified", "plain", "send_body", "send_pieces", "send_range"]

# How much is handed to the socket at once.
_WRITE_BYTES = 256 * 1024

Pieces = Callable[[int, int], AsyncIterator[bytes | memoryview]]

_log = logging.getLogger("tinc_codec.serve")


def plain(status: int, text: str) -> web.Response:
    """Answer with one line of text that nobody keeps."""
    headers = {hdrs.CACHE_CONTROL: "no-store"}
    return web.Response(status=status, text=f"{text}\n", headers=headers)


def headers_of(tag: str | None, content_type: str) -> dict[str, str]:
    """Return the headers of a body and its parts; without a tag where none is known."""
    # A client asks each time whether what it holds is still true, and is mostly told so by a 304:
    # the next volume may be served from the same address.
    headers: dict[str, str] = {
        hdrs.CONTENT_TYPE: content_type,
        hdrs.CACHE_CONTROL: "no-cache",
        hdrs.ACCEPT_RANGES: "bytes",
    }
    if tag is not None:
        headers[hdrs.ETAG] = tag
    return headers


def not_modified(tag: str) -> web.Response:
    """Answer that what the client holds is still true."""
    return web.Response(status=304, headers={hdrs.ETAG: tag, hdrs.CACHE_CONTROL: "no-cache"})


async def send_body(
    request: web.Request, body: Body, content_type: str, send_s: float
) -> web.StreamResponse:
    """Send a body, or the part of it that is asked for, or that it has not changed."""
    if matches_tag(request.headers.get(hdrs.IF_NONE_MATCH), body.tag):
        return not_modified(body.tag)
    view = memoryview(body.data)

    async def pieces(start: int, stop: int) -> AsyncIterator[memoryview]:
        yield view[start:stop]

    return await send_range(request, len(view), body.tag, content_type, pieces, send_s)


async def send_range(
    request: web.Request,
    size_bytes: int,
    tag: str | None,
    content_type: str,
    pieces: Pieces,
    send_s: float,
) -> web.StreamResponse:
    """Send the part that is asked for of a body of known size.

    Parameters
    ----------
    request : aiohttp.web.Request
    size_bytes : int
    tag : str or None
    content_type : str
    pieces : callable of start and stop
        Gives the bytes between, piece by piece.
    send_s : float
        Seconds that the client may take for 256 KiB.
    """
    headers = headers_of(tag, content_type)
    condition = request.headers.get(hdrs.IF_RANGE)
    # Without a tag nobody can know whether the rest of what a client holds belongs to this.
    whole = condition is not None and (tag is None or condition != tag)
    try:
        part = None if whole else parse_range(request.headers.get(hdrs.RANGE), size_bytes)
    except UnsatisfiableRange:
        refusal = plain(416, "the range is behind the end")
        refusal.headers[hdrs.CONTENT_RANGE] = f"bytes */{size_bytes}"
        return refusal
    if part is None:
        return await send_pieces(request, 200, headers, size_bytes, pieces(0, size_bytes), send_s)
    start, stop = part
    headers[hdrs.CONTENT_RANGE] = f"bytes {start}-{stop - 1}/{size_bytes}"
    return await send_pieces(request, 206, headers, stop - start, pieces(start, stop), send_s)


async def send_pieces(
    request: web.Request,
    status: int,
    headers: dict[str, str],
    size_bytes: int,
    pieces: AsyncIterator[bytes | memoryview] | None,
    send_s: float,
) -> web.StreamResponse:
    """Send headers and, unless only they are asked for, `size_bytes` in pieces."""
    response = web.StreamResponse(status=status, headers=headers)
    response.content_length = size_bytes
    try:
        await response.prepare(request)
        if request.method == hdrs.METH_HEAD or pieces is None:
            return response
        async for piece in pieces:
            view = memoryview(piece)
            for first in range(0, len(view), _WRITE_BYTES):
                async with asyncio.timeout(send_s):
                    await response.write(view[first : first + _WRITE_BYTES])
        async with asyncio.timeout(send_s):
            await response.write_eof()
    except Exception as error:
        # The client left or does not receive, or the store failed. The status and the length are
        # sent already: only a broken connection tells that this is not all.
        _log.info("%s: cut off: %s: %s", request.path, type(error).__name__, error)
        if request.transport is not None:
            request.transport.abort()
    return response
