# Each target works alone on a fresh machine with Python 3.11 to 3.13 and make.
PYTHON ?= python3
BIN := .venv/bin
# Test processes share cores: OpenMP threads that wait by spinning keep each other from working. Two trainings side by
# side on two cores took 10 to 14 s with this and 60 to 66 s without.
export OMP_WAIT_POLICY := PASSIVE
# Files of tests are in memory where there is room for them: on a disk, each file that storage writes takes 10 ms to
# sync, and more while packages are installed.
export PYTEST_DEBUG_TEMPROOT := $(shell [ "$$(df -m --output=avail /dev/shm 2>/dev/null | tail -n 1)" -gt 8000 ] \
	2>/dev/null && ! grep -q '^[^ ]* /dev/shm .*noexec' /proc/mounts && echo /dev/shm)
# Compiled modules are kept, also where the environment says otherwise, as in many containers: hundreds of processes
# start in tests, and each would compile the same files.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: demo fast test check docs oldest format clean

demo: .venv/installed
	$(BIN)/worldloom demo

# Before each commit, in about a minute on two cores: lint, types and the quickest tests.
fast: check
	$(BIN)/pytest -n 2 --dist worksteal -m "not slow"

# Files go to three processes, each of which has a Ray and models of its own: tests of Ray wait half of their time. The
# order of files is kept, so that long ones are not last.
test: check
	$(BIN)/pytest -n 3 --dist loadfile --no-loadscope-reorder

check: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The site is written to build/site. A link to a page or heading that does not exist is an error.
docs: .venv/installed
	NO_MKDOCS_2_WARNING=1 PYTHONPATH=. $(BIN)/python -m mkdocs build --strict --quiet

# The fast tests with the oldest allowed torch, torchvision, ray, av and pyarrow. All tests run with the newest after
# `PIP_CONSTRAINT=constraints/newest.txt make .venv/installed`.
oldest: build/oldest/installed
	build/oldest/bin/python -m pytest -n 2 --dist worksteal -m "not slow"

format: .venv/installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# uv took 100 s for 6 GB where pip took 225 s. Where it fails, as with packages that only pip's settings lead to, pip
# installs. Both keep to the constraints of PIP_CONSTRAINT.
INSTALL_BY_UV = $(BIN)/python -m pip install --quiet uv \
	&& UV_CONSTRAINT="$$PIP_CONSTRAINT" $(BIN)/uv pip install --quiet --python $(BIN)/python -e '.[dev]'

.venv/installed: pyproject.toml
	$(PYTHON) -c 'import sys; assert (3, 11) <= sys.version_info[:2] <= (3, 13), f"Python 3.11 to 3.13 is needed, this is {sys.version}; name another: make PYTHON=python3.12"'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(INSTALL_BY_UV) || $(BIN)/python -m pip install --quiet -e '.[dev]'
	touch $@

# An environment that finds in .venv whatever it does not install itself. uv would not find it there, so pip installs.
build/oldest/installed: constraints/oldest.txt .venv/installed
	$(PYTHON) -m venv build/oldest
	$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' > "$$(build/oldest/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/main.pth"
	PIP_CONSTRAINT=constraints/oldest.txt build/oldest/bin/python -m pip install --quiet --no-compile \
		-r constraints/oldest.txt
	touch $@

clean:
	rm -rf .venv build footage runs
