"""How many of a features stream's bits a part of its chunk depends on, however they are decoded.

python -m benchmarks.dependence

For every coefficient, the bits that its bucket, sign and remainder take, and its share of its
block's flag; of these, the ones of the coefficients within reach of the part, level by level: what
a decoder of this wavelet would have to read if every coefficient (or every tile of a band) could be
found and decoded by itself, at no cost in bytes. Bits, not time.
"""

from __future__ import annotations

import argparse
import itertools
from typing import Any

import numpy as np

from benchmarks import records, volumes
from benchmarks.partial import parts
from tinc_codec import config
from tinc_codec.bitstream.header import read_stream
from tinc_codec.bitstream.sections import Section
from tinc_codec.codec import encode_chunk
from tinc_codec.entropy.bands import BandCoder
from tinc_codec.entropy.buckets import BUCKET_BITS, REPRESENTED_BUCKET
from tinc_codec.entropy.feature_tables import PHASE_ORDER, load_tables
from tinc_codec.entropy.phases import LevelState, Phases
from tinc_codec.entropy.pyramid import BLOCK_EDGE, inside
from tinc_codec.model.features import feature_levels, read_features
from tinc_codec.model.wavelet_windows import needed_ranges
from tinc_codec.params import EncodingParams
from tinc_codec.volume.chunk import Ranges

CROPS = ("ct_angio", "ct_cranium", "macaque_t1_float32", "mni152_t1", "mri_flair", "mri_t1")
TILES = (1, 4, 8, 16)


class BitCounter(BandCoder):
    """Counts the bits of the symbols of one volume.

    Attributes
    ----------
    bits : dict
        From (level, mask) to float64 of the band's shape.
    """

    def __init__(self, symbols: np.ndarray) -> None:
        self.bits: dict[tuple[int, int], np.ndarray] = {}
        self._symbols = symbols

    def begin_band(self, state: LevelState, mask: int) -> None:
        """See what the band holds."""
        state.represent(mask, self._symbols)
        self.bits[state.level.number, mask] = np.zeros(state.level.band_shape(mask))

    def code_flags(self, state: LevelState, mask: int) -> None:
        """Spread the bits of each block's flag over its coefficients."""
        phases = state.flag_phases(mask)
        found = np.zeros(phases.field.shape)
        for phase in range(len(PHASE_ORDER)):
            places, contexts = phases.contexts(phase)
            present = load_tables().present[contexts]
            found[places] = -np.log2(np.where(phases.field[places], present, 1 - present))
        level = state.level
        blocks = found.reshape(level.padded_blocks)[inside(level.blocks(mask))]
        each = np.kron(blocks / BLOCK_EDGE**3, np.ones((BLOCK_EDGE,) * 3))
        z, y, x = level.band_shape(mask)
        self.bits[level.number, mask] += each[:z, :y, :x]

    def code_coefficients(self, state: LevelState, mask: int, phases: Phases) -> None:
        """Count buckets, signs and remainders."""
        tables = load_tables().buckets
        costs = -np.log2(tables / tables.sum(axis=1, keepdims=True))
        found = np.zeros(phases.field.shape)
        for phase in range(len(PHASE_ORDER)):
            places, contexts = phases.contexts(phase)
            buckets = REPRESENTED_BUCKET[phases.field[places]]
            plain = np.where(buckets > 0, 1 + BUCKET_BITS[buckets], 0)
            found[places] = costs[contexts, buckets] + plain
        level = state.level
        inner = found.reshape(level.padded)[inside(level.band_shape(mask))]
        self.bits[level.number, mask] += inner


def count(stream: bytes) -> tuple[tuple[int, int, int], BitCounter]:
    """Count the bits of a chunk of one volume that holds nothing but features."""
    header = read_stream(stream, max_decoded_bytes=config.get().max_decoded_bytes)
    _, z, y, x = header.info.batched_shape
    features = read_features(header.sections[Section.FEATURES], (z, y, x), 1)
    counter = BitCounter(features.symbols[0])
    state = None
    for level in reversed(feature_levels((z, y, x))):
        state = counter.code_level(level, state, features.shifts[level.number])
    return (z, y, x), counter


def shares(name: str, stream: bytes) -> list[dict[str, Any]]:
    """Tell what each level and each part depends on."""
    grid, counter = count(stream)
    bands = {key: bits for key, bits in counter.bits.items() if bits.size}
    total = sum(float(bits.sum()) for bits in bands.values())
    rows: list[dict[str, Any]] = []
    for wanted in sorted({level for level, _ in bands} - {0}):
        needed = sum(float(bits.sum()) for (level, _), bits in bands.items() if level >= wanted)
        rows.append({"part": f"level {wanted}", "share": needed / total})
    for tile, (part, (z, y, x)) in itertools.product(TILES, parts(grid).items()):
        region = (z.start, z.stop), (y.start, y.stop), (x.start, x.stop)
        reach = needed_ranges(grid, region)
        needed = sum(
            float(bits[_tiles(reach[level + 1], bits.shape, tile)].sum())
            for (level, _), bits in bands.items()
        )
        rows.append({"part": part, "tile": tile, "share": needed / total})
    return [{"volume": name, **row, "share": round(row["share"], 4)} for row in rows]


def _tiles(ranges: Ranges, shape: tuple[int, ...], tile: int) -> tuple[slice, ...]:
    """Index the whole tiles of a band that some ranges touch."""
    return tuple(
        slice(first // tile * tile, -(-min(stop, n) // tile) * tile)
        for (first, stop), n in zip(ranges, shape, strict=True)
    )


def main() -> None:
    """Count for central crops stored as features."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", help="directory of *.npz (default: $TINC_DATA)")
    parser.add_argument("--crop", type=int, default=128)
    parser.add_argument("--ratio", type=float, default=64)
    options = parser.parse_args()
    rows = []
    for name in CROPS:
        volume = volumes.load(name, options.crop, options.data)
        params = EncodingParams(ratio=options.ratio, effort=0, model="features")
        stream = encode_chunk(volume, params)
        for row in shares(name, stream):
            print(row)
            rows.append(row)
    print(records.save("dependence", rows, ratio=options.ratio, crop=options.crop))


if __name__ == "__main__":
    main()
