"""Write the golden streams of the current format version: `python -m tests.golden.regenerate`.

Only for a new version of the format, or before its first release: streams of a released version
stay as they are for ever. The hash of the tables that belong to the format is written into
`docs/format.md` with them. Tests never run this.
"""

import hashlib
import math
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tests import features_reference, tree_reference
from tests.faces import smooth_volume
from tinc_codec import config
from tinc_codec.bitstream.header import Header, read_stream, write_stream
from tinc_codec.bitstream.sections import Section
from tinc_codec.bitstream.version import MAJOR, MINOR
from tinc_codec.codec import decode_chunk, encode_chunk
from tinc_codec.entropy.bands import choose_low_pass, low_pass_slices
from tinc_codec.metrics import measure
from tinc_codec.model.features import (
    MAX_SHIFT,
    Features,
    feature_levels,
    feature_step,
    no_shifts,
    write_features,
)
from tinc_codec.model.wavelet import forward
from tinc_codec.params import EncodingParams
from tinc_codec.volume.chunk import analyse, normalise
from tinc_codec.volume.mask import encode_classes

GOLDEN = Path(__file__).parent
DIRECTORY = GOLDEN / f"{MAJOR}.{MINOR}"
DOCUMENT = GOLDEN.parents[1] / "docs" / "format.md"
DEAD_ZONE = 0.15


@dataclass(frozen=True, eq=False)
class Recipe:
    """How a chunk becomes a stream: not the encoder's way, but one that never changes."""

    array: np.ndarray
    step_code: int
    centroids: tuple[int, int] = (0, 0)
    largest_shift: int = 0
    tree_ratio: float | None = None


def recipes() -> dict[str, Recipe]:
    """What streams there are, by name."""
    rng = np.random.default_rng(21)

    def noisy(shape: tuple[int, ...], noise: float = 4) -> np.ndarray:
        return smooth_volume(shape) + rng.normal(0, noise, shape)

    def bytes_of(values: np.ndarray) -> np.ndarray:
        return values.clip(0, 255).astype("u1")

    with_nan = noisy((11, 12, 10)).astype("<f4")
    with_nan[smooth_volume((11, 12, 10)) > 85] = np.nan
    with_nan[2, 3, 4:6] = np.inf, -np.inf
    edge = np.full((12, 10, 14), 65535, "<u2")
    edge[:8, :, :9] = noisy((8, 10, 9))
    half_empty = noisy((40, 33, 34), 8)
    half_empty[12:] = smooth_volume((28, 33, 34))
    limits = np.iinfo("<i4")
    return {
        "uint8": Recipe(bytes_of(noisy((16, 12, 16))), 600),
        "blocked-bands": Recipe(bytes_of(half_empty), 600, (-8, 5)),
        "int16-odd": Recipe((noisy((13, 9, 7)) - 60).astype("<i2"), 700),
        "float32-nan": Recipe(with_nan, 640),
        "big-endian-f-order": Recipe(np.asarray(noisy((9, 10, 11)).astype(">f4"), order="F"), 650),
        "four-axes": Recipe(noisy((3, 8, 9, 17)).astype("<u2"), 640, (3, -4)),
        "five-axes-blocked": Recipe(noisy((2, 1, 33, 34, 32), 9).astype("<i2"), 500),
        "plane": Recipe(noisy((21, 130), 1).astype("<f8"), 800),
        "line": Recipe(noisy((90,)).astype(">i4"), 700),
        "no-levels": Recipe(noisy((5, 7, 6)).astype("<f4"), 750),
        "float16-padded": Recipe(np.pad(noisy((9, 9, 9)).astype("<f2"), (0, 3)), 650),
        "uint16-edge": Recipe(edge, 650),
        "large-symbols": Recipe(
            rng.integers(limits.min, limits.max, (12, 9, 10), dtype="<i4"), 1420
        ),
        "centroids-and-shifts": Recipe(noisy((18, 20, 22)).astype("<f4"), 660, (-20, 90), 4),
        "largest-shifts": Recipe(noisy((17, 1, 40)).astype("<f4"), 800, (127, -128), MAX_SHIFT),
        "tree-and-features": Recipe(bytes_of(noisy((16, 17, 18))), 620, (-10, -3), 0, 24),
        "tree-and-features-batch": Recipe(
            noisy((2, 12, 10, 9)).astype(">u2"), 640, tree_ratio=8
        ),
    }  # fmt: skip


