"""Write the golden streams of the current format version: `python -m tests.golden.regenerate`.

Only for a new version of the format, or before the first release: streams of a released version
stay as they are for ever. Tests never run this.
"""

import sys
from pathlib import Path

import numpy as np

from tests import tree_reference
from tests.faces import smooth_volume
from tinc_codec import config
from tinc_codec.bitstream.header import read_stream
from tinc_codec.bitstream.sections import Section
from tinc_codec.bitstream.version import MAJOR, MINOR
from tinc_codec.codec import decode_chunk, encode_chunk
from tinc_codec.params import EncodingParams

GOLDEN = Path(__file__).parent
DIRECTORY = GOLDEN / f"{MAJOR}.{MINOR}"


def chunks() -> dict[str, tuple[np.ndarray, EncodingParams]]:
    """The chunks by name, and how each is encoded."""
    rng = np.random.default_rng(20)
    with_nan = smooth_volume((11, 12, 10))
    with_nan[smooth_volume((11, 12, 10)) > 85] = np.nan
    with_nan[2, 3, 4:6] = np.inf, -np.inf
    edge = np.full((12, 10, 14), 65535, "<u2")
    edge[:8, :, :9] = smooth_volume((8, 10, 9), "<u2")
    noisy = smooth_volume((16, 12, 16)) + rng.normal(0, 4, (16, 12, 16))
    return {
        "uint8": (noisy.clip(0, 255).astype("u1"), params(6)),
        "int16-odd": (smooth_volume((13, 9, 7), "<i2") - 60, params(4)),
        "float32-nan": (with_nan, params(10)),
        "big-endian-f-order": (smooth_volume((9, 10, 11), ">f4", "F"), params(8)),
        "four-axes": (smooth_volume((3, 8, 9, 8), "<u2"), params(5)),
        "plane": (smooth_volume((21, 30), "<f8"), params(16)),
        "line": (smooth_volume((90,), ">i4"), params(2)),
        "float16-padded": (np.pad(smooth_volume((9, 9, 9), "<f2"), (0, 3)), params(6)),
        "uint16-edge": (edge, params(6)),
        "unequal-nodes": (
            np.where(np.arange(16) < 8, 0, noisy).astype("<f4"),
            params(8, node_split="variance", layers=1, w0=9),
        ),
        "three-levels": (
            smooth_volume((16, 16, 16), "<i4"),
            params(12, levels=3, layers=(1, 2, 1)),
        ),
        "constant": (np.full((16, 16, 16), 1.5, "<f8"), params(64)),
        "all-nan": (np.full((8, 8, 8), np.nan, "<f4"), params(32)),
    }


def params(ratio: float, **changes) -> EncodingParams:
    return EncodingParams(ratio=ratio, effort=1, **changes)


def symbols_of(stream: bytes) -> np.ndarray:
    """All symbols of a stream's tree, tensor after tensor; empty where there is none."""
    header = read_stream(stream, max_decoded_bytes=1 << 30)
    if Section.TREE not in header.sections:
        return np.zeros(0, np.int32)
    volumes, z, y, x = header.info.batched_shape
    tree = tree_reference.read(bytes(header.sections[Section.TREE]), (z, y, x), volumes)
    return np.array([n for tensor in tree.symbols for n in tensor], dtype=np.int32)


def main() -> int:
    """Write a stream and a file of what it holds per chunk."""
    DIRECTORY.mkdir(exist_ok=True)
    with config.set(device="cpu"):
        for name, (array, how) in chunks().items():
            stream = encode_chunk(array, how)
            (DIRECTORY / f"{name}.tinc").write_bytes(stream)
            np.savez_compressed(
                DIRECTORY / f"{name}.npz", symbols=symbols_of(stream), voxels=decode_chunk(stream)
            )
            print(f"{name}: {len(stream)} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
