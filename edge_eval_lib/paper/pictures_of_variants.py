"""The pictures of the published variants: pay-back, density, quality, the front, how firm it is."""

from __future__ import annotations

from itertools import product

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import Normalize

from edge_eval_lib.paper import analysis, fronts
from edge_eval_lib.paper.analysis import Paper
from edge_eval_lib.paper.evidence import by
from edge_eval_lib.paper.frame import Picture, configurations, finish, models_of, panels, span
from edge_eval_lib.results import figures, labels
from edge_eval_lib.results.readable import heading

CASES = {"passes": "three passes alone (best case)", "prompts": "other prompts too (worst)"}
KINDS = {"technical": "score, energy, latency", "economic": "score, requests to break even"}


def quadrants(study: Paper, phone: bool = False) -> Picture:
    """Draw when each variant pays back against its quality a joule."""
    variants = study.variants.assign(model=models_of)
    tasks = list(variants["task"].unique())
    fig, axes = panels(tasks, phone, (11.5, 4.2), 3.0, sharex=True, sharey=True)
    for task, axis in zip(tasks, axes, strict=True):
        own = by(variants, task=task)
        axis.axhline(own["n_break"].median(), color="#bbbbbb", lw=1, zorder=0)
        axis.axvline(own["ipw"].median(), color="#bbbbbb", lw=1, zorder=0)
        for _, rows in by(own, method="lora").groupby("model"):
            axis.plot(rows["ipw"], rows["n_break"], color="#c4c4c4", lw=1, zorder=1)
        _marks(axis, own, "ipw", "n_break")
        axis.set(xlim=(0, 0.54), ylim=(1.4, 110), yscale="log")
        axis.set_yticks([2, 5, 10, 20, 50, 100], ["2", "5", "10", "20", "50", "100"])
        axis.minorticks_off()
        axis.set_xticks([0, 0.1, 0.2, 0.3, 0.4, 0.5])
    for axis in axes if phone else axes[:1]:
        axis.set_ylabel("N_break [requests; log,\nreversed: up is sooner]")
    axes[0].invert_yaxis()
    for axis in axes[-1:] if phone else axes:
        axis.set_xlabel(heading("ipw"))
    reading = (
        "Up: fewer requests until it pays, on the paper's accounting. Right: more score a "
        "joule. Lines: medians of the task; a name stands at its model's LoRA INT4 and QLoRA "
        "INT4"
    )
    best = by(variants, method="lora", precision="int4")
    small = best[study.is_small(best)]
    alt = (
        f"Break-even requests against score a joule of {len(variants)} variants. LoRA INT4 of "
        f"models below 2B pays after {span(small['n_break'])} requests at {span(small['ipw'])} "
        f"score a joule, of larger models after {span(best['n_break'].drop(small.index))} at "
        f"{span(best['ipw'].drop(small.index))}; QLoRA INT4 after "
        f"{span(by(variants, method='qlora')['n_break'])}."
    )
    drawn = finish(
        fig, "Which variants pay back soon for much quality?", reading, alt, configurations(study)
    )
    for task, axis in zip(tasks, axes, strict=True):
        named = by(variants, task=task, precision="int4").sort_values("ipw", ascending=False)
        labels.place(axis, list(named[["ipw", "n_break", "model"]].itertuples(index=False)), 7.5)
    return drawn


def density(study: Paper, phone: bool = False) -> Picture:
    """Draw how much throughput a gigabyte buys, by model and configuration."""
    variants = study.variants.assign(model=models_of)
    tasks, models = list(variants["task"].unique()), list(variants["model"].unique())
    fig, axes = panels(tasks, phone, (11, 3.8), 2.3, sharex=True, sharey=True)
    for task, axis in zip(tasks, axes, strict=True):
        own = by(variants, task=task)
        shift = own["method"].map({"lora": -0.12, "qlora": 0.12}) * (own["precision"] == "int4")
        _marks(axis, own.assign(y=own["model"].map(models.index) + shift), "rho_sys", "y")
        _rows(axis, models)
        axis.set_xscale("log")
        figures.plain_log(axis.xaxis)
    for axis in axes[-1:] if phone else axes:
        axis.set_xlabel(heading("rho_sys").replace("]", ", log]"))
    ends = variants.groupby("precision", sort=False)["rho_sys"].median()
    reading = "Throughput over the paper's nominal sizes; right is more"
    alt = (
        f"Throughput a gigabyte of {len(variants)} variants; medians: "
        f"{', '.join(f'{p.upper()} {figures.number(v)}' for p, v in ends.items())} tok/s/GB. By "
        f"model from {span(variants.groupby('model')['rho_sys'].median())}."
    )
    return finish(fig, "How much speed does a gigabyte buy?", reading, alt, configurations(study))


