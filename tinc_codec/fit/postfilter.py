"""Decoded volumes and what they should be -> a post-filter section within its byte limit.

The network is trained on voxels of the chunk, more of them where it is busy, by SOAP on compiled
gradients; for the last part of the training with its weights rounded to the steps of the format.
"""

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from tinc_codec.fit.features import ABOVE, BELOW, FREE, FeatureTarget
from tinc_codec.fit.filter_layers import FAST, forward
from tinc_codec.fit.filter_samples import BATCH, Samples, draw_samples
from tinc_codec.fit.fused import add_weight_gradient, input_gradient
from tinc_codec.fit.soap import Soap
from tinc_codec.kernels import copy_row, kernel
from tinc_codec.model.filtering import apply_postfilter
from tinc_codec.model.fused import TILE
from tinc_codec.model.postfilter import (
    N_INPUTS,
    CodedTensor,
    PostFilter,
    fixed_bytes,
    layer_table,
    parameter_count,
    read_postfilter,
    tensors_of,
    write_postfilter,
)
from tinc_codec.quantise.scalar import dequantise, q_step, quantise, step_codes
from tinc_codec.quantise.search import StepSearch

BITS_PER_PARAMETER = 6.0
_LEARNING_RATE = 0.03
_GOING_ON = 0.3
"""By so much slower learns a network that begins with an earlier one."""
_WARM_UP = 0.05
_DECAY = 0.03
"""Of the weights, times the learning rate, per step: large ones are what rounding costs most."""
_ROUNDED = 0.35
"""Part of the steps that is taken with rounded weights."""
_FIRST_STEPS = 8.0
"""Steps per standard deviation of a tensor's weights, where the search for steps begins."""
_BIAS_FINER = 2.0
_CODER_BYTES = 5
_NOTHING = 1e-12
"""Mean squared errors of t up to this are not worth mending."""


@dataclass(frozen=True)
class _Network:
    """What `Soap` needs to know."""

    widths: tuple[int, ...]

    @cached_property
    def node_tables(self) -> tuple[np.ndarray, ...]:
        return (layer_table(self.widths),)

    @property
    def parameter_count(self) -> int:
        return parameter_count(self.widths)

    @property
    def max_width(self) -> int:
        return max(N_INPUTS, *self.widths)


@dataclass(frozen=True)
class FilterPlan:
    """How a post-filter is trained.

    Attributes
    ----------
    widths : tuple of int
        Of the hidden layers.
    steps : int
    """

    widths: tuple[int, ...]
    steps: int


@dataclass(frozen=True)
class FittedFilter:
    """A post-filter.

    Attributes
    ----------
    section : bytes
    before, squared_error : float
        Sums of squared errors of t without it and with it, where they count.
    """

    section: bytes
    before: float
    squared_error: float

    @property
    def gain_db(self) -> float:
        """By how much it raises the PSNR."""
        if self.squared_error == 0:
            return math.inf
        return 10 * math.log10(self.before / self.squared_error)


def plan_of(effort: int, limit_bytes: int, voxels: int) -> FilterPlan | None:
    """Choose a post-filter for a chunk's bytes and an effort; None where it has none."""
    most, passes = _BY_EFFORT[effort]
    fitting = [
        widths for widths, share in _SHARES[:most] if section_bytes(widths) <= share * limit_bytes
    ]
    if not fitting:
        return None
    steps = round(passes * voxels / BATCH)
    return FilterPlan(fitting[-1], min(max(LEAST_STEPS, steps), _MOST_STEPS))


_SHARES = (
    ((8,), 0.1), ((8, 8), 0.045), ((12, 12), 0.045), ((16, 16), 0.032), ((24, 24), 0.02),
    ((32, 32), 0.02),
)  # fmt: skip
"""Widths, and the part of the bytes that such a filter may take; whether it pays is seen then."""
_BY_EFFORT = (
    (0, 0), (2, 0.25), (2, 0.5), (4, 1), (4, 2), (5, 2), (5, 4), (6, 4), (6, 4), (6, 4),
)  # fmt: skip
"""Per effort: from how many of the widths it chooses, and how often, on average, the filter sees
each voxel while it is trained."""
LEAST_STEPS = 200
_MOST_STEPS = 1 << 13
"""After a hundred passes over the most samples, more of them teach nothing."""


