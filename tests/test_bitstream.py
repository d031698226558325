"""The bitstream room: golden bytes, round trips, and streams that lie."""

import contextlib
import dataclasses
import math
import pickle
import struct

import google_crc32c
import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from tests import strategies
from tests.memory import AllocationMeter
from tinc_codec.bitstream.header import (
    Header,
    Layout,
    overhead_bytes,
    read_header_only,
    read_stream,
    write_stream,
)
from tinc_codec.bitstream.reader import ByteReader, byte_view
from tinc_codec.bitstream.scalars import DTYPE_CODES, float32_bound
from tinc_codec.bitstream.sections import SINCE_MINOR, Section
from tinc_codec.bitstream.varint import MAX_VARINT, varint_size, write_varint
from tinc_codec.errors import (
    CorruptStreamError,
    FormatError,
    LimitError,
    TruncatedStreamError,
    UnsupportedVersionError,
)
from tinc_codec.volume.chunk import ChunkInfo, analyse

LIMIT = 1 << 32

# Written by hand from docs/format.md, checksums apart; they change only with the major version.
CONSTANT = bytes.fromhex(
    "54494e43 01 00 00 08 03 40 40 40 0000c03f 0000c03f 0000807f 00000000 00 85252281"
)
TREE_IN_PADDING = bytes.fromhex(
    "54494e43 01 00 03 82 02 ac02 03 8002 03 0700 0100 e803 00003442 0000003f"
    "01 02 03 aabbcc c829d464"
)
MASKED = bytes.fromhex(
    "54494e43 01 00 04 08 01 05 000080bf 00000040 0000c841 cdcccc3d 02 01 02 02 01 0408 7f 5ea97e82"
)
NO_FINITE = bytes.fromhex("54494e43 01 00 0c 07 01 03 0000807f 00000000 01 01 01 01 9326efb4")
ALL_MODELS = bytes.fromhex(
    "54494e43 01 01 00 01 02 04 05 03 fe 00002042 00002040"
    "03 02 01 03 02 04 03 aa bbbb cccccc 31789c0e"
)
FILTERED = bytes.fromhex(
    "54494e43 01 02 00 01 02 04 05 03 fe 00002042 00002040"
    "03 03 02 04 03 05 01 bbbb cccccc dd 9bc982c9"
)
LATTICE = bytes.fromhex(
    "54494e43 01 03 04 08 01 05 000080bf 00000040 0000c841 cdcccc3d 02 01 02 06 01 0408 7f 703cbb7f"
)


def signed(content: bytes | bytearray) -> bytes:
    """Put the right checksum in place of the last four bytes."""
    content = bytes(content[:-4])
    return content + struct.pack("<I", google_crc32c.value(content))


def info_of(dtype: str, shape: tuple[int, ...], low=0, high=100, **changes) -> ChunkInfo:
    scalar = np.dtype(dtype).type
    info = ChunkInfo(np.dtype(dtype), "C", shape, shape, None, scalar(low), scalar(high))
    return dataclasses.replace(info, **changes)


GOLDEN = {
    "constant": (
        CONSTANT,
        Header(info_of("<f4", (64, 64, 64), 1.5, 1.5), math.inf, 0.0, {}),
    ),
    "tree in padding": (
        TREE_IN_PADDING,
        Header(
            info_of(
                ">u2", (300, 3), 1, 1000, order="F", valid_extent=(256, 3), pad_value=np.uint16(7)
            ),
            45.0,
            0.5,
            {Section.TREE: b"\xaa\xbb\xcc"},
        ),
    ),
    "masked": (
        MASKED,
        Header(
            info_of("<f4", (5,), -1, 2),
            25.0,
            float(np.float32(0.1)),
            {Section.MASK: b"\x04\x08", Section.TREE: b"\x7f"},
        ),
    ),
    "no finite voxel": (
        NO_FINITE,
        Header(
            info_of("<f2", (3,), value_min=None, value_max=None),
            math.inf,
            0.0,
            {Section.MASK: b"\x01"},
        ),
    ),
    "all models": (
        ALL_MODELS,
        Header(
            info_of("|u1", (4, 5), 3, 254),
            40.0,
            2.5,
            {
                Section.TREE: b"\xaa",
                Section.FEATURES: b"\xbb\xbb",
                Section.CORRECTIONS: b"\xcc" * 3,
            },
        ),
    ),
    "filtered": (
        FILTERED,
        Header(
            info_of("|u1", (4, 5), 3, 254),
            40.0,
            2.5,
            {
                Section.FEATURES: b"\xbb\xbb",
                Section.CORRECTIONS: b"\xcc" * 3,
                Section.POSTFILTER: b"\xdd",
            },
        ),
    ),
    "lattice": (
        LATTICE,
        Header(
            info_of("<f4", (5,), -1, 2),
            25.0,
            float(np.float32(0.1)),
            {Section.MASK: b"\x04\x08", Section.LATTICE: b"\x7f"},
        ),
    ),
}
MINORS = {"all models": 1, "filtered": 2, "lattice": 3}


