"""`decompress`: voxels and what is said of them, in every file that it writes."""

from __future__ import annotations

import errno
import json
import math
import os
from pathlib import Path

import numpy as np
import pytest

from tests.memory import AllocationMeter
from tinc_codec import TINC, ConfigError, FormatError
from tinc_codec.pipeline.compress import compress
from tinc_codec.pipeline.decompress import boxes, decompress
from tinc_codec.pipeline.metadata import cf_attributes, ome_attributes, plain_info
from tinc_codec.pipeline.sources import open_source
from tinc_codec.pipeline.tasks import RECORD
from tinc_codec.pipeline.volumes import VolumeInfo
from tinc_codec.pipeline.writers import start_tiff

zarr = pytest.importorskip("zarr", minversion="3.1")
nibabel = pytest.importorskip("nibabel")
tifffile = pytest.importorskip("tifffile")

SHAPE = (20, 30, 40)
SUFFIXES = (".zarr", ".nii", ".nii.gz", ".tif", ".tiff", ".npy")
CODEC = TINC(ratio=8, model="features", effort=0)
INFO = plain_info(
    "brain",
    ("z", "y", "x"),
    scale={"z": 3.0, "y": 2.5, "x": 2.0},
    translation={"z": 7.0, "x": -1.5},
    units=dict.fromkeys("zyx", "millimeter"),
    attributes={"units": "K", "long_name": "temperature"},
)


def voxels(shape: tuple[int, ...] = SHAPE, dtype: str = "u2") -> np.ndarray:
    axes = np.meshgrid(*(np.linspace(0, 3, size) for size in shape), indexing="ij")
    return (1000 * (2 + np.sin(sum(axes)) + axes[0])).astype(dtype)


def store(
    path: Path,
    array: np.ndarray,
    info: VolumeInfo = INFO,
    *,
    zarr_format: int = 3,
    shards: tuple[int, ...] | None = None,
) -> np.ndarray:
    """Write a compressed OME-Zarr, and return what it decodes to."""
    group = zarr.create_group(
        str(path), zarr_format=zarr_format, attributes=ome_attributes(info, zarr_format, ["0"])
    )
    codec = (
        {"serializer": CODEC, "compressors": None} if zarr_format == 3 else {"compressors": CODEC}
    )
    chunks = (1,) * (array.ndim - 3) + (16,) * min(3, array.ndim)
    made = group.create_array(
        "0",
        shape=array.shape,
        dtype=array.dtype,
        chunks=chunks,
        shards=shards,
        attributes=cf_attributes(info),
        **codec,
    )
    made[...] = array
    return made[...]


def native(path: Path) -> np.ndarray:
    """Read a file with the library that people use for it, seen as (z, y, x)."""
    if path.name.endswith(".npy"):
        return np.load(path)
    if ".nii" in path.name:
        return np.asarray(nibabel.load(path).dataobj.get_unscaled()).T
    if ".tif" in path.name:
        return tifffile.imread(path)
    return zarr.open(str(path / "0"), mode="r")[...]


