"""Write the golden streams of the current format version: `python -m tests.golden.regenerate`.

Only for a new version of the format, or before its first release: streams of a released version
stay as they are for ever. The hash of the tables that belong to the format is written into
`docs/format.md` with them. Tests never run this.
"""

import hashlib
import math
import re
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tests import features_reference, postfilter_reference
from tests.faces import smooth_volume
from tests.filters import some_section
from tinc_codec import config
from tinc_codec.bitstream.header import Header, read_stream, write_stream
from tinc_codec.bitstream.sections import Section
from tinc_codec.bitstream.version import MAJOR, MINOR
from tinc_codec.codec import decode_chunk
from tinc_codec.entropy.bands import choose_low_pass
from tinc_codec.entropy.pyramid import low_pass_slices
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
    edge: int = 16
    centroids: tuple[int, int] = (0, 0)
    largest_shift: int = 0
    filter_widths: tuple[int, ...] = ()


def recipes() -> dict[str, Recipe]:
    """What streams there are, by name."""
    rng = np.random.default_rng(51)

    def noisy(shape: tuple[int, ...], noise: float = 4) -> np.ndarray:
        return smooth_volume(shape) + rng.normal(0, noise, shape)

    half_empty = noisy((40, 35, 50), 8)
    half_empty[12:] = smooth_volume((28, 35, 50))
    with_nan = noisy((18, 20, 33)).astype("<f4")
    with_nan[smooth_volume((18, 20, 33)) > 85] = np.nan
    with_nan[2, 3, 4:6] = np.inf, -np.inf
    limits = np.iinfo("<i4")
    return {
        "tiles": Recipe(half_empty.clip(0, 255).astype("u1"), 600),
        "tiles-batch": Recipe(noisy((2, 24, 17, 33)).astype(">u2"), 640, centroids=(3, -4)),
        "tiles-short-axis": Recipe(noisy((5, 40, 35)).astype("<f4"), 660),
        "tiles-one": Recipe((noisy((20, 18, 30)) - 60).astype("<i2"), 660, 32),
        "tiles-largest-edge": Recipe(noisy((9, 33, 20)).astype("<u2"), 640, 1 << 30),
        "tiles-two-levels": Recipe(noisy((28, 20, 16)).astype("<f4"), 700),
        "tiles-large-symbols": Recipe(
            rng.integers(limits.min, limits.max, (20, 9, 18), dtype="<i4"), 1420
        ),
        "tiles-centroids-and-shifts": Recipe(
            noisy((17, 34, 18)).astype("<f4"), 660, 16, (-20, 90), 4
        ),
        "tiles-largest-shifts": Recipe(
            noisy((33, 1, 40)).astype("<f4"), 800, 16, (127, -128), MAX_SHIFT
        ),
        "tiles-float32-nan": Recipe(with_nan, 640),
        "tiles-big-endian-f-order": Recipe(
            np.asarray(noisy((33, 18, 17)).astype(">f4"), order="F"), 650
        ),
        "tiles-plane": Recipe(noisy((40, 130), 1).astype("<f8"), 800, 32),
        "tiles-line": Recipe(noisy((100,)).astype(">i4"), 700),
        "tiles-float16-padded": Recipe(
            np.pad(noisy((17, 16, 19)).astype("<f2"), (0, 3)), 650
        ),
        "tiles-filtered": Recipe(
            noisy((16, 18, 33)).astype("<f4"), 620, filter_widths=(8, 4)
        ),
    }  # fmt: skip


def build(recipe: Recipe) -> bytes:
    """Make a stream."""
    array = recipe.array
    info, classes = analyse(array)
    sections: dict[int, bytes] = {}
    if classes is not None:
        sections[Section.MASK] = encode_classes(classes)
    sections[Section.FEATURES] = features_of(normalise(array, info, classes), recipe)
    if recipe.filter_widths:
        sections[Section.POSTFILTER] = some_section(recipe.filter_widths, 52)
    draft = write_stream(Header(info, 0.0, 0.0, sections))
    valid = info.valid_slices
    finite = None if classes is None else classes == 0
    quality = measure(array[valid], decode_chunk(draft)[valid], finite)
    return write_stream(Header(info, quality.psnr, quality.max_error, sections))


def features_of(values: np.ndarray, recipe: Recipe) -> bytes:
    """Quantise with a dead zone; the section."""
    grid = values.shape[1:]
    levels = feature_levels(grid)
    coefficients = forward(values.astype(np.float32)) / feature_step(recipe.step_code)
    sizes = np.floor(np.abs(coefficients) + 0.5 - DEAD_ZONE)
    symbols = np.where(coefficients < 0, -sizes, sizes).astype(np.int32)
    shifts = no_shifts(levels)
    if recipe.largest_shift:
        rng = np.random.default_rng(53)
        most = recipe.largest_shift
        shifts = tuple(
            tuple(rng.choice([-most, -1, 0, 1, most], len(row)).tolist()) for row in shifts
        )
    corner = low_pass_slices(levels, grid)
    centroids = (recipe.centroids,) * len(levels)
    return write_features(
        Features(symbols, recipe.step_code, centroids, shifts, recipe.edge),
        [choose_low_pass(volume[corner]) for volume in symbols],
    )


def read(stream: bytes) -> Header:
    return read_stream(stream, max_decoded_bytes=1 << 30)


def symbols_of(stream: bytes) -> dict[str, np.ndarray]:
    """All symbols of a stream's models, as the second readers see them."""
    header = read(stream)
    volumes, *grid = header.info.batched_shape
    body = bytes(header.sections[Section.FEATURES])
    found = {"features": features_reference.read(body, tuple(grid), volumes).symbols}
    if Section.POSTFILTER in header.sections:
        body = bytes(header.sections[Section.POSTFILTER])
        found["postfilter"] = np.concatenate(postfilter_reference.read(body).symbols)
    return {name: symbols.astype(np.int32) for name, symbols in found.items()}


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
