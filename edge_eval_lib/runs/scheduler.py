"""The whole grid of a study, by Snakemake.

A published run has a record (artefacts/completion.py). Those of runs that are out of date or
damaged are put away (runs/outdated.py); Snakemake makes the runs that have none. A run that read
what another one made is judged when that one is done: the same adapter leaves its weights as they
are. A notebook stays until a new one takes its place.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import sys
import time
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any
from urllib.parse import quote

from edge_eval_lib import redaction, scraps
from edge_eval_lib.artefacts import completion
from edge_eval_lib.artefacts.completion import COLLECTING
from edge_eval_lib.artefacts.place import (
    Key,
    Place,
    place,
    read_failure,
    record,
    write_atomically,
    write_failure,
)
from edge_eval_lib.errors import UserError, shown
from edge_eval_lib.paths import outputs_root, project_root
from edge_eval_lib.runs import catalogue, claims, devices, only_run, outdated, runner
from edge_eval_lib.runs.problems import require_possible
from edge_eval_lib.runs.process import INTERRUPT_S, supervised
from edge_eval_lib.runs.progress import Progress, showing
from edge_eval_lib.study import NOTEBOOKS, PUBLISHED, STAGES, Study, load_study

MOST_PASSES = 12  # a chain of runs is judged stage by stage, and each may find something damaged
FULL_DISK_BYTES = 1 << 20  # with less left, hardly anything can be written
MOST_LISTED = 20  # failures that are listed
SAY = print  # the only way to the terminal: Snakemake's own words go to its log file


class GridFailed(UserError):
    """Some runs failed; the message says which and why."""


def make_all(
    study: Study,
    repetitions: int | None = None,
    rerun: str | None = None,
    profile: str | None = None,
    keep: str | None = None,
) -> None:
    """Execute what is missing or outdated, then score and synthesis.

    A failed run stops only what needs it: the rest is scored and the report marks what is missing.
    A study with an ablation or a power sweep is that one run.

    Args:
        study: The study.
        repetitions: As many as its outputs are to have from now on.
        rerun: Stages whose runs are made again although nothing changed, or `all`.
        profile: A name in profiles/, or a directory with one of Snakemake's.
        keep: Stages whose runs are kept although their notebook's code changed, or `all`.

    Raises:
        UserError: For what keeps the study from being started; GridFailed for runs that failed.
    """
    again, kept = outdated.stages_given(rerun, keep)
    started = time.monotonic()
    find_profile(profile or "local")
    if study.alone is None:
        require_possible(study)
    with claims.claimed(study, repetitions):
        _clean_up(study)
        _settle_code(study, again, kept)
        if study.alone is not None:
            only_run.make(study, study.alone)
            SAY(_where(study))
            return
        undone = outdated.put_away(study)
        local = (profile or "local") == "local"
        with Progress(study, len(devices.devices()) if local else 1) as progress:
            failed = _make(study, profile, progress)
        left = completion.survey(study, catalogue.all_runs(study))
        _keep_wall_time(study, undone.keys() - left.keys(), time.monotonic() - started)
        if left:
            raise GridFailed(_what_failed(study, left, failed))
    SAY(f"{study.name}: all {len(study.runs())} runs are done. {_where(study)}")


def _settle_code(study: Study, again: set[str], kept: set[str]) -> None:
    """Say what is out of date, and stop where much of it is so by a notebook's code alone."""
    runs = study.runs()
    for run in runs:
        completion.adopt(study, run)
    for stage in sorted(kept & set(STAGES), key=STAGES.index):
        count = completion.keep_code(study, stage)
        if count:
            SAY(f"{count:,} {stage} runs are kept until the code of {NOTEBOOKS[stage]} changes.")
    undone = completion.survey(study, runs)
    if stop := outdated.unconfirmed(study, runs, undone, again):
        raise UserError(stop)
    for sentence in outdated.reasons(study, runs, undone):
        SAY(sentence, flush=True)
    outdated.forget(study, again)


