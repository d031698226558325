"""The features section: wavelet coefficients, quantised and coded, <-> bytes."""

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tinc_codec.bitstream.reader import ByteReader
from tinc_codec.bitstream.sections import TILES_FLAG
from tinc_codec.bitstream.varint import write_varint
from tinc_codec.entropy.bands import LowPass, Segment, decode_bands, encode_bands
from tinc_codec.entropy.buckets import MAX_MAGNITUDE
from tinc_codec.entropy.feature_tables import N_CONTEXTS
from tinc_codec.entropy.pyramid import Level, levels_of, segments_of
from tinc_codec.entropy.tile_plan import LEAST_EDGE, MOST_EDGE, TILED_LEVELS
from tinc_codec.entropy.tiles import TiledBands, count_parts, decode_tiled, encode_tiled
from tinc_codec.errors import CorruptStreamError, TruncatedStreamError
from tinc_codec.model.wavelet import level_shapes

Grid = tuple[int, int, int]

STEPS_PER_OCTAVE = 64
MAX_STEP_CODE = 2047
_LARGEST_STEP_EXPONENT = 4
CENTROID_UNIT = 1.0 / 256
MAX_SHIFT = 31
MAX_VOXELS = 1 << 30
"""Of one volume: places among its bands are 32-bit integers."""
_CENTROIDS_BIT, _SHIFTS_BIT = 1, 2
_FIXED = struct.Struct("<HB")
TOLERANCE = 2.0**-17
"""Two readers may differ by so much in what the features add to t."""

_COMPILE = {"nogil": True, "cache": True, "error_model": "numpy"}


def feature_step(code: int) -> float:
    """Return the quantiser step of a code, 0 to 2047: 2^(4 - code / 64), as a float32 value.

    References
    ----------
    `docs/format.md` §9
    """
    octave, part = divmod(-code, STEPS_PER_OCTAVE)
    return float(
        np.float32(math.ldexp(2.0 ** (part / STEPS_PER_OCTAVE), octave + _LARGEST_STEP_EXPONENT))
    )


def step_code(step: float) -> int:
    """Return the code of the smallest step that is at least `step`, within the codes there are."""
    limited = min(max(step, 2.0**-40), 2.0**_LARGEST_STEP_EXPONENT)
    code = math.floor(STEPS_PER_OCTAVE * (_LARGEST_STEP_EXPONENT - math.log2(limited)) + 1e-5)
    return min(max(code, 0), MAX_STEP_CODE)


def coded_step(section: bytes | memoryview) -> float:
    """Return the quantiser step of a features section that was written here."""
    code, _ = _FIXED.unpack_from(section)
    return feature_step(code)


@dataclass(frozen=True, eq=False)
class Features:
    """Quantised coefficients of the volumes of a chunk, and how they stand for numbers.

    Attributes
    ----------
    symbols : ndarray of int32
        Shape (B, z, y, x), in the layout of `model.wavelet`.
    step_code : int
    centroids : tuple of (int, int)
        Per level, finest first: what is added to magnitudes of 1 and to larger ones, in 1/256.
    shifts : tuple of tuple of int
        Per level and band: added to the contexts.
    tile : int
        Voxels along each axis of the parts that the two finest levels are coded in, a power of
        two; 0 where each is coded as a whole.

    References
    ----------
    `docs/format.md` §9
    """

    symbols: np.ndarray
    step_code: int
    centroids: tuple[tuple[int, int], ...]
    shifts: tuple[tuple[int, ...], ...]
    tile: int = 0


def whole_edge(grid: Grid) -> int:
    """Return the edge of tiles that are as large as a grid."""
    return max(LEAST_EDGE, 1 << (max(grid) - 1).bit_length())


def feature_levels(grid: Grid) -> tuple[Level, ...]:
    """Return the levels of a grid's wavelet, finest first."""
    return levels_of(level_shapes(grid))


def no_shifts(levels: tuple[Level, ...]) -> tuple[tuple[int, ...], ...]:
    """Return shifts that change nothing."""
    return tuple((0,) * len(level.masks) for level in levels)


