"""Where tasks run: threads or processes of this machine.

Both take an iterator of tasks and draw from it only what its workers can use soon, so that a
million tasks never exist at once.
"""

import itertools
import os
import pickle
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import fields, replace
from typing import Any

from tinc_codec import config
from tinc_codec.errors import ConfigError
from tinc_codec.pipeline.target import Target
from tinc_codec.pipeline.tasks import Job, Outcome, Task, failures, run_task
from tinc_codec.pipeline.volumes import LazyArray
from tinc_codec.pipeline.worker import READY

__all__ = ["ATTEMPTS", "run_processes", "run_threads"]

Call = Callable[[Task], list[Outcome]]

ATTEMPTS = 3
"""Workers that a chunk may kill before it is given up."""
_THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "NUMBA_NUM_THREADS",
    "TINC_THREADS",
)


class WorkerDied(Exception):
    """A worker process ended while it was needed."""


def run_threads(
    job: Job, tasks: Iterator[Task], n_workers: int, array: LazyArray | None
) -> Iterator[Outcome]:
    """Run tasks on threads of this process.

    Parameters
    ----------
    job : Job
    tasks : iterator of Task
    n_workers : int
    array : LazyArray or None
        Read here for every task, where the job has no source.

    Yields
    ------
    Outcome
        As they come.
    """

    def call(task: Task) -> list[Outcome]:
        try:
            return run_task(job, _with_voxels(job, task, array))
        except Exception as error:
            return failures(task, error)

    with config.set(threads=_threads_each(n_workers)):
        yield from _run_window(call, tasks, n_workers)


def run_processes(
    job: Job, tasks: Iterator[Task], n_workers: int, array: LazyArray | None
) -> Iterator[Outcome]:
    """Run tasks in processes of this machine; one that ends unexpectedly is replaced.

    Parameters
    ----------
    job, tasks, n_workers, array
        As for `run_threads`.

    Yields
    ------
    Outcome
        As they come; a chunk that ended `ATTEMPTS` processes has failed.

    Raises
    ------
    OSError
        If processes cannot be started.
    """
    with _Crew(job, n_workers) as crew:

        def call(task: Task) -> list[Outcome]:
            try:
                complete = _with_voxels(job, task, array)
            except Exception as error:
                return failures(task, error)
            return crew.call(complete)

        yield from _run_window(call, tasks, n_workers, crew.kill)


def _with_voxels(job: Job, task: Task, array: LazyArray | None) -> Task:
    if job.source is not None or array is None:
        return task
    return replace(task, voxels=array[task.box(job.target)])


