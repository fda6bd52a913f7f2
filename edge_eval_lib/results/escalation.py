"""Signals over a pair of arms: how well they order prompts, and what a threshold saves.

signals, gone = escalation.known({"margin": Signal(values, values)})
escalation.verdicts(pair, signals)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from edge_eval_lib.economics import published
from edge_eval_lib.economics.prices import Prices
from edge_eval_lib.energy.measurement import Measurement
from edge_eval_lib.results import confidence, routing
from edge_eval_lib.results.arms import correct_answers, share_interval
from edge_eval_lib.results.hybrid import CURRENCIES, Pair, Used, arm, requests_used
from edge_eval_lib.results.observations import Results
from edge_eval_lib.results.readable import bounded

ORACLE = "oracle"
FOLDS = 5  # of the cross-validation of a router


@dataclass(frozen=True)
class Signal:
    """How sure the local arm is of every prompt, and what it takes to know that.

    Attributes:
        values: By prompt; the higher, the surer.
        probability: The same as a share of 0..1, before any calibration.
        used: What it takes beside both answers, by currency and prompt.
        before: Whether it is known before the local answer is made.
    """

    values: np.ndarray
    probability: np.ndarray
    used: Used = field(default_factory=dict)
    before: bool = False

    def known_in(self, currency: str) -> bool:
        """Whether what the signal takes is known in a currency."""
        return bool(np.isfinite(self.used.get(currency, 0.0)).all())


def known(signals: Mapping[str, Signal]) -> tuple[dict[str, Signal], list[str]]:
    """Part the signals that are known of every prompt from the others, named in sentences."""
    there = {name: s for name, s in signals.items() if np.isfinite(s.values).all()}
    gone = [
        f"The signal {name} is not known of {np.isnan(s.values).sum()} of {len(s.values)} prompts."
        for name, s in signals.items()
        if name not in there
    ]
    return there, gone


def signal_areas(pair: Pair, signals: Mapping[str, Signal], seed: int = 0) -> pd.DataFrame:
    """Compute how well each signal orders the prompts: a row a signal, the oracle last.

    `area` by the share escalated, with its interval over prompts (`routing.signal_area`), and
    `area_by_<currency>` by the budget, with what the signal and cheap answers take inside.
    """
    local, cloud = _correct(pair)
    rows = []
    for name, signal in [*signals.items(), (ORACLE, oracle(pair))]:
        area, low, high = routing.signal_area_interval(local, cloud, signal.values, seed)
        row: dict[str, Any] = {"signal": name, "known": "before" if signal.before else "after"}
        row |= {"area": area, "area_lo": low, "area_hi": high}
        for currency in filter(signal.known_in, pair.currencies):
            cost = pair.cost(currency, signal.used, signal.before)
            row[f"area_by_{_in_words(currency).replace(' ', '_')}"] = routing.budget_area(
                local, cloud, signal.values, cost
            )
        rows.append(row)
    return pd.DataFrame(rows)


def oracle(pair: Pair) -> Signal:
    """The signal that knows both answers beforehand, for nothing: what no signal exceeds."""
    local, cloud = _correct(pair)
    return Signal(local - cloud, (local - cloud + 1) / 2, before=True)


def curves(pair: Pair, signals: Mapping[str, Signal]) -> pd.DataFrame:
    """Compute every signal's quality, cost, energy and latency over its threshold.

    No row where the cloud is not better: `routing.why_no_curve` says so.
    """
    parts = []
    better = not routing.why_no_curve(*_correct(pair))
    for name, signal in signals.items() if better else ():
        there = filter(signal.known_in, pair.currencies)
        costs = {c: pair.cost(c, signal.used, signal.before) for c in there}
        curve = routing.routing_curve(*_correct(pair), signal.values, costs)
        parts.append(curve.assign(signal=name))
    if not parts:
        return pd.DataFrame(columns=["threshold", "escalated", "correct", "signal"])
    return pd.concat(parts, ignore_index=True)


def calibration(pair: Pair, signals: Mapping[str, Signal], seed: int = 0) -> pd.DataFrame:
    """Compute each signal's calibration error on one half, before and after fitting on the other.

    Returns:
        A row a signal: `ece_before` of its raw probability, `ece_after` of isotonic regression.
    """
    local, _ = _correct(pair)
    fitted = routing.halves(len(local), seed)
    rows = []
    for name, signal in signals.items():
        steps = confidence.calibrate(signal.values[fitted], local[fitted])
        after = steps.probability(signal.values[~fitted])
        error = confidence.expected_calibration_error
        row = {"signal": name, "prompts": int((~fitted).sum())}
        row["ece_before"] = error(signal.probability[~fitted], local[~fitted])
        rows.append(row | {"ece_after": error(after, local[~fitted])})
    return pd.DataFrame(rows)


def verdicts(pair: Pair, signals: Mapping[str, Signal], seed: int = 0) -> pd.DataFrame:
    """Choose every signal's threshold on one half of the prompts, and judge it on the other.

    Returns:
        A row a currency and signal: what `routing.judge` found, and the `verdict` in a sentence.
        Where nothing is to be routed, one row for the currency says why.
    """
    local, cloud = _correct(pair)
    chosen = routing.halves(len(local), seed)
    rows: list[dict[str, Any]] = []
    for currency in CURRENCIES:
        words = _in_words(currency)
        why = pair.missing.get(currency) or _why_not(pair, currency, chosen)
        if why:
            rows.append({"currency": currency, "signal": "none", "verdict": f"{words}: {why}"})
            continue
        for name, signal in signals.items():
            if not signal.known_in(currency):
                unknown = f"{name}: what it takes in {words} is not known."
                rows.append({"currency": currency, "signal": name, "verdict": unknown})
                continue
            cost = pair.cost(currency, signal.used, signal.before)
            values = signal.values
            threshold = routing.choose_threshold(
                local[chosen], cloud[chosen], values[chosen], cost.of(chosen)
            )
            judged = routing.judge(
                local[~chosen], cloud[~chosen], values[~chosen], cost.of(~chosen), threshold, seed
            )
            row = {"currency": currency, "signal": name} | _columns(judged)
            rows.append(row | {"verdict": routing.verdict(judged, name, words)})
    return pd.DataFrame(rows)


def _in_words(currency: str) -> str:
    return CURRENCIES[currency].partition(" [")[0]


def _why_not(pair: Pair, currency: str, chosen: np.ndarray) -> str:
    """Why there is nothing to route in a currency, on all prompts or on a half of them."""
    local, cloud = _correct(pair)
    cost = pair.cost(currency)
    parts = {"": np.ones(len(local), bool), "on one half, ": chosen, "on the other half, ": ~chosen}
    for where, part in parts.items():
        if why := routing.why_no_curve(local[part], cloud[part], cost.of(part)):
            return where + why
    return ""


def _columns(judged: routing.Judgement) -> dict[str, Any]:
    row = asdict(judged)
    for name in ("correct_change", "cost_change"):
        row[name], row[f"{name}_lo"], row[f"{name}_hi"] = row.pop(name)
    return row


def _correct(pair: Pair) -> tuple[np.ndarray, np.ndarray]:
    prompts = pair.prompts
    return prompts["local_correct"].to_numpy(float), prompts["cloud_correct"].to_numpy(float)


def confirmation(
    results: Results, prices: Prices, pair: Pair, routed: str, signal: np.ndarray, below: float
) -> pd.DataFrame:
    """Set what the stored answers foretell of a threshold beside the cascade that was run.

    The cascade's signal comes with the local answer, for nothing.

    Returns:
        Two rows, `foretold` and `measured`: `escalated`, `correct` with Wilson's interval, and
        each currency a prompt. List prices of both are of the cloud's tokens and, for what is
        answered here, of this machine.
    """
    local, cloud = _correct(pair)
    escalated = signal < below
    key = arm(results, routed)
    correct = correct_answers(results.answers, results.study.correct_from)[key].dropna()
    taken = requests_used(results, prices, key)
    expected: dict[str, Any] = {"cascade": "foretold", "prompts": len(local)}
    expected |= _shares(escalated, np.where(escalated, cloud, local))
    measured: dict[str, Any] = {"cascade": "measured", "prompts": len(correct)}
    measured |= _shares(taken["cloud_calls"].to_numpy() > 0, correct.to_numpy())
    here = pair.prompts["local_list_usd"].mean()
    taken["list_usd"] = taken["listed_usd"] + here
    for currency in pair.currencies:
        expected[currency] = float(pair.cost(currency).routed(escalated).mean())
        measured[currency] = float(taken[currency].mean())
    return pd.DataFrame([expected, measured])


def _shares(escalated: np.ndarray, correct: np.ndarray) -> dict[str, float]:
    share, low, high = share_interval(float(correct.sum()), len(correct))
    return {"escalated": float(np.mean(escalated)), "correct": share} | {
        "correct_lo": low,
        "correct_hi": high,
    }


def told(judged: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of `verdicts` that judge a signal; none where nothing is to be routed."""
    return judged[judged["signal"] != "none"]


