"""Streams of every released version, kept for ever: exact integers, voxels within the tolerance."""

from dataclasses import replace
from functools import cache
from pathlib import Path

import google_crc32c
import numpy as np
import pytest

from tests import (
    features_reference,
    lattice_reference,
    mask_reference,
    postfilter_reference,
    tree_reference,
)
from tinc_codec import config
from tinc_codec.bitstream.header import Header, read_stream, write_stream
from tinc_codec.bitstream.reader import ByteReader
from tinc_codec.bitstream.sections import Section
from tinc_codec.bitstream.varint import write_varint
from tinc_codec.codec import decode_chunk
from tinc_codec.entropy.bands import LowPass
from tinc_codec.entropy.weights import SymbolModel, decode_symbols
from tinc_codec.errors import CorruptStreamError, FormatError
from tinc_codec.model.features import read_features, write_features
from tinc_codec.model.postfilter import (
    CodedTensor,
    read_postfilter,
    tensors_of,
    write_postfilter,
)
from tinc_codec.model.section import read_tree, write_tree
from tinc_codec.quantise import lattice_section
from tinc_codec.quantise.lattice_section import read_lattice, write_lattice
from tinc_codec.quantise.scalar import q_step

GOLDEN = Path(__file__).parent / "golden"
LAYOUTS = {
    "1.0": {
        "uint8": "|u1", "int16-odd": "<i2", "float32-nan": "<f4", "big-endian-f-order": ">f4",
        "four-axes": "<u2", "plane": "<f8", "line": ">i4", "float16-padded": "<f2",
        "uint16-edge": "<u2", "unequal-nodes": "<f4", "three-levels": "<i4", "constant": "<f8",
        "all-nan": "<f4",
    },
    "1.1": {
        "uint8": "|u1", "blocked-bands": "|u1", "int16-odd": "<i2", "float32-nan": "<f4",
        "big-endian-f-order": ">f4", "four-axes": "<u2", "five-axes-blocked": "<i2",
        "plane": "<f8", "line": ">i4", "no-levels": "<f4", "float16-padded": "<f2",
        "uint16-edge": "<u2", "large-symbols": "<i4", "centroids-and-shifts": "<f4",
        "largest-shifts": "<f4", "tree-and-features": "|u1", "tree-and-features-batch": ">u2",
    },
    "1.2": {
        "filtered": "|u1", "filtered-float32-nan": "<f4", "filtered-batch": ">u2",
        "filtered-big-endian-f-order": ">f4", "filtered-plane": "<f8", "filtered-line": ">i4",
        "filtered-short-axes": "<f4", "filtered-float16-padded": "<f2", "filtered-widest": "<i2",
        "filtered-least-conditioning": "<f4", "filtered-most-conditioning": "<f4",
        "filtered-answer-of-nothing": "<u2", "filtered-tree": "<f4",
        "filtered-tree-and-features": "|u1",
    },
    "1.3": {
        "lattice-uint8-background": "|u1", "lattice-float32-nan": "<f4", "lattice-batch": ">u2",
        "lattice-parts-big-endian-f-order": ">f4", "lattice-plane": "<f8", "lattice-line": ">i4",
        "lattice-float16-padded": "<f2", "lattice-int8-one-point": "|i1",
    },
    "1.4": {
        "tiles": "|u1", "tiles-batch": ">u2", "tiles-short-axis": "<f4", "tiles-one": "<i2",
        "tiles-largest-edge": "<u2", "tiles-two-levels": "<f4", "tiles-large-symbols": "<i4",
        "tiles-centroids-and-shifts": "<f4", "tiles-largest-shifts": "<f4",
        "tiles-float32-nan": "<f4", "tiles-big-endian-f-order": ">f4", "tiles-plane": "<f8",
        "tiles-line": ">i4", "tiles-float16-padded": "<f2", "tiles-filtered": "<f4",
    },
}  # fmt: skip
CASES = [(version, name) for version, layouts in LAYOUTS.items() for name in layouts]
# docs/format.md §7.6, §9.5 and §13.5, as a part of the value range.
TREE_TOLERANCE = 2.0**-14
FEATURES_TOLERANCE = 2.0**-17
FILTERED_TOLERANCE = 2.0**-13


def load(version: str, name: str) -> tuple[bytes, dict[str, np.ndarray]]:
    """Stream and what it holds: symbols by section, and voxels. A missing file is a failure."""
    stream = (GOLDEN / version / f"{name}.tinc").read_bytes()
    with np.load(GOLDEN / version / f"{name}.npz") as archive:
        kept = dict(archive)
    if version == "1.0":
        kept["tree"] = kept.pop("symbols")
    return stream, kept


