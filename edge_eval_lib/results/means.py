"""Means over cold runs and over prompts, with their intervals: what a row of variants starts as."""

from __future__ import annotations

import re

import pandas as pd

from edge_eval_lib.results import columns
from edge_eval_lib.results.columns import VARIANT
from edge_eval_lib.results.intervals import bounds
from edge_eval_lib.uncertainty import mean_interval


def checked(observations: pd.DataFrame) -> pd.DataFrame:
    """Observations with every column; absent figures are NaN."""
    absent = [c for c in [*VARIANT, "repetition", "concurrency"] if c not in observations]
    if absent:
        raise ValueError(f"observations lack the columns {', '.join(absent)}")
    extra = ["score"] if "score" in observations else []
    names = [*columns.OBSERVATION_COLUMNS, *extra]
    runs = observations.reindex(columns=names).reset_index(drop=True)
    numbers = [*columns.MEASURED, "gpus", *extra]
    runs[numbers] = runs[numbers].apply(pd.to_numeric).astype(float)
    return runs


def refuse_repeats(runs: pd.DataFrame) -> None:
    """Raise ValueError where a variant has two observations of one repetition."""
    repeated = runs[runs.duplicated([*VARIANT, "repetition"])]
    if len(repeated):
        first = repeated.iloc[0]
        raise ValueError(
            f"{columns.variant_name(first)} has two observations of repetition "
            f"{first['repetition']}; a table of variants takes one concurrency and each "
            "repetition once"
        )


def means_over_runs(runs: pd.DataFrame) -> pd.DataFrame:
    """Return a row a variant: means of what was measured, what runs share of the rest."""
    groups = runs.groupby(VARIANT, sort=False)
    return pd.concat(
        [
            groups.size().rename("repetitions"),
            groups[["concurrency", "gpus"]].first(),
            groups[columns.TEXTS].agg(columns.joined),
            groups[columns.MEASURED].mean(),
        ],
        axis=1,
    )


def per_prompt(answers: pd.DataFrame) -> pd.DataFrame:
    """Numbers of a prompt, averaged over repetitions: index variant and prompt_id."""
    numbers = answers.select_dtypes("number").columns.difference(["repetition", "prompt_id"])
    return answers.groupby([*VARIANT, "prompt_id"], sort=False)[list(numbers)].mean()


def scores(runs: pd.DataFrame, prompts: pd.DataFrame | None, confidence: float) -> pd.DataFrame:
    """Mean scores of a variant; the interval of `score` is over prompts."""
    if prompts is None:
        if "score" not in runs:
            raise ValueError("without answers, observations need a column 'score'")
        return runs.groupby(VARIANT, sort=False)[["score"]].mean()
    groups = prompts.groupby(VARIANT, sort=False)
    means = groups.mean()
    means["scored_prompts"] = groups["score"].count()
    return means.join(bounds(prompts, VARIANT, mean_interval, ["score"], confidence))


def pooled_loads(runs: pd.DataFrame, index: pd.MultiIndex, confidence: float) -> pd.DataFrame:
    """Loads of a configuration over all its tasks: the same weights' size, hence more runs."""
    by, load = columns.CONFIGURATION, columns.LOAD
    pooled = runs.groupby(by, sort=False)[load].mean()
    pooled = pooled.join(bounds(runs, by, mean_interval, load, confidence))
    pooled.columns = [re.sub(r"(_lo|_hi|)$", r"_pooled\1", c, count=1) for c in pooled]
    return pooled.reindex(index.droplevel("task")).set_axis(index)
