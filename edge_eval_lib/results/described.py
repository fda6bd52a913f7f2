"""What each picture of a study shows, in words made from its numbers.

    figures.finish(fig, path, stamp, table, alt=described.density(table))

A picture is described by its extremes and what separates them, never by its colours.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from edge_eval_lib.metrics import METRICS
from edge_eval_lib.results.columns import VARIANT, named
from edge_eval_lib.results.readable import format_number, plain_name

ELECTRICITY, EVERYTHING = "electricity alone (the paper's)", "everything counted"


def break_even_column(table: pd.DataFrame) -> str:
    """Return which break-even tells variants apart: the paper's, else that of everything counted.

    Where every one of the paper's lies below one request they say the same of all: it has paid
    before the first answer is out.
    """
    paid = table["n_break"].dropna()
    counted = table["n_break_full"].dropna() if "n_break_full" in table else paid[:0]
    return "n_break_full" if len(counted) and (paid < 1).all() else "n_break"


def large(number: float, digits: int = 2) -> str:
    """A number of any size for a sentence: `0.004`, `1,200`, `1.6 million`."""
    for size, word in ((1e9, "billion"), (1e6, "million")):
        if np.isfinite(number) and abs(number) >= size:
            return f"{format_number(float(number) / size, digits)} {word}"
    return format_number(float(number), digits)


def span(values: pd.Series | Sequence[float], digits: int = 2) -> str:
    """`0.8 to 1.2`, or `0.8` where both ends read alike; `never` for what is infinite."""
    known = pd.Series(values, dtype=float).dropna()
    low, high = large(known.min(), digits), large(known.max(), digits)
    if low == high:
        return low
    size = low.partition(" ")[2]
    same = size and size == high.partition(" ")[2]  # 1.5 to 1.8 million
    return f"{low.removesuffix(f' {size}') if same else low} to {high}"


def variant(row: pd.Series, table: pd.DataFrame) -> str:
    """Name a row of a table by what differs in it: `rag LoRA INT4`, or with its model."""
    of, own = named(table[VARIANT]), named(pd.DataFrame([row[VARIANT]])).iloc[0]
    parts = [c for c in ("model", "task") if c in of and of[c].nunique() > 1]
    return " ".join(str(own[c]) for c in [*parts, "configuration"])


def extremes(table: pd.DataFrame, column: str, digits: int = 2, unit: str = "") -> str:
    """`from 31 (rag LoRA INT4) to 60 GB (dialogue LoRA INT8)`; empty of nothing."""
    known = table.dropna(subset=[column])
    known = known[np.isfinite(known[column].astype(float))]
    if known.empty:
        return ""
    values = known[column].to_numpy(float)
    low, high = known.iloc[values.argmin()], known.iloc[values.argmax()]
    texts = [large(row[column], digits) for row in (low, high)]
    unit = f" {unit}" if unit else ""
    if len(known) == 1 or texts[0] == texts[1]:
        return f"{texts[0]}{unit}"
    return f"from {texts[0]} ({variant(low, table)}) to {texts[1]}{unit} ({variant(high, table)})"


def quadrants(table: pd.DataFrame, column: str) -> str:
    """Describe break-even against quality per joule."""
    known = table.dropna(subset=["ipw", column])
    if known.empty:
        return _nothing("ipw", column)
    never = np.isinf(known[column])
    text = f"IPW runs {extremes(known, 'ipw', unit=METRICS['ipw'].unit)}. "
    if never.all():
        return text + "No variant ever pays back."
    counted = EVERYTHING if column == "n_break_full" else ELECTRICITY
    text += f"Requests to break even, {counted}, run {extremes(known, column)}."
    if column == "n_break_full":
        text += " Electricity alone has paid for all of them before the first request is over."
    return text + (f" {never.sum()} of {len(known)} never pay back." if never.any() else "")


def break_even(table: pd.DataFrame) -> str:
    """Describe requests until it pays, by what is counted."""
    parts = []
    for column, counted in {"n_break": ELECTRICITY, "n_break_full": EVERYTHING}.items():
        known = table[column].dropna() if column in table else pd.Series(dtype=float)
        if known.empty:
            continue
        never = int(np.isinf(known).sum())
        finite = known[np.isfinite(known)]
        text = f"{counted}: {span(finite)} requests" if len(finite) else f"{counted}: never"
        parts.append(text + (f", {never} of {len(known)} never" if never and len(finite) else ""))
    if not parts:
        return _nothing("n_break")
    if {"n_break_full_least", "n_break_full_most"} <= set(table):
        ends = [table["n_break_full_least"].min(), table["n_break_full_most"].max()]
        if not np.isnan(ends).any():
            least, most = map(large, ends)
            parts.append(f"everything, by other prices, anywhere from {least} requests to {most}")
    return "Until it pays, " + "; ".join(parts) + "."


def _nothing(*columns: str) -> str:
    return f"Nothing to draw: no {' and '.join(plain_name(c) for c in columns)} is known."


def density(table: pd.DataFrame) -> str:
    """Describe throughput a gigabyte."""
    known = table.dropna(subset=["rho_sys"])
    if known.empty:
        return _nothing("rho_sys")
    return f"ρ_sys runs {extremes(known, 'rho_sys', unit=METRICS['rho_sys'].unit)}."


def quality(table: pd.DataFrame) -> str:
    """Describe scores against what is left of LoRA-FP16's."""
    known = table.dropna(subset=["score", "q_ret_pct"])
    if known.empty:
        return _nothing("score", "q_ret_pct")
    text = f"Scores run {extremes(known, 'score')}, Q_ret {extremes(known, 'q_ret_pct', 3, '%')}."
    bounded = known.dropna(subset=[c for c in ("q_ret_pct_lo", "q_ret_pct_hi") if c in known])
    if "q_ret_pct_lo" not in known or bounded.empty:
        return f"{text} No Q_ret has an interval."
    holds = (bounded["q_ret_pct_lo"] <= 100) & (bounded["q_ret_pct_hi"] >= 100)
    return f"{text} Of {len(bounded)} with an interval, {holds.sum()} hold 100."


