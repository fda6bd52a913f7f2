"""What the paper claims, judged by rule from its own published figures.

`judge(evidence(figures))` gives one row a claim. Each rule is a function of the claim and the
evidence; the verdict is computed, so that other figures or another printed value give another one.

A printed value is met when the recomputed one, rounded to the digits that were printed, is the
same. "Recomputed" is always from the paper's own figures: nothing was measured again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import numpy as np
import pandas as pd
from scipy.optimize import brentq

from edge_eval_lib.economics import fit as memory_fit
from edge_eval_lib.economics.prices import Prices, load_price_book
from edge_eval_lib.economics.published import observations, requests_in_flight
from edge_eval_lib.frontier import non_dominated
from edge_eval_lib.paper import published
from edge_eval_lib.paper.published import MODEL, Published
from edge_eval_lib.results import tables
from edge_eval_lib.study import load_study
from edge_eval_lib.units import JOULES_PER_KWH

Verdict = Literal["reproduced", "other statistic", "not reproduced", "not checkable"]
VERDICTS: tuple[Verdict, ...] = (
    "reproduced",
    "other statistic",
    "not reproduced",
    "not checkable",
)
# How a verdict is shown to people: a sign beside the words, so that no colour is needed.
_SIGNS = {"reproduced": "✓", "other statistic": "≈", "not reproduced": "✗", "not checkable": "?"}
# "Small" in the paper is a model below two thousand million parameters, "7B" its largest class.
SMALL_PARAMETERS = 2e9
LARGE_PARAMETERS = 7e9
# What words without a number are taken to mean.
ABOUT = 0.01  # "about", relative
ABOUT_POINTS = 5.0  # "about 60 %", points
GENERALLY = 0.9  # share of cases
OFTEN = 0.5  # share of cases
EQUAL_QUALITY_POINTS = 1.0  # of Q_ret
EQUAL_COMPUTE = 1.25  # largest over smallest
MOST_SAMPLES = 1000

_METHODS = {"lora": "LoRA-INT4", "qlora": "QLoRA-INT4"}

# The statistics that a headline cell may have been, the one its caption names first.
STATISTICS: dict[str, Callable[[pd.DataFrame, str], float]] = {
    "median": lambda int4, metric: int4[metric].median(),
    "mean": lambda int4, metric: int4[metric].mean(),
    "largest": lambda int4, metric: int4[metric].max(),
    "mean, LoRA-INT4 alone": lambda int4, metric: _lora(int4)[metric].mean(),
    "median, LoRA-INT4 alone": lambda int4, metric: _lora(int4)[metric].median(),
}


@dataclass(frozen=True)
class Evidence:
    """The figures, and the table of variants that the shared code makes of them."""

    figures: Published
    variants: pd.DataFrame

    @cached_property
    def adaptation(self) -> pd.DataFrame:
        """LoRA beside QLoRA per model and task."""
        return tables.adaptation_table(observations(self.figures))

    @cached_property
    def headline(self) -> pd.DataFrame:
        """`headline` of this evidence."""
        return headline(self)

    @property
    def int4(self) -> pd.DataFrame:
        return self.variants[self.variants["precision"] == "int4"]

    @property
    def lora_int4(self) -> pd.DataFrame:
        return _lora(self.int4)

    def model(self, claim: pd.Series) -> pd.DataFrame:
        """The INT4 variants of the claim's model."""
        return _of(self.int4, claim["family"], claim["size"])

    def parameters(self, table: pd.DataFrame) -> pd.Series:
        known = self.figures.models.set_index(MODEL)["parameters"]
        return pd.Series(
            known.reindex(pd.MultiIndex.from_frame(table[MODEL])).to_numpy(), index=table.index
        )


@dataclass(frozen=True)
class Finding:
    """`recomputed` is the value by the claim's own words; `statistic` what met the printed one.

    `note` says in words what the figures show. `choices` are other readings of the claim, each with
    the verdict that it would give. A `coincidence` meets the printed value although the rest of
    its column shows that it was computed otherwise.
    """

    verdict: Verdict
    recomputed: float | str | None
    rule: str
    statistic: str = ""
    note: str = ""
    choices: tuple[tuple[str, Verdict], ...] = ()
    coincidence: bool = False

    @property
    def hinges(self) -> bool:
        """Whether another reading of the claim gives another verdict."""
        others = {verdict for _, verdict in self.choices}
        return self.verdict != "not checkable" and bool(others - {self.verdict})


Rule = Callable[[pd.Series, Evidence], Finding]
_RULES: dict[str, Rule] = {}


def rule(name: str) -> Callable[[Rule], Rule]:
    """Register the function that judges the claims whose column `rule` is `name`."""

    def register(function: Rule) -> Rule:
        _RULES[name] = function
        return function

    return register


