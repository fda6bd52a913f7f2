"""Intervals: published values, limits and what they refuse. Coverage: test_coverage_simulation."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from edge_eval_lib.uncertainty import (
    mean_interval,
    paired_ratio_interval,
    prompts_needed,
    ratio_interval,
    resampled_coverage,
    simulated_coverage,
    single_run_spread,
)

A = [4.10, 4.22, 4.18, 4.25, 4.15, 4.30, 4.20, 4.12, 4.28, 4.20]
B = [3.95, 4.05, 4.02, 3.90, 4.10, 4.00, 3.98, 4.07, 3.93, 4.00]
samples = st.lists(st.floats(1, 100).map(lambda x: round(x, 2)), min_size=3, max_size=12)


def test_fieller_of_two_good_samples():
    value, low, high = ratio_interval(A, B)
    assert value == pytest.approx(1.05)
    assert low == pytest.approx(1.034666, abs=1e-6)
    assert high == pytest.approx(1.065563, abs=1e-6)


def test_fieller_is_unbounded_where_the_denominator_may_be_zero():
    value, low, high = ratio_interval(A, [0.2, -0.3, 0.5, -0.1, 0.4, -0.2])
    assert value == pytest.approx(4.2 / (0.5 / 6))
    assert (low, high) == (-np.inf, np.inf)
    paired = paired_ratio_interval([1.0, 0.5, 0.2], [1.0, 0.0, 0.0])
    assert paired[1:] == (-np.inf, np.inf)


def test_few_observations_count_for_their_own_sample():
    """Welch: 3 scattered against 24 steady ones leave 2 degrees of freedom, not 25."""
    few = np.array([9.0, 10.0, 11.0])
    many = 10 + 0.001 * np.tile([-1.0, 1.0], 12)
    value, low, high = ratio_interval(few, many)
    half_width = stats.t.ppf(0.975, 2) * few.std(ddof=1) / np.sqrt(3) / 10
    assert value == pytest.approx(1)
    assert high - 1 == pytest.approx(half_width, rel=1e-3)
    assert 1 - low == pytest.approx(half_width, rel=1e-3)


def test_mean_interval_is_students():
    value, low, high = mean_interval([1.0, 2.0, 3.0])
    assert value == 2
    # t(0.975, 2 df) = 4.302653
    assert high - value == pytest.approx(4.302653 / np.sqrt(3), rel=1e-6)
    assert low == pytest.approx(2 * value - high)
    expected = stats.ttest_1samp(A, 0).confidence_interval(0.9)
    assert mean_interval(A, 0.9)[1:] == pytest.approx((expected.low, expected.high))


def test_one_observation_has_no_interval():
    for interval in (
        mean_interval([3.0]),
        ratio_interval([3.0], [1.0]),
        ratio_interval([3.0], [1.0, 1.0, 1.0]),
        paired_ratio_interval([3.0], [1.0]),
    ):
        assert interval[0] == 3
        assert np.isnan(interval[1:]).all()


def test_identical_pairs_give_the_point():
    scores = [0.0, 0.0, 0.37, 1.0, 0.12]
    assert paired_ratio_interval(scores, scores) == (1, 1, 1)
    assert paired_ratio_interval([2.0, 2.0], [2.0, 2.0]) == (1, 1, 1)


def test_samples_without_spread_give_the_point():
    assert mean_interval([5.0, 5.0, 5.0]) == (5, 5, 5)
    assert ratio_interval([3.0, 3.0], [2.0, 2.0, 2.0]) == (1.5, 1.5, 1.5)


@given(samples, st.floats(0.1, 10))
def test_proportional_pairs_are_known_exactly(scores, factor):
    interval = paired_ratio_interval(np.array(scores) * factor, scores)
    assert interval == pytest.approx((factor, factor, factor))


def test_drift_shared_by_both_terms_costs_a_paired_interval_nothing():
    drift = np.array([1.0, 1.5, 2.2, 0.7, 1.1])
    noise = np.array([1.01, 0.99, 1.0, 1.02, 0.98])
    paired = paired_ratio_interval(150 * drift * noise, drift)
    independent = ratio_interval(150 * drift * noise, drift)
    assert paired[2] - paired[1] < 0.05 * (independent[2] - independent[1])


@given(samples, samples, st.floats(0.5, 0.98), st.floats(1e-3, 1e3))
def test_intervals_hold_the_value_and_scale(a, b, confidence, scale):
    pairs = min(len(a), len(b))
    for interval, x, y in (
        (ratio_interval, a, b),
        (paired_ratio_interval, a[:pairs], b[:pairs]),
    ):
        value, low, high = interval(x, y, confidence)
        slack = 1e-6 * abs(value)
        assert low - slack <= value <= high + slack
        wider = interval(x, y, confidence + 0.01)
        assert wider[1] <= low + slack
        assert wider[2] >= high - slack
        if np.isfinite([low, high]).all() and high < 1e3 * value:
            scaled = interval(np.array(x) * scale, y, confidence)
            assert scaled == pytest.approx(
                tuple(scale * v for v in (value, low, high)), rel=1e-3, abs=1e-6 * scale
            )


@pytest.mark.parametrize("interval", [ratio_interval, paired_ratio_interval])
@pytest.mark.parametrize(
    ("numerator", "denominator", "message"),
    [
        ([1.0, np.nan], [1.0, 2.0], "^numerator must be finite"),
        ([1.0, 2.0], [np.inf, 2.0], "^denominator must be finite"),
        ([], [1.0], "^numerator must be a sequence"),
        ([1.0, 2.0], [], "^denominator must be a sequence"),
        (1.0, [1.0], "^numerator must be a sequence"),
        ([1.0, 2.0], [-1.0, 1.0], "^denominator has a mean of 0"),
        (["a", "b"], [1.0, 2.0], "^numerator must be a number"),
    ],
)
def test_ratios_refuse_by_name(interval, numerator, denominator, message):
    with pytest.raises(ValueError, match=message):
        interval(numerator, denominator)


def test_refuses_what_is_no_pair():
    with pytest.raises(ValueError, match="have 2 and 3 values"):
        paired_ratio_interval([1.0, 2.0], [1.0, 2.0, 3.0])


@pytest.mark.parametrize("confidence", [0, 1, 95, -0.5, np.nan])
def test_refuses_an_impossible_confidence(confidence):
    for interval in (
        lambda: mean_interval(A, confidence),
        lambda: ratio_interval(A, B, confidence),
        lambda: paired_ratio_interval(A, B, confidence),
        lambda: simulated_coverage(10, confidence),
    ):
        with pytest.raises(ValueError, match=r"^confidence must"):
            interval()


def test_mean_refuses_nan_and_nothing():
    with pytest.raises(ValueError, match=r"^values must be finite"):
        mean_interval([1.0, np.nan])
    with pytest.raises(ValueError, match=r"^values must be a sequence"):
        mean_interval([])


def test_prompts_needed_follows_its_formula():
    """a - b has mean 0 and sd 0.1 sqrt(4/3) over b's 0.5: (1.96 + 0.8416)^2 (0.2309/0.03)^2."""
    b = [0.5, 0.5, 0.5, 0.5]
    a = [0.6, 0.4, 0.6, 0.4]
    spread = 0.1 * np.sqrt(4 / 3) / 0.5
    assert prompts_needed(a, b) == int(np.ceil((2.801585 * spread / 0.03) ** 2))
    assert prompts_needed(a, b, power=0.5) == int(np.ceil((1.959964 * spread / 0.03) ** 2))
    # Half the difference takes four times the prompts.
    assert prompts_needed(a, b, 1.5) == pytest.approx(4 * prompts_needed(a, b, 3.0), abs=4)
    assert prompts_needed(a, b, confidence=0.99) > prompts_needed(a, b)
    assert prompts_needed(a, b, power=0.9) > prompts_needed(a, b)


