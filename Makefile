# Every target sets up what it needs in .venv, from a clean clone with Python 3.11+ and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
NAME ?= all
ARGS ?=

.PHONY: demo test check plain lint bench faults reproduce notebooks clean
.DEFAULT_GOAL := demo

$(VENV)/.core: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP_INSTALL) -e '.[lab]'
	touch $@

$(VENV)/.dev: $(VENV)/.core
	$(PIP_INSTALL) -e '.[lab,dev]'
	touch $@

$(VENV)/.bench: $(VENV)/.core
	$(PIP_INSTALL) -e '.[lab,bench]'
	touch $@

demo: $(VENV)/.core  ## the main job on the embedded digits
	$(BIN)/python -m experiments.launch --config=experiments/quickstart/config.py $(ARGS)

test: $(VENV)/.dev  ## the whole fast suite
	$(BIN)/python -m pytest -n 2 --dist worksteal $(ARGS)

check: lint  ## lint and the science, without what starts processes or runs experiments
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not long" $(ARGS)

plain:  ## what `pip install nopr` brings, in an environment of its own
	rm -rf .venv-plain
	$(PYTHON) -m venv .venv-plain
	.venv-plain/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt .
	cd tests && ../.venv-plain/bin/python plain_install.py

lint: $(VENV)/.dev  ## ruff (lint and format) and the type checker
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyrefly check

bench: $(VENV)/.bench  ## the benchmarks, each a ratio against what a user would pick instead
	$(BIN)/python -m experiments.benchmarks $(ARGS)

faults: $(VENV)/.core  ## the long fault campaign, some 20 minutes; writes docs/faults.md
	PYTHONPATH=tests $(BIN)/python -m campaign --page=docs/faults.md $(ARGS)

reproduce: $(VENV)/.core  ## every paper experiment; NAME=isometry_table for one
	$(BIN)/python -m experiments.reproduce --name=$(NAME) $(ARGS)

notebooks: $(VENV)/.dev  ## brings each notebook in step with its script and executes it
	$(BIN)/jupytext --quiet --update --to ipynb colab/*.py
	$(BIN)/python -m pytest --nbmake --nbmake-timeout=300 -p no:xdist colab $(ARGS)

clean:  ## removes the virtual environment and caches; leaves runs alone
	rm -rf $(VENV) .venv-plain build dist .pytest_cache .jax_cache .ruff_cache nopr.egg-info
