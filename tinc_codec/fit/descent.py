"""Normalised volumes -> features by descent on symbols: distortion and rate of the real coder.

The closed form of `fit.features` quantises the transform of the target, as if the basis functions
of the wavelet were orthogonal. They are not: each coefficient can make up for part of what the
rounding and zeroing of others left. Here every coefficient asks, in turn, for the value that is
best while all others stand for their symbols, and symbols are chosen from that by rate-distortion
again: the fit with the rate in the loss, without a stand-in for the rate.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from itertools import pairwise

import numpy as np

from tinc_codec.entropy.pyramid import Level, low_pass_slices
from tinc_codec.fit.adjoint import adjoint
from tinc_codec.fit.feature_search import FeatureCode, fit_to_quality, fit_to_size
from tinc_codec.fit.features import ABOVE, BELOW, FREE, FeatureFit, FeatureTarget
from tinc_codec.fit.through_filter import missing_before
from tinc_codec.kernels import kernel
from tinc_codec.model.coefficients import coefficients_of
from tinc_codec.model.features import Features, feature_levels
from tinc_codec.model.lifting import inverse_planes
from tinc_codec.model.postfilter import PostFilter
from tinc_codec.model.wavelet import level_shapes

Grid = tuple[int, int, int]

_CLOSED_PASSES = 3
_LEARNING_PASSES = 5
"""Of the closed form first, without and with voxels that leave freedom."""
_SHARE = 0.3
"""Of the coefficients, drawn anew for each pass. Those that ask at once interfere: the normalised
Gram matrix has eigenvalues up to 8, so that without rounding a share above 2 / 8 could make the
descent run away. Measured with it, 0.3 gains more than 0.2 and 0.25 in as many passes."""
_FILTERED_SHARE = 0.25
"""The same where a post-filter, which sharpens, adds to the eigenvalues."""
_FIRST_PACE = 1.0
_RUN_AWAY = 1.02


class DescentFit(FeatureFit):
    """A `FeatureFit` whose `learn` takes a step of the descent; some 10 to 60 passes pay.

    Parameters
    ----------
    closed : FeatureFit
        What its coefficients ask for is where the descent begins.
    seed : int
        Of the order in which coefficients take their turn.
    """

    def __init__(self, closed: FeatureFit, seed: int = 0) -> None:
        vars(self).update(vars(closed))
        self._coefficients = closed._coefficients.copy()
        _, z, y, x = closed._coefficients.shape
        self._norms = squared_norms((z, y, x))
        self._generator = np.random.default_rng(seed)
        self._last: Features | None = None
        self._postfilter: PostFilter | None = None
        self._share, self._pace = _SHARE, _FIRST_PACE
        self._least, self._safe = math.inf, self._coefficients

    @property
    def learns(self) -> bool:
        """Always."""
        return True

    def quantise(self, code: int) -> tuple[Features, float]:
        """Choose symbols with a step, and remember them for `learn`."""
        self._last, size_bytes = super().quantise(code)
        return self._last, size_bytes

    def learn(self, values: np.ndarray) -> None:
        """Let some coefficients ask for what is best beside the symbols chosen last.

        Parameters
        ----------
        values : ndarray of float32
            What those symbols decode to, the base included.
        """
        assert self._last is not None
        last = self._last
        stored = coefficients_of(replace(last, symbols=last.symbols.copy()))
        change = self._change(values)
        if change is None:
            return
        for number, asked in enumerate(self._coefficients):
            turn = self._generator.integers(1 << 62, dtype=np.uint64)
            _take_turns(
                asked.reshape(-1), stored[number].reshape(-1), change[number].reshape(-1),
                self._norms.reshape(-1), turn, np.uint64(self._share * (1 << 24)),
            )  # fmt: skip

    def filter_by(self, postfilter: PostFilter) -> None:
        """From now on, descend on the errors behind a post-filter, which may be new."""
        self._postfilter, self._share = postfilter, _FILTERED_SHARE
        self._pace, self._least = min(1.0, 4 * self._pace), math.inf

    def _change(self, values: np.ndarray) -> np.ndarray | None:
        """Say how coefficients should change, times their squared norms; None: not from here."""
        if self._postfilter is None:
            return adjoint(missing_of(self._target, values), self._threads)
        missing, squares = missing_before(self._target, values, self._postfilter, self._threads)
        if squares < self._least:
            self._least, self._safe = squares, self._coefficients.copy()
        elif squares > _RUN_AWAY * self._least:
            # A filter that sharpens much makes the error steep: back, and with shorter steps.
            np.copyto(self._coefficients, self._safe)
            self._pace *= 0.5
            return None
        missing *= np.float32(self._pace)
        return adjoint(missing, self._threads)


def descend_to_size(
    target: FeatureTarget, limit_bytes: int, passes: int, threads: int, seed: int = 0
) -> tuple[FeatureCode, DescentFit] | None:
    """Find the best features whose section has at most `limit_bytes`; None where none has.

    Parameters
    ----------
    target : FeatureTarget
    limit_bytes : int
    passes : int
        Of the descent, at least 1. What the closed form gives is kept where that is better, as it
        can be in a few hundred bytes.
    threads : int
    seed : int

    Returns
    -------
    FeatureCode
    DescentFit
        Which can go on from where it is.
    """
    fit = FeatureFit(target, threads)
    closed = fit_to_size(fit, limit_bytes, _first_passes(fit))
    if closed is None:
        return None
    # A coarse step far from the final one does harm that takes many passes to undo.
    start_code = code_of(closed.section)
    descent = DescentFit(fit, seed)
    descended = fit_to_size(descent, limit_bytes, passes, start_code)
    codes = [closed] if descended is None else [closed, descended]
    best = min(codes, key=lambda code: float(np.linalg.norm(missing_of(target, code.values))))
    return best, descent


def descend_to_quality(
    target: FeatureTarget,
    psnr: float,
    measure: Callable[[np.ndarray], float],
    passes: int,
    threads: int,
    seed: int = 0,
) -> tuple[FeatureCode, DescentFit] | None:
    """Find the shortest features that reach a PSNR; None where the finest step does not.

    Parameters
    ----------
    target : FeatureTarget
    psnr, measure
        As for `fit_to_quality`.
    passes, threads, seed : int
        As for `descend_to_size`, and what is returned too.
    """
    fit = FeatureFit(target, threads)
    closed = fit_to_quality(fit, psnr, measure, _first_passes(fit))
    if closed is None:
        return None
    start_code = code_of(closed.section)
    descent = DescentFit(fit, seed)
    descended = fit_to_quality(descent, psnr, measure, passes, start_code)
    codes = [closed] if descended is None else [closed, descended]
    return min(codes, key=lambda code: len(code.section)), descent


def _first_passes(fit: FeatureFit) -> int:
    return _LEARNING_PASSES if fit.learns else _CLOSED_PASSES


def code_of(section: bytes) -> int:
    """Return the code of a features section's step; `docs/format.md` §9."""
    return int.from_bytes(section[:2], "little")


