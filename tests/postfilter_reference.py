"""A second reader of the post-filter section, written from docs/format.md §13, slow and plain.

The network is float64 and nothing of the package is used, so that both can be held against each
other. What the document says is rejected is a `ValueError`.
"""

import itertools
from dataclasses import dataclass

import numpy as np

from tests.features_reference import Reader
from tests.tree_reference import RangeDecoder, TensorCode, cumulative, step_of

REACH = 2
PAIRS = [
    (0, 0, 1), (0, 1, -1), (0, 1, 0), (0, 1, 1),
    (1, -1, -1), (1, -1, 0), (1, -1, 1), (1, 0, -1), (1, 0, 0), (1, 0, 1),
    (1, 1, -1), (1, 1, 0), (1, 1, 1),
    (2, 0, 0), (0, 2, 0), (0, 0, 2),
]  # fmt: skip
INPUTS = 19


@dataclass
class ReferenceFilter:
    """A parsed section; symbols and tensors in the order of the section."""

    widths: list[int]
    mean: float
    centre: float
    gain: float
    codes: list[TensorCode]
    symbols: list[list[int]]
    layers: list[tuple[np.ndarray, np.ndarray]]


def read(body: bytes) -> ReferenceFilter:
    """§13.1."""
    reader = Reader(body)
    count = reader.take(1)[0]
    if not 1 <= count <= 3:
        raise ValueError("hidden layers")
    widths = list(reader.take(count))
    if not all(1 <= width <= 64 for width in widths):
        raise ValueError("width")
    activity = int.from_bytes(reader.take(2), "little")
    centre, gain = reader.take(1)[0], reader.take(1)[0]
    if activity > 2047 or gain > 128:
        raise ValueError("activity or gain")
    shapes = [
        shape
        for n_in, n_out in itertools.pairwise([INPUTS, *widths, 1])
        for shape in ((n_out, n_in), (n_out, 1))
    ]
    codes = []
    for _ in shapes:
        step, scale, zero = reader.take(3)
        codes.append(TensorCode(step, zero >> 7, scale, zero & 127, reader.varint()))
        if codes[-1].magnitude > 32768:
            raise ValueError("magnitude")
    symbols = decode(reader.data, codes, [rows * columns for rows, columns in shapes])
    tensors = [
        np.array(row, dtype=np.float64).reshape(shape) * step_of(code.step_code)
        for row, shape, code in zip(symbols, shapes, codes, strict=True)
    ]
    layers = list(zip(tensors[0::2], tensors[1::2], strict=True))
    mean = float(np.float32(2.0 ** (4 - activity / 64)))
    return ReferenceFilter(widths, mean, centre / 255, 2.0 ** (gain / 16), codes, symbols, layers)


def decode(data: bytes, codes: list[TensorCode], counts: list[int]) -> list[list[int]]:
    """§8: the symbols of each tensor."""
    if data.endswith(b"\0"):
        raise ValueError("the code ends in a zero byte")
    if data and not any(code.magnitude for code in codes):
        raise ValueError("a code of nothing")
    coder = RangeDecoder(data)
    symbols = []
    for code, count in zip(codes, counts, strict=True):
        if code.magnitude == 0:
            symbols.append([0] * count)
            continue
        weights = cumulative(code)
        symbols.append([coder.symbol(weights) - code.magnitude for _ in range(count)])
    if coder.taken < len(coder.words) or coder.offset >= 2**33 - 1:
        raise ValueError("words are left")
    return symbols


def inputs_of(read: ReferenceFilter, volume: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """§13.2 and §13.3: inputs [input, voxel] and activities [voxel] of a volume [z, y, x]."""
    p = np.pad(np.clip(volume.astype(np.float64), 0, 1), REACH, mode="edge")
    own = p[tuple(slice(REACH, REACH + n) for n in volume.shape)]

    def moved(offset: tuple[int, ...]) -> np.ndarray:
        where = tuple(
            slice(REACH + d, REACH + d + n) for d, n in zip(offset, volume.shape, strict=True)
        )
        return p[where] - own

    after = np.array([moved(offset) for offset in PAIRS])
    before = np.array([moved(tuple(-d for d in offset)) for offset in PAIRS])
    activity = 3 / 32 * (np.abs(after) + np.abs(before)).sum(axis=0) + read.mean / 128
    inputs = [
        *((after + before) / activity),
        4 * activity / (activity + 0.3 * read.mean) - 2,
        4 * activity / (activity + 3 * read.mean) - 2,
        (own - read.centre) * read.gain,
    ]
    return np.array(inputs).reshape(INPUTS, -1), activity.reshape(-1)


def apply(read: ReferenceFilter, values: np.ndarray) -> np.ndarray:
    """§13.4: t filtered, float64 [volume, z, y, x], not clipped."""
    out = np.empty(values.shape)
    for target, volume in zip(out, values, strict=True):
        x, activity = inputs_of(read, volume)
        for weights, biases in read.layers[:-1]:
            x = np.maximum(weights @ x + biases, 0)
        weights, biases = read.layers[-1]
        f = (weights @ x + biases)[0]
        target[...] = np.clip(volume, 0, 1) + (activity * f).reshape(volume.shape)
    return out
