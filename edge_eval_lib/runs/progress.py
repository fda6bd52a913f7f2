"""How far Snakemake is, for the person who waits for it."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edge_eval_lib import scraps
from edge_eval_lib.artefacts.place import Key, Place, place, read_failure
from edge_eval_lib.results.columns import DOUBTFUL
from edge_eval_lib.results.observations import checks_of_run
from edge_eval_lib.runs import estimate
from edge_eval_lib.runs.finished import duration, finished_runs
from edge_eval_lib.study import Study


class Progress(logging.Handler):
    """Shows how far Snakemake is: run k of n, its stage and name, the time left."""

    def __init__(self, study: Study, say: Callable[..., None] = print) -> None:
        super().__init__(logging.INFO)
        runs = study.runs()
        costs = estimate.costs(study, runs, finished_runs(study, runs))
        self.study, self.say = study, say
        self.seconds = {run: cost.seconds for run, cost in costs.items()}
        self.total = self.started = 0
        self.failed_before: dict[Key, dict[str, Any] | None] = {}
        self.began: dict[int, tuple[Key, float]] = {}
        self.took_s = self.expected_s = 0.0

    def emit(self, record: Any) -> None:
        """Show what an event of Snakemake's means."""
        event = getattr(getattr(record, "event", None), "value", None)
        if event == "run_info":
            self.total = record.stats["total"] - record.stats.get("all", 0)
        elif event == "job_info" and record.rule_name != "all":
            self._start(record.jobid, _run_of(record.output[0]))
        elif event == "job_finished":
            self._finish(record.job_id)
        elif event == "job_error":
            self._fail(_run_of(record.output[0]))

    def _start(self, job: int, run: Key) -> None:
        self.started += 1
        self.began[job] = (run, time.monotonic())
        self.failed_before[run] = read_failure(place(self.study, *run))
        expected = duration(self._left_s())
        stage, name = run
        named = stage if name == stage else f"{stage}  {name}"
        self.say(
            f"run {self.started} of {self.total}  {named}  (about {expected} left)", flush=True
        )

    def _left_s(self) -> float:
        """Estimate the seconds of what is left, corrected by how well finished runs met them."""
        expected = sum(self.seconds.values())
        if self.expected_s:
            expected *= self.took_s / self.expected_s
        return expected

    def _finish(self, job: int) -> None:
        if job not in self.began:
            return
        run, began = self.began.pop(job)
        self.expected_s += self.seconds.pop(run, 0.0)
        self.took_s += time.monotonic() - began
        disturbed = disturbance(place(self.study, *run))
        if disturbed:
            self.say(f"{run[0]}  {run[1]}: disturbed: {disturbed}", flush=True)

    def _fail(self, run: Key) -> None:
        self.seconds.pop(run, None)
        failure = read_failure(place(self.study, *run))
        if failure and failure != self.failed_before.get(run):  # else it was interrupted
            self.say(f"FAILED  {run[0]}  {run[1]}: {failure['reason']}", flush=True)


def _run_of(settings: str) -> Key:
    path = Path(str(settings))
    return path.parent.name, path.stem


def show_progress(study: Study) -> None:
    """Attach `Progress` to Snakemake's log; called by the Snakefile in the scheduling process."""
    from snakemake.logging import logger

    logger.addHandler(Progress(study))


def disturbance(at: Place) -> str | None:
    """Say in a phrase what other work did to a finished run's windows; None if nothing doubtful."""
    try:
        recorded = scraps.read_scraps(at.notebook)
    except (OSError, ValueError):
        return None
    judged = [c for c in checks_of_run(recorded) if c["name"] == "interference"]
    doubtful = [check for check in judged if check["verdict"] in DOUBTFUL]
    if not doubtful:
        return None
    worst = min(doubtful, key=lambda check: DOUBTFUL.index(check["verdict"]))
    more = len(doubtful) - 1
    others = {0: "", 1: ", and one more window"}.get(more, f", and {more} more windows")
    return f"{worst['detail']} in '{worst['window']}'{others}"
