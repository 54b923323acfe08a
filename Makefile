# Everything here makes its own .venv first; only Python >= 3.11 and make are needed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help demo test check format bench-quick clean

help: ## show what can be made
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

$(STAMP): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $(STAMP)

demo: $(STAMP) ## start an embedded server and a worker, and watch them work (FOLDER=... to choose the files)
	@$(BIN)/asyncq demo $(FOLDER)

test: $(STAMP) ## run every test against real servers that the tests start
	$(BIN)/pytest -n auto

check: $(STAMP) ## lint, types and import layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(STAMP) ## let ruff rewrite what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench-quick: $(STAMP) ## drain, enqueue and latency beside the bare limit, under a minute
	@$(BIN)/python -m benchmarks.quick

clean: ## remove what the targets above made
	rm -rf $(VENV) .asyncq .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
