"""Intervals of a mean or a ratio of means, given the observations behind it.

What one observation is (a run, a prompt) is the caller's to know; with a single one there is no
interval, and both bounds are NaN. docs/measurement.md says why these methods and what they cover.
ValueError names an argument with NaN, infinity or no observation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import pandas as pd
from scipy import stats

from edge_eval_lib.bounds import (
    FiniteSequence,
    OpenShare,
    Positive,
    Share,
    Whole,
    checked,
    whole,
)

Interval = tuple[float, float, float]

NORMAL_95 = 1.959964  # standard errors to either end of a 95 % interval of a normal distribution

# Configurations (method, precision) of one model and task that serve the same arithmetic.
ALIKE = ((("lora", "int4"), ("qlora", "int4")), (("none", "fp16"), ("lora", "fp16")))
SAME_SET_UP = ["concurrency", "engine", "host", "executed_dtype", "instruction_set"]


@checked
def mean_interval(values: FiniteSequence, confidence: OpenShare[float] = 0.95) -> Interval:
    """Compute the mean of independent observations and its Student t interval.

    Args:
        values: One number an observation.
        confidence: Share of intervals that are to hold the true mean.

    Returns:
        (mean, lo, hi); (mean, nan, nan) for one observation.
    """
    value = float(values.mean())
    if len(values) == 1:
        return value, np.nan, np.nan
    half_width = stats.t.ppf((1 + confidence) / 2, len(values) - 1) * stats.sem(values)
    return value, float(value - half_width), float(value + half_width)


@checked
def ratio_interval(
    numerator: FiniteSequence, denominator: FiniteSequence, confidence: OpenShare[float] = 0.95
) -> Interval:
    """Compute the ratio of the means of two independent samples, by Fieller's theorem.

    The t quantile has Welch's degrees of freedom for mean(numerator) - ratio * mean(denominator).

    Args:
        numerator: One number an observation.
        denominator: One number an observation, as many as there are.
        confidence: Share of intervals that are to hold the true ratio.

    Returns:
        (ratio, lo, hi); (ratio, -inf, inf) where the denominator's mean may be zero, so that the
        ratio has no bound; (ratio, nan, nan) where a sample has one observation.

    Raises:
        ValueError: The denominator's mean is zero.
    """
    a, b = numerator, denominator
    if min(len(a), len(b)) == 1:
        return _ratio(a, b), np.nan, np.nan
    of_a, of_b = (
        Summary(float(x.mean()), float(x.std(ddof=1) / len(x) ** 0.5), len(x)) for x in (a, b)
    )
    return ratio_of_means(of_a, of_b, confidence)


@dataclass(frozen=True)
class Summary:
    """What is kept of a sample: its mean, the mean's standard error, how many observations."""

    mean: float
    standard_error: float
    observations: int

    @classmethod
    def of_interval(cls, mean: float, lo: float, hi: float, observations: int) -> Summary:
        """Recover it from the 95 % interval of `mean_interval`."""
        half_width = (hi - lo) / 2
        error = half_width / stats.t.ppf(0.975, observations - 1) if observations > 1 else np.nan
        return cls(mean, float(error), observations)


def ratio_of_means(numerator: Summary, denominator: Summary, confidence: float = 0.95) -> Interval:
    """Compute the ratio of two independent samples' means of which summaries are kept.

    As `ratio_interval` of the samples: Fieller's theorem, Welch's degrees of freedom.

    Args:
        numerator: Of one sample.
        denominator: Of the other.
        confidence: Share of intervals that are to hold the true ratio.

    Returns:
        (ratio, lo, hi), as `ratio_interval`; (ratio, nan, nan) without a standard error.

    Raises:
        ValueError: The denominator's mean is zero.
    """
    a, b = numerator, denominator
    if b.mean == 0:
        raise ValueError("denominator has a mean of 0, so that there is no ratio")
    value = a.mean / b.mean
    if min(a.observations, b.observations) < 2 or np.isnan([*_errors(a, b)]).any():
        return value, np.nan, np.nan
    variance_a, variance_b = (error**2 for error in _errors(a, b))
    spread = variance_a + value**2 * variance_b
    if spread == 0:
        return value, value, value
    freedom = spread**2 / (
        variance_a**2 / (a.observations - 1) + (value**2 * variance_b) ** 2 / (b.observations - 1)
    )
    t = stats.t.ppf((1 + confidence) / 2, freedom)
    low, high = _fieller(a.mean, b.mean, variance_a, variance_b, 0.0, t)
    return value, float(low), float(high)


def _errors(a: Summary, b: Summary) -> tuple[float, float]:
    return a.standard_error, b.standard_error


