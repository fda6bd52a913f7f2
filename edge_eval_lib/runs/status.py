"""Where a study is, seen from another terminal: done, running, stopped, failed or waiting."""

from __future__ import annotations

import time
from collections import Counter
from datetime import UTC, datetime

from edge_eval_lib.artefacts.place import Key, place, read_failure
from edge_eval_lib.runs import slurm, under_way
from edge_eval_lib.runs.finished import finished_runs
from edge_eval_lib.runs.problems import listed
from edge_eval_lib.runs.progress import about
from edge_eval_lib.runs.remaining import Remaining, expected_runs
from edge_eval_lib.study import STAGES, Study
from edge_eval_lib.units import duration


def status(study: Study) -> str:
    """Return how each run of a study stands, as text for a terminal.

    Done; running, since when and in which cell; stopped where its process is gone; failed, why and
    where; the job of a SLURM cluster; waiting, how many of which stage and about how long for all.
    Asked at any moment, it disturbs nothing.
    """
    runs = study.runs()
    finished = finished_runs(study, runs)
    at_work = under_way.make_at_work(study.directory)
    lines = [f"{study.name}: {len(finished)} of {len(runs)} runs are done."]
    if at_work:
        lines[0] += f" make is at work on it (process {at_work[0]}) since {_clock(at_work[1])}."
    report = study.directory / "report.html"
    lines += [f"Report: {report}"] if report.is_file() else []
    told: list[str] = []
    waiting: Counter[str] = Counter()
    since_s: dict[Key, float] = {}
    for run in runs:
        key = (run.stage, run.name)
        if key in finished:
            continue
        at = place(study, *key)
        begun, failure = under_way.read(at), read_failure(at)
        named = f"{run.stage}  {run.name}"
        if begun and begun.alive is not False:
            since_s[key] = max(0.0, time.time() - begun.begun_s)
            told.append(f"running  {named}  {_since(begun)}")
        elif begun:
            told.append(
                f"stopped  {named}: its process ended without a word; make all makes it again"
            )
        elif failure:
            where = f" ({at.failed_notebook})" if at.failed_notebook.is_file() else ""
            when = _when(failure.get("at"))
            told.append(f"failed   {named}{when}: {failure['reason']}{where}")
        elif job := slurm.standing(study.directory, *key):
            told.append(f"queued   {named}: {job}")
        else:
            waiting[run.stage] += 1
    lines += told
    if waiting:
        counts = [f"{waiting[stage]} {stage}" for stage in STAGES if waiting[stage]]
        lines.append(f"waiting  {listed(counts)}")
    left = [key for run in runs if (key := (run.stage, run.name)) not in finished]
    if left:
        left_s = Remaining(expected_runs(study, left, finished)).left_s(since_s)
        again = "" if at_work or since_s else f" `make all STUDY={study.argument}` does it."
        lines.append(f"{about(left_s).capitalize()} of work are left.{again}")
    return "\n".join(lines)


def _since(begun: under_way.UnderWay) -> str:
    """Say since when a run is made, in which cell it is and, if not here, where."""
    took = duration(max(0.0, time.time() - begun.begun_s))
    cell = f", cell {begun.completed + 1} of {begun.cells}" if begun.cells else ""
    where = f" on {begun.host}" if begun.alive is None else ""
    return f"since {_clock(begun.begun_s)} ({took}{cell}){where}"


def _clock(at_s: float) -> str:
    """Say a time of day; with its date, if that is not today's."""
    then = datetime.fromtimestamp(at_s, UTC).astimezone()
    today = datetime.now(UTC).astimezone().date() == then.date()
    return then.strftime("%H:%M:%S" if today else "%Y-%m-%d %H:%M")


def _when(at: str | None) -> str:
    return f" at {_clock(datetime.fromisoformat(at).timestamp())}" if at else ""
