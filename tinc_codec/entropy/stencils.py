"""The static weights of a band, laid out for the sums that contexts are made from.

References
----------
`docs/format.md` §10.4
"""

from functools import lru_cache
from typing import Literal, NamedTuple

import numpy as np

from tinc_codec.entropy.feature_tables import (
    AROUND,
    COARSE,
    INSIDE,
    OWN,
    PHASE_ORDER,
    load_tables,
)
from tinc_codec.entropy.pyramid import BANDS, MASKS, Shape

N_PARITIES = 8
_MOST_TAPS = 26
"""Neighbours of a place that differ from it by at most one along each axis."""

Kind = Literal["coefficient", "flag"]


class Stencil(NamedTuple):
    """Weights of one band.

    Attributes
    ----------
    coarse : ndarray of uint32
        Shape (parity, 5): the bias; for the coarser level's band at the place and around it; for
        the sum of its bands at the place and around it.
    others : ndarray of int64
        Which earlier bands of the level have weights, mask - 1.
    other_weights : ndarray of uint32
        Shape (others, parity, 2): at the place and around it.
    taps : ndarray of int64
        Per phase, how many of the following there are.
    offsets, weights : ndarray of int64
        Shape (phase, `_MOST_TAPS`): neighbours in the band itself that an earlier phase holds,
        relative to the place in memory.
    """

    coarse: np.ndarray
    others: np.ndarray
    other_weights: np.ndarray
    taps: np.ndarray
    offsets: np.ndarray
    weights: np.ndarray


@lru_cache(maxsize=1024)
def stencil_of(kind: Kind, weights_class: int, mask: int, padded: Shape) -> Stencil:
    """Return the stencil of a band.

    Parameters
    ----------
    kind : str
        What is coded: its coefficients or its blocks' flags.
    weights_class : int
        `Level.weights_class`.
    mask : int
        The band's axes of high frequency: 4 z, 2 y, 1 x.
    padded : tuple of int
        Shape of one band's array, with a margin of one on all sides.
    """
    tables = load_tables()
    weights = tables.coefficient_weights if kind == "coefficient" else tables.flag_weights
    return lay_out(weights[weights_class, mask - 1], mask, padded)


def lay_out(rows: np.ndarray, mask: int, padded: Shape) -> Stencil:
    """Lay out the weights of one band, int (phase, `feature_tables.N_WEIGHTS`)."""
    by_parity = rows[np.argsort(PHASE_ORDER)]
    pairs = {
        other - 1: by_parity[:, [OWN + other - 1, AROUND + other - 1]]
        for other in MASKS[: MASKS.index(mask)]
    }
    used = {band: pair for band, pair in pairs.items() if pair.any()}
    taps = np.zeros(len(PHASE_ORDER), dtype=np.int64)
    offsets = np.zeros((len(PHASE_ORDER), _MOST_TAPS), dtype=np.int64)
    weights = np.zeros_like(offsets)
    for phase, row in enumerate(rows):
        terms = _inner_terms(row, phase, padded)
        taps[phase] = len(terms)
        for i, term in enumerate(terms):
            offsets[phase, i], weights[phase, i] = term
    return Stencil(
        by_parity[:, : COARSE + 4].astype(np.uint32),
        np.array(list(used), dtype=np.int64),
        np.array(list(used.values()), dtype=np.uint32).reshape(len(used), N_PARITIES, 2),
        taps,
        offsets,
        weights,
    )


def _inner_terms(row: np.ndarray, phase: int, padded: Shape) -> list[tuple[int, int]]:
    """List (offset, weight) of the neighbours that are known in a phase."""
    strides = np.array([padded[1] * padded[2], padded[2], 1])
    known = PHASE_ORDER[:phase]
    return [
        (int(strides @ step), int(row[INSIDE + pattern - 1]))
        for pattern in range(1, BANDS + 1)
        if PHASE_ORDER[phase] ^ pattern in known and row[INSIDE + pattern - 1]
        for step in _steps(pattern)
    ]


def _steps(pattern: int) -> list[tuple[int, int, int]]:
    """List the neighbours that differ on exactly the axes of a pattern (4 z, 2 y, 1 x)."""
    ranges = [(-1, 1) if pattern & bit else (0,) for bit in (4, 2, 1)]
    return [(z, y, x) for z in ranges[0] for y in ranges[1] for x in ranges[2]]
