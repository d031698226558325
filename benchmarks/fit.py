"""What makes the fit fast: the step, the sampling, the optimiser, and the settings of the tree.

python -m benchmarks.fit                              # everything, about 10 minutes on one core
python -m benchmarks.fit --only step optimiser        # some sections; the others' rows stay

Times are process CPU seconds on one thread, so that a busy machine changes them little. Sections:

step        one gradient: eager torch with autograd, and the compiled kernel
sampling    lattices against independent voxels, and voxels per leaf, at equal voxels seen
optimiser   Adam and SOAP, float weights only, at equal numbers of gradients
second      Gauss-Newton from a short Adam fit, against as much CPU time of Adam
heads       linear heads of the leaves solved by least squares at the end
settings    pruning and node_split through the whole codec, at equal bytes
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from rich.console import Console

from benchmarks import gauss_newton, records, volumes
from tinc_codec import config
from tinc_codec.bitstream.header import read_stream
from tinc_codec.codec import encode_chunk
from tinc_codec.fit import gradient as gradients
from tinc_codec.fit import soap
from tinc_codec.fit.encoder import standardise
from tinc_codec.fit.gradient import FusedGradient, Gradient, TorchGradient
from tinc_codec.fit.initialise import initial_parameters
from tinc_codec.fit.optimiser import Adam, Optimiser
from tinc_codec.fit.plan import fit_plan
from tinc_codec.fit.sampler import LatticeSampler
from tinc_codec.fit.trainer import FitPlan
from tinc_codec.model.budget import plan_shape
from tinc_codec.model.octree_mlp import TreeShape
from tinc_codec.params import EncodingParams
from tinc_codec.volume.chunk import analyse, normalise
from tinc_codec.volume.partition import to_blocks

EDGE = 64
RATIO = 64.0
STEPS = 2000
EAGER_STEPS = 800
"""Independent voxels are drawn through eager torch, which is slower."""
WARM_UP_STEPS = 100
GUARD_STEPS = 100
RUN_AWAY = 1.5
TIMED_STEPS = 60
SETTINGS_VOLUMES = ("mri_t1", "mri_flair", "mni152_t1")
SETTINGS_EFFORT = 3
_HEADER_BYTES = 60

Row = dict[str, Any]


@dataclass(frozen=True)
class Problem:
    """A volume's crop, ready to be fitted.

    Attributes
    ----------
    shape : TreeShape
        What the codec would choose.
    plan : FitPlan
        At the default effort.
    blocks : ndarray of float32
        Shape (leaf, voxel).
    gain : float
        A unit of `blocks` in units of the crop's range.
    """

    shape: TreeShape
    plan: FitPlan
    blocks: np.ndarray
    gain: float

    @staticmethod
    def of(name: str, data: Path | None) -> Problem:
        """Prepare a volume's central crop."""
        volume = volumes.load(name, EDGE, data)
        info, classes = analyse(volume)
        values = normalise(volume, info, classes)
        params = EncodingParams(ratio=RATIO)
        batched: tuple[int, int, int, int] = values.shape
        shape = plan_shape(batched, int(volume.nbytes / RATIO) - _HEADER_BYTES, params)
        ((offset, gain),) = standardise(values, np.ones(values.shape, np.uint8))
        blocks = to_blocks(
            (values - offset) / gain,
            shape.leaf_origins,
            shape.leaf_extents,
            math.prod(shape.leaf_size),
        )
        return Problem(shape, fit_plan(shape, params), blocks[0], float(gain))

    def fused(self, samples: int) -> FusedGradient:
        """Compiled loss and gradient."""
        return FusedGradient(self.shape, self.blocks[None], None, samples, 1)

    def eager(self, samples: int) -> TorchGradient:
        """The same by autograd."""
        return TorchGradient(self.shape, self.blocks[None], None, samples, "cpu")

    def adam(self) -> Optimiser:
        """Make the optimiser of GPUs."""
        return Adam()

    def soap(self) -> Optimiser:
        """Make the optimiser of CPUs."""
        return soap.Soap(self.shape, 1)

    def psnr(self, parameters: np.ndarray) -> float:
        """Quality of float weights over all voxels, in dB."""
        starts = np.zeros(self.shape.leaf_count, dtype=np.int64)
        loss, _ = self.fused(self.blocks.shape[1])(
            torch.from_numpy(parameters[None]), starts, starts + 1
        )
        return -10.0 * math.log10(float(loss[0]) * self.gain**2)


