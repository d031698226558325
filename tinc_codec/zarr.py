"""`TINCCodec`: the array-to-bytes codec of the Zarr v3 format, found by its name "tinc".

Zarr builds it from the named configuration that a `TINC` object also is; nobody has to import
it. It needs zarr 3.1 or later and is loaded by zarr's entry point only.
"""

from __future__ import annotations

import asyncio
import importlib
import warnings
from collections.abc import Coroutine, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import zarr
from zarr.abc.codec import (
    ArrayBytesCodec,
    ArrayBytesCodecPartialDecodeMixin,
    ArrayBytesCodecPartialEncodeMixin,
)
from zarr.core.buffer import gpu

from tinc_codec import config
from tinc_codec.batching import joined
from tinc_codec.errors import ConfigError, PartialWriteWarning
from tinc_codec.merge import Write, check_stored, is_whole, merge, rewrite_all
from tinc_codec.params import EncodingParams
from tinc_codec.volume.selection import Box, cover

if TYPE_CHECKING:
    from zarr.abc.store import ByteGetter, ByteSetter
    from zarr.core.array_spec import ArraySpec
    from zarr.core.buffer import Buffer, NDBuffer

_NAME = "tinc"


@dataclass(frozen=True)
class TINCCodec(
    ArrayBytesCodec, ArrayBytesCodecPartialDecodeMixin, ArrayBytesCodecPartialEncodeMixin
):
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
        """Encode all chunks of one call as one batch; None stays None.

        Zarr's way to write where other codecs stand beside this one. Whether a chunk is new or a
        part of it was overwritten is not known here.
        """
        batch = list(chunks_and_specs)
        arrays = [None if chunk is None else chunk.as_numpy_array() for chunk, _ in batch]
        payloads = await self._encode_arrays(arrays, [spec for _, spec in batch])
        return [
            None if payload is None else spec.prototype.buffer.from_bytes(payload)
            for payload, (_, spec) in zip(payloads, batch, strict=True)
        ]

    async def encode_partial(
        self, batch_info: Iterable[tuple[ByteSetter, NDBuffer, Any, ArraySpec]]
    ) -> None:
        """Write chunks or parts of them; zarr's way to write, whole or not.

        Nothing is stored before all chunks of the call are encoded.

        Parameters
        ----------
        batch_info : iterable of (byte setter, values, selection, chunk spec)

        Warns
        -----
        PartialWriteWarning
            Where a part of a chunk with lossy data is overwritten.

        Raises
        ------
        TargetError
            If a promise cannot be kept.
        """
        batch = list(batch_info)
        found = await _at_most_at_once(
            _none() if is_whole(selection, spec.shape) else setter.get(prototype=spec.prototype)
            for setter, _, selection, spec in batch
        )
        writes = await asyncio.to_thread(self._merge_all, batch, found)
        arrays = [None if write.old is not None else write.array for write in writes]
        payloads = await self._encode_arrays(arrays, [spec for *_, spec in batch])
        rewrites = [write for write in writes if write.old is not None]
        rewritten = iter(
            await asyncio.to_thread(rewrite_all, rewrites, self.params) if rewrites else ()
        )
        final = [
            payload if write.old is None else next(rewritten)
            for payload, write in zip(payloads, writes, strict=True)
        ]
        await _at_most_at_once(
            setter.delete()
            if payload is None
            else setter.set(spec.prototype.buffer.from_bytes(payload))
            for (setter, _, _, spec), payload in zip(batch, final, strict=True)
        )

    async def decode(
        self, chunks_and_specs: Iterable[tuple[Buffer | None, ArraySpec]]
    ) -> list[NDBuffer | None]:
        """Decode all chunks of one call as one batch; None, a missing chunk, stays None."""
        batch = list(chunks_and_specs)
        present = [(chunk, spec) for chunk, spec in batch if chunk is not None]
        decoded = iter(await _in_thread("decode", _decode_present, present))
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
        fetched = await _at_most_at_once(
            getter.get(prototype=spec.prototype) for getter, _, spec in batch
        )
        present = [
            (chunk, selection, spec)
            for chunk, (_, selection, spec) in zip(fetched, batch, strict=True)
            if chunk is not None
        ]
        decoded = iter(await _in_thread("decode selected", _decode_selected, present))
        return [None if chunk is None else next(decoded) for chunk in fetched]

    async def _decode_partial_single(
        self, byte_getter: ByteGetter, selection: Any, chunk_spec: ArraySpec
    ) -> NDBuffer | None:
        (decoded,) = await self.decode_partial([(byte_getter, selection, chunk_spec)])
        return decoded

    async def _encode_partial_single(
        self, byte_setter: ByteSetter, chunk_array: NDBuffer, selection: Any, chunk_spec: ArraySpec
    ) -> None:
        await self.encode_partial([(byte_setter, chunk_array, selection, chunk_spec)])

    async def _encode_single(self, chunk_data: NDBuffer, chunk_spec: ArraySpec) -> Buffer | None:
        (encoded,) = await self.encode([(chunk_data, chunk_spec)])
        return encoded

    async def _decode_single(self, chunk_data: Buffer, chunk_spec: ArraySpec) -> NDBuffer:
        (decoded,) = await self.decode([(chunk_data, chunk_spec)])
        assert decoded is not None
        return decoded

    async def _encode_arrays(
        self, arrays: Sequence[np.ndarray[Any, Any] | None], specs: Sequence[ArraySpec]
    ) -> list[bytes | None]:
        """Encode arrays as one batch; None stays None."""
        present = []
        for array, spec in zip(arrays, specs, strict=True):
            if array is not None:
                # Zarr does not call `validate` inside shards; other pipelines may call neither.
                _check_array(array.dtype, spec.shape)
                present.append(array)
        kind = ("encode", self.params) if self.params.model == "tree" else None
        encoded = iter(await _in_thread(kind, self._encode_present, present))
        return [None if array is None else next(encoded) for array in arrays]

    def _encode_present(self, arrays: list[np.ndarray[Any, Any]]) -> list[bytes]:
        from tinc_codec.codec import encode_chunks

        return encode_chunks(arrays, self.params)

    def _merge_all(
        self,
        batch: list[tuple[ByteSetter, NDBuffer, Any, ArraySpec]],
        found: list[Buffer | None],
    ) -> list[Write]:
        """Put new values into what is stored; say so, before anything is encoded."""
        writes = [
            merge(values.as_numpy_array(), selection, spec, old)
            for (_, values, selection, spec), old in zip(batch, found, strict=True)
        ]
        if any(write.loses for write in writes):
            warnings.warn(self._partial_write_message(), PartialWriteWarning, stacklevel=2)
        return writes

    def _partial_write_message(self) -> str:
        settings = ", ".join(f"{k}={v!r}" for k, v in self.params.to_config().items())
        if self.params.max_error is None:
            cost = "the rest of the chunk loses quality once more"
        else:
            cost = "the rest of the chunk stays within max_error, but takes more bytes"
        return (
            f"a part of a chunk with lossy data is overwritten, the chunk is encoded again with "
            f"TINC({settings}): {cost}. Write whole chunks, or refuse such writes with "
            "warnings.simplefilter('error', tinc_codec.PartialWriteWarning)"
        )


