"""Quantised weights <-> bits: one static model per tensor, constriction's code.

The model's tables are computed with IEEE additions, multiplications, divisions and square roots
only, so that every machine derives the same ones.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import constriction
import numpy as np

from tinc_codec.entropy.range_symbols import (
    OFFSET,
    decode_run,
    has_words_left,
    new_state,
    start_decoding,
)
from tinc_codec.errors import CorruptStreamError

MAX_MAGNITUDE = 1 << 15
SCALE_STEPS = 8
SCALE_BIAS = 8 * SCALE_STEPS
_OCTAVE = [1.0, 1.0905077326652577, 1.189207115002721, 1.2968395546510096, 1.4142135623730951,
           1.5422108254079407, 1.681792830507429, 1.8340080864093424]  # fmt: skip
GEOMETRIC, GAUSSIAN = 0, 1
ZERO_STEPS = 128
_PRECISION = 24
_LARGEST_REST = 2**33 - 2
"""Of the offset, after the last symbol: what constriction takes for an end."""
_KEPT = 1 << 12
"""Tables for smaller magnitudes are kept: a search asks for the same few again and again."""


@dataclass(frozen=True)
class SymbolModel:
    """A static distribution of a tensor's symbols, as it stands in the stream.

    Attributes
    ----------
    family : int
        `GEOMETRIC` (two-sided) or `GAUSSIAN` (discretised).
    scale : int
        0 to 255; the mean magnitude (geometric) or the standard deviation (Gaussian) is
        2^(scale / 8 - 8).
    zero : int
        0: the probability of 0 is the family's; 1 to 127: it is zero / 128.
    magnitude : int
        Largest symbol, 0 to `MAX_MAGNITUDE`; smallest is its negative.

    References
    ----------
    `docs/format.md` §8
    """

    family: int
    scale: int
    zero: int
    magnitude: int


def _weights_to(family: int, scale: int, count: int) -> np.ndarray:
    size = math.ldexp(_OCTAVE[scale % SCALE_STEPS], (scale - SCALE_BIAS) // SCALE_STEPS)
    k = np.arange(count, dtype=np.float64)
    if family == GEOMETRIC:
        theta = (math.sqrt(1.0 + size * size) - 1.0) / size
        half = np.cumprod(np.where(k == 0, 1.0, theta))
    else:
        # exp(-k^2 / (2 size^2)) as a product of odd powers of q, itself by repeated squaring.
        q = 1.0 / (1.0 + 1.0 / (2.0 * size * size) / 4096.0)
        for _ in range(12):
            q *= q
        odd_powers = q * np.cumprod(np.where(k[1:] == 1, 1.0, q * q))
        half = np.cumprod(np.concatenate([[1.0], odd_powers]))
    # Constriction leaves every symbol a probability; keep its sums away from denormal numbers.
    half = np.maximum(half, 1e-30)
    half.flags.writeable = False
    return half


_kept_weights_to = lru_cache(maxsize=256)(_weights_to)


def _half_table(family: int, scale: int, magnitude: int) -> np.ndarray:
    """Give the family's weights of the magnitudes 0 to `magnitude`, of which 0 has 1."""
    if magnitude >= _KEPT:
        return _weights_to(family, scale, magnitude + 1)
    # A shorter table is the beginning of a longer one.
    return _kept_weights_to(family, scale, 1 << magnitude.bit_length())[: magnitude + 1]


def probabilities(model: SymbolModel) -> np.ndarray:
    """Tabulate a model: float64 [2 * magnitude + 1], for symbols -magnitude to magnitude.

    References
    ----------
    `docs/format.md` §8
    """
    half = _half_table(model.family, model.scale, model.magnitude)
    table = np.concatenate([half[:0:-1], half])
    if model.zero and model.magnitude:
        others = 2.0 * math.fsum(half[1:].tolist())
        table *= (1.0 - model.zero / ZERO_STEPS) / others
        table[model.magnitude] = model.zero / ZERO_STEPS
    return table


