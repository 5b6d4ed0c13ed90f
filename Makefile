SHELL := bash
.SHELLFLAGS := -euo pipefail -c
MAKEFLAGS += --no-print-directory
.SILENT:
.PHONY: install demo from-nothing test test-long check soak mutate evidence clean
.PHONY: benchmark benchmark-growth benchmark-accuracy benchmark-learning

SEED ?= 0
N ?= 60
TIMES ?= 10
BIN := .venv/bin
PIP := $(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt

demo: .venv/installed
	$(BIN)/manners demo --seed $(SEED) --workspace demo

from-nothing: .venv/installed
	$(BIN)/python examples/from-nothing/from_nothing.py from-nothing --seed $(SEED)

install: .venv/installed

test: .venv/installed
	$(BIN)/python -m pytest -q -n auto --dist worksteal -m 'not long'

test-long: .venv/installed
	$(BIN)/python -m pytest -q -n auto --dist worksteal -m long

check: .venv/installed
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(MAKE) test

soak: .venv/installed
	$(BIN)/python -m pytest -q -n auto --dist worksteal -m long --times $(TIMES) -o faulthandler_timeout=0
	$(MAKE) mutate N=300

mutate: .venv/installed
	$(BIN)/python tests/mutate.py --n $(N) --seed $(SEED)

evidence: .venv/installed
	$(BIN)/python -m benchmarks.evidence

benchmark: .venv/installed
	$(BIN)/python -m benchmarks.run
	$(BIN)/python -m benchmarks.time_to_loss

benchmark-growth benchmark-accuracy benchmark-learning: benchmark-%: .venv/installed
	$(BIN)/python -m benchmarks.$*

# torch goes in alone and first: whichever build of it this machine can have, the rest is then chosen around it.
.venv/installed: pyproject.toml constraints.txt
	command -v python3.11 >/dev/null || { echo "python3.11 is missing: install it (with its venv module), then run make again." >&2; exit 1; }
	echo "Installing into .venv (a few minutes, once) ..." >&2
	python3.11 -m venv .venv
	$(PIP) torch==2.13.0
	$(PIP) -e '.[test]'
	touch $@

clean:
	rm -rf .venv benchmarks/.venvs build dist demo demo.previous from-nothing .*_cache .hypothesis
