"""How this process computes: device, threads and limits; never part of stored metadata.

Settings come from the environment (`TINC_DEVICE`, `TINC_THREADS`, `TINC_MAX_DECODED_BYTES`,
`TINC_CACHE_BYTES`, `TINC_DEVICE_MEMORY_BYTES`, read once, on first use) and from `set`. They
belong to the process, not to a thread, because zarr and dask run codecs on threads of their own.
Worker processes started afresh see only the environment.
"""

from __future__ import annotations

import math
import numbers
import os
import re
import sys
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, fields, replace
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from tinc_codec.errors import ConfigError

_ENVIRONMENT = {
    "device": "TINC_DEVICE",
    "threads": "TINC_THREADS",
    "max_decoded_bytes": "TINC_MAX_DECODED_BYTES",
    "cache_bytes": "TINC_CACHE_BYTES",
    "device_memory_bytes": "TINC_DEVICE_MEMORY_BYTES",
}
_DEVICE = re.compile(r"auto|cpu|cuda(:[0-9]+)?")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """One consistent snapshot of the package configuration.

    Parameters
    ----------
    device : str
        "auto", "cpu", "cuda" or "cuda:N".
    threads : int or "auto"
        CPU threads that one encode or decode call may use, at least 1.
    max_decoded_bytes : int
        Largest decoded chunk, in bytes, that a stream may declare; at least 1.
    cache_bytes : int
        Memory for the parsed models of chunks of which parts were read, so that the next part
        costs only itself; 0 keeps none.
    device_memory_bytes : int or "auto"
        What one launch may hold on a GPU, at least 1: more chunks take several launches, and a
        chunk that needs more by itself is computed on the CPU. "auto" is half of what is free.

    Raises
    ------
    ConfigError
        If a value is out of range.
    """

    device: str = "auto"
    threads: int | Literal["auto"] = "auto"
    max_decoded_bytes: int = 4 * 2**30
    cache_bytes: int = 64 * 2**20
    device_memory_bytes: int | Literal["auto"] = "auto"

    def __post_init__(self) -> None:
        if not isinstance(self.device, str) or not _DEVICE.fullmatch(self.device):
            raise ConfigError(
                f"device={self.device!r} is not one of 'auto', 'cpu', 'cuda', 'cuda:N'"
            )
        if self.threads != "auto":
            object.__setattr__(
                self, "threads", _positive_int("threads", self.threads, ' or "auto"')
            )
        limit = _positive_int("max_decoded_bytes", self.max_decoded_bytes)
        object.__setattr__(self, "max_decoded_bytes", limit)
        object.__setattr__(self, "cache_bytes", _integer("cache_bytes", self.cache_bytes, 0))
        if self.device_memory_bytes != "auto":
            most = _positive_int("device_memory_bytes", self.device_memory_bytes, ' or "auto"')
            object.__setattr__(self, "device_memory_bytes", most)


def _positive_int(field: str, value: object, alternative: str = "") -> int:
    return _integer(field, value, 1, alternative)


def _integer(field: str, value: object, least: int, alternative: str = "") -> int:
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < least:
        raise ConfigError(f"{field}={value!r} is not an integer >= {least}{alternative}")
    return int(value)


def _from_environment() -> Settings:
    found: dict[str, Any] = {}
    for field, variable in _ENVIRONMENT.items():
        text = os.environ.get(variable, "").strip()
        if not text:
            continue
        try:
            found[field] = int(text) if field != "device" and text != "auto" else text
            Settings(**{field: found[field]})
        except ValueError as error:
            raise ConfigError(f"environment variable {variable}={text!r}: {error}") from error
    return Settings(**found)


_lock = threading.RLock()
_device_lock = threading.RLock()
_settings: Settings | None = None


def get() -> Settings:
    """Return the settings in force now, as an immutable snapshot.

    Raises
    ------
    ConfigError
        If an environment variable holds a value out of range (on first use).
    """
    global _settings
    with _lock:
        if _settings is None:
            _settings = _from_environment()
        return _settings


class _Change(AbstractContextManager[Settings]):
    """What `set` did, undone when used as a context manager."""

    def __init__(self, before: dict[str, Any], after: Settings) -> None:
        self._before = before
        self._after = after

    def __enter__(self) -> Settings:
        return self._after

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        set(**self._before)


def set(**changes: Any) -> _Change:
    """Change settings of this process: for good as a call, for a while in a `with` statement.

    Parameters
    ----------
    **changes
        Fields of `Settings`: `device`, `threads`, `max_decoded_bytes`, `cache_bytes`,
        `device_memory_bytes`.

    Raises
    ------
    ConfigError
        If a name is unknown or a value out of range; nothing is changed then.
    """
    global _settings
    known = [field.name for field in fields(Settings)]
    unknown = sorted(name for name in changes if name not in known)
    if unknown:
        raise ConfigError(f"unknown setting {', '.join(unknown)}; known are {', '.join(known)}")
    with _lock:
        before = get()
        _settings = replace(before, **changes)
        return _Change({name: getattr(before, name) for name in changes}, _settings)


