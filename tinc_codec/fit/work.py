"""A chunk that waits for its model, and how near a model of it comes."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NoReturn

import numpy as np

from tinc_codec.bitstream.header import Header
from tinc_codec.metrics import psnr
from tinc_codec.model.evaluate import store_values
from tinc_codec.model.render import model_values, read_model
from tinc_codec.volume.chunk import ChunkInfo

PSNR_MARGIN = 0.001
"""In dB: what another device's rounding may cost."""

Sections = dict[int, bytes]
"""Bodies of model sections by id."""


@dataclass(frozen=True, eq=False)
class Work:
    """A chunk that waits for its model.

    Attributes
    ----------
    original : ndarray
        Shape (B, z, y, x), of the chunk's dtype: its valid extent.
    values : ndarray of float32
        The same normalised.
    info : ChunkInfo
    classes : ndarray of uint8 or None
        Of as many voxels; not 0 where a voxel does not count.
    room : callable
        From the ids of sections to the bytes that their bodies may have together, where a ratio
        is asked for; none where that is not positive.
    refuse : callable
        From the least bytes per section id that the chunk can have to a `TargetError` that says
        so; never returns.
    """

    original: np.ndarray
    values: np.ndarray
    info: ChunkInfo
    classes: np.ndarray | None
    room: Callable[[Sequence[int]], int]
    refuse: Callable[[Mapping[int, int]], NoReturn]

    @property
    def counted(self) -> np.ndarray | None:
        """Which voxels count; None for all."""
        return None if self.classes is None else self.classes.reshape(self.values.shape) == 0


def section_bytes(sections: Sections) -> int:
    """Count the bytes of sections' bodies."""
    return sum(map(len, sections.values()))


def quality_of(work: Work, threads: int) -> Callable[[np.ndarray], float]:
    """Make a function from t to the PSNR that it reaches."""
    decoded = np.empty(work.values.shape, work.info.dtype)

    def measure(values: np.ndarray) -> float:
        store_values(values, work.info, decoded, threads)
        return decoded_psnr(work, decoded)

    return measure


def decoded_psnr(work: Work, decoded: np.ndarray) -> float:
    """Measure the PSNR of decoded voxels, (B, z, y, x) of the chunk's dtype, in dB."""
    return psnr(work.original, decoded, work.counted)


def values_of(sections: Sections, work: Work, threads: int) -> np.ndarray:
    """Evaluate model sections as a reader does: t as float32 [B, z, y, x], not clipped."""
    header = Header(work.info, 0.0, 0.0, sections)
    model = read_model(header)
    assert model is not None
    return model_values(model, threads)
