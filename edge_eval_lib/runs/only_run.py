"""A study that is one run, an ablation or a power sweep: its notebook is its report."""

from __future__ import annotations

from edge_eval_lib.artefacts import completion
from edge_eval_lib.artefacts.place import place
from edge_eval_lib.errors import UserError
from edge_eval_lib.runs import runner
from edge_eval_lib.runs.problems import power_sweep_refusal
from edge_eval_lib.runs.progress import Progress
from edge_eval_lib.study import Study


def make(study: Study, stage: str) -> None:
    """Make a study's only run unless it is done; its notebook writes tables, figure and report."""
    run = study.run(stage, stage)
    if completion.survey(study, [run]):
        if refused := power_sweep_refusal(study):
            raise UserError(refused)
        print(f"{study.name}: one run, of {study.repetitions} repetitions of everything in it")
        with Progress(study) as progress:
            progress.begin((run.stage, run.name))
            runner.run_one(study, run.stage, run.name)
            progress.end((run.stage, run.name))
    elif not (study.directory / "report.html").is_file():
        report(study, stage)


def report(study: Study, stage: str) -> None:
    """Write the tables, figure and report of its only run again, from its raw data and notebook."""
    from edge_eval_lib.results import ablation, power_sweep
    from edge_eval_lib.results.report import render

    notebook = place(study, stage, stage).notebook
    if not notebook.with_suffix(".runs.parquet").is_file():
        raise UserError(
            f"{study.name} was not run yet; run `make all STUDY={study.argument}` first."
        )
    write_results = {"ablation": ablation.write_results, "power_sweep": power_sweep.write_results}
    write_results[stage](completion.read_raw(notebook, "runs"), study.directory)
    render(notebook, study.directory / "report.html")