def foretold(router: Any, questions: list[str], right: Sequence[float], seed: int) -> np.ndarray:
    """Have a classifier foretell from the question alone whether the local answer is right.

    Args:
        router: A classifier of scikit-learn with `predict_proba`; fitted on one half here.
        questions: What is asked.
        right: 1 where the local answer is correct.
        seed: Of the halves (`routing.halves`).

    Returns:
        The probability for each question: of the half that it was fitted on by cross-validation,
        of the other half as fitted. NaN where that half has fewer than two of either kind.
    """
    from sklearn.model_selection import cross_val_predict

    asked, label = np.array(questions, dtype=object), np.asarray(right) >= 0.5
    fitted = routing.halves(len(asked), seed)
    rarest = np.bincount(label[fitted], minlength=2).min()
    if rarest < 2:
        return np.full(len(asked), np.nan)
    said = np.empty(len(asked))
    folds = int(min(FOLDS, rarest))
    crossed = cross_val_predict(
        router, asked[fitted], label[fitted], cv=folds, method="predict_proba"
    )
    said[fitted] = crossed[:, 1]
    said[~fitted] = router.fit(asked[fitted], label[fitted]).predict_proba(asked[~fitted])[:, 1]
    return said


def used(window: Measurement, times: int, prices: Prices) -> dict[str, float]:
    """What one of `times` pieces of work in a window took, by currency; NaN where unknown."""
    seconds = float(window.seconds or 0.0) / times
    energy_j = np.nan if window.energy_j is None else window.energy_j / times
    usd = float(prices.machine_usd(energy_j, seconds))
    return {"energy_j": float(energy_j), "usd": usd, "list_usd": usd, "latency_s": seconds}


