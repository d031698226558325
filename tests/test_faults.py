"""Whatever happens to a run of `compress`, the next one finishes it, to the same bytes."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from tests.faces import smooth_volume
from tinc_codec.errors import ConfigError
from tinc_codec.pipeline.metadata import default_axes, plain_info
from tinc_codec.pipeline.volumes import Volume

zarr = pytest.importorskip("zarr", minversion="3.1")
psutil = pytest.importorskip("psutil")

from tinc_codec.pipeline.compress import compress  # noqa: E402

SETTINGS = {"ratio": 16, "effort": 0, "model": "features", "chunks": (16, 16, 32)}
SHAPE = (60, 50, 64)
N_CHUNKS = 4 * 4 * 2
MODIFIED_NS = 1_700_000_000_123_456_789


@pytest.fixture(scope="module")
def voxels():
    noise = np.random.default_rng(3).normal(size=SHAPE)
    return (smooth_volume(SHAPE) + noise).astype("f4")


def write_source(path: Path, voxels: np.ndarray) -> Path:
    np.save(path, voxels)
    os.utime(path, ns=(MODIFIED_NS, MODIFIED_NS))
    return path


@pytest.fixture(scope="module")
def reference(tmp_path_factory, voxels):
    """The source, and the files of an undisturbed run."""
    folder = tmp_path_factory.mktemp("reference")
    source = write_source(folder / "a.npy", voxels)
    assert compress(source, folder / "a.zarr", workers=1, **SETTINGS).complete
    return source, files(folder / "a.zarr")


def files(folder: Path) -> dict[str, bytes]:
    found = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


def chunk_files(folder: Path) -> dict[str, int]:
    """Return when each stored chunk was written."""
    found = (path for path in (folder / "0" / "c").rglob("*") if path.is_file())
    return {
        str(path.relative_to(folder)): path.stat().st_mtime_ns
        for path in found
        if path.suffix != ".partial"
    }


# Whoever runs the tests in the background may have them ignore the keyboard.
_MAIN = (
    "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    "from tinc_codec.cli.app import main; main()"
)


def start(source: Path, target: Path, *more: str) -> subprocess.Popen:
    root = Path(__file__).parents[1]
    return subprocess.Popen(
        [
            sys.executable, "-c", _MAIN, "compress",
            str(source), str(target), "--ratio", "16", "--effort", "0", "--model", "features",
            "--chunks", "16,16,32", *more,
        ],
        cwd=root, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True,
    )  # fmt: skip


def wait_for_chunks(process: subprocess.Popen, target: Path, n_chunks: int) -> None:
    deadline = time.monotonic() + 60
    while len(chunk_files(target)) < n_chunks and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.002)


def assert_whole(target: Path, expected: dict[str, bytes]) -> None:
    """Check that no chunk is there that is not whole."""
    for name in chunk_files(target):
        assert (target / name).read_bytes() == expected[name], name


@pytest.mark.parametrize(("workers", "n_processes", "kills"), [(1, 0, 2), (2, 2, 3)])
def test_killed_at_any_moment_and_gone_on(tmp_path, reference, workers, n_processes, kills):
    source, expected = reference
    target = tmp_path / "a.zarr"
    moments = random.Random(workers)
    before: dict[str, int] = {}
    for _ in range(kills):
        process = start(source, target, "--workers", str(workers))
        wanted = len(before) + moments.randint(1, 8)
        wait_for_chunks(process, target, wanted)
        time.sleep(moments.uniform(0, 0.02))
        children = psutil.Process(process.pid).children(recursive=True)
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        # Workers end with the run, though what they are at may still be stored.
        gone, alive = psutil.wait_procs(children, timeout=10)
        assert (len(gone), alive) == (n_processes, [])
        assert_whole(target, expected)
        after = chunk_files(target)
        assert {name: after[name] for name in before} == before
        record = json.loads((target / "zarr.json").read_text())["attributes"]["tinc_codec"]
        assert record["complete"] is False
        before = after
    assert kills <= len(before) < N_CHUNKS
    summary = compress(source, target, workers=1, **SETTINGS)
    assert (summary.complete, summary.n_skipped) == (True, len(before))
    assert summary.n_done == N_CHUNKS - len(before)
    after = chunk_files(target)
    assert {name: after[name] for name in before} == before
    assert files(target) == expected


def test_killed_while_it_writes_metadata(tmp_path, reference):
    source, expected = reference
    for kept in ((), ("zarr.json",)):
        target = tmp_path / f"{len(kept)}.zarr"
        target.mkdir()
        for name in kept:
            metadata = json.loads(expected[name])
            metadata["attributes"]["tinc_codec"]["complete"] = False
            (target / name).write_text(json.dumps(metadata))
        (target / f"zarr.{'0' * 32}.partial").write_bytes(b"{")
        assert compress(source, target, workers=1, **SETTINGS).complete
        assert files(target) == expected


def test_a_damaged_or_lost_chunk_is_made_anew(tmp_path, reference):
    source, expected = reference
    target = tmp_path / "a.zarr"
    assert compress(source, target, workers=1, **SETTINGS).complete
    damaged = target / "0/c/1/1/0"
    damaged.write_bytes(expected["0/c/1/1/0"][:-40])
    (target / "0/c/2/0/1").unlink()
    (target / "0/c/3/3/1").write_bytes(b"")
    summary = compress(source, target, workers=1, **SETTINGS)
    assert (summary.complete, summary.n_done, summary.n_damaged) == (True, 3, 2)
    assert files(target) == expected


def test_interrupted_by_the_keyboard(tmp_path, reference):
    source, expected = reference
    target = tmp_path / "a.zarr"
    process = start(source, target, "--workers", "2")
    wait_for_chunks(process, target, 2)
    workers = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGINT)
    _, messages = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "the same command goes on" in messages
    assert "Traceback" not in messages
    assert workers
    assert not any(worker.is_running() for worker in workers)
    assert 2 <= len(chunk_files(target)) < N_CHUNKS
    assert compress(source, target, workers=1, **SETTINGS).complete
    assert files(target) == expected


def test_a_worker_process_that_dies_is_replaced(tmp_path, reference):
    source, expected = reference
    target = tmp_path / "a.zarr"
    killed = []

    def kill_one(progress):
        # Other tests leave children of other kinds, such as multiprocessing's resource tracker.
        workers = [
            child
            for child in psutil.Process().children()
            if "tinc_codec.pipeline.worker" in child.cmdline()
        ]
        if workers and len(killed) < 2:
            killed.append(workers[0].pid)
            workers[0].kill()

    summary = compress(
        source, target, scheduler="processes", workers=2, progress=kill_one, **SETTINGS
    )
    assert len(killed) == 2
    assert summary.complete
    assert 1 <= summary.worker_deaths <= 2
    assert files(target) == expected


@dataclass(frozen=True)
class Deadly:
    """An array of which a part ends the process that reads it, while a file is there."""

    voxels: np.ndarray = field(repr=False)
    trap: Path

    @property
    def shape(self):
        return self.voxels.shape

    @property
    def dtype(self):
        return self.voxels.dtype

    def __getitem__(self, box):
        if self.trap.exists() and box[0].start <= 20 < box[0].stop and box[1].start == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return self.voxels[box]


def test_a_chunk_that_ends_its_workers_is_given_up_and_the_rest_goes_on(tmp_path, voxels):
    trap = tmp_path / "trap"
    trap.touch()
    info = plain_info("a", default_axes(3))
    volume = Volume(Deadly(voxels, trap), info, {"size_bytes": voxels.nbytes})
    target = tmp_path / "a.zarr"
    options = {"scheduler": "processes", "workers": 2, **SETTINGS}
    summary = compress(volume, target, **options)
    assert not summary.complete
    assert {failure.position for failure in summary.failures} == {(1, 0, 0), (1, 0, 1)}
    assert all("SIGKILL" in failure.reason for failure in summary.failures)
    assert summary.worker_deaths == 7
    assert summary.n_done == N_CHUNKS - 2
    trap.unlink()
    summary = compress(volume, target, **options)
    assert (summary.complete, summary.n_done, summary.worker_deaths) == (True, 2, 0)


def test_a_lost_worker_of_a_cluster(tmp_path, reference):
    distributed = pytest.importorskip("distributed")
    source, expected = reference
    target = tmp_path / "a.zarr"
    killed = []
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, processes=True, dashboard_address=":0"
        ) as cluster,
        distributed.Client(cluster, set_as_default=False) as client,
    ):
        workers = sorted(client.run(os.getpid).values())

        def kill_one(progress):
            if not killed and progress.n_done >= 2:
                killed.append(workers[0])
                os.kill(workers[0], signal.SIGKILL)

        summary = compress(
            source, target, scheduler=cluster.scheduler_address, progress=kill_one, **SETTINGS
        )
        again = compress(source, target, scheduler=cluster.scheduler_address, **SETTINGS)
    assert killed
    assert (summary.complete, summary.n_done + summary.n_skipped) == (True, N_CHUNKS)
    assert files(target) == expected
    assert (again.n_done, again.n_skipped) == (0, N_CHUNKS)


FULL_DISK = """
    import json, subprocess, sys
    from pathlib import Path
    from tinc_codec.pipeline.compress import compress

    source, mounted, settings = sys.argv[1], Path(sys.argv[2]), json.loads(sys.argv[3])
    mount = ["mount", "-t", "tmpfs", "-o", "size=120k", "tmpfs", str(mounted)]
    if subprocess.run(mount).returncode:
        sys.exit(77)
    full = compress(source, mounted / "a.zarr", **settings)
    stored = {
        str(path.relative_to(mounted / "a.zarr")): path.read_bytes().hex()
        for path in (mounted / "a.zarr").rglob("*") if path.is_file()
    }
    subprocess.run(["mount", "-o", "remount,size=10m", str(mounted)], check=True)
    healed = compress(source, mounted / "a.zarr", **settings)
    final = {
        str(path.relative_to(mounted / "a.zarr")): path.read_bytes().hex()
        for path in (mounted / "a.zarr").rglob("*") if path.is_file()
    }
    print(json.dumps([full.to_dict(), stored, healed.to_dict(), final]))
