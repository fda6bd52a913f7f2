"""Rules for the headline table, and for the claims that quote its figures."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
from scipy.optimize import brentq

from edge_eval_lib.economics.prices import load_price_book
from edge_eval_lib.economics.published import MODEL
from edge_eval_lib.paper.evidence import (
    LARGE_PARAMETERS,
    SMALL_PARAMETERS,
    STATISTICS,
    Evidence,
    agrees,
    by,
    met,
)
from edge_eval_lib.paper.finding import ABOUT, OFTEN, Finding, by_statistic, sentences
from edge_eval_lib.results.variants import paper_break_even


def cell(claim: pd.Series, proof: Evidence) -> Finding:
    """Judge a cell: the median, as captioned, or another statistic."""
    model = {"family": claim["family"], "size": claim["size"]}
    own = by(proof.headline, metric=claim["rule"], **model).iloc[0]
    candidates = {name: own[name] for name in STATISTICS}
    finding = by_statistic(
        candidates,
        lambda value: agrees(claim["value"], value),
        "median over the model's INT4 variants, to the digits printed",
        f"mean of LoRA-INT4 alone {own['mean, LoRA-INT4 alone']:.4g}, of QLoRA-INT4 "
        f"{own['mean, QLoRA-INT4 alone']:.4g}",
    )
    column = own["statistic"]
    if not finding.holds or pd.isna(column) or column == "median":
        return finding
    note = (
        f"a coincidence: the other cells of the column are the {column}, here "
        f"{candidates[column]:.4g}, and the median rounds to the same"
    )
    return replace(finding, coincidence=True, note=sentences(note, finding.note))


def headline_statistic(claim: pd.Series, proof: Evidence) -> Finding:
    """Judge the caption by all 30 cells."""
    cells = proof.headline
    medians = met(cells, "median")
    columns = cells.groupby("metric", sort=False)["statistic"].first()
    names = ", ".join(f"{metric}: {name or 'none'}" for metric, name in columns.items())
    finding = Finding(
        medians == len(cells),
        f"{medians} of {len(cells)} cells are medians",
        "each of the 30 cells is the median over the model's INT4 variants",
    )
    if finding.holds:
        return finding
    if columns.isna().any():
        return replace(finding, note=f"statistic of a column: {names}")
    note = (
        "one statistic a column gives all 30 cells; whether each run's figure was first a "
        "median over the 20 runs cannot be checked, because one row a variant was published"
    )
    return replace(finding, statistic=names, note=note)


def ipw_ranking(claim: pd.Series, proof: Evidence) -> Finding:
    """Judge which models are highest and lowest in IPW, and their values."""
    highest, lowest = claim["value"].split("-")
    text = {}
    meets = {}
    for name, value in STATISTICS.items():
        ipw = proof.int4.groupby(MODEL).apply(lambda int4, f=value: f(int4, "ipw"))
        most, least = ipw.idxmax(), ipw.idxmin()
        text[name] = (
            f"{'-'.join(most)} highest ({ipw.max():.3f}), {'-'.join(least)} lowest "
            f"({ipw.min():.3f})"
        )
        named = (most, least) == (("qwen", "1.5B"), ("qwen", "7B"))
        meets[name] = named and agrees(highest, ipw.max()) and agrees(lowest, ipw.min())
    rule = "both models and both values, by the median over INT4 variants"
    met_by = next((name for name, holds in meets.items() if holds), None)
    if met_by is None:
        return Finding(False, text["median"], rule)
    instead = "" if met_by == "median" else met_by
    return Finding(not instead, text["median"], rule, text[met_by], statistic=instead)


def llama_1b_over_large(claim: pd.Series, proof: Evidence, metric: str) -> Finding:
    """Judge LLaMA-1B over the 7B and 8B models in one metric."""
    small = by(proof.int4, family="llama", size="1B")
    large = proof.int4[proof.parameters(proof.int4) >= LARGE_PARAMETERS]
    ratios = {
        name: value(small, metric) / value(large, metric)
        for name, value in STATISTICS.items()
        if "alone" not in name
    }
    choices = {
        f"{name} over {name} {ratio:.2f}": agrees(claim["value"], ratio)
        for name, ratio in ratios.items()
        if name != "median"
    }
    cells = by(proof.headline, metric=metric)
    above = cells[proof.parameters(cells) >= LARGE_PARAMETERS]["printed"].astype(float)
    printed = float(by(cells, family="llama", size="1B")["printed"].iloc[0]) / above
    choices[f"printed cell over printed cells {printed.min():.2f} to {printed.max():.2f}"] = all(
        agrees(claim["value"], ratio) for ratio in printed
    )
    return by_statistic(
        ratios,
        lambda value: agrees(claim["value"], value),
        "LLaMA-1B over the INT4 variants of the 7B and 8B models, median over median",
        choices=choices,
    )


def density_exceeds(claim: pd.Series, proof: Evidence) -> Finding:
    """Judge whether the model's density is above the printed value."""
    own = proof.int4_of_models[tuple(claim[MODEL])]
    return by_statistic(
        {name: STATISTICS[name](own, "rho_sys") for name in ("median", "mean", "largest")},
        lambda value: value > float(claim["value"]),
        "the median over INT4 variants is above the printed value",
    )


