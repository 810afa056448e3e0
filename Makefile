# Every target sets up what it needs. `make` alone lists them.
PYTHON ?= python3
EXP ?= unet_mse
DATASET ?= yeast
SPLIT ?= val
FOLD ?=
SEEDS ?=
THRESHOLD ?=
FRACTIONS ?=
PSEUDO ?=
RESUME ?=
ESTIMATE ?=
PROCESSES ?=
# Address of a Dask scheduler that prepares the data, as tcp://host:8786.
CLUSTER ?=
LOGGER ?= tensorboard
# cpu, cu126, ...: install that build of torch and torchvision in place of the registry's own.
TORCH ?=
RUN ?=
OTHER ?=
INPUT ?=
OUTPUT ?=
REFERENCE ?=
BENCH ?=
# Processes that run tests side by side, each the tests of whole modules; 0: none beside this one (for a debugger).
JOBS ?= auto
ARGS ?=
NODES ?=
GPUS ?=
CPUS ?=
TIME ?=
PARTITION ?=
SUBMIT ?=
TRIALS ?=
SAMPLER ?=
SPACE ?=
STUDY ?=

# Other programs set environment variables of these names: they count on the command line only.
$(foreach name,INPUT OUTPUT TIME TORCH NODES CPUS GPUS SPACE,$(if $(filter environment,$(origin $(name))),$(eval $(name) :=)))
# A value as one word of a shell command, whatever is in it; and whether a switch is on.
quoted = '$(subst ','\'',$(1))'
on = $(filter-out 0 no false off,$(1))

VENV := .venv
PY := $(VENV)/bin/python
READY := $(VENV)/.ready
PARALLEL := --numprocesses $(JOBS) --maxprocesses 8 --dist loadscope
TORCH_BACKEND := $(if $(TORCH),--torch-backend $(TORCH))
# `make eval` takes a run or, if one was typed, an experiment; by default the latest run of all.
TYPED_EXP := $(if $(EXP),$(if $(filter command line environment,$(origin EXP)),$(call quoted,$(EXP))))
TYPED_DATASET := $(if $(filter command line environment,$(origin DATASET)),$(DATASET))
WHICH := $(if $(RUN),$(call quoted,$(RUN)),$(TYPED_EXP))
# A run that goes on keeps its experiment and logger, unless they were typed.
TYPED_LOGGER := $(if $(filter command line environment,$(origin LOGGER)),--logger $(LOGGER))
TRAINED := $(if $(RESUME),$(TYPED_EXP) --resume $(call quoted,$(RESUME)) $(TYPED_LOGGER),$(call quoted,$(EXP)) --logger $(LOGGER))

.DEFAULT_GOAL := help
.PHONY: help setup data inspect train reproduce check batch tune slurm baselines eval predict export compare report pseudo fractions table results bench test test-fast test-oldest lint format lock clean

help: ## List the targets
	@echo "Usage: make TARGET [NAME=value ...]"; echo
	@sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)/\1@\2/p' $(MAKEFILE_LIST) | awk -F@ '{printf "  %-12s %s\n", $$1, $$2}'
	@echo; echo "Experiments: $(basename $(notdir $(wildcard configs/experiments/*.yaml)))"
	@echo "Datasets:    $(basename $(notdir $(wildcard configs/data/*.yaml)))"

setup: $(READY) ## Make .venv from requirements.lock (PYTHON=python3.12, TORCH=cpu for a smaller install)

# The lock pins versions as constraints, so that TORCH=cpu does not install the CUDA packages that it lists.
$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "error: Python 3.11 or newer is needed; choose one with PYTHON=python3.12"; exit 2; }
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --disable-pip-version-check --constraint requirements.lock uv
	$(PY) -m uv pip install --quiet --compile-bytecode --python $(PY) $(TORCH_BACKEND) \
		--constraint requirements.lock --editable . --group dev
	@touch $@

