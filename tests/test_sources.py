"""Sources: every kind of file and array is read box by box, as it is, and never written."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import fsspec
import numpy as np
import pytest

from tests.servers import BUCKET, Recorder, http_server, s3_server
from tinc_codec import ConfigError, UnsupportedDataError
from tinc_codec.pipeline.metadata import (
    cf_attributes,
    default_axes,
    info_from_ome,
    json_ready,
    ome_attributes,
    plain_info,
    unit_name,
)
from tinc_codec.pipeline.sources import open_source
from tinc_codec.pipeline.sources.boxes import RawArray, box_of
from tinc_codec.pipeline.sources.files import SourceFile, open_file
from tinc_codec.pipeline.volumes import Volume

zarr = pytest.importorskip("zarr", minversion="3.1")
nibabel = pytest.importorskip("nibabel")
tifffile = pytest.importorskip("tifffile")
h5py = pytest.importorskip("h5py")

SHAPE = (20, 30, 40)
BOX = (slice(3, 9), slice(5, 25), slice(7, 11))


def voxels(shape: tuple[int, ...] = SHAPE, dtype: str = "u2") -> np.ndarray:
    """Values that say where they are."""
    found = np.random.default_rng(0).integers(0, 30_000, shape)
    return found.astype(dtype)


def boxes_of(shape: tuple[int, ...]) -> Iterator[tuple[slice, ...]]:
    yield tuple(slice(None) for _ in shape)
    yield tuple(slice(size // 3, size // 2 + 1) for size in shape)
    yield tuple(slice(size - 1, size) for size in shape)
    yield (slice(0, 0), *(slice(None) for _ in shape[1:]))
    # A plane in each direction.
    for axis, size in enumerate(shape):
        yield tuple(
            slice(size // 2, size // 2 + 1) if i == axis else slice(None) for i in range(len(shape))
        )


def check(volume: Volume, expected: np.ndarray) -> Volume:
    """Compare all boxes, read by a copy as another process would have it."""
    array = pickle.loads(pickle.dumps(volume)).array
    assert array.shape == expected.shape
    assert array.dtype == expected.dtype.newbyteorder("=")
    for box in boxes_of(expected.shape):
        found = array[box]
        assert found.dtype == array.dtype
        np.testing.assert_array_equal(found, expected[box], strict=True)
    json.dumps(dict(volume.identity), allow_nan=False)
    json.dumps(dict(volume.info.attributes), allow_nan=False)
    assert len(volume.info.axes) == len(volume.info.scale) == len(volume.info.units)
    assert len(volume.info.axes) == len(volume.info.translation) == expected.ndim
    assert volume.chunks is None or len(volume.chunks) == expected.ndim
    return volume


@pytest.fixture
def spool(tmp_path, monkeypatch) -> Path:
    """A place of our own for what is unpacked."""
    folder = tmp_path / "spool"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def spooled(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob("*") if path.is_file()]


# NumPy


@pytest.mark.parametrize("dtype", ["u2", ">u2", "f4", ">f8", "i1"])
@pytest.mark.parametrize("fortran", [False, True])
def test_npy(tmp_path, dtype, fortran):
    expected = voxels(dtype="i1" if dtype == "i1" else "u2").astype(dtype)
    np.save(tmp_path / "a.npy", np.asfortranarray(expected) if fortran else expected)
    volume = check(
        open_source(tmp_path / "a.npy"), expected.astype(expected.dtype.newbyteorder("="))
    )
    assert volume.info == plain_info("a", ("z", "y", "x"))
    assert volume.identity["size_bytes"] == (tmp_path / "a.npy").stat().st_size


@pytest.mark.parametrize("shape", [(7, 9), (1, 1, 1), (3, 5, 7, 9), (2, 3, 1, 5, 6)])
def test_npy_of_other_axes(tmp_path, shape):
    np.save(tmp_path / "a.npy", voxels(shape))
    volume = check(open_source(str(tmp_path / "a.npy")), voxels(shape))
    assert volume.info.axes == {2: ("y", "x"), 3: ("z", "y", "x"), 4: ("t", "z", "y", "x")}.get(
        len(shape), ("t", "c", "z", "y", "x")
    )


def test_npz_that_is_not_compressed_is_read_where_it_lies(tmp_path, spool):
    np.savez(tmp_path / "a.npz", spacing=np.ones(3), volume=voxels())
    assert check(open_source(tmp_path / "a.npz"), voxels()).info.name == "a_volume"
    assert not spooled(spool)


def test_compressed_npz_is_unpacked_once_and_the_copy_goes_with_the_source(tmp_path, spool):
    np.savez_compressed(tmp_path / "a.npz", volume=voxels())
    volume = check(open_source(tmp_path / "a.npz"), voxels())
    (raw,) = [name for name in spooled(spool) if name.endswith(".raw")]
    (path,) = spool.rglob(raw)
    assert path.stat().st_size == voxels().nbytes + 128
    assert path.stat().st_mode & 0o022 == 0
    assert path.parent.stat().st_mode & 0o077 == 0
    written = path.stat().st_mtime_ns
    check(volume, voxels())
    assert path.stat().st_mtime_ns == written
    del volume
    assert not spooled(spool)


def test_npz_with_several_arrays_needs_a_name(tmp_path):
    np.savez(tmp_path / "a.npz", left=voxels(), right=voxels() + 1)
    with pytest.raises(ConfigError, match=r"left \(20 × 30 × 40, uint16\), right .* choose one"):
        open_source(tmp_path / "a.npz")
    check(open_source(tmp_path / "a.npz", variable="right"), voxels() + 1)
    with pytest.raises(ConfigError, match="no array 'middle'; it has left"):
        open_source(tmp_path / "a.npz", variable="middle")


class Counting:
    """A file that remembers what was read of it."""

    def __init__(self, file: SourceFile, gap_bytes: int) -> None:
        self.file = file
        self.gap_bytes = gap_bytes
        self.read: list[tuple[int, int]] = []

    def read_ranges(self, ranges: Iterable[tuple[int, int]]) -> Iterator[bytes | bytearray]:
        ranges = list(ranges)
        self.read += ranges
        return self.file.read_ranges(ranges)


@pytest.mark.parametrize("gap_bytes", [0, 80, 2400, 1 << 20])
def test_only_about_the_box_is_read(tmp_path, gap_bytes):
    expected = voxels()
    expected.tofile(tmp_path / "raw")
    file = Counting(open_file(str(tmp_path / "raw")), gap_bytes)
    array = RawArray(file, 0, expected.dtype, expected.shape)
    np.testing.assert_array_equal(array[BOX], expected[BOX])
    wanted = expected[BOX].nbytes
    read = sum(stop - start for start, stop in file.read)
    gaps = {0: 0, 80: 6 * 19 * 72, 2400: 6 * 19 * 72 + 5 * 872, 1 << 20: 6 * 19 * 72 + 5 * 872}
    assert read == wanted + gaps[gap_bytes]
    assert len(file.read) == {0: 6 * 20, 80: 6, 2400: 1, 1 << 20: 1}[gap_bytes]
    # A whole plane is one piece, whatever the gap.
    file.read.clear()
    array[5:7, :, :]
    assert file.read == [(5 * 2400, 7 * 2400)]


def test_a_box_of_a_file_much_larger_than_memory(tmp_path):
    shape = (4096, 4096, 2048)
    with (tmp_path / "a.npy").open("wb") as stream:
        header = {"descr": "<u2", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(stream, header)
        offset = stream.tell()
        # A hole of 64 GiB, and one voxel in it.
        stream.seek(offset + 2 * np.ravel_multi_index((4000, 77, 1999), shape))
        stream.write(b"\x39\x30")
        stream.truncate(offset + 2 * int(np.prod(shape, dtype=object)))
    found = open_source(tmp_path / "a.npy").array[3990:4054, 64:128, 1984:2048]
    assert found.shape == (64, 64, 64)
    assert np.count_nonzero(found) == 1
    assert found[10, 13, 15] == 12345


def test_threads_and_processes_read_alike(tmp_path):
    expected = voxels()
    np.save(tmp_path / "a.npy", expected)
    tifffile.imwrite(tmp_path / "a.tif", expected, compression="zlib", tile=(16, 16))
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("v", data=expected, chunks=(5, 10, 10), compression="gzip")
    zarr.create_array(str(tmp_path / "a.zarr"), data=expected, chunks=(8, 8, 8))
    arrays = [open_source(tmp_path / name).array for name in ("a.npy", "a.tif", "a.h5", "a.zarr")]
    tasks = [(array, box) for array in arrays for box in boxes_of(SHAPE)] * 3
    with ThreadPoolExecutor(8) as pool:
        for (_, box), found in zip(tasks, pool.map(_read, tasks), strict=True):
            np.testing.assert_array_equal(found, expected[box])
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        tasks = [(array, BOX) for array in arrays]
        for found in pool.map(_read, tasks):
            np.testing.assert_array_equal(found, expected[BOX])


def _read(task):
    array, box = task
    return array[box]


# NIfTI

AFFINE = np.array([[-2, 0, 0, 90], [0, 2.5, 0, -126], [0, 0, 3, -72], [0, 0, 0, 1.0]])


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("kind", ["Nifti1Image", "Nifti2Image"])
def test_nifti(tmp_path, spool, suffix, kind):
    image = getattr(nibabel, kind)(voxels(dtype="i2").T, AFFINE)
    image.header.set_xyzt_units("mm", "sec")
    nibabel.save(image, tmp_path / f"a{suffix}")
    volume = check(open_source(tmp_path / f"a{suffix}"), voxels(dtype="i2"))
    assert volume.info.name == "a"
    assert volume.info.axes == ("z", "y", "x")
    assert volume.info.scale == (3.0, 2.5, 2.0)
    assert volume.info.units == ("millimeter",) * 3
    # The affine turns x round: where voxel 0 lies cannot be told along the axes.
    assert volume.info.translation == (0.0, 0.0, 0.0)
    assert volume.info.attributes["nifti"]["affine"] == AFFINE.tolist()
    assert bool(spooled(spool)) == (suffix == ".nii.gz")


def test_nifti_translation_along_the_axes(tmp_path):
    affine = np.diag([2.0, 2.5, 3.0, 1.0])
    affine[:3, 3] = 5, 6, 7
    nibabel.save(nibabel.Nifti1Image(voxels(dtype="f4").T, affine), tmp_path / "a.nii")
    info = check(open_source(tmp_path / "a.nii"), voxels(dtype="f4")).info
    assert info.translation == (7.0, 6.0, 5.0)
    assert info.units == (None, None, None)


@pytest.mark.parametrize(
    ("shape", "axes", "to_volume"),
    [
        ((4, 5, 6, 3), "tzyx", (3, 2, 1, 0)),
        ((4, 5, 6, 1, 3), "czyx", (4, 2, 1, 0, 3)),
        ((4, 5, 6, 2, 3), "tczyx", (3, 4, 2, 1, 0)),
        ((4, 5, 6, 1), "zyx", (2, 1, 0, 3)),
        ((4, 5), "yx", (1, 0)),
    ],
)
def test_nifti_axes(tmp_path, shape, axes, to_volume):
    stored = voxels(shape, "f4")
    image = nibabel.Nifti1Image(stored, AFFINE)
    if len(shape) > 3:
        image.header["pixdim"][4] = 0.5
        image.header.set_xyzt_units("micron", "msec")
    nibabel.save(image, tmp_path / "a.nii")
    expected = stored.transpose(to_volume)
    expected = expected.reshape(expected.shape[: len(axes)])
    info = check(open_source(tmp_path / "a.nii"), expected).info
    assert info.axes == tuple(axes)
    if axes[0] == "t":
        assert info.scale[0] == 0.5
        assert info.units[0] == "millisecond"
        assert info.units[-1] == "micrometer"


def test_nifti_slope_stays_an_attribute(tmp_path):
    image = nibabel.Nifti1Image(voxels(dtype="i2").T, AFFINE)
    image.header.set_slope_inter(0.5, -3)
    nibabel.save(image, tmp_path / "a.nii")
    stored = np.asarray(nibabel.load(tmp_path / "a.nii").dataobj.get_unscaled()).T
    attributes = check(open_source(tmp_path / "a.nii"), stored).info.attributes
    assert (attributes["scale_factor"], attributes["add_offset"]) == (0.5, -3.0)


def test_nifti_of_the_other_byte_order(tmp_path):
    header = nibabel.Nifti1Header(endianness=">")
    image = nibabel.Nifti1Image(voxels(dtype=">i2").T, AFFINE, header)
    image.set_data_dtype("i2")
    nibabel.save(image, tmp_path / "a.nii")
    assert (tmp_path / "a.nii").read_bytes()[:4] == b"\0\0\x01\x5c"
    check(open_source(tmp_path / "a.nii"), voxels(dtype="i2"))


# TIFF

PAGES = {
    "plain": {},
    "big endian": {"byteorder": ">"},
    "bigtiff": {"bigtiff": True},
    "deflate in strips": {"compression": "zlib", "predictor": True, "rowsperstrip": 7},
    "deflate in tiles": {"compression": "zlib", "tile": (16, 16)},
    "big endian tiles": {"compression": "zlib", "tile": (16, 16), "byteorder": ">"},
    "tiles": {"tile": (16, 16)},
    "tiles with depth": {"tile": (16, 16, 16), "volumetric": True, "compression": "zlib"},
    "lzw": {"compression": "lzw"},
    "zstd": {"compression": "zstd", "predictor": True},
}


@pytest.mark.parametrize("options", PAGES.values(), ids=PAGES)
def test_tiff(tmp_path, options):
    if options.get("compression") in ("lzw", "zstd"):
        pytest.importorskip("imagecodecs")
    tifffile.imwrite(tmp_path / "a.tif", voxels(), **options)
    volume = check(open_source(tmp_path / "a.tif"), voxels())
    assert volume.info == plain_info("a", ("z", "y", "x"))
    if "tile" in options:
        assert volume.chunks[-2:] == (16, 16)


def test_tiff_of_floats_of_single_pages_and_of_one_plane(tmp_path):
    expected = voxels(dtype="f4")
    tifffile.imwrite(tmp_path / "f.tif", expected, compression="zlib", predictor=3)
    check(open_source(tmp_path / "f.tif"), expected)
    with tifffile.TiffWriter(tmp_path / "pages.tif") as writer:
        for page in expected:
            writer.write(page, contiguous=False, metadata=None, description="a page")
    check(open_source(tmp_path / "pages.tif"), expected)
    tifffile.imwrite(tmp_path / "plane.tif", expected[0])
    assert check(open_source(tmp_path / "plane.tif"), expected[0]).info.axes == ("y", "x")


@pytest.mark.parametrize("order", ["TCZYX", "ZCTYX", "CZTYX"])
@pytest.mark.parametrize("compression", [None, "zlib"])
def test_ome_tiff(tmp_path, order, compression):
    expected = voxels((2, 3, 4, 20, 24), "u1")
    metadata = {
        "axes": order,
        "PhysicalSizeX": 0.5,
        "PhysicalSizeXUnit": "nm",
        "PhysicalSizeZ": 2.0,
        "TimeIncrement": 30.0,
        "TimeIncrementUnit": "ms",
        "Channel": {"Name": ["red", "green", "blue"]},
    }
    stored = expected.transpose(["TCZYX".index(letter) for letter in order])
    tifffile.imwrite(tmp_path / "a.ome.tif", stored, metadata=metadata, compression=compression)
    info = check(open_source(tmp_path / "a.ome.tif"), expected).info
    assert info.name == "a"
    assert info.axes == ("t", "c", "z", "y", "x")
    assert info.scale == (30.0, 1.0, 2.0, 1.0, 0.5)
    assert info.units == ("millisecond", None, "micrometer", None, "nanometer")
    assert info.attributes["channel_names"] == ["red", "green", "blue"]


def test_imagej_hyperstack(tmp_path):
    expected = voxels((2, 3, 4, 20, 24))
    metadata = {"axes": "TZCYX", "spacing": 3.0, "unit": "um", "finterval": 0.1}
    stored = np.ascontiguousarray(expected.swapaxes(1, 2))
    tifffile.imwrite(tmp_path / "a.tif", stored, imagej=True, resolution=(2, 4), metadata=metadata)
    info = check(open_source(tmp_path / "a.tif"), expected).info
    assert info.scale == (0.1, 1.0, 3.0, 0.25, 0.5)
    assert info.units == ("second", None) + ("micrometer",) * 3


def test_tiff_with_a_pyramid_gives_its_finest_level(tmp_path):
    options = {"tile": (16, 16), "compression": "zlib", "metadata": {"axes": "ZYX"}}
    with tifffile.TiffWriter(tmp_path / "a.ome.tif") as writer:
        writer.write(voxels(), subifds=1, **options)
        writer.write(voxels()[:, ::2, ::2], subfiletype=1, **options)
    check(open_source(tmp_path / "a.ome.tif"), voxels())


def test_tiff_with_several_series_needs_a_number(tmp_path):
    with tifffile.TiffWriter(tmp_path / "a.tif") as writer:
        writer.write(voxels())
        writer.write(voxels((3, 8, 8)), photometric="minisblack")
    with pytest.raises(ConfigError, match=r"0 \(20 × 30 × 40, uint16\), 1 \(3 × 8 × 8"):
        open_source(tmp_path / "a.tif")
    assert (
        check(open_source(tmp_path / "a.tif", variable="1"), voxels((3, 8, 8))).info.name == "a_1"
    )


@pytest.mark.parametrize("compression", [None, "zlib"])
def test_folder_and_pattern_of_slices(tmp_path, compression):
    folder = tmp_path / "slices"
    folder.mkdir()
    for index, plane in enumerate(voxels()):
        tifffile.imwrite(folder / f"s{index}.tif", plane, compression=compression)
    (folder / "notes.txt").write_text("not a slice")
    volume = check(open_source(folder), voxels())
    assert volume.info.name == "slices"
    assert volume.identity["files"] == 20
    assert (
        check(open_source(f"{folder}/s1*.tif"), voxels()[[1, *range(10, 20)]]).info.name == "slices"
    )
    os.utime(folder / "s7.tif", (1, 1))
    assert open_source(folder).identity != volume.identity
    with pytest.raises(OSError, match=r"s7.tif has changed"):
        volume.array[5:9, :, :]
    assert volume.array[10:12, :, :].shape == (2, 30, 40)
    tifffile.imwrite(folder / "s20.tif", voxels()[0, :10])
    with pytest.raises(ConfigError, match=r"s20.tif differs from .*s0.tif"):
        open_source(folder)


OME_FILES = """<?xml version="1.0" encoding="UTF-8"?>
<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" UUID="urn:uuid:{own}">
<Image ID="Image:0"><Pixels ID="Pixels:0" DimensionOrder="XYZCT" Type="uint16" SizeX="40"
SizeY="30" SizeZ="20" SizeC="1" SizeT="1" PhysicalSizeX="0.25"><Channel ID="Channel:0:0"/>
{parts}</Pixels></Image></OME>"""


@pytest.mark.parametrize("compression", [None, "zlib"])
def test_ome_tiff_of_several_files(tmp_path, compression):
    owners = [f"00000000-0000-0000-0000-00000000000{i}" for i in range(2)]
    parts = "".join(
        f'<TiffData IFD="{z % 10}" FirstZ="{z}" PlaneCount="1">'
        f'<UUID FileName="part{z // 10}.ome.tif">'
        f"urn:uuid:{owners[z // 10]}</UUID></TiffData>"
        for z in range(20)
    )
    for index, own in enumerate(owners):
        xml = OME_FILES.format(own=own, parts=parts)
        with tifffile.TiffWriter(tmp_path / f"part{index}.ome.tif", ome=False) as writer:
            for z, plane in enumerate(voxels()[10 * index : 10 * index + 10]):
                description = xml if z == 0 else None
                writer.write(
                    plane,
                    contiguous=False,
                    compression=compression,
                    metadata=None,
                    description=description,
                )
    volume = check(open_source(tmp_path / "part1.ome.tif"), voxels())
    assert volume.info.scale == (1.0, 1.0, 0.25)
    check(open_source(tmp_path), voxels())
    os.utime(tmp_path / "part0.ome.tif", (1, 1))
    assert open_source(tmp_path / "part1.ome.tif").identity != volume.identity


def test_colours_are_refused(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", voxels((5, 20, 20, 3), "u1"), photometric="rgb")
    with pytest.raises(UnsupportedDataError, match=r"colours \(3 samples .*split them"):
        open_source(tmp_path / "a.tif")


# HDF5 and NetCDF


@pytest.mark.parametrize("chunks", [None, (5, 10, 10)])
def test_hdf5(tmp_path, chunks):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        dataset = file.create_dataset("run/u", data=voxels(dtype=">u2"), chunks=chunks)
        dataset.attrs.update(units="m s-1", count=np.int16(3), origin=np.arange(3.0))
        dataset.attrs["nan"] = np.nan
        file["time"] = np.arange(3)
    volume = check(open_source(tmp_path / "a.h5"), voxels())
    assert volume.chunks == chunks
    assert volume.info.name == "a_run_u"
    assert volume.info.attributes == {"units": "m s-1", "count": 3, "origin": [0.0, 1.0, 2.0]}
    check(open_source(tmp_path / "a.h5", variable="/run/u"), voxels())


def test_hdf5_with_several_variables_needs_a_name(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["u"], file["v"], file["plane"] = voxels(), voxels() + 1, voxels((4, 5))
    with pytest.raises(ConfigError, match=r"u \(20 × 30 × 40, uint16\), v .*--variable"):
        open_source(tmp_path / "a.h5")
    check(open_source(tmp_path / "a.h5", variable="v"), voxels() + 1)
    check(open_source(tmp_path / "a.h5", variable="plane"), voxels((4, 5)))
    with pytest.raises(ConfigError, match="no array 'w'; it has plane"):
        open_source(tmp_path / "a.h5", variable="w")


def test_hdf5_is_not_locked(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["v"] = voxels()
    array = open_source(tmp_path / "a.h5").array
    array[BOX]
    # Opening fails where a reader holds a lock.
    with h5py.File(tmp_path / "a.h5", "r+", locking=True) as file:
        assert file["v"].shape == array.shape


def test_netcdf_coordinates(tmp_path):
    xr = pytest.importorskip("xarray")
    pytest.importorskip("h5netcdf")
    array = xr.DataArray(
        voxels(dtype="f4"),
        dims=("time", "lat", "lon"),
        coords={"time": np.arange(20) * 6.0, "lat": np.linspace(10, 39, 30), "lon": np.arange(40)},
        attrs={"units": "K", "long_name": "temperature"},
    )
    array.time.attrs["units"] = "hours since 2000-01-01"
    array.lat.attrs["units"] = "degrees_north"
    dataset = xr.Dataset({"tas": array, "mask": (("lat", "lon"), np.ones((30, 40), "i1"))})
    dataset.to_netcdf(tmp_path / "a.nc", engine="h5netcdf")
    volume = check(open_source(tmp_path / "a.nc"), voxels(dtype="f4"))
    info = volume.info
    assert info.axes == ("t", "y", "x")
    assert info.scale == (6.0, 1.0, 1.0)
    assert info.translation == (0.0, 10.0, 0.0)
    assert info.units == ("hour", "degree", None)
    assert info.attributes == {
        "units": "K",
        "long_name": "temperature",
        "source_dimensions": ["time", "lat", "lon"],
    }
    # The same from memory and, lazily, through xarray.
    assert open_source(dataset, variable="tas").info.scale == info.scale
    with xr.open_dataset(tmp_path / "a.nc", decode_times=False, engine="h5netcdf") as opened:
        lazy = open_source(opened["tas"])
        np.testing.assert_array_equal(lazy.array[BOX], voxels(dtype="f4")[BOX])
        assert lazy.info.units == info.units


@pytest.mark.parametrize("dtype", ["i1", "i2", "i4", "f4", "f8"])
def test_missing_values_are_nan(tmp_path, dtype):
    stored = voxels((6, 7, 8), "i4").astype(dtype) // 2
    mark = np.dtype(dtype).type(1e20 if dtype[0] == "f" else -99)
    stored[2] = mark
    with h5py.File(tmp_path / "a.h5", "w") as file:
        dataset = file.create_dataset("v", data=stored)
        dataset.attrs["_FillValue"] = np.array([mark])
        dataset.attrs["scale_factor"] = 0.5
    expected = stored.astype({"i1": "f4", "i2": "f4", "i4": "f8"}.get(dtype, dtype))
    expected[stored == mark] = np.nan
    attributes = check(open_source(tmp_path / "a.h5"), expected).info.attributes
    # What is left of the attributes still unpacks the values that are read.
    assert attributes == {"scale_factor": 0.5}


# Zarr


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_ome_zarr(tmp_path, zarr_format):
    info = plain_info(
        "brain",
        ("z", "y", "x"),
        scale={"z": 2.0, "x": 0.5},
        translation={"y": 7.0},
        units={"z": "millimeter"},
        attributes={"units": "K", "omero": {"channels": []}},
    )
    path = tmp_path / "a.zarr"
    group = zarr.create_group(
        str(path), zarr_format=zarr_format, attributes=ome_attributes(info, zarr_format, ["0", "1"])
    )
    attributes = cf_attributes(info)
    group.create_array("0", data=voxels(), chunks=(8, 9, 10), attributes=attributes)
    group.create_array("1", data=voxels()[::2, ::2, ::2], attributes=attributes)
    for src in (path, f"file://{path}", path / "0", zarr.open(str(path), mode="r")):
        volume = check(open_source(src), voxels())
        assert volume.info == info
        assert volume.chunks == (8, 9, 10)
    coarse = check(open_source(path, variable="1"), voxels()[::2, ::2, ::2]).info
    assert coarse.scale == (4.0, 2.0, 1.0)
    assert coarse.translation == (1.0, 7.5, 0.25)


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_plain_zarr(tmp_path, zarr_format):
    array = zarr.create_array(
        str(tmp_path / "a.zarr"),
        data=voxels(dtype=">f4") if zarr_format == 2 else voxels(dtype="f4"),
        chunks=(8, 8, 8),
        zarr_format=zarr_format,
        attributes={"long_name": "density"},
    )
    for src in (tmp_path / "a.zarr", array):
        info = check(open_source(src), voxels(dtype="f4")).info
        assert info.attributes == {"long_name": "density"}
        assert info.axes == ("z", "y", "x")
    with pytest.raises(ConfigError, match="one array; it has no 'b'"):
        open_source(tmp_path / "a.zarr", variable="b")


def test_shards_and_zip(tmp_path):
    options = {"data": voxels(), "chunks": (5, 10, 10), "shards": (10, 30, 20)}
    zarr.create_array(str(tmp_path / "a.zarr"), **options)
    assert check(open_source(tmp_path / "a.zarr"), voxels()).chunks == (5, 10, 10)
    shutil.make_archive(str(tmp_path / "b.zarr"), "zip", tmp_path / "a.zarr")
    volume = check(open_source(tmp_path / "b.zarr.zip"), voxels())
    assert volume.info.name == "b"
    os.utime(tmp_path / "b.zarr.zip", (1, 1))
    assert open_source(tmp_path / "b.zarr.zip").identity != volume.identity


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_zarr_of_xarray(tmp_path, zarr_format):
    xr = pytest.importorskip("xarray")
    stored = voxels((6, 7, 8), "i2")
    stored[3] = -1
    coords = {"z": np.arange(6) * 0.5, "y": np.arange(7.0), "x": np.arange(8.0)}
    array = xr.DataArray(stored, dims=("z", "y", "x"), coords=coords, attrs={"units": "K"})
    array.z.attrs["units"] = "mm"
    dataset = xr.Dataset({"tas": array})
    dataset["tas"].encoding["_FillValue"] = np.int16(-1)
    dataset.to_zarr(tmp_path / "a.zarr", zarr_format=zarr_format, consolidated=False)
    expected = np.where(stored == -1, np.float32(np.nan), stored.astype("f4"))
    info = check(open_source(tmp_path / "a.zarr"), expected).info
    assert info.name == "a_tas"
    assert info.scale == (0.5, 1.0, 1.0)
    assert info.units == ("millimeter", None, None)
    assert info.attributes == {"units": "K"}


def test_groups_that_do_not_tell_which_array(tmp_path):
    group = zarr.create_group(str(tmp_path / "a.zarr"))
    with pytest.raises(ConfigError, match="no array of 2 or more axes; it has no arrays"):
        open_source(tmp_path / "a.zarr")
    group.create_array("b", data=voxels())
    group.create_array("c", data=voxels() + 1)
    with pytest.raises(ConfigError, match=r"several arrays: .*b \(20"):
        open_source(tmp_path / "a.zarr")
    check(open_source(tmp_path / "a.zarr", variable="c"), voxels() + 1)
    with pytest.raises(ConfigError, match="no 'd'; it has b, c"):
        open_source(tmp_path / "a.zarr", variable="d")


def test_images_within_groups(tmp_path):
    info = plain_info("image", ("z", "y", "x"), scale={"z": 3.0})
    group = zarr.create_group(
        str(tmp_path / "a.zarr"), attributes={"ome": {"bioformats2raw.layout": 3}}
    )
    image = group.create_group("0", attributes=ome_attributes(info, 3, ["s0"]))
    image.create_array("s0", data=voxels())
    assert check(open_source(tmp_path / "a.zarr"), voxels()).info == info
    assert open_source(tmp_path / "a.zarr", variable="0/s0").info == info
    zarr.create_group(str(tmp_path / "p.zarr"), attributes={"ome": {"plate": {"wells": []}}})
    with pytest.raises(ConfigError, match="plate of many images"):
        open_source(tmp_path / "p.zarr")


# Arrays in memory


def test_arrays_in_memory(tmp_path):
    da = pytest.importorskip("dask.array")
    xr = pytest.importorskip("xarray")
    expected = voxels()
    assert check(open_source(expected), expected).identity == {}
    check(open_source(expected.astype(">u2")), expected)
    volume = check(open_source(da.from_array(expected, chunks=(8, 16, 16))), expected)
    assert volume.chunks == (8, 16, 16)
    array = xr.DataArray(
        expected, dims=("z", "y", "x"), coords={"z": np.arange(20) * 2.0}, name="d"
    )
    assert check(open_source(array), expected).info.scale == (2.0, 1.0, 1.0)
    assert check(open_source(array.chunk(10)), expected).info.name == "d"
    with pytest.raises(ConfigError, match="a list is neither a path"):
        open_source([1, 2, 3])
    with pytest.raises(ConfigError, match="has no meaning for a ndarray"):
        open_source(expected, variable="v")


# Stores and servers


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    """Every kind of file, with the same voxels."""
    folder = tmp_path_factory.mktemp("files")
    expected = voxels()
    np.save(folder / "a.npy", expected)
    np.savez_compressed(folder / "a.npz", v=expected)
    for name in ("a.nii", "a.nii.gz"):
        nibabel.save(nibabel.Nifti1Image(expected.T, AFFINE), folder / name)
    tifffile.imwrite(folder / "plain.tif", expected)
    tifffile.imwrite(folder / "tiled.tif", expected, compression="zlib", tile=(16, 16))
    with h5py.File(folder / "a.h5", "w") as file:
        file.create_dataset("v", data=expected, chunks=(5, 10, 10), compression="gzip")
    zarr.create_array(str(folder / "a.zarr"), data=expected, chunks=(5, 10, 10))
    return folder


FILES = ("a.npy", "a.npz", "a.nii", "a.nii.gz", "plain.tif", "tiled.tif", "a.h5", "a.zarr")


@pytest.mark.parametrize("name", FILES)
def test_memory_url(files, spool, name):
    system = fsspec.filesystem("memory")
    system.put(str(files / name), f"/sources/{name}", recursive=True)
    volume = open_source(f"memory://sources/{name}")
    for box in boxes_of(SHAPE):
        np.testing.assert_array_equal(volume.array[box], voxels()[box])
    # The array itself, and a copy of it.
    check(volume, voxels())


@pytest.mark.parametrize("name", FILES)
def test_http_url(files, spool, name):
    pytest.importorskip("aiohttp")
    with http_server(files) as server:
        volume = open_source(f"{server.url}/{name}")
        _check_box(volume)
        _check_fetches(server, volume, name)
        assert volume.identity == open_source(f"{server.url}/{name}").identity


def test_s3_url(files, spool, tmp_path):
    for module in ("moto", "s3fs"):
        pytest.importorskip(module)
    with s3_server(tmp_path) as server:
        server.upload(files, "sources")
        for name in FILES:
            url, options = server.url(f"sources/{name}"), server.storage_options
            volume = open_source(url, storage_options=options)
            _check_box(volume)
            _check_fetches(server, volume, name)
            if not name.endswith(".zarr"):
                assert volume.identity["ETag"]
        url = f"s3://{BUCKET}/sources/nothing.npy"
        with pytest.raises(FileNotFoundError):
            open_source(url, storage_options=server.storage_options)


def _check_box(volume: Volume) -> None:
    copy = pickle.loads(pickle.dumps(volume.array))
    np.testing.assert_array_equal(copy[BOX], voxels()[BOX], strict=True)


def _check_fetches(server: Recorder, volume: Volume, name: str) -> None:
    """A plane of 2400 bytes takes few bytes of files that can be read in places."""
    server.forget()
    volume.array[7:8, :, :]
    fetched = sum(answer.size_bytes for answer in server.reads())
    if name in ("a.npy", "a.nii", "plain.tif"):
        assert fetched == 2400
    elif name == "tiled.tif":
        assert fetched < 6000
    elif name == "a.zarr":
        assert fetched < 20_000
    elif name in ("a.npz", "a.nii.gz"):
        # It has been unpacked on this machine.
        assert fetched == 0


def test_url_that_is_not_there(tmp_path):
    pytest.importorskip("aiohttp")
    with http_server(tmp_path) as server:
        for name in ("a.npy", "a.tif", "a.h5", "a.zarr"):
            with pytest.raises(FileNotFoundError):
                open_source(f"{server.url}/{name}")


# What changes, shrinks or goes away


LOCAL = ("a.npy", "a.nii", "a.nii.gz", "plain.tif", "tiled.tif", "a.h5")


@pytest.mark.parametrize("name", LOCAL)
def test_file_that_shrinks_or_goes(files, spool, tmp_path, name):
    path = tmp_path / name
    shutil.copyfile(files / name, path)
    array = open_source(path).array
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(OSError, match=r"cut short|changed|cannot be unpacked"):
        array[BOX]
    with pytest.raises((ConfigError, OSError), match=r"cut short|truncated|unpacked|damaged"):
        open_source(path).array[:, :, :]
    path.unlink()
    with pytest.raises(FileNotFoundError):
        array[BOX]
    assert (
        not spooled(spool)
        or name != "a.nii.gz"
        or not [found for found in spooled(spool) if found.endswith((".raw", ".part"))]
    )


def test_zarr_that_goes_or_becomes_another(tmp_path):
    path = str(tmp_path / "a.zarr")
    zarr.create_array(path, data=voxels())
    array = open_source(path).array
    shutil.rmtree(path)
    with pytest.raises(FileNotFoundError):
        array[BOX]
    zarr.create_array(path, data=voxels((20, 30, 39)))
    with pytest.raises(OSError, match="has changed since"):
        array[BOX]


@pytest.mark.parametrize("name", [*LOCAL, "a.zarr"])
def test_identity_tells_a_changed_source(files, spool, tmp_path, name):
    path = tmp_path / name
    (shutil.copytree if path.suffix == ".zarr" else shutil.copyfile)(files / name, path)
    before = open_source(path).identity
    assert before == open_source(path).identity
    found = path if path.is_file() else path / "c" / "0" / "0" / "0"
    found.write_bytes(found.read_bytes())
    os.utime(found, ns=(1, found.stat().st_mtime_ns + 1_000_000))
    after = open_source(path).identity
    assert after != before
    assert set(after) == set(before)


@pytest.mark.parametrize("name", FILES)
def test_sources_are_only_read(files, spool, tmp_path, name):
    path = tmp_path / name
    (shutil.copytree if path.suffix == ".zarr" else shutil.copyfile)(files / name, path)
    before = _state(tmp_path)
    volume = open_source(path)
    volume.array[BOX]
    del volume
    assert _state(tmp_path) == before


def _state(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {
        str(path): (path.stat().st_mtime_ns, path.read_bytes())
        for path in folder.rglob("*")
        if path.is_file() and "spool" not in path.parts
    }


# Bad input


def test_what_is_no_source(tmp_path):
    for name in ("a.npy", "a.zarr", "a.nii.gz", "nothing"):
        with pytest.raises(FileNotFoundError, match="there is no"):
            open_source(tmp_path / name)
    with pytest.raises(FileNotFoundError):
        open_source(tmp_path / "*.tif")
    with pytest.raises(ConfigError, match=r"is a folder, but no Zarr .* holds no TIFF files"):
        open_source(tmp_path)
    (tmp_path / "a.dcm").write_bytes(b"")
    with pytest.raises(ConfigError, match=r"suffix that is not known; known are .npy, .*\.zarr"):
        open_source(tmp_path / "a.dcm")
    with pytest.raises(ConfigError, match="empty path"):
        open_source("")
    for folder in ("a.npy", "a.zarr"):
        (tmp_path / folder).mkdir()
        with pytest.raises(ConfigError, match=r"is a folder, but no Zarr"):
            open_source(tmp_path / folder)


@pytest.mark.parametrize("content", [b"", b"\x93NUMPY", b"not of this kind" * 100])
@pytest.mark.parametrize("name", ["a.npy", "a.npz", "a.nii", "a.nii.gz", "a.tif", "a.h5", "a.nc"])
def test_files_that_are_not_what_they_say(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=r"is no .* file|cannot be unpacked"):
        open_source(tmp_path / name)


def test_classic_netcdf_says_what_to_do(tmp_path):
    (tmp_path / "a.nc").write_bytes(b"CDF\x01" + bytes(100))
    with pytest.raises(ConfigError, match=r"classic NetCDF .*nccopy -4"):
        open_source(tmp_path / "a.nc")


@pytest.mark.parametrize(
    ("dtype", "message"),
    [("c8", "real and the imaginary"), ("?", "mask"), ("i8", "labels"), ("U3", "text")],
)
def test_dtypes_that_are_not_stored(tmp_path, dtype, message):
    array = np.zeros((4, 5, 6), dtype)
    with pytest.raises(UnsupportedDataError, match=message):
        open_source(array)
    np.save(tmp_path / "a.npy", array)
    with pytest.raises(UnsupportedDataError, match=message):
        open_source(tmp_path / "a.npy")
    if dtype == "U3":
        return
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["v"] = array
    zarr.create_array(str(tmp_path / "a.zarr"), data=array)
    for name in ("a.h5", "a.zarr"):
        with pytest.raises(UnsupportedDataError, match=message):
            open_source(tmp_path / name)


def test_arrays_of_objects_are_not_unpickled(tmp_path):
    np.save(tmp_path / "a.npy", np.array([[[print]]], dtype=object), allow_pickle=True)
    with pytest.raises(UnsupportedDataError, match="objects"):
        open_source(tmp_path / "a.npy")


@pytest.mark.parametrize("shape", [(0, 4, 5), (5,), (), (1,) * 6])
def test_shapes_that_are_no_volumes(tmp_path, shape):
    np.save(tmp_path / "a.npy", np.zeros(shape, "u1"))
    for src in (tmp_path / "a.npy", np.zeros(shape, "u1")):
        with pytest.raises((ConfigError, UnsupportedDataError), match=r"axes|axis"):
            open_source(src)


@pytest.mark.parametrize(
    ("name", "module", "extra"),
    [("a.nii", "nibabel", "nifti"), ("plain.tif", "tifffile", "tiff"), ("a.h5", "h5py", "hdf5")],
)
def test_library_that_is_not_installed(files, monkeypatch, name, module, extra):
    monkeypatch.setitem(__import__("sys").modules, module, None)
    with pytest.raises(ConfigError, match=rf"pip install 'tinc_codec\[{extra}\]'"):
        open_source(files / name)


def test_selections_that_are_no_boxes():
    assert box_of((slice(2, 99), Ellipsis), (5, 6, 7)) == (slice(2, 5), slice(0, 6), slice(0, 7))
    for selection in ((slice(0, 5, 2),), (3,), (slice(None),) * 4):
        with pytest.raises(IndexError, match="one slice of step 1 per axis"):
            box_of(selection, (5, 6, 7))


# Metadata


@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.parametrize("axes", ["yx", "zyx", "tzyx", "czyx", "tczyx"])
def test_ome_attributes_come_back(zarr_format, axes):
    info = plain_info(
        "name",
        tuple(axes),
        scale={"t": 0.1, "z": 3.0, "y": 2.0},
        translation={"x": -4.5},
        units={"t": "second", "x": "micrometer"},
    )
    attributes = ome_attributes(info, zarr_format, ["0", "a/1", "2"])
    assert json.loads(json.dumps(attributes)) == attributes
    assert info_from_ome(attributes) == info
    coarse = info_from_ome(attributes, level=2)
    index = axes.index("y")
    assert coarse.scale[index] == 8.0
    assert coarse.translation[index] == 3.0
    assert coarse.scale[: -len(axes.replace("t", "").replace("c", ""))] == tuple(
        0.1 if axis == "t" else 1.0 for axis in axes if axis in "tc"
    )


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_ome_attributes_are_valid(zarr_format, tmp_path):
    models = pytest.importorskip("ome_zarr_models")
    info = plain_info("name", ("c", "z", "y", "x"), units={"z": "millimeter"})
    group = zarr.create_group(
        str(tmp_path / "a"),
        zarr_format=zarr_format,
        attributes=ome_attributes(info, zarr_format, ["0"]),
    )
    options = {"dimension_names": info.axes} if zarr_format == 3 else {}
    group.create_array("0", shape=(2, 4, 4, 4), dtype="u1", **options)
    version = models.v05 if zarr_format == 3 else models.v04
    image = version.Image.from_zarr(group)
    assert "multiscales" in json.dumps(image.attributes.model_dump(mode="json"))


def test_ome_attributes_of_other_versions():
    old = {"multiscales": [{"version": "0.1", "datasets": [{"path": "0"}]}]}
    assert info_from_ome(old, name="n").axes == ("t", "c", "z", "y", "x")
    third = {"multiscales": [{"axes": ["z", "y", "x"], "datasets": [{"path": "0"}], "name": "m"}]}
    assert info_from_ome(third) == plain_info("m", ("z", "y", "x"))
    scaled = {
        "multiscales": [
            {
                "axes": [{"name": "lat", "type": "space"}, {"name": "lon", "type": "space"}],
                "datasets": [
                    {"path": "0", "coordinateTransformations": [{"type": "scale", "scale": [2, 3]}]}
                ],
                "coordinateTransformations": [
                    {"type": "scale", "scale": [10, 10]},
                    {"type": "translation", "translation": [1, 2]},
                ],
            }
        ]
    }
    info = info_from_ome(scaled)
    assert (info.axes, info.scale, info.translation) == (("y", "x"), (20, 30), (1, 2))


@pytest.mark.parametrize(
    "attributes",
    [
        {},
        {"multiscales": []},
        {"ome": {"multiscales": [{"datasets": []}]}},
        {"multiscales": [{"axes": ["y", "x"], "datasets": [
            {"path": "0", "coordinateTransformations": [{"type": "scale", "scale": [1, 2, 3]}]}
        ]}]},
    ],
)  # fmt: skip
def test_ome_attributes_that_contradict_themselves(attributes):
    with pytest.raises(ConfigError, match="multiscales of OME-Zarr cannot be used"):
        info_from_ome(attributes)


@pytest.mark.parametrize("axes", [("x", "y"), ("z", "z", "x"), ("t", "x"), ("a", "y", "x")])
def test_axes_that_ome_does_not_know(axes):
    with pytest.raises(ConfigError, match=r"axes .*"):
        ome_attributes(plain_info("n", axes), 3, ["0"])


def test_plain_info_keeps_steps_usable():
    info = plain_info("n", ("y", "x"), scale={"y": 0.0, "x": np.nan}, translation={"x": np.inf})
    assert info.scale == (1.0, 1.0)
    assert info.translation == (0.0, 0.0)
    with pytest.raises(ConfigError, match="6 axes"):
        default_axes(6)


def test_names_of_units():
    assert [unit_name(text) for text in ("mm", "µm", "\\u00B5m", "Metres", "deg", "", None)] == [
        "millimeter", "micrometer", "micrometer", "meter", "deg", None, None,
    ]  # fmt: skip


def test_attributes_that_json_cannot_hold_are_left_out():
    found = json_ready(
        {
            "bytes": b"text\0",
            "number": np.float32(0.5),
            "list": np.arange(2),
            "nan": np.nan,
            "object": object(),
            "table": np.zeros(10_000),
            "none": None,
            "inner": {"a": np.int8(1)},
        }
    )
    assert found == {"bytes": "text", "number": 0.5, "list": [0, 1], "inner": {"a": 1}}
