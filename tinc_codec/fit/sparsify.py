"""Normalised volumes -> features whose sparsity is learnt while their coefficients are trained.

The alternative to the closed form of `fit.features`, as in Latent Feature Grid Compression:
wavelet coefficients are the parameters of a gradient descent on the clipped reconstruction, a
penalty decides which of them survive, and survivors are rounded without rate-distortion zeroing.
Coefficients are counted in quantiser steps throughout, so that a penalty means the same on every
chunk.
"""

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from tinc_codec.entropy.pyramid import low_pass_slices
from tinc_codec.errors import ConfigError
from tinc_codec.fit.descent import code_of
from tinc_codec.fit.feature_search import FeatureCode, fit_to_size
from tinc_codec.fit.features import ABOVE, BELOW, FREE, FeatureFit, FeatureTarget
from tinc_codec.model import torch_wavelet
from tinc_codec.model.features import feature_levels, feature_step

METHODS = ("smallify", "dropout", "rate")

_PASSES = 4
_CONTROL_EVERY = 10
"""Optimiser steps between two looks at the size."""
_CONTROL_GAIN = 0.5
_CONTROL_LIMIT = 0.3
_FIRST_STRENGTH = 0.1
"""Squared steps that one unit of the penalty is worth at first."""


@dataclass(frozen=True, kw_only=True)
class SparsifyPlan:
    """How coefficients are trained.

    Attributes
    ----------
    method : {"smallify", "dropout", "rate"}
        A mask under an L1 penalty, pruned where its sign wavers; variational dropout; or
        log2(1 + |symbol|) as a stand-in for the rate.
    steps : int
        Optimiser steps in all, at least 20.
    learning_rate : float
        In quantiser steps, at the start.
    settling_share : float
        Part of the steps, at the end, in which survivors train on without a penalty; in [0, 1).
    coarseness : float
        The quantiser step, relative to that of the closed form at the same size.
    noise : bool
        Whether survivors settle under uniform noise of one quantiser step.
    seed : int
        Of the noise.

    Raises
    ------
    ConfigError
        If a value is out of range.
    """

    method: str
    steps: int = 300
    learning_rate: float = 0.1
    settling_share: float = 0.3
    coarseness: float = 0.8
    noise: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ConfigError(f"method={self.method!r} is not one of {', '.join(METHODS)}")
        if self.steps < 20:
            raise ConfigError(f"steps={self.steps} is not at least 20")
        if not 0 <= self.settling_share < 1:
            raise ConfigError(f"settling_share={self.settling_share:g} is not in [0, 1)")
        for name in ("learning_rate", "coarseness"):
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigError(f"{name}={getattr(self, name):g} is not finite and > 0")


class TrainedFit(FeatureFit):
    """Coefficients that are quantised as they are, whatever the transform of the target is.

    Parameters
    ----------
    target : FeatureTarget
    coefficients : ndarray of float32
        Shape of the target's values.
    threads : int
    lmbda : float
        Squared steps that a bit is worth; 0 rounds to the nearest integer.
    """

    def __init__(
        self, target: FeatureTarget, coefficients: np.ndarray, threads: int, lmbda: float = 0.0
    ) -> None:
        super().__init__(target, threads, lmbda)
        self._coefficients = coefficients

    @property
    def learns(self) -> bool:
        """Nothing: what a voxel asks for has been part of the training."""
        return False


def sparsify_to_size(
    target: FeatureTarget, limit_bytes: int, plan: SparsifyPlan, device: str, threads: int
) -> FeatureCode | None:
    """Find the best trained features whose section has at most `limit_bytes`; None where none has.

    Parameters
    ----------
    target : FeatureTarget
    limit_bytes : int
    plan : SparsifyPlan
    device : str
        A torch device; symbols are chosen and coded on the CPU.
    threads : int
        Threads of the choice of symbols.
    """
    coefficients = train_coefficients(target, limit_bytes, plan, device, threads)
    if coefficients is None:
        return None
    return fit_to_size(TrainedFit(target, coefficients, threads), limit_bytes, _PASSES)


def train_coefficients(
    target: FeatureTarget, limit_bytes: int, plan: SparsifyPlan, device: str, threads: int
) -> np.ndarray | None:
    """Train coefficients of which as many survive as fit a size.

    Returns
    -------
    ndarray of float32 or None
        Shape (B, z, y, x), what has been pruned exactly 0; None where not even the closed form
        fits.
    """
    closed = FeatureFit(target, threads)
    code = fit_to_size(closed, limit_bytes, _PASSES)
    if code is None:
        return None
    finer = -64 * math.log2(plan.coarseness)
    step_code = closed.clip(code_of(code.section) + finer)
    torch_threads = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        return _Training(target, limit_bytes, plan, step_code, device, threads).run()
    finally:
        torch.set_num_threads(torch_threads)


