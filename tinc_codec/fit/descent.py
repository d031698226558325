"""Normalised volumes -> features by descent on symbols: distortion and rate of the real coder.

The closed form of `fit.features` quantises the transform of the target, as if the basis functions
of the wavelet were orthogonal. They are not: each coefficient can make up for part of what the
rounding and zeroing of others left. Here every coefficient asks, in turn, for the value that is
best while all others stand for their symbols, and symbols are chosen from that by rate-distortion
again: the fit with the rate in the loss, without a stand-in for the rate.
"""

from itertools import pairwise

import numpy as np
import torch

from tinc_codec.entropy.bands import Level, low_pass_slices
from tinc_codec.fit.features import (
    ABOVE,
    BELOW,
    FREE,
    LMBDA,
    FeatureCode,
    FeatureFit,
    FeatureTarget,
    fit_to_size,
)
from tinc_codec.model import torch_wavelet
from tinc_codec.model.features import Features, coefficients_of, feature_levels
from tinc_codec.model.wavelet import level_shapes

Grid = tuple[int, int, int]

_CLOSED_PASSES = 3
_SHARE = 0.2
"""Of the coefficients, drawn anew for each pass. Those that ask at once interfere: the normalised
Gram matrix has eigenvalues up to 8, so that a share above 2 / 8 could make the descent run away."""


class DescentFit(FeatureFit):
    """A `FeatureFit` whose `learn` takes a step of the descent; some 20 to 60 passes pay.

    Parameters
    ----------
    target : FeatureTarget
    threads : int
    lmbda : float
    seed : int
        Of the order in which coefficients take their turn.
    start_code : int, optional
        Code of the step to begin with; a coarse step far from the final one does harm that takes
        many passes to undo.
    """

    def __init__(
        self,
        target: FeatureTarget,
        threads: int,
        lmbda: float = LMBDA,
        seed: int = 0,
        start_code: int | None = None,
    ) -> None:
        super().__init__(target, threads, lmbda)
        _, z, y, x = target.values.shape
        self._norms = squared_norms((z, y, x))
        self._adjoint = Adjoint(target.values.shape)
        self._generator = np.random.default_rng(seed)
        self._last: Features | None = None
        self._start_code = start_code

    def first_code(self, size_bytes: float) -> int:
        """Return the step to begin with."""
        return super().first_code(size_bytes) if self._start_code is None else self._start_code

    @property
    def learns(self) -> bool:
        """Always."""
        return True

    def quantise(self, code: int) -> tuple[Features, float]:
        """Choose symbols with a step, and remember them for `learn`."""
        self._last, rate_bits = super().quantise(code)
        return self._last, rate_bits

    def learn(self, values: np.ndarray) -> None:
        """Let some coefficients ask for what is best beside the symbols chosen last.

        Parameters
        ----------
        values : ndarray of float32
            What those symbols decode to, the base included.
        """
        assert self._last is not None
        last = self._last
        stored = coefficients_of(
            Features(last.symbols.copy(), last.step_code, last.centroids, last.shifts)
        )
        asked = stored + self._adjoint(missing_of(self._target, values)) / self._norms
        turn = self._generator.random(asked.shape, dtype=np.float32) < _SHARE
        np.copyto(self._coefficients, asked, where=turn)


def descend_to_size(
    target: FeatureTarget, limit_bytes: int, passes: int, threads: int, seed: int = 0
) -> FeatureCode | None:
    """Find the best features whose section has at most `limit_bytes`; None where none has.

    Parameters
    ----------
    target : FeatureTarget
    limit_bytes : int
    passes : int
        Of the descent, at least 1. What the closed form gives is kept where that is better, as it
        can be in a few hundred bytes.
    threads : int
    seed : int
    """
    closed = fit_to_size(FeatureFit(target, threads), limit_bytes, _CLOSED_PASSES)
    if closed is None:
        return None
    start_code = code_of(closed.section)
    descent = DescentFit(target, threads, seed=seed, start_code=start_code)
    descended = fit_to_size(descent, limit_bytes, passes)
    if descended is None:
        return closed
    return min(
        closed, descended, key=lambda code: float(np.linalg.norm(missing_of(target, code.values)))
    )


def code_of(section: bytes) -> int:
    """Return the code of a features section's step; `docs/format.md` §9."""
    return int.from_bytes(section[:2], "little")


def missing_of(target: FeatureTarget, values: np.ndarray) -> np.ndarray:
    """Return what decoded values lack, float32, 0 where they meet what is demanded."""
    missing = target.values - values
    demands = target.demands
    if demands is not None:
        np.minimum(missing, 0, out=missing, where=demands == BELOW)
        np.maximum(missing, 0, out=missing, where=demands == ABOVE)
        missing[demands == FREE] = 0
    return missing


class Adjoint:
    """The transpose of the inverse wavelet transform of volumes of one shape.

    Parameters
    ----------
    shape : tuple of int
        (B, z, y, x)
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        self._coefficients = torch.zeros(shape, requires_grad=True)
        self._volumes = torch_wavelet.inverse(self._coefficients)

    def __call__(self, volumes: np.ndarray) -> np.ndarray:
        """Return float32 coefficients of the shape of the volumes."""
        (gradient,) = torch.autograd.grad(
            self._volumes, self._coefficients, torch.from_numpy(volumes), retain_graph=True
        )
        transposed: np.ndarray = gradient.numpy()
        return transposed


def squared_norms(grid: Grid) -> np.ndarray:
    """Return the squared norm of the basis function of every coefficient, float32 of shape grid."""
    shapes = level_shapes(grid)
    levels = feature_levels(grid)
    norms = np.empty(grid, dtype=np.float32)
    by_axis = [_axis_norms([shape[axis] for shape in shapes]) for axis in range(3)]

    def of_band(level: Level, mask: int) -> np.ndarray:
        z, y, x = (by_axis[a][level.number][mask >> (2 - a) & 1] for a in range(3))
        return z[:, None, None] * y[:, None] * x

    for level in levels:
        for mask in level.masks:
            norms[level.band_slices(mask)] = of_band(level, mask)
    corner = low_pass_slices(levels, grid)
    norms[corner] = of_band(levels[-1], 0) if levels else 1
    return norms


def _axis_norms(sizes: list[int]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return for each level the squared norms of one axis' low-pass and high-pass functions."""
    norms = []
    for size, low_size in pairwise(sizes):
        units = torch.zeros(size, 1, 1, sizes[0])
        units[..., :size] = torch.eye(size)[:, None, None]
        # What the level's corner holds, in the layout of an axis that is split to the end.
        units[..., :low_size] = torch_wavelet.forward(units[..., :low_size])
        functions = torch_wavelet.inverse(units).square().sum(dim=-1).reshape(size).numpy()
        norms.append((functions[:low_size], functions[low_size:]))
    return norms
