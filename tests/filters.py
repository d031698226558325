"""Post-filters for tests: networks made up of random symbols that behave like trained ones."""

import math

import numpy as np

from tinc_codec.entropy.weights import choose_model
from tinc_codec.model.postfilter import (
    CodedTensor,
    Conditioning,
    layer_table,
    tensors_of,
    write_postfilter,
)
from tinc_codec.quantise.scalar import step_codes

CONDITIONING = Conditioning(420, 128, 32)


def some_section(
    widths: tuple[int, ...],
    seed: int = 0,
    conditioning: Conditioning = CONDITIONING,
    answer: float = 0.3,
    largest: int = 12,
) -> bytes:
    """A section whose hidden layers keep the size of their inputs.

    `answer` is about how large the answers are, `largest` the largest symbol of the weights.
    """
    rng = np.random.default_rng(seed)
    table = layer_table(widths).tolist()
    tensors = []
    for index, part in enumerate(tensors_of(widths)):
        layer, is_bias = divmod(index, 2)
        limit = math.sqrt(6 / table[layer][3]) * (0.1 if is_bias else 1)
        if layer == len(widths):
            limit *= answer
        symbols = rng.integers(-largest, largest, part.stop - part.start, np.int32, endpoint=True)
        step = int(step_codes(np.array(math.log(limit / max(1, largest)))))
        tensors.append(CodedTensor(step, choose_model(symbols)[0], symbols))
    return write_postfilter(widths, conditioning, tensors)
