"""The `tinc` command: help of every subcommand, JSON for machines, exit statuses."""

import io
import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
from typer.testing import CliRunner

from tests.faces import brain
from tinc_codec import TINC, inspect
from tinc_codec.cli.app import app
from tinc_codec.cli.charts import chunk_map, curve

zarr = pytest.importorskip("zarr", minversion="3.1")

COMMANDS = ("compress", "plan", "inspect", "verify", "report", "decompress", "levels", "serve")
OF_THIS_FILE = ("plan", "inspect", "verify", "report")
CODEC = TINC(ratio=8, effort=0, model="features")


def run(*arguments: object):
    """Run the command within this process; `stdout` and `stderr` are apart."""
    environment = {"COLUMNS": "200", "TERM": "dumb", "NO_COLOR": "1"}
    return CliRunner().invoke(app, list(map(str, arguments)), env=environment)


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    """A source and what it was compressed to."""
    folder = tmp_path_factory.mktemp("cli")
    values = brain(48)
    values[:16, :16, :16] = 0
    np.save(folder / "brain.npy", values)
    zarr.create_array(
        folder / "brain.zarr", data=values, chunks=(16, 16, 16), serializer=CODEC, compressors=None
    )
    return folder / "brain.npy", folder / "brain.zarr"


@pytest.fixture
def damaged(paths, tmp_path):
    """The same, with a chunk that is gone and one that is damaged."""
    source, stored = paths
    copy = tmp_path / "brain.zarr"
    shutil.copytree(stored, copy)
    (copy / "c/1/1/1").unlink()
    data = bytearray((copy / "c/2/2/2").read_bytes())
    data[-10] ^= 1
    (copy / "c/2/2/2").write_bytes(data)
    return source, copy


class TestHelp:
    def test_all_commands_are_listed(self):
        found = run("--help")
        assert found.exit_code == 0
        assert all(f" {command} " in found.stdout for command in COMMANDS)

    @pytest.mark.parametrize("command", COMMANDS)
    def test_of_a_command(self, command):
        found = run(command, "--help")
        assert found.exit_code == 0
        assert f"tinc {command}" in found.stdout.replace("root ", "tinc ")
        assert "Not written yet" not in found.stdout

    @pytest.mark.parametrize("command", OF_THIS_FILE)
    def test_examples_and_json(self, command):
        text = run(command, "--help").stdout
        assert "Examples" in text
        assert "--json" in text
        # What is shown as an example is a command of ours.
        examples = [line.split() for line in text.splitlines() if line.startswith(" tinc ")]
        assert len(examples) >= 2
        assert all(words[1] == command for words in examples)

    def test_without_a_command(self):
        assert run().exit_code == 2
        assert "Usage" in run().output

    def test_help_loads_nothing_heavy(self):
        heavy = ("zarr", "torch", "numba", "dask", "matplotlib", "xarray", "numpy", "aiohttp")
        code = (
            "import sys, tinc_codec.cli.app\n"
            f"print(*(name for name in {heavy} if name in sys.modules))"
        )
        found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert (found.returncode, found.stdout.strip()) == (0, ""), found.stderr

    def test_version(self):
        found = run("--version")
        assert (found.exit_code, found.stdout.split()[0]) == (0, "tinc_codec")


