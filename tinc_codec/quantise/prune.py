"""Pruning of weights while a model trains, as Rapid-INR does it.

References
----------
Rapid-INR, arXiv 2306.16699, section on dynamic pruning.
"""

from dataclasses import dataclass, field

import torch

ROUNDS = 4
_SHARE = 0.05
_TOLERANCE_DB = 0.1
_LARGEST_SHARE = 0.5


@dataclass
class PruningSchedule:
    """Says how much of a model to prune in each of `ROUNDS` rounds.

    "iterative" removes the same share of the remaining weights each round. "dynamic" adapts the
    share to the PSNR reached since the last round: more where the loss stayed within 0.1 dB of
    the best so far, half as much where it did not.

    Attributes
    ----------
    kind : str
        "none", "iterative" or "dynamic".
    """

    kind: str
    _share: torch.Tensor | None = field(default=None, init=False)
    _best: torch.Tensor | None = field(default=None, init=False)

    def shares(self, psnr: torch.Tensor) -> torch.Tensor:
        """Return the share of the remaining weights to prune now, per chunk.

        Parameters
        ----------
        psnr : Tensor
            Shape (chunk,): PSNR reached, in dB up to a constant per chunk.
        """
        if self._share is None or self._best is None:
            self._share = torch.full_like(psnr, _SHARE)
            self._best = psnr.clone()
        elif self.kind == "dynamic":
            recovered = psnr >= self._best - _TOLERANCE_DB
            factor = torch.where(recovered, 1.5, 0.5)
            self._share = (self._share * factor).clamp(max=_LARGEST_SHARE)
            self._best = torch.maximum(self._best, psnr)
        return self._share


def prune_smallest(
    keep: torch.Tensor, magnitude: torch.Tensor, shares: torch.Tensor
) -> torch.Tensor:
    """Drop the smallest of the weights still kept.

    Parameters
    ----------
    keep : Tensor of bool
        Shape (chunk, volume, parameter).
    magnitude : Tensor of float32
        Same shape; what weights are compared by.
    shares : Tensor of float32
        Shape (chunk,): part of the kept weights to drop, 0 to 1.

    Returns
    -------
    Tensor of bool
        The new mask.
    """
    flat = torch.where(keep, magnitude, torch.inf).flatten(1)
    drop = (shares * keep.flatten(1).sum(dim=1)).long()
    rank = flat.argsort(dim=1).argsort(dim=1)
    return keep & (rank >= drop[:, None]).reshape(keep.shape)
