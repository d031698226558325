"""Streams of every released version, kept for ever: exact integers, voxels within the tolerance."""

from pathlib import Path

import numpy as np
import pytest

from tests import tree_reference
from tinc_codec import config
from tinc_codec.bitstream.header import read_stream
from tinc_codec.bitstream.sections import Section
from tinc_codec.codec import decode_chunk
from tinc_codec.entropy.weights import decode_symbols
from tinc_codec.model.section import read_tree, write_tree

GOLDEN = Path(__file__).parent / "golden"
NAMES = {
    "1.0": (
        "uint8",
        "int16-odd",
        "float32-nan",
        "big-endian-f-order",
        "four-axes",
        "plane",
        "line",
        "float16-padded",
        "uint16-edge",
        "unequal-nodes",
        "three-levels",
        "constant",
        "all-nan",
    )
}
CASES = [(version, name) for version, names in NAMES.items() for name in names]
# docs/format.md §7.6, as a part of the value range.
TOLERANCE = 2.0**-14
LAYOUTS = {
    "uint8": "|u1", "int16-odd": "<i2", "float32-nan": "<f4", "big-endian-f-order": ">f4",
    "four-axes": "<u2", "plane": "<f8", "line": ">i4", "float16-padded": "<f2",
    "uint16-edge": "<u2", "unequal-nodes": "<f4", "three-levels": "<i4", "constant": "<f8",
    "all-nan": "<f4",
}  # fmt: skip


def load(version: str, name: str) -> tuple[bytes, np.ndarray, np.ndarray]:
    """Stream, symbols and voxels; a missing file is a failure."""
    stream = (GOLDEN / version / f"{name}.tinc").read_bytes()
    with np.load(GOLDEN / version / f"{name}.npz") as kept:
        return stream, kept["symbols"], kept["voxels"]


def assert_voxels(found: np.ndarray, expected: np.ndarray) -> None:
    """Same bits where not finite, else within the tolerance, and one step of an integer."""
    finite = np.isfinite(expected.astype("f8"))
    np.testing.assert_array_equal(found[~finite], expected[~finite])
    a, b = found[finite].astype("f8"), expected[finite].astype("f8")
    if a.size:
        allowed = TOLERANCE * np.ptp(b)
        if expected.dtype.kind in "iu":
            allowed += 1
        elif expected.dtype.itemsize == 2:
            allowed += float(np.spacing(np.abs(expected[finite]).max()))
        assert np.abs(a - b).max() <= allowed


def test_no_file_is_left_out():
    kept = {
        (path.parent.name, path.stem)
        for path in GOLDEN.rglob("*")
        if path.suffix in (".tinc", ".npz")
    }
    assert kept == set(CASES)


@pytest.mark.parametrize(("version", "name"), CASES)
class TestGolden:
    def test_symbols_are_exact(self, version, name):
        stream, symbols, _ = load(version, name)
        header = read_stream(stream, max_decoded_bytes=1 << 30)
        if Section.TREE not in header.sections:
            assert symbols.size == 0
            return
        volumes, z, y, x = header.info.batched_shape
        body = bytes(header.sections[Section.TREE])
        section = read_tree(body, (z, y, x), volumes)
        sizes = [volumes * (tensor.stop - tensor.start) for tensor in section.shape.tensors]
        found = decode_symbols(section.coded, sizes, section.models)
        np.testing.assert_array_equal(np.concatenate(found), symbols)
        assert write_tree(section) == body

    def test_voxels(self, version, name):
        stream, _, voxels = load(version, name)
        with config.set(device="cpu"):
            found = decode_chunk(stream)
        assert found.shape == voxels.shape
        assert found.dtype.str == LAYOUTS[name]
        assert found.flags.f_contiguous == (found.ndim < 2 or name == "big-endian-f-order")
        assert_voxels(found, voxels)

    def test_the_second_reader(self, version, name):
        stream, symbols, voxels = load(version, name)
        header = read_stream(stream, max_decoded_bytes=1 << 30)
        if Section.TREE not in header.sections:
            return
        info = header.info
        volumes, z, y, x = info.batched_shape
        body = bytes(header.sections[Section.TREE])
        tree = tree_reference.read(body, (z, y, x), volumes)
        assert [n for tensor in tree.symbols for n in tensor] == symbols.tolist()
        t = tree_reference.decode(body, (z, y, x), volumes).clip(0, 1)
        low, high = float(info.value_min), float(info.value_max)
        values = (low + t * (high - low)).reshape(info.valid_extent)
        expected = voxels[info.valid_slices]
        finite = np.isfinite(expected.astype("f8"))
        if info.dtype.kind in "iu":
            values = np.rint(values)
        assert_voxels(values.astype(info.dtype)[finite], expected[finite])
