# make reproduce: the main result on embedded data.  make test: the tests.  Both set up everything they need.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: reproduce paper test test-faults test-slow lint format docs table peers clean

reproduce: .venv/installed
	$(BIN)/python -m experiments experiment=loo_linear

test: .venv/installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

# Every figure of the paper, then the sweeps, on all cores; MIRROR is a folder with the original files, without it
# they are fetched. The same command resumes after a kill; OUTPUT takes records, tables and the report.
OUTPUT ?= outputs/paper
paper: .venv/installed
	$(BIN)/python -m experiments.verify tier=paper from=run output=$(OUTPUT) $(if $(MIRROR),data.mirror=$(MIRROR))

# Kills, full disks and hung ranks in every experiment: minutes. Recorded in results/faults.txt.
test-faults: .venv/installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m faults

# Sweeps that start a process a job, embedded runs spoiled until their claims fail, the report in Chromium: minutes.
test-slow: .venv/installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m slow

lint: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy

format: .venv/installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The API reference from the docstrings; tests/test_reference.py builds it too.
docs: .venv/installed-dev
	$(BIN)/python docs/build_reference.py outputs/reference

table: .venv/installed
	$(BIN)/python -m experiments.table

.venv/bin/python:
	$(PYTHON) -m venv .venv

# The stamps make a second `make` install nothing while pyproject.toml and constraints.txt stand as they are.
.venv/installed: pyproject.toml constraints.txt | .venv/bin/python
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[experiments]'
	touch $@

.venv/installed-dev: pyproject.toml constraints.txt | .venv/bin/python
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	touch .venv/installed $@

# The libraries that experiment=benchmark stands beside, in an environment of their own (5 GB).
peers: .peers/installed

.peers/installed: constraints-peers.txt
	$(PYTHON) -m venv .peers
	.peers/bin/python -m pip install --quiet -c constraints-peers.txt pyDVL zarr distributed dattri captum kronfluence curvlinops-for-pytorch scikit-learn torch torchvision
	touch $@

clean:
	rm -rf .venv .peers outputs build .pytest_cache .ruff_cache .mypy_cache .import_linter_cache .hypothesis
