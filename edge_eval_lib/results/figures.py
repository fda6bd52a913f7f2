"""Parts of pictures: what more than one notebook draws with, beside seaborn.

    fig, panels = figures.panels(variants, ["ipw", "n_break"], "Which variants pay back?", "...")
    for axis, part in panels:
        figures.mark(axis, part, "ipw", "n_break")
    figures.finish(fig, directory / "roi_ipw_quadrants", stamp, variants)

Colour and marker say the configuration, everywhere the same. A missing value is not drawn, and a
picture for which nothing was measured says so. A hollow marker is a row whose validity is
doubtful, a pale line the range of an estimate; what rows that stand beside each other do not share
is said at the foot.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from adjustText import adjust_text
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from edge_eval_lib import scraps
from edge_eval_lib.results import drawn, narrow
from edge_eval_lib.results.columns import (
    DOUBTFUL,
    MODEL,
    VARIANT,
    configuration_name,
    mixed,
    named,
    sort_variants,
    verdict,
)
from edge_eval_lib.results.readable import plain_name

scraps.skip_uri_grammar()  # altair, by which charts are made, imports jsonschema

STYLE = {
    **sns.axes_style("ticks"),
    "figure.dpi": 110,
    "savefig.dpi": 160,
    "font.size": 9.5,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 9.5,
    "axes.edgecolor": "#777777",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e8e8e8",
    "grid.linewidth": 0.8,
    "xtick.color": "#555555",
    "ytick.color": "#333333",
    "xtick.minor.visible": False,
    "ytick.minor.visible": False,
    "svg.hashsalt": "edge-eval",
    "svg.fonttype": "none",  # in the page's own typeface
}
COLOURS = sns.color_palette("colorblind").as_hex()
_CONFIGURATIONS = {
    ("lora", "fp16"): (COLOURS[0], "o"),
    ("lora", "int8"): (COLOURS[1], "s"),
    ("lora", "int4"): (COLOURS[2], "D"),
    ("qlora", "int4"): (COLOURS[4], "^"),
    ("none", "fp16"): ("#777777", "X"),
}
_OTHER_MARKERS = ["v", "P", "<", ">", "h", "*"]
MARKERS = ["o", "s", "D", "^", *_OTHER_MARKERS]
STAGES = {
    "adapt_energy_j": ("adapt, once", COLOURS[3], "v"),
    "compress_energy_j": ("compress, once", COLOURS[5], "P"),
    "load_energy_j": ("load, each cold start", COLOURS[9], ">"),
    "serving_energy_j": ("serve", "#333333", "o"),
}
GREY = "#666666"
BOX_REQUESTS = 20  # of fewer a box and whiskers at 5 and 95 % say nothing that dots do not


def set_style() -> None:
    """Have every picture of a notebook look alike."""
    plt.rcParams.update(STYLE)


def look(method: str, precision: str) -> tuple[str, str]:
    """Colour and marker of a configuration."""
    known = _CONFIGURATIONS.get((method, precision))
    if known:
        return known
    digit = sum(map(ord, method + precision))  # the same in every figure
    colours = [COLOURS[i] for i in (3, 5, 6, 8, 9)]
    return colours[digit % len(colours)], _OTHER_MARKERS[digit % len(_OTHER_MARKERS)]


def colour_of_name(name: str) -> str:
    """The colour of a variant by its name, `llama-1B_rag_lora_int4`."""
    parts = name.split("_")
    return look(*parts[-2:])[0] if len(parts) == len(VARIANT) - 1 else COLOURS[0]


def short_name(name: str) -> str:
    """`llama-1B_rag_lora_int4` -> `llama-1B  rag  LoRA INT4`; other names as they are."""
    parts = name.split("_")
    if len(parts) != len(VARIANT) - 1:
        return name
    return f"{parts[0]}  {parts[1]}  {configuration_name(parts[2], parts[3])}"


def short_names(names: Sequence[str]) -> list[str]:
    """`short_name` of each, without the model where all are of one."""
    short = [short_name(name) for name in names]
    models = {name.partition("  ")[0] for name in short}
    alone = [name.partition("  ")[2] for name in short]
    return alone if len(models) == 1 and all(alone) else short


def plain_log(axis: Axis, least: str | None = None) -> None:
    """Set a logarithmic scale whose ticks are plain numbers; `least` stands for 1 and below."""
    owner = axis.axes
    (owner.set_xscale if axis is owner.xaxis else owner.set_yscale)("log")
    low, high = sorted(axis.get_view_interval())
    decades = np.log10(max(high, 1e-300) / max(low, 1e-300))
    if decades < 0.4:
        axis.set_major_locator(MaxNLocator(4))
    else:  # as many labels as fit beside each other
        fits_one_two_five = decades < (1.3 if axis is owner.xaxis else 3)
        axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if fits_one_two_five else (1.0,)))
    axis.set_major_formatter(
        FuncFormatter(lambda value, _: least if least and value <= 1 else number(value))
    )
    axis.set_minor_locator(NullLocator())


def number(value: float, digits: int = 3) -> str:
    """Three significant digits, or fewer, with k, M, G for thousands."""
    value = float(f"{value:.{max(digits, 1)}g}") if digits < 3 else value
    for factor, letter in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= factor:
            return f"{value / (1e3 if letter == 'k' else factor):.3g} {letter}"
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def estimate_of(row: pd.Series, column: str) -> tuple[float, float]:
    """The range of an estimated figure; NaN where it is none."""
    low, high = (
        f"{column.removesuffix('_j')}_{end}_j" if column.endswith("_j")
        else f"{column}_estimate_{end}"
        for end in ("lo", "hi")
    )  # fmt: skip
    return float(row.get(low, np.nan)), float(row.get(high, np.nan))


def error_of(row: pd.Series, column: str) -> list[list[float]] | None:
    """Distances to the ends of the interval; None without one or where it is unbounded."""
    low, high = row.get(f"{column}_lo", np.nan), row.get(f"{column}_hi", np.nan)
    if not (np.isfinite(low) and np.isfinite(high)):
        return None
    return [[max(row[column] - low, 0)], [max(high - row[column], 0)]]


def panels(
    table: pd.DataFrame,
    needs: Sequence[str],
    title: str,
    reading: str,
    rows: bool = False,
    legend: dict[str, tuple[str, str]] | None = None,
    height: float = 5.0,
) -> tuple[Figure, list[tuple[Axes, pd.DataFrame]]]:
    """Start a picture with a panel for each task.

    Args:
        table: A row a mark, with `task`.
        needs: Its columns of which one must be known for a row to be drawn.
        title: The question that the picture answers.
        reading: How to read it, in a line.
        rows: Whether each model and configuration has a row: the parts then have its height in a
            column `y`.
        legend: Names with colour and marker; by default the configurations, where there are no
            rows.
        height: Inches; rows have their own.

    Returns:
        The figure, and each panel's axes with its part of the table; no panel where nothing is
        known, which the figure then says with the reason.
    """
    known = table.dropna(subset=list(needs), how="all" if rows else "any")
    if known.empty:
        return _nothing(title, list(needs), table), []
    known = sort_variants(known)
    tasks = list(dict.fromkeys(known["task"]))
    size = (max(3.5 * len(tasks), 6.0), height)
    if rows:
        known, places = _places(known)
        size = (2.2 + 3.1 * len(tasks), 1.9 + 0.26 * (max(places.values()) + 1))
    elif legend is None:
        pairs = sort_variants(known[["method", "precision"]].drop_duplicates())
        legend = {configuration_name(*pair): look(*pair) for pair in pairs.itertuples(index=False)}
    with plt.rc_context(STYLE):
        fig, (axes,) = plt.subplots(1, len(tasks), figsize=size, sharex=rows, sharey=True,
                                    layout="constrained", squeeze=False)  # fmt: skip
    for axis, task in zip(axes, tasks, strict=True):
        axis.set_title(task, loc="left", fontsize=10, fontweight="bold")
        if rows:
            axis.tick_params(axis="y", length=0)
            axis.set_yticks(list(places.values()), list(places))
            axis.set_ylim(max(places.values()) + 0.6, -0.6)
    headline(fig, title, reading, legend)
    return fig, [
        (axis, known[known["task"] == task]) for axis, task in zip(axes, tasks, strict=True)
    ]


def _places(table: pd.DataFrame) -> tuple[pd.DataFrame, dict[str, float]]:
    """The table with each row's height `y`, and the heights by what they are called."""
    several = table.groupby(MODEL).ngroups > 1
    table, places, before, y = named(table), {}, None, -1.0
    labels = table["configuration"] if "configuration" in table else pd.Series("", table.index)
    if several or "configuration" not in table:
        labels = (table["model"] + "   " + labels).str.strip()
    order = sort_variants(
        table.assign(label=labels)[
            [*(c for c in VARIANT if c in table and c != "task"), "model", "label"]
        ].drop_duplicates("label")
    )
    for row in order.itertuples():
        y += 1 + (0.7 if several and before not in (None, row.model) else 0)
        places[row.label], before = y, row.model
    return table.assign(y=labels.map(places)), places


