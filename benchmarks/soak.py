"""Runs of `tinc compress` on a cluster of two workers, disturbed at random moments, over and over.

python -m benchmarks.soak --minutes 5

Each round compresses one volume into a new folder. At random moments the run is killed and started
again, a worker is killed, or the disk is filled up for a while. When a run says that all is done,
every byte must be that of an undisturbed run. Calls add up in `results/soak.json`, a row each.

The disk is a tmpfs in a mount namespace of this process (`unshare`); without the permission for
that no disk is filled.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from distributed import Client, LocalCluster

from benchmarks import records
from tinc_codec.pipeline.compress import compress

EVENTS = ("kill run", "kill worker", "fill disk")
_NAMESPACE = "TINC_SOAK_NAMESPACE"
_STALL_SECONDS = 300.0


def make_volume(path: Path, edge: int) -> None:
    """Store a volume of structures of several sizes with noise, float32."""
    rng = np.random.default_rng(11)
    axes = np.meshgrid(*[np.linspace(0, 1, edge)] * 3, indexing="ij")
    volume = sum(
        np.sin(sum(f * axis for f, axis in zip(rng.normal(0, 2**k, 3), axes, strict=True)))
        for k in range(2, 7)
    )
    np.save(path, (volume + rng.normal(0, 0.05, volume.shape)).astype("f4"))


def files(folder: Path) -> dict[str, bytes]:
    """Return the content of every file below a folder."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def chunk_times(folder: Path) -> dict[str, int]:
    """Return when each chunk that is there was written."""
    found = {}
    for path in (folder / "0" / "c").rglob("*"):
        if path.name.isdecimal() and path.is_file():
            found[str(path.relative_to(folder))] = path.stat().st_mtime_ns
    return found


def worker_pids(dask_scheduler: Any) -> list[int]:
    """Return the processes of the workers that a scheduler has; runs there."""
    return [worker.pid for worker in dask_scheduler.workers.values()]


