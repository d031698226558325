#!/usr/bin/env bash
# Writes requirements/*.txt anew: one resolution for Python 3.11 and later, then subsets of it.
set -euo pipefail
cd "$(dirname "$0")/.."
uv=${UV:-uv}
resolve() {
    local out=$1; shift
    "$uv" pip compile --quiet --universal --python-version 3.11 --no-annotate \
        --custom-compile-command "make lock" --output-file "requirements/$out.txt" \
        pyproject.toml "$@"
}
rm -f requirements/*.txt
resolve bench --extra demo --extra test --extra lint --extra bench --constraint requirements/pins.in
resolve test --extra demo --extra test --extra lint --constraint requirements/bench.txt
resolve run --extra demo --constraint requirements/bench.txt
resolve zarr2 --extra test --constraint requirements/zarr2.in
