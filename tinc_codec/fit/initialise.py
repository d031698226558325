"""Initial weights of sine layers."""

import math

import numpy as np

from tinc_codec.model.octree_mlp import TreeShape


def initial_parameters(shape: TreeShape, seed: int) -> np.ndarray:
    """Draw the initial parameters of one volume's tree.

    Weights and biases are uniform within sqrt(6 / inputs) / w0, which keeps the distribution of
    activations from layer to layer; the root's first layer has weights within 1 / inputs, and
    biases over one period of its sine, no further, since a bias beyond it says the same at a
    higher rate.

    Returns
    -------
    ndarray of float32
        Shape (parameter,).

    References
    ----------
    SIREN, arXiv 2006.09661, section 3.2.
    """
    limits = np.empty(shape.parameter_count, dtype=np.float64)
    for tensor in shape.tensors:
        rows = shape.node_tables[tensor.level][:, tensor.layer]
        outputs, inputs = rows[:, 2], rows[:, 3]
        if tensor.level == 0 and tensor.layer == 0:
            bound = 1.0 / inputs if tensor.kind == "weight" else np.full(1, math.pi / shape.w0)
        else:
            bound = np.sqrt(6.0 / inputs) / shape.w0
        sizes = outputs * inputs if tensor.kind == "weight" else outputs
        limits[tensor.start : tensor.stop] = np.repeat(bound, sizes)
    generator = np.random.default_rng(seed)
    return (limits * generator.uniform(-1.0, 1.0, limits.size)).astype(np.float32)
