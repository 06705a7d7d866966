# Each target works alone on a fresh machine with Python 3.11 to 3.13 and make.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test check format clean

demo: .venv/installed
	$(BIN)/worldloom demo-footage footage/demo --videos 24
	$(BIN)/worldloom run pipelines/recipes/quickstart.yaml

# Files go to two processes, each of which has a Ray and models of its own, in their order: the long ones are not the last.
test: check
	$(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder

# What CI runs before the tests.
check: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: .venv/installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

.venv/installed: pyproject.toml
	$(PYTHON) -c 'import sys; assert (3, 11) <= sys.version_info[:2] <= (3, 13), f"Python 3.11 to 3.13 is needed, this is {sys.version}; name another: make PYTHON=python3.12"'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -e '.[dev]'
	touch $@

clean:
	rm -rf .venv footage runs
