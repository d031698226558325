"""Voxels of a lattice: slabs are decoded as far as the last plane that was asked for."""

from dataclasses import replace

import numpy as np

from tinc_codec.quantise.lattice import Lattice, from_lattice
from tinc_codec.quantise.lattice_section import (
    CodedLattice,
    SlabState,
    decode_slabs,
    state_bytes,
)
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
        self._starts = np.array([slab.start for slab in coded.slabs])
        # Planes by slab; what goes on where it is not all of them.
        self._decoded = np.zeros(len(coded.slabs), np.int64)
        self._begun: dict[int, SlabState] = {}

    @property
    def size_bytes(self) -> int:
        """The most that it takes, the classes left out: voxels, and what goes on with slabs."""
        coded = self._coded
        begun = sum(state_bytes(slab, coded.shape) for slab in coded.slabs)
        return self._voxels.nbytes + sum(map(len, coded.payloads)) + begun

    def box(self, volumes: np.ndarray, ranges: Ranges, threads: int) -> np.ndarray:
        """Return voxels, decoding the slabs that hold them as far as needed.

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
        slabs = np.searchsorted(self._starts, planes, side="right") - 1
        stops = np.zeros_like(self._decoded)
        np.maximum.at(stops, slabs, planes - self._starts[slabs] + 1)
        missing = np.flatnonzero(stops > self._decoded)
        if missing.size:
            self._decode(dict(zip(missing.tolist(), stops[missing].tolist(), strict=True)), threads)
        return self._voxels[volumes, z, y, x]

    def _decode(self, stops: dict[int, int], threads: int) -> None:
        # Not under a lock: two threads may decode one plane twice, and write the same.
        coded, begun = self._coded, self._begun.copy()
        indices = np.empty((coded.slabs[-1].stop, *coded.shape[2:]), np.int32)
        states = decode_slabs(coded, self._classes, stops, indices, threads, begun)
        stack = self._voxels.reshape(indices.shape)
        for number, state in states.items():
            slab = coded.slabs[number]
            first = begun[number].planes if number in begun else 0
            new = slice(slab.start + first, slab.start + state.planes)
            from_lattice(Lattice(coded.points, indices[None, new]), self._info, stack[None, new])
            is_whole = new.stop == slab.stop
            if state.planes > self._decoded[number]:
                self._decoded[number] = state.planes
                self._begun[number] = state
            if is_whole:
                self._begun.pop(number, None)
