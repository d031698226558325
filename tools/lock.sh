#!/usr/bin/env bash
# Writes requirements/*.txt anew: one resolution for Python 3.11 and later, then subsets of it; the
# lists of the environments of `make compat` stand for themselves.
set -euo pipefail
cd "$(dirname "$0")/.."
uv=${UV:-uv}
resolve() {
    local out=$1 python=$2; shift 2
    "$uv" pip compile --quiet --universal --python-version "$python" --no-annotate \
        --custom-compile-command "make lock" --output-file "requirements/$out.txt" \
        pyproject.toml "$@"
}
rm -f requirements/*.txt
resolve bench 3.11 --extra all --extra demo --extra test --extra test-stores --extra lint --extra bench \
    --constraint requirements/pins.in
resolve test 3.11 --extra all --extra demo --extra test --extra test-stores --extra lint \
    --constraint requirements/bench.txt
resolve run 3.11 --extra demo --constraint requirements/bench.txt
resolve zarr2 3.11 --extra test --constraint requirements/zarr2.in
# Without torch: its builds without CUDA are not everywhere, and effort 0 needs none.
resolve zarr-newest 3.12 --extra test --constraint requirements/zarr-newest.in --no-emit-package torch
