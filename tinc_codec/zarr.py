"""`TINCCodec`: the array-to-bytes codec of the Zarr v3 format, found by its name "tinc".

Zarr builds it from the named configuration that a `TINC` object also is; nobody has to import
it. It needs zarr 3.1 or later and is loaded by zarr's entry point only.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import zarr
from zarr.abc.codec import ArrayBytesCodec, ArrayBytesCodecPartialDecodeMixin

from tinc_codec import config
from tinc_codec.errors import ConfigError, CorruptStreamError
from tinc_codec.params import EncodingParams
from tinc_codec.volume.selection import Box, cover

if TYPE_CHECKING:
    from zarr.abc.store import ByteGetter
    from zarr.core.array_spec import ArraySpec
    from zarr.core.buffer import Buffer, NDBuffer

_NAME = "tinc"


@dataclass(frozen=True)
class TINCCodec(ArrayBytesCodec, ArrayBytesCodecPartialDecodeMixin):
    """Zarr v3 shell around `codec.encode_chunks`, `codec.decode_chunks` and `codec.open_chunk`.

    It holds nothing but what is stored: device, threads and limits come from
    `tinc_codec.config`, since zarr pickles codecs inside shards through their configuration.
    """

    params: EncodingParams

    is_fixed_size = False

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> TINCCodec:
        """Build the codec from its named configuration in `zarr.json`.

        Raises
        ------
        ConfigError
            If the name or a parameter is not ours, or a value is out of range.
        """
        if data.get("name") != _NAME:
            raise ConfigError(f"codec name {data.get('name')!r} is not {_NAME!r}")
        return cls(EncodingParams.from_config(data.get("configuration", {})))

    def to_dict(self) -> dict[str, Any]:
        """Return the named configuration stored in `zarr.json`."""
        return {"name": _NAME, "configuration": self.params.to_config()}

    def evolve_from_array_spec(self, array_spec: ArraySpec) -> TINCCodec:
        """Refuse unsupported data when an array is created or opened, also inside shards.

        Raises
        ------
        UnsupportedDataError
            If the dtype or the number of axes cannot be encoded.
        """
        _check_array(array_spec.dtype.to_native_dtype(), array_spec.shape)
        return self

    def validate(self, *, shape: tuple[int, ...], dtype: Any, chunk_grid: Any) -> None:
        """Refuse, when an array is created, what no chunk of it could be encoded from.

        Raises
        ------
        UnsupportedDataError
            If the dtype or the number of axes cannot be encoded.
        """
        _check_array(dtype.to_native_dtype(), shape)

    def compute_encoded_size(self, input_byte_length: int, chunk_spec: ArraySpec) -> int:
        """Raise NotImplementedError, zarr's word for a size known only after encoding."""
        raise NotImplementedError

    async def encode(
        self, chunks_and_specs: Iterable[tuple[NDBuffer | None, ArraySpec]]
    ) -> list[Buffer | None]:
        """Encode all chunks of one call as one batch; None stays None."""
        batch = list(chunks_and_specs)
        present = [(chunk, spec) for chunk, spec in batch if chunk is not None]
        encoded = iter(await asyncio.to_thread(self._encode_present, present) if present else ())
        return [None if chunk is None else next(encoded) for chunk, _ in batch]

    async def decode(
        self, chunks_and_specs: Iterable[tuple[Buffer | None, ArraySpec]]
    ) -> list[NDBuffer | None]:
        """Decode all chunks of one call as one batch; None, a missing chunk, stays None."""
        batch = list(chunks_and_specs)
        present = [(chunk, spec) for chunk, spec in batch if chunk is not None]
        decoded = iter(await asyncio.to_thread(_decode_present, present) if present else ())
        return [None if chunk is None else next(decoded) for chunk, _ in batch]

    async def decode_partial(
        self, batch_info: Iterable[tuple[ByteGetter, Any, ArraySpec]]
    ) -> list[NDBuffer | None]:
        """Fetch chunks and decode what is selected of each; zarr's way to read, whole or not.

        Parameters
        ----------
        batch_info : iterable of (byte getter, selection, chunk spec)

        Returns
        -------
        list of NDBuffer or None
            `chunk[selection]` each; None for a missing chunk.
        """
        batch = list(batch_info)
        gate = asyncio.Semaphore(zarr.config.get("async.concurrency"))

        async def fetch(getter: ByteGetter, spec: ArraySpec) -> Buffer | None:
            async with gate:
                return await getter.get(prototype=spec.prototype)

        fetched = await asyncio.gather(*(fetch(getter, spec) for getter, _, spec in batch))
        present = [
            (chunk, selection, spec)
            for chunk, (_, selection, spec) in zip(fetched, batch, strict=True)
            if chunk is not None
        ]
        decoded = iter(await asyncio.to_thread(_decode_selected, present) if present else ())
        return [None if chunk is None else next(decoded) for chunk in fetched]

    async def _decode_partial_single(
        self, byte_getter: ByteGetter, selection: Any, chunk_spec: ArraySpec
    ) -> NDBuffer | None:
        (decoded,) = await self.decode_partial([(byte_getter, selection, chunk_spec)])
        return decoded

    async def _encode_single(self, chunk_data: NDBuffer, chunk_spec: ArraySpec) -> Buffer | None:
        (encoded,) = await self.encode([(chunk_data, chunk_spec)])
        return encoded

    async def _decode_single(self, chunk_data: Buffer, chunk_spec: ArraySpec) -> NDBuffer:
        (decoded,) = await self.decode([(chunk_data, chunk_spec)])
        assert decoded is not None
        return decoded

    def _encode_present(self, batch: list[tuple[NDBuffer, ArraySpec]]) -> list[Buffer]:
        from tinc_codec.codec import encode_chunks
        from tinc_codec.volume.chunk import check_supported

        arrays = [chunk.as_numpy_array() for chunk, _ in batch]
        for array, (_, spec) in zip(arrays, batch, strict=True):
            # Zarr does not call `validate` inside shards, and other pipelines may call neither.
            check_supported(array.dtype, spec.shape)
        payloads = encode_chunks(arrays, self.params)
        return [
            spec.prototype.buffer.from_bytes(payload)
            for payload, (_, spec) in zip(payloads, batch, strict=True)
        ]


