"""When adapting has paid, drawn by what is counted: the paper's electricity beside everything."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.ticker import FixedLocator, FuncFormatter

from edge_eval_lib.results import described, figures
from edge_eval_lib.results.described import ELECTRICITY, EVERYTHING, large
from edge_eval_lib.results.drawn import Drawn

_LOOKS = {ELECTRICITY: (figures.COLOURS[0], "o"), EVERYTHING: (figures.COLOURS[3], "s")}
_COLUMNS = {"n_break": ELECTRICITY, "n_break_full": EVERYTHING}
_DECADES = 3  # between two labels of the axis


def drawn(table: pd.DataFrame, path: Path, stamp: str) -> Drawn:
    """Draw each variant's requests until it pays, a row a configuration and a panel a task.

    A line spans what other prices make of everything counted; `never` stands at the right edge.

    Args:
        table: A row a variant, with `n_break`; `n_break_full` and its range where they are known.
        path: Where the picture is kept, without the suffix.
        stamp: The host and where its energy comes from.
    """
    columns = [column for column in _COLUMNS if column in table]
    fig, panels = figures.panels(
        table,
        columns,
        "When has adapting paid? What is counted decides",
        "left: sooner; thin lines: everything, at other prices (to the edge: never)",
        rows=True,
        legend={_COLUMNS[column]: _LOOKS[_COLUMNS[column]] for column in columns},
    )
    low, high = _ends(table)
    for axis, part in panels:
        axis.set_xscale("log")
        axis.set_xlim(low, high)
        axis.axvline(1, color="#888888", lw=1, ls=":")
        if {"n_break_full_least", "n_break_full_most"} <= set(part):
            ends = [part[f"n_break_full_{end}"].clip(low, high) for end in ("least", "most")]
            axis.hlines(part["y"], *ends, color=_LOOKS[EVERYTHING][0], lw=1)
        for column in columns:
            look = _LOOKS[_COLUMNS[column]]
            finite = part.replace({column: {np.inf: np.nan}})
            figures.mark(axis, finite, column, "y", look)
            for y in part.loc[np.isposinf(part[column]), "y"]:
                axis.annotate("never", (high, y), (-2, 0), textcoords="offset points", ha="right",
                              va="center", fontsize=8, color=look[0])  # fmt: skip
        exponents = range(int(np.ceil(np.log10(low))), int(np.log10(high)) + 1)
        ticks = [10.0**e for e in exponents if e % _DECADES == 0]
        axis.xaxis.set_major_locator(FixedLocator(ticks))
        axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: large(value, 1)))
        axis.set_xlabel("requests until it pays [log]; dotted: the first")
    alt = described.break_even(table)
    return figures.finish(fig, path, stamp, table, alt=alt)


def _ends(table: pd.DataFrame) -> tuple[float, float]:
    """Ends of the axis: all that is finite, the first request among it, and room for `never`."""
    names = ["n_break", "n_break_full", "n_break_full_least", "n_break_full_most"]
    values = table[[c for c in names if c in table]].to_numpy(float).ravel()
    values = values[np.isfinite(values) & (values > 0)]
    least, most = (values.min(), values.max()) if len(values) else (1.0, 1.0)
    return min(least, 1.0) / 5, max(most, 1.0) * 20
