PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed

.DEFAULT_GOAL := help
.PHONY: help env train test test-all test-compiled test-matrix test-newest fuzz bench docs lint dist gpu gpu-smoke gpu-test gpu-bench gpu-plot gpu-tune gpu-study gpu-wheels gpu-ready clean

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
	-@$(BIN)/python -m fastnorm.kernels.cpu
	@touch $@

train: env  ## train the ResNet with group norm (CIFAR-10, or offline the embedded digits)
	$(BIN)/python cifar/train.py --norm gn

# Kernels are interpreted or compiled by what the environment says when they are imported, so their
# tests are two runs. What Triton compiles it keeps (TRITON_CACHE_DIR): the first run is minutes longer.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal
COMPILED := TRITON_INTERPRET=0 $(PYTEST) tests/compiled
test: env  ## run all tests but the slow ones: kernels interpreted, then compiled
	$(PYTEST) -m "not slow"
	$(COMPILED) -m "not slow"

test-all: env  ## run all tests
	$(PYTEST)
	$(COMPILED)

# TRITONS=3.9.0 and CAPABILITIES=90 choose some.
TRITONS := 3.6.0 3.7.1 3.8.0 3.9.0
CAPABILITIES := 80 90
test-compiled: $(TRITONS:%=.triton/%)  ## all tests of compiled kernels, with each Triton, for sm_80 and sm_90
	@for version in $(TRITONS); do for capability in $(CAPABILITIES); do \
	    echo "== Triton $$version, sm_$$capability"; \
	    PYTHONPATH=$(CURDIR)/.triton/$$version $(COMPILED) --triton $$version \
	        --capability $$capability || exit 1; \
	done; done

# Triton 3.6 is what torch 2.11 brings; its interpreter wants an older numpy than the newest. Tests
# without Triton (no_kernel: tests/conftest.py marks them) would show what make test does.
OLD_TRITON := 3.7.1
OLDEST_TRITON := 3.6.0
SMOKE := tests/functional/test_forward.py tests/modules/test_drop_in.py
test-matrix: .triton/$(OLD_TRITON) .triton/$(OLDEST_TRITON)  ## run kernels with an older Triton, and a part with the oldest
	$(call with_triton,$(OLD_TRITON)) -m pytest -n 2 --dist worksteal -m "not slow and not no_kernel"
	$(call with_triton,$(OLDEST_TRITON)) -m pytest -n 2 --dist worksteal \
	    -m "not slow and not no_kernel" $(SMOKE)
	PYTHONPATH=$(CURDIR)/.triton/$(OLDEST_TRITON) $(COMPILED) -m "not slow" \
	    --triton $(OLDEST_TRITON) --capability 80

# The newest torch supported comes as a CUDA build of several GB: an environment of its own, not in CI.
NEWEST := .newest/2.15.0
test-newest: $(NEWEST)/.installed  ## run all tests but the slow ones with the newest torch, several GB
	OMP_NUM_THREADS=1 $(NEWEST)/bin/python -m pytest -n 2 --dist worksteal -m "not slow"

$(NEWEST)/.installed: pyproject.toml setup.py
	$(PYTHON) -m venv $(NEWEST)
	$(NEWEST)/bin/python -m pip install -qq --disable-pip-version-check torch==$(notdir $(NEWEST))
	$(NEWEST)/bin/python -m pip install -qq --disable-pip-version-check -e '.[dev]'
	@touch $@

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
# What .wheels brings (make gpu-wheels) is installed into .site. REHEARSE=1 goes the same way without
# a GPU, in Triton's interpreter: few tests, tiny shapes. Order and limits: benchmarks/parts.py.
WINDOW = $(PYTHON) -m benchmarks.window
WINDOW_ARGS = --out "$(OUT)" $(if $(PARTS),--parts $(PARTS)) $(if $(COMMIT),--commit $(COMMIT))
ifdef REHEARSE
export TRITON_INTERPRET := 1
export OMP_NUM_THREADS := 1
WINDOW_ARGS += --rehearse
endif
gpu gpu-smoke gpu-test gpu-bench gpu-plot gpu-tune gpu-study: \
    export PYTHONPATH := $(CURDIR)/.site$(if $(PYTHONPATH),:$(PYTHONPATH))