def test_prompts_needed_is_unknown_where_all_pairs_are_alike():
    assert prompts_needed([0.5, 0.0, 1.0], [0.5, 0.0, 1.0]) is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"difference_points": 0}, "^difference_points must be above 0"),
        ({"power": 1}, "^power must"),
        ({"numerator": [1.0], "denominator": [1.0]}, "^numerator must hold at least two"),
    ],
)
def test_prompts_needed_refuses_by_name(change, message):
    with pytest.raises(ValueError, match=message):
        prompts_needed(**{"numerator": A, "denominator": B, **change})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompts": 1}, "^prompts must be a whole number of at least 2"),
        ({"prompts": 24.5}, "^prompts must be a whole number"),
        ({"simulations": 0}, "^simulations must"),
        ({"zero_share": -0.1}, "^zero_share must"),
        ({"unchanged_share": 1.5}, "^unchanged_share must"),
        ({"zero_share": 0.6, "one_share": 0.5}, "must add up to at most 0.95"),
    ],
)
def test_simulated_coverage_refuses_by_name(change, message):
    with pytest.raises(ValueError, match=message):
        simulated_coverage(**{"prompts": 24, **change})


# --- pairs that are alike ---------------------------------------------------------------------

KEY = {"family": "a", "size": "1B", "engine": "x", "host": "h", "executed_dtype": "float32"}