def cold_start_range(claim: pd.Series, proof: Evidence) -> Finding:
    """Judge the range of the models' cold-start taxes."""
    printed = np.array([float(v) for v in claim["value"].split("-")])
    ranges = proof.int4.groupby(MODEL)["c_tax"].agg(["median", "mean"]).agg(["min", "max"])
    meets = (abs(ranges.div(printed, axis=0) - 1) <= ABOUT).all()
    single = proof.variants["c_tax"]
    note = f"single variants reach from {single.min():.0f} to {single.max():.0f}"
    finding = Finding(
        bool(meets["median"]),
        "{:.0f}-{:.0f}".format(*ranges["median"]),
        f"smallest and largest model median, both within {ABOUT:.0%}",
        note,
    )
    if finding.holds or not meets["mean"]:
        return finding
    means = "means reach from {:.0f} to {:.0f}".format(*ranges["mean"])
    return replace(finding, statistic="mean", note=sentences(means, note))


def cold_start_large(claim: pd.Series, proof: Evidence) -> Finding:
    """Judge whether every large variant's cold-start tax is above the printed value."""
    tax, bound = proof.variants["c_tax"], float(claim["value"])
    large = tax[proof.parameters(proof.variants) >= LARGE_PARAMETERS]
    return Finding(
        (large > bound).all(),
        large.min(),
        "every variant of the 7B and 8B models is above the printed value",
        f"{(tax > bound).sum()} of all {len(tax)} variants are above it: it does not tell large "
        "from small",
    )


def n_break_often_below(claim: pd.Series, proof: Evidence) -> Finding:
    """Judge whether small models often break even before the printed count."""
    small = proof.int4[proof.parameters(proof.int4) < SMALL_PARAMETERS]
    below = small["n_break"] < float(claim["value"])
    names = small["method"].map({"lora": "LoRA-INT4", "qlora": "QLoRA-INT4"})
    return Finding(
        below.mean() >= OFTEN,
        f"{below.sum()} of {len(below)}",
        f"at least {OFTEN:.0%} of the INT4 variants below 2B parameters",
        choices={
            f"{name} alone {part.sum()} of {len(part)}": part.mean() >= OFTEN
            for name, part in below.groupby(names)
        },
    )


def api_price(claim: pd.Series, proof: Evidence) -> Finding:
    """Judge whether the printed API price gives the printed break-evens."""
    cells = proof.figures.claims[proof.figures.claims["rule"] == "n_break"]
    prices = load_price_book().prices("paper")

    implied, stated = [], 0
    for _, cell in cells.iterrows():
        own = proof.int4_of_models[tuple(cell[MODEL])][["adapt_energy_j", "energy_per_request_j"]]

        def mean_n_break(api_usd: float, own: pd.DataFrame = own) -> float:
            trial = prices.model_copy(update={"api_usd_per_request": api_usd})
            return paper_break_even(own, trial).mean()

        printed = float(cell["value"])
        implied.append(brentq(lambda p, n=printed, f=mean_n_break: f(p) - n, 1e-5, 1.0))
        stated += agrees(cell["value"], mean_n_break(float(claim["value"])))
    return Finding(
        stated == len(cells),
        float(np.median(implied)),
        "N_break at this price gives the six printed values",
        f"the six printed break-evens follow from {min(implied):.6f} to {max(implied):.6f} "
        f"USD a request; at the stated price {stated} of {len(cells)} do",
    )