@checked
def paired_ratio_interval(
    numerator: FiniteSequence,
    denominator: FiniteSequence,
    confidence: OpenShare[float] = 0.95,
    seed: int = 0,
) -> Interval:
    """Compute the ratio of the means of paired observations, by Fieller's theorem.

    It takes the pairs' covariance and n - 1 degrees of freedom.

    Args:
        numerator: One number a pair (a prompt, or a run that has both terms).
        denominator: The other number of each pair.
        confidence: Share of intervals that are to hold the true ratio.
        seed: Without effect: no random numbers are drawn.

    Returns:
        (ratio, lo, hi). Pairs all of one ratio give (ratio, ratio, ratio), one pair gives
        (ratio, nan, nan), and a denominator whose mean may be zero (ratio, -inf, inf).

    Raises:
        ValueError: The lengths differ, or the denominator's mean is zero.
    """
    a, b = numerator, denominator
    if len(a) != len(b):
        raise ValueError(
            f"numerator and denominator must be pairs, but have {len(a)} and {len(b)} values"
        )
    value = _ratio(a, b)
    if len(a) == 1:
        return value, np.nan, np.nan
    low, high = _paired_bounds(a, b, confidence)
    return value, float(low), float(high)


def paired_bootstrap(
    samples: Iterable[np.ndarray],
    statistic: Callable,
    seed: int,
    confidence: float = 0.95,
    resamples: int = 2000,
) -> Any:
    """Draw prompts or runs again, those of all samples together: scipy's result, by percentiles.

    `statistic` takes the samples and an `axis`; the result has `confidence_interval` (low, high)
    and `standard_error`.
    """
    return stats.bootstrap(
        tuple(samples),
        statistic,
        paired=True,
        vectorized=True,
        n_resamples=resamples,
        method="percentile",
        confidence_level=confidence,
        rng=seed,
    )


@checked
def simulated_coverage(
    prompts: Annotated[Whole[int], whole(2)],
    confidence: OpenShare[float] = 0.95,
    zero_share: Share[float] = 0.4,
    one_share: Share[float] = 0.2,
    unchanged_share: Share[float] = 0.7,
    simulations: Whole[int] = 4000,
    seed: int = 0,
) -> float:
    """Simulate how often `paired_ratio_interval` holds the true ratio at so many prompts, 0..1.

    The scores are F1-like: a share of prompts scores 0, another 1, the rest evenly one of
    1/12, 2/12 ... 11/12. The other model gives a share of prompts the same score; the remaining
    scores it draws anew, with five points more zeros. Samples in which the first model scores
    nothing have no ratio and are left out. ValueError for shares that add up to more than 0.95.
    """
    more_zeros = 0.05
    if zero_share + one_share > 1 - more_zeros:
        raise ValueError("zero_share and one_share must add up to at most 0.95")
    generator = np.random.default_rng(seed)
    shape = (simulations, prompts)

    def scores(zeros: float) -> np.ndarray:
        kind = generator.random(shape)
        partial = generator.integers(1, 12, shape) / 12
        return np.where(kind < zeros, 0.0, np.where(kind < zeros + one_share, 1.0, partial))

    def mean(zeros: float) -> float:
        return one_share + (1 - zeros - one_share) / 2

    b = scores(zero_share)
    a = np.where(generator.random(shape) < unchanged_share, b, scores(zero_share + more_zeros))
    changed = 1 - unchanged_share
    truth = unchanged_share + changed * mean(zero_share + more_zeros) / mean(zero_share)
    defined = b.any(axis=1)
    if not defined.any():
        raise ValueError("prompts is too small: no simulated sample scored above 0")
    low, high = _paired_bounds(a[defined], b[defined], confidence)
    return float(np.mean((low <= truth) & (truth <= high)))


@checked
def resampled_coverage(
    numerator: FiniteSequence,
    denominator: FiniteSequence,
    confidence: OpenShare[float] = 0.95,
    simulations: Whole[int] = 4000,
    seed: int = 0,
) -> float:
    """Simulate how often `paired_ratio_interval` holds the ratio of pairs like these, 0..1.

    The pairs themselves stand for all that could be drawn, so that their own shares of unchanged,
    better, worse and zero answers count: as many are drawn of them, again and again, and the
    result is how often the interval holds the ratio of them all. A draw of pairs that are all
    alike bounds nothing and counts as a miss; one whose denominator is zero is left out.
    ValueError as for `paired_ratio_interval`, for fewer than two pairs, and for pairs that are all
    of one ratio: from them nothing can be simulated.
    """
    a, b = numerator, denominator
    truth, _, _ = paired_ratio_interval(a, b, confidence)
    if len(a) < 2:
        raise ValueError("numerator must hold at least two values: one has no spread")
    if all_of_one_ratio(a, b):
        raise ValueError("numerator and denominator are pairs of one ratio: nothing to simulate")
    drawn = np.random.default_rng(seed).integers(0, len(a), (simulations, len(a)))
    drawn = drawn[b[drawn].any(axis=1)]
    low, high = _paired_bounds(a[drawn], b[drawn], confidence)
    return float(np.mean((low < high) & (low <= truth) & (truth <= high)))


def all_of_one_ratio(numerator, denominator) -> bool:
    """Return whether every pair has the ratio of the means: their interval is a point."""
    a, b = np.asarray(numerator, dtype=float), np.asarray(denominator, dtype=float)
    return bool(_alike(a, b, a.mean() / b.mean()))


