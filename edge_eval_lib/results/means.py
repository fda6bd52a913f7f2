"""Means over cold runs and over prompts, and intervals by what one observation of each is."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from edge_eval_lib.results import columns
from edge_eval_lib.results.columns import VARIANT
from edge_eval_lib.uncertainty import mean_interval, paired_ratio_interval


def checked(observations: pd.DataFrame) -> pd.DataFrame:
    """Observations with every column; absent figures are NaN."""
    absent = [c for c in [*VARIANT, "repetition", "concurrency"] if c not in observations]
    if absent:
        raise ValueError(f"observations lack the columns {', '.join(absent)}")
    extra = ["score"] if "score" in observations else []
    extra += columns.calls_in(observations)
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
            groups[[*columns.MEASURED, *columns.calls_in(runs)]].mean(),
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


# --- intervals --------------------------------------------------------------------------------


def bounds(
    rows: pd.DataFrame,
    by: Sequence[str],
    interval: Callable,
    of: Sequence[str] | Mapping[str, Sequence[str]],
    confidence: float,
) -> pd.DataFrame:
    """Return `<figure>_lo` and `_hi` by `by`, where there are two observations (rows) or more.

    `interval` takes the values of each column and the confidence, and gives (value, lo, hi); `of`
    names columns, or by figure the columns that it is made of.
    """
    terms = of if isinstance(of, Mapping) else {column: [column] for column in of}
    parts = []
    for name, needed in terms.items():
        known = rows.dropna(subset=list(needed))
        counts = known.groupby(list(by), sort=False)[needed[0]].transform("size")
        ends = {
            key: interval(*(group[c].to_numpy() for c in needed), confidence)[1:]
            for key, group in known[counts > 1].groupby(list(by), sort=False)
        }
        keys: list[Sequence[Any]] = [*zip(*ends, strict=True)] or [[] for _ in by]
        index = pd.MultiIndex.from_arrays(keys, names=by)
        values = np.array(list(ends.values()), dtype=float).reshape(-1, 2)
        parts.append(pd.DataFrame(values, index=index, columns=[f"{name}_lo", f"{name}_hi"]))
    return pd.concat(parts, axis=1)


def interval_of(function: Callable) -> Callable:
    """The interval of a function of paired observations.

    A ratio of its two arguments, as far as numbers show, has that of paired ratios; any other
    function Student's t of its values in each pair.
    """
    factor = ratio_factor(function)

    def interval(*arguments) -> tuple[float, ...]:
        *values, confidence = arguments
        if factor is None:
            return mean_interval(function(*values), confidence)
        numerator, denominator = values
        bounds = paired_ratio_interval(numerator, denominator, confidence)
        return tuple(factor * bound for bound in bounds)

    return interval


def ratio_factor(function: Callable) -> float | None:
    """The k of a function that is k a / b, tried at a few shares; None of any other function."""
    a, b = np.array([1.0, 0.5, 0.25, 0.8]), np.array([1.0, 0.8, 0.5, 0.3])
    try:
        values = np.asarray(function(a, b))
        ratio = np.allclose(values * b, values[0] * a, rtol=1e-9)
    except (TypeError, ValueError, IndexError):
        return None
    return float(values[0]) if ratio else None
