"""How kernels are compiled: nothing but time may depend on whether they can be kept on disk."""

import ast
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numba.core.caching import NullCache
from typer.testing import CliRunner

from tinc_codec.cli.app import app
from tinc_codec.codec import encode_chunk
from tinc_codec.entropy import tile_walk
from tinc_codec.params import EncodingParams
from tinc_codec.pipeline import warm_up as warm_up_module

ROOT = Path(__file__).parents[1]

DECODE = """
import pathlib, sys
import numba.core.caching as caching
{before}
from tinc_codec.codec import decode_chunk
print(decode_chunk(pathlib.Path(sys.argv[1]).read_bytes()).sum())
"""
NO_PLACE = "caching.CacheImpl._locator_classes = []"
"""As on a machine where neither the package's folder nor the user's can be written."""
FULL_DISK = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))"


@pytest.mark.parametrize("before", [NO_PLACE, FULL_DISK], ids=["no place", "full disk"])
def test_a_chunk_is_read_where_kernels_cannot_be_kept(before: str, tmp_path: Path) -> None:
    volume = np.add.outer(np.arange(16), np.add.outer(np.arange(16), np.arange(16))).astype("uint8")
    stream = encode_chunk(volume, EncodingParams(max_error=0))
    path = tmp_path / "chunk"
    path.write_bytes(stream)
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path / "cache")}
    done = subprocess.run(
        [sys.executable, "-c", DECODE.format(before=before), path],
        check=True, capture_output=True, text=True, env=environment, cwd=ROOT,
    )  # fmt: skip
    assert int(done.stdout) == volume.sum()


USE = """
import sys
from numba.core import event

class Listener(event.Listener):
    def on_start(self, event):
        print(event.data["dispatcher"].py_func.__qualname__)
    def on_end(self, event):
        pass

event.register("numba:compile", Listener())
import numpy as np
import zarr
from tinc_codec import TINC, open_level

volume = np.random.default_rng(0).normal(90, 20, (64, 64, 64)).cumsum(axis=2).astype("uint8")
for number, settings in enumerate(({"ratio": 64, "effort": 0}, {"ratio": 64}, {"max_error": 9})):
    array = zarr.create_array(
        f"{sys.argv[1]}/{number}.zarr", shape=volume.shape, chunks=volume.shape, dtype="uint8",
        serializer=TINC(**settings), compressors=None,
    )
    array[:] = volume
    array[:], array[3], array[:, :, 3], open_level(array, 1)[:]
print("done")
"""


@pytest.mark.slow
def test_after_a_warm_up_nothing_is_left_to_compile(tmp_path: Path) -> None:
    # The command's own process compiles what this one may hold already.
    command = "from tinc_codec.cli.app import main; main()"
    for arguments in ([command, "warm-up", "--dtypes", "uint8"], [USE, tmp_path]):
        done = subprocess.run(
            [sys.executable, "-c", *arguments],
            check=True, capture_output=True, text=True, cwd=ROOT,
        )  # fmt: skip
    assert done.stdout.split() == ["done"]


def test_a_warm_up_that_nobody_can_use_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warm_up_module, "_SETTINGS", ())
    assert CliRunner().invoke(app, ["warm-up"]).exit_code == 0
    monkeypatch.setattr(tile_walk.code_level, "_cache", NullCache())
    assert CliRunner().invoke(app, ["warm-up"]).exit_code == 1


@pytest.mark.parametrize("dtypes", ["", ",", "uint8,foo", "complex64"])
def test_a_warm_up_for_no_dtype_is_refused(dtypes: str) -> None:
    assert CliRunner().invoke(app, ["warm-up", "--dtypes", dtypes]).exit_code == 2


KERNEL = """
from tinc_codec.kernels import kernel
from constants import HALF

@kernel
def halve(x):
    return x * HALF
"""
HALVE = """
from halve import halve
print(halve(3), halve(3.5), sum(halve.stats.cache_misses.values()))
"""


class TestKept:
    """What is on disk is used where it is right, and only there."""

    @pytest.fixture
    def run(self, tmp_path: Path) -> Callable[[], str]:
        """Call a kernel with two types in a process of its own; its source never changes."""
        (tmp_path / "halve.py").write_text(KERNEL)
        (tmp_path / "constants.py").write_text("HALF = 0.5")
        copy = tmp_path / "tinc_codec"
        for room in ("", "entropy"):
            (copy / room).mkdir(exist_ok=True)
            for path in (ROOT / "tinc_codec" / room).glob("*.py"):
                (copy / room / path.name).write_bytes(path.read_bytes())
        environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path / "kept")}

        def run() -> str:
            done = subprocess.run(
                [sys.executable, "-c", HALVE],
                check=True, capture_output=True, text=True, env=environment, cwd=tmp_path,
            )  # fmt: skip
            return done.stdout.strip()

        return run

    def test_once_is_enough(self, run: Callable[[], str]) -> None:
        assert run() == "1.5 1.75 2"
        assert run() == "1.5 1.75 0"

    def test_another_version_of_what_a_kernel_uses(
        self, run: Callable[[], str], tmp_path: Path
    ) -> None:
        run()
        room = tmp_path / "tinc_codec" / "entropy"
        with (room / "buckets.py").open("a") as file:
            file.write("# changed")
        assert run() == "1.5 1.75 2"
        assert run() == "1.5 1.75 0"

    def test_code_for_other_types(self, run: Callable[[], str], tmp_path: Path) -> None:
        """As two processes leave it that write at once."""
        run()
        first, second = sorted((tmp_path / "kept").rglob("*.nbc"))
        third = first.with_suffix(".other")
        first.rename(third)
        second.rename(first)
        third.rename(second)
        assert run() == "1.5 1.75 2"
        assert run() == "1.5 1.75 0"

    def test_damaged_files(self, run: Callable[[], str], tmp_path: Path) -> None:
        run()
        for path in (tmp_path / "kept").rglob("*.nb*"):
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        assert run() == "1.5 1.75 2"
        assert run() == "1.5 1.75 0"


def _decorator(function: ast.FunctionDef) -> str:
    """Name what compiles a function, if anything."""
    names = [d.func if isinstance(d, ast.Call) else d for d in function.decorator_list]
    found = {n.id for n in names if isinstance(n, ast.Name)} & {"kernel", "helper"}
    return found.pop() if found else ""


class _Names(ast.NodeVisitor):
    """Names that Python code uses, not kernels; and the helpers that a module defines."""

    def __init__(self) -> None:
        self.used: set[str] = set()
        self.helpers: set[str] = set()

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        if _decorator(node) == "helper":
            self.helpers.add(node.name)
        if not _decorator(node):
            self.generic_visit(node)

    def visit_Name(self, node: ast.Name) -> None:
        self.used.add(node.id)

    def visit_Attribute(self, node: ast.Attribute) -> None:
        self.used.add(node.attr)
        self.generic_visit(node)


def test_no_python_code_calls_a_helper() -> None:
    modules = {}
    for folder in ("tinc_codec", "tests", "benchmarks", "tools", "examples"):
        for path in (ROOT / folder).rglob("*.py"):
            names = modules[path] = _Names()
            names.visit(ast.parse(path.read_text()))
    assert sum(len(names.helpers) for names in modules.values()) > 50
    for path, names in modules.items():
        own = {name for name in names.helpers if name.startswith("_")}
        assert not own & names.used, path
        for other, theirs in modules.items():
            assert not (names.helpers - own) & theirs.used, (path, other)
