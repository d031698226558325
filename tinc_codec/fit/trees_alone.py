"""Chunks -> trees alone that keep a promise."""

import math
from collections.abc import Sequence

import numpy as np

from tinc_codec.bitstream.sections import Section
from tinc_codec.errors import TargetError
from tinc_codec.fit.work import PSNR_MARGIN, Sections, Work, quality_of, section_bytes, values_of
from tinc_codec.model.budget import smallest_section
from tinc_codec.model.section import TREE_TOLERANCE
from tinc_codec.params import EncodingParams
from tinc_codec.quantise.corrections import find_corrections, write_corrections


def encode_trees_alone(
    works: Sequence[Work], params: EncodingParams, device: str, threads: int
) -> list[Sections]:
    """Encode chunks as trees alone; with a ratio, those of one shape are fitted together.

    Raises
    ------
    TargetError
        If a tree cannot keep the promise.
    """
    if params.ratio is not None:
        limits = [work.room([Section.TREE]) for work in works]
        for work, limit in zip(works, limits, strict=True):
            least = smallest_section(work.values.shape)
            if limit < least:
                work.refuse({Section.TREE: least})
        bodies = fit_trees(works, limits, params, device, threads)
        return [{int(Section.TREE): body} for body in bodies]
    return [_search_tree(work, params, device, threads) for work in works]


def fit_trees(
    works: Sequence[Work], limits: Sequence[int], params: EncodingParams, device: str, threads: int
) -> list[bytes]:
    """Fit one tree section per chunk, each within its limit of bytes."""
    from tinc_codec.fit.encoder import encode_trees

    return encode_trees(
        [work.values for work in works],
        [work.classes for work in works],
        limits,
        params,
        device,
        threads,
    )


def tree_values(body: bytes, work: Work, threads: int) -> np.ndarray:
    """Evaluate a tree section on the CPU: t as float32 of shape (B, z, y, x), not clipped."""
    return values_of({int(Section.TREE): body}, work, threads)


def _search_tree(work: Work, params: EncodingParams, device: str, threads: int) -> Sections:
    """Find a short tree that keeps a promise on quality, by a few fits of different sizes."""
    grid = work.values.shape
    least, most = smallest_section(grid), max(64, 4 * work.values.size)
    measure = quality_of(work, threads)
    best: Sections | None = None
    low, high = math.log2(least), math.log2(max(most, 2 * least))
    size = math.log2(max(least, work.original.nbytes / _FIRST_RATIO))
    for _ in range(_TREE_FITS):
        limit = max(least, round(2.0**size))
        (body,) = fit_trees([work], [limit], params, device, threads)
        values = tree_values(body, work, threads)
        sections: Sections = {int(Section.TREE): body}
        if params.psnr is not None:
            excess = measure(values) - params.psnr - PSNR_MARGIN
            if excess >= 0:
                best, high = sections, min(high, size)
            else:
                low = max(low, size)
            wanted = size - excess / _PSNR_PER_OCTAVE + 0.02
            if best is not None and high - low < 0.05:
                break
        else:
            assert params.max_error is not None
            found = find_corrections(
                work.original, values, work.info, work.classes, params.max_error, TREE_TOLERANCE
            )
            if len(found):
                sections[int(Section.CORRECTIONS)] = write_corrections(found, work.info)
            if best is not None and section_bytes(sections) >= section_bytes(best):
                break
            best, wanted = sections, size + 1
        size = wanted if low < wanted < high else (low + high) / 2
    if best is None:
        raise TargetError(
            f"a tree does not reach psnr={params.psnr:g} dB in {_TREE_FITS} fits of up to "
            f'{round(2.0**low)} bytes; use model="features", a larger ratio or less'
        )
    return best


_FIRST_RATIO = 64
_TREE_FITS = 6
_PSNR_PER_OCTAVE = 1.8
