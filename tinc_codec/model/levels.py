"""A chunk's sections -> the chunk at a lower resolution, by a short cut where there is one."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from tinc_codec.bitstream.header import Header
from tinc_codec.bitstream.sections import Section
from tinc_codec.errors import ConfigError
from tinc_codec.model.evaluate import store_values
from tinc_codec.model.render import read_model
from tinc_codec.volume.chunk import (
    FINITE,
    NAN,
    SPATIAL_NDIM,
    ChunkInfo,
    allocate,
    fill_constant,
    finish,
    is_constant,
    valid_view,
)
from tinc_codec.volume.mask import decode_classes

MAX_LEVEL = 30
"""No axis of a chunk that can be decoded is longer than 2^30 voxels by much."""


@dataclass(frozen=True, eq=False)
class KeptLevel:
    """A decoded level; it is never changed.

    Attributes
    ----------
    voxels : ndarray
        Read-only.
    """

    voxels: np.ndarray

    @property
    def size_bytes(self) -> int:
        """Memory of the voxels in bytes."""
        return self.voxels.nbytes


def level_shape(shape: Sequence[int], level: int) -> tuple[int, ...]:
    """Return the shape of a level: the last three axes 2^level times smaller, rounded up."""
    n_lead = max(0, len(shape) - SPATIAL_NDIM)
    return *shape[:n_lead], *(-(-n // (1 << level)) for n in shape[n_lead:])


def render_level(header: Header, level: int, extent: Sequence[int], threads: int) -> KeptLevel:
    """Decode a chunk at a lower resolution, on the CPU.

    A voxel of the level stands for a block of 2^level voxels along each of the last three axes. It
    is the mean of those that lie within `extent` and are finite, to some 40 dB and better: the
    finest details, and corrections, are left out, and where some voxels of a block are not finite,
    what the model says there takes part. It is NaN where none is finite. Integers are rounded.

    Parameters
    ----------
    header : Header
        From `bitstream.header.read_stream`.
    level : int
        1 to 30.
    extent : sequence of int
        How many voxels of the chunk belong to its array along each axis; what lies beyond leaks
        into no voxel. What the stream takes for padding, but is within, counts.
    threads : int

    Returns
    -------
    KeptLevel
        Voxels of shape `level_shape(header.info.shape, level)`; dtype, byte order and memory order
        of the chunk. Voxels beyond the extent are undefined.

    Raises
    ------
    FormatError
        If a section is damaged.
    ConfigError
        If the level is out of range.
    """
    if not 1 <= level <= MAX_LEVEL:
        raise ConfigError(f"level={level!r} is not in 1 to {MAX_LEVEL}")
    info = header.info
    is_cut = any(room < n for room, n in zip(extent, info.valid_extent, strict=True))
    if is_cut or _is_taken_from_voxels(header, level):
        return KeptLevel(_means_of_decoded(header, level, extent, threads))
    box = replace(
        info,
        shape=level_shape(info.shape, level),
        valid_extent=level_shape(info.valid_extent, level),
    )
    classes = None
    if Section.MASK in header.sections:
        found = decode_classes(header.sections[Section.MASK], info.valid_extent)
        classes = _coarse_classes(found, level)
    out = allocate(box)
    if is_constant(info):
        fill_constant(out, box)
        finish(out, box, classes)
    else:
        view = valid_view(out, box)
        store_values(_means(header, level, threads), box, view, threads)
        finish(out, box, classes, view)
    if info.pad_value is not None:
        _mix_padding(out[box.valid_slices], info, level, extent, classes)
    out.flags.writeable = False
    return KeptLevel(out)


def _is_taken_from_voxels(header: Header, level: int) -> bool:
    """Say whether a level has no short cut: of lattices, and of trees behind a post-filter."""
    sections = header.sections
    is_filtered = level == 1 and Section.POSTFILTER in sections
    return Section.LATTICE in sections or (is_filtered and Section.TREE in sections)


def _means_of_decoded(
    header: Header, level: int, extent: Sequence[int], threads: int
) -> np.ndarray:
    """Decode a chunk as it is and take the means: also where it leaves its array.

    That is one of an array that was made smaller, or that ends in a single voxel of padding.
    """
    from tinc_codec.model.block_means import voxel_means
    from tinc_codec.model.opened import open_sections
    from tinc_codec.model.region import render_region

    info = header.info
    region = [slice(0, min(room, n)) for room, n in zip(extent, info.shape, strict=True)]
    voxels = render_region(open_sections(header), region, threads)
    means = voxel_means(voxels, level)
    out = allocate(replace(info, shape=level_shape(info.shape, level)))
    out[...] = 0
    inside = tuple(slice(0, n) for n in means.shape)
    out[inside] = np.rint(means) if info.dtype.kind in "iu" else means
    out.flags.writeable = False
    return out


def _means(header: Header, level: int, threads: int) -> np.ndarray:
    """Decode the means over blocks, in t: float32 [volume, z, y, x], not clipped."""
    from tinc_codec.model.block_means import coarse_shape, feature_means, tree_means

    volumes, *grid = header.info.batched_shape
    z, y, x = grid
    if level == 1 and Section.POSTFILTER in header.sections:
        from tinc_codec.model.filtered_means import filtered_means

        model = read_model(header, with_features=False)
        assert model is not None
        assert model.postfilter is not None
        section = header.sections[Section.FEATURES]
        return filtered_means(section, model.postfilter, (z, y, x), volumes, threads)
    values = np.zeros((volumes, *coarse_shape((z, y, x), level)), np.float32)
    if Section.FEATURES in header.sections:
        section = header.sections[Section.FEATURES]
        values += feature_means(section, (z, y, x), volumes, level, threads)
    if Section.TREE in header.sections:
        # Without its other sections the stream's model is its tree alone.
        alone = {int(Section.TREE): header.sections[Section.TREE]}
        model = read_model(replace(header, sections=alone))
        assert model is not None
        assert model.tree is not None
        values += tree_means(model.tree, level, threads)
    return values


def _coarse_classes(classes: np.ndarray, level: int) -> np.ndarray:
    """Give the class of blocks: finite where any of their voxels is, else NaN."""
    finite = classes == FINITE
    for axis in range(max(0, classes.ndim - SPATIAL_NDIM), classes.ndim):
        starts = np.arange(0, classes.shape[axis], 1 << level)
        finite = np.logical_or.reduceat(finite, starts, axis=axis)
    return np.where(finite, np.uint8(FINITE), np.uint8(NAN))


def _mix_padding(
    valid: np.ndarray,
    info: ChunkInfo,
    level: int,
    extent: Sequence[int],
    classes: np.ndarray | None,
) -> None:
    """Let voxels of blocks that end in padding within the array be the mean with its value.

    Parameters
    ----------
    valid : ndarray
        The valid part of the level; changed.
    info : ChunkInfo
        Of the chunk itself.
    level : int
    extent : sequence of int
    classes : ndarray of uint8 or None
        Of the level.
    """
    pad = float(info.pad_value)
    share = np.ones((1,) * valid.ndim)
    n_lead = max(0, valid.ndim - SPATIAL_NDIM)
    for axis, (n, room) in enumerate(zip(info.valid_extent, extent, strict=True)):
        if axis < n_lead:
            continue
        starts = np.arange(0, n, 1 << level)
        held = np.minimum(starts + (1 << level), n) - starts
        within = np.minimum(starts + (1 << level), max(n, room)) - starts
        share = share * (held / within).reshape([-1 if a == axis else 1 for a in range(valid.ndim)])
    mixed = np.broadcast_to(share < 1, valid.shape)
    if not np.isfinite(pad) or not mixed.any():
        return
    values = valid[mixed].astype(np.float64)
    shares = np.broadcast_to(share, valid.shape)[mixed]
    if classes is not None:
        shares = np.where(classes[mixed] == FINITE, shares, 0.0)
        values = np.where(shares > 0, values, 0.0)
    values = shares * values + (1 - shares) * pad
    valid[mixed] = np.rint(values) if info.dtype.kind in "iu" else values
