# The two commands a newcomer needs are `make repro` and `make test`.

PYTHON ?= python3
BIN := .venv/bin
# For the `python` that DVC calls.
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: help repro test test-quick compare seeds draw model-card export benchmark verify verify-cpus lock-check doctor \
	lint requirements
.DEFAULT_GOAL := help

help: ## Show this list.
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

repro: .venv/runtime ## Run what has changed of the pipeline. RECIPE=name: with that recipe's parameters.
	@$(BIN)/python -m tools.recipe $(RECIPE)
	@before=$$(git hash-object dvc.lock 2>&1); $(BIN)/dvc repro && \
		if [ "$$(git hash-object dvc.lock)" != "$$before" ]; then $(BIN)/python -m tools.fingerprint; fi

test: lint ## Check the style and the types, then run every test.
	@$(BIN)/pytest

test-quick: .venv/development ## Run the tests that need no network, no browser and only a few seconds each.
	@$(BIN)/pytest -m 'not slow and not network and not browser'

compare: .venv/runtime ## Is what is here really better or worse than BASE=main? HEAD=revision, MAX_DROP=0.001.
	@$(BIN)/python -m tools.compare '$(or $(BASE),main)' $(if $(HEAD),'$(HEAD)') $(if $(MAX_DROP),--max-drop $(MAX_DROP))

seeds: .venv/runtime ## Train the last commit under N seeds, 5 unless you say, and report their spread.
	@$(BIN)/python -m tools.seeds $(or $(N),5)

model-card: .venv/runtime ## Write docs/model-card.md from what dvc.lock records.
	@$(BIN)/python -m tools.model_card

export: .venv/development ## Write the trained network as ONNX and TFLite to data/export, and check both.
	@$(BIN)/python -m tools.export

draw: .venv/runtime ## Serve a page on this machine to draw a digit on. PORT=8000.
	@$(BIN)/python -m tools.draw $(if $(PORT),--port $(PORT))

benchmark: .venv/runtime ## Measure accuracy and speed. RECIPES=a,b SEEDS=3 PARTS=a,b TORCH=python DOCS=1.
	@$(BIN)/python -m tools.benchmark $(if $(RECIPES),--recipes $(RECIPES)) $(if $(SEEDS),--seeds $(SEEDS)) \
		$(if $(PARTS),--parts $(PARTS)) $(if $(TORCH),--torch $(TORCH)) $(if $(DOCS),--docs)

verify: .venv/development ## Reproduce the last commit in a clean room and compare. STRICT=1, PERTURB=1.
	@$(BIN)/python -m tools.verify $(if $(STRICT),--strict) $(if $(PERTURB),--perturb)

verify-cpus: .venv/runtime ## Train shortly under other processors, emulated by QEMU, and compare.
	@$(BIN)/python -m tools.verify.cpus

lock-check: .venv/runtime ## Check in a second that dvc.lock is of the last commit.
	@$(BIN)/python -m tools.verify --lock

doctor: .venv/runtime ## Say what is wrong with the environment, the data or the cache, and what mends it.
	@$(BIN)/python -m tools.doctor

lint: .venv/development ## Check the style and the types alone.
	@$(BIN)/ruff format --check
	@$(BIN)/ruff check
	@$(BIN)/mypy

requirements: .venv/development ## Pin the newest versions of everything in the two requirements files.
	$(BIN)/uv pip compile $(LOCK) --upgrade pyproject.toml --output-file requirements.txt
	$(BIN)/uv pip compile $(LOCK) --upgrade --group dev --constraints requirements.txt --output-file requirements-dev.txt

# One set of versions for every system and Python that the project supports, without addresses.
LOCK := --quiet --universal --python-version 3.11 --fork-strategy fewest --generate-hashes \
	--no-annotate --no-header

.venv/runtime: requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || \
		{ echo "error: $(PYTHON) is not Python 3.11, 3.12 or 3.13; name one: make PYTHON=python3.11"; exit 1; }
	@echo "Installing the pinned dependencies into .venv, once: 2 GB on disk"
	@$(PYTHON) -m venv .venv
	@$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes --requirement requirements.txt
	@touch $@

.venv/development: requirements-dev.txt .venv/runtime
	@$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes --requirement requirements-dev.txt
	@touch $@
