"""What lm-evaluation-harness needs of a study, and what its results are here.

What a study asks for stands in its field `harness`; notebook 10_harness calls the library. Its
seeds, prompts, answers' likelihoods and standard errors are its own.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import math
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from edge_eval_lib import engines
from edge_eval_lib.errors import nearest
from edge_eval_lib.study import Study

if TYPE_CHECKING:
    from lm_eval.api.model import LM
    from lm_eval.tasks import TaskManager


def problems(study: Study) -> list[str]:
    """Return why the study's harness runs cannot work, a sentence each."""
    if study.harness is None:
        return []
    directory = study.task_directory
    if directory is not None and not directory.is_dir():
        return [f"harness.task_directory names {directory}, which is not a directory."]
    if importlib.util.find_spec("lm_eval") is None:
        return [
            "The study's harness needs lm-evaluation-harness, which is not installed in this "
            "environment; run .venv/bin/pip install -c constraints.txt -e '.[harness]'."
        ]
    known = open_tasks(study).all_tasks
    return [
        f"harness.tasks: lm-evaluation-harness has no task {task!r}; "
        f"{nearest(task, known, 'see lm-eval ls tasks.')}"
        for task in study.harness.tasks
        if task not in known
    ]


def open_tasks(study: Study) -> TaskManager:
    """Return the library's tasks, and those of the study's own directory, which come first."""
    from lm_eval.tasks import TaskManager

    directory = study.task_directory
    if directory is not None:
        own = TaskManager(include_path=directory, include_defaults=False)
        if study.harness is not None and set(study.harness.tasks) <= set(own.all_subtasks):
            return own  # reading the library's own 14,000 takes seconds
    return TaskManager(include_path=directory)


def open_model(study: Study, directory: Path) -> LM:
    """Return the weights in `directory` behind the library's interface, as the study serves them.

    Texts of more tokens than a serving run has room for are cut on their left.
    """
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    os.environ["DISABLE_MULTIPROC"] = "1"  # it would fork this process, with its model, to resample
    return engines.kind(study.workload.engine).harness_model(
        directory, study.training.compute_dtype, study.workload.headline_concurrency
    )


def task_directory(study: Study) -> AbstractContextManager:
    """Work in the directory of the study's own task files, whose paths are relative to it."""
    directory = study.task_directory
    return contextlib.chdir(directory) if directory else contextlib.nullcontext()


def metric_rows(results: dict[str, Any]) -> list[dict[str, Any]]:
    """Return a row a task (or group of tasks) and metric.

    Args:
        results: What `lm_eval.simple_evaluate` returned.

    Returns:
        Rows in which `value` and `stderr` are None where the library has no number, and `group` is
        the group that a task was asked for in.
    """
    group_of = {
        task: group for group, tasks in results.get("group_subtasks", {}).items() for task in tasks
    }
    rows = []
    for task, figures in results["results"].items():
        for metric, filter_, value in _metrics(figures):
            rows.append(
                {
                    "harness_task": task,
                    "group": group_of.get(task),
                    "metric": metric,
                    "filter": filter_,
                    "higher_is_better": results["higher_is_better"].get(task, {}).get(metric),
                    "value": _number(value),
                    "stderr": _number(figures.get(f"{metric}_stderr,{filter_}")),
                    "prompts": figures["sample_len"],
                    "few_shot": results["n-shot"].get(task),
                    "task_version": str(results["versions"].get(task)),
                    "lm_eval": results["lm_eval_version"],
                }
            )
    return rows


def _metrics(figures: dict[str, Any]) -> Iterator[tuple[str, str, Any]]:
    """Yield metric, filter and value of one task's results, whose keys are `METRIC,FILTER`."""
    for key, value in figures.items():
        metric, comma, filter_ = key.partition(",")
        if comma and not metric.endswith("_stderr"):
            yield metric, filter_, value


def _number(value: Any) -> float | None:
    """Return a finite number as it is, None for everything else (`N/A`, NaN)."""
    if isinstance(value, (int, float)) and math.isfinite(value):
        return float(value)
    return None


def prompt_table(results: dict[str, Any]) -> pd.DataFrame:
    """Return a row a prompt and metric, where a metric has a number for each prompt."""
    rows = [
        {"harness_task": task, "prompt": sample["doc_id"], "filter": sample["filter"]}
        | {"metric": metric, "value": value}
        for task, samples in results["samples"].items()
        for sample in samples
        for metric in sample["metrics"]
        if (value := _number(sample[metric])) is not None
    ]
    return pd.DataFrame(rows, columns=["harness_task", "prompt", "filter", "metric", "value"])