def evidence(figures: Published | None = None, prices: Prices | None = None) -> Evidence:
    """What claims are judged by; prices are the paper's own unless others are given."""
    figures = figures or published.load()
    prices = prices or load_price_book().prices("paper")
    variants = tables.variants_table(observations(figures), None, prices)
    return Evidence(figures, variants)


def judge(proof: Evidence | None = None) -> pd.DataFrame:
    """Every claim with its verdict; a row a claim, in the order of claims.csv.

    Columns: claim_id, kind (cell or claim), statement, source, paper_value (as printed), unit,
    recomputed, rule, verdict, statistic (what meets the printed value where it is not what the
    claim says), coincidence, other_choices (other readings, each with its verdict), hinges (whether
    one of them gives another verdict), note.
    """
    proof = proof or evidence()
    rows = []
    for _, claim in proof.figures.claims.iterrows():
        if claim["rule"] not in _RULES:
            raise ValueError(f"claim {claim['claim_id']} names no known rule: {claim['rule']!r}")
        finding = _RULES[claim["rule"]](claim, proof)
        rows.append(
            {
                "claim_id": claim["claim_id"],
                "kind": claim["kind"],
                "statement": claim["statement"],
                "source": claim["source"],
                "paper_value": claim["value"],
                "unit": claim["unit"],
                "recomputed": finding.recomputed,
                "rule": finding.rule,
                "verdict": finding.verdict,
                "statistic": finding.statistic,
                "coincidence": finding.coincidence,
                "other_choices": "; ".join(f"{how}: {told}" for how, told in finding.choices),
                "hinges": finding.hinges,
                "note": finding.note,
            }
        )
    return pd.DataFrame(rows)


def for_people(judged: pd.DataFrame) -> pd.DataFrame:
    """The judged claims as text: `claim` holds the statement and, in lines below it, the argument.

    `recomputed` has four significant digits, `verdict` a sign and what the value is instead.
    """
    claim, verdict = [], []
    for _, row in judged.iterrows():
        argument = {
            "Rule": row["rule"],
            "Found": row["note"],
            "By another choice": row["other_choices"],
        }
        lines = [f"{name}: {text}." for name, text in argument.items() if text]
        claim.append("\n".join([row["statement"], *lines]))
        words = f"{_SIGNS[row['verdict']]} {row['verdict']}"
        words += f": {row['statistic']}" if row["statistic"] else ""
        words += ", by coincidence" if row["coincidence"] else ""
        verdict.append(words + (", by this choice" if row["hinges"] else ""))
    recomputed = [f"{v:.4g}" if isinstance(v, float) else v for v in judged["recomputed"]]
    recomputed = pd.Series(recomputed, index=judged.index, dtype=object)
    return judged.assign(claim=claim, recomputed=recomputed, verdict=verdict)


def cells_for_people(cells: pd.DataFrame) -> pd.DataFrame:
    """The headline cells as text: recomputed to the printed digits, others to one more."""
    text = cells.copy()
    names = [*STATISTICS, "mean, QLoRA-INT4 alone", "recomputed"]
    text[names] = text[names].astype(object)
    for index, cell in cells.iterrows():
        digits = len(cell["printed"].partition(".")[2])
        for name in names:
            more = 0 if name == "recomputed" else 1
            text.loc[index, name] = f"{cell[name]:,.{digits + more}f}"
    return text


def agrees(printed: str, value: float) -> bool:
    """Whether `value`, rounded to the digits of `printed`, is `printed`."""
    digits = len(printed.partition(".")[2])
    return bool(abs(value - float(printed)) <= 0.5 * 10**-digits + 1e-9)


def headline(proof: Evidence) -> pd.DataFrame:
    """The 30 cells of the headline table, a row a cell: printed, and by every statistic.

    `statistic` is the one statistic that meets all six cells of its column, `recomputed` its value;
    both are empty where no single statistic does.
    """
    claims = proof.figures.claims
    cells = claims[claims["rule"].isin(tables.METRICS)]
    rows = []
    for _, claim in cells.iterrows():
        int4 = proof.model(claim)
        qlora = int4[int4["method"] == "qlora"]
        rows.append(
            {
                "family": claim["family"],
                "size": claim["size"],
                "metric": claim["rule"],
                "printed": claim["value"],
                **{name: value(int4, claim["rule"]) for name, value in STATISTICS.items()},
                "mean, QLoRA-INT4 alone": qlora[claim["rule"]].mean(),
            }
        )
    table = pd.DataFrame(rows)
    found = {
        metric: _column_statistic(cells_of_metric)
        for metric, cells_of_metric in table.groupby("metric")
    }
    table["statistic"] = table["metric"].map(found)
    table["recomputed"] = [
        row[found[row["metric"]]] if found[row["metric"]] else np.nan for _, row in table.iterrows()
    ]
    return table


