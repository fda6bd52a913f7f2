"""The pictures of the paper's claims, of QLoRA's energy and of when it pays: wide, and for a phone.

pictures.verdicts(study).figure        pictures.verdicts(study, phone=True).figure
"""

from __future__ import annotations

import numpy as np
from matplotlib.ticker import FuncFormatter

from edge_eval_lib.paper import analysis, qlora
from edge_eval_lib.paper.analysis import Paper
from edge_eval_lib.paper.evidence import by
from edge_eval_lib.paper.finding import VERDICT_LOOKS, VERDICTS
from edge_eval_lib.paper.frame import Picture, finish, models_of, panels, span
from edge_eval_lib.results import figures
from edge_eval_lib.results.readable import heading

ADAPTED = {
    "lora": ("LoRA", *figures.look("lora", "fp16")),
    "qlora": ("QLoRA", *figures.look("qlora", "int4")),
}
BF16_LIMIT = 65 / 8.1  # a T4's peak in fp16 over that in fp32, in which it emulates bf16
COUNTED = {
    "n_break": ("paper: electricity alone", "#666666", "D"),
    "n_break_full_0h": ("all, no labour", "#e0a84e", "o"),
    "n_break_full_8h": ("all, 8 h of set-up", "#d0782f", "s"),
    "n_break_full_80h": ("all, 80 h", "#a3491a", "^"),
}
_WORDS = {1e9: "billion", 1e6: "million"}


