"""Pictures of routing: signals by right and wrong, calibration, quality over calls and cost."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes

from edge_eval_lib.results import confidence, figures, routing
from edge_eval_lib.results.escalation import Signal
from edge_eval_lib.results.hybrid import CURRENCIES, Pair


def both_sides(pair: Pair) -> pd.DataFrame:
    """Count the prompts by who answered them correctly: a row for each side of the local answer."""
    right = pair.prompts[["local_correct", "cloud_correct"]] >= 0.5
    words = {True: "right", False: "wrong"}
    named = {name: right[f"{name}_correct"].map(words) for name in ("local", "cloud")}
    counts = pd.crosstab(named["local"], named["cloud"]).reindex(
        index=list(words.values()), columns=list(words.values()), fill_value=0
    )
    counts.columns = [f"cloud {name}" for name in counts.columns]
    return counts.rename_axis("local").reset_index()


def draw_signal(axis: Axes, pair: Pair, name: str, signal: Signal) -> None:
    """Draw a signal's distribution over the prompts that the local arm got right and wrong."""
    right = pd.Series(pair.prompts["local_correct"].to_numpy() >= 0.5)
    rows = pd.DataFrame(
        {name: signal.values, "local answer": right.map({True: "right", False: "wrong"})}
    )
    sns.stripplot(
        rows, x=name, y="local answer", hue="local answer", order=["right", "wrong"],
        hue_order=["right", "wrong"], ax=axis, alpha=0.6, size=4, legend=False,
        palette=figures.COLOURS[:2],
    )  # fmt: skip
    axis.set(ylabel="")


def draw_reliability(axis: Axes, pair: Pair, name: str, signal: Signal, seed: int = 0) -> None:
    """Draw the share correct over the probability said, raw and calibrated, on the other half."""
    local = pair.prompts["local_correct"].to_numpy(float)
    fitted = routing.halves(len(local), seed)
    steps = confidence.calibrate(signal.values[fitted], local[fitted])
    said = {
        "raw": signal.probability[~fitted],
        "calibrated": steps.probability(signal.values[~fitted]),
    }
    for (label, values), colour in zip(said.items(), figures.COLOURS, strict=False):
        bins = np.minimum((values * 5).astype(int), 4)
        rows = pd.DataFrame({"bin": bins, "said": values, "correct": local[~fitted]})
        means = rows.groupby("bin").agg(
            said=("said", "mean"), correct=("correct", "mean"), n=("said", "size")
        )
        axis.scatter(
            means["said"],
            means["correct"],
            s=12 + 3 * means["n"],
            color=colour,
            label=label,
            alpha=0.8,
        )
        axis.plot(means["said"], means["correct"], color=colour, alpha=0.4)
    axis.plot([0, 1], [0, 1], color=figures.GREY, lw=1, ls=":")
    axis.set(
        title=name,
        xlabel="probability said",
        ylabel="share correct",
        xlim=(-0.03, 1.03),
        ylim=(-0.03, 1.03),
    )
    axis.legend(frameon=False)


def draw_quality(
    axis: Axes, pair: Pair, curves: pd.DataFrame, signals: Mapping[str, Signal]
) -> None:
    """Draw quality over the share escalated, random routing and the oracle beside."""
    if _says_why_not(axis, pair):
        return
    _draw(axis, curves, "escalated", signals)
    local, cloud = (pair.prompts[f"{side}_correct"].to_numpy(float) for side in ("local", "cloud"))
    axis.plot(
        [0, 1], [local.mean(), cloud.mean()], color=figures.GREY, ls=":", label="random routing"
    )
    best = routing.routing_curve(local, cloud, local - cloud, {})
    axis.plot(best["escalated"], best["correct"], color="black", ls="--", lw=1, label="oracle")
    axis.set(xlabel="prompts escalated [share]", ylabel="correct answers [share]")
    axis.legend(frameon=False, title=None)


def draw_cost(
    axis: Axes, pair: Pair, curves: pd.DataFrame, signals: Mapping[str, Signal], currency: str
) -> None:
    """Draw quality over what a prompt takes; both sides alone as points, a random mix between."""
    if _says_why_not(axis, pair):
        return
    # A question takes very few USD.
    words = CURRENCIES[currency]
    times, label = (1000, words.replace("USD", "USD per 1000")) if "USD" in words else (1, words)
    _draw(axis, curves.assign(**{currency: times * curves[currency]}), currency, signals)
    ends = [
        (times * pair.prompts[f"{side}_{currency}"].mean(), pair.prompts[f"{side}_correct"].mean())
        for side in ("local", "cloud")
    ]
    axis.plot(
        *zip(*ends, strict=True), color=figures.GREY, ls=":", marker="o", ms=5, label="random mix"
    )
    for (x, y), side in zip(ends, ("local", "cloud"), strict=True):
        axis.annotate(side, (x, y), xytext=(5, -11), textcoords="offset points", color="#555555")
    axis.set(xlabel=label, ylabel="correct answers [share]")
    axis.legend(frameon=False, title=None)


def _says_why_not(axis: Axes, pair: Pair) -> bool:
    """Say in an empty picture why there is no curve; whether there is none."""
    sides = (pair.prompts[f"{side}_correct"] for side in ("local", "cloud"))
    why = routing.why_no_curve(*sides)
    if why:
        text = textwrap.fill(why, 48)
        axis.text(0.5, 0.5, text, ha="center", va="center", transform=axis.transAxes)
        axis.set_axis_off()
    return bool(why)


def _draw(axis: Axes, curves: pd.DataFrame, x: str, signals: Mapping[str, Signal]) -> None:
    """A line a signal, in the order of its thresholds."""
    for name, colour in zip(signals, figures.COLOURS, strict=False):
        rows = curves[curves["signal"] == name]
        axis.plot(rows[x], rows["correct"], color=colour, label=name)
