"""How far decoded voxels are from the original ones."""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from tinc_codec.errors import ConfigError

_BUFFER_VOXELS = 1 << 14


class Quality(NamedTuple):
    """Distortion of a chunk.

    Attributes
    ----------
    psnr : float
        In dB; inf where nothing differs, -inf where the error is unbounded or the peak is 0.
    max_error : float
        Largest absolute difference, in the data's units.
    """

    psnr: float
    max_error: float


def psnr(
    original: Any,
    decoded: Any,
    valid: np.ndarray | None = None,
    peak: float | None = None,
) -> float:
    """Measure the peak signal-to-noise ratio in dB.

    Parameters
    ----------
    original, decoded : array-like
        Same shape, any real dtypes, byte orders and strides.
    valid : ndarray of bool, optional
        Same shape; the voxels that count. By default those finite in `original`.
    peak : float, optional
        By default maximum minus minimum of the valid original voxels.

    Returns
    -------
    float
        inf where no valid voxel differs, -inf where one is not finite in `decoded` or where they
        differ although the peak is 0.

    Raises
    ------
    ConfigError
        If the shapes differ or `peak` is negative or not finite.
    """
    return measure(original, decoded, valid, peak).psnr


def max_error(original: Any, decoded: Any, valid: np.ndarray | None = None) -> float:
    """Measure the largest absolute difference of valid voxels, in the data's units.

    Parameters
    ----------
    original, decoded, valid
        As in `psnr`.

    Returns
    -------
    float
        0 where no voxel is valid; inf where one is not finite in `decoded`.

    Raises
    ------
    ConfigError
        If the shapes differ.
    """
    largest, _, _ = _differences(*_operands(original, decoded, valid), 1.0)
    return largest


def measure(
    original: Any,
    decoded: Any,
    valid: np.ndarray | None = None,
    peak: float | None = None,
) -> Quality:
    """Measure both with one comparison of the arrays.

    The arithmetic is float64, in blocks, so that it needs less than 1 MB whatever the size.

    Parameters
    ----------
    original, decoded, valid, peak
        As in `psnr`.

    Raises
    ------
    ConfigError
        As `psnr`.
    """
    operands = _operands(original, decoded, valid)
    if peak is not None and not 0 <= peak < math.inf:
        raise ConfigError(f"peak: {peak} is not a finite number of at least 0")
    low, high = (0.0, peak) if peak is not None else _valid_range(*operands)
    scale = _safe_scale(low, high)
    largest, squares, n_valid = _differences(*operands, scale)
    if largest == 0:
        return Quality(math.inf, 0.0)
    span = high * scale - low * scale
    if span == 0 or not math.isfinite(squares):
        return Quality(-math.inf, largest)
    decibel = 10 * (2 * math.log10(span) - math.log10(squares / n_valid)) if squares else math.inf
    return Quality(decibel, largest)


def _operands(
    original: Any, decoded: Any, valid: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    original, decoded = np.asarray(original), np.asarray(decoded)
    if original.shape != decoded.shape:
        raise ConfigError(f"decoded: shape {decoded.shape}, original has {original.shape}")
    if valid is not None:
        valid = np.asarray(valid, dtype=bool)
        if valid.shape != original.shape:
            raise ConfigError(f"valid: shape {valid.shape}, original has {original.shape}")
    return original, decoded, valid


def _differences(
    original: np.ndarray, decoded: np.ndarray, valid: np.ndarray | None, scale: float
) -> tuple[float, float, int]:
    """Give the largest difference, the sum of squared differences times scale, and the count."""
    largest, squares, n_valid = 0.0, 0.0, 0
    with np.errstate(all="ignore"):
        for x, y, chosen in _blocks(original, decoded, valid):
            # Scaled first, so that the difference cannot overflow where its parts do not.
            difference = x - y if scale == 1.0 else x * scale - y * scale
            if chosen is not None:
                difference[~chosen] = 0
            n_valid += difference.size if chosen is None else int(np.count_nonzero(chosen))
            np.abs(difference, out=difference)
            block_largest = float(difference.max())
            largest = max(largest, math.inf if math.isnan(block_largest) else block_largest)
            np.square(difference, out=difference)
            squares += float(difference.sum())
    return largest / scale, squares, n_valid


def _valid_range(
    original: np.ndarray, decoded: np.ndarray, valid: np.ndarray | None
) -> tuple[float, float]:
    low, high = math.inf, -math.inf
    for x, _, chosen in _blocks(original, original, valid):
        where = True if chosen is None else chosen
        low = min(low, float(x.min(where=where, initial=math.inf)))
        high = max(high, float(x.max(where=where, initial=-math.inf)))
    return (low, high) if low <= high else (0.0, 0.0)


def _blocks(
    original: np.ndarray, decoded: np.ndarray, valid: np.ndarray | None
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray | None]]:
    """Give both as flat float64 blocks, with which voxels count (None where all do)."""
    arrays: list[np.ndarray] = [original, decoded]
    dtypes: list[type] = [np.float64, np.float64]
    if valid is not None:
        arrays.append(valid)
        dtypes.append(np.bool_)
    blocks = np.nditer(
        arrays,
        flags=["external_loop", "buffered", "zerosize_ok"],
        op_flags=[["readonly"]] * len(arrays),
        op_dtypes=dtypes,
        buffersize=_BUFFER_VOXELS,
        casting="same_kind",
    )
    with blocks:
        for x, y, *rest in blocks:
            if x.size == 0:
                continue
            chosen = rest[0] if rest else np.isfinite(x)
            yield x, y, None if chosen.all() else chosen


def _safe_scale(low: float, high: float) -> float:
    """Choose the factor, 1 unless squares would overflow or vanish, that measures in [-1, 1]."""
    if 1e-100 < high - low < 1e100:
        return 1.0
    exponent = math.frexp(max(abs(low), abs(high)))[1]
    return math.ldexp(1.0, min(1000, -exponent))
