"""The choice among evaluated options: the best, how sure that is, and what would change it.

Among options that fit (SLO, score, budget, machines) the best is the cheapest or, by another
objective, the one of least energy, carbon or latency. Nothing is weighted.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import optimize, stats

from edge_eval_lib.economics import cost
from edge_eval_lib.economics.advise.evaluation import (
    DRAWS_OF_ERRORS,
    Evaluation,
    evaluate,
    prepared,
)
from edge_eval_lib.economics.advise.inputs import AT_LEAST, AT_MOST, MEASUREMENT, OBJECTIVES, Inputs
from edge_eval_lib.economics.advise.options import API, row_name
from edge_eval_lib.errors import UserError

DRAWS = 4096  # a power of two, as Sobol's sequence wants
INFLUENCE_DRAWS = 1024
SEED = 2604
TIE = 0.975  # another is better only where at least so many draws of the measuring errors say so
SEARCHED = 10.0  # beyond its range an input's flip is looked for up to this factor
FLIP_TOLERANCE = 1e-3  # relative


@dataclass(frozen=True)
class Choice:
    """What was chosen among options, and how sure that is.

    `table` has a row an option, ranked; `best` is the index of the chosen one in `options`, None
    where none fits.
    """

    options: pd.DataFrame
    inputs: Inputs
    nominal: Evaluation
    drawn: Evaluation
    table: pd.DataFrame
    best: int | None

    @property
    def chosen(self) -> pd.Series | None:
        """The chosen option's row of the table."""
        return None if self.best is None else self.table.loc[self.best]

    @property
    def p_none(self) -> float:
        """Share of draws in which no option fits."""
        return float((self.drawn.best < 0).mean())

    def p_best_of(self, by: str) -> pd.Series:
        """Share of draws in which the best is of each `deployment`, `name`, `method` ..."""
        best = self.drawn.best
        names = self.table.sort_index()[by].to_numpy(object)[best[best >= 0]]
        return pd.Series(names).value_counts() / len(best)


def choose(options: pd.DataFrame, inputs: Inputs, draws: int = DRAWS, seed: int = SEED) -> Choice:
    """Evaluate every option at the inputs' values and over their ranges, and rank them.

    Args:
        options: Of `options.of_study`.
        inputs: Of `inputs.gather`.
        draws: How many draws of the inputs (Sobol's sequence, scrambled).
        seed: Of the scrambling.

    Returns:
        The choice. Its table's `rank` is shared by options that the measuring errors do not tell
        apart; `tied` marks those that share the best one's.

    Raises:
        UserError: A limit that no machine could hold.
    """
    ready = prepared(options, inputs)
    nominal = evaluate(ready, inputs.nominal(), inputs.need)
    require_physical(ready, inputs)
    names = inputs.varied()
    quantiles = stats.qmc.Sobol(len(names), rng=seed).random(draws).T
    drawn = evaluate(ready, inputs.at(quantiles, names), inputs.need)
    best = int(nominal.best[0])
    table = _ranked(ready, inputs, nominal, drawn)
    return Choice(ready, inputs, nominal, drawn, table, None if best < 0 else best)


def require_physical(options: pd.DataFrame, inputs: Inputs) -> None:
    """Refuse an SLO that is faster than anything here, waiting and prompt left out."""
    for name in ("ttft_ms", "tpot_ms"):
        limit = getattr(inputs.need, name)
        fastest = options[f"alone_{name}"].min()
        if (options["deployment"] == API).any():
            fastest = np.fmin(fastest, inputs.ranges[f"api_{name}"].least)
        floor = fastest / 2
        if "floor_ms" in options:  # reading every weight once
            floor = options["floor_ms"].min()
        if limit is not None and limit < floor:
            raise UserError(
                f"{name} of {limit:g} ms is less than any option can do: even reading the weights "
                f"once takes {floor:.3g} ms."
                if "floor_ms" in options
                else f"{name} of {limit:g} ms is less than half of what the fastest takes alone "
                f"({fastest:.3g} ms)."
            )


