# Start with `make repro` and `make test`. `make help` lists everything.

# Arguments of make, and those that are on if they are not 0. They come from its command line only:
# the user's shell may have variables of the same names, such as gunicorn's WORKERS.
SWITCHES := DOCS FRESH PERTURB PER_CLASS STRICT
ARGUMENTS := $(SWITCHES) BASE DATASET DIR HEAD HOST_NAME JOBS MAX_DROP N NAME PARTS PORT PYTHON RECIPE RECIPES ROOMS SEEDS \
	WORKERS
drop = $(eval override $(1) :=)
$(foreach name,$(ARGUMENTS),$(if $(filter command,$(origin $(name))),,$(call drop,$(name))))
$(foreach name,$(SWITCHES),$(if $(filter 0,$($(name))),$(call drop,$(name))))
unexport $(ARGUMENTS) MAKEFLAGS

override PYTHON := $(or $(PYTHON),python3)
BIN := .venv/bin
# DVC starts the stages with the `python` that it finds first.
export PATH := $(CURDIR)/$(BIN):$(PATH)
# Remove what a git hook, an IDE or a notebook left. stages/core/environment.py says why,
# and does the same for programs that do not start here. PYTHONDONTWRITEBYTECODE is among them because
# Python compiles the installed packages when it first imports them: uv does not.
unexport $(shell git rev-parse --local-env-vars 2>/dev/null) BASH_ENV ENV PYTHONDONTWRITEBYTECODE \
	PYTHONHOME PYTHONINSPECT PYTHONIOENCODING PYTHONOPTIMIZE PYTHONPATH PYTHONSAFEPATH PYTHONWARNINGS
export SHELL := /bin/sh
export MPLBACKEND := agg
# DVC needs the user's name. A container may run under a number that has none.
export LOGNAME := $(or $(LOGNAME),$(USER),user)

.PHONY: help repro test test-quick compare seeds draw export verify new doctor resolve lint lock-check model-card techniques \
	benchmark verify-cpus requirements ready moved
.DEFAULT_GOAL := help

help: ## Show this list.
	@awk -F ':.*## ' '/^## / { print "\n" substr($$0, 4) } /^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' \
		$(MAKEFILE_LIST)

repro: ready ## Run the stages that changed. RECIPE=name, WORKERS=2, FRESH=1 (start the training from the beginning).
	@$(BIN)/python -m tools.recipe $(RECIPE)
	@$(if $(FRESH),rm -rf data/checkpoint)
	@$(if $(WORKERS),$(BIN)/python -m tools.worker --local $(WORKERS),$(BIN)/dvc repro)
	@$(BIN)/python -m dvc_verify record

test: lint ## Run `make lint`, then all tests.
	@$(BIN)/pytest

test-quick: ready .venv/development ## Run the tests that are quick and need neither network nor browser.
	@$(BIN)/pytest -m 'not slow and not network and not browser'

compare: ready ## Compare the results with another revision. BASE=main HEAD=revision MAX_DROP=0.001 PER_CLASS=1
	@$(BIN)/python -m tools.compare '$(or $(BASE),main)' $(if $(HEAD),'$(HEAD)') $(if $(MAX_DROP),--max-drop $(MAX_DROP)) \
		$(if $(PER_CLASS),--per-class)

seeds: ready ## Train the network of the last commit with N seeds (default 5) and report the spread. JOBS=2 PER_CLASS=1
	@$(BIN)/python -m tools.seeds $(or $(N),5) $(if $(JOBS),--jobs $(JOBS)) $(if $(PER_CLASS),--per-class)

draw: ready ## Serve a local web page that recognises the digit you draw. PORT=8000 HOST_NAME=name
	@$(BIN)/python -m tools.draw $(if $(PORT),--port $(PORT)) $(if $(HOST_NAME),--host-name '$(HOST_NAME)')

export: ready .venv/development ## Convert the trained network to ONNX and TFLite in data/export, and check both.
	@$(BIN)/python -m tools.export

# Only PERTURB uses a package for tests, libfaketime.
verify: ready $(if $(PERTURB),.venv/development) ## Reproduce the last commit in a fresh clone and compare. STRICT=1 PERTURB=1 WORKERS=2
	@$(BIN)/python -m dvc_verify $(if $(STRICT),--strict) $(if $(PERTURB),--perturb) \
		$(if $(WORKERS),--command 'python -m tools.worker --local $(WORKERS) --force --no-run-cache')

new: ready ## Make a new project from this one. DIR=../churn NAME=churn DATASET=digits ROOMS=photos,draw
	@$(BIN)/python -m tools.new '$(DIR)' '$(NAME)' '$(or $(DATASET),digits)' $(if $(ROOMS),--rooms '$(ROOMS)')

doctor: ready ## Check environment, data and cache, and print fixes.
	@$(BIN)/python -m tools.doctor

resolve: ready ## After a merge with conflicts, write what stages wrote again, and name all other conflicts.
	@$(BIN)/python tools/resolve.py
	@$(BIN)/dvc repro
	@$(BIN)/python -m dvc_verify record
	@$(BIN)/python -m tools.model_card
	@git add --all dvc.lock fingerprint.json docs/model-card.md data
	@echo 'Everything that stages wrote is resolved. See `git status`, then run `git commit`.'

## For maintainers

lint: ready .venv/development ## Check style and types of the code, and GitHub's workflow files.
	@$(BIN)/ruff format --check
	@$(BIN)/ruff check
	@$(BIN)/mypy
	@$(BIN)/actionlint
	@$(BIN)/zizmor --offline -qq .github

lock-check: ready ## Check in seconds that dvc.lock belongs to the last commit.
	@$(BIN)/python -m dvc_verify lock

model-card: ready ## Write docs/model-card.md from the results in dvc.lock.
	@$(BIN)/python -m tools.model_card

techniques: ready ## Measure docs/techniques.md again: its tables and pictures. JOBS=2
	@$(BIN)/python -m benchmarks.techniques $(if $(JOBS),--jobs $(JOBS))

benchmark: ready ## Measure accuracy and speed. RECIPES=a,b SEEDS=3 PARTS=a,b DOCS=1
	@$(BIN)/python -m benchmarks $(if $(RECIPES),--recipes $(RECIPES)) $(if $(SEEDS),--seeds $(SEEDS)) \
		$(if $(PARTS),--parts $(PARTS)) $(if $(DOCS),--docs)

verify-cpus: ready ## Train briefly on other processors, emulated by QEMU, and compare.
	@$(BIN)/python -m benchmarks.cpus

requirements: ## Pin the newest versions of all packages that are at least a week old.
	@$(PYTHON) tools/install.py --pin

.venv/runtime: requirements.txt requirements-tools.txt
	@$(PYTHON) tools/install.py $^
	@$(BIN)/python -c 'from os.path import realpath as r; print(r(".venv"), r("$(BIN)/python"))' > $@

.venv/development: requirements-dev.txt .venv/runtime
	@$(PYTHON) tools/install.py $<
	@touch $@

ready: .venv/runtime
	@$(BIN)/python tools/install.py --check

# The commands in .venv start with its path and work only there, with the Python that made it.
MADE := $(shell cat .venv/runtime 2>&-)
ifneq "$(MADE)" ""
ifneq "$(MADE)" "$(realpath .venv) $(realpath $(BIN)/python)"
.venv/runtime: moved
moved:
	@echo "error: .venv was made in another folder or with another Python. Delete it and try again: rm -rf .venv" >&2; exit 1
endif
endif
