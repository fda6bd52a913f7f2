"""lm-evaluation-harness's results JSON: a file a variant, as its own tools and leaderboards read.

The study's tasks stand there as `edge_eval_TASK`; where the study was scored by the library's own
tasks too (`harness`), these stand beside them.
"""

from __future__ import annotations

import math
from datetime import datetime
from typing import Any

import orjson
import pandas as pd
from scipy import stats

from edge_eval_lib import tasks
from edge_eval_lib.errors import UserError
from edge_eval_lib.results.columns import VARIANT, variant_name
from edge_eval_lib.results.exchange import ResultRow, ResultsFile

_PARTS = ("results", "group_subtasks", "configs", "versions", "n-shot", "higher_is_better",
          "n-samples")  # fmt: skip


def files(results: ResultsFile, harness: pd.DataFrame | None = None) -> dict[str, str]:
    """Return what to write, by name: `VARIANT/results_DATE.json`.

    `harness` is the study's table of the library's own tasks. UserError if nothing was scored.
    """
    contents = {row.name: _of_row(row, results) for row in results.variants if _scored(row)}
    for key, rows in _by_variant(harness):
        content = contents.setdefault(key, _frame(key, results))
        for row in rows:
            _add_harness_row(content, row)
        content["lm_eval_version"] = str(rows[0]["lm_eval"])
    if not contents:
        reasons = {row.reasons.get("score", "no score") for row in results.variants}
        raise UserError(
            f"No variant of {results.study} has a score ({'; '.join(sorted(reasons))}), and "
            "lm-eval's results hold nothing else."
        )
    date = results.provenance.first_run[:19].replace(":", "-")
    return {
        f"{name}/results_{date}.json": orjson.dumps(content, option=orjson.OPT_INDENT_2).decode()
        for name, content in contents.items()
    }


def _scored(row: ResultRow) -> bool:
    return "score" in row.figures


def _frame(name: str, results: ResultsFile) -> dict[str, Any]:
    """What a file says of model and run, whatever was scored."""
    made = results.provenance
    frame: dict[str, Any] = {part: {} for part in _PARTS} | {
        "config": {"model": "edge-eval", "random_seed": results.settings["seed"]},
        "date": datetime.fromisoformat(made.first_run).timestamp(),
        "model_source": "edge-eval",
        "model_name": name,
        "model_name_sanitized": name,
    }
    if len(made.git_commits) == 1:
        frame["git_hash"] = made.git_commits[0]
    if versions := made.packages.get("transformers"):
        frame["transformers_version"] = ", ".join(versions)
    return frame


def _of_row(row: ResultRow, results: ResultsFile) -> dict[str, Any]:
    content, task, figures = _frame(row.name, results), f"edge_eval_{row.task}", row.figures
    model = results.model_of(row)
    content["config"] |= {
        "model_args": {"base": row.model, "method": row.method, "precision": row.precision},
        "model_num_parameters": model["parameters"],
        "model_revision": model["revision"],
        "batch_size": str(row.concurrency),
    }
    if row.executed_dtype:
        content["config"]["model_dtype"] = row.executed_dtype
    named = tasks.find(row.task).figures
    prompts = int(float(figures["scored_prompts"])) if "scored_prompts" in figures else None
    scored: dict[str, Any] = {"name": task, "alias": task}
    if prompts is not None:
        asked = results.settings["data"]["evaluation_examples"]
        scored["sample_len"] = prompts
        content["n-samples"][task] = {"original": asked, "effective": prompts}
    first = next(iter(named))
    for name in named:
        if name == first or name in figures:
            scored[f"{name},none"] = float(figures["score" if name == first else name])
    if prompts is not None and "score" in row.intervals:
        low, high = (float(bound) for bound in row.intervals["score"])
        scored[f"{first}_stderr,none"] = float((high - low) / 2 / stats.t.ppf(0.975, prompts - 1))
    content["results"][task] = scored
    content["group_subtasks"][task] = []
    content["configs"][task] = {"task": task, "description": named[first]} | _notes(row)
    content["versions"][task] = ", ".join(results.provenance.packages.get("edge-eval", [])) or None
    content["n-shot"][task] = 0
    content["higher_is_better"][task] = dict.fromkeys(named, True)
    return content


def _notes(row: ResultRow) -> dict[str, str]:
    return {"notes": row.notes} if row.notes else {}


def _by_variant(harness: pd.DataFrame | None) -> list[tuple[str, list[dict[str, Any]]]]:
    """The rows of the table of the library's tasks that have a value, by the variant's name.

    The unadapted base was scored once for all tasks and has none: it goes by its model's name.
    """
    if harness is None:
        return []
    known = harness[harness["value"].notna()]
    names = [
        f"{row['family']}-{row['size']}_{row['method']}_{row['precision']}"
        if pd.isna(row["task"])
        else variant_name(row)
        for row in known[VARIANT].to_dict("records")
    ]
    rows = known.assign(_name=names).to_dict("records")
    return [(name, [r for r in rows if r["_name"] == name]) for name in dict.fromkeys(names)]


def _add_harness_row(content: dict[str, Any], row: dict[str, Any]) -> None:
    task, metric = row["harness_task"], row["metric"]
    scored = content["results"].setdefault(task, {"name": task, "alias": task})
    scored[f"{metric},{row['filter']}"] = float(row["value"])
    if not math.isnan(row["stderr"]):
        scored[f"{metric}_stderr,{row['filter']}"] = float(row["stderr"])
    content["group_subtasks"].setdefault(task, [])
    content["configs"].setdefault(task, {"task": task})
    content["versions"][task] = None if pd.isna(row["task_version"]) else row["task_version"]
    if not pd.isna(row["few_shot"]):
        content["n-shot"][task] = int(row["few_shot"])
    if not pd.isna(row["prompts"]):
        prompts = int(row["prompts"])
        scored["sample_len"] = prompts
        content["n-samples"][task] = {"original": prompts, "effective": prompts}
    if not pd.isna(row["higher_is_better"]):
        better = content["higher_is_better"].setdefault(task, {})
        better[metric] = bool(row["higher_is_better"])
