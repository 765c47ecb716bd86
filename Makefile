# `make check` is what CI runs once the environment exists (.ci/run adds the environment and the wheel).
PYTHON ?= python

# pyright's launcher would otherwise ask the network whether a newer pyright exists
export PYRIGHT_PYTHON_IGNORE_WARNINGS = 1

.PHONY: check lint types test wheel
.NOTPARALLEL:

check: lint types test

lint:
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .

types:
	$(PYTHON) -m pyright --pythonpath "$$($(PYTHON) -c 'import sys; print(sys.executable)')"

test:
	$(PYTHON) -m pytest

# from scratch: setuptools packs whatever an earlier build left in build/, deleted modules included
wheel:
	rm -rf build dist
	$(PYTHON) -m build --wheel
