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

from tests import features_reference, postfilter_reference, tree_reference
from tests.faces import smooth_volume
from tests.filters import CONDITIONING, some_section
from tinc_codec import config
from tinc_codec.bitstream.header import Header, read_stream, write_stream
from tinc_codec.bitstream.sections import Section
from tinc_codec.bitstream.version import MAJOR, MINOR
from tinc_codec.codec import decode_chunk, encode_chunk
from tinc_codec.entropy.bands import choose_low_pass
from tinc_codec.entropy.pyramid import low_pass_slices
from tinc_codec.metrics import measure
from tinc_codec.model.features import (
    Features,
    feature_levels,
    feature_step,
    no_shifts,
    write_features,
)
from tinc_codec.model.postfilter import Conditioning
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
    """How a chunk becomes a stream: not the encoder's way, but one that never changes.

    The post-filter is that of `tests.filters.some_section`; without a step there are no features,
    without a ratio there is no tree.
    """

    array: np.ndarray
    widths: tuple[int, ...]
    step_code: int | None = 620
    tree_ratio: float | None = None
    conditioning: Conditioning = CONDITIONING
    answer: float = 0.3
    symbols: int = 12


def recipes() -> dict[str, Recipe]:
    """What streams there are, by name."""
    rng = np.random.default_rng(31)

    def noisy(shape: tuple[int, ...], noise: float = 4) -> np.ndarray:
        return smooth_volume(shape) + rng.normal(0, noise, shape)

    def bytes_of(values: np.ndarray) -> np.ndarray:
        return values.clip(0, 255).astype("u1")

    with_nan = noisy((11, 12, 10)).astype("<f4")
    with_nan[smooth_volume((11, 12, 10)) > 85] = np.nan
    with_nan[2, 3, 4:6] = np.inf, -np.inf
    return {
        "filtered": Recipe(bytes_of(noisy((16, 12, 16))), (8, 8)),
        "filtered-float32-nan": Recipe(with_nan, (6,)),
        "filtered-batch": Recipe(noisy((3, 8, 9, 17)).astype(">u2"), (7, 3)),
        "filtered-big-endian-f-order": Recipe(
            np.asarray(noisy((9, 10, 11)).astype(">f4"), order="F"), (5, 9)
        ),
        "filtered-plane": Recipe(noisy((21, 65), 1).astype("<f8"), (4, 5, 6), 800),
        "filtered-line": Recipe(noisy((90,)).astype(">i4"), (1,), 700),
        "filtered-short-axes": Recipe(noisy((2, 1, 3)).astype("<f4"), (3,), 700),
        "filtered-float16-padded": Recipe(np.pad(noisy((9, 9, 9)).astype("<f2"), (0, 3)), (8,)),
        "filtered-widest": Recipe(
            (noisy((13, 9, 7)) - 60).astype("<i2"), (64, 64, 64), symbols=600
        ),
        "filtered-least-conditioning": Recipe(
            noisy((10, 9, 8)).astype("<f4"), (8, 8), 700, None, Conditioning(0, 0, 0)
        ),
        "filtered-most-conditioning": Recipe(
            noisy((10, 9, 8)).astype("<f4"), (8, 8), 700, None, Conditioning(2047, 255, 128), 0.01
        ),
        "filtered-answer-of-nothing": Recipe(
            noisy((10, 9, 8)).astype("<u2"), (5,), 640, symbols=0
        ),
        "filtered-tree": Recipe(noisy((14, 15, 16)).astype("<f4"), (6, 4), None, 16),
        "filtered-tree-and-features": Recipe(bytes_of(noisy((2, 12, 10, 9))), (8,), 640, 8),
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
    if recipe.step_code is not None:
        sections[Section.FEATURES] = features_of(values.astype(np.float32), recipe.step_code)
    sections[Section.POSTFILTER] = some_section(
        recipe.widths, 32, recipe.conditioning, recipe.answer, recipe.symbols
    )
    draft = write_stream(Header(info, 0.0, 0.0, sections))
    valid = info.valid_slices
    finite = None if classes is None else classes == 0
    quality = measure(array[valid], decode_chunk(draft)[valid], finite)
    return write_stream(Header(info, quality.psnr, quality.max_error, sections))


def features_of(values: np.ndarray, step_code: int) -> bytes:
    """Quantise with a dead zone; the section."""
    grid = values.shape[1:]
    levels = feature_levels(grid)
    coefficients = forward(values) / feature_step(step_code)
    sizes = np.floor(np.abs(coefficients) + 0.5 - DEAD_ZONE)
    symbols = np.where(coefficients < 0, -sizes, sizes).astype(np.int32)
    corner = low_pass_slices(levels, grid)
    return write_features(
        Features(symbols, step_code, ((0, 0),) * len(levels), no_shifts(levels)),
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
        Section.POSTFILTER: lambda body: np.concatenate(postfilter_reference.read(body).symbols),
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