def missing_of(target: FeatureTarget, values: np.ndarray) -> np.ndarray:
    """Return what decoded values lack, float32, 0 where they meet what is demanded."""
    missing = target.values - values
    demands = target.demands
    if demands is not None:
        np.minimum(missing, 0, out=missing, where=demands == BELOW)
        np.maximum(missing, 0, out=missing, where=demands == ABOVE)
        missing[demands == FREE] = 0
    return missing


def squared_norms(grid: Grid) -> np.ndarray:
    """Return the squared norm of the basis function of every coefficient, float32 of shape grid."""
    shapes = level_shapes(grid)
    levels = feature_levels(grid)
    norms = np.empty(grid, dtype=np.float32)
    by_axis = [_axis_norms(tuple(shape[axis] for shape in shapes)) for axis in range(3)]

    def of_band(level: Level, mask: int) -> np.ndarray:
        z, y, x = (by_axis[a][level.number][mask >> (2 - a) & 1] for a in range(3))
        return z[:, None, None] * y[:, None] * x

    for level in levels:
        for mask in level.masks:
            norms[level.band_slices(mask)] = of_band(level, mask)
    corner = low_pass_slices(levels, grid)
    norms[corner] = of_band(levels[-1], 0) if levels else 1
    return norms


@lru_cache(maxsize=64)
def _axis_norms(sizes: tuple[int, ...]) -> tuple[tuple[np.ndarray, np.ndarray], ...]:
    """Return for each level the squared norms of one axis' low-pass and high-pass functions."""
    norms = []
    functions = np.eye(sizes[0], dtype=np.float32)
    for size, low_size in pairwise(sizes):
        split = size != low_size
        units = np.eye(size, dtype=np.float32)[None, None]
        steps = np.empty_like(units)
        inverse_planes(units, steps, False, split, 0, 1)
        functions = steps[0, 0] @ functions
        squares = np.square(functions).sum(axis=1)
        norms.append((squares[:low_size], squares[low_size:]))
        functions = functions[:low_size]
    return tuple(norms)


@kernel
def _take_turns(asked, stored, change, norms, turn, share):  # type: ignore[no-untyped-def]
    """Let those whose turn it is ask for what is stored plus their part of the change."""
    for i in range(len(asked)):
        # A multiplicative hash of the place and the pass.
        draw = (np.uint64(i) + turn) * np.uint64(0x9E3779B97F4A7C15)
        draw ^= draw >> np.uint64(29)
        draw *= np.uint64(0xBF58476D1CE4E5B9)
        if (draw >> np.uint64(40)) < share:
            asked[i] = stored[i] + change[i] / norms[i]
