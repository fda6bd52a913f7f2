"""The whole grid of a study: what is made again, and Snakemake, which schedules it.

A published run has a record (edge_eval_lib/artefacts/completion.py). This module puts away the
records of runs that are out of date or damaged; Snakemake makes the runs that have none. A run that
read what another one made is judged when that one is done: the same adapter leaves its weights as
they are. A notebook stays until a new one takes its place.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import orjson

from edge_eval_lib import redaction, scraps
from edge_eval_lib.artefacts import completion
from edge_eval_lib.artefacts.completion import COLLECTING
from edge_eval_lib.artefacts.place import (
    Key,
    Place,
    place,
    read_failure,
    write_atomically,
    write_failure,
)
from edge_eval_lib.errors import UserError, shown
from edge_eval_lib.paths import outputs_root, project_root
from edge_eval_lib.runs import plan, runner
from edge_eval_lib.study import STAGES, Run, Study, load_study

INTERRUPT_S = 10.0  # how long Snakemake may take to stop what it started
MOST_PASSES = 12  # a chain of runs is judged stage by stage, and each may find something damaged
FULL_DISK_BYTES = 1 << 20  # with less left, hardly anything can be written
MOST_TOLD = 20  # failures that are listed
SAY = print  # the only way to the terminal: Snakemake's own words go to its log file


class GridFailed(UserError):
    """Some runs failed; the message says which and why."""


def open_study(path_or_name: str, repetitions: int | None = None) -> Study:
    """The study with the repetitions that its outputs are to have.

    These are the given ones, else those asked for last time (so that what was repeated stays in
    the report), else the study file's own.
    """
    study = load_study(path_or_name, repetitions)
    if repetitions is None:
        made_by = _made_by(study)
        if made_by and made_by.get("repetitions"):
            study = study.with_repetitions(made_by["repetitions"])
    return study


def make_all(
    study: Study,
    repetitions: int | None = None,
    rerun: str | None = None,
    profile: str | None = None,
) -> None:
    """Execute what is missing or outdated, then score and synthesis; GridFailed if runs failed.

    `rerun` is a stage whose runs are made again although nothing changed, or `all`. A failed run
    stops only what needs it: the rest is scored and the report marks what is missing. A study
    with an ablation is that one run.
    """
    if study.ablation is not None:
        make_ablation(study, repetitions, rerun)
        return
    started = time.monotonic()
    find_profile(profile or "local")
    plan.require_possible(study)
    with _locked(study):
        _claim(study, repetitions)
        _clean_up(study)
        _forget(study, rerun)
        undone = _put_away(study)
        failed = _make(study, profile)
        failed |= _make_paper(study)
        left = completion.survey(study, _all_runs(study))
        _keep_wall_time(study, undone.keys() - left.keys(), time.monotonic() - started)
        if left:
            raise GridFailed(_what_failed(study, left, failed))
    SAY(f"{study.name}: all {len(study.runs())} runs are done. {_where(study)}")


def _all_runs(study: Study) -> list[Run]:
    """The runs of the grid, then those that write the reports."""
    return [*study.runs(), *(runner.find_run(study, stage, stage) for stage in _final_stages())]


def _make(study: Study, profile: str | None) -> dict[Key, str]:
    """Have every run made that is not done, but the paper's; what failed, and why.

    As often as it takes: whether a run is out of date may show only when what it needs is made,
    and what a run finds damaged is made again before it. At the end what there is is scored and
    reported, although something failed.
    """
    failed: dict[Key, str] = {}
    tried: list[Key] = []
    for _ in range(MOST_PASSES):
        undone = _put_away(study)
        todo = _possible(study, undone, failed)
        if not todo or todo == tried:  # made, and out of date at once: files change meanwhile
            break
        tried = todo
        failed |= _pass(study, profile, todo, everything=True)
    served = (study.directory / "runs" / "serve").glob("*.ipynb")
    todo = [key for key in _put_away(study) if key[0] in COLLECTING and key[0] != "paper"]
    if todo and any(served):
        for key in todo:
            failed.pop(key, None)  # tried once more, without what is missing
        failed |= _pass(study, profile, todo, everything=False)
    return failed


def _possible(study: Study, undone: Collection[Key], failed: Collection[Key]) -> list[Key]:
    """The runs that can be made now: they need nothing that failed.

    What collects figures waits while a finished run's needs are made: it may be out of date then.
    """
    runs = study.runs()
    settled = all(set(r.needs).isdisjoint(undone) for r in runs if (r.stage, r.name) not in undone)
    blocked = set(failed)
    todo = []
    for run in [*runs, *(run for run in _all_runs(study) if run.stage == "synthesis")]:
        key = (run.stage, run.name)
        if key in blocked or not blocked.isdisjoint(run.needs):
            blocked.add(key)
        elif key in undone and (settled or run.stage not in COLLECTING):
            todo.append(key)
    return todo


def _pass(study: Study, profile: str | None, todo: list[Key], everything: bool) -> dict[Key, str]:
    """Have Snakemake make the runs; those that failed, and why.

    A run is not blamed for what it needs: if that failed, or was found to be damaged.
    """
    before = {key: read_failure(place(study, *key)) for key in todo}
    code = _snakemake(study, profile, todo, everything)
    if code == 0:
        return {}
    runs = {(run.stage, run.name): run for run in _all_runs(study)}
    left = completion.survey(study, runs.values())
    blocked = left.keys() if everything else set()
    tried = [key for key in todo if key in left and blocked.isdisjoint(runs[key].needs)]
    failed, untold = {}, []
    for key in tried:
        at = place(study, *key)
        failure = read_failure(at)
        if failure and failure != before[key]:
            failed[key] = failure["reason"]
        elif at.running.is_dir():
            failed[key] = "Its process was killed before it could say why."
            shutil.rmtree(at.running, ignore_errors=True)
            _note_failure(at, failed[key])
        else:
            untold.append(key)
    if code > 0 or not failed:  # else Snakemake was killed, and these were not begun
        for key in untold:
            failed[key] = _why_stopped(study, code)
            _note_failure(place(study, *key), failed[key])
    return failed


def _note_failure(at: Place, reason: str) -> None:
    with contextlib.suppress(OSError):  # the disk may be full
        write_failure(at, reason)


def _why_stopped(study: Study, code: int) -> str:
    """Why Snakemake ended without a word about a run."""
    if shutil.disk_usage(study.directory).free < FULL_DISK_BYTES:
        return _no_space(study)
    if code < 0:
        return f"Snakemake, which schedules the runs, was killed by {signal.Signals(-code).name}."
    log = study.directory / "snakemake.log"
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    errors = [
        number for number, line in enumerate(lines) if re.search(r"Error\b|Exception\b", line)
    ]
    said = f": {' '.join(' '.join(lines[errors[-1] :][:2]).split())}" if errors else ""
    return f"Snakemake, which schedules the runs, ended with exit code {code}{said} (see {log})."


def _make_paper(study: Study) -> dict[Key, str]:
    """The paper's report, which no study owns, unless it is up to date; why it failed, if so."""
    key = ("paper", "paper")
    if "paper" not in _final_stages() or key not in _put_away(study):
        return {}
    SAY("paper  (the report on the published study, without measuring)", flush=True)
    at = place(study, *key)
    before = read_failure(at)
    command = [sys.executable, "-m", "edge_eval_lib", "run", str(study.path), *key]
    code = _supervised(command, subprocess.DEVNULL, dict(os.environ))
    if code == 0:
        return {}
    failure = read_failure(at)
    told = failure["reason"] if failure and failure != before else f"It ended with code {code}."
    return {key: told}


