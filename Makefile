# Every target is a thin line over the command line, and sets up what it needs.
#   EXP    experiment: a file of conf/exp without .yaml             make train EXP=mini_all
#   ARGS   overrides for the command line                           ARGS="--trainer.max_steps=50 --data.ratios.coco=2"
#   RUN    name of the run below runs/<EXP>/ (default version_<n>)
#   RESUME auto = go on from the newest good checkpoint of the run, or of the experiment's newest run; or a checkpoint
#   CKPT   checkpoint to evaluate (default: untrained weights), to export, to predict with or to show: a file, or a folder of shards
#   PATH   folder of your own data to write an experiment for; NAME the experiment's name (default: the folder's)
#   OUT    file to export to (default: model.safetensors in the run's folder); folder to predict to (default: predictions)
#   IMAGES images to predict on: folders, files
#   DATA   folder that holds the datasets (default: the experiment's own, see conf/exp)
#   WITH   overlays on the experiment: files of conf/with without .yaml        make train EXP=mini_all WITH="mixed_batches"
#   ON     what to evaluate on: all = every dataset there is, trained on or not (default: the experiment's own)
#   SUITE  table of experiments: a file of conf/suite without .yaml            make ablation SUITE=scaling_mini SEEDS=3
#   SEEDS  seeds of each row (default 1); PARALLEL  runs at a time; DRY=1  print the commands, for MACHINES=n machines
#   CLUSTER  slurm = hand the runs of a suite to SLURM; local = the same on this machine     ARGS="--cluster.nodes=2 --cluster.gpus=8"
#   STRATEGY  several processes: a file of conf/strategy without .yaml (default: Lightning's choice)
#   GPUS, GPU  what to plan for: number and kind (default 8 of h100-80)        make plan EXP=r50_all GPUS=4 GPU=a100-40
#   PYTHON interpreter that the virtual environment is made from (3.11 or newer)

PYTHON ?= python3
VENV ?= .venv
CONSTRAINTS ?= constraints.txt
RUNS ?= runs
EXP ?= mini_all
SUITE ?= scaling_mini
SEEDS ?= 1
PY := $(VENV)/bin/python
comma := ,
READY := $(VENV)/.ready

export NO_ALBUMENTATIONS_UPDATE := 1
# Threads that spin while they wait stall each other once other processes share the cores (50 times slower, seen on 2);
# threads that never spin halve the speed of a run that is alone. A short spin avoids both.
export GOMP_SPINCOUNT ?= 1000

needs = $(if $($(1)),,$(error $(1)=... is needed: $(2)))
CLI = $(PY) -m dataseg.cli
CONFIG = --exp $(subst $(eval) ,+,$(strip $(EXP) $(WITH))) --runs "$(RUNS)" \
         $(if $(ON),--config conf/on/$(if $(filter mini_%,$(EXP)),mini_)$(ON).yaml) \
         $(if $(STRATEGY),--config conf/strategy/$(STRATEGY).yaml) $(if $(RUN),--run "$(RUN)") $(if $(DATA),--data.root="$(DATA)")

ifeq ($(origin PATH),command line)  # of make own-data: commands are still to be found
FOLDER := $(PATH)
override PATH := /usr/local/bin:/usr/bin:/bin
endif

.DEFAULT_GOAL := help
.PHONY: help setup test test-slow lint format train eval data-check data-stats own-data plan ablation report replay score embed export predict demo docs tensorboard clean

help: ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-14s %s\n", $$1, $$2}'
	@echo; echo "  experiments: $(sort $(basename $(notdir $(wildcard conf/exp/*.yaml))))"
	@echo "  overlays (WITH): $(sort $(basename $(notdir $(wildcard conf/with/*.yaml))))"
	@echo "  suites: $(sort $(basename $(notdir $(wildcard conf/suite/*.yaml))))"

$(READY): pyproject.toml $(CONSTRAINTS)
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --disable-pip-version-check --only-binary :all: -c $(CONSTRAINTS) -e '.[dev]'
	@touch $@

$(VENV)/.cluster: $(READY)
	$(PY) -m pip install --quiet --disable-pip-version-check --only-binary :all: -c $(CONSTRAINTS) -e '.[cluster]'
	@touch $@

setup: $(READY) ## the virtual environment, once

test: setup ## the fast tests
	$(PY) -m pytest -n 2 --dist loadfile $(ARGS)

test-slow: setup ## the slow tests, alone
	$(PY) -m pytest -m slow $(ARGS)

lint: setup ## style and types
	$(PY) -m ruff format --check .
	$(PY) -m ruff check .
	$(PY) -m mypy
	$(VENV)/bin/lint-imports

format: setup ## apply the style
	$(PY) -m ruff format .
	$(PY) -m ruff check --fix .

