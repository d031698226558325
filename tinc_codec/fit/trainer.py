"""Chunks -> float models whose weights are ready to be rounded.

Gradient descent on sampled voxels, its learning rate decaying along a cosine, in three phases:
float; uniform noise of one step with the rate in the loss, while the steps are learnt; rounding
with a straight-through gradient.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch

from tinc_codec.entropy.weights import choose_model
from tinc_codec.fit.gradient import gradient_for
from tinc_codec.fit.initialise import initial_parameters
from tinc_codec.fit.loss import RateTerm
from tinc_codec.fit.optimiser import optimiser_for
from tinc_codec.fit.sampler import LatticeSampler
from tinc_codec.model.octree_mlp import TreeShape
from tinc_codec.quantise.prune import ROUNDS, PruningSchedule, prune_smallest
from tinc_codec.quantise.scalar import q_step, quantise, step_codes
from tinc_codec.quantise.search import StepSearch

_WARM_UP_STEPS = 100
_INITIAL_BITS = 8
_STEP_LEARNING_RATE = 0.01
_LMBDA_RATE = 0.03
_NATURAL_SLOPE = 0.8
"""d ln(MSE) / d ln(rate) of these models near their best rate: where lmbda starts."""
_CALIBRATIONS = 12
_GUARD_STEPS = 100
_RUN_AWAY = (1.05, 1.5)
"""A loss so many times the best one means that the learning rate was too high: the second, but the
first where a model that knows nothing but the leaves' means would be about as good."""


@dataclass(frozen=True, kw_only=True)
class FitPlan:
    """How long and how a fit trains.

    Attributes
    ----------
    steps : int
        Optimiser steps in all.
    samples : int
        Voxels per leaf and step, at most.
    float_share, rounding_share : float
        Parts of the steps before the quantiser enters, and with straight-through rounding; the
        rest trains with noise.
    learning_rate : float
        At the start; halved for a chunk whose loss runs away.
    pruning : str
        "none", "iterative" or "dynamic".
    seed : int
    """

    steps: int
    samples: int
    float_share: float = 0.15
    rounding_share: float = 0.25
    learning_rate: float
    pruning: str = "none"
    seed: int = 0


@dataclass(frozen=True)
class FitResult:
    """Fitted models.

    Attributes
    ----------
    parameters : ndarray of float32
        Shape (chunk, volume, parameter), not rounded.
    codes : ndarray of int64
        Shape (chunk, tensor): step codes, see `quantise.scalar`.
    """

    parameters: np.ndarray
    codes: np.ndarray


def tensors_of(shape: TreeShape, parameters: np.ndarray) -> list[np.ndarray]:
    """Split parameters [volume, parameter] into one 1-D array per tensor, volume after volume."""
    return [parameters[:, t.start : t.stop].reshape(-1) for t in shape.tensors]


