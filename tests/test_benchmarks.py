"""The benchmarks' own machinery, on a volume made here."""

import json

import numpy as np
import pytest

from benchmarks import records, volumes
from tinc_codec.metrics import psnr


@pytest.fixture
def smooth():
    z, y, x = np.meshgrid(*[np.linspace(0, 3, 40)] * 3, indexing="ij")
    return np.sin(z * y) + np.cos(x * y) + 0.1 * np.sin(9 * x)


@pytest.mark.parametrize("name", ["SPERR", "SZ3", "ZFP", "HEVC"])
@pytest.mark.parametrize("dtype", ["uint8", "int16", "float32"])
def test_peer_keeps_to_the_size_and_gains_with_it(smooth, name, dtype):
    pytest.importorskip("imagecodecs")
    pytest.importorskip("av")
    from benchmarks.peers import PEERS

    volume = (smooth * 50 + 120).astype(dtype)
    asked = [volume.size // 4, volume.size // 16]
    results = [PEERS[name](volume, size_bytes) for size_bytes in asked]
    for size_bytes, result in zip(asked, results, strict=True):
        assert result.size_bytes <= size_bytes
        assert result.encode_s > 0
        assert result.decode_s > 0
    assert results[0].psnr >= results[1].psnr > 10
    assert all(0 <= result.max_error < 130 for result in results)


def test_impossible_size_is_said(smooth):
    pytest.importorskip("imagecodecs")
    pytest.importorskip("av")
    from benchmarks.peers import SizeNotReached, hevc

    with pytest.raises(SizeNotReached, match="10 asked for"):
        hevc(smooth.astype(np.float32), 10)


def test_central_crop_and_loading(tmp_path, smooth):
    volume = smooth[:31]
    np.savez_compressed(tmp_path / "made.npz", volume=volume)
    crop = volumes.load("made", 32, tmp_path)
    assert crop.flags.c_contiguous
    np.testing.assert_array_equal(crop, volume[:, 4:36, 4:36])
    assert volumes.load("made", data=tmp_path).shape == (31, 40, 40)


def test_missing_directory_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("TINC_DATA", str(tmp_path / "absent"))
    with pytest.raises(FileNotFoundError, match="absent"):
        volumes.load("mri_t1")


def test_record_says_where_it_comes_from(tmp_path, smooth):
    row = {"volume": "made", "psnr": psnr(smooth, smooth + 0.01)}
    path = records.save("made", [row], directory=tmp_path, crop=40)
    record = json.loads(path.read_text())
    assert record["rows"] == [row]
    assert record["crop"] == 40
    assert record["machine"]["cores"] >= 1
    assert record["command"]
    assert record["versions"]["numpy"] == np.__version__
