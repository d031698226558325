"""Files that are read by byte ranges, from a local disk or through fsspec.

Nothing stays open between reads and nothing is memory-mapped: a file that is cut short while it
is read gives an error, not a signal; readers can be pickled and used from many threads.
"""

import hashlib
import io
import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, NoReturn, Protocol

from tinc_codec.errors import ConfigError

__all__ = ["ByteRanges", "SourceFile", "is_url", "local_path", "open_file", "stem"]

_HEAD_BYTES = 4096
# Requests that fsspec is given at once, and the memory that their answers may take.
_BATCH = 32
_SUFFIXES = (".ome.tiff", ".ome.tif", ".ome.zarr", ".zarr.zip", ".nii.gz")


class ByteRanges(Protocol):
    """Whatever can be read by byte ranges, from any process."""

    @property
    def gap_bytes(self) -> int:
        """Bytes between two wanted ranges that are cheaper to read than to leave out."""
        ...

    def read_ranges(self, ranges: Iterable[tuple[int, int]]) -> Iterator[bytes | bytearray]:
        """Read from each start to each stop, in their order.

        Raises
        ------
        OSError
            If the file has gone, has changed or is shorter.
        """
        ...


@dataclass(frozen=True)
class SourceFile:
    """A file, as it was when it was opened.

    Parameters
    ----------
    location : str
        Absolute path, or URL.
    size_bytes : int
    version : mapping
        What else tells that the file is another one now.
    storage_options : mapping or None
        For the fsspec file system of a URL; None for a path.
    """

    location: str
    size_bytes: int
    version: Mapping[str, Any]
    storage_options: Mapping[str, Any] | None = field(default=None, repr=False)

    def __hash__(self) -> int:
        return hash((self.location, self.size_bytes))

    @property
    def gap_bytes(self) -> int:
        """Bytes between two wanted ranges that are cheaper to read than to leave out."""
        return 1 << 14 if self.storage_options is None else 1 << 18

    @property
    def identity(self) -> dict[str, Any]:
        """Facts that change when the file does."""
        (head,) = self.read_ranges([(0, min(_HEAD_BYTES, self.size_bytes))])
        digest = hashlib.sha256(head).hexdigest()
        return {"size_bytes": self.size_bytes, "head_sha256": digest, **self.version}

    def read(self, start: int, stop: int) -> bytes | bytearray:
        """Read one range."""
        (found,) = self.read_ranges([(start, stop)])
        return found

    def read_ranges(self, ranges: Iterable[tuple[int, int]]) -> Iterator[bytes | bytearray]:
        """Read from each start to each stop, in their order."""
        if self.storage_options is None:
            return self._read_local(ranges)
        return self._read_remote(ranges)

    def open(self) -> Any:
        """Open the file for reading from its start, as a binary file object."""
        if self.storage_options is None:
            return Path(self.location).open("rb")
        system, path = _file_system(self.location, self.storage_options)
        return system.open(path, "rb")

    def _read_local(self, ranges: Iterable[tuple[int, int]]) -> Iterator[bytearray]:
        with open(self.location, "rb", buffering=0) as stream:
            found = os.fstat(stream.fileno())
            if found.st_size < self.size_bytes:
                raise self._too_short(found.st_size)
            if (found.st_size, found.st_mtime_ns) != (self.size_bytes, self.version["modified_ns"]):
                raise OSError(f"{self.location} has changed since it was opened")
            for start, stop in ranges:
                data = bytearray(stop - start)
                if not _fill(stream, start, memoryview(data)):
                    self._fail(start, stop, "it ended before")
                yield data

    def _read_remote(self, ranges: Iterable[tuple[int, int]]) -> Iterator[bytes]:
        assert self.storage_options is not None
        system, path = _file_system(self.location, self.storage_options)
        pending = iter(ranges)
        while batch := list(islice(pending, _BATCH)):
            starts, stops = [start for start, _ in batch], [stop for _, stop in batch]
            answers = system.cat_ranges([path] * len(batch), starts, stops, on_error="raise")
            for (start, stop), data in zip(batch, answers, strict=True):
                if len(data) != stop - start:
                    self._fail(start, stop, f"{len(data)} bytes came")
                yield data

    def _too_short(self, size_bytes: int) -> OSError:
        return OSError(
            f"{self.location} has {size_bytes} bytes, {self.size_bytes} when it was opened: "
            "it was cut short"
        )

    def _fail(self, start: int, stop: int, detail: str) -> NoReturn:
        raise OSError(f"{self.location}: bytes {start} to {stop} cannot be read: {detail}")


def _fill(stream: io.RawIOBase, start: int, view: memoryview) -> bool:
    stream.seek(start)
    while len(view):
        # One call gives no more than 2 GiB on Linux.
        count = stream.readinto(view)
        if not count:
            return False
        view = view[count:]
    return True


def _file_system(url: str, options: Mapping[str, Any]) -> tuple[Any, str]:
    from fsspec.core import url_to_fs

    system, path = url_to_fs(url, **options)
    return system, path


def open_file(location: str, storage_options: Mapping[str, Any] | None = None) -> SourceFile:
    """Look at a file, local or behind a URL, that is going to be read.

    Raises
    ------
    FileNotFoundError
        If there is none.
    ConfigError
        If it is no regular file, or the server does not say how long it is.
    """
    path = local_path(location)
    if path is not None:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            raise ConfigError(f"{path} is not a file")
        return SourceFile(str(path), found.st_size, {"modified_ns": found.st_mtime_ns})
    options = dict(storage_options or {})
    system, inner = _file_system(location, options)
    facts = system.info(inner)
    if facts.get("type") == "directory":
        raise ConfigError(f"{location} is not a file")
    size = facts.get("size")
    if size is None:
        raise ConfigError(f"{location}: the server does not tell the size, which range reads need")
    keys = ("ETag", "etag", "Content-MD5", "Digest", "Last-Modified", "LastModified", "mtime")
    version = {key: str(facts[key]) for key in keys if facts.get(key) is not None}
    return SourceFile(location, int(size), version, options)


def is_url(location: str) -> bool:
    """Tell whether fsspec is needed to read this."""
    return local_path(location) is None


def local_path(location: str) -> Path | None:
    """Return the absolute path that a path or a file:// URL means; None for other URLs."""
    protocol, separator, rest = location.partition("://")
    if separator and protocol in ("file", "local"):
        location = rest
    elif "::" in location or (separator and protocol.replace("+", "").isalnum()):
        return None
    return Path(location).expanduser().absolute()


def stem(location: str) -> str:
    """Return the last part of a path or URL without its suffix."""
    name = location.split("?")[0].replace("\\", "/").rstrip("/").rsplit("/", 1)[-1]
    for suffix in _SUFFIXES:
        if name.lower().endswith(suffix):
            return name[: -len(suffix)]
    return name.rsplit(".", 1)[0] or name
