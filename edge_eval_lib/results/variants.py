"""Variants: observations and answers -> a row a variant, to which metrics are added one by one.

    variants = Variants(observations, answers)
    variants.add("rho_sys", metrics.system_density, "throughput_tok_s", "memory_gb", over="runs")
    table = variants.table()

Published and measured figures take the same way. A figure that is missing stays empty and `notes`
says why; it is never 0.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Literal

import numpy as np
import pandas as pd

from edge_eval_lib import metrics
from edge_eval_lib.economics import cost
from edge_eval_lib.economics.cost import keep_warm_s
from edge_eval_lib.economics.prices import Prices
from edge_eval_lib.results import columns
from edge_eval_lib.results.columns import VARIANT
from edge_eval_lib.results.intervals import bounds, interval_of, ratio_factor
from edge_eval_lib.results.means import (
    checked,
    means_over_runs,
    per_prompt,
    pooled_loads,
    refuse_repeats,
    scores,
)
from edge_eval_lib.results.notes import Notes
from edge_eval_lib.results.readable import Prose, readable, show
from edge_eval_lib.uncertainty import all_of_one_ratio, mean_interval

DEAR = "the API costs no more than serving here"
NOT_BOUNDED = "no answer changed its score: not bounded"
_BASE = ("lora", "fp16")  # what the score of every other variant is compared with
# What must be there, or its absence is noted; in the order of the notes.
_EXPECTED = ["adapt_energy_j", *columns.COMPRESSION, *columns.LOAD, "keep_warm_s",
             *columns.OVER_RUNS, "score"]  # fmt: skip
_SPENT = ["adapt_energy_j", "compress_energy_j", "load_energy_j", "energy_per_request_j",
          "output_tokens_per_request"]  # fmt: skip


class Variants:
    """A row a variant: means over its cold runs, scores over prompts, and their intervals.

    A column is read as `variants["energy_per_request_j"]`, a Series by variant.
    """

    def __init__(
        self,
        observations: pd.DataFrame,
        answers: pd.DataFrame | None,
        confidence: float = 0.95,
    ) -> None:
        """Take the observations of one concurrency; rows of method `none` are left out.

        Args:
            observations: A row a serving run (`columns.OBSERVATION_COLUMNS`).
            answers: A row a variant, repetition and prompt; without them scores are those of a
                `score` column of the observations, one a variant.
            confidence: Of every interval.

        Raises:
            ValueError: If two observations are of one variant and repetition, or have no key.
        """
        runs = checked(observations)
        runs = runs[runs["method"] != "none"]
        refuse_repeats(runs)
        self._confidence = confidence
        self._prompts = None if answers is None else per_prompt(answers)
        self._notes = Notes(runs)
        table = means_over_runs(runs).join(scores(runs, self._prompts, confidence))
        if answers is not None:
            self._notes.add_unscored(answers)
            of_runs = answers.groupby([*VARIANT, "repetition"])["score"].mean().rename("score")
            runs = runs.join(of_runs, on=[*VARIANT, "repetition"])
        self._runs = runs
        table = table.join(bounds(runs, VARIANT, mean_interval, columns.OVER_RUNS, confidence))
        self._table = table.join(pooled_loads(runs, table.index, confidence))
        self.add("keep_warm_s", keep_warm_s, "load_energy_j", "idle_loaded_power_w",
                 "idle_bare_power_w", never="being loaded draws no power of its own")  # fmt: skip

    def __getitem__(self, column: str) -> pd.Series:
        """A column, by variant."""
        return self._table[column]

    def add(
        self,
        name: str,
        function: Callable,
        *arguments: str | pd.Series,
        over: Literal["runs"] | None = None,
        estimate: bool = False,
        scenarios: Iterable[Callable] = (),
        never: str | None = None,
        **named: str | pd.Series,
    ) -> None:
        """Add a figure: a function of the variants' own columns.

        Args:
            name: The new column.
            function: Takes the arguments as arrays of the rows in which none is missing.
            *arguments: Columns by name, or Series by variant.
            over: "runs" for an interval over runs: of a ratio of two columns, that of paired
                ratios; of another function, Student's t of its values in each run.
            estimate: Whether the range of estimated energies makes a range of this figure,
                `<name>_estimate_lo` and `_estimate_hi`.
            scenarios: The same function under other assumptions; their range becomes
                `<name>_least` and `<name>_most`.
            never: What an infinite value means; it is noted.
            **named: As `arguments`, for a function that takes them by name.
        """
        arguments, count, keys = (*arguments, *named.values()), len(arguments), [*named]
        given = [self._series(argument) for argument in arguments]

        def by_position(function: Callable) -> Callable:
            return lambda *values: function(
                *values[:count], **dict(zip(keys, values[count:], strict=True))
            )

        value = where_known(by_position(function), *given)
        self._table[name] = value
        ranges = [where_known(by_position(scenario), *given) for scenario in scenarios]
        if ranges:
            self._table[f"{name}_least"] = pd.concat(ranges, axis=1).min(axis=1)
            self._table[f"{name}_most"] = pd.concat(ranges, axis=1).max(axis=1)
        if estimate:
            self._add_estimate(name, by_position(function), arguments)
        if over == "runs":
            interval = interval_of(function)
            pair = {name: [str(argument) for argument in arguments]}
            self._table = self._table.join(
                bounds(self._runs, VARIANT, interval, pair, self._confidence)
            )
        if never:
            self.note(np.isinf(value), f"{name}: {never}")

    def compare(self, name: str, function: Callable, column: str = "score") -> None:
        """Add a figure of each variant's answers and lora/fp16's of the same model and task.

        Args:
            name: The new column; its interval is over the prompts that both answered.
            function: Takes a score and that of lora/fp16.
            column: What of the answers is compared.
        """
        scores = self._table[column]
        keys = ["method", "precision"]
        is_base = np.array([key[3:] == _BASE for key in scores.index], dtype=bool)
        base = scores[is_base].droplevel(keys).reindex(scores.index.droplevel(keys)).to_numpy()
        self.note(np.isnan(base), f"{name}: lora/fp16 has no score")
        self.note(base == 0, f"{name}: lora/fp16 scored 0")
        ends = [name, f"{name}_lo", f"{name}_hi"]
        result = pd.DataFrame(np.nan, index=scores.index, columns=ends)
        comparable = pd.Series(base > 0, index=scores.index) & scores.notna()
        unbounded = pd.Series(False, index=scores.index)
        if self._prompts is None:
            other = pd.Series(base, index=scores.index).where(comparable)
            result[name] = where_known(function, scores.where(comparable), other)
        else:
            by_prompt = self._prompts[column].unstack("prompt_id")
            rows = dict(zip(by_prompt.index, by_prompt.to_numpy(), strict=True))
            interval = interval_of(function)
            for key in scores.index[comparable]:
                own, other = rows[key], rows[(*key[:3], *_BASE)]
                both = ~(np.isnan(own) | np.isnan(other))
                own, other = own[both], other[both]
                if other.sum() > 0:
                    low_high = interval(own, other, self._confidence)[1:]
                    result.loc[key] = [function(own.mean(), other.mean()), *low_high]
                    unbounded[key] = len(own) > 1 and all_of_one_ratio(own, other)
        # Pairs of one ratio bound nothing: the next prompt may be the first answered otherwise.
        result.loc[unbounded, ends[1:]] = np.nan
        self.note(unbounded & ~is_base, f"{name}: {NOT_BOUNDED}")
        self.note(unbounded & is_base, f"{name}: 100 by definition, without an interval")
        self._table = self._table.join(result)
        self._compared = name

    _compared: str | None = None

    def note(self, where, text: str) -> None:
        """Say something of the variants `where` it holds."""
        self._notes.add(where, text)

    def table(self, price_set: str | None = None) -> pd.DataFrame:
        """The finished table; a missing figure says why in `notes`.

        Args:
            price_set: The name of the prices, for a column.

        Returns:
            A row a variant: what it is, what was measured, the metrics, each beside its interval.
        """
        table, notes = self._table.copy(), self._notes.copy()
        for column in _EXPECTED:
            notes.add_missing(table[column])
        if self._compared:
            _note_mixed(table, self._compared, notes)
        table["prices"] = price_set
        table["notes"] = notes.text()
        first, last = [*VARIANT, *columns.FIRST], columns.LAST
        middle = columns.in_order(table, columns.MIDDLE)
        others = [c for c in table if c not in {*first, *middle, *last}]
        order = [*first, *middle, *others, *last]
        return columns.sort_variants(table.reset_index())[order]

    def show(self, name: str, digits: int = 3) -> Prose:
        """Show a figure in a notebook, with its intervals: a column a task."""
        rows = columns.named(columns.sort_variants(self._table.reset_index()))
        rows["cell"] = readable(rows, [name], digits).iloc[:, 0]
        index = ["model", "configuration"]
        wide = rows.pivot_table("cell", index, "task", aggfunc="first", sort=False)
        return show(wide.reset_index())

    def _series(self, value: str | pd.Series) -> pd.Series:
        return self._table[value] if isinstance(value, str) else value

    def _add_estimate(self, name: str, function: Callable, arguments: Sequence) -> None:
        """The figure at both ends of the estimate: watts of a core are the same in every window."""
        found = []
        for end in ("lo", "hi"):
            at_end = [self._at_end(argument, end) for argument in arguments]
            first, factor = at_end[0], self._factor(arguments[-1], end)
            if len(arguments) == 2 and first is None and ratio_factor(function) is not None:
                found.append(self._table[name] * factor)
            else:
                given = [
                    self._series(argument) if value is None else value
                    for argument, value in zip(arguments, at_end, strict=True)
                ]
                found.append(where_known(function, *given))
        self._table[f"{name}_estimate_lo"] = np.minimum(*found)
        self._table[f"{name}_estimate_hi"] = np.maximum(*found)

    def _at_end(self, argument: str | pd.Series, end: str) -> pd.Series | None:
        """A column at an end of the estimate; None if it is not estimated."""
        if not isinstance(argument, str):
            return None
        return self._table.get(f"{argument.removesuffix('_j')}_{end}_j")

    def _factor(self, argument: str | pd.Series, end: str) -> pd.Series | float:
        """A column over itself at an end of the estimate; power follows a request's energy."""
        argument = (
            "energy_per_request_j"
            if isinstance(argument, str) and argument == "power_w"
            else argument
        )
        at_end = self._at_end(argument, end)
        return 1.0 if at_end is None else self._series(argument) / at_end


def variants_table(
    observations: pd.DataFrame,
    answers: pd.DataFrame | None,
    prices: Prices,
    scenarios: Sequence[Prices] = (),
    confidence: float = 0.95,
    price_set: str | None = None,
) -> pd.DataFrame:
    """A row a variant with the paper's five metrics, as notebook 05 computes them.

    Args:
        observations: Those of one concurrency (`Variants`).
        answers: A row a variant, repetition and prompt, or None.
        prices: What energy, hardware, labour and the API cost.
        scenarios: Other prices, whose range stands beside the full accounting.
        confidence: Of every interval.
        price_set: The name of `prices`, for a column.

    Returns:
        The finished table (`Variants.table`).
    """
    variants = Variants(observations, answers, confidence)
    energy, add = "energy_per_request_j", variants.add
    add("n_break", _paid(prices), "adapt_energy_j", energy, estimate=True, never=DEAR)
    add_full_break_even(variants, prices, scenarios)
    add("ipw", metrics.intelligence_per_watt, "score", energy, over="runs", estimate=True)
    add("score_per_watt", np.divide, "score", "power_w", estimate=True)
    add("rho_sys", metrics.system_density, "throughput_tok_s", "memory_gb", over="runs")
    add("rho_sys_nominal", metrics.system_density, "throughput_tok_s", "memory_nominal_gb")
    add("c_tax", metrics.cold_start_tax, "load_energy_j", energy, over="runs")
    add("c_tax_model", metrics.cold_start_tax, "load_model_energy_j", energy, over="runs")
    variants.compare("q_ret_pct", metrics.quantization_fidelity)
    return variants.table(price_set)


def add_full_break_even(
    variants: Variants, prices: Prices, scenarios: Sequence[Prices] = ()
) -> None:
    """Add N_break by the full accounting: everything spent before the first request.

    Args:
        variants: To which `n_break_full` is added.
        prices: What it is priced at.
        scenarios: Other prices, whose range stands beside it.
    """
    full = [_paid_in_full(p) for p in (prices, *scenarios)]
    spent = {column: column for column in _SPENT} | _derived(variants, prices)
    variants.add("n_break_full", full[0], **spent, estimate=True, scenarios=full[1:], never=DEAR)
    variants.note(
        variants["n_break_full"].notna() & variants["input_tokens_per_request"].isna(),
        f"n_break_full: input tokens assumed, {prices.api_input_tokens_per_request:g} a request",
    )


def paper_break_even(table: pd.DataFrame, prices: Prices) -> pd.Series:
    """Requests until adaptation has paid, electricity alone counted (the paper's accounting)."""
    return where_known(_paid(prices), table["adapt_energy_j"], table["energy_per_request_j"])


def full_break_even(table: pd.DataFrame, prices: Prices) -> pd.Series:
    """Requests until everything spent before the first one has paid (`cost.full_costs`)."""
    spent = {column: table[column] for column in _SPENT} | _derived(table, prices)
    paid = _paid_in_full(prices)
    return where_known(lambda *v: paid(**dict(zip(spent, v, strict=True))), *spent.values())


