"""Results of the QLoRA ablation: effects, cells against plain LoRA, the verdict, the picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from edge_eval_lib.economics import published
from edge_eval_lib.lifecycle.ablation import FACTORS
from edge_eval_lib.results import figures
from edge_eval_lib.results.columns import ESTIMATED_SOURCE
from edge_eval_lib.results.readable import write_table
from edge_eval_lib.uncertainty import paired_ratio_interval

if TYPE_CHECKING:
    from matplotlib.figure import Figure

QUANTITIES = ["seconds", "energy_j", "peak_memory_gb"]
RATIO = ["ratio", "ratio_lo", "ratio_hi"]
GIVEN = {"base": "{} base", "autocast": "{}", "casts": "{} casts"}  # a level within a sentence
CPU_LIMITS = (
    "On a CPU: time only. Everything is float32, so that the casts have nothing to do; their "
    "effect shows what these runs can resolve. Energy estimated from CPU time would only repeat "
    "the seconds."
)
TITLES = {"seconds": "time", "energy_j": "energy", "peak_memory_gb": "peak memory"}


def effects(
    runs: pd.DataFrame,
    factors: Mapping[str, Sequence[str | None]] = FACTORS,
    confidence: float = 0.95,
) -> pd.DataFrame:
    """Return what each factor's second level takes, over its first, with intervals.

    Cells that differ in the factor alone are paired within a repetition. `given` says at which
    levels of the other factors; `all` is over all of them (every pair of every repetition is one
    observation, so where the factors interact its interval is the wider for it). A factor of one
    level, and a quantity that was not measured (or an energy that is only estimated from time),
    has no row. `runs` has a row a cell and repetition.
    """
    rows = []
    for factor, levels in factors.items():
        if set(levels) - set(runs[factor]):
            continue
        others = [name for name in factors if name != factor]
        for quantity in _measured(runs):
            pairs = runs.pivot(index=["repetition", *others], columns=factor, values=quantity)
            pairs = pairs[list(levels)].dropna()
            groups = [("all", pairs), *pairs.groupby(others)]
            for given, part in groups:
                if part.empty:
                    continue
                ratio, low, high = paired_ratio_interval(
                    part[levels[1]].to_numpy(), part[levels[0]].to_numpy(), confidence
                )
                rows.append(
                    {"factor": factor, "levels": f"{levels[1]} over {levels[0]}"}
                    | {"given": given if given == "all" else _given(others, given)}
                    | {"quantity": quantity, "pairs": len(part)}
                    | {"ratio": ratio, "ratio_lo": low, "ratio_hi": high}
                )
    return pd.DataFrame(rows)


def _measured(runs: pd.DataFrame) -> list[str]:
    """Return the measured quantities; an energy estimated from CPU time repeats the seconds."""
    estimated = (runs["energy_source"] == ESTIMATED_SOURCE).any()
    return [
        name
        for name in QUANTITIES
        if runs[name].notna().any() and not (name == "energy_j" and estimated)
    ]


def _given(others: list[str], levels: tuple[str, ...]) -> str:
    pairs = zip(others, levels, strict=True)
    return ", ".join(GIVEN[name].format(level) for name, level in pairs if level != "none")


def against_plain_lora(runs: pd.DataFrame, confidence: float = 0.95) -> pd.DataFrame:
    """Return every cell over plain LoRA: FP16 base, no casts, float16 where there is autocast."""
    plain = (runs["base"] == "fp16") & (runs["casts"] == "without")
    plain &= runs["autocast"].isin(["float16", "none"])
    reference = runs[plain].set_index("repetition")
    rows = []
    for cell, part in runs[~plain].groupby("cell", sort=False):
        own = part.set_index("repetition")
        for quantity in _measured(runs):
            pairs = pd.concat([own[quantity], reference[quantity]], axis=1).dropna().to_numpy()
            if len(pairs):
                ratio, low, high = paired_ratio_interval(pairs[:, 0], pairs[:, 1], confidence)
                rows.append(
                    {"cell": cell, "quantity": quantity, "repetitions": len(pairs)}
                    | {"ratio": ratio, "ratio_lo": low, "ratio_hi": high}
                )
    return pd.DataFrame(rows, columns=["cell", "quantity", "repetitions", *RATIO])


def published_ratios(model: str) -> tuple[float, float] | None:
    """Return the smallest and largest published energy of QLoRA over LoRA, over a model's tasks."""
    table = published.read().adaptation
    table = table[table["family"] + "-" + table["size"] == model]
    if table.empty:
        return None
    energy = table.pivot(index="task", columns="method", values="adapt_energy_j")
    ratio = energy["qlora"] / energy["lora"]
    return float(ratio.min()), float(ratio.max())


