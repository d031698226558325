"""NIfTI-1 and NIfTI-2 in one file: `.nii`, and `.nii.gz`."""

import gzip
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from tinc_codec.errors import ConfigError
from tinc_codec.pipeline.metadata import AXES, plain_info
from tinc_codec.pipeline.sources.boxes import RawArray, check_room
from tinc_codec.pipeline.sources.extras import import_extra
from tinc_codec.pipeline.sources.files import ByteRanges, SourceFile, open_file, stem
from tinc_codec.pipeline.sources.spool import SpooledFile
from tinc_codec.pipeline.sources.views import AxesView
from tinc_codec.pipeline.volumes import LazyArray, Volume, VolumeInfo
from tinc_codec.volume.support import check_supported

__all__ = ["SPACE_UNITS", "TIME_UNITS", "open_nifti"]

# Header and the flag of extensions; NIfTI-2 is the longer one.
_HEADER_BYTES = 544
_NIFTI2_HEADER_BYTES = 540
# x, y, z, t, and one more that holds components: axes of a file in Fortran order.
_FILE_AXES = ("x", "y", "z", "t", "c")

SPACE_UNITS = {"meter": "meter", "mm": "millimeter", "micron": "micrometer"}
TIME_UNITS = {"sec": "second", "msec": "millisecond", "usec": "microsecond"}


def open_nifti(
    location: str,
    storage_options: Mapping[str, Any] | None = None,
    variable: str | None = None,
) -> Volume:
    """Open a NIfTI file; nothing but its header is read.

    Voxels come as they are stored, seen as (t, c, z, y, x); slope and intercept become the
    attributes `scale_factor` and `add_offset`, the affine and the rest of the header the
    attribute `nifti`. A `.gz` is unpacked into a temporary file when it is first read.

    Raises
    ------
    ConfigError
        If it is no such file, or shorter than its header says.
    UnsupportedDataError
        If the codec does not store such arrays.
    """
    if variable is not None:
        raise ConfigError(f"{location} is one array; it has no {variable!r}")
    nibabel = import_extra("nibabel", "nifti")
    file = open_file(location, storage_options)
    packed = location.split("?")[0].lower().endswith(".gz")
    head = (
        _unpacked_head(file) if packed else bytes(file.read(0, min(_HEADER_BYTES, file.size_bytes)))
    )
    header = _parse(nibabel, head, location)
    dtype = header.get_data_dtype()
    shape = tuple(int(size) for size in header.get_data_shape())
    check_supported(dtype, shape[:5])
    offset = int(header.get_data_offset())
    size_bytes = offset + int(np.prod(shape, dtype=object)) * dtype.itemsize
    source: ByteRanges
    if packed:
        source = SpooledFile(file, None, size_bytes)
    else:
        check_room(location, offset, dtype, shape, file.size_bytes)
        source = file
    array, axes = _ordered(RawArray(source, offset, dtype, shape[::-1]), location)
    facts = {"shape": list(array.shape), "dtype": array.dtype.str}
    return Volume(array, _info(header, stem(location), axes), {**file.identity, **facts})


def _unpacked_head(file: SourceFile) -> bytes:
    try:
        with file.open() as stream, gzip.open(stream) as unpacked:
            return unpacked.read(_HEADER_BYTES)
    except (EOFError, OSError, zlib.error) as error:
        raise ConfigError(f"{file.location} cannot be unpacked: {error}") from None


def _parse(nibabel: Any, head: bytes, location: str) -> Any:
    sizes = {int.from_bytes(head[:4], order) for order in ("little", "big")}
    kind = nibabel.Nifti2Header if _NIFTI2_HEADER_BYTES in sizes else nibabel.Nifti1Header
    try:
        header = kind(head[: kind.template_dtype.itemsize])
        if header["magic"].item().rstrip(b"\0")[:2] != b"n+":
            raise ConfigError(f"{location} is no NIfTI file that holds its voxels (.nii)")
        header.get_data_dtype()
        return header
    except (
        ValueError,
        nibabel.spatialimages.HeaderDataError,
        nibabel.wrapstruct.WrapStructError,
    ) as error:
        raise ConfigError(f"{location} is no NIfTI file: {error}") from None


def _ordered(array: RawArray, location: str) -> tuple[LazyArray, tuple[str, ...]]:
    """Leave out axes of one voxel beyond space, and put components before z."""
    ndim = len(array.shape)
    in_file = range(ndim)
    # The file's first axis is the last of the array.
    kept = [axis for axis in in_file if axis < 3 or array.shape[ndim - 1 - axis] > 1]
    if kept and kept[-1] >= len(_FILE_AXES):
        raise ConfigError(
            f"{location} has {ndim} axes of shape {array.shape[::-1]}; at most 5 are understood"
        )
    names = {_FILE_AXES[axis]: ndim - 1 - axis for axis in kept}
    axes = tuple(name for name in AXES if name in names)
    order = tuple(names[name] for name in axes)
    if order == tuple(range(ndim)):
        return array, axes
    return AxesView(array, order), axes


def _info(header: Any, name: str, axes: tuple[str, ...]) -> VolumeInfo:
    space, time = header.get_xyzt_units()
    # The shortest decimal that is the same float32: 1.2, not 1.2000000476837158.
    zooms = [float(str(zoom)) for zoom in header.get_zooms()]
    scale = dict(zip(_FILE_AXES[:4], zooms, strict=False))
    affine = header.get_best_affine()
    linear = affine[:3, :3]
    translation = {}
    if np.all(np.diag(linear) > 0) and np.allclose(linear, np.diag(np.diag(linear)), atol=1e-6):
        # Only where axes point where the affine's do can a place along an axis be told.
        translation = dict(zip("xyz", affine[:3, 3].tolist(), strict=True))
    if "t" in axes:
        translation["t"] = float(header["toffset"])
    units = dict.fromkeys("xyz", SPACE_UNITS.get(space)) | {"t": TIME_UNITS.get(time)}
    return plain_info(
        name,
        axes,
        scale=scale,
        translation=translation,
        units=units,
        attributes=_attributes(header, affine),
    )


def _attributes(header: Any, affine: np.ndarray[Any, Any]) -> dict[str, Any]:
    attributes: dict[str, Any] = {}
    slope, intercept = header.get_slope_inter()
    if slope is not None and (slope, intercept) != (1.0, 0.0):
        attributes |= {"scale_factor": float(slope), "add_offset": float(intercept)}
    qform, qform_code = header.get_qform(coded=True)
    sform, sform_code = header.get_sform(coded=True)
    kept: dict[str, Any] = {"affine": affine, "xyzt_units": int(header["xyzt_units"])}
    if qform is not None:
        kept |= {"qform": qform, "qform_code": int(qform_code)}
    if sform is not None:
        kept |= {"sform": sform, "sform_code": int(sform_code)}
    for key in ("descrip", "intent_name", "aux_file"):
        text = header[key].item().decode("latin-1").rstrip("\0")
        if text:
            kept[key] = text
    for key in ("intent_code", "cal_min", "cal_max"):
        if header[key]:
            kept[key] = header[key].item()
    return attributes | {"nifti": kept}
