"""Tables of a whole study: the frontier, LoRA beside QLoRA, serving, and the unadapted reference.

A figure that is missing stays empty and `notes` says why; it is never 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from edge_eval_lib.economics.cost import keep_warm_s
from edge_eval_lib.results import columns
from edge_eval_lib.results.columns import (
    ADAPTATION,
    DOUBTFUL,
    LOAD,
    METRICS,
    MIXED,
    MODEL,
    OVER_RUNS,
    SERVING,
    TEXTS,
    VARIANT,
    calls_in,
    joined,
    sort_variants,
)
from edge_eval_lib.results.headline import frontier_table
from edge_eval_lib.results.means import bounds, checked, per_prompt
from edge_eval_lib.results.readable import write_table
from edge_eval_lib.results.variants import (
    DEAR,
    Variants,
    add_full_break_even,
    variants_table,
    where_known,
)
from edge_eval_lib.uncertainty import mean_interval, paired_ratio_interval

# Beside the tables of this module, what a notebook makes and writes the others with.
__all__ = ["DEAR", "DOUBTFUL", "METRICS", "VARIANT", "Variants", "add_full_break_even"]
__all__ += ["frontier_table", "variants_table", "write_table"]

_BOUNDS = ("_lo", "_hi")


def adaptation_table(observations: pd.DataFrame) -> pd.DataFrame:
    """LoRA beside QLoRA per model and task; every ratio is QLoRA over LoRA.

    Energy and seconds are those of loading the base and of training; `*_train_*` those of training
    alone. `*_with_merge_energy_j` adds the compression energy of lora/fp16 (the merge alone) and of
    qlora/int4. One adaptation a method: no intervals. rows_passed_over: training rows of more
    tokens than training.max_tokens, the same for both methods.
    """
    runs = checked(observations)
    runs = runs[runs["method"].isin(["lora", "qlora"])]
    at = [*MODEL, "task"]
    adapters = runs.groupby([*at, "method"], sort=False)[ADAPTATION].mean()
    dtypes = runs.groupby([*at, "method"], sort=False)["adapt_executed_dtype"].agg(joined)
    computed = dtypes.unstack("method").reindex(columns=["lora", "qlora"])
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
    facts = runs.groupby(at, sort=False)[["energy_source", "merge_base"]].agg(joined)
    where = runs.assign(host=runs["adapt_host"].fillna(runs["host"])).groupby(at, sort=False)
    facts["host"] = where["host"].agg(joined)
    facts["executed_dtype"] = where["adapt_executed_dtype"].agg(joined)
    facts["instruction_set"] = where["adapt_instruction_set"].agg(joined)
    for method in ("lora", "qlora"):
        facts[f"{method}_executed_dtype"] = computed[method]
    passed_over = pd.to_numeric(runs["rows_passed_over"]).groupby([runs[c] for c in at]).max()
    table = table.join(facts).join(passed_over)
    table["notes"] = [_adaptation_notes(row) for _, row in table.iterrows()]
    return sort_variants(table.reset_index())


def _adaptation_notes(row: pd.Series) -> str | None:
    notes = [
        f"{method} {what}: not measured"
        for what, column in {"energy": "energy_j", "peak memory": "peak_memory_gb"}.items()
        for method in ("lora", "qlora")
        if np.isnan(row[f"{method}_{column}"])
    ]
    if row["rows_passed_over"] > 0:
        notes.append(f"{row['rows_passed_over']:.0f} training rows passed over: too long")
    dtypes = [row["lora_executed_dtype"], row["qlora_executed_dtype"]]
    if all(isinstance(dtype, str) for dtype in dtypes) and len(set(dtypes)) > 1:
        notes.append(f"ratios: LoRA computed in {dtypes[0]}, QLoRA in {dtypes[1]}")
    for column in ("host", "instruction_set"):
        if isinstance(row[column], str) and "; " in row[column]:
            notes.append(f"ratios: made on different {MIXED[column]}s ({row[column]})")
    return "; ".join(notes) or None


def serving_table(
    observations: pd.DataFrame, confidence: float = 0.95, over: str = "concurrency"
) -> pd.DataFrame:
    """A row a variant (the unadapted base among them) and concurrency: means and t-intervals.

    `over` may be `rate_per_s` instead, for observations of open loops.
    """
    runs = checked(observations)
    by = [*VARIANT, over]
    groups = runs.groupby(by, sort=False)
    measured = [*LOAD, *SERVING, *calls_in(runs), "batch_agreement"]
    table = pd.concat(
        [
            groups.size().rename("repetitions"),
            groups["gpus"].first(),
            groups[[*TEXTS, "notes"]].agg(joined),
            groups[measured].mean(),
        ],
        axis=1,
    ).join(bounds(runs, by, mean_interval, OVER_RUNS, confidence))
    columns = [c for name in measured for c in (name, f"{name}_lo", f"{name}_hi") if c in table]
    first = ["repetitions", "engine", "executed_dtype", "gpus"]
    last = ["energy_source", "window", "validity", "host", "instruction_set", "notes"]
    table = table[[*first, *columns, *last]]
    return sort_variants(table.reset_index())


def prefix_caching_table(observations: pd.DataFrame, confidence: float = 0.95) -> pd.DataFrame:
    """A row a variant: what computing common prefixes once changed, at the headline concurrency.

    `observations` holds that concurrency with and without prefix caching. `<column>_ratio` is with
    over without, its interval over runs, both terms from the same run.
    """
    runs = checked(observations)
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
    for ratio, (with_caching, plain) in ratios.items():
        table[[plain, with_caching]] = groups[[plain, with_caching]].mean()
        table[ratio] = table[with_caching] / table[plain]
    table = table.join(bounds(both, VARIANT, paired_ratio_interval, ratios, confidence))
    return sort_variants(table.reset_index())


def cold_start_table(runs: pd.DataFrame) -> pd.DataFrame:
    """What a cold start is made of, and how long to stay loaded: a row a configuration.

    `runs` holds what every run recorded. Means over the tasks and repetitions of a configuration:
    the loads are of the same size.
    `keep_warm_s` is the idle time beyond which unloading takes less energy; empty where the energy
    source knows no idle power.
    """
    names, by = [*columns.COLD_START, *columns.IDLE], columns.CONFIGURATION
    runs = runs[runs["stage"] == "serve"].reindex(columns=[*by, *names])
    runs[names] = runs[names].astype(float)
    groups = runs.groupby(by, sort=False)
    table = groups.mean().assign(loads=groups.size())
    # A first token too quick to be measured is left out of no mean: the mean is empty.
    table["load_first_token_s"] = groups["load_first_token_s"].mean(skipna=False)
    powers = [table[name] for name in ("load_energy_j", "idle_loaded_power_w", "idle_bare_power_w")]
    table["keep_warm_s"] = where_known(keep_warm_s, *powers)
    return sort_variants(table.reset_index())


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
    that answer without a model (`score.no_model`), whose rows come first and name them in
    `notes`. `content` is the task's figure of content alone. A negative
    gold_nll_difference is an improvement; answer_tokens shows whether brevity alone did it,
    limit_reached_share how many answers had no end within the measured tokens.
    """
    runs = checked(observations)
    prompts = per_prompt(answers).rename(columns=_SHARES)
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
            by_rule = rules[rules["task"] == key[2]].select_dtypes("number")
            row |= _paired_differences(own, by_rule, "_difference_no_model", confidence)
    ends = [f"{d}{end}" for d in ("_difference", "_difference_no_model") for end in ("", *_BOUNDS)]
    keys: list[Sequence[Any]] = [*zip(*differences, strict=True)] or [[] for _ in VARIANT]
    index = pd.MultiIndex.from_arrays(keys, names=VARIANT)
    compared = pd.DataFrame(list(differences.values()), index=index)
    order = [c for m in measures for c in (m, *(f"{m}{e}" for e in ends if f"{m}{e}" in compared))]
    table = table.join(compared)

    cost = runs.groupby(VARIANT, sort=False)[[*LOAD, *OVER_RUNS]].mean()
    facts = runs.groupby(VARIANT, sort=False)[["energy_source", "host"]].agg(joined)
    table = table[["prompts", *order]].join(cost).join(facts)
    has_base = {key[:3] for key in table.index if key[3] == "none"}
    table["notes"] = [
        None if key[:3] in has_base else "the unadapted base was not served" for key in table.index
    ]
    table = sort_variants(table.reset_index())
    if rules is None:
        return table
    return pd.concat([_no_model_rows(rules, measures), table], ignore_index=True)[list(table)]


