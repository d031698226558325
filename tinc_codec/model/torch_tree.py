"""A tree evaluated with torch on any device: all nodes of a level in one batched product.

Nodes of unequal width are padded to the widest of their level; the padding reads a zero behind
the last parameter, so it changes nothing and receives no gradient.
"""

import numpy as np
import torch

from tinc_codec.model.octree_mlp import TreeShape


class TorchTree:
    """The function of a `TreeShape`, for many models of that shape at once.

    Parameters
    ----------
    shape : TreeShape
    device : torch.device or str
    """

    def __init__(self, shape: TreeShape, device: torch.device | str) -> None:
        self.shape = shape
        self._gather = [
            [self._padded(table[:, layer], device) for layer in range(table.shape[1])]
            for table in shape.node_tables
        ]

    def _padded(
        self, rows: np.ndarray, device: torch.device | str
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Indices [node, out, in] and [node, out] into a parameter vector with one zero behind."""
        weight, bias, n_out, n_in = (rows[:, column, None, None] for column in range(4))
        out = np.arange(n_out.max())[None, :, None]
        into = np.arange(n_in.max())[None, None, :]
        nothing = self.shape.parameter_count
        weights = np.where((out < n_out) & (into < n_in), weight + out * n_in + into, nothing)
        biases = np.where(out < n_out, bias + out, nothing)[:, :, 0]
        return torch.from_numpy(weights).to(device), torch.from_numpy(biases).to(device)

    def __call__(self, parameters: torch.Tensor, coordinates: torch.Tensor) -> torch.Tensor:
        """Evaluate every leaf at its own samples.

        Parameters
        ----------
        parameters : Tensor of float32
            Shape (model, parameter).
        coordinates : Tensor of float32
            Shape (leaf, sample, axis), in [-1, 1]; shared by the models.

        Returns
        -------
        Tensor of float32
            Shape (model, leaf, sample).
        """
        models = len(parameters)
        extended = torch.cat([parameters, parameters.new_zeros(models, 1)], dim=1)
        leaves, samples, axes = coordinates.shape
        x = coordinates.expand(models, leaves, samples, axes)
        for level, layers in enumerate(self._gather):
            nodes = layers[0][0].shape[0]
            # All samples below a node stand in one block of rows.
            x = x.reshape(models, nodes, -1, x.shape[-1])
            for layer, (weights, biases) in enumerate(layers):
                w = extended[:, weights].transpose(-1, -2)
                x = torch.matmul(x, w) + extended[:, biases].unsqueeze(-2)
                if layer < self.shape.layers[level]:
                    x = torch.sin(self.shape.w0 * x)
        return x.reshape(models, leaves, samples)
