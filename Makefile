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

setup: $(VENV)/.installed  ## make .venv and install everything at the versions of constraints.txt

$(VENV)/.installed: pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "aigc: no Python 3.11 to 3.13 was found: install one, or name it with PYTHON="; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

train: setup  ## train the default model on embedded data, about 5 minutes on two cores (ARGS="model=gan data=mnist")
	$(BIN)/python -m aigc.train $(ARGS)

test: setup  ## run the whole test suite, two processes of one thread each (ARGS="-k resume")
	OMP_NUM_THREADS=1 WANDB_MODE=offline $(BIN)/python -m pytest -n 2 --dist worksteal $(ARGS)

lint: setup  ## style (ruff) and types (mypy)
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: setup  ## measure speed: our steps against bare loops, precision, loader, sampling, scoring
	$(BIN)/python experiments/speed/measure.py $(ARGS)

clean:  ## remove the environment and caches; runs stay
	rm -rf $(VENV) .pytest_cache .ruff_cache .mypy_cache build dist
