"""Results of a benchmark, kept as JSON with the machine, the versions and the command."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent / "results"
PACKAGES = ("tinc_codec", "numpy", "numba", "torch", "zarr", "imagecodecs", "av", "aiohttp")


def machine() -> dict[str, Any]:
    """Describe the machine: processor, cores usable by this process, memory, GPU if torch is in."""
    described: dict[str, Any] = {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
    }
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        size_bytes = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        described["memory_gib"] = round(size_bytes / 2**30, 1)
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        described["gpu"] = torch.cuda.get_device_name()
    return described


def command() -> str:
    """Return the command line of this process, with `python -m` for a module of this package."""
    main = getattr(sys.modules["__main__"], "__spec__", None)
    start = f"python -m {main.name}" if main is not None else f"python {Path(sys.argv[0]).name}"
    return " ".join([start, *sys.argv[1:]])


def save(
    name: str, rows: Sequence[Mapping[str, Any]], directory: Path = RESULTS, **more: Any
) -> Path:
    """Write `<name>.json` and return its path.

    Parameters
    ----------
    name : str
        Stem of the file; an older one of that name is replaced.
    rows : sequence of mappings
        One JSON-able mapping per measurement.
    **more
        Further JSON-able facts that hold for every row, such as settings.
    """
    record = {
        "command": command(),
        "date": datetime.date.today().isoformat(),
        "commit": commit(),
        "machine": machine(),
        "versions": _versions(),
        **more,
        "rows": [dict(row) for row in rows],
    }
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"{name}.json"
    path.write_text(json.dumps(record, indent=1) + "\n")
    return path


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def commit() -> str | None:
    """Name the commit of the working tree, with `-dirty` where it has changes."""
    answer = subprocess.run(
        ["git", "describe", "--always", "--dirty"],
        cwd=RESULTS.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    return answer.stdout.strip() or None


def _versions() -> dict[str, str]:
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions
