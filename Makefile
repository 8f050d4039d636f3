# Start with `make repro` and `make test`. `make help` lists everything.

PYTHON ?= python3
BIN := .venv/bin
# DVC starts the stages with the `python` that it finds first.
export PATH := $(CURDIR)/$(BIN):$(PATH)
# Remove what a git hook, an IDE or a notebook left. stages/core/environment.py says why,
# and does the same for programs that do not start here. uv does not compile packages: Python does it
# once, unless PYTHONDONTWRITEBYTECODE is set.
unexport $(shell git rev-parse --local-env-vars 2>/dev/null) BASH_ENV ENV PYTHONDONTWRITEBYTECODE \
	PYTHONHOME PYTHONINSPECT PYTHONIOENCODING PYTHONOPTIMIZE PYTHONPATH PYTHONSAFEPATH PYTHONWARNINGS
export SHELL := /bin/sh
export MPLBACKEND := agg
# DVC needs the user's name. A container may run under a number that has none.
export LOGNAME := $(or $(LOGNAME),$(USER),user)

.PHONY: help repro test test-quick compare seeds techniques model-card export draw benchmark verify verify-cpus \
	lock-check doctor lint requirements moved
.DEFAULT_GOAL := help

help: ## Show this list.
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

repro: .venv/runtime ## Run the stages that changed. RECIPE=name WORKERS=2; FRESH=1: do not resume a training.
	@$(BIN)/python -m tools.recipe $(RECIPE)
	@$(if $(FRESH),rm -rf data/checkpoint)
	@before=$$(git hash-object dvc.lock 2>&1); \
		$(if $(WORKERS),$(BIN)/python -m tools.worker --local $(WORKERS),$(BIN)/dvc repro) && \
		if [ "$$(git hash-object dvc.lock)" != "$$before" ]; then $(BIN)/python -m tools.verify.fingerprint; fi

test: lint ## Run `make lint`, then all tests.
	@$(BIN)/pytest

test-quick: .venv/development ## Run the tests that are quick and need neither network nor browser.
	@$(BIN)/pytest -m 'not slow and not network and not browser'

compare: .venv/runtime ## Compare the results with another revision. BASE=main HEAD=revision MAX_DROP=0.001 PER_CLASS=1
	@$(BIN)/python -m tools.compare '$(or $(BASE),main)' $(if $(HEAD),'$(HEAD)') $(if $(MAX_DROP),--max-drop $(MAX_DROP)) \
		$(if $(PER_CLASS),--per-class)

seeds: .venv/runtime ## Train the last commit with N different seeds (default 5) and report the spread. JOBS=2 PER_CLASS=1
	@$(BIN)/python -m tools.seeds $(or $(N),5) $(if $(JOBS),--jobs $(JOBS)) $(if $(PER_CLASS),--per-class)

techniques: .venv/runtime ## Measure docs/techniques.md again: its tables and pictures. JOBS=2
	@$(BIN)/python -m benchmarks.techniques $(if $(JOBS),--jobs $(JOBS))

model-card: .venv/runtime ## Write docs/model-card.md from the results in dvc.lock.
	@$(BIN)/python -m tools.model_card

export: .venv/development ## Convert the trained network to ONNX and TFLite in data/export, and check both.
	@$(BIN)/python -m tools.export

draw: .venv/runtime ## Serve a local web page that recognises the digit you draw. PORT=8000 HOST_NAME=name
	@$(BIN)/python -m tools.draw $(if $(PORT),--port $(PORT)) $(if $(HOST_NAME),--host-name '$(HOST_NAME)')

benchmark: .venv/runtime ## Measure accuracy and speed. RECIPES=a,b SEEDS=3 PARTS=a,b DOCS=1
	@$(BIN)/python -m benchmarks $(if $(RECIPES),--recipes $(RECIPES)) $(if $(SEEDS),--seeds $(SEEDS)) \
		$(if $(PARTS),--parts $(PARTS)) $(if $(DOCS),--docs)

# Only PERTURB uses a package for tests, libfaketime.
verify: $(if $(PERTURB),.venv/development,.venv/runtime) ## Reproduce the last commit in a fresh clone and compare. STRICT=1 PERTURB=1 WORKERS=2
	@$(BIN)/python -m tools.verify $(if $(STRICT),--strict) $(if $(PERTURB),--perturb) $(if $(WORKERS),--workers $(WORKERS))

verify-cpus: .venv/runtime ## Train briefly on other processors, emulated by QEMU, and compare.
	@$(BIN)/python -m benchmarks.cpus

lock-check: .venv/runtime ## Check in seconds that dvc.lock belongs to the last commit.
	@$(BIN)/python -m tools.verify --lock

doctor: .venv/runtime ## Check environment, data and cache, and print fixes.
	@$(BIN)/python -m tools.doctor

lint: .venv/development ## Check style and types of the code, and GitHub's workflow files.
	@$(BIN)/ruff format --check
	@$(BIN)/ruff check
	@$(BIN)/mypy
	@$(BIN)/actionlint
	@$(BIN)/zizmor --offline -qq .github

# The first command finds versions that fit together. The others split them into three files, each
# with all that its packages need. One set of versions serves every supported system and Python.
LOCK := $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --fork-strategy fewest \
	--generate-hashes --no-annotate --no-header --no-emit-index-url
TOGETHER := .venv/together.txt

requirements: .venv/runtime ## Pin the newest versions of all packages in the three requirements files.
	$(LOCK) --upgrade pyproject.toml --group tools --group dev --output-file $(TOGETHER)
	$(LOCK) --constraints $(TOGETHER) pyproject.toml --output-file requirements.txt
	$(LOCK) --constraints $(TOGETHER) --group tools --output-file requirements-tools.txt
	$(LOCK) --constraints $(TOGETHER) --group dev --output-file requirements-dev.txt

.venv/runtime: requirements.txt requirements-tools.txt
	@$(PYTHON) tools/install.py $^
	@echo "$$(realpath .venv) $$(realpath $(BIN)/python)" > $@

.venv/development: requirements-dev.txt .venv/runtime
	@$(PYTHON) tools/install.py $<
	@touch $@

# The commands in .venv start with its path and work only there, with the Python that made it.
MADE := $(file < .venv/runtime)
ifneq "$(MADE)" ""
ifneq "$(MADE)" "$(realpath .venv) $(realpath $(BIN)/python)"
.venv/runtime: moved
moved:
	@echo "error: .venv was made in another folder or with another Python. Delete it and try again: rm -rf .venv" >&2; exit 1
endif
endif
