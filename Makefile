# Two commands for newcomers: `make quickstart` and `make test`. Everything installs itself into .venv.
VENV := .venv
BIN := $(VENV)/bin
export JAX_PLATFORMS ?= cpu

# `make PYTHON=...` takes that one. Otherwise that of .venv, and for a new .venv the newest suitable one that runs: a later
# Python has a later JAX.
SUITABLE := import ensurepip, sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))
ifndef PYTHON
PYTHON := $(shell for name in $(BIN)/python python3.13 python3.12 python3.11 python3; do \
  $$name -c '$(SUITABLE)' 2> /dev/null && echo $$name && break; done)
PYTHON := $(or $(PYTHON),python3)
endif

.PHONY: help install install-dev install-preflight tpu-table quickstart test test-all test-lowest test-newest test-runtimes test-wandb bench chaos mutants docs notebook lint lock clean

help:  ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

# pip compiles bytecode as it installs, without which TensorFlow imports in 15 s instead of 6.
$(VENV)/installed: pyproject.toml constraints.txt
	@$(PYTHON) scripts/environment.py $(VENV)
	$(BIN)/python -m pip install --quiet --compile --constraint constraints.txt --editable '.[quickstart]'
	touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --compile --constraint constraints.txt --editable '.[dev]'
	touch $@

install: $(VENV)/installed  ## what the quickstart needs, into .venv
install-dev: $(VENV)/installed-dev  ## and what tests and checks need

install-preflight: $(VENV)-preflight/installed  ## what mixer.preflight needs, into .venv-preflight

quickstart: install  ## pre-train a small Mixer and fine-tune it, within five minutes on two cores
	$(BIN)/python -m scripts.quickstart

docs: install  ## write docs/configuration.md from the declared settings
	$(BIN)/python -m mixer.config.describe > docs/configuration.md

# The script is not called mixer.py: beside the notebook, `import mixer` would find it before the package.
notebook: install-dev  ## write notebooks/mixer.ipynb from notebooks/mixer_notebook.py
	$(BIN)/jupytext --quiet --update --output notebooks/mixer.ipynb notebooks/mixer_notebook.py

lint: install-dev  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# One process more than cores: a test that waits for a command leaves its core to another. Each begins with a run of
# neighbouring tests, so that what a file's tests share is mostly made once.
test: lint  ## the checks and the test suite, about 15 minutes on two cores
	$(BIN)/python -m pytest -m "not slow" --numprocesses=$$(( $$($(BIN)/python -c 'import os; print(os.cpu_count())') + 1 )) --dist=worksteal

test-all: lint $(VENV)-preflight/installed  ## and what takes longer: large models, ahead-of-time TPU compilation
	$(BIN)/python -m pytest
	$(VENV)-preflight/bin/python -m pytest tests/training/test_tpu_compile.py

# Tests with other versions than those of constraints.txt: the lowest and the newest that pyproject.toml allows. Not the
# commands' own tests, which take most of the time. With uv, because pip cannot resolve to the lowest; libraries that
# others bring are the newest in both.
ROOMS = tests/config tests/data tests/evaluation tests/models tests/performance tests/training tests/transfer

test-lowest: $(VENV)-lowest/installed  ## the tests of the rooms with the lowest versions that pyproject.toml allows (Python 3.11)
	$(VENV)-lowest/bin/python -m pytest -m "not slow" --numprocesses=auto -W ignore::DeprecationWarning $(ROOMS)

test-newest:  ## the same with the newest versions, installed anew each time
	@$(PYTHON) scripts/environment.py $(VENV)-newest
	$(VENV)-newest/bin/python -m pip install --quiet uv
	$(VENV)-newest/bin/uv pip install --quiet --compile-bytecode --python $(VENV)-newest --upgrade --editable '.[dev]'
	$(VENV)-newest/bin/python -m pytest -m "not slow" --numprocesses=auto $(ROOMS)

# The floors are those of Python 3.11. The wheels of later Pythons begin with later versions of some libraries.
$(VENV)-lowest/installed: PYTHON = python3.11
$(VENV)-lowest/installed: pyproject.toml
	@$(PYTHON) scripts/environment.py --only 3.11 $(VENV)-lowest
	$(VENV)-lowest/bin/python -m pip install --quiet uv
	$(VENV)-lowest/bin/uv pip install --quiet --compile-bytecode --python $(VENV)-lowest --resolution lowest-direct --editable '.[dev]'
	touch $@

# libtpu stays out of the usual environment: where it is installed, a plain import of jax tries to start a TPU.
$(VENV)-preflight/installed: pyproject.toml constraints.txt
	@$(PYTHON) scripts/environment.py $(VENV)-preflight
	$(VENV)-preflight/bin/python -m pip install --quiet --compile --constraint constraints.txt --editable '.[dev,preflight]'
	touch $@

