"""Chunks -> lattice sections that keep a promise of quality."""

import math
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from tinc_codec.metrics import max_error as largest_error
from tinc_codec.quantise.lattice import (
    Lattice,
    Points,
    from_lattice,
    place_points,
    to_lattice,
)
from tinc_codec.quantise.lattice_section import estimate_bytes, write_lattice
from tinc_codec.volume.chunk import FINITE, ChunkInfo

_SAMPLED_VOXELS = 1 << 16
_STEP_MARGIN = 1 - 2.0**-20
_ROUNDINGS = {2: 0.5, 4: 0.5, 8: 2.0}
"""By size of float: what rounding may add to an error, in distances between adjacent values."""
_SEARCHES = 8

Measure = Callable[[np.ndarray], float]


class LatticeFit:
    """A chunk for which a lattice is sought.

    Parameters
    ----------
    original : ndarray
        Shape (B, z, y, x), of the chunk's dtype.
    info : ChunkInfo
        Not constant.
    classes : ndarray of uint8 or None
        As many voxels, 0 where one is finite.
    threads : int
    most_planes : int, optional
        As for `write_lattice`.
    """

    def __init__(
        self,
        original: np.ndarray,
        info: ChunkInfo,
        classes: np.ndarray | None,
        threads: int,
        most_planes: int | None = None,
    ) -> None:
        self._most_planes = most_planes
        self._original, self._info, self._threads = original, info, threads
        self._classes = classes
        self._origin = _commonest(original, classes)

    def within(self, max_error: float) -> Lattice | None:
        """Find the coarsest lattice that no finite voxel is farther from; None where there is none.

        Parameters
        ----------
        max_error : float
            0 or more, in the data's units.
        """
        info = self._info
        if info.dtype.kind != "f":
            return self._lattice(2 * math.floor(min(max_error, self._span)) + 1)
        largest = max(abs(info.value_min), abs(info.value_max))
        spacing = float(abs(largest - np.nextafter(largest, largest.dtype.type(0))))
        bound = min(max_error - _ROUNDINGS[info.dtype.itemsize] * spacing, self._span)
        lattice = self._lattice(min(2 * bound * _STEP_MARGIN, sys.float_info.max))
        if lattice is None or not self._largest_error(lattice) <= max_error:
            return None
        return lattice

    @property
    def _span(self) -> float:
        """The range of values; inf where float64 cannot hold it."""
        return float(self._info.value_max) - float(self._info.value_min)

    def of_quality(self, wanted: float, measure: Measure) -> Lattice | None:
        """Find the coarsest lattice that reaches a PSNR, or nearly so; None where there is none.

        Parameters
        ----------
        wanted : float
            In dB.
        measure : callable
            From decoded voxels, (B, z, y, x) of the chunk's dtype, to the PSNR.
        """
        decoded = np.empty(self._original.shape, self._info.dtype)
        best: Lattice | None = None
        margin = _LEAST_MARGIN

        def judge(lattice: Lattice) -> tuple[bool, float]:
            nonlocal best, margin
            from_lattice(lattice, self._info, decoded)
            surplus = measure(decoded) - wanted
            is_fine = surplus >= 0
            if is_fine:
                best = lattice
            elif best is None:
                # Trials that aim at what is wanted may come near it for ever, from below.
                surplus, margin = surplus - margin, 2 * margin
            return is_fine, 10 ** (min(max(surplus, -_MOST_CHANGE), _MOST_CHANGE) / 20)

        self._search(self._guess(wanted), judge)
        return best

    def of_size(
        self, limit_bytes: int, step: float, is_coarse: bool = False
    ) -> tuple[bytes, Lattice] | None:
        """Find the finest lattice whose section fits a size, or nearly so; None where none does.

        Parameters
        ----------
        limit_bytes : int
        step : float
            Near what may fit, in the data's units.
        is_coarse : bool
            Whether nothing coarser than this step is of use.

        Returns
        -------
        bytes
            The section.
        Lattice
        """
        if limit_bytes < 1:
            return None
        best: tuple[bytes, Lattice] | None = None

        def judge(lattice: Lattice) -> tuple[bool, float]:
            nonlocal best
            body = self.write(lattice)
            fits = len(body) <= limit_bytes
            if fits:
                best = body, lattice
            filled = len(body) / limit_bytes
            if _FULL <= filled <= 1 or (is_coarse and filled > _HOPELESS):
                return not fits, 1.0
            # Bytes fall a little more slowly than the step grows, and not at every step.
            factor = (filled / _AIM) ** _STEEPNESS
            return not fits, min(max(factor, 0.1 if fits else _LEAST_CHANGE), 10.0)

        fine = self._search(step, judge)
        # What is too fine is left behind fast, even where bytes hardly fall with the step.
        while best is None and not is_coarse and 0 < fine <= 2 * self._span:
            fine *= 4
            lattice = self._lattice(fine)
            if lattice is not None:
                judge(lattice)
        return best

    def _search(self, step: float, judge: Callable[[Lattice], tuple[bool, float]]) -> float:
        """Try steps until those that are finer and those that are coarser than one sought meet.

        Parameters
        ----------
        step : float
            The first one.
        judge : callable
            From a lattice to whether it is too fine, or may be coarser, and by what its step is to
            be multiplied; by 1 where it is good enough.

        Returns
        -------
        float
            The coarsest step that was too fine, 0 if none was.
        """
        fine, coarse = 0.0, math.inf
        for _ in range(_SEARCHES):
            chosen = self._between(step, fine, coarse)
            if chosen is None:
                break
            lattice = self._lattice(chosen)
            if lattice is None:
                fine, step = chosen, 2 * chosen
                continue
            is_fine, factor = judge(lattice)
            fine, coarse = (chosen, coarse) if is_fine else (fine, chosen)
            if factor == 1:
                break
            step = chosen * factor
        return fine

    def write(self, lattice: Lattice) -> bytes:
        """Write the section of a lattice."""
        return write_lattice(lattice, self._info, self._classes, self._threads, self._most_planes)

    def least_bytes(self) -> int:
        """Count the bytes of a lattice so coarse that nothing is left to say."""
        lattice = self._lattice(4 * self._span)
        return 0 if lattice is None else len(self.write(lattice))

    def is_promising(self, limit_bytes: int, step: float) -> bool:
        """Tell from few planes whether a lattice of some step may fit a size."""
        return self._estimate(step, _FEW) <= _PROMISING * limit_bytes

    def estimate_quality(self, wanted: float) -> float:
        """Estimate the bytes of a lattice that reaches a PSNR, rather too high than too low."""
        return self._estimate(self._guess(wanted), _MANY)

    def _guess(self, wanted: float) -> float:
        """Guess the step that gives a PSNR: errors are spread evenly over it, or are smaller."""
        return math.sqrt(12) * self._span * 10 ** (-wanted / 20)

    def _between(self, step: float, fine: float, coarse: float) -> float | None:
        """Give a step near the one sought, between two that are known; None if they are near."""
        if self._info.dtype.kind != "f":
            whole = min(max(round(min(step, 2 * self._span + 1)), fine + 1), coarse - 1)
            return whole if whole > fine else None
        if coarse < _CLOSE * fine or not 0 < step < math.inf:
            return None
        if fine < step < coarse:
            return step
        return math.sqrt(max(fine, coarse / 4) * min(coarse, 4 * fine))

    def _lattice(self, step: float) -> Lattice | None:
        points = self._points(step)
        return None if points is None else to_lattice(self._original, self._info, points)

    def _points(self, step: float) -> Points | None:
        if self._info.dtype.kind != "f":
            # Beyond twice the range nothing changes.
            step = max(1.0, round(min(step, 2 * self._span + 1)))
        if not 0 < step < math.inf:
            return None
        return place_points(self._info, self._origin, step)

    def _estimate(self, step: float, sample: tuple[int, int]) -> float:
        points = self._points(step)
        if points is None:
            return math.inf
        return estimate_bytes(self._original, self._info, points, *sample)

    def _largest_error(self, lattice: Lattice) -> float:
        decoded = np.empty(self._original.shape, self._info.dtype)
        from_lattice(lattice, self._info, decoded)
        counted = None
        if self._classes is not None:
            counted = self._classes.reshape(decoded.shape) == FINITE
        return largest_error(self._original, decoded, counted)