def served(task, method, precision, figure, **other):
    return KEY | {"task": task, "method": method, "precision": precision, "tok_s": figure} | other


def test_the_spread_of_a_run_is_that_of_pairs_of_the_same_arithmetic():
    generator = np.random.default_rng(3)
    rows = [
        served(f"t{i}", method, precision, 100 * np.exp(0.15 * generator.standard_normal()))
        for i in range(400)
        for method, precision in (("lora", "int4"), ("qlora", "int4"))
    ]
    found = single_run_spread(pd.DataFrame(rows), ["tok_s"]).loc["tok_s"]
    assert found["relative_sd"] == pytest.approx(0.15, rel=0.1)
    assert found["pairs"] == 400


def test_one_pair_tells_a_spread_and_the_base_beside_lora_is_one():
    rows = [served("t", "none", "fp16", 100.0), served("t", "lora", "fp16", 100.0 * np.exp(0.2))]
    found = single_run_spread(pd.DataFrame(rows), ["tok_s"]).loc["tok_s"]
    assert (found["relative_sd"], found["pairs"]) == (pytest.approx(0.2 / np.sqrt(2)), 1)


def test_means_of_runs_scatter_less_than_one_run():
    rows = [
        served("t", m, "int4", f, repetitions=4) for m, f in (("lora", 100.0), ("qlora", 110.0))
    ]
    found = single_run_spread(pd.DataFrame(rows), ["tok_s"]).loc["tok_s", "relative_sd"]
    assert found == pytest.approx(2 * np.log(1.1) / np.sqrt(2))


@pytest.mark.parametrize(
    "other", [{"executed_dtype": "bfloat16"}, {"host": "g"}, {"engine": "y"}, {"tok_s": np.nan}]
)
def test_pairs_that_are_not_alike_tell_no_spread(other):
    rows = [served("t", "lora", "int4", 100.0), served("t", "qlora", "int4", 90.0) | other]
    found = single_run_spread(pd.DataFrame(rows), ["tok_s"]).loc["tok_s"]
    assert np.isnan(found["relative_sd"])
    assert found["pairs"] == 0
    alone = single_run_spread(pd.DataFrame(rows[:1]), ["tok_s"]).loc["tok_s"]
    assert alone["pairs"] == 0


def test_coverage_falls_where_few_answers_change_for_the_worse():
    reference = np.linspace(0.3, 1.0, 24)
    many = reference * np.where(np.arange(24) % 2, 0.7, 1.1)
    few = np.where(np.arange(24) == 5, 0.2, 1.0) * reference
    assert resampled_coverage(many, reference) > 0.9
    # No answer that changed is drawn in (23/24)^24 = 36 % of samples.
    assert resampled_coverage(few, reference) < 0.68
    with pytest.raises(ValueError, match="of one ratio"):
        resampled_coverage(reference, reference)
    with pytest.raises(ValueError, match="at least two"):
        resampled_coverage([1.0], [0.5])
