# Everything from a bare machine: Python 3.11 or newer, pip, make, gcc.
#
#   make demo        see a model write the same text faster
#   make test        the tests that are not marked slow; test-full: all of them
#   make lint        ruff (lint and format) and mypy
#   make conformance the conformance suite on everything built in, thoroughly
#   make bench       every case of the goals, measured
#   make bench-sglang SPECPLUG servers beside the same server plain, on a CPU
#   make gpu         everything that needs a GPU, in nine minutes (docs/gpu.md); PYTHON=... runs it, nothing is installed
#   make serve       SGLang's server on a CPU with the built-in pair and specplug; PORT, SPECPLUG_CONFIG, SERVE_ARGS
#
# PYTHON=... chooses the interpreter, VENV=... the environment's folder, ARGS=... goes to the command.

SHELL := /bin/bash
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
SGLANG_VENV ?= .venv-sglang
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
WORKERS ?= 2
GPU_OUT ?= build/gpu
GPU_SECONDS ?= 540
ARGS ?=
DEMO := adapters/hf/specplug_hf/demo

PY := $(VENV)/bin/python
PIP := $(PY) -m pip --disable-pip-version-check
BUILD := pyproject.toml constraints.txt
SGLANG_PY := $(SGLANG_VENV)/bin/python
SGLANG_PIP := $(SGLANG_PY) -m pip --disable-pip-version-check
OFFLINE := HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1 TOKENIZERS_PARALLELISM=false
SGLANG_CPU := $(OFFLINE) SGLANG_USE_CPU_ENGINE=1 OMP_NUM_THREADS=1 PYTHONPATH=tests/sglang/standins

.PHONY: demo test test-hf test-sglang test-full serve bench-sglang gpu conformance lint format bench plugins wheel clean help

help:
	@sed -n '/^$$/q;s/^# \{0,1\}//p' Makefile

demo: $(VENV)/.specplug-hf
	$(VENV)/bin/specplug demo $(ARGS)

bench: $(VENV)/.specplug-hf
	$(VENV)/bin/specplug bench --goals $(ARGS)

plugins: $(VENV)/.specplug-hf
	$(VENV)/bin/specplug plugins $(ARGS)

# SGLang pins its own transformers, so its tests have an environment of their own.
test: test-hf test-sglang

test-hf: $(VENV)/.specplug-test
	$(OFFLINE) OMP_NUM_THREADS=1 $(PY) -m pytest -m "not slow" -n $(WORKERS) --dist worksteal $(ARGS)

test-sglang: $(SGLANG_VENV)/.specplug
	$(OFFLINE) OMP_NUM_THREADS=1 $(SGLANG_PY) -m pytest tests/sglang -m "not slow" $(ARGS)

test-full: $(VENV)/.specplug-test $(SGLANG_VENV)/.specplug
	$(OFFLINE) OMP_NUM_THREADS=1 $(PY) -m pytest -n $(WORKERS) --dist worksteal $(ARGS)
	$(OFFLINE) OMP_NUM_THREADS=1 $(SGLANG_PY) -m pytest tests/sglang $(ARGS)

bench-sglang: $(SGLANG_VENV)/.specplug
	$(SGLANG_CPU) $(SGLANG_VENV)/bin/specplug bench --adapter sglang \
		--model $(DEMO)/target --draft $(DEMO)/draft --texts $(DEMO)/prompts --server-args "--device cpu --dtype float32 --attention-backend torch_native \
		--sampling-backend pytorch --disable-cuda-graph --mem-fraction-static 0.2 --max-total-tokens 16384 --max-running-requests 16" $(ARGS)

# With PYTHON itself, whose torch must see the GPU: a bare machine may have no network to set up an environment from.
gpu:
	@$(PYTHON) tests/gpu/everything.py --out $(GPU_OUT) --seconds $(GPU_SECONDS) $(ARGS)

serve: $(SGLANG_VENV)/.specplug
	@exec $(SGLANG_PY) tests/sglang/serve.py

conformance: $(VENV)/.specplug-test $(SGLANG_VENV)/.specplug
	$(OFFLINE) OMP_NUM_THREADS=1 $(VENV)/bin/specplug conformance --effort thorough $(ARGS)
	$(SGLANG_CPU) $(SGLANG_VENV)/bin/specplug conformance --effort thorough --adapter sglang $(ARGS)

lint: $(VENV)/.specplug-dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

format: $(VENV)/.specplug-dev
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

wheel: $(VENV)/.specplug-hf
	$(PIP) wheel . --no-deps --wheel-dir dist

clean:
	rm -rf $(VENV) $(SGLANG_VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The environment, in steps that are skipped once done. Some distributions ship Python without ensurepip. What is imported is compiled
# then: compiling everything in advance takes as long as all the rest.
$(PY) $(SGLANG_PY):
	@test -n "$(PYTHON)" || { echo "No python3.11 or python3 found; set PYTHON=/path/to/python." >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "$(PYTHON) is older than Python 3.11; set PYTHON=/path/to/python3.11." >&2; exit 1; }
	$(PYTHON) -m venv $(@D)/.. || $(PYTHON) -m venv --clear --without-pip $(@D)/..
	@$@ -m pip --version >/dev/null 2>&1 || $(PYTHON) -m pip --python $@ install --quiet pip

# The CPU build of torch: from the indexes that pip is configured with, else from PyTorch's own.
$(VENV)/.specplug-torch: constraints.txt | $(PY)
	@echo "Setting up $(VENV): torch (CPU), then transformers and the rest; some minutes, once."
	$(PIP) install --quiet --no-compile -c constraints.txt torch 2>/dev/null \
		|| $(PIP) install --quiet --no-compile -c constraints.txt --extra-index-url $(TORCH_INDEX) torch
	@touch $@

$(VENV)/.specplug-hf: $(VENV)/.specplug-torch $(BUILD)
	$(PIP) install --quiet --no-compile -c constraints.txt -e '.[hf]'
	@touch $@

$(VENV)/.specplug-test: $(VENV)/.specplug-torch $(BUILD)
	$(PIP) install --quiet --no-compile -c constraints.txt -e '.[hf,test,triton]'
	@touch $@ $(VENV)/.specplug-hf

$(VENV)/.specplug-dev: $(VENV)/.specplug-torch $(BUILD)
	$(PIP) install --quiet --no-compile -c constraints.txt -e '.[hf,test,triton,dev]'
	@touch $@ $(VENV)/.specplug-test $(VENV)/.specplug-hf

# SGLang asks for the CUDA build of torch and much else that only a GPU can use: the list is complete and resolves nothing.
$(SGLANG_VENV)/.specplug: tests/sglang/requirements.txt pyproject.toml | $(SGLANG_PY)
	@echo "Setting up $(SGLANG_VENV): torch (CPU), SGLang and what it imports, 1.6 GB; two minutes, once."
	$(SGLANG_PIP) install --quiet --no-compile --no-deps -r tests/sglang/requirements.txt 2>/dev/null \
		|| $(SGLANG_PIP) install --quiet --no-compile --no-deps -r tests/sglang/requirements.txt --extra-index-url $(TORCH_INDEX)
	$(SGLANG_PIP) install --quiet --no-compile --no-deps -e .
	@touch $@