_AIM, _STEEPNESS = 0.992, 1.2
_LEAST_CHANGE = 1.06
_FULL = 0.985
"""Part of a size that is near enough to it."""
_HOPELESS = 1.2
"""Part of a size from which on a step has to grow by too much."""
_FEW, _MANY = (4, 2), (4, 8)
"""Groups of planes that are looked at, and planes of each."""
_PROMISING = 1.25
"""Few planes take more bytes each than many, since all is learnt anew."""
_MOST_CHANGE = 12.0
"""In dB: how far one trial may be from the next."""
_LEAST_MARGIN = 0.01
"""In dB: how much more is aimed at than is wanted, after a trial that fell short of it."""
_CLOSE = 1.003
"""Ratio of steps between which no better one is sought."""


def _commonest(original: np.ndarray, classes: np.ndarray | None) -> Any:
    """Find a chunk's commonest value, from some of its voxels: often that of its background.

    A lattice through it keeps the background in one point, and exact.
    """
    every = max(1, round((original.size / _SAMPLED_VOXELS) ** (1 / 3)))
    some = original[:, ::every, ::every, ::every]
    if classes is not None:
        finite = classes.reshape(original.shape)[:, ::every, ::every, ::every] == FINITE
        some = some[finite] if finite.any() else original[classes.reshape(original.shape) == FINITE]
    values, counts = np.unique(some.astype(original.dtype.newbyteorder("=")), return_counts=True)
    return values[np.argmax(counts)]
