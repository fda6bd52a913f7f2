"""Where a small model's retries cost more than a large one's one answer, at published T4 costs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from edge_eval_lib.economics import published
from edge_eval_lib.economics.prices import Prices
from edge_eval_lib.results.columns import parameters_of


def break_even_calls(table: pd.DataFrame) -> pd.DataFrame:
    """How many small calls cost what a large model's one answer does, for each pair of models.

    Of every family, task and precision the smallest size beside the largest at FP16, both LoRA.
    `calls` = energy of the large request over that of the small; `calls_per_solved` weighs both by
    score: so many calls may a small model take for a task, if retries leave its score as it is,
    before a point of score is dearer than from the large one. `usd_*` are the same in USD.

    Args:
        table: A row a variant, with `energy_per_request_j`, `usd_per_request` and `score`.
    """
    rows = []
    lora = table[table["method"] == "lora"]
    for (family, task), own in lora.groupby(["family", "task"], sort=False):
        sizes = sorted(own["size"].unique(), key=parameters_of)
        large = own[(own["size"] == sizes[-1]) & (own["precision"] == "fp16")]
        if len(sizes) < 2 or large.empty:
            continue
        big = large.iloc[0]
        for _, small in own[own["size"] == sizes[0]].iterrows():
            energy, usd = (
                float(big[name] / small[name])
                for name in ("energy_per_request_j", "usd_per_request")
            )
            worth = float(small["score"] / big["score"])
            row = {"small": f"{family}-{sizes[0]}", "large": f"{family}-{sizes[-1]}", "task": task}
            row |= {"precision": small["precision"], "score": small["score"]}
            row |= {"large_score": big["score"], "calls": energy, "usd_calls": usd}
            rows.append(row | {"calls_per_solved": energy * worth, "usd_per_solved": usd * worth})
    return pd.DataFrame(rows)


def published_costs(prices: Prices) -> pd.DataFrame:
    """Return the published T4 variants with what a request cost, for `break_even_calls`."""
    table = published.observations()
    seconds = table["output_tokens_per_request"] / table["throughput_tok_s"]
    return table.assign(usd_per_request=prices.machine_usd(table["energy_per_request_j"], seconds))


def dearer_than_large(
    inflation: pd.DataFrame, calls: pd.DataFrame, column: str = "energy_times"
) -> pd.DataFrame:
    """Say where retries of a small model cost more than a large model's one answer.

    The times that an agent takes of the single call here, with its interval, beside the calls
    at which the published small and large models cost the same.

    Returns:
        A row a pair of models and precision that both have: `times` with its interval, `calls`,
        and `verdict`: yes, no, or open where the interval holds the break-even.
    """
    adapted = inflation[(inflation["method"] == "lora") & ~inflation["prefix_caching"]]
    agents = adapted.set_index("precision")
    rows = []
    for _, pair in calls.iterrows():
        if pair["precision"] not in agents.index:
            continue
        measured = agents.loc[[pair["precision"]]].iloc[0]
        times = {end: measured[f"{column}{end}"] for end in ("", "_lo", "_hi")}
        verdict = "open: the interval holds the break-even"
        if times["_lo"] > pair["calls"]:
            verdict = "yes"
        elif times["_hi"] < pair["calls"]:
            verdict = "no"
        named: Mapping[str, Any] = {f"times{end}": value for end, value in times.items()}
        rows.append({**pair, **named, "verdict": verdict})
    return pd.DataFrame(rows)
