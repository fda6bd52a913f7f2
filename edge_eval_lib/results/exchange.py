"""Results files: a study's figures as one JSON file that can be sent, checked and compared.

    python -m edge_eval_lib results t4_free mine.json
    python -m edge_eval_lib compare mine.json theirs.json published

A file holds the rows of variants.csv with their intervals, the study's settings, and where it was
made: commit, packages, processor, GPUs, energy source. It holds no host name and no path.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any, Literal

import orjson
import pandas as pd
from pydantic import Field, model_validator

from edge_eval_lib.economics import published
from edge_eval_lib.economics.prices import load_price_book
from edge_eval_lib.errors import UserError, nearest, shown
from edge_eval_lib.results import figures, synthesis, tables
from edge_eval_lib.study import (
    Line,
    Method,
    Precision,
    Strict,
    Study,
    Task,
    Text,
    load_study,
    validate,
)

SCHEMA_VERSION = 1
# JSON has no infinity: a break-even never reached, an interval without an end.
Number = float | Literal["inf", "-inf"]
KNOWN = {*tables.MEASURED, *tables.METRICS, "score", "score_per_watt", "rho_sys_nominal"}
KNOWN |= {"n_break_full", "n_break_full_least", "n_break_full_most", "keep_warm_s", "c_tax_model"}
KNOWN |= {f"{metric}_estimate_{end}" for metric in tables.ESTIMATED for end in ("lo", "hi")}
KNOWN |= {"scored_prompts", "gold_nll", "top1_agreement"}
KNOWN |= {f"{column}_pooled" for column in tables.LOAD}
LATER_TEXTS = ("executed_dtype", "instruction_set", "validity", "prices")
COMPARED = {
    "throughput_tok_s": "throughput (tok/s)",
    "energy_per_request_j": "energy per request (J)",
    "load_s": "cold start (s)",
    "memory_gb": "memory (GB)",
    "score": "score (0..1)",
}


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
    gpus: Annotated[int, Field(ge=0)] | None  # None of an endpoint, which does not tell
    host: Text
    energy_source: Text | None
    figures: dict[str, Number]
    intervals: dict[str, Annotated[list[Number], Field(min_length=2, max_length=2)]]
    notes: str | None
    # Not told by files of earlier versions.
    executed_dtype: str | None = None
    instruction_set: str | None = None
    validity: str | None = None
    prices: str | None = None

    @property
    def name(self) -> str:
        return f"{self.family}-{self.size}_{self.task}_{self.method}_{self.precision}"

    @model_validator(mode="after")
    def _possible(self) -> ResultRow:
        for name, value in self.figures.items():
            if name not in KNOWN:
                raise ValueError(
                    f"{self.name} has an unknown figure {shown(name)}; {nearest(name, KNOWN)}"
                )
            # Net energy may come out below zero: it is a difference of measurements.
            if math.isnan(float(value)) or (
                float(value) < 0 and name != "energy_per_request_net_j"
            ):
                raise ValueError(f"{self.name} has {name} {shown(value)}, which cannot be")
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
            raise ValueError(f"{repeated[0]} stands there twice")
        return self


# --- writing and reading ----------------------------------------------------------------------


def make(study: Study, directory: Path | None = None) -> ResultsFile:
    """The results of a study's finished runs; UserError if none was served."""
    results = synthesis.load_results(study, directory)
    settings = results.study.model_dump()
    for model in settings["models"]:
        if model["source"] == "local":  # a path of this machine
            model["location"] = Path(model["location"]).name
    return ResultsFile(
        schema_version=SCHEMA_VERSION,
        study=study.name,
        description=study.description,
        settings=settings,
        measured_hash=study.with_repetitions(1).measured_hash,
        provenance=_provenance(results),
        variants=rows_of(synthesis.result_tables(results)["variants"]),
    )


def rows_of(variants: pd.DataFrame) -> list[ResultRow]:
    """The rows of a variants table as they stand in a file; what is missing is left out."""
    rows = []
    for record in variants.to_dict("records"):
        known = {k: v for k, v in record.items() if k in KNOWN and not pd.isna(v)}
        bounds = {
            name: [_number(record[f"{name}_lo"]), _number(record[f"{name}_hi"])]
            for name in known
            if not (pd.isna(record.get(f"{name}_lo")) or pd.isna(record.get(f"{name}_hi")))
        }
        rows.append(
            ResultRow(
                **{c: record[c] for c in tables.VARIANT},
                **{c: int(record[c]) for c in ("repetitions", "concurrency")},
                gpus=None if pd.isna(record["gpus"]) else int(record["gpus"]),
                **{c: record[c] for c in ("engine", "host")},
                **{c: _text(record.get(c)) for c in ("energy_source", "notes", *LATER_TEXTS)},
                figures={name: _number(value) for name, value in known.items()},
                intervals=bounds,
            )
        )
    return rows


def _number(value: float) -> Number:
    return float(value) if math.isfinite(value) else ("inf" if value > 0 else "-inf")


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None


def _provenance(results: synthesis.Results) -> Provenance:
    made = list(results.runs["provenance"])
    dirty = {p["git_dirty"] for p in made}

    def all_of(values: Any) -> list[str]:
        return sorted({str(value) for value in values if value is not None})

    return Provenance(
        first_run=min(results.runs["started"]),
        last_run=max(results.runs["started"]),
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
        energy_sources=results.energy_sources,
    )