def front(table: pd.DataFrame) -> str:
    """Describe scores against the energy of a request, and which rows no other beats (`front`)."""
    known = table.dropna(subset=["score", "energy_per_request_j"])
    if known.empty:
        return _nothing("score", "energy_per_request_j")
    energy = extremes(known, "energy_per_request_j", unit="J")
    names = ", ".join(variant(row, table) for _, row in known[known["front"]].iterrows())
    text = f"Scores run {extremes(known, 'score')}, energy of a request {energy}. "
    return f"{text}Nothing beats {known['front'].sum()} of {len(known)} in both: {names}."


def adaptation(table: pd.DataFrame) -> str:
    """Describe LoRA's energy beside QLoRA's, a row a model and task."""
    known = named(table).dropna(subset=["lora_energy_j", "qlora_energy_j"], how="all")
    if known.empty:
        return _nothing("lora_energy_j", "qlora_energy_j")
    parts = [
        f"by {method} {span(known[column])} J"
        for method, column in {"LoRA": "lora_energy_j", "QLoRA": "qlora_energy_j"}.items()
        if known[column].notna().any()
    ]
    ratios = known["energy_ratio"].dropna()
    text = f"Adapting once takes {' and '.join(parts)}"
    return f"{text}; QLoRA over LoRA: {span(ratios)}." if len(ratios) else f"{text}."


def lifecycle(stages: pd.DataFrame, served: int) -> str:
    """Describe energy by stage; `stages` has the serving of so many requests as a stage."""
    names = {
        "adapt_energy_j": "adapting once",
        "compress_energy_j": "compressing once",
        "load_energy_j": "a cold start",
        "serving_energy_j": f"serving {served:,} requests",
    }
    known = {column: words for column, words in names.items() if stages[column].notna().any()}
    if not known:
        return _nothing(*list(names)[:3])
    text = "; ".join(f"{words}: {span(stages[c])} J" for c, words in known.items())
    most = stages[list(known)].dropna(how="all").idxmax(axis=1).value_counts()
    largest = f"{names[most.index[0]]}, for {most.iloc[0]} of {most.sum()}"
    return f"Energy: {text}. Most goes into {largest}."


def latency(requests: pd.DataFrame) -> str:
    """Describe waits of single requests by the variants' medians."""
    if requests.empty:
        return "Nothing to draw: no request was served alone."
    rows = requests.groupby(VARIANT, sort=False)[["ttft_ms", "tpot_ms"]].median().reset_index()
    return (
        f"Medians of a variant's requests: time to first token {extremes(rows, 'ttft_ms')} ms; "
        f"time per token {extremes(rows, 'tpot_ms')} ms."
    )


def load(serving: pd.DataFrame, over: str, waiting: str) -> str:
    """Describe throughput and waiting at the least and at the most load (a column)."""
    known = serving.dropna(subset=["throughput_tok_s", over])
    if known.empty:
        return _nothing("throughput_tok_s")
    texts = []
    for level in dict.fromkeys((known[over].min(), known[over].max())):
        at = known[known[over] == level]
        text = f"at {level:g}: {span(at['throughput_tok_s'])} tok/s"
        waits = at[waiting].dropna()
        texts.append(text + (f", waiting {span(waits)} ms" if len(waits) else ""))
    return f"{plain_name(over).capitalize()} {'; '.join(texts)}."


def harness(table: pd.DataFrame) -> str:
    """Describe scores of lm-evaluation-harness's tasks, by task."""
    parts = [
        f"{task} {rows['metric'].iloc[0]} {span(rows['value'])}"
        for task, rows in table.dropna(subset=["value"]).groupby("harness_task", sort=False)
    ]
    return f"{'; '.join(parts)}." if parts else _nothing("value")
