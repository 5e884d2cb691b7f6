PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed

.DEFAULT_GOAL := help
.PHONY: help env train test test-all test-compiled test-matrix fuzz bench docs lint dist gpu gpu-test gpu-bench gpu-plot gpu-study gpu-wheels fastnorm-importable clean

help:  ## print this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

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

# Kernels are interpreted or compiled by what the environment says when they are imported, so their
# tests are two runs. What Triton compiles it keeps (TRITON_CACHE_DIR): the first run is minutes longer.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal
COMPILED := TRITON_INTERPRET=0 $(PYTEST) tests/compiled
test: env  ## run all tests but the slow ones: the kernels interpreted, then compiled and executed
	$(PYTEST) -m "not slow"
	$(COMPILED) -m "not slow"

test-all: env  ## run all tests
	$(PYTEST)
	$(COMPILED)

# TRITONS=3.9.0 and CAPABILITIES=90 choose some.
TRITONS := 3.6.0 3.7.1 3.8.0 3.9.0
CAPABILITIES := 80 90
test-compiled: $(TRITONS:%=.triton/%)  ## run all tests of compiled kernels with each Triton, for sm_80 and sm_90
	@for version in $(TRITONS); do for capability in $(CAPABILITIES); do \
	    echo "== Triton $$version, sm_$$capability"; \
	    PYTHONPATH=$(CURDIR)/.triton/$$version $(COMPILED) --triton $$version \
	        --capability $$capability || exit 1; \
	done; done

# Triton 3.6 is what torch 2.11 brings; its interpreter wants an older numpy than the newest. Tests
# without Triton (no_kernel: tests/conftest.py marks them) would show what make test does.
OLD_TRITON := 3.7.1
OLDEST_TRITON := 3.6.0
SMOKE := tests/functional/test_forward.py tests/modules/test_drop_in.py tests/kernels/test_compile.py
test-matrix: .triton/$(OLD_TRITON) .triton/$(OLDEST_TRITON)  ## run the kernels' tests with an older Triton, some with the oldest
	$(call with_triton,$(OLD_TRITON)) -m pytest -n 2 --dist worksteal -m "not slow and not no_kernel"
	$(call with_triton,$(OLDEST_TRITON)) -m pytest -n 2 --dist worksteal \
	    -m "not slow and not no_kernel" $(SMOKE)

# Python with the packages of .triton/$(1) before those of .venv, once it is seen to have them.
with_triton = @export PYTHONPATH=$(CURDIR)/.triton/$(1) OMP_NUM_THREADS=1 && \
	    $(BIN)/python -c 'import triton; assert triton.__version__ == "$(1)", triton' && $(BIN)/python

.triton/%: $(STAMP)
	$(BIN)/python -m pip install -qq --disable-pip-version-check --no-deps --target $@.part \
	    triton==$* 'numpy<2.4'
	@rm -rf $@ && mv $@.part $@

# An example of the kernels takes half a second in the interpreter: 1000 of each keep 2 cores busy
# for an hour.
FUZZ_EXAMPLES := 1000
fuzz: env  ## run the property tests on new random cases, FUZZ_EXAMPLES=N of each (1000)
	HYPOTHESIS_PROFILE=fuzz FUZZ_EXAMPLES=$(FUZZ_EXAMPLES) OMP_NUM_THREADS=1 \
	    $(BIN)/python -m pytest -n 2 --dist worksteal --timeout 0 tests/properties

bench: env  ## time every norm against torch's on this CPU, call by call in pairs
	$(BIN)/python -m benchmarks.cpu

docs: env  ## build the documentation into docs/_build/html; a warning is an error
	$(BIN)/python -m sphinx --quiet --fail-on-warning --fresh-env docs docs/_build/html

lint: env  ## check lint, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

dist: env  ## build the source distribution and, from it, the wheel, into dist/
	rm -rf dist
	$(BIN)/python -m build --no-isolation

# The targets below need a machine with a GPU and no network: PYTHON's own torch, triton, pytest,
# pytest-timeout, pytest-xdist, hypothesis, pip, setuptools and matplotlib serve, no .venv is made.
# REHEARSE=1 goes the same way without a GPU, in Triton's interpreter: few tests, tiny shapes.
PART_SECONDS := 580
ifdef REHEARSE
export TRITON_INTERPRET := 1
export OMP_NUM_THREADS := 1
GPU_TESTS := -n 2 tests/functional/test_forward.py
GPU_CASES := --tiny
GPU_PLOT := --rehearsal
else
GPU_TESTS := -n 14 tests --ignore tests/cifar
GPU_CASES := --quick
endif

