# `make demo` and `make test` set themselves up in a fresh clone; Python 3.11 or later, pip and make
# are all they need.
PYTHON ?= python3
BIN := .venv/bin
export OMP_WAIT_POLICY ?= PASSIVE
export TOKENIZERS_PARALLELISM ?= false

.PHONY: setup demo test lint forks unit docs clean

setup: .venv/.ready

.venv/.ready: pyproject.toml organisms/pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev,docs,pyod,tasks]" --editable organisms
	touch $@

demo: setup
	$(BIN)/offkey demo --out out/demo

# The tests that fork need a process of their own, so they run beside the linters; the tests build
# the site themselves.
test:
	$(MAKE) --jobs=2 lint forks
	$(MAKE) unit

lint: setup
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/lint-imports
	$(BIN)/mypy

forks: setup
	$(BIN)/python -m pytest -m forks

# Workers take halves of the list and steal from each other at the end, so that hardly any fixture
# is built twice.
unit: setup
	$(BIN)/python -m pytest -m "not forks" -n 2 --dist worksteal

docs: setup
	$(BIN)/sphinx-build --quiet --fail-on-warning --keep-going docs docs/_build/html

clean:
	rm -rf .venv out docs/_build