def make_ablation(study: Study, repetitions: int | None, rerun: str | None) -> None:
    """Run the study's ablation unless it is done; its notebook writes tables, figure and report."""
    with _locked(study):
        _claim(study, repetitions)
        run = study.run("ablation", "ablation")
        completion.adopt(study, run)
        if rerun in ("all", "ablation") or not plan.finished_runs(study, [run]):
            SAY(f"{study.name}: one run, of {study.repetitions} repetitions of every combination")
            runner.run_one(study, run.stage, run.name)
        elif not (study.directory / "report.html").is_file():
            _report_ablation(study)
    SAY(_where(study))


def _report_ablation(study: Study) -> None:
    from edge_eval_lib.lifecycle import ablation

    ablation.write_results(study, ablation.measured_runs(study))


def make_report(study: Study) -> None:
    """Tables, figures and report from the runs that there are."""
    if study.ablation is not None:
        _report_ablation(study)
        SAY(_where(study))
        return
    with _locked(study):
        _claim(study, None)
        runner.run_one(study, "synthesis", "synthesis")
    SAY(_where(study))


def make_paper() -> None:
    """The report on the published study, from the figures that come with the project."""
    runner.run_one(load_study("embedded"), "paper", "paper")  # which study does not matter to it
    from edge_eval_lib import paper

    SAY(paper.prose.findings_text(paper.build()).replace("**", ""))
    SAY(f"Report: {outputs_root() / 'paper' / 'report.html'}")


