"""`tinc_codec.report`: the page says what is true, needs nothing else, and a browser shows it."""

import base64
import html
import math
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest

from tests.browser.chromium import find_chromium
from tests.faces import brain, smooth_volume
from tinc_codec import TINC, ConfigError, UnsupportedDataError
from tinc_codec.metrics import measure
from tinc_codec.pipeline.verify import verify
from tinc_codec.pipeline.volumes import Volume, VolumeInfo
from tinc_codec.report import comparison, peers, writing
from tinc_codec.report.planes import ReadableArray, read_planes
from tinc_codec.report.writing import write_report

zarr = pytest.importorskip("zarr", minversion="3.1")
pytest.importorskip("matplotlib")

from matplotlib.image import imread  # noqa: E402

CODEC = TINC(ratio=16, effort=0, model="features")
INFO = VolumeInfo(
    name="head <b>& shoulders",
    axes=("z", "y", "x"),
    scale=(1.5, 1.0, 1.0),
    translation=(0.0,) * 3,
    units=("millimeter",) * 3,
    attributes={"units": "HU"},
)


def create(path: Path, values: np.ndarray, chunks=(24, 24, 24), codec=CODEC, **options) -> Path:
    zarr.create_array(
        path, data=values, chunks=chunks, serializer=codec, compressors=None, **options
    )
    return path