def mark(
    axis: Axes,
    rows: pd.DataFrame,
    x: str,
    y: str,
    look_as: tuple[str, str] | None = None,
    values: bool = False,
) -> None:
    """Draw a marker a row, with its intervals and, pale, the range of an estimate.

    Args:
        axis: Where.
        rows: A row a marker; where its `validity` is doubtful, the marker is hollow.
        x: The column to the right.
        y: The column upwards.
        look_as: Colour and marker; by default those of each row's configuration.
        values: Whether each value of `x` stands beside its marker.
    """
    for _, row in rows.dropna(subset=[x, y]).iterrows():
        colour, marker = look_as or look(row["method"], row["precision"])
        for column in (x, y):
            ends = estimate_of(row, column)
            if np.isfinite(ends).all():
                across = (ends, [row[y]] * 2) if column == x else ([row[x]] * 2, ends)
                axis.plot(*across, color=colour, lw=3, alpha=0.18, zorder=2)
        doubtful = verdict(row.get("validity")) in DOUBTFUL
        axis.errorbar(
            row[x], row[y], xerr=error_of(row, x), yerr=error_of(row, y), fmt=marker, color=colour,
            markersize=6.5, markerfacecolor="white" if doubtful else colour, elinewidth=1.2,
            markeredgecolor=colour if doubtful else "white",
            markeredgewidth=1.4 if doubtful else 0.6, zorder=4,
        )  # fmt: skip
        if values:
            high = row.get(f"{x}_hi", np.nan)
            text = number(row[x], 3 if np.isfinite(high) else 2)
            axis.annotate(text, (np.nanmax([row[x], high]), row[y]), xytext=(7, 0),
                          textcoords="offset points", va="center", fontsize=7.5)  # fmt: skip


