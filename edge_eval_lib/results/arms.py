"""Arms of an experiment: what a correct answer takes of each, in joules and USD.

An arm is a served variant: a model, adapted and compressed in a way, asked in the way of its task.
Wrong answers, retries and escalations are in what a correct answer takes, for all that an arm used
is divided by the answers that were right.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from edge_eval_lib.economics.prices import Prices
from edge_eval_lib.errors import UserError
from edge_eval_lib.lifecycle.data import PromptCost
from edge_eval_lib.results.columns import VARIANT, sort_variants
from edge_eval_lib.results.means import means_over_runs, per_prompt
from edge_eval_lib.results.observations import Results
from edge_eval_lib.uncertainty import mean_interval, paired_bootstrap

SEED = 2604
CONFIDENCE = 0.95
NONE_CORRECT = "no answer was correct"
# What an arm used beside its answers.
USED = [
    "energy_per_request_j",
    "throughput_tok_s",
    "ttft_ms",
    "tpot_ms",
    "memory_gb",
    "input_tokens_per_request",
    "output_tokens_per_request",
    "failed_requests",
    "adapt_energy_j",
    "adapt_s",
    "compress_energy_j",
    "compress_s",
]


def correct_answers(
    answers: pd.DataFrame, correct_from: Mapping[str, float], figure: str = "content"
) -> pd.DataFrame:
    """Say of every prompt which arms answered it correctly: a column an arm, a row a prompt.

    An answer is correct whose `figure` is at least its task's `correct_from`; over repetitions,
    the share of them that is. NaN where it was not scored.

    Args:
        answers: A row a variant, repetition and prompt.
        correct_from: By task, 0..1.
        figure: What of the answers is compared.

    Raises:
        UserError: A task has no threshold.
    """
    if lacking := sorted({*answers["task"]} - correct_from.keys()):
        raise UserError(
            f"correct_from says nothing of {', '.join(lacking)}; name the least score of a correct "
            "answer, 0 to 1, for each of the study's tasks."
        )
    least = answers["task"].map(correct_from)
    right = (answers[figure] >= least - 1e-9).astype(float).where(answers[figure].notna())
    table = per_prompt(answers[[*VARIANT, "prompt_id"]].assign(correct=right))["correct"]
    return table.unstack(VARIANT).sort_index()


def arms_table(
    results: Results, prices: Prices, made: Mapping[str, PromptCost] | None = None
) -> pd.DataFrame:
    """A row an arm at the headline concurrency, the unadapted base among them.

    energy_per_correct_j = energy per request / share correct, and likewise `usd_per_correct`, of
    the machine's price and its electricity. The bounds of the share are Wilson's (over prompts),
    and those of the two follow from them: energy and seconds are those of the whole window. Empty,
    with a note, where no answer was correct.

    Args:
        results: A study whose tasks all have a `correct_from`.
        prices: What the machine and its electricity cost.
        made: By task, what making a prompt took (`lifecycle.data.prompt_cost`), which serving
            windows do not hold: it is added to what a request takes.
    """
    correct = correct_answers(results.answers, results.study.correct_from)
    runs = results.headline.copy()
    numbers = [*USED, "concurrency", "gpus"]
    runs[numbers] = runs[numbers].apply(pd.to_numeric, errors="coerce").astype(float)
    table = means_over_runs(runs)
    rows = []
    for arm, used in table.iterrows():
        answered = correct[arm].dropna() if arm in correct else pd.Series(dtype=float)
        row = dict(zip(VARIANT, arm, strict=True))
        rows.append(row | _arm(used, answered, prices, (made or {}).get(row["task"])))
    return sort_variants(pd.DataFrame(rows))


def _arm(
    used: pd.Series, answered: pd.Series, prices: Prices, prompt: PromptCost | None
) -> dict[str, Any]:
    share, low, high = share_interval(answered.sum(), len(answered))
    tokens = used["output_tokens_per_request"]
    seconds = tokens / used["throughput_tok_s"]
    energy_j = used["energy_per_request_j"]
    row: dict[str, Any] = {
        "prompts": len(answered),
        "correct_share": share,
        "correct_share_lo": low,
        "correct_share_hi": high,
        "request_s": (used["ttft_ms"] + (tokens - 1) * used["tpot_ms"]) / 1e3,
    }
    if pd.notna(used.get("latency_s")):  # a conversation of several calls
        row |= {"request_s": used["latency_s"], "calls_per_request": used["calls_per_request"]}
    notes = [NONE_CORRECT] if not share and len(answered) else []
    if prompt is not None:
        row |= {"prompt_s": prompt.seconds, "prompt_energy_j": prompt.energy_j}
        row["request_s"] += prompt.seconds
        seconds += prompt.seconds
        energy_j += prompt.energy_j or 0.0
        if prompt.energy_j is None:
            notes.append(f"energy_per_request_j: without making the prompt ({prompt.reason})")
    usd = prices.machine_usd(energy_j, seconds)
    for name, value in (("energy_per_request_j", energy_j), ("usd_per_request", usd)):
        figure = name.replace("request", "correct")
        row[name] = value
        row[figure] = value / share if share else np.nan
        row[f"{figure}_lo"] = value / high if high else np.nan
        row[f"{figure}_hi"] = value / low if low else np.inf
    row |= {name: used[name] for name in USED if name not in row}
    row |= {"energy_source": used["energy_source"], "host": used["host"]}
    return row | {"notes": "; ".join(notes) or None}


def share_interval(correct: float, prompts: int) -> tuple[float, float, float]:
    """Compute the share of correct answers and Wilson's interval of it; NaN of no prompt.

    `correct` may be no whole number, where repetitions differ; the bounds are of the nearest one.
    """
    if not prompts:
        return np.nan, np.nan, np.nan
    interval = stats.binomtest(round(correct), prompts).proportion_ci(CONFIDENCE, method="wilson")
    return correct / prompts, float(interval.low), float(interval.high)


def compared_with(results: Results, arm: Sequence[str], figure: str = "content") -> pd.DataFrame:
    """Set every arm beside `arm` (family, size, task, method, precision), prompt by prompt.

    The prompts are paired by their ids, also those of another task that asks the same questions.

    Returns:
        A row an arm: `prompts` that both answered, `difference` of the share correct and its 95 %
        interval (Student's t of the paired differences), and how many prompts `arm` alone and the
        other alone answered correctly.
    """
    correct = correct_answers(results.answers, results.study.correct_from, figure)
    if tuple(arm) not in correct:
        raise UserError(f"The study {results.study.name} has no answers of {'_'.join(arm)}.")
    rows = []
    for other in correct:
        both = correct[[tuple(arm), other]].dropna() if other != tuple(arm) else None
        if both is None or both.empty:
            continue
        own, its = both.iloc[:, 0].to_numpy(), both.iloc[:, 1].to_numpy()
        mean, low, high = mean_interval(its - own)
        row = dict(zip(VARIANT, other, strict=True)) | {"prompts": len(both)}
        row |= {
            "difference": mean,
            "difference_lo": max(low, -1.0),
            "difference_hi": min(high, 1.0),
        }
        row |= {"only_it": int((its > own).sum()), "only_the_other": int((own > its).sum())}
        rows.append(row)
    return pd.DataFrame(rows)


def correct_curve(results: Results, thresholds: Sequence[float] | None = None) -> pd.DataFrame:
    """Compute the share correct of every arm over the least score that counts as correct.

    Returns:
        A row an arm and threshold: `correct_from`, `correct_share` and its Wilson interval.
    """
    rows = []
    tasks = {*results.answers["task"]}
    for threshold in np.linspace(0.05, 1, 20) if thresholds is None else thresholds:
        correct = correct_answers(results.answers, dict.fromkeys(tasks, float(threshold)), "score")
        for arm in correct:
            answered = correct[arm].dropna()
            share, low, high = share_interval(answered.sum(), len(answered))
            row = dict(zip(VARIANT, arm, strict=True)) | {"correct_from": float(threshold)}
            row |= {"correct_share": share, "correct_share_lo": low, "correct_share_hi": high}
            rows.append(row)
    return pd.DataFrame(rows)


def crossover(
    fixed: float,
    per_request: float,
    other_per_request: float,
    correct: Sequence[float],
    other_correct: Sequence[float],
) -> tuple[float, float, float]:
    """Compute the correct answers after which an arm's head start is paid, with its 95 % range.

    N = fixed / (b / q - a / p) for what a request takes (a, and b of the other arm) and the shares
    correct (p, and q of the other), as break-even is (`metrics.break_even`); J or USD alike.

    Args:
        fixed: What the arm takes beyond the other before the first request.
        per_request: What its request takes.
        other_per_request: What the other's request takes.
        correct: Of each prompt, whether it answered correctly.
        other_correct: The same of the other arm, prompt by prompt.

    Returns:
        (N, lo, hi) over resampled prompts (paired bootstrap, percentiles); inf where it never pays.
    """
    own, other = np.asarray(correct, float), np.asarray(other_correct, float)

    def paid_per_answer(own_share, other_share, axis=-1):
        """The share of what is fixed that a correct answer pays back: finite where N is not."""
        p, q = own_share.mean(axis=axis), other_share.mean(axis=axis)
        with np.errstate(divide="ignore", invalid="ignore"):
            saved = np.where(q > 0, other_per_request / q, np.inf) - np.where(
                p > 0, per_request / p, np.inf
            )
        return np.clip(np.nan_to_num(saved, nan=0.0) / fixed, -1e9, 1e9)

    interval = paired_bootstrap((own, other), paid_per_answer, SEED).confidence_interval
    value = float(paid_per_answer(own, other))
    return _answers(value), _answers(interval.high), _answers(interval.low)


def _answers(paid_per_answer: float) -> float:
    return 1 / paid_per_answer if paid_per_answer > 0 else np.inf


def crossover_table(
    results: Results, table: pd.DataFrame, arm: Sequence[str], other: Sequence[str], prices: Prices
) -> pd.DataFrame:
    """After how many correct answers `arm` has taken less than `other`, in J and in USD.

    What is paid once is adapting and compressing, the machine's price and electricity in USD;
    people's time is not in it.

    Returns:
        A row a currency: `currency`, `paid_once`, `per_correct` and `other_per_correct`, `answers`
        with its range over resampled prompts.
    """
    correct = correct_answers(results.answers, results.study.correct_from)
    both = correct[[tuple(arm), tuple(other)]].dropna()
    rows = table.set_index(VARIANT)
    own, its = rows.loc[tuple(arm)], rows.loc[tuple(other)]
    once = {
        "J": _spent(own, "energy_j") - _spent(its, "energy_j"),
        "USD": prices.machine_usd(
            _spent(own, "energy_j") - _spent(its, "energy_j"), _spent(own, "s") - _spent(its, "s")
        ),
    }
    found = []
    for currency, name in {"J": "energy_per_request_j", "USD": "usd_per_request"}.items():
        answers, low, high = crossover(
            once[currency], own[name], its[name], both.iloc[:, 0], both.iloc[:, 1]
        )
        per_correct = name.replace("request", "correct")
        row = {"currency": currency, "paid_once": once[currency]}
        row |= {"per_correct": own[per_correct], "other_per_correct": its[per_correct]}
        found.append(row | {"answers": answers, "answers_lo": low, "answers_hi": high})
    return pd.DataFrame(found)


def _spent(row: pd.Series, unit: str) -> float:
    """What an arm's weights took, once: nothing for a base as it is."""
    return float(row[[f"adapt_{unit}", f"compress_{unit}"]].fillna(0.0).astype(float).sum())