RESULTS ?= preflight.jsonl
tpu-table: $(VENV)-preflight/installed  ## the eleven configs, compiled for each generation of TPUs into RESULTS=FILE; hours
	JAX_PLATFORMS=cpu $(VENV)-preflight/bin/python scripts/preflight_table.py --results $(RESULTS)

TRIALS ?= 100
SEED ?= 0
KINDS ?=
chaos: install-dev  ## kill, damage and starve the real command at random, TRIALS=100 times, within an hour on two cores
	$(BIN)/python -m tests.chaos --trials $(TRIALS) --seed $(SEED) --kinds "$(KINDS)"

mutants: install-dev  ## change one operator or number at a time and see whether a test fails; hours, or SAMPLE=20 a module
	$(BIN)/python -m scripts.mutants --seed $(SEED) $(if $(SAMPLE),--sample $(SAMPLE))

bench: $(VENV)-timm/installed  ## Mixer beside timm's on this CPU; and the input, with PHOTOS=DIR of class folders
	$(VENV)-timm/bin/python -m scripts.against_timm
ifdef PHOTOS
	$(VENV)-timm/bin/python -m mixer.benchmark --input $(PHOTOS_INPUT) --config.input.randaugment.layers=0 --config.input.randaugment.contrast=pil
	$(VENV)-timm/bin/python -m mixer.benchmark --input $(PHOTOS_INPUT)
endif

PHOTOS_INPUT = --config configs/b16_i21k.py --blocks 3 --block_seconds 1.5 --config.batch_size=256 \
  --config.input.dataset=folder --config.input.data_dir=$(PHOTOS) --config.input.train_split=train

# The tests write in .venv-onnx, and read in the two environments after it, which have neither JAX nor this project.
test-runtimes: $(VENV)-onnx/installed $(VENV)-onnxruntime/installed $(VENV)-iree/installed $(VENV)-timm/installed  ## what we export, opened by IREE, onnxruntime, OpenVINO and timm
	$(VENV)-onnx/bin/python -m pytest tests/transfer/test_runtimes.py
	$(VENV)-timm/bin/python -m pytest tests/transfer/test_timm_model.py tests/scripts/test_against_timm.py

$(VENV)-onnx/installed: pyproject.toml constraints.txt
	@$(PYTHON) scripts/environment.py $(VENV)-onnx
	$(VENV)-onnx/bin/python -m pip install --quiet --compile --constraint constraints.txt --editable '.[dev,onnx]'
	touch $@

$(VENV)-onnxruntime/installed: Makefile
	@$(PYTHON) scripts/environment.py $(VENV)-onnxruntime
	$(VENV)-onnxruntime/bin/python -m pip install --quiet onnxruntime==1.32.0 openvino==2026.4.1 pillow==13.0.0
	touch $@

$(VENV)-iree/installed: Makefile
	@$(PYTHON) scripts/environment.py $(VENV)-iree
	$(VENV)-iree/bin/python -m pip install --quiet iree-base-compiler==3.13.0 iree-base-runtime==3.13.0 pillow==13.0.0
	touch $@

# torchvision has no build for CPUs; --no-deps leaves torch as it is, and the last line brings what timm needs besides.
$(VENV)-timm/installed: pyproject.toml constraints.txt
	@$(PYTHON) scripts/environment.py $(VENV)-timm
	$(VENV)-timm/bin/python -m pip install --quiet --compile --constraint constraints.txt --editable '.[dev]'
	$(VENV)-timm/bin/python -m pip install --quiet torch==2.13.0
	$(VENV)-timm/bin/python -m pip install --quiet --no-deps torchvision==0.28.0 timm==1.0.31
	$(VENV)-timm/bin/python -m pip install --quiet pyyaml huggingface_hub
	touch $@

# Not in dev: wandb and the twenty libraries that it brings take 100 MB.
test-wandb: $(VENV)-wandb/installed  ## the writer for Weights & Biases, in its offline mode
	$(VENV)-wandb/bin/python -m pytest tests/training/test_writers.py

$(VENV)-wandb/installed: pyproject.toml constraints.txt
	@$(PYTHON) scripts/environment.py $(VENV)-wandb
	$(VENV)-wandb/bin/python -m pip install --quiet --compile --constraint constraints.txt --editable '.[dev,wandb]'
	touch $@

# For each Python the latest versions that it can have: JAX 0.11 and later need Python 3.12.
lock:  ## resolve constraints.txt anew, for Python 3.11 to 3.13 on Linux and macOS
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --upgrade \
	  --extra dev --extra preflight --extra wandb --extra onnx --extra cuda --no-header --no-annotate --no-emit-index-url pyproject.toml --output-file constraints.txt

clean:  ## remove the environment and what tools left
	rm -rf $(VENV) $(VENV)-preflight $(VENV)-timm $(VENV)-lowest $(VENV)-newest $(VENV)-wandb $(VENV)-onnx $(VENV)-onnxruntime $(VENV)-iree .pytest_cache .mypy_cache .ruff_cache .hypothesis
