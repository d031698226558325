"""Steps and symbols that fit a byte budget."""

import math
from dataclasses import dataclass

import numpy as np

from tinc_codec.entropy.weights import SymbolModel, choose_model
from tinc_codec.quantise.scalar import MAX_STEP_CODE, q_step, quantise, step_codes

_LARGEST_SYMBOL = 1 << 12
"""Finer steps gain nothing, and tables of so many symbols take long to compute."""


@dataclass(frozen=True)
class QuantisedTensor:
    """A tensor as it goes into the stream.

    Attributes
    ----------
    step_code : int
        See `quantise.scalar.q_step`.
    symbols : ndarray of int32
        1-D: volume after volume.
    model : SymbolModel
    bits : float
        Length of the symbols' code.
    """

    step_code: int
    symbols: np.ndarray
    model: SymbolModel
    bits: float


def _finest_code(weights: np.ndarray) -> int:
    """Return the code of the finest step with which no symbol gets too large."""
    largest = float(np.abs(weights).max(initial=0))
    if largest == 0:
        return MAX_STEP_CODE
    return int(step_codes(np.array(math.log(largest / _LARGEST_SYMBOL))))


class StepSearch:
    """Trades the steps of a chunk's tensors against the length of its code.

    All tensors move together along one scale: position i makes every step i // T codes coarser
    than the fit's, and the first i % T tensors one more, which is fine enough to use a budget up.

    Parameters
    ----------
    tensors : list of ndarray of float32
        The fit's weights, one 1-D array per tensor.
    codes : sequence of int
        The fit's step codes.
    """

    def __init__(self, tensors: list[np.ndarray], codes: list[int]) -> None:
        self._tensors = tensors
        self._codes = codes
        self._finest = [_finest_code(tensor) for tensor in tensors]
        self._known: dict[tuple[int, int], QuantisedTensor] = {}

    def _tensor(self, index: int, code: int) -> QuantisedTensor:
        found = self._known.get((index, code))
        if found is None:
            symbols = quantise(self._tensors[index], q_step(code))
            model, bits = choose_model(symbols)
            found = self._known[index, code] = QuantisedTensor(code, symbols, model, bits)
        return found

    def at(self, position: int) -> list[QuantisedTensor]:
        """Quantise all tensors at a position of the scale; larger is coarser."""
        whole, part = divmod(position, len(self._codes))
        codes = [c - whole - (index < part) for index, c in enumerate(self._codes)]
        return [
            self._tensor(i, max(min(code, finest), 0))
            for i, (code, finest) in enumerate(zip(codes, self._finest, strict=True))
        ]

    def zeros(self) -> list[QuantisedTensor]:
        """Round every weight to 0, whatever its size: the shortest code there is."""
        return [
            QuantisedTensor(0, symbols, *choose_model(symbols))
            for symbols in (np.zeros(len(tensor), dtype=np.int32) for tensor in self._tensors)
        ]

    def bits_at(self, position: int) -> float:
        """Total length of the code at a position."""
        return sum(tensor.bits for tensor in self.at(position))

    def finest_within(self, bits: float) -> int | None:
        """Find the finest position whose code is at most `bits` long; None if there is none."""
        count = len(self._codes)
        low, high = -count, count
        while self.bits_at(low) <= bits:
            if all(c + (-low) // count >= MAX_STEP_CODE for c in self._codes):
                return low
            low *= 2
        while self.bits_at(high) > bits:
            if all(c - high // count <= 0 for c in self._codes):
                return None
            high *= 2
        while high - low > 1:
            middle = (low + high) // 2
            if self.bits_at(middle) <= bits:
                high = middle
            else:
                low = middle
        return high
