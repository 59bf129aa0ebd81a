# Every target sets itself up on a fresh machine: a virtual environment in .venv, the constrained install, then the job.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# torchvision, which torch-fidelity needs, breaks what it does not fit: it gets an environment of its own.
FIDELITY_VENV ?= .venv-fidelity
FIDELITY_READY := $(FIDELITY_VENV)/.ready
# One thread a worker: four workers on two cores would otherwise fight for them.
export OMP_NUM_THREADS ?= 1

.PHONY: demo test test-unit test-fidelity coverage lint format docs wheel clean help

help:  ## what can be made
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 16

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $@

$(FIDELITY_READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(FIDELITY_VENV)
	$(FIDELITY_VENV)/bin/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[fidelity,lsun]" pytest pytest-timeout
	touch $@

demo: $(READY)  ## four workers learn to draw digits, decentralized
	$(BIN)/decgan train experiment=digits

test: $(READY)  ## the tests: unit, distributed, command line, examples, the wheel
	$(BIN)/python -m pytest -n 3 --dist loadfile

test-unit: $(READY)  ## the tests that start no process, and the docstrings' examples
	$(BIN)/python -m pytest tests/unit lightning_decgan

test-fidelity: $(FIDELITY_READY)  ## torch-fidelity, and torchvision's data sets, in an environment of its own
	$(FIDELITY_VENV)/bin/python -m pytest -p tests.torchvision_shim tests/fidelity tests/unit/test_torchvision_files.py

coverage: $(READY)  ## which lines the tests reach: all but those that only run in worker processes
	$(BIN)/python -m pytest -n 3 --dist loadfile --cov=lightning_decgan --cov-report=term tests/unit tests/cli lightning_decgan

lint: $(READY)  ## ruff, mypy, import-linter
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(READY)  ## let ruff mend what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(READY)  ## draw the topologies of README.md and docs/
	$(BIN)/decgan topology ring --workers 8 --plot docs/images/ring.png
	$(BIN)/decgan topology one_peer_exponential --workers 8 --plot docs/images/one_peer_exponential.png

wheel: $(READY)  ## build sdist and wheel into dist/
	$(BIN)/python -m build --no-isolation

clean:  ## remove environments and outputs
	rm -rf $(VENV) $(FIDELITY_VENV) dist build outputs multirun
