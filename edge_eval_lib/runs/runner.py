"""One run: its device, its kernel, its verification, its publication.

A run executes below `running/` of the study's outputs. Only when its notebook ran to the end and
recorded so, its files move to `runs/`: the notebook last, so that a notebook in `runs/` is always
a finished run. Everything else ends in `failed/`, with the reason.

    python -m edge_eval_lib run STUDY STAGE NAME
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from filelock import FileLock

from edge_eval_lib import apart, scraps
from edge_eval_lib.artefacts import completion
from edge_eval_lib.artefacts.place import Place, place, write_failure
from edge_eval_lib.artefacts.source import notebook_source
from edge_eval_lib.errors import UserError
from edge_eval_lib.paths import project_root
from edge_eval_lib.runs import devices, kernel, under_way
from edge_eval_lib.runs.catalogue import PAGES, UNMEASURED, find_run
from edge_eval_lib.study import MEASURED_ALONE, PUBLISHED, Run, Study

# Of every kernel: nothing leaves this machine unasked, and hashing is repeatable.
ENVIRONMENT = {
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "PYTHONHASHSEED": "0",
    "JUPYTER_PLATFORM_DIRS": "1",
}
REPORTED = (*UNMEASURED, *MEASURED_ALONE)  # whose notebook is the report, rendered as HTML


class RunFailed(UserError):
    """A run's notebook did not reach its end; the message is the reason, in one sentence."""


def run_one(
    study: Study,
    stage: str,
    name: str,
    gpus: int | None = None,
    parameters: dict[str, Any] | None = None,
) -> Path:
    """Execute one run and publish it. Waits for a device of its own.

    Call it from a process's main thread: an interrupt ends the process, and the kernel with it.

    Args:
        study: The study that holds the run.
        stage: The run's stage.
        name: The run's name.
        gpus: How many GPUs it needs, where that is known already.
        parameters: What is said to its notebook beside the run's own.

    Returns:
        The published notebook.

    Raises:
        RunFailed: With the reason, which then also stands in `failed/`, if the notebook does not
            reach its end.
    """
    run = find_run(study, stage, name, gpus)
    if parameters:
        settings = run.settings | {"parameters": parameters}
        run = replace(run, parameters=run.parameters | parameters, settings=settings)
    at = place(study, stage, name)
    source = notebook_source(stage, name)
    if not source.is_file():
        raise UserError(f"There is no notebook {source}.")
    before = completion.read(at)
    with _its_own(study, run, at) as device_environment:
        made_meanwhile = completion.read(at)
        if made_meanwhile not in (None, before) and not completion.survey(study, [run]):
            return at.notebook  # another process made it while this one waited
        started = time.monotonic()
        reason = None
        try:
            reason = _try_run(study, run, at, source, device_environment)
            if reason is None:
                _publish(at, run, study)
        except OSError as error:
            reason = kernel.sentence("OSError", str(error))
        if reason is not None:
            _keep_failure(at, run, _explained(reason, at), time.monotonic() - started)
            raise RunFailed(f"{stage} {name}: {_explained(reason, at)}")
    return at.notebook


def _try_run(
    study: Study, run: Run, at: Place, source: Path, device_environment: dict[str, str]
) -> str | None:
    """Execute the run's notebook below `running/`; None, or why it did not reach its end."""
    shutil.rmtree(at.running, ignore_errors=True)  # left by a process that was killed
    raw = at.running / "raw"
    raw.mkdir(parents=True)
    under_way.begin(at)
    of_project = study.path.parent == project_root() / "params"
    named = {"study": study.path.stem if of_project else str(study.path)}
    parameters = {} if run.stage == "paper" else {**named, **run.parameters}
    environment = {
        **os.environ,
        **ENVIRONMENT,
        **device_environment,
        "EDGE_EVAL_RUN": f"{run.stage}/{run.name}",
        "EDGE_EVAL_RUN_DIRECTORY": str(raw),
        "EDGE_EVAL_SETTINGS_HASH": run.settings_hash,
        # A home directory may be full or read-only.
        "IPYTHONDIR": str(at.running / "ipython"),
        "JUPYTER_RUNTIME_DIR": str(at.running / "jupyter"),
    }
    if not _needs_hub(study, run.stage):
        environment |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    notebook = at.running / "notebook.ipynb"
    measured = run.stage not in (*UNMEASURED, *completion.COLLECTING)
    if not measured:  # others are made beside it: threads that wait leave them the cores
        environment["OMP_WAIT_POLICY"] = "PASSIVE"
    reason = kernel.execute(source, notebook, parameters, environment, at, measured)
    if reason is None and not scraps.is_complete(notebook):
        return "The notebook ended without recording run_complete in its last cell."
    if reason is None and run.stage in REPORTED:
        return _render(notebook, at, f"{run.stage if run.stage in PAGES else 'report'}.html")
    return reason