def read(stream: bytes) -> Header:
    return read_stream(stream, max_decoded_bytes=1 << 30)


def assert_voxels(found: np.ndarray, expected: np.ndarray, tolerance: float) -> None:
    """Same bits where not finite, else within the tolerance, and one step of an integer."""
    finite = np.isfinite(expected.astype("f8"))
    np.testing.assert_array_equal(found[~finite], expected[~finite])
    a, b = found[finite].astype("f8"), expected[finite].astype("f8")
    if a.size:
        allowed = tolerance * np.ptp(b)
        if expected.dtype.kind in "iu":
            allowed += 1
        elif expected.dtype.itemsize < 8:
            allowed += float(np.spacing(np.abs(expected[finite]).max()))
        assert np.abs(a - b).max() <= allowed


@cache
def features_as_read(
    version: str, name: str
) -> tuple[bytes, features_reference.Triple, features_reference.ReferenceFeatures]:
    """The features section of a stream, the grid, and what the second reader makes of it."""
    header = read(load(version, name)[0])
    volumes, z, y, x = header.info.batched_shape
    body = bytes(header.sections[Section.FEATURES])
    return body, (z, y, x), features_reference.read(body, (z, y, x), volumes)


def lattice_of(header: Header) -> lattice_reference.ReferenceLattice:
    """A lattice and the mask that it leaves out, as the second readers see them."""
    info = header.info
    return lattice_reference.read(
        bytes(header.sections[Section.LATTICE]),
        info.dtype,
        info.batched_shape,
        info.value_min,
        info.value_max,
        classes_of(header),
    )


def classes_of(header: Header) -> np.ndarray | None:
    if Section.MASK not in header.sections:
        return None
    body = bytes(header.sections[Section.MASK])
    return mask_reference.decode_reference(body, header.info.valid_extent)


def tolerance_of(header: Header) -> float:
    if Section.POSTFILTER in header.sections:
        return FILTERED_TOLERANCE
    return TREE_TOLERANCE if Section.TREE in header.sections else FEATURES_TOLERANCE


def test_no_file_is_left_out():
    kept = {
        (path.parent.name, path.stem)
        for path in GOLDEN.rglob("*")
        if path.suffix in (".tinc", ".npz")
    }
    assert kept == set(CASES)


