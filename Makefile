# make demo  - train two small models, sample, measure, write runs/demo/report.html
# make test  - lint, types, tests
# make docs  - the documentation, in build/site
# make wheel - a wheel and an sdist in dist/; make smoke tries both without the repository
# Each makes .venv itself, from the pinned versions of constraints.txt.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt
export PIP_CONSTRAINT := constraints.txt

# Tests that look at reference files do so where this points, and are skipped elsewhere.
ifneq ($(wildcard ../shared/golden),)
export SOFTTRUNC_SHARED ?= $(abspath ../shared)
endif

.PHONY: demo test lint types unit wheel smoke bench docs clean

demo: .venv/installed
	$(BIN)/softtrunc demo

test: lint types unit

lint: .venv/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/installed-test
	$(BIN)/mypy

unit: .venv/installed-test
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

# The wheel is built from the sdist, so that neither needs anything that the other lacks.
wheel: .venv/installed-test
	rm -rf dist
	$(BIN)/python -m build --outdir dist . >/dev/null

# Wheel and sdist without the repository: what a user has after `pip install`.
smoke: wheel
	rm -rf build/smoke
	$(PIP) --no-deps --target build/smoke/wheel dist/softtrunc-*.whl
	$(PIP) --no-deps --target build/smoke/sdist dist/softtrunc-*.tar.gz
	for from in wheel sdist; do \
	  mkdir -p build/smoke/in-$$from && cd build/smoke/in-$$from && export PYTHONPATH=../$$from && \
	  ../$$from/bin/softtrunc --version && ../../../$(BIN)/python ../../../examples/smoke.py && \
	  cd ../../.. || exit 1; \
	done

bench: .venv/installed-test
	$(BIN)/python -m benchmarks

docs: .venv/installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --site-dir build/site

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "softtrunc needs Python 3.11 or newer: make PYTHON=/path/to/python3.11 ..."; exit 2; }
	@$(PYTHON) -m venv .venv

.venv/installed: pyproject.toml constraints.txt | .venv/bin/python
	@echo "installing softtrunc and what it needs into .venv (once; a minute or two)"
	@$(PIP) --editable .
	@touch $@

.venv/installed-test: pyproject.toml constraints.txt | .venv/bin/python
	@echo "installing softtrunc and its test tools into .venv (once; a minute or two)"
	@$(PIP) --editable '.[test]'
	@touch $@ .venv/installed

.venv/installed-docs: pyproject.toml constraints.txt | .venv/bin/python
	@$(PIP) --editable '.[docs]'
	@touch $@

clean:
	rm -rf .venv build dist .mypy_cache .ruff_cache .pytest_cache