data: $(READY) ## Raw images -> HDF5 splits: DATASET=yeast; ESTIMATE=1 tells what it takes; PROCESSES=4, CLUSTER=address
	$(PY) -m project data $(call quoted,$(DATASET)) $(if $(call on,$(ESTIMATE)),--estimate) $(if $(PROCESSES),--processes $(PROCESSES)) \
		$(if $(CLUSTER),--cluster $(CLUSTER)) $(ARGS)

inspect: $(READY) ## What is in the data: DATASET=yeast
	$(PY) -m project inspect $(call quoted,$(DATASET)) $(ARGS)

train: $(READY) ## Train an experiment: EXP=unet_mse FOLD=0 SEEDS=0,1,2 LOGGER=tensorboard|wandb|none RESUME=latest ARGS="--trainer.max_epochs 3"
	$(PY) -m project train $(TRAINED) $(if $(FOLD),--data.fold $(FOLD)) $(if $(SEEDS),--seeds $(SEEDS)) $(ARGS)

reproduce: $(READY) ## Train a run anew at its commit, with its data and settings, and compare the metrics: RUN=folder
	$(PY) -m project reproduce $(WHICH) $(ARGS)

check: $(READY) ## Look for mistakes before training, in a minute: EXP=unet_mse; exit status 1 if it is not safe to train
	$(PY) -m project check $(call quoted,$(EXP)) $(if $(FOLD),--data.fold $(FOLD)) $(ARGS)

batch: $(READY) ## Try batch sizes of an experiment: time per sample, memory, the largest that fits; EXP=unet_mse
	$(PY) -m project batch $(call quoted,$(EXP)) $(ARGS)

tune: $(READY) ## Search for good settings, as configs/tune/ says: EXP=unet_mse TRIALS=20 SAMPLER=tpe|random SPACE= STUDY=
	$(PY) -m project tune $(call quoted,$(EXP)) $(if $(TRIALS),--trials $(TRIALS)) $(if $(SAMPLER),--sampler $(SAMPLER)) \
		$(if $(SPACE),--space $(SPACE)) $(if $(STUDY),--study $(STUDY)) $(TYPED_LOGGER) $(if $(FOLD),--data.fold $(FOLD)) $(ARGS)

slurm: $(READY) ## A job of a training for a Slurm cluster: EXP=unet_mse NODES=2 GPUS=4 CPUS=8 TIME=24:00:00 PARTITION= SUBMIT=1
	$(PY) -m project slurm $(call quoted,$(EXP)) $(if $(NODES),--nodes $(NODES)) $(if $(GPUS),--gpus $(GPUS)) $(if $(CPUS),--cpus $(CPUS)) \
		$(if $(TIME),--time $(TIME)) $(if $(PARTITION),--partition $(PARTITION)) $(if $(call on,$(SUBMIT)),--submit) $(ARGS)

baselines: $(READY) ## Fit every baseline on a dataset: DATASET=yeast, FOLD=0 where it has folds
	$(PY) -m project baselines $(call quoted,$(DATASET)) $(if $(FOLD),--fold $(FOLD)) $(ARGS)

eval: $(READY) ## Evaluate a run and print the table: RUN=folder or EXP=name (default: the latest), SPLIT=val|test
	$(PY) -m project eval $(WHICH) --split $(SPLIT) $(ARGS)

compare: $(READY) ## All runs on the data of RUN= or EXP= (or DATASET=) with intervals and tests: REFERENCE=name; two runs: RUN= OTHER=
	$(PY) -m project compare $(WHICH) $(if $(TYPED_DATASET),--dataset $(call quoted,$(TYPED_DATASET))) --split $(SPLIT) \
		$(if $(REFERENCE),--reference $(call quoted,$(REFERENCE))) $(if $(OTHER),--other $(call quoted,$(OTHER))) $(ARGS)

report: $(READY) ## A page of a run for a browser: RUN=folder or EXP=name; DATASET=name: a page of all its runs
	$(PY) -m project report $(WHICH) $(if $(TYPED_DATASET),--dataset $(call quoted,$(TYPED_DATASET))) --split $(SPLIT) \
		$(if $(REFERENCE),--reference $(call quoted,$(REFERENCE))) $(ARGS)

