"""The interpreters of the other environments of `make compat`."""

import os
import subprocess
from pathlib import Path

import pytest

from tests.compat.read_store import check
from tests.compat.write_store import ARRAYS, write

ROOT = Path(__file__).parents[2]


def check_exchange(variable: str, folder: Path, writer: str, zarr_format: int) -> None:
    """Write a store here and read it there, or the other way round, and check what is read.

    Skips the test if there is no there.

    Parameters
    ----------
    variable : str
        Environment variable that names the other interpreter.
    writer : {"here", "there"}
    zarr_format : {2, 3}
    """
    python = os.environ.get(variable)
    if python is None:
        pytest.skip(f"{variable} is not set")

    def run(script: str, *arguments: str) -> None:
        command = [python, "-m", f"tests.compat.{script}", str(folder), *arguments]
        subprocess.run(command, check=True, cwd=ROOT, timeout=300)

    if writer == "here":
        write(folder, zarr_format)
        run("read_store")
    else:
        run("write_store", str(zarr_format))
        assert check(folder) == sorted(ARRAYS[zarr_format])
