"""The five figures: published values, how they move, and what they refuse."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_eval_lib.metrics import (
    break_even,
    cold_start_tax,
    intelligence_per_watt,
    quantization_fidelity,
    system_density,
)

positive = st.floats(1e-6, 1e9)
money = st.floats(1e-2, 1e6)  # a part's change must stay above the rounding of the sum
share = st.floats(0, 1)
factor = st.floats(1.01, 1e3)

# LLaMA-1B, LoRA, RAG, INT4 on two T4s: published figures.
ADAPT_J, SERVE_J, REQUESTS = 92122.30, 236.21, 100
LOAD_S, POWER_W, TOKENS_PER_S = 5.31, 66.62, 4230.52
USD_PER_KWH, API_USD = 0.12, 0.00125


def test_published_t4_figures():
    request_j = SERVE_J / REQUESTS
    requests = break_even(
        ADAPT_J / 3.6e6 * USD_PER_KWH, 0, API_USD, request_j / 3.6e6 * USD_PER_KWH
    )
    assert requests == pytest.approx(2.4567, abs=5e-5)
    assert intelligence_per_watt(0.751667, request_j) == pytest.approx(0.31822, abs=5e-6)
    assert system_density(TOKENS_PER_S, 0.625) == pytest.approx(6768.83, abs=5e-3)
    assert cold_start_tax(LOAD_S * POWER_W, request_j) == pytest.approx(149.76, abs=5e-3)
    assert quantization_fidelity(0.751667, 0.741667) == pytest.approx(101.348, abs=5e-4)
    # Qwen-3B, LoRA, dialogue: a judge's 1-10, whose scale a ratio does not feel.
    assert quantization_fidelity(6.841667, 7.486667) == pytest.approx(91.385, abs=5e-4)
    assert quantization_fidelity(0.6841667, 0.7486667) == pytest.approx(91.385, abs=5e-4)


def test_break_even_of_published_prices():
    assert break_even(1000, 0, 0.03, 0.0075) == pytest.approx(44_444.4, abs=0.05)


@pytest.mark.parametrize("local", [0.01, 0.02, 1e9])
@pytest.mark.parametrize("spent", [0, 1000])
def test_never_breaks_even_where_the_api_is_not_dearer(local, spent):
    assert break_even(spent, 0, 0.01, local) == np.inf


def test_breaks_even_at_once_where_nothing_was_spent():
    assert break_even(0, 0, 0.01, 0.001) == 0


@given(money, money, positive, share, factor)
def test_break_even_moves_as_it_must(train, setup, api, local_share, more):
    local = api * local_share * 0.9
    requests = break_even(train, setup, api, local)
    assert break_even(train * more, setup, api, local) > requests
    assert break_even(train, setup * more, api, local) > requests
    assert break_even(train, setup, api * more, local) < requests
    assert break_even(train, setup, api, (local + api) / 2) > requests
    assert break_even(train * more, setup * more, api * more, local * more) == pytest.approx(
        requests, rel=1e-6
    )
    assert break_even(train, setup, api, local) == break_even(setup, train, api, local)
    # After so many requests both ways have cost the same.
    assert train + setup + requests * local == pytest.approx(requests * api, rel=1e-6)


@given(share, positive, factor)
def test_intelligence_per_watt_moves_as_it_must(score, energy, more):
    ipw = intelligence_per_watt(score, energy)
    assert intelligence_per_watt(score, energy, alpha=more) == pytest.approx(ipw * more)
    assert intelligence_per_watt(score, energy * more) == pytest.approx(ipw / more)
    assert intelligence_per_watt(score / more, energy) <= ipw


@given(positive, positive, factor)
def test_ratios_move_as_they_must(above, below, more):
    for ratio in (system_density, cold_start_tax, quantization_fidelity):
        value = ratio(above, below)
        assert ratio(above * more, below) == pytest.approx(value * more)
        assert ratio(above, below * more) == pytest.approx(value / more)
        assert ratio(above * more, below * more) == pytest.approx(value)


def test_fidelity_to_itself_is_100():
    assert quantization_fidelity(0.3, 0.3) == 100


@given(st.lists(st.tuples(positive, positive, positive, positive), min_size=1, max_size=5))
def test_arrays_and_series_give_what_numbers_give(rows):
    columns = np.array(rows).T
    index = pd.Index([f"row {i}" for i in range(len(rows))])
    functions = {
        break_even: columns,
        intelligence_per_watt: (columns[0] / columns[0].max(), columns[1]),
        system_density: columns[:2],
        cold_start_tax: columns[:2],
        quantization_fidelity: columns[:2],
    }
    for function, arguments in functions.items():
        one_by_one = [function(*map(float, row)) for row in zip(*arguments, strict=True)]
        np.testing.assert_allclose(function(*arguments), one_by_one)
        series = function(*(pd.Series(a, index=index) for a in arguments))
        pd.testing.assert_series_equal(
            series, pd.Series(one_by_one, index=index), check_names=False
        )


def test_numbers_spread_over_a_series():
    api = pd.Series([0.02, 0.005], index=["dear", "cheap"])
    requests = break_even(10.0, 0.0, api, 0.01)
    assert requests["dear"] == pytest.approx(1000)
    assert requests["cheap"] == np.inf
