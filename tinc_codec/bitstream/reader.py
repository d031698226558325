"""Reading a stream that may end anywhere or lie about its lengths."""

from typing import Any

import numpy as np

from tinc_codec.bitstream.varint import MAX_VARINT_BYTES
from tinc_codec.errors import CorruptStreamError, TruncatedStreamError


def byte_view(buffer: Any) -> memoryview:
    """View any contiguous or strided buffer as a flat, read-only memoryview of bytes.

    Parameters
    ----------
    buffer : bytes-like or ndarray
        Copied only where it is not C-contiguous.

    Raises
    ------
    TypeError
        If it is not a buffer.
    """
    if isinstance(buffer, np.ndarray):
        return np.ascontiguousarray(buffer).reshape(-1).view(np.uint8).data.toreadonly()
    view = memoryview(buffer)
    if not view.c_contiguous:
        view = memoryview(view.tobytes())
    return view.cast("B").toreadonly()


class ByteReader:
    """A position in a buffer; each read checks that the bytes are there before touching them.

    Parameters
    ----------
    view : memoryview
        Flat, of bytes.
    """

    def __init__(self, view: memoryview) -> None:
        self.view = view
        self.position = 0

    @property
    def remaining(self) -> int:
        """Bytes from the position to the end."""
        return len(self.view) - self.position

    def read_bytes(self, n_bytes: int, field: str) -> memoryview:
        """Take the next `n_bytes` bytes without copying them.

        Raises
        ------
        TruncatedStreamError
            If fewer remain; `needed` says up to where the field reaches.
        """
        end = self.position + n_bytes
        if end > len(self.view):
            raise TruncatedStreamError(
                f"{field}: {n_bytes} bytes expected at offset {self.position}, "
                f"{self.remaining} found",
                needed=end,
            )
        start, self.position = self.position, end
        return self.view[start:end]

    def read_u8(self, field: str) -> int:
        """Take one byte as an integer."""
        return self.read_bytes(1, field)[0]

    def read_varint(self, field: str) -> int:
        """Take a varint of at most 9 bytes.

        Raises
        ------
        TruncatedStreamError
            If the buffer ends within it.
        CorruptStreamError
            If it is longer than 9 bytes, or than its value needs.

        References
        ----------
        `docs/format.md` §1
        """
        value = 0
        for index in range(MAX_VARINT_BYTES):
            byte = self.read_u8(field)
            value |= (byte & 0x7F) << 7 * index
            if byte < 0x80:
                if byte == 0 and index > 0:
                    raise CorruptStreamError(f"{field}: varint is longer than its value needs")
                return value
        raise CorruptStreamError(f"{field}: varint is longer than {MAX_VARINT_BYTES} bytes")
