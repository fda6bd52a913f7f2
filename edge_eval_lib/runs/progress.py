"""How far a study is, for the person who waits for it: a bar in a terminal, else plain lines.

Snakemake, which makes the runs, is a process of its own: it says what it begins and ends on lines
that `make all` reads (`Teller`). What a run measured is said when it has ended.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator
from typing import Any, Self

from edge_eval_lib import scraps
from edge_eval_lib.artefacts.completion import COLLECTING
from edge_eval_lib.artefacts.place import Key, place, read_failure
from edge_eval_lib.runs import measured, under_way
from edge_eval_lib.runs.catalogue import UNMEASURED
from edge_eval_lib.runs.finished import read_finished
from edge_eval_lib.runs.remaining import OVERHEAD_S, Remaining, expected_runs
from edge_eval_lib.study import Study
from edge_eval_lib.units import duration

TOLD = "edge-eval-run: "  # begins a line of the scheduling process that is meant for us
REFRESH_S = 1.0  # of a terminal's bar; its estimate is made every `ESTIMATE_S`
ESTIMATE_S = 5.0
SILENT_S = 60.0  # after so long without a line, one says that the run is still at work
SILENT_SHARE = 0.2  # of a run that takes hours: after that part of what it has taken


class Progress:
    """Shows how far a study's runs are; every line of `make all` goes through `say`.

    Used as a context, a thread of its own shows life while a run takes long.
    """

    def __init__(self, study: Study, at_once: int = 1, keys: Collection[Key] = ()) -> None:
        self.study = study
        self.remaining = Remaining({}, at_once)
        self.begun: list[Key] = []
        self.under_way: dict[Key, float] = {}
        self._failed_before: dict[Key, dict[str, Any] | None] = {}
        self._started = self._spoke = time.monotonic()
        self._lock, self._ended = threading.RLock(), threading.Event()
        self._bar = Bar() if in_terminal() else None
        self._left: tuple[float, float] = (0.0, -ESTIMATE_S)  # seconds, and when that was computed
        self.expect(keys)

    def __enter__(self) -> Self:
        threading.Thread(target=self._show_life, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        with self._lock:
            if self._bar:
                self._bar.close()

    def say(self, line: str) -> None:
        """Print a line, above the bar where there is one."""
        with self._lock:
            self._spoke = time.monotonic()
            if self._bar:
                self._bar.say(line)
            else:
                print(line, flush=True)

    # --- what happens ---------------------------------------------------------------------------

    def expect(self, keys: Collection[Key]) -> None:
        """Count on these runs; those that were made stay in the count."""
        with self._lock:
            new = [key for key in keys if key not in self.remaining.runs]
            if not new:
                return
            self.remaining.runs = {**self.remaining.runs, **expected_runs(self.study, new)}

    def hear(self, line: str) -> None:
        """Take a line of the scheduling process: what it tells us, or what a run says."""
        if not line.startswith(TOLD):
            if line.strip():
                self.say(line)
            return
        event, *key = json.loads(line.removeprefix(TOLD))
        {"begin": self.begin, "end": self.end, "fail": self.fail}[event]((key[0], key[1]))

    def begin(self, run: Key) -> None:
        """Show that a run is begun."""
        with self._lock:
            self.expect([run])
            self.begun += [run] if run not in self.begun else []
            self.under_way[run] = time.monotonic()
            self._failed_before[run] = read_failure(place(self.study, *run))
            if not self._bar:
                self.say(f"{self._position(run)}  {_named(run)}  ({self._times()})")
            self._refresh()

    def end(self, run: Key) -> None:
        """Show that a run has ended well, and what it measured."""
        with self._lock:
            began = self.under_way.pop(run, None)
            if began is None:
                return
            notebook = place(self.study, *run).notebook
            finished, took_s = read_finished(notebook), time.monotonic() - began
            if finished:  # its own time: it may have waited for a device, or in a queue
                took_s = finished.seconds + OVERHEAD_S
            self.remaining.measured[run] = took_s
            try:
                recorded = scraps.read_scraps(notebook)
            except (OSError, ValueError):
                recorded = {}
            said = measured.phrase(run[0], recorded)
            what = f"{_named(run)}  in {duration(took_s)}{f': {said}' if said else ''}"
            self.say(f"{self._position(run)}  {what}" if self._bar else f"  done  {what}")
            if disturbed := measured.disturbance(recorded):
                self.say(f"{run[0]}  {run[1]}: disturbed: {disturbed}")
            self._left = (0.0, -ESTIMATE_S)
            self._refresh()

    def fail(self, run: Key) -> None:
        """Show that a run failed, and why, unless it was interrupted."""
        with self._lock:
            self.under_way.pop(run, None)
            self._leave_out(run)
            failure = read_failure(place(self.study, *run))
            if failure and failure != self._failed_before.get(run):
                self.say(f"FAILED  {run[0]}  {run[1]}: {failure['reason']}")

    def _leave_out(self, failed: Key) -> None:
        """Wait no longer for a run that failed, nor for what is measured of it alone."""
        blocked = {failed}
        for run in self.study.runs():
            if run.stage not in COLLECTING and not blocked.isdisjoint(run.needs):
                blocked.add((run.stage, run.name))
        runs = self.remaining.runs.items()
        self.remaining.runs = {key: run for key, run in runs if key not in blocked}

    # --- what is shown --------------------------------------------------------------------------

    def _position(self, run: Key) -> str:
        """Say `run 3 of 29`; a report is no run of the grid."""
        if run[0] in UNMEASURED:
            return "report"
        numbered = [key for key in self.begun if key[0] not in UNMEASURED]
        total = sum(key[0] not in UNMEASURED for key in {*self.remaining.runs, *self.begun})
        return f"run {numbered.index(run) + 1} of {total}"

    def _left_s(self) -> float:
        """Estimate the seconds that are left: the runs under way count from when they had begun."""
        now = time.monotonic()
        seconds, at = self._left
        if now - at >= ESTIMATE_S:
            since = {}
            for run in self.under_way:
                begun = under_way.read(place(self.study, *run))
                since[run] = max(0.0, time.time() - begun.begun_s) if begun else 0.0
            seconds = self.remaining.left_s(since)
            self._left = (seconds, now)
        return seconds

    def _times(self) -> str:
        gone_s = time.monotonic() - self._started
        gone = f"{duration(gone_s)} gone, " if gone_s >= 10 else ""
        return f"{gone}{about(self._left_s())} left"

    def _show_life(self) -> None:
        while not self._ended.wait(REFRESH_S if self._bar else min(ESTIMATE_S, SILENT_S / 4)):
            with self._lock, contextlib.suppress(OSError, ValueError):
                self._refresh()

    def _refresh(self) -> None:
        """Redraw the bar or, in plain lines, say once a while that a run is still at work."""
        now = time.monotonic()
        if not self.under_way or self._ended.is_set():
            return
        run, began = next(iter(self.under_way.items()))
        more = len(self.under_way) - 1
        others = f" and {more} more" if more else ""
        if self._bar:
            gone_s, left_s = now - self._started, self._left_s()
            share = gone_s / max(gone_s + left_s, 1.0)
            what = f"{_named(run)}{others}  {self._where(run, began)}"
            self._bar.show(self._position(run), what, share, self._times())
        elif now - self._spoke >= max(SILENT_S, SILENT_SHARE * (now - began)):
            where = self._where(run, began)
            self.say(f"  still  {_named(run)}{others}  {where}  ({self._times()})")

    def _where(self, run: Key, began: float) -> str:
        """Say how long a run has taken and in which cell it is, or that it waits."""
        begun = under_way.read(place(self.study, *run))
        if begun is None and time.monotonic() - began > 3 * OVERHEAD_S:
            return "waits for its turn"
        since_s = time.time() - begun.begun_s if begun else time.monotonic() - began
        cell = f", cell {begun.completed + 1} of {begun.cells}" if begun and begun.cells else ""
        return f"{duration(max(0.0, since_s))}{cell}"


class Bar:
    """A line at the foot of a terminal; what is said goes above it."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn
        from rich.table import Column

        shortened = Column(no_wrap=True, overflow="ellipsis", ratio=1)
        self._console = Console(highlight=False, markup=False, emoji=False, soft_wrap=True)
        self._progress = Progress(
            TextColumn("{task.fields[position]}", markup=False, table_column=Column(no_wrap=True)),
            TextColumn("{task.description}", markup=False, table_column=shortened),
            BarColumn(bar_width=12),
            TextColumn("{task.fields[times]}", markup=False, table_column=Column(no_wrap=True)),
            console=self._console,
            auto_refresh=False,  # ten times a second would take a core's time from what is measured
            expand=True,
            transient=True,
        )
        self._task: Any = None

    def show(self, position: str, what: str, share: float, times: str) -> None:
        """Draw the line."""
        if self._task is None:
            self._task = self._progress.add_task("", total=1.0, position="", times="")
            self._progress.start()
        self._progress.update(
            self._task, completed=share, description=what, position=position, times=times
        )
        self._progress.refresh()

    def say(self, line: str) -> None:
        """Print a line above."""
        self._console.print(line)

    def close(self) -> None:
        """Leave the terminal as it was."""
        if self._task is not None:
            self._progress.stop()