class Soak:
    """One cluster, one source, and what has happened to them."""

    def __init__(self, folder: Path, options: argparse.Namespace, *, can_fill: bool) -> None:
        self.folder, self.options, self.can_fill = folder, options, can_fill
        self.random = random.Random(options.seed)
        self.counts: Counter[str] = Counter()
        self.source = folder / "volume.npy"
        make_volume(self.source, options.edge)
        self.settings = {"ratio": 32.0, "effort": options.effort, "chunks": options.chunk}
        undisturbed = folder / "undisturbed.zarr"
        summary = compress(self.source, undisturbed, workers=1, **self.settings)
        assert summary.complete
        self.n_chunks = summary.n_chunks
        self.expected = files(undisturbed)

    def start(self, target: Path, address: str) -> subprocess.Popen[str]:
        """Start a run."""
        self.counts["runs"] += 1
        return subprocess.Popen(
            [
                sys.executable, "-c", "from tinc_codec.cli.app import main; main()", "compress",
                str(self.source), str(target), "--ratio", str(self.settings["ratio"]),
                "--effort", str(self.options.effort), "--chunks", str(self.options.chunk),
                "--scheduler", address, "--json",
            ],
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip

    def round(self, cluster: LocalCluster, client: Client) -> None:
        """Compress once, whatever happens, and compare."""
        target = self.folder / "disturbed.zarr"
        shutil.rmtree(target, ignore_errors=True)
        address = client.scheduler.address
        written: dict[str, int] = {}
        run = self.start(target, address)
        last_change = time.monotonic()
        while True:
            # Dask gives a worker up that is killed while it starts.
            cluster.scale(2)
            # Most often when chunks are being made, at times while the run starts or ends.
            if self.random.random() < 0.8:
                self.wait_for_chunks(run, target)
            try:
                output, _ = run.communicate(timeout=self.random.uniform(0, self.options.calm))
            except subprocess.TimeoutExpired:
                self.disturb(run, client, target)
            else:
                status = self.ended(run, output)
                if status == 0:
                    break
            if run.poll() is not None:
                run = self.start(target, address)
            now = chunk_times(target)
            self.check(target, now, written)
            if now != written:
                last_change = time.monotonic()
            assert time.monotonic() - last_change < _STALL_SECONDS, "nothing is written any more"
            written = now
        found = files(target)
        lost = [name for name, data in self.expected.items() if found.get(name) != data]
        self.counts["lost"] += len(lost)
        self.counts["left over"] += len(found.keys() - self.expected.keys())
        self.counts["rounds"] += 1
        self.counts["chunks"] += self.n_chunks

    def wait_for_chunks(self, run: subprocess.Popen[str], target: Path) -> None:
        """Wait until a run makes chunks, or is at its end."""
        before, deadline = len(chunk_times(target)), time.monotonic() + 30
        while run.poll() is None and len(chunk_times(target)) == before:
            if time.monotonic() > deadline:
                break
            time.sleep(0.02)

    def ended(self, run: subprocess.Popen[str], output: str) -> int:
        """Count what a run that has ended by itself says."""
        status = int(run.returncode)
        self.counts[f"exit status {status}"] += 1
        if output:
            self.counts["failed chunks reported"] += json.loads(output)["n_failed"]
        return status

    def check(self, target: Path, now: dict[str, int], before: dict[str, int]) -> None:
        """Compare chunks that are new with those of the undisturbed run."""
        for name, written in now.items():
            if before.get(name) == written:
                continue
            # A worker may finish what a killed run had given it, beside the next run.
            self.counts["written twice"] += name in before
            if (target / name).read_bytes() != self.expected[name]:
                self.counts["half written"] += 1
        self.counts["vanished"] += len(before.keys() - now.keys())

    def disturb(self, run: subprocess.Popen[str], client: Client, target: Path) -> None:
        """Let one thing happen."""
        event = self.random.choice(EVENTS if self.can_fill else EVENTS[:2])
        if event == "kill run":
            run.kill()
            run.communicate()
        elif event == "kill worker":
            pids = client.run_on_scheduler(worker_pids)
            if not pids:
                return
            os.kill(self.random.choice(pids), signal.SIGKILL)
        else:
            self.fill(target)
        self.counts[event] += 1

    def fill(self, target: Path) -> None:
        """Leave no room on the disk for a second or two."""
        ballast = self.folder / "ballast"
        try:
            with ballast.open("wb", buffering=0) as stream:
                while True:
                    stream.write(bytes(1 << 16))
        except OSError:
            time.sleep(self.random.uniform(0.5, 2.0))
        finally:
            ballast.unlink(missing_ok=True)


def in_namespace() -> bool:
    """Tell whether this process may mount; start it again in a namespace where it can."""
    if _NAMESPACE in os.environ:
        return True
    command = ["unshare", "--user", "--map-root-user", "--mount"]
    if not shutil.which("unshare") or subprocess.run([*command, "true"], check=False).returncode:
        return False
    os.environ[_NAMESPACE] = "1"
    return os.execvp(command[0], [*command, sys.executable, "-m", "benchmarks.soak", *sys.argv[1:]])


def main() -> None:
    """Go on until the time is over, then until the round is."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--seed", type=int, default=None, help="default: the rows there are")
    parser.add_argument("--edge", type=int, default=192)
    parser.add_argument("--chunk", type=int, default=32)
    parser.add_argument("--effort", type=int, default=0)
    parser.add_argument("--calm", type=float, default=2.0, help="most seconds between events")
    parser.add_argument("--disk-mib", type=int, default=64)
    parser.add_argument("--results", type=Path, default=records.RESULTS)
    parser.add_argument("--anew", action="store_true", help="forget the rows there are")
    options = parser.parse_args()
    can_fill = in_namespace()
    path = options.results / "soak.json"
    rows = [] if options.anew or not path.exists() else json.loads(path.read_text())["rows"]
    if options.seed is None:
        options.seed = len(rows)
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if can_fill:
            size = f"size={options.disk_mib + 4 * options.edge**3 // 2**20}m"
            subprocess.run(["mount", "-t", "tmpfs", "-o", size, "tmpfs", name], check=True)
        try:
            soak = Soak(folder, options, can_fill=can_fill)
            with (
                LocalCluster(
                    n_workers=2, threads_per_worker=1, processes=True, dashboard_address=":0",
                    local_directory=tempfile.gettempdir(),
                ) as cluster,
                Client(cluster) as client,
            ):  # fmt: skip
                while time.monotonic() - start < 60 * options.minutes:
                    soak.round(cluster, client)
                    print(dict(soak.counts), flush=True)
        finally:
            if can_fill:
                subprocess.run(["umount", "--lazy", name], check=False)
    minutes = (time.monotonic() - start) / 60
    never = {"lost": 0, "half written": 0, "vanished": 0, "left over": 0, "written twice": 0}
    counts = {**never, **dict.fromkeys(EVENTS, 0), **soak.counts}
    rows.append({"seed": options.seed, "minutes": round(minutes, 1), **counts})
    totals = {
        key: round(sum(row.get(key, 0) for row in rows), 1) for key in rows[-1] if key != "seed"
    }
    print(records.save("soak", rows, options.results, workers=2, totals=totals))
    print(totals)
    if any(totals[key] for key in ("lost", "half written", "vanished", "left over")):
        sys.exit(1)


if __name__ == "__main__":
    main()
