"""Tables: observations and answers -> variants, frontier, adaptation, serving, reference.

Published and measured figures take the same way. `observations` has a row a serving run at one
concurrency (`OBSERVATION_COLUMNS`), `answers` a row a variant, repetition and prompt. A figure
that is missing stays empty and `notes` says why; it is never 0.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from edge_eval_lib import metrics
from edge_eval_lib.economics.cost import full_costs, keep_warm_s, paper_costs
from edge_eval_lib.economics.prices import Prices
from edge_eval_lib.uncertainty import all_of_one_ratio, mean_interval, paired_ratio_interval

MODEL = ["family", "size"]
VARIANT = [*MODEL, "task", "method", "precision"]
ADAPTATION = [
    "adapt_energy_j",
    "adapt_energy_lo_j",
    "adapt_energy_hi_j",
    "adapt_s",
    "adapt_peak_memory_gb",
    "adapt_power_w",
    "adapt_train_energy_j",  # of which the training alone, without loading the base
    "adapt_train_s",
]
# What adaptation computed in, and where.
ADAPTATION_TEXTS = ["adapt_executed_dtype", "adapt_instruction_set", "adapt_host"]
COMPRESSION = ["compress_energy_j", "compress_s"]
LOAD = ["load_energy_j", "load_s"]
LOAD_MODEL = ["load_model_energy_j"]  # without the import of the libraries
# The range of an estimated energy ends in `_lo_j`, `_hi_j`, that of a figure made of it in
# `_estimate_lo`, `_estimate_hi`; `_lo`, `_hi` after the whole name is an interval over runs or
# prompts.
RANGES = [
    f"{name}_energy_{end}_j" for name in ("compress", "load", "load_model") for end in ("lo", "hi")
]
IDLE = ["idle_bare_power_w", "idle_loaded_power_w"]
SERVING = [
    "energy_per_request_j",
    "energy_per_request_lo_j",
    "energy_per_request_hi_j",
    "energy_per_request_net_j",
    "energy_per_token_j",
    "throughput_tok_s",
    "ttft_ms",
    "ttft_p95_ms",
    "tpot_ms",
    "tpot_p95_ms",
    "memory_gb",
    "reserved_gb",
    "memory_nominal_gb",
    "power_w",
    "requests",
    "failed_requests",
    "input_tokens_per_request",
    "output_tokens_per_request",
    "natural_tokens_per_request",
]
TEXTS = [
    "engine",
    "host",
    "executed_dtype",
    "instruction_set",
    "merge_base",
    "energy_source",
    "settings_hash",
    "window",
    "validity",
]
MEASURED = [
    *ADAPTATION,
    *COMPRESSION,
    *LOAD,
    *LOAD_MODEL,
    *RANGES,
    *IDLE,
    *SERVING,
    "batch_agreement",
]
OBSERVATION_COLUMNS = [
    *VARIANT,
    "repetition",
    "concurrency",
    "rate_per_s",  # of an open loop, which has no concurrency
    "prefix_caching",
    "prefix_cache_hit_rate",
    "gpus",
    *TEXTS,
    *ADAPTATION_TEXTS,
    *MEASURED,
    "rows_passed_over",  # of the adaptation: training rows of too many tokens
    "run",
    "notes",
]
# A cold serving run is one observation of these.
OVER_RUNS = [
    "energy_per_request_j",
    "energy_per_request_net_j",
    "energy_per_token_j",
    "throughput_tok_s",
    "ttft_ms",
    "tpot_ms",
    "memory_gb",
]
# Metrics whose two terms come from the same run.
RUN_RATIOS = {
    "c_tax": ("load_energy_j", "energy_per_request_j"),
    "c_tax_model": ("load_model_energy_j", "energy_per_request_j"),
    "ipw": ("score", "energy_per_request_j"),
    "rho_sys": ("throughput_tok_s", "memory_gb"),
}
METRICS = ["n_break", "ipw", "rho_sys", "q_ret_pct", "c_tax"]
# Figures that follow an estimate of energy. c_tax does not: both its terms are of one estimate.
ESTIMATED = ["n_break", "n_break_full", "ipw", "score_per_watt"]
DOUBTFUL = ("invalid", "warning")
Z95 = 1.96
NOT_BOUNDED = "no answer changed its score: not bounded"
# What rows must share for their speed and energy to be of the variants alone.
MIXED = {
    "executed_dtype": "executed dtype",
    "engine": "engine",
    "host": "host",
    "instruction_set": "instruction set",
}
_ORDER = {
    "task": ["rag", "summarization", "dialogue"],
    "method": ["none", "lora", "qlora"],
    "precision": ["fp16", "int8", "int4"],
}


# --- variants ---------------------------------------------------------------------------------


def variants_table(
    observations: pd.DataFrame,
    answers: pd.DataFrame | None,
    prices: Prices,
    scenarios: Sequence[Prices] = (),
    confidence: float = 0.95,
    price_set: str | None = None,
) -> pd.DataFrame:
    """A row a variant: means over repetitions, the five metrics, and their intervals.

    `observations` holds one concurrency (ValueError otherwise). Rows of method `none` are left
    out: they belong to `reference_table`. Without `answers` the scores are those of a `score`
    column of the observations, one a variant. `<column>_lo` and `<column>_hi` bound the interval
    of a column where it has two observations or more: runs for what is measured while serving,
    for c_tax, ipw and rho_sys (both terms of a ratio from the same run) and, pooled over the tasks
    of a configuration, for `*_pooled` loads; prompts for score and q_ret_pct. n_break rests on one
    adaptation: it has no interval. n_break_full_least and _most are its range over `scenarios`.
    Where energy is estimated, `<metric>_estimate_lo` and `_estimate_hi` are the metric at both ends
    of the estimate, the same for every energy. `price_set` names `prices` in a column.
    """
    runs = _checked(observations)
    runs = runs[runs["method"] != "none"]
    _refuse_repeats(runs)
    table = _means_over_runs(runs)
    notes = _Notes(table.index, runs)

    prompts = None if answers is None else _per_prompt(answers)
    table = table.join(_scores(runs, prompts, confidence))
    if answers is not None:
        notes.add_unscored(answers)
        runs = runs.join(
            answers.groupby([*VARIANT, "repetition"])["score"].mean().rename("score"),
            on=[*VARIANT, "repetition"],
        )
    table = table.join(_intervals_over_runs(runs, OVER_RUNS, confidence))
    table = table.join(_pooled_loads(runs, table.index, confidence))

    _add_metrics(table, prices, scenarios, notes)
    table = table.join(_run_ratio_intervals(runs, RUN_RATIOS, confidence))
    table = table.join(_fidelity(table["score"], prompts, confidence, notes))

    for column in ["adapt_energy_j", *COMPRESSION, *LOAD, "keep_warm_s", *OVER_RUNS, "score"]:
        notes.add_missing(table[column])
    _note_mixed_fidelity(table, notes)
    table["prices"] = price_set
    table["notes"] = notes.text()
    return sort_variants(table.reset_index())[_variant_columns(table)]


def _checked(observations: pd.DataFrame) -> pd.DataFrame:
    """Observations with every column; absent figures are NaN."""
    absent = [c for c in [*VARIANT, "repetition", "concurrency"] if c not in observations]
    if absent:
        raise ValueError(f"observations lack the columns {', '.join(absent)}")
    extra = ["score"] if "score" in observations else []
    runs = observations.reindex(columns=[*OBSERVATION_COLUMNS, *extra]).reset_index(drop=True)
    numbers = [*MEASURED, "gpus", *extra]
    runs[numbers] = runs[numbers].apply(pd.to_numeric).astype(float)
    return runs


def _refuse_repeats(runs: pd.DataFrame) -> None:
    repeated = runs[runs.duplicated([*VARIANT, "repetition"])]
    if len(repeated):
        first = repeated.iloc[0]
        raise ValueError(
            f"{variant_name(first)} has two observations of repetition {first['repetition']}; "
            "a table of variants takes one concurrency and each repetition once"
        )


def _means_over_runs(runs: pd.DataFrame) -> pd.DataFrame:
    groups = runs.groupby(VARIANT, sort=False)
    return pd.concat(
        [
            groups.size().rename("repetitions"),
            groups[["concurrency", "gpus"]].first(),
            groups[TEXTS].agg(_joined),
            groups[MEASURED].mean(),
        ],
        axis=1,
    )


def _joined(values: pd.Series) -> str | None:
    return "; ".join(dict.fromkeys(str(v) for v in values.dropna())) or None


def _per_prompt(answers: pd.DataFrame) -> pd.DataFrame:
    """Numbers of a prompt, averaged over repetitions: index variant and prompt_id."""
    numbers = answers.select_dtypes("number").columns.difference(["repetition", "prompt_id"])
    return answers.groupby([*VARIANT, "prompt_id"], sort=False)[list(numbers)].mean()


def _scores(runs: pd.DataFrame, prompts: pd.DataFrame | None, confidence: float) -> pd.DataFrame:
    """Mean scores of a variant; the interval of `score` is over prompts."""
    if prompts is None:
        if "score" not in runs:
            raise ValueError("without answers, observations need a column 'score'")
        return runs.groupby(VARIANT, sort=False)[["score"]].mean()
    groups = prompts.groupby(VARIANT, sort=False)
    means = groups.mean()
    means["scored_prompts"] = groups["score"].count()
    rows = {
        key: mean_interval(values.dropna().to_numpy(), confidence)[1:]
        for key, values in groups["score"]
        if values.count() > 1
    }
    return means.join(_bounds(rows, "score"))


def _bounds(rows: dict, column: str) -> pd.DataFrame:
    """Variants -> (lo, hi), as the two columns beside `column`."""
    index = pd.MultiIndex.from_tuples(rows, names=VARIANT) if rows else _no_variants()
    return pd.DataFrame(
        list(rows.values()), index=index, columns=[f"{column}_lo", f"{column}_hi"], dtype=float
    )


def _no_variants() -> pd.MultiIndex:
    return pd.MultiIndex.from_arrays([[]] * len(VARIANT), names=VARIANT)


def _intervals_over_runs(
    runs: pd.DataFrame, columns: Sequence[str], confidence: float, by: Sequence[str] = VARIANT
) -> pd.DataFrame:
    found = []
    for column in columns:
        known = runs.dropna(subset=[column])
        rows = {
            key: mean_interval(values.to_numpy(), confidence)[1:]
            for key, values in known.groupby(list(by), sort=False)[column]
            if len(values) > 1
        }
        index = pd.MultiIndex.from_tuples(rows, names=by) if rows else None
        found.append(
            pd.DataFrame(
                list(rows.values()),
                index=index if rows else pd.MultiIndex.from_arrays([[]] * len(by), names=by),
                columns=[f"{column}_lo", f"{column}_hi"],
                dtype=float,
            )
        )
    return pd.concat(found, axis=1)


def _pooled_loads(runs: pd.DataFrame, index: pd.MultiIndex, confidence: float) -> pd.DataFrame:
    """Loads of a configuration over all its tasks: the same weights' size, hence more runs."""
    by = [*MODEL, "method", "precision"]
    pooled = runs.groupby(by, sort=False)[LOAD].mean()
    pooled = pooled.join(_intervals_over_runs(runs, LOAD, confidence, by))
    pooled.columns = [re.sub(r"(_lo|_hi|)$", r"_pooled\1", c, count=1) for c in pooled]
    at = index.droplevel("task")
    return pooled.reindex(at).set_axis(index)


