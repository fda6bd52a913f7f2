"""What notebook 05 begins and ends with: whose results it shows, and where it writes."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from edge_eval_lib import scraps
from edge_eval_lib.artefacts.lab import lab_root
from edge_eval_lib.results import lab
from edge_eval_lib.results.observations import Results, load_results
from edge_eval_lib.runs import runner
from edge_eval_lib.study import load_study


@dataclass(frozen=True)
class Synthesis:
    """Results that are put together, and where tables and figures of them go."""

    results: Results
    outputs: Path

    def finish(self) -> None:
        """Record which settings the tables were made with, and that they are."""
        scraps.record("settings_hash", os.environ.get("EDGE_EVAL_SETTINGS_HASH"))
        scraps.complete()
        if "EDGE_EVAL_RUN" not in os.environ:  # a path of this machine stays out of the page
            print(f"Tables and figures: {self.outputs}")


def begin(study: str) -> Synthesis:
    """Collect a study's results.

    By hand, in JupyterLab, what the study still lacks is executed first if nothing was served yet,
    and tables go to the lab; within the grid the scheduler has done what could be done. `study` is
    a name in params/, a path, or `lab` for every run made by hand. UserError if there is nothing
    to tabulate; end what is returned with `finish`.
    """
    if study == lab.LAB:
        return Synthesis(lab.load_lab(), lab_root())
    loaded = load_study(study)
    if "EDGE_EVAL_RUN" in os.environ:
        return Synthesis(load_results(loaded), loaded.directory)
    served = (loaded.directory / "runs" / "serve").glob("*.ipynb")
    if next(served, None) is None:
        runner.ensure(loaded, [r for r in loaded.runs() if r.stage in ("score", "harness")])
    return Synthesis(load_results(loaded), lab_root() / loaded.name)
