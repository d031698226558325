"""`TINCCodec`: the array-to-bytes codec of the Zarr v3 format, found by its name "tinc".

Zarr builds it from the named configuration that a `TINC` object also is; nobody has to import
it. It needs zarr 3.1 or later and is loaded by zarr's entry point only.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from zarr.abc.codec import ArrayBytesCodec

from tinc_codec.errors import ConfigError, CorruptStreamError
from tinc_codec.params import EncodingParams

if TYPE_CHECKING:
    from zarr.core.array_spec import ArraySpec
    from zarr.core.buffer import Buffer, NDBuffer

_NAME = "tinc"


@dataclass(frozen=True)
class TINCCodec(ArrayBytesCodec):
    """Zarr v3 shell around `codec.encode_chunks` and `codec.decode_chunks`.

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


def _to_buffer(array: np.ndarray[Any, Any], spec: ArraySpec) -> NDBuffer:
    dtype = spec.dtype.to_native_dtype()
    if array.shape != spec.shape or not np.can_cast(array.dtype, dtype, "equiv"):
        raise CorruptStreamError(
            f"decoded chunk has shape {array.shape} and dtype {array.dtype}, "
            f"but the array's chunks have {spec.shape} and {dtype}"
        )
    return spec.prototype.nd_buffer.from_numpy_array(array)