def _check_array(dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
    from tinc_codec.volume.chunk import check_supported

    # An empty array has no chunk to encode and may still grow.
    check_supported(dtype, tuple(max(1, size) for size in shape))


def _decode_present(batch: list[tuple[Buffer, ArraySpec]]) -> list[NDBuffer]:
    from tinc_codec.codec import decode_chunks

    arrays = decode_chunks([chunk.as_numpy_array().view(np.uint8) for chunk, _ in batch])
    return [_to_buffer(array, spec) for array, (_, spec) in zip(arrays, batch, strict=True)]


def _decode_selected(batch: list[tuple[Buffer, Any, ArraySpec]]) -> list[NDBuffer]:
    """Decode what is selected of chunks: those of which most is needed together, as a whole."""
    boxes: list[list[Box] | None] = [None] * len(batch)
    if config.resolve_device() == "cpu":
        boxes = [cover(selection, spec.shape) for _, selection, spec in batch]
    whole = [
        (chunk, spec) for (chunk, _, spec), found in zip(batch, boxes, strict=True) if found is None
    ]
    decoded = iter(_decode_present(whole) if whole else ())
    return [
        next(decoded)[selection] if found is None else _decode_boxes(chunk, selection, spec, found)
        for (chunk, selection, spec), found in zip(batch, boxes, strict=True)
    ]


def _decode_boxes(chunk: Buffer, selection: Any, spec: ArraySpec, boxes: list[Box]) -> NDBuffer:
    """Decode some boxes of a chunk and select from them."""
    from tinc_codec.codec import open_chunk
    from tinc_codec.model.region import render_region

    with config.cpu_slots() as threads:
        opened = open_chunk(chunk.as_numpy_array().view(np.uint8))
        _check_decoded(opened.info.shape, opened.info.dtype, spec)
        parts = [render_region(opened, box, threads) for box in boxes]
    origin = [min(box[axis].start for box in boxes) for axis in range(len(spec.shape))]
    if len(parts) == 1:
        (joined,) = parts
    else:
        # Memory between the boxes is never touched.
        ends = [max(box[axis].stop for box in boxes) for axis in range(len(spec.shape))]
        sizes = [end - start for start, end in zip(origin, ends, strict=True)]
        joined = np.empty(sizes, dtype=opened.info.dtype)
        for box, part in zip(boxes, parts, strict=True):
            joined[_shifted(box, origin)] = part
    return spec.prototype.nd_buffer.from_numpy_array(
        np.asarray(joined[_shifted(selection, origin)])
    )


def _shifted(selection: Sequence[Any], origin: Sequence[int]) -> tuple[Any, ...]:
    """Count a selection of slices, integers and integer arrays from another first voxel."""
    return tuple(
        slice(part.start - first, part.stop - first, part.step)
        if isinstance(part, slice)
        else part - first
        for part, first in zip(selection, origin, strict=True)
    )


def _to_buffer(array: np.ndarray[Any, Any], spec: ArraySpec) -> NDBuffer:
    _check_decoded(array.shape, array.dtype, spec)
    return spec.prototype.nd_buffer.from_numpy_array(array)


def _check_decoded(shape: tuple[int, ...], found: np.dtype[Any], spec: ArraySpec) -> None:
    dtype = spec.dtype.to_native_dtype()
    if shape != spec.shape or not np.can_cast(found, dtype, "equiv"):
        raise CorruptStreamError(
            f"decoded chunk has shape {shape} and dtype {found}, "
            f"but the array's chunks have {spec.shape} and {dtype}"
        )
