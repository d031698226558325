"""What fitting chunks on a GPU holds there, estimated before anything is put on it."""

import math
from collections.abc import Sequence

from tinc_codec.fit.plan import fit_plan
from tinc_codec.model.budget import plan_shape, smallest_section
from tinc_codec.model.octree_mlp import TreeShape
from tinc_codec.params import FEATURE_PRUNINGS, EncodingParams

_PARAMETER_COPIES = 24
"""Weights, their moments, the best ones so far, and what a step makes of them."""
_TRAINED_COPIES = 30
"""Volumes that a training of features holds: coefficients, moments, and the wavelet's graph."""
_UNEQUAL = 2
"""By how much the widest node may exceed the mean where nodes are not equal."""
_FIXED_BYTES = 32 << 20


def fit_bytes(
    batched_shape: tuple[int, int, int, int], limit_bytes: int, params: EncodingParams, count: int
) -> int:
    """Bound what the fit of some chunks of one shape holds on the device, in bytes.

    Parameters
    ----------
    batched_shape : tuple of int
        (B, z, y, x) of each.
    limit_bytes : int
        The most that a tree section of one of them may have.
    params : EncodingParams
    count : int

    Returns
    -------
    int
        0 where nothing is fitted on a device.
    """
    found = [0]
    if params.pruning in FEATURE_PRUNINGS:
        # One after the other.
        found.append(_TRAINED_COPIES * 4 * math.prod(batched_shape))
    if params.model == "tree" or (params.model == "auto" and params.ratio is not None):
        shape = plan_shape(batched_shape, max(limit_bytes, smallest_section(batched_shape)), params)
        found.append(_tree_bytes(shape, batched_shape, params, count))
    return max(found) + _FIXED_BYTES if any(found) else 0


def _tree_bytes(
    shape: TreeShape, batched_shape: Sequence[int], params: EncodingParams, count: int
) -> int:
    """Bound what `fit.trainer.Trainer` holds with `fit.gradient.TorchGradient`."""
    models = count * batched_shape[0]
    leaf = math.prod(shape.leaf_size)
    samples = shape.leaf_count * min(fit_plan(shape, params).samples, leaf)
    # Values and whether they count; the sampled places; what autograd keeps of each layer.
    volumes = (4 + 1) * models * shape.leaf_count * leaf
    places = 16 * 8 * samples
    widest = [max(row) for row in shape.widths]
    kept = sum(2 * layers * width for layers, width in zip(shape.layers, widest, strict=True))
    activations = 4 * models * samples * (kept + 3 * max(widest) + 12)
    if params.node_split in ("aoi", "variance"):
        activations *= _UNEQUAL
    padded = sum(
        table.shape[0] * (int(table[:, layer, 2].max()) * (int(table[:, layer, 3].max()) + 1))
        for table in shape.node_tables
        for layer in range(table.shape[1])
    )
    weights = 4 * models * (_PARAMETER_COPIES * shape.parameter_count + 4 * padded) + 8 * padded
    return volumes + places + activations + weights
