"""A chunk of an array of our codecs, decoded to the bytes that are served."""

from __future__ import annotations

import hashlib
import math
from typing import Any

import numcodecs
import numpy as np
import zarr
from zarr.abc.store import RangeByteRequest, SuffixByteRequest
from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import sync
from zarr.storage import StorePath

from tinc_codec import config
from tinc_codec.bitstream.header import read_header_only
from tinc_codec.codec import decode_chunk
from tinc_codec.errors import CorruptStreamError, LimitError, UnsupportedDataError
from tinc_codec.inspection.layout import ArrayLayout, array_layout
from tinc_codec.serve.cache import Body
from tinc_codec.serve.catalogue import Catalogue, Node
from tinc_codec.serve.metadata import Compressor, compressor_config

__all__ = ["ChunkReader"]


class ChunkReader:
    """Reads and decodes the chunks of one array; its methods block.

    A stream of TINC is fetched alone, from within its shard too. What else zarr can read with our
    codecs (levels, filters before TINC) is read through zarr.

    Parameters
    ----------
    catalogue : Catalogue
    node : Node
        Of an array that is decoded.
    compressor : str
        Applied to what was decoded.

    Raises
    ------
    LimitError
        If a chunk is larger than `tinc_codec.config.get().max_decoded_bytes`.
    Exception
        Whatever zarr raises for an array that it cannot open.
    """

    def __init__(self, catalogue: Catalogue, node: Node, compressor: Compressor) -> None:
        # Of the document that the node was made of: the store may hold another by now.
        self._array = zarr.Array.from_dict(
            StorePath(catalogue.store, catalogue.key(node.path)), dict(node.document)
        )
        self.shape = self._array.shape
        self.chunk_shape = self._array.chunks
        self.dtype = np.dtype(self._array.dtype).newbyteorder("<")
        settings = compressor_config(compressor)
        self._compressor = None if settings is None else numcodecs.get_codec(settings)
        self._suffix = "" if settings is None else f"-{compressor}"
        self._layout = _stream_layout(self._array)
        limit, size_bytes = config.get().max_decoded_bytes, self._chunk_bytes
        if size_bytes > limit:
            raise LimitError(f"chunks of {size_bytes} bytes exceed max_decoded_bytes={limit}")

    @property
    def has_streams(self) -> bool:
        """Whether chunks are streams of their own, which `stored` can fetch."""
        return self._layout is not None

    @property
    def size_bytes(self) -> int | None:
        """Size of every chunk as it is served; None if only its decoding shows."""
        return self._chunk_bytes if self._compressor is None else None

    @property
    def _chunk_bytes(self) -> int:
        return math.prod(self.chunk_shape) * self.dtype.itemsize

    def stored(self, position: tuple[int, ...]) -> bytes | None:
        """Fetch the stream of a chunk; None if it is missing."""
        layout = self._layout
        assert layout is not None
        if layout.index is None:
            return self._fetch(position, None)
        grid = layout.index.grid_shape
        shard = tuple(p // n for p, n in zip(position, grid, strict=True))
        n_bytes = layout.index.size_bytes
        part = RangeByteRequest(0, n_bytes) if layout.index.at_start else SuffixByteRequest(n_bytes)
        index = self._fetch(shard, part)
        if index is None:
            return None
        local = tuple(p % n for p, n in zip(position, grid, strict=True))
        for found, offset, length in layout.index.read(index):
            if found == local:
                return self._fetch(shard, RangeByteRequest(offset, offset + length))
        return None

    def _fetch(self, position: tuple[int, ...], part: Any) -> bytes | None:
        array = self._array
        key = array.store_path / array.metadata.encode_chunk_key(position)
        found = sync(key.get(default_buffer_prototype(), part))
        return None if found is None else found.to_bytes()

    def tag(self, stream: bytes) -> str:
        """Return the ETag of what a stream decodes to, without decoding it."""
        return _tag(stream, self._suffix)

    def decode(self, stream: bytes) -> Body:
        """Decode a stream.

        Raises
        ------
        FormatError
            If it is damaged, or no chunk of this array; before anything of its size is allocated.
        """
        info = read_header_only(stream).info
        if info.shape != self.chunk_shape or not np.can_cast(info.dtype, self.dtype, "equiv"):
            raise CorruptStreamError(
                f"the stream has shape {info.shape} and dtype {info.dtype}, "
                f"but the array's chunks have {self.chunk_shape} and {self.dtype}"
            )
        return Body(self._served(decode_chunk(stream)), self.tag(stream))

    def read(self, position: tuple[int, ...]) -> Body | None:
        """Read a chunk through zarr; None if it holds nothing but the fill value."""
        starts = [p * n for p, n in zip(position, self.chunk_shape, strict=True)]
        region = tuple(
            slice(start, min(start + n, end))
            for start, n, end in zip(starts, self.chunk_shape, self.shape, strict=True)
        )
        fill_value = self._array.fill_value
        chunk = np.full(self.chunk_shape, 0 if fill_value is None else fill_value, dtype=self.dtype)
        part = np.asarray(self._array[region])
        valid = tuple(slice(0, n) for n in part.shape)
        if fill_value is not None and np.array_equal(
            part, chunk[valid], equal_nan=self.dtype.kind == "f"
        ):
            return None
        chunk[valid] = part
        data = self._served(chunk)
        return Body(data, _tag(data, self._suffix))

    def _served(self, chunk: np.ndarray[Any, Any]) -> bytes | memoryview:
        plain = np.ascontiguousarray(chunk, dtype=self.dtype)
        if self._compressor is not None:
            return bytes(self._compressor.encode(plain))
        return memoryview(plain.reshape(-1).view(np.uint8).data)


def _stream_layout(array: zarr.Array) -> ArrayLayout | None:
    """Return where the streams are; None if zarr has to read them."""
    try:
        layout = array_layout(array)
    except UnsupportedDataError:
        return None
    # A checksum behind each stream is for zarr to check.
    return layout if layout.trailing_bytes == 0 else None


def _tag(data: bytes | memoryview, suffix: str) -> str:
    return f'"{hashlib.blake2b(data, digest_size=16).hexdigest()}{suffix}"'