def verdicts(study: Paper, phone: bool = False) -> Picture:
    """Draw a square a cell or claim, by where the paper says it."""
    judged = study.judged.sort_values(
        "verdict", key=lambda v: v.map(list(VERDICTS).index), kind="stable"
    )
    sources = list(study.judged["source"].unique())
    across = 10 if phone else judged["source"].value_counts().max()
    rows, at, labels, places = [], 0.0, [], []
    for source in sources:
        own = by(judged, source=source)
        labels.append(source)
        places.append(at)
        for n, row in enumerate(own.itertuples()):
            rows.append((n % across, at + n // across, row.verdict, row.coincidence))
        at += (len(own) - 1) // across + (1.25 if phone else 1)
    fig, (axis,) = panels([""], phone, (9.6, 0.36 * at + 0.7), 0.3 * at)
    for x, y, verdict, chance in rows:
        colour, sign = VERDICT_LOOKS[verdict]
        axis.scatter(x, y, s=150, marker="s", c="none" if chance else colour, ec=colour)
        axis.text(x, y, sign, ha="center", va="center", fontsize=8.5, fontweight="bold",
                  color=colour if chance else "white")  # fmt: skip
    axis.set_yticks(places, labels)
    axis.set(xticks=[], ylim=(at - 0.3, -0.7), xlim=(-0.7, across - 0.3))
    axis.grid(visible=False)
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
    counts, words = judged["verdict"].value_counts(), by(judged, kind="claim")
    legend = {
        f"{sign} {v} ({counts.get(v, 0)})": (colour, "s")
        for v, (colour, sign) in VERDICT_LOOKS.items()
    }
    same = len(by(judged, kind="cell", verdict="other statistic"))
    reading = (
        f"A square: a cell of a table or a claim; hollow: by coincidence. The {same} cells ≈ "
        "say one thing: what is captioned a median is a mean or a largest value."
    )
    alt = (
        f"Of {len(judged)} cells and claims "
        f"{', '.join(f'{counts.get(v, 0)} are {v}' for v in VERDICTS)}. Of the {len(words)} "
        f"claims in words {(words['verdict'] == 'reproduced').sum()} are reproduced. {same} "
        "cells differ for one reason."
    )
    return finish(fig, "Which claims do the published figures bear out?", reading, alt, legend)


def statistics(study: Paper, phone: bool = False) -> Picture:
    """Draw what each cell of the headline table was made of."""
    cells = study.evidence.headline
    int4 = study.evidence.int4.assign(model=models_of)
    metrics = list(dict.fromkeys(cells["metric"]))
    titles = [by(cells, metric=m)["statistic"].iloc[0] for m in metrics]
    fig, axes = panels(
        [f"printed: {t}".replace(", ", ",\n") for t in titles], phone, (13, 3.9), 2.1, sharey=True
    )
    for metric, axis in zip(metrics, axes, strict=True):
        own = by(cells, metric=metric)
        rows = np.arange(len(own))
        place = dict(zip(models_of(own), rows, strict=True))
        axis.scatter(own["median"], rows, marker="|", s=300, color="#999999", zorder=1)
        axis.scatter(
            own["printed"].astype(float), rows, marker="|", s=300, color="#222222", lw=2.2, zorder=1
        )
        for method, shift in (("lora", -0.13), ("qlora", 0.13)):
            part, (colour, marker) = by(int4, method=method), figures.look(method, "int4")
            axis.scatter(
                part[metric], part["model"].map(place) + shift, color=colour, marker=marker, s=30
            )
        axis.set_yticks(rows, list(place))
        axis.set_ylim(len(rows) - 0.5, -0.5)
        axis.tick_params(axis="y", length=0)
        axis.set_xlabel(heading(metric))
        if metric == "rho_sys":
            axis.set(xscale="log", xlabel=heading(metric).replace("]", ", log]"))
            figures.plain_log(axis.xaxis)
            axis.set_xticks([300, 1000, 3000])
    legend = {
        "LoRA INT4": figures.look("lora", "int4"),
        "QLoRA INT4": figures.look("qlora", "int4"),
    }
    legend |= {"printed": ("#222222", "|"), "median, as captioned": ("#999999", "|")}
    close = (cells["recomputed"] - cells["median"]).abs() / cells["median"]
    alt = (
        f"Each model's six INT4 variants for {len(metrics)} metrics, with the printed value and "
        "the median that the caption announces: "
        f"{'; '.join(f'{heading(m)}: {t}' for m, t in zip(metrics, titles, strict=True))}. The "
        f"two differ by up to {100 * close.max():.0f} %."
    )
    reading = (
        "A row: a model's six INT4 variants, 2 ways of adapting × 3 tasks. Above: which "
        "statistic gives what was printed"
    )
    return finish(fig, "What is a cell of the headline table?", reading, alt, legend)


def paradox(study: Paper, phone: bool = False) -> Picture:
    """Draw both methods' energies, and how much of their ratio is time and how much power."""
    split, energies = qlora.decomposition(study), study.adaptation
    rows = np.arange(len(split))
    titles, shared = ["energy of one adaptation", "longer × more power"], {"sharey": not phone}
    fig, (left, right) = panels(titles, phone, (11.8, 6.6), 5.4, width_ratios=[1, 1.35], **shared)
    ends = [energies[f"{m}_energy_j"] / 1e6 for m in ADAPTED]
    left.hlines(rows, *ends, color="#cccccc", lw=3, zorder=1)
    for megajoules, (_, colour, marker) in zip(ends, ADAPTED.values(), strict=True):
        left.scatter(megajoules, rows, color=colour, marker=marker, s=42)
    seconds, power = np.log2(split["seconds_ratio"]), np.log2(split["power_ratio"])
    right.barh(rows, seconds, color=figures.COLOURS[9])
    right.barh(rows, power, left=seconds.where(power > 0, 0), color=figures.COLOURS[5])
    right.axvline(np.log2(BF16_LIMIT), color="#222222", ls=":", ymax=0.985)
    for y, (row, energy, at) in enumerate(
        zip(split.itertuples(), energies["energy_ratio"], ends[1], strict=True)
    ):
        left.annotate(
            f"×{energy:.1f}", (at, y), (8, 0), textcoords="offset points", va="center", fontsize=8.5
        )
        mark = "²" if row.lora_gpus == 2 else "*" if row.looks_like_qlora else ""
        right.text(
            4.25,
            y,
            f"{row.seconds_ratio:.1f} × {row.power_ratio:.2f}{mark}",
            va="center",
            fontsize=8.5,
        )
    for axis in (left, right):
        axis.set_yticks(
            rows, [f"{m} {t}" for m, t in zip(models_of(split), split["task"], strict=True)]
        )
        axis.set_ylim(len(rows) - 0.4, -0.6)
        axis.tick_params(axis="y", length=0)
        axis.yaxis.grid(visible=False)
    left.set(xlim=(0.05, 6), xlabel="energy [MJ, log]")
    figures.plain_log(left.xaxis)
    ticks = {-1: "×½", 0: "×1", 1: "×2", 2: "×4", 3: "×8", 4: "×16"}
    ticks = {at: name for at, name in ticks.items() if not phone or at % 2 == 0}
    right.set_xticks(list(ticks), list(ticks.values()))
    right.set(xlim=(-1.1, 5.9), xlabel="QLoRA over LoRA [log];\nnumbers: seconds × power")
    legend = {name: (colour, marker) for name, colour, marker in ADAPTED.values()} | {
        "seconds": (figures.COLOURS[9], "s"),
        "power": (figures.COLOURS[5], "s"),
    }
    beyond = (split["seconds_ratio"] > BF16_LIMIT).sum()
    reading = (
        "Mostly because it takes longer. Dots: the most that emulating bf16 explains, "
        f"×{BF16_LIMIT:.0f}; {beyond} pairs took longer still. ²: LoRA on two cards; *: LoRA at "
        "QLoRA's power"
    )
    alt = (
        f"QLoRA takes {span(energies['energy_ratio'])} times LoRA's energy over {len(split)} "
        f"pairs of model and task: {span(split['seconds_ratio'])} times as long at "
        f"{span(split['power_ratio'])} times the power. {beyond} pairs took longer than the "
        f"{BF16_LIMIT:.1f} times that emulating bf16 explains."
    )
    return finish(fig, "Why does QLoRA take more energy?", reading, alt, legend)


def accountings(study: Paper, phone: bool = False) -> Picture:
    """Draw after how many requests each model pays, by what is counted."""
    pays = by(analysis.break_even(study), method="lora", precision="int4").assign(model=models_of)
    tasks, models = list(pays["task"].unique()), list(pays["model"].unique())
    fig, axes = panels(tasks, phone, (11, 3.5), 2.1, sharey=True, sharex=True)
    for task, axis in zip(tasks, axes, strict=True):
        own = by(pays, task=task)
        rows = own["model"].map(models.index)
        for column, (_, colour, marker) in COUNTED.items():
            axis.scatter(own[column], rows, color=colour, marker=marker, s=46)
        axis.set_yticks(range(len(models)), models)
        axis.set_ylim(len(models) - 0.5, -0.5)
        axis.tick_params(axis="y", length=0)
        axis.set_xscale("log")
        axis.set_xticks([1, 100, 1e4, 1e6])
        axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: in_words(value)))
        axis.minorticks_off()
    for axis in axes[-1:] if phone else axes:
        axis.set_xlabel("requests to break even [log]")
    legend = {name: (colour, marker) for name, colour, marker in COUNTED.values()}
    reading = "LoRA INT4 on two T4 against GPT-4o. What is counted decides, not the model"
    ends = "; ".join(f"{name}: {span(pays[column])}" for column, (name, *_) in COUNTED.items())
    alt = (
        f"Requests to break even of {len(models)} models in {len(tasks)} tasks, LoRA INT4 "
        f"against GPT-4o. {ends}."
    )
    return finish(fig, "After how many requests does it pay?", reading, alt, legend)


