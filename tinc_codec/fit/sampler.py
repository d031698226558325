"""Which voxels a training step looks at: a fresh lattice per leaf and step."""

from functools import cache

import numpy as np


@cache
def _primes_from(start: int, count: int) -> np.ndarray:
    divisors = np.arange(3, int(start**0.5) + 64, 2)
    found: list[int] = []
    candidate = start | 1
    while len(found) < count:
        if np.all(candidate % divisors):
            found.append(candidate)
        candidate += 2
    return np.array(found, dtype=np.int64)


class LatticeSampler:
    """Draws start and stride of every leaf's lattice; step after step from one seed.

    The voxels start, start + stride, ... modulo the block's size are spread evenly over a block
    and never repeat, since the strides are primes larger than any block, reduced: that covers a
    block better than independent draws, and costs one addition per sample. All chunks of a batch
    share the draws, so that a chunk's fit does not depend on what else is in the batch.

    Parameters
    ----------
    counts : ndarray of int64
        Voxels per leaf.
    seed : int
    """

    def __init__(self, counts: np.ndarray, seed: int) -> None:
        self._counts = np.maximum(counts, 1)
        self._generator = np.random.default_rng(seed)
        self._primes = _primes_from(1 << 30, 64)

    def draw(self) -> tuple[np.ndarray, np.ndarray]:
        """Return starts and strides, int64 [leaf], each below the leaf's number of voxels."""
        n = len(self._counts)
        starts = self._generator.integers(0, 1 << 31, n) % self._counts
        strides = self._primes[self._generator.integers(0, len(self._primes), n)] % self._counts
        return starts, strides
