"""The choice of the fitted form, made again within one family and judged on the other.

The form that ships was taken with both families in view. Here the training family alone chooses, by
the error on each of its models left out of the fit, among the forms of `CANDIDATES`; the other
family judges. docs/predictions.md shows the table.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial

import numpy as np
import pandas as pd

from edge_eval_lib.economics import form
from edge_eval_lib.economics import published_speed as rows_of
from edge_eval_lib.economics.form import QUANTITIES
from edge_eval_lib.economics.ladder import FAMILIES

Columns = Callable[[pd.DataFrame, float], list[np.ndarray]]


@dataclass(frozen=True)
class Candidate:
    """A form of at most four parameters: log y = constant + slopes x columns.

    `has_offset`: a size that is added to the rows' own is fitted too. `is_linear`: the one slope
    is 1, so that y itself is linear.
    """

    columns: Columns
    has_offset: bool = False
    is_linear: bool = False


def _logs(column: str, rows: pd.DataFrame, offset: float) -> list[np.ndarray]:
    return [np.log(rows[column].to_numpy() + offset)]


def _size_and(
    size: str, of_precision: Callable[[pd.DataFrame], list[np.ndarray]], rows, offset: float
) -> list[np.ndarray]:
    return [*_logs(size, rows, offset), *of_precision(rows)]


def _log_b(rows: pd.DataFrame) -> list[np.ndarray]:
    return [np.log(rows["bytes_per_weight"].to_numpy())]


def _b(rows: pd.DataFrame) -> list[np.ndarray]:
    return [rows["bytes_per_weight"].to_numpy()]


def _each_precision(rows: pd.DataFrame) -> list[np.ndarray]:
    return [1.0 * (rows["precision"] == name).to_numpy() for name in ("int8", "int4")]


def _product(size: str, rows: pd.DataFrame, offset: float) -> list[np.ndarray]:
    (n,), (b,) = _logs(size, rows, offset), _log_b(rows)
    return [n, b, n * b]


def _candidates() -> dict[str, Candidate]:
    """Every form by name: n is the nominal size, P the parameters, b the bytes a weight."""
    found = {}
    for size, column in (("n", "nominal"), ("P", "billions")):
        for name, of_precision in (("log b", _log_b), ("b", _b)):
            both = partial(_size_and, column, of_precision)
            found[f"log {size}, {name}"] = Candidate(both)
            found[f"log({size} + {size}0), {name}"] = Candidate(both, has_offset=True)
        found[f"log {size}, a constant a precision"] = Candidate(
            partial(_size_and, column, _each_precision)
        )
        found[f"log {size}, log b, their product"] = Candidate(partial(_product, column))
    for name, column in (("n b", "nominal_gb"), ("bytes", "weights_gb")):
        logs = partial(_logs, column)
        found[f"log({name})"] = Candidate(logs)
        found[f"log({name} + w0)"] = Candidate(logs, has_offset=True)
        found[f"{name} + w0"] = Candidate(logs, has_offset=True, is_linear=True)
    return found


CANDIDATES = _candidates()
SHIPPED_FORM = "log(n + n0), log b"


def rows() -> pd.DataFrame:
    """Return the published rows with the sizes that candidates go by."""
    table = rows_of.rows()
    shapes = rows_of.shapes_of(table)
    stored = rows_of.stored(table["precision"])
    return table.assign(
        billions=shapes.parameters / 1e9,
        nominal_gb=table["nominal"] * table["bytes_per_weight"],
        weights_gb=shapes.weight_bytes(stored) / 1e9,
    )


def errors_pct(candidate: Candidate, train: pd.DataFrame, held: pd.DataFrame) -> pd.DataFrame:
    """Fit a candidate to `train`; return its absolute errors on `held`, % of the measured."""
    logs = np.log(train[list(QUANTITIES)].to_numpy())
    offsets = form.OFFSETS if candidate.has_offset else np.zeros(1)
    losses, predicted = [], []
    for offset in offsets:
        columns, asked = (_design(candidate, some, offset) for some in (train, held))
        if candidate.is_linear:
            constant = (logs - columns[:, 1:]).mean(axis=0)
            slopes = np.stack([constant, np.ones_like(constant)])
        else:
            slopes = np.linalg.lstsq(columns, logs, rcond=None)[0]
        losses.append(((logs - columns @ slopes) ** 2).sum(axis=0) + (form.PULL * offset) ** 2)
        predicted.append(np.exp(asked @ slopes))
    best = np.argmin(losses, axis=0)
    chosen = np.stack(predicted)[best, :, np.arange(len(QUANTITIES))].T
    return 100 * (chosen / held[list(QUANTITIES)] - 1).abs()


def _design(candidate: Candidate, rows: pd.DataFrame, offset: float) -> np.ndarray:
    return np.column_stack([np.ones(len(rows)), *candidate.columns(rows, offset)])


def left_out_pct(candidate: Candidate, rows: pd.DataFrame) -> float:
    """Return the mean error, %, over quantities and rows, each model left out of its fit."""
    errors = [
        errors_pct(candidate, rows.drop(held.index), held) for _, held in rows.groupby("model")
    ]
    return float(pd.concat(errors).mean().mean())


@cache
def nested_choice() -> pd.DataFrame:
    """Choose the form within each family, and within both; judge the choice on what did not choose.

    Returns:
        A row a chooser (`llama`, `qwen`, `both`) and form, best first: chosen_by, form,
        left_out_pct (mean over the quantities, each model of the chooser left out), judged_pct (of
        the other family, fitted on the whole chooser; empty for both) and, of each quantity, its
        own judged mean.
    """
    table = rows()
    found = []
    for chooser in (*FAMILIES, "both"):
        train = table if chooser == "both" else table[table["family"] == chooser]
        held = table.drop(train.index)
        for name, candidate in CANDIDATES.items():
            row: dict[str, object] = {"chosen_by": chooser, "form": name}
            row["left_out_pct"] = left_out_pct(candidate, train)
            if len(held):
                judged = errors_pct(candidate, train, held).mean()
                row |= {"judged_pct": judged.mean(), **judged}
            found.append(row)
    order = ["chosen_by", "left_out_pct"]
    by_chooser = {name: place for place, name in enumerate((*FAMILIES, "both"))}
    return pd.DataFrame(found).sort_values(
        order, key=lambda c: c.map(by_chooser) if c.name == "chosen_by" else c, ignore_index=True
    )


def winners() -> pd.DataFrame:
    """Return of each chooser the form that it takes, and the shipped one, the winner first."""
    table = nested_choice()
    first = ~table["chosen_by"].duplicated()
    return table[first | (table["form"] == SHIPPED_FORM)].reset_index(drop=True)


def markdown() -> str:
    """Write who would take which form as docs/predictions.md shows it: mean errors, %."""
    table = winners()
    shown = table[["chosen_by", "form", "left_out_pct", "judged_pct", *QUANTITIES]]
    cells = shown.map(lambda x: x if isinstance(x, str) else "" if pd.isna(x) else f"{x:.1f}")
    names = {"chosen_by": "chosen by", "left_out_pct": "left out", "judged_pct": "other family"}
    return cells.rename(columns=names).to_markdown(index=False, disable_numparse=True)