@pytest.mark.parametrize(("version", "name"), CASES)
class TestGolden:
    def test_the_version_is_the_directory(self, version, name):
        stream, _ = load(version, name)
        assert read(stream).version == tuple(map(int, version.split(".")))

    def test_tree_symbols_are_exact(self, version, name):
        stream, kept = load(version, name)
        header = read(stream)
        if Section.TREE not in header.sections:
            assert kept.get("tree", np.zeros(0)).size == 0
            return
        volumes, z, y, x = header.info.batched_shape
        body = bytes(header.sections[Section.TREE])
        section = read_tree(body, (z, y, x), volumes)
        sizes = [volumes * (tensor.stop - tensor.start) for tensor in section.shape.tensors]
        found = decode_symbols(section.coded, sizes, section.models)
        np.testing.assert_array_equal(np.concatenate(found), kept["tree"])
        assert write_tree(section) == body

    def test_features_are_exact(self, version, name):
        stream, kept = load(version, name)
        assert (Section.FEATURES in read(stream).sections) == ("features" in kept)
        if "features" not in kept:
            return
        body, grid, reference = features_as_read(version, name)
        found = read_features(body, grid, len(reference.symbols))
        np.testing.assert_array_equal(found.symbols, kept["features"])
        assert found.tile == reference.edge
        assert write_features(found, [LowPass(*corner) for corner in reference.corners]) == body

    def test_the_postfilter_is_exact(self, version, name):
        stream, kept = load(version, name)
        header = read(stream)
        assert (Section.POSTFILTER in header.sections) == ("postfilter" in kept)
        if "postfilter" not in kept:
            return
        body = bytes(header.sections[Section.POSTFILTER])
        coded = postfilter_reference.read(body)
        postfilter = read_postfilter(body)
        assert postfilter.widths == tuple(coded.widths)
        tensors, position = [], 0
        for code, part in zip(coded.codes, tensors_of(postfilter.widths), strict=True):
            symbols = kept["postfilter"][position : position + part.stop - part.start]
            position += len(symbols)
            expected = symbols.astype(np.float32) * np.float32(q_step(code.step_code))
            np.testing.assert_array_equal(postfilter.parameters[part], expected)
            model = SymbolModel(code.family, code.scale, code.zero, code.magnitude)
            tensors.append(CodedTensor(code.step_code, model, symbols))
        assert position == kept["postfilter"].size
        assert write_postfilter(postfilter.widths, postfilter.conditioning, tensors) == body

    def test_the_lattice_is_exact(self, version, name, monkeypatch):
        stream, kept = load(version, name)
        header = read(stream)
        assert (Section.LATTICE in header.sections) == ("lattice" in kept)
        if "lattice" not in kept:
            return
        body, classes = bytes(header.sections[Section.LATTICE]), classes_of(header)
        found = read_lattice(body, header.info, classes, 1)
        np.testing.assert_array_equal(found.indices, kept["lattice"])
        planes = lattice_of(header).planes
        monkeypatch.setattr(lattice_section, "_planes_per_slab", lambda shape: planes)
        assert write_lattice(found, header.info, classes, 1) == body

    def test_voxels(self, version, name):
        stream, kept = load(version, name)
        voxels = kept["voxels"]
        with config.set(device="cpu"):
            found = decode_chunk(stream)
        assert found.shape == voxels.shape
        assert found.dtype.str == LAYOUTS[version][name]
        assert found.flags.f_contiguous == (found.ndim < 2 or name.endswith("f-order"))
        if "lattice" in kept:
            np.testing.assert_array_equal(found, voxels)
        else:
            assert_voxels(found, voxels, tolerance_of(read(stream)))

    def test_the_second_readers(self, version, name):
        stream, kept = load(version, name)
        header = read(stream)
        info = header.info
        volumes, z, y, x = info.batched_shape
        t = np.zeros(info.batched_shape)
        models = 0
        if Section.TREE in header.sections:
            body = bytes(header.sections[Section.TREE])
            tree = tree_reference.read(body, (z, y, x), volumes)
            assert [n for tensor in tree.symbols for n in tensor] == kept["tree"].tolist()
            t += tree_reference.decode(body, (z, y, x), volumes)
            models += 1
        if Section.FEATURES in header.sections:
            _, _, features = features_as_read(version, name)
            np.testing.assert_array_equal(features.symbols, kept["features"])
            t += features_reference.values_of(features)
            models += 1
        if Section.LATTICE in header.sections:
            lattice = lattice_of(header)
            np.testing.assert_array_equal(lattice.indices, kept["lattice"])
            found = lattice_reference.values_of(lattice, info.dtype, info.value_min, info.value_max)
            found = found.reshape(info.valid_extent)
            expected = kept["voxels"][info.valid_slices]
            finite = np.isfinite(expected.astype("f8"))
            np.testing.assert_array_equal(found[finite], expected[finite])
        if models == 0:
            return
        if Section.POSTFILTER in header.sections:
            body = bytes(header.sections[Section.POSTFILTER])
            postfilter = postfilter_reference.read(body)
            symbols = [n for tensor in postfilter.symbols for n in tensor]
            assert symbols == kept["postfilter"].tolist()
            t = postfilter_reference.apply(postfilter, t)
        low, high = float(info.value_min), float(info.value_max)
        values = (low + t.clip(0, 1) * (high - low)).reshape(info.valid_extent)
        expected = kept["voxels"][info.valid_slices]
        finite = np.isfinite(expected.astype("f8"))
        if info.dtype.kind in "iu":
            values = np.rint(values)
        assert_voxels(values.astype(info.dtype)[finite], expected[finite], tolerance_of(header))


def test_the_streams_hold_what_their_names_say():
    """What the second reader must have seen for its agreement to mean much."""
    headers = {name: read(load("1.1", name)[0]) for name in LAYOUTS["1.1"]}
    features = {}
    for name, header in headers.items():
        _, _, features[name] = features_as_read("1.1", name)
        assert (Section.TREE in header.sections) == name.startswith("tree")
        assert (Section.MASK in header.sections) == (name == "float32-nan")
    for name in ("blocked-bands", "five-axes-blocked"):
        for volume in features[name].symbols:
            band = volume[features[name].levels[0].bands[4]]
            assert band.size >= 4096
            present = features_reference.block_sums(np.abs(band), (4, 4, 4)) > 0
            assert present.any()
            assert name != "blocked-bands" or not present.all()
    assert len(features["five-axes-blocked"].symbols) == 2
    assert len(features["no-levels"].levels) == 0
    assert np.abs(features["large-symbols"].symbols).max() > 1 << 16
    assert features["largest-shifts"].centroids[0] == (127, -128)
    shifts = {
        name: {shift for row in features[name].shifts for shift in row.values()} for name in headers
    }
    assert shifts["largest-shifts"] >= {31, -31}
    assert shifts["centroids-and-shifts"] >= {4, 0, -4}
    assert shifts["uint8"] == {0}