def _make(study: Study, profile: str | None, progress: Progress) -> dict[Key, str]:
    """Have every run made that is not done; what failed, and why.

    As often as it takes: whether a run is out of date may show only when what it needs is made,
    and what a run finds damaged is made again before it. At the end what there is is scored and
    reported, although something failed.
    """
    failed: dict[Key, str] = {}
    tried: list[Key] = []
    for _ in range(MOST_PASSES):
        undone = outdated.put_away(study)
        if undone and not tried:  # the reports are made again when the runs are
            progress.expect([*undone, *catalogue.final_runs(study)])
        todo = _possible(study, undone, failed)
        if not todo or todo == tried:  # made, and out of date at once: files change meanwhile
            break
        tried = todo
        failed |= _pass(study, profile, todo, progress, everything=True)
    served = any((study.directory / "runs" / "serve").glob("*.ipynb"))
    incomplete = ("score", "synthesis", "paper") if served else ("paper",)  # made of what there is
    todo = [key for key in outdated.put_away(study) if key[0] in incomplete]
    if todo:
        for key in todo:
            failed.pop(key, None)  # tried once more, without what is missing
        failed |= _pass(study, profile, todo, progress, everything=False)
    return failed


def _possible(study: Study, undone: Collection[Key], failed: Collection[Key]) -> list[Key]:
    """Choose the runs that can be made now: they need nothing that failed.

    What collects figures waits while a finished run's needs are made: it may be out of date then.
    """
    runs = study.runs()
    settled = all(set(r.needs).isdisjoint(undone) for r in runs if (r.stage, r.name) not in undone)
    blocked = set(failed)
    todo = []
    for run in catalogue.all_runs(study):
        key = (run.stage, run.name)
        if key in blocked or not blocked.isdisjoint(run.needs):
            blocked.add(key)
        elif key in undone and (settled or run.stage not in COLLECTING):
            todo.append(key)
    return todo


def _pass(
    study: Study, profile: str | None, todo: list[Key], progress: Progress, everything: bool
) -> dict[Key, str]:
    """Have Snakemake make the runs; those that failed, and why.

    A run is not blamed for what it needs: if that failed, or was found to be damaged.
    """
    before = {key: read_failure(place(study, *key)) for key in todo}
    code = _snakemake(study, profile, todo, progress, everything)
    if code == 0:
        return {}
    runs = {(run.stage, run.name): run for run in catalogue.all_runs(study)}
    left = completion.survey(study, runs.values())
    blocked = left.keys() if everything else set()
    tried = [key for key in todo if key in left and blocked.isdisjoint(runs[key].needs)]
    failed, silent = {}, []
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
            silent.append(key)
    if code > 0 or not failed:  # else Snakemake was killed, and these were not begun
        for key in silent:
            failed[key] = _why_stopped(study, code)
            _note_failure(place(study, *key), failed[key])
    return failed


def _note_failure(at: Place, reason: str) -> None:
    with contextlib.suppress(OSError):  # the disk may be full
        write_failure(at, reason)


def _why_stopped(study: Study, code: int) -> str:
    """Why Snakemake ended without a word about a run."""
    if shutil.disk_usage(study.directory).free < FULL_DISK_BYTES:
        return claims.no_space(study)
    if code < 0:
        return f"Snakemake, which schedules the runs, was killed by {signal.Signals(-code).name}."
    log = study.directory / "snakemake.log"
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    errors = [
        number for number, line in enumerate(lines) if re.search(r"Error\b|Exception\b", line)
    ]
    said = f": {' '.join(' '.join(lines[errors[-1] :][:2]).split())}" if errors else ""
    return f"Snakemake, which schedules the runs, ended with exit code {code}{said} (see {log})."


def make_report(study: Study) -> None:
    """Write tables, figures and report from the runs that there are."""
    if study.alone is not None:
        only_run.report(study, study.alone)
        SAY(_where(study))
        return
    with claims.claimed(study):
        for key in [*catalogue.experiment(study), ("synthesis", "synthesis")]:
            with showing(study, key):
                runner.run_one(study, *key)
    SAY(_where(study))


def make_paper() -> None:
    """Write the report on the published study, from the figures that come with the project."""
    # Which study does not matter to it.
    owner = load_study("embedded")
    with showing(owner, ("paper", "paper")):
        notebook = runner.run_one(owner, "paper", "paper")
    findings = scraps.read_scraps(notebook).get("findings") or []
    for number, text in enumerate(findings, start=1):
        SAY(f"{number}. {text.replace('**', '')}")
    SAY(f"Report: {outputs_root() / 'paper' / 'report.html'}")