async def _none() -> None:
    return None


async def _at_most_at_once(calls: Iterable[Coroutine[Any, Any, Any]]) -> list[Any]:
    """Run calls to a store, as many at once as zarr is configured to."""
    gate = asyncio.Semaphore(zarr.config.get("async.concurrency"))

    async def run(call: Coroutine[Any, Any, Any]) -> Any:
        async with gate:
            return await call

    return await asyncio.gather(*map(run, calls))


async def _in_thread(kind: Any, work: Any, items: list[Any]) -> list[Any]:
    """Work on a batch in a thread, on a GPU together with the batches of a kind that wait.

    On the CPU each batch has a thread of its own: they share the CPUs.
    """
    if not items:
        return []
    if kind is None or config.resolve_device() == "cpu":
        return await asyncio.to_thread(work, items)
    return await joined(kind, work, items)


def _check_array(dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
    from tinc_codec.volume.chunk import check_supported

    # An empty array has no chunk to encode and may still grow.
    check_supported(dtype, tuple(max(1, size) for size in shape))


def _decode_present(batch: list[tuple[Buffer, ArraySpec]]) -> list[NDBuffer]:
    from tinc_codec import codec

    streams = [chunk.as_numpy_array().view(np.uint8) for chunk, _ in batch]
    if config.resolve_device() != "cpu" and all(_takes_tensors(spec) for _, spec in batch):
        decoded = codec.decode_chunks_on_device(streams)
    else:
        decoded = codec.decode_chunks(streams)
    return [_to_buffer(one, spec) for one, (_, spec) in zip(decoded, batch, strict=True)]


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
        check_stored(opened.info.shape, opened.info.dtype, spec)
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


def _takes_tensors(spec: ArraySpec) -> bool:
    """Tell whether a decoded chunk should stay on the device."""
    nd_buffer = spec.prototype.nd_buffer
    return hasattr(nd_buffer, "from_tensor") or issubclass(nd_buffer, gpu.NDBuffer)


def _to_buffer(decoded: Any, spec: ArraySpec) -> NDBuffer:
    """Hand a decoded chunk, an array or a tensor on a device, to zarr."""
    nd_buffer: Any = spec.prototype.nd_buffer
    if isinstance(decoded, np.ndarray):
        check_stored(decoded.shape, decoded.dtype, spec)
        return nd_buffer.from_numpy_array(decoded)
    found = np.dtype(str(decoded.dtype).removeprefix("torch."))
    check_stored(tuple(decoded.shape), found, spec)
    if hasattr(nd_buffer, "from_tensor"):
        return nd_buffer.from_tensor(decoded)
    cupy: Any = importlib.import_module("cupy")
    return nd_buffer.from_ndarray_like(cupy.from_dlpack(decoded))