def _column_statistic(cells: pd.DataFrame) -> str | None:
    for name in STATISTICS:
        if all(agrees(p, v) for p, v in zip(cells["printed"], cells[name], strict=True)):
            return name
    return None


def _lora(table: pd.DataFrame) -> pd.DataFrame:
    return table[table["method"] == "lora"]


def _of(table: pd.DataFrame, family: str, size: str) -> pd.DataFrame:
    return table[(table["family"] == family) & (table["size"] == size)]


def _first_that_agrees(
    candidates: Mapping[str, float],
    meets: Callable[[float], bool],
    rule_text: str,
    note: str = "",
    choices: tuple[tuple[str, Verdict], ...] = (),
) -> Finding:
    """The first candidate is what the claim says; another that meets it is another statistic."""
    stated, value = next(iter(candidates.items()))
    for name, other in candidates.items():
        if meets(other):
            if name == stated:
                return Finding("reproduced", value, rule_text, note=note, choices=choices)
            told = f"the {stated} is {value:.4g}; the {name}, {other:.4g}, gives the printed value"
            told = _sentences(told, note)
            return Finding("other statistic", value, rule_text, name, told, choices)
    told = "the figures give " + ", ".join(f"{name} {v:.4g}" for name, v in candidates.items())
    return Finding("not reproduced", value, rule_text, note=_sentences(told, note), choices=choices)


def _choice(how: str, holds: bool) -> tuple[str, Verdict]:
    """Another reading of a claim, and the verdict by it."""
    return how, "reproduced" if holds else "not reproduced"


def _sentences(*parts: str) -> str:
    return "; ".join(p for p in parts if p)


# --- the headline table -----------------------------------------------------------------------


def _judge_cell(claim: pd.Series, proof: Evidence) -> Finding:
    int4 = proof.model(claim)
    candidates = {name: value(int4, claim["rule"]) for name, value in STATISTICS.items()}
    by_method = int4.groupby("method")[claim["rule"]].mean()
    finding = _first_that_agrees(
        candidates,
        lambda value: agrees(claim["value"], value),
        "median over the model's INT4 variants, to the digits printed",
        f"mean of LoRA-INT4 alone {by_method['lora']:.4g}, of QLoRA-INT4 {by_method['qlora']:.4g}",
    )
    cells = proof.headline
    column = cells.loc[cells["metric"] == claim["rule"], "statistic"].iloc[0]
    if finding.verdict != "reproduced" or pd.isna(column) or column == "median":
        return finding
    told = (
        f"a coincidence: the other cells of the column are the {column}, here "
        f"{candidates[column]:.4g}, and the median rounds to the same"
    )
    return replace(finding, coincidence=True, note=_sentences(told, finding.note))


for _metric in tables.METRICS:
    rule(_metric)(_judge_cell)


@rule("headline_statistic")
def _headline_statistic(claim: pd.Series, proof: Evidence) -> Finding:
    cells = proof.headline
    medians = sum(agrees(p, v) for p, v in zip(cells["printed"], cells["median"], strict=True))
    found = cells.groupby("metric", sort=False)["statistic"].first()
    text = "each of the 30 cells is the median over the model's INT4 variants"
    ours = f"{medians} of {len(cells)} cells are medians"
    if medians == len(cells):
        return Finding("reproduced", ours, text)
    told = ", ".join(f"{metric}: {name or 'none'}" for metric, name in found.items())
    if found.notna().all():
        return Finding(
            "other statistic",
            ours,
            text,
            told,
            "one statistic a column gives all 30 cells; whether each run's figure was first a "
            "median over the 20 runs cannot be checked, because one row a variant was published",
        )
    return Finding("not reproduced", ours, text, note=f"statistic of a column: {told}")


@rule("ipw_ranking")
def _ipw_ranking(claim: pd.Series, proof: Evidence) -> Finding:
    highest, lowest = claim["value"].split("-")
    found = {}
    for name, value in STATISTICS.items():
        by_model = proof.int4.groupby(MODEL).apply(lambda int4, f=value: f(int4, "ipw"))
        found[name] = (by_model.idxmax(), by_model.max(), by_model.idxmin(), by_model.min())

    def meets(name: str) -> bool:
        most, most_value, least, least_value = found[name]
        return (
            most == ("qwen", "1.5B")
            and least == ("qwen", "7B")
            and agrees(highest, most_value)
            and agrees(lowest, least_value)
        )

    def told(name: str) -> str:
        most, most_value, least, least_value = found[name]
        return (
            f"{'-'.join(most)} highest ({most_value:.3f}), "
            f"{'-'.join(least)} lowest ({least_value:.3f})"
        )

    text = "both models and both values, by the median over INT4 variants"
    for name in STATISTICS:
        if meets(name):
            verdict: Verdict = "reproduced" if name == "median" else "other statistic"
            return Finding(
                verdict, told("median"), text, "" if name == "median" else name, told(name)
            )
    return Finding("not reproduced", told("median"), text)


