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
from unittest.mock import patch

import numpy as np

from tests import features_reference, lattice_reference
from tests.faces import smooth_volume
from tinc_codec import config
from tinc_codec.bitstream.header import Header, read_stream, write_stream
from tinc_codec.bitstream.sections import Section
from tinc_codec.bitstream.version import MAJOR, MINOR
from tinc_codec.codec import decode_chunk
from tinc_codec.metrics import measure
from tinc_codec.quantise import lattice_section
from tinc_codec.quantise.lattice import place_points, to_lattice
from tinc_codec.quantise.lattice_section import write_lattice
from tinc_codec.volume.chunk import analyse
from tinc_codec.volume.mask import encode_classes

GOLDEN = Path(__file__).parent
DIRECTORY = GOLDEN / f"{MAJOR}.{MINOR}"
DOCUMENT = GOLDEN.parents[1] / "docs" / "format.md"


@dataclass(frozen=True, eq=False)
class Recipe:
    """How a chunk becomes a stream: not the encoder's way, but one that never changes."""

    array: np.ndarray
    step: float
    origin: float
    slab_voxels: int = 1 << 20


def recipes() -> dict[str, Recipe]:
    """What streams there are, by name."""
    rng = np.random.default_rng(41)

    def noisy(shape: tuple[int, ...], noise: float = 4) -> np.ndarray:
        return smooth_volume(shape) + rng.normal(0, noise, shape)

    background = noisy((12, 14, 16)).clip(0, 255)
    background[smooth_volume((12, 14, 16)) < 60] = 7
    with_nan = noisy((11, 12, 10)).astype("<f4")
    with_nan[smooth_volume((11, 12, 10)) > 85] = np.nan
    with_nan[2, 3, 4:6] = np.inf, -np.inf
    with_nan[:, :3] = 0.1
    jumps = noisy((90,)).astype(">i4")
    jumps[::7] += 1 << 22
    return {
        "lattice-uint8-background": Recipe(background.astype("u1"), 1, 7),
        "lattice-float32-nan": Recipe(with_nan, 0.75, 0.1),
        "lattice-batch": Recipe(noisy((5, 4, 6, 7)).astype(">u2"), 3, 50, 400),
        "lattice-parts-big-endian-f-order": Recipe(
            np.asarray(noisy((2, 7, 5, 6)).astype(">f4"), order="F"), 0.3, 55.0, 100
        ),
        "lattice-plane": Recipe(noisy((21, 25), 1).astype("<f8"), 1e-3, 60.0),
        "lattice-line": Recipe(jumps, 1, 100),
        "lattice-float16-padded": Recipe(np.pad(noisy((6, 7, 8)).astype("<f2"), (0, 3)), 0.5, 64),
        "lattice-int8-one-point": Recipe((noisy((3, 4, 5), 0) / 50).astype("i1"), 9, 1),
    }  # fmt: skip


def build(recipe: Recipe) -> bytes:
    """Make a stream."""
    array = recipe.array
    info, classes = analyse(array)
    valid = info.valid_slices
    origin = type(info.value_min)(recipe.origin)
    points = place_points(info, origin, recipe.step)
    if points is None:
        raise RuntimeError(f"steps of {recipe.step} make too many points")
    lattice = to_lattice(array[valid].reshape(info.batched_shape), info, points)
    with patch.object(lattice_section, "_SLAB_VOXELS", recipe.slab_voxels):
        body = write_lattice(lattice, info, classes, 1)
    sections: dict[int, bytes] = {} if classes is None else {Section.MASK: encode_classes(classes)}
    sections[Section.LATTICE] = body
    draft = write_stream(Header(info, 0.0, 0.0, sections))
    finite = None if classes is None else classes == 0
    quality = measure(array[valid], decode_chunk(draft)[valid], finite)
    return write_stream(Header(info, quality.psnr, quality.max_error, sections))


def read(stream: bytes) -> Header:
    return read_stream(stream, max_decoded_bytes=1 << 30)


def indices_of(stream: bytes, classes: np.ndarray | None) -> np.ndarray:
    """All indices of a stream's lattice, as the second reader sees them."""
    header = read(stream)
    info, body = header.info, bytes(header.sections[Section.LATTICE])
    return lattice_reference.read(
        body, info.dtype, info.batched_shape, info.value_min, info.value_max, classes
    ).indices.astype(np.int32)


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
                DIRECTORY / f"{name}.npz",
                lattice=indices_of(stream, analyse(recipe.array)[1]),
                voxels=decode_chunk(stream),
            )
            quality = read(stream).psnr
            shown = "exact" if math.isinf(quality) else f"{quality:.1f} dB"
            print(f"{name}: {len(stream)} bytes, {shown}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
