# `make demo` and `make test` set themselves up in a fresh clone; Python 3.11 or later, pip and make
# are all they need.
PYTHON ?= python3
BIN := .venv/bin
export OMP_WAIT_POLICY ?= PASSIVE
export TOKENIZERS_PARALLELISM ?= false

.PHONY: setup demo test lint unit docs clean

setup: .venv/.ready

.venv/.ready: pyproject.toml organisms/pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev,docs,pyod,tasks]" --editable organisms
	touch $@

demo: setup
	$(BIN)/offkey demo --out out/demo

test: lint unit docs

lint: setup
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/lint-imports
	$(BIN)/mypy

unit: setup
	$(BIN)/python -m pytest -m forks
	$(BIN)/python -m pytest -m "not forks" -n 2

docs: setup
	$(BIN)/sphinx-build --quiet --fail-on-warning --keep-going docs docs/_build/html

clean:
	rm -rf .venv out docs/_build