def connect(axis: Axes, rows: pd.DataFrame, x: str, y: str) -> None:
    """Where there are several models, draw a line through each one's marks and name it."""
    if rows.groupby(MODEL).ngroups < 2:
        return
    names = []
    for _, model in named(rows).groupby("model", sort=False):
        lora = model[model["method"] == "lora"]
        last = (lora if len(lora) else model).iloc[-1]
        axis.plot(lora[x], lora[y], color="#c4c4c4", lw=1, zorder=2)
        for _, row in model[model["method"] != "lora"].iterrows():
            ends = [last[x], row[x]], [last[y], row[y]]
            axis.plot(*ends, color="#c4c4c4", lw=1, ls=":", zorder=2)
        names.append(axis.text(last[x], last[y], last["model"], fontsize=7.5, zorder=6))
    axis.figure.canvas.draw()  # labels are moved apart where they will stand
    adjust_text(names, x=rows[x].to_numpy(), y=rows[y].to_numpy(), ax=axis, expand=(1.25, 1.6),
                arrowprops={"arrowstyle": "-", "color": "#999999", "lw": 0.6})  # fmt: skip


def headline(
    fig: Figure, title: str, reading: str, legend: dict[str, tuple[str, str]] | None = None
) -> None:
    """Title, below it how to read the figure, and in a third line a legend."""
    setattr(fig, narrow.HEADLINE, (title, reading, legend))
    lines = "\n\n" if legend else "\n"
    fig.suptitle(f"{title}{lines}", x=0.01, ha="left", fontsize=13, fontweight="bold")
    fig.text(0.01, 1.0, f"\n\n{reading}", transform=fig.transFigure, ha="left", va="top",
             fontsize=9, color=GREY, linespacing=1.05)  # fmt: skip
    if legend:
        handles = [plt.Line2D([], [], color=c, marker=m, ls="", ms=6.5) for c, m in legend.values()]
        fig.legend(
            handles, list(legend), loc="upper left", ncols=len(legend), frameon=False,
            handletextpad=0.1, columnspacing=1.4, fontsize=9, borderaxespad=0, borderpad=0,
            bbox_to_anchor=(0.008, 1 - 0.52 / fig.get_figheight()),
        )  # fmt: skip


