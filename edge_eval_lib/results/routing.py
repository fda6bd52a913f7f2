"""Routing between a local system and a better one, the cloud, by a signal: gains, costs, verdict.

Every array holds one value a prompt, of both systems the same prompts. `local_correct` and
`cloud_correct` are 1 where that answer was correct, else 0. A prompt is escalated where its signal
is below the threshold: the surer the local system is, the higher the signal.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

from edge_eval_lib.bounds import FiniteSequence, NonNegativeSequence, ShareSequence, checked
from edge_eval_lib.uncertainty import NORMAL_95, Interval, paired_bootstrap

RESAMPLES = 2000
POWER = 0.8


@checked
@dataclass(frozen=True)
class Cost:
    """What prompts take in one currency (J, USD, s), one value a prompt.

    Attributes:
        local: The local answer.
        cloud: The cloud's answer.
        signal: What the signal takes beside them: the router's own time, further answers.
        before: Whether the signal is known before the local answer. An escalated prompt then has
            none; otherwise its cheap answer was made, and is paid for.
    """

    local: NonNegativeSequence
    cloud: NonNegativeSequence
    signal: NonNegativeSequence
    before: bool = False

    def routed(self, escalated: np.ndarray) -> np.ndarray:
        """Compute what each prompt takes."""
        local, cloud, signal = map(np.asarray, (self.local, self.cloud, self.signal))
        answered = np.where(escalated, 0.0, local) if self.before else local
        return signal + answered + np.where(escalated, cloud, 0.0)

    def of(self, prompts: np.ndarray) -> Cost:
        """Return the cost of some of the prompts, given as a mask."""
        local, cloud, signal = (
            np.asarray(part)[prompts] for part in (self.local, self.cloud, self.signal)
        )
        return Cost(local, cloud, signal, before=self.before)


def why_no_curve(local_correct, cloud_correct, cost: Cost | None = None) -> str:
    """Return why there is nothing to route, in a sentence; empty if there is."""
    local, cloud = float(np.mean(local_correct)), float(np.mean(cloud_correct))
    if cloud <= local:
        return (
            f"The cloud is not better: it answered {cloud:.0%} of {len(local_correct)} prompts "
            f"correctly, the local system {local:.0%}."
        )
    if cost is not None and np.mean(cost.cloud) <= np.mean(cost.local):
        return (
            f"The cloud is better and costs no more ({np.mean(cost.cloud):.3g} against "
            f"{np.mean(cost.local):.3g} a prompt): ask it always."
        )
    return ""


@checked
def routing_curve(
    local_correct: ShareSequence,
    cloud_correct: ShareSequence,
    signal: FiniteSequence,
    costs: Mapping[str, Cost],
) -> pd.DataFrame:
    """Compute quality and costs over every threshold that tells prompts apart.

    Returns:
        A row a threshold, from -inf (nothing escalated) to inf (everything): `threshold`,
        `escalated` and `correct` as shares of the prompts, and each currency's mean a prompt.
    """
    thresholds = np.array([-np.inf, *np.unique(signal)[1:], np.inf])
    escalated = signal < thresholds[:, None]
    return pd.DataFrame(
        {
            "threshold": thresholds,
            "escalated": escalated.mean(axis=1),
            "correct": np.where(escalated, cloud_correct, local_correct).mean(axis=1),
        }
        | {name: cost.routed(escalated).mean(axis=1) for name, cost in costs.items()}
    )


def signal_area(local_correct, cloud_correct, signal, axis: int = -1):
    """Compute the area under quality over the share escalated: random routing 0, the oracle 1.

    cov(gain, rank of the signal) / cov(gain, rank of -gain), gain = cloud - local: the curve's area
    above the straight line, over that of the order of the gains themselves. It is uplift
    modelling's Qini coefficient (Radcliffe 2007), a Gini correlation; ties escalate in random
    order. A signal that sends just the wrong prompts has -1. NaN where no order is better than
    another. Costs are not in it: see `budget_area`.
    """
    gain = np.asarray(cloud_correct, dtype=float) - np.asarray(local_correct, dtype=float)
    centred = gain - gain.mean(axis=axis, keepdims=True)
    area = (centred * stats.rankdata(signal, axis=axis)).sum(axis=axis)
    most = (centred * stats.rankdata(-gain, axis=axis)).sum(axis=axis)
    # Rounding leaves a hair where all gains are one.
    flat = np.isclose(most, 0.0, atol=1e-9)
    area = np.where(flat, np.nan, area / np.where(flat, 1.0, most))
    return area if np.ndim(area) else float(area)


@checked
def signal_area_interval(
    local_correct: ShareSequence,
    cloud_correct: ShareSequence,
    signal: FiniteSequence,
    seed: int = 0,
) -> Interval:
    """Compute `signal_area` and its 95 % interval: the bootstrap's percentiles over prompts.

    NaN where there is no area, or no interval: resamples in which no order is better than another
    count for none.
    """
    value = signal_area(local_correct, cloud_correct, signal)
    if math.isnan(value):
        return value, np.nan, np.nan
    drawn = _drawn(len(signal), seed)
    areas = signal_area(local_correct[drawn], cloud_correct[drawn], signal[drawn])
    low, high = np.nanquantile(areas, [0.025, 0.975])
    return value, float(low), float(high)


@checked
def budget_area(
    local_correct: ShareSequence,
    cloud_correct: ShareSequence,
    signal: FiniteSequence,
    cost: Cost,
) -> float:
    """Compute the area under quality over the budget, with all that routing costs inside.

    The budget goes from everything local to everything sent to the cloud at once. Random routing
    has 0, an oracle that takes nothing itself 1. What the signal takes, and the cheap answers of
    escalated prompts, move the curve to the right: it may lie below random routing. A budget that
    does not pay for routing is spent on local answers.

    Returns:
        NaN where the cloud costs no more, or no order is better than another.
    """
    least, most = float(np.mean(cost.local)), float(np.mean(cost.cloud))
    gain = cloud_correct - local_correct
    if most <= least or np.ptp(gain) == 0:
        return math.nan
    free = Cost(cost.local, cost.cloud, np.zeros(len(gain)), before=True)
    local, cloud = float(local_correct.mean()), float(cloud_correct.mean())
    areas = [
        _area(routing_curve(local_correct, cloud_correct, s, {"cost": c}), local, least, most)
        for s, c in ((signal, cost), (-gain, free))
    ]
    random = (local + cloud) / 2 * (most - least)
    return (areas[0] - random) / (areas[1] - random)


def _area(curve: pd.DataFrame, local: float, least: float, most: float) -> float:
    """The area under a curve's quality between two budgets; `local` where routing costs more."""
    curve = curve.sort_values("cost", kind="stable")  # a prompt's cloud answer may cost less
    budgets = np.union1d(np.linspace(least, most, 401), curve["cost"].clip(least, most))
    quality = np.interp(budgets, curve["cost"], curve["correct"], left=local)
    return float(np.trapezoid(quality, budgets))