train: setup ## train an experiment: EXP=mini_all
	$(CLI) fit $(CONFIG) $(if $(RESUME),--resume "$(RESUME)") $(ARGS)

eval: setup ## evaluate a checkpoint: EXP=mini_all CKPT=runs/.../last.ckpt
	$(CLI) eval $(CONFIG) $(if $(CKPT),--ckpt_path="$(CKPT)") $(ARGS)

data-check: setup ## find what is wrong with an experiment's data: EXP=mini_all (ARGS="--images=100")
	$(CLI) data-check $(CONFIG) $(ARGS)

data-stats: setup ## describe an experiment's data on one page: EXP=mini_all
	$(CLI) data-stats $(CONFIG) $(ARGS)

own-data: setup ## write the experiment of a folder of your own data: PATH=photos NAME=mine
	$(call needs,FOLDER,PATH=folder with images and annotations)$(CLI) own-data "$(FOLDER)" $(if $(NAME),--name "$(NAME)") $(ARGS)

plan: setup ## memory, days, disk and cores of a run, without GPU or data: EXP=r50_all GPUS=8 GPU=h100-80
	$(CLI) plan $(CONFIG) $(if $(GPUS),--gpus $(GPUS)) $(if $(GPU),--gpu $(GPU)) $(ARGS)

ablation: setup $(if $(CLUSTER),$(VENV)/.cluster) ## run a suite of experiments; goes on where it was stopped: SUITE=scaling_mini SEEDS=3
	$(if $(WITH)$(ON),$(error WITH and ON stand in the rows of conf/suite/$(SUITE).yaml))$(CLI) ablation --suite $(SUITE) --seeds $(SEEDS) --runs "$(RUNS)" \
	  $(if $(PARALLEL),--parallel $(PARALLEL)) $(if $(CLUSTER),--cluster $(CLUSTER)) $(if $(DRY),--dry --machines $(or $(MACHINES),1)) \
	  $(if $(STRATEGY),--config=conf/strategy/$(STRATEGY).yaml) $(if $(DATA),--data.root="$(DATA)") $(ARGS)

report: setup ## tables, curves and pictures of a suite as one page: SUITE=scaling_mini (OUT=docs/scaling_mini)
	$(CLI) report --suite $(SUITE) --runs "$(RUNS)" $(if $(OUT),--out "$(OUT)") $(ARGS)

replay: setup ## run a step again that was not finite: FILE=runs/.../replay/step-....pt (ARGS=--pdb)
	$(call needs,FILE,a file that a run with a loss that was not finite has left)$(CLI) replay "$(FILE)" $(ARGS)

score: setup ## score result files of any model: TASK=panoptic GT=... PRED=... (ARGS="--help" for more)
	$(call needs,TASK,semantic$(comma) panoptic or instance)$(call needs,GT,the ground truth)$(call needs,PRED,the predictions)$(CLI) score --task $(TASK) --gt "$(GT)" --pred "$(PRED)" $(ARGS)

embed: setup ## fill the cache of text embeddings, for every vocabulary: EXP=r50_all
	$(CLI) embed $(CONFIG) --vocabularies $(wildcard data_modules/vocabularies/*.json) $(ARGS)

export: setup ## make one file that predicts of a checkpoint: CKPT=runs/.../best.ckpt (ARGS="--help" for more)
	$(call needs,CKPT,the checkpoint to export)$(CLI) export "$(CKPT)" $(if $(OUT),--out "$(OUT)") $(ARGS)

predict: setup ## segment images of your own: CKPT=runs/.../best.ckpt IMAGES=photos OUT=predictions (ARGS="--dataset=coco")
	$(call needs,CKPT,a checkpoint or exported model)$(call needs,IMAGES,folders and files)$(CLI) predict --model "$(CKPT)" --images $(IMAGES) --out "$(or $(OUT),predictions)" $(ARGS)

demo: setup ## a page to try one model, or to compare two: CKPT=runs/.../best.ckpt, CKPT="a.ckpt b.ckpt"
	$(call needs,CKPT,a checkpoint or exported model; two to compare)$(PY) -m pip install --quiet --disable-pip-version-check --only-binary :all: -c $(CONSTRAINTS) -e '.[demo]'
	$(CLI) demo $(CKPT) $(if $(DATA),--data "$(DATA)") $(ARGS)

docs: setup ## the documentation as a site: build/site
	$(PY) -m pip install --quiet --disable-pip-version-check --only-binary :all: -c $(CONSTRAINTS) -e '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build --strict $(ARGS)

tensorboard: setup ## look at all runs
	$(VENV)/bin/tensorboard --logdir "$(RUNS)" --samples_per_plugin images=50 $(ARGS)

clean: ## remove the virtual environment and caches; runs and data stay
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