class TestInspect:
    def test_json(self, paths):
        found = run("inspect", paths[1], "--json")
        assert (found.exit_code, found.stderr) == (0, "")
        record, report = json.loads(found.stdout), inspect(paths[1])
        assert record["shape"] == [48, 48, 48]
        assert record["part_bytes"] == report.part_bytes
        assert record["psnr_min"] == report.psnr_min
        assert record["codec"] == {"ratio": 8, "model": "features", "effort": 0}
        assert "chunks" not in record

    def test_json_of_chunks(self, paths):
        record = json.loads(run("inspect", paths[1], "--json", "--chunks").stdout)
        assert len(record["chunks"]) == record["n_chunks"] - record["n_missing"] == 26
        assert record["chunks"][0]["coordinates"] == [0, 0, 1]
        assert record["chunks"][0]["models"] == ["features"]

    def test_table_and_map(self, paths):
        found = run("inspect", paths[1], "--map")
        assert found.exit_code == 0
        assert "26 stored, 1 missing" in found.stdout
        assert "PSNR in dB, per chunk" in found.stdout
        assert "not stored" in found.stdout
        assert (
            "bytes, per chunk" in run("inspect", paths[1], "--map", "--field", "size_bytes").stdout
        )

    def test_a_url(self, paths):
        record = json.loads(run("inspect", f"file://{paths[1]}", "--json").stdout)
        assert record["n_missing"] == 1

    def test_refusals(self, tmp_path):
        found = run("inspect", tmp_path / "nothing.zarr")
        assert (found.exit_code, found.stdout) == (2, "")
        assert "FileNotFoundError" in found.stderr
        zarr.create_array(tmp_path / "a", data=np.ones(9))
        found = run("inspect", tmp_path / "a")
        assert found.exit_code == 2
        assert "is not stored with TINC" in found.stderr

    def test_the_benchmark(self, tmp_path, monkeypatch):
        from benchmarks import inspect as benchmark

        monkeypatch.setattr(benchmark, "REPEATS", 1)
        plain, sharded = benchmark.measure(tmp_path, 200)
        assert plain["n_chunks"] == sharded["n_chunks"] == 200
        # Headers only: 256 bytes of each, and the metadata.
        assert plain["bytes_read"] < 200 * 256 + 5000
        assert plain["requests"] < 210


class TestVerify:
    def test_all_is_kept(self, paths):
        found = run("verify", *paths)
        assert found.exit_code == 0
        assert "every promise is kept" in found.stdout
        assert "ratio ≥ 8" in found.stdout

    def test_json(self, paths):
        record = json.loads(run("verify", *paths, "--json", "--workers", 1).stdout)
        assert record["ok"] is True
        assert record["breaches"] == []

    def test_what_is_broken(self, damaged):
        found = run("verify", *damaged)
        assert found.exit_code == 1
        assert "2 of 27 chunks break a promise" in found.stdout
        assert "chunk (1, 1, 1) is missing" in found.stdout
        assert "chunk (2, 2, 2) cannot be read" in found.stdout

    def test_json_of_what_is_broken(self, damaged):
        found = run("verify", *damaged, "--json")
        assert found.exit_code == 1
        record = json.loads(found.stdout)
        assert [breach["chunk"] for breach in record["breaches"]] == [[1, 1, 1], [2, 2, 2]]
        assert [breach["promise"] for breach in record["breaches"]] == ["stored", "stream"]

    def test_another_volume(self, paths, tmp_path):
        np.save(tmp_path / "other.npy", brain(40))
        found = run("verify", tmp_path / "other.npy", paths[1])
        assert found.exit_code == 1
        assert "the array is not that of this source" in found.stdout
        assert "ratio ≥ 8: nothing could be measured" in found.stdout

    @pytest.mark.parametrize("arguments", [("x.npy", 1), (0, "x.zarr"), (0, 0)])
    def test_refusals(self, paths, tmp_path, arguments):
        given = [paths[a] if isinstance(a, int) else tmp_path / a for a in arguments]
        found = run("verify", *given)
        assert (found.exit_code, found.stdout) == (2, "")
        assert "error:" in found.stderr

    @pytest.mark.parametrize("arguments", [(), ("--workers", "0", 0, 1), ("--no-such", 0, 1)])
    def test_usage(self, paths, arguments):
        given = [paths[a] if isinstance(a, int) else a for a in arguments]
        assert run("verify", *given).exit_code == 2