def lowest_minor(header: Header) -> int:
    minors = [SINCE_MINOR[Section(section)] for section in header.sections]
    # In the third byte of features, 4: tiles.
    features = header.sections.get(Section.FEATURES, b"")
    has_tiles = len(features) > 2 and bool(features[2] & 4)
    return max([*minors, 4 * has_tiles], default=0)


@st.composite
def headers(draw: st.DrawFn) -> Header:
    """Headers with every set of models that there can be."""
    header = draw(strategies.headers())
    if Section.TREE not in header.sections:
        return header
    sections = dict(header.sections)
    body = sections[Section.TREE]
    if draw(st.booleans()):
        del sections[Section.TREE]
        sections[int(Section.LATTICE)] = body
        return dataclasses.replace(header, sections=sections)
    models = draw(
        st.sampled_from([[Section.TREE], [Section.FEATURES], [Section.TREE, Section.FEATURES]])
    )
    if Section.TREE not in models:
        del sections[Section.TREE]
    sections.update({int(section): body[i:] + b"x" for i, section in enumerate(models)})
    if draw(st.booleans()):
        sections[int(Section.CORRECTIONS)] = body[::-1]
    if draw(st.booleans()):
        sections[int(Section.POSTFILTER)] = body + b"y"
    return dataclasses.replace(header, sections=sections)


def assert_same(found: Header, expected: Header) -> None:
    assert found.info == expected.info
    assert found.psnr == expected.psnr
    assert found.max_error == expected.max_error
    assert {k: bytes(v) for k, v in found.sections.items()} == {
        int(k): bytes(v) for k, v in expected.sections.items()
    }


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_streams_are_written_and_read_to_the_byte(name):
    stream, header = GOLDEN[name]
    assert write_stream(header).hex(" ") == stream.hex(" ")
    found = read_stream(stream, max_decoded_bytes=LIMIT)
    assert_same(found, header)
    assert found.version == (1, MINORS.get(name, 0))
    assert found.layout is not None
    assert found.layout.total_bytes == len(stream)


def test_dtype_codes_are_for_ever():
    assert DTYPE_CODES == {
        1: "u1", 2: "u2", 3: "u4", 4: "i1", 5: "i2", 6: "i4", 7: "f2", 8: "f4", 9: "f8"
    }  # fmt: skip
    assert {section.name: section.value for section in Section} == {
        "MASK": 1,
        "TREE": 2,
        "FEATURES": 3,
        "CORRECTIONS": 4,
        "POSTFILTER": 5,
        "LATTICE": 6,
    }
    assert {section.name: minor for section, minor in SINCE_MINOR.items()} == {
        "MASK": 0,
        "TREE": 0,
        "FEATURES": 1,
        "CORRECTIONS": 1,
        "POSTFILTER": 2,
        "LATTICE": 3,
    }


@given(headers())
def test_every_header_comes_back(header):
    stream = write_stream(header)
    found = read_stream(stream, max_decoded_bytes=LIMIT)
    assert_same(found, header)
    lengths = {section_id: len(body) for section_id, body in header.sections.items()}
    assert len(stream) == overhead_bytes(header.info, lengths) + sum(lengths.values())
    assert write_stream(found) == stream
    # Older readers take what they can.
    assert found.version == (1, lowest_minor(header))


@given(headers(), st.integers(0, 2**20), st.integers(0, 2**20))
def test_overhead_never_falls_with_length(header, n_bytes, more):
    assume(header.sections)
    for section in header.sections:
        lengths = dict.fromkeys(header.sections, 1)
        small = overhead_bytes(header.info, {**lengths, section: n_bytes})
        large = overhead_bytes(header.info, {**lengths, section: n_bytes + more})
        assert small <= large <= small + 8


