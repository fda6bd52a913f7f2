"""Whether a technique saves the energy that it is said to save: by technique, task and study."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd

from edge_eval_lib.economics import published
from edge_eval_lib.errors import UserError
from edge_eval_lib.results.columns import MODEL, VARIANT
from edge_eval_lib.results.observations import Results, load_results
from edge_eval_lib.study import load_study
from edge_eval_lib.uncertainty import paired_ratio_interval

WHOLE = "fp16"  # the adapted model before every compression
ENERGY = "energy_per_request_j"
CACHING = "prefix caching"
PUBLISHED_T4 = "published T4"
CHANGE = "energy_change_pct"


def savings(studies: Iterable[Results], claimed_pct: float) -> pd.DataFrame:
    """Judge a claimed saving of energy per request by technique and task.

    Compressions are compared with FP16, prefix caching with the same variant without it, run by run
    (paired ratio of means); the published T4 figures, which hold one run a variant, model by model.

    Args:
        studies: Finished studies.
        claimed_pct: What a technique is said to save at most, %.

    Returns:
        A row a study, technique, variant and task: `pairs` of runs or models, `energy_change_pct`
        with its interval over them (empty of one pair), and a `verdict`.
    """
    rows = []
    for results in studies:
        at = {"shown_by": results.study.name}
        for arm, own, whole in pairs_of_runs(results.headline):
            change = _change(own[ENERGY], whole[ENERGY], "runs")
            rows.append(at | {"technique": arm["precision"]} | arm | change)
        for arm, own, without in _cached(results):
            change = _change(own[ENERGY], without[ENERGY], "runs")
            rows.append(at | {"technique": CACHING} | arm | change)
    for task, precision, energy in _published():
        arm = {"technique": precision, "task": task, "method": "lora", "precision": precision}
        change = _change(energy[precision], energy[WHOLE], "models")
        rows.append({"shown_by": PUBLISHED_T4} | arm | change)
    table = pd.DataFrame(rows)
    bounds = [CHANGE, f"{CHANGE}_lo", f"{CHANGE}_hi"]
    table["verdict"] = [
        verdict(change, low, high, claimed_pct)
        for change, low, high in table[bounds].itertuples(index=False)
    ]
    return table


def verdict(change: float, low: float, high: float, claimed_pct: float) -> str:
    """Say what a change with its interval, %, allows to conclude on a claimed saving."""
    if not (np.isfinite(low) and np.isfinite(high)):
        return "no conclusion: one pair"
    if low > 0:
        return "costs more"
    if high >= 0:
        return "no saving shown"
    if high <= -claimed_pct:
        return f"saves {claimed_pct:.0f} % or more"
    if low > -claimed_pct:
        return f"saves, less than {claimed_pct:.0f} %"
    return f"saves; {claimed_pct:.0f} % is possible"


def finished(names: Iterable[str]) -> list[Results]:
    """Load the studies of these names that were served here as they stand now; no others."""
    found = []
    for study in map(load_study, names):
        with contextlib.suppress(UserError):  # nothing served, or by other settings
            found.append(load_results(study))
    return found


def pairs_of_runs(
    observations: pd.DataFrame,
) -> Iterator[tuple[dict[str, Any], pd.DataFrame, pd.DataFrame]]:
    """Yield every compression's runs beside FP16's of the same repetition, by concurrency."""
    keys = [column for column in VARIANT if column != "precision"]
    for _, alike in observations.groupby([*keys, "concurrency"], sort=False):
        by_run = {
            precision: runs.set_index("repetition")
            for precision, runs in alike.groupby("precision", sort=False)
        }
        whole = by_run.pop(WHOLE, None)
        for precision, runs in by_run.items():
            both = [] if whole is None else runs.index.intersection(whole.index)
            if len(both):
                arm = alike.iloc[0][keys].to_dict() | {"precision": precision}
                yield arm, runs.loc[both], whole.loc[both]


def named(name: str, bounds: Sequence[float]) -> dict[str, float]:
    """Return a value and its bounds under a column's name, `_lo` and `_hi`."""
    return dict(zip((name, f"{name}_lo", f"{name}_hi"), map(float, bounds), strict=True))


def _cached(
    results: Results,
) -> Iterator[tuple[dict[str, Any], pd.DataFrame, pd.DataFrame]]:
    """Yield each variant's runs with prefix caching beside those without."""
    rows = results.observations
    cached = rows[rows["prefix_caching"].eq(True)]
    plain = results.headline.set_index([*VARIANT, "repetition"])
    for arm, runs in cached.groupby(VARIANT, sort=False):
        keys = pd.MultiIndex.from_frame(runs[[*VARIANT, "repetition"]])
        both = keys.intersection(plain.index)
        if len(both):
            own = runs.set_index([*VARIANT, "repetition"])
            yield dict(zip(VARIANT, arm, strict=True)), own.loc[both], plain.loc[both]


def _published() -> Iterator[tuple[str, str, pd.DataFrame]]:
    """Yield of each task and quantised precision the published J a request, a row a model."""
    observed = published.observations(published.read())
    lora = observed[observed["method"] == "lora"]
    for task, cells in lora.groupby("task", sort=False):
        energy = cells.pivot_table(index=MODEL, columns="precision", values=ENERGY).dropna()
        for precision in energy.columns.drop(WHOLE):
            yield task, precision, energy


def _change(own: pd.Series, whole: pd.Series, of: str) -> dict[str, Any]:
    ratio = paired_ratio_interval(own.astype(float), whole.astype(float))
    return {"pairs": len(own), "of": of} | named(CHANGE, [100 * (value - 1) for value in ratio])
