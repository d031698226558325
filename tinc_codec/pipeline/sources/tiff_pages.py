"""Pages of TIFF files as one array, of which single strips, tiles or rows are read."""

import itertools
import logging
import struct
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from tinc_codec.errors import ConfigError
from tinc_codec.pipeline.sources.boxes import RawArray, box_of
from tinc_codec.pipeline.sources.extras import import_extra
from tinc_codec.pipeline.sources.files import SourceFile

__all__ = ["Page", "TiffPages", "check_decodable", "file_of", "open_tifffile", "page_of"]

# In messages of tifffile about files whose pages cannot all be found.
_DAMAGE = ("page offset", "corrupted", "reshape", "ByteCounts", "StripOffsets", "data offset")


@dataclass(frozen=True, slots=True)
class Page:
    """Where the strips or tiles of a page lie.

    Parameters
    ----------
    file : int
        Which of the array's files.
    offsets, counts : ndarray of int64, (n_segments,)
        In bytes; a count of 0 stands for zeros.
    contiguous : bool
        The segments are not compressed and follow each other: one array.
    tables : bytes or None
        What JPEG segments of the page share.
    """

    file: int
    offsets: np.ndarray[Any, Any]
    counts: np.ndarray[Any, Any]
    contiguous: bool
    tables: bytes | None = None


