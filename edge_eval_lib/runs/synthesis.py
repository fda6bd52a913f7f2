"""What notebook 05 begins and ends with: whose results it shows, and where it writes."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from edge_eval_lib import scraps
from edge_eval_lib.artefacts.place import lab_directory
from edge_eval_lib.runs import runner
from edge_eval_lib.study import Study, load_study


@dataclass(frozen=True)
class Synthesis:
    """A study whose results are put together."""

    study: Study

    @property
    def outputs(self) -> Path:
        """Where tables and figures go: the study's outputs or, by hand, the lab."""
        return lab_directory(self.study) if _by_hand() else self.study.directory

    def finish(self) -> None:
        """Record which settings the tables were made with, and that they are."""
        scraps.record("settings_hash", os.environ.get("EDGE_EVAL_SETTINGS_HASH"))
        scraps.complete()


def begin(study: str) -> Synthesis:
    """Open a study by name or path.

    By hand, in JupyterLab, what the study still lacks is executed first if nothing was served yet;
    within the grid the scheduler has done what could be done.
    """
    loaded = load_study(study)
    served = (loaded.directory / "runs" / "serve").glob("*.ipynb")
    if _by_hand() and next(served, None) is None:
        runner.ensure(loaded, [r for r in loaded.runs() if r.stage in ("score", "harness")])
    return Synthesis(loaded)


def _by_hand() -> bool:
    return "EDGE_EVAL_RUN" not in os.environ