def _large_int4(proof: Evidence) -> pd.DataFrame:
    return proof.int4[proof.parameters(proof.int4) >= LARGE_PARAMETERS]


def _llama_1b_over_large(claim: pd.Series, proof: Evidence, metric: str) -> Finding:
    small, large = _of(proof.int4, "llama", "1B"), _large_int4(proof)
    ratios = {
        name: value(small, metric) / value(large, metric)
        for name, value in STATISTICS.items()
        if "alone" not in name
    }
    choices = [
        _choice(f"{name} over {name} {ratio:.2f}", agrees(claim["value"], ratio))
        for name, ratio in ratios.items()
        if name != "median"
    ]
    cells = proof.headline[proof.headline["metric"] == metric].reset_index(drop=True)
    own = (cells[MODEL] == ["llama", "1B"]).all(axis=1)
    above = proof.parameters(cells) >= LARGE_PARAMETERS
    printed = float(cells.loc[own, "printed"].iloc[0]) / cells.loc[above, "printed"].astype(float)
    choices.append(
        _choice(
            f"printed cell over printed cells {printed.min():.2f} to {printed.max():.2f}",
            all(agrees(claim["value"], ratio) for ratio in printed),
        )
    )
    return _first_that_agrees(
        ratios,
        lambda value: agrees(claim["value"], value),
        "LLaMA-1B over the INT4 variants of the 7B and 8B models, median over median",
        choices=tuple(choices),
    )


@rule("density_ratio")
def _density_ratio(claim: pd.Series, proof: Evidence) -> Finding:
    return _llama_1b_over_large(claim, proof, "rho_sys")


@rule("ipw_ratio")
def _ipw_ratio(claim: pd.Series, proof: Evidence) -> Finding:
    return _llama_1b_over_large(claim, proof, "ipw")


@rule("density_exceeds")
def _density_exceeds(claim: pd.Series, proof: Evidence) -> Finding:
    int4 = proof.model(claim)
    return _first_that_agrees(
        {name: STATISTICS[name](int4, "rho_sys") for name in ("median", "mean", "largest")},
        lambda value: value > float(claim["value"]),
        "the median over INT4 variants is above the printed value",
    )


@rule("cold_start_range")
def _cold_start_range(claim: pd.Series, proof: Evidence) -> Finding:
    low, high = (float(v) for v in claim["value"].split("-"))
    ranges = {}
    for name in ("median", "mean"):
        by_model = proof.int4.groupby(MODEL)["c_tax"].agg(name)
        ranges[name] = (by_model.min(), by_model.max())
    text = f"smallest and largest model median, both within {ABOUT:.0%}"
    single = proof.variants["c_tax"]
    note = f"single variants reach from {single.min():.0f} to {single.max():.0f}"
    ours = "{:.0f}-{:.0f}".format(*ranges["median"])
    for name, (least, most) in ranges.items():
        if abs(least / low - 1) <= ABOUT and abs(most / high - 1) <= ABOUT:
            if name == "median":
                return Finding("reproduced", ours, text, note=note)
            told = f"means reach from {least:.0f} to {most:.0f}"
            return Finding("other statistic", ours, text, name, _sentences(told, note))
    return Finding("not reproduced", ours, text, note=note)


@rule("cold_start_large")
def _cold_start_large(claim: pd.Series, proof: Evidence) -> Finding:
    bound = float(claim["value"])
    large = proof.variants[proof.parameters(proof.variants) >= LARGE_PARAMETERS]
    every = int((proof.variants["c_tax"] > bound).sum())
    return Finding(
        "reproduced" if (large["c_tax"] > bound).all() else "not reproduced",
        large["c_tax"].min(),
        "every variant of the 7B and 8B models is above the printed value",
        note=f"{every} of all {len(proof.variants)} variants are above it: it does not tell "
        "large from small",
    )