def bytes_needed(prefix: bytes) -> int | None:
    """What a reader of the header asks for next; None where it has enough."""
    try:
        read_header_only(prefix)
    except TruncatedStreamError as error:
        return error.needed
    return None


@given(headers())
def test_the_header_alone_says_how_much_it_needs(header):
    stream = write_stream(header)
    n_bytes = 0
    for _ in range(40):
        needed = bytes_needed(stream[:n_bytes])
        if needed is None:
            break
        assert n_bytes < needed <= len(stream)
        n_bytes = needed
    found = read_header_only(stream[:n_bytes])
    assert found.info == header.info
    assert found.sections == {}
    assert found.layout is not None
    assert found.layout.header_bytes == n_bytes
    assert found.layout.total_bytes == len(stream)


@pytest.mark.parametrize(
    "wrap",
    [
        bytes,
        bytearray,
        memoryview,
        lambda b: np.frombuffer(b, np.uint8),
        lambda b: np.frombuffer(b, np.int8),
        lambda b: np.frombuffer(b, np.uint8).repeat(2)[::2],
        lambda b: memoryview(bytes(x for pair in zip(b, b, strict=True) for x in pair))[::2],
        lambda b: np.frombuffer(b, np.uint8).reshape(1, -1),
    ],
)
def test_any_buffer_is_read(wrap):
    stream, header = GOLDEN["tree in padding"]
    assert_same(read_stream(wrap(stream), max_decoded_bytes=LIMIT), header)


def test_what_is_no_buffer_is_a_type_error():
    with pytest.raises(TypeError):
        read_stream("TINC", max_decoded_bytes=LIMIT)


def test_sections_are_views_and_cannot_be_written():
    stream = bytearray(GOLDEN["tree in padding"][0])
    body = read_stream(stream, max_decoded_bytes=LIMIT).sections[Section.TREE]
    assert isinstance(body, memoryview)
    assert body.readonly


@pytest.mark.parametrize("name", GOLDEN)
def test_every_truncation_is_called_one(name):
    stream, _ = GOLDEN[name]
    for n_bytes in range(len(stream)):
        with pytest.raises(TruncatedStreamError) as caught:
            read_stream(stream[:n_bytes], max_decoded_bytes=LIMIT)
        assert caught.value.needed is None or caught.value.needed > n_bytes


@pytest.mark.parametrize("name", GOLDEN)
def test_every_flipped_bit_is_noticed(name):
    stream, _ = GOLDEN[name]
    for position in range(len(stream)):
        for bit in range(8):
            damaged = bytearray(stream)
            damaged[position] ^= 1 << bit
            # A minor version is the reader's business only where the checksum holds.
            with pytest.raises(FormatError):
                read_stream(damaged, max_decoded_bytes=LIMIT)


@pytest.mark.parametrize("name", GOLDEN)
def test_every_byte_replaced_under_a_valid_checksum(name):
    stream, _ = GOLDEN[name]
    for position in range(len(stream) - 4):
        for value in range(256):
            mutated = bytearray(stream)
            mutated[position] = value
            assert_error_or_header(signed(mutated))


@settings(max_examples=300)
@given(headers(), st.data())
def test_spliced_streams_under_a_valid_checksum(header, data):
    stream = write_stream(header)
    start = data.draw(st.integers(0, len(stream) - 4))
    stop = data.draw(st.integers(start, min(start + 12, len(stream) - 4)))
    extra = st.one_of(st.binary(max_size=12), st.sampled_from([b"\xff" * 8 + b"\x7f", b"\xff" * 9]))
    spliced = stream[:start] + data.draw(extra) + stream[stop:]
    assert_error_or_header(signed(spliced))


@settings(max_examples=300)
@given(st.binary(max_size=80), st.booleans())
@example(b"", False)
@example(b"TIN", False)
@example(b"TINC", False)
@example(b"TINC\x01\x00", True)
def test_random_bytes(data, with_magic):
    assert_error_or_header(data)
    stream = b"TINC\x01\x00" * with_magic + data + bytes(4)
    assert_error_or_header(signed(stream))