gpu: gpu-ready  ## on a GPU, into OUT=DIR, in 6 minutes: smoke, tests, benchmarks, figures
	@$(WINDOW) gpu $(WINDOW_ARGS)

gpu-smoke: gpu-ready  ## of gpu: every norm, tier, layout, dtype and fusion once; 60 s
	@$(WINDOW) gpu $(WINDOW_ARGS) --parts smoke smoke-clusters

gpu-test: gpu-ready  ## of gpu: the most telling tests; 120 s
	@$(WINDOW) gpu $(WINDOW_ARGS) --parts test

gpu-bench: gpu-ready  ## of gpu: the rows of the goals, checked, then timed; 150 s
	@$(WINDOW) gpu $(WINDOW_ARGS) --parts bench-compile bench bench-clusters-compile bench-clusters

gpu-plot: gpu-ready  ## of gpu: figures and tables from OUT/rows.jsonl
	@$(WINDOW) gpu $(WINDOW_ARGS) --parts plot

gpu-tune: gpu-ready  ## on a GPU, after gpu, 90 s: what to change where a goal is missed by a tenth
	@$(WINDOW) tune $(WINDOW_ARGS)

gpu-study: gpu-ready  ## on a GPU, into OUT=DIR, in 4 minutes: CIFAR study of DATA=ARCHIVE; resumes
	@$(WINDOW) study $(WINDOW_ARGS) $(if $(DATA),--data "$(DATA)")

# For the Python and system of the machine with the GPU. quack-kernels needs nvidia-cutlass-dsl, of
# 97 MB: it takes part where it is installed already.
WHEEL_PYTHON := 3.12
WHEELS := liger-kernel==0.8.5 nvidia-cudnn-frontend==1.32.0 tyro docstring-parser typeguard
gpu-wheels:  ## with a network: fetch into .wheels what a machine without one may lack (13 MB)
	$(PYTHON) -m pip download -q --no-deps --only-binary=:all: --python-version $(WHEEL_PYTHON) \
	    --implementation cp $(foreach n,17 27 28,--platform manylinux_2_$(n)_x86_64) \
	    --platform manylinux2014_x86_64 -d .wheels $(WHEELS)

gpu-ready:
	@test -n "$(OUT)" || { echo "say where to: make gpu OUT=DIR" >&2; exit 1; }
	@mkdir -p "$(OUT)"
	@test ! -d .wheels -o -d .site || $(PYTHON) -m pip install -q --no-index --no-deps --no-compile \
	    --target .site .wheels/*.whl || \
	    echo "without the wheels of .wheels: see make gpu-wheels WHEEL_PYTHON=3.x" >&2
	@$(PYTHON) -c "$$READY" 2>/dev/null; case $$? in 0) ;; \
	    3) echo "torch sees no GPU here; REHEARSE=1 goes the same way on a CPU" >&2; exit 1;; \
	    4) $(PYTHON) -m pip install -q --no-deps --no-build-isolation -e .;; \
	    *) echo "'$(PYTHON)' has no torch; PYTHON= names another, after make env .venv/bin/python" >&2; exit 1;; \
	    esac

# Exit codes: 3 without a GPU, 4 where fastnorm with its kernels has to be installed. torch takes
# seconds to import: once is enough.
define READY
import importlib.util, sys, torch
if not "$(REHEARSE)" and not torch.cuda.is_available():
    sys.exit(3)
sys.exit(0 if importlib.util.find_spec("fastnorm.kernels") else 4)
endef
export READY

clean:  ## remove .venv and everything generated but data and runs
	rm -rf .venv .triton .newest .peers .wheels .site build dist docs/_build *.egg-info
	rm -rf .benchmarks .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