def _paired_differences(
    own: pd.DataFrame, other: pd.DataFrame, suffix: str, confidence: float
) -> dict[str, float]:
    """Mean of `own` less `other` over the prompts that both have, by measure, and its interval."""
    row = {}
    shared = [c for c in own if c in other]
    differences = own[shared] - other[shared]  # at once: aligning is what takes the time
    for measure, column in zip(shared, differences.to_numpy(float).T, strict=True):
        values = column[~np.isnan(column)]
        if not len(values):
            continue
        row[f"{measure}{suffix}"] = values.mean()
        if len(values) > 1:
            _, lo, hi = mean_interval(values, confidence)
            row |= {f"{measure}{suffix}_lo": lo, f"{measure}{suffix}_hi": hi}
    return row


def _no_model_rows(rules: pd.DataFrame, measures: list[str]) -> pd.DataFrame:
    rows = []
    for task, scored in rules.groupby("task", sort=False):
        means = scored[[m for m in measures if m in scored]].mean()
        rule, by_content = scored[["rule", "content_rule"]].iloc[0]
        note = f"rule: {rule}" + (f"; by content: {by_content}" if by_content != rule else "")
        rows.append(NO_MODEL | {"task": task, "prompts": len(scored), "notes": note} | dict(means))
    return sort_variants(pd.DataFrame(rows))
