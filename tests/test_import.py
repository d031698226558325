import json
import subprocess
import sys

import pytest

import tinc_codec

HEAVY = ("torch", "numba", "zarr", "constriction", "dask", "xarray")


def run_fresh(code: str) -> dict:
    """Run code in a fresh interpreter and return what it prints as JSON."""
    prologue = "import json, sys, time\n"
    done = subprocess.run(
        [sys.executable, "-c", prologue + code], check=True, capture_output=True, text=True
    )
    return json.loads(done.stdout)


def test_import_is_fast_and_loads_nothing_heavy():
    code = (
        "start = time.perf_counter()\n"
        "import tinc_codec\n"
        "seconds = time.perf_counter() - start\n"
        "print(json.dumps({'seconds': seconds, 'modules': sorted(sys.modules)}))"
    )
    found = [run_fresh(code) for _ in range(3)]
    assert not {*HEAVY, "numcodecs", "numpy"} & {*found[0]["modules"]}
    # The best of three: one slow start of a busy machine is no fault of ours.
    assert min(run["seconds"] for run in found) < 0.2


def test_the_codec_object_loads_only_numpy_and_numcodecs():
    code = (
        "from tinc_codec import TINC, config\n"
        "TINC(ratio=64); config.get()\n"
        "print(json.dumps(sorted(sys.modules)))"
    )
    assert not {*HEAVY} & {*run_fresh(code)}


def test_public_names():
    assert set(tinc_codec.__all__) <= set(dir(tinc_codec))
    for name in tinc_codec.__all__:
        assert getattr(tinc_codec, name) is getattr(tinc_codec, name)
    assert tinc_codec.__version__.count(".") >= 1
    with pytest.raises(AttributeError, match="no attribute 'tinc'"):
        tinc_codec.tinc  # noqa: B018


def test_star_import_gives_exactly_the_public_names():
    names: dict = {}
    exec("from tinc_codec import *", names)
    assert set(names) - {"__builtins__"} == set(tinc_codec.__all__)
