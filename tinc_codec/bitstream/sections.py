"""The table of sections: what a stream contains, in which order, and how long each part is."""

from collections.abc import Mapping
from enum import IntEnum

from tinc_codec.bitstream.reader import ByteReader
from tinc_codec.bitstream.varint import write_varint
from tinc_codec.errors import CorruptStreamError, UnsupportedVersionError


class Section(IntEnum):
    """Numbers of the sections, for ever.

    References
    ----------
    `docs/format.md` §4
    """

    MASK = 1
    TREE = 2
    FEATURES = 3
    CORRECTIONS = 4
    POSTFILTER = 5
    LATTICE = 6


KNOWN_SECTIONS = frozenset(Section)
SINCE_MINOR = {
    Section.MASK: 0,
    Section.TREE: 0,
    Section.FEATURES: 1,
    Section.CORRECTIONS: 1,
    Section.POSTFILTER: 2,
    Section.LATTICE: 3,
}
"""The minor version with which each section came."""
TILES_FLAG = 4
"""In the third byte of a features section: what it holds is coded in tiles."""
_FLAGS_AT = 2
_TILES_MINOR = 4
MODEL_SECTIONS = frozenset({Section.TREE, Section.FEATURES, Section.LATTICE})
"""One of them at least stands for the voxels of a chunk that is not constant."""


def has_tiles(features: bytes | memoryview) -> bool:
    """Say whether a features section is coded in tiles; not, where it is too short to say.

    References
    ----------
    `docs/format.md` §9.2
    """
    return len(features) > _FLAGS_AT and bool(features[_FLAGS_AT] & TILES_FLAG)


def minor_of(section_id: int, body: bytes | memoryview) -> int:
    """Return the minor version with which what a section uses came."""
    if section_id == Section.FEATURES and has_tiles(body):
        return _TILES_MINOR
    return SINCE_MINOR[Section(section_id)]


def write_section_table(section_bytes: Mapping[int, int]) -> bytes:
    """Encode which sections follow.

    Parameters
    ----------
    section_bytes : mapping of int to int
        Length in bytes per section id.

    Raises
    ------
    ValueError
        If an id is unknown.
    """
    unknown = sorted(set(section_bytes) - KNOWN_SECTIONS)
    if unknown:
        raise ValueError(f"section id: {unknown} not in {sorted(map(int, KNOWN_SECTIONS))}")
    out = bytearray([len(section_bytes)])
    for section_id in sorted(section_bytes):
        out.append(section_id)
        out += write_varint(section_bytes[section_id])
    return bytes(out)


def read_section_table(reader: ByteReader) -> dict[int, int]:
    """Decode which sections follow, in order; the twin of `write_section_table`.

    Returns
    -------
    dict of int to int
        Length in bytes, at least 1, per section id.

    Raises
    ------
    UnsupportedVersionError
        If a section is not one this reader knows.
    CorruptStreamError
        If ids repeat or descend, or a section is empty.
    TruncatedStreamError
        If the table is cut off.

    References
    ----------
    `docs/format.md` §4
    """
    section_bytes: dict[int, int] = {}
    previous = 0
    for _ in range(reader.read_u8("section count")):
        section_id = reader.read_u8("section id")
        if section_id not in KNOWN_SECTIONS:
            raise UnsupportedVersionError(
                f"section id: {section_id} is unknown to this reader "
                f"(known: {sorted(map(int, KNOWN_SECTIONS))}); a newer tinc_codec may read it"
            )
        if section_id <= previous:
            raise CorruptStreamError(f"section id: {section_id} after {previous}, must increase")
        previous = section_id
        section_bytes[section_id] = reader.read_varint(f"length of section {section_id}")
        if section_bytes[section_id] == 0:
            raise CorruptStreamError(f"length of section {section_id}: 0, must be at least 1")
    return section_bytes