def _ranked(
    options: pd.DataFrame, inputs: Inputs, nominal: Evaluation, drawn: Evaluation
) -> pd.DataFrame:
    identity = ["family", "size", "task", "method", "precision", "deployment", "concurrency"]
    names = [row_name(row) for _, row in options.iterrows()]
    table = options[identity].assign(name=names, measured_tpot_ms=options["tpot_ms"])
    for figure, values in nominal.figures.items():
        table[figure] = values[:, 0]
        spread = drawn.figures[figure]
        known = np.isfinite(spread).any(axis=1)
        ends = np.full((2, len(spread)), np.nan)
        finite = np.where(np.isfinite(spread[known]), spread[known], np.nan)
        ends[:, known] = np.nanquantile(finite, [0.05, 0.95], axis=1)
        table[f"{figure}_least"], table[f"{figure}_most"] = ends
    names = list(nominal.excess)
    tightest = np.stack([nominal.excess[name][:, 0] for name in names])
    table["fits"] = nominal.fits[:, 0]
    table["binding"] = np.array(names, dtype=object)[tightest.argmax(axis=0)]
    table["binding_share"] = tightest.max(axis=0)
    table["p_fits"] = drawn.fits.mean(axis=1)
    table["p_best"] = [(drawn.best == i).mean() for i in range(len(table))]
    table["regret"], table["regret_pct"] = _regret(drawn)
    better = _better_shares(options, inputs)
    order = nominal.loss[:, 0]
    fits = np.isfinite(order)
    ranks = 1 + (better[fits] >= TIE).sum(axis=0)
    table["rank"] = pd.Series(np.where(fits, ranks, np.nan), index=table.index)
    best = int(nominal.best[0])
    if best >= 0:
        table["tied"] = fits & (better[best] < TIE) & (np.arange(len(table)) != best)
    else:
        table["tied"] = False
    table["doubtful"] = options["doubtful"].fillna(False).astype(bool)
    table["validity"] = options["validity"]
    value = table[OBJECTIVES[nominal.objective]]
    by = pd.DataFrame({"unfit": ~fits, "rank": table["rank"], "value": value})
    return table.loc[by.sort_values(["unfit", "rank", "value"], kind="stable").index]


def _regret(drawn: Evaluation) -> tuple[np.ndarray, np.ndarray]:
    """What taking an option costs more than the best of each draw, mean over draws it fits in.

    In the objective's unit a request, and in percent of the best.
    """
    loss = drawn.loss
    with np.errstate(invalid="ignore"):
        more = np.where(np.isfinite(loss), loss - loss.min(axis=0), np.nan)
        part = more / loss.min(axis=0)
    known = np.isfinite(more).any(axis=1)
    result = np.full((2, len(loss)), np.nan)
    result[0, known] = np.nanmean(more[known], axis=1)
    result[1, known] = 100 * np.nanmean(part[known], axis=1)
    return result[0], result[1]


def _better_shares(options: pd.DataFrame, inputs: Inputs) -> np.ndarray:
    """[i, j]: the share of draws of the measuring errors alone in which i is better than j."""
    quantiles = (np.arange(DRAWS_OF_ERRORS)[None] + 0.5) / DRAWS_OF_ERRORS
    only = evaluate(options, inputs.at(quantiles, [MEASUREMENT]), inputs.need)
    value = only.figures[OBJECTIVES[only.objective]]
    value = np.broadcast_to(np.where(np.isfinite(value), value, np.inf), only.fits.shape)
    return (value[:, None, :] < value[None, :, :]).mean(axis=2)


# --- what would change it ---------------------------------------------------------------------


def influence(choice: Choice, draws: int = INFLUENCE_DRAWS, seed: int = SEED) -> pd.Series:
    """Return each input's total-order Sobol index of the flip, most able to flip first.

    The flip is 1 where another option is the best than at the inputs' values. The index is the
    share of its variance that an input has part in, alone or with others (Saltelli; Homma and
    Saltelli). All 0 where nothing flips the choice.
    """
    names = choice.inputs.varied()

    def flips(quantiles: np.ndarray) -> np.ndarray:
        drawn = choice.inputs.at(np.atleast_2d(quantiles), names)
        best = evaluate(choice.options, drawn, choice.inputs.need).best
        return (best != (-1 if choice.best is None else choice.best)).astype(float)

    if not flips(stats.qmc.Sobol(len(names), rng=seed).random(draws).T).any():
        return pd.Series(0.0, index=names)
    uniform = [stats.uniform()] * len(names)
    indices = stats.sobol_indices(func=flips, n=draws, dists=uniform, rng=seed)
    total = pd.Series(indices.total_order, index=names).clip(lower=0)
    return total.sort_values(ascending=False, kind="stable")


@dataclass(frozen=True)
class Flip:
    """The nearest values of an input, all others at theirs, at which the choice changes.

    None where it does not between zero and ten times its range. `below_best`, `above_best` are the
    options that are best beyond, None where none fits.
    """

    below: float | None
    above: float | None
    below_best: int | None
    above_best: int | None


def flip(choice: Choice, name: str) -> Flip:
    """Find where an input flips the choice, to 0.1 %.

    Args:
        choice: The choice.
        name: An input, such as `api_price_factor`.
    """
    known = choice.inputs.ranges[name]
    least = max(known.least / SEARCHED, AT_LEAST.get(name, 0.0))
    most = min(known.most * SEARCHED, AT_MOST.get(name, np.inf))
    least = max(least, 1e-6 * most)
    if name == "api_price_factor":
        least, most = 1e-4 * known.least, 1e4 * known.most
    ends: list[tuple[float | None, int | None]] = []
    for end in (least, most):
        if known.value <= 0 or np.isclose(end, known.value):
            ends.append((None, None))
            continue
        ends.append(_nearest_flip(choice, name, known.value, end))
    (below, below_best), (above, above_best) = ends
    return Flip(below, above, below_best, above_best)


