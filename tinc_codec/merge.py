"""A write to a chunk of a Zarr array: what zarr hands over -> the whole chunk to encode."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from zarr.core.buffer import cpu

from tinc_codec.errors import CorruptStreamError
from tinc_codec.volume.padding import MIN_PADDING_VOXELS

if TYPE_CHECKING:
    from zarr.core.array_spec import ArraySpec
    from zarr.core.buffer import Buffer

    from tinc_codec.params import EncodingParams
    from tinc_codec.rewrite import OldChunk

__all__ = ["Write", "check_stored", "is_whole", "merge", "rewrite_all"]


@dataclass(frozen=True, eq=False)
class Write:
    """What becomes of a chunk that is written.

    Attributes
    ----------
    array : ndarray or None
        The whole chunk; None where it is as good as missing.
    old : OldChunk or None
        What lossy data it held, where a part of that stays.
    touched : ndarray of bool or None
        Where the new values are, if `old` is given.
    """

    array: np.ndarray[Any, Any] | None
    old: OldChunk | None = None
    touched: np.ndarray[Any, Any] | None = None

    @property
    def loses(self) -> bool:
        """Whether data that was encoded before is encoded again.

        A single voxel may be all the padding that the last chunk of a line has; so little is not
        stored as padding.
        """
        return self.touched is not None and np.sum(~self.touched) >= MIN_PADDING_VOXELS


def is_whole(selection: Any, shape: tuple[int, ...]) -> bool:
    """Tell whether slices select every voxel of a chunk."""
    return len(selection) == len(shape) and all(
        isinstance(part, slice) and part.indices(size) == (0, size, 1)
        for part, size in zip(selection, shape, strict=True)
    )


def merge(
    values: np.ndarray[Any, Any], selection: Any, spec: ArraySpec, found: Buffer | None
) -> Write:
    """Put new values into a chunk.

    Parameters
    ----------
    values : ndarray
        Of the selection's shape, axes of one voxel left out or not; or one value, of shape ().
    selection : tuple
    spec : ArraySpec
    found : Buffer or None
        What is stored of the chunk; None where nothing is or nothing of it stays.
    """
    if values.shape == spec.shape and is_whole(selection, spec.shape):
        return Write(None if _is_empty(values, spec) else values)
    dtype = spec.dtype.to_native_dtype()
    array = np.full(spec.shape, spec.fill_value, dtype, order=spec.order)
    old = touched = None
    if found is not None and not is_whole(selection, spec.shape):
        from tinc_codec.rewrite import open_old

        touched = np.zeros(spec.shape, dtype=bool)
        touched[selection] = True
        old = open_old(found.as_numpy_array().view(np.uint8))
        check_stored(old.header.info.shape, old.header.info.dtype, spec)
        if old.keeps_any(~touched):
            array[...] = old.decode()
        else:
            # All data is overwritten: what stays is padding.
            array[~touched] = old.header.info.pad_value if not touched.all() else 0
            old = None
    room = array[selection].shape
    if values.size > 1 and values.size == np.prod(room, dtype=np.int64):
        # Zarr leaves out axes that an integer selects.
        values = values.reshape(room)
    array[selection] = values
    if _is_empty(array, spec):
        return Write(None)
    if old is None or old.is_exact:
        return Write(array)
    return Write(array, old, touched)


def _is_empty(array: np.ndarray[Any, Any], spec: ArraySpec) -> bool:
    """Tell whether zarr would rather have no chunk than this one."""
    if spec.config.write_empty_chunks:
        return False
    return cpu.NDBuffer.from_numpy_array(array).all_equal(spec.fill_value)


def rewrite_all(writes: Sequence[Write], params: EncodingParams) -> list[bytes]:
    """Encode chunks of which a part of the old data stays; see `rewrite.rewrite_chunk`."""
    from tinc_codec.rewrite import rewrite_chunk

    payloads = []
    for write in writes:
        assert write.array is not None
        assert write.old is not None
        assert write.touched is not None
        payloads.append(rewrite_chunk(write.old, write.array, write.touched, params))
    return payloads


def check_stored(shape: tuple[int, ...], found: np.dtype[Any], spec: ArraySpec) -> None:
    """Refuse a chunk that is not one of this array.

    Raises
    ------
    CorruptStreamError
        If the shape or the dtype differs.
    """
    dtype = spec.dtype.to_native_dtype()
    if shape != spec.shape or not np.can_cast(found, dtype, "equiv"):
        raise CorruptStreamError(
            f"decoded chunk has shape {shape} and dtype {found}, "
            f"but the array's chunks have {spec.shape} and {dtype}"
        )
