"""Do models below 2B win? Prices at which models change places, and who is first at a score."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np
import pandas as pd

from edge_eval_lib.economics.cost import BreakEvenCosts, order_flip_api_price, paper_costs
from edge_eval_lib.economics.prices import Prices
from edge_eval_lib.economics.published import MODEL, VARIANT
from edge_eval_lib.paper.analysis import Paper, costs, model_name, short_name
from edge_eval_lib.paper.fronts import SPREADS, score_spread
from edge_eval_lib.results.headline import Z95


def order_flips(paper: Paper) -> pd.DataFrame:
    """Return the API and electricity prices at which two models change places in N_break.

    A row a pair of LoRA-INT4 variants of one task and accounting. N = F / (p - c): the API price
    is computed by `cost.order_flip_api_price`. F and c are linear in the electricity price, so
    that its break-points are roots of a quadratic. Empty where there is none (for electricity:
    none within the scenario's range).
    """
    v = paper.lora_int4
    rows = []
    for task, part in v.groupby("task", sort=False):
        for kind in ("paper", "full"):
            now = accounting(kind, part, paper.prices)
            priced = [
                paper.prices.model_copy(update={"electricity_usd_per_kwh": usd})
                for usd in (0.0, 1.0)
            ]
            free, at_one_usd = (accounting(kind, part, prices) for prices in priced)
            table = part[MODEL].assign(
                requests=now.requests,
                api=now.api_usd_per_request,
                fixed=now.fixed_usd,
                local=now.local_usd_per_request,
                fixed_free=free.fixed_usd,
                fixed_slope=at_one_usd.fixed_usd - free.fixed_usd,
                local_free=free.local_usd_per_request,
                local_slope=at_one_usd.local_usd_per_request - free.local_usd_per_request,
            )
            ordered = [row for _, row in table.sort_values("requests").iterrows()]
            for first, second in combinations(ordered, 2):
                rows.append(
                    {
                        "task": task,
                        "accounting": kind,
                        "sooner": model_name(first),
                        "later": model_name(second),
                        "n_break_sooner": first["requests"],
                        "n_break_later": second["requests"],
                        "api_usd_per_request": first["api"],
                        "api_price_flip_usd_per_request": order_flip_api_price(
                            first["fixed"], first["local"], second["fixed"], second["local"]
                        ),
                        "electricity_flip_usd_per_kwh": electricity_flip(
                            first, second, paper.book.scenarios.electricity_usd_per_kwh
                        ),
                    }
                )
    return pd.DataFrame(rows)


def accounting(name: str, variants: pd.DataFrame, prices: Prices) -> BreakEvenCosts:
    """Return the costs of variants by the `paper` or the `full` accounting."""
    if name == "full":
        return costs(variants, prices)
    return paper_costs(prices, variants["adapt_energy_j"], variants["energy_per_request_j"])


def electricity_flip(first: pd.Series, second: pd.Series, within: Sequence[float]) -> float:
    """Return the electricity price of equal N_break of two models: F (p - d) = G (p - c)."""

    def fixed(row: pd.Series) -> np.poly1d:
        return np.poly1d([row["fixed_slope"], row["fixed_free"]])

    def saved(row: pd.Series) -> np.poly1d:
        return np.poly1d([-row["local_slope"], row["api"] - row["local_free"]])

    roots = np.atleast_1d((fixed(first) * saved(second) - fixed(second) * saved(first)).roots)
    real = [r.real for r in roots if abs(r.imag) < 1e-12 and within[0] <= r.real <= within[1]]
    return min(real) if real else np.nan


def small_models(paper: Paper) -> pd.DataFrame:
    """Return the first variant to break even at every score threshold, per task.

    A row a task and attained score: among variants that score at least that, the one with the
    fewest requests to break even (full accounting, headline set-up), whether it is below 2B, and
    what the best variant below 2B needs beside the best above where both reach the score.
    """
    v = paper.variants.assign(small=paper.is_small(paper.variants))
    rows = []
    for task, part in v.groupby("task", sort=False):
        for threshold in sorted(part["score"].unique()):
            good = part[part["score"] >= threshold]
            best = good.loc[good["n_break_full"].idxmin()]
            small, large = good[good["small"]], good[~good["small"]]
            rows.append(
                {
                    "task": task,
                    "score_at_least": threshold,
                    "winner": short_name(best),
                    "winner_is_small": bool(best["small"]),
                    "n_break_full": best["n_break_full"],
                    "usd_per_request": best["usd_per_request"],
                    "n_break_full_small": small["n_break_full"].min(),
                    "n_break_full_large": large["n_break_full"].min(),
                    "usd_per_request_small": small["usd_per_request"].min(),
                    "usd_per_request_large": large["usd_per_request"].min(),
                }
            )
    return pd.DataFrame(rows)


def best_scores(paper: Paper, draws: int = 2000, seed: int = 2604) -> pd.DataFrame:
    """Set the best variant below 2B beside the best larger one, a row a task.

    difference is larger minus small. error_passes and error_prompts are the half-widths of its
    95 % interval in the best and the worst case (`score_spread`). larger_beyond_<case> counts, of
    larger_above, the larger variants whose lead over the best small one is larger than its error;
    small_first_<case> is the share, over draws of the scores, of scores reached by both sides at
    which a model below 2B breaks even first (full accounting).
    """
    v = paper.variants.assign(small=paper.is_small(paper.variants)).set_index(VARIANT)
    spread = score_spread(paper).mul(v["score"], axis=0)
    rows = []
    for task, part in v.groupby(level="task", sort=False):
        error = spread.loc[part.index]
        small, large = part[part["small"]], part[~part["small"]]
        first, second = small["score"].idxmax(), large["score"].idxmax()
        lead = large["score"] - part.loc[first, "score"]
        row = {
            "task": task,
            "best_small": short_name(pd.Series(first, VARIANT)),
            "score_small": part.loc[first, "score"],
            "best_larger": short_name(pd.Series(second, VARIANT)),
            "score_larger": part.loc[second, "score"],
            "difference": lead.max(),
            "larger_above": int((lead > 0).sum()),
        }
        for case in SPREADS:
            beyond = Z95 * np.hypot(error.loc[large.index, case], error.loc[first, case])
            row[f"error_{case}"] = beyond[second]
            row[f"larger_beyond_{case}"] = int((lead > beyond).sum())
            scores = part["score"].to_numpy() + error[case].to_numpy() * np.random.default_rng(
                seed
            ).standard_normal((draws, len(part)))
            row[f"small_first_{case}"] = small_first(scores, part)
        rows.append(row)
    return pd.DataFrame(rows)


def small_first(scores: np.ndarray, part: pd.DataFrame) -> float:
    """Return at which share of the scores that both sides reach a small model is first to pay.

    `scores` has a row a draw and a column a variant of `part`; thresholds are each draw's scores.
    """
    small = part["small"].to_numpy()
    n_break = part["n_break_full"].to_numpy()
    # reached[draw, threshold, variant]
    reached = scores[:, None, :] >= scores[:, :, None]
    needs = np.where(reached, n_break, np.inf)
    least_small, least_large = needs[..., small].min(-1), needs[..., ~small].min(-1)
    shared = np.isfinite(least_small) & np.isfinite(least_large)
    return float((least_small < least_large)[shared].mean())
