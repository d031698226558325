"""The benchmarks' own machinery, on a volume made here."""

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks import records, volumes
from tinc_codec.metrics import psnr

BRAIN = Path(__file__).parents[1] / "examples" / "data" / "mni152_t1_crop.npz"


@pytest.fixture
def smooth():
    z, y, x = np.meshgrid(*[np.linspace(0, 3, 40)] * 3, indexing="ij")
    return np.sin(z * y) + np.cos(x * y) + 0.1 * np.sin(9 * x)


@pytest.fixture
def peers():
    pytest.importorskip("imagecodecs")
    pytest.importorskip("av")
    from benchmarks import peers

    return peers


@pytest.fixture
def rd(peers, tmp_path, monkeypatch):
    """`benchmarks.rd` with its results, plots and pages in a directory of the test's."""
    pytest.importorskip("matplotlib")
    pytest.importorskip("rich")
    from benchmarks import plots, rd

    monkeypatch.setattr(records, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(plots, "PLOTS", tmp_path / "plots")
    monkeypatch.setattr(rd, "PAGES", tmp_path)
    monkeypatch.setenv("TINC_DATA", str(tmp_path))
    volume = volumes.central_crop(np.load(BRAIN)["volume"], 32)
    np.savez_compressed(tmp_path / "brain.npz", volume=volume)
    np.savez_compressed(tmp_path / "turned.npz", volume=volume[::-1].astype(np.float32) / 7)
    return rd


def make_row(volume, ratio, codec, psnr, **more):
    shared = {"shape": [8, 10, 10], "size_bytes": 50, "date": "2026-01-02", "commit": "abc"}
    times = {"encode_s": 0.001, "decode_s": 0.0002}
    key = {"volume": volume, "ratio": ratio, "codec": codec}
    return {**key, "psnr": psnr, **times, **shared, **more}


@pytest.mark.parametrize("name", ["SPERR", "SZ3", "ZFP", "HEVC", "JPEG 2000", "JPEG XL"])
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
    from benchmarks.peers import PEERS, SizeNotReached

    with pytest.raises(SizeNotReached, match="10 asked for"):
        PEERS["HEVC"](smooth.astype(np.float32), 10)


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


@pytest.mark.parametrize("name", ["JPEG 2000", "JPEG XL"])
@pytest.mark.parametrize("planes", [1, 7, 12])
def test_images_give_every_plane_back_where_it_was(peers, name, planes):
    z, y, x = np.meshgrid(np.arange(planes), np.arange(24), np.arange(33), indexing="ij")
    volume = (900 * np.sin(z) + 30 * y + 5 * x).astype(np.int16)
    result = peers.PEERS[name](volume, volume.size // 2)
    assert result.psnr > 40
    assert result.max_error < 60


def test_jpegxl_gets_smaller_than_its_largest_distance_allows(peers, smooth):
    rough = smooth + np.random.default_rng(0).normal(0, 0.3, smooth.shape)
    results = [
        peers.PEERS["JPEG XL"](rough.astype(np.float32), rough.size // part) for part in (8, 200)
    ]
    assert results[1].size_bytes <= rough.size // 200
    assert results[1].setting > 15
    assert results[0].psnr > results[1].psnr > 5


@pytest.mark.parametrize("name", ["SPERR", "SZ3", "ZFP"])
@pytest.mark.parametrize("dtype", ["uint8", "int16", "float32"])
def test_error_bounded_peer_keeps_to_the_bound(peers, smooth, name, dtype):
    volume = (smooth * 50 + 120).astype(dtype)
    results = [peers.ERROR_BOUNDED[name](volume, bound) for bound in (4, 1)]
    assert results[0].max_error <= 4
    assert results[1].max_error <= 1
    assert results[0].size_bytes < results[1].size_bytes < volume.nbytes
    assert results[1].psnr > 40


@pytest.mark.parametrize("name", ["SPERR", "SZ3", "ZFP"])
def test_bound_of_integers_counts_whole_units(peers, smooth, name):
    volume = (smooth * 50 + 120).astype(np.uint8)
    bounded = peers.ERROR_BOUNDED[name]
    assert bounded(volume, 1.9).size_bytes == bounded(volume, 1).size_bytes
    assert bounded(volume, 0.5).max_error == 0


def test_missed_bound_shows_in_the_result(rd, smooth):
    from benchmarks import max_error

    # The peers see float32, which has steps of 8 here.
    row = max_error.run_case(smooth + 1e8, 0.25, "SZ3")
    assert row["max_error"] > 0.25
    assert row["holds"] is False


def test_rd_measures_peers_and_settings_and_shows_them(rd, tmp_path, capsys):
    codecs = ["auto:0", "JPEG 2000", "SPERR"]
    rd.main(
        ["--volumes", "brain", "turned", "--ratios", "8", "16", "--crop", "32", "--markdown"]
        + ["--only", *codecs]
    )
    record = json.loads((tmp_path / "results" / "rd_32.json").read_text())
    assert [row["codec"] for row in record["rows"][:3]] == ["SPERR", "JPEG 2000", "auto:0"]
    assert len(record["rows"]) == 2 * 2 * 3
    for row in record["rows"]:
        itemsize = 1 if row["volume"] == "brain" else 4
        assert row["size_bytes"] <= 32**3 * itemsize // row["ratio"]
        assert row["psnr"] > 15
        assert row["encode_s"] > 0
        assert {"date", "commit", "shape", "dtype"} < row.keys()
    ours = [row for row in record["rows"] if row["codec"] == "auto:0"]
    assert all(0 < sum(row["section_bytes"].values()) < row["size_bytes"] for row in ours)
    printed = capsys.readouterr().out
    assert "PSNR at 16×, dB" in printed
    assert "dB over SPERR at 8×" in printed
    page = (tmp_path / "RD_32.md").read_text()
    assert f"| {ours[0]['psnr']:.2f}" in page.replace("**", "")
    assert "plots/rd_32.png" in page
    png = (tmp_path / "plots" / "rd_32.png").read_bytes()
    assert png.startswith(b"\x89PNG")
    assert len(png) < 200_000


def test_rd_replaces_what_it_runs_and_keeps_the_rest(rd, tmp_path):
    path = tmp_path / "results" / "rd_24.json"
    common = ["--volumes", "brain", "--crop", "24"]
    rd.main([*common, "--ratios", "8", "16", "--only", "SPERR", "ZFP"])
    first = rd.load_rows(path)
    old = [{**row, "date": "2001-01-01"} for row in first]
    records.save("rd_24", old, path.parent, crop=24)

    rd.main([*common, "--ratios", "8", "--only", "ZFP"])
    dates = {(row["ratio"], row["codec"]): row["date"] for row in rd.load_rows(path)}
    assert [key for key, date in dates.items() if date != "2001-01-01"] == [(8.0, "ZFP")]

    rd.main([*common, "--ratios", "8", "32", "--only", "SPERR", "--missing"])
    rows = rd.load_rows(path)
    assert [(row["ratio"], row["codec"]) for row in rows] == [
        (8.0, "SPERR"),
        (8.0, "ZFP"),
        (16.0, "SPERR"),
        (16.0, "ZFP"),
        (32.0, "SPERR"),
    ]
    assert rows[0]["date"] == "2001-01-01"

    kept = path.read_bytes()
    rd.main([*common, "--show"])
    assert path.read_bytes() == kept


def test_rd_keeps_a_row_for_a_size_that_cannot_be_reached(rd, tmp_path):
    rd.main(
        ["--volumes", "brain", "--crop", "32", "--ratios", "8", "2000"]
        + ["--only", "HEVC", "auto:0", "SPERR"]
    )
    rows = rd.load_rows(tmp_path / "results" / "rd_32.json")
    missed = {row["codec"]: row["limit"] for row in rows if row["psnr"] is None}
    assert missed.keys() >= {"HEVC", "auto:0"}
    assert "asked for" in missed["HEVC"]
    grid = rd.psnr_grid(rows, 2000.0)
    assert grid.lines[0][1][grid.columns.index("HEVC")].text == "–"


def test_rd_refuses_unknown_codecs(rd, capsys):
    for codec in ("HEVD", "tree", "tree:high", "forest:1"):
        with pytest.raises(SystemExit):
            rd.main(["--only", "SPERR", codec])
        assert f"'{codec}' is not one of features:EFFORT" in capsys.readouterr().err


def test_tables_mark_winners_and_gains(rd):
    from benchmarks.tables import to_markdown

    rows = [
        make_row("a", 64.0, "SPERR", 30.0),
        make_row("a", 64.0, "HEVC", 31.004),
        make_row("a", 64.0, "auto:4", 31.0, section_bytes={"tree": 30, "features": 10}),
        make_row("b", 64.0, "SPERR", 25.0),
        make_row("b", 64.0, "HEVC", None),
        make_row("b", 64.0, "auto:4", 23.5, section_bytes={"features": 40, "mask": 10}),
        make_row("b", 16.0, "SPERR", 40.0),
    ]
    merged = rd.merge(rows, [])
    assert to_markdown(rd.psnr_grid(merged, 64.0)).splitlines() == [
        "### PSNR at 64×, dB",
        "",
        "| volume | SPERR | HEVC | auto:4 |",
        "|---|--:|--:|--:|",
        "| a | 30.00 | **31.00** | **31.00** |",
        "| b | **25.00** | – | 23.50 |",
    ]
    assert to_markdown(rd.difference_grid(merged, 64.0, "SPERR")).splitlines()[4:] == [
        "| a | **+1.00** |",
        "| b | −1.50 |",
        "| mean | −0.25 |",
    ]
    assert to_markdown(rd.difference_grid(merged, 64.0, "HEVC")).splitlines()[4:] == [
        "| a | +0.00 |",
        "| b | – |",
        "| mean | +0.00 |",
    ]
    assert to_markdown(rd.share_grid(merged, "auto:4")).splitlines()[2:] == [
        "| volume | 64× |",
        "|---|--:|",
        "| a | 75 |",
        "| b | 0 |",
    ]
    assert to_markdown(rd.speed_grid(merged, 64.0)).splitlines()[4:] == [
        "| encode | 0.8 | 0.8 | 0.8 |",
        "| decode | 4 | 4 | 4 |",
    ]
    titles = [grid.title for grid in rd.grids(merged)]
    assert "dB over HEVC at 64×" in titles
    assert "dB over HEVC at 16×" not in titles


def test_plot_wants_something_to_draw(rd, tmp_path):
    from benchmarks import plots

    with pytest.raises(ValueError, match="no row has a PSNR"):
        plots.plot([make_row("a", 64.0, "HEVC", None)], tmp_path / "empty.png")


def test_bounds_of_integers_are_whole(rd):
    from benchmarks import max_error

    volume = np.array([0, 250])
    assert max_error.bounds(volume, (1e-1, 1e-2, 5e-3, 1e-3), (1, 4)) == [1, 2, 4, 25]
    assert max_error.bounds(volume / 250, (1e-1, 1e-2)) == [0.01, 0.1]


def test_max_error_compares_bytes(rd, tmp_path, capsys):
    from benchmarks import max_error

    common = ["--volumes", "brain", "turned", "--crop", "20", "--markdown"]
    max_error.main([*common, "--only", "SPERR", "SZ3"])
    max_error.main([*common, "--only", "ZFP", "auto:0"])
    rows = rd.load_rows(tmp_path / "results" / "max_error.json")
    assert {row["codec"] for row in rows} == {"SPERR", "SZ3", "ZFP", "auto:0"}
    assert all(row["holds"] for row in rows)
    of_peer = [row for row in rows if row["volume"] == "brain" and row["codec"] == "SPERR"]
    assert [row["bound"] for row in of_peer] == [1, 2, 3, 4, 8]
    assert sorted(row["size_bytes"] for row in of_peer)[::-1] == [
        row["size_bytes"] for row in of_peer
    ]
    assert "Bytes for a largest absolute error" in capsys.readouterr().out
    assert "| brain, 8 |" in (tmp_path / "MAX_ERROR.md").read_text()


def test_max_error_tables_star_a_broken_bound(rd):
    from benchmarks import max_error
    from benchmarks.tables import to_markdown

    def bounded(codec, size_bytes, holds):
        row = {"volume": "a", "bound": 0.5, "codec": codec}
        return {**row, "size_bytes": size_bytes, "holds": holds}

    rows = [bounded("SPERR", 900, False), bounded("SZ3", 2000, True), bounded("tree:4", 1500, True)]
    found, over_sperr, over_sz3, over_zfp = max_error.grids(rows)
    assert to_markdown(found).splitlines()[-1] == "| a, 0.5 | 900 * | 2,000 | **1,500** |"
    assert to_markdown(over_sperr).splitlines()[-1] == "| a, 0.5 | +66.7 |"
    assert to_markdown(over_sz3).splitlines()[-1] == "| a, 0.5 | **−25.0** |"
    assert to_markdown(over_zfp).splitlines()[-1] == "| a, 0.5 | – |"
