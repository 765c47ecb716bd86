# `make check` is what CI runs once the environment exists (.ci/run adds the environment and the wheel).
PYTHON ?= python

# pyright's launcher would otherwise ask the network whether a newer pyright exists
export PYRIGHT_PYTHON_IGNORE_WARNINGS = 1

.PHONY: check lint types test long quick wheel
.NOTPARALLEL:

check: lint types test long

lint:
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .

types:
	$(PYTHON) -m pyright --pythonpath "$$($(PYTHON) -c 'import sys; print(sys.executable)')"

test:
	$(PYTHON) -m pytest

long:
	$(PYTHON) -m pytest -m "long and not slow"

# while editing: what needs no compiled model
quick:
	$(PYTHON) -m pytest -m "not slow and not long and not inductor" tests/codecs tests/files tests/ir tests/test_layout.py tests/test_options.py

# from scratch: setuptools packs whatever an earlier build left in build/, deleted modules included
wheel:
	rm -rf build dist
	$(PYTHON) -m build --wheel
