"""Where the files of a run lie, and why it failed."""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from edge_eval_lib import redaction
from edge_eval_lib.paths import outputs_root
from edge_eval_lib.study.grid import PUBLISHED

if TYPE_CHECKING:  # asking SLURM how a job stands must start at once
    from edge_eval_lib.study import Study

Key = tuple[str, str]  # stage and name of a run


@dataclass(frozen=True)
class Place:
    """Where one run's files go, below the outputs of its study (or of the paper's report)."""

    directory: Path
    stage: str
    name: str

    @property
    def notebook(self) -> Path:
        """The published notebook: it exists if and only if the run is finished."""
        return self.directory / "runs" / self.stage / f"{self.name}.ipynb"

    @property
    def settings(self) -> Path:
        """The record of the published notebook; what Snakemake looks for."""
        return self.directory / "settings" / self.stage / f"{self.name}.json"

    @property
    def outdated(self) -> Path:
        """The record of a published notebook that is to be made again."""
        return self.settings.with_name(f"{self.name}.outdated")

    @property
    def running(self) -> Path:
        """Scratch directory while the run executes."""
        return self.directory / "running" / self.stage / self.name

    @property
    def failed_notebook(self) -> Path:
        """The notebook of the last attempt, if that failed."""
        return self.directory / "failed" / self.stage / f"{self.name}.ipynb"

    @property
    def failure(self) -> Path:
        """Why the last attempt failed."""
        return self.failed_notebook.with_suffix(".json")


def place(study: Study, stage: str, name: str) -> Place:
    """Return where the run of that stage and name has its files."""
    of_paper = stage == "paper" or name == PUBLISHED
    directory = outputs_root() / "paper" if of_paper else study.directory
    return Place(directory, stage, name)


def record(study: Study, stage: str, name: str) -> str:
    """Return where a run's record lies, from the outputs of its study: Snakemake's name of it."""
    return os.path.relpath(place(study, stage, name).settings, study.directory)


def read_failure(at: Place) -> dict[str, Any] | None:
    """Read what is known of a run's last, failed attempt; None if it did not fail."""
    failure = read_json(at.failure)
    return failure if "reason" in failure else None


def write_failure(
    at: Place, reason: str, settings_hash: str | None = None, seconds: float | None = None
) -> None:
    """Keep why a run's last attempt failed."""
    at.failure.parent.mkdir(parents=True, exist_ok=True)
    failure = {
        "stage": at.stage,
        "name": at.name,
        "reason": redaction.redact(reason),
        "settings_hash": settings_hash,
        "seconds": None if seconds is None else round(seconds, 1),
        "at": datetime.now(UTC).isoformat(timespec="microseconds"),  # two attempts differ in it
    }
    write_atomically(at.failure, failure)


def read_json(path: Path) -> dict[str, Any]:
    """Read what a file holds by name; empty if there is no file, or none that can be read."""
    try:
        content = orjson.loads(path.read_bytes())
    except (OSError, orjson.JSONDecodeError):
        return {}
    return content if isinstance(content, dict) else {}


def write_atomically(path: Path, content: dict[str, Any]) -> None:
    """Write a mapping as JSON such that a reader sees the old file or the new one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    options = orjson.OPT_INDENT_2 | orjson.OPT_SORT_KEYS
    try:
        temporary.write_bytes(orjson.dumps(content, option=options))
        temporary.rename(path)
    except BaseException:  # a full disk leaves half a file
        temporary.unlink(missing_ok=True)
        raise