def _threads_each(n_workers: int) -> int:
    """Return how many threads a worker may use, so that all together fill the machine once."""
    return max(1, min(config.resolve_threads(), config.available_cpus() // n_workers))


def _run_window(
    call: Call, tasks: Iterator[Task], n_workers: int, stop: Callable[[], None] = lambda: None
) -> Iterator[Outcome]:
    """Call a function for all tasks on threads, and yield what comes; few tasks wait."""
    # Of queues in C, as an interrupt within a pool's or a future's lines leaves their locks taken.
    waiting: queue.SimpleQueue[Task | None] = queue.SimpleQueue()
    done: queue.SimpleQueue[list[Outcome] | BaseException] = queue.SimpleQueue()
    n_pending, is_stopped = 0, False

    def work() -> None:
        while (task := waiting.get()) is not None and not is_stopped:
            try:
                done.put(call(task))
            except BaseException as error:
                done.put(error)

    def hand_over(n: int) -> None:
        nonlocal n_pending
        for task in itertools.islice(tasks, n):
            waiting.put(task)
            n_pending += 1

    # A second interrupt, while these are joined, ends the process without them.
    threads = [
        threading.Thread(target=work, name=f"tinc_{number}", daemon=True)
        for number in range(n_workers)
    ]
    try:
        for thread in threads:
            thread.start()
        # One more than run, so that no thread waits for the next.
        hand_over(n_workers + 1)
        while n_pending:
            outcomes = done.get()
            n_pending -= 1
            if isinstance(outcomes, BaseException):
                raise outcomes
            hand_over(1)
            yield from outcomes
    except BaseException:
        stop()
        raise
    finally:
        is_stopped = True
        for _ in threads:
            waiting.put(None)
        for thread in threads:
            if thread.is_alive():
                thread.join()


class _Crew:
    """Worker processes, each of which serves one thread at a time."""

    def __init__(self, job: Job, n_workers: int) -> None:
        try:
            self._job = pickle.dumps(job, protocol=pickle.HIGHEST_PROTOCOL)
        except (TypeError, AttributeError, pickle.PicklingError) as error:
            raise ConfigError(
                f"{job.store} or the source cannot be handed to other processes ({error}); "
                'use scheduler="threads"'
            ) from error
        self._target = job.target
        self._environment = _environment(_threads_each(n_workers))
        # None stands for a process that is started when a task needs it.
        self._idle: queue.SimpleQueue[_Process | None] = queue.SimpleQueue()
        for _ in range(n_workers):
            self._idle.put(None)
        self._lock = threading.Lock()
        self._running: set[_Process] = set()
        self._stopped = False

    def __enter__(self) -> "_Crew":
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def kill(self) -> None:
        """End all processes at once; what they have not stored is as if never begun."""
        with self._lock:
            self._stopped = True
            running = list(self._running)
        for process in running:
            process.kill()

    def call(self, task: Task) -> list[Outcome]:
        """Run a task, again where its process dies; then each position by itself."""
        n_deaths = 0
        while True:
            try:
                return _with_deaths(self._call_once(task), n_deaths)
            except WorkerDied as error:
                n_deaths += 1
                if self._stopped or (len(task.positions) == 1 and n_deaths == ATTEMPTS):
                    return _with_deaths(failures(task, error), n_deaths)
                if len(task.positions) > 1:
                    singles = _singles(task, self._target)
                    outcomes = [outcome for single in singles for outcome in self.call(single)]
                    return _with_deaths(outcomes, n_deaths)

    def _call_once(self, task: Task) -> list[Outcome]:
        process = self._idle.get()
        try:
            if process is None:
                process = self._start()
            return process.call(task)
        except WorkerDied:
            if process is not None:
                with self._lock:
                    self._running.discard(process)
            process = None
            raise
        finally:
            self._idle.put(process)

    def _start(self) -> "_Process":
        with self._lock:
            if self._stopped:
                raise WorkerDied("the run was stopped")
            process = _Process(self._environment)
            self._running.add(process)
        process.begin(self._job)
        return process


class _Process:
    """One worker process."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._popen = subprocess.Popen(
            [sys.executable, "-P", "-m", "tinc_codec.pipeline.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            # An interrupt from the terminal is for the run, which then ends its workers.
            start_new_session=True,
        )

    def begin(self, job: bytes) -> None:
        """Wait until everything is imported, and tell what all tasks share.

        Raises
        ------
        OSError
            If it does not get so far.
        """
        try:
            if self._receive() == READY:
                self._send(job)
                return
        except WorkerDied as error:
            raise OSError(f"a worker process could not start: {error}") from error
        raise OSError("a worker process could not start: it gave a wrong answer")

    def call(self, task: Task) -> list[Outcome]:
        """Run a task.

        Raises
        ------
        WorkerDied
            If the process ends before it has answered.
        """
        self._send(pickle.dumps(task, protocol=pickle.HIGHEST_PROTOCOL))
        outcomes: list[Outcome] = self._receive()
        return outcomes

    def kill(self) -> None:
        """End the process now."""
        self._popen.kill()
        self._popen.wait()
        for stream in (self._popen.stdin, self._popen.stdout):
            assert stream is not None
            with suppress(OSError, ValueError):
                stream.close()

    def _send(self, data: bytes) -> None:
        assert self._popen.stdin is not None
        try:
            self._popen.stdin.write(data)
            self._popen.stdin.flush()
        except (OSError, ValueError) as error:
            raise self._died() from error

    def _receive(self) -> Any:
        assert self._popen.stdout is not None
        try:
            return pickle.load(self._popen.stdout)
        except (OSError, EOFError, ValueError, pickle.UnpicklingError) as error:
            raise self._died() from error

    def _died(self) -> WorkerDied:
        self.kill()
        status = self._popen.returncode
        name = f"signal {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"
        return WorkerDied(f"the worker process ended ({name})")


def _environment(n_threads: int) -> dict[str, str]:
    """Return the environment of a worker: this one's settings, threads, and import path."""
    settings = config.get()
    environment = dict(os.environ)
    for field in fields(settings):
        environment[f"TINC_{field.name.upper()}"] = str(getattr(settings, field.name))
    environment |= dict.fromkeys(_THREAD_VARIABLES, str(n_threads))
    environment["PYTHONPATH"] = os.pathsep.join(path or os.getcwd() for path in sys.path)
    return environment


def _singles(task: Task, target: Target) -> Iterator[Task]:
    box = task.box(target)
    for position in task.positions:
        part = tuple(
            slice(p.start - b.start, p.stop - b.start)
            for p, b in zip(target.box(position), box, strict=True)
        )
        yield Task((position,), None if task.voxels is None else task.voxels[part])


def _with_deaths(outcomes: list[Outcome], n_deaths: int) -> list[Outcome]:
    first, *rest = outcomes
    return [replace(first, worker_deaths=first.worker_deaths + n_deaths), *rest]