def _final_stages() -> list[str]:
    return [stage for stage in runner.UNMEASURED if runner.notebook_source(stage).is_file()]


def targets(study: Study, everything: bool) -> list[str]:
    """Settings files that Snakemake is to have made, below the study's outputs."""
    names = [("score", "score"), ("synthesis", "synthesis")]
    if everything:
        names = [*((run.stage, run.name) for run in study.runs()), *names]
    return [f"settings/{stage}/{name}.json" for stage, name in dict.fromkeys(names)]


# --- what is made again -----------------------------------------------------------------------


@contextlib.contextmanager
def _locked(study: Study) -> Iterator[None]:
    """One invocation a study at a time; UserError if another one is at work on it."""
    try:
        study.directory.mkdir(parents=True, exist_ok=True)
        file = (study.directory / ".lock").open("a+", encoding="utf-8")
    except OSError as error:
        raise UserError(f"{study.directory} cannot be written: {error.strerror}.") from error
    with file:
        if not runner.try_lock(file):
            file.seek(0)
            raise UserError(
                f"Another `make` is at work on {study.name} (process {file.read() or 'unknown'}); "
                "wait for it or stop it."
            )
        file.seek(0)
        file.truncate()
        file.write(str(os.getpid()))
        file.flush()
        try:
            yield
        except OSError as error:
            if error.errno == errno.ENOSPC:
                raise UserError(_no_space(study)) from error
            raise


def _no_space(study: Study) -> str:
    return f"There is no space left on the disk of {study.directory}."


def _made_by(study: Study) -> dict[str, Any] | None:
    try:
        return orjson.loads((study.directory / "study.json").read_bytes())
    except (FileNotFoundError, NotADirectoryError, orjson.JSONDecodeError):
        return None


def _claim(study: Study, repetitions: int | None) -> None:
    """Note which study file the outputs belong to; UserError if they belong to another one."""
    made_by = _made_by(study) or {}
    path, measured = str(study.path), study.with_repetitions(1).measured_hash
    known = {"path", "measured_hash"} <= made_by.keys()
    if known and made_by["path"] != path and made_by["measured_hash"] != measured:
        raise UserError(
            f"{study.directory} was made by {made_by['path']}, which measures something else than "
            f"{path}; give one of the two studies another name."
        )
    kept = repetitions or made_by.get("repetitions")
    content = {"path": path, "measured_hash": measured, "repetitions": kept}
    if content != made_by:
        try:
            write_atomically(study.directory / "study.json", content)
        except OSError as error:
            raise UserError(f"{study.directory} cannot be written: {error.strerror}.") from error


def _clean_up(study: Study) -> None:
    """Remove what a process left that was killed, or met a full disk, while it wrote a file."""
    for folder in ("failed", "settings"):
        for left in (study.directory / folder).glob("*/.*.json.*"):
            left.unlink(missing_ok=True)


def _forget(study: Study, rerun: str | None) -> None:
    """Have the runs of a stage, or all, made again. An interrupted RERUN goes on with the next
    `make all`."""
    if rerun is None:
        return
    if rerun not in ("all", *STAGES):
        raise UserError(f"RERUN={rerun} is no stage; give all or one of {', '.join(STAGES)}.")
    for run in _all_runs(study):
        at = place(study, run.stage, run.name)
        if rerun in ("all", run.stage) and at.notebook.is_file():
            completion.withdraw(at, keep=False)


