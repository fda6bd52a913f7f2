"""What the planner's pictures show, in words made from their numbers, and its tables in words."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import groupby

import numpy as np
import pandas as pd

from edge_eval_lib.economics.advise.choice import Choice
from edge_eval_lib.results import decision, figures

PARTS = {"machines": "machines", "electricity": "electricity", "people": "people, every month",
         "once": "before the first request", "retrieval": "retrieval and index",
         "api": "the API"}  # fmt: skip
_STANDBY = {
    "keep_s": "unloaded after [s]",
    "cold_share": "cold starts [share]",
    "warm_s": "idle a request [s]",
    "standby_j": "standby [J]",
    "standby_usd": "standby [USD per 1,000]",
    "standby_tax": "tax, energy [ratio]",
    "standby_tax_usd": "tax, USD [ratio]",
}


def standby_for_people(table: pd.DataFrame) -> pd.DataFrame:
    """What keeping warm and loading again cost a request, in words, USD by the thousand."""
    if table.empty:
        return table
    return table.assign(standby_usd=1e3 * table["standby_usd"]).rename(columns=_STANDBY)


def cost_words(drawn: pd.DataFrame) -> str:
    """Say what 1,000 requests cost by each option drawn, its range, and its largest part."""
    said = []
    for _, row in drawn.iterrows():
        usd = [1e3 * row[f"usd_per_request{end}"] for end in ("", "_least", "_most")]
        value, least, most = (figures.number(each, 2) for each in usd)
        parts = {words: row[f"{part}_usd_per_month"] for part, words in PARTS.items()}
        largest = max(parts, key=lambda words: np.nan_to_num(parts[words]))
        name = decision.option_name(row)
        most_of_it = f", most of it {largest}" if largest not in name else ""
        said.append(f"{name} {value} USD ({least} to {most}){most_of_it}")
    return f"1,000 requests cost: {'; '.join(said)}."


def best_words(choice: Choice) -> str:
    """Say how often each deployment and each variant is the best over the draws, from 1 % on."""
    said = []
    for by in ("deployment", "name"):
        shares = choice.p_best_of(by)
        each = shares[shares >= 0.01].items()
        said.append(
            ", ".join(f"{figures.short_name(str(n))} {100 * share:.0f} %" for n, share in each)
        )
    none = f" None fits in {100 * choice.p_none:.0f} %." if choice.p_none >= 0.01 else ""
    return f"Best in: {'; '.join(filter(None, said)) or 'no draw'}.{none}"


def flips_words(able: pd.DataFrame) -> str:
    """Say which inputs have the largest parts in a flip to another option."""
    parts = [
        f"{decision.in_words(row.input)} {100 * row.total_order:.0f} %" for row in able.itertuples()
    ]
    return f"Part in the flip: {', '.join(parts)}." if parts else "No input flips the choice."


def load_words(loads: np.ndarray, usd: Mapping[str, np.ndarray]) -> str:
    """Say which deployment is the cheapest over the load, and from which load on.

    Args:
        loads: Requests a day, ascending.
        usd: What 1,000 requests cost at each, by deployment; NaN where none fits.
    """
    names, table = list(usd), np.array(list(usd.values()))
    known = ~np.isnan(table).all(axis=0)
    first = np.full(len(loads), -1)
    first[known] = np.nanargmin(table[:, known], axis=0)
    said: list[str] = []
    for best, group in groupby(zip(first, loads, strict=True), key=lambda pair: pair[0]):
        begin = figures.number(next(group)[1], 2)
        name = names[best] if best >= 0 else "none fits"
        said.append(f"{name} from {begin} requests a day on" if said else name)
    return f"Cheapest, by load: {'; '.join(said)}."


def speed_words(speeds: pd.DataFrame) -> str:
    """Say the two ends of what speed costs: one request at once, and the most."""
    if speeds.empty:
        return "No option is a machine of one's own."
    ends = speeds.sort_values("concurrency").iloc[[0, -1]]
    said = [
        f"{row['concurrency']:.0f} at once: {figures.number(row['tok_s_per_request'], 2)} tokens a "
        f"second each, {figures.number(row['usd_per_million_tokens'], 2)} USD per million"
        for _, row in ends.iterrows()
    ]
    return f"{'; '.join(said)}."


def listed_words(listed: pd.DataFrame) -> str:
    """Say against how many of the listed APIs the choice stands."""
    stands = int((listed["the choice"] == "stands").sum())
    return f"The choice stands against {stands} of {len(listed)} listed APIs"
