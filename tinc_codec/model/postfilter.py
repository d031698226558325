"""The post-filter section: a small network that every voxel's neighbourhood goes through.

Like the neural-network post-filters of video coding it is trained on the chunk that it mends and
travels with it. It sees differences to neighbours, divided by how large they are around the voxel,
and answers with a correction in the same unit.

References
----------
`docs/format.md` §13; content-adaptive post-filters: ITU-T H.274, neural-network post-filter
characteristics.
"""

import itertools
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from tinc_codec.bitstream.reader import ByteReader
from tinc_codec.entropy.weights import (
    SymbolModel,
    decode_symbols,
    encode_symbols,
)
from tinc_codec.errors import CorruptStreamError
from tinc_codec.model.features import MAX_STEP_CODE, feature_step
from tinc_codec.model.tensor_code import read_tensor_code, write_tensor_code
from tinc_codec.quantise.scalar import dequantise, q_step

REACH = 2
"""A voxel's neighbourhood: so far along each axis."""
OFFSETS = np.array(
    [
        *(d for d in itertools.product((-1, 0, 1), repeat=3) if d > (0, 0, 0)),
        *((REACH, 0, 0), (0, REACH, 0), (0, 0, REACH)),
    ],
    dtype=np.int64,
)
"""One of each pair of opposite neighbours, (z, y, x)."""
N_INPUTS = len(OFFSETS) + 3
MAX_LAYERS, MAX_WIDTH = 3, 64
MAX_GAIN_CODE = 128
_GAIN_STEPS = 16
_CENTRE_UNIT = 1.0 / 255

Tensor = tuple[int, int, int, int]


@dataclass(frozen=True)
class Conditioning:
    """How values become the network's inputs.

    Attributes
    ----------
    activity_code : int
        0 to 2047: `feature_step` of it is the mean activity of the chunk.
    centre_code : int
        0 to 255: values have code / 255 subtracted,
    gain_code : int
        0 to 128: and are multiplied by 2^(code / 16).
    """

    activity_code: int
    centre_code: int
    gain_code: int

    @property
    def constants(self) -> np.ndarray:
        """Mean activity, centre and gain, float32."""
        gain = 2.0 ** (self.gain_code / _GAIN_STEPS)
        return np.array(
            [feature_step(self.activity_code), self.centre_code * _CENTRE_UNIT, gain], np.float32
        )


@lru_cache(maxsize=64)
def layer_table(widths: tuple[int, ...]) -> np.ndarray:
    """Place the tensors of a network with some hidden layers in a vector of parameters.

    Returns
    -------
    ndarray of int64
        Shape (layer, 4): where its weights [out, in] begin, where its biases do, out, in.
    """
    rows, position = [], 0
    for n_in, n_out in itertools.pairwise((N_INPUTS, *widths, 1)):
        rows.append((position, position + n_out * n_in, n_out, n_in))
        position += n_out * (n_in + 1)
    table = np.array(rows, dtype=np.int64)
    table.flags.writeable = False
    return table


def parameter_count(widths: tuple[int, ...]) -> int:
    """Count the parameters of a network with some hidden layers."""
    _, bias, n_out, _ = layer_table(widths)[-1].tolist()
    return int(bias + n_out)


def tensors_of(widths: tuple[int, ...]) -> list[slice]:
    """List the tensors that have a step of their own: each layer's weights, each layer's biases."""
    return [
        part
        for weight, bias, n_out, _ in layer_table(widths).tolist()
        for part in (slice(weight, bias), slice(bias, bias + n_out))
    ]


@dataclass(frozen=True, eq=False)
class PostFilter:
    """A post-filter ready to be applied.

    Attributes
    ----------
    widths : tuple of int
        Of the hidden layers.
    conditioning : Conditioning
    parameters : ndarray of float32
        1-D, as `layer_table` places them.
    """

    widths: tuple[int, ...]
    conditioning: Conditioning
    parameters: np.ndarray


@dataclass(frozen=True)
class CodedTensor:
    """A tensor of the network as integers.

    Attributes
    ----------
    step_code : int
        See `quantise.scalar.q_step`.
    model : SymbolModel
    symbols : ndarray of int32
    """

    step_code: int
    model: SymbolModel
    symbols: np.ndarray


def fixed_bytes(widths: tuple[int, ...]) -> int:
    """Bound the size of a section without its coded symbols, their magnitudes below 2^14."""
    return 1 + len(widths) + 4 + 5 * len(tensors_of(widths))


def write_postfilter(
    widths: tuple[int, ...], conditioning: Conditioning, tensors: list[CodedTensor]
) -> bytes:
    """Encode the section; one tensor per slice of `tensors_of`.

    References
    ----------
    `docs/format.md` §13
    """
    out = bytearray([len(widths), *widths])
    out += conditioning.activity_code.to_bytes(2, "little")
    out += bytes([conditioning.centre_code, conditioning.gain_code])
    for tensor in tensors:
        out += write_tensor_code(tensor.step_code, tensor.model)
    coded = encode_symbols([t.symbols for t in tensors], [t.model for t in tensors])
    return bytes(out) + coded


def read_postfilter(body: bytes | memoryview) -> PostFilter:
    """Decode and check the section.

    Raises
    ------
    FormatError
        If the section is not one that an encoder could have written.
    """
    reader = ByteReader(memoryview(body))
    layers = reader.read_u8("post-filter: layers")
    if not 1 <= layers <= MAX_LAYERS:
        raise CorruptStreamError(f"post-filter: {layers} hidden layers, not 1 to {MAX_LAYERS}")
    widths = tuple(reader.read_bytes(layers, "post-filter: widths"))
    if not all(1 <= width <= MAX_WIDTH for width in widths):
        raise CorruptStreamError(f"post-filter: widths {widths} not in 1 to {MAX_WIDTH}")
    activity = int.from_bytes(reader.read_bytes(2, "post-filter: activity"), "little")
    centre = reader.read_u8("post-filter: centre")
    gain = reader.read_u8("post-filter: gain")
    if activity > MAX_STEP_CODE or gain > MAX_GAIN_CODE:
        raise CorruptStreamError(f"post-filter: activity {activity} or gain {gain} out of range")
    parts = tensors_of(widths)
    codes, models = [], []
    for _ in parts:
        code, model = read_tensor_code(reader, "post-filter: ")
        codes.append(code)
        models.append(model)
    coded = bytes(memoryview(body)[reader.position :])
    sizes = [part.stop - part.start for part in parts]
    parameters = np.empty(parameter_count(widths), dtype=np.float32)
    for part, symbols, code in zip(parts, decode_symbols(coded, sizes, models), codes, strict=True):
        parameters[part] = dequantise(symbols, q_step(code))
    return PostFilter(widths, Conditioning(activity, centre, gain), parameters)