def _add_metrics(
    table: pd.DataFrame, prices: Prices, scenarios: Sequence[Prices], notes: _Notes
) -> None:
    table["ipw"] = _where_known(
        metrics.intelligence_per_watt, table["score"], table["energy_per_request_j"]
    )
    table["score_per_watt"] = table["score"] / table["power_w"]
    table["rho_sys"] = _where_known(
        metrics.system_density, table["throughput_tok_s"], table["memory_gb"]
    )
    table["rho_sys_nominal"] = _where_known(
        metrics.system_density, table["throughput_tok_s"], table["memory_nominal_gb"]
    )
    table["c_tax"] = _where_known(
        metrics.cold_start_tax, table["load_energy_j"], table["energy_per_request_j"]
    )
    table["c_tax_model"] = _where_known(
        metrics.cold_start_tax, table["load_model_energy_j"], table["energy_per_request_j"]
    )
    table["keep_warm_s"] = _where_known(
        keep_warm_s,
        table["load_energy_j"],
        table["idle_loaded_power_w"],
        table["idle_bare_power_w"],
    )
    notes.add(np.isinf(table["keep_warm_s"]), "keep_warm_s: being loaded draws no power of its own")
    table["n_break"] = paper_break_even(table, prices)
    table["n_break_full"] = full_break_even(table, prices)
    if scenarios:
        ranges = pd.concat([full_break_even(table, s) for s in scenarios], axis=1)
        table["n_break_full_least"] = ranges.min(axis=1)
        table["n_break_full_most"] = ranges.max(axis=1)
    _add_estimate_ranges(table, prices)
    for metric in ("n_break", "n_break_full"):
        notes.add(np.isinf(table[metric]), f"{metric}: the API is not dearer than serving here")
    notes.add(
        table["n_break_full"].notna() & table["input_tokens_per_request"].isna(),
        f"n_break_full: input tokens assumed, {prices.api_input_tokens_per_request:g} a request",
    )