def train(
    problem: Problem,
    make: Callable[[], Optimiser],
    gradient: Gradient,
    steps: int,
    learning_rate: float,
) -> tuple[np.ndarray, Row]:
    """Train float weights with cosine decay; the weights, and a row's part on the run.

    As in `fit.trainer`, a loss that runs away goes back and continues at half the pace.
    """
    parameters = initial_parameters(problem.shape, problem.plan.seed)
    shared = torch.from_numpy(parameters[None])
    sampler = LatticeSampler(problem.shape.leaf_extents.prod(axis=1), problem.plan.seed)
    optimiser = make()
    safe, best, pace, restarts = parameters.copy(), math.inf, 1.0, 0
    recent: list[float] = []
    update_s = 0.0
    start = time.process_time()
    for step in range(steps):
        loss, slope = gradient(shared, *sampler.draw())
        before = time.process_time()
        recent.append(float(loss[0]))
        if len(recent) == GUARD_STEPS:
            mse = float(np.mean(recent[-GUARD_STEPS // 2 :]))
            recent.clear()
            if not mse <= RUN_AWAY * best:
                parameters[:] = safe
                optimiser.stop(torch.tensor([True]))
                pace *= 0.5
                restarts += 1
                continue
            if mse < best:
                best = mse
                safe[:] = parameters
        size = pace * learning_rate * 0.5 * (1 + math.cos(math.pi * step / steps))
        size *= min(1.0, (step + 1) / WARM_UP_STEPS)
        shared.sub_(optimiser(slope), alpha=size)
        update_s += time.process_time() - before
    cpu_s = time.process_time() - start
    return parameters, {
        "steps": steps,
        "learning_rate": round(learning_rate, 6),
        "psnr": round(problem.psnr(parameters), 3),
        "restarts": restarts,
        "cpu_s": round(cpu_s, 2),
        "step_ms": round(1e3 * cpu_s / steps, 3),
        "update_ms": round(1e3 * update_s / steps, 3),
    }


def time_steps(problem: Problem) -> Iterator[Row]:
    """Time one gradient, compiled and eager, on the same voxels."""
    sampler = LatticeSampler(problem.shape.leaf_extents.prod(axis=1), 0)
    parameters = torch.from_numpy(initial_parameters(problem.shape, 0)[None])
    draws = [sampler.draw() for _ in range(TIMED_STEPS)]
    samples = problem.plan.samples
    reference = None
    for method, gradient in (
        ("eager torch", problem.eager(samples)),
        ("compiled", problem.fused(samples)),
    ):
        slope = gradient(parameters, *draws[0])[1].clone()
        reference = slope if reference is None else reference
        times = []
        for draw in draws:
            before = time.process_time()
            gradient(parameters, *draw)
            times.append(time.process_time() - before)
        yield {
            "method": method,
            "samples_per_leaf": samples,
            "step_ms": round(1e3 * float(np.median(times)), 3),
            "relative_difference": float((slope - reference).norm() / reference.norm()),
        }


def independent_positions(
    extents: np.ndarray, starts: np.ndarray, strides: np.ndarray, samples: int
) -> tuple[np.ndarray, np.ndarray]:
    """Stand in for `fit.gradient.sample_positions`: independent uniform draws."""
    counts = extents.prod(axis=1)[:, None]
    generator = np.random.default_rng(np.concatenate([starts, strides]))
    index = generator.integers(0, np.maximum(counts, 1), (len(counts), samples))
    return index, np.repeat(counts > 0, samples, axis=1)


def compare_sampling(problem: Problem) -> Iterator[Row]:
    """Compare where and how many voxels a step looks at."""
    rate = problem.plan.learning_rate
    samples = problem.plan.samples
    lattice = gradients.sample_positions
    for method, positions in (
        ("lattice, eager", lattice),
        ("independent, eager", independent_positions),
    ):
        with mock.patch.object(gradients, "sample_positions", positions):
            gradient = problem.eager(samples)
            _, row = train(problem, problem.adam, gradient, EAGER_STEPS, rate)
        yield {"method": method, "samples_per_leaf": samples, **row}
    for count in (64, 128, 256, 512):
        steps = STEPS * samples // count
        for factor in (0.5, 1.0):
            _, row = train(problem, problem.soap, problem.fused(count), steps, rate * factor)
            yield {"method": "lattice, compiled", "samples_per_leaf": count, **row}


def compare_optimisers(problem: Problem) -> Iterator[Row]:
    """Compare Adam and SOAP, each at some learning rates; then how often SOAP turns its basis."""
    rate = problem.plan.learning_rate
    gradient = problem.fused(problem.plan.samples)
    for method, make in (("Adam", problem.adam), ("SOAP", problem.soap)):
        for factor in (0.4, 0.7, 1.0):
            _, row = train(problem, make, gradient, STEPS, rate * factor)
            yield {"method": method, **row}
    for refresh_steps in (2, 10, 50):
        with mock.patch.object(soap, "_REFRESH_STEPS", refresh_steps):
            _, row = train(problem, problem.soap, gradient, STEPS, rate)
        yield {"method": "SOAP", "refresh_steps": refresh_steps, **row}


def compare_second_order(problem: Problem) -> Iterator[Row]:
    """Take Gauss-Newton steps from a short fit, then give Adam as much time."""
    rate = problem.plan.learning_rate
    gradient = problem.fused(problem.plan.samples)
    parameters, row = train(problem, problem.adam, gradient, STEPS // 4, rate)
    yield {"method": "Adam, start", **row}
    before = time.process_time()
    step_ms = row["step_ms"]
    spent = row["cpu_s"]
    taken = gauss_newton.improve(problem.shape, problem.blocks, parameters, steps=10)
    for count, better in enumerate(taken, start=1):
        cpu_s = time.process_time() - before
        if count in (1, 2, 5, 10):
            yield {
                "method": "Gauss-Newton",
                "steps": count,
                "psnr": round(problem.psnr(better), 3),
                "cpu_s": round(spent + cpu_s, 2),
            }
    steps = min(12000, int((spent + cpu_s) / step_ms * 1e3))
    for method, make in (("Adam", problem.adam), ("SOAP", problem.soap)):
        _, row = train(problem, make, gradient, steps, rate)
        yield {"method": f"{method}, as long or 12000 steps", **row}


def solve_heads(problem: Problem) -> Iterator[Row]:
    """Solve every leaf's linear head on all its voxels, after fits of some lengths."""
    for steps in (STEPS // 4, STEPS):
        gradient = problem.fused(problem.plan.samples)
        parameters, row = train(problem, problem.soap, gradient, steps, problem.plan.learning_rate)
        before = time.process_time()
        solved = gauss_newton.with_best_heads(problem.shape, problem.blocks, parameters)
        yield {
            **row,
            "method": "least squares",
            "psnr_solved": round(problem.psnr(solved), 3),
            "solve_s": round(time.process_time() - before, 2),
        }


def compare_settings(name: str, data: Path | None) -> Iterator[Row]:
    """Encode with each rule of pruning and of node allocation."""
    volume = volumes.load(name, EDGE, data)
    choices: list[dict[str, Any]] = [
        {"pruning": "none", "node_split": "equal"},
        {"pruning": "iterative", "node_split": "equal"},
        {"pruning": "dynamic", "node_split": "equal"},
        {"pruning": "none", "node_split": "aoi"},
        {"pruning": "none", "node_split": "variance"},
    ]
    for choice in choices:
        params = EncodingParams(ratio=RATIO, effort=SETTINGS_EFFORT, **choice)
        before = time.process_time()
        stream = encode_chunk(volume, params)
        cpu_s = time.process_time() - before
        header = read_stream(stream, max_decoded_bytes=1 << 32)
        yield {
            **choice,
            "effort": SETTINGS_EFFORT,
            "bytes": len(stream),
            "psnr": round(header.psnr, 3),
            "cpu_s": round(cpu_s, 2),
        }


SECTIONS: dict[str, Callable[[Problem], Iterator[Row]]] = {
    "step": time_steps,
    "sampling": compare_sampling,
    "optimiser": compare_optimisers,
    "second": compare_second_order,
    "heads": solve_heads,
}


def kept_rows(name: str, sections: list[str]) -> list[Row]:
    """Read the rows of an earlier run that this one does not replace."""
    path = records.RESULTS / f"{name}.json"
    rows = json.loads(path.read_text())["rows"] if path.exists() else []
    return [row for row in rows if row["section"] not in sections]


def main() -> None:
    """Run the sections, print their rows and keep them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    everything = [*SECTIONS, "settings"]
    parser.add_argument("--data", type=Path, help="directory of *.npz (default: $TINC_DATA)")
    parser.add_argument("--only", nargs="+", choices=everything, default=everything)
    parser.add_argument("--volume", default="mri_t1", help="for all sections but settings")
    parser.add_argument("--name", default="fit", help="stem of the file of results")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = kept_rows(options.name, options.only)

    def keep(section: str, volume: str, row: Row) -> None:
        rows.append({"section": section, "volume": volume, **row})
        Console(width=160).print(rows[-1])
        records.save(options.name, rows, edge=EDGE, ratio=RATIO)

    with config.set(threads=1, device="cpu"):
        problem = Problem.of(options.volume, options.data)
        # Compile first: what is measured is the fit, not the compiler.
        for make in (problem.adam, problem.soap):
            train(problem, make, problem.fused(problem.plan.samples), 20, 1e-3)
        for section, compare in SECTIONS.items():
            if section in options.only:
                for row in compare(problem):
                    keep(section, options.volume, row)
        if "settings" in options.only:
            for name in SETTINGS_VOLUMES:
                for row in compare_settings(name, options.data):
                    keep("settings", name, row)


if __name__ == "__main__":
    main()