def single_run_spread(table: pd.DataFrame, columns: Sequence[str]) -> pd.DataFrame:
    """Estimate the relative standard deviation of one run's figures, by pairs that are alike.

    LoRA-INT4 and QLoRA-INT4 of one model and task serve the same arithmetic on weights of one
    shape, and so do the unadapted base and LoRA-FP16; their logarithms would differ by 0 but for a
    run's scatter, so that half the mean square of the differences is one run's variance. Pairs of
    another engine, host, dtype or concurrency are left out, and figures that are not above 0.

    Args:
        table: A row a variant: family, size, task, method, precision, the figures and, where they
            are means, `repetitions`.
        columns: The figures.

    Returns:
        A row a figure: `relative_sd` (NaN without a pair) and `pairs`.
    """
    keys = ["family", "size", "task"]

    def of(configuration: tuple[str, str]) -> pd.DataFrame:
        method, precision = configuration
        return table[(table["method"] == method) & (table["precision"] == precision)]

    pairs = pd.concat([of(a).merge(of(b), on=keys, suffixes=("_a", "_b")) for a, b in ALIKE])
    for column in (c for c in SAME_SET_UP if c in table):
        a, b = pairs[f"{column}_a"], pairs[f"{column}_b"]
        pairs = pairs[(a == b) | (a.isna() & b.isna())]
    runs = pairs["repetitions_a"].astype(float) if "repetitions" in table else 1.0
    rows = {}
    for column in columns:
        a, b = pairs[f"{column}_a"].astype(float), pairs[f"{column}_b"].astype(float)
        logs = (b.where(b > 0) / a.where(a > 0)).map(np.log) * np.sqrt(runs)
        rows[column] = {"relative_sd": np.sqrt((logs**2).mean() / 2), "pairs": logs.count()}
    return pd.DataFrame.from_dict(rows, orient="index", columns=["relative_sd", "pairs"])


@checked
def prompts_needed(
    numerator: FiniteSequence,
    denominator: FiniteSequence,
    difference_points: Positive[float] = 3.0,
    confidence: OpenShare[float] = 0.95,
    power: OpenShare[float] = 0.8,
) -> int | None:
    """Count the prompts that show that a ratio such as Q_ret differs by so many percentage points.

    The scores' own spread is taken, n = ((z_confidence + z_power) sd(a - ratio b) /
    (mean(b) difference))^2: with n prompts a true difference of `difference_points` lies outside
    the interval in a share `power` of studies (with power 0.5 the interval's half-width equals the
    difference). None where every pair is alike, so that there is no spread to judge by. ValueError
    as for `paired_ratio_interval`, and for fewer than two pairs.
    """
    a, b = numerator, denominator
    value, _, _ = paired_ratio_interval(a, b, confidence)
    if len(a) < 2:
        raise ValueError("numerator must hold at least two values: one has no spread")
    spread = np.std(a - value * b, ddof=1) / abs(b.mean())
    if np.isclose(spread, 0, atol=1e-12):
        return None
    quantiles = stats.norm.ppf((1 + confidence) / 2) + stats.norm.ppf(power)
    return max(2, int(np.ceil((quantiles * spread / (difference_points / 100)) ** 2)))


def _paired_bounds(a: np.ndarray, b: np.ndarray, confidence: float):
    """Both bounds of mean(a) / mean(b) over the last axis; samples along the others."""
    n = a.shape[-1]
    mean_a, mean_b = a.mean(-1), b.mean(-1)
    off_a, off_b = a - mean_a[..., None], b - mean_b[..., None]
    variance_a, variance_b, covariance = (
        (x * y).sum(-1) / (n - 1) / n for x, y in ((off_a, off_a), (off_b, off_b), (off_a, off_b))
    )
    t = stats.t.ppf((1 + confidence) / 2, n - 1)
    low, high = _fieller(mean_a, mean_b, variance_a, variance_b, covariance, t)
    # Where every pair has the same ratio, scatter of the scores themselves says nothing of it.
    ratio = mean_a / mean_b
    alike = _alike(a, b, ratio)
    return np.where(alike, ratio, low), np.where(alike, ratio, high)


def _alike(a: np.ndarray, b: np.ndarray, ratio) -> np.ndarray:
    rest = np.abs(a - np.asarray(ratio)[..., None] * b).max(-1)
    return rest <= 1e-12 * np.abs(a).max(-1)


def _fieller(mean_a, mean_b, variance_a, variance_b, covariance, t):
    """Bounds of all ratios r for which (mean_a - r mean_b)^2 <= t^2 var(mean_a - r mean_b)."""
    square = np.asarray(mean_b**2 - t**2 * variance_b)
    bounded = square > 0
    square = np.where(bounded, square, np.nan)
    middle = mean_a * mean_b - t**2 * covariance
    # Rounding can leave a hair below zero where every pair has the same ratio.
    root = np.sqrt(np.maximum(middle**2 - square * (mean_a**2 - t**2 * variance_a), 0.0))
    low, high = (middle - root) / square, (middle + root) / square
    return np.where(bounded, low, -np.inf), np.where(bounded, high, np.inf)


def _ratio(a: np.ndarray, b: np.ndarray) -> float:
    if b.mean() == 0:
        raise ValueError("denominator has a mean of 0: the ratio is undefined")
    return float(a.mean() / b.mean())
