"""tables/harness.csv: what lm-evaluation-harness measured of every variant."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import pandas as pd

from edge_eval_lib.results.columns import VARIANT, sort_variants
from edge_eval_lib.study import Study
from edge_eval_lib.uncertainty import NORMAL_95

COLUMNS = [
    *VARIANT,
    "harness_task",
    "group",
    "metric",
    "filter",
    "higher_is_better",
    "value",
    "value_lo",
    "value_hi",
    "stderr",
    "prompts",
    "few_shot",
    "task_version",
    "lm_eval",
    "host",
    "notes",
]


def _key(variant: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Return a variant's columns, and notes on them."""
    key = {column: variant[column] for column in VARIANT}
    if key["method"] != "none":
        return key, []
    return key | {"task": None}, ["task: the base is the same for every one"]


def harness_table(runs: pd.DataFrame, study: Study) -> pd.DataFrame:
    """Return a row a variant, task and metric.

    `value_lo` and `value_hi` bound a 95 % interval: 1.96 of the library's standard errors to
    either side. The unadapted base, which is the same for every task of the study, has no task.
    Models with random weights were not scored: their rows are empty.
    """
    rows: list[dict[str, Any]] = []
    for run in runs[runs["stage"] == "harness"].to_dict("records"):
        key, notes = _key(run)
        for row in run["harness"]:
            empty = [column for column in ("value", "stderr") if row[column] is None]
            notes_of_row = [*notes, *(f"{column}: the library has none" for column in empty)]
            facts = {"host": run["provenance"]["host"], "notes": "; ".join(notes_of_row) or None}
            rows.append(key | row | facts)
    for variant in study.served_variants():
        if study.model(variant.model).source == "random":
            key, notes = _key(asdict(variant))
            unscored = key | {"notes": "; ".join([*notes, "value: the model's weights are random"])}
            rows += [] if unscored in rows else [unscored]
    table = pd.DataFrame(rows).reindex(columns=COLUMNS)
    numbers = ["value", "stderr", "prompts", "few_shot"]
    table[numbers] = table[numbers].astype(float)
    table["value_lo"] = table["value"] - NORMAL_95 * table["stderr"]
    table["value_hi"] = table["value"] + NORMAL_95 * table["stderr"]
    table[["prompts", "few_shot"]] = table[["prompts", "few_shot"]].astype("Int64")
    return sort_variants(table)