def code_length(model: SymbolModel, counts: np.ndarray) -> float:
    """Estimate the bits of symbols whose magnitudes 0, 1, ... occur so often."""
    half = _half_table(model.family, model.scale, model.magnitude)
    # The coder's integer weights, of which every symbol has one at least.
    free = float((1 << _PRECISION) - (2 * model.magnitude + 1))
    others = 2.0 * float(half[1:].sum())
    if model.zero:
        weights = half * (free * (1.0 - model.zero / ZERO_STEPS) / others) + 1.0
        weights[0] = free * model.zero / ZERO_STEPS + 1.0
    else:
        weights = half * (free / (1.0 + others)) + 1.0
    return float(counts @ (_PRECISION - np.log2(weights)))


def choose_model(symbols: np.ndarray) -> tuple[SymbolModel, float]:
    """Find the model with the shortest code for a tensor.

    Parameters
    ----------
    symbols : ndarray of int
        1-D, within +-`MAX_MAGNITUDE`.

    Returns
    -------
    SymbolModel
    float
        Length of the code in bits.
    """
    magnitudes = np.abs(symbols)
    largest = int(magnitudes.max(initial=0))
    if largest == 0:
        return SymbolModel(GEOMETRIC, 0, 0, 0), 0.0
    counts = np.bincount(magnitudes, minlength=largest + 1).astype(np.float64)
    size = {
        GEOMETRIC: float(magnitudes.mean()),
        GAUSSIAN: math.sqrt(float((symbols.astype(np.float64) ** 2).mean())),
    }
    share = counts[0] / counts.sum()
    nonzero = 1.0 - share
    zero = min(ZERO_STEPS - 1, max(1, round(share * ZERO_STEPS)))
    best: tuple[SymbolModel, float] | None = None
    for family, value in size.items():
        # With zeros apart, the rest alone decides the scale.
        for z, target in ((0, value), (zero, value / (nonzero if family == GEOMETRIC else
                                                      math.sqrt(nonzero)))):  # fmt: skip
            centre = round(SCALE_STEPS * math.log2(target)) + SCALE_BIAS
            for scale in range(max(0, centre - 2), min(255, centre + 2) + 1):
                model = SymbolModel(family, scale, z, largest)
                bits = code_length(model, counts)
                if best is None or bits < best[1]:
                    best = model, bits
    assert best is not None
    return best


def encode_symbols(tensors: Sequence[np.ndarray], models: Sequence[SymbolModel]) -> bytes:
    """Code tensors one after the other.

    Parameters
    ----------
    tensors : sequence of ndarray of int
        1-D; each within its model's magnitude.
    models : sequence of SymbolModel

    Returns
    -------
    bytes
        Little-endian 32-bit words of constriction's range coder, trailing zero bytes left out.
    """
    encoder = constriction.stream.queue.RangeEncoder()
    for symbols, model in zip(tensors, models, strict=True):
        if model.magnitude:
            table = constriction.stream.model.Categorical(probabilities(model), perfect=False)
            encoder.encode((symbols + model.magnitude).astype(np.int32), table)
    return encoder.get_compressed().astype("<u4").tobytes().rstrip(b"\0")


def decode_symbols(
    data: bytes | memoryview, sizes: Sequence[int], models: Sequence[SymbolModel]
) -> list[np.ndarray]:
    """Decode what `encode_symbols` wrote.

    Parameters
    ----------
    data : bytes-like
    sizes : sequence of int
        Symbols per tensor; the caller bounds them.
    models : sequence of SymbolModel

    Returns
    -------
    list of ndarray of int32

    Raises
    ------
    CorruptStreamError
        If the bits are no code of such tensors.
    """
    raw = bytes(data)
    if raw.endswith(b"\0"):
        raise CorruptStreamError("weights: the code ends in a zero byte")
    words = np.frombuffer(raw + b"\0" * (-len(raw) % 4), dtype="<u4").astype(np.uint32)
    state = new_state()
    start_decoding(state, words)
    tensors = []
    for size, model in zip(sizes, models, strict=True):
        symbols = np.zeros(size, dtype=np.int32)
        tensors.append(symbols)
        if size and model.magnitude:
            if not decode_run(state, words, probabilities(model), symbols):
                raise CorruptStreamError("weights: the bytes are no code of symbols")
            symbols -= np.int32(model.magnitude)
    if has_words_left(state, words) or state[OFFSET] > _LARGEST_REST:
        raise CorruptStreamError("weights: bytes follow the last symbol")
    return tensors