def leftovers(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("dtype", ["u2", "f4"])
def test_voxels_and_metadata(tmp_path, suffix, dtype):
    decoded = store(tmp_path / "a.zarr", voxels(dtype=dtype))
    path = tmp_path / f"b{suffix}"
    report = decompress(tmp_path / "a.zarr", path)
    np.testing.assert_array_equal(native(path), decoded, strict=True)
    assert report.shape == SHAPE
    assert report.raw_bytes == decoded.nbytes
    if path.is_file():
        assert report.size_bytes == path.stat().st_size
    found = open_source(path).info
    if suffix == ".npy":
        return
    assert found.axes == INFO.axes
    assert found.scale == INFO.scale
    assert found.units == INFO.units
    if suffix == ".zarr":
        assert found == INFO
    if ".nii" in suffix:
        assert found.translation == INFO.translation
    assert not leftovers(tmp_path)


@pytest.mark.parametrize("suffix", [".zarr", ".nii", ".tif", ".npy"])
@pytest.mark.parametrize("axes", ["yx", "tzyx", "czyx", "tczyx"])
def test_other_axes(tmp_path, suffix, axes):
    shape = {"y": 18, "x": 20, "z": 17, "t": 2, "c": 3}
    info = plain_info("n", tuple(axes), scale={"t": 0.5}, units={"t": "second"})
    decoded = store(tmp_path / "a.zarr", voxels(tuple(shape[axis] for axis in axes), "f4"), info)
    path = tmp_path / f"b{suffix}"
    decompress(tmp_path / "a.zarr", path)
    volume = open_source(path)
    found = volume.array[(slice(None),) * len(volume.info.axes)]
    # A plane has a depth of one voxel in NIfTI.
    np.testing.assert_array_equal(found.reshape(decoded.shape), decoded, strict=True)
    if suffix != ".npy" and axes != "yx":
        assert volume.info.axes == info.axes
        assert volume.info.scale == info.scale
        assert volume.info.units[0] == info.units[0]


def test_nifti_comes_back_as_it_was(tmp_path):
    affine = np.array([[0, -2, 0, 90], [2.5, 0, 0, -126], [0, 0, 3, -72], [0, 0, 0, 1.0]])
    image = nibabel.Nifti1Image(voxels(dtype="i2").T, affine)
    image.set_qform(affine, code=1)
    image.set_sform(affine @ np.diag([1, 1, 1.5, 1]), code=4)
    image.header.set_xyzt_units("micron", "msec")
    image.header.set_slope_inter(0.25, 10)
    image.header.set_intent("t test", (), name="what it is")
    image.header["descrip"] = b"made by hand"
    image.header["cal_max"] = 99
    nibabel.save(image, tmp_path / "a.nii")
    source = open_source(tmp_path / "a.nii")
    decoded = store(tmp_path / "a.zarr", source.array[:, :, :], source.info)
    decompress(tmp_path / "a.zarr", tmp_path / "b.nii.gz")
    before, after = nibabel.load(tmp_path / "a.nii"), nibabel.load(tmp_path / "b.nii.gz")
    for field in before.header:
        # What nibabel leaves to the one who saves it.
        if field not in ("glmax", "glmin", "intent_p1"):
            np.testing.assert_array_equal(before.header[field], after.header[field], field)
    np.testing.assert_array_equal(after.affine, before.affine)
    np.testing.assert_allclose(after.get_fdata().T, decoded * 0.25 + 10)


@pytest.mark.parametrize(
    ("unit", "name", "factor"),
    [("nanometer", "mm", 1e-6), ("micrometer", "micron", 1), ("furlong", "unknown", 1)],
)
def test_units_that_nifti_does_not_know(tmp_path, unit, name, factor):
    info = plain_info("n", INFO.axes, scale={"x": 2.0}, units=dict.fromkeys("zyx", unit))
    store(tmp_path / "a.zarr", voxels(), info)
    decompress(tmp_path / "a.zarr", tmp_path / "b.nii")
    header = nibabel.load(tmp_path / "b.nii").header
    assert header.get_xyzt_units()[0] == name
    np.testing.assert_allclose(header.get_zooms(), np.array([2.0, 1.0, 1.0]) * factor)


def test_float16_and_long_axes(tmp_path):
    decoded = store(tmp_path / "a.zarr", voxels(dtype="f2"))
    for suffix in SUFFIXES:
        report = decompress(tmp_path / "a.zarr", tmp_path / f"b{suffix}")
        assert report.dtype == ("float32" if suffix[1:4] in ("nii", "tif") else "float16")
        np.testing.assert_array_equal(native(tmp_path / f"b{suffix}"), decoded)
    zarr.create_array(str(tmp_path / "long.zarr"), shape=(2, 3, 40_000), dtype="u1", fill_value=7)
    decompress(tmp_path / "long.zarr", tmp_path / "long.nii")
    image = nibabel.load(tmp_path / "long.nii")
    assert isinstance(image, nibabel.Nifti2Image)
    assert np.all(native(tmp_path / "long.nii") == 7)


def test_ome_tiff_says_channels_and_description(tmp_path):
    attributes = {"channel_names": ["a", "b"], "description": "two <channels>"}
    info = plain_info("n", ("c", "z", "y", "x"), units={"x": "nanometer"}, attributes=attributes)
    store(tmp_path / "a.zarr", voxels((2, 17, 18, 19)), info)
    decompress(tmp_path / "a.zarr", tmp_path / "b.ome.tif")
    found = open_source(tmp_path / "b.ome.tif").info
    assert found.attributes == attributes
    assert found.units == (None, None, None, "nanometer")
    with tifffile.TiffFile(tmp_path / "b.ome.tif") as opened:
        assert opened.is_ome
        assert not opened.is_bigtiff


def test_tiff_beyond_4_gib_is_a_bigtiff(tmp_path):
    shape = (2200, 1024, 1024)
    offset = start_tiff(tmp_path / "a.tif", shape, np.dtype("u2"), INFO)
    with tifffile.TiffFile(tmp_path / "a.tif") as opened:
        assert opened.is_bigtiff
        assert opened.series[0].shape == shape
        assert opened.series[0].dataoffset == offset


@pytest.mark.parametrize(("zarr_format", "shards"), [(2, None), (3, None), (3, (32, 32, 32))])
def test_zarr_keeps_format_chunks_and_attributes(tmp_path, zarr_format, shards):
    decoded = store(tmp_path / "a.zarr", voxels(), zarr_format=zarr_format, shards=shards)
    source = zarr.open_group(str(tmp_path / "a.zarr"), mode="r+")
    source["0"].attrs["lossy_compression"] = "tinc_info"
    source.attrs.update({"tinc_info": {"algorithm": "tinc"}, "other": 1})
    decompress(zarr.open(str(tmp_path / "a.zarr"), mode="r"), tmp_path / "b.zarr")
    found = zarr.open_group(str(tmp_path / "b.zarr"), mode="r")
    array = found["0"]
    np.testing.assert_array_equal(array[...], decoded)
    assert found.metadata.zarr_format == zarr_format
    assert (array.chunks, array.shards) == ((16, 16, 16), shards)
    assert "blosc" in str(array.compressors).lower()
    assert dict(found.attrs) == {
        **ome_attributes(INFO, zarr_format, ["0"]),
        "tinc_info": {"algorithm": "tinc"},
    }
    assert array.attrs["lossy_compression"] == "tinc_info"
    if zarr_format == 3:
        assert array.metadata.dimension_names == ("z", "y", "x")


def test_zarr_behind_a_url(tmp_path):
    decoded = store(tmp_path / "a.zarr", voxels())
    report = decompress(tmp_path / "a.zarr", "memory://decompressed/b.zarr")
    assert report.size_bytes is None
    volume = open_source("memory://decompressed/b.zarr")
    np.testing.assert_array_equal(volume.array[:, :, :], decoded)
    assert volume.info == INFO
    with pytest.raises(FileExistsError):
        decompress(tmp_path / "a.zarr", "memory://decompressed/b.zarr")
    decompress("memory://decompressed/b.zarr", tmp_path / "c.npy")
    np.testing.assert_array_equal(np.load(tmp_path / "c.npy"), decoded)


def test_a_coarser_level(tmp_path):
    affine = np.diag([-2.0, 2.5, 3.0, 1.0])
    info = plain_info(
        "n", ("z", "y", "x"), scale={"z": 3, "y": 2.5, "x": 2},
        attributes={"nifti": {"affine": affine, "sform": affine, "sform_code": 2}},
    )  # fmt: skip
    group = zarr.create_group(
        str(tmp_path / "a.zarr"), attributes=ome_attributes(info, 3, ["0", "1"])
    )
    attributes = cf_attributes(info)
    group.create_array("0", data=voxels(), attributes=attributes)
    group.create_array("1", data=voxels()[::2, ::2, ::2], attributes=attributes)
    report = decompress(tmp_path / "a.zarr", tmp_path / "b.nii", level=1)
    assert report.shape == (10, 15, 20)
    image = nibabel.load(tmp_path / "b.nii")
    assert image.header.get_zooms() == (4.0, 5.0, 6.0)
    # The centre of the coarse voxel 0 lies between the fine ones 0 and 1.
    np.testing.assert_allclose(image.affine @ [0, 0, 0, 1], affine @ [0.5, 0.5, 0.5, 1])
    np.testing.assert_allclose(image.affine @ [3, 3, 3, 1], affine @ [6.5, 6.5, 6.5, 1])
    with pytest.raises(ConfigError, match="has no level 2: it has 0 to 1"):
        decompress(tmp_path / "a.zarr", tmp_path / "c.nii", level=2)


@pytest.mark.parametrize("suffix", [".npy", ".zarr"])
def test_what_is_there_is_replaced_only_when_asked_and_at_the_end(tmp_path, suffix):
    decoded = store(tmp_path / "a.zarr", voxels())
    store(tmp_path / "old.zarr", voxels() + 1)
    path = tmp_path / f"b{suffix}"
    decompress(tmp_path / "old.zarr", path)
    old = native(path)
    with pytest.raises(FileExistsError, match=r"--overwrite"):
        decompress(tmp_path / "a.zarr", path)

    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        decompress(tmp_path / "a.zarr", path, overwrite=True, on_progress=interrupt)
    np.testing.assert_array_equal(native(path), old)
    assert not leftovers(tmp_path)
    steps: list[tuple[int, int]] = []
    decompress(
        tmp_path / "a.zarr",
        path,
        overwrite=True,
        on_progress=lambda done, total: steps.append((done, total)),
    )
    np.testing.assert_array_equal(native(path), decoded)
    assert steps[-1] == (decoded.nbytes, decoded.nbytes)
    assert not leftovers(tmp_path)


def test_a_damaged_chunk_is_named_and_leaves_nothing(tmp_path):
    store(tmp_path / "a.zarr", voxels())
    chunk = tmp_path / "a.zarr" / "0" / "c" / "1" / "0" / "2"
    damaged = bytearray(chunk.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    chunk.write_bytes(damaged)
    with pytest.raises(FormatError, match=r"voxels \[0:20, 0:30, 0:40\] cannot be decoded"):
        decompress(tmp_path / "a.zarr", tmp_path / "b.npy")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.zarr"]


@pytest.mark.parametrize("shards", [None, 16])
def test_a_source_that_has_lost_chunks(tmp_path, shards):
    np.save(tmp_path / "v.npy", voxels())
    options = {"ratio": 4, "effort": 0, "chunks": 8, "shards": shards}
    compress(tmp_path / "v.npy", tmp_path / "a.zarr", **options)
    decompress(tmp_path / "a.zarr", tmp_path / "whole.npy")
    lost = tmp_path / "a.zarr" / "0" / "c" / "1" / "0" / "1"
    kept = lost.read_bytes()
    for damage in (lost.unlink, lambda: lost.write_bytes(b""), lambda: lost.write_bytes(kept[:9])):
        damage()
        with pytest.raises(FormatError):
            decompress(tmp_path / "a.zarr", tmp_path / "b.npy")
        assert not (tmp_path / "b.npy").exists()
    lost.unlink()
    with pytest.raises(FormatError, match=r"of SRC, which was complete.*--allow-missing"):
        decompress(tmp_path / "a.zarr", tmp_path / "b.npy")
    decompress(tmp_path / "a.zarr", tmp_path / "b.npy", allow_missing=True)
    assert (np.load(tmp_path / "b.npy") != np.load(tmp_path / "whole.npy")).any()
    # What the message advises.
    compress(tmp_path / "v.npy", tmp_path / "a.zarr", **options)
    decompress(tmp_path / "a.zarr", tmp_path / "b.npy", overwrite=True)
    np.testing.assert_array_equal(np.load(tmp_path / "b.npy"), np.load(tmp_path / "whole.npy"))


def test_a_source_that_is_not_finished(tmp_path):
    decoded = store(tmp_path / "a.zarr", voxels())
    group = zarr.open_group(str(tmp_path / "a.zarr"), mode="r+")
    group.attrs[RECORD] = {"complete": False}
    with pytest.raises(ConfigError, match=r"not complete.*--allow-missing"):
        decompress(tmp_path / "a.zarr", tmp_path / "b.npy")
    decompress(tmp_path / "a.zarr", tmp_path / "b.npy", allow_missing=True)
    group.attrs[RECORD] = {"complete": True}
    decompress(tmp_path / "a.zarr", tmp_path / "c.npy")
    for name in ("b.npy", "c.npy"):
        np.testing.assert_array_equal(np.load(tmp_path / name), decoded)


def test_what_is_refused(tmp_path):
    store(tmp_path / "a.zarr", voxels())
    source = tmp_path / "a.zarr"
    with pytest.raises(ConfigError, match=r"none of the suffixes \.npy, \.nii"):
        decompress(source, tmp_path / "b.mha")
    with pytest.raises(ConfigError, match="only Zarr is written to one"):
        decompress(source, "memory://b.npy")
    with pytest.raises(ConfigError, match="lie in one another"):
        decompress(source, source, overwrite=True)
    with pytest.raises(ConfigError, match="lie in one another"):
        decompress(source, source / "b.npy")
    with pytest.raises(FileNotFoundError, match="no folder"):
        decompress(source, tmp_path / "nowhere" / "b.npy")
    with pytest.raises(FileNotFoundError):
        decompress(tmp_path / "nothing.zarr", tmp_path / "b.npy")
    np.save(tmp_path / "c.npy", voxels())
    with pytest.raises(ConfigError, match="is no Zarr"):
        decompress(tmp_path / "c.npy", tmp_path / "b.npy")
    with pytest.raises(ConfigError, match="SRC is a ndarray"):
        decompress(voxels(), tmp_path / "b.npy")
    with pytest.raises(ConfigError, match="has no 'mask'; it has 0"):
        decompress(source, tmp_path / "b.npy", variable="mask")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.zarr", "c.npy"]


def test_a_disk_that_is_too_small(tmp_path):
    shape = (1 << 20, 1 << 15, 1 << 15)
    zarr.create_array(str(tmp_path / "a.zarr"), shape=shape, chunks=(64, 64, 64), dtype="u1")
    with pytest.raises(OSError, match=f"needs {math.prod(shape)} bytes") as caught:
        decompress(tmp_path / "a.zarr", tmp_path / "b.npy")
    assert caught.value.errno == errno.ENOSPC
    assert [path.name for path in tmp_path.iterdir()] == ["a.zarr"]


@pytest.mark.parametrize("suffix", [".npy", ".nii.gz", ".zarr"])
def test_memory_is_bounded(tmp_path, suffix):
    shape = (160, 512, 1024)
    array = zarr.create_array(
        str(tmp_path / "a.zarr"), shape=shape, chunks=(32, 64, 64), dtype="u2", fill_value=3
    )
    array[100, 200, 300] = 77
    with AllocationMeter() as meter:
        decompress(tmp_path / "a.zarr", tmp_path / f"b{suffix}")
    assert meter.peak_bytes < 80e6 < math.prod(shape) * 2
    found = open_source(tmp_path / f"b{suffix}").array
    np.testing.assert_array_equal(found[100:101, 200:201, 299:302], [[[3, 77, 3]]])
    np.testing.assert_array_equal(found[159:, 511:, 1020:], [[[3, 3, 3, 3]]])


@pytest.mark.parametrize("most", [1, 100, 5000, 10**6])
@pytest.mark.parametrize(
    ("shape", "unit"), [((20, 30, 40), (8, 7, 16)), ((5, 3), (9, 9)), ((2, 3, 4, 5), (1, 2, 2, 5))]
)
def test_boxes_cover_every_voxel_once_by_whole_chunks(shape, unit, most):
    seen = np.zeros(shape, dtype=int)
    for box in boxes(shape, unit, most):
        seen[box] += 1
        size = seen[box].size
        assert size <= max(most, math.prod(unit))
        for part, step, end in zip(box, unit, shape, strict=True):
            assert part.start % step == 0
            assert part.stop % step == 0 or part.stop == end
    assert np.all(seen == 1)


def test_the_same_voxels_give_the_same_gzip(tmp_path):
    store(tmp_path / "a.zarr", voxels())
    decompress(tmp_path / "a.zarr", tmp_path / "b.nii.gz")
    first = (tmp_path / "b.nii.gz").read_bytes()
    os.utime(tmp_path / "a.zarr", (1, 1))
    decompress(tmp_path / "a.zarr", tmp_path / "c.nii.gz")
    assert (tmp_path / "c.nii.gz").read_bytes() == first


def test_command(tmp_path):
    from typer.testing import CliRunner

    from tinc_codec.cli.app import app

    decoded = store(tmp_path / "a.zarr", voxels())
    source, path = str(tmp_path / "a.zarr"), tmp_path / "b.npy"
    runner = CliRunner()
    found = runner.invoke(app, ["decompress", source, str(path), "--json"])
    assert found.exit_code == 0
    record = json.loads(found.stdout)
    assert record["shape"] == list(SHAPE)
    assert record["kind"] == "NumPy"
    assert record["size_bytes"] == path.stat().st_size
    np.testing.assert_array_equal(np.load(path), decoded)
    found = runner.invoke(app, ["decompress", source, str(path)])
    assert found.exit_code == 2
    assert "FileExistsError" in found.stderr
    found = runner.invoke(app, ["decompress", source, str(path), "--overwrite"])
    assert found.exit_code == 0
    assert "20 × 30 × 40 uint16" in found.stderr
    assert runner.invoke(app, ["decompress", source, str(tmp_path / "b.xyz")]).exit_code == 2
    assert "tinc decompress brain.zarr brain.nii.gz" in runner.invoke(
        app, ["decompress", "--help"]
    ).stdout  # fmt: skip