def verdict(runs: pd.DataFrame, compared: pd.DataFrame) -> tuple[str, str]:
    """Return what the ablation says of the published ratio, and why.

    `open` until a T4 has measured energy in repeated runs of a model that was published: a CPU
    says nothing of watts, and a newer GPU has bfloat16 of its own. Then `explained`, by the cells
    whose interval meets the published range, or `not reproduced`. `compared` holds the cells over
    plain LoRA (`against_plain_lora`).
    """
    hosts, names = sorted(set(runs["host"])), sorted(set(runs["model"]))
    if not all("T4" in host for host in hosts):
        return "open", f"No T4 has run it yet; these figures are of {', '.join(hosts)}."
    energy = compared[compared["quantity"] == "energy_j"].dropna(subset=RATIO)
    if energy.empty:
        return "open", "There is no measured energy with an interval."
    span = published_ratios(names[0])
    if len(names) != 1 or span is None:
        return "open", f"No ratio was published for {', '.join(names)}."
    target = f"the published {span[0]:.1f} to {span[1]:.1f} times of {names[0]}"
    meets = energy[(energy["ratio_lo"] <= span[1]) & (energy["ratio_hi"] >= span[0])]
    if meets.empty:
        most = energy.loc[energy["ratio"].idxmax()]
        return (
            "not reproduced",
            f"No cell takes {target}; the most is {most['ratio']:.2f} times, {most['cell']}.",
        )
    cells = "; ".join(f"{row.cell} ({row.ratio:.2f} times)" for row in meets.itertuples())
    return "explained", f"These take {target}: {cells}."


def warnings(runs: pd.DataFrame, compared: pd.DataFrame) -> list[str]:
    """Return the verdict, and what these runs cannot say, a sentence or two each."""
    judged, why = verdict(runs, compared)
    sentence = f"The verdict on the published ratio: {judged}. {why}"
    return [sentence, CPU_LIMITS] if set(runs["autocast"]) == {"none"} else [sentence]


def stamp_of(runs: pd.DataFrame) -> str:
    """Return model, host and energy source, for the foot of a figure."""
    sources = ", ".join(sorted(runs["energy_source"].dropna().unique())) or "none"
    hosts, names = ", ".join(sorted(set(runs["host"]))), ", ".join(sorted(set(runs["model"])))
    return f"{names} · {hosts} · energy: {sources}"


def draw(compared: pd.DataFrame, stamp: str = "") -> Figure:
    """Return `effects` as a picture: a panel a quantity, a row a comparison; `stamp` at the foot.

    A filled marker is over all other levels, a hollow one at one combination of them; lines are
    95 % intervals, and the upright line is no effect.
    """
    rows = compared[["factor", "levels", "given"]].drop_duplicates().reset_index(drop=True)
    whole = rows["given"] == "all"
    shown = [quantity for quantity in TITLES if quantity in set(compared["quantity"])]
    size = (3.6 + 2.6 * len(shown), 1.6 + 0.36 * len(rows))
    figure, axes = plt.subplots(
        1, max(1, len(shown)), figsize=size, sharey=True, squeeze=False, layout="constrained"
    )
    axes[0][0].set_title("" if shown else "Nothing to draw: no effect was measured", loc="left")
    for axis, quantity in zip(axes[0], shown, strict=False):
        part = rows.merge(compared[compared["quantity"] == quantity], how="left")
        ends = part[["ratio_lo", "ratio_hi"]].replace([np.inf, -np.inf], np.nan)
        lengths = ends.sub(part["ratio"], axis=0).abs().fillna(0)
        for over_all, face in ((True, "C0"), (False, "white")):
            kept = whole == over_all
            bars = lengths[kept].to_numpy().T
            axis.errorbar(part["ratio"][kept], part.index[kept], xerr=bars, fmt="C0o", mfc=face)
        axis.axvline(1, color="0.6", linewidth=1, zorder=1)
        axis.set_title(TITLES[quantity], loc="left")
        axis.set_xlabel("ratio, second level over first")
    axes[0][0].set_yticks(
        rows.index, rows["given"].mask(whole, rows["levels"] + " " + rows["factor"])
    )
    axes[0][0].invert_yaxis()
    figure.suptitle("What in QLoRA costs how much? Right of 1: costs more", x=0.01, ha="left")
    figure.supxlabel(stamp, x=0.01, ha="left", fontsize=8, color="0.4")
    plt.close(figure)
    return figure


def write_results(runs: pd.DataFrame, directory: Path) -> None:
    """Write tables/ablation_*.csv and figures/ablation_effects.* below a directory."""
    tables = {"runs": runs, "effects": effects(runs), "cells": against_plain_lora(runs)}
    for name, table in tables.items():
        write_table(table, directory / "tables" / f"ablation_{name}.csv")
    figures.finish(
        draw(tables["effects"], stamp_of(runs)), directory / "figures" / "ablation_effects"
    )
