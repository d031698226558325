"""Uniform quantisation of weights, one step per tensor."""

import math

import numpy as np

from tinc_codec.entropy.weights import MAX_MAGNITUDE

STEPS_PER_OCTAVE = 16
MAX_STEP_CODE = 255
_OCTAVE = [2.0 ** (i / STEPS_PER_OCTAVE) for i in range(STEPS_PER_OCTAVE)]


def q_step(code: int) -> float:
    """Return the step of a code, 0 to 255: 2^(-code / 16), as a float32 value.

    References
    ----------
    `docs/format.md` §7
    """
    octave, part = divmod(-code, STEPS_PER_OCTAVE)
    return float(np.float32(math.ldexp(_OCTAVE[part], octave)))


def step_codes(log_steps: np.ndarray) -> np.ndarray:
    """Round natural logarithms of steps to the nearest codes, int64 of the same shape."""
    codes = np.rint(-np.asarray(log_steps, dtype=np.float64) / math.log(2) * STEPS_PER_OCTAVE)
    return np.clip(codes, 0, MAX_STEP_CODE).astype(np.int64)


def quantise(weights: np.ndarray, step: float) -> np.ndarray:
    """Round float32 weights to multiples of `step`; the int32 symbols, clipped to the format."""
    symbols = np.rint(weights / np.float32(step))
    return np.clip(symbols, -MAX_MAGNITUDE, MAX_MAGNITUDE).astype(np.int32)


def dequantise(symbols: np.ndarray, step: float) -> np.ndarray:
    """Multiply int32 symbols by `step` in float32."""
    return symbols.astype(np.float32) * np.float32(step)
