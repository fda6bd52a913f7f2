"""Latency and experience, queues, floors of a step: published values and how they move."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_eval_lib.economics import latency, roofline


def test_latency_counts_the_intervals_between_tokens():
    assert latency.latency_s(0.3, 0.03, 1) == 0.3
    assert latency.latency_s(0.3, 0.03, 11) == pytest.approx(0.6)
    assert latency.latency_s(0.3, 0.03, np.array([1, 11])) == pytest.approx([0.3, 0.6])


@pytest.mark.parametrize(
    ("intervals_s", "missed", "deadlines"),
    [
        ([0.2] + [0.051] * 5, 1, 6),
        ([0.2] + [0.029] * 9, 0, 10),
        ([0.5] + [0.029] * 9, 7, 16),
        ([0.29, 0.02, 0.02, 0.095, 0.025], 2, 6),
        ([0.3] + [0.03] * 99, 0, 100),  # each exactly in time
        ([0.3001], 1, 1),
    ],
)
def test_deadlines_as_etalon_counts_them(intervals_s, missed, deadlines):
    assert latency.deadline_miss_rate(intervals_s, 0.3, 0.03) == pytest.approx(missed / deadlines)


TOKEN = np.arange(50)


@pytest.mark.parametrize(
    ("token_times_s", "quality"),
    [
        (1 + TOKEN / 5, 1),
        (np.ones(50), 1),
        (np.full(50, 0.2), 1),
        (2 + TOKEN / 5, 250 / 300),
        (1 + TOKEN / 2.5, 500 / 750),
        ([1.0], 1),
        ([2.0], 0.1 / 1.1),
    ],
)
def test_quality_of_experience_of_published_cases(token_times_s, quality):
    assert latency.quality_of_experience(token_times_s, 1, 5) == pytest.approx(quality)


@given(
    st.lists(st.floats(0, 2), min_size=1, max_size=40),
    st.floats(0, 3),
    st.floats(0.5, 20),
    st.floats(0.01, 5),
)
def test_quality_of_experience_moves_as_it_must(intervals, ttft_s, tok_s, more):
    times = np.cumsum(intervals)
    quality = latency.quality_of_experience(times, ttft_s, tok_s)
    assert 0 < quality <= 1 or times[0] == 0
    # A reader who expects less, or an answer that is as late as it is expected, is no worse.
    assert latency.quality_of_experience(times, ttft_s + more, tok_s) >= quality - 1e-9
    late = latency.quality_of_experience(times + more, ttft_s, tok_s)
    assert latency.quality_of_experience(times + more, ttft_s + more, tok_s) >= late - 1e-9
    # Seconds or minutes.
    assert latency.quality_of_experience(times * 60, ttft_s * 60, tok_s / 60) == pytest.approx(
        quality
    )


def test_the_requests_in_time_keep_both_limits():
    # MLPerf's limits for an 8B model.
    assert latency.attainment([500, 1999, 2000, 2001], [90, 101, 100, 10], 2000, 100) == 0.5


def test_a_trace_gives_every_wait_of_its_requests():
    table = latency.trace_latencies([0.0, 1.0], [[0.5, 0.6, 0.9], [1.25]])
    first, second = table.to_dict("records")
    assert first == pytest.approx(
        {
            "ttft_s": 0.5,
            "tpot_s": 0.2,
            "latency_s": 0.9,
            "jitter_s": 0.1,
            "worst_interval_s": 0.3,
            "output_tokens": 3,
        }
    )
    assert first["latency_s"] == pytest.approx(latency.latency_s(0.5, 0.2, 3))
    assert second["ttft_s"] == second["latency_s"] == 0.25
    assert all(math.isnan(second[name]) for name in ("tpot_s", "jitter_s", "worst_interval_s"))
    for tokens in ([], [0.5], [1.5, 1.4]):
        with pytest.raises(ValueError, match=r"^token_times_s must ascend from submission"):
            latency.trace_latencies([1.0], [tokens])
    with pytest.raises(
        ValueError, match=r"^token_times_s must have a sequence a request: 2, not 1"
    ):
        latency.trace_latencies([0.0, 1.0], [[0.5]])


def test_a_quantile_has_the_interval_of_its_order_statistics():
    # 100 values: the median lies between the 40th and the 61st with 95 % (binomial tables).
    assert latency.quantile_interval(np.arange(1, 101), 0.5) == (50.5, 40, 61)
    assert latency.quantile_interval(np.arange(24), 0.95)[2] == np.inf
    rng = np.random.default_rng(0)
    found = [latency.quantile_interval(rng.exponential(size=200), 0.95) for _ in range(500)]
    truth = -np.log(0.05)
    assert 0.94 < np.mean([lo <= truth <= hi for _, lo, hi in found]) < 0.99


def test_queues_of_published_tables():
    # Erlang C: 8 erlangs on 10 servers; M/M/1 waits a/(1 - a) services.
    assert latency.erlang_c(10, 8) == pytest.approx(0.40918, abs=1e-5)
    assert latency.erlang_c([1, 2], [0.5, 1.0]) == pytest.approx([0.5, 1 / 3])
    assert latency.queue_wait_s(0.9, 1.0, 1) == pytest.approx(9)
    assert latency.queue_wait_s(2.0, 1.0, 2) == np.inf
    assert latency.share_served_within(1.0, 0.5, 1.0) == pytest.approx(1 - 0.5 * math.exp(-0.5))
    assert latency.share_served_within(9.0, 3.0, 1.0, 2) == 0
    assert latency.processor_sharing_s(2.0, [0.0, 0.5, 1.0]) == pytest.approx([2, 4, np.inf])


# More by less than a thousand millionth is lost in rounding.
@given(st.integers(1, 200), st.floats(0, 1), st.just(0.0) | st.floats(1e-9, 0.5))
def test_queues_move_as_they_must(servers, load, more):
    low, high = servers * load, servers * (load + more)
    assert 0 <= latency.erlang_c(servers, low) <= latency.erlang_c(servers, high) <= 1
    assert latency.erlang_c(servers + 1, low) <= latency.erlang_c(servers, low) + 1e-12
    assert latency.queue_wait_s(low, 1.0, servers) <= latency.queue_wait_s(high, 1.0, servers)
    within = latency.share_served_within([0.0, 1.0], low, 1.0, servers)
    assert within[0] <= within[1]
    assert within[0] == pytest.approx(1 - latency.erlang_c(servers, low))


T4 = {"peak_flop_s": 65e12, "bandwidth_byte_s": 320e9}
A100 = {"peak_flop_s": 312e12, "bandwidth_byte_s": 2.039e12}
H100 = {"peak_flop_s": 989e12, "bandwidth_byte_s": 3.35e12}


def test_floors_of_published_devices():
    eight_b = roofline.decode_step_s(weight_bytes=16.06e9, parameters=8.03e9, **H100)
    assert eight_b == pytest.approx(4.79e-3, abs=5e-6)
    assert eight_b < 7.32e-3  # measured
    tiny = roofline.decode_step_s(weight_bytes=2.2e9, parameters=1.1e9, **T4)
    assert tiny == pytest.approx(6.875e-3)
    bound = [roofline.compute_bound_concurrency(**device) for device in (T4, A100, H100)]
    assert [round(b) for b in bound] == [203, 153, 295]


def test_decoding_is_bound_by_reading_then_by_computing():
    model = {"weight_bytes": 2.2e9, "parameters": 1.1e9, **T4}
    assert roofline.decode_step_s(**model, concurrency=203) == roofline.decode_step_s(**model)
    assert roofline.decode_step_s(**model, concurrency=406) == pytest.approx(
        2 * 1.1e9 * 406 / 65e12
    )
    full = roofline.decode_step_s(
        **model, concurrency=8, context_tokens=1000, kv_bytes_per_token=22_528, utilisation=0.5
    )
    assert full == pytest.approx((2.2e9 + 8 * 1000 * 22_528) / (320e9 * 0.5))
    steps = roofline.decode_step_s(**model, concurrency=np.array([1, 406]))
    assert steps[1] > steps[0]


def test_prefill():
    assert roofline.prefill_s(8e9, 1000, 65e12) == pytest.approx(16 / 65)
    assert roofline.prefill_s(8e9, 1000, 65e12, 0.5) == pytest.approx(32 / 65)