def write_features(features: Features, low_passes: Sequence[LowPass]) -> bytes:
    """Write the section.

    Parameters
    ----------
    features : Features
    low_passes : sequence of LowPass
        Per volume.

    References
    ----------
    `docs/format.md` §9
    """
    _, z, y, x = features.symbols.shape
    levels = feature_levels((z, y, x))
    has_centroids = any(any(pair) for pair in features.centroids)
    has_shifts = any(any(row) for row in features.shifts)
    is_tiled = features.tile > 0 and len(levels) >= TILED_LEVELS
    flags = _CENTROIDS_BIT * has_centroids | _SHIFTS_BIT * has_shifts | TILES_FLAG * is_tiled
    out = bytearray(_FIXED.pack(features.step_code, flags))
    if is_tiled:
        out.append(features.tile.bit_length() - 1)
    if has_centroids:
        out += np.array(features.centroids, dtype=np.int8).tobytes()
    if has_shifts:
        out += b"".join(np.array(row, dtype=np.int8).tobytes() for row in features.shifts)
    for low_pass in low_passes:
        out.append(low_pass.context)
        out += write_varint(_zigzag(low_pass.centre))
    if is_tiled:
        parts = encode_tiled(features.symbols, levels, low_passes, features.shifts, features.tile)
        return bytes(out) + b"".join(write_varint(len(part)) for part in parts) + b"".join(parts)
    segments = encode_bands(features.symbols, levels, low_passes, features.shifts)
    for segment in segments:
        out += write_varint(len(segment.coded)) + write_varint(len(segment.plain))
    return bytes(out) + b"".join(bytes(s.coded) + bytes(s.plain) for s in segments)


@dataclass(frozen=True, eq=False)
class FeatureSection:
    """A features section taken apart, its symbols still coded.

    Attributes
    ----------
    grid : tuple of int
    step_code, centroids, shifts
        As in `Features`.
    low_passes : tuple of LowPass
        Per volume.
    segments : tuple of Segment
        Coarsest first, see `entropy.pyramid.segments_of`; none where there are tiles.
    tiles : TiledBands or None
    """

    grid: Grid
    step_code: int
    centroids: tuple[tuple[int, int], ...]
    shifts: tuple[tuple[int, ...], ...]
    low_passes: tuple[LowPass, ...]
    segments: tuple[Segment, ...]
    tiles: TiledBands | None = None

    @property
    def finest_sign_bits(self) -> float:
        """How many bits the finest level has for signs and remainders, in tiles a guess."""
        if self.tiles is None:
            return 8.0 * len(self.segments[-1].plain)
        return 8.0 * self.tiles.finest_bytes * _SIGN_SHARE

    def features_of(self, symbols: np.ndarray, skip_levels: int) -> Features:
        """Say what symbols (B, z, y, x) stand for, some of the finest levels being left out."""
        return Features(
            symbols,
            self.step_code,
            self.centroids[skip_levels:],
            self.shifts[skip_levels:],
            0 if self.tiles is None else self.tiles.edge,
        )


_SIGN_SHARE = 0.2
"""Of a finest level's bits; 17 to 25 % on the volumes measured."""


def read_features(data: bytes | memoryview, grid: Grid, volumes: int, threads: int = 1) -> Features:
    """Read the section; the twin of `write_features`.

    Parameters
    ----------
    data : bytes-like
    grid : tuple of int
        Spatial part of the valid extent.
    volumes : int
        Memory stays near ten bytes per voxel of volumes of more than a few hundred voxels,
        whatever `data` says; tiny ones have tables of their own, some hundred bytes per voxel.
    threads : int
        Tiles are shared among them.

    Raises
    ------
    CorruptStreamError, TruncatedStreamError

    References
    ----------
    `docs/format.md` §9
    """
    return decode_features(parse_features(data, grid, volumes), threads=threads)


def decode_features(
    section: FeatureSection, *, skip_levels: int = 0, most_high: int = 3, threads: int = 1
) -> Features:
    """Decode the symbols of a section, or the coarse ones alone.

    Parameters
    ----------
    section : FeatureSection
    skip_levels : int
        How many of the finest levels to leave out, at most as many as there are. What comes back
        are then the features of the coarser grid that is left, `level_shapes(grid)[skip_levels]`.
    most_high : int
        Of the finest level that is left, bands that are high-pass along more axes than this are
        not needed; what comes back of them is undefined.
    threads : int

    Raises
    ------
    CorruptStreamError
    """
    if section.tiles is not None:
        symbols = decode_tiled(
            section.tiles, section.grid, finest=skip_levels, most_high=most_high, threads=threads
        )
    else:
        symbols = decode_bands(
            section.segments, section.grid, feature_levels(section.grid), section.low_passes,
            section.shifts, finest=skip_levels, most_high=most_high,
        )  # fmt: skip
    return section.features_of(symbols, skip_levels)


