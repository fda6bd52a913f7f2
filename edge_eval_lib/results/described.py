"""What each picture of a study shows, in words made from its numbers.

    figures.finish(fig, path, stamp, table, alt=described.density(table))

A picture is described by its extremes and what separates them, never by its colours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from edge_eval_lib.metrics import METRICS
from edge_eval_lib.results.columns import named
from edge_eval_lib.results.readable import format_number, plain_name

ELECTRICITY, EVERYTHING = "electricity alone (the paper's)", "everything counted"


def break_even_shown(table: pd.DataFrame) -> str:
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
    ends = dict.fromkeys((large(known.min(), digits), large(known.max(), digits)))
    return " to ".join(ends)


def variant(row: pd.Series | Mapping, table: pd.DataFrame) -> str:
    """Name a row of a table by what differs in it: `rag LoRA INT4`, or with its model."""
    of = named(table) if "family" in table else table
    own = named(pd.DataFrame([dict(row)])).iloc[0] if "family" in row else pd.Series(dict(row))
    parts = [c for c in ("model", "task") if c in of and of[c].nunique() > 1]
    return " ".join(str(own[c]) for c in [*parts, "configuration"])


def extremes(table: pd.DataFrame, column: str, digits: int = 2, unit: str = "") -> str:
    """`from 31 (rag LoRA INT4) to 60 GB (dialogue LoRA INT8)`; empty of nothing."""
    known = table.dropna(subset=[column])
    known = known[np.isfinite(known[column].astype(float))]
    if known.empty:
        return ""
    low, high = known.loc[known[column].idxmin()], known.loc[known[column].idxmax()]
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
            parts.append(f"by other prices everything counted lies anywhere from {span(ends)}")
    return "Until it pays, " + "; ".join(parts) + "."


def _nothing(*columns: str) -> str:
    return f"Nothing to draw: no {' and '.join(plain_name(c) for c in columns)} is known."
