"""Decoded chunks, kept as long as there is room, and made once however many ask for them."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable
from dataclasses import dataclass

__all__ = ["Abandoned", "Body", "ChunkCache"]


@dataclass(frozen=True)
class Body:
    """What is sent for a key.

    Attributes
    ----------
    data : bytes or memoryview of uint8
    tag : str
        The value of its ETag header, quotes included.
    """

    data: bytes | memoryview
    tag: str


class Abandoned(Exception):
    """Nobody waits any more for what was about to be made."""


Make = Callable[[Callable[[], bool]], Awaitable[Body | None]]


class ChunkCache:
    """Bodies by key, the least recently used dropped first; for one event loop.

    Parameters
    ----------
    limit_bytes : int
        What the bodies together may take; one that is larger is made anew every time.
    """

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.size_bytes = 0
        self._bodies: OrderedDict[Hashable, Body] = OrderedDict()
        self._flights: dict[Hashable, _Flight] = {}

    def peek(self, key: Hashable) -> Body | None:
        """Return a body that is there."""
        body = self._bodies.get(key)
        if body is not None:
            self._bodies.move_to_end(key)
        return body

    async def get(self, key: Hashable, make: Make) -> Body | None:
        """Return a body, made if it is not there; callers at the same time share one `make`.

        Parameters
        ----------
        key : hashable
        make : coroutine function of `wanted`
            `wanted()`, callable from any thread, says whether anyone still waits; it may raise
            `Abandoned` when that is not so. None and errors are handed on and not kept.
        """
        while True:
            body = self.peek(key)
            if body is not None:
                return body
            flight = self._flights.get(key) or self._start(key, make)
            flight.waiters += 1
            try:
                # A client that leaves does not take the chunk from the others.
                return await asyncio.shield(flight.task)
            except Abandoned:
                # It was given up before this caller came.
                continue
            finally:
                flight.waiters -= 1

    def _start(self, key: Hashable, make: Make) -> _Flight:
        flight = _Flight()
        flight.task = asyncio.create_task(self._run(key, make, flight))
        flight.task.add_done_callback(_retrieve)
        self._flights[key] = flight
        return flight

    async def _run(self, key: Hashable, make: Make, flight: _Flight) -> Body | None:
        try:
            body = await make(lambda: flight.waiters > 0)
        finally:
            del self._flights[key]
        if body is not None:
            self._keep(key, body)
        return body

    def _keep(self, key: Hashable, body: Body) -> None:
        size_bytes = len(body.data)
        if size_bytes > self.limit_bytes:
            return
        self._bodies[key] = body
        self.size_bytes += size_bytes
        while self.size_bytes > self.limit_bytes:
            _, dropped = self._bodies.popitem(last=False)
            self.size_bytes -= len(dropped.data)


class _Flight:
    """A body that is being made."""

    task: asyncio.Task[Body | None]

    def __init__(self) -> None:
        self.waiters = 0


def _retrieve(task: asyncio.Task[Body | None]) -> None:
    # An error that nobody waits for is no reason for a warning at exit.
    if not task.cancelled():
        task.exception()