class Trainer:
    """Fits a batch of chunks of one shape at once; the chunks do not influence each other.

    Parameters
    ----------
    shape : TreeShape
    blocks : ndarray of float32
        Shape (chunk, volume, leaf, voxel).
    weights : ndarray of uint8 or None
        Same shape: 1 where a voxel counts.
    target_bits : ndarray of float
        Shape (chunk,): length that the symbols' code should have.
    plan : FitPlan
    device : str
        A torch device.
    threads : int
        CPU threads to use.
    """

    def __init__(
        self,
        shape: TreeShape,
        blocks: np.ndarray,
        weights: np.ndarray | None,
        target_bits: np.ndarray,
        plan: FitPlan,
        device: str,
        threads: int,
    ) -> None:
        chunks, volumes = blocks.shape[:2]
        self._shape, self._plan, self._device = shape, plan, device
        flat = blocks.reshape(chunks * volumes, *blocks.shape[2:])
        flat_weights = None if weights is None else weights.reshape(flat.shape)
        self._gradient = gradient_for(shape, flat, flat_weights, plan.samples, device, threads)
        self._sampler = LatticeSampler(shape.leaf_extents.prod(axis=1), plan.seed)
        sizes = torch.tensor([t.stop - t.start for t in shape.tensors])
        tensor_of = torch.repeat_interleave(torch.arange(len(sizes)), sizes).to(device)
        self._rate = RateTerm(tensor_of, len(sizes), volumes)
        initial = torch.from_numpy(initial_parameters(shape, plan.seed)).to(device)
        self._p = initial.repeat(chunks, volumes, 1)
        self._optimiser = optimiser_for(shape, chunks * volumes, device)
        self._keep: torch.Tensor | None = None
        self._noise_source = torch.Generator(device=device).manual_seed(plan.seed)
        self._target = torch.from_numpy(np.asarray(target_bits, np.float32)).to(device)
        self._lmbda = _NATURAL_SLOPE / self._target
        self._correction = torch.ones_like(self._target)
        self._mse = torch.zeros_like(self._target)
        self._log_steps = torch.zeros(chunks, len(sizes), device=device)
        self._pace = torch.ones(chunks, 1, 1, device=device)
        self._best = torch.full_like(self._target, torch.inf)
        self._variance = torch.from_numpy(leaf_variances(blocks, weights)).to(device)
        self._safe = self._p.clone()
        self._safe_steps = self._log_steps.clone()
        self._step_moments = (torch.zeros_like(self._log_steps), torch.zeros_like(self._log_steps))

    def run(self) -> FitResult:
        """Train and return the models."""
        plan = self._plan
        noise_from = round(plan.steps * plan.float_share)
        round_from = plan.steps - round(plan.steps * plan.rounding_share)
        schedule = PruningSchedule(plan.pruning)
        prune_at = {
            noise_from + (round_from - noise_from) * i // (ROUNDS + 1) for i in range(1, ROUNDS + 1)
        }
        calibrate_every = max(1, (plan.steps - noise_from) // _CALIBRATIONS)
        torch_threads = torch.get_num_threads()
        # Tensors of some thousand weights: a second thread of torch's would only be waited for.
        torch.set_num_threads(1)
        try:
            with torch.no_grad():
                for step in range(plan.steps):
                    if step < round_from and step % _GUARD_STEPS == _GUARD_STEPS - 1:
                        self._guard(step >= noise_from)
                    if step == noise_from:
                        self._start_steps()
                    if step == round_from:
                        self._settle_steps()
                    if step in prune_at and plan.pruning != "none":
                        self._prune(schedule)
                    if step > noise_from and (step - noise_from) % calibrate_every == 0:
                        self._calibrate()
                    phase = (step >= noise_from) + (step >= round_from)
                    self._advance(step, phase, noise_from)
        finally:
            torch.set_num_threads(torch_threads)
            self._gradient.close()
        return FitResult(self._p.cpu().numpy(), step_codes(self._log_steps.cpu().numpy()))

    def _advance(self, step: int, phase: int, noise_from: int) -> None:
        p, rate = self._p, self._rate
        seen, noise = p, None
        if phase:
            steps = self._log_steps.exp()
            spread = rate.spread(steps)
            if phase == 1:
                noise = torch.rand(p.shape[-1], generator=self._noise_source, device=p.device)
                noise -= 0.5
                seen = torch.addcmul(p, noise, spread)
            else:
                seen = (p / spread).round_().mul_(spread)
            if self._keep is not None:
                seen = seen * self._keep
        starts, strides = self._sampler.draw()
        loss, gradient = self._gradient(seen.reshape(-1, p.shape[-1]), starts, strides)
        g = gradient.reshape(p.shape)
        mse = loss.reshape(len(p), -1).mean(dim=1)
        self._mse = mse if step == 0 else torch.lerp(self._mse, mse, 0.02)
        # The kernel averages over a volume; a chunk's error is the mean over its volumes.
        price = self._lmbda * self._mse * p.shape[1]
        if phase:
            bits, by_magnitude, by_log_step = rate(p, steps)
            if noise is not None:
                self._learn_steps(g, noise, steps, price[:, None] * by_log_step, step - noise_from)
            g = torch.addcmul(g, p.sign(), rate.spread(price[:, None] * by_magnitude))
            excess = bits * self._correction / self._target - 1.0
            self._lmbda *= torch.exp(_LMBDA_RATE * excess.clamp(-1.0, 1.0))
        progress = step / self._plan.steps
        size = self._plan.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))
        size *= min(1.0, (step + 1) / _WARM_UP_STEPS)
        direction = self._optimiser(g.reshape(-1, p.shape[-1])).reshape(p.shape)
        p.addcmul_(direction, self._pace, value=-size)
        if self._keep is not None:
            p.mul_(self._keep)

    def _guard(self, is_noisy: bool) -> None:
        """Remember the chunks that do well; take those that ran away back, at half the pace."""
        bound = (self._best + self._variance) / 2
        if not is_noisy:
            # Noise of the size that rounding will have may well cost more than that.
            least, most = (factor * self._best for factor in _RUN_AWAY)
            bound = bound.clamp(least, most)
        failed = ~(self._mse <= bound)
        if bool(failed.any()):
            where = failed[:, None, None]
            self._p = torch.where(where, self._safe, self._p)
            self._log_steps = torch.where(failed[:, None], self._safe_steps, self._log_steps)
            self._optimiser.stop(failed.repeat_interleave(self._p.shape[1]))
            self._pace[failed] *= 0.5
            self._mse = torch.where(failed, self._best, self._mse)
        better = self._mse < self._best
        self._best = torch.where(better, self._mse, self._best)
        self._safe = torch.where(better[:, None, None], self._p, self._safe)
        self._safe_steps = torch.where(better[:, None], self._log_steps, self._safe_steps)

    def _learn_steps(
        self,
        gradient: torch.Tensor,
        noise: torch.Tensor,
        steps: torch.Tensor,
        rate_slope: torch.Tensor,
        step: int,
    ) -> None:
        slope = self._rate.sum_by_tensor(gradient * noise) * steps + rate_slope
        m, v = self._step_moments
        m.lerp_(slope, 0.1)
        v.lerp_(slope * slope, 0.01)
        scale = (1 - 0.99 ** (step + 1)) ** 0.5 / (1 - 0.9 ** (step + 1))
        self._log_steps -= _STEP_LEARNING_RATE * scale * m / (v.sqrt() + 1e-20)

    def _start_steps(self) -> None:
        """Start every tensor at 8 bits."""
        largest = torch.stack(
            [self._p[:, :, t.start : t.stop].abs().amax(dim=(1, 2)) for t in self._shape.tensors],
            dim=1,
        )
        self._log_steps = (largest * 2 / 2**_INITIAL_BITS).clamp_min(1e-6).log()
        self._safe_steps = self._log_steps.clone()

    def _settle_steps(self) -> None:
        """Move the steps to codes of the format, at which the code has the target's length."""
        codes = step_codes(self._log_steps.cpu().numpy())
        parameters = self._p.cpu().numpy()
        for chunk, target in enumerate(self._target.tolist()):
            search = StepSearch(tensors_of(self._shape, parameters[chunk]), codes[chunk].tolist())
            position = search.finest_within(target)
            if position is not None:
                codes[chunk] = [tensor.step_code for tensor in search.at(position)]
        steps = np.vectorize(q_step, otypes=[np.float32])(codes)
        self._log_steps = torch.from_numpy(np.log(steps)).to(self._device)
        self._correction.fill_(1.0)
        self._calibrate()

    def _calibrate(self) -> None:
        """Compare the estimated rate with the length of the real code."""
        steps = self._log_steps.exp()
        bits, _, _ = self._rate(self._p, steps)
        parameters, sizes = self._p.cpu().numpy(), steps.cpu().numpy()
        for chunk in range(len(parameters)):
            tensors = tensors_of(self._shape, parameters[chunk])
            real = sum(
                choose_model(quantise(tensor, size))[1]
                for tensor, size in zip(tensors, sizes[chunk], strict=True)
            )
            self._correction[chunk] = real / bits[chunk].clamp_min(1.0)

    def _prune(self, schedule: PruningSchedule) -> None:
        shares = schedule.shares(-10.0 * self._mse.clamp_min(1e-30).log10())
        if self._keep is None:
            self._keep = torch.ones_like(self._p, dtype=torch.bool)
        magnitude = self._p.abs() / self._rate.spread(self._log_steps.exp())
        self._keep = prune_smallest(self._keep, magnitude, shares)
        self._p.mul_(self._keep)


def leaf_variances(blocks: np.ndarray, weights: np.ndarray | None) -> np.ndarray:
    """Return the mean squared error, float32 [chunk], of knowing nothing but the leaves' means."""
    counted = np.ones(blocks.shape, np.float32) if weights is None else weights
    total = np.maximum(counted.sum(axis=3, keepdims=True, dtype=np.float64), 1)
    mean = (blocks * counted).sum(axis=3, keepdims=True, dtype=np.float64) / total
    squares = np.square(blocks - mean.astype(np.float32)) * counted
    errors = squares.sum(axis=(1, 2, 3), dtype=np.float64) / total.sum(axis=(1, 2, 3))
    return errors.astype(np.float32)
