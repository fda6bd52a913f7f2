"""Intervals hold the truth as often as they say: seeded simulations, most of them not Gaussian.

The standard error of a simulated share is 0.3 points at 5000 samples, 0.5 at 2000.
"""

import numpy as np
import pytest

from edge_eval_lib.uncertainty import (
    mean_interval,
    paired_ratio_interval,
    prompts_needed,
    ratio_interval,
    simulated_coverage,
)

pytestmark = pytest.mark.slow
SAMPLES = 2000


def covered(interval, truth, *arrays):
    """Share of the arrays' rows whose interval holds the truth."""
    bounds = np.array([interval(*rows)[1:] for rows in zip(*arrays, strict=True)])
    return np.mean((bounds[:, 0] <= truth) & (truth <= bounds[:, 1]))


def right(share):
    """Within 93-97 % for a nominal 95 %."""
    return 0.93 <= share <= 0.97


@pytest.mark.parametrize("runs", [3, 5, 10, 20])
@pytest.mark.parametrize("kind", ["normal", "log-normal", "ties"])
def test_mean_over_runs(runs, kind):
    draw = np.random.default_rng(runs)
    shape = (SAMPLES, runs)
    if kind == "normal":
        truth, values = 10, draw.normal(10, 1, shape)
    elif kind == "log-normal":
        truth, values = np.exp(0.1**2 / 2), draw.lognormal(0, 0.1, shape)
    else:  # a meter that resolves a third of the spread
        truth, values = 10, np.round(draw.normal(10, 1, shape) * 3) / 3
    assert right(covered(mean_interval, truth, values))


@pytest.mark.parametrize(
    ("runs", "spreads"),
    [
        ((10, 10), (0.05, 0.05)),
        ((10, 10), (0.02, 0.15)),
        ((3, 24), (0.1, 0.02)),
        ((24, 3), (0.02, 0.1)),
        ((10, 20), (0.15, 0.03)),
    ],
)
def test_ratio_of_independent_runs(runs, spreads):
    draw = np.random.default_rng(sum(runs))
    a = 15 * (1 + spreads[0] * draw.standard_normal((SAMPLES, runs[0])))
    b = 10 * (1 + spreads[1] * draw.standard_normal((SAMPLES, runs[1])))
    assert right(covered(ratio_interval, 1.5, a, b))


def test_ratio_of_three_against_three_runs_of_unequal_spread():
    """Welch errs to the safe side at 3 and 3: never below nominal less two points."""
    draw = np.random.default_rng(3)
    a = 15 * (1 + 0.1 * draw.standard_normal((SAMPLES, 3)))
    b = 10 * (1 + 0.03 * draw.standard_normal((SAMPLES, 3)))
    assert 0.93 <= covered(ratio_interval, 1.5, a, b) <= 0.985


@pytest.mark.parametrize("runs", [3, 10])
@pytest.mark.parametrize("drift", [0.0, 0.05, 0.3])
def test_ratio_within_runs_that_drift(runs, drift):
    """A walk of the machine's state multiplies both terms of each run."""
    draw = np.random.default_rng(10 * runs)
    shape = (SAMPLES, runs)
    state = np.exp(drift * np.cumsum(draw.standard_normal(shape), axis=1) / np.sqrt(runs))
    a = 150 * state * (1 + 0.05 * draw.standard_normal(shape))
    b = state * (1 + 0.02 * draw.standard_normal(shape))
    assert right(covered(paired_ratio_interval, 150, a, b))


@pytest.mark.parametrize("prompts", [100, 400])
@pytest.mark.parametrize(
    "scores",
    [
        {},
        {"zero_share": 0.7, "one_share": 0.1},
        {"zero_share": 0.1, "one_share": 0.6},
        {"unchanged_share": 0.9},
        {"unchanged_share": 0.2},
    ],
)
def test_ratio_over_prompts_of_f1_like_scores(prompts, scores):
    assert right(simulated_coverage(prompts, **scores))


def test_ratio_over_24_prompts_is_as_it_is():
    """Right where answers differ often; too narrow where nearly all are the same."""
    assert right(simulated_coverage(24))
    assert simulated_coverage(24, unchanged_share=0.9) < 0.93
    assert simulated_coverage(24, unchanged_share=1) == 1


def test_other_confidences_are_kept_too():
    assert simulated_coverage(100, confidence=0.8) == pytest.approx(0.8, abs=0.02)
    assert simulated_coverage(100, confidence=0.99) == pytest.approx(0.99, abs=0.01)


def test_simulation_repeats_from_its_seed():
    assert simulated_coverage(24, seed=1) == simulated_coverage(24, seed=1)
    assert simulated_coverage(24, seed=1) != simulated_coverage(24, seed=2)


def test_prompts_needed_find_the_difference_as_often_as_asked():
    draw = np.random.default_rng(5)

    def pairs(shape):
        b = np.where(draw.random(shape) < 0.3, 0.0, draw.integers(1, 13, shape) / 12)
        a = np.where(draw.random(shape) < 0.03, 0.0, b)  # 3 points of the ratio are lost
        other = np.where(draw.random(shape) < 0.3, 0.0, draw.integers(1, 13, shape) / 12)
        other = np.where(draw.random(shape) < 0.03, 0.0, other)
        return np.where(draw.random(shape) < 0.8, a, other), b

    prompts = prompts_needed(*pairs(20_000))
    found = [paired_ratio_interval(*pairs(prompts))[2] < 1 for _ in range(600)]
    assert np.mean(found) == pytest.approx(0.8, abs=0.05)