@rule("n_break_often_below")
def _n_break_often_below(claim: pd.Series, proof: Evidence) -> Finding:
    small = proof.int4[proof.parameters(proof.int4) < SMALL_PARAMETERS]
    below = small["n_break"] < float(claim["value"])
    by_method = below.groupby(small["method"]).agg(["sum", "size", "mean"])
    choices = tuple(
        _choice(f"{_METHODS[m]} alone {r['sum']:.0f} of {r['size']:.0f}", r["mean"] >= OFTEN)
        for m, r in by_method.iterrows()
    )
    return Finding(
        "reproduced" if below.mean() >= OFTEN else "not reproduced",
        f"{below.sum()} of {len(below)}",
        f"at least {OFTEN:.0%} of the INT4 variants below 2B parameters",
        choices=choices,
    )


@rule("api_price")
def _api_price(claim: pd.Series, proof: Evidence) -> Finding:
    cells = proof.figures.claims[proof.figures.claims["rule"] == "n_break"]
    prices = load_price_book().prices("paper")

    def mean_n_break(api_usd: float, cell: pd.Series) -> float:
        trial = prices.model_copy(update={"api_usd_per_request": api_usd})
        return tables.paper_break_even(proof.model(cell), trial).mean()

    implied = [
        brentq(lambda p, c=cell: mean_n_break(p, c) - float(c["value"]), 1e-5, 1.0)
        for _, cell in cells.iterrows()
    ]
    met = sum(
        agrees(c["value"], mean_n_break(float(claim["value"]), c)) for _, c in cells.iterrows()
    )
    return Finding(
        "reproduced" if met == len(cells) else "not reproduced",
        float(np.median(implied)),
        "N_break at this price gives the six printed values",
        note=f"the six printed break-evens follow from {min(implied):.6f} to {max(implied):.6f} "
        f"USD a request; at the stated price {met} of {len(cells)} do",
    )


# --- adaptation energy ------------------------------------------------------------------------


def adaptation_kwh(proof: Evidence) -> pd.DataFrame:
    """Mean over tasks, kWh; index model, columns (lora, qlora) x (adapt, with_merge, hours)."""
    means = proof.adaptation.groupby(MODEL, sort=False)
    return pd.DataFrame(
        {
            "lora": means["lora_energy_j"].mean() / JOULES_PER_KWH,
            "qlora": means["qlora_energy_j"].mean() / JOULES_PER_KWH,
            "lora_with_merge": means["lora_with_merge_energy_j"].mean() / JOULES_PER_KWH,
            "qlora_with_merge": means["qlora_with_merge_energy_j"].mean() / JOULES_PER_KWH,
            "lora_hours": means["lora_s"].mean() / 3600,
            "qlora_hours": means["qlora_s"].mean() / 3600,
        }
    )


def _judge_kwh(claim: pd.Series, proof: Evidence) -> Finding:
    method = claim["rule"].removesuffix("_kwh")
    row = adaptation_kwh(proof).loc[(claim["family"], claim["size"])]
    ours = row[f"{method}_with_merge"]
    return Finding(
        "reproduced" if agrees(claim["value"], ours) else "not reproduced",
        ours,
        "adaptation and merge, mean over tasks, to the digits printed",
        note=f"the released energies give {ours:.4f} kWh",
        choices=(
            _choice(f"adaptation alone {row[method]:.4f} kWh", agrees(claim["value"], row[method])),
        ),
    )


rule("lora_kwh")(_judge_kwh)
rule("qlora_kwh")(_judge_kwh)


@rule("qlora_ratio")
def _qlora_ratio(claim: pd.Series, proof: Evidence) -> Finding:
    row = adaptation_kwh(proof).loc[(claim["family"], claim["size"])]
    ours = row["qlora_with_merge"] / row["lora_with_merge"]
    alone = row["qlora"] / row["lora"]
    return Finding(
        "reproduced" if agrees(claim["value"], ours) else "not reproduced",
        ours,
        "QLoRA over LoRA, adaptation and merge, means over tasks",
        note=f"the released energies give {row['qlora_with_merge']:.3f} over "
        f"{row['lora_with_merge']:.3f} kWh, {ours:.2f} times as much",
        choices=(_choice(f"adaptation alone {alone:.2f}", agrees(claim["value"], alone)),),
    )


@rule("qlora_ratio_max")
def _qlora_ratio_max(claim: pd.Series, proof: Evidence) -> Finding:
    energies = adaptation_kwh(proof)
    ratios = energies["qlora_with_merge"] / energies["lora_with_merge"]
    table = proof.adaptation
    single = table.loc[table["energy_ratio"].idxmax()]
    largest = ratios.idxmax()
    printed = printed_row(proof, largest)
    choices = [
        _choice(
            f"largest of a single task {single['energy_ratio']:.1f} "
            f"({single['family']}-{single['size']} {single['task']})",
            agrees(claim["value"], single["energy_ratio"]),
        )
    ]
    if printed:
        choices.append(
            _choice(
                f"the row of that model in the paper's own energy table {printed}",
                float(printed) == float(claim["value"]),
            )
        )
    return Finding(
        "reproduced" if agrees(claim["value"], ratios.max()) else "not reproduced",
        ratios.max(),
        "the largest ratio of a model, adaptation and merge, means over tasks",
        note=f"it is {'-'.join(largest)}'s, {ratios.max():.2f}",
        choices=tuple(choices),
    )


