"""Calls that come in while another one runs, made together: how small batches become large.

Zarr hands over chunks in batches of `codec_pipeline.batch_size`, 1 by default, as many at once as
`async.concurrency` says. On a GPU a launch takes many chunks in the time of a few.
"""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections.abc import Callable, Hashable, Sequence
from typing import Any

__all__ = ["joined"]

Work = Callable[[list[Any]], list[Any]]


class _Queue:
    """Calls of one kind in one event loop."""

    def __init__(self, work: Work) -> None:
        self._work = work
        self._waiting: list[tuple[list[Any], asyncio.Future[list[Any]]]] = []
        self._runner: asyncio.Task[None] | None = None

    async def call(self, items: list[Any]) -> list[Any]:
        """Return the work's results for some items."""
        future = asyncio.get_running_loop().create_future()
        self._waiting.append((items, future))
        if self._runner is None:
            self._runner = asyncio.create_task(self._run())
        return await future

    async def _run(self) -> None:
        try:
            while self._waiting:
                calls, self._waiting = self._waiting, []
                await self._run_together(calls)
        finally:
            self._runner = None

    async def _run_together(self, calls: list[tuple[list[Any], asyncio.Future[list[Any]]]]) -> None:
        try:
            done = await asyncio.to_thread(
                self._work, [item for items, _ in calls for item in items]
            )
        except Exception as error:
            if len(calls) > 1:
                # Whose chunk it was is not known: each gets its own result or error.
                for call in calls:
                    await self._run_together([call])
            elif not calls[0][1].done():
                calls[0][1].set_exception(error)
            return
        results = iter(done)
        for items, future in calls:
            part = [next(results) for _ in items]
            if not future.done():
                future.set_result(part)


_queues: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, dict[Hashable, _Queue]]
_queues = weakref.WeakKeyDictionary()
_lock = threading.Lock()


async def joined(kind: Hashable, work: Work, items: Sequence[Any]) -> list[Any]:
    """Do some work in a thread, together with the calls of its kind that wait meanwhile.

    Parameters
    ----------
    kind : hashable
        Calls of one kind in one event loop are joined.
    work : callable
        From a list of items to as many results; the same for all calls of a kind.
    items : sequence

    Returns
    -------
    list
        A result for each item. An error of another call is not raised here.
    """
    with _lock:
        queues = _queues.setdefault(asyncio.get_running_loop(), {})
    if kind not in queues:
        queues[kind] = _Queue(work)
    return await queues[kind].call(list(items))
