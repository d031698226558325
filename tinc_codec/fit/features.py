"""Normalised volumes -> features sections, in closed form: transform, choose symbols, code.

Voxels at the end of the value range, and those that do not count, leave freedom: whatever is
decoded beyond the range is clipped to it. So the volume is transformed again with what the last
choice of symbols decodes to in its place wherever that is as good, which saves bits on data with
an empty background.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np
from numba import njit

from tinc_codec.entropy.bands import choose_low_pass
from tinc_codec.entropy.buckets import nonzero_places
from tinc_codec.entropy.pyramid import low_pass_slices
from tinc_codec.fit.rdo import choose_symbols
from tinc_codec.model.features import (
    CENTROID_UNIT,
    MAX_STEP_CODE,
    STEPS_PER_OCTAVE,
    TOLERANCE,
    Features,
    coefficients_of,
    feature_levels,
    feature_step,
    no_shifts,
    step_code,
    whole_edge,
    write_features,
)
from tinc_codec.model.wavelet import forward, inverse

_COMPILE = {"nogil": True, "cache": True, "error_model": "numpy"}

LMBDA = 0.1
"""Squared steps that a bit is worth; from 0.1 to 0.2 hardly differ."""
_BITS_PER_SYMBOL = 5.0
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


@dataclass(frozen=True, eq=False)
class FeatureCode:
    """A features section and what it decodes to.

    Parameters
    ----------
    section : bytes
    decode : callable
        Returns `values`.
    """

    section: bytes
    decode: Callable[[], np.ndarray]

    @cached_property
    def values(self) -> np.ndarray:
        """Shape (B, z, y, x), float32, the base included, not clipped; computed when needed."""
        return self.decode()


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


def fit_to_size(
    fit: FeatureFit, limit_bytes: int, passes: int, start_code: int | None = None
) -> FeatureCode | None:
    """Find the best features whose section has at most `limit_bytes`; None where none has.

    Parameters
    ----------
    fit : FeatureFit
    limit_bytes : int
    passes : int
        Choices of symbols before the section is written, at least 1.
    start_code : int, optional
        Code of the step to begin with, if one is known that is near the best.
    """
    line = _Line(math.log(_AIM * limit_bytes), _SLOPE * math.log(2) / STEPS_PER_OCTAVE)
    code = fit.first_code(limit_bytes) if start_code is None else start_code
    # Saves a try; where there is time for more tries, fuller sections come of knowing less.
    growth = fit.tile_cost if passes <= _FEW_PASSES else 1.0
    for _ in range(passes if fit.learns else 0):
        features, size = fit.quantise(code)
        size *= growth
        line.add(code, math.log(size))
        fit.learn(fit.decode(features))
        is_too_long = size * _OVERHEAD > limit_bytes
        code = fit.clip(min(line.next_code(), code - 1) if is_too_long else line.next_code())
    best: tuple[bytes, Features] | None = None
    too_long = math.inf
    enough = _ENOUGH if passes > _FEW_PASSES else _ENOUGH_IN_HASTE
    tried: set[int] = set()
    for _ in range(_TRIES):
        features, size = fit.quantise(code)
        size *= growth
        if size * _OVERHEAD <= limit_bytes:
            section = fit.write(features)
            size = len(section)
            if size <= limit_bytes and (best is None or size > len(best[0])):
                best = section, features
        if best is not None and len(best[0]) >= enough * limit_bytes:
            break
        tried.add(code)
        line.add(code, math.log(size))
        if size * _OVERHEAD > limit_bytes:
            too_long = min(too_long, code)
        code = fit.clip(min(line.next_code(), too_long - 1))
        if code in tried:
            break
    if best is None:
        features = fit.coarsest()
        best = fit.write(features), features
    if len(best[0]) > limit_bytes:
        return None
    return FeatureCode(best[0], partial(fit.decode, best[1]))


_TRIES = 10
_OVERHEAD = 1.0015
"""By so much, at least, estimated sizes fall short."""
_AIM = 0.996
"""Of the limit, for estimated sizes."""
_ENOUGH, _ENOUGH_IN_HASTE = 0.99, 0.98
_FEW_PASSES = 3
_TILE_COST = 18.0
_SLOPE = 0.8
"""Octaves that the size shrinks by while the step grows by one, to begin with."""


def _code_of(fit: FeatureFit, features: Features, values: np.ndarray) -> FeatureCode:
    return FeatureCode(fit.write(features), lambda: values)


class _Line:
    """Finds where a quantity that is nearly linear in the step's code meets an aim."""

    def __init__(self, aim: float, slope: float) -> None:
        self._aim, self._slope = aim, slope
        self._points: list[tuple[int, float]] = []

    def add(self, code: int, value: float) -> None:
        self._points.append((code, value))
        if len(self._points) > 1:
            (c0, v0), (c1, v1) = self._points[-2:]
            if abs(c1 - c0) >= 2 and (v1 - v0) * (c1 - c0) * self._slope > 0:
                steepness = (v1 - v0) / (c1 - c0) / self._slope
                self._slope *= min(max(steepness, 0.5), 2.0)

    def next_code(self) -> float:
        code, value = self._points[-1]
        return math.floor(code + (self._aim - value) / self._slope)


