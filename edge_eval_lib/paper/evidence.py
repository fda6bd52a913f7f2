"""What the paper's claims are judged by: its own figures, and what follows from them.

"Recomputed" is always from these figures: nothing was measured again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd

from edge_eval_lib.economics import fit
from edge_eval_lib.economics.prices import Prices, load_price_book
from edge_eval_lib.economics.published import MODEL, Published, for_rows, observations
from edge_eval_lib.paper import published
from edge_eval_lib.results.columns import METRICS, parameters_of
from edge_eval_lib.results.tables import adaptation_table
from edge_eval_lib.results.variants import variants_table
from edge_eval_lib.study import load_study
from edge_eval_lib.units import JOULES_PER_KWH

# "Small" in the paper is a model below two thousand million parameters, "7B" its largest class.
SMALL_PARAMETERS = 2e9
LARGE_PARAMETERS = 7e9
MOST_SAMPLES = 1000

# The statistics that a headline cell may have been, the one its caption names first.
STATISTICS: dict[str, Callable[[pd.DataFrame, str], float]] = {
    "median": lambda int4, metric: int4[metric].median(),
    "mean": lambda int4, metric: int4[metric].mean(),
    "largest": lambda int4, metric: int4[metric].max(),
    "mean, LoRA-INT4 alone": lambda int4, metric: _of_method(int4, "lora", metric).mean(),
    "median, LoRA-INT4 alone": lambda int4, metric: _of_method(int4, "lora", metric).median(),
}


def by(table: pd.DataFrame, **values: str) -> pd.DataFrame:
    """Return the rows whose columns have these values: `by(variants, method="lora")`."""
    same = [(table[column] == value).to_numpy(bool) for column, value in values.items()]
    return table[np.logical_and.reduce(same)]


def _of_method(table: pd.DataFrame, method: str, column: str) -> pd.Series:
    return table.loc[table["method"] == method, column]


@dataclass(frozen=True)
class Evidence:
    """The figures, and the table of variants that the shared code makes of them."""

    figures: Published
    variants: pd.DataFrame

    @cached_property
    def adaptation(self) -> pd.DataFrame:
        """LoRA beside QLoRA per model and task."""
        return adaptation_table(observations(self.figures))

    @cached_property
    def headline(self) -> pd.DataFrame:
        """The 30 cells of the headline table, a row a cell: printed, and by every statistic.

        `statistic` is the one that meets all six cells of its column, `recomputed` its value; both
        are empty where no single statistic does.
        """
        ledger = self.figures.claims
        rows = []
        for _, claim in ledger[ledger["rule"].isin(METRICS)].iterrows():
            own = self.int4_of_models[tuple(claim[MODEL])]
            rows.append(
                {
                    **claim[MODEL],
                    "metric": claim["rule"],
                    "printed": claim["value"],
                    **{name: value(own, claim["rule"]) for name, value in STATISTICS.items()},
                    "mean, QLoRA-INT4 alone": _of_method(own, "qlora", claim["rule"]).mean(),
                }
            )
        table = pd.DataFrame(rows)
        statistic_of = {
            metric: next((name for name in STATISTICS if met(cells, name) == len(cells)), None)
            for metric, cells in table.groupby("metric")
        }
        table["statistic"] = table["metric"].map(statistic_of)
        table["recomputed"] = [
            cell[statistic_of[cell["metric"]]] if statistic_of[cell["metric"]] else np.nan
            for _, cell in table.iterrows()
        ]
        return table

    @cached_property
    def int4_of_models(self) -> dict[tuple[str, str], pd.DataFrame]:
        """The INT4 variants of each model, by family and size."""
        return dict(iter(self.int4.groupby(MODEL, sort=False)))

    @cached_property
    def int4(self) -> pd.DataFrame:
        """The INT4 variants."""
        return by(self.variants, precision="int4")

    @cached_property
    def lora_int4(self) -> pd.DataFrame:
        """The INT4 variants adapted by LoRA."""
        return by(self.variants, precision="int4", method="lora")

    def parameters(self, table: pd.DataFrame) -> pd.Series:
        """Parameters of the model of each row."""
        return for_rows(self.figures.models.set_index(MODEL)["parameters"], table)


def evidence(figures: Published | None = None, prices: Prices | None = None) -> Evidence:
    """Return what claims are judged by.

    Args:
        figures: The published figures; by default those of params/published.
        prices: The prices; by default the paper's own.
    """
    figures = figures or published.load()
    prices = prices or load_price_book().prices("paper")
    return Evidence(figures, variants_table(observations(figures), None, prices))


def agrees(printed: str, value: float) -> bool:
    """Return whether `value`, rounded to the digits of `printed`, is `printed`."""
    return bool(abs(value - float(printed)) <= 0.5 * 10 ** -digits_of(printed) + 1e-9)


def digits_of(printed: str) -> int:
    """Return how many digits a printed number has after its point."""
    return len(printed.partition(".")[2])


def met(cells: pd.DataFrame, column: str) -> int:
    """Count the cells of the headline table that `column` meets as printed."""
    return sum(map(agrees, cells["printed"], cells[column]))


def adaptation_kwh(proof: Evidence) -> pd.DataFrame:
    """Return energy of adaptation, kWh, and that with the merge: a row a model, means over tasks.

    Columns lora, qlora, lora_with_merge, qlora_with_merge, and `ratio` of the last two.
    """
    columns = ("lora", "qlora", "lora_with_merge", "qlora_with_merge")
    energies = [f"{column}_energy_j" for column in columns]
    means = proof.adaptation.groupby(MODEL, sort=False)[energies].mean()
    kwh = means.set_axis(columns, axis="columns") / JOULES_PER_KWH
    return kwh.assign(ratio=kwh["qlora_with_merge"] / kwh["lora_with_merge"])


def printed_ratio(proof: Evidence, model: tuple[str, str]) -> str | None:
    """Return the ratio that the energy table prints for a model; None where it has no row of it."""
    rows = by(proof.figures.claims, rule="qlora_ratio", family=model[0], size=model[1])
    return rows["value"].iloc[0] if len(rows) else None


def modelled_training_memory() -> pd.DataFrame:
    """Model the memory to train each model by LoRA and by QLoRA, GB; a row a model.

    Batch, rank and longest example are those of params/paper_t4.yaml. saved_pct: what QLoRA saves.
    """
    study = load_study("paper_t4")
    fits = fit.fits(study)
    table = pd.DataFrame([{"family": m.family, "size": m.size} for m in study.models])
    for method in ("lora", "qlora"):
        needs = [fits[model.name, f"adapt by {method}"].need for model in study.models]
        table[f"{method}_gb"] = [need.total_gb if need else np.nan for need in needs]
    return table.assign(saved_pct=100 * (1 - table["qlora_gb"] / table["lora_gb"]))


def eases_with_size(proof: Evidence) -> pd.DataFrame:
    """Return QLoRA over LoRA along size, a row a family and series; `falls` where each step falls.

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
            series = series.sort_values("size", key=lambda s: s.map(parameters_of))
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


def training_compute_spread(proof: Evidence) -> pd.Series:
    """Return parameters x training examples, largest over smallest size of a family and task.

    The examples of a task are about as long for every model, so that this is the compute.
    """
    runs = by(proof.figures.adaptation, method="lora")
    compute = proof.parameters(runs) * runs["train_examples"]
    groups = compute.groupby([runs["task"], runs["family"]], sort=False)
    return groups.max() / groups.min()


def samples_per_pass(quality: pd.DataFrame) -> int | None:
    """Return the fewest samples whose mean can be every published median; None if too many."""
    medians = quality["score_median"]
    return next((n for n in range(1, MOST_SAMPLES + 1) if mean_of(medians, n).all()), None)


def mean_of(medians: pd.Series, samples: int) -> pd.Series:
    """Return whether a sum of `samples` whole scores can have each mean, at six printed digits."""
    sums = medians * samples
    return (sums - sums.round()).abs() <= 0.5e-6 * samples + 1e-9
