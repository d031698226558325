"""What the tests of the faces share: a codec with short fits and volumes it can follow."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np

from tinc_codec import TINC

CODEC = TINC(ratio=8, effort=0)
CHUNKS = (16, 16, 16)
# Far below what such smooth data reaches: these tests are about doors, not about quality.
LEAST_PSNR = 20.0


def smooth_volume(shape: tuple[int, ...], dtype: str = "<f4", order: str = "C") -> np.ndarray:
    """Return a smooth volume of this shape and dtype, inside [10, 110] on every axis."""
    axes = np.meshgrid(*(np.linspace(0.0, 1.0, size) for size in shape), indexing="ij")
    wave = sum(np.sin(3.0 * axis + number) for number, axis in enumerate(axes))
    scaled = 10.0 + 100.0 * (wave - wave.min()) / max(float(np.ptp(wave)), 1e-9)
    return np.asarray(scaled.astype(dtype), order=order)


@cache
def _bundled_volume() -> np.ndarray:
    path = Path(__file__).parents[1] / "examples" / "data" / "mni152_t1_crop.npz"
    with np.load(path) as archive:
        return archive["volume"]


def brain(edge: int) -> np.ndarray:
    """Return the central cube of the bundled volume, uint8."""
    volume = _bundled_volume()
    starts = [(n - edge) // 2 for n in volume.shape]
    return np.ascontiguousarray(volume[tuple(slice(s, s + edge) for s in starts)])


def psnr(original: np.ndarray, decoded: np.ndarray) -> float:
    """Return the PSNR in dB over the finite voxels, with the original's range as peak."""
    valid = np.isfinite(original.astype("f8"))
    expected, found = original[valid].astype("f8"), decoded[valid].astype("f8")
    error = float(np.mean((expected - found) ** 2))
    return np.inf if error == 0 else float(20 * np.log10(np.ptp(expected) / np.sqrt(error)))


def assert_close(original: np.ndarray, decoded: np.ndarray) -> None:
    """Check shape, kind and quality of what came back."""
    assert decoded.shape == original.shape
    assert np.can_cast(decoded.dtype, original.dtype, "equiv")
    np.testing.assert_array_equal(np.isnan(original), np.isnan(decoded))
    assert psnr(original, decoded) >= LEAST_PSNR
