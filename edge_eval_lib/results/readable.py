"""Tables for people: rounded, units in the headings, intervals in the same cell; and as CSV."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from edge_eval_lib import tasks
from edge_eval_lib.metrics import METRICS
from edge_eval_lib.results.columns import named

_UNITS = {
    "_req_s": "req/s",
    "_tok_s": "tok/s",
    "_per_kwh": "1/kWh",
    "_per_s": "1/s",
    "_mhz": "MHz",
    "_j": "J",
    "_ms": "ms",
    "_s": "s",
    "_gb": "GB",
    "_w": "W",
    "_pct": "%",
    "_usd": "USD",
    "_kwh": "kWh",
}
_HEADINGS = {name: metric.heading for name, metric in METRICS.items()} | {
    "ttft_s": "TTFT [s]",
    "tpot_s": "TPOT [s]",
    "ttft_ms": "TTFT [ms]",
    "ttft_p95_ms": "TTFT, 95th percentile [ms]",
    "tpot_ms": "TPOT [ms]",
    "tpot_p95_ms": "TPOT, 95th percentile [ms]",
    "int4_variants": "INT4 variants",
    "n_break_full": METRICS["n_break"].variation("full accounting"),
    "rho_sys_nominal": METRICS["rho_sys"].variation("nominal size"),
    "c_tax_model": METRICS["c_tax"].variation("model alone"),
    "energy_ratio": "energy ratio, with loading",
    "train_energy_ratio": "energy ratio, training alone",
    "batch_agreement": "answers as alone [share]",
    "prices": "price set",
    "executed_dtype": "computed in",
    "score": "score [0–1]",
    "content": "content alone [0–1]",
    "limit_reached_share": "limit reached [share]",
    "score_per_watt": "score per watt [1/W]",
    "gold_nll": "gold answers’ NLL [nats/token]",
    "gold_nll_loss": "NLL lost against FP16 [nats/token]",
    "mean_logprob": "answers’ log-probability [nats/token]",
    "mean_margin": "answers’ margin, likeliest over next token [0–1]",
    "top1_agreement": "top-1 agreement [share]",
    "correct_share": "correct [share]",
    "energy_per_correct_j": "energy per correct answer [J]",
    "usd_per_1000_correct": "USD per 1,000 correct answers",
    "request_s": "time per request [s]",
    "solved_share": "solved [share]",
}
_ENDINGS = {
    "_median": "median",
    "_difference": "difference",
    "_difference_no_model": "difference to no model",
}
_SPELLINGS = {"lora": "LoRA", "qlora": "QLoRA", "usd": "USD", "tpot": "TPOT", "sm": "SM"}
_SPELT = re.compile(rf"\b({'|'.join(_SPELLINGS)})\b")
_NEXT_NOTE = r"; (?!it takes )"  # a reason may hold a semicolon
_NAMED = re.compile(r"(?:^|(?<=; ))(score|ipw|[a-z0-9]+(?:_[a-z0-9]+)+)(?=: )")


class Prose(str):
    """Markdown that a notebook shows as such."""

    def _repr_markdown_(self) -> str:
        return str(self)

    def __repr__(self) -> str:
        return str(self)


def write_table(table: pd.DataFrame, path: str | Path) -> Path:
    """Write CSV, values not rounded, a missing value empty; makes the directory."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    table.to_csv(path, index=False)
    return path


def show(table: pd.DataFrame, columns: Sequence[str] | None = None, digits: int = 3) -> Prose:
    """Show a table in a notebook: `readable`, of those of `columns` that it has."""
    if table.empty:
        return Prose("Nothing to show.")
    table = named(table) if "family" in table else table
    text = readable(table, columns and [c for c in columns if c in table], digits)
    numeric = {heading(c) for c in table if pd.api.types.is_numeric_dtype(table[c])}
    if "notes" in text:
        text["notes"] = text["notes"].map(in_words)
    align = ["right" if name in numeric else "left" for name in text]
    text = text.map(escaped).rename(columns=escaped)
    return Prose(text.to_markdown(index=False, colalign=align, disable_numparse=True))


def escaped(text: str) -> str:
    """Text as it stands within Markdown."""
    return html.escape(text, quote=False).replace("|", "\\|").replace("*", "\\*")


def listed(sentences: Iterable[str]) -> Prose:
    """Show sentences in a notebook, an item each."""
    return Prose("\n".join(f"- {escaped(text)}" for text in sentences))


