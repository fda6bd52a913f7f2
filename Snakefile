# The grid of one study as Snakemake sees it. Paths are relative to the study's outputs.
#
#   snakemake --profile profiles/local --directory outputs/embedded --config study=embedded
#
# A run is done when its record is there, which is written when its notebook is published. `make all`
# puts away the records that hold no more and calls this (edge_eval_lib/runs/scheduler.py). Inputs are named
# where they are missing alone: they order the runs, and no date of a file makes one again.
import os
import shlex
import sys
from urllib.parse import unquote

from edge_eval_lib.economics import fit as memory_fit
from edge_eval_lib.runs import scheduler as grid
from edge_eval_lib.study import load_study

study = load_study(unquote(str(config["study"])), config.get("repetitions"))
everything = config.get("everything", True)  # False: score and report on the runs that there are
if workflow.exec_mode == workflow.exec_mode.DEFAULT:  # not in a job on another machine
    grid.show_progress(study)

RUNS = {(run.stage, run.name): run for run in study.runs()}
HARNESS = [f"settings/{stage}/{name}.json" for stage, name in RUNS if stage == "harness"]
FITS = memory_fit.fits(study)


def word(text):
    """A word of a shell command, whatever is in it; Snakemake fills in what stands in braces."""
    return shlex.quote(str(text)).replace("{", "{{").replace("}", "}}")


RUN = (
    f"exec {word(sys.executable)} -m edge_eval_lib run {word(study.path)} "
    f"--repetitions {study.repetitions} "
)


def devices(stage):
    """How many GPUs a run needs, by the run's wildcards."""
    return lambda wildcards: memory_fit.devices_needed(FITS, RUNS[stage, wildcards.name])


def needed(stage):
    """The runs that a run needs, by the run's wildcards."""
    return lambda wildcards: missing(
        f"settings/{of}/{name}.json" for of, name in RUNS[stage, wildcards.name].needs
    )


def missing(files):
    return [file for file in files if not os.path.exists(file)]


# Serving starts when everything is prepared, in the random order that the study's seed draws.
PREPARATION = 1
ORDER = study.serving_order


rule all:
    input:
        grid.targets(study, everything),


if everything:

    rule preflight:
        output:
            "settings/preflight/preflight.json",
        priority: PREPARATION + 1  # first; nothing needs it (ancient() would hide other changes)
        resources:
            machine=1,
        shell:
            RUN + "preflight preflight"

    rule adapt:
        output:
            "settings/adapt/{name}.json",
        priority: PREPARATION
        resources:
            machine=devices("adapt"),
        shell:
            RUN + "adapt {wildcards.name}"

    rule compress:
        input:
            needed("compress"),
        output:
            "settings/compress/{name}.json",
        priority: PREPARATION
        resources:
            machine=1,
        shell:
            RUN + "compress {wildcards.name}"

    rule serve:
        input:
            needed("serve"),
        output:
            "settings/serve/{name}.json",
        priority: lambda wildcards: -ORDER[wildcards.name]
        resources:
            machine=devices("serve"),
        shell:
            RUN + "serve {wildcards.name}"

    rule harness:
        input:
            needed("harness"),
        output:
            "settings/harness/{name}.json",
        priority: -len(ORDER)  # after all that is measured
        resources:
            machine=devices("harness"),
        shell:
            RUN + "harness {wildcards.name}"


rule score:
    input:
        (
            missing(f"settings/{of}/{name}.json" for of, name in RUNS["score", "score"].needs)
            if everything
            else []
        ),
    output:
        "settings/score/score.json",
    resources:
        machine=1,
    shell:
        RUN + "score score"


rule synthesis:
    input:
        missing(["settings/score/score.json", *(HARNESS if everything else [])]),
    output:
        "settings/synthesis/synthesis.json",
    resources:
        machine=1,
    shell:
        RUN + "synthesis synthesis"
