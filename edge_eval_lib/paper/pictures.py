"""Pictures of the paper's analysis: functions of `Paper` that return a Figure, in `FIGURES`."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from edge_eval_lib.paper import analysis, claims
from edge_eval_lib.paper.analysis import Paper
from edge_eval_lib.paper.published import MODEL
from edge_eval_lib.results import figures, tables
from edge_eval_lib.results.figures import (
    _COLOURS,
    _GREY,
    _STYLE,
    _finish,
    _headline,
    _legend,
    _log_axis,
    _look,
)

STAMP = (
    "Published figures of two Tesla T4 (arXiv 2604.19342); energy from NVML power, load estimated"
)
_UNITS = {
    "n_break": "N_break, requests",
    "ipw": "IPW, score per joule [1/J]",
    "rho_sys": "rho_sys [tok/s/GB]",
    "q_ret_pct": "Q_ret [%]",
    "c_tax": "C_tax, requests",
}
_VERDICT_COLOURS = {
    "reproduced": _COLOURS[2],
    "other statistic": _COLOURS[8],
    "not reproduced": _COLOURS[3],
    "not checkable": "#bbbbbb",
}


def quadrants(study: Paper) -> Figure:
    """Requests to break even over intelligence per watt, all 72 variants."""
    return figures.roi_ipw_quadrants(study.variants, STAMP)


def density(study: Paper) -> Figure:
    """System density on the paper's nominal sizes."""
    return figures.system_density(study.variants, STAMP)


def quality_stability(study: Paper) -> Figure:
    """What is left of the FP16 score, with the intervals that three passes allow."""
    bounds = analysis.fidelity(study).set_index(tables.VARIANT)[["passes_lo", "passes_hi"]]
    bounds.columns = ["q_ret_pct_lo", "q_ret_pct_hi"]
    table = study.variants.drop(columns=["q_ret_pct_lo", "q_ret_pct_hi"])
    table = table.join(bounds, on=tables.VARIANT)
    return figures.quality_stability(table, f"{STAMP}; bars: 95 % over three passes of decoding")


def verdicts(study: Paper) -> Figure:
    """A square a claim, coloured by its verdict, a row a source."""
    judged = study.judged
    sources = list(dict.fromkeys(judged["source"]))
    with plt.rc_context(_STYLE):
        fig, axis = plt.subplots(figsize=(9.2, 0.9 + 0.42 * len(sources)), layout="constrained")
        for y, source in enumerate(sources):
            rows = judged[judged["source"] == source]
            rows = rows.sort_values(
                "verdict", key=lambda s: s.map(claims.VERDICTS.index), kind="stable"
            )
            colours = [_VERDICT_COLOURS[v] for v in rows["verdict"]]
            axis.scatter(
                range(len(rows)), [y] * len(rows), marker="s", s=95, edgecolor=colours,
                c=["white" if c else k for c, k in zip(rows["coincidence"], colours, strict=True)],
            )  # fmt: skip
        axis.set_yticks(range(len(sources)), sources)
        axis.set_ylim(len(sources) - 0.5, -0.5)
        axis.set_xticks([])
        axis.grid(visible=False)
        sns.despine(ax=axis, left=True, bottom=True)
        axis.tick_params(length=0)
        counts = judged["verdict"].value_counts()
        handles = [
            plt.Line2D([], [], color=c, marker="s", ls="") for c in _VERDICT_COLOURS.values()
        ]
        names = [f"{v} ({counts.get(v, 0)})" for v in _VERDICT_COLOURS]
        _headline(
            fig,
            "Which claims do the published figures bear out?",
            "a square a cell of a table or a claim; hollow: by coincidence",
        )
        _legend(fig, (handles, names))
    return _finish(fig, STAMP)


