# The targets of every day; each sets up what it needs. The other commands: .venv/bin/python -m project --help
PYTHON ?= python3
EXP ?= unet_mse
DATASET ?= yeast
SPLIT ?= val
FOLD ?=
SEEDS ?=
RESUME ?=
ESTIMATE ?=
MINUTES ?=
TASK ?=
RAW ?=
LOGGER ?= tensorboard
RUN ?=
INPUT ?=
OUTPUT ?=
NAME ?=
AUTHOR ?=
DEMO ?=
HISTORY ?=
URL ?=
REVISION ?=
# Further options of the command, as ARGS="--trainer.max_epochs 3".
ARGS ?=
# cpu, cu126, ...: install that build of torch and torchvision instead of the registry's own.
TORCH ?=
# dev, or all: also what only some need (notebooks, ONNX, compression).
GROUP ?= dev
# Processes that run tests side by side; 0: none beside this one (for a debugger).
JOBS ?= auto

# A misspelt variable would have no effect.
KNOWN := SHELL MAKEFLAGS $(shell sed -n 's/^\([A-Z]*\) [?:]*=.*/\1/p' $(firstword $(MAKEFILE_LIST)))
$(foreach name,$(filter-out $(KNOWN),$(.VARIABLES)),$(if $(filter command%,$(origin $(name))),\
	$(error there is no variable $(name); there are $(sort $(KNOWN)))))

# Other programs set environment variables of these names: they count on the command line only.
$(foreach name,INPUT OUTPUT TORCH RAW NAME AUTHOR DEMO HISTORY URL REVISION,$(if $(filter environment,$(origin $(name))),$(eval $(name) :=)))
# A value as one word of a shell command, whatever is in it; an option, if it has a value; whether a switch is on.
quoted = '$(subst ','\'',$(1))'
option = $(if $(2),--$(1) $(call quoted,$(2)))
on = $(filter-out 0 no false off,$(1))
# The value of a variable if it was set on the command line or in the environment.
given = $(if $(filter command line environment,$(origin $(1))),$($(1)))

VENV := .venv
PY := $(VENV)/bin/python
READY := $(VENV)/.ready-$(GROUP)
PYTEST := $(PY) -m pytest -q --numprocesses $(JOBS) --maxprocesses 8 --dist loadscope
# `make eval` takes a run or, if one was given, an experiment; by default the latest training.
WHICH = $(if $(RUN),$(call quoted,$(RUN)),$(if $(call given,EXP),$(call quoted,$(EXP))))
# Another dataset than that of the experiment, or only runs on it, if one was given.
ON_DATASET = $(call option,dataset,$(call given,DATASET))

.DEFAULT_GOAL := help
.PHONY: help setup data inspect plan check train baselines eval predict test lint test-fast test-all test-oldest format lock clean start update schema

help: ## List the targets
	@echo "Usage: make TARGET [NAME=value ...]"; echo
	@sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)/\1@\2/p' $(MAKEFILE_LIST) | awk -F@ '{printf "  %-12s %s\n", $$1, $$2}'
	@echo; echo "All commands: $(PY) -m project --help"
	@echo "Experiments:  $(basename $(notdir $(wildcard configs/experiments/*.yaml)))"
	@echo "Datasets:     $(basename $(notdir $(wildcard configs/data/*.yaml)))"

setup: $(READY) ## Make .venv from requirements.lock (PYTHON=python3.12; TORCH=cpu is smaller; GROUP=all)
	@echo "$(VENV) is ready. Next: make train, or make data RAW=folder NAME=mine"

# The lock pins versions as constraints, so that TORCH=cpu does not install the CUDA packages that it lists.
$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "error: Python 3.11 or newer is needed; choose one with PYTHON=python3.12"; exit 2; }
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --disable-pip-version-check --constraint requirements.lock uv
	$(PY) -m uv pip install --quiet --compile-bytecode --python $(PY) $(if $(TORCH),--torch-backend $(TORCH)) \
		--constraint requirements.lock --editable . --group $(GROUP)
	@touch $@

data: $(READY) ## Raw images -> HDF5 splits: DATASET=yeast; RAW=folder NAME=mine: proposes the config; ESTIMATE=1: time, size
	@test -z $(call quoted,$(RAW)) -o -n $(call quoted,$(NAME)$(call given,DATASET)) || \
		{ echo "error: name the dataset: make data RAW=folder NAME=mine"; exit 2; }
	$(PY) -m project data $(call quoted,$(or $(NAME),$(DATASET))) $(call option,raw,$(RAW)) $(if $(call on,$(ESTIMATE)),--estimate) $(ARGS)

inspect: $(READY) ## Report about a dataset: DATASET=yeast
	$(PY) -m project inspect $(call quoted,$(DATASET)) $(ARGS)

plan: $(READY) ## Plan experiments on a dataset: DATASET=mine MINUTES=20 TASK=segmentation
	@test -n $(call quoted,$(call given,DATASET)) || { echo "error: name the dataset: make plan DATASET=mine"; exit 2; }
	$(PY) -m project plan $(call quoted,$(DATASET)) $(call option,minutes,$(MINUTES)) $(call option,task,$(TASK)) $(ARGS)

check: $(READY) ## Look for mistakes before training: EXP=unet_mse DATASET=mine FOLD=0; exit status 1 after an error
	$(PY) -m project check $(call quoted,$(EXP)) $(ON_DATASET) $(call option,data.fold,$(FOLD)) $(ARGS)

# A resumed run keeps its experiment and logger, unless they are given. With a dataset alone, an experiment is planned.
train: $(READY) ## Train: EXP=unet_mse DATASET=mine (alone: plan it, TASK=segmentation) MINUTES=10 FOLD=0 SEEDS=0,1,2 LOGGER=tensorboard|wandb|mlflow|csv|none RESUME=latest ARGS="--data.batch_size 8"
	$(PY) -m project train \
		$(if $(RESUME),$(call given,EXP) $(call option,resume,$(RESUME)) $(call option,logger,$(call given,LOGGER)),\
		$(if $(or $(call given,EXP),$(if $(call given,DATASET),,default)),$(call quoted,$(EXP)),$(call option,task,$(TASK))) \
		$(call option,logger,$(LOGGER))) $(ON_DATASET) $(call option,data.fold,$(FOLD)) $(call option,seeds,$(SEEDS)) $(call option,minutes,$(MINUTES)) \
		$(ARGS)

baselines: $(READY) ## Fit the baselines on a dataset: DATASET=yeast TASK=translation FOLD=0
	$(PY) -m project baselines $(call quoted,$(DATASET)) $(call option,task,$(TASK)) $(call option,fold,$(FOLD)) $(ARGS)

eval: $(READY) ## Evaluate a run and print the table: RUN=folder or EXP=name DATASET=mine (default: the latest training), SPLIT=val|test
	$(PY) -m project eval $(WHICH) $(ON_DATASET) $(call option,split,$(SPLIT)) $(ARGS)

predict: $(READY) ## Predict raw images: RUN=folder (or RUN="a b": the mean of two) INPUT=folder OUTPUT=folder
	@test -n $(call quoted,$(INPUT)) -a -n $(call quoted,$(OUTPUT)) || { echo "error: make predict RUN=... INPUT=folder OUTPUT=folder"; exit 2; }
	$(PY) -m project predict $(or $(WHICH),$(call quoted,$(EXP))) $(call quoted,$(INPUT)) $(call quoted,$(OUTPUT)) $(ARGS)

start: $(READY) ## Make this clone your own project: NAME=my_study AUTHOR="A. Person" DEMO=0 HISTORY=fresh
	@test -z $(call quoted,$(filter-out fresh,$(HISTORY))) || { echo "error: HISTORY is fresh, or left out"; exit 2; }
	$(PY) -m project start $(call quoted,$(NAME)) $(call option,author,$(AUTHOR)) \
		$(if $(filter 0 no false off,$(DEMO)),--no-demo) $(if $(filter fresh,$(HISTORY)),--fresh-history)

update: $(READY) ## Merge a newer version of the template into your project: URL=repository REVISION=branch
	$(PY) -m project update $(call option,url,$(URL)) $(call option,revision,$(REVISION))

schema: $(READY) ## Write configs/schemas: editors then complete keys of YAML files, and mark mistakes
	$(PY) -m project schema

test: $(READY) ## Run the tests (minutes)
	$(PYTEST) -m "not nightly" $(ARGS)

lint: $(READY) ## Check format, lint and types
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy

test-fast: $(READY) ## Run the tests that take less than a second each
	$(PYTEST) -m "not slow and not nightly" $(ARGS)

test-all: ## Run all tests: also fuzzing, many processes, every experiment, benchmarks in short
	$(MAKE) --no-print-directory setup GROUP=all
	$(PYTEST) $(ARGS)

test-oldest: ## Run the fast tests on the oldest supported versions, in .venv-oldest
	test -x .venv-oldest/bin/python || $(PYTHON) -m venv .venv-oldest
	.venv-oldest/bin/python -m pip install --quiet --disable-pip-version-check uv
	.venv-oldest/bin/python -m uv pip install --quiet --python .venv-oldest/bin/python --resolution lowest-direct \
		$(if $(TORCH),--torch-backend $(TORCH)) --editable . --group dev
	@# Old packages are deprecated by their own newer dependencies: warnings are no errors here.
	.venv-oldest/bin/python -m pytest -q -m "not slow and not nightly" -W default $(ARGS)

format: $(READY) ## Format the code and fix what can be fixed
	$(VENV)/bin/ruff format .
	$(VENV)/bin/ruff check --fix .

lock: $(READY) ## Write requirements.lock again, with the newest versions that pyproject.toml allows
	$(PY) -m uv pip compile --quiet --universal --upgrade --group all --custom-compile-command "make lock" \
		pyproject.toml --output-file requirements.lock

clean: ## Remove the environments and caches; data and runs stay
	rm -rf $(VENV) .venv-oldest .mypy_cache .pytest_cache .ruff_cache *.egg-info