@dataclass(frozen=True)
class TiffPages:
    """Equal pages of one or more files, as one array.

    Parameters
    ----------
    files : tuple of SourceFile
    pages : tuple of (Page or None)
        In C order of the axes before those of a page; None where a page is missing: zeros.
    lead : tuple of int
        Lengths of the axes before those of a page.
    plane : tuple of int
        Shape of a page: (y, x), or (z, y, x) of volumetric tiles.
    stored : numpy.dtype
        As it is in the files.
    keyframe : tuple of (int, tuple of int)
        The file and the index in it of a page that tells how all are decoded.
    """

    files: tuple[SourceFile, ...]
    pages: tuple[Page | None, ...]
    lead: tuple[int, ...]
    plane: tuple[int, ...]
    stored: np.dtype[Any]
    keyframe: tuple[int, tuple[int, ...]]

    @property
    def shape(self) -> tuple[int, ...]:
        """Voxels along each axis."""
        return self.lead + self.plane

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of a voxel, in the byte order of this machine."""
        return self.stored.newbyteorder("=")

    def __getitem__(self, selection: tuple[slice, ...]) -> np.ndarray[Any, Any]:
        """Read a box, one strip or tile after the other.

        Raises
        ------
        OSError
            If a file has gone, has changed or is damaged.
        """
        box = box_of(selection, self.shape)
        outer, inner = box[: len(self.lead)], box[len(self.lead) :]
        out = np.zeros([part.stop - part.start for part in box], dtype=self.dtype)
        if not out.size:
            return out
        for index in itertools.product(*(range(part.start, part.stop) for part in outer)):
            page = self.pages[_ravel(index, self.lead)]
            place = tuple(i - part.start for i, part in zip(index, outer, strict=True))
            if page is None:
                continue
            if page.contiguous:
                rows = RawArray(
                    self.files[page.file], int(page.offsets[0]), self.stored, self.plane
                )
                out[place] = rows[inner]
            else:
                self._decode(page, inner, out[place])
        return out

    def _decode(self, page: Page, box: tuple[slice, ...], out: np.ndarray[Any, Any]) -> None:
        file = self.files[page.file]
        decoder = _decoder(self.files[self.keyframe[0]], self.keyframe[1])
        # A page without depth is one slice.
        if len(box) == 2:
            box, out = (slice(0, 1), *box), out[np.newaxis]
        wanted = [i for i in decoder.touching(box) if page.counts[i]]
        ranges = ((int(page.offsets[i]), int(page.offsets[i] + page.counts[i])) for i in wanted)
        for index, data in zip(wanted, file.read_ranges(ranges), strict=True):
            try:
                segment = decoder.decode(bytes(data), index, page.tables)
            except (ValueError, RuntimeError, NotImplementedError) as error:
                raise OSError(
                    f"{file.location}: strip or tile {index} of a page at byte "
                    f"{page.offsets[index]} is damaged: {error}"
                ) from error
            start = decoder.starts[index]
            there, here = [], []
            for axis, part in enumerate(box):
                first = max(part.start, int(start[axis]))
                last = min(part.stop, int(start[axis]) + segment.shape[axis])
                there.append(slice(first - int(start[axis]), last - int(start[axis])))
                here.append(slice(first - part.start, last - part.start))
            out[tuple(here)] = segment[tuple(there)]


class _Decoder:
    """How segments of a page are decoded and where they belong.

    Attributes
    ----------
    starts, stops : ndarray of int64, (n_segments, 3)
        Along z, y, x of the page.
    """

    def __init__(self, keyframe: Any) -> None:
        self._decode = keyframe.decode
        # The only compressions whose decoders know the argument.
        self._jpeg = int(keyframe.compression) in {6, 7, 33007, 34892}
        count = int(np.prod(keyframe.chunked))
        found = [self._call(None, index, None) for index in range(count)]
        self.starts = np.array([position[1:4] for _, position, _ in found], dtype="i8")
        self.stops = self.starts + np.array([shape[:3] for _, _, shape in found], dtype="i8")

    def _call(self, data: bytes | None, index: int, tables: bytes | None) -> Any:
        return self._decode(data, index, **({"jpegtables": tables} if self._jpeg else {}))

    def touching(self, box: tuple[slice, ...]) -> list[int]:
        """Return the segments of which a box has a part."""
        first = np.array([part.start for part in box])
        last = np.array([part.stop for part in box])
        inside = np.all((self.starts < last) & (self.stops > first), axis=1)
        return [int(i) for i in np.flatnonzero(inside)]

    def decode(self, data: bytes, index: int, tables: bytes | None) -> np.ndarray[Any, Any]:
        """Return a segment as (z, y, x)."""
        segment = self._call(data, index, tables)[0]
        return np.asarray(segment)[..., 0]


@lru_cache(maxsize=16)
def _decoder(file: SourceFile, index: tuple[int, ...]) -> _Decoder:
    with open_tifffile(file) as opened:
        # Decoding needs nothing of the file but what the page has told.
        return _Decoder(opened.pages[index if len(index) > 1 else index[0]])


def check_decodable(files: tuple[SourceFile, ...], keyframe: tuple[int, tuple[int, ...]]) -> None:
    """Refuse pages whose compression no installed library decodes.

    Raises
    ------
    ConfigError
    """
    file = files[keyframe[0]]
    try:
        _decoder(file, keyframe[1])
    except (ValueError, NotImplementedError) as error:
        raise ConfigError(
            f"{file.location} cannot be decoded: {error}; imagecodecs decodes most "
            "compressions (pip install imagecodecs)"
        ) from error


@contextmanager
def open_tifffile(file: SourceFile) -> Iterator[Any]:
    """Open a file as a tifffile.TiffFile.

    Raises
    ------
    ConfigError
        If it is no TIFF file, or tifffile is not installed.
    """
    tifffile = import_extra("tifffile", "tiff")
    complaints = _Complaints()
    with ExitStack() as stack:
        logger = logging.getLogger("tifffile")
        logger.addHandler(complaints)
        stack.callback(logger.removeHandler, complaints)
        # The other files of an OME-TIFF are found by the path of the first.
        remote = file.storage_options is not None
        source = stack.enter_context(file.open()) if remote else file.location
        try:
            yield stack.enter_context(tifffile.TiffFile(source))
        except (tifffile.TiffFileError, struct.error) as error:
            raise ConfigError(f"{file.location} is no TIFF file, or damaged: {error}") from error
        if complaints.damage:
            raise ConfigError(
                f"{file.location} is damaged or was cut short: {complaints.damage[0]}"
            )


class _Complaints(logging.Handler):
    """What this thread is told of a damaged file: tifffile goes on with what is left of it."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._thread = threading.get_ident()
        self.damage: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a message about pages that are missing or do not fit."""
        message = record.getMessage()
        if record.thread == self._thread and any(part in message for part in _DAMAGE):
            self.damage.append(message)


def page_of(page: Any, file: int, size_bytes: int, location: str) -> Page:
    """Return where the segments of a tifffile page lie.

    Raises
    ------
    ConfigError
        If the file ends before they do.
    """
    keyframe = page.keyframe
    offsets = np.array(page.dataoffsets, dtype="i8")
    counts = np.array(page.databytecounts, dtype="i8")
    end = int((offsets + counts).max(initial=0))
    if end > size_bytes:
        raise ConfigError(
            f"{location} has {size_bytes} bytes; a page of it ends at {end}: it was cut short"
        )
    contiguous = bool(
        keyframe.is_contiguous
        and keyframe.is_final
        and counts.sum() == keyframe.nbytes
        and np.array_equal(offsets[:-1] + counts[:-1], offsets[1:])
    )
    return Page(file, offsets, counts, contiguous, page.jpegtables)


def _ravel(index: tuple[int, ...], shape: tuple[int, ...]) -> int:
    return int(np.ravel_multi_index(index, shape)) if index else 0


def file_of(page: Any) -> str:
    """Return the path of the file that a tifffile page lies in."""
    return str(Path(page.parent.filehandle.path))