@njit(**_COMPILE)
def _demand(values, demands):  # type: ignore[no-untyped-def]
    """Tell what finite voxels ask for."""
    for i in range(len(values)):
        demands[i] = ABOVE if values[i] >= 1 else (BELOW if values[i] <= 0 else EXACT)


@njit(**_COMPILE)
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


@njit(**_COMPILE)
def _relax(values, demands, decoded, wanted):  # type: ignore[no-untyped-def]
    for i in range(len(values)):
        wanted[i] = values[i]
        if demands[i] == BELOW:
            wanted[i] = min(decoded[i], values[i])
        elif demands[i] == ABOVE:
            wanted[i] = max(decoded[i], values[i])
        elif demands[i] == FREE:
            wanted[i] = decoded[i]


def fit_to_quality(
    fit: FeatureFit,
    psnr: float,
    measure: Callable[[np.ndarray], float],
    passes: int,
    start_code: int | None = None,
) -> FeatureCode | None:
    """Find the shortest features that reach a PSNR; None where the finest step does not.

    Parameters
    ----------
    fit : FeatureFit
    psnr : float
        In dB.
    measure : callable
        From t to the PSNR of the voxels it decodes to.
    passes : int
    start_code : int, optional
        As for `fit_to_size`.
    """
    if start_code is None:
        # An error of a third of a step on average, and 6 dB per octave.
        start_code = fit.clip(step_code(3.0 * 10 ** (-min(psnr, _MOST_PSNR) / 20)))
    code = start_code
    line = _Line(psnr, 5.0 / STEPS_PER_OCTAVE)
    for _ in range(passes):
        features, _ = fit.quantise(code)
        values = fit.decode(features)
        line.add(code, min(measure(values), psnr + _FAR))
        fit.learn(values)
        code = fit.clip(line.next_code() + 1)
    # From here on the same step gives the same quality: the coarsest that suffices is searched.
    best: tuple[int, Features, np.ndarray] | None = None
    failed = fit.clip(-1) - 1
    stride = 1
    while best is None or best[0] - failed > 1:
        features, _ = fit.quantise(code)
        values = fit.decode(features)
        if measure(values) >= psnr:
            best = code, features, values
            following = code - stride
        else:
            failed = code
            following = code + stride
        stride *= 2
        if best is not None:
            bracketed = failed >= fit.clip(-1)
            following = (best[0] + failed) // 2 if bracketed else max(following, failed + 1)
        elif fit.clip(following) == code:
            return None
        code = fit.clip(following)
    return _code_of(fit, best[1], best[2])


_FAR = 20.0
_MOST_PSNR = 200.0


def fit_to_bound(
    fit: FeatureFit,
    max_error: float,
    corrections_bytes: Callable[[np.ndarray], int],
    passes: int,
) -> FeatureCode:
    """Find the features that take the fewest bytes together with their corrections.

    Parameters
    ----------
    fit : FeatureFit
    max_error : float
        In units of t.
    corrections_bytes : callable
        From t to the bytes of the corrections that it needs.
    passes : int
        At least 3.
    """
    found: dict[int, tuple[int, Features, np.ndarray]] = {}

    def total(code: int) -> int:
        if code not in found:
            features, size_bytes = fit.quantise(code)
            values = fit.decode(features)
            size = round(size_bytes) + corrections_bytes(values)
            found[code] = size, features, values
        return found[code][0]

    if max_error < TOLERANCE:
        # What readers may differ by leaves nothing to features: every voxel is corrected.
        features = fit.coarsest()
        return _code_of(fit, features, fit.decode(features))
    starts = [fit.clip(step_code(steps * max_error)) for steps in _STEPS_PER_BOUND]
    middle = min(starts, key=total)
    stride = 32
    while len(found) < len(starts) + passes and stride >= 4:
        codes = [fit.clip(middle + offset) for offset in (0, -stride, stride)]
        best = min(codes, key=total)
        if best == middle:
            stride //= 2
        middle = best
    _, features, values = found[middle]
    return _code_of(fit, features, values)


_STEPS_PER_BOUND = (2.5, 8.0)
"""Mostly few voxels need a correction; on data that is empty but for some, coarse features and many
corrections may be a second and better optimum."""
BOUNDED_LMBDA = 0.2
"""Squared steps that a bit is worth where corrections mend the worst errors."""
