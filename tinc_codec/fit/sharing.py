"""Chunks -> model sections that keep a promise: what goes to hyper layers, what to features."""

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from tinc_codec.bitstream.sections import Section
from tinc_codec.errors import TargetError
from tinc_codec.fit.feature_search import fit_to_bound
from tinc_codec.fit.features import BOUNDED_LMBDA, FeatureFit, FeatureTarget, demands_of
from tinc_codec.fit.filtered import FilteredFeatures, filtered_to_quality, filtered_to_size
from tinc_codec.fit.lattice import LatticeFit
from tinc_codec.fit.trees_alone import encode_trees_alone, fit_trees, tree_values
from tinc_codec.fit.work import (
    PSNR_MARGIN,
    Sections,
    Work,
    decoded_psnr,
    quality_of,
    section_bytes,
    values_of,
)
from tinc_codec.model.budget import smallest_section
from tinc_codec.model.features import MAX_VOXELS, TOLERANCE, coded_step, whole_edge
from tinc_codec.params import EncodingParams
from tinc_codec.quantise.corrections import (
    Corrections,
    find_corrections,
    size_of,
    write_corrections,
)
from tinc_codec.quantise.lattice import MAX_TOP, from_lattice
from tinc_codec.volume.chunk import value_mapping

_BOUND_PASSES = (3, 3, 4, 5, 6, 8, 10, 12, 14, 16)
"""How many steps are tried beyond the first where errors are bounded."""


def tile_of(work: Work, params: EncodingParams) -> int:
    """Return the edge of the tiles that a chunk's features are coded in; see `Features.tile`."""
    _, *grid = work.values.shape
    z, y, x = grid
    whole = whole_edge((z, y, x))
    if params.given_tile is not None:
        return min(params.given_tile, whole)
    edge = _TILE
    # Of lines and planes cubes hold little, and each takes two bytes and breaks contexts off.
    while edge < whole and math.prod(min(n, edge) for n in grid) < _LEAST_VOXELS:
        edge *= 2
    return min(edge, whole)


def _lattice_fit(work: Work, params: EncodingParams, threads: int) -> LatticeFit:
    return LatticeFit(work.original, work.info, work.classes, threads, params.given_tile)


_TILE = 64
"""Takes 0.3 to 0.8 % more bytes than a chunk of 128^3 as one tile; 32 takes 2 to 3 %."""
_LEAST_VOXELS = 1 << 15
"""Of a tile that was not asked for."""


def encode_features(
    work: Work, params: EncodingParams, device: str, threads: int
) -> Sections | None:
    """Encode a chunk as features alone; None where they cannot be short or fine enough."""
    if math.prod(work.values.shape[1:]) > MAX_VOXELS:
        return None
    demands = demands_of(work.values, work.classes)
    target = FeatureTarget(work.values, demands, tile=tile_of(work, params))
    if params.ratio is not None:
        return _within_ratio(work, target, {}, params, device, threads)
    if params.psnr is not None:
        wanted, measure = params.psnr + PSNR_MARGIN, quality_of(work, threads)
        found = filtered_to_quality(target, wanted, measure, params, threads)
        return None if found is None else _sections_of(found)
    assert params.max_error is not None
    fit = FeatureFit(target, threads, BOUNDED_LMBDA)
    return _bounded(work, fit, params.max_error, _BOUND_PASSES[params.effort])


def _within_ratio(
    work: Work,
    target: FeatureTarget,
    others: Sections,
    params: EncodingParams,
    device: str,
    threads: int,
) -> Sections | None:
    """Find features, and a post-filter where it pays, within the ratio beside other sections."""
    used = section_bytes(others)
    alone = work.room([*others, Section.FEATURES]) - used
    together = work.room([*others, Section.FEATURES, Section.POSTFILTER]) - used
    found = filtered_to_size(target, alone, together, params, device, threads)
    return None if found is None else {**others, **_sections_of(found)}


def _sections_of(found: FilteredFeatures) -> Sections:
    sections: Sections = {int(Section.FEATURES): found.features}
    if found.postfilter is not None:
        sections[int(Section.POSTFILTER)] = found.postfilter
    return sections


