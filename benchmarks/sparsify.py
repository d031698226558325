"""Learnt sparsity of features against rate-distortion zeroing, at equal bytes.

python -m benchmarks.sparsify --crop 64      # about 3 minutes on one core
python -m benchmarks.sparsify --crop 64 --sweep --volumes mri_t1 --name sparsify_sweep

Ways to choose the symbols of a features section:

closed       the transform of the target, rate-distortion zeroing (`fit.features`)
smallify     a mask under an L1 penalty, survivors rounded (`fit.sparsify`)
dropout      variational dropout, survivors rounded
rate         log2(1 + |symbol|) in the loss, survivors rounded
... + rdo    the same trained coefficients with rate-distortion zeroing on top
descent      rounds of rate-distortion zeroing, each knowing what the last one left (`fit.descent`)

Sizes are those of real sections. All take part in the same search for the step that fills the size,
and a step has a granularity of about 1 % of the bytes: 0.03 dB.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from rich.console import Console

from benchmarks import records, volumes
from tinc_codec.fit.descent import descend_to_size
from tinc_codec.fit.feature_search import FeatureCode, fit_to_size
from tinc_codec.fit.features import LMBDA, FeatureFit, FeatureTarget, demands_of
from tinc_codec.fit.sparsify import METHODS, SparsifyPlan, TrainedFit, train_coefficients
from tinc_codec.volume.chunk import analyse, normalise

RATIO = 64.0
HEADER_BYTES = 60
PASSES = 6
DESCENT_PASSES = (10, 20, 40, 80)
LEARNING_RATES = (0.03, 0.3)
COARSENESSES = (0.65, 1.0, 1.25)
"""Beside the defaults."""

Row = dict[str, Any]


@dataclass(frozen=True, eq=False)
class Problem:
    """A volume as a target, and the bytes that its section may have."""

    target: FeatureTarget
    limit: int

    @staticmethod
    def of(volume: np.ndarray, ratio: float) -> Problem:
        """Prepare a volume without non-finite values."""
        info, classes = analyse(volume)
        values = normalise(volume, info, classes).reshape(1, *volume.shape)
        limit = int(volume.nbytes / ratio) - HEADER_BYTES
        return Problem(FeatureTarget(values, demands_of(values, classes)), limit)

    def psnr(self, decoded: np.ndarray) -> float:
        """Quality of decoded values before they are rounded to the dtype, in dB."""
        error = np.clip(decoded, 0, 1).astype(np.float64) - self.target.values
        return float(-10 * np.log10(np.square(error).mean()))

    def row(self, way: str, code: FeatureCode | None, seconds: float, **more: Any) -> Row:
        """Describe a result."""
        assert code is not None
        return {
            "way": way,
            "size_bytes": len(code.section),
            "psnr": round(self.psnr(code.values), 3),
            "cpu_seconds": round(seconds, 2),
            **more,
        }


def closed_form(problem: Problem) -> Iterator[Row]:
    """Measure the closed form and the descent that starts from it."""
    begin = time.process_time()
    code = fit_to_size(FeatureFit(problem.target, 1), problem.limit, PASSES)
    yield problem.row("closed", code, time.process_time() - begin, passes=PASSES)
    for passes in DESCENT_PASSES:
        begin = time.process_time()
        found = descend_to_size(problem.target, problem.limit, passes, 1)
        code = None if found is None else found[0]
        yield problem.row("descent", code, time.process_time() - begin, passes=passes)


def trained(problem: Problem, plan: SparsifyPlan) -> Iterator[Row]:
    """Measure trained coefficients, rounded and with rate-distortion zeroing."""
    begin = time.process_time()
    coefficients = train_coefficients(problem.target, problem.limit, plan, "cpu", 1)
    assert coefficients is not None
    seconds = time.process_time() - begin
    for suffix, lmbda in (("", 0.0), (" + rdo", LMBDA)):
        fit = TrainedFit(problem.target, coefficients, 1, lmbda)
        code = fit_to_size(fit, problem.limit, PASSES)
        yield problem.row(
            plan.method + suffix, code, seconds,
            steps=plan.steps, learning_rate=plan.learning_rate, coarseness=plan.coarseness,
            noise=plan.noise, survivors=int(np.count_nonzero(coefficients)),
        )  # fmt: skip


def plans(sweep: bool) -> Iterator[SparsifyPlan]:
    """List what is tried of each method."""
    for method in METHODS:
        yield SparsifyPlan(method=method)
        if not sweep:
            continue
        for coarseness in COARSENESSES:
            yield SparsifyPlan(method=method, coarseness=coarseness)
        for learning_rate in LEARNING_RATES:
            yield SparsifyPlan(method=method, learning_rate=learning_rate)
        yield SparsifyPlan(method=method, noise=True)
        yield SparsifyPlan(method=method, steps=900)


def main() -> None:
    """Run the benchmark and keep its rows."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    volumes.add_arguments(parser)
    parser.set_defaults(crop=64, volumes=["mri_t1", "ct_cranium", "mni152_t1"])
    parser.add_argument("--sweep", action="store_true", help="other settings too")
    parser.add_argument("--name", default="sparsify", help="stem of the results' file")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    console = Console()
    rows: list[Row] = []
    for name in arguments.volumes:
        problem = Problem.of(volumes.load(name, arguments.crop, arguments.data), RATIO)
        ways = [closed_form(problem), *(trained(problem, plan) for plan in plans(arguments.sweep))]
        for way in ways:
            for row in way:
                rows.append({"volume": name, "limit_bytes": problem.limit, **row})
                console.print(rows[-1])
        records.save(arguments.name, rows, crop=arguments.crop, ratio=RATIO)


if __name__ == "__main__":
    main()
