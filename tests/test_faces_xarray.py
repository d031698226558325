"""Reading and writing through xarray, whose float variables are filled with NaN at the edges."""

import numpy as np
import pytest

from tests.faces import CHUNKS, CODEC, assert_close, smooth_volume
from tinc_codec import TINC, ConfigError
from tinc_codec.xarray import record_lossiness

xr = pytest.importorskip("xarray")
zarr = pytest.importorskip("zarr", minversion="3.1")

DIMS = ("z", "y", "x")


def door(zarr_format, codec=CODEC, **options):
    """The encoding of one variable for a format."""
    codecs = (
        {"compressors": codec} if zarr_format == 2 else {"serializer": codec, "compressors": None}
    )
    return {**codecs, "chunks": CHUNKS, **options}


DOORS = {
    "v2": (2, door(2)),
    "v3": (3, door(3)),
    "v3-shards": (3, door(3, shards=(32, 32, 32))),
}


@pytest.mark.parametrize("name", DOORS)
def test_a_dataset_comes_back(tmp_path, name):
    zarr_format, encoding = DOORS[name]
    original = smooth_volume((20, 20, 20))
    original[2:5, 3, :] = np.nan
    corner = np.s_[16:, 16:, 16:]  # 1/64 of its chunk, the rest is padding
    dataset = xr.Dataset({"v": (DIMS, original)}, attrs={"about": "test"})
    dataset.to_zarr(
        tmp_path / "a.zarr", encoding={"v": encoding}, zarr_format=zarr_format, consolidated=False
    )
    assert np.isnan(zarr.open_array(tmp_path / "a.zarr" / "v", mode="r").fill_value)
    for chunks in (None, {}):
        with xr.open_zarr(tmp_path / "a.zarr", chunks=chunks, consolidated=False) as opened:
            decoded = opened["v"].values
            assert decoded.dtype == original.dtype
            assert_close(original, decoded)
            assert_close(original[corner], decoded[corner])
            assert opened.attrs == {"about": "test"}


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_every_variable_has_its_dtype_and_codec(tmp_path, zarr_format):
    shape = (20, 16, 16)
    codecs = {
        "|u1": TINC(ratio=4, effort=0),
        "<i2": TINC(ratio=8, effort=0, seed=3),
        "<f4": TINC(ratio=8, effort=0, levels=2),
        "<f8": TINC(ratio=16, effort=0),
    }
    volumes = {dtype: smooth_volume(shape, dtype) for dtype in codecs}
    volumes["<f4"][:3, 2, 5:] = np.nan
    labels = np.random.default_rng(0).integers(0, 9, shape)
    dataset = xr.Dataset(
        {f"v{dtype[1:]}": (DIMS, volume) for dtype, volume in volumes.items()}
        | {"labels": (DIMS, labels)},
        coords={"z": np.linspace(0.0, 9.5, shape[0])},
    )
    encoding = {f"v{dtype[1:]}": door(zarr_format, codec) for dtype, codec in codecs.items()}
    dataset.to_zarr(
        tmp_path / "a.zarr", encoding=encoding, zarr_format=zarr_format, consolidated=False
    )
    with xr.open_zarr(tmp_path / "a.zarr", consolidated=False) as opened:
        for dtype, codec in codecs.items():
            variable = opened[f"v{dtype[1:]}"]
            assert variable.dtype == np.dtype(dtype)
            assert_close(volumes[dtype], variable.values)
            stored = variable.encoding["compressors"] + (variable.encoding.get("serializer"),)
            assert codec.params in [getattr(found, "params", None) for found in stored]
        np.testing.assert_array_equal(opened["labels"].values, labels)
        np.testing.assert_array_equal(opened["z"].values, dataset["z"].values)


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_appending_and_regions_keep_the_codec(tmp_path, zarr_format):
    original = smooth_volume((48, 16, 16))
    dataset = xr.Dataset({"v": (DIMS, original)})
    options = {"zarr_format": zarr_format, "consolidated": False}
    first, second, third = (dataset.isel(z=slice(16 * i, 16 * i + 16)) for i in range(3))
    path = tmp_path / "a.zarr"
    first.to_zarr(path, encoding={"v": door(zarr_format)}, **options)
    second.to_zarr(path, append_dim="z", **options)
    second.to_zarr(path, append_dim="z", **options)  # replaced by the third
    third.to_zarr(path, region={"z": slice(32, 48)}, **options)
    with xr.open_zarr(path, consolidated=False) as opened:
        assert_close(original, opened["v"].values)


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_packed_variables(tmp_path, zarr_format):
    original = smooth_volume((16, 16, 16)) / 10
    dataset = xr.Dataset({"v": (DIMS, original)})
    packed = {"dtype": "i2", "scale_factor": 0.01, "add_offset": 5.0, "_FillValue": -32768}
    encoding = {"v": door(zarr_format, **packed)}
    dataset.to_zarr(
        tmp_path / "a.zarr", encoding=encoding, zarr_format=zarr_format, consolidated=False
    )
    array = zarr.open_array(tmp_path / "a.zarr" / "v", mode="r")
    assert array.dtype == np.dtype("i2")
    with xr.open_zarr(tmp_path / "a.zarr", consolidated=False) as opened:
        assert_close(original, opened["v"].values.astype("f4"))


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_lossiness_is_recorded_with_the_data(tmp_path, zarr_format):
    original = smooth_volume(CHUNKS)
    variables = {name: (DIMS, original, {"units": "K"}) for name in ("a", "b", "kept")}
    dataset = xr.Dataset(variables)
    encoding = {
        "a": door(zarr_format, TINC(ratio=8, effort=0)),
        "b": door(zarr_format, TINC(ratio=4.5, effort=0)),
        "kept": {"chunks": CHUNKS},
    }
    recorded = record_lossiness(dataset, encoding)
    assert dataset["a"].attrs == {"units": "K"}
    assert "tinc_info" not in dataset
    recorded.to_zarr(
        tmp_path / "a.zarr", encoding=encoding, zarr_format=zarr_format, consolidated=False
    )
    with xr.open_zarr(tmp_path / "a.zarr", consolidated=False) as opened:
        for name, ratio in {"a": 8, "b": 4.5}.items():
            assert opened[name].attrs == {
                "units": "K",
                "lossy_compression": "tinc_info",
                "lossy_compression_generations": 1,
                "lossy_compression_ratio": ratio,
            }
        assert opened["kept"].attrs == {"units": "K"}
        about = opened[opened["a"].attrs["lossy_compression"]]
        assert (about.shape, about.attrs["algorithm"]) == ((), "tinc")
        assert about.attrs["implementation"].startswith("tinc_codec version ")
        # What zarr opened is understood as well as what the user gave.
        again = record_lossiness(opened, {name: opened[name].encoding for name in opened})
        assert again["a"].attrs["lossy_compression_generations"] == 2
        assert again["a"].attrs["lossy_compression_ratio"] == 8
        assert again["kept"].attrs == {"units": "K"}


