"""Seconds that a first write and a first read take on a new machine: mostly those of the compiler.

python -m benchmarks.first_use

Each runs in a process of its own, with an empty folder for compiled kernels, and again with what
the first one left there.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import records, volumes

CASES: dict[str, dict[str, Any]] = {
    "effort 0": {"ratio": 64, "effort": 0},
    "default": {"ratio": 64},
    "max_error": {"max_error": 4.0},
    "tree": {"ratio": 64, "model": "tree", "effort": 0},
}

_PROGRAM = """
import sys, time
from pathlib import Path
import numpy as np
start = time.perf_counter()
from tinc_codec.codec import decode_chunk, encode_chunk
from tinc_codec.params import EncodingParams
action, volume, chunk, settings = sys.argv[1:]
if action == "write":
    Path(chunk).write_bytes(encode_chunk(np.load(volume), EncodingParams(**eval(settings))))
else:
    decode_chunk(Path(chunk).read_bytes())
print(time.perf_counter() - start)
"""


def seconds(kernels: Path, *arguments: object) -> float:
    """Run the program with a folder for compiled kernels."""
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM, *map(str, arguments)],
        check=True, capture_output=True, text=True,
        env={**os.environ, "NUMBA_CACHE_DIR": str(kernels)},
    )  # fmt: skip
    return round(float(done.stdout), 2)


def main() -> None:
    """Measure all cases on a central crop."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, help="where the volumes are")
    parser.add_argument("--volume", default="mri_t1")
    parser.add_argument("--name", default="first_use", help="stem of the results' file")
    options = parser.parse_args()
    rows = []
    for case, settings in CASES.items():
        row: dict[str, Any] = {"case": case, "settings": settings}
        with tempfile.TemporaryDirectory() as folder:
            place = Path(folder)
            volume, chunk = place / "volume.npy", place / "chunk"
            np.save(volume, volumes.load(options.volume, 64, options.data))
            for action in ("write", "read"):
                for when in ("first", "again"):
                    row[f"{action}_{when}_s"] = seconds(
                        place / action, action, volume, chunk, settings
                    )
        rows.append(row)
        print(row, flush=True)
    print(records.save(options.name, rows, volume=options.volume, crop=64))


if __name__ == "__main__":
    main()
