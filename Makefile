# Hongyan. `make run` serves, `make test` checks everything; both set up what they need.
SHELL := /bin/bash
MAKEFLAGS += --no-print-directory
.DEFAULT_GOAL := help
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RUN_STAMP := $(VENV)/.installed-run
DEV_STAMP := $(VENV)/.installed-dev
PIP := $(BIN)/python -m pip --disable-pip-version-check
# More flags for the server: make run ARGS="--port 9000 --data-dir /srv/hongyan"
ARGS ?=
# Runs the Autobahn suite: called with URL OUT.
AUTOBAHN_RUNNER ?= ../shared/tools/autobahn/run

.PHONY: help
help: ## show this list
	@awk -F':.*## ' '/^[a-z-]+:.*## / {printf "  make %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: run
run: setup ## set up what is missing, then serve on ws://127.0.0.1:8080/ws (Ctrl-C stops)
	@HONGYAN_HINTS=1 HONGYAN_COMMAND=$(BIN)/hongyan exec $(BIN)/hongyan serve $(ARGS)

.PHONY: setup
setup: $(RUN_STAMP) ## make .venv with .venv/bin/hongyan in it

.PHONY: setup-dev
setup-dev: $(DEV_STAMP) ## the same, with the tools for tests and checks

$(BIN)/python:
	@PYTHON="$(PYTHON)" scripts/make-venv $(VENV)

# The locks hold a hash for every file, so a changed upload is refused. The package itself
# is installed from here, editable and without dependencies: the lock has them all.
$(RUN_STAMP): $(BIN)/python pyproject.toml requirements/lock.txt
	@echo "Installing what Hongyan needs into $(VENV) ..."
	@$(PIP) install -q --require-hashes -r requirements/lock.txt
	@$(PIP) install -q --no-deps --no-build-isolation -e .
	@touch $@

$(DEV_STAMP): $(RUN_STAMP) requirements/dev-lock.txt
	@echo "Installing the tools for tests and checks ..."
	@$(PIP) install -q --require-hashes -r requirements/dev-lock.txt
	@touch $@

.PHONY: test
test: check ## all checks and all tests but the long ones
	@$(BIN)/python -m pytest -q $(ARGS)

.PHONY: check
check: lint types ## lint, types and import contracts

.PHONY: lint
lint: setup-dev ## ruff, its formatter, and the import contracts
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/lint-imports --no-logo

.PHONY: format
format: setup-dev ## put the code into ruff's format
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

.PHONY: types
types: setup-dev ## mypy --strict
	@$(BIN)/mypy --strict

.PHONY: fast
fast: setup-dev ## only the tests that take no time
	@$(BIN)/python -m pytest -q -m "not slow" $(ARGS)

.PHONY: test-long
test-long: setup-dev ## crash rounds, fuzzing and soak at full length (many minutes)
	@HONGYAN_TEST_LONG=1 $(BIN)/python -m pytest -q $(ARGS)

.PHONY: bench
bench: setup ## the standard loads beside the bare relay, in under five minutes (docs/benchmarks.md)
	@$(BIN)/python scripts/benchmark/standard.py $(ARGS)

.PHONY: bench-prototype
bench-prototype: setup ## one server beside a stripped prototype (needs cc): ARGS="--wsload PATH --references DIR"
	@$(BIN)/python scripts/benchmark/run.py $(ARGS)

.PHONY: soak
soak: setup ## an hour of traffic: nothing lost, memory, descriptors and latency flat: ARGS="--minutes 10"
	@$(BIN)/python scripts/test/soak.py $(ARGS)

.PHONY: autobahn
autobahn: setup-dev ## RFC 6455 conformance of the frame layer, against an echo listener
	@PYTHON=$(abspath $(BIN)/python) bash scripts/test/autobahn.sh $(AUTOBAHN_RUNNER) $(ARGS)

.PHONY: lock
lock: ## resolve the dependencies again and write requirements/*.txt (needs uv)
	@scripts/lock

.PHONY: clean
clean: ## remove what setup, checks and builds made; never the server's data
	@rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache dist build
	@find src tests scripts -name __pycache__ -type d -prune -exec rm -rf {} +
