"""The curve of routing as a chart: what each threshold sends, gets and takes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from edge_eval_lib.results import figures
from edge_eval_lib.results.chart_parts import GREY, SIZE, again, panels
from edge_eval_lib.results.escalation import Signal
from edge_eval_lib.results.escalation_shown import fitting
from edge_eval_lib.results.hybrid import Pair
from edge_eval_lib.results.readable import format_number

if TYPE_CHECKING:
    import altair as alt

ALONE = {"local": ("all answered here", "s"), "cloud": ("all sent to the cloud", "D")}
_DARK = "#333333"  # of both sides alone, as in the picture
_CURVE_SIZE, _HEIGHT = 18, 260
_TOLD = {"below": "sent where below", "sent": "sent to the cloud", "right": "correct",
         "takes": "a question takes"}  # fmt: skip


def cost_chart(
    pair: Pair,
    curves: pd.DataFrame,
    signals: Mapping[str, Signal],
    title: str,
    reading: str,
    stamp: str,
) -> alt.FacetChart | None:
    """Chart quality over what a question takes, a panel a currency, a mark a threshold.

    Args:
        pair: Both sides of the same prompts.
        curves: Of `escalation.curves`.
        signals: Those of the curves.
        title: The question that it answers.
        reading: How to read it, in a line.
        stamp: The host and where its energy comes from.

    Returns:
        The chart; None where there is no curve.
    """
    import altair as alt

    if curves.empty:
        return None
    marks = pd.concat([_panel(pair, curves, currency) for currency in pair.currencies])
    looks = {name: (figures.COLOURS[place], "o") for place, name in enumerate(signals)}
    looks |= {name: (_DARK, marker) for name, marker in ALONE.values()}
    x = alt.X("value:Q").title(None).scale(type="log")
    y = alt.Y("correct:Q").title("correct answers [share]").scale(zero=False, padding=10)
    mix = (
        alt.Chart().mark_line(color=GREY, strokeDash=[2, 3]).transform_filter("isValid(datum.mix)")
    )
    below = [mix.encode(again(x, "mix"), again(y, "mix_correct"))]
    return panels(
        marks, x, y, looks, _TOLD, title, [reading, stamp], _HEIGHT, below,
        own_x=True, joined=True, columns=2, told_as="signal",
    )  # fmt: skip


def _panel(pair: Pair, curves: pd.DataFrame, currency: str) -> pd.DataFrame:
    """The marks of one currency: every threshold's, both sides alone, and a random mix of them."""
    times, label = fitting(currency)
    unit = label.partition(" [")[2].removesuffix("]")
    sides = pd.DataFrame(
        {
            "signal": name,
            "escalated": float(side == "cloud"),
            "correct": pair.prompts[f"{side}_correct"].mean(),
            currency: pair.prompts[f"{side}_{currency}"].mean(),
            "size": SIZE,
        }
        for side, (name, _) in ALONE.items()
    )
    known = curves.reindex(columns=["signal", "threshold", "escalated", "correct", currency])
    known = known.dropna(subset=[currency]).assign(size=_CURVE_SIZE)
    rows = pd.concat([known, sides], ignore_index=True)
    value = times * rows[currency]
    marks = rows[["correct", "size"]].assign(
        series=rows["signal"],
        variant=rows["signal"],
        doubtful=False,
        place=range(len(rows)),
        value=value,
        sent=[f"{100 * share:.0f} %" for share in rows["escalated"]],
        below=[format_number(each) if np.isfinite(each) else "–" for each in rows["threshold"]],
        right=[f"{100 * share:.0f} %" for share in rows["correct"]],
        takes=[f"{format_number(each)} {unit}" for each in value],
    )
    here, there = sides[[currency, "correct"]].to_numpy() * [times, 1]
    mixed = pd.DataFrame(np.linspace(here, there, 25), columns=["mix", "mix_correct"])
    return pd.concat([marks, mixed]).assign(panel=label.replace("]", ", log]"))