def _add_estimate_ranges(table: pd.DataFrame, prices: Prices) -> None:
    """ESTIMATED at both ends of the estimate: watts of a core are the same in every window."""
    energies = ["adapt_energy_j", "compress_energy_j", "load_energy_j", "energy_per_request_j"]
    for end, other in (("lo", "hi"), ("hi", "lo")):
        at_end = table.assign(**{c: table[f"{c[:-2]}_{end}_j"] for c in energies})
        at_other = table["energy_per_request_j"] / table[f"energy_per_request_{other}_j"]
        for metric, values in {
            "ipw": table["ipw"] * at_other,
            "score_per_watt": table["score_per_watt"] * at_other,
            "n_break": paper_break_even(at_end, prices),
            "n_break_full": full_break_even(at_end, prices),
        }.items():
            table[f"{metric}_estimate_{end}"] = values


def paper_break_even(table: pd.DataFrame, prices: Prices) -> pd.Series:
    """Requests until adaptation has paid, electricity alone counted (the paper's accounting)."""
    return _where_known(
        lambda adapt, request: paper_costs(prices, adapt, request).requests,
        table["adapt_energy_j"],
        table["energy_per_request_j"],
    )


def full_break_even(table: pd.DataFrame, prices: Prices) -> pd.Series:
    """Requests until everything spent before the first one has paid (`cost.full_costs`).

    Input tokens that a run did not record are the prices' assumption.
    """
    arguments = {
        "adapt_energy_j": table["adapt_energy_j"],
        "compress_energy_j": table["compress_energy_j"],
        "load_energy_j": table["load_energy_j"],
        "seconds_before": table["adapt_s"] + table["compress_s"] + table["load_s"],
        "energy_per_request_j": table["energy_per_request_j"],
        "seconds_per_request": table["output_tokens_per_request"] / table["throughput_tok_s"],
        "input_tokens_per_request": table["input_tokens_per_request"].fillna(
            prices.api_input_tokens_per_request
        ),
        "output_tokens_per_request": table["output_tokens_per_request"],
    }
    return _where_known(
        lambda *columns: full_costs(prices, **dict(zip(arguments, columns, strict=True))).requests,
        *arguments.values(),
    )


def _where_known(function: Callable, *columns: pd.Series) -> pd.Series:
    """`function` of the rows in which no argument is missing; NaN in the others."""
    known = np.logical_and.reduce([c.notna() for c in columns])
    result = pd.Series(np.nan, index=columns[0].index)
    if known.any():
        result[known] = np.asarray(function(*(c[known].to_numpy(float) for c in columns)))
    return result


