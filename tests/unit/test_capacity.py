"""Cards over a day, scale to zero or keep warm: how they move and what they come to."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_eval_lib.economics import capacity, cost
from edge_eval_lib.economics.batching import arrivals_s

positive = st.floats(1e-3, 1e4)
factor = st.floats(1.01, 100)


def test_cards_hold_the_rate():
    assert capacity.cards_needed(10.0, 3.0) == 4
    assert capacity.cards_needed(9.0, 3.0) == 3
    assert capacity.cards_needed(0.3, 0.1) == 3  # in spite of rounding
    assert capacity.cards_needed(9.0, 3.0, headroom=0.2) == 4
    assert capacity.cards_needed(0.0, 3.0) == 0
    assert capacity.cards_needed(1.0, 0.0) == np.inf
    assert capacity.cards_needed([1.0, 100.0], 3.0).tolist() == [1, 34]


def test_a_fleet_for_the_peak_idles_and_one_scaled_by_the_hour_idles_less():
    # All of the day's load in six hours: a quarter of the time a card is busy.
    profile = [4] * 6 + [0] * 18
    day = 6 * 3600 * 2.0
    fixed = capacity.fixed_fleet(day, 1.0, profile)
    assert (fixed.cards, fixed.card_hours_per_day) == (2, 48)
    assert fixed.idle_share == pytest.approx(0.75)
    hourly = capacity.hourly_fleet(day, 1.0, profile)
    assert (hourly.cards, hourly.card_hours_per_day) == (2, 12)
    assert hourly.idle_share == pytest.approx(0)
    even = capacity.fixed_fleet(86_400 * 2.5, 1.0, [1] * 24)
    assert (even.cards, even.idle_share) == (3, pytest.approx(1 / 6))
    none = capacity.fixed_fleet([0.0, 1e4], [1.0, 0.0])
    assert none.cards.tolist() == [0, np.inf]
    assert none.idle_share.tolist() == [0, 0]


@given(positive, positive, st.lists(st.floats(0, 10), min_size=24, max_size=24), positive)
def test_more_load_never_takes_fewer_cards(requests, held, profile, more):
    if not sum(profile):
        profile = [1.0] * 24
    fixed = capacity.fixed_fleet(requests, held, profile)
    hourly = capacity.hourly_fleet(requests, held, profile)
    assert hourly.cards == fixed.cards
    assert hourly.card_hours_per_day <= fixed.card_hours_per_day
    assert 0 <= hourly.idle_share + 1e-6 <= fixed.idle_share + 1e-5 <= 1.0001
    assert capacity.fixed_fleet(requests + more, held, profile).cards >= fixed.cards
    assert capacity.fixed_fleet(requests, held + more, profile).cards <= fixed.cards
    assert capacity.fixed_fleet(requests, held, profile, headroom=1.0).cards >= fixed.cards


def test_keep_warm_of_published_figures():
    assert cost.keep_warm_s(7630.5, 36, 10) == pytest.approx(293, abs=0.5)
    assert cost.keep_warm_s(7630.5, 10, 10) == np.inf
    assert cost.keep_warm_s(7630.5, 9, 10) == np.inf
    both = cost.keep_warm_s(pd.Series([7630.5, 7630.5]), pd.Series([36, 10]), 10)
    assert both[0] == pytest.approx(293, abs=0.5)
    assert both[1] == np.inf


@given(positive, positive, positive, factor)
def test_keep_warm_moves_as_it_must(load, bare, extra, more):
    seconds = cost.keep_warm_s(load, bare + extra, bare)
    assert cost.keep_warm_s(load * more, bare + extra, bare) == pytest.approx(seconds * more)
    assert cost.keep_warm_s(load, bare + extra * more, bare) < seconds


def test_standby_of_arrivals_at_random_is_the_closed_form():
    gaps = np.diff(arrivals_s(0.01, 200_000, seed=1)[0])
    for keep_s in (0.0, 30.0, 100.0, 1000.0):
        drawn = capacity.standby(gaps, keep_s)
        closed = capacity.poisson_standby(0.01, keep_s)
        assert drawn.cold_share == pytest.approx(closed.cold_share, abs=5e-3)
        assert drawn.warm_s == pytest.approx(closed.warm_s, rel=0.01, abs=1e-9)
    assert capacity.poisson_standby(0.01, 0.0) == capacity.Standby(1.0, 0.0)
    assert capacity.poisson_standby(0.01, np.inf) == capacity.Standby(0.0, 100.0)


def test_whether_to_keep_warm_turns_at_the_keep_warm_time():
    load_j, extra_w = 7630.5, 26.0
    keep_s = cost.keep_warm_s(load_j, 36, 10)
    for rate, warm in ((1.01 / keep_s, True), (0.99 / keep_s, False)):
        zero, always = (
            capacity.standby_j(s.cold_share, s.warm_s, load_j, extra_w)
            for s in (capacity.poisson_standby(rate, 0), capacity.poisson_standby(rate, np.inf))
        )
        assert (always < zero) == warm
    assert capacity.standby_j(1.0, 0.0, load_j, extra_w) == load_j


@given(st.lists(st.floats(1e-6, 5000), min_size=1, max_size=50), positive, positive)
def test_waiting_for_the_keep_warm_time_takes_at_most_twice_the_least(gaps, load_j, extra_w):
    keep_s = cost.keep_warm_s(load_j, extra_w, 0.0)
    waited = capacity.standby(gaps, keep_s)
    energy = capacity.standby_j(waited.cold_share, waited.warm_s, load_j, extra_w)
    least = np.mean(np.minimum(np.array(gaps) * extra_w, load_j))
    assert least * (1 - 1e-9) <= energy <= 2 * least * (1 + 1e-9)


def test_standby_in_money():
    # 2 USD an hour; a load of 18 s is a cent, an idle minute 3.3.
    assert capacity.standby_usd(1.0, 0.0, 18.0, 2.0) == pytest.approx(0.01)
    assert capacity.standby_usd(0.0, 60.0, 18.0, 2.0) == pytest.approx(2 / 60)
    bursts = np.diff(arrivals_s(0.01, 50_000, variation=4, seed=2)[0])
    even = np.diff(arrivals_s(0.01, 50_000, variation=0, seed=2)[0])
    # Bursts meet a model that is still warm, a clock never does.
    assert capacity.standby(bursts, 60.0).cold_share < 0.5
    assert capacity.standby(even, 60.0).cold_share == 1


def test_impossible_capacities_are_refused_by_name():
    with pytest.raises(ValueError, match=r"^rate_req_s must be above 0"):
        capacity.poisson_standby(0.0, 1.0)
    with pytest.raises(ValueError, match=r"^keep_s must not be negative"):
        capacity.poisson_standby(1.0, -1.0)
    with pytest.raises(ValueError, match=r"^profile must be 24 weights"):
        capacity.fixed_fleet(1.0, 1.0, [1.0])
    with pytest.raises(ValueError, match=r"^profile must not be negative"):
        capacity.fixed_fleet(1.0, 1.0, [-1.0] * 24)