def statistics(study: Paper) -> Figure:
    """The headline cells as printed, over the INT4 variants that they summarise."""
    cells = analysis.headline(study)
    int4 = study.variants[study.variants["precision"] == "int4"]
    models = cells[MODEL].drop_duplicates().apply(tuple, axis=1).tolist()
    with plt.rc_context(_STYLE):
        fig, axes = plt.subplots(
            1, len(tables.METRICS), figsize=(14, 4.2), sharey=True, layout="constrained"
        )
        for axis, metric in zip(axes, tables.METRICS, strict=True):
            for y, (family, size) in enumerate(models):
                own = int4[(int4["family"] == family) & (int4["size"] == size)]
                for method, part in own.groupby("method"):
                    colour, marker = _look(method, "int4")
                    axis.scatter(
                        part[metric], [y] * len(part), color=colour, marker=marker, s=34,
                        alpha=0.75, edgecolor="white", lw=0.5, zorder=3,
                    )  # fmt: skip
                cell = cells[
                    (cells["family"] == family)
                    & (cells["size"] == size)
                    & (cells["metric"] == metric)
                ].iloc[0]
                axis.vlines(float(cell["printed"]), y - 0.36, y + 0.36, color="black", lw=2)
                axis.vlines(cell["median"], y - 0.36, y + 0.36, color="#888888", lw=1.4, ls=":")
            found = cells.loc[cells["metric"] == metric, "statistic"].iloc[0]
            axis.set_title(f"printed = {found}", fontsize=9)
            axis.set_xlabel(_UNITS[metric])
            axis.grid(axis="y", visible=False)
            if metric == "rho_sys":
                axis.set_xscale("log")
                _log_axis(axis.xaxis)
                axis.set_xticks([300, 1000, 3000])
        axes[0].set_yticks(range(len(models)), ["-".join(m) for m in models])
        axes[0].invert_yaxis()
        handles = [
            plt.Line2D([], [], color=_look("lora", "int4")[0], marker="D", ls=""),
            plt.Line2D([], [], color=_look("qlora", "int4")[0], marker="^", ls=""),
            plt.Line2D([], [], color="black", lw=2),
            plt.Line2D([], [], color="#888888", lw=1.4, ls=":"),
        ]
        _headline(
            fig,
            "What is a cell of the headline table?",
            "each row: a model's six INT4 variants, two ways of adapting × three tasks",
        )
        _legend(fig, (handles, ["LoRA INT4", "QLoRA INT4", "printed", "median, as captioned"]))
    return _finish(fig, STAMP)


def accountings(study: Paper) -> Figure:
    """Requests to break even, paper's and full accounting, LoRA-INT4."""
    table = analysis.break_even(study)
    table = table[(table["method"] == "lora") & (table["precision"] == "int4")]
    series = {
        "n_break": ("paper: electricity alone", _COLOURS[2], "D"),
        "n_break_full_0h": ("full, no set-up labour", _COLOURS[0], "o"),
        "n_break_full_8h": ("full, 8 h (headline)", _COLOURS[1], "s"),
        "n_break_full_80h": ("full, 80 h", _COLOURS[4], "^"),
    }
    labels = (table["family"] + "-" + table["size"]).tolist()
    order = list(dict.fromkeys(labels))
    tasks = list(dict.fromkeys(table["task"]))
    with plt.rc_context(_STYLE):
        fig, axes = plt.subplots(
            1, len(tasks), figsize=(11, 3.6), sharex=True, sharey=True, layout="constrained"
        )
        for axis, task in zip(axes, tasks, strict=True):
            part = table[table["task"] == task]
            for column, (_, colour, marker) in series.items():
                axis.scatter(
                    part[column], range(len(part)), color=colour, marker=marker, s=42, zorder=3
                )
            for y, row in enumerate(part.itertuples()):
                axis.hlines(y, row.n_break, row.n_break_full_80h, color="#dddddd", lw=3, zorder=1)
            _log_axis(axis.xaxis)
            axis.set_title(task)
            axis.set_xlabel("requests to break even [log]")
            axis.grid(axis="y", visible=False)
        axes[0].set_yticks(range(len(order)), order)
        axes[0].invert_yaxis()
        handles = [plt.Line2D([], [], color=c, marker=m, ls="") for _, c, m in series.values()]
        _headline(
            fig,
            "After how many requests does it pay?",
            "LoRA INT4 against GPT-4o; what is counted decides, not the model",
        )
        _legend(fig, (handles, [name for name, _, _ in series.values()]))
    return _finish(fig, STAMP)