def assert_error_or_header(stream: bytes) -> None:
    """Read a hostile stream; anything but a `FormatError` or a consistent header fails."""
    with contextlib.suppress(FormatError):
        read_header_only(stream)
    try:
        header = read_stream(stream, max_decoded_bytes=LIMIT)
    except FormatError:
        return
    assert header.info.size_bytes <= LIMIT
    assert all(
        1 <= e <= n for e, n in zip(header.info.valid_extent, header.info.shape, strict=True)
    )
    assert header.layout is not None
    assert header.layout.total_bytes == len(stream)
    # Whatever is accepted is the one encoding of what it says.
    assert header.version != (1, lowest_minor(header)) or write_stream(header) == stream


def test_absurd_sizes_are_refused_without_allocating():
    with AllocationMeter() as meter:
        for shape in [(2**40,), (2**62, 2**62, 2**62), (MAX_VARINT,) * 5, (2**16, 2**16, 2)]:
            stream = write_stream(Header(info_of("<f4", shape), 40.0, 1.0, {Section.TREE: b"x"}))
            with pytest.raises(LimitError, match="max_decoded_bytes"):
                read_stream(stream, max_decoded_bytes=LIMIT)
            assert read_header_only(stream).info.shape == shape
    assert meter.peak_bytes < 1 << 20


def test_the_limit_is_the_decoded_size():
    stream = write_stream(Header(info_of("<f4", (10, 10)), 40.0, 1.0, {Section.TREE: b"x"}))
    read_stream(stream, max_decoded_bytes=400)
    with pytest.raises(LimitError):
        read_stream(stream, max_decoded_bytes=399)


def test_a_section_longer_than_the_stream_is_truncation():
    content = bytearray(GOLDEN["masked"][0])
    table = content.index(b"\x02\x01\x02\x02\x01\x04\x08")
    content[table + 4 : table + 5] = write_varint(MAX_VARINT)
    with pytest.raises(TruncatedStreamError) as caught:
        read_stream(signed(content), max_decoded_bytes=LIMIT)
    assert caught.value.needed > MAX_VARINT


@pytest.mark.parametrize("name", GOLDEN)
def test_trailing_bytes_are_refused(name):
    stream, _ = GOLDEN[name]
    for tail in (b"\x00", b"TINC", bytes(1000)):
        with pytest.raises(CorruptStreamError):
            read_stream(stream + tail, max_decoded_bytes=LIMIT)
        with pytest.raises(CorruptStreamError, match="follow"):
            read_stream(signed(stream[:-4] + tail + bytes(4)), max_decoded_bytes=LIMIT)


def masked_with(position: int, value: bytes, length: int = 1) -> bytes:
    content = bytearray(GOLDEN["masked"][0])
    content[position : position + length] = value
    return signed(content)


def models_with(position: int, value: bytes, length: int = 1) -> bytes:
    content = bytearray(GOLDEN["all models"][0])
    content[position : position + length] = value
    return signed(content)


def filtered_with(position: int, value: bytes, length: int = 1) -> bytes:
    content = bytearray(GOLDEN["filtered"][0])
    content[position : position + length] = value
    return signed(content)


def lattice_with(position: int, value: bytes, length: int = 1) -> bytes:
    content = bytearray(GOLDEN["lattice"][0])
    content[position : position + length] = value
    return signed(content)


MAJOR_AT, MINOR_AT, FLAGS_AT, DTYPE_AT, NDIM_AT, SHAPE_AT, MIN_AT, MAX_AT, PSNR_AT, ERROR_AT = (
    4, 5, 6, 7, 8, 9, 10, 14, 18, 22
)  # fmt: skip
COUNT_AT = 26
MAX_AT_MODELS, COUNT_AT_MODELS = 12, 21
NAN, INFINITY = struct.pack("<f", math.nan), struct.pack("<f", math.inf)