def printed_row(proof: Evidence, model: tuple[str, str]) -> str | None:
    """The ratio that the energy table prints for a model; None where it has no row of it."""
    rows = proof.figures.claims
    rows = rows[(rows["rule"] == "qlora_ratio") & (rows[MODEL] == list(model)).all(axis=1)]
    return rows["value"].iloc[0] if len(rows) else None


def modelled_training_memory() -> pd.DataFrame:
    """Memory to train each model by LoRA and by QLoRA, GB, by this kit's own model; a row a model.

    Batch, rank and longest example are those of params/paper_t4.yaml. saved_pct: what QLoRA saves.
    """
    study = load_study("paper_t4")
    needs = memory_fit.fits(study)
    table = pd.DataFrame(
        {"family": model.family, "size": model.size}
        | {
            f"{method}_gb": needs[model.name, f"adapt by {method}"].need.total_gb
            for method in ("lora", "qlora")
        }
        for model in study.models
    )
    return table.assign(saved_pct=100 * (1 - table["qlora_gb"] / table["lora_gb"]))


@rule("qlora_memory")
def _qlora_memory(claim: pd.Series, proof: Evidence) -> Finding:
    adaptation = proof.figures.adaptation
    text = f"peak memory of QLoRA against LoRA, mean over models, within {ABOUT_POINTS:g} points"

    def close(saved_pct: float) -> bool:
        return abs(saved_pct - float(claim["value"])) <= ABOUT_POINTS

    if adaptation["adapt_peak_memory_gb"].isna().any():
        saved = modelled_training_memory()["saved_pct"]
        return Finding(
            "not checkable",
            None,
            text,
            note="no memory of adaptation was published",
            choices=(
                _choice(
                    "by this kit's own model of training memory (not the paper's figures) QLoRA "
                    f"saves {saved.min():.0f} to {saved.max():.0f} %",
                    close(saved.mean()),
                ),
            ),
        )
    by_method = adaptation.groupby("method")["adapt_peak_memory_gb"].mean()
    saved = 100 * (1 - by_method["qlora"] / by_method["lora"])
    return Finding("reproduced" if close(saved) else "not reproduced", saved, text)


def eases_with_size(proof: Evidence) -> pd.DataFrame:
    """QLoRA over LoRA along size, a row a family and series; `falls` where each step is lower.

    Series: each task, and `means` (ratio of the means over tasks); `energy` and `seconds`.
    """
    table = proof.adaptation
    rows = []
    for quantity, column in {"energy": "energy_j", "seconds": "s"}.items():
        pair = [f"lora_{column}", f"qlora_{column}"]
        means = table.groupby(MODEL, sort=False)[pair].mean().reset_index().assign(task="means")
        every = pd.concat([table[[*MODEL, "task", *pair]], means])
        every["ratio"] = every[pair[1]] / every[pair[0]]
        for (family, task), series in every.groupby(["family", "task"], sort=False):
            series = series.sort_values("size", key=lambda s: s.map(tables.parameters_of))
            rows.append(
                {
                    "family": family,
                    "series": task,
                    "quantity": quantity,
                    "ratios": " → ".join(f"{r:.2f}" for r in series["ratio"]),
                    "falls": bool((np.diff(series["ratio"]) < 0).all()),
                }
            )
    return pd.DataFrame(rows)


@rule("qlora_eases")
def _qlora_eases(claim: pd.Series, proof: Evidence) -> Finding:
    series = eases_with_size(proof)
    energy = series[series["quantity"] == "energy"]
    seconds = series[(series["quantity"] == "seconds") & (series["series"] == "means")]
    means, tasks = energy[energy["series"] == "means"], energy[energy["series"] != "means"]
    return Finding(
        "reproduced" if means["falls"].all() else "not reproduced",
        "; ".join(f"{r['family']} {r['ratios']}" for _, r in means.iterrows()),
        "QLoRA over LoRA energy, ratio of means over tasks, falls at each step of size in a family",
        note="LoRA of the 7B and 8B models drew from two cards, QLoRA from one",
        choices=(
            _choice(
                f"task by task it falls in {tasks['falls'].sum()} of {len(tasks)} series",
                tasks["falls"].all(),
            ),
            _choice(
                "in seconds "
                + ", ".join(f"{r['family']} {r['ratios']}" for _, r in seconds.iterrows()),
                seconds["falls"].all(),
            ),
        ),
    )