def paradox(study: Paper) -> Figure:
    """LoRA beside QLoRA energy, and their ratio split into time and power."""
    energies = analysis.adaptation(study)
    split = analysis.decomposition(study)
    ys = np.arange(len(split)) + 0.6 * split.groupby(MODEL, sort=False).ngroup()
    labels = [f"{r['family']}-{r['size']}  {r['task']}" for _, r in split.iterrows()]
    with plt.rc_context(_STYLE):
        fig, (left, right) = plt.subplots(
            1, 2, figsize=(11.5, 7.4), sharey=True, layout="constrained"
        )
        left.hlines(
            ys, energies["lora_energy_j"] / 1e6, energies["qlora_energy_j"] / 1e6,
            color="#cccccc", lw=3, zorder=1,
        )  # fmt: skip
        for method, colour, marker in (("lora", _COLOURS[0], "o"), ("qlora", _COLOURS[4], "^")):
            left.scatter(
                energies[f"{method}_energy_j"] / 1e6,
                ys,
                color=colour,
                marker=marker,
                s=46,
                zorder=3,
            )
        for y, x, ratio in zip(
            ys, energies["qlora_energy_j"] / 1e6, energies["energy_ratio"], strict=True
        ):
            left.annotate(
                f"×{ratio:.1f}", (x, y), xytext=(7, 0), textcoords="offset points", va="center",
                fontsize=8.5,
            )  # fmt: skip
        _log_axis(left.xaxis)
        left.set_xlim(0.05, 6)
        left.set_xlabel("energy of one adaptation [MJ, log]")
        left.set_yticks(ys, labels)
        left.set_ylim(ys.max() + 0.7, -0.7)

        time, power = np.log2(split["seconds_ratio"]), np.log2(split["power_ratio"])
        right.barh(ys, time, color=_COLOURS[9], height=0.72, zorder=2)
        start = np.where(power > 0, time, 0)
        right.barh(ys, power, left=start, color=_COLOURS[1], height=0.72, zorder=2)
        right.axvline(0, color="#555555", lw=1, zorder=3)
        predicted = np.log2(analysis.T4_FP16_FLOPS / analysis.T4_FP32_FLOPS)
        right.axvline(predicted, color="black", lw=1.2, ls=":", zorder=4)
        right.text(
            predicted, -0.8, "fp16 tensor cores over fp32: ×8",
            fontsize=8, ha="center", va="bottom",
        )  # fmt: skip
        for y, row in zip(ys, split.itertuples(), strict=True):
            two = "  two cards in LoRA" if row.lora_gpus == 2 else ""
            odd = "  LoRA at QLoRA's power" if row.looks_like_qlora else ""
            at = max(np.log2(row.seconds_ratio), np.log2(row.energy_ratio))
            right.annotate(
                f"{row.time_share_pct:.0f} % time{two}{odd}", (at, y), xytext=(5, 0),
                textcoords="offset points", va="center", fontsize=8, color="#333333", zorder=5,
                bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.8},
            )  # fmt: skip
        right.set_xticks(range(-1, 5), ["×½", "×1", "×2", "×4", "×8", "×16"])
        right.set_xlim(-1.1, 6.4)
        right.set_xlabel("QLoRA over LoRA [log]: energy = seconds × power")
        for axis in (left, right):
            axis.grid(axis="y", visible=False)
        handles = [
            plt.Line2D([], [], color=_COLOURS[0], marker="o", ls=""),
            plt.Line2D([], [], color=_COLOURS[4], marker="^", ls=""),
            plt.Line2D([], [], color=_COLOURS[9], marker="s", ls="", ms=9),
            plt.Line2D([], [], color=_COLOURS[1], marker="s", ls="", ms=9),
        ]
        _headline(
            fig,
            "Why does QLoRA take more energy?",
            "mostly because it takes longer; the released code trains LoRA in fp16, QLoRA in bf16, "
            "which a T4 emulates",
        )
        _legend(fig, (handles, ["LoRA", "QLoRA", "seconds", "power"]))
    return _finish(fig, STAMP)