def in_words(value: float) -> str:
    """Return `1`, `10,000`, `1 million`."""
    for factor, name in _WORDS.items():
        if value >= factor:
            return f"{value / factor:g} {name}"
    return f"{value:,.0f}"


def api_prices(study: Paper, phone: bool = False) -> Picture:
    """Draw when each model pays over what the API asks, alone and in a batch."""
    part = by(study.lora_int4, task="rag").assign(model=models_of)
    points = by(analysis.api_break_points(study), task="rag")
    asked = points.groupby("api")["api_usd_per_request"].first().sort_values()
    price = np.geomspace(asked.min() / 1.6, asked.max() * 1.5, 500)
    spent = analysis.costs(part, study.prices)
    alone, batch = analysis.alone_usd(part, study.prices), spent.local_usd_per_request
    fig, (axis,) = panels([""], phone, (10.5, 5.6), 6.2)
    colour = figures.look("lora", "int4")[0]
    low, high = (400 if phone else 60), 1e9  # below the curves there is room for the names of APIs
    ends = []
    for i in part.index:
        for local, style in ((alone, "-"), (batch, "--")):
            close = local[i] * (1 + np.geomspace(1e-6, 0.1, 60))  # where the line goes up
            known = np.sort(np.r_[price[price > local[i]], close[close > price[0]]])
            axis.plot(
                1e3 * known, spent.fixed_usd[i] / (known - local[i]), color=colour, ls=style, lw=1.3
            )
        ends.append((1e3 * (alone[i] + spent.fixed_usd[i] / high), part.loc[i, "model"]))
    axis.set(
        xscale="log",
        yscale="log",
        ylim=(low, high),
        xlabel="API price of 1,000 rag requests [USD, log]",
        ylabel="requests to break even [log]",
    )
    figures.plain_log(axis.xaxis)
    axis.set_xticks([0.1, 0.2, 0.5, 1, 2, 5])
    axis.set_yticks([1e5, 1e6, 1e7, 1e8, 1e9])
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: in_words(value)))
    axis.minorticks_off()
    axis.grid(visible=False)
    step = 1.24 if phone else 1.1
    _fan(
        axis,
        [(1e3 * usd, api) for api, usd in asked.items()],
        step,
        (0.28, 0.32) if phone else (0.37, 0.41),
        0.27 if phone else 0.36,
    )
    _fan(axis, sorted(ends), step, (1.0, 1.04), 1.05)
    reading = (
        f"LoRA INT4, everything counted, {study.prices.setup_hours:g} h of set-up. Solid: one "
        f"request at a time, dashed: {part['concurrency'].median():.0f} in flight. Left of "
        "where a line goes up: never"
    )
    never = points[~points["pays_alone"]].groupby("api").size()
    alt = (
        f"One request at a time, a rag request costs {span(1e3 * alone)} USD a thousand here, "
        "and APIs that ask less are never undercut: "
        f"{', '.join(f'{api} by {n} of {len(part)} models' for api, n in never.items())}. "
        f"With {part['concurrency'].median():.0f} in flight it costs {span(1e3 * batch)} USD."
    )
    return finish(fig, "At which API price does it never pay?", reading, alt)


def _fan(
    axis, names: list[tuple[float, str]], step: float, line: tuple[float, float], at: float
) -> None:
    """Write names upright at `at`, apart from each other, a line from each to its place."""
    across = axis.get_xaxis_transform()
    logs = np.log([x for x, _ in names])
    spread = logs.copy()
    for _ in range(200):  # push neighbours apart, equally
        for i in range(len(spread) - 1):
            lack = np.log(step) - (spread[i + 1] - spread[i])
            if lack > 0:
                spread[i] -= lack / 2
                spread[i + 1] += lack / 2
    up = at > line[0]
    for (x, name), place in zip(names, np.exp(spread), strict=True):
        axis.plot(
            [x, place],
            [line[1] if not up else line[0], line[0] if not up else line[1]],
            transform=across,
            color="#999999",
            lw=0.7,
            clip_on=False,
        )
        if not up:
            axis.plot([x, x], [line[1], 1], transform=across, color="#dddddd", lw=0.8, zorder=0)
        axis.text(
            place,
            at,
            name,
            transform=across,
            rotation=90,
            fontsize=8,
            ha="center",
            va="bottom" if up else "top",
            color="#555555",
        )
