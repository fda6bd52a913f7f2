"""The whole grid of a study: what is made again, and Snakemake, which schedules it.

A published run has a settings file, which says what it was made with. This module removes the
settings files that are out of date; Snakemake makes the runs that have none, and those that need
a run which was made later. A notebook stays until a new one takes its place.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import orjson

from edge_eval_lib import plan, redaction, runner, scraps
from edge_eval_lib.errors import UserError
from edge_eval_lib.study import (
    STAGES,
    Run,
    Study,
    load_study,
    outputs_root,
    project_root,
    shown,
)

INTERRUPT_S = 10.0  # how long Snakemake may take to stop what it started
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
        runs = [*study.runs(), *(runner.find_run(study, s, s) for s in _final_stages())]
        _withdraw_corrupt(study, runs)
        _forget_outdated(study, runs, rerun)
        began = time.time()
        complete = _snakemake(study, profile, everything=True)
        served = (study.directory / "runs" / "serve").glob("*.ipynb")
        if not complete and any(served):
            _write_failures(study, runs)
            complete = _snakemake(study, profile, everything=False) and False
        _keep_wall_time(study, runs, began, time.monotonic() - started)
        if not complete:
            raise GridFailed(_what_failed(study, runs))
        (study.directory / "failures.json").unlink(missing_ok=True)
    SAY(f"{study.name}: all {len(study.runs())} runs are done. {_where(study)}")


def make_ablation(study: Study, repetitions: int | None, rerun: str | None) -> None:
    """Run the study's ablation unless it is done; its notebook writes tables, figure and report."""
    with _locked(study):
        _claim(study, repetitions)
        run = study.run("ablation", "ablation")
        if rerun in ("all", "ablation") or not plan.finished_runs(study, [run]):
            SAY(f"{study.name}: one run, of {study.repetitions} repetitions of every combination")
            runner.run_one(study, run.stage, run.name)
    SAY(_where(study))


def make_report(study: Study) -> None:
    """Tables, figures and report from the runs that there are."""
    if study.ablation is not None:
        from edge_eval_lib import ablation

        ablation.write_results(study, ablation.measured_runs(study))
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
    names = [("score", "score"), *((stage, stage) for stage in _final_stages())]
    if everything:
        names = [*((run.stage, run.name) for run in study.runs()), *names]
    return [relative(study, runner.place(study, *name).settings) for name in dict.fromkeys(names)]


def relative(study: Study, path: Path) -> str:
    """A path as the Snakefile writes it: relative to the study's outputs if it lies there."""
    if path.is_relative_to(study.directory):
        return str(path.relative_to(study.directory))
    return str(path)


def served_notebooks(study: Study) -> list[str]:
    """The published serving runs: what can be scored although other runs failed."""
    names = [run.name for run in study.runs() if run.stage == "serve"]
    notebooks = [runner.place(study, "serve", name).notebook for name in names]
    return [relative(study, notebook) for notebook in notebooks if notebook.is_file()]


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
        yield


def _made_by(study: Study) -> dict[str, Any] | None:
    try:
        return orjson.loads((study.directory / "study.json").read_bytes())
    except (FileNotFoundError, NotADirectoryError, orjson.JSONDecodeError):
        return None


def _claim(study: Study, repetitions: int | None) -> None:
    """Note which study file the outputs belong to; UserError if they belong to another one."""
    made_by = _made_by(study) or {}
    path, measured = str(study.path), study.with_repetitions(1).measured_hash
    if made_by and made_by["path"] != path and made_by["measured_hash"] != measured:
        raise UserError(
            f"{study.directory} was made by {made_by['path']}, which measures something else than "
            f"{path}; give one of the two studies another name."
        )
    kept = repetitions or made_by.get("repetitions")
    content = {"path": path, "measured_hash": measured, "repetitions": kept}
    if content != made_by:
        try:
            runner.write_atomically(study.directory / "study.json", content)
        except OSError as error:
            raise UserError(f"{study.directory} cannot be written: {error.strerror}.") from error


def _withdraw_corrupt(study: Study, runs: Iterable[Run]) -> None:
    """A published notebook that is no complete run any more (edited, cut off) is made again."""
    for run in runs:
        at = runner.place(study, run.stage, run.name)
        if at.notebook.is_file() and not scraps.is_complete(at.notebook):
            at.failed_notebook.parent.mkdir(parents=True, exist_ok=True)
            at.notebook.rename(at.failed_notebook)
            SAY(f"{run.stage}  {run.name} is damaged and is made again ({at.failed_notebook})")


