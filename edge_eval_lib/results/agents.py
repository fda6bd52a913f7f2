"""What answering in several calls takes, beside the single call: by prompt, by solved task.

A serving window is measured as a whole. Its energy and seconds are shared out to the prompts by how
long their calls were served: the calls of one batch share its seconds equally.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd

from edge_eval_lib.artefacts.completion import read_raw
from edge_eval_lib.economics.prices import Prices
from edge_eval_lib.lifecycle.serve import closed_loop_name
from edge_eval_lib.results.arms import SEED, correct_answers, share_interval
from edge_eval_lib.results.columns import VARIANT, sort_variants
from edge_eval_lib.results.observations import Results
from edge_eval_lib.results.serving import answered_in_s
from edge_eval_lib.uncertainty import paired_bootstrap, paired_ratio_interval

ARM = [*VARIANT, "prefix_caching"]
CONFIGURATION = [column for column in VARIANT if column != "task"]
USED = ["calls", "input_tokens", "output_tokens", "energy_j", "seconds", "usd", "latency_s"]
CALLS = ["window", "prompt_id", "submitted_s", "input_tokens", "output_tokens", "ttft_ms",
         "tpot_ms", "token_ids"]  # fmt: skip
# By what a request of several calls is compared with one of a single call.
INFLATED = {
    "input_tokens": "input_tokens_times",
    "output_tokens": "output_tokens_times",
    "energy_j": "energy_times",
    "usd": "usd_times",
    "latency_s": "latency_times",
}
SAVED = {"energy_j": "energy_times", "seconds": "seconds_times", "latency_s": "latency_times"}
SOLVED = {"energy_j": "solved_energy_times", "usd": "solved_usd_times"}


def calls_of(results: Results) -> pd.DataFrame:
    """Read every call at the headline concurrency, with and without reuse of prefixes.

    Returns:
        A row a call: its arm, `repetition`, `prompt_id`, number `call`, tokens, times.
    """
    concurrency = results.study.workload.headline_concurrency
    names = {closed_loop_name(concurrency, reused): reused for reused in (False, True)}
    served = results.runs[results.runs["stage"] == "serve"]
    parts = []
    for run in served.to_dict("records"):
        several = "failed_calls" in run["serving_windows"][0]
        raw = read_raw(run["notebook"], "requests", [*CALLS, *(["call"] if several else [])])
        raw = raw[raw["window"].isin(names)]
        raw = raw.assign(call=raw["call"] if several else 1)
        raw = raw.assign(prefix_caching=raw["window"].map(names), repetition=run["repetition"])
        parts.append(raw.assign(**{column: run[column] for column in VARIANT}))
    return pd.concat(parts, ignore_index=True)


def service_s(calls: pd.DataFrame) -> pd.Series:
    """Seconds that each call was served, those of a batch shared by its calls.

    Calls submitted at one time are a batch. NaN times per token are of single tokens.
    """
    batch = calls.groupby("submitted_s")["submitted_s"].transform("size")
    return answered_in_s(calls) / batch


def used_by_prompt(calls: pd.DataFrame, energy_j: float | None, seconds: float) -> pd.DataFrame:
    """Share a window's energy and seconds out to its prompts.

    Args:
        calls: The window's, as `calls_of` reads them.
        energy_j: Of the window; None where it is not known.
        seconds: Of the window.

    Returns:
        By prompt: `calls`, `input_tokens`, `output_tokens`, `energy_j`, `seconds`, `latency_s`.
    """
    served = calls.assign(
        service_s=service_s(calls), end_s=calls["submitted_s"] + answered_in_s(calls)
    )
    prompts = served.groupby("prompt_id")
    share = prompts["service_s"].sum() / served["service_s"].sum()
    return pd.DataFrame(
        {
            "calls": prompts.size(),
            "input_tokens": prompts["input_tokens"].sum(),
            "output_tokens": prompts["output_tokens"].sum(),
            "energy_j": np.nan if energy_j is None else share * energy_j,
            "seconds": share * seconds,
            "latency_s": prompts["end_s"].max() - prompts["submitted_s"].min(),
        }
    )


def prompts_table(results: Results, calls: pd.DataFrame, prices: Prices) -> pd.DataFrame:
    """A row an arm, with or without reuse, and prompt: what it took, and whether it was solved.

    Means over repetitions. `correct` is that of the arm's scored answers, which are those without
    reuse.
    """
    correct = correct_answers(results.answers, results.study.correct_from)
    at = results.study.workload.headline_concurrency
    windows = results.observations[results.observations["concurrency"] == at]
    parts = []
    for _, window in windows.iterrows():
        reused = bool(window["prefix_caching"])
        arm = {column: window[column] for column in VARIANT}
        own = calls[(calls[VARIANT] == pd.Series(arm)).all(axis=1)]
        own = own[(own["prefix_caching"] == reused) & (own["repetition"] == window["repetition"])]
        answered = own["prompt_id"].nunique()
        per_request = window["energy_per_request_j"]
        energy_j = None if pd.isna(per_request) else per_request * answered
        tokens = window["output_tokens_per_request"] * answered
        used = used_by_prompt(own, energy_j, tokens / window["throughput_tok_s"])
        used["usd"] = prices.machine_usd(used["energy_j"], used["seconds"])
        used["correct"] = correct[tuple(arm.values())].reindex(used.index)
        parts.append(used.reset_index().assign(**arm, prefix_caching=reused))
    table = pd.concat(parts, ignore_index=True)
    by = [*ARM, "prompt_id"]
    return table.groupby(by, sort=False)[[*USED, "correct"]].mean().reset_index()


def solved_table(prompts: pd.DataFrame) -> pd.DataFrame:
    """A row an arm, with and without reuse: the share solved, and what a (solved) task takes.

    Intervals of 95 %: Wilson's of the share, that of paired ratios over prompts of what a solved
    task takes.
    """
    rows = []
    for arm, own in prompts.groupby(ARM, sort=False):
        own = own.dropna(subset=["correct"])
        share, low, high = share_interval(own["correct"].sum(), len(own))
        row: dict[str, Any] = dict(zip(ARM, arm, strict=True)) | {"prompts": len(own)}
        row |= {"solved_share": share, "solved_share_lo": low, "solved_share_hi": high}
        row |= {f"task_{name}": own[name].mean() for name in USED}
        for name in ("energy_j", "usd", "seconds"):
            known = share and own[name].notna().all()
            value = paired_ratio_interval(own[name], own["correct"]) if known else None
            row |= _bounded(f"solved_{name}", value)
        rows.append(row)
    return sort_variants(pd.DataFrame(rows))


def inflation_table(prompts: pd.DataFrame, single: str) -> pd.DataFrame:
    """A row an arm that is not of the task `single`: how many times that single call it takes.

    Of the same configuration, prompt by prompt, both without reuse but for the arm's own. Columns
    are those of `INFLATED` and `solved_energy_times`, each with its 95 % interval: paired ratios
    over prompts, and percentiles of resampled prompts for what a solved task takes.
    """
    alone = prompts[(prompts["task"] == single) & ~prompts["prefix_caching"]]
    rows = []
    for row, both in _beside(alone, prompts[prompts["task"] != single], CONFIGURATION):
        for name, column in INFLATED.items():
            pair = both[[name, f"{name}_alone"]]
            known = pair.notna().all(axis=None)
            row |= _bounded(column, paired_ratio_interval(*pair.to_numpy().T) if known else None)
        row |= _bounded("solved_energy_times", _per_solved(both, "energy_j"))
        rows.append(row)
    return sort_variants(pd.DataFrame(rows))


def _bounded(name: str, value: Sequence[float] | None) -> dict[str, float]:
    return dict(zip((name, f"{name}_lo", f"{name}_hi"), value or [np.nan] * 3, strict=True))


def _per_solved(both: pd.DataFrame, name: str) -> tuple[float, float, float]:
    columns = [name, "correct", f"{name}_alone", "correct_alone"]
    return per_solved_ratio(*both[columns].to_numpy(float).T)


def per_solved_ratio(
    used: Sequence[float],
    correct: Sequence[float],
    other_used: Sequence[float],
    other_correct: Sequence[float],
) -> tuple[float, float, float]:
    """Compute (used / solved) of one arm over that of another, with its 95 % interval.

    Over resampled prompts (paired bootstrap, percentiles). Infinite where an arm solves nothing
    that the other solves; NaN where neither solves anything, or something is not known.
    """
    columns = [np.asarray(values, float) for values in (used, correct, other_used, other_correct)]
    if np.isnan(columns).any() or not (columns[1].any() or columns[3].any()):
        return np.nan, np.nan, np.nan
    if not columns[1].any():
        return np.inf, np.nan, np.inf

    def ratio(own, solved, its, its_solved, axis=-1):
        with np.errstate(divide="ignore", invalid="ignore"):
            spent = own.mean(axis=axis) / its.mean(axis=axis)
            return spent * its_solved.mean(axis=axis) / solved.mean(axis=axis)

    found = paired_bootstrap(columns, ratio, SEED).confidence_interval
    return float(ratio(*columns)), float(found.low), float(found.high)


def _beside(
    alone: pd.DataFrame, arms: pd.DataFrame, alike: list[str]
) -> Iterator[tuple[dict[str, Any], pd.DataFrame]]:
    """Yield each arm's row, and its prompts beside those of single calls `alike` in these columns.

    An arm without such a prompt is left out.
    """
    for arm, own in arms.groupby(ARM, sort=False):
        row: dict[str, Any] = dict(zip(ARM, arm, strict=True))
        same = (alone[alike] == pd.Series(row)[alike]).all(axis=1)
        both = own.merge(alone[same], on="prompt_id", suffixes=("", "_alone"))
        if not both.empty:
            yield row | {"prompts": len(both)}, both


def reuse_table(results: Results, prompts: pd.DataFrame, calls: pd.DataFrame) -> pd.DataFrame:
    """A row an arm: what reuse of prefixes saves, prompt by prompt, and whether tokens stay.

    `hit_rate` is the share of the prompts' tokens that were not computed again, `same_tokens` the
    share of prompts all of whose calls were answered by the same tokens; those of `SAVED` are
    ratios, with reuse over without. Two runs of each would tell how far these are chance: a
    window's energy is one observation (`tables/prefix_caching.csv` has intervals over runs).
    """
    at = results.observations[results.observations["prefix_caching"].eq(True)]
    hits = at.groupby(VARIANT, sort=False)["prefix_cache_hit_rate"].mean()
    rows = []
    for arm, own in prompts.groupby(VARIANT, sort=False):
        sides = [own[own["prefix_caching"] == reused] for reused in (True, False)]
        both = sides[0].merge(sides[1], on="prompt_id", suffixes=("", "_without"))
        if both.empty:
            continue
        row: dict[str, Any] = dict(zip(VARIANT, arm, strict=True)) | {"prompts": len(both)}
        row["hit_rate"] = hits.get(arm, np.nan)
        row["same_tokens"] = _same_tokens(calls[(calls[VARIANT] == list(arm)).all(axis=1)])
        row |= {SAVED[n]: both[n].mean() / both[f"{n}_without"].mean() for n in SAVED}
        rows.append(row)
    return sort_variants(pd.DataFrame(rows)) if rows else pd.DataFrame()


def _same_tokens(calls: pd.DataFrame) -> float:
    """Share of prompts whose calls were answered alike with and without reuse."""
    said = {
        reused: own.sort_values("call").groupby(["repetition", "prompt_id"])["token_ids"].agg(list)
        for reused, own in calls.groupby("prefix_caching")
    }
    if len(said) < 2:
        return np.nan
    with_reuse, without = said[True].align(said[False], join="inner")
    pairs = zip(with_reuse, without, strict=True)
    return float(np.mean([[list(t) for t in a] == [list(t) for t in b] for a, b in pairs]))


def against_one_answer(prompts: pd.DataFrame, single: str, precision: str) -> pd.DataFrame:
    """A row an arm in steps: what a solved task takes of one call's of `single` at a precision.

    Of the same model and method, prompt by prompt: the columns of `SOLVED`, each with its 95 %
    interval (`per_solved_ratio`).
    """
    alone = prompts[(prompts["task"] == single) & (prompts["precision"] == precision)]
    alone = alone[~alone["prefix_caching"]]
    rows = []
    model = ["family", "size", "method"]
    for row, both in _beside(alone, prompts[prompts["task"] != single], model):
        for name, column in SOLVED.items():
            row |= _bounded(column, _per_solved(both, name))
        rows.append(row)
    return sort_variants(pd.DataFrame(rows)) if rows else pd.DataFrame()
