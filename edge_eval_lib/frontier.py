"""Pareto fronts: which rows of a table nothing else beats, and how far they reach."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import moocore
import numpy as np
import pandas as pd

from edge_eval_lib.bounds import Finite, NonNegative, Whole, checked, require

Direction = Literal["min", "max"]


def non_dominated(table: pd.DataFrame, objectives: Mapping[str, Direction]) -> pd.Series:
    """Find the rows on the Pareto front.

    A row is dominated where another is at least as good in every objective and better in one;
    duplicates of a row on the front are all on it. A row in which an objective is missing (NaN)
    cannot be compared: it is not on the front and dominates nothing.

    Args:
        table: A row a candidate.
        objectives: Which columns to minimise or maximise, e.g. {"score": "max"}.

    Returns:
        True where a row is on the front, with the table's index.

    Raises:
        ValueError: There is no objective, the table lacks a column or it holds no numbers, or a
            direction is neither min nor max.
    """
    points = _minimised(table, objectives)
    known = ~np.isnan(points).any(axis=1)
    front = np.zeros(len(points), dtype=bool)
    if known.any():
        front[known] = moocore.is_nondominated(points[known], keep_weakly=True)
    return pd.Series(front, index=table.index, name="non_dominated")


def front_frequency(
    table: pd.DataFrame,
    objectives: Mapping[str, Direction],
    relative_spread: Mapping[str, float | pd.Series],
    draws: int = 1000,
    seed: int = 0,
) -> pd.Series:
    """Return the share of `front_draws`, 0..1, in which each row is on the front.

    A row in which an objective is missing has no frequency (NaN).
    """
    on_front = front_draws(table, objectives, relative_spread, draws, seed)
    known = ~np.isnan(_minimised(table, objectives)).any(axis=1)
    return on_front.mean().where(known).rename("front_frequency")


@checked
def front_draws(
    table: pd.DataFrame,
    objectives: Mapping[str, Direction],
    relative_spread: Mapping[str, float | pd.Series],
    draws: Whole[int] = 1000,
    seed: int = 0,
) -> pd.DataFrame:
    """Draw which rows are on the front when their figures scatter.

    Every row scatters on its own: value x a log-normal factor of mean 1. A row in which an
    objective is missing is on no front.

    Args:
        table: A row a candidate.
        objectives: As for `non_dominated`.
        relative_spread: An objective's standard deviation over its value, one number for all rows
            or a Series with the table's index; an objective that is left out does not scatter.
        draws: How many.
        seed: Of the random numbers.

    Returns:
        A row a draw, a column a row of `table`.

    Raises:
        ValueError: As for `non_dominated`, or for a spread that is negative, NaN or of no
            objective.
    """
    points = _minimised(table, objectives)
    variance = np.zeros_like(points)
    for column, spread in relative_spread.items():
        if column not in objectives:
            raise ValueError(f"relative_spread names {column!r}, which is no objective")
        require(NonNegative, **{f"relative_spread[{column!r}]": spread})
        if isinstance(spread, pd.Series) and not spread.index.equals(table.index):
            raise ValueError(f"relative_spread[{column!r}] must have the table's index")
        variance[:, list(objectives).index(column)] = np.log1p(np.asarray(spread) ** 2)
    known = ~np.isnan(points).any(axis=1)
    on_front = np.zeros((draws, len(points)), dtype=bool)
    if known.any():
        generator = np.random.default_rng(seed)
        points, variance = points[known], variance[known]
        normal = generator.standard_normal((draws, *points.shape))
        drawn = points * np.exp(np.sqrt(variance) * normal - variance / 2)
        on_front[:, known] = [moocore.is_nondominated(draw, keep_weakly=True) for draw in drawn]
    return pd.DataFrame(on_front, columns=table.index)


@checked
def hypervolume(points: Finite, reference: Finite) -> float:
    """Compute the volume between points and a worst point, every objective minimised.

    Args:
        points: A row a point and a column an objective (array or DataFrame); points that are not
            better than the reference everywhere add nothing.
        reference: The worst point: a number an objective.

    Returns:
        The volume, in the product of the objectives' units.

    Raises:
        ValueError: NaN, infinity, or shapes that do not fit.
    """
    points = np.asarray(points, dtype=float)
    reference = np.asarray(reference, dtype=float)
    if points.ndim != 2:
        raise ValueError(f"points must have two dimensions, not {points.ndim}")
    if reference.shape != (points.shape[1],):
        raise ValueError(
            f"reference must have {points.shape[1]} numbers, one an objective, "
            f"not the shape {reference.shape}"
        )
    if len(points) == 0:
        return 0.0
    return float(moocore.hypervolume(points, ref=reference))


def _minimised(table: pd.DataFrame, objectives: Mapping[str, str]) -> np.ndarray:
    """Return the objectives' columns, those to maximise negated; (rows, objectives)."""
    if not objectives:
        raise ValueError("objectives is empty: a front needs at least one")
    columns = []
    for column, direction in objectives.items():
        if column not in table:
            known = ", ".join(map(str, table.columns))
            raise ValueError(f"objectives names {column!r}, which is no column of: {known}")
        if direction not in ("min", "max"):
            raise ValueError(f"objectives[{column!r}] must be 'min' or 'max', not {direction!r}")
        if not pd.api.types.is_numeric_dtype(table[column]):
            raise ValueError(f"objectives names {column!r}, which does not hold numbers")
        values = table[column].to_numpy(float, na_value=np.nan)
        columns.append(values if direction == "min" else -values)
    return np.column_stack(columns)
