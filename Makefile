# Everything a newcomer, a developer and CI run. `make` alone lists it.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
ARGS ?=
ON ?= embedded
TIMED := tests/chaos tests/compose tests/conformance  # what judges times has the machine to itself

.PHONY: help install services demo up test check mutants proto lock format clean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(STAMP)  ## virtual environment in .venv with the locked dependencies

$(STAMP): requirements-dev.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed; choose one with: make PYTHON=python3.12 install" >&2; exit 2; }
	@echo "installing into $(VENV) (about a minute, once)" >&2
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-dev.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

services: install  ## real Kafka, Redis, MariaDB and DTM for the tests: what is missing of the programs (Debian, as root)
	@$(BIN)/python -m tests.servers install

demo: install  ## a whole flash sale on the embedded servers, or on real ones: make demo ON=real ARGS="--buyers 2000"
	@$(if $(filter real,$(ON)),$(BIN)/python -m tests.servers run -- )$(BIN)/seckill demo $(ARGS)

up: install  ## the embedded pipeline stays up for playing
	@$(BIN)/seckill up $(ARGS)

test: install  ## every test: unit, contract, integration, end to end, and the mutants; with ARGS="…" pytest alone
ifneq ($(ARGS),)
	@$(BIN)/pytest $(ARGS)
else
	@$(BIN)/pytest --maxfail=6 $(TIMED)
	@$(BIN)/pytest --maxfail=20 --numprocesses auto --dist loadfile $(TIMED:%=--ignore=%)
	@$(BIN)/python tests/mutants/run.py
endif

check: install  ## lint, types, import rules, generated code
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check --quiet .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-cache
	@$(BIN)/python tools/generate_wire.py --check

mutants: install  ## breaks one key line at a time and requires the named test to notice
	@$(BIN)/python tests/mutants/run.py $(ARGS)

proto: install  ## generate seckill/wire from proto/
	@$(BIN)/python tools/generate_wire.py

lock: install  ## pin the newest versions that pyproject.toml allows, with hashes
	@for group in "" "-dev"; do \
	  $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --upgrade \
	    --no-emit-index-url --no-emit-find-links --no-annotate --no-header \
	    $${group:+--group dev} pyproject.toml --output-file requirements$$group.lock || exit 1; \
	done
	@$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --upgrade \
	  --no-emit-index-url --no-emit-find-links --no-annotate --no-header \
	  --group build --output-file requirements-build.lock

format: install  ## ruff's fixes and format
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

clean:  ## the virtual environment and caches
	@rm -rf $(VENV) dist build .mypy_cache .ruff_cache .pytest_cache .hypothesis