def _render(notebook: Path, at: Place, name: str) -> str | None:
    """Write the notebook as a page of that name; None, or why it could not be."""
    from edge_eval_lib.results import report

    try:
        report.render(notebook, at.directory / name)
    except Exception as error:  # whatever a notebook shows: it must not be half a report
        return kernel.sentence(type(error).__name__, f"{name} could not be rendered: {error}")
    return None


@contextlib.contextmanager
def _its_own(study: Study, run: Run, at: Place) -> Iterator[dict[str, str]]:
    """Hold what the run must have to itself; yields the environment that selects its devices.

    For the paper's report, which belongs to no study, it is the right to write it.
    """
    if run.stage not in UNMEASURED:
        with devices.hold(study, run) as environment:
            yield environment
        return
    with contextlib.ExitStack() as stack:
        if run.stage == "paper" or run.name == PUBLISHED:
            at.directory.mkdir(parents=True, exist_ok=True)
            stack.enter_context(FileLock(at.directory / ".lock"))
        yield devices.thread_environment()


def require(study: Study, stage: str, name: str) -> Path:
    """Return the published notebook of a run that another one needs.

    By hand, in JupyterLab, a missing run (and what it needs) is executed first; within the grid
    the scheduler has done so, and a missing one is an error.
    """
    at = place(study, stage, name)
    if at.notebook.is_file():
        return at.notebook
    if os.environ.get("EDGE_EVAL_RUN"):
        raise UserError(f"The {stage} run {name} is not finished; it is needed here.")
    ensure(study, [find_run(study, stage, name)])
    return at.notebook


def ensure(study: Study, runs: list[Run]) -> None:
    """Execute those of `runs`, and of what they need, that are not finished, one after another."""
    for run in runs:
        if place(study, run.stage, run.name).notebook.is_file():
            continue
        ensure(study, [study.run(*needed) for needed in run.needs])
        print(f"{run.stage}  {run.name} is needed first ...", flush=True)
        command = ["edge_eval_lib", "run", str(study.path), run.stage, run.name]
        command += ["--repetitions", str(study.repetitions)]
        held = devices.release_device()  # which the run needs for itself
        try:
            apart.run_module(*command, otherwise=f"{run.stage} {run.name} was stopped.")
        finally:
            if held is not None:
                devices.hold_device(*held)


def _needs_hub(study: Study, stage: str) -> bool:
    """Decide whether a run may ask the hub: only for what the study takes from there."""
    if stage == "harness":  # most of its tasks have their data there
        return True
    return study.data.source == "hub" or any(model.source == "hub" for model in study.models)


# --- publication ----------------------------------------------------------------------------


def _publish(at: Place, run: Run, study: Study) -> None:
    """Move the run's files to `runs/`; a notebook there never stands beside another run's data."""
    at.notebook.parent.mkdir(parents=True, exist_ok=True)
    at.settings.parent.mkdir(parents=True, exist_ok=True)
    before = completion.read(at, outdated=True)
    at.settings.unlink(missing_ok=True)
    at.outdated.unlink(missing_ok=True)
    at.notebook.unlink(missing_ok=True)
    for old in completion.raw_files(at):
        old.unlink()
    for file in (at.running / "raw").iterdir():
        file.rename(at.notebook.with_name(f"{at.name}.{file.name}"))
    (at.running / "notebook.ipynb").rename(at.notebook)
    shutil.rmtree(at.running, ignore_errors=True)
    completion.write(study, run, before)
    at.failure.unlink(missing_ok=True)
    at.failed_notebook.unlink(missing_ok=True)


def _keep_failure(at: Place, run: Run, reason: str, seconds: float) -> None:
    executed = at.running / "notebook.ipynb"
    try:
        at.failure.parent.mkdir(parents=True, exist_ok=True)
        if executed.is_file():
            executed.rename(at.failed_notebook)
        shutil.rmtree(at.running, ignore_errors=True)
        write_failure(at, reason, run.settings_hash, seconds)
    except OSError:  # the disk is full: the reason is worth more than the notebook
        shutil.rmtree(at.running, ignore_errors=True)
        with contextlib.suppress(OSError):
            at.failed_notebook.unlink(missing_ok=True)
            write_failure(at, reason, run.settings_hash, seconds)


def _explained(reason: str, at: Place) -> str:
    """Name the place of a full disk, whoever noticed it."""
    if os.strerror(errno.ENOSPC) in reason:
        return f"There is no space left on the disk of {at.directory}: {reason}"
    return reason