def training_compute_spread(proof: Evidence) -> pd.Series:
    """Parameters x training examples: the largest over the smallest size of a family and task.

    The examples of a task are about as long for every model, so that this is the compute.
    """
    runs = proof.figures.adaptation
    runs = runs[runs["method"] == "lora"]
    compute = proof.parameters(runs) * runs["train_examples"]
    groups = compute.groupby([runs["task"], runs["family"]], sort=False)
    return groups.max() / groups.min()


@rule("equal_compute")
def _equal_compute(claim: pd.Series, proof: Evidence) -> Finding:
    spread = training_compute_spread(proof)
    by_task = spread.groupby("task", sort=False).agg(["min", "max"])
    told = ", ".join(
        f"{row['min']:.1f} to {row['max']:.1f} in {task}" for task, row in by_task.iterrows()
    )
    kwh = adaptation_kwh(proof)["lora"].groupby("family")
    joules = (kwh.max() / kwh.min()).max()
    return Finding(
        "reproduced" if (spread <= EQUAL_COMPUTE).all() else "not reproduced",
        spread.max(),
        "parameters × training examples of a family's sizes within a factor of "
        f"{EQUAL_COMPUTE:g}, task by task",
        note=f"parameters × examples of a family's sizes differ by a factor of {told}",
        choices=(
            _choice(
                f"training energy of a family's sizes, up to {joules:.1f} times",
                joules <= EQUAL_COMPUTE,
            ),
        ),
    )


# --- quality ----------------------------------------------------------------------------------


@rule("fidelity_generally")
def _fidelity_generally(claim: pd.Series, proof: Evidence) -> Finding:
    kept = proof.lora_int4
    above = kept["q_ret_pct"] > float(claim["value"])
    worst = kept.loc[kept["q_ret_pct"].idxmin()]
    every = proof.int4["q_ret_pct"] > float(claim["value"])
    qlora = every[proof.int4["method"] == "qlora"]
    return Finding(
        "reproduced" if above.mean() >= GENERALLY else "not reproduced",
        f"{above.sum()} of {len(above)}",
        f"at least {GENERALLY:.0%} of the LoRA-INT4 variants are above the printed value",
        note=f"the lowest is {worst['q_ret_pct']:.1f} % ({tables.variant_name(worst)})",
        choices=tuple(
            _choice(f"{name} {part.sum()} of {len(part)}", part.mean() >= GENERALLY)
            for name, part in {"QLoRA-INT4 alone": qlora, "both together": every}.items()
        ),
    )


@rule("fidelity_rag_summarization")
def _fidelity_rag_summarization(claim: pd.Series, proof: Evidence) -> Finding:
    kept = proof.lora_int4[proof.lora_int4["task"].isin(["rag", "summarization"])]["q_ret_pct"]
    bound = float(claim["value"])
    finding = _first_that_agrees(
        {"lowest": kept.min(), "mean": kept.mean()},
        lambda value: value > bound,
        "every LoRA-INT4 variant of the two tasks is above the printed value",
        f"{(kept > bound).sum()} of {len(kept)} variants are above it",
    )
    return finding


@rule("int4_free")
def _int4_free(claim: pd.Series, proof: Evidence) -> Finding:
    at = [*MODEL, "task"]
    lora = _lora(proof.variants).set_index(at)
    int4, fp16 = (lora[lora["precision"] == p]["throughput_tok_s"] for p in ("int4", "fp16"))
    speedup = int4 / fp16.reindex(int4.index)
    fidelity = proof.lora_int4["q_ret_pct"]
    faster, equal = (speedup > 1).all(), abs(fidelity.mean() - 100) <= EQUAL_QUALITY_POINTS
    lost = fidelity < 100 - EQUAL_QUALITY_POINTS
    return Finding(
        "reproduced" if faster and equal else "not reproduced",
        f"{speedup.min():.2f} to {speedup.max():.2f} times as fast, mean Q_ret "
        f"{fidelity.mean():.1f} %",
        "LoRA-INT4 faster than LoRA-FP16 in every pair, mean Q_ret within "
        f"{EQUAL_QUALITY_POINTS:g} point of 100",
        note=f"the mean holds values from {fidelity.min():.1f} to {fidelity.max():.1f} %",
        choices=(
            _choice(
                f"no variant loses more than {EQUAL_QUALITY_POINTS:g} point: {lost.sum()} of "
                f"{len(lost)} do, the worst keeps {fidelity.min():.1f} %",
                faster and not lost.any(),
            ),
        ),
    )


