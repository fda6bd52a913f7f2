"""Run the workshop's notebooks, solutions included, and write the students' copies."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import nbformat

from edge_eval_lib.artefacts.place import Place
from edge_eval_lib.errors import UserError
from edge_eval_lib.paths import outputs_root, project_root
from edge_eval_lib.runs import kernel
from edge_eval_lib.runs.runner import ENVIRONMENT
from edge_eval_lib.units import duration
from edge_eval_lib.workshop.copies import student_copy


def folder() -> Path:
    """Return where the workshop lies: in notebooks/, or the directory EDGE_EVAL_NOTEBOOKS names."""
    return Path(os.environ.get("EDGE_EVAL_NOTEBOOKS") or project_root() / "notebooks") / "workshop"


def sources() -> list[Path]:
    """Return the workshop's notebooks, in their order."""
    return sorted(folder().glob("[0-9]*.ipynb"))


def run() -> list[Path]:
    """Execute every notebook of the workshop and write its student copy.

    Returns:
        The executed notebooks, in outputs/workshop/; students' copies lie in student/ there.

    Raises:
        UserError: There is none, or a notebook, such as a solution in it, failed.
    """
    directory = outputs_root() / "workshop"
    if not sources():
        raise UserError(f"There are no notebooks of the workshop in {folder()}.")
    executed, failed = [], []
    for source in sources():
        started = time.monotonic()
        students = directory / "student" / source.name
        students.parent.mkdir(parents=True, exist_ok=True)
        nbformat.write(student_copy(nbformat.read(source, as_version=4)), students)
        reason = _execute(source, directory)
        took = duration(time.monotonic() - started)
        print(f"workshop  {source.stem}  {'failed after ' if reason else ''}{took}", flush=True)
        executed.append(directory / source.name)
        if reason:
            failed.append(f"  {source.stem}: {reason}")
    if failed:
        many = f"{len(failed)} of {len(executed)} notebooks in {directory} failed:"
        raise UserError("\n".join([many, *failed]))
    print(f"Executed notebooks: {directory}; students' copies: {directory / 'student'}")
    return executed


def _execute(source: Path, directory: Path) -> str | None:
    """Execute one notebook as by hand; None, or where and why it stopped."""
    at = Place(directory, "workshop", source.stem)
    shutil.rmtree(at.running, ignore_errors=True)  # left by a process that was killed
    at.running.mkdir(parents=True)
    environment = {
        **os.environ,
        **ENVIRONMENT,
        "IPYTHONDIR": str(at.running / "ipython"),
        "JUPYTER_RUNTIME_DIR": str(at.running / "jupyter"),
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
    }
    notebook = at.running / source.name
    reason = kernel.execute(source, notebook, {}, environment, at)
    if reason is not None:
        reason = f"{_stopped_at(notebook)}{reason}"
    if notebook.is_file():
        notebook.replace(directory / source.name)
    shutil.rmtree(directory / "running", ignore_errors=True)
    return reason


def _stopped_at(notebook: Path) -> str:
    """Return the line of a notebook that was not fulfilled, as the beginning of a sentence."""
    if not notebook.is_file():
        return ""
    for cell in nbformat.read(notebook, as_version=4).cells:
        if any(output["output_type"] == "error" for output in cell.get("outputs", [])):
            lines = cell.source.strip().splitlines()
            asserted = [line for line in lines if line.startswith("assert ")]
            return f"`{(asserted or lines)[0]}`: "
    return ""
