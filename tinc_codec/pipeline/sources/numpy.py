"""NumPy files: `.npy`, and `.npz` with one array or one that is named."""

import io
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from tinc_codec.errors import ConfigError
from tinc_codec.pipeline.metadata import default_axes, plain_info
from tinc_codec.pipeline.sources.boxes import RawArray, check_room
from tinc_codec.pipeline.sources.choice import choose
from tinc_codec.pipeline.sources.files import ByteRanges, open_file, stem
from tinc_codec.pipeline.sources.spool import SpooledFile
from tinc_codec.pipeline.volumes import Volume
from tinc_codec.volume.support import check_supported

__all__ = ["open_numpy"]

# NumPy itself refuses to parse longer headers.
_HEADER_BYTES = 10_240
_LOCAL_HEADER_BYTES = 30


@dataclass(frozen=True)
class _Header:
    offset: int
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    fortran: bool


def open_numpy(
    location: str,
    storage_options: Mapping[str, Any] | None = None,
    variable: str | None = None,
) -> Volume:
    """Open a `.npy` file, or an array of a `.npz` file; nothing but headers are read.

    A `.npz` that is not compressed (`numpy.savez`) is read where it lies; one that is
    (`numpy.savez_compressed`) is unpacked into a temporary file when it is first read.

    Raises
    ------
    ConfigError
        If it is no such file, or shorter than its header says; if `variable` is needed, or is
        not there.
    UnsupportedDataError
        If the codec does not store such arrays.
    """
    if location.split("?")[0].lower().endswith(".npz"):
        return _open_npz(location, storage_options, variable)
    if variable is not None:
        raise ConfigError(f"{location} is one array; it has no {variable!r}")
    file = open_file(location, storage_options)
    header = _read_header(bytes(file.read(0, min(_HEADER_BYTES, file.size_bytes))), location)
    check_supported(header.dtype, header.shape)
    check_room(location, header.offset, header.dtype, header.shape, file.size_bytes)
    return _volume(file, 0, header, stem(location), file.identity)


def _open_npz(
    location: str, storage_options: Mapping[str, Any] | None, variable: str | None
) -> Volume:
    file = open_file(location, storage_options)
    try:
        with file.open() as stream, zipfile.ZipFile(stream) as archive:
            members = {
                entry.filename.removesuffix(".npy"): entry
                for entry in archive.infolist()
                if entry.filename.endswith(".npy")
            }
            headers = {}
            for name, entry in members.items():
                with archive.open(entry) as opened:
                    headers[name] = _read_header(opened.read(_HEADER_BYTES), f"{location}: {name}")
    except zipfile.BadZipFile as error:
        raise ConfigError(f"{location} is no .npz file: {error}") from None
    chosen = choose(
        location, {name: (found.shape, found.dtype) for name, found in headers.items()}, variable
    )
    entry, header = members[chosen], headers[chosen]
    check_supported(header.dtype, header.shape)
    check_room(f"{location}: {chosen}", header.offset, header.dtype, header.shape, entry.file_size)
    name = stem(location) if len(members) == 1 else f"{stem(location)}_{chosen}"
    identity = file.identity | {"variable": chosen, "crc": entry.CRC}
    if entry.compress_type != zipfile.ZIP_STORED:
        spooled = SpooledFile(file, entry.filename, entry.file_size)
        return _volume(spooled, 0, header, name, identity)
    start = entry.header_offset
    local = file.read(start, start + _LOCAL_HEADER_BYTES)
    lengths = int.from_bytes(local[26:28], "little") + int.from_bytes(local[28:30], "little")
    return _volume(file, start + _LOCAL_HEADER_BYTES + lengths, header, name, identity)


def _volume(
    file: ByteRanges, start: int, header: _Header, name: str, identity: Mapping[str, Any]
) -> Volume:
    array = RawArray(file, start + header.offset, header.dtype, header.shape, header.fortran)
    info = plain_info(name, default_axes(len(header.shape)))
    facts = {"shape": list(array.shape), "dtype": array.dtype.str}
    return Volume(array, info, {**identity, **facts})


def _read_header(head: bytes, location: str) -> _Header:
    stream = io.BytesIO(head)
    try:
        version = np.lib.format.read_magic(stream)
        if version == (1, 0):
            shape, fortran, dtype = np.lib.format.read_array_header_1_0(stream)
        else:
            # Version 3 differs in the encoding of the names of fields, which are refused anyway.
            shape, fortran, dtype = np.lib.format.read_array_header_2_0(stream)
    except ValueError as error:
        raise ConfigError(f"{location} is no .npy file: {error}") from None
    return _Header(stream.tell(), dtype, tuple(int(size) for size in shape), fortran)