def checked_table(checks: Mapping[float, confidence.Validation]) -> pd.DataFrame:
    """Table what checking samples of several sizes found; their cost is a question's, of all."""
    rows = []
    for share, found in checks.items():
        row: dict[str, Any] = {"sample": share, "checked": found.checked}
        for name in ("error_rate", "true_error_rate"):
            row[name], row[f"{name}_lo"], row[f"{name}_hi"] = getattr(found, name)
        row |= {"precision": found.precision, "recall": found.recall}
        rows.append(row | dict(found.cost))
    return pd.DataFrame(rows)


def most_escalated(local, cloud):
    """Compute the share below which a cascade takes less than asking the cloud: 1 - local / cloud.

    0 where the local answer takes as much as the cloud's.
    """
    return np.maximum(1 - np.asarray(local) / np.asarray(cloud), 0.0)


def most_escalated_table(pair: Pair) -> pd.DataFrame:
    """Compute `most_escalated` here by currency, and of the published T4 energies.

    There the local side is a family's smallest model at INT4, the cloud its largest at FP16, both
    LoRA, on the same task.
    """
    rows = []
    for currency in pair.currencies:
        ends = [float(pair.prompts[f"{s}_{currency}"].mean()) for s in ("local", "cloud")]
        where = {"where": "here", "local_system": pair.local[2], "cloud_system": pair.cloud[2]}
        rows.append(where | {"in": CURRENCIES[currency], "local": ends[0], "cloud": ends[1]})
    figures = published.observations()
    figures = figures[figures["method"] == "lora"].set_index(["precision", "family", "task"])
    for (family, task), _ in figures.loc["fp16"].groupby(level=["family", "task"], sort=False):
        small = figures.loc[[("int4", family, task)]].nsmallest(1, "memory_nominal_gb").iloc[0]
        large = figures.loc[[("fp16", family, task)]].nlargest(1, "memory_nominal_gb").iloc[0]
        rows.append(
            {"where": f"T4, published, {family} {task}", "in": CURRENCIES["energy_j"]}
            | {"local_system": f"{small['size']} INT4", "cloud_system": f"{large['size']} FP16"}
            | {"local": small["energy_per_request_j"], "cloud": large["energy_per_request_j"]}
        )
    table = pd.DataFrame(rows)
    return table.assign(escalated_at_most=most_escalated(table["local"], table["cloud"]))


def summary(pair: Pair, areas: pd.DataFrame, judged: pd.DataFrame) -> list[str]:
    """Say what follows: who is better, which signal knows it, and where routing pays."""
    prompts = len(pair.prompts)
    shares = []
    for side in ("local", "cloud"):
        share, low, high = share_interval(float(pair.prompts[f"{side}_correct"].sum()), prompts)
        shares.append(f"{100 * share:.0f} % [{100 * low:.0f}, {100 * high:.0f}]")
    lines = [
        f"The local system answered {shares[0]} of {prompts} questions, the cloud {shares[1]}."
    ]
    ordered = areas[areas["signal"] != ORACLE].dropna(subset=["area"])
    if len(ordered):
        best = ordered.loc[ordered["area"].idxmax()]
        figure = bounded(best, "area")
        apart = "is" if best["area_lo"] > 0 else "is not"
        lines.append(
            f"Of the signals, {best['signal']} orders the questions best: {figure}, where choosing "
            f"at random is 0 and knowing both answers 1; that {apart} told apart from random."
        )
    if "cost_change_hi" in judged:
        paying = judged[pd.to_numeric(judged["cost_change_hi"]) < 0]
        names = [f"{_in_words(row.currency)} by {row.signal}" for row in paying.itertuples()]
        lines.insert(0, f"Routing is shown to save {'; '.join(names) or 'nothing'}.")
    for _, rows in judged.groupby("currency", sort=False):
        best_row = rows.iloc[0] if "cost_change" not in rows else _cheapest(rows)
        lines.append(str(best_row["verdict"]))
    return lines


def _cheapest(rows: pd.DataFrame) -> pd.Series:
    changes = pd.to_numeric(rows["cost_change"])
    return rows.loc[changes.idxmin()] if changes.notna().any() else rows.iloc[0]