def _bounded(work: Work, fit: FeatureFit, max_error: float, passes: int) -> Sections:
    scale, _, span, _, _ = value_mapping(work.info)

    def corrections(values: np.ndarray) -> Corrections:
        return find_corrections(
            work.original, values, work.info, work.classes, max_error, TOLERANCE
        )

    def size(values: np.ndarray) -> int:
        return size_of(corrections(values), work.info)

    # Integers round: whatever is within half a unit beyond a whole bound is within it.
    if work.info.dtype.kind in "iu":
        max_error = math.floor(max_error)
    allowed = max_error + 0.5 if work.info.dtype.kind in "iu" else max_error
    code = fit_to_bound(fit, allowed * scale / span, size, passes)
    sections: Sections = {int(Section.FEATURES): code.section}
    found = corrections(code.values)
    if len(found):
        sections[int(Section.CORRECTIONS)] = write_corrections(found, work.info)
    return sections


def encode_models(
    works: Sequence[Work], params: EncodingParams, device: str, threads: int
) -> list[Sections]:
    """Encode chunks that are not constant.

    Parameters
    ----------
    works : sequence of Work
    params : EncodingParams
    device : str
        A torch device, for trees.
    threads : int

    Returns
    -------
    list of dict
        Per chunk, the bodies of its model sections by id.

    Raises
    ------
    TargetError
        If a promise cannot be kept.
    """
    if params.model == "tree":
        return encode_trees_alone(works, params, device, threads)
    shared = []
    for work in works:
        if params.model == "lattice":
            shared.append(_lattice_alone(work, params, threads))
        elif params.ratio is None and params.model == "auto":
            shared.append(_cheapest(work, params, device, threads))
        else:
            shared.append(_finest(work, params, device, threads))
    return shared


def _finest(work: Work, params: EncodingParams, device: str, threads: int) -> Sections:
    """Find what is best within a ratio, or features that keep another promise."""
    sections = encode_features(work, params, device, threads)
    if sections is None:
        return _fallback(work, params, device, threads)
    if params.model == "features" or params.effort == 0:
        return sections
    lattice = _better_lattice(work, sections, params, threads)
    if lattice is not None:
        return lattice
    if params.effort >= TREE_EFFORT:
        return _best_share(work, sections, params, device, threads)
    return sections


def _better_lattice(
    work: Work, features: Sections, params: EncodingParams, threads: int
) -> Sections | None:
    """Find a lattice of as many bytes that is nearer to the chunk than features; None if none is.

    Where most voxels have one value and the others are noise, it often is.
    """
    lattices = _lattice_fit(work, params, threads)
    room = work.room([Section.LATTICE])
    scale, _, span, _, _ = value_mapping(work.info)
    step = _LATTICE_STEP * coded_step(features[int(Section.FEATURES)]) * span / scale
    if not lattices.is_promising(room, step):
        return None
    found = lattices.of_size(room, step, is_coarse=True)
    if found is None:
        return None
    body, lattice = found
    decoded = np.empty(work.values.shape, work.info.dtype)
    from_lattice(lattice, work.info, decoded)
    reached = quality_of(work, threads)(values_of(features, work, threads))
    return {int(Section.LATTICE): body} if decoded_psnr(work, decoded) > reached else None


_LATTICE_STEP = 0.75
"""Of the features' step: a lattice's step of errors that are as large, or larger."""


def _lattice_alone(work: Work, params: EncodingParams, threads: int) -> Sections:
    """Keep a promise by a lattice.

    Raises
    ------
    TargetError
        If none keeps it.
    """
    lattices = _lattice_fit(work, params, threads)
    if params.ratio is not None:
        room = work.room([Section.LATTICE])
        scale, _, span, _, _ = value_mapping(work.info)
        found = lattices.of_size(room, span / scale / _FIRST_STEPS)
        if found is not None:
            return {int(Section.LATTICE): found[0]}
        least = lattices.least_bytes()
        if least:
            work.refuse({Section.LATTICE: least})
        lattice = None
    elif params.max_error is not None:
        lattice = lattices.within(params.max_error)
    else:
        assert params.psnr is not None
        lattice = lattices.of_quality(params.psnr, partial(decoded_psnr, work))
    if lattice is None:
        raise TargetError(
            f"a lattice of at most {MAX_TOP + 1} points does not keep this promise on a chunk "
            f'of {work.info.value_min} to {work.info.value_max}; use model="auto"'
        )
    return {int(Section.LATTICE): lattices.write(lattice)}