def test_the_filtered_streams_hold_what_their_names_say():
    headers = {name: read(load("1.2", name)[0]) for name in LAYOUTS["1.2"]}
    widths = {}
    for name, header in headers.items():
        kept = load("1.2", name)[1]["voxels"][header.info.valid_slices]
        body = bytes(header.sections[Section.POSTFILTER])
        postfilter = read_postfilter(body)
        widths[name] = postfilter.widths
        unfiltered = {k: v for k, v in header.sections.items() if k != Section.POSTFILTER}
        with config.set(device="cpu"):
            plain = decode_chunk(write_stream(replace(header, sections=unfiltered)))
        # What the filter answers is seen far beyond the tolerance, but does not drown the chunk.
        finite = np.isfinite(kept.astype("f8"))
        changed = plain[header.info.valid_slices][finite].astype("f8") - kept[finite]
        change = float(np.sqrt(np.mean(np.square(changed)))) / np.ptp(kept[finite].astype("f8"))
        if name == "filtered-answer-of-nothing":
            assert not postfilter.parameters.any()
            assert change == 0
        else:
            assert 10 * FILTERED_TOLERANCE < change < 0.2, name
        assert (Section.TREE in header.sections) == ("tree" in name)
        assert (Section.FEATURES in header.sections) == (name != "filtered-tree")
    assert {len(found) for found in widths.values()} == {1, 2, 3}
    assert widths["filtered-widest"] == (64, 64, 64)


def test_the_lattices_hold_what_their_names_say():
    headers = {name: read(load("1.3", name)[0]) for name in LAYOUTS["1.3"]}
    found = {name: lattice_of(header) for name, header in headers.items()}
    for name, header in headers.items():
        assert (Section.MASK in header.sections) == (name == "lattice-float32-nan")
    voxels = load("1.3", "lattice-uint8-background")[1]["voxels"]
    assert np.count_nonzero(voxels == 7) > voxels.size / 4
    voxels = load("1.3", "lattice-float32-nan")[1]["voxels"]
    assert np.count_nonzero(voxels == np.float32(0.1)) > voxels.size / 5
    assert np.isnan(voxels).any()
    assert np.isinf(voxels).any()
    # Slabs of two volumes, the last of one; and of parts of volumes.
    batch, parts = found["lattice-batch"], found["lattice-parts-big-endian-f-order"]
    assert (batch.planes, batch.slabs) == (8, 3)
    assert parts.planes < 7
    assert parts.slabs > 2
    assert {lattice.slabs for name, lattice in found.items() if "float" in name} == {1}
    assert found["lattice-line"].escapes > 0
    assert found["lattice-line"].largest_shift > 10
    assert found["lattice-int8-one-point"].top == 0


