"""What a notebook and the report show of an experiment's arms: tables, pictures, sentences."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from edge_eval_lib.results import figures, page
from edge_eval_lib.results.arms import NONE_CORRECT
from edge_eval_lib.results.columns import VARIANT, configuration_name, named
from edge_eval_lib.results.readable import Prose, notes, show

SHOWN = ["model", "task", "configuration", "correct_share", "energy_per_correct_j",
         "usd_per_1000_correct"]  # fmt: skip
BESIDE = ["prompts", "energy_per_request_j", "request_s", "calls_per_request",
          "input_tokens_per_request", "output_tokens_per_request"]  # fmt: skip
KEPT = (0.5, 0.8, 1.0)  # the scores at which a curve is put into words


def for_people(arms: pd.DataFrame, digits: int = 3) -> Prose:
    """Show a table of arms, folded what their requests take, with the notes of its rows."""
    rows = arms.copy()
    for end in ("", "_lo", "_hi"):
        rows[f"usd_per_1000_correct{end}"] = 1e3 * rows[f"usd_per_correct{end}"]
    said = notes(rows) if rows["notes"].notna().any() else ""
    summary = f"What a request takes, of all {len(rows)} arms"
    return Prose(
        "\n\n".join(
            filter(
                None,
                [
                    show(rows, SHOWN, digits),
                    said,
                    page.fold(summary, show(rows, [*SHOWN[:3], *BESIDE], digits)),
                ],
            )
        )
    )


def of(outputs: Path) -> Prose | None:
    """Show the arms of the experiment that a study tells in a notebook of its own, if it does."""
    file = outputs / "tables" / "arms.csv"
    if not file.is_file():
        return None
    return Prose(
        "## What a correct answer takes\n\nEvery arm of the study's experiment, wrong answers, "
        "retries and escalations included. [Its own page](experiment.html) asks the question and "
        "says what follows; all columns: `tables/arms.csv`.\n\n" + for_people(pd.read_csv(file))
    )


def arm_name(row) -> str:
    """`closedbook, LoRA FP16`."""
    return f"{row['task']}, {configuration_name(row['method'], row['precision'])}"


def draw_bars(axis: Axes, arms: pd.DataFrame, column: str, label: str) -> None:
    """Draw a figure of every arm with its interval; one without bounds goes to the edge."""
    names = [arm_name(row) for _, row in arms.iterrows()]
    axis.set(xlabel=label)
    axis.set_yticks(range(len(names)), names)
    axis.set_ylim(len(names) - 0.4, -0.6)
    axis.tick_params(axis="y", length=0)
    known = arms[[column, f"{column}_lo", f"{column}_hi"]].astype(float)
    if known[column].isna().all():
        axis.text(0.5, 0.5, NONE_CORRECT, ha="center", transform=axis.transAxes)
        return
    widest = float(np.nanmax(known[[column, f"{column}_hi"]].replace(np.inf, np.nan)))
    for y, (value, low, high) in enumerate(known.to_numpy()):
        if np.isnan(value):
            axis.text(0.01 * widest, y, "no correct answer", va="center", color=figures.GREY)
            continue
        colour, _ = figures.look(*arms.iloc[y][["method", "precision"]])
        axis.barh(y, value, color=colour, alpha=0.75)
        ends = np.nan_to_num([low, min(high, 1.1 * widest)], nan=value)
        axis.errorbar(value, y, xerr=[[value - ends[0]], [ends[1] - value]], fmt="none",
                      ecolor="#333333", capsize=3)  # fmt: skip
    axis.set_xlim(0, 1.12 * widest or 1)


def bars_words(arms: pd.DataFrame) -> str:
    """Say what `draw_bars` shows of every arm: the share correct and a correct answer's energy."""
    said = []
    for _, row in arms.iterrows():
        energy_j = row["energy_per_correct_j"]
        takes = f", {figures.number(energy_j)} J each" if np.isfinite(energy_j) else ""
        said.append(f"{arm_name(row)}: {100 * row['correct_share']:.0f} % correct{takes}")
    return f"{'; '.join(said)}."


def draw_crossover(
    axis: Axes, arms: pd.DataFrame, arm: Sequence[str], other: Sequence[str]
) -> dict[str, tuple[str, str]]:
    """Draw the joules taken in all over the correct answers given, of two arms; their legend."""
    rows = arms.set_index(VARIANT)
    keys = [key for key in (arm, other) if rows.loc[tuple(key), "energy_per_correct_j"] > 0]
    axis.set(xlabel="correct answers [log]", ylabel="energy in all [J, log]")
    axis.set(xscale="log", yscale="log")
    if not keys:
        axis.text(0.5, 0.5, NONE_CORRECT, ha="center", transform=axis.transAxes)
        return {}
    answers = np.geomspace(1, _most_answers(rows.loc[tuple(arm)], rows.loc[tuple(other)]), 200)
    legend = {}
    for key in keys:
        row = rows.loc[tuple(key)]
        once = row[["adapt_energy_j", "compress_energy_j"]].fillna(0.0).astype(float).sum()
        colour, _ = figures.look(*key[3:])
        legend[arm_name(dict(zip(VARIANT, key, strict=True)))] = (colour, "_")
        axis.plot(answers, once + answers * row["energy_per_correct_j"], color=colour)
        bounds = row[["energy_per_correct_j_lo", "energy_per_correct_j_hi"]].astype(float)
        ends = [once + answers * bound for bound in bounds]
        axis.fill_between(answers, *ends, color=colour, alpha=0.15, lw=0)
    for scale in (axis.xaxis, axis.yaxis):
        figures.plain_log(scale)
    return legend