def _run_ratio_intervals(
    runs: pd.DataFrame, terms: dict[str, tuple[str, str]], confidence: float
) -> pd.DataFrame:
    """Intervals of ratios whose two terms come from the same run, by the ratio's name."""
    found = []
    for metric, pair in terms.items():
        known = runs.dropna(subset=list(pair))
        rows = {
            key: paired_ratio_interval(
                group[pair[0]].to_numpy(), group[pair[1]].to_numpy(), confidence
            )[1:]
            for key, group in known.groupby(VARIANT, sort=False)
            if len(group) > 1
        }
        found.append(_bounds(rows, metric))
    return pd.concat(found, axis=1)


def _fidelity(
    scores: pd.Series, prompts: pd.DataFrame | None, confidence: float, notes: _Notes
) -> pd.DataFrame:
    """q_ret_pct: the score against lora/fp16 of the same model and task, prompt by prompt."""
    is_base = (scores.index.get_level_values("method") == "lora") & (
        scores.index.get_level_values("precision") == "fp16"
    )
    at = [*MODEL, "task"]
    base_scores = scores[is_base].droplevel(["method", "precision"])
    base = base_scores.reindex(scores.index.droplevel(["method", "precision"])).to_numpy()
    notes.add(np.isnan(base), "q_ret_pct: lora/fp16 has no score")
    notes.add(base == 0, "q_ret_pct: lora/fp16 scored 0")
    result = pd.DataFrame(
        {"q_ret_pct": np.nan, "q_ret_pct_lo": np.nan, "q_ret_pct_hi": np.nan}, index=scores.index
    )
    comparable = pd.Series(base > 0, index=scores.index) & scores.notna()
    unbounded = pd.Series(False, index=scores.index)
    if prompts is None:
        result["q_ret_pct"] = _where_known(
            metrics.quantization_fidelity,
            scores.where(comparable),
            pd.Series(base, index=scores.index).where(comparable),
        )
        return result
    by_prompt = prompts["score"].unstack("prompt_id")
    rows = dict(zip(by_prompt.index, by_prompt.to_numpy(), strict=True))
    for key in scores.index[comparable]:
        own, other = rows[key], rows[(*key[: len(at)], "lora", "fp16")]
        both = ~(np.isnan(own) | np.isnan(other))
        if other[both].sum() > 0:
            interval = paired_ratio_interval(own[both], other[both], confidence)
            result.loc[key] = 100 * np.array(interval)
            unbounded[key] = both.sum() > 1 and all_of_one_ratio(own[both], other[both])
    # Pairs of one ratio bound nothing: the next prompt may be the first that is answered otherwise.
    result.loc[unbounded, ["q_ret_pct_lo", "q_ret_pct_hi"]] = np.nan
    notes.add(unbounded & ~is_base, f"q_ret_pct: {NOT_BOUNDED}")
    notes.add(unbounded & is_base, "q_ret_pct: 100 by definition, without an interval")
    return result


def _note_mixed_fidelity(table: pd.DataFrame, notes: _Notes) -> None:
    """Say where q_ret_pct compares answers that were computed in another way."""
    keys = ["method", "precision"]
    is_base = [key[len(MODEL) + 1 :] == ("lora", "fp16") for key in table.index]
    base = table[np.array(is_base, dtype=bool)].droplevel(keys).reindex(table.index.droplevel(keys))
    for column, name in MIXED.items():
        own, other = table[column], base[column].set_axis(table.index)
        differ = table["q_ret_pct"].notna() & own.notna() & other.notna() & (own != other)
        for key in table.index[differ]:
            text = f"q_ret_pct: {name} {own[key]}, that of lora/fp16 {other[key]}"
            notes.add(table.index == key, text)


class _Notes:
    """Why a figure is empty, variant by variant."""

    def __init__(self, index: pd.MultiIndex, runs: pd.DataFrame) -> None:
        own = runs.groupby(VARIANT, sort=False)["notes"].agg(_joined)
        self._texts = pd.Series(
            [[t] if isinstance(t, str) else [] for t in own.reindex(index)], index=index
        )

    def add(self, where, text: str) -> None:
        for texts in self._texts[np.asarray(where, dtype=bool)]:
            texts.append(text)

    def add_missing(self, column: pd.Series) -> None:
        """Say that a figure is missing, unless the runs' own notes say why."""
        told = self._texts.map(lambda texts: f"{column.name}:" in "; ".join(texts))
        self.add(column.isna() & ~told, f"{column.name}: not measured")

    def add_unscored(self, answers: pd.DataFrame) -> None:
        unscored = answers[answers["score"].isna()]
        for key, group in unscored.groupby(VARIANT, sort=False):
            if key in self._texts.index:
                reasons = _joined(group["score_reason"]) or "no reason recorded"
                count = group["prompt_id"].nunique()
                self._texts[key].append(f"score: {count} prompts not scored ({reasons})")

    def text(self) -> pd.Series:
        return self._texts.map(lambda texts: "; ".join(dict.fromkeys(texts)) or None)


