# Athena's commands; `make` alone lists them. What is longer than two lines is in scripts/.

PYTHON ?= python3
PROMPT ?= Name the capital of France.
SLOW ?=
ARGS ?=

export PROMPT

VENV := .venv
BIN := $(VENV)/bin
CODE := athena supervisor tests scripts

.DEFAULT_GOAL := help
.PHONY: help run install fmt lint types test fast slow cover chaos bench docs check clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-9s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

run: $(VENV)/.installed ## one supervised session on the embedded model (PROMPT="..." for your own)
	@scripts/run.sh $(BIN)

install: $(VENV)/.dev ## everything for users and developers, into .venv

$(VENV)/.installed: pyproject.toml scripts/setup.sh
	@PYTHON='$(PYTHON)' scripts/setup.sh user $(VENV)

$(VENV)/.dev: $(VENV)/.installed
	@scripts/setup.sh dev $(VENV)

fmt: $(VENV)/.dev ## format, and fix what can be fixed
	$(BIN)/ruff format $(CODE)
	$(BIN)/ruff check --fix $(CODE)

lint: $(VENV)/.dev ## check format and style
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/ruff check $(CODE)

types: $(VENV)/.dev ## check types
	$(BIN)/mypy

test: $(VENV)/.dev ## the tests without the slow ones (SLOW=1 for all, ARGS="..." for pytest)
	$(BIN)/python -m pytest $(if $(SLOW),,-m "not slow") $(ARGS)

fast: $(VENV)/.dev ## the same, failed ones first, until one fails: for while you work
	$(BIN)/python -m pytest -m "not slow" --failed-first --exitfirst --quiet $(ARGS)

slow: $(VENV)/.dev ## only the slow tests: kills, damage, the real model
	$(BIN)/python -m pytest -m slow $(ARGS)

cover: $(VENV)/.dev ## all tests but the slow ones, with a report of what they do not reach
	$(BIN)/coverage erase && $(BIN)/coverage run -m pytest -m "not slow" $(ARGS)
	$(BIN)/coverage combine --quiet && $(BIN)/coverage report

chaos: $(VENV)/.dev ## kill everything everywhere, 2,000 times, and compare what is left (ARGS="--trials N --seed S")
	$(BIN)/python scripts/chaos.py $(ARGS)

bench: $(VENV)/.dev ## measure Athena and its floor side by side
	$(BIN)/python scripts/bench.py $(ARGS)

docs: $(VENV)/.dev ## write docs/protocol.md and docs/states.md anew from the code, and try every example in the docs
	$(BIN)/python scripts/protocol_page.py && $(BIN)/python scripts/states_page.py
	$(BIN)/python -m pytest tests/test_docs.py $(ARGS)

check: SLOW := 1
check: lint types test ## what CI runs: style, types, and every test

clean: ## remove what was built; sessions stay
	rm -rf $(VENV) build dist .coverage .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find $(CODE) -name __pycache__ -type d -prune -exec rm -rf {} +
