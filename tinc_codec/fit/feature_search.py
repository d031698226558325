"""The step of features' quantiser that meets a size, a PSNR or a bound of the errors."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np

from tinc_codec.fit.features import FeatureFit
from tinc_codec.model.features import STEPS_PER_OCTAVE, TOLERANCE, Features, step_code


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