def _variant_columns(table: pd.DataFrame) -> list[str]:
    """Column order: what it is, what was measured, the metrics, each beside its interval."""
    first = [*VARIANT, "repetitions", "concurrency", "engine", "executed_dtype", "gpus"]
    last = ["prices", "energy_source", "window", "validity", "merge_base", "host",
            "instruction_set", "settings_hash", "notes"]  # fmt: skip
    middle = [
        *ADAPTATION,
        *COMPRESSION,
        *LOAD,
        *LOAD_MODEL,
        *RANGES,
        *(f"{c}_pooled" for c in LOAD),
        *IDLE,
        "keep_warm_s",
        *SERVING,
        "score",
        "scored_prompts",
        "batch_agreement",
        "n_break",
        "n_break_full",
        "n_break_full_least",
        "n_break_full_most",
        "ipw",
        "score_per_watt",
        "rho_sys",
        "rho_sys_nominal",
        "q_ret_pct",
        "c_tax",
        "c_tax_model",
    ]
    ends = ("", "_lo", "_hi", "_estimate_lo", "_estimate_hi")
    middle = [f"{name}{end}" for name in middle for end in ends if f"{name}{end}" in table]
    others = [c for c in table if c not in {*first, *middle, *last}]
    return [*first, *middle, *others, *last]


def verdict(validity) -> str:
    """The worst verdict of a `validity`: invalid, warning, ok, or not checked."""
    text = validity if isinstance(validity, str) else ""
    worst = next((word for word in DOUBTFUL if f"{word}:" in text), None)
    return worst or ("ok" if re.search(r"\bok\b", text) else "not checked")


def mixed(table: pd.DataFrame) -> list[str]:
    """What the rows of a comparison do not share, a sentence each; none where they share it all.

    Engine, host, executed dtype, instruction set and concurrency are looked at where the table has
    them; a value that is unknown is none of its own.
    """
    told = []
    for column, name in MIXED.items():
        if column not in table:
            continue
        groups: dict[str, list[str]] = {}
        for _, row in table.dropna(subset=[column]).iterrows():
            of = _kind_of(row) if column == "executed_dtype" else []
            groups.setdefault(str(row[column]), []).extend(of)
        if len(groups) > 1:
            parts = [
                value + (f" ({', '.join(dict.fromkeys(of))})" if of else "")
                for value, of in groups.items()
            ]
            told.append(f"Mixed {name}s: {'; '.join(parts)}.")
    return told


def _kind_of(row: pd.Series) -> list[str]:
    if "source" in row:
        return [str(row["source"])]
    return [str(row["precision"]).upper()] if isinstance(row.get("precision"), str) else []


# --- names and order --------------------------------------------------------------------------


def variant_name(row) -> str:
    """`llama-1B_rag_lora_int4`."""
    return f"{row['family']}-{row['size']}_{row['task']}_{row['method']}_{row['precision']}"


def parameters_of(size: str) -> float:
    """`135M` -> 1.35e8, `1.5B` -> 1.5e9; infinity for a size that is no number (sorts last)."""
    match = re.fullmatch(r"([\d.]+)([KMBT])", str(size))
    return (
        float(match[1]) * 10.0 ** {"K": 3, "M": 6, "B": 9, "T": 12}[match[2]] if match else np.inf
    )


def sort_variants(table: pd.DataFrame) -> pd.DataFrame:
    """By family, number of parameters, and the paper's order of tasks, methods, precisions."""

    def rank(column: pd.Series) -> pd.Series:
        if column.name == "size":
            return column.map(parameters_of)
        order = _ORDER.get(column.name)
        if order is None:
            return column
        return column.map(lambda value: (order.index(value) if value in order else 99, str(value)))

    by = [c for c in [*VARIANT, "concurrency"] if c in table]
    return table.sort_values(by, key=rank, kind="stable", ignore_index=True)


# --- frontier ---------------------------------------------------------------------------------


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
    figure cannot be told at 95 %.
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
        table["prices"] = variants.groupby(MODEL)["prices"].agg(_joined).reindex(models)
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
    checks = doubtful["validity"].str.findall(r"(?:invalid|warning): ([^;(]+?) \(").explode()
    names = ", ".join(checks.dropna().unique())
    return f"{worst}: {len(doubtful)} of {len(rows)} INT4 variants" + (f" ({names})" * bool(names))