def pareto(study: Paper) -> Figure:
    """Score over energy per request, a panel a task; the front is drawn and named."""
    table = analysis.pareto(study, {"score": "max", "energy_per_request_j": "min"})
    tasks = list(dict.fromkeys(table["task"]))
    with plt.rc_context(_STYLE):
        fig, axes = plt.subplots(1, len(tasks), figsize=(13.5, 5.2), layout="constrained")
        for axis, task in zip(axes, tasks, strict=True):
            part = table[table["task"] == task]
            front = part[part["on_front"]].sort_values("energy_per_request_j")
            rest = part[~part["on_front"]]
            axis.scatter(
                rest["energy_per_request_j"], rest["score"], s=16, color="#c8c8c8", zorder=1
            )
            axis.step(
                [*front["energy_per_request_j"], part["energy_per_request_j"].max() * 1.05],
                [*front["score"], front["score"].max()],
                where="post", color="#999999", lw=1, zorder=2,
            )  # fmt: skip
            for _, row in front.iterrows():
                colour, marker = _look(row["method"], row["precision"])
                axis.scatter(
                    row["energy_per_request_j"], row["score"], s=62, color=colour, marker=marker,
                    edgecolor="black" if row["small"] else "white", lw=1.1, zorder=4,
                )  # fmt: skip
            _log_axis(axis.xaxis)
            axis.set_title(task)
            axis.set_xlabel("energy per request [J, log]")
            _name_steps(axis, front)
        axes[0].set_ylabel("score, 0 to 1")
        pairs = tables.sort_variants(table[["method", "precision"]].drop_duplicates())
        handles, names = [], []
        for method, precision in pairs.itertuples(index=False):
            colour, marker = _look(method, precision)
            handles.append(plt.Line2D([], [], color=colour, marker=marker, ls="", ms=7))
            names.append(figures.configuration_name(method, precision))
        handles += [
            plt.Line2D([], [], color="white", marker="o", mec="black", ls="", ms=7),
            plt.Line2D([], [], color="#c8c8c8", marker="o", ls="", ms=4),
        ]
        _headline(
            fig,
            "Which variants does nothing else beat?",
            "up: better answers; left: less energy; the line is the front, grey dots are beaten",
        )
        _legend(fig, (handles, [*names, "below 2B", "beaten"]))
    return _finish(fig, STAMP)


def _name_steps(axis, front: pd.DataFrame) -> None:
    """Name each point of a front to its upper left, where by definition nothing lies."""
    left, right = axis.get_xlim()
    axis.set_xlim(left / 2.6, right)
    low, high = axis.get_ylim()
    axis.set_ylim(low, high + 0.06 * (high - low))
    least = 0.05 * (high - low)
    place = -np.inf
    for _, row in front.sort_values("score").iterrows():
        place = max(row["score"] + 0.25 * least, place + least)
        axis.annotate(
            f"{row['family']}-{row['size']}", (row["energy_per_request_j"], row["score"]),
            xytext=(row["energy_per_request_j"] / 1.22, place), textcoords="data", va="center",
            ha="right", fontsize=8.5, fontweight="bold" if row["small"] else "normal", zorder=3,
            arrowprops={"arrowstyle": "-", "color": "#bbbbbb", "lw": 0.7, "shrinkB": 4},
        )  # fmt: skip


def robustness(study: Paper) -> Figure:
    """How often each model keeps a variant on the front: best and worst case of the scores."""
    table = analysis.model_robustness(study)
    table["model"] = table["family"] + "-" + table["size"]
    models = list(dict.fromkeys(study.variants["family"] + "-" + study.variants["size"]))
    tasks = list(dict.fromkeys(table["task"]))
    cases = {"passes": "three passes alone (best case)", "prompts": "other prompts too (worst)"}
    kinds = {
        "technical": "score, energy, latency",
        "economic": "score, requests to break even",
    }
    with plt.rc_context(_STYLE):
        fig, axes = plt.subplots(
            len(cases), len(kinds), figsize=(9.6, 7.2), sharey=True, layout="constrained"
        )
        for row, (case, scatter) in zip(axes, cases.items(), strict=True):
            for axis, (kind, title) in zip(row, kinds.items(), strict=True):
                shares = table.pivot(index="model", columns="task", values=f"{kind}_{case}")
                sns.heatmap(
                    100 * shares.reindex(index=models, columns=tasks), ax=axis, vmin=0, vmax=100,
                    cmap="cividis", annot=True, fmt=".0f", cbar=False, linewidths=1.5,
                    linecolor="white",
                )  # fmt: skip
                axis.set_title(f"{title}\n{scatter}")
                axis.set_xlabel("")
                axis.set_ylabel("")
                axis.tick_params(length=0)
                axis.tick_params(axis="y", rotation=0)
        _headline(
            fig,
            "How firmly is a model on the front?",
            "% of draws in which any of its variants is on it: API price, electricity, spread "
            "varied",
            legend=False,
        )
    return _finish(fig, STAMP)