gpu:  ## on a GPU, into OUT=DIR: tests, benchmarks, figures (REHEARSE=1: tiny, on a CPU)
	@status=0; for part in gpu-test gpu-bench gpu-plot; do \
	    echo "== $$part"; $(MAKE) --no-print-directory $$part || status=1; done; exit $$status

gpu-test: fastnorm-importable  ## part 1 of gpu: the tests, to OUT/tests.log; under 10 minutes
	@timeout $(PART_SECONDS) $(PYTHON) -m pytest -m "not slow" $(GPU_TESTS) >$(OUT)/tests.log 2>&1; \
	    status=$$?; tail -n 25 $(OUT)/tests.log; exit $$status

gpu-bench: fastnorm-importable  ## part 2 of gpu: benchmarks.run, to OUT/rows.jsonl; under 10 minutes
	@PYTHONUNBUFFERED=1 timeout $(PART_SECONDS) \
	    $(PYTHON) -m benchmarks.run $(GPU_CASES) --out $(OUT)/rows.jsonl $(BENCH_ARGS)

gpu-plot: fastnorm-importable  ## part 3 of gpu: figures and tables from OUT/rows.jsonl
	@timeout $(PART_SECONDS) $(PYTHON) -m benchmarks.plot $(OUT)/rows.jsonl --out $(OUT) $(GPU_PLOT)

# Seven variants, speed and batch sizes of the study, in calls of PART_SECONDS each until none is
# left (the exit code says so: 3 is "call again"). The work lies in runs/gpu-study, which a call
# continues; OUT gets it as study.tar.gz, to be unpacked into runs/ of another machine.
STUDY := runs/gpu-study
ifdef REHEARSE
STUDY_FLAGS := --parts variants batch --dataset digits --device cpu --epochs 1 --depth-n 1 \
    --batch-sizes 128 --variants none bn gn
else
STUDY_FLAGS := --parts speed variants batch --data-dir runs/data --dataset-label "CIFAR-10 (JPEG q75)" --device cuda \
    --amp bf16 --channels-last --cuda-graph --batch-sizes 128 8
endif
STUDY_ARGS :=
gpu-study: fastnorm-importable  ## on a GPU, into OUT=DIR: CIFAR study of DATA=ARCHIVE; call until it says finished
	@$(PYTHON) -c 'import tyro' 2>/dev/null || \
	    $(PYTHON) -m pip install -q --no-index --no-deps .wheels/*.whl
ifndef REHEARSE
	@test -d runs/data || $(PYTHON) cifar/pack.py $(DATA) runs/data
endif
	@$(PYTHON) cifar/study.py --output $(STUDY) --seeds 0 \
	    --seconds $$(($(PART_SECONDS) - 120)) $(STUDY_FLAGS) $(STUDY_ARGS); status=$$?; \
	    $(PYTHON) cifar/report.py $(STUDY) && cp $(STUDY)/report.html $(OUT); \
	    tar czf $(OUT)/study.tar.gz -C $(dir $(STUDY)) $(notdir $(STUDY)) && exit $$status

gpu-wheels:  ## with a network: fetch into .wheels what gpu-study may lack on a machine without
	$(PYTHON) -m pip download -q --no-deps --only-binary=:all: -d .wheels tyro docstring-parser typeguard

fastnorm-importable:
	@test -n "$(OUT)" || { echo "say where to: make gpu OUT=DIR" >&2; exit 1; }
	@mkdir -p $(OUT)
	@$(PYTHON) -c 'import torch' 2>/dev/null || \
	    { echo "'$(PYTHON)' has no torch; PYTHON= names another, after make env .venv/bin/python" >&2; exit 1; }
	@$(PYTHON) -c 'import fastnorm.kernels' 2>/dev/null || \
	    $(PYTHON) -m pip install -q --no-deps --no-build-isolation -e .

clean:  ## remove .venv and everything generated but data and runs
	rm -rf .venv .triton .wheels build dist docs/_build *.egg-info
	rm -rf .benchmarks .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
