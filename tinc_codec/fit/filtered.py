"""Features and the post-filter behind them, fitted in turns.

The filter is trained on what features decode to, and features then descend on the errors behind
the filter: it can restore an edge from less than the edge takes without it, and they learn to leave
that to it.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from tinc_codec.fit.descent import (
    DescentFit,
    code_of,
    descend_to_quality,
    descend_to_size,
)
from tinc_codec.fit.feature_search import FeatureCode, fit_to_quality, fit_to_size
from tinc_codec.fit.features import FREE, FeatureFit, FeatureTarget
from tinc_codec.fit.postfilter import (
    LEAST_STEPS,
    FilterPlan,
    FittedFilter,
    fit_postfilter,
    plan_of,
    section_bytes,
    squared_error,
)
from tinc_codec.model.filtering import apply_postfilter
from tinc_codec.model.postfilter import PostFilter, read_postfilter
from tinc_codec.params import FEATURE_PRUNINGS, EncodingParams

PASSES_BY_EFFORT = (2, 3, 4, 8, 15, 20, 30, 40, 60, 90)
"""How often symbols are chosen anew before they are written."""
DESCENT_EFFORT = 3
"""From this effort on they are chosen by descent."""
_ROUNDS_BY_EFFORT = (
    (0, 0), (0, 0), (0, 0), (1, 5), (1, 10), (2, 8), (4, 8), (6, 10), (8, 12), (12, 12),
)  # fmt: skip
"""How often features take their turn behind the filter, and the passes of each."""
_FIRST_PASSES = 8
"""At most, before a filter is there: what more of them gain is lost again behind it."""
_DB_PER_SHARE = 4.0
"""PSNR that features lose, in dB, per part of their bytes that goes elsewhere."""
_DB_PER_BIT = 6.02
"""The same per bit of each voxel: what a byte is worth where there are many."""
_LEAST_GAIN_DB = 0.05
"""For less than that, nobody wants to wait for a filter at every read."""
_MOST_GAIN_DB = 20.0
"""What is believed of a guess: on data of two values errors may vanish altogether."""
_MOST_PSNR = 80.0
"""In dB: beyond it, readers' rounding, which a filter amplifies, could break the promise."""
_GUESSES = 2
_GUESS_STEPS = 4
"""A first filter, which only tells how much one gains, is trained so much shorter."""


@dataclass(frozen=True)
class FilteredFeatures:
    """A features section, and a post-filter section where one pays.

    Attributes
    ----------
    features : bytes
    postfilter : bytes or None
    """

    features: bytes
    postfilter: bytes | None = None

    @property
    def size_bytes(self) -> int:
        """Length of both sections."""
        return len(self.features) + len(self.postfilter or b"")


@dataclass(frozen=True)
class _Trainer:
    """What all filters of a chunk have in common."""

    target: FeatureTarget
    plan: FilterPlan
    threads: int
    seed: int

    def train(
        self, code: FeatureCode, limit_bytes: int, start: FittedFilter | None = None
    ) -> FittedFilter | None:
        return fit_postfilter(
            code.values, self.target, self.plan, limit_bytes, self.threads, self.seed, start
        )

    def cost_db(self, n_bytes: int) -> float:
        """Say how much PSNR features of so many bytes lose by those that a filter takes."""
        return _LEAST_GAIN_DB + _DB_PER_SHARE * section_bytes(self.plan.widths) / n_bytes

    def most_cost_db(self, n_bytes: int) -> float:
        """Say how much that is at most: 6 dB per bit of each voxel that counts."""
        demands, counted = self.target.demands, self.target.values.size
        if demands is not None:
            counted = int(np.count_nonzero(demands != FREE))
        bits = 8 * section_bytes(self.plan.widths) / max(1, counted)
        return self.cost_db(n_bytes) + _DB_PER_BIT * bits


def _trainer(
    target: FeatureTarget, n_bytes: int, params: EncodingParams, threads: int
) -> _Trainer | None:
    # Training of pruned features is too long to be done twice where a filter does not pay.
    if params.pruning in FEATURE_PRUNINGS or (params.psnr or 0.0) > _MOST_PSNR:
        return None
    plan = plan_of(params.effort, n_bytes, target.values.size)
    return None if plan is None else _Trainer(target, plan, threads, params.seed)


def filtered_to_size(
    target: FeatureTarget,
    alone_bytes: int,
    together_bytes: int,
    params: EncodingParams,
    device: str,
    threads: int,
) -> FilteredFeatures | None:
    """Find the best features within a size, with a post-filter where it pays.

    Parameters
    ----------
    target : FeatureTarget
    alone_bytes : int
        What features may have by themselves.
    together_bytes : int
        What both sections may have.
    params : EncodingParams
    device : str
        A torch device, for features that are pruned while they are trained.
    threads : int

    Returns
    -------
    FilteredFeatures or None
        None where features cannot be so short.
    """
    trainer = _trainer(target, together_bytes, params, threads)
    passes = PASSES_BY_EFFORT[params.effort]
    doubtful: tuple[FilteredFeatures, float] | None = None
    if trainer is not None:
        limit = together_bytes - section_bytes(trainer.plan.widths)
        first = min(passes, _FIRST_PASSES)
        code, fit = _to_size(target, limit, first, params, device, threads)
        if code is not None:
            found = trainer.train(code, together_bytes - len(code.section))
            if found is not None and found.gain_db > trainer.cost_db(together_bytes):
                is_sure = found.gain_db > trainer.most_cost_db(together_bytes)
                if fit is not None:
                    turns = _ROUNDS_BY_EFFORT[params.effort]
                    code, found = _take_turns(trainer, fit, code, found, limit, *turns)
                pair = FilteredFeatures(code.section, found.section)
                if is_sure:
                    return pair
                doubtful = pair, found.squared_error
    code, _ = _to_size(target, alone_bytes, passes, params, device, threads)
    if doubtful is not None and (code is None or doubtful[1] < squared_error(target, code.values)):
        return doubtful[0]
    return None if code is None else FilteredFeatures(code.section)


