"""This codec beside its peers, on one chunk of a volume."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from tinc_codec.codec import decode_chunk, encode_chunk
from tinc_codec.errors import TargetError
from tinc_codec.inspection.quality import log10_span
from tinc_codec.metrics import measure
from tinc_codec.params import MAX_RATIO, EncodingParams
from tinc_codec.pipeline.checks import ChunkCheck
from tinc_codec.pipeline.verification import Verification
from tinc_codec.pipeline.volumes import LazyArray
from tinc_codec.report.peers import PEERS, PeerPoint, missing_library, run_peer

__all__ = ["Curve", "PeerReport", "compare_peers"]

OURS = "TINC"
# Sizes beside that of the chunk as it is stored, as parts of it.
_FACTORS = (4.0, 1.0, 0.25)
_MAX_EDGE = 128
# Of our own points at other sizes: efforts beyond take minutes each.
_MAX_EFFORT = 4


@dataclass(frozen=True)
class Curve:
    """A codec's points.

    Attributes
    ----------
    name : str
    points : tuple of PeerPoint
        From the most bytes to the fewest; the one in the table is that of `PeerReport.asked_bytes`.
    missing : str or None
        Why there are none.
    """

    name: str
    points: tuple[PeerPoint, ...] = ()
    missing: str | None = None

    def at(self, asked_bytes: int) -> PeerPoint | None:
        """Give the point that was made for this size."""
        return next((point for point in self.points if point.asked_bytes == asked_bytes), None)


@dataclass(frozen=True)
class PeerReport:
    """All codecs on the same voxels.

    Attributes
    ----------
    coordinates : tuple of int
        Of the chunk.
    shape : tuple of int
        Of the voxels that were encoded: the chunk, or its middle where it is large.
    raw_bytes : int
    asked_bytes : int
        Size at which the table compares: that of this codec's stream.
    stored : bool
        Whether our point at that size is the stored chunk itself; else its middle was encoded
        again with the same settings.
    effort : int
        Of our points at other sizes.
    curves : tuple of Curve
        Ours first.
    """

    coordinates: tuple[int, ...]
    shape: tuple[int, ...]
    raw_bytes: int
    asked_bytes: int
    stored: bool
    effort: int
    curves: tuple[Curve, ...]


def compare_peers(
    found: Verification,
    source: LazyArray,
    on_start: Callable[[int], None] = lambda _: None,
    on_step: Callable[[], None] = lambda: None,
) -> PeerReport | None:
    """Encode the most central ordinary chunk with every peer that is installed.

    Parameters
    ----------
    found : Verification
    source : LazyArray
    on_start, on_step : callable
        Called with the number of codecs, and after each.

    Returns
    -------
    PeerReport or None
        None where every chunk is constant, exact, missing or damaged.
    """
    chunk = _central_chunk(found)
    if chunk is None:
        return None
    values = np.asarray(source[_box_of(found, chunk.coordinates)])
    params = EncodingParams.from_config(found.codec)
    stored = max(values.shape) <= _MAX_EDGE
    if stored:
        # Over all of these voxels, as the peers are measured: `psnr` leaves out padding.
        psnr = 20 * log10_span(chunk.value_min, chunk.value_max) - 10 * chunk.log_mse
        ours = PeerPoint(OURS, chunk.size_bytes, chunk.size_bytes, psnr, chunk.max_error)
    else:
        values = values[tuple(map(_middle, values.shape))]
        again = _encode(values, replace(params, effort=min(params.effort, _MAX_EFFORT)))
        if again is None:
            return None
        ours = replace(again, asked_bytes=again.size_bytes)
    sizes = [int(factor * ours.size_bytes) for factor in _FACTORS]
    sizes = [size for size in sizes if 1 < values.nbytes / size <= MAX_RATIO]
    on_start(1 + len(PEERS))
    effort = min(params.effort, _MAX_EFFORT)
    points = [_at_size(values, size, effort, params) for size in sizes if size != ours.size_bytes]
    ours_curve = [ours, *(point for point in points if point is not None)]
    ours_curve.sort(key=lambda point: -point.size_bytes)
    on_step()
    curves = [Curve(OURS, tuple(ours_curve))]
    volume, valid = _for_peers(values)
    for peer in PEERS:
        missing = missing_library(peer)
        if missing is not None:
            curves.append(Curve(peer.name, missing=missing))
        else:
            curves.append(_peer_curve(peer, volume, valid, sizes))
        on_step()
    return PeerReport(
        coordinates=chunk.coordinates,
        shape=values.shape,
        raw_bytes=values.nbytes,
        asked_bytes=ours.size_bytes,
        stored=stored,
        effort=effort,
        curves=tuple(curves),
    )


def _peer_curve(
    peer: Any, volume: np.ndarray, valid: np.ndarray | None, sizes: Sequence[int]
) -> Curve:
    points: list[PeerPoint] = []
    for size in sizes:
        try:
            points.append(run_peer(peer, volume, valid, size))
        except Exception as error:  # Whatever a peer's library raises must not cost the report.
            return Curve(peer.name, tuple(points), f"{type(error).__name__}: {error}")
    return Curve(peer.name, tuple(points))


def _central_chunk(found: Verification) -> ChunkCheck | None:
    """Choose the chunk nearest to the middle of those that are ordinary, whole ones first."""
    middle = [(n - 1) / 2 for n in found.grid_shape]

    def order(chunk: ChunkCheck) -> tuple[bool, float, tuple[int, ...]]:
        box = _box_of(found, chunk.coordinates)
        whole = all(b.stop - b.start == c for b, c in zip(box, found.chunk_shape, strict=True))
        distance = math.dist(chunk.coordinates, middle)
        return not whole, distance, chunk.coordinates

    ordinary = [
        chunk
        for chunk in found.chunks
        if chunk.size_bytes and math.isfinite(chunk.psnr) and not chunk.breaches
    ]
    return min(ordinary, key=order, default=None)


def _box_of(found: Verification, coordinates: tuple[int, ...]) -> tuple[slice, ...]:
    return tuple(
        slice(i * c, min((i + 1) * c, n))
        for i, c, n in zip(coordinates, found.chunk_shape, found.shape, strict=True)
    )


def _middle(size: int) -> slice:
    start = max(0, (size - _MAX_EDGE) // 2)
    return slice(start, min(size, start + _MAX_EDGE))


def _at_size(
    values: np.ndarray, size_bytes: int, effort: int, params: EncodingParams
) -> PeerPoint | None:
    ratio = values.nbytes / size_bytes
    point = _encode(values, EncodingParams(ratio=ratio, effort=effort, model=params.model))
    return None if point is None else replace(point, asked_bytes=size_bytes)


def _encode(values: np.ndarray, params: EncodingParams) -> PeerPoint | None:
    """Encode with this codec; None where the size cannot be reached."""
    try:
        stream = encode_chunk(values, params)
    except TargetError:
        return None
    quality = measure(values, decode_chunk(stream))
    return PeerPoint(OURS, len(stream), len(stream), quality.psnr, quality.max_error)


def _for_peers(values: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """Give three axes of finite values, and which of them count: no peer stores NaN."""
    shape = values.shape
    volume = values.reshape(
        (1,) * (3 - len(shape)) + shape if len(shape) < 3 else (-1, *shape[-2:])
    )
    volume = np.ascontiguousarray(volume.astype(volume.dtype.newbyteorder("=")))
    if volume.dtype.kind != "f":
        return volume, None
    valid = np.isfinite(volume)
    if valid.all():
        return volume, None
    return np.where(valid, volume, volume[valid].mean()).astype(volume.dtype), valid
