"""Effort -> how long a fit trains."""

import math

from tinc_codec.fit.trainer import FitPlan
from tinc_codec.model.octree_mlp import TreeShape
from tinc_codec.params import EncodingParams

STEPS_BY_EFFORT = (200, 400, 800, 1600, 3000, 6000, 12000, 24000, 48000, 90000)
"""At the default, 4, a 64^3 chunk at 64x takes about 10 s on two cores."""
_LEARNING_RATE = 0.25
"""Over the width of the widest node: wider sine layers diverge at a rate that narrow ones like."""
_HIGHEST_RATE = 0.01
_RATED_W0 = 15.0
"""Those rates are for this w0; what counts is by how much a step changes a sine's angle."""
_SAMPLED_PART = 16
_FEWEST_SAMPLES, _MOST_SAMPLES = 64, 1024


def fit_plan(shape: TreeShape, params: EncodingParams) -> FitPlan:
    """Choose the plan of a fit.

    A step looks at one in sixteen voxels of every leaf, between 64 and 1024 of them.
    """
    voxels = math.prod(shape.leaf_size)
    samples = min(_MOST_SAMPLES, max(_FEWEST_SAMPLES, voxels // _SAMPLED_PART))
    pruning = params.pruning if params.pruning in ("iterative", "dynamic") else "none"
    width = max(max(row) for row in shape.widths)
    rate = min(_LEARNING_RATE / width, _HIGHEST_RATE) * _RATED_W0 / shape.w0
    return FitPlan(
        steps=STEPS_BY_EFFORT[params.effort],
        samples=samples,
        learning_rate=rate,
        pruning=pruning,
        seed=params.seed,
    )