def halves(prompts: int, seed: int) -> np.ndarray:
    """Return a mask of the prompts that thresholds are chosen on; the others judge them."""
    chosen = np.zeros(prompts, dtype=bool)
    chosen[np.random.default_rng(seed).permutation(prompts)[: prompts // 2]] = True
    return chosen


def choose_threshold(local_correct, cloud_correct, signal, cost: Cost) -> float:
    """Return the threshold whose quality is furthest above random routing's at equal cost.

    -inf, that is everything local, where no threshold is above it on these prompts.
    """
    curve = routing_curve(local_correct, cloud_correct, signal, {"cost": cost})
    ends = [float(np.mean(cost.local)), float(np.mean(cost.cloud))]
    at_equal_cost = np.interp(
        curve["cost"], ends, [float(np.mean(local_correct)), float(np.mean(cloud_correct))]
    )
    above = curve["correct"] - at_equal_cost
    best = int(above.argmax())
    return float(curve["threshold"][best]) if above[best] > 0 else -np.inf


@dataclass(frozen=True)
class Judgement:
    """What a threshold does to prompts that it was not chosen on, in one currency.

    `correct` of the routed, the local and the cloud's answers are shares of the prompts;
    `correct_change` is routed less cloud. `cost_change` is what routing takes less a random mix of
    local and cloud answers of the same quality (the cloud's, where routing is even better), as a
    share of what the cloud takes. Both with their 95 % interval. `prompts_needed` for a saving of
    that size to be seen in four studies of five; None where nothing is saved.
    """

    prompts: int
    threshold: float
    escalated: float
    correct: float
    local_correct: float
    cloud_correct: float
    correct_change: Interval
    cost: float
    local_cost: float
    cloud_cost: float
    cost_change: Interval
    prompts_needed: int | None

    @property
    def pays(self) -> bool:
        """Whether the whole interval says that routing costs less."""
        return self.cost_change[2] < 0


@checked
def judge(
    local_correct: ShareSequence,
    cloud_correct: ShareSequence,
    signal: FiniteSequence,
    cost: Cost,
    threshold: float,
    seed: int = 0,
) -> Judgement:
    """Judge a threshold; intervals are the bootstrap's percentiles over prompts, paired.

    cost change = (routed - (local + w (cloud - local))) / cloud, w = (routed quality - local
    quality) / (cloud quality - local quality), 0..1: less the same quality bought at random. As
    many prompts are needed as make (1.96 + 0.84) standard errors the change itself, the errors
    falling with the root of the prompts: the usual sample size of a normal test of power 0.8.

    Raises:
        ValueError: There is nothing to route (`why_no_curve`).
    """
    if reason := why_no_curve(local_correct, cloud_correct, cost):
        raise ValueError(f"cloud_correct and cost leave nothing to route: {reason}")
    escalated = signal < threshold
    routed = np.where(escalated, cloud_correct, local_correct)
    paid = cost.routed(escalated)
    columns = (
        routed,
        local_correct,
        cloud_correct,
        paid,
        *map(np.asarray, (cost.local, cost.cloud)),
    )
    change = float(_cost_change(*columns))
    found = paired_bootstrap(columns, _cost_change, seed)
    low, high = found.confidence_interval
    off = routed - cloud_correct
    worst, best = np.quantile(off[_drawn(len(off), seed)].mean(axis=1), [0.025, 0.975])
    needed = None
    if change < 0:
        errors = (NORMAL_95 + stats.norm.ppf(POWER)) * found.standard_error / -change
        needed = max(2, math.ceil(len(routed) * errors**2))
    return Judgement(
        prompts=len(routed),
        threshold=threshold,
        escalated=float(escalated.mean()),
        correct=float(routed.mean()),
        local_correct=float(local_correct.mean()),
        cloud_correct=float(cloud_correct.mean()),
        correct_change=(float(off.mean()), float(worst), float(best)),
        cost=float(paid.mean()),
        local_cost=float(np.mean(cost.local)),
        cloud_cost=float(np.mean(cost.cloud)),
        cost_change=(change, float(low), float(high)),
        prompts_needed=needed,
    )


def _cost_change(routed, local, cloud, paid, local_cost, cloud_cost, axis=-1):
    """Routed cost less that of a random mix of equal quality, over the cloud's, by means."""
    q, q_l, q_c, c, c_l, c_c = (
        x.mean(axis=axis) for x in (routed, local, cloud, paid, local_cost, cloud_cost)
    )
    better = q_c > q_l
    share = np.where(better, (q - q_l) / np.where(better, q_c - q_l, 1.0), 0.0)
    return (c - (c_l + np.clip(share, 0, 1) * (c_c - c_l))) / c_c


def verdict(judgement: Judgement, signal: str, currency: str) -> str:
    """Say in a sentence whether to route by that signal, for that currency."""
    change, low, high = judgement.cost_change
    seen = f"over {judgement.prompts} questions"
    took = (
        f"{seen} it took {_change(change)} of the cloud's {currency} at equal quality "
        f"[{_change(low)} to {_change(high)}]"
    )
    if judgement.escalated == 0:
        return f"Do not route by {signal}: no threshold was better for {currency} than chance."
    if judgement.pays:
        return f"Route by {signal}: {took}."
    if low > 0 or judgement.prompts_needed is None:
        return f"Do not route by {signal}: {took}."
    needed = float(f"{judgement.prompts_needed:.2g}")
    return (
        f"Do not route by {signal} yet: {took}, which may be chance; about {needed:,.0f} "
        "questions would tell."
    )


def _change(share: float) -> str:
    """`12 % more`, `3 % less`, `as much`."""
    percent = round(100 * share)
    return f"{abs(percent)} % {'more' if percent > 0 else 'less'}" if percent else "as much"


def _drawn(prompts: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, prompts, (RESAMPLES, prompts))