def build(recipe: Recipe) -> bytes:
    """Make a stream."""
    array = recipe.array
    info, classes = analyse(array)
    sections: dict[int, bytes] = {}
    if classes is not None:
        sections[Section.MASK] = encode_classes(classes)
    values = normalise(array, info, classes)
    if recipe.tree_ratio is not None:
        how = EncodingParams(ratio=recipe.tree_ratio, effort=1, model="tree")
        tree = bytes(read(encode_chunk(array, how)).sections[Section.TREE])
        sections[Section.TREE] = tree
        values = values - tree_reference.decode(tree, values.shape[1:], len(values))
    sections[Section.FEATURES] = features_of(values.astype(np.float32), recipe)
    draft = write_stream(Header(info, 0.0, 0.0, sections))
    valid = info.valid_slices
    finite = None if classes is None else classes == 0
    quality = measure(array[valid], decode_chunk(draft)[valid], finite)
    return write_stream(Header(info, quality.psnr, quality.max_error, sections))


def features_of(values: np.ndarray, recipe: Recipe) -> bytes:
    """Quantise with a dead zone; the section."""
    grid = values.shape[1:]
    levels = feature_levels(grid)
    coefficients = forward(values) / feature_step(recipe.step_code)
    sizes = np.floor(np.abs(coefficients) + 0.5 - DEAD_ZONE)
    symbols = np.where(coefficients < 0, -sizes, sizes).astype(np.int32)
    shifts = no_shifts(levels)
    if recipe.largest_shift:
        rng = np.random.default_rng(22)
        most = recipe.largest_shift
        shifts = tuple(
            tuple(rng.choice([-most, -1, 0, 1, most], len(row)).tolist()) for row in shifts
        )
    corner = low_pass_slices(levels, grid)
    return write_features(
        Features(symbols, recipe.step_code, (recipe.centroids,) * len(levels), shifts),
        [choose_low_pass(volume[corner]) for volume in symbols],
    )


def read(stream: bytes) -> Header:
    return read_stream(stream, max_decoded_bytes=1 << 30)


def symbols_of(stream: bytes) -> dict[str, np.ndarray]:
    """All symbols of a stream's models, as the second readers see them."""
    header = read(stream)
    volumes, *spatial = header.info.batched_shape
    readers: dict[Section, Callable[[bytes], np.ndarray]] = {
        Section.TREE: lambda body: np.array(
            [n for row in tree_reference.read(body, tuple(spatial), volumes).symbols for n in row]
        ),
        Section.FEATURES: lambda body: (
            features_reference.read(body, tuple(spatial), volumes).symbols
        ),
    }
    return {
        section.name.lower(): reader(bytes(header.sections[section])).astype(np.int32)
        for section, reader in readers.items()
        if section in header.sections
    }


def record_tables() -> str:
    """Write the hash of the tables into the document."""
    found = hashlib.sha256(features_reference.TABLES.read_bytes()).hexdigest()
    text, count = re.subn(r"(?m)^[0-9a-f]{64}$", found, DOCUMENT.read_text())
    if count != 1:
        raise RuntimeError(f"{DOCUMENT}: one line with a SHA-256 expected, {count} found")
    DOCUMENT.write_text(text)
    return found


def main() -> int:
    """Write a stream and a file of what it holds per chunk."""
    DIRECTORY.mkdir(exist_ok=True)
    print(f"tables: {record_tables()}")
    with config.set(device="cpu"):
        for name, recipe in recipes().items():
            stream = build(recipe)
            (DIRECTORY / f"{name}.tinc").write_bytes(stream)
            np.savez_compressed(
                DIRECTORY / f"{name}.npz", **symbols_of(stream), voxels=decode_chunk(stream)
            )
            quality = read(stream).psnr
            shown = "exact" if math.isinf(quality) else f"{quality:.1f} dB"
            print(f"{name}: {len(stream)} bytes, {shown}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