def section_bytes(widths: tuple[int, ...]) -> int:
    """Say how many bytes the section of such a network is worth."""
    coded = math.ceil(BITS_PER_PARAMETER * parameter_count(widths) / 8)
    return fixed_bytes(widths) + coded + _CODER_BYTES


def fit_postfilter(
    values: np.ndarray,
    target: FeatureTarget,
    plan: FilterPlan,
    limit_bytes: int,
    threads: int,
    seed: int = 0,
    start: FittedFilter | None = None,
) -> FittedFilter | None:
    """Train a post-filter.

    Parameters
    ----------
    values : ndarray of float32
        Shape (B, z, y, x): t as it is decoded without the filter, not clipped.
    target : FeatureTarget
        What it should be; its base does not matter.
    plan : FilterPlan
    limit_bytes : int
        What the section may have at most.
    threads : int
    seed : int
    start : FittedFilter, optional
        One of the same plan to begin with; it is returned where training does not better it.

    Returns
    -------
    FittedFilter or None
        None where it does not fit, or where nothing is left to mend.
    """
    before = squared_error(target, values)
    if before <= _NOTHING * values.size:
        return None

    def measured(section: bytes) -> FittedFilter:
        filtered = apply_postfilter(values, read_postfilter(section), threads)
        return FittedFilter(section, before, squared_error(target, filtered))

    candidates = [] if start is None else [start.section]
    first = None if start is None else read_postfilter(start.section)
    drawn = draw_samples(values, target, plan.steps, np.random.default_rng(seed), first)
    if drawn is not None:
        bits = 8.0 * (limit_bytes - fixed_bytes(plan.widths) - _CODER_BYTES)
        coded = _train(drawn[0], plan, bits, seed, first)
        if coded is not None:
            candidates.append(write_postfilter(plan.widths, drawn[1], coded))
    fitting = [measured(section) for section in candidates if len(section) <= limit_bytes]
    return min(fitting, key=lambda found: found.squared_error, default=None)


def squared_error(target: FeatureTarget, values: np.ndarray) -> float:
    """Sum up the squared errors of what t decodes to, where it counts."""
    total = 0.0
    for number in range(len(values)):
        errors = np.clip(values[number], 0, 1)
        errors -= target.values[number]
        if target.demands is not None:
            errors[target.demands[number] == FREE] = 0
        np.square(errors, out=errors)
        total += float(errors.sum(dtype=np.float64))
    return total


def _train(
    samples: Samples, plan: FilterPlan, bits: float, seed: int, first: PostFilter | None
) -> list[CodedTensor] | None:
    """Train a network; None where its symbols take more bits than there are, however coarse."""
    widths, steps = plan.widths, plan.steps
    network = _Network(widths)
    (table,) = network.node_tables
    parts = tensors_of(widths)
    if first is None:
        parameters, learning_rate = _initial(table, np.random.default_rng(seed)), _LEARNING_RATE
    else:
        parameters, learning_rate = first.parameters.copy(), _LEARNING_RATE * _GOING_ON
    optimiser = Soap(network, 1)
    gradient = np.empty((1, network.parameter_count), np.float32)
    codes: list[int] | None = None
    factor = _inverse_of_loss(samples)
    count = len(samples.centre)
    arrays = (
        samples.inputs, samples.activity, samples.centre, samples.wanted, samples.weight,
        samples.demands,
    )  # fmt: skip
    for step in range(steps):
        used = parameters
        if step >= (1 - _ROUNDED) * steps:
            if codes is None:
                found = _code(parameters, parts, None, bits)
                if found is None:
                    return None
                codes = [tensor.step_code for tensor in found]
            used = _round(parameters, parts, codes)
        gradient.fill(0)
        begin = step * BATCH % count
        _add_gradient(used, table, network.max_width, *arrays, begin, begin + BATCH, factor,
                      gradient[0])  # fmt: skip
        rate = learning_rate * 0.5 * (1 + math.cos(math.pi * step / steps))
        rate *= min(1.0, (step + 1) / (_WARM_UP * steps))
        parameters *= np.float32(1 - rate * _DECAY)
        parameters -= np.float32(rate) * optimiser.directions(gradient)[0]
    return _code(parameters, parts, codes, bits)