def api_prices(study: Paper) -> Figure:
    """Requests to break even over the API's price for a request; where it never pays."""
    v = study.variants
    part = v[(v["method"] == "lora") & (v["precision"] == "int4") & (v["task"] == "rag")]
    points = analysis.api_break_points(study)
    asked = points[points["task"] == "rag"].groupby("api")["api_usd_per_request"].first()
    asked = asked.sort_values()
    spent = analysis.costs(part, study.prices)
    alone = analysis.alone_usd(part, study.prices).sort_values()
    bottom, top = 2e4, 1e9
    with plt.rc_context(_STYLE):
        fig, axis = plt.subplots(figsize=(10.5, 5.8), layout="constrained")
        grid = np.geomspace(asked.min() / 1.6, asked.max() * 1.5, 2000)
        places = _spread(pd.Series(alone.to_numpy(), index=alone.index), 1.09)
        for colour, (x, index) in zip(_COLOURS, places, strict=False):
            for local, style in (
                (alone[index], "-"),
                (spent.local_usd_per_request[index], "--"),
            ):
                saved = grid - local
                axis.plot(
                    grid[saved > 0], spent.fixed_usd[index] / saved[saved > 0], style,
                    color=colour, lw=1.5, zorder=3,
                )  # fmt: skip
            axis.text(
                x, top * 0.8, f"{part.loc[index, 'family']}-{part.loc[index, 'size']}",
                rotation=90, fontsize=8.5, color=colour, va="top", ha="right", zorder=4,
                bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.8},
            )  # fmt: skip
        axis.set_yscale("log")
        axis.set_xscale("log")
        _log_axis(axis.xaxis)
        _log_axis(axis.yaxis)
        axis.set_ylim(bottom, top)
        for x, name in _spread(asked, 1.12):
            axis.axvline(asked[name], color="#e4e4e4", lw=0.9, zorder=1)
            axis.text(
                x, bottom * 1.25, name, fontsize=8, rotation=90, ha="center", va="bottom",
                color=_GREY, zorder=4,
                bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.6},
            )  # fmt: skip
        axis.set_xlabel("what the API asks for a rag request [USD, log]")
        axis.set_ylabel("requests to break even [log]")
        handles = [
            plt.Line2D([], [], color=_GREY, lw=1.6),
            plt.Line2D([], [], color=_GREY, lw=1.6, ls="--"),
        ]
        in_flight = part["concurrency"].median()
        _headline(
            fig,
            "At which API price does it never pay?",
            f"LoRA INT4, rag, full accounting, {study.prices.setup_hours:g} h of set-up; left of "
            "where a line goes up: never",
        )
        _legend(fig, (handles, ["one request at a time", f"{in_flight:.0f} in flight"]))
    return _finish(fig, STAMP)


def _spread(asked: pd.Series, least: float) -> list[tuple[float, str]]:
    """Places for names at sorted positive places, at least a factor `least` apart."""
    places, last = [], 0.0
    for name, value in asked.items():
        last = max(value, last * least)
        places.append((last, name))
    return places


FIGURES: dict[str, Callable[[Paper], Figure]] = {
    "verdicts": verdicts,
    "statistics": statistics,
    "quadrants": quadrants,
    "density": density,
    "quality_stability": quality_stability,
    "accountings": accountings,
    "api_prices": api_prices,
    "paradox": paradox,
    "pareto": pareto,
    "robustness": robustness,
}


@lru_cache(maxsize=2 * len(FIGURES))
def draw(study: Paper, name: str) -> Figure:
    """The figure called `name` in FIGURES, drawn once for each `study`."""
    return FIGURES[name](study)
