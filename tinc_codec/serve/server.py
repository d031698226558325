"""Listening: a bounded number of connections, none idle for long, and an end that is clean."""

from __future__ import annotations

import asyncio
import logging
import signal
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress

from aiohttp import web

from tinc_codec.serve.application import SERVICE

__all__ = ["background", "listening", "serve"]

# What is being sent when the server is told to stop may take this long; aiohttp waits twice.
_SHUTDOWN_SECONDS = 1.0
_BUSY = (
    b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nConnection: close\r\n"
    b"Content-Length: 0\r\n\r\n"
)
_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

_log = logging.getLogger("tinc_codec.serve")


@asynccontextmanager
async def listening(
    application: web.Application, host: str = "127.0.0.1", port: int = 0
) -> AsyncIterator[str]:
    """Run an application made by `app` while the context lasts; gives its URL.

    Parameters
    ----------
    application : aiohttp.web.Application
    host : str
        Name or address to listen at.
    port : int
        0 for any that is free.

    Raises
    ------
    OSError
        If the address cannot be had.
    """
    limits = application[SERVICE].limits
    silent: dict[object, asyncio.TimerHandle] = {}

    @web.middleware
    async def heard(request: web.Request, handler: _Handler) -> web.StreamResponse:
        timer = silent.pop(request.protocol, None)
        if timer is not None:
            timer.cancel()
        return await handler(request)

    application.middlewares.append(heard)
    runner = web.AppRunner(
        application,
        access_log=None,
        handler_cancellation=True,
        keepalive_timeout=limits.idle_s,
        shutdown_timeout=_SHUTDOWN_SECONDS,
    )
    await runner.setup()
    connections = runner.server
    assert connections is not None
    loop = asyncio.get_running_loop()

    def cut_off(connection: web.RequestHandler) -> None:
        del silent[connection]
        if connection.transport is not None:
            connection.transport.abort()

    def accept() -> asyncio.Protocol:
        if len(connections.connections) >= limits.max_connections:
            return _Refusal()
        connection = connections()
        # Between requests aiohttp counts the time itself, but not before the first.
        silent[connection] = loop.call_later(limits.idle_s, cut_off, connection)
        return connection

    try:
        server = await loop.create_server(accept, _one_address(host), port)
        try:
            yield _url(host, server.sockets[0].getsockname()[1])
        finally:
            server.close()
    finally:
        for timer in silent.values():
            timer.cancel()
        await runner.cleanup()


class _Refusal(asyncio.Protocol):
    """A connection too many."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        transport.write(_BUSY)
        transport.close()


def _one_address(host: str) -> str:
    # "localhost" may be two addresses, which would get two ports.
    return "127.0.0.1" if host == "localhost" else host


def _url(host: str, port: int) -> str:
    shown = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{shown}]:{port}" if ":" in shown else f"http://{shown}:{port}"


def serve(
    application: web.Application,
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    started: Callable[[str], None] = lambda url: None,
) -> None:
    """Run an application made by `app` until SIGINT or SIGTERM.

    Parameters
    ----------
    application : aiohttp.web.Application
    host, port
        As for `background`.
    started : callable
        Gets the URL once requests are answered.
    """

    async def run() -> None:
        loop, stop = asyncio.get_running_loop(), asyncio.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            # Windows has no such handlers: there Ctrl-C cancels this coroutine instead.
            with suppress(NotImplementedError):
                loop.add_signal_handler(number, stop.set)
        async with listening(application, host, port) as url:
            started(url)
            await stop.wait()
            _log.info("stopping")

    with suppress(KeyboardInterrupt):
        asyncio.run(run())


@contextmanager
def background(
    application: web.Application, *, host: str = "127.0.0.1", port: int = 0
) -> Iterator[str]:
    """Run an application made by `app` in a thread while the context lasts; gives its URL.

    Parameters and errors as in `listening`.
    """
    started, failed, stop = threading.Event(), [], asyncio.Event()
    urls: list[str] = []
    loop = asyncio.new_event_loop()

    async def run() -> None:
        async with listening(application, host, port) as url:
            urls.append(url)
            started.set()
            await stop.wait()

    def work() -> None:
        try:
            loop.run_until_complete(run())
        except BaseException as error:
            failed.append(error)
        finally:
            loop.close()
            started.set()

    thread = threading.Thread(target=work, name="tinc-serve", daemon=True)
    thread.start()
    started.wait()
    try:
        if failed:
            raise failed[0]
        yield urls[0]
    finally:
        if not loop.is_closed():
            loop.call_soon_threadsafe(stop.set)
        thread.join()
