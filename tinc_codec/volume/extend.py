"""Plausible values for voxels that have none, so that a model meets no artificial edge."""

import numpy as np


def extend_known(values: np.ndarray, known: np.ndarray) -> None:
    """Fill unknown voxels, in place, with means of the known ones at the finest scale that has any.

    A pyramid of 2x averages over (z, y, x): each unknown voxel takes the mean of the smallest
    dyadic block around it with a known voxel, or of all known ones where its volume has none.

    Parameters
    ----------
    values : ndarray of float32
        Shape (B, Z, Y, X); finite where known.
    known : ndarray of bool
        Same shape; at least one is True.
    """
    values[~known] = 0
    overall = np.float32(values.sum(dtype=np.float64) / np.count_nonzero(known))
    levels = [(values, known.astype(np.float32))]
    while max(levels[-1][0].shape[1:]) > 1:
        sums, weights = levels[-1]
        for axis in (1, 2, 3):
            sums, weights = _pair_sums(sums, axis), _pair_sums(weights, axis)
        # Blocks count alike however many of their voxels are known, which keeps surfaces local.
        sums = np.divide(sums, weights, out=np.zeros_like(sums), where=weights > 0)
        levels.append((sums, (weights > 0).astype(np.float32)))
    coarse, weights = levels[-1]
    coarse[weights == 0] = overall
    for fine, weights in levels[-2::-1]:
        upsampled = coarse
        for axis in (1, 2, 3):
            if fine.shape[axis] > 1:
                index = (slice(None),) * axis + (slice(0, fine.shape[axis]),)
                upsampled = upsampled.repeat(2, axis=axis)[index]
        np.copyto(fine, upsampled, where=weights == 0)
        coarse = fine
    np.clip(values, 0.0, 1.0, out=values)


def _pair_sums(array: np.ndarray, axis: int) -> np.ndarray:
    """Add neighbours along an axis in pairs; an odd last one stays alone."""
    lead = (slice(None),) * axis
    out = array[lead + (slice(0, None, 2),)].copy()
    odd = array[lead + (slice(1, None, 2),)]
    out[lead + (slice(0, odd.shape[axis]),)] += odd
    return out