def _take_turns(
    trainer: _Trainer,
    fit: DescentFit,
    code: FeatureCode,
    found: FittedFilter,
    limit_bytes: int,
    rounds: int,
    passes: int,
) -> tuple[FeatureCode, FittedFilter]:
    """Let features and filter adapt to each other; return the best pair."""
    best = code, found
    together = limit_bytes + section_bytes(trainer.plan.widths)
    for _ in range(rounds):
        fit.filter_by(read_postfilter(found.section))
        adapted = fit_to_size(fit, limit_bytes, passes, code_of(code.section))
        if adapted is None:
            break
        trained = trainer.train(adapted, together - len(adapted.section), found)
        if trained is None:
            break
        code, found = adapted, trained
        if found.squared_error < best[1].squared_error:
            best = code, found
    return best


def _to_size(
    target: FeatureTarget,
    limit_bytes: int,
    passes: int,
    params: EncodingParams,
    device: str,
    threads: int,
) -> tuple[FeatureCode | None, DescentFit | None]:
    """Find features within a size, and the descent that found them where one did."""
    if limit_bytes < 1:
        return None, None
    if params.pruning in FEATURE_PRUNINGS:
        from tinc_codec.fit.sparsify import SparsifyPlan, sparsify_to_size

        plan = SparsifyPlan(method=params.pruning, seed=params.seed)
        return sparsify_to_size(target, limit_bytes, plan, device, threads), None
    if params.effort >= DESCENT_EFFORT:
        found = descend_to_size(target, limit_bytes, passes, threads, params.seed)
        return (None, None) if found is None else found
    return fit_to_size(FeatureFit(target, threads), limit_bytes, passes), None


def filtered_to_quality(
    target: FeatureTarget,
    psnr: float,
    measure: Callable[[np.ndarray], float],
    params: EncodingParams,
    threads: int,
) -> FilteredFeatures | None:
    """Find the shortest features that reach a PSNR, with a post-filter where it pays.

    Parameters
    ----------
    target : FeatureTarget
    psnr : float
        In dB.
    measure : callable
        From t to the PSNR of the voxels it decodes to.
    params : EncodingParams
    threads : int

    Returns
    -------
    FilteredFeatures or None
        None where the finest step does not reach it.
    """
    first = fit_to_quality(FeatureFit(target, threads), psnr, measure, _GUESSES)
    if first is None:
        return None
    trainer = _trainer(target, len(first.section), params, threads)
    if trainer is not None:
        short = replace(trainer.plan, steps=max(LEAST_STEPS, trainer.plan.steps // _GUESS_STEPS))
        guess = replace(trainer, plan=short).train(first, section_bytes(short.widths))
        if guess is not None and guess.gain_db > trainer.cost_db(len(first.section)):
            gain_db = min(guess.gain_db, _MOST_GAIN_DB)
            found = _to_quality_behind(trainer, gain_db, psnr, measure, params)
            if found is not None and found.size_bytes < len(first.section):
                return found
    passes = PASSES_BY_EFFORT[params.effort]
    if trainer is None and passes <= _GUESSES:
        return FilteredFeatures(first.section)
    code, _ = _to_quality(target, psnr, passes, measure, params, threads)
    codes = [first] if code is None else [code, first]
    return FilteredFeatures(min((code.section for code in codes), key=len))


def _to_quality_behind(
    trainer: _Trainer,
    gain_db: float,
    psnr: float,
    measure: Callable[[np.ndarray], float],
    params: EncodingParams,
) -> FilteredFeatures | None:
    """Find features that a filter lifts to a PSNR; by how much is known about from a guess."""
    target, threads = trainer.target, trainer.threads
    room = section_bytes(trainer.plan.widths)
    first = min(PASSES_BY_EFFORT[params.effort], _FIRST_PASSES)
    rounds, passes = _ROUNDS_BY_EFFORT[params.effort]
    code, fit = _to_quality(target, psnr - gain_db, first, measure, params, threads)
    found: FittedFilter | None = None
    best: FilteredFeatures | None = None
    for _ in range(max(1, rounds)):
        found = None if code is None else trainer.train(code, room, found)
        if code is None or found is None:
            break
        postfilter = read_postfilter(found.section)
        if fit is not None:
            fit.filter_by(postfilter)
        # With the filter as it is, the coarsest step that suffices is found exactly.
        code = fit_to_quality(
            fit or FeatureFit(target, threads),
            psnr,
            partial(_quality_behind, postfilter, measure, threads),
            passes or first,
            code_of(code.section),
        )
        if code is not None:
            pair = FilteredFeatures(code.section, found.section)
            best = pair if best is None else min(best, pair, key=lambda one: one.size_bytes)
    return best


def _quality_behind(
    postfilter: PostFilter,
    measure: Callable[[np.ndarray], float],
    threads: int,
    values: np.ndarray,
) -> float:
    return measure(apply_postfilter(values, postfilter, threads))


def _to_quality(
    target: FeatureTarget,
    psnr: float,
    passes: int,
    measure: Callable[[np.ndarray], float],
    params: EncodingParams,
    threads: int,
) -> tuple[FeatureCode | None, DescentFit | None]:
    """Find features that reach a PSNR, and the descent that found them where one did."""
    if params.effort >= DESCENT_EFFORT:
        found = descend_to_quality(target, psnr, measure, passes, threads, params.seed)
        return (None, None) if found is None else found
    return fit_to_quality(FeatureFit(target, threads), psnr, measure, passes), None
