"""Compressed files that cannot be read in places: unpacked once, into a temporary file.

Such a file is shared by all processes of a user on a machine and goes when the process that opened
the source lets go of it. Memory holds one block of it at a time. `TMPDIR` says where it lies.
"""

import contextlib
import gzip
import hashlib
import json
import os
import socket
import stat
import tempfile
import weakref
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from multiprocessing.util import Finalize
from pathlib import Path
from typing import IO, cast

from tinc_codec.pipeline.sources.files import SourceFile, open_file

__all__ = ["SpooledFile"]

_BLOCK_BYTES = 1 << 20


class SpooledFile:
    """What a `.gz` file, or a compressed member of a `.zip`, holds; read by byte ranges.

    Parameters
    ----------
    file : SourceFile
    member : str or None
        Of a zip archive; None for gzip.
    size_bytes : int
        What it holds at the least.
    """

    gap_bytes = 1 << 14

    def __init__(self, file: SourceFile, member: str | None, size_bytes: int) -> None:
        self._file = file
        self._member = member
        self._size_bytes = size_bytes
        self._host = socket.gethostname()
        # Only where the source was opened: copies in other processes come and go with their tasks.
        weakref.finalize(self, _remove, self._path, os.getpid())

    @property
    def _path(self) -> Path:
        file = self._file
        facts = [file.location, file.size_bytes, dict(file.version), self._member]
        digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
        return _folder() / f"{digest[:32]}.raw"

    def read_ranges(self, ranges: Iterable[tuple[int, int]]) -> Iterator[bytes | bytearray]:
        """Read from each start to each stop of what is unpacked, in their order."""
        return self._unpacked().read_ranges(ranges)

    def _unpacked(self) -> SourceFile:
        path = self._path
        with contextlib.suppress(FileNotFoundError):
            return open_file(str(path))
        with _only_one(path.with_suffix(".lock")):
            # Another process may have been at it.
            if not path.exists():
                self._unpack(path)
                if self._host != socket.gethostname():
                    # The opener tidies up on its own machine. (Workers end without `atexit`.)
                    Finalize(None, _remove, (path, os.getpid()), exitpriority=0)
            return open_file(str(path))

    def _unpack(self, path: Path) -> None:
        file = self._file
        partial = path.with_suffix(f".{os.getpid()}.part")
        try:
            with (
                file.open() as packed,
                _unpacking(packed, self._member) as stream,
                partial.open("wb") as target,
            ):
                while block := stream.read(_BLOCK_BYTES):
                    target.write(block)
                size_bytes = target.tell()
            options = file.storage_options
            if open_file(file.location, options) != file:
                raise OSError(f"{file.location} has changed since it was opened")
            if size_bytes < self._size_bytes:
                raise OSError(
                    f"{file.location} holds {size_bytes} bytes, not the {self._size_bytes} that "
                    "its header promises: it was cut short"
                )
            partial.replace(path)
        except (EOFError, zlib.error, zipfile.BadZipFile) as error:
            raise OSError(f"{file.location} cannot be unpacked: {error}") from error
        finally:
            partial.unlink(missing_ok=True)


@contextmanager
def _unpacking(packed: IO[bytes], member: str | None) -> Iterator[IO[bytes]]:
    if member is None:
        with gzip.open(packed) as stream:
            yield cast(IO[bytes], stream)
    else:
        with zipfile.ZipFile(packed) as archive, archive.open(member) as stream:
            yield stream


@contextmanager
def _only_one(lock: Path) -> Iterator[None]:
    """Wait for other processes and threads; a process that dies lets go."""
    try:
        import fcntl
    except ImportError:
        # Without it two processes may both unpack; the later replaces what the other made.
        yield
        return
    with lock.open("wb") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def _folder() -> Path:
    """Return a folder for temporary files that nobody else can put files into."""
    user = getattr(os, "getuid", lambda: 0)()
    folder = Path(tempfile.gettempdir()) / f"tinc-{user}"
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != user or found.st_mode & 0o022:
        raise OSError(f"{folder} belongs to somebody else or is open to others; set TMPDIR")
    return folder


def _remove(path: Path, process: int) -> None:
    # A forked process inherits the finaliser, not the file.
    if process == os.getpid():
        path.unlink(missing_ok=True)
        path.with_suffix(".lock").unlink(missing_ok=True)
