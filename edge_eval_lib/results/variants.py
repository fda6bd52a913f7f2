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
from edge_eval_lib.results import columns, page
from edge_eval_lib.results.columns import VARIANT
from edge_eval_lib.results.described import span
from edge_eval_lib.results.means import (
    bounds,
    checked,
    interval_of,
    means_over_runs,
    per_prompt,
    pooled_loads,
    ratio_factor,
    refuse_repeats,
    scores,
)
from edge_eval_lib.results.readable import Prose, heading, plain_name, readable, show
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
        self._confidence, self._compared = confidence, ""
        self._prompts = None if answers is None else per_prompt(answers)
        said = runs.groupby(VARIANT, sort=False)["notes"].agg(columns.joined)
        self._notes = said.map(lambda text: [text] if isinstance(text, str) else [])
        table = means_over_runs(runs).join(scores(runs, self._prompts, confidence))
        if answers is not None:
            self._note_unscored(answers)
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
        """
        given = [self._series(argument) for argument in arguments]
        value = where_known(function, *given)
        self._table[name] = value
        if ranges := [where_known(scenario, *given) for scenario in scenarios]:
            self._table[f"{name}_least"] = pd.concat(ranges, axis=1).min(axis=1)
            self._table[f"{name}_most"] = pd.concat(ranges, axis=1).max(axis=1)
        if estimate:
            self._add_estimate(name, function, arguments)
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

    def note(self, where, text: str) -> None:
        """Say something of the variants `where` it holds."""
        _note(self._notes, where, text)

    def _note_unscored(self, answers: pd.DataFrame) -> None:
        unscored = answers[answers["score"].isna()]
        for key, group in unscored.groupby(VARIANT, sort=False):
            if key in self._notes.index:
                reasons = columns.joined(group["score_reason"]) or "no reason recorded"
                count = group["prompt_id"].nunique()
                self._notes[key].append(f"score: {count} prompts not scored ({reasons})")

    def table(self, price_set: str | None = None) -> pd.DataFrame:
        """The finished table; a missing figure says why in `notes`.

        Args:
            price_set: The name of the prices, for a column.

        Returns:
            A row a variant: what it is, what was measured, the metrics, each beside its interval.
        """
        table, notes = self._table.copy(), self._notes.map(list)
        for column in _EXPECTED:  # unless the runs' own notes say why it is missing
            explained = notes.map(lambda texts, name=column: f"{name}:" in "; ".join(texts))
            _note(notes, table[column].isna() & ~explained, f"{column}: not measured")
        if self._compared:
            _note_mixed(table, self._compared, notes)
        table["prices"] = price_set
        table["notes"] = notes.map(lambda texts: "; ".join(dict.fromkeys(texts)) or None)
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

    def fold(self, name: str, digits: int = 3) -> Prose:
        """Show the same folded, below a line with their number and range."""
        values = self._table[name].dropna()
        whole = max(digits, 3) if "[%" in heading(name) else digits  # 103 % are not 100
        found = f": {span(values, whole)}" if len(values) else ", not known"
        line = f"{plain_name(name)} of {len(self._table)} variants{found}"
        return page.fold(line, self.show(name, digits))

    def _series(self, value: str | pd.Series) -> pd.Series:
        return self._table[value] if isinstance(value, str) else value

    def _add_estimate(self, name: str, function: Callable, arguments: Sequence) -> None:
        """The figure at both ends of the estimate: watts of a core are the same in every window."""
        values = []
        for end in ("lo", "hi"):
            at_end = [self._at_end(argument, end) for argument in arguments]
            first, factor = at_end[0], self._factor(arguments[-1], end)
            if len(arguments) == 2 and first is None and ratio_factor(function) is not None:
                values.append(self._table[name] * factor)
            else:
                given = [
                    self._series(argument) if value is None else value
                    for argument, value in zip(arguments, at_end, strict=True)
                ]
                values.append(where_known(function, *given))
        self._table[f"{name}_estimate_lo"] = np.minimum(*values)
        self._table[f"{name}_estimate_hi"] = np.maximum(*values)

    def _at_end(self, argument: str | pd.Series, end: str) -> pd.Series | None:
        """A column at an end of the estimate; None if it is not estimated."""
        if not isinstance(argument, str):
            return None
        return self._table.get(f"{argument.removesuffix('_j')}_{end}_j")

    def _factor(self, argument: str | pd.Series, end: str) -> pd.Series | float:
        """A column over itself at an end of the estimate; power follows a request's energy."""
        if isinstance(argument, str) and argument == "power_w":
            argument = "energy_per_request_j"
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
    """Make the table of variants with the paper's five metrics, as notebook 05 computes them.

    `observations` and `answers` are those of `Variants`. The range over `scenarios`, other prices,
    stands beside the full accounting; `price_set` is the name of `prices`, for a column.
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
    """Add `n_break_full`, by the full accounting, and its range over other prices (`scenarios`)."""
    derived = _derived(variants, prices)
    full, *others = (_paid_in_full(p, [*_SPENT, *derived]) for p in (prices, *scenarios))
    spent = [*_SPENT, *derived.values()]
    variants.add("n_break_full", full, *spent, estimate=True, scenarios=others, never=DEAR)
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
    return where_known(_paid_in_full(prices, spent), *spent.values())


def _paid(prices: Prices) -> Callable:
    return lambda adapt, request: cost.paper_costs(prices, adapt, request).requests


def _paid_in_full(prices: Prices, names: Iterable[str]) -> Callable:
    names = list(names)
    return lambda *v: cost.full_costs(prices, **dict(zip(names, v, strict=True))).requests


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


def _note(notes: pd.Series, where, text: str) -> None:
    for texts in notes[np.asarray(where, dtype=bool)]:
        texts.append(text)


def _note_mixed(table: pd.DataFrame, name: str, notes: pd.Series) -> None:
    """Say where a comparison is of answers that were computed in another way."""
    keys = ["method", "precision"]
    is_base = np.array([key[3:] == _BASE for key in table.index], dtype=bool)
    base = table[is_base].droplevel(keys).reindex(table.index.droplevel(keys))
    for column, what in columns.MIXED.items():
        own, other = table[column], base[column].set_axis(table.index)
        differ = table[name].notna() & own.notna() & other.notna() & (own != other)
        for key in table.index[differ]:
            text = f"{name}: {what} {own[key]}, that of lora/fp16 {other[key]}"
            notes[key].append(text)