def _initial(table: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Begin with random hidden layers and an output of 0."""
    *hidden, (_, bias, _, _) = table.tolist()
    parameters = np.zeros(bias + 1, np.float32)
    for start, stop, n_out, n_in in hidden:
        limit = math.sqrt(3.0 / n_in)
        parameters[start : stop + n_out] = generator.uniform(-limit, limit, stop + n_out - start)
    return parameters


def _inverse_of_loss(samples: Samples) -> np.float32:
    """Return what makes the loss of no filter about 1, divided by the voxels of a batch."""
    errors = samples.weight * np.square(samples.wanted - samples.centre)
    return np.float32(1 / (BATCH * max(float(errors.mean()), 1e-30)))


def _first_codes(parameters: np.ndarray, parts: list[slice]) -> list[int]:
    codes = []
    for index, part in enumerate(parts):
        # Biases, every second tensor, are few and cost little.
        finer = _FIRST_STEPS * (_BIAS_FINER if index % 2 else 1.0)
        step = max(float(np.sqrt(np.mean(np.square(parameters[part])))), 2.0**-12) / finer
        codes.append(int(step_codes(np.array(math.log(step)))))
    return codes


def _code(
    parameters: np.ndarray, parts: list[slice], codes: list[int] | None, bits: float
) -> list[CodedTensor] | None:
    """Round parameters as finely as a number of bits has room for, with steps near some codes.

    None where they do not fit, or where the training ran away.
    """
    if not np.isfinite(parameters).all():
        return None
    codes = _first_codes(parameters, parts) if codes is None else codes
    search = StepSearch([parameters[part] for part in parts], codes)
    position = search.finest_within(bits)
    if position is None:
        return None
    return [CodedTensor(t.step_code, t.model, t.symbols) for t in search.at(position)]


def _round(parameters: np.ndarray, parts: list[slice], codes: list[int]) -> np.ndarray:
    rounded = np.empty_like(parameters)
    for part, code in zip(parts, codes, strict=True):
        step = q_step(code)
        rounded[part] = dequantise(quantise(parameters[part], step), step)
    return rounded


@kernel(fastmath=FAST)
def _add_gradient(  # type: ignore[no-untyped-def]
    parameters, table, width, inputs, activity, centre, wanted, weight, demands, first, last,
    factor, gradient
):  # fmt: skip
    """Add the gradient of factor * sum of squared errors of samples first to last - 1."""
    layers = len(table)
    x = np.empty((layers, width, TILE), np.float32)
    slope = np.empty((layers, width, TILE), np.float32)
    z = np.empty((width, TILE), np.float32)
    d = np.empty((width, TILE), np.float32)
    scratch = np.empty((width + 1) * width, np.float32)
    for begin in range(first, last, TILE):
        n = min(TILE, last - begin)
        for i in range(inputs.shape[0]):
            copy_row(inputs[i, begin : begin + n], x[0, i])
        forward(parameters, table, x, slope, z, n)
        for s in range(n):
            i = begin + s
            error = centre[i] + activity[i] * z[0, s] - wanted[i]
            if (demands[i] == BELOW and error < 0) or (demands[i] == ABOVE and error > 0):
                error = np.float32(0)
            d[0, s] = np.float32(2) * factor * weight[i] * activity[i] * error
        for layer in range(layers - 1, -1, -1):
            at, bias, n_out, n_in = table[layer]
            add_weight_gradient(gradient, at, bias, n_out, n_in, x[layer], d, n)
            if layer:
                input_gradient(parameters, at, n_out, n_in, d, slope[layer], z, scratch, n)
                z, d = d, z
