"""The five findings that the paper's page leads with, made from the computed numbers."""

from __future__ import annotations

import numpy as np
import pandas as pd

from edge_eval_lib.economics.published import requests_in_flight
from edge_eval_lib.paper import analysis
from edge_eval_lib.paper.analysis import Paper
from edge_eval_lib.paper.evidence import adaptation_kwh, by, met, printed_ratio

METRIC_NAMES = {
    "n_break": "N_break",
    "ipw": "IPW",
    "rho_sys": "density",
    "q_ret_pct": "Q_ret",
    "c_tax": "C_tax",
}


def findings(study: Paper) -> list[str]:
    """Return the five findings, a sentence or two each in Markdown: other figures, other findings.

    Args:
        study: What to compute from.

    Returns:
        On the arithmetic, the caption, the adaptation energies, the batch, and labour.
    """
    finders = (_arithmetic, _caption, _energies, _batch, _labour)
    return [find(study) for find in finders]


def _arithmetic(study: Paper) -> str:
    cells = study.evidence.headline
    count = met(cells, "recomputed")
    lead = "The arithmetic follows" if count == len(cells) else "Not all of the arithmetic follows"
    return (
        f"**{lead}**: {count} of {len(cells)} cells of the headline table come out as printed from "
        f"the figures of {len(study.variants)} variants that were released."
    )


def _caption(study: Paper) -> str:
    cells = study.evidence.headline
    medians, chance = met(cells, "median"), study.judged["coincidence"].sum()
    if medians == len(cells):
        return "**The caption holds**: every cell is the median over the model's INT4 variants."
    return (
        "**The caption says median, and the cells are something else** "
        f"({statistics_of_columns(cells)}). {medians} of {len(cells)} cells equal their median, "
        f"{chance} of them by coincidence. The caption may mean that each run's figure was first a "
        "median over the 20 runs; one row a variant was published, so that this cannot be checked."
    )


def statistics_of_columns(cells: pd.DataFrame) -> str:
    """Name the statistic of each column of the headline table: `N_break, density: mean; ...`."""
    names = cells["metric"].map(METRIC_NAMES)
    statistic = cells["statistic"].fillna("of no one kind")
    columns = names.groupby(statistic, sort=False).unique()
    return "; ".join(f"{', '.join(metrics)}: {name}" for name, metrics in columns.items())


def _energies(study: Paper) -> str:
    judged = by(study.judged, source="QLoRA energy table")
    ratios = adaptation_kwh(study.evidence)["ratio"]
    largest = ratios.idxmax()
    own = printed_ratio(study.evidence, largest)
    stated = study.figures.claims.set_index("claim_id")["value"].get("qlora_energy_max")
    text = (
        f"**{(judged['verdict'] != 'reproduced').sum()} of {len(judged)} printed adaptation "
        "energies and ratios do not follow** from the released energies."
    )
    if own and stated and own != stated:
        text += (
            f' The abstract\'s "up to {stated} times" is {"-".join(largest)} '
            f"({ratios[largest]:.2f} recomputed), for which the paper's own table prints {own}."
        )
    return text


def _batch(study: Paper) -> str:
    in_flight = requests_in_flight(study.figures.serving)
    lead = f"About {in_flight.mean():.0f} requests were in flight, not 1"
    return (
        f"**{'One request was in flight' if (in_flight <= 1.5).all() else lead}**: throughput "
        f"times time per token gives {in_flight.min():.0f} to {in_flight.max():.0f}. Energy per "
        "request, density and cold-start tax are figures of that load."
    )


def _labour(study: Paper) -> str:
    variants, shares = study.lora_int4, earned_back_pct(study)
    labour, electricity = shares["labour"], shares["electricity"]
    full = variants["n_break_full"]
    lead = "Labour decides" if labour.min() > 50 else "Labour alone does not decide"
    return (
        f"**{lead} when it pays**: LoRA-INT4 breaks even after {variants['n_break'].min():.0f} to "
        f"{variants['n_break'].max():.0f} requests if electricity alone counts, and after about "
        f"{about(full.min())} to {about(full.max())} with {study.prices.setup_hours:g} hours of "
        f"set-up. Of what must be earned back at least {np.floor(10 * labour.min()) / 10:.1f} % is "
        f"labour and at most {electricity.max():.2f} % electricity."
    )


def about(value: float) -> str:
    """Write two significant digits, without an exponent."""
    return f"{float(f'{value:.2g}'):,.0f}"


def earned_back_pct(study: Paper) -> pd.DataFrame:
    """Return electricity, hardware and labour, % of what each LoRA-INT4 variant must earn back."""
    spent = by(analysis.setup_shares(study), method="lora", precision="int4")
    usd = spent[["electricity_usd", "hardware_usd", "labour_usd"]]
    return (100 * usd.div(usd.sum(axis=1), axis=0)).rename(columns=lambda c: c.removesuffix("_usd"))
