"""Normalised volumes -> features sections, in closed form: transform, choose symbols, code.

Voxels at the end of the value range, and those that do not count, leave freedom: whatever is
decoded beyond the range is clipped to it. So the volume is transformed again with what the last
choice of symbols decodes to in its place wherever that is as good, which saves bits on data with
an empty background.
"""

from dataclasses import dataclass

import numpy as np

from tinc_codec.entropy.bands import choose_low_pass
from tinc_codec.entropy.buckets import nonzero_places
from tinc_codec.entropy.pyramid import low_pass_slices
from tinc_codec.fit.rdo import choose_symbols
from tinc_codec.kernels import kernel
from tinc_codec.model.coefficients import coefficients_of
from tinc_codec.model.features import (
    CENTROID_UNIT,
    MAX_STEP_CODE,
    STEPS_PER_OCTAVE,
    Features,
    feature_levels,
    feature_step,
    no_shifts,
    step_code,
    whole_edge,
    write_features,
)
from tinc_codec.model.wavelet import forward, inverse

LMBDA = 0.1
"""Squared steps that a bit is worth; from 0.1 to 0.2 hardly differ."""
BOUNDED_LMBDA = 0.2
"""The same where corrections mend the worst errors."""
_BITS_PER_SYMBOL = 5.0
_TILE_COST = 18.0
_SAMPLED = 7
"""One in so many coefficients is looked at for the first guess of the step."""
_LARGEST_SYMBOL = float(1 << 23)

EXACT, BELOW, ABOVE, FREE = 0, 1, 2, 3
"""What a voxel asks for: its value, at most it, at least it, nothing."""


@dataclass(frozen=True, eq=False)
class FeatureTarget:
    """What features are to stand for.

    Attributes
    ----------
    values : ndarray of float32
        Shape (B, z, y, x), in [0, 1] where they count.
    demands : ndarray of uint8 or None
        `EXACT`, `BELOW`, `ABOVE` or `FREE` per voxel; None where all are `EXACT`.
    base : ndarray of float32 or None
        What is added to the features, such as a tree's output.
    tile : int
        As in `Features`.
    """

    values: np.ndarray
    demands: np.ndarray | None
    base: np.ndarray | None = None
    tile: int = 0


def demands_of(values: np.ndarray, classes: np.ndarray | None) -> np.ndarray | None:
    """Tell which voxels need not be met exactly: those at 0, at 1, and those that do not count."""
    demands = np.empty(values.shape, dtype=np.uint8)
    _demand(values.reshape(-1), demands.reshape(-1))
    if classes is not None:
        demands[classes.reshape(values.shape) != 0] = FREE
    return demands if np.count_nonzero(demands) * 200 > demands.size else None