def test_the_tiles_hold_what_their_names_say():
    headers = {name: read(load("1.4", name)[0]) for name in LAYOUTS["1.4"]}
    tiles, last, grids, features = {}, {}, {}, {}
    for name, header in headers.items():
        _, grids[name], features[name] = features_as_read("1.4", name)
        edge = features[name].edge
        tiles[name] = tuple(-(-n // edge) for n in grids[name])
        # Low-pass samples in the last tile along each axis: some are cut short.
        last[name] = {-(-n // 2) % (edge // 2) for n in grids[name] if n > edge}
        assert header.layout.section_bytes.keys() == header.sections.keys()
        assert (Section.MASK in header.sections) == (name == "tiles-float32-nan")
        assert (Section.POSTFILTER in header.sections) == (name == "tiles-filtered")
    assert tiles["tiles"] == (3, 3, 4)
    assert last["tiles"] == {1, 2, 4}
    assert tiles["tiles-batch"] == (2, 2, 3)
    assert len(features["tiles-batch"].symbols) == 2
    assert tiles["tiles-short-axis"] == (1, 3, 3)
    assert not any(level.splits[0] for level in features["tiles-short-axis"].levels)
    assert tiles["tiles-one"] == tiles["tiles-largest-edge"] == (1, 1, 1)
    assert features["tiles-largest-edge"].edge == 1 << 30
    assert len(features["tiles-two-levels"].levels) == 2
    assert tiles["tiles-two-levels"] == (2, 2, 1)
    assert np.abs(features["tiles-large-symbols"].symbols).max() > 1 << 16
    assert features["tiles-largest-shifts"].centroids[0] == (127, -128)
    shifts = {
        name: {shift for row in features[name].shifts for shift in row.values()} for name in headers
    }
    assert shifts["tiles-largest-shifts"] >= {31, -31}
    assert shifts["tiles-centroids-and-shifts"] >= {4, 0, -4}
    assert shifts["tiles"] == {0}
    # Absent blocks, and present ones.
    band = features["tiles"].symbols[0][features["tiles"].levels[0].bands[4]]
    present = features_reference.block_sums(np.abs(band), (4, 4, 4)) > 0
    assert present.any()
    assert not present.all()


def rejected_by_both(body: bytes, grid: features_reference.Triple, volumes: int) -> bool:
    """Whether neither reader takes a features section; if both do, they agree."""
    try:
        reference = features_reference.read(body, grid, volumes)
    except ValueError:
        with pytest.raises(FormatError):
            read_features(body, grid, volumes)
        return True
    np.testing.assert_array_equal(read_features(body, grid, volumes).symbols, reference.symbols)
    return False


class TestBothReadersReject:
    """docs/format.md §9.6 and §10.9, on the one-dimensional stream: seven tiles, small parts."""

    def section(self) -> tuple[bytes, bytes, list[bytes]]:
        """What comes before the lengths, the whole section, and the parts."""
        body, _, _ = features_as_read("1.4", "tiles-line")
        # Step, flags (neither centroids nor shifts), edge, context and two bytes of centre.
        head = 7
        reader = ByteReader(memoryview(body[head:]))
        lengths = [reader.read_varint("length") for _ in range(1 + 2 * 7)]
        parts = [bytes(reader.read_bytes(length, "part")) for length in lengths]
        assert self.joined(body[:head], parts) == body
        return body[:head], body, parts

    @staticmethod
    def joined(head: bytes, parts: list[bytes]) -> bytes:
        return head + b"".join(write_varint(len(part)) for part in parts) + b"".join(parts)

    @pytest.mark.parametrize("exponent", [0, 3, 31, 255])
    def test_an_edge_out_of_range(self, exponent):
        _, body, _ = self.section()
        assert rejected_by_both(body[:3] + bytes([exponent]) + body[4:], (1, 1, 100), 1)

    def test_a_reserved_flag(self):
        _, body, _ = self.section()
        assert rejected_by_both(body[:2] + bytes([body[2] | 8]) + body[3:], (1, 1, 100), 1)

    @pytest.mark.parametrize(("size", "rejected"), [(14, True), (15, False)])
    def test_tiles_of_less_than_two_levels(self, size, rejected):
        head, _, _ = self.section()
        assert rejected_by_both(self.joined(head, [b""] * 3), (1, 1, size), 1) == rejected

    def test_bytes_after_the_last_part(self):
        _, body, _ = self.section()
        assert rejected_by_both(body + b"\1", (1, 1, 100), 1)

    def test_more_parts_than_bytes(self):
        head, _, _ = self.section()
        assert rejected_by_both(head + b"\0" * 14, (1, 1, 100), 1)
        assert not rejected_by_both(head + b"\0" * 15, (1, 1, 100), 1)

    @pytest.mark.parametrize("number", [0, 1, 8])
    @pytest.mark.parametrize("more", [b"\0", b"\0" * 64 + b"\1"])
    def test_a_part_that_goes_on(self, number, more):
        head, _, parts = self.section()
        parts[number] += more
        assert rejected_by_both(self.joined(head, parts), (1, 1, 100), 1)

    @pytest.mark.parametrize("number", [0, 1, 8])
    def test_a_number_beyond_the_last_quantile(self, number):
        head, _, parts = self.section()
        parts[number] = b"\xff" * 8
        assert rejected_by_both(self.joined(head, parts), (1, 1, 100), 1)

    def test_tiles_in_a_stream_of_an_older_version(self):
        stream, _ = load("1.4", "tiles-line")
        content = bytearray(stream[:-4])
        assert content[5] == 4
        content[5] = 3
        with pytest.raises(CorruptStreamError, match=r"1\.3"):
            read(bytes(content) + google_crc32c.value(bytes(content)).to_bytes(4, "little"))

    def test_every_truncation(self):
        _, body, _ = self.section()
        assert all(rejected_by_both(body[:n], (1, 1, 100), 1) for n in range(len(body)))

    def test_damaged_bytes_are_rejected_by_both_or_mean_the_same(self):
        body, grid, reference = features_as_read("1.4", "tiles-line")
        rng = np.random.default_rng(54)
        found = []
        for _ in range(100):
            damaged = bytearray(body)
            damaged[rng.integers(4, len(body))] ^= 1 << rng.integers(8)
            found.append(rejected_by_both(bytes(damaged), grid, len(reference.symbols)))
        assert {True, False} == set(found)
