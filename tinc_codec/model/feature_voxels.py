"""Regions of a chunk's features: parts are decoded when a region first needs them."""

from collections.abc import Sequence

import numpy as np

from tinc_codec.entropy.tile_plan import TILED_LEVELS
from tinc_codec.model.coefficients import coefficients_of, dequantise_tiles
from tinc_codec.model.features import FeatureSection, decode_features, feature_levels
from tinc_codec.model.wavelet_windows import depended_ranges, inverse_region
from tinc_codec.volume.chunk import Ranges

_NEXT, _BOTH = 1, 2
"""How much of a tile is decoded: the coarser of the two tiled levels, or both."""


class FeatureVoxels:
    """What features give for a region, decoded as far as it was asked for; thread-safe.

    Parameters
    ----------
    section : FeatureSection

    Raises
    ------
    CorruptStreamError
        If a section without tiles is damaged.
    """

    def __init__(self, section: FeatureSection) -> None:
        self._section = section
        if section.tiles is None:
            self._coefficients = coefficients_of(decode_features(section))
            return
        volumes = len(section.low_passes)
        # Memory that is touched only where something is decoded, or beside it: what a window holds
        # beyond what its region depends on does not count.
        self._coefficients = np.empty((volumes, *section.grid), np.float32)
        self._coarser: list[np.ndarray | None] = [None] * volumes
        self._decoded = np.zeros((volumes, *section.tiles.tiling.grid), np.uint8)

    @property
    def size_bytes(self) -> int:
        """Memory once all is decoded."""
        tiles = self._section.tiles
        return self._coefficients.nbytes + (0 if tiles is None else tiles.code.nbytes)

    def box(self, volumes: Sequence[int], ranges: Ranges, threads: int) -> np.ndarray:
        """Evaluate a box.

        Parameters
        ----------
        volumes : sequence of int
            Which volumes, one after the other.
        ranges : three (start, stop)
            Not empty, along z, y, x.
        threads : int

        Returns
        -------
        ndarray of float32
            Shape (len(volumes), *sizes of the ranges), bit for bit as in the whole.

        Raises
        ------
        CorruptStreamError
            If a part that is needed is damaged.
        """
        if self._section.tiles is not None:
            # High-pass samples reach further than low-pass ones.
            needed = [high for _, high in depended_ranges(self._section.grid, ranges)]
            for volume in volumes:
                self._require(volume, needed, threads)
        return inverse_region(self._coefficients[volumes[0] : volumes[-1] + 1], ranges, threads)

    def _require(self, volume: int, ranges: Sequence[Ranges], threads: int) -> None:
        """Decode what is missing of a volume; ranges in its bands per level, finest first."""
        section = self._section
        assert section.tiles is not None
        tiling = section.tiles.tiling
        wanted = np.zeros(tiling.grid, np.uint8)
        wanted[tiling.touched(1, ranges[1])] = _NEXT
        wanted[tiling.touched(0, ranges[0])] = _BOTH
        missing = wanted > self._decoded[volume]
        if not missing.any():
            return
        coarser = self._coarser[volume]
        if coarser is None:
            coarser = self._decode_coarse(volume)
        numbers = np.flatnonzero(missing)
        finest = (TILED_LEVELS - wanted[missing]).astype(np.int64)
        # Not under a lock: two threads may decode one tile twice, and write the same coefficients.
        # The symbols are not where those are, which others may be reading.
        symbols = np.empty(section.grid, np.int32)
        section.tiles.tiles(volume, numbers, finest, coarser, symbols, threads=threads)
        dequantise_tiles(section, symbols, numbers, finest, self._coefficients[volume])
        self._decoded[volume][missing] = wanted[missing]

    def _decode_coarse(self, volume: int) -> np.ndarray:
        section = self._section
        assert section.tiles is not None
        low = feature_levels(section.grid)[TILED_LEVELS - 1].low
        corner = tuple(slice(0, n) for n in low)
        symbols = np.empty(low, np.int32)
        coarser = section.tiles.coarse(volume, symbols)
        features = section.features_of(symbols[None], TILED_LEVELS)
        self._coefficients[volume][corner] = coefficients_of(features)[0]
        self._coarser[volume] = coarser
        return coarser
