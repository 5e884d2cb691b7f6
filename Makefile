PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed

.DEFAULT_GOAL := help
.PHONY: help env train test test-all bench lint clean

help:  ## print this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-9s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

env: $(STAMP)  ## create .venv and install fastnorm there, editable, with all tools

# torch goes first and pinned: the newest supported version, so that every machine tests the same one.
$(STAMP): pyproject.toml setup.py
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	    { echo "fastnorm needs Python 3.11 or newer, '$(PYTHON)' is not: make PYTHON=python3.11 ..." >&2; exit 1; }
	@echo "installing into .venv (a few minutes the first time)"
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install -qq --disable-pip-version-check torch==2.13.0
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -e '.[dev]'
	@touch $@

train: env  ## train the ResNet with group norm (CIFAR-10, or offline the embedded digits)
	$(BIN)/python cifar/train.py --norm gn

test: env  ## run all tests but the slow ones
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m "not slow"

test-all: env  ## run all tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

bench: env  ## time every norm against torch's on this CPU, call by call in pairs
	$(BIN)/python -m benchmarks.cpu

lint: env  ## check lint, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:  ## remove .venv and everything generated but data and runs
	rm -rf .venv build dist *.egg-info .benchmarks .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
