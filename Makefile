# `make demo` shows the service at work, `make test` runs every test but those of whole clusters (`make test-cluster`);
# each sets up what it needs.
# Ports: make up MLFLOW_PORT=5001 DASHBOARD_PORT=8266 RAY_PORT=6380

PYTHON ?= python3
MLFLOW_PORT ?= 5000
DASHBOARD_PORT ?= 8265
RAY_PORT ?= 6379

VENV := .venv
BIN := $(VENV)/bin
SERVICE := $(BIN)/python -m ablations
PORTS := --mlflow-port $(MLFLOW_PORT) --dashboard-port $(DASHBOARD_PORT) --ray-port $(RAY_PORT)

.PHONY: demo test test-fast test-cluster test-gpu soak lint audit setup up down

demo: up
	@eval "$$($(SERVICE) env)" && $(BIN)/ray job submit -- python ablations/shortcuts.py
	@$(SERVICE) up
	@echo "The service stays up for the next study; make down ends it."

test: setup
	$(BIN)/python -m pytest -m "not alone" -n 2
	$(BIN)/python -m pytest -m "alone and not cluster"

test-cluster: setup
	$(BIN)/python -m pytest -m cluster

test-gpu: setup
	$(BIN)/python -m pytest -m gpu

test-fast: setup
	$(BIN)/python -m pytest -m "not slow" -n 2

soak: setup
	$(BIN)/python -m benchmarks.reliability --out $(VENV)/soak.json

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

audit: setup
	@.ci/audit

up: setup
	@$(SERVICE) up $(PORTS)

down:
	@if [ -x $(BIN)/python ]; then $(SERVICE) down; else echo "the service was not running"; fi

setup: $(VENV)/.complete

# Complete only at the end: an interrupted set-up is done again. Whatever built the environment, pip finishes it.
$(VENV)/.complete: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed; set PYTHON=…" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	@touch $@
