"""Voxels of a lattice: a slab is decoded when one of its voxels is first asked for."""

from dataclasses import replace

import numpy as np

from tinc_codec.quantise.lattice import Lattice, from_lattice
from tinc_codec.quantise.lattice_section import CodedLattice, decode_slabs
from tinc_codec.volume.chunk import ChunkInfo, Ranges


class LatticeVoxels:
    """A chunk's voxels, decoded as far as they were asked for; thread-safe.

    Parameters
    ----------
    coded : CodedLattice
    info : ChunkInfo
    classes : ndarray of uint8 or None
        As many voxels, 0 where one is finite.
    """

    def __init__(self, coded: CodedLattice, info: ChunkInfo, classes: np.ndarray | None) -> None:
        # Copies: the caller's bytes may change.
        self._coded = replace(coded, payloads=tuple(map(bytes, coded.payloads)))
        self._info = info
        self._classes = classes
        self._voxels = np.empty(coded.shape, info.dtype)
        self._starts = [slab.start for slab in coded.slabs]
        self._is_decoded = np.zeros(len(coded.slabs), bool)

    @property
    def size_bytes(self) -> int:
        """Memory once all is decoded; the classes are not counted."""
        return self._voxels.nbytes + sum(map(len, self._coded.payloads))

    def box(self, volumes: np.ndarray, ranges: Ranges, threads: int) -> np.ndarray:
        """Return voxels, decoding the slabs that hold them where they are not yet.

        Parameters
        ----------
        volumes : ndarray of int64
            Which volumes; not empty.
        ranges : three (start, stop)
            Not empty, along z, y, x.
        threads : int

        Returns
        -------
        ndarray
            Shape (len(volumes), *sizes of the ranges), of the chunk's dtype.

        Raises
        ------
        CorruptStreamError
            If such a slab is not what an encoder writes.
        """
        z, y, x = (slice(*bounds) for bounds in ranges)
        planes = volumes[:, None] * self._coded.shape[1] + np.arange(z.start, z.stop)
        needed = np.unique(np.searchsorted(self._starts, planes, side="right") - 1)
        missing = needed[~self._is_decoded[needed]].tolist()
        if missing:
            self._decode(missing, threads)
        return self._voxels[volumes, z, y, x]

    def _decode(self, numbers: list[int], threads: int) -> None:
        # Not under a lock: two threads may decode one slab twice, and write the same.
        coded = self._coded
        indices = np.empty((coded.slabs[-1].stop, *coded.shape[2:]), np.int32)
        decode_slabs(coded, self._classes, numbers, indices, threads)
        stack = self._voxels.reshape(indices.shape)
        for number in numbers:
            part = coded.slabs[number]
            from_lattice(Lattice(coded.points, indices[None, part]), self._info, stack[None, part])
            self._is_decoded[number] = True
