"""Signs and remainders <-> plain bits, in C order within a band.

References
----------
`docs/format.md` §10.7, §10.8
"""

import numpy as np

from tinc_codec.entropy.buckets import (
    BUCKET_BASE,
    BUCKET_BITS,
    REPRESENTED_BUCKET,
    bucket_of,
    nonzero_places,
)
from tinc_codec.entropy.pyramid import Shape
from tinc_codec.errors import CorruptStreamError
from tinc_codec.kernels import kernel

_MOST_BITS = 22
"""Of one symbol: its sign and what tells it from others of its bucket."""
_SLACK = 4
"""Bytes that may be read beyond the last one."""


class BitWriter:
    """Signs and remainders, appended band after band."""

    def __init__(self) -> None:
        self._bytes = np.zeros(1 << 10, dtype=np.uint8)
        self._position = 0

    def append(self, volume: np.ndarray, begin: Shape, shape: Shape) -> None:
        """Append those of a band's symbols that are not 0.

        Parameters
        ----------
        volume : ndarray of int32
            Shape (z, y, x), in C order.
        begin, shape : tuple of int
            Where the band lies in it.
        """
        needed = _count_bits(volume, begin, shape, self._position) // 8 + 1
        if needed > len(self._bytes):
            grown = np.zeros(2 * needed, dtype=np.uint8)
            grown[: len(self._bytes)] = self._bytes
            self._bytes = grown
        self._position = _pack(volume, begin, shape, self._bytes, self._position)

    def tobytes(self) -> bytes:
        """Return the bits, the last byte filled up with zeros."""
        return self._bytes[: (self._position + 7) // 8].tobytes()


class BitReader:
    """What `BitWriter` wrote, taken band after band.

    Parameters
    ----------
    plain : bytes-like
    """

    def __init__(self, plain: bytes | memoryview) -> None:
        self._n_bytes = len(plain)
        self._bytes = np.zeros(self._n_bytes + _SLACK, dtype=np.uint8)
        self._bytes[: self._n_bytes] = np.frombuffer(plain, dtype=np.uint8)
        self._position = 0

    def take(
        self, magnitudes: np.ndarray, margin: int, volume: np.ndarray, begin: Shape, shape: Shape
    ) -> None:
        """Write a band's symbols.

        Parameters
        ----------
        magnitudes : ndarray of uint16
            Shape (z, y, x), in C order: what stands for the band's magnitudes.
        margin : int
            By so much it is larger than the band on every side.
        volume, begin, shape
            Where they go, as in `BitWriter.append`; it is 0 so far.

        Once the bits have run out, nothing more is taken, and `finish` says so.
        """
        if self._position >= 0:
            self._position = _unpack(
                magnitudes, margin, self._bytes, self._position, 8 * self._n_bytes, volume, begin,
                shape,
            )  # fmt: skip

    def finish(self, *, is_whole: bool) -> None:
        """Check that the bits sufficed and, where all bands were taken, that nothing is left.

        Raises
        ------
        CorruptStreamError
        """
        used = (self._position + 7) // 8
        rest = self._position % 8
        has_rest = used != self._n_bytes or (rest and self._bytes[used - 1] >> rest)
        if self._position < 0 or (is_whole and has_rest):
            raise CorruptStreamError(
                f"features: {self._n_bytes} bytes of signs and remainders do not fit the magnitudes"
            )


@kernel
def _count_bits(volume, begin, shape, position):  # type: ignore[no-untyped-def]
    """Return a position beyond what `_pack` can reach."""
    count = 0
    for z in range(begin[0], begin[0] + shape[0]):
        for y in range(begin[1], begin[1] + shape[1]):
            row = volume[z, y, begin[2] : begin[2] + shape[2]]
            for x in range(shape[2]):
                count += row[x] != 0
    return position + _MOST_BITS * count


@kernel
def _pack(volume, begin, shape, out, position):  # type: ignore[no-untyped-def]
    """Write sign and remainder of every symbol that is not 0, lowest bit first."""
    places = np.empty(shape[2] + 1, np.int64)
    for z in range(begin[0], begin[0] + shape[0]):
        for y in range(begin[1], begin[1] + shape[1]):
            row = volume[z, y, begin[2] : begin[2] + shape[2]]
            for i in range(nonzero_places(row, places)):
                value = np.int64(row[places[i]])
                magnitude = abs(value)
                bits = np.int64(value < 0)
                width = 1
                if magnitude >= 8:
                    bucket = bucket_of(magnitude)
                    bits |= (magnitude - BUCKET_BASE[bucket]) << 1
                    width += BUCKET_BITS[bucket]
                for k in range(width):
                    out[position >> 3] |= ((bits >> k) & 1) << (position & 7)
                    position += 1
    return position


@kernel
def _unpack(  # type: ignore[no-untyped-def]
    magnitudes, margin, plain, position, available, volume, begin, shape
):
    """Read what `_pack` wrote; the position after it, -1 once the bits have run out."""
    places = np.empty(shape[2] + 1, np.int64)
    for z in range(shape[0]):
        for y in range(shape[1]):
            row = magnitudes[z + margin, y + margin, margin : margin + shape[2]]
            out = volume[begin[0] + z, begin[1] + y, begin[2] : begin[2] + shape[2]]
            for i in range(nonzero_places(row, places)):
                x = np.uint64(places[i])
                represented = row[x]
                at = np.uint64(position >> 3)
                word = np.int64(plain[at]) >> (position & 7)
                if represented < 8:
                    width = 1
                    magnitude = np.int64(represented)
                else:
                    bucket = REPRESENTED_BUCKET[represented]
                    width = 1 + BUCKET_BITS[bucket]
                    for k in range(1, 4):
                        word |= np.int64(plain[at + np.uint64(k)]) << (8 * k - (position & 7))
                    magnitude = BUCKET_BASE[bucket] + ((word & ((1 << width) - 1)) >> 1)
                position += width
                if position > available:
                    return -1
                sign = word & 1
                out[x] = (magnitude ^ -sign) + sign
    return position