def text_of(page: Path) -> str:
    """Return what a reader sees of a page, without pictures and style."""
    content = page.read_text(encoding="utf-8")
    body = content[content.index("<body>") :]
    return html.unescape(re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", body)))


def figures_of(page: Path) -> list[tuple[str, bytes]]:
    found = re.findall(r'<img src="data:([^;]+);base64,([^"]+)"', page.read_text())
    return [(kind, base64.b64decode(data)) for kind, data in found]


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """A report of a good array, with peers, and of one that is damaged, without."""
    folder = tmp_path_factory.mktemp("report")
    values = brain(48)
    volume = Volume(values, INFO)
    stored = create(folder / "good.zarr", values)
    good = write_report(volume, stored, folder / "good.html")
    floats = values.astype("f4")
    floats[:5, :5, :5] = np.nan
    stored = create(folder / "bad.zarr", floats)
    data = bytearray((stored / "c/1/1/1").read_bytes())
    data[-9] ^= 1
    (stored / "c/1/1/1").write_bytes(data)
    bad = write_report(Volume(floats, INFO), stored, folder / "bad.html", peers=False)
    return folder, {"good": good, "bad": bad}


class TestPage:
    def test_it_says_what_was_measured(self, pages):
        folder, found = pages
        text, verified = text_of(folder / "good.html"), found["good"]
        decoded = zarr.open_array(folder / "good.zarr", mode="r")[...]
        quality = measure(brain(48), decoded)
        assert f"{quality.psnr:.2f} dB" in text
        assert f"{quality.max_error:.4g} HU" in text
        assert f"{verified.ratio:.1f}×" in text
        assert "Every promise is kept" in text
        assert "Promised ratio ≥ 16×" in text
        assert "head <b>& shoulders" in text
        assert "1.5 × 1 × 1 millimeter" in text
        assert "TINC(ratio=16, model='features', effort=0)" in text
        worst = min(verified.chunks, key=lambda chunk: chunk.psnr)
        assert f"The worst chunk: {worst.coordinates}, {worst.psnr:.2f} dB" in text
        for name, size_bytes in verified.part_bytes.items():
            assert f"{name} {size_bytes:,} " in text

    def test_it_says_what_is_broken(self, pages):
        folder, found = pages
        text = text_of(folder / "bad.html")
        assert not found["bad"].ok
        assert "1 of 8 chunks break a promise" in text
        assert "(1, 1, 1) stream cannot be read: CorruptStreamError: checksum" in text
        assert "kept by every chunk that can be read" in text
        assert "Not asked for." in text
        assert "Every promise is kept" not in text

    def test_pictures(self, pages):
        folder, _ = pages
        kinds = [kind for kind, _ in figures_of(folder / "good.html")]
        # Three planes of the volume and of its worst chunk, errors, map of chunks, peers.
        assert kinds == ["image/png"] * 6 + ["image/svg+xml", "image/png", "image/svg+xml"]

    @pytest.mark.parametrize("name", ["good", "bad"])
    def test_it_needs_nothing_else(self, pages, name):
        content = (pages[0] / f"{name}.html").read_text()
        assert "default-src &#x27;none&#x27;" in content
        assert re.findall(r"<script|<link|<iframe|@import|url\(|srcset", content) == []
        sources = re.findall(r'(?:src|href)="([^"]{0,20})', content)
        assert sources
        assert all(source.startswith("data:image/") for source in sources)

    @pytest.mark.parametrize("name", ["good", "bad"])
    def test_it_can_be_read_without_seeing(self, pages, name):
        content = (pages[0] / f"{name}.html").read_text()
        assert '<html lang="en">' in content
        assert content.count("<h1>") == 1
        images = re.findall(r"<img [^>]*>", content)
        assert images
        assert all(re.search(r'alt="[^"]{20,}"', image) for image in images)
        tables = re.findall(r"<table.*?</table>", content, re.DOTALL)
        assert len(tables) >= 3
        assert all('scope="row"' in table for table in tables)

    def test_peers_at_the_same_size(self, pages):
        text = text_of(pages[0] / "good.html")
        section = text[text.index("Beside other codecs") :]
        assert "TINC" in section
        for peer in peers.PEERS:
            row = re.search(rf"{peer.name} +(\S+)", section)
            missing = peers.missing_library(peer)
            assert row[1] == "–" if missing else int(row[1].replace(",", "")) > 0
            assert missing is None or missing in section

    def test_a_failed_write_leaves_the_old_page(self, pages, tmp_path, monkeypatch):
        page = tmp_path / "page.html"
        page.write_text("old")

        def fail(_):
            raise RuntimeError("no page")

        monkeypatch.setattr(writing, "render_page", fail)
        with pytest.raises(RuntimeError, match="no page"):
            write_report(brain(48), pages[0] / "good.zarr", page, peers=False)
        assert page.read_text() == "old"
        assert list(tmp_path.iterdir()) == [page]


class TestVolumes:
    @pytest.mark.parametrize(
        ("shape", "chunks", "dtype"),
        [
            ((40, 30), (16, 16), "u2"),
            ((2, 3, 12, 14, 16), (1, 1, 8, 8, 8), "f4"),
            ((20, 20, 20), (20, 20, 20), "i2"),
            ((1, 20, 20), (1, 10, 10), "f8"),
        ],
    )
    def test_shapes(self, tmp_path, shape, chunks, dtype):
        values = smooth_volume(shape, dtype)
        stored = create(tmp_path / "a.zarr", values, chunks, TINC(psnr=30, effort=0))
        found = write_report(values, stored, tmp_path / "a.html", peers=False)
        assert found.ok
        assert "Before and after" in text_of(tmp_path / "a.html")
        assert len(figures_of(tmp_path / "a.html")) >= 2

    @pytest.mark.parametrize("value", [5.0, np.nan])
    def test_nothing_to_see(self, tmp_path, value):
        values = np.full((20, 20, 20), value, "f4")
        stored = create(tmp_path / "a.zarr", values, (10, 10, 10), fill_value=1)
        assert write_report(values, stored, tmp_path / "a.html").ok
        assert "there is nothing to compare" in text_of(tmp_path / "a.html")

    def test_another_volume(self, tmp_path):
        stored = create(tmp_path / "a.zarr", brain(48))
        assert not write_report(brain(40), stored, tmp_path / "a.html").ok
        text = text_of(tmp_path / "a.html")
        assert "The array is not that of this source" in text
        assert "the array has (48, 48, 48), its source (40, 40, 40)" in text

    def test_damaged_headers(self, tmp_path):
        values = brain(48)
        stored = create(tmp_path / "a.zarr", values)
        (stored / "c/0/0/0").write_bytes(b"nothing")
        assert not write_report(values, stored, tmp_path / "a.html", peers=False).ok

    def test_refusals(self, tmp_path):
        values = brain(48)
        stored = create(tmp_path / "a.zarr", values)
        with pytest.raises(ConfigError, match="there is no folder"):
            write_report(values, stored, tmp_path / "b" / "a.html")
        zarr.create_array(tmp_path / "b.zarr", data=values)
        with pytest.raises(UnsupportedDataError, match="not stored with TINC"):
            write_report(values, tmp_path / "b.zarr", tmp_path / "a.html")
        assert not (tmp_path / "a.html").exists()


class TestPlanes:
    def test_they_are_cuts_through_the_middle(self):
        values = np.arange(6 * 8 * 10.0).reshape(6, 8, 10)
        planes = read_planes(values, values + 1, ("z", "y", "x"), (2.0, 1.0, 1.0))
        assert [(p.axis, p.rows, p.columns, p.place) for p in planes] == [
            ("z", "y", "x", 3), ("y", "z", "x", 4), ("x", "z", "y", 5),
        ]  # fmt: skip
        np.testing.assert_array_equal(planes[1].before, values[:, 4, :])
        np.testing.assert_array_equal(planes[1].difference, 1)
        assert [plane.aspect for plane in planes] == [1, 2, 2]

    def test_large_planes_are_thinned_and_read_in_pieces(self):
        class Wide:
            """A plane of which no more than a part may be read at once."""

            shape, dtype = (3, 4000, 5000), np.dtype("f4")

            def __getitem__(self, selection):
                sizes = [part.stop - part.start for part in selection]
                assert math.prod(sizes) <= 1 << 22
                rows = np.arange(selection[1].start, selection[1].stop)[None, :, None]
                return np.broadcast_to(rows.astype("f4"), sizes)

        box = (slice(0, 3), slice(0, 4000), slice(0, 5000))
        plane = read_planes(Wide(), Wide(), ("z", "y", "x"), (1.0,) * 3, box)[0]
        assert plane.step == 7
        np.testing.assert_array_equal(plane.before[:, 0], np.arange(0, 4000, 7))

    def test_damaged_chunks_read_as_nan(self, tmp_path):
        values = brain(48)
        stored = create(tmp_path / "a.zarr", values)
        (stored / "c/0/1/0").write_bytes(b"nothing")
        array = zarr.open_array(stored, mode="r")
        found = ReadableArray(array, (24, 24, 24))[10:30, 20:40, 5:45]
        damaged = np.zeros((48, 48, 48), bool)
        damaged[:24, 24:, :24] = True
        np.testing.assert_array_equal(np.isnan(found), damaged[10:30, 20:40, 5:45])
        (stored / "c/0/1/0").unlink()
        np.testing.assert_array_equal(
            found[~np.isnan(found)], array[10:30, 20:40, 5:45][~np.isnan(found)]
        )


class TestPeers:
    @pytest.mark.parametrize("peer", peers.PEERS, ids=lambda peer: peer.name)
    @pytest.mark.parametrize("dtype", ["uint8", "float32"])
    def test_a_size_is_reached(self, peer, dtype):
        if peers.missing_library(peer):
            pytest.skip(peers.missing_library(peer))
        volume = brain(40)[:32].astype(dtype)
        sizes = (volume.size // 5, volume.size // 16)
        points = [peers.run_peer(peer, volume, None, size) for size in sizes]
        for point in points:
            assert 0.3 * point.asked_bytes < point.size_bytes <= point.asked_bytes
        assert points[0].psnr > points[1].psnr > 15
        assert points[0].max_error < np.ptp(volume.astype("f8"))

    def test_what_is_missing_is_named(self):
        absent = peers.Peer("X", "no_such_library", "X", peers.PEERS[0].bind)
        assert peers.missing_library(absent) == "no_such_library is not installed"

    def test_our_point_is_the_stored_chunk(self, tmp_path, monkeypatch):
        monkeypatch.setattr(comparison, "PEERS", ())
        values = brain(60)
        stored = create(tmp_path / "a.zarr", values)
        found = verify(values, stored)
        report = comparison.compare_peers(found, values)
        assert report.stored
        assert report.coordinates == (1, 1, 1)
        assert report.shape == (24, 24, 24)
        ours = report.curves[0].at(report.asked_bytes)
        box = (slice(24, 48),) * 3
        decoded = zarr.open_array(stored, mode="r")[box]
        assert ours.psnr == pytest.approx(measure(values[box], decoded).psnr)
        assert ours.size_bytes == (stored / "c/1/1/1").stat().st_size
        assert len(report.curves[0].points) == 3

    def test_the_middle_of_a_large_chunk(self, tmp_path, monkeypatch):
        monkeypatch.setattr(comparison, "PEERS", ())
        monkeypatch.setattr(comparison, "_MAX_EDGE", 16)
        values = brain(48)
        found = verify(values, create(tmp_path / "a.zarr", values))
        report = comparison.compare_peers(found, values)
        assert not report.stored
        assert report.shape == (16, 16, 16)
        assert report.asked_bytes <= 16**3 / 16

    def test_a_peer_that_fails_costs_its_row_only(self, tmp_path, monkeypatch):
        def bind(_):
            raise RuntimeError("cannot")

        failing = peers.Peer("X", "numpy", None, bind)
        monkeypatch.setattr(comparison, "PEERS", (failing,))
        monkeypatch.setattr(comparison, "missing_library", lambda _: None)
        values = brain(48)
        stored = create(tmp_path / "a.zarr", values)
        write_report(values, stored, tmp_path / "a.html")
        assert "RuntimeError: cannot" in text_of(tmp_path / "a.html")

    def test_nan_does_not_count(self, tmp_path, monkeypatch):
        missing = peers.missing_library(peers.PEERS[0])
        if missing is not None:
            pytest.skip(missing)
        values = brain(48).astype("f4")
        values[20:30, 20:30, 20:30] = np.nan
        monkeypatch.setattr(comparison, "PEERS", peers.PEERS[:1])
        found = verify(values, create(tmp_path / "a.zarr", values))
        report = comparison.compare_peers(found, values)
        assert report.curves[1].points[0].psnr > 20


class TestBrowser:
    """A real browser, headless."""

    @pytest.fixture(scope="class")
    @staticmethod
    def chromium():
        found = find_chromium()
        if found is None:
            pytest.skip("no Chromium on this machine")
        return found

    def show(self, chromium: str, page: Path, folder: Path) -> tuple[np.ndarray, list[str]]:
        """Load a page from a file; give its picture and what the console says."""
        picture = folder / f"{page.stem}.png"
        done = subprocess.run(
            [
                chromium, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
                "--no-first-run", "--disable-background-networking", "--disable-component-update",
                "--disable-sync", "--disable-quic", "--hide-scrollbars", "--enable-logging=stderr",
                f"--user-data-dir={folder / 'profile'}", "--window-size=1200,6000",
                f"--screenshot={picture}", f"file://{page}",
            ],
            capture_output=True, text=True, timeout=90, check=True,
        )  # fmt: skip
        said = [line for line in done.stderr.splitlines() if ":CONSOLE" in line]
        return imread(picture)[..., :3], said

    def test_it_shows_everything_and_asks_for_nothing(self, pages, chromium, tmp_path):
        # Anything fetched or run would break the page's own policy, and the console would say so.
        for name in ("good", "bad"):
            picture, said = self.show(chromium, pages[0] / f"{name}.html", tmp_path)
            assert said == []
            assert picture.shape[:2] == (6000, 1200)
            ink = (picture.min(axis=2) < 0.9).mean(axis=1)
            assert ink.max() > 0.5
            # Rows of pictures, not of text alone.
            assert (ink > 0.3).sum() > 800
            # The page's border stays empty: nothing runs out of it.
            assert picture[:, :20].min() > 0.95
            assert picture[:, -20:].min() > 0.95

    def test_the_check_would_see_a_request_and_a_lost_picture(self, pages, chromium, tmp_path):
        content = (pages[0] / "good.html").read_text()
        content = content.replace("</main>", '<img src="http://127.0.0.1:9/x.png" alt=""></main>')
        (tmp_path / "asks.html").write_text(content)
        _, said = self.show(chromium, tmp_path / "asks.html", tmp_path)
        assert any("Content Security Policy" in line for line in said)
        lost = re.sub(r"base64,[^\"]*", "base64,", (pages[0] / "good.html").read_text())
        (tmp_path / "lost.html").write_text(lost)
        picture, _ = self.show(chromium, tmp_path / "lost.html", tmp_path)
        assert ((picture.min(axis=2) < 0.9).mean(axis=1) > 0.3).sum() < 400

    def test_it_prints(self, pages, chromium, tmp_path):
        done = subprocess.run(
            [
                chromium, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
                "--no-first-run", "--disable-background-networking",
                f"--user-data-dir={tmp_path / 'profile'}", "--no-pdf-header-footer",
                f"--print-to-pdf={tmp_path / 'page.pdf'}", f"file://{pages[0] / 'good.html'}",
            ],
            capture_output=True, timeout=90, check=True,
        )  # fmt: skip
        assert done.returncode == 0
        data = (tmp_path / "page.pdf").read_bytes()
        assert data.startswith(b"%PDF")
        assert 2 <= len(re.findall(rb"/Type\s*/Page\b", data)) <= 9
