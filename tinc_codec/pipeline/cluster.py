"""Where tasks run: a dask.distributed cluster.

It is given only the tasks that its workers can use soon, so that a million never exist at once.
"""

import itertools
import threading
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import CancelledError
from typing import Any

from tinc_codec.errors import ConfigError
from tinc_codec.pipeline.engines import ATTEMPTS
from tinc_codec.pipeline.tasks import Job, Outcome, Task, failures, run_task

__all__ = ["run_distributed"]

_CONNECT_SECONDS = 60.0
_NO_WORKER_SECONDS = 600.0
_COUNT_SECONDS = 5.0


def run_distributed(
    job: Job, tasks: Iterator[Task], address: str, n_workers: int | None
) -> Iterator[Outcome]:
    """Run tasks on a dask.distributed cluster, which hands on what lost workers had been given.

    Parameters
    ----------
    job : Job
        With a source that workers can read by themselves.
    tasks : iterator of Task
    address : str
        Of the scheduler.
    n_workers : int or None
        Tasks that are to run at once; None for as many as the cluster has threads.

    Yields
    ------
    Outcome
        As they come; a chunk that ended many workers has failed.

    Raises
    ------
    ConfigError
        If `distributed` is not installed.
    OSError
        If the scheduler is not there or is lost, or has had no worker for ten minutes.
    """
    try:
        from distributed import Client
        from distributed.comm.core import CommClosedError
    except ImportError:
        raise ConfigError(
            f"scheduler={address!r} needs distributed: pip install 'tinc_codec[cluster]'"
        ) from None
    with Client(address, set_as_default=False, timeout=_CONNECT_SECONDS) as client:
        submit = _Submitter(client, job)
        watch = _Watch(client, submit, n_workers)
        try:
            yield from _run(client, submit, tasks, watch)
        except (CancelledError, CommClosedError) as error:
            reason = (
                f"has had no worker for {_NO_WORKER_SECONDS:g} s"
                if watch.gave_up
                else f"is lost: {error}"
            )
            raise OSError(
                f"the scheduler {address} {reason}; the same call goes on from here"
            ) from error
        finally:
            watch.stop()
            submit.cancel()


def _run(
    client: Any, submit: "_Submitter", tasks: Iterator[Task], watch: "_Watch"
) -> Iterator[Outcome]:
    from distributed import as_completed
    from distributed.comm.core import CommClosedError

    running = as_completed(loop=client.loop)
    for task in itertools.islice(tasks, watch.window):
        running.add(submit(task))
    for future in running:
        try:
            # Where the answer went with its worker, this waits for another to make it anew.
            outcomes = future.result()
        except (CancelledError, CommClosedError):
            raise
        except Exception as error:
            task, attempt = submit.drop(future)
            # All that a lost worker had been given come under suspicion; which of them it was
            # shows when they run one by one.
            if attempt < ATTEMPTS:
                for position in task.positions:
                    running.add(submit(Task((position,)), attempt + 1))
            else:
                yield from failures(task, error)
        else:
            submit.drop(future)
            yield from outcomes
        for task in itertools.islice(tasks, max(0, watch.window - submit.n_running)):
            running.add(submit(task))


class _Submitter:
    """Hands tasks to a client and remembers them."""

    def __init__(self, client: Any, job: Job) -> None:
        self._client, self._job = client, job
        self._running: dict[str, tuple[Any, Task, int]] = {}
        # Another run on this cluster must not be mistaken for this one.
        self._name = f"tinc-{uuid.uuid4().hex}"
        self._numbers = itertools.count()

    def __call__(self, task: Task, attempt: int = 1) -> Any:
        key = f"{self._name}-{next(self._numbers)}"
        future = self._client.submit(run_task, self._job, task, key=key, pure=False)
        self._running[key] = future, task, attempt
        return future

    @property
    def n_running(self) -> int:
        return len(self._running)

    def drop(self, future: Any) -> tuple[Task, int]:
        """Forget a task that has ended; return it and which attempt it was."""
        _, task, attempt = self._running.pop(future.key)
        return task, attempt

    def cancel(self) -> None:
        """Take back what has not ended."""
        futures = [future for future, _, _ in list(self._running.values())]
        if futures and self._client.status == "running":
            self._client.cancel(futures)


class _Watch:
    """Counts the workers of a cluster from time to time, and gives up where there are none."""

    def __init__(self, client: Any, submit: _Submitter, n_workers: int | None) -> None:
        self._client, self._submit, self._n_workers = client, submit, n_workers
        self._n_threads = self._count()
        self._stopped = threading.Event()
        self.gave_up = False
        self._thread = threading.Thread(target=self._watch, daemon=True, name="tinc-watch")
        self._thread.start()

    @property
    def window(self) -> int:
        """Tasks that the cluster is to have: as many again as run, so that no worker waits."""
        return self._n_workers or 2 * max(1, self._n_threads)

    def stop(self) -> None:
        """Count no more."""
        self._stopped.set()
        self._thread.join()

    def _count(self) -> int:
        return sum(self._client.nthreads().values())

    def _watch(self) -> None:
        seen = time.monotonic()
        while not self._stopped.wait(_COUNT_SECONDS):
            try:
                self._n_threads = self._count()
            except Exception:
                # The scheduler is lost, which the tasks show by themselves.
                return
            if self._n_threads:
                seen = time.monotonic()
            elif time.monotonic() - seen > _NO_WORKER_SECONDS:
                self.gave_up = True
                self._submit.cancel()
                return
