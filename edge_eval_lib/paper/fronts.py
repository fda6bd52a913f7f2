"""The frontier beyond the paper: who is on it, and how firmly."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import pandas as pd

from edge_eval_lib.economics.published import MODEL, VARIANT
from edge_eval_lib.errors import UserError
from edge_eval_lib.frontier import front_draws, hypervolume, non_dominated
from edge_eval_lib.paper.analysis import Paper, at_api_price, costs, short_name
from edge_eval_lib.paper.evidence import samples_per_pass
from edge_eval_lib.uncertainty import single_run_spread

Direction = Literal["min", "max"]
OBJECTIVES: dict[str, Direction] = {
    "score": "max",
    "energy_per_request_j": "min",
    "usd_per_request": "min",
    "latency_ms": "min",
    "memory_gb": "min",
}
# What a score's error is over: passes over the same prompts (best case), or other prompts (worst).
SPREADS = ("passes", "prompts")


def pareto(paper: Paper, objectives: Mapping[str, Direction] | None = None) -> pd.DataFrame:
    """Mark with `on_front` the variants that nothing of their task beats.

    Args:
        paper: What to compute from.
        objectives: Any of OBJECTIVES, with `min` or `max`; by default all.

    Raises:
        UserError: There is no such objective.
    """
    chosen: dict[str, Any] = dict(OBJECTIVES if objectives is None else objectives)
    unknown = [name for name in chosen if name not in OBJECTIVES]
    if unknown:
        raise UserError(f"There is no objective {unknown[0]!r}; there is: {', '.join(OBJECTIVES)}.")
    table = paper.variants[[*VARIANT, *OBJECTIVES]].copy()
    table["on_front"] = False
    for _, part in table.groupby("task", sort=False):
        table.loc[part.index, "on_front"] = non_dominated(part, chosen)
    table["small"] = paper.is_small(table)
    return table


def fronts(paper: Paper) -> pd.DataFrame:
    """Return the front of score and each other objective, and of all together, per task.

    hypervolume is the share of the box between the best and worst value of the task that the front
    dominates; hypervolume_small that of models below 2B alone.
    """
    sets: list[tuple[str, ...]] = [("score", other) for other in OBJECTIVES if other != "score"]
    sets.append(tuple(OBJECTIVES))
    rows = []
    for names in sets:
        chosen = {name: OBJECTIVES[name] for name in names}
        table = pareto(paper, chosen)
        for task, part in table.groupby("task", sort=False):
            points = _unit_box(part, chosen)
            front = part[part["on_front"]]
            rows.append(
                {
                    "task": task,
                    "objectives": ", ".join(names),
                    "on_front": len(front),
                    "small_on_front": int(front["small"].sum()),
                    "hypervolume": hypervolume(points, np.ones(len(names))),
                    "hypervolume_small": hypervolume(
                        points[part["small"].to_numpy()], np.ones(len(names))
                    ),
                    "variants": ", ".join(short_name(row) for _, row in front.iterrows()),
                }
            )
    return pd.DataFrame(rows)


def _unit_box(part: pd.DataFrame, objectives: Mapping[str, str]) -> np.ndarray:
    """0 is the best value in the part and 1 the worst; costs on a log scale."""
    columns = []
    for name, direction in objectives.items():
        values = part[name].to_numpy(float)
        values = -values if direction == "max" else np.log(values)
        columns.append((values - values.min()) / (values.max() - values.min()))
    return np.column_stack(columns)


def measurement_spread(paper: Paper) -> pd.Series:
    """Return the relative standard deviation of one run, from pairs that should be alike.

    LoRA-INT4 and QLoRA-INT4 are the only replication there is: 18 pairs (`single_run_spread`).
    """
    columns = ["energy_per_request_j", "throughput_tok_s", "ttft_ms", "tpot_ms"]
    return single_run_spread(paper.variants, columns)["relative_sd"]


def score_spread(paper: Paper) -> pd.DataFrame:
    """Return the relative standard error of each score; index variant, columns SPREADS.

    passes: over the three passes alone, which answer the same prompts. It is the whole error of a
    comparison only if the variants are perfectly paired, so that other prompts would move all of
    them alike: the best case. prompts: other prompts drawn for each variant on its own, too: the
    worst case. The pairing was not published; the truth lies between. A share of 0 or 1 on n
    prompts has the variance p (1 - p) / n; of a judge's score from 1 to 10, whose spread over
    prompts was not published, the largest variance that its mean allows is taken.
    """
    quality = paper.figures.quality.set_index(VARIANT)
    samples = samples_per_pass(paper.figures.quality)
    mean, maximum = quality["score_mean"], quality["score_maximum"]
    # Standard error over three passes; published with n in the denominator.
    passes = quality["score_std"] / np.sqrt(3 - 1)
    least = (maximum > 1).astype(float)  # a judge's lowest score is 1
    # Bhatia and Davis (2000): the variance of scores from a to b with mean m is at most
    # (b - m) (m - a), and is exactly that for shares.
    sampling = (maximum - mean) * (mean - least) / samples if samples else np.nan
    spread = {"passes": passes / mean, "prompts": np.sqrt(passes**2 + sampling) / mean}
    return pd.DataFrame(spread)[list(SPREADS)].reindex(paper.variants.set_index(VARIANT).index)


def robustness(paper: Paper, draws: int = 200, seed: int = 2604) -> pd.DataFrame:
    """Return how often each variant is on its front, over prices and measurement spread.

    technical: score, energy and latency scatter as `measurement_spread` and `score_spread` say.
    economic: score and requests to break even (full accounting), averaged over every API price of
    params/prices.yaml and five electricity prices over the scenario's range; there N_break
    scatters with the throughput, as far as a request's cost counts in it. `_passes` and `_prompts`
    are the best and the worst case of the scores' error (`score_spread`).
    """
    drawn = _front_draws(paper, draws, seed)
    shares = {name: on_front.mean() for name, on_front in drawn.items()}
    return pd.DataFrame(shares).rename_axis(VARIANT).reset_index()


def model_robustness(paper: Paper, draws: int = 200, seed: int = 2604) -> pd.DataFrame:
    """Return how often any variant of a model is on its front; columns as `robustness`."""
    at = ["task", *MODEL]
    shares = {
        name: on_front.T.groupby(level=at, sort=False).any().T.mean()
        for name, on_front in _front_draws(paper, draws, seed).items()
    }
    return pd.DataFrame(shares).rename_axis(at).reset_index()


@lru_cache(maxsize=4)
def _front_draws(paper: Paper, draws: int, seed: int) -> dict[str, pd.DataFrame]:
    """Return which variants are on the front of their task: a row a draw, a column a variant."""
    v = paper.variants.set_index(VARIANT)
    run = measurement_spread(paper)
    low, high = paper.book.scenarios.electricity_usd_per_kwh
    technical: dict[str, Direction] = {
        "score": "max",
        "energy_per_request_j": "min",
        "latency_ms": "min",
    }
    economic: dict[str, Direction] = {"score": "max", "n_break_full": "min"}
    drawn: dict[str, list[pd.DataFrame]] = {}
    for case, score in score_spread(paper).items():
        spread = {
            "score": score,
            "energy_per_request_j": run["energy_per_request_j"],
            "latency_ms": run["tpot_ms"],
        }
        drawn[f"technical_{case}"] = [_by_task(v, technical, spread, draws, seed)]
        drawn[f"economic_{case}"] = []
        for number, price in enumerate(paper.book.api_prices):
            for electricity in np.linspace(low, high, 5):
                prices = at_api_price(paper.prices, price).model_copy(
                    update={"electricity_usd_per_kwh": float(electricity)}
                )
                spent = costs(v, prices)
                counts = spent.local_usd_per_request / (
                    spent.api_usd_per_request - spent.local_usd_per_request
                )
                known = v.assign(n_break_full=spent.requests)
                spread = {
                    "score": score,
                    "n_break_full": (run["throughput_tok_s"] * counts).clip(lower=0),
                }
                fewer = max(draws // 10, 1)
                drawn[f"economic_{case}"].append(
                    _by_task(known, economic, spread, fewer, seed + number)
                )
    return {name: pd.concat(parts, ignore_index=True) for name, parts in drawn.items()}


def _by_task(
    table: pd.DataFrame,
    objectives: Mapping[str, Direction],
    spread: Mapping[str, float | pd.Series],
    draws: int,
    seed: int,
) -> pd.DataFrame:
    parts = []
    for _, part in table.groupby(level="task", sort=False):
        own = {
            name: sd.reindex(part.index) if isinstance(sd, pd.Series) else sd
            for name, sd in spread.items()
        }
        parts.append(front_draws(part, objectives, own, draws, seed))
    return pd.concat(parts, axis="columns")[table.index]
