"""The tree section: shape, scaling, tensors and coded symbols <-> bytes."""

import math
import struct
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from tinc_codec.bitstream.reader import ByteReader
from tinc_codec.bitstream.varint import varint_size
from tinc_codec.entropy.weights import SymbolModel, decode_symbols
from tinc_codec.errors import CorruptStreamError
from tinc_codec.model.octree_mlp import MAX_LAYERS, MAX_LEVELS, TreeShape, uniform_widths
from tinc_codec.model.tensor_code import read_tensor_code, write_tensor_code
from tinc_codec.quantise.scalar import dequantise, q_step

_F32 = struct.Struct("<f")
_SCALING = struct.Struct("<ff")
MAX_SCALING = 256
UNEQUAL = 0
"""Stands for a level's width where a width per node follows."""
TREE_TOLERANCE = 2.0**-14
"""Readers may differ by so much in t: `docs/format.md` §7.6."""


@dataclass(frozen=True)
class TreeSection:
    """A tree as integers.

    Attributes
    ----------
    shape : TreeShape
    offsets, gains : tuple of float
        Per volume, float32 values: the network's output f means offset + gain * f, in [0, 1].
    step_codes : tuple of int
        Per tensor, see `quantise.scalar.q_step`.
    models : tuple of SymbolModel
        Per tensor.
    coded : bytes
        See `entropy.weights.encode_symbols`.
    """

    shape: TreeShape
    offsets: tuple[float, ...]
    gains: tuple[float, ...]
    step_codes: tuple[int, ...]
    models: tuple[SymbolModel, ...]
    coded: bytes


def parameter_limit(voxels: int) -> int:
    """Largest number of parameters, over all volumes, for a chunk of so many valid voxels.

    References
    ----------
    `docs/format.md` §7
    """
    return voxels + 4096


def fixed_bytes(shape: TreeShape, volumes: int) -> int:
    """Bound the size of a section without its coded symbols, their magnitudes below 2^14."""
    widths = sum(1 if len(set(row)) == 1 else 1 + len(row) for row in shape.widths)
    tensors = len(shape.tensors) * (3 + varint_size((1 << 14) - 1))
    return 1 + shape.levels + _F32.size + widths + volumes * _SCALING.size + tensors


def write_tree(section: TreeSection) -> bytes:
    """Encode the section.

    References
    ----------
    `docs/format.md` §7
    """
    shape = section.shape
    out = bytearray([shape.levels, *shape.layers])
    out += _F32.pack(shape.w0)
    for row in shape.widths:
        out += bytes([row[0]]) if len(set(row)) == 1 else bytes([UNEQUAL, *row])
    for offset, gain in zip(section.offsets, section.gains, strict=True):
        out += _SCALING.pack(offset, gain)
    for code, model in zip(section.step_codes, section.models, strict=True):
        out += write_tensor_code(code, model)
    return bytes(out) + section.coded


def read_tree(body: bytes | memoryview, grid: tuple[int, int, int], volumes: int) -> TreeSection:
    """Decode and check the section; nothing that it declares is allocated unchecked.

    Parameters
    ----------
    body : bytes-like
    grid : tuple of int
        Valid voxels per axis (z, y, x).
    volumes : int

    Raises
    ------
    FormatError
        If the section is not one that an encoder could have written.
    """
    reader = ByteReader(memoryview(body))
    levels = reader.read_u8("levels")
    if not 1 <= levels <= MAX_LEVELS:
        raise CorruptStreamError(f"levels: {levels} not in 1 to {MAX_LEVELS}")
    layers = tuple(reader.read_u8("layers") for _ in range(levels))
    if not all(1 <= n <= MAX_LAYERS for n in layers):
        raise CorruptStreamError(f"layers: {layers} not in 1 to {MAX_LAYERS}")
    (w0,) = _F32.unpack(reader.read_bytes(_F32.size, "w0"))
    widths = []
    # A tree with widths of 1 has the node counts, and refuses too many levels.
    for equal in _uniform_rows(grid, levels):
        width = reader.read_u8("width")
        if width == UNEQUAL:
            widths.append(tuple(reader.read_bytes(len(equal), "widths")))
        else:
            widths.append((width,) * len(equal))
    shape = _shared(TreeShape(grid, layers, tuple(widths), w0))
    limit = parameter_limit(volumes * math.prod(grid))
    if shape.parameter_count * volumes > limit:
        raise CorruptStreamError(
            f"widths: {shape.parameter_count * volumes} parameters, at most {limit} are allowed"
        )
    scaling = np.frombuffer(
        reader.read_bytes(volumes * _SCALING.size, "offsets and gains"), dtype="<f4"
    )
    # Beyond it a network's output could overflow float32; no chunk in [0, 1] comes near.
    if not (np.abs(scaling) <= MAX_SCALING).all():
        raise CorruptStreamError(f"offsets and gains: not within +-{MAX_SCALING}")
    codes, models = [], []
    for _ in shape.tensors:
        code, model = read_tensor_code(reader)
        codes.append(code)
        models.append(model)
    coded = bytes(memoryview(body)[reader.position :])
    values = scaling.tolist()
    return TreeSection(
        shape, tuple(values[::2]), tuple(values[1::2]), tuple(codes), tuple(models), coded
    )


@lru_cache(maxsize=32)
def _shared(shape: TreeShape) -> TreeShape:
    """Return the first of equal shapes, with all that was derived from it: an array's are alike."""
    return shape


def _uniform_rows(grid: tuple[int, int, int], levels: int) -> tuple[tuple[int, ...], ...]:
    """Return a 1 per node and level.

    Raises
    ------
    CorruptStreamError
        If the grid has no room for so many levels.
    """
    try:
        return uniform_widths(grid, levels, (1,) * levels)
    except ValueError:
        raise CorruptStreamError(f"levels: {levels} are too many for a grid of {grid}") from None


def tree_parameters(section: TreeSection, volumes: int) -> np.ndarray:
    """Decode the symbols of a section and scale them by their steps.

    Returns
    -------
    ndarray of float32
        Shape (volume, parameter).

    Raises
    ------
    CorruptStreamError
        If the symbols cannot be decoded.
    """
    tensors = section.shape.tensors
    sizes = [volumes * (tensor.stop - tensor.start) for tensor in tensors]
    decoded = decode_symbols(section.coded, sizes, section.models)
    parameters = np.empty((volumes, section.shape.parameter_count), dtype=np.float32)
    for tensor, symbols, code in zip(tensors, decoded, section.step_codes, strict=True):
        values = dequantise(symbols, q_step(code))
        parameters[:, tensor.start : tensor.stop] = values.reshape(volumes, -1)
    return parameters
