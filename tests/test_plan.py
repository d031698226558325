"""`tinc_codec.pipeline.plan`: which chunks are fitted, and how well they stand for the volume."""

import json
import math

import numpy as np
import pytest

from tests.faces import brain, smooth_volume
from tinc_codec import TINC, ConfigError, config, metrics
from tinc_codec.pipeline.compress import compress
from tinc_codec.pipeline.plan import plan
from tinc_codec.pipeline.verify import verify

zarr = pytest.importorskip("zarr", minversion="3.1")


def rows(found) -> dict[float, object]:
    return {row.ratio: row for row in found.rows}


class Recording:
    """An array that keeps the boxes that are read of it."""

    def __init__(self, values: np.ndarray) -> None:
        self.values, self.boxes = values, []
        self.shape, self.dtype = values.shape, values.dtype

    def __getitem__(self, selection):
        self.boxes.append(selection)
        return self.values[selection]


class TestEstimate:
    def test_all_chunks_give_the_figures_of_the_volume(self, tmp_path):
        """With as many samples as chunks nothing is left to extrapolate."""
        values = brain(64)
        found = plan(values, ratios=(8, 32), effort=0, model="features", chunks=32, samples=8)
        assert (found.n_chunks, len(found.samples), found.chunks) == (8, 8, (32, 32, 32))
        for ratio, row in rows(found).items():
            codec = TINC(ratio=ratio, effort=0, model="features")
            array = zarr.create_array(
                tmp_path / f"{ratio:g}", data=values, chunks=(32, 32, 32), serializer=codec,
                compressors=None,
            )  # fmt: skip
            decoded = array[...]
            files = list((tmp_path / f"{ratio:g}").rglob("c/*/*/*"))
            assert row.size_bytes == sum(path.stat().st_size for path in files)
            assert row.max_error == metrics.max_error(values, decoded)
            # The range is that of what was looked at: here the chunks' whole middles.
            assert row.psnr == pytest.approx(metrics.psnr(values, decoded), abs=0.2)
            assert row.encode_s > 0
            assert row.refused is None

    def test_a_few_chunks_come_close(self):
        values = brain(96)
        some = plan(values, ratios=(16,), effort=0, model="features", chunks=24, samples=6)
        every = plan(values, ratios=(16,), effort=0, model="features", chunks=24, samples=64)
        (few,), (all_,) = some.rows, every.rows
        assert few.psnr == pytest.approx(all_.psnr, abs=1.5)
        assert few.size_bytes == pytest.approx(all_.size_bytes, rel=0.05)

    def test_chunks_that_reach_beyond_the_end(self, tmp_path):
        """They are encoded as `compress` encodes them, with room for their voxels alone."""
        values = smooth_volume((20, 20, 20), "u2")
        values += np.random.default_rng(0).integers(0, 9, values.shape).astype("u2")
        settings = {"effort": 0, "model": "features", "chunks": 16}
        (row,) = plan(values, ratios=(8,), samples=8, **settings).rows
        summary = compress(values, tmp_path / "a.zarr", ratio=8, **settings)
        found = verify(values, tmp_path / "a.zarr")
        assert row.size_bytes == found.stored_bytes == summary.stored_bytes
        assert row.max_error == found.max_error
        assert row.psnr == pytest.approx(found.psnr, abs=0.1)

    def test_ratios_that_cannot_be_reached(self):
        values = smooth_volume((16, 16, 16), "u1")
        found = rows(plan(values, ratios=(8, 500), effort=0, model="features"))
        assert found[8].refused is None
        assert "largest possible ratio" in found[500].refused
        assert math.isnan(found[500].psnr)
        assert math.isnan(found[500].encode_s)

    def test_a_volume_that_is_constant(self):
        (row,) = plan(np.full((32, 16, 16), 3, "i2"), ratios=(64,), effort=0, chunks=16).rows
        assert (row.psnr, row.psnr_min, row.max_error) == (math.inf, math.inf, 0)
        assert row.size_bytes < 2 * 128

    def test_a_volume_without_a_finite_voxel(self):
        (row,) = plan(np.full((16, 16, 16), np.nan, "f4"), ratios=(64,), effort=0).rows
        assert math.isnan(row.psnr)
        assert row.max_error == 0

    def test_workers_share_the_time(self):
        values = brain(64)
        settings = {"ratios": (16,), "effort": 0, "model": "features", "chunks": 16, "samples": 2}
        found = plan(values, workers=7, **settings)
        assert "over 7 workers" in found.basis
        assert found.to_record()["workers"] == 7

    def test_the_number_of_threads_is_given_back(self):
        with config.set(threads=3):
            plan(brain(32), ratios=(16,), effort=0, model="features", chunks=16, samples=1)
            assert config.get().threads == 3

    def test_the_record_is_json(self):
        found = plan(brain(32), ratios=(16, 4), effort=0, model="features", chunks=16, samples=2)
        record = json.loads(json.dumps(found.to_record()))
        assert [row["ratio"] for row in record["rows"]] == [16, 4]
        assert record["basis"] == found.basis
        assert record["n_chunks"] == 8


class TestSamples:
    def test_they_span_calm_and_busy(self):
        """A volume of which a quarter is busy gets a quarter of its samples there."""
        values = np.zeros((64, 64, 64), "f4")
        values[:, :32, :32] = smooth_volume((64, 32, 32))
        values[:, :32, :32] += np.random.default_rng(0).normal(0, 5, (64, 32, 32))
        found = plan(values, ratios=(4,), effort=0, model="features", chunks=16, samples=4)
        spreads = [sample.spread for sample in found.samples]
        assert spreads == sorted(spreads)
        assert [spread > 0 for spread in spreads] == [False, False, False, True]

    def test_they_are_the_same_every_time(self):
        settings = {"ratios": (16,), "effort": 0, "model": "features", "chunks": 16, "samples": 3}
        values = brain(64)
        assert plan(values, **settings).samples == plan(values, **settings).samples

    def test_little_is_read(self):
        """Of a large volume 64 middles and the samples are read, spread over all of it."""
        values = np.broadcast_to(np.float32(1), (640, 640, 640))
        source = Recording(values)
        found = plan(source, ratios=(16,), effort=0, chunks=64, samples=3)
        assert found.n_chunks == 1000
        probes, samples = source.boxes[:64], source.boxes[64:]
        assert len(samples) == 3 == len(found.samples)
        assert all(values[box].size == 32**3 for box in probes)
        for axis in range(3):
            starts = sorted({box[axis].start for box in probes})
            assert len(starts) == 4
            assert starts[0] < 160
            assert starts[-1] > 480

    def test_never_more_than_there_are(self):
        found = plan(brain(32), ratios=(16,), effort=0, model="features", chunks=16, samples=99)
        assert len({sample.coordinates for sample in found.samples}) == 8


class TestRefusals:
    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"ratios": ()}, "ratios is empty"),
            ({"ratios": (16, 1)}, "ratio=1"),
            ({"effort": 10}, "effort=10"),
            ({"model": "forest"}, "model='forest'"),
            ({"samples": 0}, "samples=0"),
            ({"workers": 0}, "workers=0"),
            ({"chunks": (16, 16)}, "chunks="),
        ],
    )
    def test_arguments(self, settings, message):
        with pytest.raises(ConfigError, match=message):
            plan(brain(32), **settings)

    def test_what_is_not_there(self, tmp_path):
        with pytest.raises(FileNotFoundError):
            plan(tmp_path / "a.npy")
