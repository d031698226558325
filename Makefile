# Every target makes the environment it needs; stamps make the second call fast.
# PYTHON chooses the interpreter (3.11 or later), PYTEST_ARGS goes to pytest, BENCH_ARGS to
# benchmarks.rd (--missing goes on after an interruption).

PYTHON ?= python3
PYTEST_ARGS ?=
BENCH_ARGS ?=
VENV := .venv
VENV_ZARR2 := .venv-zarr2
VENV_NEWEST := .venv-zarr-newest
# The newest zarr needs Python 3.12: the first such interpreter that starts, empty if there is none.
PYTHON_NEWEST ?= $(shell for python in $(PYTHON) python3.12 python3.13 python3.14 \
	"$${PYENV_ROOT:-$$HOME/.pyenv}"/versions/3.1[2-9].*/bin/python; do \
	"$$python" -c 'import ensurepip, sys; sys.exit(sys.version_info < (3, 12))' 2>/dev/null \
	&& echo "$$python" && break; done)
BIN := $(VENV)/bin
PIP_INSTALL := -m pip install --quiet --disable-pip-version-check

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test lint types compat compat-zarr2 compat-newest bench lock clean

help:
	@echo "make demo    compress the bundled volume, print a table, write demo.png"
	@echo "make test    all tests            make lint   ruff and the import layers"
	@echo "make types   mypy                 make compat the oldest and the newest zarr"
	@echo "make bench   this codec and its peers on the volumes in TINC_DATA (hours)"
	@echo "make lock    resolve requirements/*.txt anew (needs uv)"
	@echo "make clean   remove environments and caches"

demo: $(VENV)/.run
	$(BIN)/python examples/demo.py

test: $(VENV)/.test
	$(BIN)/python -m pytest $(PYTEST_ARGS)

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: $(VENV)/.test
	$(BIN)/mypy

compat: compat-zarr2
	@newest="$(PYTHON_NEWEST)"; if [ -n "$$newest" ]; \
	then $(MAKE) --no-print-directory compat-newest PYTHON_NEWEST="$$newest"; \
	else echo "skipped: the newest zarr needs Python 3.12 or later, and none was found"; fi

compat-zarr2: $(VENV_ZARR2)/.ready $(VENV)/.test
	TINC_OTHER_PYTHON="$(CURDIR)/$(BIN)/python" $(VENV_ZARR2)/bin/python -m pytest tests/compat $(PYTEST_ARGS)

compat-newest: $(VENV_NEWEST)/.ready $(VENV_ZARR2)/.ready $(VENV)/.test
	TINC_OTHER_PYTHON="$(CURDIR)/$(BIN)/python" \
	TINC_ZARR2_PYTHON="$(CURDIR)/$(VENV_ZARR2)/bin/python" \
		$(VENV_NEWEST)/bin/python -m pytest tests/compat tests/test_faces_zarr.py \
		tests/test_faces_zarr_codec.py tests/test_faces_xarray.py tests/test_writes.py $(PYTEST_ARGS)

bench: $(VENV)/.bench
	$(BIN)/python -m benchmarks.rd --markdown $(BENCH_ARGS)
	$(BIN)/python -m benchmarks.max_error --markdown

lock:
	tools/lock.sh

clean:
	rm -rf $(VENV) $(VENV_ZARR2) $(VENV_NEWEST) .mypy_cache .ruff_cache .pytest_cache \
		.import_linter_cache .hypothesis dist demo.png demo.zarr
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# A stamp stands for one list of requirements installed into one environment.
%/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "$(PYTHON) is older than Python 3.11: make PYTHON=python3.11 ..."; exit 1; }
	@echo "creating $*"
	@$(PYTHON) -m venv $*

$(VENV_NEWEST)/bin/python:
	@echo "creating $(VENV_NEWEST)"
	@$(PYTHON_NEWEST) -m venv $(VENV_NEWEST)

%/.torch: %/bin/python tools/install_torch.py
	@$< tools/install_torch.py
	@touch $@

$(VENV)/.run: requirements/run.txt pyproject.toml $(VENV)/.torch
	@echo "installing $<"
	@$(BIN)/python $(PIP_INSTALL) --requirement $<
	@$(BIN)/python $(PIP_INSTALL) --no-deps --editable .
	@touch $@

$(VENV)/.test: requirements/test.txt $(VENV)/.run
	@echo "installing $<"
	@$(BIN)/python $(PIP_INSTALL) --requirement $<
	@touch $@

$(VENV)/.bench: requirements/bench.txt $(VENV)/.test
	@echo "installing $<"
	@$(BIN)/python $(PIP_INSTALL) --requirement $<
	@touch $@

$(VENV_ZARR2)/.ready: requirements/zarr2.txt pyproject.toml $(VENV_ZARR2)/.torch
	@echo "installing $<"
	@$(VENV_ZARR2)/bin/python $(PIP_INSTALL) --requirement $<
	@$(VENV_ZARR2)/bin/python $(PIP_INSTALL) --no-deps --editable .
	@touch $@

# Without torch: its builds without CUDA are not to be had for every Python, and neither reading nor
# effort 0 needs it.
$(VENV_NEWEST)/.ready: requirements/zarr-newest.txt pyproject.toml $(VENV_NEWEST)/bin/python
	@echo "installing $<"
	@$(VENV_NEWEST)/bin/python $(PIP_INSTALL) --requirement $<
	@$(VENV_NEWEST)/bin/python $(PIP_INSTALL) --no-deps --editable .
	@touch $@

.PRECIOUS: %/bin/python %/.torch
