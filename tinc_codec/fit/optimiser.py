"""Gradients -> directions: SOAP where it is compiled, on the CPU, Adam on other devices."""

from typing import Protocol

import torch

from tinc_codec.model.octree_mlp import TreeShape

_BETA1, _BETA2, _EPSILON = 0.95, 0.999, 1e-12


class Optimiser(Protocol):
    """State of the optimisation of independent models."""

    def __call__(self, gradients: torch.Tensor) -> torch.Tensor:
        """Return directions [model, parameter] for gradients [model, parameter].

        They are to be subtracted, times a learning rate; a buffer that the next call may write.
        """
        ...

    def stop(self, models: torch.Tensor) -> None:
        """Take the momentum of some models away; bool [model]."""
        ...


class Adam:
    """Adam with bias correction; as `Optimiser`."""

    def __init__(self) -> None:
        self._m: torch.Tensor | None = None
        self._v: torch.Tensor | None = None
        self._step = 0

    def __call__(self, gradients: torch.Tensor) -> torch.Tensor:
        """See `Optimiser`."""
        if self._m is None or self._v is None:
            self._m, self._v = torch.zeros_like(gradients), torch.zeros_like(gradients)
        self._step += 1
        self._m.lerp_(gradients, 1 - _BETA1)
        self._v.mul_(_BETA2).addcmul_(gradients, gradients, value=1 - _BETA2)
        scale = (1 - _BETA2**self._step) ** 0.5 / (1 - _BETA1**self._step)
        return self._m * scale / (self._v.sqrt() + _EPSILON)

    def stop(self, models: torch.Tensor) -> None:
        """See `Optimiser`."""
        if self._m is not None:
            self._m[models] = 0.0


def optimiser_for(shape: TreeShape, models: int, device: str) -> Optimiser:
    """Choose the optimiser for a device.

    At equal time SOAP wins where its many small matrices are compiled; as dozens of tiny torch
    operations a step it would not.
    """
    if device == "cpu":
        from tinc_codec.fit.soap import Soap

        return Soap(shape, models)
    return Adam()
