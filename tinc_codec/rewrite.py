"""A chunk of which a part is overwritten: encoded again, with what is known of the original data.

Of the untouched voxels only what they decoded to is left, and how far off that is at most. With
`max_error` they must not move, or only by what is left of the bound. So the old model is kept, and
the touched voxels are corrected until they keep the bound too. Where that is impossible, since
they leave the old value range, or more bytes, the chunk is fitted anew and the untouched voxels
are corrected to what they were. A lattice is kept too: the touched voxels are moved to its points.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, NoReturn

import numpy as np

from tinc_codec import config
from tinc_codec.bitstream.header import Header, read_stream, write_stream
from tinc_codec.bitstream.sections import Section
from tinc_codec.codec import encode_chunk
from tinc_codec.decode import decode_header
from tinc_codec.errors import TargetError
from tinc_codec.params import EncodingParams
from tinc_codec.quantise.corrections import (
    Corrections,
    find_corrections,
    write_corrections,
)
from tinc_codec.volume.chunk import (
    FINITE,
    NAN,
    NEGATIVE_INFINITY,
    POSITIVE_INFINITY,
    ChunkInfo,
    analyse,
    is_constant,
    normalise,
    value_mapping,
)
from tinc_codec.volume.mask import encode_classes
from tinc_codec.volume.padding import bit_patterns

__all__ = ["OldChunk", "open_old", "rewrite_chunk"]


@dataclass(frozen=True, eq=False)
class OldChunk:
    """A chunk that is there already.

    Attributes
    ----------
    header : Header
    """

    header: Header

    @property
    def is_exact(self) -> bool:
        """Whether it decodes to the original data, so that encoding it again loses nothing more."""
        return self.header.max_error == 0

    def keeps_any(self, untouched: np.ndarray) -> bool:
        """Tell whether the chunk has data, not only padding, at some voxels.

        Parameters
        ----------
        untouched : ndarray of bool
            Of the chunk's shape.
        """
        return bool(untouched[self.header.info.valid_slices].any())

    def decode(self) -> np.ndarray:
        """Decode the chunk on the CPU."""
        with config.cpu_slots() as threads:
            return decode_header(self.header, threads)


def open_old(stream: Any) -> OldChunk:
    """Check a stream and read its header.

    Raises
    ------
    FormatError
        As `codec.decode_chunk`.
    """
    limit = config.get().max_decoded_bytes
    return OldChunk(read_stream(stream, max_decoded_bytes=limit))


def rewrite_chunk(
    old: OldChunk, array: np.ndarray, touched: np.ndarray, params: EncodingParams
) -> bytes:
    """Encode a chunk of which a part was overwritten.

    Parameters
    ----------
    old : OldChunk
        Before.
    array : ndarray
        What it decodes to, with the new values in place.
    touched : ndarray of bool
        Same shape: where the new values are.
    params : EncodingParams
        Whose promise holds: of the bytes, with `ratio`; against `array`, with `psnr`; against
        the new values and against the data that `old` was made of, with `max_error`.

    Returns
    -------
    bytes
        Its header bounds PSNR and largest error against that original data too, as far as the
        old header bounds them.

    Raises
    ------
    TargetError
        If the promise cannot be kept.
    """
    if params.max_error is None:
        return _with_bounds(encode_chunk(array, params), old, array, touched)
    limit = float(params.max_error)
    if array.dtype.kind in "iu":
        limit = float(math.floor(limit))
    with config.cpu_slots() as threads:
        best = min(_bounded(old, array, touched, limit, params, threads), key=len)
    return _with_bounds(best, old, array, touched, limit)


def _bounded(
    old: OldChunk,
    array: np.ndarray,
    touched: np.ndarray,
    limit: float,
    params: EncodingParams,
    threads: int,
) -> Iterator[bytes]:
    """Make streams that keep to a largest error, their headers not filled in."""
    if Section.LATTICE in old.header.sections:
        kept = _keep_lattice(old, array, touched, limit, params, threads)
    else:
        kept = _keep_model(old, array, touched, limit, threads)
    if kept is not None:
        yield kept
    yield from _refit(old, array, touched, limit, params, threads)


def _keep_model(
    old: OldChunk, array: np.ndarray, touched: np.ndarray, limit: float, threads: int
) -> bytes | None:
    """Keep the old model and correct the touched voxels; None where the old range is too small."""
    from tinc_codec.model.render import model_values, read_model

    header = old.header
    info = header.info
    valid = array[info.valid_slices]
    if is_constant(info) or not _is_padding(array, info):
        return None
    if Section.POSTFILTER in header.sections:
        # Behind one, nothing bounds what readers differ by.
        return None
    classes = _classes(valid)
    finite = valid[touched[info.valid_slices] & (classes == FINITE)]
    if finite.size and not (info.value_min <= finite.min() and finite.max() <= info.value_max):
        return None
    model = read_model(header)
    assert model is not None
    before = model.corrections
    values = model_values(model, threads)
    left_out = np.where(touched[info.valid_slices], classes, np.uint8(1))
    found = find_corrections(
        valid.reshape(info.batched_shape), values, info, left_out, limit, _tolerance(header)
    )
    if before is not None:
        counts = ~touched[info.valid_slices].reshape(-1)[before.positions]
        if (before.multiples[counts] != 0).any() and before.quantum != found.quantum:
            return None
        found = _joined(_selected(before, counts), found)
    sections: dict[int, bytes] = {
        section: bytes(body)
        for section, body in header.sections.items()
        if section in (Section.TREE, Section.FEATURES)
    }
    return _stream(info, classes, sections, found)


def _keep_lattice(
    old: OldChunk,
    array: np.ndarray,
    touched: np.ndarray,
    limit: float,
    params: EncodingParams,
    threads: int,
) -> bytes | None:
    """Keep the old points; None where the touched voxels, or the untouched, miss the bound so."""
    from tinc_codec.model.render import read_model
    from tinc_codec.quantise.lattice import from_lattice, place_points, to_lattice
    from tinc_codec.quantise.lattice_section import write_lattice

    info, classes = analyse(array)
    model = read_model(old.header, threads)
    assert model is not None
    assert model.lattice is not None
    before = model.lattice.points
    if is_constant(info) or not info.value_min <= before.origin <= info.value_max:
        return None
    points = place_points(info, before.origin, before.step)
    if points is None:
        return None
    valid = array[info.valid_slices].reshape(info.batched_shape)
    lattice = to_lattice(valid, info, points)
    decoded = np.empty_like(valid)
    from_lattice(lattice, info, decoded)
    counted = (_classes(valid) == FINITE) & np.isfinite(decoded)
    errors = np.abs(np.where(counted, valid, 0).astype(np.float64) - np.where(counted, decoded, 0))
    fresh = touched[info.valid_slices].reshape(valid.shape)
    if errors[fresh].max(initial=0) > limit or errors[~fresh].any():
        return None
    body = write_lattice(lattice, info, classes, threads, params.given_tile)
    return _stream(info, _classes(array[info.valid_slices]), {int(Section.LATTICE): body})


def _refit(
    old: OldChunk,
    array: np.ndarray,
    touched: np.ndarray,
    limit: float,
    params: EncodingParams,
    threads: int,
) -> Iterator[bytes]:
    """Fit the chunk anew, and correct untouched voxels by what is left of the bound for them."""
    from tinc_codec.fit.sharing import encode_models
    from tinc_codec.fit.work import Work
    from tinc_codec.model.render import model_values, read_model

    info, found_classes = analyse(array)
    if is_constant(info):
        yield encode_chunk(array, params)
        return
    valid, fresh = array[info.valid_slices], touched[info.valid_slices]
    classes = _classes(valid) if found_classes is None else found_classes
    left = _what_is_left(old.header, limit)
    work = Work(
        valid.reshape(info.batched_shape),
        normalise(array, info, found_classes),
        info,
        found_classes,
        lambda ids: 0,
        _never,
    )
    # A bound of 0 has no use for models of floats: all that it asks for is corrections.
    # Where no lattice is fine enough for what is left, features with corrections are.
    preferred = "auto" if params.model == "lattice" else params.model
    for bound in {limit, left if left > 0 or array.dtype.kind in "iu" else limit}:
        # A lattice cannot be corrected: it must keep the untouched voxels by itself.
        model_name = "features" if bound > left and preferred != "tree" else preferred
        fitted = replace(params, max_error=bound, model=model_name)
        (bodies,) = encode_models([work], fitted, "cpu", threads)
        if Section.LATTICE in bodies:
            yield _stream(info, classes, bodies)
            continue
        sections = {
            section: body for section, body in bodies.items() if section != Section.CORRECTIONS
        }
        header = Header(info, 0.0, 0.0, sections)
        model = read_model(header)
        assert model is not None
        values = model_values(model, threads)
        tolerance = _tolerance(header)
        everywhere = find_corrections(work.original, values, info, classes, left, tolerance)
        left_out = np.where(fresh, classes, np.uint8(1))
        new = find_corrections(work.original, values, info, left_out, limit, tolerance)
        needed = ~fresh.reshape(-1)[everywhere.positions]
        needed |= np.isin(everywhere.positions, new.positions, assume_unique=True)
        yield _stream(info, classes, sections, _selected(everywhere, needed))


def _never(least: Mapping[int, int]) -> NoReturn:
    raise AssertionError("only a ratio refuses")


def _what_is_left(header: Header, limit: float) -> float:
    """Say by how much an untouched voxel may move, 0 or more.

    Another device may have measured the old error: what readers may differ by comes off.
    """
    info = header.info
    if is_constant(info):
        return max(0.0, limit - header.max_error)
    if Section.POSTFILTER in header.sections:
        # Behind one, nothing bounds what readers differ by: untouched voxels stay as they are.
        return 0.0
    scale, _, span, low, high = value_mapping(info)
    slack = 2 * _tolerance(header) * span / scale
    if info.dtype.kind in "iu":
        return max(0.0, math.floor(limit - header.max_error) - math.ceil(slack))
    return max(0.0, limit - header.max_error - slack - float(np.spacing(max(-low, high))))


def _tolerance(header: Header) -> float:
    """Give what two readers may differ by in t."""
    from tinc_codec.model.features import TOLERANCE
    from tinc_codec.model.section import TREE_TOLERANCE

    if Section.LATTICE in header.sections:
        return 0.0
    return TREE_TOLERANCE if Section.TREE in header.sections else TOLERANCE


def _is_padding(array: np.ndarray, info: ChunkInfo) -> bool:
    """Tell whether an array holds the padding of a chunk wherever that has any."""
    if info.pad_value is None:
        return True
    beyond = np.ones(array.shape, dtype=bool)
    beyond[info.valid_slices] = False
    pad = bit_patterns(np.asarray(info.pad_value).astype(array.dtype))[()]
    return bool((bit_patterns(array)[beyond] == pad).all())


def _classes(valid: np.ndarray) -> np.ndarray:
    """Sort voxels: 0 finite, 1 NaN, 2 +Inf, 3 -Inf."""
    classes = np.zeros(valid.shape, dtype=np.uint8)
    if valid.dtype.kind == "f":
        classes[np.isnan(valid)] = NAN
        classes[valid == np.inf] = POSITIVE_INFINITY
        classes[valid == -np.inf] = NEGATIVE_INFINITY
    return classes


def _stream(
    info: ChunkInfo,
    classes: np.ndarray,
    sections: dict[int, bytes],
    corrections: Corrections | None = None,
) -> bytes:
    sections = dict(sections)
    if classes.any():
        sections[int(Section.MASK)] = encode_classes(classes)
    if corrections:
        sections[int(Section.CORRECTIONS)] = write_corrections(corrections, info)
    return write_stream(Header(info, 0.0, 0.0, sections))


def _selected(corrections: Corrections, kept: np.ndarray) -> Corrections:
    """Keep some corrections; bool (n,)."""
    is_absolute = corrections.multiples == 0
    return replace(
        corrections,
        positions=corrections.positions[kept],
        multiples=corrections.multiples[kept],
        absolutes=corrections.absolutes[kept[is_absolute]],
    )


def _joined(one: Corrections, other: Corrections) -> Corrections:
    """Join corrections of different voxels, with the quantum of the second unless it has none."""
    positions = np.concatenate([one.positions, other.positions])
    multiples = np.concatenate([one.multiples, other.multiples])
    absolutes = np.zeros(len(positions), np.uint64)
    absolutes[multiples == 0] = np.concatenate([one.absolutes, other.absolutes])
    order = np.argsort(positions, kind="stable")
    positions, multiples, absolutes = positions[order], multiples[order], absolutes[order]
    return Corrections(positions, multiples, absolutes[multiples == 0], other.quantum)


def _with_bounds(
    stream: bytes,
    old: OldChunk,
    array: np.ndarray,
    touched: np.ndarray,
    limit: float = math.inf,
) -> bytes:
    """Write into the header what the chunk is known to reach against its original data.

    By the triangle inequality: where nothing was written, the errors of the old chunk and of the
    new one add up.

    Raises
    ------
    TargetError
        If a voxel may be farther off than `limit`, and than it was.
    """
    header, before = open_old(stream).header, old.header
    info = header.info
    with config.cpu_slots() as threads:
        decoded = decode_header(header, threads)
    inside = info.valid_slices
    finite = _classes(array[inside]) == FINITE
    fresh = touched[inside][finite]
    errors = np.abs(array[inside][finite].astype(np.float64) - decoded[inside][finite])
    new, moved = errors[fresh], errors[~fresh]
    most = float(new.max(initial=0))
    if moved.size:
        most = max(most, before.max_error + float(moved.max()))
    if not most <= max(limit, before.max_error):
        raise TargetError(
            f"max_error={limit:g} cannot be kept for a chunk of which a part is overwritten: "
            f"{most:g}; write the whole chunk"
        )
    squares = min(_square_error(before), len(moved) * before.max_error**2)
    total = (math.sqrt(squares) + math.sqrt(float(moved @ moved))) ** 2 + float(new @ new)
    return write_stream(replace(header, psnr=_psnr(info, total, len(errors)), max_error=most))


def _square_error(header: Header) -> float:
    """Bound the sum of the squared errors of a chunk, over all its voxels."""
    info = header.info
    if header.psnr == math.inf or info.value_min is None:
        return 0.0
    span = float(info.value_max) - float(info.value_min)
    return math.prod(info.valid_extent) * span**2 * 10 ** (-header.psnr / 10)


def _psnr(info: ChunkInfo, squares: float, count: int) -> float:
    """Turn a sum of squared errors into a PSNR in dB, with the chunk's range as peak."""
    if squares == 0:
        return math.inf
    span = float(info.value_max) - float(info.value_min)
    return 10 * math.log10(span**2 * count / squares) if span > 0 else -math.inf