class _Training:
    def __init__(
        self,
        target: FeatureTarget,
        limit_bytes: int,
        plan: SparsifyPlan,
        step_code: int,
        device: str,
        threads: int,
    ) -> None:
        self._target, self._limit, self._plan = target, limit_bytes, plan
        self._step_code, self._threads = step_code, threads
        self._step = feature_step(step_code)
        self._generator = torch.Generator(device).manual_seed(plan.seed)
        self._loss = _Loss(target, self._step, device)
        start = torch_wavelet.forward(self._loss.wanted()) / self._step
        _, z, y, x = target.values.shape
        pays = torch.ones_like(start)
        pays[(slice(None), *low_pass_slices(feature_levels((z, y, x)), (z, y, x)))] = 0
        self._penalty = _PENALTIES[plan.method](start, pays, self._generator)
        self._strength = _FIRST_STRENGTH

    def run(self) -> np.ndarray:
        plan, penalty = self._plan, self._penalty
        settling = round(plan.steps * plan.settling_share)
        optimiser = torch.optim.Adam(penalty.parameters(plan.learning_rate), betas=(0.9, 0.99))
        schedule = _cosine(optimiser, plan.steps)
        for number in range(plan.steps - settling):
            optimiser.zero_grad()
            loss = self._loss(penalty.sample()) + self._strength * penalty.cost()
            loss.backward()
            optimiser.step()
            schedule.step()
            penalty.track()
            if number % _CONTROL_EVERY == _CONTROL_EVERY - 1:
                self._control()
        return self._settle(penalty.survivors(), settling)

    def _control(self) -> None:
        """Make the penalty stronger where survivors take too many bytes, weaker if too few."""
        coefficients = (self._penalty.survivors() * self._step).cpu().numpy()
        fit = TrainedFit(self._target, coefficients, self._threads)
        _, size_bytes = fit.quantise(self._step_code)
        excess = _CONTROL_GAIN * math.log(size_bytes / self._limit)
        self._strength *= math.exp(min(max(excess, -_CONTROL_LIMIT), _CONTROL_LIMIT))

    def _settle(self, survivors: torch.Tensor, steps: int) -> np.ndarray:
        """Let survivors grow back from what the penalty made of them."""
        alive = (survivors != 0).to(survivors.dtype)
        values = survivors.clone().requires_grad_()
        optimiser = torch.optim.Adam([values], lr=self._plan.learning_rate, betas=(0.9, 0.99))
        schedule = _cosine(optimiser, max(1, steps))
        for _ in range(steps):
            optimiser.zero_grad()
            seen = values
            if self._plan.noise:
                seen = values + _uniform(values, self._generator) - 0.5
            self._loss(seen * alive).backward()
            optimiser.step()
            schedule.step()
        trained: np.ndarray = (values.detach() * alive * self._step).cpu().numpy()
        return trained


class _Loss:
    """Squared error of the clipped reconstruction, in squared quantiser steps, as a sum."""

    def __init__(self, target: FeatureTarget, step: float, device: str) -> None:
        self._values = torch.from_numpy(target.values).to(device)
        self._base: torch.Tensor | float = 0.0
        if target.base is not None:
            self._base = torch.from_numpy(target.base).to(device)
        self._demands = None
        if target.demands is not None:
            self._demands = torch.from_numpy(target.demands).to(device)
        self._step = step

    def wanted(self) -> torch.Tensor:
        return self._values - self._base

    def __call__(self, coefficients: torch.Tensor) -> torch.Tensor:
        decoded = torch_wavelet.inverse(coefficients * self._step) + self._base
        error = decoded - self._values
        if self._demands is not None:
            # As clipping to the value range does, but it leaves a gradient to what must be met.
            demands = self._demands
            error = torch.where(demands == BELOW, error.clamp(min=0), error)
            error = torch.where(demands == ABOVE, error.clamp(max=0), error)
            error = error.masked_fill(demands == FREE, 0)
        return error.square().sum() / self._step**2


class _Penalty(Protocol):
    """What decides on survivors; all tensors are float, [B, z, y, x], in quantiser steps."""

    def __init__(
        self, start: torch.Tensor, pays: torch.Tensor, generator: torch.Generator
    ) -> None: ...

    def parameters(self, learning_rate: float) -> list[dict[str, object]]:
        """Return the groups of parameters for the optimiser."""
        ...

    def sample(self) -> torch.Tensor:
        """Return coefficients as the loss is to see them."""
        ...

    def cost(self) -> torch.Tensor:
        """Return the penalty, a scalar."""
        ...

    def track(self) -> None:
        """Note what an optimiser step has done."""
        ...

    def survivors(self) -> torch.Tensor:
        """Return coefficients, detached, exactly 0 where they are pruned."""
        ...


