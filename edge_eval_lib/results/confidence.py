"""What a local system's confidence is worth: calibrated to a probability, checked by the cloud.

Every array holds one value a prompt.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy import optimize

from edge_eval_lib.bounds import FiniteSequence, Share, ShareSequence, checked
from edge_eval_lib.results.arms import share_interval
from edge_eval_lib.uncertainty import Interval

BINS = 10  # of calibration: a tenth of the probability each (Guo et al., arXiv 1706.04599)


@dataclass(frozen=True)
class Calibration:
    """A rising step from a signal to the probability that the local answer is correct."""

    signals: np.ndarray
    probabilities: np.ndarray

    def probability(self, signal) -> np.ndarray:
        """Return the probability at each signal, straight between those that were seen."""
        return np.interp(signal, self.signals, self.probabilities)


@checked
def calibrate(signal: FiniteSequence, correct: ShareSequence) -> Calibration:
    """Fit the probability of a correct answer by isotonic regression over the signal.

    It keeps the order of the prompts, so that no curve changes by it but for ties: it tells what a
    threshold means.
    """
    distinct, place, count = np.unique(signal, return_inverse=True, return_counts=True)
    means = np.bincount(place, weights=correct) / count
    return Calibration(distinct, optimize.isotonic_regression(means, weights=count).x)


@checked
def expected_calibration_error(
    probability: ShareSequence, correct: ShareSequence, bins: int = BINS
) -> float:
    """Compute the mean distance of probability and share correct over bins of equal width.

    sum over bins of prompts in it / prompts x |share correct - mean probability|.
    """
    place = np.minimum((probability * bins).astype(int), bins - 1)
    off = np.bincount(place, weights=correct - probability, minlength=bins)
    return float(np.abs(off).sum() / len(probability))


@dataclass(frozen=True)
class Validation:
    """What checking a sample of local answers by the cloud finds, and what it takes.

    `error_rate` is the share of checked answers that the cloud does not agree with, with Wilson's
    95 % interval; `true_error_rate` that of the answers really wrong. `precision` is the share of
    the objections that are right, `recall` the share of wrong answers that it objects to; NaN
    where there is none.
    """

    checked: int
    objections: int
    error_rate: Interval
    true_error_rate: Interval
    precision: float
    recall: float
    cost: Mapping[str, float]


@checked
def validate(
    objects: ShareSequence,
    local_correct: ShareSequence,
    cloud_costs: Mapping[str, np.ndarray],
    sample_share: Share[float],
    seed: int = 0,
) -> Validation:
    """Check a random sample of the local answers by the cloud.

    Args:
        objects: 1 where the cloud's answer is not the local one.
        local_correct: 1 where the local answer is correct.
        cloud_costs: What the cloud's answer takes, by currency.
        sample_share: Which part of the prompts is checked, at least one.
        seed: Of the sample.

    Returns:
        What it found, and the cost of the checks, divided among all prompts.
    """
    prompts = len(objects)
    size = max(1, round(sample_share * prompts))
    sample = np.random.default_rng(seed).permutation(prompts)[:size]
    said, wrong = objects[sample] >= 0.5, local_correct[sample] < 0.5
    both = int((said & wrong).sum())
    return Validation(
        checked=size,
        objections=int(said.sum()),
        error_rate=share_interval(int(said.sum()), size),
        true_error_rate=share_interval(int(wrong.sum()), size),
        precision=both / said.sum() if said.any() else math.nan,
        recall=both / wrong.sum() if wrong.any() else math.nan,
        cost={k: float(np.asarray(v)[sample].sum()) / prompts for k, v in cloud_costs.items()},
    )