def _nearest_flip(
    choice: Choice, name: str, value: float, end: float
) -> tuple[float | None, int | None]:
    """Bracket the first change on the way from `value` to `end`, then bisect."""
    steps = np.geomspace(value, end, 400)
    best = best_at(choice, name, steps)
    here = best[0]
    changed = np.flatnonzero(best != here)
    if not len(changed):
        return None, None
    first = changed[0]

    def side(log_value: float) -> float:
        return 1.0 if best_at(choice, name, np.exp([log_value]))[0] == here else -1.0

    ends = sorted(np.log(steps[[first - 1, first]]))
    at = optimize.bisect(side, *ends, xtol=FLIP_TOLERANCE / 4)
    beyond = int(best[first])
    return float(np.exp(at)), None if beyond < 0 else beyond


def best_at(choice: Choice, name: str, values: np.ndarray) -> np.ndarray:
    """Return the best option at each value of an input, the others at theirs; -1 for none."""
    inputs = {
        n: np.asarray(values, dtype=float) if n == name else np.full(len(values), r.value)
        for n, r in choice.inputs.ranges.items()
    }
    return evaluate(choice.options, inputs, choice.inputs.need).best


def flips(choice: Choice) -> pd.DataFrame:
    """Tabulate every input: value, range, its part in the flip, and where it flips the choice."""
    total = influence(choice)
    table = choice.inputs.table().set_index("input")
    table["total_order"] = total.reindex(table.index)
    names = choice.table.sort_index()
    for name in table.index:
        at = flip(choice, name)
        for side in ("below", "above"):
            value, best = getattr(at, side), getattr(at, f"{side}_best")
            table.loc[name, f"flips_{side}"] = np.nan if value is None else value
            says = None
            if value is not None:
                says = "none" if best is None else _said(names.loc[best])
            table.loc[name, f"then_{side}"] = says
    table.loc[MEASUREMENT, "total_order"] = total.get(MEASUREMENT, np.nan)
    table.loc[MEASUREMENT, "source"] = choice.inputs.ranges[MEASUREMENT].source
    table = table.sort_values("total_order", ascending=False, kind="stable", na_position="last")
    return table.reset_index(names="input")


def _said(row: pd.Series) -> str:
    """`llama-1B_rag_lora_int4, on premises, 8 at once`."""
    places = "" if row["deployment"] == API else f", {row['concurrency']:.0f} at once"
    return f"{row['name']}, {row['deployment']}{places}"


# --- none fits --------------------------------------------------------------------------------


def remedies(choice: Choice) -> pd.DataFrame:
    """What would make an option fit where none does: a row a constraint, the least change.

    For each constraint that alone keeps some options out, the option that needs least of a change
    and what it needs; where every option breaks several, the one that breaks them least, with all
    its needs in rows of its own.
    """
    excess = {name: values[:, 0] for name, values in choice.nominal.excess.items()}
    broken = pd.DataFrame(excess).gt(1)
    rows = []
    alone = broken.sum(axis=1) == 1
    for name in broken:
        only = np.flatnonzero(alone & broken[name])
        if len(only):
            index = only[excess[name][only].argmin()]
            rows.append((name, index))
    if not rows:
        index = int(np.argmin(np.max(np.stack(list(excess.values())), axis=0)))
        rows = [(name, index) for name in broken if broken[name][index]]
    table = choice.table.sort_index()
    limits = choice.inputs.need
    floor = choice.options.attrs["best_score"] * choice.inputs.value("score_floor_share")
    needs = {
        "first token": ("ttft_ms", limits.ttft_ms),
        "time per token": ("tpot_ms", limits.tpot_ms),
        "machines": ("machines", limits.machines),
        "budget": ("usd_per_month", limits.budget_usd_per_month),
        "score": ("score", floor),
    }
    return pd.DataFrame(
        {
            "constraint": name,
            "limit": needs[name][1],
            "would_fit_at": table[needs[name][0]][index],
            "option_index": index,
        }
        for name, index in rows
    )


# --- against the API --------------------------------------------------------------------------


def pays_after_requests(choice: Choice, index: int) -> float:
    """Requests after which an option has cost less than the API; `inf` where it never does.

    Fixed cost / (API - running cost a request): what was spent before the first request, against
    what each saves, at the load that was asked.
    """
    api = choice.options.index[choice.options["deployment"] == API]
    if not len(api) or choice.options["deployment"][index] == API:
        return np.nan
    running = choice.nominal.figures["running_usd_per_request"][:, 0]
    saved = running[api[0]] - running[index]
    return float(choice.nominal.figures["fixed_usd"][index, 0] / saved) if saved > 0 else np.inf


def api_usd_per_request(choice: Choice, factor: float = 1.0) -> float:
    """Return what the API asks for a request of this load, at a factor of its prices."""
    value = choice.inputs.value
    listed = cost.api_usd_per_request(
        value("input_tokens"),
        value("output_tokens"),
        value("api_input_usd_per_mtok"),
        value("api_output_usd_per_mtok"),
    )
    return factor * value("api_price_factor") * listed
