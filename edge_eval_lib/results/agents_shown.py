"""What is shown of answering in steps: pictures, what they say in words, tables, sentences."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from edge_eval_lib.results import described, figures
from edge_eval_lib.results.agents import CONFIGURATION
from edge_eval_lib.results.arms_shown import arm_name
from edge_eval_lib.results.columns import VARIANT, configuration_name
from edge_eval_lib.results.readable import Prose, bounded, show
from edge_eval_lib.uncertainty import NORMAL_95

PREFIX = {
    False: ("prefix computed anew", figures.COLOURS[0], "o"),
    True: ("prefix shared", figures.COLOURS[1], "D"),
}
LEGEND = {name: (colour, marker) for name, colour, marker in PREFIX.values()}
_WORDS = {
    "task_calls": "calls a task",
    "task_input_tokens": "tokens in",
    "task_output_tokens": "tokens out",
    "task_energy_j": "energy a task [J]",
    "task_latency_s": "time a task [s]",
    "solved_energy_j": "energy a solved task [J]",
    "solved_usd": "USD per 1,000 solved tasks",
    "solved_seconds": "machine time a solved task [s]",
    "input_tokens_times": "tokens in, times",
    "output_tokens_times": "tokens out, times",
    "energy_times": "energy, times",
    "usd_times": "USD, times",
    "latency_times": "time, times",
    "seconds_times": "machine time, times",
    "solved_energy_times": "energy a solved task, times",
    "solved_usd_times": "USD a solved task, times",
    "hit_rate": "tokens not computed again [share]",
    "same_tokens": "answered alike [share]",
}


def for_people(table: pd.DataFrame, columns: Sequence[str], digits: int = 3) -> Prose:
    """Show a table in a notebook, columns and whether prefixes were shared in words."""
    shown = table.copy()
    if "prefix_caching" in table:
        shown["prefix"] = table["prefix_caching"].map({True: "shared", False: "computed anew"})
    usd = [c for c in table if c.startswith("solved_usd") and "times" not in c]
    shown[usd] = 1e3 * shown[usd]
    ends = ("", "_lo", "_hi")
    shown = shown.rename(
        columns={n + end: words + end for n, words in _WORDS.items() for end in ends}
    )
    names = [_WORDS.get(column, column) for column in columns]
    return show(shown, ["task", "configuration", "prefix", *names], digits)


def draw_solved(axes: Sequence[Axes], solved: pd.DataFrame) -> None:
    """Draw the share solved and a solved task's energy, a row an arm, with their intervals."""
    names = list(dict.fromkeys(arm_name(row) for _, row in solved.iterrows()))
    for axis, column in zip(axes, ("solved_share", "solved_energy_j"), strict=True):
        for _, row in solved.dropna(subset=[column]).iterrows():
            shared = bool(row["prefix_caching"])
            if column == "solved_share" and shared:
                continue  # answers are scored once, without sharing
            _, colour, marker = PREFIX[shared]
            y = names.index(arm_name(row)) + (0.18 if shared else -0.18) * (
                column != "solved_share"
            )
            axis.errorbar(row[column], y, xerr=figures.error_of(row, column), fmt=marker,
                          color=colour, ms=6, elinewidth=1.2)  # fmt: skip
        axis.set_yticks(range(len(names)), names)
        axis.set_ylim(len(names) - 0.4, -0.6)
        axis.tick_params(axis="y", length=0)
    axes[0].set(xlabel="solved [share]", xlim=(0, 1))
    axes[1].set(xlabel="energy per solved task [J, log]")
    if solved["solved_energy_j"].notna().any():
        figures.plain_log(axes[1].xaxis)