def _most_answers(own: pd.Series, other: pd.Series) -> float:
    """How far to draw: well beyond the crossover, or a decade past where training is a tenth."""
    once = own[["adapt_energy_j", "compress_energy_j"]].fillna(0.0).astype(float).sum()
    each = np.nanmin([own["energy_per_correct_j"], other["energy_per_correct_j"]])
    return float(max(1e3, 100 * once / each)) if each > 0 else 1e3


def draw_curve(axis: Axes, curve: pd.DataFrame) -> dict[str, tuple[str, str]]:
    """Draw the share correct of every arm over the least score that is correct; their legend."""
    legend = {}
    for place, (name, rows) in enumerate(_by_arm(curve)):
        legend[name] = (figures.COLOURS[place % 10], figures.MARKERS[place % len(figures.MARKERS)])
        colour, marker = legend[name]
        axis.plot(rows["correct_from"], rows["correct_share"], color=colour, marker=marker, ms=4)
    axis.set(xlabel="least score of a correct answer", ylabel="correct answers [share]")
    axis.set(ylim=(0, 1.04))
    return legend


def curve_words(curve: pd.DataFrame) -> str:
    """Say what `draw_curve` shows: each arm's share correct at some scores, most first."""
    scores = curve["correct_from"].unique()
    said = []
    for kept in KEPT:
        at = scores[np.abs(scores - kept).argmin()]
        shares = {name: _at(rows, at) for name, rows in _by_arm(curve)}
        ordered = sorted(shares.items(), key=lambda share: -share[1])
        names = ", ".join(f"{name} {100 * share:.0f} %" for name, share in ordered)
        said.append(f"from {at:g} {names}")
    return f"Correct: {'; '.join(dict.fromkeys(said))}."


def _at(rows: pd.DataFrame, score: float) -> float:
    return float(rows.loc[rows["correct_from"] == score, "correct_share"].iloc[0])


def _by_arm(curve: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    return [
        (arm_name(rows.iloc[0]), rows.sort_values("correct_from"))
        for _, rows in curve.groupby(VARIANT, sort=False)
    ]


def no_model(results_no_model: pd.DataFrame, correct_from: dict[str, float]) -> pd.DataFrame:
    """Say what the rules that answer without a model reach: a row a task."""
    rows = []
    for task, scored in results_no_model.groupby("task", sort=False):
        right = scored["content"] >= correct_from[str(task)] - 1e-9
        row = {"task": task, "rule": scored["content_rule"].iloc[0], "prompts": len(scored)}
        rows.append(row | {"correct_share": right.mean()})
    return pd.DataFrame(rows)


def difference(compared: pd.DataFrame, arm: Sequence[str], than: str) -> str:
    """Say in a sentence whether an arm answers more questions than the one it is compared with."""
    row = compared.set_index(VARIANT).loc[tuple(arm)]
    name = arm_name(dict(zip(VARIANT, arm, strict=True)))
    low, high = 100 * row["difference_lo"], 100 * row["difference_hi"]
    points = f"{100 * row['difference']:+.0f} points [{low:+.0f}, {high:+.0f}]"
    verdict = "is not told apart from"
    if low > 0 or high < 0:
        verdict = f"answers {'more' if low > 0 else 'fewer'} than"
    return f"{name} {verdict} {than}: {points} over {row['prompts']:.0f} questions."


def paid(crossing: pd.DataFrame, arm: Sequence[str], than: str) -> list[str]:
    """Say in sentences after how many correct answers an arm has paid, or that it never does."""
    name = arm_name(dict(zip(VARIANT, arm, strict=True)))
    sentences = []
    for _, row in crossing.iterrows():
        low, high = (_count(row[f"answers_{end}"]) for end in ("lo", "hi"))
        if np.isinf(row["answers"]):
            text = f"In {row['currency']}, {name} never pays against {than}"
            text += f" (at best after {low} correct answers)" if low != "never" else ""
        else:
            text = f"In {row['currency']}, {name} has paid against {than} after "
            text += f"{_count(row['answers'])} correct answers [{low}, {high}]"
        sentences.append(f"{text}.")
    return sentences


def _count(answers: float) -> str:
    return "never" if np.isinf(answers) else f"{figures.number(answers)}"


def cheapest(arms: pd.DataFrame) -> str:
    """Say which arm takes least energy for a correct answer, and whether the next is told apart."""
    rows = named(arms.dropna(subset=["energy_per_correct_j"]))
    rows = rows.sort_values("energy_per_correct_j").reset_index(drop=True)
    if rows.empty:
        return "No arm gave a correct answer."
    first = rows.loc[0]
    text = f"{arm_name(first)} takes least for a correct answer, "
    text += f"{figures.number(first['energy_per_correct_j'])} J"
    if len(rows) == 1:
        return f"{text}; no other arm gave one."
    second = rows.loc[1]
    apart = first["energy_per_correct_j_hi"] < second["energy_per_correct_j_lo"]
    text += f"; the next is {arm_name(second)} with "
    text += f"{figures.number(second['energy_per_correct_j'])} J, "
    return f"{text}{'told apart' if apart else 'which the intervals do not tell apart'}."