def make_advice(study: Study | None, parameters: dict[str, Any]) -> None:
    """Choose among the study's variants, or the published ones; write tables and page, say what.

    The study's report, where there is one, is made again: it shows the choice.

    Args:
        study: A study that was run; None for the published figures.
        parameters: What is said to the planner's notebook: `task`, `inputs`, `need`, ...

    Raises:
        UserError: An input that cannot be, or nothing to choose among.
    """
    from edge_eval_lib.runs import planner

    name = PUBLISHED if study is None else str(study.path)
    planner.begin(name, **parameters)  # refuses what cannot be, before a notebook starts
    key, remade = ("planner", "synthesis") if study else (PUBLISHED, "paper")
    parameters = parameters | ({} if study else {"study": PUBLISHED})
    owner = study or load_study("embedded")  # which one does not matter to the published figures
    at = place(owner, "planner", key)
    with claims.claimed(study) if study else contextlib.nullcontext():
        with showing(owner, ("planner", key)):
            notebook = runner.run_one(owner, "planner", key, parameters=parameters)
        for text in scraps.read_scraps(notebook)["answer"]:
            SAY(text.replace("**", ""))
        SAY(f"All of it: {at.directory / 'planner.html'}", flush=True)
        if (at.directory / "report.html").is_file():
            with showing(owner, (remade, remade)):
                runner.run_one(owner, remade, remade)
            SAY(f"It stands in the report too: {at.directory / 'report.html'}")


def _clean_up(study: Study) -> None:
    """Remove what a process left that was killed, or met a full disk, while it wrote a file."""
    for folder in ("failed", "settings"):
        for left in (study.directory / folder).glob("*/.*.json.*"):
            left.unlink(missing_ok=True)


def _what_failed(study: Study, left: dict[Key, str], failed: dict[Key, str]) -> str:
    if not failed:  # something else changes what runs are made of while they are made
        listed = "; ".join(f"{stage} {name} {why}" for (stage, name), why in left.items())
        return f"{study.name} is not complete: {listed}. Run make all once more."
    lines = []
    for key, reason in list(failed.items())[:MOST_LISTED]:
        notebook = place(study, *key).failed_notebook
        where = f" ({notebook})" if notebook.is_file() else ""
        lines.append(f"  {key[0]}  {key[1]}: {reason}{where}")
    if len(failed) > MOST_LISTED:
        lines.append(f"  and {len(failed) - MOST_LISTED} more")
    blocked = len(set(left) - set(failed))
    rest = f", {blocked} more need {'it' if len(failed) == 1 else 'them'}" if blocked > 0 else ""
    report = _where(study) if (study.directory / "report.html").is_file() else ""
    many = f"{len(failed)} run{'s' if len(failed) > 1 else ''}"
    again = f"`make all STUDY={study.argument}` tries them again."
    closing = f"Everything else is kept; {again} {report}".rstrip()
    return "\n".join([f"{many} of {study.name} failed{rest}:", *lines, closing])


def _where(study: Study) -> str:
    report = study.directory / "report.html"
    return f"Report: {report}" if report.is_file() else f"Outputs: {study.directory}"


def _keep_wall_time(study: Study, made: Iterable[Key], wall_s: float) -> None:
    """Remember what an invocation that measured something took, for `make bench`."""
    names = sorted(map(list, made))
    if any(stage == "serve" for stage, _ in names):
        write_atomically(study.directory / "grid.json", {"wall_s": wall_s, "runs": names})


# --- Snakemake --------------------------------------------------------------------------------


def _snakemake(
    study: Study, profile: str | None, todo: list[Key], progress: Progress, everything: bool
) -> int:
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
        command += ["--resources", f"machine={len(devices.devices())}"]
    command += ["--config", *(f"{key}={json.dumps(value)}" for key, value in config.items())]
    command += ["--", *(record(study, *key) for key in todo)]
    environment = os.environ | {
        "EDGE_EVAL_OUTPUTS": str(outputs_root()),
        "EDGE_EVAL_PYTHON": sys.executable,  # for the commands of a profile
    }
    with (study.directory / "snakemake.log").open("w", encoding="utf-8") as log:
        try:
            code = supervised(command, log, environment, progress.hear)
        finally:
            _redact_file(study.directory / "snakemake.log")
    ends = time.monotonic() + INTERRUPT_S
    while code < 0 and time.monotonic() < ends:  # killed: what it started ends by itself
        if not any(place(study, *key).running.is_dir() for key in todo):
            break
        time.sleep(0.1)
    return code


def find_profile(name: str) -> Path:
    """Return the directory of a profile, one in profiles/ or a path; UserError for any other."""
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
    """Mask what libraries wrote past Python's own streams."""
    text = path.read_text(encoding="utf-8", errors="replace")
    masked = redaction.redact(text)
    if masked != text:
        path.write_text(masked, encoding="utf-8")