def _not_ordered(
    table: pd.DataFrame,
    sound: pd.DataFrame,
    usable: pd.DataFrame,
    fidelity: pd.DataFrame,
    spread: pd.DataFrame,
    statistic: dict[str, str],
) -> list[str | None]:
    """Which of a model's figures one run's scatter, or the prompts, cannot tell from another's."""
    told: dict[tuple, list[str]] = {model: [] for model in table.index}
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
                if near:
                    told[model].append(
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
                told[model].append(f"{plain_name(metric)}: not told from {names}")
    return ["; ".join(texts) or None for texts in told.values()]


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
    told = [f"{m}: {n} INT4 variants empty" for m, n in empty.items() if n]
    left_out = int((rows["verdict"] == "invalid").sum())
    if 0 < left_out < len(rows):
        told.append(f"left out as invalid: {left_out} of {len(rows)} INT4 variants")
    told += [text.rstrip(".") for text in mixed(rows)]
    return "; ".join(told) or None


# --- adaptation -------------------------------------------------------------------------------


def adaptation_table(observations: pd.DataFrame) -> pd.DataFrame:
    """LoRA beside QLoRA per model and task; every ratio is QLoRA over LoRA.

    Energy and seconds are those of loading the base and of training; `*_train_*` those of training
    alone. `*_with_merge_energy_j` adds the compression energy of lora/fp16 (the merge alone) and of
    qlora/int4. One adaptation a method: no intervals. rows_passed_over: training rows of more
    tokens than training.max_tokens, the same for both methods.
    """
    runs = _checked(observations)
    runs = runs[runs["method"].isin(["lora", "qlora"])]
    at = [*MODEL, "task"]
    adapters = runs.groupby([*at, "method"], sort=False)[ADAPTATION].mean()
    computed = runs.groupby([*at, "method"], sort=False)["adapt_executed_dtype"].agg(_joined)
    computed = computed.unstack("method").reindex(columns=["lora", "qlora"])
    served = runs[runs["precision"] == runs["method"].map({"lora": "fp16", "qlora": "int4"})]
    merges = served.groupby([*at, "method"], sort=False)["compress_energy_j"].mean()
    adapters["with_merge_energy_j"] = adapters["adapt_energy_j"] + merges.reindex(adapters.index)
    adapters.columns = [c.removeprefix("adapt_") for c in adapters]

    by_method = adapters.unstack("method")
    table = pd.DataFrame(index=by_method.index)
    for column in adapters:
        for method in ("lora", "qlora"):
            pair = (column, method)
            table[f"{method}_{column}"] = by_method.get(pair, np.nan)
    for name, column in {
        "energy_ratio": "energy_j",
        "seconds_ratio": "s",
        "power_ratio": "power_w",
        "memory_ratio": "peak_memory_gb",
        "with_merge_energy_ratio": "with_merge_energy_j",
        "train_energy_ratio": "train_energy_j",
        "train_seconds_ratio": "train_s",
    }.items():
        table[name] = table[f"qlora_{column}"] / table[f"lora_{column}"]
    facts = runs.groupby(at, sort=False)[["energy_source", "merge_base"]].agg(_joined)
    where = runs.assign(host=runs["adapt_host"].fillna(runs["host"])).groupby(at, sort=False)
    facts["host"] = where["host"].agg(_joined)
    facts["executed_dtype"] = where["adapt_executed_dtype"].agg(_joined)
    facts["instruction_set"] = where["adapt_instruction_set"].agg(_joined)
    for method in ("lora", "qlora"):
        facts[f"{method}_executed_dtype"] = computed[method]
    passed_over = pd.to_numeric(runs["rows_passed_over"]).groupby([runs[c] for c in at]).max()
    table = table.join(facts).join(passed_over)
    table["notes"] = [_adaptation_notes(row) for _, row in table.iterrows()]
    return sort_variants(table.reset_index())


def _adaptation_notes(row: pd.Series) -> str | None:
    told = [
        f"{method} {what}: not measured"
        for what, column in {"energy": "energy_j", "peak memory": "peak_memory_gb"}.items()
        for method in ("lora", "qlora")
        if np.isnan(row[f"{method}_{column}"])
    ]
    if row["rows_passed_over"] > 0:
        told.append(f"{row['rows_passed_over']:.0f} training rows passed over: too long")
    dtypes = [row["lora_executed_dtype"], row["qlora_executed_dtype"]]
    if all(isinstance(dtype, str) for dtype in dtypes) and len(set(dtypes)) > 1:
        told.append(f"ratios: LoRA computed in {dtypes[0]}, QLoRA in {dtypes[1]}")
    for column in ("host", "instruction_set"):
        if isinstance(row[column], str) and "; " in row[column]:
            told.append(f"ratios: made on different {MIXED[column]}s ({row[column]})")
    return "; ".join(told) or None


# --- serving ----------------------------------------------------------------------------------


def serving_table(
    observations: pd.DataFrame, confidence: float = 0.95, over: str = "concurrency"
) -> pd.DataFrame:
    """A row a variant (the unadapted base among them) and concurrency: means and t-intervals.

    `over` may be `rate_per_s` instead, for observations of open loops.
    """
    runs = _checked(observations)
    by = [*VARIANT, over]
    groups = runs.groupby(by, sort=False)
    table = pd.concat(
        [
            groups.size().rename("repetitions"),
            groups["gpus"].first(),
            groups[[*TEXTS, "notes"]].agg(_joined),
            groups[[*LOAD, *SERVING, "batch_agreement"]].mean(),
        ],
        axis=1,
    ).join(_intervals_over_runs(runs, OVER_RUNS, confidence, by))
    columns = [*LOAD, *SERVING, "batch_agreement"]
    columns = [c for name in columns for c in (name, f"{name}_lo", f"{name}_hi") if c in table]
    first = ["repetitions", "engine", "executed_dtype", "gpus"]
    last = ["energy_source", "window", "validity", "host", "instruction_set", "notes"]
    table = table[[*first, *columns, *last]]
    return sort_variants(table.reset_index())


def prefix_caching_table(observations: pd.DataFrame, confidence: float = 0.95) -> pd.DataFrame:
    """A row a variant: what computing common prefixes once changed, at the headline concurrency.

    `observations` holds that concurrency with and without prefix caching. `<column>_ratio` is with
    over without, its interval over runs, both terms from the same run.
    """
    runs = _checked(observations)
    caching = runs["prefix_caching"].eq(True)
    key = [*VARIANT, "repetition"]
    columns = ["energy_per_request_j", "throughput_tok_s", "ttft_ms"]
    both = runs[caching].merge(
        runs.loc[~caching, [*key, *columns]], on=key, suffixes=("_with_caching", "")
    )
    groups = both.groupby(VARIANT, sort=False)
    table = groups.size().rename("repetitions").to_frame()
    table["prefix_cache_hit_rate"] = groups["prefix_cache_hit_rate"].mean()
    ratios = {f"{column}_ratio": (f"{column}_with_caching", column) for column in columns}
    for ratio, (caching, plain) in ratios.items():
        table[[plain, caching]] = groups[[plain, caching]].mean()
        table[ratio] = table[caching] / table[plain]
    table = table.join(_run_ratio_intervals(both, ratios, confidence))
    return sort_variants(table.reset_index())


# --- reference --------------------------------------------------------------------------------


# The row of a task answered without a model: no family, no size, no weights.
NO_MODEL = {"family": "no model", "size": "", "method": "rule", "precision": ""}
_SHARES = {"limit_reached": "limit_reached_share", "still_cut": "still_cut_share"}


def reference_table(
    observations: pd.DataFrame,
    answers: pd.DataFrame,
    no_model: pd.DataFrame | None = None,
    confidence: float = 0.95,
) -> pd.DataFrame:
    """No model and the unadapted base on each task, and every adapted variant set beside them.

    For each score and measure of the answers: the mean; `<column>_difference`, adapted less base
    over the same prompts, with its interval; and `<column>_difference_no_model`, less the rules
    that answer without a model (`scoring.no_model`), whose rows come first and tell them in
    `notes`. `content` is the figure of content alone (`scoring.CONTENT`). A negative
    gold_nll_difference is an improvement; answer_tokens shows whether brevity alone did it,
    limit_reached_share how many answers had no end within the measured tokens.
    """
    runs = _checked(observations)
    prompts = _per_prompt(answers).rename(columns=_SHARES)
    first = ["score", "content", "gold_nll"]
    measures = sorted(prompts.columns, key=lambda c: (first.index(c) if c in first else 9, c))
    table = prompts.groupby(VARIANT, sort=False)[measures].mean()
    table["prompts"] = prompts.groupby(VARIANT, sort=False).size()

    rules = None if no_model is None or no_model.empty else no_model.set_index("prompt_id")
    differences: dict[tuple, dict[str, float]] = {}
    for key in table.index:
        own, row = prompts.xs(key, level=VARIANT), differences.setdefault(key, {})
        base_key = (*key[:3], "none", "fp16")
        if key != base_key and base_key in table.index:
            base = prompts.xs(base_key, level=VARIANT)
            row |= _paired_differences(own, base, "_difference", confidence)
        if rules is not None:
            told = rules[rules["task"] == key[2]].select_dtypes("number")
            row |= _paired_differences(own, told, "_difference_no_model", confidence)
    ends = [f"{d}{end}" for d in ("_difference", "_difference_no_model") for end in ("", *_BOUNDS)]
    index = pd.MultiIndex.from_tuples(differences, names=VARIANT) if differences else _no_variants()
    compared = pd.DataFrame(list(differences.values()), index=index)
    order = [c for m in measures for c in (m, *(f"{m}{e}" for e in ends if f"{m}{e}" in compared))]
    table = table.join(compared)

    cost = runs.groupby(VARIANT, sort=False)[[*LOAD, *OVER_RUNS]].mean()
    facts = runs.groupby(VARIANT, sort=False)[["energy_source", "host"]].agg(_joined)
    table = table[["prompts", *order]].join(cost).join(facts)
    has_base = {key[:3] for key in table.index if key[3] == "none"}
    table["notes"] = [
        None if key[:3] in has_base else "the unadapted base was not served" for key in table.index
    ]
    table = sort_variants(table.reset_index())
    if rules is None:
        return table
    return pd.concat([_no_model_rows(rules, measures), table], ignore_index=True)[list(table)]


_BOUNDS = ("_lo", "_hi")


def _paired_differences(
    own: pd.DataFrame, other: pd.DataFrame, suffix: str, confidence: float
) -> dict[str, float]:
    """Mean of `own` less `other` over the prompts that both have, by measure, and its interval."""
    row = {}
    for measure in [c for c in own if c in other]:
        values = (own[measure] - other[measure]).dropna().to_numpy()
        if not len(values):
            continue
        row[f"{measure}{suffix}"] = values.mean()
        if len(values) > 1:
            _, lo, hi = mean_interval(values, confidence)
            row |= {f"{measure}{suffix}_lo": lo, f"{measure}{suffix}_hi": hi}
    return row


def _no_model_rows(rules: pd.DataFrame, measures: list[str]) -> pd.DataFrame:
    rows = []
    for task, told in rules.groupby("task", sort=False):
        means = told[[m for m in measures if m in told]].mean()
        rule, by_content = told[["rule", "content_rule"]].iloc[0]
        note = f"rule: {rule}" + (f"; by content: {by_content}" if by_content != rule else "")
        rows.append(NO_MODEL | {"task": task, "prompts": len(told), "notes": note} | dict(means))
    return sort_variants(pd.DataFrame(rows))


# --- for files and for people -----------------------------------------------------------------

_UNITS = {
    "_tok_s": "tok/s",
    "_per_kwh": "1/kWh",
    "_j": "J",
    "_ms": "ms",
    "_s": "s",
    "_gb": "GB",
    "_w": "W",
    "_pct": "%",
    "_usd": "USD",
    "_kwh": "kWh",
}
_HEADINGS = {
    "ttft_ms": "TTFT [ms]",
    "ttft_p95_ms": "TTFT, 95th percentile [ms]",
    "tpot_ms": "TPOT [ms]",
    "tpot_p95_ms": "TPOT, 95th percentile [ms]",
    "int4_variants": "INT4 variants",
    "n_break": "N_break [requests]",
    "n_break_full": "N_break, full accounting [requests]",
    "ipw": "IPW [1/J]",
    "rho_sys": "ρ_sys [tok/s/GB]",
    "rho_sys_nominal": "ρ_sys, nominal size [tok/s/GB]",
    "c_tax": "C_tax [ratio]",
    "c_tax_model": "C_tax, model alone [ratio]",
    "energy_ratio": "energy ratio, with loading",
    "train_energy_ratio": "energy ratio, training alone",
    "batch_agreement": "answers as alone [share]",
    "prices": "price set",
    "executed_dtype": "computed in",
    "q_ret_pct": "Q_ret [%]",
    "score": "score [0–1]",
    "content": "content alone [0–1]",
    "limit_reached_share": "limit reached [share]",
    "score_per_watt": "score per watt [1/W]",
    "gold_nll": "gold answers’ NLL [nats/token]",
    "top1_agreement": "top-1 agreement [share]",
}


def write_table(table: pd.DataFrame, path: str | Path) -> Path:
    """Write CSV, values not rounded, a missing value empty; makes the directory."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    table.to_csv(path, index=False)
    return path


def readable(
    table: pd.DataFrame, columns: Sequence[str] | None = None, digits: int = 3
) -> pd.DataFrame:
    """The table as text for people: rounded, units in the headings, intervals in the same cell.

    `columns` chooses and orders; by default all but the bounds. `<column>_lo`/`_hi` become
    `value [lo, hi]`, `<column>_least`/`_most` (or, without these, the range of an estimate) `value
    (least to most)`, a missing value a dash, and a break-even below one request `< 1`. `digits` is
    how many significant ones are shown: no more than a run's scatter allows.
    """
    ends = ("_lo", "_hi", "_least", "_most", "_estimate_lo", "_estimate_hi")
    bounds = {f"{c}{end}" for c in table for end in ends}
    chosen = [c for c in table if c not in bounds] if columns is None else list(columns)
    text = {heading(c): _cells(table, c, digits) for c in chosen}
    return pd.DataFrame(text, index=table.index)


def heading(column: str) -> str:
    """`load_energy_j` -> `load energy [J]`."""
    if column in _HEADINGS:
        return _HEADINGS[column]
    endings = {
        "_median": "median",
        "_difference": "difference",
        "_difference_no_model": "difference to no model",
    }
    for ending, words in endings.items():
        if column.endswith(ending):
            name, _, unit = heading(column.removesuffix(ending)).partition(" [")
            return f"{name}, {words}" + (f" [{unit}" if unit else "")
    for suffix, unit in _UNITS.items():
        if column.endswith(suffix):
            return f"{column.removesuffix(suffix).replace('_', ' ')} [{unit}]"
    return column.replace("_", " ")


def plain_name(column: str) -> str:
    """`load_energy_j` -> `load energy`: the heading without its unit."""
    return heading(column).partition(" [")[0]


def format_number(value: float, digits: int = 3) -> str:
    """Three significant digits, whole from 1,000 on (fewer digits count there too); `never` for
    infinity, a dash for NaN."""
    if pd.isna(value):
        return "–"
    if np.isinf(value):
        return "never" if value > 0 else "−∞"
    if value == 0:
        return "0"
    if abs(value) < 1000 or digits < 3:
        value = float(f"{value:.{digits}g}")  # first, or 0.9999 would become 1.000
    places = int(np.clip(digits - 1 - np.floor(np.log10(abs(value))), 0, 12))
    text = f"{value:,.{places}f}" if abs(value) >= 1e-4 else f"{value:.{digits - 1}e}"
    return text.replace("-", "−")


def _cells(table: pd.DataFrame, column: str, digits: int) -> list[str]:
    values = table[column]
    if not pd.api.types.is_numeric_dtype(values):
        return ["–" if pd.isna(v) or v == "" else str(v) for v in values]
    if pd.api.types.is_integer_dtype(values):
        return [f"{v:,}" for v in values]

    def text(value: float) -> str:
        if column.startswith("n_break") and 0 <= value < 1:
            return "< 1"
        return format_number(value, digits)

    cells = [text(v) for v in values]
    for (low, high), form in {
        ("_lo", "_hi"): "{} [{}, {}]",
        ("_least", "_most"): "{} ({} to {})",
        ("_estimate_lo", "_estimate_hi"): "{} ({} to {})",
    }.items():
        ends = f"{column}{low}", f"{column}{high}"
        if not set(ends) <= set(table) or (low[1] == "e" and f"{column}_most" in table):
            continue
        for i, (least, most) in enumerate(zip(table[ends[0]], table[ends[1]], strict=True)):
            if np.isneginf(least) and np.isposinf(most):
                cells[i] = f"{cells[i]} [unbounded]"
            elif not (pd.isna(least) or pd.isna(most) or cells[i] == text(least) == text(most)):
                cells[i] = form.format(cells[i], text(least), text(most))
    return cells
