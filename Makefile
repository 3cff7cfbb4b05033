# What a person types. `make up` needs Python >= 3.11 and nothing else; `make test` is what CI runs.
PYTHON ?= python3
VENV := .venv
UV := $(VENV)/bin/uv
# uv is only the installer; pinned so that two machines install alike.
UV_VERSION := 0.13.8
ARGS ?=
TESTS ?= tests

.PHONY: help up test lint lock snapshots map clean

help:
	@echo "make up          a whole cluster on this machine, then the TUI   (ARGS=\"--no-ui\" passes flags on)"
	@echo "make test        the whole suite                                 (TESTS=tests/core runs a part)"
	@echo "make lint        ruff, mypy, import-linter"
	@echo "make lock        resolve the dependencies anew into the lock files"
	@echo "make snapshots   accept changed screens; look at the pictures first"
	@echo "make map         write docs/map.md from the module docstrings"

$(UV):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Nebula needs Python 3.11 or newer; set PYTHON=/path/to/python3.11" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV)
	@$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION) || echo "uv is not to be had here; installing with pip" >&2

# A stamp per lock file: a second `make up` installs nothing.
$(VENV)/.installed-up: requirements.lock pyproject.toml | $(UV)
	@if [ -x $(UV) ]; then $(UV) pip install --quiet --compile-bytecode --python $(VENV)/bin/python --require-hashes -r requirements.lock; \
	else $(VENV)/bin/python -m pip install --quiet --require-hashes -r requirements.lock; fi
	@if [ -x $(UV) ]; then $(UV) pip install --quiet --python $(VENV)/bin/python --no-deps -e .; \
	else $(VENV)/bin/python -m pip install --quiet --no-deps -e .; fi
	@touch $@

$(VENV)/.installed-test: requirements-test.lock $(VENV)/.installed-up
	@if [ -x $(UV) ]; then $(UV) pip install --quiet --compile-bytecode --python $(VENV)/bin/python --require-hashes -r requirements-test.lock; \
	else $(VENV)/bin/python -m pip install --quiet --require-hashes -r requirements-test.lock; fi
	@touch $@

up: $(VENV)/.installed-up
	@$(VENV)/bin/nebula up $(ARGS)

# Two steps: a real vLLM needs the machine for itself (exit 5 is "none chosen"); the rest runs on all cores.
test: $(VENV)/.installed-test
	@$(VENV)/bin/python -m pytest -q -m engine $(TESTS) $(ARGS) || [ $$? = 5 ]
	@$(VENV)/bin/python -m pytest -n auto --maxprocesses 4 --dist loadfile -m "not engine" $(TESTS) $(ARGS)

lint: $(VENV)/.installed-test
	@$(VENV)/bin/ruff check . && $(VENV)/bin/ruff format --check . && $(VENV)/bin/mypy && $(VENV)/bin/lint-imports

lock: | $(UV)
	@$(UV) pip compile --quiet --upgrade --generate-hashes --no-emit-index-url --no-header --python-version 3.11 --extra up --extra otel pyproject.toml -o requirements.lock
	@$(UV) pip compile --quiet --upgrade --generate-hashes --no-emit-index-url --no-header --python-version 3.11 --extra up --extra otel --extra s3 --group dev -c requirements.lock pyproject.toml -o requirements-test.lock

snapshots: $(VENV)/.installed-test
	@$(VENV)/bin/python -m pytest tests/tui --snapshot-update

map: $(VENV)/.installed-up
	@$(VENV)/bin/python docs/make_map.py

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis
