"""Intervals: what a mean or a ratio of means is known to, given the observations behind it.

Every function returns (value, lo, hi). What one observation is (a run, a prompt) is the caller's
to know; with a single one there is no interval, and both bounds are NaN.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy import stats

from edge_eval_lib.bounds import require_finite, require_positive, require_share, require_whole

Interval = tuple[float, float, float]

# Configurations (method, precision) of one model and task that serve the same arithmetic.
ALIKE = ((("lora", "int4"), ("qlora", "int4")), (("none", "fp16"), ("lora", "fp16")))
SAME_SET_UP = ["concurrency", "engine", "host", "executed_dtype", "instruction_set"]


def mean_interval(values, confidence: float = 0.95) -> Interval:
    """The mean of independent observations and its Student t interval.

    One method and one figure at any number of runs: simulated, it covers 0.94-0.96 from 3 runs on
    where runs scatter about evenly; the percentile bootstrap of the interquartile mean covers 0.74
    at 3, 0.90 at 5, 0.93-0.94 at 10-20, and bounds another figure than the mean that tables show.
    Where a run in ten is a far outlier the t interval covers less (0.84 at 10 runs): look at the
    runs. One observation gives (value, nan, nan). ValueError for NaN, infinity or no observation.
    """
    values = _observations(values=values)
    _require_confidence(confidence)
    value = float(values.mean())
    if len(values) == 1:
        return value, np.nan, np.nan
    half_width = stats.t.ppf((1 + confidence) / 2, len(values) - 1) * stats.sem(values)
    return value, float(value - half_width), float(value + half_width)


def ratio_interval(numerator, denominator, confidence: float = 0.95) -> Interval:
    """Ratio of the means of two independent samples, by Fieller's theorem.

    The t quantile has Welch's degrees of freedom for mean(numerator) - ratio * mean(denominator):
    the pooled n_a + n_b - 2 covers 0.74-0.84 instead of 0.95 at 2-3 against 24 samples. Where the
    denominator cannot be told from zero the ratio has no bound: (value, -inf, inf). ValueError for
    NaN, infinity, no observation, or a denominator whose mean is zero.
    """
    a = _observations(numerator=numerator)
    b = _observations(denominator=denominator)
    _require_confidence(confidence)
    value = _ratio(a, b)
    if min(len(a), len(b)) == 1:
        return value, np.nan, np.nan
    variance_a, variance_b = a.var(ddof=1) / len(a), b.var(ddof=1) / len(b)
    spread = variance_a + value**2 * variance_b
    if spread == 0:
        return value, value, value
    freedom = spread**2 / (
        variance_a**2 / (len(a) - 1) + (value**2 * variance_b) ** 2 / (len(b) - 1)
    )
    t = stats.t.ppf((1 + confidence) / 2, freedom)
    low, high = _fieller(a.mean(), b.mean(), variance_a, variance_b, 0.0, t)
    return value, float(low), float(high)


def paired_ratio_interval(
    numerator, denominator, confidence: float = 0.95, seed: int = 0
) -> Interval:
    """Ratio of the means of paired observations (the same prompts, or both terms of a run).

    Fieller's theorem with the pairs' covariance and n - 1 degrees of freedom. Of the methods
    simulated on F1-like scores (percentile, BCa and studentised bootstrap, delta method) it keeps
    nearest to the nominal share at 24, 100 and 400 prompts; it draws no random numbers, so that
    `seed` has no effect. `simulated_coverage` tells what it covers. Identical pairs, or pairs all
    of one ratio, give the point itself, which is why the interval covers less where few prompts
    are answered differently. Where the denominator cannot be told from zero the ratio has no
    bound: (value, -inf, inf). ValueError for NaN, infinity, no observation, unequal lengths, or a
    denominator whose mean is zero.
    """
    a = _observations(numerator=numerator)
    b = _observations(denominator=denominator)
    _require_confidence(confidence)
    if len(a) != len(b):
        raise ValueError(
            f"numerator and denominator must be pairs, but have {len(a)} and {len(b)} values"
        )
    value = _ratio(a, b)
    if len(a) == 1:
        return value, np.nan, np.nan
    low, high = _paired_bounds(a, b, confidence)
    return value, float(low), float(high)


def simulated_coverage(
    prompts: int,
    confidence: float = 0.95,
    zero_share: float = 0.4,
    one_share: float = 0.2,
    unchanged_share: float = 0.7,
    simulations: int = 4000,
    seed: int = 0,
) -> float:
    """How often `paired_ratio_interval` holds the true ratio at so many prompts, 0..1, simulated.

    The scores are F1-like: a share of prompts scores 0, another 1, the rest evenly one of
    1/12, 2/12 ... 11/12. The other model gives a share of prompts the same score; the remaining
    scores it draws anew, with five points more zeros. Samples in which the first model scores
    nothing have no ratio and are left out. ValueError for shares that add up to more than 0.95.
    """
    require_whole(2, prompts=prompts)
    require_whole(1, simulations=simulations)
    require_share(zero_share=zero_share, one_share=one_share, unchanged_share=unchanged_share)
    _require_confidence(confidence)
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


def resampled_coverage(
    numerator, denominator, confidence: float = 0.95, simulations: int = 4000, seed: int = 0
) -> float:
    """How often `paired_ratio_interval` holds the ratio of pairs like these, 0..1, simulated.

    The pairs themselves stand for all that could be drawn, so that their own shares of unchanged,
    better, worse and zero answers count: as many are drawn of them, again and again, and it is
    counted how often the interval holds the ratio of them all. A draw of pairs that are all alike
    bounds nothing and counts as a miss; one whose denominator is zero is left out. ValueError as
    for `paired_ratio_interval`, for fewer than two pairs, and for pairs that are all of one ratio:
    from them nothing can be simulated.
    """
    require_whole(1, simulations=simulations)
    truth, _, _ = paired_ratio_interval(numerator, denominator, confidence)
    a, b = np.asarray(numerator, dtype=float), np.asarray(denominator, dtype=float)
    if len(a) < 2:
        raise ValueError("numerator must hold at least two values: one has no spread")
    if all_of_one_ratio(a, b):
        raise ValueError("numerator and denominator are pairs of one ratio: nothing to simulate")
    drawn = np.random.default_rng(seed).integers(0, len(a), (simulations, len(a)))
    drawn = drawn[b[drawn].any(axis=1)]
    low, high = _paired_bounds(a[drawn], b[drawn], confidence)
    return float(np.mean((low < high) & (low <= truth) & (truth <= high)))


def all_of_one_ratio(numerator, denominator) -> bool:
    """Whether every pair has the ratio of the means: their interval is a point, not a bound."""
    a, b = np.asarray(numerator, dtype=float), np.asarray(denominator, dtype=float)
    return bool(_alike(a, b, a.mean() / b.mean()))


def single_run_spread(table: pd.DataFrame, columns: Sequence[str]) -> pd.DataFrame:
    """How far one run's figures scatter: relative standard deviation, by pairs that are alike.

    `table` has a row a variant (family, size, task, method, precision, figures and, where they
    are means, `repetitions`). LoRA-INT4 and QLoRA-INT4 of one model and task serve the same
    arithmetic on weights of one shape, and so do the unadapted base and LoRA-FP16; their
    logarithms would differ by 0 but for a run's scatter, so that half the mean square of the
    differences is one run's variance. Pairs of another engine, host, dtype or concurrency are left
    out, and figures that are not above 0. A row a column: `relative_sd` (NaN without a pair) and
    `pairs`.
    """
    at = ["family", "size", "task"]
    same = [c for c in SAME_SET_UP if c in table]
    keyed = table.set_index([*at, "method", "precision"])
    found = []
    for one, other in ALIKE:
        if not all((keyed.index.droplevel(at) == pair).any() for pair in (one, other)):
            continue
        a, b = (keyed.xs(pair, level=["method", "precision"]) for pair in (one, other))
        both = a.index.intersection(b.index)
        a, b = a.loc[both], b.loc[both]
        alike = ((a[same] == b[same]) | (a[same].isna() & b[same].isna())).all(axis=1)
        a, b = a[alike], b[alike]
        runs = np.sqrt(a["repetitions"]) if "repetitions" in table else 1.0
        a, b = a[[*columns]].astype(float), b[[*columns]].astype(float)
        logs = np.log(b.where(b > 0) / a.where(a > 0))
        found.append(logs.mul(runs, axis=0))
    logs = pd.concat(found) if found else pd.DataFrame(columns=[*columns], dtype=float)
    spread = np.sqrt((logs**2).mean() / 2).rename("relative_sd").to_frame()
    return spread.assign(pairs=logs.count())


def prompts_needed(
    numerator,
    denominator,
    difference_points: float = 3.0,
    confidence: float = 0.95,
    power: float = 0.8,
) -> int | None:
    """How many prompts show that a ratio such as Q_ret differs by so many percentage points.

    The scores' own spread is taken, n = ((z_confidence + z_power) sd(a - ratio b) /
    (mean(b) difference))^2: with n prompts a true difference of `difference_points` lies outside
    the interval in a share `power` of studies (with power 0.5 the interval's half-width equals the
    difference). None where every pair is alike, so that there is no spread to judge by. ValueError
    as for `paired_ratio_interval`, and for fewer than two pairs.
    """
    require_positive(difference_points=difference_points)
    if not 0 < power < 1:
        raise ValueError(f"power must lie between 0 and 1, but is {power}")
    value, _, _ = paired_ratio_interval(numerator, denominator, confidence)
    a, b = np.asarray(numerator, dtype=float), np.asarray(denominator, dtype=float)
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


def _observations(**named) -> np.ndarray:
    ((name, values),) = named.items()
    require_finite(**named)
    values = np.asarray(values, dtype=float)
    if values.ndim != 1 or len(values) == 0:
        raise ValueError(f"{name} must be a sequence of at least one number")
    return values


def _require_confidence(confidence: float) -> None:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie between 0 and 1, but is {confidence}")