def in_terminal() -> bool:
    """Decide whether a line can be drawn over again where this process prints."""
    return sys.stdout.isatty() and os.environ.get("TERM", "dumb") != "dumb"


def about(seconds: float) -> str:
    """Say an estimate of what is left, as no more than it is: `about 9 min`, `less than 20 s`."""
    if seconds < 20:
        return "less than 20 s"
    if seconds < 90:
        return f"about {10 * round(seconds / 10)} s"
    return f"about {duration(seconds)}"


def _named(run: Key) -> str:
    stage, name = run
    return stage if name == stage else f"{stage}  {name}"


@contextlib.contextmanager
def showing(study: Study, run: Key) -> Iterator[None]:
    """Show in a terminal that one run is being made, which is nobody's grid."""
    if not in_terminal():
        yield
        return
    with Progress(study, keys=[run]) as shown:
        shown.begin(run)
        yield
        shown.end(run)


# --- in the scheduling process ----------------------------------------------------------------


class Teller(logging.Handler):
    """Tells `make all` what Snakemake begins and ends, a line an event."""

    def __init__(self, say: Callable[..., None] = print) -> None:
        super().__init__(logging.INFO)
        self.say, self.runs = say, dict[int, Key]()

    def emit(self, record: Any) -> None:
        """Tell what an event of Snakemake's means."""
        event = getattr(getattr(record, "event", None), "value", None)
        if event == "job_info" and record.rule_name != "all":
            self.runs[record.jobid] = _run_of(record.output[0])
            self._tell("begin", self.runs[record.jobid])
        elif event == "job_finished" and record.job_id in self.runs:
            self._tell("end", self.runs[record.job_id])
        elif event == "job_error":
            self._tell("fail", _run_of(record.output[0]))

    def _tell(self, event: str, run: Key) -> None:
        self.say(f"{TOLD}{json.dumps([event, *run])}", flush=True)


def _run_of(settings: str) -> Key:
    stage, name = str(settings).split("/")[-2:]
    return stage, name.removesuffix(".json")


def tell_progress() -> None:
    """Attach `Teller` to Snakemake's log; called by the Snakefile in the scheduling process."""
    from snakemake.logging import logger

    logger.addHandler(Teller())
