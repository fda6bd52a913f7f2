"""Pictures and sentences of what pruning loses and saves."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from edge_eval_lib import compressions
from edge_eval_lib.results import figures
from edge_eval_lib.results.columns import DOUBTFUL, configuration_name, doubtful_checks, verdict
from edge_eval_lib.results.observations import Results
from edge_eval_lib.results.pruning import WHOLE, prompts_of
from edge_eval_lib.results.readable import bounded, format_number, plain_name
from edge_eval_lib.uncertainty import mean_interval

LINEAR_TO = 0.2  # nats a token, beyond which the axis is logarithmic
CHAINS = {
    "gold_nll_loss": f"likelihood lost\n[nats/token; log beyond {LINEAR_TO}]",
    "disk_gb": "size on disk [GB]",
    "energy_per_request_j": "energy per request [J]",
}
_VERDICTS = {"the sum": "the sum", "more": "more than the sum", "less": "less than the sum"}
JOINT = {
    "pruned alone": (figures.COLOURS[0], "s"),
    "quantised alone": (figures.COLOURS[1], "s"),
    "together": (figures.COLOURS[2], "s"),
}


def draw_chains(axes: Sequence[Axes], arms: pd.DataFrame) -> dict[str, tuple[str, str]]:
    """Draw each chain's loss, size and energy in a row, the least loss on top; their legend."""
    rows = by_loss(arms)
    names, legend = list(rows["name"]), {}
    for axis, (column, label) in zip(axes, CHAINS.items(), strict=True):
        whole = rows.loc[rows["precision"] == WHOLE, column].dropna()
        for place in whole:
            axis.axvline(place, color="#999999", lw=0.8, ls=":")
        for y, (_, row) in enumerate(rows.iterrows()):
            stored = compressions.storage(row["precision"])
            colour, marker = figures.look(row["method"], stored)
            legend[configuration_name(row["method"], stored)] = (colour, marker)
            axis.errorbar(row[column], y, xerr=figures.error_of(row, column), fmt=marker,
                          color=colour, ms=6, elinewidth=1.2)  # fmt: skip
        axis.set_yticks(range(len(names)), names)
        axis.set_ylim(len(names) - 0.4, -0.6)
        axis.tick_params(axis="y", length=0)
        axis.set_xlabel(label)
    axes[0].set_xscale("symlog", linthresh=LINEAR_TO)
    axes[0].set_xticks([0, 0.2, 1, 5], ["0", "0.2", "1", "5"])
    axes[0].set_xlim(right=max(6.0, 1.2 * np.nanmax(rows["gold_nll_loss"].fillna(0))))
    return legend


def by_loss(arms: pd.DataFrame) -> pd.DataFrame:
    """The arms with the name of their chain, FP16 and then the least loss first."""
    several = arms["task"].nunique() > 1
    rows = arms.assign(gold_nll_loss=arms["gold_nll_loss"].mask(arms["precision"] == WHOLE, 0.0))
    rows["name"] = rows["precision"] + ("  " + rows["task"] if several else "")
    first = (rows["precision"] != WHOLE).rename("first")
    return rows.assign(first=first).sort_values(["first", "gold_nll_loss"], kind="stable")


def chains_words(arms: pd.DataFrame) -> str:
    """Say what `draw_chains` shows: the least and the greatest loss, and FP16 beside them."""
    rows = by_loss(arms).dropna(subset=["gold_nll_loss"])
    whole, chains = rows[~rows["first"]], rows[rows["first"]]
    if chains.empty or whole.empty:
        return "No chain stands beside FP16."
    ends = {"least": chains.iloc[0], "most": chains.iloc[-1]}
    said = [
        f"{row['name']} loses {how}, {format_number(row['gold_nll_loss'], 2)} nats a token of the "
        f"gold answers' likelihood, at {_size_and_energy(row)}"
        for how, row in ends.items()
    ]
    return f"Of {len(chains)} chains {'; '.join(said)}. FP16: {_size_and_energy(whole.iloc[0])}."


def _size_and_energy(row: pd.Series) -> str:
    energy = format_number(row["energy_per_request_j"], 2)
    return f"{format_number(row['disk_gb'], 2)} GB and {energy} J a request"


def draw_joint(axis: Axes, joint: pd.DataFrame) -> None:
    """Draw single losses, one upon the other, above the joint loss and its part beyond the sum."""
    first, second, together = (colour for colour, _ in JOINT.values())
    places = np.arange(len(joint))
    alone = places - 0.2
    axis.barh(alone, joint["first_loss"], 0.36, color=first, alpha=0.8)
    axis.barh(alone, joint["second_loss"], 0.36, left=joint["first_loss"].clip(lower=0),
              color=second, alpha=0.8)  # fmt: skip
    axis.barh(places + 0.2, joint["joint_loss"], 0.36, color=together, alpha=0.8)
    reach = [joint["beyond_sum"] - joint["beyond_sum_lo"],
             joint["beyond_sum_hi"] - joint["beyond_sum"]]  # fmt: skip
    axis.errorbar(joint["joint_loss"], places + 0.2, xerr=reach, fmt="none", ecolor="#333333",
                  capsize=3)  # fmt: skip
    axis.axvline(0, color="#999999", lw=0.8)
    axis.set_yticks(places, joint["precision"])
    axis.set_ylim(len(joint) - 0.4, -0.6)
    axis.tick_params(axis="y", length=0)
    axis.set_xlabel("loss of the gold answers’ likelihood [nats/token]")


