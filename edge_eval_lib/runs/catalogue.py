"""The grid of a study: every run, how many GPUs it needs, and the runs that write reports."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from edge_eval_lib.artefacts import completion
from edge_eval_lib.artefacts.place import Key, place, read_failure
from edge_eval_lib.artefacts.source import kept_code, notebook_source
from edge_eval_lib.paths import outputs_root, project_root
from edge_eval_lib.study import EXPERIMENT, Run, Study, find_beside, hash_of

REPORTS = ("synthesis", "paper")  # stages whose report make all keeps up to date
PAGES = (EXPERIMENT, "planner")  # whose page stands beside the study's report
UNMEASURED = (*REPORTS, *PAGES)  # that need no device to themselves


def runs(study: Study) -> list[Run]:
    """Return every run of a study's grid, with the GPUs that it needs."""
    from edge_eval_lib.economics import fit

    fits = fit.fits(study)
    return [replace(run, gpus=fit.devices_needed(fits, run)) for run in study.runs()]


def all_runs(study: Study) -> list[Run]:
    """Return the runs of the grid, then those that write the reports."""
    return [*study.runs(), *(find_run(study, *key) for key in final_runs(study))]


def final_runs(study: Study) -> list[Key]:
    """Return the runs that write reports and whose notebook is there, in their order."""
    keys = [*experiment(study), *((stage, stage) for stage in REPORTS)]
    return [key for key in keys if notebook_source(*key).is_file()]


def experiment(study: Study) -> list[Key]:
    """Return the run of the notebook that tells the study's experiment, if it has one."""
    return [(EXPERIMENT, study.notebook)] if study.notebook else []


def find_run(study: Study, stage: str, name: str, gpus: int | None = None) -> Run:
    """Return the grid's run of that name, or one that writes a page; UserError if there is none.

    `gpus` is what it needs, where that is known already.
    """
    if stage not in UNMEASURED:
        run = study.run(stage, name)
        if gpus is None:
            gpus = next(r.gpus for r in runs(study) if (r.stage, r.name) == (stage, name))
        return replace(run, gpus=gpus)
    if stage == "planner":
        return Run(stage, name, {}, {"stage": stage})
    needs: tuple[Key, ...] = ()
    if stage in ("synthesis", EXPERIMENT):
        needs = tuple((run.stage, run.name) for run in study.runs())
        needs += tuple(experiment(study)) if stage == "synthesis" else ()
        content = {
            "study": study.model_dump(),
            "prices": find_beside(study.path, "prices.yaml").read_text(encoding="utf-8"),
            "failures": _failures(study, needs),
        }
        if kept := kept_code(study):  # the report says so
            content["kept"] = kept
    else:
        published = (project_root() / "params" / "published").glob("*")
        beside = (outputs_root() / "embedded" / "settings" / "adapt").glob("*.json")  # shown too
        content = {"figures": _content_hash([*published, *beside])}
    # Tables are cheap: any edit of the library makes them again, and never a measured run.
    library = project_root() / "edge_eval_lib"
    code = [*library.rglob("*.py"), *(library / "templates").rglob("*")]
    code.append(notebook_source(stage, name))
    return Run(stage, name, {}, {"stage": stage, **content, "code": _content_hash(code)}, needs)


def _failures(study: Study, keys: Iterable[Key]) -> dict[str, str]:
    """Why runs failed that are not done, for the report."""
    reasons = {}
    for key in keys:
        at = place(study, *key)
        failure = None if at.settings.is_file() or at.stage == "score" else read_failure(at)
        if failure:
            reasons["/".join(key)] = failure["reason"]
    return reasons


def _content_hash(files: Iterable[Path]) -> str:
    """Identify the content of the files that exist, in any order."""
    return hash_of(sorted(completion.sha256(file) for file in files if file.is_file()))
