"""Decoded volumes -> the voxels that a post-filter is trained on, the busy ones more often."""

import math
from dataclasses import dataclass

import numpy as np

from tinc_codec.fit.features import EXACT, FREE, FeatureTarget
from tinc_codec.kernels import kernel
from tinc_codec.model.features import step_code
from tinc_codec.model.filtering import activities, inputs_at, pad
from tinc_codec.model.fused import TILE
from tinc_codec.model.postfilter import MAX_GAIN_CODE, N_INPUTS, Conditioning, PostFilter

BATCH = 16 * TILE
"""Voxels of a step."""
_MOST_SAMPLES = 80 * BATCH


@dataclass(frozen=True, eq=False)
class Samples:
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


def draw_samples(
    values: np.ndarray,
    target: FeatureTarget,
    steps: int,
    generator: np.random.Generator,
    first: PostFilter | None,
) -> tuple[Samples, Conditioning] | None:
    """Draw voxels, the busier the likelier, and compute the network's inputs there.

    Parameters
    ----------
    values : ndarray of float32
        Shape (B, z, y, x): t before the filter, not clipped.
    target : FeatureTarget
        What it should be.
    steps : int
        Of the training: no more voxels are drawn than it looks at.
    generator : Generator
    first : PostFilter or None
        One that is trained further: its conditioning is kept.

    Returns
    -------
    Samples
    Conditioning
        Or None where values are all alike, or none of them counts.
    """
    padded = [pad(volume) for volume in values]
    activity = np.empty_like(values)
    for volume, out in zip(padded, activity, strict=True):
        activities(volume, np.float32(0), out)
    mean = float(activity.mean())
    if not mean > 0:
        return None
    conditioning = _conditioning(mean, values) if first is None else first.conditioning
    squares = activity.reshape(-1)
    np.square(squares, out=squares)
    if target.demands is not None:
        squares[target.demands.reshape(-1) == FREE] = 0
    total = float(squares.sum(dtype=np.float64))
    if not total > 0:
        return None
    # Half of the draws by what an error may cost there, half by chance alone.
    chance = squares
    chance *= np.float32(0.5 / total)
    chance += np.float32(0.5 / chance.size)
    count = min(max(BATCH, -(-values.size // BATCH) * BATCH), _MOST_SAMPLES, steps * BATCH)
    drawn = np.empty(count, np.int64)
    _stratify(chance, generator.random(count), drawn)
    demands = np.full(count, EXACT, np.uint8)
    if target.demands is not None:
        demands = target.demands.reshape(-1)[drawn]
    weight = 1 / (chance[drawn] * chance.size)
    weight[demands == FREE] = 0
    inputs = np.empty((N_INPUTS, count), np.float32)
    there, centre = np.empty((2, count), np.float32)
    volumes, *places = np.unravel_index(drawn, values.shape)
    where = np.stack(places, axis=1)
    ends = np.searchsorted(volumes, np.arange(len(padded) + 1))
    for volume, first, last in zip(padded, ends, ends[1:], strict=False):
        part = slice(first, last)
        inputs_at(
            volume, where[part], conditioning.constants, inputs[:, part], there[part], centre[part]
        )
    order = generator.permutation(count)
    samples = Samples(
        inputs.take(order, axis=1),
        there[order],
        centre[order],
        target.values.reshape(-1)[drawn][order],
        weight.astype(np.float32)[order],
        demands[order],
    )
    return samples, conditioning


def _conditioning(activity: float, values: np.ndarray) -> Conditioning:
    """Let inputs have a mean near 0 and a standard deviation near 1."""
    clipped = np.clip(values, 0, 1)
    middle = float(clipped.mean(dtype=np.float64))
    clipped -= np.float32(middle)
    np.square(clipped, out=clipped)
    spread = math.sqrt(float(clipped.mean(dtype=np.float64)))
    gain_code = round(16 * math.log2(1 / max(spread, 2.0**-8)))
    return Conditioning(
        step_code(activity), round(255 * middle), min(max(gain_code, 0), MAX_GAIN_CODE)
    )


@kernel
def _stratify(chance, uniform, drawn):  # type: ignore[no-untyped-def]
    """Draw places in ascending order, one from each equal part of the sum of their chances."""
    place = 0
    reached = np.float64(chance[0])
    for k in range(len(drawn)):
        wanted = (k + uniform[k]) / len(drawn)
        while reached < wanted and place < len(chance) - 1:
            place += 1
            reached += chance[place]
        drawn[k] = place