@pytest.mark.parametrize(
    ("stream", "error", "message"),
    [
        (masked_with(0, b"X"), CorruptStreamError, "magic"),
        (masked_with(MAJOR_AT, b"\x00"), CorruptStreamError, "major version"),
        (masked_with(MAJOR_AT, b"\x02"), UnsupportedVersionError, "newer"),
        (masked_with(FLAGS_AT, b"\x14"), CorruptStreamError, "flags"),
        (masked_with(FLAGS_AT, b"\x00"), CorruptStreamError, "flags"),
        (masked_with(DTYPE_AT, b"\x00"), CorruptStreamError, "dtype"),
        (masked_with(DTYPE_AT, b"\x0a"), CorruptStreamError, "dtype"),
        (masked_with(DTYPE_AT, b"\x81"), CorruptStreamError, "dtype"),
        (masked_with(DTYPE_AT, b"\x06"), CorruptStreamError, "not finite"),
        (masked_with(NDIM_AT, b"\x00"), CorruptStreamError, "axes"),
        (masked_with(NDIM_AT, b"\x06"), CorruptStreamError, "axes"),
        (masked_with(SHAPE_AT, b"\x00"), CorruptStreamError, "size 0"),
        (masked_with(SHAPE_AT, b"\x85\x00"), CorruptStreamError, "longer than its value"),
        (masked_with(SHAPE_AT, b"\xff" * 9 + b"\x01"), CorruptStreamError, "longer than 9"),
        (masked_with(MIN_AT, NAN, 4), CorruptStreamError, "value range"),
        (masked_with(MAX_AT, INFINITY, 4), CorruptStreamError, "value range"),
        (masked_with(MAX_AT, struct.pack("<f", -2), 4), CorruptStreamError, "value range"),
        (masked_with(MAX_AT, struct.pack("<f", -1), 4), CorruptStreamError, "no model"),
        (masked_with(PSNR_AT, NAN, 4), CorruptStreamError, "psnr"),
        (masked_with(ERROR_AT, NAN, 4), CorruptStreamError, "max_error"),
        (masked_with(ERROR_AT, struct.pack("<f", -1), 4), CorruptStreamError, "max_error"),
        (masked_with(COUNT_AT, b"\x01\x01\x03", 5), CorruptStreamError, "a model"),
        (masked_with(COUNT_AT + 1, b"\x02"), CorruptStreamError, "increase"),
        (masked_with(COUNT_AT + 3, b"\x01"), CorruptStreamError, "increase"),
        (masked_with(COUNT_AT + 3, b"\x03"), CorruptStreamError, r"section id: 3 .* version 1\.0"),
        (masked_with(COUNT_AT + 3, b"\x04"), CorruptStreamError, r"section id: 4 .* version 1\.0"),
        (masked_with(COUNT_AT + 3, b"\x05"), CorruptStreamError, r"section id: 5 .* version 1\.0"),
        (masked_with(COUNT_AT + 3, b"\x06"), CorruptStreamError, r"section id: 6 .* version 1\.0"),
        (masked_with(COUNT_AT + 3, b"\x07"), UnsupportedVersionError, "section id"),
        (filtered_with(MINOR_AT, b"\x01"), CorruptStreamError, r"section id: 5 .* version 1\.1"),
        (
            filtered_with(COUNT_AT_MODELS + 5, b"\x06"),
            CorruptStreamError,
            r"section id: 6 .* version 1\.2",
        ),
        (filtered_with(COUNT_AT_MODELS + 5, b"\x07"), UnsupportedVersionError, "section id: 7"),
        (lattice_with(MINOR_AT, b"\x02"), CorruptStreamError, r"section id: 6 .* version 1\.2"),
        (lattice_with(COUNT_AT + 3, b"\x07"), UnsupportedVersionError, "section id: 7"),
        (lattice_with(MAX_AT, struct.pack("<f", -1), 4), CorruptStreamError, "no model"),
        (lattice_with(COUNT_AT + 4, b"\x00"), CorruptStreamError, "at least 1"),
        (lattice_with(COUNT_AT, b"\x01\x06\x03", 5), CorruptStreamError, "mask"),
        (filtered_with(COUNT_AT_MODELS, b"\x01\x05\x06", 7), CorruptStreamError, "need.* a model"),
        (filtered_with(MAX_AT_MODELS, b"\x03"), CorruptStreamError, "no model"),
        (filtered_with(COUNT_AT_MODELS + 6, b"\x00"), CorruptStreamError, "at least 1"),
        (models_with(COUNT_AT_MODELS + 1, b"\x01"), CorruptStreamError, "mask bit"),
        (models_with(COUNT_AT_MODELS, b"\x01\x04\x06", 7), CorruptStreamError, "need a model"),
        (models_with(MAX_AT_MODELS, b"\x03"), CorruptStreamError, "no model"),
        (models_with(COUNT_AT_MODELS + 4, b"\x00"), CorruptStreamError, "at least 1"),
        (models_with(FLAGS_AT, b"\x10"), CorruptStreamError, "flags"),
        (masked_with(COUNT_AT + 1, b"\x00"), UnsupportedVersionError, "section id"),
        (masked_with(COUNT_AT + 2, b"\x00"), CorruptStreamError, "at least 1"),
    ],
)
def test_what_the_document_says_is_rejected(stream, error, message):
    with pytest.raises(error, match=message):
        read_stream(stream, max_decoded_bytes=LIMIT)