def write(file: ResultsFile, target: Path) -> Path:
    """Write the file as JSON."""
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


# --- side by side -----------------------------------------------------------------------------


def open_rows(source: str) -> list[ResultRow]:
    """The rows of a results file, of a study's outputs (by study or directory), or `published`."""
    if source == "published":
        prices = load_price_book().prices("paper")
        variants = tables.variants_table(published.observations(), None, prices, price_set="paper")
        return rows_of(variants.drop(columns="score"))  # by a judge and an NLI model, not ours
    path = Path(source)
    if path.suffix == ".json":
        return read(path).variants
    if (path / "study.json").is_file():
        try:
            made_by = orjson.loads((path / "study.json").read_bytes())["path"]
        except (orjson.JSONDecodeError, KeyError, TypeError) as error:
            raise UserError(f"{path}/study.json does not say which study made it.") from error
        return make(load_study(made_by), path).variants
    return make(load_study(source)).variants


def side_by_side(sources: dict[str, list[ResultRow]]) -> pd.DataFrame:
    """One row a variant and source: `source`, engine, host, and each compared figure with its
    `_lo` and `_hi`. Variants that only one source has are left out where another is shared.
    `notes` says what the rows of one variant do not share."""
    rows = []
    for source, found in sources.items():
        for row in found:
            record = {c: getattr(row, c) for c in tables.VARIANT} | {"source": source}
            record |= {c: getattr(row, c) for c in ("engine", "host", "gpus", "concurrency")}
            record |= {c: getattr(row, c) for c in ("repetitions", "energy_source")}
            record |= {
                c: getattr(row, c) for c in ("executed_dtype", "instruction_set", "validity")
            }
            for name in COMPARED:
                record[name] = float(row.figures.get(name, math.nan))
                lo, hi = row.intervals.get(name, (math.nan, math.nan))
                record |= {f"{name}_lo": float(lo), f"{name}_hi": float(hi)}
            rows.append(record)
    table = pd.DataFrame(rows)
    shared = table.groupby(tables.VARIANT)["source"].transform("nunique") > 1
    if shared.any():
        table = table[shared]
    notes = {key: " ".join(tables.mixed(rows)) for key, rows in table.groupby(tables.VARIANT)}
    keys = table[tables.VARIANT].itertuples(index=False, name=None)
    table = table.assign(notes=[notes[key] or None for key in keys])
    return tables.sort_variants(table).reset_index(drop=True)


def compare(sources: list[str], target: Path) -> str:
    """Check every source, write comparison.csv, .png and .svg to `target`; a text to read.

    One source alone is checked and shown.
    """
    found = {_label(source): open_rows(source) for source in sources}
    if len(found) < len(sources):
        raise UserError("Two of the results have one name; rename a file.")
    table = side_by_side(found)
    target.mkdir(parents=True, exist_ok=True)
    tables.write_table(table, target / "comparison.csv")
    figures.save_figure(figures.comparison(table, COMPARED), target / "comparison")
    return f"{_as_text(table)}\n\nWritten to {target}/comparison.csv, .png and .svg."


def _label(source: str) -> str:
    return source if source == "published" else Path(source).stem


def _as_text(table: pd.DataFrame) -> str:
    lines = []
    for source, part in table.groupby("source", sort=False):
        told = {c: _range(part[c]) for c in ("concurrency", "repetitions")}
        engine, host, energy = (
            ", ".join(sorted(part[c].dropna().unique())) or "not measured"
            for c in ("engine", "host", "energy_source")
        )
        lines.append(
            f"{source}: {engine} on {host}, concurrency {told['concurrency']}, repetitions "
            f"{told['repetitions']}, energy by {energy}"
        )
    if table["concurrency"].nunique() > 1 or table["engine"].nunique() > 1:
        lines.append("Engine or concurrency differ: throughput and energy compare set-ups too.")
    lines += tables.mixed(table)
    doubtful = table[table["validity"].map(tables.verdict).isin(tables.DOUBTFUL)]
    for source, part in doubtful.groupby("source", sort=False):
        lines.append(
            f"{source}: {len(part)} of its rows are doubtful by their validity checks (*)."
        )
    for name, heading in COMPARED.items():
        known = table.dropna(subset=name)
        if known.empty:
            lines += ["", f"{heading}: nobody measured it"]
            continue
        cells = known.assign(variant=[tables.variant_name(row) for _, row in known.iterrows()])
        cells["cell"] = [_cell(row, name) for _, row in cells.iterrows()]
        wide = cells.pivot(index="variant", columns="source", values="cell")
        wide = wide.reindex(
            index=list(dict.fromkeys(cells["variant"])),
            columns=[c for c in dict.fromkeys(table["source"]) if c in wide],
        )
        wide.index.name = wide.columns.name = None
        lines += ["", heading, wide.fillna("-").to_string()]
    return "\n".join(lines)


def _range(values: pd.Series) -> str:
    low, high = values.min(), values.max()
    return f"{low}" if low == high else f"{low} to {high}"


def _cell(row: pd.Series, name: str) -> str:
    digits = 3 if row["repetitions"] > 1 else 2  # no more than one run's scatter leaves
    value, lo, hi = (tables.format_number(row[f"{name}{e}"], digits) for e in ("", "_lo", "_hi"))
    if tables.verdict(row["validity"]) in tables.DOUBTFUL:
        value = f"{value}*"
    return value if pd.isna(row[f"{name}_lo"]) else f"{value} [{lo}, {hi}]"