def _forget_outdated(study: Study, runs: Iterable[Run], rerun: str | None) -> None:
    """Remove the settings files of runs that are to be made again.

    An interrupted RERUN goes on with the next `make all`.
    """
    if rerun is not None and rerun not in ("all", *STAGES):
        raise UserError(f"RERUN={rerun} is no stage; give all or one of {', '.join(STAGES)}.")
    for run in runs:
        at = runner.place(study, run.stage, run.name)
        if not at.settings.is_file():
            continue
        same = at.notebook.is_file() and at.settings.read_bytes() == run.settings_json
        if not same or rerun in ("all", run.stage):
            at.settings.unlink()


def _write_failures(study: Study, runs: Iterable[Run]) -> None:
    """What the report says about failed runs; a change in it makes the report again."""
    failed = {f"{f['stage']}/{f['name']}": f["reason"] for f in _failures(study, runs)}
    path = study.directory / "failures.json"
    content = orjson.dumps(failed, option=orjson.OPT_INDENT_2 | orjson.OPT_SORT_KEYS)
    if not path.is_file() or path.read_bytes() != content:
        path.write_bytes(content)


def _failures(study: Study, runs: Iterable[Run]) -> list[dict[str, Any]]:
    """Failed attempts of runs that are not finished."""
    found = []
    for run in runs:
        at = runner.place(study, run.stage, run.name)
        failure = runner.read_failure(at)
        if failure and not at.settings.is_file():
            found.append(failure | {"notebook": str(at.failed_notebook)})
    return found


def _what_failed(study: Study, runs: list[Run]) -> str:
    failures = _failures(study, runs)
    if not failures:
        log = study.directory / "snakemake.log"
        lines = [line for line in log.read_text(encoding="utf-8").splitlines() if line.strip()]
        return (
            f"Snakemake stopped: {lines[-1].strip() if lines else 'it said nothing'} (see {log})."
        )
    undone = [r for r in runs if not runner.place(study, r.stage, r.name).settings.is_file()]
    blocked = len(undone) - len(failures)
    told = [f"  {f['stage']}  {f['name']}: {f['reason']} ({f['notebook']})" for f in failures]
    rest = f", {blocked} more need {'it' if len(failures) == 1 else 'them'}" if blocked > 0 else ""
    report = _where(study) if (study.directory / "report.html").is_file() else ""
    many = f"{len(failures)} run{'s' if len(failures) > 1 else ''}"
    again = f"`make all STUDY={study.argument}` tries them again."
    closing = f"Everything else is kept; {again} {report}".rstrip()
    return "\n".join([f"{many} of {study.name} failed{rest}:", *told, closing])


def _where(study: Study) -> str:
    report = study.directory / "report.html"
    return f"Report: {report}" if report.is_file() else f"Outputs: {study.directory}"


def _keep_wall_time(study: Study, runs: Iterable[Run], began: float, wall_s: float) -> None:
    """Remember what an invocation that measured something took, for `make bench`."""
    made = []
    for run in runs:
        with contextlib.suppress(FileNotFoundError):
            at = runner.place(study, run.stage, run.name)
            if at.settings.stat().st_mtime >= began:
                made.append([run.stage, run.name])
    if any(stage == "serve" for stage, _ in made):
        runner.write_atomically(study.directory / "grid.json", {"wall_s": wall_s, "runs": made})


# --- Snakemake --------------------------------------------------------------------------------


def _snakemake(study: Study, profile: str | None, everything: bool) -> bool:
    """Have Snakemake make the targets; whether all of them were made."""
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
    environment = os.environ | {
        "EDGE_EVAL_OUTPUTS": str(outputs_root()),
        "EDGE_EVAL_PYTHON": sys.executable,  # for the commands of a profile
    }
    with (study.directory / "snakemake.log").open("w", encoding="utf-8") as log:
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
            return process.wait() == 0
        except BaseException:
            _stop(process)
            raise
        finally:
            _redact_file(study.directory / "snakemake.log")


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
    """Interrupt Snakemake and the runs it started; kill what does not end by itself."""
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
        self.since = time.time()
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
        disturbed = runner.disturbance(runner.place(self.study, *run))
        if disturbed:
            self.say(f"{run[0]}  {run[1]}: disturbed: {disturbed}", flush=True)

    def _fail(self, run: tuple[str, str]) -> None:
        self.seconds.pop(run, None)
        at = runner.place(self.study, *run)
        failure = runner.read_failure(at)
        if failure and at.failure.stat().st_mtime >= self.since:  # else it was interrupted
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
