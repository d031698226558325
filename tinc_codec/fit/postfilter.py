"""Decoded volumes and what they should be -> a post-filter section within its byte limit.

The network is trained on voxels of the chunk, more of them where it is busy, by SOAP on compiled
gradients; for the last part of the training with its weights rounded to the steps of the format.
"""

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numba import njit

from tinc_codec.fit.features import ABOVE, BELOW, EXACT, FREE, FeatureTarget
from tinc_codec.fit.fused import add_weight_gradient, input_gradient
from tinc_codec.fit.soap import Soap
from tinc_codec.model.features import feature_step, step_code
from tinc_codec.model.filtering import activities, apply_postfilter, inputs_at, pad
from tinc_codec.model.fused import TILE, affine
from tinc_codec.model.postfilter import (
    MAX_GAIN_CODE,
    N_INPUTS,
    CodedTensor,
    Conditioning,
    fixed_bytes,
    layer_table,
    parameter_count,
    read_postfilter,
    tensors_of,
    write_postfilter,
)
from tinc_codec.quantise.scalar import dequantise, q_step, quantise, step_codes
from tinc_codec.quantise.search import StepSearch

_COMPILE = {"nogil": True, "cache": True, "error_model": "numpy", "fastmath": True}

BITS_PER_PARAMETER = 5.5
_BATCH = 16 * TILE
_MOST_SAMPLES = 80 * _BATCH
_LEARNING_RATE = 0.03
_WARM_UP = 0.05
_ROUNDED = 0.35
"""Part of the steps that is taken with rounded weights."""
_FIRST_STEPS = 8.0
"""Steps per standard deviation of a tensor's weights, where the search for steps begins."""
_BIAS_FINER = 2.0
_CODER_BYTES = 5


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


@dataclass(frozen=True, eq=False)
class _Samples:
    """Voxels to train on, in random order.

    Attributes
    ----------
    inputs : ndarray of float32
        Shape (input, sample).
    activity, centre, wanted, weight : ndarray of float32
        Shape (sample,).
    demands : ndarray of uint8
        Shape (sample,).
    """

    inputs: np.ndarray
    activity: np.ndarray
    centre: np.ndarray
    wanted: np.ndarray
    weight: np.ndarray
    demands: np.ndarray


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
    gain_db : float
        By how much it raises the PSNR, measured on t.
    values : ndarray of float32
        Shape (B, z, y, x): t, filtered.
    """

    section: bytes
    gain_db: float
    values: np.ndarray


def plan_of(effort: int, limit_bytes: int, voxels: int) -> FilterPlan | None:
    """Choose a post-filter for a chunk's bytes and an effort; None where it has none."""
    share, most, passes = _BY_EFFORT[effort]
    fitting = [w for w in _WIDTHS[:most] if section_bytes(w) <= share * limit_bytes]
    if not fitting:
        return None
    return FilterPlan(fitting[-1], max(_LEAST_STEPS, round(passes * voxels / _BATCH)))