def _cheapest(work: Work, params: EncodingParams, device: str, threads: int) -> Sections:
    """Keep a promise of quality with the fewest bytes: a lattice, or features.

    Raises
    ------
    TargetError
        If neither keeps it.
    """
    lattices = _lattice_fit(work, params, threads)
    lattice = None if params.max_error is None else lattices.within(params.max_error)
    body = None if lattice is None else lattices.write(lattice)
    features = None
    if body is None or 8 * len(body) <= _DENSE_BITS * work.values.size:
        features = encode_features(work, params, device, threads)
        if params.psnr is not None and (
            features is None
            or lattices.estimate_quality(params.psnr) < _ESTIMATE_MARGIN * section_bytes(features)
        ):
            lattice = lattices.of_quality(params.psnr, partial(decoded_psnr, work))
            body = None if lattice is None else lattices.write(lattice)
    if body is not None and (features is None or len(body) < section_bytes(features)):
        return {int(Section.LATTICE): body}
    return _fallback(work, params, device, threads) if features is None else features


_FIRST_STEPS = 64
"""Points of the lattice that is tried first."""
_DENSE_BITS = 1.3
"""Bits per voxel from which on features with corrections were never the shorter."""
_ESTIMATE_MARGIN = 1.5
"""So far may what is estimated from a part of the chunk be off, for a step that is only guessed."""


def _best_share(
    work: Work, features: Sections, params: EncodingParams, device: str, threads: int
) -> Sections:
    """Find out whether a tree, alone or with features on what it leaves, beats features alone."""
    grid = work.values.shape
    measure = quality_of(work, threads)
    best, reached = features, measure(values_of(features, work, threads))
    room = work.room([Section.TREE])
    if smallest_section(grid) > room:
        return best
    scout_effort, gain = _SCOUTS[params.effort - TREE_EFFORT]
    (scout,) = fit_trees([work], [room], replace(params, effort=scout_effort), device, threads)
    if measure(tree_values(scout, work, threads)) + gain < reached:
        return best
    trained = replace(params, effort=params.effort - _EFFORT_OF_FEATURES)
    for share in _TREE_SHARES:
        sections = _shared(work, share, trained, device, threads)
        if sections is None:
            continue
        quality = measure(values_of(sections, work, threads))
        if quality > reached:
            best, reached = sections, quality
    return best


TREE_EFFORT = 5
"""From this effort on, it is tried out whether a tree pays."""
_EFFORT_OF_FEATURES = 2
"""So much lower is the effort that a tree is trained with here: several are."""
_TREE_SHARES = (1.0, 0.75)
"""Parts of the bytes that go to hyper layers, the rest to features of what the tree leaves."""
_SCOUTS = ((2, 1.2), (2, 1.2), (3, 0.7), (3, 0.7), (3, 0.7))
"""From `TREE_EFFORT` on, the effort of the tree that is tried out first, and about the most, in dB,
that longer training gains over it."""


def _shared(
    work: Work, share: float, params: EncodingParams, device: str, threads: int
) -> Sections | None:
    grid = work.values.shape
    alone = share >= 1
    ids = [Section.TREE] if alone else [Section.TREE, Section.FEATURES]
    room = work.room(ids)
    limit = math.floor(room * share)
    if limit < smallest_section(grid):
        return None
    (body,) = fit_trees([work], [limit], params, device, threads)
    if alone:
        return {int(Section.TREE): body}
    base = tree_values(body, work, threads)
    demands = demands_of(work.values, work.classes)
    target = FeatureTarget(work.values, demands, base, tile_of(work, params))
    return _within_ratio(work, target, {int(Section.TREE): body}, params, device, threads)


def _fallback(work: Work, params: EncodingParams, device: str, threads: int) -> Sections:
    """Try a tree where features cannot be short enough."""
    fit = FeatureFit(FeatureTarget(work.values, None, tile=tile_of(work, params)), threads)
    if params.psnr is not None:
        finest, _ = fit.quantise(fit.finest_code)
        reached = quality_of(work, threads)(fit.decode(finest))
        raise TargetError(
            f"psnr={params.psnr:g} dB is beyond what float32 arithmetic reaches on this chunk, "
            f"{math.floor(100 * reached) / 100} dB; use a lossless codec for such data"
        )
    features = len(fit.write(fit.coarsest()))
    least = smallest_section(work.values.shape)
    if params.model == "features" or (features < least and work.room([Section.TREE]) < least):
        work.refuse({Section.FEATURES: features})
    return encode_trees_alone([work], params, device, threads)[0]