def resolve_device() -> str:
    """Return the torch device to compute on: "cpu", "cuda" or "cuda:N".

    Raises
    ------
    ConfigError
        If CUDA was asked for and is not there.
    """
    device = get().device
    if device == "cpu" or (device == "auto" and not _nvidia_driver_loaded()):
        return "cpu"
    try:
        import torch
    except ImportError:
        if device == "auto":
            return "cpu"
        raise ConfigError(f"device={device!r} needs torch, which cannot be imported") from None
    if not torch.cuda.is_available():
        if device == "auto":
            return "cpu"
        raise ConfigError(f"device={device!r}, but torch finds no CUDA device on this machine")
    if device == "auto":
        return "cuda"
    number, count = int(device.partition(":")[2] or 0), torch.cuda.device_count()
    if number >= count:
        raise ConfigError(f"device={device!r}, but there are only {count} CUDA device(s)")
    return device


_AUTO_DEVICE_MEMORY = 1 << 30


def resolve_device_memory(device: str) -> int:
    """Return how many bytes one launch may hold on a torch device.

    Parameters
    ----------
    device : str
        From `resolve_device`. "auto" means half of the memory that is free on a GPU now, what
        torch keeps for reuse included, and 1 GiB on any other device.
    """
    limit = get().device_memory_bytes
    if limit != "auto":
        return limit
    if not device.startswith("cuda"):
        return _AUTO_DEVICE_MEMORY
    import torch

    free_bytes, _ = torch.cuda.mem_get_info(device)
    kept_bytes = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return max(1, (free_bytes + kept_bytes) // 2)


@contextmanager
def device_slot() -> Iterator[None]:
    """Wait until no other thread of this process launches on a GPU, so that limits add up.

    Nested use in one thread does not wait.
    """
    with _device_lock:
        yield


def _nvidia_driver_loaded() -> bool:
    # Importing torch takes seconds: a reader on a machine without a GPU should not pay for it.
    if sys.platform == "darwin":
        return False
    if sys.platform.startswith("linux"):
        nodes = ("/dev/nvidiactl", "/dev/dxg", "/dev/nvmap")
        return any(os.path.exists(node) for node in nodes)
    return True


def available_cpus() -> int:
    """Return how many CPUs this process may use: its affinity, and its container's quota."""
    if hasattr(os, "sched_getaffinity"):
        count = len(os.sched_getaffinity(0))
    else:
        count = os.cpu_count() or 1
    return max(1, min(count, _quota_cpus()))


@cache
def _quota_cpus() -> int:
    """Read the container's quota once: every chunk asks for it."""
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return math.ceil(int(quota) / int(period))
    except (OSError, ValueError):
        return sys.maxsize


def resolve_threads() -> int:
    """Return how many CPU threads one encode or decode call may use, at least 1.

    "auto" means every CPU, or what `OMP_NUM_THREADS` allows; in a worker of a process pool it
    means 1, because there the pool already fills the machine.
    """
    threads = get().threads
    if threads != "auto":
        return threads
    from multiprocessing import parent_process

    if parent_process() is not None:
        return 1
    allowed = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    count = available_cpus()
    return min(count, int(allowed)) if allowed.isdecimal() and int(allowed) > 0 else count


class _SlotGate:
    """Shares the CPUs of this process among the encode and decode calls running at once."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._used = 0
        self._waiting = 0
        self._mine = threading.local()

    @contextmanager
    def slots(self, wanted: int, capacity: int) -> Iterator[int]:
        held = getattr(self._mine, "count", 0)
        if held:
            # An encode verifies by decoding: that call runs on the slots of the outer one.
            yield held
            return
        with self._condition:
            self._waiting += 1
            try:
                self._condition.wait_for(lambda: self._used < capacity)
            finally:
                self._waiting -= 1
            fair = (capacity - self._used) // (self._waiting + 1)
            count = max(1, min(wanted, fair))
            self._used += count
        self._mine.count = count
        try:
            yield count
        finally:
            self._mine.count = 0
            with self._condition:
                self._used -= count
                self._condition.notify_all()


_gate = _SlotGate()


@contextmanager
def cpu_slots() -> Iterator[int]:
    """Wait for a share of the CPUs and yield the number of threads to use, at least 1.

    A call that is alone gets all that `resolve_threads` allows; calls that run at once (zarr's
    thread pool, dask's threads) share the CPUs, and more calls than CPUs wait their turn.
    Nested use in one thread keeps the share of the outermost.
    """
    wanted = resolve_threads()
    with _gate.slots(wanted, max(wanted, available_cpus())) as count:
        yield count


def _after_fork() -> None:
    # Locks and slots held by other threads of the parent would never be released here.
    global _lock, _device_lock, _gate
    _lock = threading.RLock()
    _device_lock = threading.RLock()
    _gate = _SlotGate()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
