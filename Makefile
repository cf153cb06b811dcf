# make train: set up, train the default model, score it and say where to look. make help lists the rest.
PYTHON ?= $(shell for p in python3.13 python3.12 python3.11 python3; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' 2>/dev/null && { echo $$p; break; }; done)
VENV ?= .venv
BIN := $(VENV)/bin
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help setup train test lint bench clean

help:  ## list the targets
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "make %-8s %s\n", $$1, $$2}'

setup: $(VENV)/.train-installed  ## make .venv and install what training needs, at the versions of constraints.txt

$(VENV)/bin/python:
	@test -n "$(PYTHON)" || { echo "aigc: no Python 3.11 to 3.13 was found: install one, or name it with PYTHON="; exit 2; }
	@echo "aigc: making $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv $(VENV)

$(VENV)/.train-installed: pyproject.toml constraints.txt | $(VENV)/bin/python
	@$(BIN)/python tools/install.py .
	@touch $@

$(VENV)/.dev-installed: $(VENV)/.train-installed
	@$(BIN)/python tools/install.py '.[dev]'
	@touch $@

train: setup  ## train the default model on embedded data, about 5 minutes on two cores (ARGS="model=gan data=mnist")
	$(BIN)/python -m aigc.train $(ARGS)

test: $(VENV)/.dev-installed  ## run the whole test suite, two processes of one thread each (ARGS="-k resume")
	$(BIN)/python -m pytest -n 2 --dist worksteal --durations=15 --durations-min=3 $(ARGS)

lint: $(VENV)/.dev-installed  ## style (ruff) and types (mypy)
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: $(VENV)/.dev-installed  ## measure speed: our steps against bare loops, precision, loader, sampling, scoring
	$(BIN)/python experiments/speed/measure.py $(ARGS)

clean:  ## remove the environment and caches; runs stay
	rm -rf $(VENV) .pytest_cache .ruff_cache .mypy_cache build dist
