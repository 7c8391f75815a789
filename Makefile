# Everything starts with `make demo` or `make test`; both make the environment first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Only the plugins that the tests use: hydra's would make pytest rewrite the asserts of all of hydra, which takes seconds
# in each process.
# worksteal: each process begins with tests that are neighbors and share fixtures.
PYTEST := $(BIN)/pytest --disable-plugin-autoload -p xdist.plugin -p pytest_timeout -p _hypothesis_pytestplugin \
	-n auto --dist worksteal

.PHONY: demo test test-all lint types format docs tensorboard clean

demo: $(VENV)/ready
	$(BIN)/python train.py experiment=demo $(DEMO)

test: $(VENV)/ready lint
	$(PYTEST) -m "not slow and not real_data and not browser"

test-all: $(VENV)/ready lint
	$(PYTEST)

lint: $(VENV)/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/ready
	$(BIN)/mypy

format: $(VENV)/ready
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Writes docs/settings.md from the declarations in src/cocoseg/config.py.
docs: $(VENV)/ready
	$(BIN)/python -m cocoseg.config_help

tensorboard: $(VENV)/ready
	$(BIN)/tensorboard --logdir outputs

# Removes the environment and caches; runs, prepared data and the drawn data set stay.
clean:
	rm -rf $(VENV) build dist .pytest_cache .ruff_cache .mypy_cache .hypothesis src/*.egg-info

$(VENV)/ready: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(None if (3, 11) <= sys.version_info < (3, 14) else "Python 3.11 to 3.13 is needed; choose one with: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@
