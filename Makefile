# Everything from a bare machine with Python 3.11 and make; `make help` lists the targets.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DATA ?=
POOL := pools/demo
export VPROMPT_CACHE ?= $(CURDIR)/.cache

.PHONY: help setup demo demo-pool test check format clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 12

setup: $(BIN)/.ready ## create .venv and install everything

$(BIN)/.ready: pyproject.toml requirements/constraints.txt requirements/demo.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --disable-pip-version-check --quiet --constraint requirements/constraints.txt --editable '.[dev]'
	$(BIN)/pip install --disable-pip-version-check --quiet --no-deps --require-hashes --requirement requirements/demo.txt
	touch $@

demo: setup ## combine a pool of prompts for solar-cell inspection; writes demo/report.html
	$(BIN)/vprompt combine elpv --pool $(POOL) --shots 25 \
		--output demo/artifact --report demo/report.html --overwrite

demo-pool: setup ## learn the pool of the demo again; DATA names the folder of image sets
	@test -n "$(DATA)" || { echo "Say where the image sets are: make demo-pool DATA=/path"; exit 2; }
	$(BIN)/python -m benchmarks pools.sources --data "$(DATA)" --backbone demo \
		--families unrelated --without elpv4 --epochs 15 --test --output $(POOL)

test: setup ## format, lint, types and the whole test suite
	$(MAKE) --no-print-directory check

check: ## what `make test` runs, in an environment that exists
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest

format: ## put the code into shape
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean: ## remove the environment, caches and demo output
	rm -rf $(VENV) .cache demo build dist .mypy_cache .ruff_cache .pytest_cache