def notes(table: pd.DataFrame, columns: Sequence[str] | None = None) -> Prose:
    """Show every distinct note of a table once, with the number of rows that it stands in.

    A note begins with the column that it is of; `columns` leaves out notes of others.
    """
    sentences = []
    parts = table["notes"].dropna().astype(str).str.split(_NEXT_NOTE, regex=True)
    texts = parts.explode().reset_index().drop_duplicates()["notes"]
    for note, count in texts.value_counts().items():
        of = _NAMED.match(note)
        if columns is None or of is None or of[1] in columns:
            sentences.append(f"{in_words(note)} ({count} of {len(table)} rows).")
    return listed(sentences)


def in_words(notes: str) -> str:
    """Notes with columns, methods and precisions said by their names for people."""
    words = _NAMED.sub(lambda match: plain_name(match[1]), notes)
    words = re.sub(r"\blora/(fp16|int8|int4)\b", lambda match: f"LoRA {match[1].upper()}", words)
    return _SPELT.sub(lambda match: _SPELLINGS[match[0]], words)


def readable(
    table: pd.DataFrame, columns: Sequence[str] | None = None, digits: int = 3
) -> pd.DataFrame:
    """The table as text for people: rounded, units in the headings, intervals in the same cell.

    `<column>_lo`/`_hi` become `value [lo, hi]`, `<column>_least`/`_most` (or, without these, the
    range of an estimate) `value (least to most)`, a missing value a dash, a break-even below one
    request `< 1`, and a percentage is not rounded to tens.

    Args:
        table: Any table of results.
        columns: Which to show, in order; by default all but the bounds.
        digits: Significant digits: no more than a run's scatter allows.

    Returns:
        A table of texts with headings for people.
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
    for ending, words in _ENDINGS.items():
        if column.endswith(ending):
            name, _, unit = heading(column.removesuffix(ending)).partition(" [")
            return f"{name}, {words}" + (f" [{unit}" if unit else "")
    if figure := _figure_of_a_task(column):
        return figure
    suffix = next((ending for ending in _UNITS if column.endswith(ending)), "")
    name = column.removesuffix(suffix).replace("_", " ")
    name = _SPELT.sub(lambda match: _SPELLINGS[match[0]], name)
    return f"{name} [{_UNITS[suffix]}]" if suffix else name


def _figure_of_a_task(column: str) -> str | None:
    """Return how the tasks that score by a figure call it, where they agree."""
    words = _figures_of(tuple(tasks.names())).get(column, set())
    return next(iter(words)) if len(words) == 1 else None


@lru_cache
def _figures_of(names: tuple[str, ...]) -> dict[str, set[str]]:
    """Collect what those tasks call each figure."""
    called: dict[str, set[str]] = {}
    for name in names:
        for column, words in tasks.find(name).figures.items():
            called.setdefault(column, set()).add(words)
    return called


def plain_name(column: str) -> str:
    """`load_energy_j` -> `load energy`: the heading without its unit."""
    return heading(column).partition(" [")[0]


def format_number(value: float, digits: int = 3) -> str:
    """Three significant digits, whole from 1,000 on (fewer digits count there too).

    `never` for infinity, a dash for NaN.
    """
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


def bounded(row: Mapping[str, Any] | pd.Series, column: str, digits: int = 2) -> str:
    """A figure in a sentence, `value [low, high]`; the value alone where it has no interval."""
    value, *ends = (float(row[column + end]) for end in ("", "_lo", "_hi"))
    text = format_number(value, digits)
    if np.isnan(ends).any():
        return text
    if np.isinf(ends).all():
        return f"{text} [unbounded]"
    low, high = ("∞" if np.isposinf(end) else format_number(end, digits) for end in ends)
    return f"{text} [{low}, {high}]"


def _cells(table: pd.DataFrame, column: str, digits: int) -> list[str]:
    values = table[column]
    if not pd.api.types.is_numeric_dtype(values):
        return ["–" if pd.isna(v) or v == "" else str(v) for v in values]
    if pd.api.types.is_integer_dtype(values):
        return ["–" if pd.isna(v) else f"{v:,}" for v in values]

    per_cent = "[%" in heading(column)

    def text(value: float) -> str:
        if column.startswith("n_break"):
            if 0 <= value < 1:
                return "< 1"
            value = float(f"{value:.{digits}g}")  # of millions no more digits than of ones
        if per_cent and 10**digits <= abs(value) < np.inf:
            return f"{value:,.0f}".replace("-", "−")  # 103 % are not 100 %
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
