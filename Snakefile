# The grid of one study as Snakemake sees it. Paths are relative to the study's outputs.
#
#   snakemake --profile profiles/local --directory outputs/embedded --config study=embedded
#
# A run is done when its record is there, which is written when its notebook is published. `make all`
# puts away the records that hold no more and calls this (edge_eval_lib/runs/scheduler.py). Inputs are
# named where they are missing alone: they order the runs, and no date of a file makes one again.
import os
import shlex
import sys
from urllib.parse import unquote

from edge_eval_lib.artefacts import completion, place
from edge_eval_lib.runs import catalogue
from edge_eval_lib.study import load_study

study = load_study(unquote(str(config["study"])), config.get("repetitions"))
everything = config.get("everything", True)  # False: score and report on the runs that there are
if workflow.exec_mode == workflow.exec_mode.DEFAULT:  # not in a job on another machine
    from edge_eval_lib.runs.progress import tell_progress

    tell_progress()

RUNS = {(run.stage, run.name): run for run in catalogue.runs(study)}
COLLECTED = [key for key in RUNS if key[0] in ("score", "harness")]
if not everything:
    RUNS = {key: run for key, run in RUNS.items() if key[0] == "score"}
    COLLECTED = list(RUNS)
EXPERIMENT = catalogue.experiment(study) if everything else []
# What writes a page, and what it waits for. The paper's needs nothing of these; it is made beside
# scores and report, when nothing is measured any more.
MEASURED = [key for key in RUNS if key[0] not in completion.COLLECTING]
NEEDS = {"experiment": COLLECTED, "synthesis": [*COLLECTED, *EXPERIMENT], "paper": MEASURED}


def word(text):
    """A word of a shell command, whatever is in it; Snakemake fills in what stands in braces."""
    return shlex.quote(str(text)).replace("{", "{{").replace("}", "}}")


def settings(keys):
    return [place.record(study, *key) for key in keys]


def missing(stage):
    """The runs that a run needs and that are not there, by its wildcards."""

    def files(wildcards):
        needs = NEEDS[stage] if stage in NEEDS else RUNS[stage, wildcards.name].needs
        wanted = settings(needs) if everything or stage in NEEDS else []
        return [file for file in wanted if not os.path.exists(file)]

    return files


# Serving starts when everything is prepared, in the random order that the study's seed draws; the
# harness follows all that is measured.
ORDER = study.serving_order
PRIORITY = {"preflight": 2, "adapt": 1, "compress": 1, "harness": -len(ORDER)}


def priority(stage):
    if stage == "serve":
        return lambda wildcards: -ORDER[wildcards.name]
    return PRIORITY.get(stage, 0)


def gpus(stage):
    if stage == "paper":
        return 0
    return lambda wildcards: 1 if stage in NEEDS else RUNS[stage, wildcards.name].gpus


# What the loop below leaves in a variable is its last stage by the time that a job runs.
RUN = (
    f"exec {word(sys.executable)} -m edge_eval_lib run {word(study.path)} {{rule}} "
    f"{{wildcards.name}} --repetitions {study.repetitions} --gpus {{resources.machine}}"
)


rule all:
    input:
        settings([*RUNS, *EXPERIMENT, ("synthesis", "synthesis")]),


for stage in [*dict.fromkeys(stage for stage, _ in RUNS), *NEEDS]:

    rule:
        name:
            stage
        input:
            missing(stage),
        output:
            place.record(study, stage, "{name}"),
        priority: priority(stage)
        resources:
            machine=gpus(stage),
        shell:
            RUN
