# Commands for a newcomer: `make demo`, `make demo-svi` and `make test`. Everything lives in .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO := storyboards/demo.yaml
# where `make demo-svi` gets torch without CUDA, a tenth of the download; empty: where pip looks by default
TORCH_INDEX ?= $(if $(filter Darwin,$(shell uname -s)),,https://download.pytorch.org/whl/cpu)

.PHONY: setup demo demo-svi test lint types suite slow full-size browser package docs clean

PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

setup: $(BIN)/.installed

$(BIN)/.core: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) -e .
	touch $@

# a torch that is there already is kept
$(BIN)/.svi: $(BIN)/.core
	@$(if $(TORCH_INDEX),$(BIN)/python -c 'import torch' 2>/dev/null || $(PIP) --no-deps --retries 1 --timeout 15 \
	  --index-url '$(TORCH_INDEX)' torch || echo 'make: no torch from $(TORCH_INDEX); pip may take one with CUDA: several GB' >&2)
	$(PIP) -e '.[svi]'
	touch $@

$(BIN)/.installed: $(BIN)/.core
	$(PIP) -e '.[dev,ray,svi]'
	touch $(BIN)/.svi $@

# the core alone: no torch, no Ray, no development tools
demo: $(BIN)/.core
	@$(BIN)/svi-story render $(DEMO) --engine animatic

# the svi engine on the CPU, with the toy: a small model of a drawn world, not Wan 2.2
demo-svi: $(BIN)/.svi
	@$(BIN)/svi-story render storyboards/toy.yaml --models toy/models --dtype float32

test: lint types suite

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup
	$(BIN)/mypy
	$(BIN)/mypy storyboards/images/draw
	$(BIN)/mypy --platform win32 --no-warn-unreachable --cache-dir .mypy_cache/win32 svi_story

suite: setup
	$(BIN)/python -m pytest -n 2

slow: setup
	$(BIN)/python -m pytest -n 2 -m slow

# the svi engine with all 40 layers at 480p and 720p, on fake tensors: no GPU, about 15 minutes
full-size: setup
	$(BIN)/python -m pytest -m full_size

browser: setup
	$(BIN)/python -m pytest -m browser

# what people install: the wheel in an empty environment, far from the checkout (needs the network)
package: setup
	rm -rf dist && $(BIN)/python -m hatchling build -t wheel -d dist
	$(PYTHON) -m venv dist/venv
	dist/venv/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt dist/*.whl
	cd dist && venv/bin/svi-story new film && venv/bin/svi-story render film --engine animatic

docs: setup
	$(BIN)/python docs/generate.py

clean:
	rm -rf $(VENV) dist
