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


ENCODE = """
import sys, pathlib, numpy as np
from tinc_codec.codec import encode_chunk
from tinc_codec.params import EncodingParams
axes = np.meshgrid(*[np.linspace(0, 3, 16)] * 3, indexing="ij")
volume = (np.sin(axes[0]) + axes[1] * axes[2]).astype("f4")
promises = {
    "tree": {"ratio": 8, "model": "tree"},
    "features": {"ratio": 8, "model": "features"},
    "bound": {"max_error": 0.01, "model": "features"},
    "lattice": {"max_error": 0.01, "model": "lattice"},
}
for name, promise in promises.items():
    stream = encode_chunk(volume, EncodingParams(effort=0, **promise))
    pathlib.Path(sys.argv[1], name).write_bytes(stream)
"""

DECODE = """
import os, pathlib
os.environ["TINC_DEVICE"] = "cpu"
from tinc_codec.codec import decode_chunk, decode_region
for name in {names!r}:
    stream = pathlib.Path({folder!r}, name).read_bytes()
    assert decode_chunk(stream).shape == (16, 16, 16)
    assert decode_region(stream, [slice(2, 5)] * 3).shape == (3, 3, 3)
print(json.dumps(sorted(sys.modules)))
"""


def test_decoding_loads_neither_the_encoder_nor_torch(tmp_path):
    subprocess.run([sys.executable, "-c", ENCODE, str(tmp_path)], check=True)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["bound", "features", "lattice", "tree"]
    loaded = run_fresh(DECODE.format(names=names, folder=str(tmp_path)))
    assert "torch" not in loaded
    assert not [name for name in loaded if name.startswith("tinc_codec.fit")]
    assert "tinc_codec.model.features" in loaded
    assert "tinc_codec.quantise.corrections" in loaded
    assert "tinc_codec.quantise.lattice_coder" in loaded


def test_encoding_features_loads_no_torch():
    code = (
        "import numpy as np\n"
        "from tinc_codec import TINC, config\n"
        "config.set(device='cpu')\n"
        "chunk = np.arange(4096, dtype='f4').reshape(16, 16, 16) % 97\n"
        "for promise in ({'ratio': 8}, {'psnr': 40}, {'max_error': 0.5}):\n"
        "    TINC(**promise).encode(chunk)\n"
        "print(json.dumps(sorted(sys.modules)))"
    )
    assert "torch" not in run_fresh(code)


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
