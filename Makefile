# Every command of the project. `make` alone lists them.

.DEFAULT_GOAL := help
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:

VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.stamp
SIZE   ?= quick
record ?= false
ARGS   ?=
JOBS   ?= 2
CODE   := agents benchmarks envs experiments runtime simulators tests
TYPED  := simulators envs runtime

# The first interpreter that is new enough; `make PYTHON=...` overrides it.
PYTHON ?= $(shell for candidate in python3.11 python3.12 python3.13 python3.14 python3; do \
	if $$candidate -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	echo $$candidate; break; fi; done)

.PHONY: help
help: ## List the commands
	@grep -hE '^[a-z_-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | awk -F'\t' '{printf "  %-14s %s\n", $$1, $$2}'
	@printf '\n  SIZE=smoke|quick|paper   record=true|false   ARGS="key=value ..."   PYTHON=python3.x\n'

.PHONY: setup
setup: $(STAMP) ## Make .venv with everything (free when nothing changed)

$(STAMP): pyproject.toml requirements.lock constraints.txt
	@if [ -z "$(PYTHON)" ] || ! $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then \
		echo "Rheostat needs Python 3.11 or later; found none ('$(PYTHON)'). Install one or run: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)" >&2; exit 1; fi
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c requirements.lock -c constraints.txt -e '.[dev]'
	@touch $@

.PHONY: check
check: $(STAMP) ## Lint, format, types, layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy $(TYPED)
	$(BIN)/lint-imports --no-logo

.PHONY: format
format: $(STAMP) ## Mend what the linter can mend
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

.PHONY: test
test: $(STAMP) ## Run the tests (ARGS="tests/runtime -k plan")
	$(BIN)/python -m pytest -n $(JOBS) $(ARGS)

.PHONY: bench
bench: $(STAMP) ## Measure speed against the budgets (ARGS=record=true writes claims)
	$(BIN)/python -m benchmarks $(ARGS)

.PHONY: reproduce
reproduce: $(STAMP) ## Run the whole flow (SIZE=paper record=true makes results/reference)
	$(BIN)/python -m experiments.reproduce size=$(SIZE) record=$(record) $(ARGS)

.PHONY: measure train train_network calibrate headroom compare export drive
measure train train_network calibrate headroom compare export drive: $(STAMP)
	$(BIN)/python -m experiments.$@ size=$(SIZE) record=$(record) $(ARGS)
measure: ## Profile real execution on this machine
train: ## Train an agent (ARGS="agent=ppo workload=diurnal")
train_network: ## Train a staged network (ARGS="network=eurosat_resnet")
calibrate: ## Choose the level of every stage (ARGS="network=fashion_cnn")
headroom: ## Look what adapting can win (ARGS="env=staged_precision network=fsdd_chain")
compare: ## Compare agents on held-out data
export: ## Export a trained agent as a policy bundle
drive: ## Drive real execution with an agent or a bundle

.PHONY: readme
readme: $(STAMP) ## Renew what the README generates: tables and picture
	$(BIN)/python -m experiments.readme

.PHONY: lock
lock: $(STAMP) ## Renew requirements.lock for every platform
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --extra dev --extra openvino --upgrade \
		--custom-compile-command "make lock" -c constraints.txt pyproject.toml -o requirements.lock

.PHONY: clean
clean: ## Remove the environment and caches (never results)
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache .numba_cache
	find $(CODE) -type d -name __pycache__ -prune -exec rm -rf {} +
