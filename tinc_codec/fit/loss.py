"""The rate of a model's weights as a differentiable term of the loss."""

import math

import torch

_FLOOR = 0.15
"""Keeps the estimate finite for a tensor of zeros; fitted to real code lengths of such weights."""


class RateTerm:
    """Estimated bits of quantised weights, tensor by tensor.

    A tensor of n weights and step d counts n * log2(2 e (mean |w / d| + 0.15)): the length of
    Laplace-coded integers. `correction` carries what the real entropy coder made of it.

    Parameters
    ----------
    tensor_of : Tensor of int64
        Shape (parameter,): which tensor a parameter belongs to.
    tensors : int
    volumes : int
        Volumes of a chunk, which share the tensors' steps.
    """

    def __init__(self, tensor_of: torch.Tensor, tensors: int, volumes: int) -> None:
        self._tensor_of = tensor_of
        self._tensors = tensors
        per_volume = torch.bincount(tensor_of, minlength=tensors)
        self.counts = (per_volume * volumes).to(torch.float32)

    def sum_by_tensor(self, values: torch.Tensor) -> torch.Tensor:
        """Sum values [chunk, volume, parameter] to [chunk, tensor]."""
        total = values.sum(dim=1) if values.shape[1] > 1 else values[:, 0]
        out = total.new_zeros(len(total), self._tensors)
        return out.index_add_(1, self._tensor_of, total)

    def spread(self, values: torch.Tensor) -> torch.Tensor:
        """Repeat values [chunk, tensor] to [chunk, 1, parameter]."""
        return values[:, self._tensor_of].unsqueeze(1)

    def __call__(
        self, weights: torch.Tensor, steps: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Estimate the rate and its slopes.

        Parameters
        ----------
        weights : Tensor of float32
            Shape (chunk, volume, parameter).
        steps : Tensor of float32
            Shape (chunk, tensor).

        Returns
        -------
        bits : Tensor
            Shape (chunk,).
        by_magnitude : Tensor
            Shape (chunk, tensor): bits per unit of |w| of one weight.
        by_log_step : Tensor
            Shape (chunk, tensor): bits per unit of the step's natural logarithm; negative.
        """
        mean = self.sum_by_tensor(weights.abs()) / (self.counts * steps)
        slope = 1.0 / (math.log(2) * (mean + _FLOOR))
        bits = (self.counts * torch.log2(2 * math.e * (mean + _FLOOR))).sum(dim=1)
        return bits, slope / steps, -self.counts * mean * slope
