"""The paper's headline table, frontier.csv: a row a model, over its INT4 variants."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from edge_eval_lib.results.columns import (
    DOUBTFUL,
    METRICS,
    MODEL,
    doubtful_checks,
    joined,
    mixed,
    sort_variants,
    verdict,
)
from edge_eval_lib.results.readable import plain_name

Z95 = 1.96


def frontier_table(
    variants: pd.DataFrame,
    rule: str = "paper",
    methods: Sequence[str] = ("lora", "qlora"),
    spread: pd.DataFrame | None = None,
) -> pd.DataFrame:
    """A row a model: the five metrics over its INT4 variants.

    `rule` "paper" takes for each column the statistic that the paper's headline table follows:
    the mean for n_break, rho_sys and c_tax, the largest for ipw, the mean over tasks for
    q_ret_pct. "mean" and "median" take that one statistic for every column. `<metric>_median`
    stands beside each. By the rule "paper" q_ret_pct is taken over LoRA-INT4 alone where `methods`
    has it (INT4 against FP16 of the same adapter); everything else, and every column by another
    rule, is taken over the INT4 variants of all `methods`.

    Rows whose `validity` is invalid are left out while there are others, and the largest is never
    that of a row with a warning while there is another; `validity` says how many are doubtful.
    `spread` (`uncertainty.single_run_spread` of energy_per_request_j, rho_sys and c_tax) fills
    `not_ordered`: which variants come within noise of the largest ipw, and from which models a
    figure does not differ at 95 %.
    """
    if rule not in ("paper", "mean", "median"):
        raise ValueError(f"rule is {rule!r}; it must be 'paper', 'mean' or 'median'")
    int4 = variants[(variants["precision"] == "int4") & variants["method"].isin(methods)]
    validity = int4["validity"] if "validity" in int4 else pd.Series(None, int4.index, dtype=object)
    int4 = int4.assign(verdict=validity.map(verdict), validity=validity)
    usable = _unless_none_is_left(int4, ["invalid"])
    sound = _unless_none_is_left(usable, DOUBTFUL)
    lora_alone = rule == "paper" and "lora" in methods
    fidelity = usable[usable["method"] == "lora"] if lora_alone else usable
    statistic = dict.fromkeys(METRICS, "mean" if rule == "paper" else rule)
    if rule == "paper":
        statistic["ipw"] = "max"

    columns: dict[str, pd.Series] = {}
    for metric in METRICS:
        rows = fidelity if metric == "q_ret_pct" else usable
        columns[metric] = _by_model(sound if statistic[metric] == "max" else rows, metric).agg(
            statistic[metric]
        )
        columns[f"{metric}_median"] = _by_model(rows, metric).median()
        for end in (f"{metric}_estimate_lo", f"{metric}_estimate_hi"):
            if end in int4:
                chosen = sound if statistic[metric] == "max" else rows
                columns[end] = _by_model(chosen, end).agg(statistic[metric])
    models = variants[MODEL].drop_duplicates().set_index(MODEL).index
    table = pd.DataFrame(columns).reindex(models)
    groups = int4.groupby(MODEL, sort=False)
    table["int4_variants"] = groups.size().reindex(models, fill_value=0)
    table["validity"] = [_validity_of(groups, key) for key in models]
    if "prices" in variants:
        table["prices"] = variants.groupby(MODEL)["prices"].agg(joined).reindex(models)
    if spread is not None:
        table["not_ordered"] = _not_ordered(table, sound, usable, fidelity, spread, statistic)
    table["notes"] = [_frontier_notes(groups, key) for key in models]
    table = table.reset_index()
    table.insert(0, "model", table["family"] + "-" + table["size"])
    return sort_variants(table)


def _unless_none_is_left(rows: pd.DataFrame, verdicts: Sequence[str]) -> pd.DataFrame:
    """Rows of none of the verdicts; of a model that has no other, all its rows."""
    bad = rows["verdict"].isin(verdicts)
    others = (~bad).groupby([rows[c] for c in MODEL]).transform("any")
    return rows[~bad | ~others]


def _by_model(rows: pd.DataFrame, column: str):
    return rows.groupby(MODEL, sort=False)[column]


def _validity_of(groups, model: tuple) -> str | None:
    """`ok`, or the worst verdict, how many variants are doubtful, and by which checks."""
    if model not in groups.groups:
        return None
    rows = groups.get_group(model)
    doubtful = rows[rows["verdict"].isin(DOUBTFUL)]
    if doubtful.empty:
        return "ok" if (rows["verdict"] == "ok").any() else "not checked"
    worst = next(word for word in DOUBTFUL if (doubtful["verdict"] == word).any())
    names = ", ".join(doubtful_checks(doubtful["validity"]).unique())
    return f"{worst}: {len(doubtful)} of {len(rows)} INT4 variants" + (f" ({names})" * bool(names))


def _not_ordered(
    table: pd.DataFrame,
    sound: pd.DataFrame,
    usable: pd.DataFrame,
    fidelity: pd.DataFrame,
    spread: pd.DataFrame,
    statistic: dict[str, str],
) -> list[str | None]:
    """Which of a model's figures are within one run's scatter, or the prompts', of another's."""
    unclear: dict[tuple, list[str]] = {model: [] for model in table.index}
    rows = {"ipw": sound if statistic["ipw"] == "max" else usable, "q_ret_pct": fidelity}
    for metric in METRICS:
        own = rows.get(metric, usable).dropna(subset=[metric])
        if metric == "n_break" or own.empty:  # adaptation ran once: its scatter is not known
            continue
        own = own.assign(sd=_relative_sd(own, metric, spread))
        if statistic[metric] == "max":
            best = own.loc[_by_model(own, metric).idxmax()].set_index(MODEL)
            sd = best["sd"]
            for model, part in own.groupby(MODEL, sort=False):
                near = _near(part[metric], part["sd"], best.loc[model, metric], sd[model]).sum() - 1
                if near > 0:
                    unclear[model].append(
                        f"{plain_name(metric)}: the largest of {len(part)} variants, {near} of "
                        "them within noise of it"
                    )
        else:
            groups = own.assign(variance=own["sd"] ** 2).groupby(MODEL, sort=False)["variance"]
            sd = np.sqrt(groups.sum(min_count=1)) / groups.count()
        for model, value in table[metric].items():
            others = table[metric].drop(model)
            near = _near(others, sd.reindex(others.index), value, sd.get(model, np.nan))
            names = ", ".join("-".join(other) for other in others.index[near])
            if names:
                unclear[model].append(f"{plain_name(metric)}: within noise of {names}")
    return ["; ".join(texts) or None for texts in unclear.values()]


def _near(values: pd.Series, sds: pd.Series, value: float, sd: float) -> pd.Series:
    """Which values chance alone may set so far from `value`, at 95 %; sds are relative."""
    return np.abs(np.log(values / value)) <= Z95 * np.hypot(sds, sd)


def _relative_sd(rows: pd.DataFrame, metric: str, spread: pd.DataFrame) -> pd.Series:
    """Standard deviation over value of each variant's metric: over runs, or over prompts."""

    def over_prompts(column: str) -> pd.Series:
        ends = [f"{column}{end}" for end in ("_hi", "_lo")]
        if not set(ends) <= set(rows):
            return pd.Series(np.nan, rows.index)
        return (rows[ends[0]] - rows[ends[1]]) / (2 * Z95) / rows[column]

    if metric == "q_ret_pct":
        return over_prompts("q_ret_pct")
    one_run = spread["relative_sd"].get("energy_per_request_j" if metric == "ipw" else metric)
    over_runs = (np.nan if one_run is None else one_run) / np.sqrt(rows["repetitions"])
    if metric == "ipw":
        return np.hypot(over_runs, over_prompts("score").fillna(0))
    return over_runs


def _frontier_notes(groups, model: tuple) -> str | None:
    if model not in groups.groups:
        return "no INT4 variant"
    rows = groups.get_group(model)
    empty = rows[METRICS].isna().sum()
    notes = [f"{m}: {n} INT4 variants empty" for m, n in empty.items() if n]
    left_out = int((rows["verdict"] == "invalid").sum())
    if 0 < left_out < len(rows):
        notes.append(f"left out as invalid: {left_out} of {len(rows)} INT4 variants")
    notes += [text.rstrip(".") for text in mixed(rows)]
    return "; ".join(notes) or None