class TestPlan:
    ARGUMENTS = ("--ratios", "8,32", "--effort", 0, "--model", "features", "--chunks", "16")

    def test_table_and_curve(self, paths):
        found = run("plan", paths[0], *self.ARGUMENTS, "--samples", 2)
        assert found.exit_code == 0
        assert all(
            text in found.stdout for text in ("8×", "32×", "dB", "kB", "●", "2 of 27 chunks")
        )

    def test_json_and_plot(self, paths, tmp_path):
        pytest.importorskip("matplotlib")
        found = run("plan", paths[0], *self.ARGUMENTS, "--json", "--plot", tmp_path / "plan.png")
        assert found.exit_code == 0
        record = json.loads(found.stdout)
        assert [row["ratio"] for row in record["rows"]] == [8, 32]
        assert record["rows"][0]["psnr"] > record["rows"][1]["psnr"]
        from matplotlib.image import imread

        assert imread(tmp_path / "plan.png").shape[1] > 1000

    def test_ratios_that_cannot_be_reached(self, paths):
        found = run("plan", paths[0], *self.ARGUMENTS[2:], "--ratios", "8,2000", "--samples", 1)
        assert found.exit_code == 0
        assert "not possible" in found.stdout
        assert "largest possible ratio" in found.stdout

    @pytest.mark.parametrize(
        "arguments",
        [("--ratios", "8,x"), ("--ratios", "0.5"), ("--chunks", "a"), ("--plot", "a.x")],
    )
    def test_refusals(self, paths, arguments):
        found = run(
            "plan", paths[0], "--effort", 0, "--model", "features", "--samples", 1, *arguments
        )
        assert (found.exit_code, found.stdout) == (2, "")
        assert "ConfigError" in found.stderr


class TestReport:
    def test_page_and_status(self, paths, damaged, tmp_path):
        pytest.importorskip("matplotlib")
        page = tmp_path / "page.html"
        found = run("report", *paths, "-o", page, "--no-peers")
        assert (found.exit_code, found.stdout.strip()) == (0, str(page))
        assert page.stat().st_size > 50_000
        found = run("report", *damaged, "-o", page, "--no-peers", "--json")
        assert found.exit_code == 1
        assert json.loads(found.stdout)["n_broken"] == 2
        assert "2 of 27 chunks break a promise" in page.read_text()

    def test_refusals(self, paths, tmp_path):
        pytest.importorskip("matplotlib")
        page = tmp_path / "page.html"
        found = run("report", paths[0], tmp_path / "x.zarr", "-o", page)
        assert found.exit_code == 2
        found = run("report", *paths, "-o", tmp_path / "no" / "page.html")
        assert found.exit_code == 2
        assert "there is no folder" in found.stderr
        assert list(tmp_path.iterdir()) == []


class TestCharts:
    def drawn(self, renderable) -> str:
        from rich.console import Console

        out = io.StringIO()
        Console(width=200, file=out).print(renderable)
        return out.getvalue()

    def test_a_cell_per_chunk(self):
        grid = np.full((2, 3, 4), 40.0)
        grid[0, 0, 0], grid[0, 0, 1], grid[0, 0, 2], grid[1, 2, 3] = np.nan, np.inf, -np.inf, 20
        lines = self.drawn(chunk_map(grid, "t")).splitlines()
        assert lines[0].strip() == "t"
        assert [line.split() for line in lines[1:5]] == [
            ["z", "0", "z", "1"],
            ["·=!█", "████"],
            ["████", "████"],
            ["████", "███▁"],
        ]

    def test_low_may_be_good(self):
        grid = np.array([1.0, 2.0, 3.0])
        assert "█▅▁" in self.drawn(chunk_map(grid, "t", low_is_bad=False))

    def test_large_grids_show_the_worst(self):
        grid = np.full((100, 200, 300), 40.0)
        grid[51, 101, 151] = 3
        text = self.drawn(chunk_map(grid, "t"))
        assert text.count("▁") == 2
        assert "the worst of 5 × 4 × 5 chunks each" in text

    def test_a_curve_goes_through_its_points(self):
        text = curve([2, 4, 8], [30.0, 20.0, 10.0], title="t", unit="dB", width=21, height=5).plain
        lines = text.splitlines()
        assert [line.index("●") for line in lines if "●" in line] == [13, 23, 33]
        assert lines[-1].split() == ["2×", "4×", "8×"]