def joint_words(joint: pd.DataFrame) -> str:
    """Say what `draw_joint` shows: of each chain the sum of the single losses and the joint one."""
    if joint.empty:
        return "No chain has both its parts beside it."
    said = [
        f"{row['precision']} {format_number(row['first_loss'] + row['second_loss'], 2)} alone, "
        f"{format_number(row['joint_loss'], 2)} together ({_VERDICTS[row['verdict']]})"
        for _, row in joint.iterrows()
    ]
    return f"Nats a token lost: {'; '.join(said)}."


def joint_for_people(joint: pd.DataFrame) -> pd.DataFrame:
    """The joint losses with what was lost, and the verdict, in words."""
    losses = {"first_loss": "pruned alone", "second_loss": "quantised alone"}
    losses |= {"joint_loss": "together"}
    ends = {f"beyond_sum{end}": f"beyond the sum{end}" for end in ("", "_lo", "_hi")}
    shown = joint.rename(columns=losses | ends)
    shown["lost"] = joint["figure"].map(plain_name)
    return shown.assign(verdict=joint["verdict"].map(_VERDICTS))


def summary(
    arms: pd.DataFrame, joint: pd.DataFrame, speed: pd.DataFrame, changed: pd.DataFrame
) -> list[str]:
    """Say what follows: what distilling brings back, the joint losses, the speed, the energy.

    Args:
        arms: As `pruning.pruned_arms` makes them.
        joint: Of `pruning.joint_losses`.
        speed: Of `pruning.speed_ups`.
        changed: Of `pruning.saved`.
    """
    return [*_brought_back(arms), *_joined(joint), *_faster(speed), *_changed(changed)]


def _brought_back(arms: pd.DataFrame) -> list[str]:
    losses = arms.set_index(["task", "precision"])
    said = []
    for (task, chain), row in losses.iterrows():
        plain = (task, chain.replace("-distil", ""))
        if chain == plain[1] or plain not in losses.index or not chain.endswith(WHOLE):
            continue
        loss, cut = row["gold_nll_loss"], losses.loc[plain, "gold_nll_loss"]
        said.append(
            f"Distilling brings back {100 * (1 - loss / cut):.0f} % of what {plain[1]} loses: "
            f"{format_number(cut, 2)} nats a token of the gold answers' likelihood become "
            f"{bounded(row, 'gold_nll_loss')}."
        )
    return said


def _joined(joint: pd.DataFrame) -> list[str]:
    own = joint[joint["figure"] == "gold_nll"]
    if own.empty:
        return []
    said = []
    for verdict_of, words in _VERDICTS.items():
        names = own.loc[own["verdict"] == verdict_of, "precision"]
        if len(names):
            said.append(f"{words} ({', '.join(names)}) in {len(names)}")
    return [
        f"Of {len(own)} chains that prune and quantise, the joint loss is {'; '.join(said)}, by "
        "intervals over prompts."
    ]


def _faster(speed: pd.DataFrame) -> list[str]:
    said = []
    for chain, rows in speed[speed["paired_runs"] > 1].groupby("precision", sort=False):
        each = [
            f"{bounded(row, 'speed_up')} times with {row['concurrency']} at a time (the planner's "
            f"{format_number(row['predicted'], 2)} is {'within' if row['agrees'] else 'outside'})"
            for _, row in rows.iterrows()
        ]
        said.append(f"{chain} is as fast as FP16 {', '.join(each)}.")
    return said


def _changed(changed: pd.DataFrame) -> list[str]:
    said = []
    for _, row in changed[changed["paired_runs"] > 1].iterrows():
        value, low, high = (row[f"energy_change_pct{end}"] for end in ("", "_lo", "_hi"))
        shown = (
            "saves energy" if high < 0 else "takes more energy" if low > 0 else "shows no saving"
        )
        said.append(
            f"{row['precision']} {shown}: {value:+.0f} % a request [{low:+.0f}, {high:+.0f}] over "
            f"{row['paired_runs']} paired runs."
        )
    return said


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
                f"{other[-1]} against {arm[-1]}: {mean:+.2f} nats a token lost "
                f"[{low:+.2f}, {high:+.2f}] over {len(both)} prompts: {verdict}."
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