def parse_features(data: bytes | memoryview, grid: Grid, volumes: int) -> FeatureSection:
    """Take a section apart.

    Parameters and errors as in `read_features`.
    """
    if math.prod(grid) > MAX_VOXELS:
        raise CorruptStreamError(
            f"features: a volume of {grid} voxels, at most {MAX_VOXELS} can have any"
        )
    levels = feature_levels(grid)
    reader = ByteReader(memoryview(data))
    code, flags = _FIXED.unpack(reader.read_bytes(_FIXED.size, "features: step and flags"))
    if code > MAX_STEP_CODE:
        raise CorruptStreamError(f"features: step code {code} not in 0 to {MAX_STEP_CODE}")
    if flags & ~(_CENTROIDS_BIT | _SHIFTS_BIT | TILES_FLAG):
        raise CorruptStreamError(f"features: reserved flags set in {flags:#04x}")
    edge = _read_edge(reader, levels) if flags & TILES_FLAG else 0
    centroids = tuple((0, 0) for _ in levels)
    if flags & _CENTROIDS_BIT:
        pairs = np.frombuffer(reader.read_bytes(2 * len(levels), "features: centroids"), np.int8)
        centroids = tuple((int(one), int(more)) for one, more in pairs.reshape(-1, 2))
    shifts = no_shifts(levels)
    if flags & _SHIFTS_BIT:
        rows = [reader.read_bytes(len(row), "features: shifts") for row in shifts]
        shifts = tuple(tuple(np.frombuffer(row, np.int8).tolist()) for row in rows)
        if any(abs(shift) > MAX_SHIFT for row in shifts for shift in row):
            raise CorruptStreamError(f"features: a shift is not in ±{MAX_SHIFT}: {shifts}")
    low_passes = []
    for _ in range(volumes):
        context = reader.read_u8("features: low-pass context")
        centre = _from_zigzag(reader.read_varint("features: low-pass centre"))
        if context >= N_CONTEXTS or abs(centre) > MAX_MAGNITUDE:
            raise CorruptStreamError(
                f"features: low-pass context {context} or centre {centre} out of range"
            )
        low_passes.append(LowPass(context, centre))
    if edge:
        parts, sizes = _read_parts(reader, count_parts(levels, volumes, edge))
        tiles = TiledBands(parts, sizes, levels, tuple(low_passes), shifts, edge)
        return FeatureSection(grid, code, centroids, shifts, tuple(low_passes), (), tiles)
    lengths = [
        [reader.read_varint(f"features: length of {part}") for part in ("a code", "plain bits")]
        for _ in segments_of(levels)
    ]
    segments = [
        Segment(*(reader.read_bytes(n_bytes, "features: a segment") for n_bytes in pair))
        for pair in lengths
    ]
    if reader.remaining:
        raise CorruptStreamError(f"features: {reader.remaining} bytes follow the last segment")
    return FeatureSection(grid, code, centroids, shifts, tuple(low_passes), tuple(segments))


def _read_edge(reader: ByteReader, levels: tuple[Level, ...]) -> int:
    bits = reader.read_u8("features: edge of tiles")
    if not LEAST_EDGE <= 1 << bits <= MOST_EDGE:
        raise CorruptStreamError(f"features: tiles of 2^{bits} voxels along each axis")
    if len(levels) < TILED_LEVELS:
        raise CorruptStreamError(f"features: tiles of {len(levels)} levels")
    return 1 << bits


def _read_parts(reader: ByteReader, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Take some lengths and as many parts: the parts' bytes, uint8, and the lengths, int64."""
    if count > reader.remaining:
        raise TruncatedStreamError(
            f"features: {count} parts in {reader.remaining} bytes",
            needed=reader.position + count,
        )
    lengths = [reader.read_varint("features: length of a part") for _ in range(count)]
    code = reader.read_bytes(sum(lengths), "features: parts")
    if reader.remaining:
        raise CorruptStreamError(f"features: {reader.remaining} bytes follow the last part")
    # A copy: the caller's bytes may change.
    return np.frombuffer(bytes(code), np.uint8), np.array(lengths, dtype=np.int64)


def _zigzag(value: int) -> int:
    return 2 * value if value >= 0 else -2 * value - 1


def _from_zigzag(code: int) -> int:
    return code >> 1 if code % 2 == 0 else -((code + 1) >> 1)