predict: $(READY) ## Predict raw images: RUN=folder INPUT=folder OUTPUT=folder; several runs, RUN="a b": their mean (quote one with spaces once more); ARGS="--tta"
	@test -n $(call quoted,$(INPUT)) -a -n $(call quoted,$(OUTPUT)) || { echo "error: make predict RUN=... INPUT=folder OUTPUT=folder"; exit 2; }
	$(PY) -m project predict $(or $(WHICH),$(call quoted,$(EXP))) $(call quoted,$(INPUT)) $(call quoted,$(OUTPUT)) $(ARGS)

export: $(READY) ## A run as ONNX and torch.export, with its normalisation, checked: RUN=folder or EXP=name
	$(PY) -m project export $(or $(WHICH),$(call quoted,$(EXP))) $(ARGS)

pseudo: $(READY) ## Label images without labels where a run is sure; DATASET_pseudo holds both: RUN=folder THRESHOLD=0.9
	$(PY) -m project pseudo $(WHICH) $(if $(THRESHOLD),--threshold $(THRESHOLD)) $(ARGS)

fractions: $(READY) ## What labels are worth: EXP="unet_dice unet_dice_from_mae" FRACTIONS=0.01,0.05,0.2 SEEDS=0,1,2 PSEUDO=0.9
	$(PY) -m project fractions $(EXP) $(if $(FRACTIONS),--fractions $(FRACTIONS)) $(if $(SEEDS),--seeds $(SEEDS)) \
		$(if $(PSEUDO),--pseudo $(PSEUDO)) $(ARGS)

table: $(READY) ## Print the table of all runs on the data of a run: RUN=, EXP=, SPLIT=; all tables without these
	$(PY) -m project table $(WHICH) --split $(SPLIT)

results: $(READY) ## Train every experiment on the demo data, fit the baselines, print the tables
	for name in unet_mse unet_l1_ssim unet_dice unet_focal resnet_ce resnet_finetune; do \
		$(PY) -m project train $$name --logger $(LOGGER) || exit; done
	$(PY) -m project baselines
	$(PY) -m project table

bench: $(READY) ## Measure what is claimed to be fast: BENCH=reader, or all (an hour); ARGS=--quick tries whether it runs
	$(PY) tests/benchmarks $(BENCH) $(ARGS)

test: $(READY) ## Run all tests
	$(PY) -m pytest -q $(PARALLEL) $(ARGS)

test-fast: $(READY) ## Run the tests that take less than a few seconds each
	$(PY) -m pytest -q -m "not slow" $(PARALLEL) $(ARGS)

test-oldest: ## Run the fast tests on the oldest supported versions, in .venv-oldest
	test -x .venv-oldest/bin/python || $(PYTHON) -m venv .venv-oldest
	.venv-oldest/bin/python -m pip install --quiet --disable-pip-version-check uv
	.venv-oldest/bin/python -m uv pip install --quiet --python .venv-oldest/bin/python --resolution lowest-direct \
		$(TORCH_BACKEND) --editable . --group dev
	@# Old packages are deprecated by their own newer dependencies: warnings are no errors here.
	.venv-oldest/bin/python -m pytest -q -m "not slow" -W default $(PARALLEL) $(ARGS)

lint: $(READY) ## Check format, lint and types
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy

format: $(READY) ## Format the code and mend what can be mended
	$(VENV)/bin/ruff format .
	$(VENV)/bin/ruff check --fix .

lock: $(READY) ## Write requirements.lock anew, with the newest versions that pyproject.toml allows
	$(PY) -m uv pip compile --quiet --universal --upgrade --group dev --custom-compile-command "make lock" \
		pyproject.toml --output-file requirements.lock

clean: ## Remove the environments and caches; data and runs stay
	rm -rf $(VENV) .venv-oldest .mypy_cache .pytest_cache .ruff_cache *.egg-info
