"""Pictures and sentences of what pruning loses and saves."""

from __future__ import annotations

import numpy as np
import pandas as pd
from adjustText import adjust_text
from matplotlib.axes import Axes

from edge_eval_lib import compressions
from edge_eval_lib.results import figures
from edge_eval_lib.results.columns import DOUBTFUL, doubtful_checks, verdict
from edge_eval_lib.results.observations import Results
from edge_eval_lib.results.pruning import WHOLE, prompts_of
from edge_eval_lib.uncertainty import mean_interval

LOSS = "loss of gold answers’ likelihood [nats/token]"
LINEAR_TO = 0.2  # nats a token, beyond which the axis is logarithmic


def draw_loss(axis: Axes, arms: pd.DataFrame, column: str, label: str) -> None:
    """Draw what each arm loses of the gold answers' likelihood over a size or a cost."""
    names = []
    for _, row in arms.dropna(subset=[column, "gold_nll_loss"]).iterrows():
        stored = compressions.storage(row["precision"])
        colour, marker = figures.look(row["method"], stored)
        at, reach = (row[column], row["gold_nll_loss"]), figures.error_of(row, "gold_nll_loss")
        axis.errorbar(*at, yerr=reach, fmt=marker, color=colour, alpha=0.8, ms=6)
        names.append(axis.text(*at, row["precision"], fontsize=7))
    axis.axhline(0, color="#999999", lw=0.8)
    axis.set(xlabel=label, ylabel=LOSS)
    axis.set_yscale("symlog", linthresh=LINEAR_TO)
    whole = arms.loc[arms["precision"] == WHOLE, column]
    for place in whole.dropna():
        axis.axvline(place, color="#999999", lw=0.8, ls=":")
    axis.figure.canvas.draw()  # labels are moved apart where they will stand
    adjust_text(names, ax=axis, arrowprops={"arrowstyle": "-", "color": "#999999", "lw": 0.6})


def draw_joint(axis: Axes, joint: pd.DataFrame) -> None:
    """Draw single losses, one upon the other, beside the joint loss with what is beyond the sum."""
    places = np.arange(len(joint))
    axis.bar(places - 0.2, joint["first_loss"], 0.35, label="pruned alone", color="C0", alpha=0.7)
    axis.bar(
        places - 0.2,
        joint["second_loss"],
        0.35,
        bottom=joint["first_loss"].clip(lower=0),
        label="quantised alone",
        color="C1",
        alpha=0.7,
    )
    total = joint["first_loss"] + joint["second_loss"]
    ends = [
        joint["beyond_sum"] - joint["beyond_sum_lo"],
        joint["beyond_sum_hi"] - joint["beyond_sum"],
    ]
    axis.bar(places + 0.2, joint["joint_loss"], 0.35, label="together", color="C2", alpha=0.7)
    axis.errorbar(
        places + 0.2,
        total + joint["beyond_sum"],
        yerr=ends,
        fmt="none",
        ecolor="#333333",
        capsize=3,
    )
    axis.set_xticks(places, joint["precision"], rotation=20, ha="right", fontsize=8)
    axis.set(ylabel=LOSS)
    axis.legend(frameon=False)


def order(results: Results, stored: str) -> list[str]:
    """Say how chains of the same words but another order differ, prompt by prompt.

    Chains are compared whose words are the same, and those with the one that lacks `distil`.
    """
    prompts = prompts_of(results, "gold_nll")
    joined = [
        arm
        for arm in prompts
        if compressions.storage(arm[-1]) == stored and compressions.changes_shape(arm[-1])
    ]
    sentences = []
    for place, arm in enumerate(joined):
        for other in joined[place + 1 :]:
            shares = [set(a[-1].split("-")) - {"distil"} for a in (arm, other)]
            if arm[:-1] != other[:-1] or shares[0] != shares[1]:
                continue
            both = prompts[[arm, other]].dropna()
            mean, low, high = mean_interval(both[other] - both[arm])
            if np.isfinite(low) and not low <= 0 <= high:
                verdict = f"{(arm if mean > 0 else other)[-1]} is better"
            else:
                verdict = "no difference is shown"
            sentences.append(
                f"{other[-1]} against {arm[-1]}: {mean:+.3f} nats per token "
                f"[{low:+.3f}, {high:+.3f}] over {len(both)} prompts: {verdict}."
            )
    return sentences


def doubtful(results: Results) -> str:
    """Say how many runs are doubtful by their own checks, whose times and energies show little."""
    validity = results.headline["validity"]
    bad = validity[validity.map(verdict).isin(DOUBTFUL)]
    if bad.empty:
        return "Every run passed its own checks."
    return (
        f"{len(bad)} of {len(validity)} runs are doubtful by their own checks "
        f"({', '.join(sorted(doubtful_checks(bad).unique()))}): their times and energies show "
        "little."
    )