def promise_of(codec, **options):
    """The attributes that one variable gets, without the fixed ones."""
    dataset = xr.Dataset({"v": (DIMS, np.zeros((1, 1, 1), "f4"))})
    attributes = record_lossiness(dataset, {"v": {"serializer": codec, **options}})["v"].attrs
    return {
        key.removeprefix("lossy_compression_"): value
        for key, value in attributes.items()
        if key not in ("lossy_compression", "lossy_compression_generations")
    }


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"ratio": 64}, {"ratio": 64}),
        ({"psnr": 40}, {"minimum_psnr": 40}),
        ({"max_error": 0.5}, {"maximum_absolute_error": 0.005}),
    ],
    ids=lambda value: next(iter(value)),
)
def test_promises_hold_for_unpacked_values(settings, expected):
    assert promise_of(TINC(**settings), scale_factor=-0.01) == pytest.approx(expected)


def test_a_named_configuration_is_understood():
    assert promise_of({"name": "tinc", "configuration": {"ratio": 32}}) == {"ratio": 32}
    assert promise_of({"name": "bytes"}) == {}


def test_a_dataset_without_the_codec_is_unchanged():
    dataset = xr.Dataset({"v": (DIMS, np.zeros((1, 1, 1), "f4"))})
    assert record_lossiness(dataset, {"v": {"compressors": None}}).identical(dataset)


def test_what_cannot_be_recorded_is_refused():
    dataset = xr.Dataset({"v": (DIMS, np.zeros((1, 1, 1), "f4"))})
    with pytest.raises(ConfigError, match="'w', which is not a variable"):
        record_lossiness(dataset, {"w": {"serializer": CODEC}})
    for taken in ("v", "z"):
        with pytest.raises(ConfigError, match=f"container='{taken}' is taken"):
            record_lossiness(dataset, {"v": {"serializer": CODEC}}, container=taken)