def _put_away(study: Study) -> dict[Key, str]:
    """The runs that are not done, and why; their records are put away, if they have any."""
    runs = _all_runs(study)
    for run in runs:
        completion.adopt(study, run)
    undone = completion.survey(study, runs)
    for key, why in undone.items():
        at = place(study, *key)
        broken = at.notebook.is_file() and not scraps.is_complete(at.notebook)
        if why.startswith(completion.DAMAGED) or broken:
            told = why if why.startswith(completion.DAMAGED) else "is damaged"
            SAY(f"{key[0]}  {key[1]} {told}; it is made again", flush=True)
        if broken or why.startswith(f"{completion.DAMAGED}runs/"):  # its figures are not to be read
            completion.set_aside(at)
        elif at.settings.is_file():
            completion.withdraw(at)
    return undone


def _what_failed(study: Study, left: dict[Key, str], failed: dict[Key, str]) -> str:
    if not failed:  # something else changes what runs are made of while they are made
        listed = "; ".join(f"{stage} {name} {why}" for (stage, name), why in left.items())
        return f"{study.name} is not complete: {listed}. Run make all once more."
    told = []
    for key, reason in list(failed.items())[:MOST_TOLD]:
        notebook = place(study, *key).failed_notebook
        where = f" ({notebook})" if notebook.is_file() else ""
        told.append(f"  {key[0]}  {key[1]}: {reason}{where}")
    if len(failed) > MOST_TOLD:
        told.append(f"  and {len(failed) - MOST_TOLD} more")
    blocked = len(set(left) - set(failed))
    rest = f", {blocked} more need {'it' if len(failed) == 1 else 'them'}" if blocked > 0 else ""
    report = _where(study) if (study.directory / "report.html").is_file() else ""
    many = f"{len(failed)} run{'s' if len(failed) > 1 else ''}"
    again = f"`make all STUDY={study.argument}` tries them again."
    closing = f"Everything else is kept; {again} {report}".rstrip()
    return "\n".join([f"{many} of {study.name} failed{rest}:", *told, closing])


def _where(study: Study) -> str:
    report = study.directory / "report.html"
    return f"Report: {report}" if report.is_file() else f"Outputs: {study.directory}"


def _keep_wall_time(study: Study, made: Iterable[Key], wall_s: float) -> None:
    """Remember what an invocation that measured something took, for `make bench`."""
    names = sorted(map(list, made))
    if any(stage == "serve" for stage, _ in names):
        write_atomically(study.directory / "grid.json", {"wall_s": wall_s, "runs": names})


# --- Snakemake --------------------------------------------------------------------------------


def _snakemake(study: Study, profile: str | None, todo: list[Key], everything: bool) -> int:
    """Have Snakemake make the runs; its exit code, 0 if all of them were made.

    Without `everything`, score and synthesis are made of the runs that there are.
    """
    profile_directory = find_profile(profile or "local")
    config = {
        "study": quote(str(study.path)),  # Snakemake reads values as numbers, or YAML
        "repetitions": study.repetitions,
        "everything": int(everything),  # a word would stay text
    }
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(project_root() / "Snakefile")]
    command += ["--profile", str(profile_directory), "--directory", str(study.directory)]
    if not profile or profile == "local":
        command += ["--resources", f"machine={len(runner.devices())}"]
    command += ["--config", *(f"{key}={json.dumps(value)}" for key, value in config.items())]
    command += ["--", *(f"settings/{stage}/{name}.json" for stage, name in todo)]
    environment = os.environ | {
        "EDGE_EVAL_OUTPUTS": str(outputs_root()),
        "EDGE_EVAL_PYTHON": sys.executable,  # for the commands of a profile
    }
    with (study.directory / "snakemake.log").open("w", encoding="utf-8") as log:
        try:
            code = _supervised(command, log, environment)
        finally:
            _redact_file(study.directory / "snakemake.log")
    ends = time.monotonic() + INTERRUPT_S
    while code < 0 and time.monotonic() < ends:  # killed: what it started ends by itself
        if not any(place(study, *key).running.is_dir() for key in todo):
            break
        time.sleep(0.1)
    return code


