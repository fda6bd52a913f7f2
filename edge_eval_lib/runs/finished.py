"""What is done of a study, and how long it took."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import orjson

from edge_eval_lib import scraps
from edge_eval_lib.artefacts import completion
from edge_eval_lib.artefacts.place import Key, place
from edge_eval_lib.study import Run, Study


@dataclass(frozen=True)
class Finished:
    """A published run: seconds its notebook took, and the settings it was made with."""

    seconds: float
    own_seconds: float  # in its cells alone: what the stage itself did, imports and loads included
    settings_hash: str | None
    rows_passed_over: int | None = None  # of an adaptation: training rows that were too long


def read_finished(notebook: Path) -> Finished | None:
    """Read what a published notebook says of its run; None if it is not a complete run."""
    try:
        recorded = scraps.read_scraps(notebook)
        metadata = orjson.loads(notebook.read_bytes())
        cells = [cell["metadata"].get("papermill", {}) for cell in metadata["cells"]]
        seconds = metadata["metadata"]["papermill"]["duration"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if recorded.get(scraps.RUN_COMPLETE) is not True:
        return None
    own = sum(cell.get("duration") or 0.0 for cell in cells)
    return Finished(
        seconds or own, own, recorded.get("settings_hash"), recorded.get("rows_passed_over")
    )


def finished_runs(
    study: Study, runs: list[Run], undone: dict[Key, str] | None = None
) -> dict[Key, Finished]:
    """Return those of `runs` that are done: published, whole, and as they would be made now.

    `undone` are those that are not, where that is known already.
    """
    keys = [(run.stage, run.name) for run in runs]
    undone = completion.survey(study, runs) if undone is None else undone
    done = {k: read_finished(place(study, *k).notebook) for k in keys if k not in undone}
    return {key: finished for key, finished in done.items() if finished is not None}
