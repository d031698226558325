"""Which streams this version of the package writes and reads."""

from tinc_codec.bitstream.reader import ByteReader
from tinc_codec.errors import (
    CorruptStreamError,
    FormatError,
    TruncatedStreamError,
    UnsupportedVersionError,
)

MAGIC = b"TINC"
MAJOR = 1
MINOR = 4


def read_version(reader: ByteReader) -> tuple[int, int]:
    """Take magic and version off the start of a stream.

    Returns
    -------
    tuple of int
        (major, minor); a minor newer than `MINOR` is let through, since it is readable as long as
        what follows uses nothing unknown.

    Raises
    ------
    CorruptStreamError
        If it is no TINC stream, or of a major version that never existed.
    TruncatedStreamError
        If it ends before the version does.
    UnsupportedVersionError
        If the major version is newer than this reader.

    References
    ----------
    `docs/format.md` §2, §6
    """
    found = bytes(reader.view[: len(MAGIC)])
    if not MAGIC.startswith(found):
        raise CorruptStreamError(f"magic: expected {MAGIC!r}, found {found!r}: no TINC stream")
    if len(found) < len(MAGIC):
        # Nothing shorter than magic, version and the next three bytes says anything.
        raise TruncatedStreamError(
            f"magic: {len(MAGIC)} bytes expected, {len(found)} found", needed=len(MAGIC) + 5
        )
    reader.read_bytes(len(MAGIC), "magic")
    major = reader.read_u8("major version")
    minor = reader.read_u8("minor version")
    if major > MAJOR:
        raise UnsupportedVersionError(
            f"version {major}.{minor} is newer than the {MAJOR}.x that this reader knows; "
            "a newer tinc_codec reads it"
        )
    if major < 1:
        raise CorruptStreamError(f"major version: {major} does not exist (1 to {MAJOR})")
    return major, minor


def unknown_value(message: str, version: tuple[int, int]) -> FormatError:
    """Make the error for a value that this reader has no meaning for.

    Parameters
    ----------
    message : str
    version : tuple of int
        Of the stream: one of a newer minor version may use values that came with it.

    References
    ----------
    `docs/format.md` §6
    """
    if version > (MAJOR, MINOR):
        return UnsupportedVersionError(
            f"{message} to this reader of {MAJOR}.{MINOR}; the stream is {version[0]}.{version[1]}"
        )
    return CorruptStreamError(message)