def finish(
    fig: Figure,
    path: str | Path | None = None,
    stamp: str | None = None,
    rows: pd.DataFrame | None = None,
    cautions: Sequence[str] = (),
    alt: str | None = None,
) -> drawn.Drawn:
    """Say at the foot what a picture is of, write it, and show it.

    Args:
        fig: The figure.
        path: Where to write it as PNG and SVG, without the suffix; by default nowhere.
        stamp: The host and where its energy comes from.
        rows: What was drawn: what its rows do not share, or are doubtful of, is said.
        cautions: Other sentences for the foot.
        alt: What the picture shows, for who cannot see it; by default its title and reading.

    Returns:
        What a notebook shows.
    """
    with plt.rc_context(STYLE):
        _foot(fig, stamp, rows, cautions)
        picture = drawn.lay_out(fig)
        words = getattr(fig, narrow.HEADLINE, (fig.get_suptitle().strip(), ""))
        alt = alt or ": ".join(filter(None, words[:2]))
        svg = drawn.svg_of(picture)
        if path is not None:
            drawn.keep(picture, svg, Path(path), alt)
        return drawn.Drawn(fig, svg, alt, narrow.narrow_svg(fig))


def _foot(
    fig: Figure,
    stamp: str | None = None,
    rows: pd.DataFrame | None = None,
    cautions: Sequence[str] = (),
) -> None:
    """The stamp, what the rows do not share, and what their marks mean."""
    lines = [*cautions]
    if rows is not None:
        lines += mixed(rows)
        if "validity" in rows and rows["validity"].map(verdict).isin(DOUBTFUL).any():
            lines.append("Hollow markers: a validity check of the row is not ok.")
        estimates = [c for c in rows if re.search(r"_estimate_hi$|energy_per_request_hi_j$", c)]
        if rows[estimates].notna().any(axis=None):
            lines.append("Pale lines: the range of an estimate, moving all rows together.")
    foot = "\n".join(textwrap.fill(line, 130) for line in [*lines, *([stamp] if stamp else [])])
    if foot:
        fig.supxlabel(foot, x=0.01, ha="left", fontsize=8, color=GREY)
    plt.close(fig)  # what is shown is what was written; pyplot must not keep it


def _nothing(title: str, needs: Sequence[str], table: pd.DataFrame) -> Figure:
    """A figure that says what was not measured, and why where the table's notes say it."""
    notes = table["notes"].dropna() if "notes" in table else pd.Series(dtype=str)
    parts = list(dict.fromkeys(part for note in notes for part in str(note).split("; ")))
    # A note begins with the column that it is of; the others are about everything.
    of = {part: part.partition(":")[0] for part in parts}
    own = [part for part in parts if of[part] in needs]
    why = own or [part for part in parts if of[part] not in table]
    reasons = "\n".join(part.replace(of[part], plain_name(of[part]), 1) for part in why[:3])
    what = " and ".join(plain_name(name) for name in needs)
    with plt.rc_context(STYLE):
        fig, axis = plt.subplots(figsize=(7, 2.2), layout="constrained")
        axis.axis("off")
        axis.text(0.0, 0.5, f"Nothing to draw: no {what}.\n{reasons}", wrap=True, va="center")
        fig.suptitle(title, x=0.01, ha="left", fontsize=13, fontweight="bold")
    return fig
