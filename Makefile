# Two commands for a newcomer: `make demo` and `make test`. Everything lives in .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO := storyboards/demo.yaml

.PHONY: setup demo test lint types suite slow browser docs clean

setup: $(BIN)/.installed

$(BIN)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,ray,svi]'
	touch $@

demo: setup
	@$(BIN)/svi-story render $(DEMO) --engine animatic

test: lint types suite

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup
	$(BIN)/mypy
	$(BIN)/mypy storyboards/images/draw

suite: setup
	$(BIN)/python -m pytest -n 2

slow: setup
	$(BIN)/python -m pytest -n 2 -m slow

browser: setup
	$(BIN)/python -m pytest -m browser

docs: setup
	$(BIN)/python docs/generate.py

clean:
	rm -rf $(VENV)
