# The grid of one study as Snakemake sees it. Paths are relative to the study's outputs.
#
#   snakemake --profile profiles/local --directory outputs/embedded --config study=embedded
#
# `make all` writes the settings files and calls it (edge_eval_lib/grid.py). A run is made again
# if its settings file or a notebook it needs is newer than its own notebook.
import shlex
import sys

from edge_eval_lib import grid, runner
from edge_eval_lib.study import load_study, project_root

study = load_study(config["study"], config.get("repetitions"))
everything = config.get("everything", True)  # False: score and report on the runs that there are
if workflow.exec_mode == workflow.exec_mode.DEFAULT:  # not in a job on another machine
    grid.show_progress(study)

NEEDS = {(run.stage, run.name): run.needs for run in study.runs()}
LIBRARY = project_root() / "edge_eval_lib"
# What the report is made from beside the runs: a change makes the report again, and no run.
REPORT_CODE = [
    *(LIBRARY / f"{m}.py" for m in ("synthesis", "tables", "figures", "report", "metrics")),
    *(LIBRARY / f"{m}.py" for m in ("uncertainty", "frontier", "published", "claims")),
    *(LIBRARY / "economics").glob("*.py"),
    *(LIBRARY / "templates").glob("*"),
]
RUN = (
    f"exec {shlex.quote(sys.executable)} -m edge_eval_lib run {shlex.quote(str(study.path))} "
    f"--repetitions {study.repetitions} "
)


def needed(stage):
    """The notebooks that a run needs, by the run's wildcards."""
    return lambda wildcards: [
        f"runs/{of}/{name}.ipynb" for of, name in NEEDS[stage, wildcards.name]
    ]


# Serving starts when everything is prepared, in the random order that the study's seed draws.
PREPARATION = 1
ORDER = study.serving_order


rule all:
    input:
        grid.targets(study, everything),


if everything:

    rule preflight:
        input:
            "settings/preflight/preflight.json",
        output:
            "runs/preflight/preflight.ipynb",
        priority: PREPARATION + 1  # first of all; nothing depends on it (ancient() would hide other changes)
        resources:
            machine=1,
        shell:
            RUN + "preflight preflight"

    rule adapt:
        input:
            "settings/adapt/{name}.json",
        output:
            "runs/adapt/{name}.ipynb",
        priority: PREPARATION
        resources:
            machine=1,
        shell:
            RUN + "adapt {wildcards.name}"

    rule compress:
        input:
            "settings/compress/{name}.json",
            needed("compress"),
        output:
            "runs/compress/{name}.ipynb",
        priority: PREPARATION
        resources:
            machine=1,
        shell:
            RUN + "compress {wildcards.name}"

    rule serve:
        input:
            "settings/serve/{name}.json",
            needed("serve"),
        output:
            "runs/serve/{name}.ipynb",
        priority: lambda wildcards: -ORDER[wildcards.name]
        resources:
            machine=1,
        shell:
            RUN + "serve {wildcards.name}"


rule score:
    input:
        "settings/score/score.json",
        (
            [f"runs/{stage}/{name}.ipynb" for stage, name in NEEDS["score", "score"]]
            if everything
            else grid.served_notebooks(study)
        ),
    output:
        "runs/score/score.ipynb",
    resources:
        machine=1,
    shell:
        RUN + "score score"


rule synthesis:
    input:
        "settings/synthesis/synthesis.json",
        "runs/score/score.ipynb",
        [] if everything else "settings/failures.json",
        runner.notebook_source("synthesis"),
        REPORT_CODE,
    output:
        "runs/synthesis/synthesis.ipynb",
    resources:
        machine=1,
    shell:
        RUN + "synthesis synthesis"


if runner.notebook_source("paper").is_file():

    rule paper:
        input:
            runner.notebook_source("paper"),
            (project_root() / "params" / "published").glob("*"),
            REPORT_CODE,
        output:
            str(runner.place(study, "paper", "paper").notebook),
        resources:
            machine=1,
        shell:
            RUN + "paper paper"
