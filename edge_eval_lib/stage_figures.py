"""The picture at the end of each stage notebook: one run's own data -> a matplotlib figure."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from edge_eval_lib.figures import configuration_name

_STYLE = {**sns.axes_style("ticks"), "axes.spines.top": False, "axes.spines.right": False}
_BLUE, _ORANGE, _GREEN = sns.color_palette("colorblind").as_hex()[:3]
_GREY = "#666666"


def memory_fit(fit: pd.DataFrame) -> Figure:
    """What each step needs, a bar each, against the device's memory (preflight.fit_table)."""
    known = fit.dropna(subset="need_gb")
    labels = known["model"] + "  " + known["step"]
    with plt.rc_context(_STYLE):
        fig, axis = plt.subplots(figsize=(7, 1.2 + 0.32 * len(known)), layout="constrained")
        axis.barh(labels, known["need_gb"], color=_BLUE)
        for place, need in enumerate(known["need_gb"]):
            axis.text(need, place, f" {need:.2g} GB", va="center", fontsize=9)
        device_gb = fit["device_gb"].iloc[0]
        axis.axvline(device_gb, color=_ORANGE)
        axis.text(device_gb, -0.7, f"device: {device_gb:.3g} GB", color=_ORANGE, ha="right")
        axis.invert_yaxis()
        axis.set(xlabel="estimated memory (GB)", title="Does it fit?")
    return fig


def loss_curve(losses: list[float], before: float, after: float, title: str) -> Figure:
    """Training loss by step, with the held-out loss before and after as level lines."""
    with plt.rc_context(_STYLE):
        fig, axis = plt.subplots(figsize=(7, 3.6), layout="constrained")
        axis.plot(np.arange(1, len(losses) + 1), losses, marker="o", ms=4, color=_BLUE)
        for level, name, colour in (
            (before, "held out, before", _ORANGE),
            (after, "held out, after", _GREEN),
        ):
            axis.axhline(level, color=colour, ls="--", lw=1)
            axis.text(
                len(losses), level, f"{name}: {level:.2f}", color=colour, ha="right", va="bottom"
            )
        axis.set(
            title=f"Training loss, {title}",
            xlabel="step",
            ylabel="loss (nats per answer token)",
            ylim=(0, None),
        )
    return fig


def compression(table: pd.DataFrame, title: str) -> Figure:
    """Megabytes on disk and seconds of each precision, side by side (compress.artefact_table)."""
    with plt.rc_context(_STYLE):
        fig, axes = plt.subplots(1, 2, figsize=(7, 2.8), layout="constrained")
        for axis, column, label in (
            (axes[0], "disk_mb", "on disk (MB)"),
            (axes[1], "seconds", "time (s)"),
        ):
            bars = axis.bar(table["precision"], table[column], color=_BLUE, width=0.6)
            axis.bar_label(bars, fmt="%.3g")
            axis.set(ylabel=label)
        fig.suptitle(f"Merging and quantising, {title}", x=0.01, ha="left")
    return fig


def token_times(requests: pd.DataFrame, title: str) -> Figure:
    """Tokens delivered over the time since submission, a line a request, a panel a concurrency."""
    panels = sorted(requests["concurrency"].unique())
    with plt.rc_context(_STYLE):
        fig, axes = plt.subplots(
            1, len(panels), figsize=(3.6 * len(panels), 3.4), sharey=True, squeeze=False,
            layout="constrained",
        )  # fmt: skip
        for axis, concurrency in zip(axes[0], panels, strict=True):
            part = requests[requests["concurrency"] == concurrency]
            for submitted, times in zip(part["submitted_s"], part["token_times_s"], strict=True):
                axis.step(
                    [0, *(np.asarray(times) - submitted)],
                    range(len(times) + 1),
                    where="post",
                    color=_BLUE,
                    alpha=0.5,
                    lw=1,
                )
            axis.set(
                title=f"concurrency {concurrency}: TTFT {part['ttft_ms'].mean():.0f} ms, "
                f"TPOT {part['tpot_ms'].mean():.0f} ms",
                xlabel="since submission (s)",
                xlim=(0, None),
            )
            axis.title.set_fontsize(10)
        axes[0][0].set(ylabel="tokens delivered")
        fig.suptitle(f"Every token's time, {title}", x=0.01, ha="left")
    return fig


def score_distribution(answers: pd.DataFrame) -> Figure:
    """Every prompt's score, a dot each, by configuration, a panel a task; the bar is the mean."""
    shown = answers.dropna(subset="score").copy()
    shown["configuration"] = [
        configuration_name(method, precision)
        for method, precision in zip(shown["method"], shown["precision"], strict=True)
    ]
    order = list(dict.fromkeys(shown["configuration"]))
    with plt.rc_context(_STYLE):
        grid = sns.catplot(
            shown, x="score", y="configuration", col="task", order=order, kind="strip",
            color=_BLUE, alpha=0.45, size=4, height=0.9 + 0.45 * len(order), aspect=1.3,
        )  # fmt: skip
        for task, axis in grid.axes_dict.items():
            means = shown[shown["task"] == task].groupby("configuration")["score"].mean()
            for place, name in enumerate(order):
                if name in means:
                    axis.plot([means[name]] * 2, [place - 0.3, place + 0.3], color=_ORANGE, lw=3)
        grid.set_titles("{col_name}")
        grid.set(xlim=(-0.03, 1.03), xlabel="score (0 to 1)", ylabel="")
    return grid.figure
