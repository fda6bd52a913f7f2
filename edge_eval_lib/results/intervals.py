"""Intervals beside the columns of a table, by what one observation of each column is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from edge_eval_lib.uncertainty import mean_interval, paired_ratio_interval


def bounds(
    rows: pd.DataFrame,
    by: Sequence[str],
    interval: Callable,
    of: Sequence[str] | Mapping[str, Sequence[str]],
    confidence: float,
) -> pd.DataFrame:
    """Intervals beside columns, where there are two observations or more.

    Args:
        rows: A row an observation.
        by: What identifies a row of the table.
        interval: Takes the values of each column and the confidence; gives (value, lo, hi).
        of: Columns, or the columns that each figure is made of.
        confidence: Of the intervals.

    Returns:
        `<figure>_lo` and `<figure>_hi` of every figure, by `by`.
    """
    terms = of if isinstance(of, Mapping) else {column: [column] for column in of}
    parts = []
    for name, needed in terms.items():
        known = rows.dropna(subset=list(needed))
        counts = known.groupby(list(by), sort=False)[needed[0]].transform("size")
        several = known[counts > 1]
        found = {
            key: interval(*(group[c].to_numpy() for c in needed), confidence)[1:]
            for key, group in several.groupby(list(by), sort=False)
        }
        keys: list[Sequence[Any]] = [*zip(*found, strict=True)] or [[] for _ in by]
        index = pd.MultiIndex.from_arrays(keys, names=by)
        values = np.array(list(found.values()), dtype=float).reshape(-1, 2)
        parts.append(pd.DataFrame(values, index=index, columns=[f"{name}_lo", f"{name}_hi"]))
    return pd.concat(parts, axis=1)


def interval_of(function: Callable) -> Callable:
    """The interval of a function of paired observations.

    A ratio of its two arguments, as far as numbers tell, has that of paired ratios; any other
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
