"""HDF5 and NetCDF-4 variables."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np

from tinc_codec.errors import ConfigError
from tinc_codec.pipeline.sources.boxes import box_of
from tinc_codec.pipeline.sources.cf import Coordinate, info_from_cf, missing_values
from tinc_codec.pipeline.sources.choice import choose
from tinc_codec.pipeline.sources.extras import import_extra
from tinc_codec.pipeline.sources.files import SourceFile, open_file, stem
from tinc_codec.pipeline.sources.views import MissingAsNaN
from tinc_codec.pipeline.volumes import LazyArray, Volume
from tinc_codec.volume.support import check_supported

__all__ = ["open_hdf5"]

_SIGNATURE = b"\x89HDF\r\n\x1a\n"
_CLASSIC = (b"CDF\x01", b"CDF\x02", b"CDF\x05")
# Attributes that HDF5 and NetCDF keep their own books with.
_INTERNAL = ("DIMENSION_LIST", "REFERENCE_LIST", "CLASS", "NAME", "DIMENSION_LABELS")
_MAX_COORDINATES = 1 << 20


class Hdf5Array:
    """A variable; the file is opened for each box, without a lock on it, and closed again.

    Parameters
    ----------
    file : SourceFile
    path : str
        Of the variable in the file.
    shape : tuple of int
    stored : numpy.dtype
    """

    def __init__(
        self, file: SourceFile, path: str, shape: tuple[int, ...], stored: np.dtype[Any]
    ) -> None:
        self._file = file
        self._path = path
        self.shape = shape
        self._stored = stored

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of a voxel, in the byte order of this machine."""
        return self._stored.newbyteorder("=")

    def __getitem__(self, selection: tuple[slice, ...]) -> np.ndarray[Any, Any]:
        """Read a box; of compressed variables the chunks that it touches.

        Raises
        ------
        OSError
            If the file has gone, has changed or is damaged.
        """
        box = box_of(selection, self.shape)
        with _opened(self._file) as opened:
            try:
                part = opened[self._path][box]
            except KeyError as error:
                raise OSError(f"{self._file.location} has no {self._path} any more") from error
        return np.asarray(part, dtype=self.dtype)


@contextmanager
def _opened(file: SourceFile) -> Iterator[Any]:
    """Open a file as an h5py.File, without a lock on it."""
    h5py = import_extra("h5py", "hdf5")
    if file.storage_options is None:
        # Looks whether the file is still the one that was opened.
        file.read(0, 0)
        with h5py.File(file.location, "r", locking=False) as opened:
            yield opened
    else:
        with file.open() as stream, h5py.File(stream, "r") as opened:
            yield opened


def open_hdf5(
    location: str,
    storage_options: Mapping[str, Any] | None = None,
    variable: str | None = None,
) -> Volume:
    """Open a variable of an HDF5 or NetCDF-4 file.

    Raises
    ------
    ConfigError
        If it is no such file, or `variable` is needed or not there.
    UnsupportedDataError
        If the codec does not store such arrays.
    """
    h5py = import_extra("h5py", "hdf5")
    file = open_file(location, storage_options)
    head = bytes(file.read(0, min(8, file.size_bytes)))
    if head[:4] in _CLASSIC:
        raise ConfigError(
            f"{location} is of the classic NetCDF format, which is not HDF5: convert it "
            "(nccopy -4), or open it with xarray and pass the DataArray"
        )
    try:
        with _opened(file) as opened:
            return _open_variable(h5py, opened, file, variable)
    except OSError as error:
        if head != _SIGNATURE:
            raise ConfigError(f"{location} is no HDF5 file: {error}") from error
        raise


def _open_variable(h5py: Any, opened: Any, file: SourceFile, variable: str | None) -> Volume:
    datasets: dict[str, Any] = {}

    def visit(name: str, node: Any) -> None:
        if isinstance(node, h5py.Dataset):
            datasets[name] = node

    opened.visititems(visit)
    facts = {
        name: (node.shape or (), node.dtype)
        for name, node in datasets.items()
        if variable is not None or not node.is_scale
    }
    path = choose(file.location, facts, variable)
    dataset = datasets[path]
    check_supported(dataset.dtype, dataset.shape)
    attributes = {
        str(key): _value(dataset, key)
        for key in dataset.attrs
        if key not in _INTERNAL and not key.startswith(("_Netcdf4", "_nc3", "_NC"))
    }
    dimensions, coordinates = _dimensions(h5py, dataset)
    name = stem(file.location)
    if len(facts) > 1:
        name = f"{name}_{path.replace('/', '_')}"
    info = info_from_cf(name, dataset.ndim, dimensions, coordinates, attributes)
    array: LazyArray = Hdf5Array(file, path, tuple(dataset.shape), dataset.dtype)
    missing = missing_values(attributes, dataset.dtype)
    if missing:
        array = MissingAsNaN(array, missing)
    identity = {
        **file.identity,
        "variable": path,
        "shape": list(array.shape),
        "dtype": array.dtype.str,
    }
    return Volume(array, info, identity, dataset.chunks)


def _value(dataset: Any, key: str) -> Any:
    try:
        value = dataset.attrs[key]
    except (OSError, TypeError):
        # A type that h5py has no name for.
        return None
    # NetCDF keeps most scalars as arrays of one.
    return value[0] if isinstance(value, np.ndarray) and value.shape == (1,) else value


def _dimensions(h5py: Any, dataset: Any) -> tuple[tuple[str, ...] | None, dict[str, Coordinate]]:
    names: list[str] = []
    coordinates = {}
    for dimension in dataset.dims:
        scales = list(dimension.values())
        if not scales and not dimension.label:
            return None, {}
        name = str(dimension.label or scales[0].name.rpartition("/")[2])
        names.append(name)
        if scales and scales[0].ndim == 1 and scales[0].size <= _MAX_COORDINATES:
            scale = scales[0]
            label = scale.attrs.get("NAME", b"")
            if isinstance(label, bytes) and label.startswith(b"This is a netCDF dimension"):
                # A length without coordinates.
                continue
            attributes = {
                key: _value(scale, key) for key in ("units", "axis") if key in scale.attrs
            }
            coordinates[name] = Coordinate(scale[:], attributes)
    return tuple(names), coordinates