def quality(study: Paper, phone: bool = False) -> Picture:
    """Draw what each quantised variant keeps of the score, with the passes' interval."""
    kept = analysis.fidelity(study).assign(model=models_of)
    tasks, models = list(kept["task"].unique()), list(kept["model"].unique())
    looks = {name: look for name, look in configurations(study).items() if "FP16" not in name}
    places = {("lora", "int8"): -0.25, ("lora", "int4"): 0.0, ("qlora", "int4"): 0.25}
    fig, axes = panels(tasks, phone, (11, 5), 3.2, sharex=True, sharey=True)
    for task, axis in zip(tasks, axes, strict=True):
        axis.axvline(100, color="#666666", lw=1, ls=":", zorder=0)
        for row in by(kept, task=task).itertuples():
            y = models.index(row.model) + places[row.method, row.precision]
            colour, marker = figures.look(row.method, row.precision)
            axis.plot(
                [row.passes_lo, row.passes_hi], [y, y], color=colour, lw=1.3, alpha=0.55, zorder=1
            )
            face = colour if row.resolved_by_passes else "white"
            axis.scatter(row.q_ret_pct, y, color=face, ec=colour, marker=marker, s=34, zorder=3)
        _rows(axis, models)
    for axis in axes[-1:] if phone else axes:
        axis.set_xlabel(heading("q_ret_pct"))
    differ = kept["resolved_by_passes"]
    reading = (
        "Right of 100: above LoRA-FP16. Bars: 95 % over three passes of decoding; hollow: they "
        "hold 100, or too little was seen to say"
    )
    alt = (
        f"Score kept of LoRA-FP16's: {span(kept['q_ret_pct'])} % over {len(kept)} quantised "
        f"variants; {differ.sum()} of them differ from 100 % beyond the three passes' scatter, "
        f"which shows differences of {span(kept['visible_by_passes'])} points at least."
    )
    return finish(fig, "What is left of the score?", reading, alt, looks)


def pareto(study: Paper, phone: bool = False) -> Picture:
    """Draw the front of score and energy, with the models on it."""
    pair = fronts.pareto(study, {"score": "max", "energy_per_request_j": "min"}).assign(
        model=models_of
    )
    front = pair[pair["on_front"]].sort_values("energy_per_request_j")
    tasks = list(pair["task"].unique())
    fig, axes = panels(tasks, phone, (11.5, 4.2), 3.1, sharex=True)
    for task, axis in zip(tasks, axes, strict=True):
        own, beaten = by(front, task=task), by(pair[~pair["on_front"]], task=task)
        axis.scatter(
            beaten["energy_per_request_j"], beaten["score"], s=14, color="#c8c8c8", zorder=1
        )
        axis.step(
            own["energy_per_request_j"], own["score"], where="post", color="#999999", lw=1, zorder=0
        )
        _marks(axis, own, "energy_per_request_j", "score")
        axis.set_xscale("log")
        axis.set_xticks([1, 2, 5, 10, 20, 50], ["1", "2", "5", "10", "20", "50"])
        axis.minorticks_off()
        axis.margins(x=0.12, y=0.14)
    for axis in axes if phone else axes[:1]:
        axis.set_ylabel("score, 0 to 1")
    for axis in axes[-1:] if phone else axes:
        axis.set_xlabel("energy per request [J, log]")
    reading = (
        "Up: better answers; left: less energy. The line is the front, grey dots are beaten; "
        "scores as published, without their error"
    )
    on = [f"{t}: {', '.join(by(front, task=t)['model'].unique())}" for t in tasks]
    alt = (
        f"{len(front)} of {len(pair)} variants are on the front of score and energy per request "
        f"({span(front['energy_per_request_j'])} J). {'; '.join(on)}."
    )
    drawn = finish(
        fig, "Which variants does nothing else beat?", reading, alt, configurations(study)
    )
    for task, axis in zip(tasks, axes, strict=True):
        columns = by(front, task=task)[["energy_per_request_j", "score", "model"]]
        labels.place(axis, list(columns.itertuples(index=False)))
    return drawn


def robustness(study: Paper, phone: bool = False) -> Picture:
    """Draw in how many draws a model is on the front, in the best and the worst case."""
    shares = fronts.model_robustness(study).assign(model=models_of)
    tasks, models = list(study.variants["task"].unique()), list(shares["model"].unique())
    shown = list(product(CASES, KINDS))
    titles = [f"{KINDS[kind]}\n{CASES[case]}" for case, kind in shown]
    fig, axes = panels(titles, phone, (12.5, 3.6), 2.5, sharey=True)
    for (case, kind), axis in zip(shown, axes, strict=True):
        wide = shares.pivot(index="model", columns="task", values=f"{kind}_{case}")
        percent = 100 * wide.loc[models, tasks].to_numpy()
        axis.imshow(percent, cmap="cividis", norm=Normalize(0, 100), aspect="auto")
        for (y, x), value in np.ndenumerate(percent):
            axis.text(x, y, f"{value:.0f}", ha="center", va="center", fontsize=8.5,
                      color="#111111" if value > 55 else "white")  # fmt: skip
        axis.set_xticks(range(len(tasks)), [t.replace("summarization", "summar.") for t in tasks])
        axis.set_yticks(range(len(models)), models)
        axis.tick_params(length=0)
        axis.grid(visible=False)
        axis.spines[:].set_visible(False)
        axis.title.set_fontsize(9)
    columns = [f"{kind}_{case}" for case, kind in shown]
    firm = shares[(shares[columns] >= 0.9).all(axis=1)]
    reading = (
        "% of draws in which any of a model's variants is on the front; API price, electricity "
        "and spread varied"
    )
    always = "; ".join(f"{m} in {t}" for m, t in zip(firm["model"], firm["task"], strict=True))
    alt = (
        f"Share of draws in which each of {len(models)} models is on the front, in {len(shown)} "
        f"cases. In at least 90 % of the draws in every case: {always or 'none'}."
    )
    return finish(fig, "How firmly is a model on the front?", reading, alt)


def _marks(axis: Axes, rows: pd.DataFrame, x: str, y: str) -> None:
    for (method, precision), part in rows.groupby(["method", "precision"]):
        colour, marker = figures.look(method, precision)
        axis.scatter(
            part[x], part[y], color=colour, marker=marker, s=42, ec="white", lw=0.5, zorder=3
        )


def _rows(axis: Axes, names: list[str]) -> None:
    axis.set_yticks(range(len(names)), names)
    axis.set_ylim(len(names) - 0.5, -0.5)
    axis.tick_params(axis="y", length=0)
