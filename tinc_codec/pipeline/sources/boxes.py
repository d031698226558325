"""Boxes of voxels, and how to read them from arrays that lie in a file as they are."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from tinc_codec.errors import ConfigError
from tinc_codec.pipeline.sources.files import ByteRanges

__all__ = ["RawArray", "box_of", "check_room"]

# What is read at once of a file, where the wanted rows lie closely together.
_MAX_SPAN_BYTES = 8 << 20


def box_of(selection: Any, shape: tuple[int, ...]) -> tuple[slice, ...]:
    """Return a selection as slices with a start and a stop within the array.

    Raises
    ------
    IndexError
        If it is not a slice of step 1 per axis.
    """
    if not isinstance(selection, tuple):
        selection = (selection,)
    if Ellipsis in selection:
        place = selection.index(Ellipsis)
        missing = len(shape) - len(selection) + 1
        selection = selection[:place] + (slice(None),) * missing + selection[place + 1 :]
    selection += (slice(None),) * (len(shape) - len(selection))
    if len(selection) != len(shape) or not all(
        isinstance(part, slice) and part.step in (None, 1) for part in selection
    ):
        raise IndexError(f"selection {selection} is not one slice of step 1 per axis of {shape}")
    bounds = [part.indices(size)[:2] for part, size in zip(selection, shape, strict=True)]
    return tuple(slice(start, max(start, stop)) for start, stop in bounds)


@dataclass(frozen=True)
class RawArray:
    """An array whose voxels lie in a file one after the other, not compressed.

    Parameters
    ----------
    file : ByteRanges
    offset : int
        Of the first voxel, in bytes.
    stored : numpy.dtype
        As it is in the file; what is read has the byte order of this machine.
    shape : tuple of int
    fortran : bool
        The first axis is the fastest in the file, not the last.
    """

    file: ByteRanges
    offset: int
    stored: np.dtype[Any]
    shape: tuple[int, ...]
    fortran: bool = False

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of a voxel, in the byte order of this machine."""
        return self.stored.newbyteorder("=")

    def __getitem__(self, selection: tuple[slice, ...]) -> np.ndarray[Any, Any]:
        """Read a box."""
        box = box_of(selection, self.shape)
        if self.fortran:
            return self._read(box[::-1], self.shape[::-1]).T
        return self._read(box, self.shape)

    def _read(self, box: tuple[slice, ...], shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
        sizes = tuple(part.stop - part.start for part in box)
        out = np.empty(sizes, dtype=self.dtype)
        if not out.size:
            return out
        strides = _strides(shape, self.stored.itemsize)
        first = self.offset + sum(
            part.start * step for part, step in zip(box, strides, strict=True)
        )
        split, span = _span(sizes, strides, self.stored.itemsize, self.file.gap_bytes)
        outer = list(itertools.product(*(range(size) for size in sizes[:split])))

        def ranges() -> Iterator[tuple[int, int]]:
            for index in outer:
                start = first + sum(i * step for i, step in zip(index, strides, strict=False))
                yield start, start + span

        for index, data in zip(outer, self.file.read_ranges(ranges()), strict=True):
            out[index] = np.ndarray(sizes[split:], self.stored, data, 0, strides[split:])
        return out


def check_room(
    location: str, offset: int, dtype: np.dtype[Any], shape: tuple[int, ...], size_bytes: int
) -> None:
    """Refuse a file that is shorter than its header says.

    Raises
    ------
    ConfigError
    """
    needed = offset + int(np.prod(shape, dtype=object)) * dtype.itemsize
    if size_bytes < needed:
        raise ConfigError(
            f"{location} has {size_bytes} bytes; its header promises {needed}: it was cut short"
        )


def _strides(shape: tuple[int, ...], itemsize: int) -> tuple[int, ...]:
    strides = [itemsize]
    for size in shape[:0:-1]:
        strides.append(strides[-1] * size)
    return tuple(strides[::-1])


def _span(
    sizes: tuple[int, ...], strides: tuple[int, ...], itemsize: int, gap_bytes: int
) -> tuple[int, int]:
    """Choose from which axis on a box is read in one piece, and how long such a piece is."""
    split, span = len(sizes), itemsize
    while split:
        step, size = strides[split - 1], sizes[split - 1]
        longer = (size - 1) * step + span
        if (
            size > 1
            and split < len(sizes)
            and (step - span > gap_bytes or longer > _MAX_SPAN_BYTES)
        ):
            break
        split, span = split - 1, longer
    return split, span