class _Smallify:
    """Coefficient times mask, L1 on the mask and L2 on the coefficient; pruned for good.

    References
    ----------
    Leclerc et al., Smallify, arXiv 1806.03723, section 3.
    """

    _MOMENTUM = 0.1
    _PRUNED_FROM = 0.5
    """Running variance of the sign; it is at most 1."""
    _MASK_RATE = 0.5
    """Learning rate of masks relative to that of coefficients."""

    def __init__(self, start: torch.Tensor, pays: torch.Tensor, generator: torch.Generator) -> None:
        self._weights = start.clone().requires_grad_()
        self._masks = torch.ones_like(start).requires_grad_()
        self._pays = pays
        self._alive = torch.ones_like(start)
        self._mean = torch.ones_like(start)
        self._variance = torch.zeros_like(start)

    def parameters(self, learning_rate: float) -> list[dict[str, object]]:
        return [
            {"params": [self._weights], "lr": learning_rate},
            {"params": [self._masks], "lr": self._MASK_RATE * learning_rate},
        ]

    def sample(self) -> torch.Tensor:
        return self._weights * self._masks * self._alive

    def cost(self) -> torch.Tensor:
        paying = self._pays * self._alive
        return ((self._masks.abs() + 0.5 * self._weights.square()) * paying).sum()

    def track(self) -> None:
        with torch.no_grad():
            change = torch.sign(self._masks) - self._mean
            self._mean += self._MOMENTUM * change
            self._variance += self._MOMENTUM * change.square()
            self._variance *= 1 - self._MOMENTUM
            self._alive *= self._variance <= self._PRUNED_FROM

    def survivors(self) -> torch.Tensor:
        return self.sample().detach()


class _Dropout:
    """A coefficient under Gaussian noise of learnt variance, which a prior wants large.

    References
    ----------
    Molchanov et al., Variational Dropout Sparsifies Deep Neural Networks, arXiv 1701.05369,
    sections 4.2 to 4.4.
    """

    _K1, _K2, _K3 = 0.63576, 1.87320, 1.48695
    _PRUNED_FROM = 3.0
    """log alpha."""
    _FIRST_LOG_VARIANCE = -3.0
    _VARIANCE_RATE = 2.0
    """Learning rate of log variances relative to that of coefficients."""

    def __init__(self, start: torch.Tensor, pays: torch.Tensor, generator: torch.Generator) -> None:
        self._means = start.clone().requires_grad_()
        self._log_variances = torch.full_like(start, self._FIRST_LOG_VARIANCE).requires_grad_()
        self._pays = pays
        self._generator = generator

    def _log_alpha(self) -> torch.Tensor:
        return self._log_variances - torch.log(self._means.square() + 1e-8)

    def parameters(self, learning_rate: float) -> list[dict[str, object]]:
        return [
            {"params": [self._means], "lr": learning_rate},
            {"params": [self._log_variances], "lr": self._VARIANCE_RATE * learning_rate},
        ]

    def sample(self) -> torch.Tensor:
        noise = torch.empty_like(self._means).normal_(generator=self._generator)
        spread = torch.exp(0.5 * self._log_variances) * self._pays
        return self._means + spread * noise

    def cost(self) -> torch.Tensor:
        log_alpha = self._log_alpha()
        gain = self._K1 * torch.sigmoid(self._K2 + self._K3 * log_alpha)
        shortfall = 0.5 * torch.nn.functional.softplus(-log_alpha) + self._K1 - gain
        return (shortfall * self._pays).sum()

    def track(self) -> None:
        pass

    def survivors(self) -> torch.Tensor:
        kept = (self._log_alpha() < self._PRUNED_FROM) | (self._pays == 0)
        return (self._means * kept).detach()


class _Rate:
    """log2(1 + |coefficient|), and what rounds to 0 is pruned."""

    def __init__(self, start: torch.Tensor, pays: torch.Tensor, generator: torch.Generator) -> None:
        self._values = start.clone().requires_grad_()
        self._pays = pays

    def parameters(self, learning_rate: float) -> list[dict[str, object]]:
        return [{"params": [self._values], "lr": learning_rate}]

    def sample(self) -> torch.Tensor:
        return self._values

    def cost(self) -> torch.Tensor:
        return (torch.log2(1 + self._values.abs()) * self._pays).sum()

    def track(self) -> None:
        pass

    def survivors(self) -> torch.Tensor:
        values = self._values.detach()
        return values * ((values.abs() >= 0.5) | (self._pays == 0))


_PENALTIES: dict[str, type[_Penalty]] = {
    "smallify": _Smallify,
    "dropout": _Dropout,
    "rate": _Rate,
}


def _uniform(like: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    return torch.empty_like(like).uniform_(generator=generator)


def _cosine(
    optimiser: torch.optim.Optimizer, steps: int
) -> torch.optim.lr_scheduler.CosineAnnealingLR:
    return torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
