"""Results files: a study's figures as one JSON file that can be sent, checked and compared.

    python -m edge_eval_lib results t4_free mine.json

A file holds the rows of variants.csv with their intervals, every figure that is there, the study's
settings, and where it was made: commit, packages, processor, GPUs, energy source. It holds no host
name and no path.
"""

from __future__ import annotations

import difflib
import math
import re
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import orjson
import pandas as pd
from pydantic import Field, model_validator

from edge_eval_lib import scraps
from edge_eval_lib.errors import UserError, nearest, shown
from edge_eval_lib.results import columns
from edge_eval_lib.results.columns import VARIANT
from edge_eval_lib.study import (
    Line,
    Method,
    Precision,
    Strict,
    Study,
    Task,
    Text,
    validate,
)

SCHEMA_VERSION: Final = 1
# JSON has no infinity: a break-even never reached, an interval without an end.
Number = float | Literal["inf", "-inf"]
COUNTS = ("repetitions", "concurrency", "gpus")
TEXTS = ("engine", "host", "energy_source", "notes")
LATER_TEXTS = ("executed_dtype", "instruction_set", "validity", "prices")
# What may be: a difference of measurements, a logarithm of a probability, a cosine.
BELOW_ZERO = ("energy_per_request_net_j", "mean_logprob", "similarity")
_NAME = re.compile(r"[a-z][a-z0-9_]{0,60}")
_NEXT_NOTE = re.compile(r"; (?=[a-z][a-z0-9_]*: )")  # a reason may hold a semicolon
# A range of an estimate is a figure beside its own; an interval stands in `intervals`.
_BOUNDED = re.compile(r"_estimate_(?:lo|hi)$|_(?:lo|hi)_j$|_(?:least|most)$")


class ResultRow(Strict):
    """One variant's figures; `intervals` are 95 % (lo, hi) by figure."""

    family: Line
    size: Line
    task: Task
    method: Method
    precision: Precision
    repetitions: Annotated[int, Field(ge=1)]
    concurrency: Annotated[int, Field(ge=1)]
    engine: Line
    gpus: Annotated[int, Field(ge=0)] | None  # None for an endpoint: not known
    host: Text
    energy_source: Text | None
    figures: dict[str, Number]
    intervals: dict[str, Annotated[list[Number], Field(min_length=2, max_length=2)]]
    notes: str | None
    # Missing in files of earlier versions.
    executed_dtype: str | None = None
    instruction_set: str | None = None
    validity: str | None = None
    prices: str | None = None

    @property
    def name(self) -> str:
        return f"{self.model}_{self.task}_{self.method}_{self.precision}"

    @property
    def model(self) -> str:
        return f"{self.family}-{self.size}"

    @property
    def reasons(self) -> dict[str, str]:
        """What the notes say of single figures, by figure."""
        parts = _NEXT_NOTE.split(self.notes or "")
        pairs = [part.partition(": ") for part in parts]
        return {name: why for name, colon, why in pairs if colon and _NAME.fullmatch(name)}

    @model_validator(mode="after")
    def _possible(self) -> ResultRow:
        for name, value in self.figures.items():
            misspelt = name not in columns.MIDDLE and difflib.get_close_matches(
                name[:200], columns.MIDDLE, n=1, cutoff=0.9
            )
            if (misspelt and not _BOUNDED.search(name)) or not _NAME.fullmatch(name):
                raise ValueError(
                    f"{self.name} has an unknown figure {shown(name)}; "
                    f"{nearest(name, columns.MIDDLE)}"
                )
            if math.isnan(float(value)) or (float(value) < 0 and name not in BELOW_ZERO):
                raise ValueError(f"{self.name} has {name} {shown(value)}, which is impossible")
        if "throughput_tok_s" not in self.figures:
            raise ValueError(f"{self.name} lacks throughput_tok_s: it was not served")
        if float(self.figures.get("score", 0)) > 1:
            raise ValueError(f"{self.name} has a score above 1; scores are 0..1")
        if "energy_per_request_j" in self.figures and not self.energy_source:
            raise ValueError(f"{self.name} has energy and no energy_source")
        for name, (lo, hi) in self.intervals.items():
            if name not in self.figures or not float(lo) <= float(hi):
                raise ValueError(f"{self.name} has an interval [{lo}, {hi}] of {name}")
        return self


class Provenance(Strict):
    """Where and with what the runs were made; a list has one entry where all runs agree."""

    first_run: str
    last_run: str
    git_commits: list[str]
    uncommitted_changes: bool | None
    packages: dict[str, list[str]]
    python: list[str]
    systems: list[str]
    processors: list[str]
    gpus: list[str]
    energy_sources: list[str]


