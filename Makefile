# `make demo` and `make test` each work alone on a machine with python3 (3.11 or newer) and make.

PYTHON ?= python3
PIP = .venv/bin/python -m pip install --quiet --disable-pip-version-check

.PHONY: demo test test-thorough test-matrix chaos lint clean

demo: .venv/installed
	.venv/bin/python train.py digits_ddpm $(DEMO)
	.venv/bin/python sample.py runs/digits_ddpm
	@echo "Look at $(CURDIR)/runs/digits_ddpm/samples.png"

# Every property by its cheapest cases; then the rest of each table of cases, and runs that take long.
test: .venv/installed-test
	.venv/bin/python -m pytest -n 2 --dist worksteal -m "not thorough"

test-thorough: .venv/installed-test
	.venv/bin/python -m pytest -n 2 --dist worksteal -m thorough

# Every Python from 3.11 on that is there, with the oldest and the newest jax; PYTHONS="python3.13" names fewer.
test-matrix: .venv/installed-test
	.venv/bin/python -m tests.matrix

chaos: .venv/installed-test
	.venv/bin/python -m tests.chaos --faults 30

lint: .venv/installed-test
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/lint-imports
	.venv/bin/pyright

.venv/bin/python:
	$(PYTHON) -m venv .venv || { rm -rf .venv; echo "Debian keeps venv apart: apt install python3-venv"; exit 1; }

# A stamp is made once the packages are in; it is made anew when what is to be installed changes.
.venv/installed: pyproject.toml constraints.txt | .venv/bin/python
	$(PIP) --constraint constraints.txt --editable .
	touch $@

.venv/installed-test: pyproject.toml constraints.txt | .venv/bin/python
	$(PIP) --constraint constraints.txt --editable '.[test]'
	touch $@ .venv/installed

clean:
	rm -rf .venv .matrix runs figures
