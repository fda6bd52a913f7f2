# A short front to `python -m edge_eval_lib`. Everything runs in .venv, which is made once.
#
#   make all                         the embedded study, from nothing to outputs/embedded/report.html
#   make all STUDY=paper_t4          another study of params/, or STUDY=/path/to/mine.yaml
#   make all REPETITIONS=3           serve every variant three times, for intervals over runs
#   make all RERUN=serve             make a stage's runs again although nothing changed (or all)
#   make all PROFILE=NAME            schedule by another profile of profiles/
#   make compare RESULTS="a.json b.json"   side by side; also a study's name, or published

PYTHON ?= python3
STUDY ?= embedded
REPETITIONS ?=
RERUN ?=
PROFILE ?=
RESULTS ?=

BIN := .venv/bin
EDGE_EVAL := $(BIN)/python -m edge_eval_lib
REPEATED := $(if $(REPETITIONS),--repetitions '$(REPETITIONS)')

.PHONY: all setup plan status tables report paper compare test lint bench lab clean

all: .venv/.stamp
	@$(EDGE_EVAL) all '$(STUDY)' $(REPEATED) $(if $(RERUN),--rerun '$(RERUN)') \
		$(if $(PROFILE),--profile '$(PROFILE)')

setup: .venv/.stamp

.venv/.stamp: pyproject.toml constraints.txt
	@command -v '$(PYTHON)' >/dev/null || \
		{ echo "There is no $(PYTHON); install Python 3.11 or newer, or say make PYTHON=/path/to/python." >&2; exit 1; }
	@'$(PYTHON)' edge_eval_lib/bootstrap.py
	@touch $@

plan status tables report: .venv/.stamp
	@$(EDGE_EVAL) $(if $(filter tables,$@),report,$@) '$(STUDY)' $(REPEATED)

paper: .venv/.stamp
	@$(EDGE_EVAL) paper

compare: .venv/.stamp
	@$(EDGE_EVAL) compare $(or $(RESULTS),'$(STUDY)' published)

test: .venv/.stamp
	@$(BIN)/python -m pytest tests/unit tests/end_to_end

lint: .venv/.stamp
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/nbstripout --verify notebooks/*.ipynb

bench: .venv/.stamp
	@for script in tests/bench/bench_*.py; do $(BIN)/python $$script '$(STUDY)' || exit 1; done

lab: .venv/.stamp
	@$(BIN)/jupyter lab --notebook-dir notebooks

clean: .venv/.stamp
	@$(EDGE_EVAL) clean '$(STUDY)'
