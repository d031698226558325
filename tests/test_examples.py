"""The examples run, as a stranger would start them, on a few voxels."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.servers import s3_server

EXAMPLES = Path(__file__).parents[1] / "examples"


def run(script, *arguments, cwd, **environment):
    command = [sys.executable, str(EXAMPLES / script), *map(str, arguments)]
    done = subprocess.run(
        command,
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, **environment},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_bundled_volume_is_what_its_readme_says():
    volume = np.load(EXAMPLES / "data" / "mni152_t1_crop.npz")["volume"]
    readme = (EXAMPLES / "data" / "README.md").read_text()
    assert volume.dtype == np.uint8
    assert " × ".join(map(str, volume.shape)) in readme
    assert "Copyright (C) 1993-2009 Louis Collins" in readme


def test_demo_prints_its_table_and_writes_the_picture(tmp_path):
    pytest.importorskip("rich")
    pytest.importorskip("matplotlib")
    output = run("demo.py", "--edge", 32, "--ratio", 16, "--effort", 0, cwd=tmp_path)
    assert float(re.search(r"ratio \(raw / chunks\)\D+([\d.]+)", output)[1]) >= 16
    assert float(re.search(r"PSNR\D+([\d.]+) dB", output)[1]) > 15
    assert (tmp_path / "demo.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "demo.zarr" / "zarr.json").exists()


def test_quickstart_reads_both_formats_back(tmp_path):
    output = run("quickstart.py", tmp_path, cwd=tmp_path)
    lines = output.splitlines()
    assert [line.partition(":")[0] for line in lines] == ["v3.zarr", "v2.zarr"]
    # The same chunk, parameters and seed give the same bytes in both formats.
    assert lines[0].partition(":")[2] == lines[1].partition(":")[2]


def test_xarray_example_keeps_variables_apart(tmp_path):
    output = run("xarray_store.py", tmp_path, cwd=tmp_path)
    lines = dict(line.split(":", 1) for line in output.splitlines() if ":" in line)
    assert " 64x, " in lines["scan"]
    assert " 128x, " in lines["field"]
    assert " lossless, PSNR inf dB" in lines["labels"]
    for name, missing in {"scan": "0.0%", "field": "13.8%"}.items():
        assert float(re.search(r"PSNR ([\d.]+) dB", lines[name])[1]) > 20
        assert lines[name].endswith(f"missing {missing}")
    assert "algorithm tinc, tinc_codec version" in output


def test_dask_example_reduces_a_bucket(tmp_path):
    pytest.importorskip("moto")
    pytest.importorskip("s3fs")
    with s3_server(tmp_path) as server:
        url = server.url("brain.zarr")
        output = run("dask_bucket.py", url, cwd=tmp_path, **server.environment)
        chunks = [answer for answer in server.reads() if "brain.zarr/c/" in answer.key]
    assert output.startswith(f"(64, 64, 64) uint8 in 8 chunks at {url}\n")
    mean, original = map(float, re.search(r"mean ([\d.]+) \(original ([\d.]+)\)", output).groups())
    assert abs(mean - original) < 2
    # The three reductions share each chunk.
    assert len({chunk.key for chunk in chunks}) == len(chunks) == 8


def test_gpu_example_reads_tensors(tmp_path):
    pytest.importorskip("torch")
    output = run("gpu_read.py", tmp_path, cwd=tmp_path)
    assert output.startswith("(64, 64, 64) torch.uint8 on ")
    assert float(re.search(r"PSNR ([\d.]+) dB", output)[1]) > 30
