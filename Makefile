# `make search` and `make test` set up what they need; `make help` lists the rest.

# The first of these that is Python 3.11 or newer; `make PYTHON=/path/to/python search` takes another.
PYTHON ?= $(shell for candidate in python3.11 python3 python3.12 python3.13; do \
	$$candidate -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$candidate && break; done)
VENV := .venv
BIN := $(VENV)/bin
PIP_INSTALL := $(BIN)/python -m pip --disable-pip-version-check install --quiet -c constraints.txt
PINS := pyproject.toml constraints.txt
PROGRAM := coarsefine common master worker
CODE := $(PROGRAM) docker tests docs $(wildcard benchmarks examples)

.DEFAULT_GOAL := help
.PHONY: help setup search test test-processes test-training test-unit fault-test slow-test fuzz companions-test check bench browser-test chaos compose-test slurm-test ray-test pictures clean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-16s%s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(VENV)/.dev  ## install everything into .venv, as pinned in constraints.txt

search: setup  ## the main job: the whole built-in search on real digits
	$(BIN)/master launch --stage all

QUICK := $(BIN)/python -m pytest --ignore-glob '*/test_fuzz_*.py' -m "not faults and not slow"
# Three at a time keep two cores busy, since tests also wait.
test: setup  ## unit, contract and integration tests, with real servers and processes
	@$(MAKE) --no-print-directory --jobs 3 --keep-going --output-sync=target test-processes test-training test-unit

test-processes: setup
	$(QUICK) tests/contract tests/integration $(PYTEST_ARGS)

test-training: setup
	$(QUICK) tests/unit/training $(PYTEST_ARGS)

test-unit: setup
	$(QUICK) tests/unit --ignore tests/unit/training $(PYTEST_ARGS)

FAULT_TESTS ?= tests/unit tests/contract tests/integration
fault-test: setup  ## processes are killed, stopped, cut off or fail, one way after the other (minutes)
	$(BIN)/python -m pytest $(FAULT_TESTS) -m faults $(PYTEST_ARGS)

slow-test: setup  ## what takes long without any fault (minutes)
	$(BIN)/python -m pytest tests/unit tests/contract tests/integration -m "slow and not faults" $(PYTEST_ARGS)

FUZZ_EXAMPLES ?= 1000
fuzz: setup  ## nonsense for all that comes from outside, FUZZ_EXAMPLES=1000 a test (minutes)
	FUZZ_EXAMPLES=$(FUZZ_EXAMPLES) $(BIN)/python -m pytest tests/unit/test_fuzz_*.py tests/contract/test_fuzz_*.py --timeout 900 $(PYTEST_ARGS)

companions-test: $(VENV)/.companions  ## training loops of Lightning, transformers, Keras, skorch, LightGBM and JAX (installs them)
	$(BIN)/python -m pytest tests/companions $(PYTEST_ARGS)

check: setup  ## lint, format, types, and code that nothing uses
	$(BIN)/ruff check $(CODE)
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/mypy $(addprefix -p ,$(PROGRAM))
	$(BIN)/vulture

bench: $(VENV)/.bench  ## the benchmarks of benchmarks/, one after the other
	set -e; for file in benchmarks/*.py; do echo "== $$file"; $(BIN)/python -P "$$file"; done

browser-test: setup  ## the dashboard in a real browser, beside a real search (needs Debian's chromium; BROWSER_PICTURES=DIR keeps the pictures)
	$(BIN)/python -m pytest tests/browser $(PYTEST_ARGS)

chaos: setup  ## kill, stop, cut off and fill up whatever there is, and count what was lost (CHAOS_FAULTS=2000, CHAOS_SEED=7)
	$(BIN)/python -m pytest tests/chaos $(PYTEST_ARGS)

compose-test: setup  ## docker compose on a fresh clone, from build to stop (needs Docker)
	$(BIN)/python -m pytest tests/compose $(PYTEST_ARGS)

slurm-test: setup  ## searches whose workers are jobs of a real Slurm (needs root and Debian's slurm-wlm)
	$(BIN)/python -m pytest tests/slurm $(PYTEST_ARGS)

ray-test: $(VENV)/.ray  ## a search whose workers are actors of a real Ray, which is started here (installs it)
	$(BIN)/python -m pytest tests/ray $(PYTEST_ARGS)

pictures: setup  ## the pictures of the README and of docs, from real runs (needs Chromium)
	folder=$$(mktemp -d) && trap "rm -rf $$folder" EXIT && $(BIN)/master --checkpoints $$folder launch --stage all && \
	$(BIN)/master --checkpoints $$folder plot hyperparameters --out docs/pictures/hyperparameters.png && \
	$(BIN)/master --checkpoints $$folder plot rungs --out docs/pictures/rungs.png && \
	ls -r $$folder/digits/fine/*.pt | head -3 && \
	$(BIN)/python docs/pictures/take.py $$folder --out docs/pictures

clean:  ## remove what was installed and cached; checkpoints stay
	rm -rf $(VENV) *.egg-info build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find $(PROGRAM) docker tests -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/bin/python:
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed; install it or name it: make PYTHON=/path/to/python" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.dev: $(PINS) | $(VENV)/bin/python
	$(PIP_INSTALL) -e '.[dev]'
	@touch $@

$(VENV)/.companions: $(VENV)/.dev
	$(PIP_INSTALL) -e '.[dev,companions]'
	@touch $@

$(VENV)/.ray: $(VENV)/.dev
	$(PIP_INSTALL) -e '.[dev,ray]'
	@touch $@

$(VENV)/.bench: $(VENV)/.dev
	$(PIP_INSTALL) -e '.[dev,bench]'
	@touch $@
