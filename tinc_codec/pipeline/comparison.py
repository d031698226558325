"""How far decoded chunks are from their source, as the checks and the report count it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from tinc_codec.inspection.quality import log10_span
from tinc_codec.metrics import Quality, measure

__all__ = ["Comparison", "ErrorBins", "compare"]


@dataclass(frozen=True, kw_only=True)
class ErrorBins:
    """Bins of one width to count errors in.

    Parameters
    ----------
    low, high : float
        Of decoded - original, in the data's units; low < high. What is beyond counts in the
        outermost bins.
    n_bins : int
    """

    low: float
    high: float
    n_bins: int

    @property
    def centres(self) -> np.ndarray:
        """Error in the middle of each bin, float64."""
        width = (self.high - self.low) / self.n_bins
        return self.low + width * (np.arange(self.n_bins) + 0.5)

    def count(self, original: np.ndarray, decoded: np.ndarray) -> np.ndarray:
        """Count the finite errors of a pair of arrays; int64, one per bin."""
        counts = np.zeros(self.n_bins, np.int64)
        scale = self.n_bins / (self.high - self.low)
        # Plane by plane, so that it needs little beside the chunk.
        for x, y in zip(original, decoded, strict=True):
            with np.errstate(all="ignore"):
                errors = np.subtract(y, x, dtype=np.float64)
                errors = errors[np.isfinite(errors)]
                number = np.clip((errors - self.low) * scale, 0, self.n_bins - 1)
            counts += np.bincount(number.astype(np.int64), minlength=self.n_bins)
        return counts


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """How a chunk was and is, within the array.

    Attributes
    ----------
    n_finite : int
        Finite voxels of the source.
    value_min, value_max, decoded_min, decoded_max : float
        Of these, before and after; NaN where there are none.
    n_misplaced : int
        Voxels of which one is not finite and the other is not the same.
    span : float
        Range of the valid extent, the peak of `psnr`; inf beyond float64.
    psnr : float
        Of the valid extent, in dB.
    max_error : float
        Of all finite voxels.
    log_mse : float
        log10 of the mean squared error of all finite voxels; -inf where they are exact.
    """

    n_finite: int
    value_min: float
    value_max: float
    decoded_min: float
    decoded_max: float
    n_misplaced: int
    span: float
    psnr: float
    max_error: float
    log_mse: float


def compare(original: np.ndarray, decoded: np.ndarray, valid_extent: tuple[int, ...]) -> Comparison:
    """Compare a chunk with its source.

    Parameters
    ----------
    original, decoded : ndarray
        Same shape and kind of dtype.
    valid_extent : tuple of int
        Where the codec's own measure ends; what is beyond is padding, which is exact.
    """
    finite = np.isfinite(original) if original.dtype.kind == "f" else None
    low, high = _extremes(original, finite)
    decoded_low, decoded_high = _extremes(decoded, finite)
    n_finite = original.size if finite is None else int(np.count_nonzero(finite))
    inside = tuple(map(slice, valid_extent))
    x, y, valid = original[inside], decoded[inside], None if finite is None else finite[inside]
    limits, quality, n_measured = _extremes(x, valid), measure(x, y, valid), x.size
    if valid is not None:
        n_measured = int(np.count_nonzero(valid))
    if x.size < original.size:
        # The padding is exact, but for a header that does not belong to this source.
        whole = measure(original, decoded, finite)
        if whole.max_error > quality.max_error:
            limits, quality, n_measured = (low, high), whole, n_finite
    return Comparison(
        n_finite=n_finite,
        value_min=low,
        value_max=high,
        decoded_min=decoded_low,
        decoded_max=decoded_high,
        n_misplaced=0 if finite is None else _count_misplaced(original, decoded, finite),
        span=0.0 if math.isnan(limits[0]) else limits[1] - limits[0],
        psnr=quality.psnr,
        max_error=quality.max_error,
        log_mse=_log_mse(quality, limits, n_measured, n_finite),
    )


def _log_mse(
    quality: Quality, limits: tuple[float, float], n_measured: int, n_finite: int
) -> float:
    """Give log10 of the mean squared error of `n_finite` voxels, all but `n_measured` exact."""
    psnr, max_error = quality
    if max_error == 0:
        return -math.inf
    if not math.isfinite(psnr):
        # No range to be relative to, or an unbounded error: the most that it can be.
        return 2 * math.log10(max_error) if max_error < math.inf else math.inf
    return 2 * log10_span(*limits) - psnr / 10 + math.log10(n_measured / n_finite)


def _extremes(values: np.ndarray, finite: np.ndarray | None) -> tuple[float, float]:
    """Give minimum and maximum of the voxels that are finite in the source; NaN without any."""
    if finite is None or finite.all():
        return float(values.min()), float(values.max())
    if not finite.any():
        return math.nan, math.nan
    limit = np.inf
    return (
        float(values.min(where=finite, initial=limit)),
        float(values.max(where=finite, initial=-limit)),
    )


def _count_misplaced(original: np.ndarray, decoded: np.ndarray, finite: np.ndarray) -> int:
    """Count the voxels where one is not finite and the other is not the same."""
    affected = ~(finite & np.isfinite(decoded))
    x, y = original[affected], decoded[affected]
    return int(np.count_nonzero((x != y) & ~(np.isnan(x) & np.isnan(y))))
