"""Every volume through the command: compressed, verified, reported.

python -m benchmarks.whole [--ratio 64] [--effort 4] [--keep FOLDER]

What is kept is what the commands say with --json, and how long each took.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks import records
from benchmarks.volumes import data_directory

_COMMAND = (sys.executable, "-c", "from tinc_codec.cli.app import main; main()")


def run(*arguments: str) -> tuple[dict[str, Any], float]:
    """Run a subcommand with --json; its record, and seconds."""
    start = time.perf_counter()
    answer = subprocess.run(
        [*_COMMAND, *arguments, "--json"], stdout=subprocess.PIPE, text=True, check=True
    )
    return json.loads(answer.stdout), round(time.perf_counter() - start, 1)


def measure(path: Path, folder: Path, settings: list[str]) -> dict[str, Any]:
    """Take one volume through all commands."""
    store = str(folder / f"{path.stem}.zarr")
    made, compress_s = run("compress", str(path), store, *settings)
    found, verify_s = run("verify", str(path), store)
    _, report_s = run("report", str(path), store, "-o", str(folder / f"{path.stem}.html"))
    return {
        "volume": path.stem,
        **{key: made[key] for key in ("shape", "dtype", "chunks", "n_chunks", "raw_bytes")},
        **{key: made[key] for key in ("stored_bytes", "ratio", "psnr", "psnr_min", "max_error")},
        "verified": found["ok"],
        "compress_s": compress_s,
        "verify_s": verify_s,
        "report_s": report_s,
    }


def main() -> None:
    """Measure every volume."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", help="directory of *.npz (default: $TINC_DATA)")
    parser.add_argument("--ratio", default="64")
    parser.add_argument("--effort", default="4")
    parser.add_argument("--keep", help="where the stores and pages go (default: nowhere)")
    options = parser.parse_args()
    settings = ["--ratio", options.ratio, "--effort", options.effort]
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(options.keep or temporary)
        folder.mkdir(parents=True, exist_ok=True)
        for path in sorted(data_directory(options.data).glob("*.npz")):
            rows.append(measure(path, folder, settings))
            print(rows[-1])
    print(records.save("whole", rows, settings=settings))


if __name__ == "__main__":
    main()