@pytest.mark.parametrize("extent", [b"\x00\x03", b"\xac\x02\x03", b"\xad\x02\x01", b"\x01\x04"])
def test_impossible_extents_are_rejected(extent):
    content = bytearray(GOLDEN["tree in padding"][0])
    content[12:15] = extent
    with pytest.raises(CorruptStreamError, match="extent"):
        read_stream(signed(content), max_decoded_bytes=LIMIT)


@pytest.mark.parametrize("name", ["all models", "filtered"])
def test_a_lattice_stands_alone(name):
    """In place of the last section, and of the one before it too."""
    content = bytearray(GOLDEN[name][0])
    content[MINOR_AT] = 3
    content[COUNT_AT_MODELS + 5] = Section.LATTICE
    with pytest.raises(CorruptStreamError, match="a lattice stands for all voxels"):
        read_stream(signed(content), max_decoded_bytes=LIMIT)
    first = content[COUNT_AT_MODELS + 1 : COUNT_AT_MODELS + 3]
    # Two sections: the first of the models, of one or two bytes, and the lattice.
    last = bytes([Section.LATTICE, 6 - first[1]])
    content[COUNT_AT_MODELS : COUNT_AT_MODELS + 7] = b"\x02" + first + last
    with pytest.raises(CorruptStreamError, match="a lattice stands for all voxels"):
        read_stream(signed(content), max_decoded_bytes=LIMIT)


@pytest.mark.parametrize(
    "section", [Section.TREE, Section.FEATURES, Section.CORRECTIONS, Section.POSTFILTER]
)
def test_a_lattice_is_not_written_beside_another_model(section):
    sections = {Section.LATTICE: b"x", section: b"y"}
    with pytest.raises(ValueError, match="header: a lattice stands for all voxels"):
        write_stream(Header(info_of("<f4", (4,)), 40.0, 1.0, sections))


@pytest.mark.parametrize("section", [Section.TREE, Section.FEATURES, Section.LATTICE])
def test_a_chunk_without_finite_voxels_has_a_mask_and_no_model(section):
    content = bytearray(GOLDEN["no finite voxel"][0])
    content[MINOR_AT] = 3
    content[18:22] = b"\x02\x01\x01" + bytes([section]) + b"\x01\x01\xff"
    with pytest.raises(CorruptStreamError, match="a mask and no model"):
        read_stream(signed(content), max_decoded_bytes=LIMIT)


def test_a_minor_version_above_the_lowest_possible_is_accepted():
    for minor in (1, 2, 3):
        found = read_stream(masked_with(MINOR_AT, bytes([minor])), max_decoded_bytes=LIMIT)
        assert found.version == (1, minor)


def test_a_newer_minor_version_is_read_as_far_as_it_is_known():
    newer = masked_with(MINOR_AT, b"\x07")
    assert read_stream(newer, max_decoded_bytes=LIMIT).version == (1, 7)
    for position, value in ((FLAGS_AT, 0x14), (DTYPE_AT, 0x0B), (COUNT_AT + 3, 9)):
        content = bytearray(newer)
        content[position] = value
        with pytest.raises(UnsupportedVersionError):
            read_stream(signed(content), max_decoded_bytes=LIMIT)


@pytest.mark.parametrize(
    "header",
    [
        Header(info_of("<f4", (4,)), 40.0, 1.0, {}),
        Header(info_of("<f4", (4,), 1, 1), 40.0, 1.0, {Section.TREE: b"x"}),
        Header(info_of("<f4", (4,)), 40.0, 1.0, {Section.TREE: b""}),
        Header(info_of("<u1", (4,)), 40.0, 1.0, {Section.MASK: b"\x01", Section.TREE: b"x"}),
        Header(info_of("<f4", (4,)), math.nan, 1.0, {Section.TREE: b"x"}),
        Header(info_of("<f4", (4,)), 40.0, math.nan, {Section.TREE: b"x"}),
        Header(info_of("<f4", (4,)), 40.0, -1.0, {Section.TREE: b"x"}),
        Header(info_of("<f4", (4,)), 40.0, 1.0, {Section.CORRECTIONS: b"x"}),
        Header(info_of("<f4", (4,)), 40.0, 1.0, {Section.POSTFILTER: b"x"}),
        Header(info_of("<f4", (4,), 1, 1), 40.0, 1.0, {Section.POSTFILTER: b"x"}),
        Header(info_of("<f4", (4,), 1, 1), 40.0, 1.0, {Section.FEATURES: b"x"}),
        Header(info_of("<f4", (4,), 1, 1), 40.0, 1.0, {Section.LATTICE: b"x"}),
        Header(info_of("<f4", (4,)), 40.0, 1.0, {Section.LATTICE: b""}),
        Header(info_of("<f4", (4,), 1, 1), 40.0, 1.0, {Section.CORRECTIONS: b"x"}),
        Header(info_of("<f4", (4,)), 40.0, 1.0, {Section.FEATURES: b"x", Section.CORRECTIONS: b""}),
        Header(info_of("<f4", (4,), 0, np.inf), 40.0, 1.0, {Section.TREE: b"x"}),
    ],
)
def test_a_header_that_no_reader_accepts_is_not_written(header):
    with pytest.raises(ValueError, match=r"header|section"):
        write_stream(header)


def test_unknown_sections_are_not_written():
    header = Header(info_of("<f4", (4,)), 40.0, 1.0, {Section.TREE: b"x", 7: b"x"})
    with pytest.raises(ValueError, match="7"):
        write_stream(header)


def test_stored_quality_is_a_bound():
    header = Header(info_of("<f4", (4,)), 45.1, 0.1, {Section.TREE: b"x"})
    found = read_stream(write_stream(header), max_decoded_bytes=LIMIT)
    assert 45.0999 < found.psnr <= 45.1
    assert 0.1 <= found.max_error < 0.1000001
    beyond = dataclasses.replace(header, max_error=1e300)
    assert read_stream(write_stream(beyond), max_decoded_bytes=LIMIT).max_error == math.inf


@given(st.floats(allow_nan=False))
@example(1e-46)
@example(3.5e38)
def test_float32_bounds_enclose(value):
    low, high = float32_bound(value, -math.inf), float32_bound(value, math.inf)
    assert low <= value <= high
    assert np.float32(low) == low
    with np.errstate(over="ignore", under="ignore"):
        assert low == high or np.nextafter(np.float32(low), np.float32(math.inf)) == np.float32(
            high
        )


@given(st.integers(0, MAX_VARINT))
@example(0)
@example(127)
@example(128)
@example(MAX_VARINT)
def test_varints_come_back(value):
    data = write_varint(value)
    assert len(data) == varint_size(value)
    reader = ByteReader(byte_view(data + b"\x01"))
    assert reader.read_varint("value") == value
    assert reader.remaining == 1


@pytest.mark.parametrize("value", [-1, MAX_VARINT + 1])
def test_varints_out_of_range_are_not_written(value):
    with pytest.raises(ValueError, match="varint"):
        write_varint(value)


@given(st.binary(max_size=12))
def test_random_varints(data):
    reader = ByteReader(byte_view(data))
    try:
        value = reader.read_varint("value")
    except FormatError:
        return
    assert write_varint(value) == data[: reader.position]


def test_the_checksum_is_the_one_of_the_document():
    def crc_32c(data: bytes) -> int:
        crc = 0xFFFFFFFF
        for byte in data:
            crc ^= byte
            for _ in range(8):
                crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
        return crc ^ 0xFFFFFFFF

    for stream, _ in GOLDEN.values():
        assert struct.unpack("<I", stream[-4:])[0] == crc_32c(stream[:-4])


def test_layout_counts_everything():
    layout = Layout(31, {1: 5, 2: 300})
    assert layout.total_bytes == 31 + 305 + 4


def test_a_truncation_error_survives_pickling():
    error = pickle.loads(pickle.dumps(TruncatedStreamError("short", needed=12)))
    assert (str(error), error.needed) == ("short", 12)


def test_a_nan_with_payload_is_kept_as_pad_value():
    array = np.random.default_rng(0).random((6, 5)).astype(">f8")
    array.view(">u8")[4:] = 0x7FF00000DEADBEEF
    info, _ = analyse(array)
    stream = write_stream(Header(info, 40.0, 1.0, {Section.TREE: b"x"}))
    found = read_stream(stream, max_decoded_bytes=LIMIT).info
    assert np.asarray(found.pad_value).view(np.uint64) == 0x7FF00000DEADBEEF
