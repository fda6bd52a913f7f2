"""What is shown of routing: pictures, what they say in words, and tables in words."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping

import matplotlib.patheffects as path_effects
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from scipy.stats import mannwhitneyu

from edge_eval_lib.results import confidence, figures, routing
from edge_eval_lib.results.escalation import ORACLE, Signal
from edge_eval_lib.results.hybrid import CURRENCIES, Pair
from edge_eval_lib.results.readable import plain_name

Legend = dict[str, tuple[str, str]]
SIDES = {"right": figures.COLOURS[0], "wrong": figures.COLOURS[1]}
SAID = {"as said": (figures.COLOURS[0], "o"), "calibrated": (figures.COLOURS[1], "o")}


def legend(signals: Mapping[str, Signal]) -> Legend:
    """Colours of the lines of signals."""
    return {name: (figures.COLOURS[place], "_") for place, name in enumerate(signals)}


def fitting(currency: str) -> tuple[float, str]:
    """How many questions a figure is best of, and its name: a question takes very few USD."""
    words = CURRENCIES[currency]
    return (1000.0, words.replace("USD", "USD per 1,000")) if "USD" in words else (1.0, words)


def in_words(table: pd.DataFrame) -> pd.DataFrame:
    """The table with its currencies in columns and cells named for people, USD per 1,000."""
    shown = table.copy()
    for name in set(CURRENCIES) & set(shown):
        times, words = fitting(name)
        shown[name] = times * shown[name].astype(float)
        shown = shown.rename(columns={name: words})
    if "in" in shown:  # a currency a row
        of = {CURRENCIES[name]: fitting(name) for name in CURRENCIES}
        times = shown["in"].map({words: fit[0] for words, fit in of.items()})
        shown[["local", "cloud"]] = shown[["local", "cloud"]].mul(times, axis=0)
        shown["in"] = shown["in"].map({words: fit[1] for words, fit in of.items()})
    if "currency" in shown:
        shown["currency"] = shown["currency"].map(lambda name: plain_name(CURRENCIES[name]))
    return shown


def taken(used: Mapping[str, float | np.ndarray]) -> str:
    """Say what a question takes, by currency."""
    parts = []
    for name in [name for name in CURRENCIES if name in used]:
        times, words = fitting(name)
        what, _, unit = words.partition(" [")
        value = figures.number(times * float(np.mean(used[name])), 2)
        parts.append(f"{what} {value} {unit.removesuffix(']')}")
    return f"A question takes: {', '.join(parts)}."


def judged_for_people(told: pd.DataFrame) -> pd.DataFrame:
    """The rows that judge a signal's threshold, shares and changes as percentages."""
    shown = in_words(told)
    names = {
        "escalated": "sent to the cloud [%]",
        "correct": "correct [%]",
        "correct_change": "correct, less the cloud's [points]",
        "cost_change": "cost, less a random mix's [% of the cloud's]",
    }
    for name, words in names.items():
        for end in ("", "_lo", "_hi"):
            if name + end in shown:
                shown[words + end] = 100 * shown[name + end].astype(float)
    return shown[["currency", "signal", *(c for c in shown if c.startswith(tuple(names.values())))]]


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
    right = pair.prompts["local_correct"].to_numpy() >= 0.5
    scatter = np.random.default_rng(0).uniform(-0.22, 0.22, len(right))
    for place, (side, colour) in enumerate(SIDES.items()):
        own = right == (side == "right")
        axis.scatter(signal.values[own], place + scatter[own], s=14, alpha=0.6, color=colour, lw=0)
    axis.set_yticks([0, 1], list(SIDES))
    axis.set(ylim=(1.5, -0.5), xlabel=name)


def signals_words(pair: Pair, signals: Mapping[str, Signal]) -> str:
    """Say how often each signal sets a right answer above a wrong one; half is chance."""
    right = pair.prompts["local_correct"].to_numpy() >= 0.5
    if right.all() or not right.any():
        return "All local answers are right, or all wrong: no signal can tell them apart."
    said = []
    for name, signal in signals.items():
        above = mannwhitneyu(signal.values[right], signal.values[~right]).statistic
        said.append(f"{name} {100 * above / (right.sum() * (~right).sum()):.0f} %")
    return (
        f"How often a right answer stands above a wrong one, 50 % by chance: {', '.join(said)}; "
        f"{right.sum()} right and {(~right).sum()} wrong answers."
    )


def draw_reliability(axis: Axes, pair: Pair, name: str, signal: Signal, seed: int = 0) -> None:
    """Draw the share correct over the probability said, raw and calibrated, on the other half."""
    local = pair.prompts["local_correct"].to_numpy(float)
    fitted = routing.halves(len(local), seed)
    steps = confidence.calibrate(signal.values[fitted], local[fitted])
    said = [signal.probability[~fitted], steps.probability(signal.values[~fitted])]
    for values, (colour, _) in zip(said, SAID.values(), strict=True):
        bins = np.minimum((values * 5).astype(int), 4)
        rows = pd.DataFrame({"bin": bins, "said": values, "correct": local[~fitted]})
        means = rows.groupby("bin").agg(
            said=("said", "mean"), correct=("correct", "mean"), n=("said", "size")
        )
        at = means["said"], means["correct"]
        axis.scatter(*at, s=12 + 3 * means["n"], color=colour, alpha=0.8)
        axis.plot(*at, color=colour, alpha=0.4)
    axis.plot([0, 1], [0, 1], color=figures.GREY, lw=1, ls=":")
    axis.set(
        title=name,
        xlabel="probability said",
        ylabel="share correct",
        xlim=(-0.03, 1.03),
        ylim=(-0.03, 1.03),
    )