class FeatureFit:
    """A target that is quantised again and again, each time knowing what the last one left.

    Parameters
    ----------
    target : FeatureTarget
    threads : int
    """

    def __init__(self, target: FeatureTarget, threads: int, lmbda: float = LMBDA) -> None:
        self._target = target
        self._threads = threads
        self._lmbda = lmbda
        _, z, y, x = target.values.shape
        self._levels = feature_levels((z, y, x))
        self._shifts = no_shifts(self._levels)
        wanted = target.values if target.base is None else target.values - target.base
        self._coefficients = forward(wanted, threads)
        largest = float(max(self._coefficients.max(), -self._coefficients.min()))
        self._is_cut = 0 < target.tile < whole_edge((z, y, x))
        self._least_code = max(0, step_code(max(largest, 2.0**-20)) - STEPS_PER_OCTAVE)
        self._most_code = min(MAX_STEP_CODE, step_code(max(largest, 2.0**-20) / _LARGEST_SYMBOL))

    def first_code(self, size_bytes: float) -> int:
        """Guess the step at which the section has a size."""
        sample = np.abs(self._coefficients.reshape(-1)[::_SAMPLED])
        kept = min(max(1, int(size_bytes * 8 / _BITS_PER_SYMBOL / _SAMPLED)), sample.size)
        threshold = float(np.partition(sample, sample.size - kept)[sample.size - kept])
        return self.clip(step_code(max(threshold, 2.0**-24) / 0.75))

    def clip(self, code: float) -> int:
        """Limit a step's code to those that make sense for these coefficients."""
        return int(min(max(round(code), self._least_code), self._most_code))

    def quantise(self, code: int) -> tuple[Features, float]:
        """Choose symbols with a step; the features and the estimated bytes of their section."""
        step = feature_step(code)
        choices = [
            choose_symbols(volume, self._levels, step, self._lmbda, self._shifts, self._threads)
            for volume in self._coefficients
        ]
        symbols = choices[0].symbols[None]
        if len(choices) > 1:
            symbols = np.stack([choice.symbols for choice in choices])
        centroids = []
        for level in self._levels:
            sums = np.zeros((2, 2))
            for volume, chosen in zip(self._coefficients, symbols, strict=True):
                for mask in level.masks:
                    _add_remainders(
                        volume, chosen, level.band_begin(mask), level.band_shape(mask),
                        np.float32(1 / step), sums,
                    )  # fmt: skip
            mean = sums[0] / np.maximum(sums[1], 1) / CENTROID_UNIT
            one, more = np.clip(np.rint(mean), -127, 127).astype(int).tolist()
            centroids.append((one, more))
        features = Features(symbols, code, tuple(centroids), self._shifts, self._target.tile)
        coded = sum(choice.size_bits for choice in choices) / 8
        return features, coded + 8 + 2 * len(centroids) + 4 * len(symbols)

    @property
    def tile_cost(self) -> float:
        """By what estimated bytes grow at least for tiles, of which they know nothing."""
        return 1 + _TILE_COST / self._target.tile**2 if self._is_cut else 1.0

    @property
    def finest_code(self) -> int:
        """Code of the finest step that makes sense."""
        return self._most_code

    def coarsest(self) -> Features:
        """Return the shortest features there are: all symbols are 0."""
        shape = self._target.values.shape
        centroids = tuple((0, 0) for _ in self._levels)
        symbols = np.zeros(shape, np.int32)
        return Features(symbols, 0, centroids, self._shifts, self._target.tile)

    def decode(self, features: Features) -> np.ndarray:
        """Evaluate features, base included; float32 [B, z, y, x], not clipped."""
        coefficients = np.empty(features.symbols.shape, dtype=np.float32)
        values = inverse(coefficients_of(features, coefficients), self._threads)
        if self._target.base is not None:
            values += self._target.base
        return values

    def learn(self, values: np.ndarray) -> None:
        """Let voxels that leave freedom ask for what is decoded anyway."""
        target = self._target
        if target.demands is None:
            return
        wanted = np.empty_like(target.values)
        _relax(target.values.reshape(-1), target.demands.reshape(-1), values.reshape(-1),
               wanted.reshape(-1))  # fmt: skip
        if target.base is not None:
            wanted -= target.base
        self._coefficients = forward(wanted, self._threads)

    @property
    def learns(self) -> bool:
        """Whether `learn` changes anything."""
        return self._target.demands is not None

    def write(self, features: Features) -> bytes:
        """Code features."""
        corner = low_pass_slices(self._levels, features.symbols.shape[1:])
        low_passes = [choose_low_pass(volume[corner]) for volume in features.symbols]
        return write_features(features, low_passes)


@kernel
def _demand(values, demands):  # type: ignore[no-untyped-def]
    """Tell what finite voxels ask for."""
    for i in range(len(values)):
        demands[i] = ABOVE if values[i] >= 1 else (BELOW if values[i] <= 0 else EXACT)


@kernel
def _add_remainders(  # type: ignore[no-untyped-def]
    coefficients, symbols, begin, shape, inverse_step, sums
):
    """Add up what magnitudes of 1, and larger ones, leave of a band, and count them."""
    places = np.empty(shape[2] + 1, np.int64)
    for z in range(begin[0], begin[0] + shape[0]):
        for y in range(begin[1], begin[1] + shape[1]):
            chosen = symbols[z, y, begin[2] : begin[2] + shape[2]]
            wanted = coefficients[z, y, begin[2] : begin[2] + shape[2]]
            for i in range(nonzero_places(chosen, places)):
                x = places[i]
                size = abs(chosen[x])
                kind = 0 if size == 1 else 1
                sums[0, kind] += abs(wanted[x]) * inverse_step - size
                sums[1, kind] += 1


@kernel
def _relax(values, demands, decoded, wanted):  # type: ignore[no-untyped-def]
    for i in range(len(values)):
        wanted[i] = values[i]
        if demands[i] == BELOW:
            wanted[i] = min(decoded[i], values[i])
        elif demands[i] == ABOVE:
            wanted[i] = max(decoded[i], values[i])
        elif demands[i] == FREE:
            wanted[i] = decoded[i]
