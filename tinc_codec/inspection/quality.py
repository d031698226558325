"""The PSNR of a volume from what is known of its parts."""

from __future__ import annotations

import math

__all__ = ["PooledQuality", "decibel_text", "log10_span"]


class PooledQuality:
    """Adds up the squared errors of parts of a volume, whatever their scale.

    Attributes
    ----------
    low, high : float
        Extremes of the values so far; inf and -inf before the first.
    """

    def __init__(self) -> None:
        self.low, self.high = math.inf, -math.inf
        self._n_voxels = 0
        # As logarithms, relative to the largest: squares of float64 values may overflow or vanish.
        self._largest, self._sum = -math.inf, 0.0

    def widen(self, low: float, high: float) -> None:
        """Let the volume's range of values hold another one."""
        self.low, self.high = min(self.low, low), max(self.high, high)

    def add(self, n_voxels: int, log_mse: float) -> None:
        """Add a part.

        Parameters
        ----------
        n_voxels : int
            How many of its voxels count; nothing is added where there are none.
        log_mse : float
            log10 of their mean squared error: -inf where they are exact, inf where it is unbounded.
        """
        if not n_voxels:
            return
        self._n_voxels += n_voxels
        if log_mse > self._largest:
            self._sum *= 10 ** (self._largest - log_mse) if log_mse < math.inf else 0
            self._largest = log_mse
        if math.isfinite(log_mse):
            self._sum += n_voxels * 10 ** (log_mse - self._largest)

    @property
    def psnr(self) -> float:
        """PSNR in dB of all parts as one volume, with its range of values as peak.

        inf where all are exact, -inf where an error is unbounded or there is no range, NaN where
        there is no voxel.
        """
        if not self._n_voxels:
            return math.nan
        if math.isinf(self._largest):
            return -self._largest
        if not self.low < self.high:
            return -math.inf
        log_mse = self._largest + math.log10(self._sum / self._n_voxels)
        return 10 * (2 * log10_span(self.low, self.high) - log_mse)


def log10_span(low: float, high: float) -> float:
    """Give log10 of `high - low`, which may exceed the largest float64; low < high, finite."""
    span = high - low
    # Half of it cannot.
    return math.log10(span) if span < math.inf else math.log10(high / 2 - low / 2) + math.log10(2)


def decibel_text(psnr: float) -> str:
    """Write a PSNR."""
    return "exact" if psnr == math.inf else f"{psnr:.2f} dB"
