"""The static weights and tables that code features; part of the format.

They were fitted to the volumes that `benchmarks/feature_tables.py` names, and live in
`feature_tables.npz` as integers.

References
----------
`docs/format.md` §10
"""

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import constriction
import numpy as np

WEIGHT_BITS = 10
"""A weight of 1 is 2^10."""
PHASE_ORDER = (0, 7, 3, 5, 6, 1, 2, 4)
"""Parities (4 z, 2 y, 1 x) in the order in which they are coded."""
N_CONTEXTS = 96
LEVEL_CLASSES = 4
"""The finest level, the next, all others, and the coarsest have weights of their own."""
BIAS, COARSE, OWN, AROUND, INSIDE = 0, 1, 5, 12, 19
"""Where in a row the kinds of weights begin."""
N_WEIGHTS = 26
PROBABILITY_BITS = 16
_PATH = Path(__file__).with_name("feature_tables.npz")


@dataclass(frozen=True, eq=False)
class FeatureTables:
    """What is known of features before a chunk is seen.

    Attributes
    ----------
    coefficient_weights, flag_weights : ndarray of int32
        Shape (level class, mask - 1, phase, `N_WEIGHTS`).
    buckets : ndarray of float64
        Shape (context, bucket): probabilities, multiples of 2^-16 before they are normalised.
    present : ndarray of float64
        Shape (context,): probability that a block holds something.
    """

    coefficient_weights: np.ndarray
    flag_weights: np.ndarray
    buckets: np.ndarray
    present: np.ndarray


@cache
def load_tables() -> FeatureTables:
    """Read the tables, once per process."""
    with np.load(_PATH) as archive:
        return FeatureTables(
            archive["coefficient_weights"].astype(np.int32),
            archive["flag_weights"].astype(np.int32),
            archive["buckets"].astype(np.float64) / (1 << PROBABILITY_BITS),
            archive["present"].astype(np.float64) / (1 << PROBABILITY_BITS),
        )


@cache
def bucket_model(context: int) -> constriction.stream.model.Categorical:
    """Return constriction's model of the buckets in a context."""
    return constriction.stream.model.Categorical(load_tables().buckets[context], perfect=False)


@cache
def flag_model(context: int) -> constriction.stream.model.Categorical:
    """Return constriction's model of a block's presence in a context."""
    present = load_tables().present[context]
    return constriction.stream.model.Categorical(np.array([1 - present, present]), perfect=False)


@cache
def bucket_models(*, decoding: bool = False) -> tuple[constriction.stream.model.Categorical, ...]:
    """Return the models of the buckets in all contexts.

    A lazy model codes the same bits. It looks for a symbol from the first bucket on, one after the
    other, and so decodes sooner where the first few hold nearly all.
    """
    tables = load_tables().buckets
    passed = (tables * np.arange(tables.shape[1])).sum(axis=1) / tables.sum(axis=1)
    return tuple(
        constriction.stream.model.Categorical(tables[context], perfect=False, lazy=True)
        if decoding and passed[context] < _FEW_PASSED
        else bucket_model(context)
        for context in range(N_CONTEXTS)
    )


_FEW_PASSED = 1.0


@cache
def flag_models() -> tuple[constriction.stream.model.Categorical, ...]:
    """Return the models of a block's presence in all contexts."""
    return tuple(map(flag_model, range(N_CONTEXTS)))
