"""The lab: what notebooks made that were run by hand.

Every such run has a folder of its own, laid out as a study's outputs are:

    outputs/lab/RUN-HASH/
        study.yaml                       what it was: a study of this one run
        runs/STAGE/RUN.ipynb             the cells that ran, and the scraps (for scraps.collect)
        runs/STAGE/RUN.WHAT.parquet      raw data
        artefacts/adapters|models/...    what it wrote

RUN is the run's name, such as `smollm2-135M_rag_lora`; HASH is of what was executed, so that the
same again replaces itself and another rank or precision lies beside it. What a compress or serve
run read (an adapter, weights) is its scrap `executed_from`, below outputs/. No study's outputs are
touched.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import Any

import psutil

from edge_eval_lib import scraps
from edge_eval_lib.artefacts.place import Place
from edge_eval_lib.paths import outputs_root
from edge_eval_lib.study import Run, Study, hash_of, write_study

_RUNNING = ".running-"  # and the process's id


def lab_root() -> Path:
    """Return the directory that holds the lab's folders."""
    return outputs_root() / "lab"


def running_folder() -> Path:
    """Return where this process's run writes until it ends; `publish` gives it its name."""
    return lab_root() / f"{_RUNNING}{os.getpid()}"


def remove_abandoned() -> None:
    """Delete what runs left that never ended, this process's last one among them."""
    for folder in lab_root().glob(f"{_RUNNING}*"):
        process = int(folder.name.removeprefix(_RUNNING))
        if process == os.getpid() or not psutil.pid_exists(process):
            shutil.rmtree(folder, ignore_errors=True)


def publish(study: Study, run: Run, recorded: dict[str, Any]) -> Place:
    """Give this process's run its folder, and return its place there.

    The scraps that say what was executed (`executed_...`, `..._quantization`) make the folder's
    name, with the run's settings.
    """
    executed = {
        name: value
        for name, value in recorded.items()
        if name.startswith("executed_") or name.endswith("_quantization")
    }
    folder = lab_root() / f"{run.name}-{hash_of([run.settings, executed])[:8]}"
    working = Place(running_folder(), run.stage, run.name)
    working.notebook.parent.mkdir(parents=True, exist_ok=True)
    scraps.write_notebook(working.notebook, _executed_cells(), recorded)
    write_study(study, working.directory / "study.yaml", f"{run.stage} {run.name}, run by hand")
    if folder.exists():
        shutil.rmtree(folder)
    working.directory.rename(folder)
    return Place(folder, run.stage, run.name)


def _executed_cells() -> list[str]:
    """Return the cells that this process ran, if it is a notebook's kernel."""
    ipython = sys.modules.get("IPython")
    shell = ipython and ipython.get_ipython()
    return [] if shell is None else [cell for cell in shell.user_ns.get("In", []) if cell]


def lab_runs(stage: str | None = None, name: str | None = None) -> list[Place]:
    """Return the runs in the lab that reached their end, the newest first.

    `stage` and `name` (`family-size_task_method[_precision_rNN]`) leave out others.
    """
    notebooks = lab_root().glob(f"*/runs/{stage or '*'}/{name or '*'}.ipynb")
    places = [Place(path.parents[2], path.parent.name, path.stem) for path in notebooks]
    finished = [at for at in places if not at.directory.name.startswith(_RUNNING)]
    return sorted(finished, key=ended, reverse=True)


def ended(at: Place) -> int:
    """Return when a run ended, to compare with another."""
    return at.notebook.stat().st_mtime_ns
