# `make demo` runs a study on the local service, `make test` runs the tests. Each target installs what it needs into .venv.
# Other ports: make up MLFLOW_PORT=5001 DASHBOARD_PORT=8266 RAY_PORT=6380

PYTHON ?= python3
MLFLOW_PORT ?= 5000
DASHBOARD_PORT ?= 8265
RAY_PORT ?= 6379

VENV := .venv
BIN := $(VENV)/bin
SERVICE := $(BIN)/python -m ablations
PORTS := --mlflow-port $(MLFLOW_PORT) --dashboard-port $(DASHBOARD_PORT) --ray-port $(RAY_PORT)

.PHONY: demo test test-fast test-cluster test-versions test-all test-gpu soak lint audit setup up down

demo: up
	@eval "$$($(SERVICE) env)" && $(BIN)/ray job submit -- python ablations/shortcuts.py
	@eval "$$($(SERVICE) env)" && $(BIN)/python -m ablations.engine.api.demo

# Tests in tiers, selected by the markers in pyproject.toml. Minutes on two cores that nothing else uses, those of test-fast and test-all estimated, the others measured (n = 1), test beside other work:
#   make test-fast      1.5  no Ray, no servers, nothing that takes more than a second
#   make test          18    one or more scenarios of every promise and every kind of failure, with real Ray and MLflow
#   make test-cluster  13    what needs several nodes, an autoscaler, a batch system, a service or the whole machine: lost nodes,
#                            studies that take turns, make up, tokens, PostgreSQL, Ray's memory monitor
#   make test-all      70    both, and the exhaustive variants: search quality, 1,202 layers, torch.compile, every process of a group
#                            with every signal, a kill at every request, thousands of drawn command lines, two users' services
#   make test-versions 13    a core, with the oldest versions of Ray, MLflow, Optuna and torch that pyproject.toml allows, and the newest
# .ci/run checks each change with lint, make test, make test-cluster and make test-versions; make test-all is for every night.
# Three workers on two cores, since tests that start Ray wait for much of their time. Groups keep them in two of the workers.
IN_PARALLEL := -n 3 --dist loadgroup
# After other clusters in the same process, the first node of these tests does not start.
NODES := tests/scheduling/test_nodes.py

test: setup
	$(BIN)/python -m pytest -m "not alone and not cluster and not nightly" $(IN_PARALLEL)

test-fast: setup
	$(BIN)/python -m pytest -m "not slow and not nightly" -n 2

test-cluster: setup
	$(BIN)/python -m pytest -m "cluster and not alone and not nightly" -n 2 --dist loadfile
	$(BIN)/python -m pytest -m "alone and not gpu and not nightly" --ignore $(NODES)
	$(BIN)/python -m pytest -m "alone and not gpu and not nightly" $(NODES)

test-versions: setup
	.ci/versions

test-all: setup
	FUZZ_CASES=2000 $(BIN)/python -m pytest -m "not alone and not cluster" $(IN_PARALLEL)
	$(BIN)/python -m pytest -m "cluster and not alone" -n 2 --dist loadfile
	$(BIN)/python -m pytest -m "alone" --ignore $(NODES)
	$(BIN)/python -m pytest -m "alone" $(NODES)

test-gpu: setup
	$(BIN)/python -m pytest -m gpu

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

# uv takes a third of pip's CPU time; its few seconds of installation pay where it is not on PATH. It does not read pip's configuration:
# where it cannot install, pip does. The marker file is written last, so that an interrupted set-up starts again. An environment made
# by other means is completed.
PACKAGES := --quiet -c constraints.txt -e ".[dev]"

$(VENV)/.complete: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed; set PYTHON=…" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	@command -v uv > /dev/null || $(BIN)/python -m pip install --quiet --disable-pip-version-check uv || true
	PATH="$$PATH:$(BIN)" uv pip install --compile-bytecode --python $(BIN)/python $(PACKAGES) \
		|| $(BIN)/python -m pip install --disable-pip-version-check $(PACKAGES)
	@touch $@