def _paid(prices: Prices) -> Callable:
    return lambda adapt, request: cost.paper_costs(prices, adapt, request).requests


def _paid_in_full(prices: Prices) -> Callable:
    return lambda **spent: cost.full_costs(prices, **spent).requests


def _derived(table: Variants | pd.DataFrame, prices: Prices) -> dict[str, pd.Series]:
    """What the full accounting takes beside columns; input tokens not recorded are assumed."""
    return {
        "seconds_before": table["adapt_s"] + table["compress_s"] + table["load_s"],
        "seconds_per_request": table["output_tokens_per_request"] / table["throughput_tok_s"],
        "input_tokens_per_request": table["input_tokens_per_request"].fillna(
            prices.api_input_tokens_per_request
        ),
    }


def where_known(function: Callable, *series: pd.Series) -> pd.Series:
    """`function` of the rows in which no argument is missing; NaN in the others."""
    known = np.logical_and.reduce([c.notna() for c in series])
    result = pd.Series(np.nan, index=series[0].index)
    if known.any():
        result[known] = np.asarray(function(*(c[known].to_numpy(float) for c in series)))
    return result


def _note_mixed(table: pd.DataFrame, name: str, notes: Notes) -> None:
    """Say where a comparison is of answers that were computed in another way."""
    keys = ["method", "precision"]
    is_base = np.array([key[3:] == _BASE for key in table.index], dtype=bool)
    base = table[is_base].droplevel(keys).reindex(table.index.droplevel(keys))
    for column, what in columns.MIXED.items():
        own, other = table[column], base[column].set_axis(table.index)
        differ = table[name].notna() & own.notna() & other.notna() & (own != other)
        for key in table.index[differ]:
            text = f"{name}: {what} {own[key]}, that of lora/fp16 {other[key]}"
            notes.add(table.index == key, text)