def solved_words(solved: pd.DataFrame, single: str) -> str:
    """Say what `draw_solved` shows: in steps and by one call, the shares and what is taken."""
    said = []
    for words, of in (
        ("In steps", solved["task"] != single),
        ("By one call", solved["task"] == single),
    ):
        rows = solved[of]
        anew, shared = (rows[rows["prefix_caching"] == reused] for reused in (False, True))
        text = f"{words} {described.span(100 * anew['solved_share'])} % are solved"
        for part, how in ((anew, ""), (shared, " with the prefix shared")):
            energy_j = part["solved_energy_j"].replace(np.inf, np.nan).dropna()
            if len(energy_j):
                text += f", a solved task takes {described.span(energy_j)} J{how}"
        said.append(f"{text}.")
    return " ".join(said)


def draw_context(axis: Axes, steps: pd.DataFrame) -> dict[str, tuple[str, str]]:
    """Draw the mean tokens of a prompt by the number of its call, a line an arm; their legend."""
    legend = {}
    for place, (arm, rows) in enumerate(steps.groupby(CONFIGURATION, sort=False)):
        name = configuration_name(*arm[-2:])
        legend[name] = (figures.COLOURS[place % 10], figures.MARKERS[place % 10])
        colour, marker = legend[name]
        tokens = rows.groupby("call")["input_tokens"]
        mean, error = tokens.mean(), NORMAL_95 * tokens.sem().fillna(0.0)
        axis.plot(mean.index, mean, color=colour, marker=marker, ms=5)
        axis.fill_between(mean.index, mean - error, mean + error, color=colour, alpha=0.15, lw=0)
    axis.set(xlabel="call", ylabel="prompt tokens", ylim=(0, None))
    axis.set_xticks(sorted(steps["call"].unique()))
    return legend


def context_words(steps: pd.DataFrame) -> str:
    """Say what `draw_context` shows: tokens of the first and of the last call, over all arms."""
    tokens = steps.groupby("call")["input_tokens"].mean()
    first, last = tokens.index.min(), tokens.index.max()
    reach = steps.loc[steps["call"] == last, "prompt_id"].nunique()
    return (
        f"A prompt has {tokens[first]:.0f} tokens in call {first} and {tokens[last]:.0f} in call "
        f"{last}, which {reach} of {steps['prompt_id'].nunique()} questions reach."
    )


def conclusions(
    solved: pd.DataFrame,
    inflation: pd.DataFrame,
    reuse: pd.DataFrame,
    dearer: pd.DataFrame,
    single: str,
) -> list[str]:
    """Say in sentences what the tables allow to be said."""
    sentences = []
    plain = solved[~solved["prefix_caching"]]
    shares = plain.set_index(VARIANT)["solved_share"]
    for _, row in inflation[~inflation["prefix_caching"]].iterrows():
        name = configuration_name(row["method"], row["precision"])
        arm = tuple(row[VARIANT])
        alone = shares[tuple(row[VARIANT].where(pd.Series(VARIANT, VARIANT) != "task", single))]
        text = (
            f"{name}: in steps {_percent(shares[arm])} are solved, by one call {_percent(alone)}; "
            f"a task takes {bounded(row, 'energy_times')} times the energy"
        )
        if np.isfinite(row["solved_energy_times"]):
            text += f", a solved one {bounded(row, 'solved_energy_times')} times"
        sentences.append(f"{text}.")
    for _, row in (reuse[reuse["task"] != single] if len(reuse) else reuse).iterrows():
        name = configuration_name(row["method"], row["precision"])
        sentences.append(
            f"{name}: with the common prefix computed once a task takes "
            f"{row['energy_times']:.2f} times the energy; {_percent(row['hit_rate'])} of the "
            f"prompts' tokens were not computed again, and {_percent(row['same_tokens'])} of the "
            "tasks got the same answers, token by token."
        )
    if len(dearer):
        yes, no = ((dearer["verdict"] == word).sum() for word in ("yes", "no"))
        sentences.append(
            "At the published T4 costs a small model in steps would take more energy than one "
            f"answer of a large one in {yes} of {len(dearer)} pairs of models and precision, less "
            f"in {no}; the others are open."
        )
    return sentences


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"