class ResultsFile(Strict):
    """The whole file; `settings` is the study as its file said it."""

    schema_version: Literal[1]
    study: str
    description: str
    settings: dict[str, Any]
    measured_hash: str
    provenance: Provenance
    remarks: str = ""
    variants: Annotated[list[ResultRow], Field(min_length=1)]

    @model_validator(mode="after")
    def _no_repeats(self) -> ResultsFile:
        names = [row.name for row in self.variants]
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated:
            raise ValueError(f"{repeated[0]} appears twice")
        return self

    def model_of(self, row: ResultRow) -> dict[str, Any]:
        """Return what the study says of a row's model."""
        models = self.settings["models"]
        return next(m for m in models if f"{m['family']}-{m['size']}" == row.model)


# --- writing and reading ----------------------------------------------------------------------


def make(study: Study, directory: Path | None = None) -> ResultsFile:
    """Make a results file of a study's variants.csv; UserError if it has no tables yet.

    `directory` is where its outputs are, by default the study's own.
    """
    directory = directory or study.directory
    path = directory / "tables" / "variants.csv"
    if not path.is_file():
        raise UserError(f"There is no {path}; run `make all STUDY={study.argument}` first.")
    variants = pd.read_csv(path, float_precision="round_trip")
    runs = scraps.collect(directory / "runs").dropna(subset=["provenance"])  # not of pages
    repetitions = int(variants["repetitions"].max())
    settings = study.covering(repetitions).model_dump()
    for model in settings["models"]:  # paths of this machine
        if model["source"] == "local":
            model["location"] = Path(model["location"]).name
    settings["data"]["source"] = Path(settings["data"]["source"]).name
    if study.harness is not None and study.harness.task_directory is not None:
        settings["harness"]["task_directory"] = Path(study.harness.task_directory).name
    return ResultsFile(
        schema_version=SCHEMA_VERSION,
        study=study.name,
        description=study.description,
        settings=settings,
        measured_hash=study.with_repetitions(1).measured_hash,
        provenance=provenance_of(runs, variants),
        variants=rows_of(variants),
    )


def rows_of(variants: pd.DataFrame) -> list[ResultRow]:
    """The rows of a variants table as they stand in a file; what is missing is left out."""
    numeric = [c for c in variants if pd.api.types.is_numeric_dtype(variants[c])]
    ends = {f"{c}{end}" for c in numeric for end in ("_lo", "_hi")}
    names = [c for c in numeric if c not in {*COUNTS, *ends}]
    rows = []
    for record in variants.to_dict("records"):
        known = {c: _number(record[c]) for c in names if not pd.isna(record[c])}
        pairs = {c: (record.get(f"{c}_lo"), record.get(f"{c}_hi")) for c in known}
        rows.append(
            ResultRow.model_validate(
                {c: record[c] for c in VARIANT}
                | {c: None if pd.isna(record[c]) else int(record[c]) for c in COUNTS}
                | {c: _text(record.get(c)) for c in (*TEXTS, *LATER_TEXTS)}
                | {
                    "figures": known,
                    "intervals": {
                        c: [_number(bound) for bound in pair]
                        for c, pair in pairs.items()
                        if not any(pd.isna(bound) for bound in pair)
                    },
                }
            )
        )
    return rows


def _number(value: float) -> Number:
    return float(value) if math.isfinite(value) else ("inf" if value > 0 else "-inf")


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None


def provenance_of(runs: pd.DataFrame, variants: pd.DataFrame) -> Provenance:
    """Where and with what collected runs were made."""
    made = list(runs["provenance"])
    dirty = {p["git_dirty"] for p in made}

    def all_of(values: Any) -> list[str]:
        return sorted({str(value) for value in values if value is not None})

    return Provenance(
        first_run=min(runs["started"]),
        last_run=max(runs["started"]),
        git_commits=all_of(p["git_commit"] for p in made),
        uncommitted_changes=None if None in dirty else any(dirty),
        packages={
            name: all_of(p["packages"][name] for p in made)
            for name in made[0]["packages"]
            if any(p["packages"].get(name) for p in made)
        },
        python=all_of(p["python"] for p in made),
        systems=all_of(p["os"] for p in made),
        processors=all_of(p["cpu"] for p in made),
        gpus=all_of(
            f"{g['name']}, {g['memory_gb']:.1f} GB, limit {g['power_limit_w']} W, driver "
            f"{g['driver']}"
            for p in made
            for g in p["gpus"]
        ),
        energy_sources=sorted(variants["energy_source"].dropna().unique()),
    )


def write(file: ResultsFile, target: Path) -> Path:
    """Write the file as JSON; makes its directory."""
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(orjson.dumps(file.model_dump(), option=orjson.OPT_INDENT_2) + b"\n")
    return target


def read(path: Path) -> ResultsFile:
    """Read and check a results file; UserError naming the field and what would be right."""
    try:
        content = orjson.loads(path.read_bytes())
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from error
    except orjson.JSONDecodeError as error:
        raise UserError(f"{path} cannot be read as JSON: {error}.") from error
    version = content.get("schema_version") if isinstance(content, dict) else None
    if type(version) is not int or version != SCHEMA_VERSION:  # true is no number here
        raise UserError(
            f"{path} has schema_version {shown(version)}; this version of the kit reads "
            f"{SCHEMA_VERSION}."
        )
    return validate(ResultsFile, content, path)