"""


@pytest.mark.skipif(shutil.which("unshare") is None, reason="no unshare to mount a small disk")
def test_a_full_disk(tmp_path, reference):
    """On a file system of 120 kB, mounted in a namespace of its own."""
    source, expected = reference
    settings = json.dumps({"workers": 2, **SETTINGS})
    (tmp_path / "disk").mkdir()
    found = subprocess.run(
        [
            "unshare", "--user", "--map-root-user", "--mount", sys.executable, "-c",
            textwrap.dedent(FULL_DISK), str(source), str(tmp_path / "disk"), settings,
        ],
        cwd=Path(__file__).parents[1], capture_output=True, text=True, check=False,
    )  # fmt: skip
    if found.returncode in (1, 77) and "ermi" in found.stderr:
        pytest.skip(f"no file system can be mounted: {found.stderr.strip()}")
    assert found.returncode == 0, found.stderr
    full, stored, healed, final = json.loads(found.stdout)
    assert not full["complete"]
    assert full["n_failed"] >= 3
    assert full["n_done"] + full["n_failed"] == N_CHUNKS
    assert all("No space left" in failure["reason"] for failure in full["failures"])
    chunks = {name: data for name, data in stored.items() if name.startswith("0/c/")}
    assert len(chunks) == full["n_done"]
    assert all(bytes.fromhex(data) == expected[name] for name, data in chunks.items())
    assert (healed["complete"], healed["n_skipped"]) == (True, full["n_done"])
    assert {name: bytes.fromhex(data) for name, data in final.items()} == expected


@pytest.mark.parametrize("scheduler", ["threads", "processes"])
def test_a_source_that_shrinks(tmp_path, reference, voxels, scheduler):
    _, expected = reference
    source = write_source(tmp_path / "a.npy", voxels)
    target = tmp_path / "a.zarr"
    options = {"scheduler": scheduler, "workers": 2, **SETTINGS}
    size = source.stat().st_size

    def shrink(progress):
        if progress.n_done >= 4:
            os.truncate(source, size // 2)

    summary = compress(source, target, progress=shrink, **options)
    assert not summary.complete
    assert summary.n_done >= 4
    assert summary.n_done + summary.n_failed == N_CHUNKS
    assert all("cut short" in failure.reason for failure in summary.failures)
    assert_whole(target, expected)
    with pytest.raises(ConfigError, match=r"cut short|source\.size_bytes"):
        compress(source, target, **options)
    write_source(source, voxels)
    healed = compress(source, target, **options)
    assert (healed.complete, healed.n_skipped) == (True, summary.n_done)
    assert files(target) == expected


def test_a_source_of_another_date_is_compared_chunk_by_chunk(tmp_path, reference, voxels):
    _, expected = reference
    source = write_source(tmp_path / "a.npy", voxels)
    target = tmp_path / "a.zarr"
    assert compress(source, target, workers=1, **SETTINGS).complete
    written = chunk_files(target)
    changed = voxels.copy()
    changed[40, 30, 10] += 0.5
    np.save(source, changed)
    summary = compress(source, target, workers=1, **SETTINGS)
    assert not summary.complete
    assert [failure.position for failure in summary.failures] == [(2, 1, 0)]
    assert "the source has changed" in summary.failures[0].reason
    assert chunk_files(target) == written

    np.save(source, voxels)
    os.utime(source, ns=(MODIFIED_NS + 1, MODIFIED_NS + 1))
    summary = compress(source, target, workers=1, **SETTINGS)
    assert (summary.complete, summary.n_skipped) == (True, N_CHUNKS)
    assert chunk_files(target) == written
    # What an undisturbed run on the file as it is now would have written.
    name = "zarr.json"
    stated = json.loads(expected[name])
    stated["attributes"]["tinc_codec"]["source"]["modified_ns"] += 1
    assert files(target) == {**expected, name: json.dumps(stated, indent=2).encode()}


@pytest.mark.parametrize("shards", [None, (32, 32, 64)])
def test_a_chunk_that_fails(tmp_path, voxels, shards):
    """A PSNR beyond float32 can be promised of constant chunks, and of no noise."""
    calm = np.full_like(voxels, 7)
    calm[20, 20, 20] = 1e9
    calm[21, 20, 20] = voxels[0, 0, 0]
    source, target = tmp_path / "a.npy", tmp_path / "a.zarr"
    np.save(source, calm)
    settings = {**SETTINGS, "ratio": None, "psnr": 190.0, "workers": 1, "shards": shards}
    summary = compress(source, target, **settings)
    (failure,) = summary.failures
    assert failure.position == ((1, 1, 0) if shards is None else (0, 0, 0))
    assert "TargetError" in failure.reason
    assert "(1, 1, 0)" in failure.reason or shards is None
    assert not summary.complete
    assert summary.n_done == summary.n_chunks - 1
    stored = zarr.open_array(target / "0", mode="r")[...]
    missing = np.isnan(stored)
    assert missing.sum() == (16 * 16 * 32 if shards is None else 32 * 32 * 64)
    assert (stored[~missing] == 7).all()
    assert files(target).keys() >= {"zarr.json", "0/zarr.json"}
    assert "complete" in (target / "zarr.json").read_text()
    assert compress(source, target, **settings).n_skipped == summary.n_done


def test_a_worker_that_outlived_its_run_writes_nothing(tmp_path, reference):
    """What `overwrite` begins anew is not mixed with chunks of the run before."""
    source, _ = reference
    target = tmp_path / "a.zarr"

    def begin_anew(progress):
        metadata = json.loads((target / "zarr.json").read_text())
        metadata["attributes"]["tinc_codec"]["settings"]["codec"]["ratio"] = 32
        (target / "zarr.json").write_text(json.dumps(metadata))

    summary = compress(
        source, target, scheduler="threads", workers=1, progress=begin_anew, **SETTINGS
    )
    assert not summary.complete
    assert any("started anew" in failure.reason for failure in summary.failures)


def test_two_runs_at_once(tmp_path, reference):
    source, expected = reference
    target = tmp_path / "a.zarr"
    refused = []

    def run_another(progress):
        if not refused:
            with pytest.raises(ConfigError, match="another run is writing"):
                compress(source, target, overwrite=True, workers=1, **SETTINGS)
            refused.append(True)

    assert compress(source, target, workers=1, progress=run_another, **SETTINGS).complete
    assert refused
    assert files(target) == expected