@rule("evaluation_samples")
def _evaluation_samples(claim: pd.Series, proof: Evidence) -> Finding:
    ours = samples_per_pass(proof.figures.quality)
    text = "the smallest number of samples of which every published median can be a mean"
    if ours is None:
        return Finding("not checkable", None, text, note=f"none up to {MOST_SAMPLES}")
    fits = _fit(proof.figures.quality["score_median"], int(claim["value"]))
    served = sorted(set(proof.figures.serving["requests"]))
    return Finding(
        "reproduced" if ours == int(claim["value"]) else "not reproduced",
        float(ours),
        text,
        note=f"every published median is a mean of {ours} samples, and only {fits.sum()} of "
        f"{len(fits)} can be one of {claim['value']}; "
        f"{', '.join(map(str, served))} requests were served",
    )


def samples_per_pass(quality: pd.DataFrame) -> int | None:
    """Fewest samples of whole scores whose mean can be every published median; None if too many."""
    medians = quality["score_median"]
    return next((n for n in range(1, MOST_SAMPLES + 1) if _fit(medians, n).all()), None)


def _fit(medians: pd.Series, samples: int) -> pd.Series:
    """Whether a sum of `samples` whole scores can have each mean, at the six digits published."""
    sums = medians * samples
    return (sums - sums.round()).abs() <= 0.5e-6 * samples + 1e-9


@rule("judge_model")
def _judge_model(claim: pd.Series, proof: Evidence) -> Finding:
    dialogue = proof.figures.quality[proof.figures.quality["task"] == "dialogue"]
    text = "the judge named beside the published dialogue scores"
    if dialogue["judge_model"].isna().any():
        return Finding(
            "not checkable",
            None,
            text,
            note="no judge is named beside the scores; the released scoring code calls another one",
        )
    judges = sorted(set(dialogue["judge_model"]))
    same = judges == [claim["value"]]
    return Finding("reproduced" if same else "not reproduced", ", ".join(judges), text)


# --- method -----------------------------------------------------------------------------------


@rule("batch_size")
def _batch_size(claim: pd.Series, proof: Evidence) -> Finding:
    in_flight = requests_in_flight(proof.figures.serving)
    stated = float(claim["value"])
    one = (in_flight - stated).abs() <= 0.5
    return Finding(
        "reproduced" if one.all() else "not reproduced",
        in_flight.mean(),
        "tokens per second x seconds per token = requests in flight, in every row",
        note=f"throughput times time per token gives {in_flight.min():.0f} to "
        f"{in_flight.max():.0f} requests in flight over {len(in_flight)} rows, "
        f"{in_flight.mean():.0f} on average",
    )


@rule("runs")
def _runs(claim: pd.Series, proof: Evidence) -> Finding:
    serving = proof.figures.serving
    text = "serving rows of each variant"
    if serving["repetition"].isna().all():
        return Finding(
            "not checkable",
            None,
            text,
            note="one row a variant was published and no repetition is told: no interval over runs",
        )
    fewest = serving.groupby(published.VARIANT).size().min()
    verdict: Verdict = "reproduced" if fewest == int(claim["value"]) else "not reproduced"
    return Finding(verdict, float(fewest), text)


@rule("variants")
def _variants(claim: pd.Series, proof: Evidence) -> Finding:
    count = len(proof.variants)
    verdict: Verdict = "reproduced" if count == int(claim["value"]) else "not reproduced"
    return Finding(verdict, float(count), "variants with figures of serving and of quality")


@rule("small_frontier")
def _small_frontier(claim: pd.Series, proof: Evidence) -> Finding:
    models = tables.frontier_table(proof.variants)
    front = models[non_dominated(models, HEADLINE_OBJECTIVES)]
    small = proof.parameters(front) < SMALL_PARAMETERS
    with_score = {
        task: part[non_dominated(part, {"score": "max", "energy_per_request_j": "min"})]
        for task, part in proof.variants.groupby("task", sort=False)
    }
    larger = {
        task: (proof.parameters(part) >= SMALL_PARAMETERS).sum()
        for task, part in with_score.items()
    }
    told = ", ".join(f"{task} {n} of {len(with_score[task])}" for task, n in larger.items())
    return Finding(
        "reproduced" if len(front) and small.all() else "not reproduced",
        ", ".join(front["model"]),
        "models that no other beats in the five headline columns are all below 2B parameters",
        note="none of the five columns is the score",
        choices=(
            _choice(
                "front of score against energy per request, places of larger models: " + told,
                not any(larger.values()),
            ),
        ),
    )


HEADLINE_OBJECTIVES: dict[str, Literal["min", "max"]] = {
    "n_break": "min",
    "ipw": "max",
    "rho_sys": "max",
    "q_ret_pct": "max",
    "c_tax": "min",
}