def calibration_words(calibration: pd.DataFrame) -> str:
    """Say how far each signal's probability is off before and after calibration."""
    said = [
        f"{row.signal} {100 * row.ece_before:.0f} points as said, "
        f"{100 * row.ece_after:.0f} calibrated"
        for row in calibration.itertuples()
    ]
    return f"Off by, on average: {'; '.join(said)}."


def draw_quality(
    axis: Axes, pair: Pair, curves: pd.DataFrame, signals: Mapping[str, Signal]
) -> None:
    """Draw quality over the share escalated, random routing and the oracle beside."""
    if _says_why_not(axis, pair):
        return
    local, cloud = (pair.prompts[f"{side}_correct"].to_numpy(float) for side in ("local", "cloud"))
    axis.plot([0, 1], [local.mean(), cloud.mean()], color=figures.GREY, ls=":")
    best = routing.routing_curve(local, cloud, local - cloud, {})
    axis.plot(best["escalated"], best["correct"], color=figures.GREY, ls="--", lw=1)
    top = best.loc[best["correct"].idxmax()]
    _name(axis, top["escalated"], top["correct"], "oracle, knows both answers", (4, 5))
    _draw(axis, curves, "escalated", signals)
    axis.margins(y=0.1)
    axis.set(xlabel="questions sent to the cloud [share]", ylabel="correct answers [share]")


def quality_words(pair: Pair, areas: pd.DataFrame) -> str:
    """Say what quality lies between, and each signal's area between chance and the oracle."""
    local, cloud = (pair.prompts[f"{side}_correct"] for side in ("local", "cloud"))
    if why := routing.why_no_curve(local, cloud):
        return why
    own = areas[areas["signal"] != ORACLE].dropna(subset=["area"])
    each = ", ".join(f"{row.signal} {row.area:.2f}" for row in own.itertuples())
    return (
        f"From {100 * local.mean():.0f} % correct with all questions answered here to "
        f"{100 * cloud.mean():.0f} % with all sent. Between choosing at random (0) and the oracle "
        f"(1) stand: {each}."
    )


def draw_cost(
    axis: Axes, pair: Pair, curves: pd.DataFrame, signals: Mapping[str, Signal], currency: str
) -> None:
    """Draw quality over what a prompt takes; both sides alone as points, a random mix between."""
    if _says_why_not(axis, pair):
        return
    times, label = fitting(currency)
    ends = [
        (times * pair.prompts[f"{side}_{currency}"].mean(), pair.prompts[f"{side}_correct"].mean())
        for side in ("local", "cloud")
    ]
    begin, end = np.array(ends)
    mixed = np.linspace(begin, end, 100)  # a straight line, but not on a logarithmic axis
    axis.plot(*mixed.T, color=figures.GREY, ls=":")
    _draw(axis, curves.assign(**{currency: times * curves[currency]}), currency, signals)
    for (x, y), side, aside in zip(ends, ("local", "cloud"), ((7, -4), (7, -11)), strict=True):
        axis.plot(x, y, "o", color="#333333", ms=5, zorder=5)
        _name(axis, x, y, side, aside)
    axis.set(xlabel=label.replace("]", ", log]"), ylabel="correct answers [share]")
    figures.plain_log(axis.xaxis)


def cost_words(pair: Pair, areas: pd.DataFrame) -> str:
    """Say what both sides take, and which signals beat a random mix, in each currency."""
    if why := routing.why_no_curve(*(pair.prompts[f"{s}_correct"] for s in ("local", "cloud"))):
        return why
    said = []
    for currency in pair.currencies:
        times, words = fitting(currency)
        what, _, unit = words.removesuffix("]").partition(" [")
        local, cloud = (
            figures.number(times * pair.prompts[f"{side}_{currency}"].mean())
            for side in ("local", "cloud")
        )
        area = areas.get(f"area_by_{what.replace(' ', '_')}", pd.Series(np.nan, areas.index))
        above = areas.loc[(area > 0) & (areas["signal"] != ORACLE), "signal"]
        said.append(
            f"{what}: {local} {unit} here, {cloud} in the cloud, above a random mix on the whole "
            f"{', '.join(above) or 'no signal'}"
        )
    return f"{'; '.join(said)}."


def panels_of(pair: Pair) -> list[str]:
    """Which currencies get a panel: one alone, which says it, where nothing can be drawn."""
    sides = (pair.prompts[f"{side}_correct"] for side in ("local", "cloud"))
    return pair.currencies[:1] if routing.why_no_curve(*sides) else pair.currencies


def _name(axis: Axes, x: float, y: float, words: str, aside: tuple[float, float]) -> None:
    """Words beside a point, legible over lines."""
    text = axis.annotate(words, (x, y), aside, textcoords="offset points", color="#444444",
                         fontsize=8.5, zorder=6)  # fmt: skip
    text.set_path_effects([path_effects.withStroke(linewidth=3, foreground="white")])


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
    for name, (colour, _) in legend(signals).items():
        rows = curves[curves["signal"] == name]
        axis.plot(rows[x], rows["correct"], color=colour)