def _supervised(command: list[str], log: Any, environment: dict[str, str]) -> int:
    """Run a command to its end, and end it with this process; its exit code."""
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stderr=log,
        env=environment,
        cwd=project_root(),
        start_new_session=True,  # an interrupt reaches it through us alone
        preexec_fn=lambda: runner.die_with_parent(signal.SIGKILL),
    )
    try:
        return process.wait()
    except BaseException:
        _stop(process)
        raise


def find_profile(name: str) -> Path:
    """The directory of a profile: one in profiles/ or a path; UserError for any other."""
    folder = project_root() / "profiles"
    try:
        for directory in (folder / name, Path(name).expanduser().resolve()):
            if any(directory.glob("config*.yaml")):
                return directory
    except (OSError, RuntimeError, ValueError):  # a name that no file can have
        pass
    known = ", ".join(sorted(path.name for path in folder.iterdir()))
    raise UserError(
        f"There is no profile {shown(name)}; say a name in profiles/ ({known}), or a directory "
        "with a config.yaml of Snakemake's."
    )


def _redact_file(path: Path) -> None:
    """What libraries wrote past Python's own streams is masked here."""
    text = path.read_text(encoding="utf-8", errors="replace")
    masked = redaction.redact(text)
    if masked != text:
        path.write_text(masked, encoding="utf-8")


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Interrupt a command and the runs it started; kill what does not end by itself."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGINT)
        try:
            process.wait(INTERRUPT_S)
        except BaseException:  # too slow, or a second interrupt
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


class Progress(logging.Handler):
    """Tells a person how far Snakemake is: run k of n, its stage and name, the time left."""

    def __init__(self, study: Study, say: Callable[..., None] = print) -> None:
        super().__init__(logging.INFO)
        runs = study.runs()
        left = plan.estimate(study, runs, plan.finished_runs(study, runs))
        self.study, self.say = study, say
        self.seconds = left.seconds
        self.total = self.started = 0
        self.failed_before: dict[tuple[str, str], dict[str, Any] | None] = {}
        self.began: dict[int, tuple[tuple[str, str], float]] = {}
        self.took_s = self.expected_s = 0.0

    def emit(self, record: logging.LogRecord) -> None:
        event = getattr(getattr(record, "event", None), "value", None)
        if event == "run_info":
            self.total = record.stats["total"] - record.stats.get("all", 0)
        elif event == "job_info" and record.rule_name != "all":
            self._start(record.jobid, _run_of(record.output[0]))
        elif event == "job_finished":
            self._finish(record.job_id)
        elif event == "job_error":
            self._fail(_run_of(record.output[0]))

    def _start(self, job: int, run: tuple[str, str]) -> None:
        self.started += 1
        self.began[job] = (run, time.monotonic())
        self.failed_before[run] = read_failure(place(self.study, *run))
        expected = plan.duration(self._left_s())
        stage, name = run
        named = stage if name == stage else f"{stage}  {name}"
        self.say(
            f"run {self.started} of {self.total}  {named}  (about {expected} left)", flush=True
        )

    def _left_s(self) -> float:
        """Expected seconds of what is left, corrected by how well finished runs met them."""
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
        disturbed = runner.disturbance(place(self.study, *run))
        if disturbed:
            self.say(f"{run[0]}  {run[1]}: disturbed: {disturbed}", flush=True)

    def _fail(self, run: tuple[str, str]) -> None:
        self.seconds.pop(run, None)
        failure = read_failure(place(self.study, *run))
        if failure and failure != self.failed_before.get(run):  # else it was interrupted
            self.say(f"FAILED  {run[0]}  {run[1]}: {failure['reason']}", flush=True)


def _run_of(settings: str) -> tuple[str, str]:
    path = Path(str(settings))
    return path.parent.name, path.stem


def show_progress(study: Study) -> None:
    """Attach `Progress` to Snakemake's log; called by the Snakefile in the scheduling process."""
    from snakemake.logging import logger

    logger.addHandler(Progress(study))


def remove_outputs(study: Study) -> None:
    """Delete what a study's runs made."""
    if study.directory.is_dir():
        with _locked(study):
            shutil.rmtree(study.directory)
