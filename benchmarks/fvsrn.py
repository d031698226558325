"""Features that feed a small network, as in fV-SRN, against features alone.

python -m benchmarks.fvsrn --crop 64          # about 15 minutes on one core

A few channels of wavelet coefficients and a network that is evaluated at every voxel are trained
together, the rate in the loss. The channels are coded by the features section of the format, at
real bytes; the network's weights are rounded to 6 bits and counted by the entropy of their
integers, three bytes per tensor on top. What is left over of the room is not used: the PSNR is to
be read with the bytes beside it, and with features alone at these bytes.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from rich.console import Console

from benchmarks import records, volumes
from benchmarks.sparsify import Problem
from tinc_codec.fit.descent import DescentFit
from tinc_codec.fit.feature_search import fit_to_size
from tinc_codec.fit.features import FeatureFit, FeatureTarget
from tinc_codec.fit.sparsify import TrainedFit
from tinc_codec.model import torch_wavelet
from tinc_codec.model.features import feature_levels, feature_step

RATIO = 64.0
SAMPLES = 65536
"""Voxels per step."""
WEIGHT_LEVELS = 32
"""Integers on either side of zero."""
_TENSOR_BYTES = 3
_CONTROL_EVERY = 20
_SETTLING_SHARE = 0.3
_NETWORK_RATE = 0.005

Row = dict[str, Any]


@dataclass(frozen=True)
class Setting:
    """A network and its channels.

    Attributes
    ----------
    channels : int
    half_from : int
        Channels from this one on have no finest level: half the resolution.
    hidden : tuple of int
        Widths of the hidden layers.
    frequencies : int
        Octaves of Fourier features of the position, beside the channels.
    skip : bool
        Whether the first channel is added to the output, and starts as the closed form.
    learning_rate : float
        Of the coefficients, in quantiser steps.
    """

    channels: int
    half_from: int
    hidden: tuple[int, ...]
    frequencies: int
    skip: bool
    learning_rate: float = 0.05


SETTINGS = (
    Setting(channels=1, half_from=1, hidden=(16,), frequencies=0, skip=True),
    Setting(channels=2, half_from=1, hidden=(16,), frequencies=0, skip=True),
    Setting(channels=4, half_from=1, hidden=(16,), frequencies=0, skip=True),
    Setting(channels=4, half_from=1, hidden=(16, 16), frequencies=3, skip=True),
    Setting(channels=4, half_from=0, hidden=(16, 16), frequencies=3, skip=False),
)


class Network(torch.nn.Module):
    """Channels and position of a voxel -> its value; hidden layers with fV-SRN's Snake."""

    def __init__(self, setting: Setting, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        widths = (setting.channels + 6 * setting.frequencies, *setting.hidden, 1)
        self.layers = torch.nn.ModuleList(torch.nn.Linear(a, b) for a, b in pairwise(widths))
        if setting.skip:
            torch.nn.init.zeros_(self.layers[-1].weight)
            torch.nn.init.zeros_(self.layers[-1].bias)

    def forward(self, x: torch.Tensor, rounded: bool) -> torch.Tensor:
        """Evaluate at voxels [n, input]; the gradient goes straight through rounded weights."""
        for number, layer in enumerate(self.layers):
            weight, bias = layer.weight, layer.bias
            if rounded:
                weight, bias = _straight_through(weight), _straight_through(bias)
            x = torch.nn.functional.linear(x, weight, bias)
            if number < len(self.layers) - 1:
                x = 0.5 * x + torch.sin(x).square()
        return x[:, 0]

    def size_bytes(self) -> float:
        """Entropy of the integers, and a step per tensor."""
        total = 0.0
        for parameter in self.parameters():
            _, counts = np.unique(_integers(parameter)[0].detach().numpy(), return_counts=True)
            shares = counts / counts.sum()
            total += float(-(counts * np.log2(shares)).sum()) / 8 + _TENSOR_BYTES
        return total


def _integers(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    step = weight.detach().abs().max().clamp(min=1e-6) / WEIGHT_LEVELS
    return torch.round(weight / step), step


def _straight_through(weight: torch.Tensor) -> torch.Tensor:
    integers, step = _integers(weight)
    return weight + (integers * step - weight).detach()


def _positions(grid: tuple[int, ...], frequencies: int) -> torch.Tensor:
    """Fourier features of all voxels, [voxel, 6 * frequencies]."""
    axes = torch.meshgrid(*(torch.linspace(-1, 1, n) for n in grid), indexing="ij")
    points = torch.stack([axis.reshape(-1) for axis in axes], dim=-1)
    waves = [f(math.pi * 2**k * points) for k in range(frequencies) for f in (torch.sin, torch.cos)]
    return torch.cat(waves, dim=-1) if waves else points[:, :0]


class Joint:
    """Channels and network, trained together for a size."""

    def __init__(self, problem: Problem, setting: Setting, steps: int, seed: int) -> None:
        self._problem, self._setting, self._steps = problem, setting, steps
        self._network = Network(setting, seed)
        values = torch.from_numpy(problem.target.values)
        grid = tuple(values.shape[1:])
        closed = FeatureFit(problem.target, 1)
        code = fit_to_size(closed, problem.limit, 4)
        assert code is not None
        self._step_code = int.from_bytes(code.section[:2], "little")
        self._step = feature_step(self._step_code)
        generator = torch.Generator().manual_seed(seed)
        self._generator = generator
        start = torch.randn(setting.channels, *grid, generator=generator)
        if setting.skip:
            start *= 0.3
            start[:1] = torch_wavelet.forward(values) / self._step
        self._open = torch.ones_like(start)
        finest = feature_levels(grid)[0]  # type: ignore[arg-type]
        for mask in finest.masks:
            self._open[(slice(setting.half_from, None), *finest.band_slices(mask))] = 0
        self._symbols = (start * self._open).requires_grad_()
        self._values = values.reshape(-1)
        self._positions = _positions(grid, setting.frequencies)
        self._strength = 0.05

    def run(self) -> Row:
        """Train, code and measure."""
        setting = self._setting
        optimiser = torch.optim.Adam(
            [
                {"params": [self._symbols], "lr": setting.learning_rate},
                {"params": list(self._network.parameters()), "lr": _NETWORK_RATE},
            ],
            betas=(0.9, 0.99),
        )
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, self._steps)
        settling_from = round(self._steps * (1 - _SETTLING_SHARE))
        scale = len(self._values) / SAMPLES / self._step**2
        for number in range(self._steps):
            chosen = torch.randint(len(self._values), (SAMPLES,), generator=self._generator)
            optimiser.zero_grad()
            if number == settling_from:
                # As in `fit.sparsify`: survivors grow back from what the penalty made of them.
                self._open *= self._symbols.detach().abs() >= 0.5
            settling = number >= settling_from
            decoded = self._decode(self._symbols * self._open, chosen, settling)
            error = decoded.clamp(0, 1) - self._values[chosen]
            loss = scale * error.square().sum()
            if not settling:
                loss = loss + self._strength * torch.log2(1 + self._symbols.abs()).sum()
            loss.backward()
            optimiser.step()
            schedule.step()
            if number % _CONTROL_EVERY == _CONTROL_EVERY - 1 and not settling:
                self._control()
        return self._measure()

    def _decode(self, symbols: torch.Tensor, chosen: torch.Tensor, rounded: bool) -> torch.Tensor:
        channels = torch_wavelet.inverse(symbols * self._step).flatten(1)[:, chosen]
        inputs = torch.cat([channels.T, self._positions[chosen]], dim=-1)
        values = self._network(inputs, rounded)
        return values + channels[0] if self._setting.skip else values

    def _room(self) -> int:
        return self._problem.limit - math.ceil(self._network.size_bytes())

    def _fit(self) -> TrainedFit:
        coefficients = (self._symbols * self._open * self._step).detach().numpy()
        target = FeatureTarget(np.zeros_like(coefficients), None)
        return TrainedFit(target, coefficients, 1, lmbda=_ZEROING)

    def _control(self) -> None:
        _, size_bytes = self._fit().quantise(self._step_code)
        excess = 0.3 * math.log(size_bytes / max(64, self._room()))
        self._strength *= math.exp(min(max(excess, -0.2), 0.2))

    def _measure(self) -> Row:
        """Take the finest step at which the channels fit the room that the network leaves."""
        code = self._step_code + 64
        fit = self._fit()
        while True:
            features, _ = fit.quantise(code)
            section = fit.write(features)
            if len(section) <= self._room():
                break
            code -= 1
        channels = fit.decode(features) / self._step
        with torch.no_grad():
            symbols = torch_wavelet.forward(torch.from_numpy(channels))
            chosen = torch.arange(len(self._values))
            decoded = self._decode(symbols, chosen, True).numpy()
        size = len(section) + math.ceil(self._network.size_bytes())
        return {
            "size_bytes": size,
            "network_bytes": math.ceil(self._network.size_bytes()),
            "network_weights": sum(p.numel() for p in self._network.parameters()),
            "psnr": self._problem.psnr(decoded.reshape(self._problem.target.values.shape)),
        }


_ZEROING = 0.1


def features_alone(problem: Problem, size_bytes: int) -> Row:
    """PSNR of features without a network at a size, in closed form and after a descent."""
    codes = {
        "psnr_closed_form": fit_to_size(FeatureFit(problem.target, 1), size_bytes, 6),
        "psnr_descent": fit_to_size(DescentFit(FeatureFit(problem.target, 1)), size_bytes, 40),
    }
    return {name: problem.psnr(code.values) for name, code in codes.items() if code is not None}


def main() -> None:
    """Run the benchmark and keep its rows."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    volumes.add_arguments(parser)
    parser.set_defaults(crop=64, volumes=["mri_t1", "ct_cranium"])
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    console = Console()
    rows: list[Row] = []
    for name in arguments.volumes:
        volume = volumes.load(name, arguments.crop, arguments.data)
        problem = Problem.of(volume, RATIO)
        for setting in SETTINGS:
            row = Joint(problem, setting, arguments.steps, arguments.seed).run()
            alone = features_alone(problem, row["size_bytes"])
            rows.append({"volume": name, **asdict(setting), **row, **alone})
            console.print(rows[-1])
            records.save("fvsrn", rows, crop=arguments.crop, ratio=RATIO, steps=arguments.steps)


if __name__ == "__main__":
    main()