_WIDTHS = ((8,), (8, 8), (12, 12), (16, 16), (24, 24), (32, 32))
_BY_EFFORT = (
    (0, 0, 0), (0.04, 2, 0.25), (0.04, 2, 0.5), (0.04, 4, 1), (0.04, 4, 2),
    (0.04, 4, 4), (0.05, 5, 4), (0.05, 5, 6), (0.05, 6, 8), (0.05, 6, 12),
)  # fmt: skip
"""Per effort: the part of the bytes that a filter may take, how many of the widths it chooses from,
and how often, on average, it sees each voxel."""
_LEAST_STEPS = 200


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

    Returns
    -------
    FittedFilter or None
        None where it does not fit, or where nothing is left to mend.
    """
    widths, steps = plan.widths, plan.steps
    drawn = _draw(values, target, steps, np.random.default_rng(seed))
    if drawn is None:
        return None
    samples, conditioning = drawn
    bits = 8.0 * (limit_bytes - fixed_bytes(widths) - _CODER_BYTES)
    coded = _train(samples, widths, steps, bits, seed)
    if coded is None:
        return None
    section = write_postfilter(widths, conditioning, coded)
    if len(section) > limit_bytes:
        return None
    filtered = apply_postfilter(values, read_postfilter(section), threads)
    before, after = (squared_error(target, t) for t in (values, filtered))
    gain = math.inf if after == 0 else 10 * math.log10(before / after)
    return FittedFilter(section, gain, filtered)


def squared_error(target: FeatureTarget, values: np.ndarray) -> float:
    """Sum up the squared errors of what t decodes to, where it counts."""
    total = 0.0
    for number in range(len(values)):
        errors = np.clip(values[number], 0, 1)
        errors -= target.values[number]
        if target.demands is not None:
            errors[target.demands[number] == FREE] = 0
        total += float(np.vdot(errors, errors))
    return total


def _draw(
    values: np.ndarray, target: FeatureTarget, steps: int, generator: np.random.Generator
) -> tuple[_Samples, Conditioning] | None:
    """Draw voxels, the busier the likelier, and compute the network's inputs there."""
    padded = [pad(volume) for volume in values]
    activity = np.empty_like(values)
    for volume, out in zip(padded, activity, strict=True):
        activities(volume, np.float32(0), out)
    mean = float(activity.mean())
    if not mean > 0:
        return None
    clipped = np.clip(values, 0, 1)
    spread = float(clipped.std())
    gain_code = round(16 * math.log2(1 / max(spread, 2.0**-8)))
    conditioning = Conditioning(
        step_code(mean), round(255 * float(clipped.mean())), min(max(gain_code, 0), MAX_GAIN_CODE)
    )
    mean = feature_step(conditioning.activity_code)
    # Half of the draws by what an error costs, half by chance alone.
    chance = np.square(activity.reshape(-1), dtype=np.float64)
    if target.demands is not None:
        chance[target.demands.reshape(-1) == FREE] = 0
    total = float(chance.sum())
    if not total > 0:
        return None
    importance = chance / total
    chance = 0.5 * importance + 0.5 / chance.size
    count = min(max(_BATCH, -(-values.size // _BATCH) * _BATCH), _MOST_SAMPLES, steps * _BATCH)
    ends = np.cumsum(chance)
    drawn = np.searchsorted(ends, generator.random(count) * ends[-1])
    volumes, *places = np.unravel_index(np.minimum(drawn, chance.size - 1), values.shape)
    demands = np.full(count, EXACT, np.uint8)
    if target.demands is not None:
        demands = target.demands.reshape(-1)[drawn]
    weight = 1 / (chance[drawn] * chance.size)
    weight[demands == FREE] = 0
    samples = _Samples(
        np.empty((N_INPUTS, count), np.float32),
        np.empty(count, np.float32),
        np.empty(count, np.float32),
        target.values.reshape(-1)[drawn],
        weight.astype(np.float32),
        demands,
    )
    volumes, *places = np.unravel_index(drawn, values.shape)
    where = np.stack(places, axis=1)
    for number, volume in enumerate(padded):
        inside = np.flatnonzero(volumes == number)
        inputs = np.empty((N_INPUTS, len(inside)), np.float32)
        activity_there, centre = np.empty((2, len(inside)), np.float32)
        inputs_at(volume, where[inside], conditioning.constants, inputs, activity_there, centre)
        samples.inputs[:, inside] = inputs
        samples.activity[inside] = activity_there
        samples.centre[inside] = centre
    return samples, conditioning


def _train(
    samples: _Samples, widths: tuple[int, ...], steps: int, bits: float, seed: int
) -> list[CodedTensor] | None:
    """Train a network; None where its symbols take more bits than there are, however coarse."""
    network = _Network(widths)
    (table,) = network.node_tables
    parts = tensors_of(widths)
    parameters = _initial(table, np.random.default_rng(seed))
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
                found = _code(parameters, parts, _first_codes(parameters, parts), bits)
                if found is None:
                    return None
                codes = [tensor.step_code for tensor in found]
            used = _round(parameters, parts, codes)
        gradient.fill(0)
        begin = step * _BATCH % count
        _add_gradient(used, table, network.max_width, *arrays, begin, begin + _BATCH, factor,
                      gradient[0])  # fmt: skip
        rate = _LEARNING_RATE * 0.5 * (1 + math.cos(math.pi * step / steps))
        rate *= min(1.0, (step + 1) / (_WARM_UP * steps))
        parameters -= np.float32(rate) * optimiser.directions(gradient)[0]
    return _code(parameters, parts, codes or _first_codes(parameters, parts), bits)


def _initial(table: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Begin with random hidden layers and an output of 0."""
    *hidden, (weight, bias, _, _) = table.tolist()
    parameters = np.zeros(bias + 1, np.float32)
    for start, stop, n_out, n_in in hidden:
        limit = math.sqrt(3.0 / n_in)
        parameters[start : stop + n_out] = generator.uniform(-limit, limit, stop + n_out - start)
    return parameters


def _inverse_of_loss(samples: _Samples) -> np.float32:
    """Return what makes the loss of no filter about 1, divided by the voxels of a batch."""
    errors = samples.weight * np.square(samples.wanted - samples.centre)
    return np.float32(1 / (_BATCH * max(float(errors.mean()), 1e-30)))


def _first_codes(parameters: np.ndarray, parts: list[slice]) -> list[int]:
    codes = []
    for index, part in enumerate(parts):
        # Biases, every second tensor, are few and cost little.
        finer = _FIRST_STEPS * (_BIAS_FINER if index % 2 else 1.0)
        step = max(float(np.sqrt(np.mean(np.square(parameters[part])))), 2.0**-12) / finer
        codes.append(int(step_codes(np.array(math.log(step)))))
    return codes


def _code(
    parameters: np.ndarray, parts: list[slice], codes: list[int], bits: float
) -> list[CodedTensor] | None:
    """Round parameters with steps near some codes, as fine as a number of bits has room for."""
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


@njit(**_COMPILE)
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
            x[0, i, :n] = inputs[i, begin : begin + n]
        for layer in range(layers):
            at, bias, n_out, n_in = table[layer]
            affine(parameters, at, bias, n_out, n_in, x[layer], z, n)
            if layer < layers - 1:
                for o in range(n_out):
                    for s in range(n):
                        value = z[o, s]
                        positive = value > 0
                        x[layer + 1, o, s] = value if positive else np.float32(0)
                        slope[layer + 1, o, s] = np.float32(1) if positive else np.float32(0)
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
