"""What requests cost here, in a cloud and by an API, and when it pays: values and how they move."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_eval_lib import metrics
from edge_eval_lib.economics import cost
from edge_eval_lib.economics.prices import Prices, load_price_book

positive = st.floats(1e-3, 1e6)
price = st.floats(1e-6, 1e3)
share = st.floats(0.01, 1)


def test_usd_per_million_tokens_of_published_rates():
    assert cost.usd_per_million_tokens(2, 9806) == pytest.approx(0.05665, abs=5e-6)
    assert cost.usd_per_million_tokens(2, 1069.6) == pytest.approx(0.5194, abs=5e-5)
    assert cost.usd_per_million_tokens(2, 9806, 0.5) == pytest.approx(2 * 0.056655, abs=1e-5)


def test_capital_recovery():
    # A loan of 1 at 5 % over 5 years is paid back by 0.230975 a year.
    assert cost.capital_recovery_factor(0.05, 5) == pytest.approx(0.05 * 1.05**5 / (1.05**5 - 1))
    assert cost.capital_recovery_factor(0.05, 5) == pytest.approx(0.230975, abs=1e-6)
    assert cost.capital_recovery_factor(0, 4) == 0.25
    assert cost.capital_recovery_factor(1e-12, 4) == pytest.approx(0.25)
    assert cost.capital_recovery_factor(5e-324, 0.5) == 2  # the smallest number there is


@given(st.floats(0, 1), st.floats(0.5, 30))
def test_capital_recovery_pays_the_price_back(rate, years):
    factor = cost.capital_recovery_factor(rate, years)
    assert factor >= 1 / years - 1e-9
    assert cost.capital_recovery_factor(rate + 0.01, years) > factor
    assert cost.capital_recovery_factor(rate, years + 1) < factor


def test_usd_per_hour_adds_its_parts():
    hour = cost.usd_per_hour(8760, 0, 2, power_kw=0.5, electricity_usd_per_kwh=0.12, pue=1.5)
    assert hour == pytest.approx(0.5 + 0.5 * 1.5 * 0.12)
    more = cost.usd_per_hour(8760, 0, 2, 0.5, 0.12, 1.5, other_usd_per_hour=0.3)
    assert more - hour == pytest.approx(0.3)


@given(positive, positive, positive, positive)
def test_at_its_break_even_price_an_api_is_paid_for(fixed, local, requests, more):
    price = cost.break_even_api_price(fixed, local, requests)
    assert local + fixed / requests == price
    assert cost.break_even_api_price(fixed, local, requests + more) <= price
    if price > local * (1 + 1e-9):
        assert metrics.break_even(fixed, 0, price, local) == pytest.approx(requests, rel=1e-3)


def test_break_even_electricity_price():
    # 2.3621 J a request: electricity would have to cost 1905 USD/kWh to reach 0.00125 USD.
    price = cost.break_even_electricity_price(0.00125, 2.3621)
    assert price == pytest.approx(0.00125 * 3.6e6 / 2.3621)
    assert cost.break_even_electricity_price(0.00125, 2.3621, pue=2) == pytest.approx(price / 2)
    assert cost.break_even_electricity_price(0.00125, 2.3621, 0.00125) == 0
    with pytest.raises(ValueError, match="other_local_usd_per_request exceeds"):
        cost.break_even_electricity_price(0.001, 2.0, 0.002)


def test_order_flips_where_both_break_even_together():
    # Dear to set up and cheap to run against the opposite.
    price = cost.order_flip_api_price(20, 0.0005, 10, 0.001)
    assert price == pytest.approx(0.0015)
    assert metrics.break_even(20, 0, price, 0.0005) == pytest.approx(20_000)
    assert metrics.break_even(10, 0, price, 0.001) == pytest.approx(20_000)
    assert metrics.break_even(20, 0, 0.0012, 0.0005) < metrics.break_even(10, 0, 0.0012, 0.001)
    assert metrics.break_even(20, 0, 0.0020, 0.0005) > metrics.break_even(10, 0, 0.0020, 0.001)


@pytest.mark.parametrize(
    "models", [(10, 0.001, 20, 0.002), (10, 0.001, 10, 0.002), (10, 0.001, 20, 0.001)]
)
def test_order_that_never_flips(models):
    assert math.isnan(cost.order_flip_api_price(*models))


@given(positive, positive, positive, positive)
def test_order_flip_is_symmetric(fixed, local, other_fixed, other_local):
    there = cost.order_flip_api_price(fixed, local, other_fixed, other_local)
    back = cost.order_flip_api_price(other_fixed, other_local, fixed, local)
    assert there == pytest.approx(back, nan_ok=True)


PRICES = Prices(
    electricity_usd_per_kwh=0.12,
    api_usd_per_request=0.00125,
    api_input_usd_per_mtok=2.5,
    api_output_usd_per_mtok=10.0,
    api_input_tokens_per_request=500.0,
    pue=1.5,
    hardware_usd=8760.0,
    hardware_lifetime_years=2.0,
    discount_rate=0.0,
    utilisation=0.5,
    setup_hours=8.0,
    labour_usd_per_hour=64.0,
)
FULL = {
    "adapt_energy_j": 3.6e6,
    "compress_energy_j": 1.8e6,
    "load_energy_j": 3.6e5,
    "seconds_before": 7200.0,
    "energy_per_request_j": 3.6,
    "seconds_per_request": 0.036,
    "input_tokens_per_request": 500.0,
    "output_tokens_per_request": 150.0,
}


def test_the_papers_accounting():
    costs = cost.paper_costs(PRICES, 92122.30, 2.3621)
    assert costs.requests == pytest.approx(2.4567, abs=5e-5)
    assert costs.fixed_usd == costs.adapt_usd
    assert costs.local_usd_per_request < 1e-4 * costs.api_usd_per_request


def test_the_full_accounting_part_by_part():
    costs = cost.full_costs(PRICES, **FULL)
    assert costs.adapt_usd == pytest.approx(0.18)
    assert costs.compress_usd == pytest.approx(0.09)
    assert costs.load_usd == pytest.approx(0.018)
    assert costs.hardware_usd == pytest.approx(2.0)  # 1 USD for each hour of use
    assert costs.setup_usd == 512
    assert costs.fixed_usd == pytest.approx(514.288)
    assert costs.api_usd_per_request == pytest.approx(0.00275)
    assert costs.electricity_usd_per_request == pytest.approx(1.8e-7)
    assert costs.hardware_usd_per_request == pytest.approx(1e-5)
    assert costs.requests == pytest.approx(514.288 / (0.00275 - 1.018e-5))


def test_full_accounting_of_series():
    table = pd.DataFrame([FULL, FULL], index=["a", "b"])
    table.loc["b", "seconds_per_request"] = 3600.0
    requests = cost.full_costs(PRICES, **table).requests
    assert requests["a"] == pytest.approx(cost.full_costs(PRICES, **FULL).requests)
    assert requests["b"] == np.inf


@pytest.mark.parametrize("name", ["adapt_energy_j", "seconds_before", "compress_energy_j"])
def test_whatever_is_spent_before_delays_break_even(name):
    more = cost.full_costs(PRICES, **{**FULL, name: 2 * FULL[name]})
    assert more.requests > cost.full_costs(PRICES, **FULL).requests


def test_a_request_costs_its_share_of_the_hour():
    # 100 requests a second on a machine of 2 USD an hour, half of it idle.
    assert cost.usd_per_request(2.0, 0.01, 0.5) == pytest.approx(2 / 3600 * 0.01 / 0.5)
    # Output tokens at their price per million come to the same.
    per_token = cost.usd_per_million_tokens(2.0, 1000.0, 0.5) / 1e6
    assert cost.usd_per_request(2.0, 150 / 1000, 0.5) == pytest.approx(150 * per_token)


def test_an_hour_of_arrays():
    hour = cost.usd_per_hour(np.array([8760, 17_520]), [0.0, 0.05], [2, 5], 0.5, 0.12)
    assert hour[0] == pytest.approx(0.5 + 0.06)
    assert hour[1] == pytest.approx(2 * cost.capital_recovery_factor(0.05, 5) + 0.06)


def test_an_api_with_its_cache_and_its_batch():
    plain = cost.api_usd_per_request(500, 150, 2.5, 10.0)
    assert plain == pytest.approx(0.00275)
    assert cost.api_usd_per_request(500, 0, 2.5, 10.0) == pytest.approx(0.00125)
    cached = cost.api_usd_per_request(500, 150, 2.5, 10.0, 0.8, 1.25)
    assert plain - cached == pytest.approx(500 * 0.8 * 1.25 / 1e6)
    assert cost.api_usd_per_request(500, 150, 2.5, 10.0, batch_discount=0.5) == plain / 2


@given(positive, positive, price, price, share, share, share)
def test_a_cache_or_a_batch_never_makes_an_api_dearer(
    read, written, in_usd, out_usd, hit, cut, discount
):
    plain = cost.api_usd_per_request(read, written, in_usd, out_usd)
    less = cost.api_usd_per_request(read, written, in_usd, out_usd, hit, cut * in_usd, discount)
    assert less <= plain * (1 + 1e-9)
    assert cost.api_usd_per_request(2 * read, written, in_usd, out_usd) >= plain


def test_break_even_of_published_cases():
    assert metrics.break_even(1000, 0, 0.03, 0.0075) == pytest.approx(44_444.4, abs=0.1)
    months = cost.break_even_months(1000, 0.03, 0.0075, 10_000)
    assert months == pytest.approx(4.44444, abs=1e-5)
    assert cost.break_even_months(1000, 0.0075, 0.03, 10_000) == np.inf


@pytest.mark.parametrize(
    ("hardware_usd", "kw", "tok_s", "usd_per_mtok", "least", "most"),
    [
        (2_000, 0.6, 200, 10.0, 0, 3),  # 32B on one consumer card against GPT-5
        (15_000, 0.4, 190, 10.0, 6, 24),  # 70B on an A100
        (240_000, 6.4, 750, 10.0, 24, np.inf),  # 1T on sixteen
    ],
)
def test_months_to_break_even_lie_where_pan_et_al_have_them(
    hardware_usd, kw, tok_s, usd_per_mtok, least, most
):
    """Their ranges and prices (arXiv 2509.18101: 0.15 USD/kWh); tok/s and kW ASSUMED here."""
    tokens = tok_s * 3600 * 8 * 20  # eight hours of twenty working days a month
    electricity = kw * 8 * 20 * 0.15
    found = cost.break_even_months(hardware_usd, usd_per_mtok / 1e6, electricity / tokens, tokens)
    assert least <= found <= most


@given(positive, price, price, positive, positive)
def test_a_dearer_api_never_lowers_the_benefit(fixed, api, local, requests, more):
    months = cost.break_even_months(fixed, api, local, requests)
    assert cost.break_even_months(fixed, api + more, local, requests) <= months
    assert cost.break_even_months(fixed, api, local + more, requests) >= months
    assert cost.break_even_months(fixed + more, api, local, requests) >= months
    assert cost.break_even_months(fixed, api, local, requests + more) <= months


def test_total_cost_over_years():
    assert cost.tco_usd(1000, 100, 0.0, 3) == pytest.approx(1300)
    assert cost.tco_usd(1000, 100, 0.1, 2) == pytest.approx(1000 + 100 / 1.1 + 100 / 1.21)
    # Paying a price back by its recovery factor costs, today, the price.
    yearly = 5000 * cost.capital_recovery_factor(0.05, 5)
    assert cost.tco_usd(0, yearly, 0.05, 5) == pytest.approx(5000)


def test_ranges_of_inputs_become_a_range_of_the_figure():
    median, lo, hi = cost.over_ranges(
        cost.tco_usd, {"usd_per_year": (0, 100)}, fixed_usd=10, discount_rate=0, years=1
    )
    assert (median, lo, hi) == pytest.approx((60, 15, 105), abs=0.5)
    with pytest.raises(ValueError, match=r"^years must be \(least, most\)"):
        cost.over_ranges(cost.tco_usd, {"years": (3, 2)}, fixed_usd=1, usd_per_year=1)
    with pytest.raises(ValueError, match=r"^years must be above 0"):
        cost.over_ranges(
            cost.tco_usd, {"years": (-1, -1)}, fixed_usd=1, usd_per_year=1, discount_rate=0
        )


def test_retrieval_is_an_item_with_three_parts():
    parts = cost.rag_usd_per_request(2000, 2.5, 0.0005, 300.0, 30_000)
    assert parts == pytest.approx(0.005 + 0.0005 + 0.01)
    # Fine-tuning for 110 USD pays for itself after 20,000 requests that would retrieve.
    added = cost.rag_usd_per_request(2000, 2.5, 0.0005)
    assert metrics.break_even(110, 0, added + 0.001, 0.001) == pytest.approx(20_000)


@given(positive, price, price, positive, positive, positive)
def test_more_context_or_index_never_makes_retrieval_cheaper(
    context, usd, retrieval, index, requests, more
):
    item = cost.rag_usd_per_request(context, usd, retrieval, index, requests)
    assert cost.rag_usd_per_request(context + more, usd, retrieval, index, requests) >= item
    assert cost.rag_usd_per_request(context, usd, retrieval, index + more, requests) >= item
    assert cost.rag_usd_per_request(context, usd, retrieval, index, requests + more) <= item


@given(positive, positive, share, st.floats(1, 50))
def test_utilisation_batching_and_quantisation_save(hourly, tok_s, use, faster):
    before = cost.usd_per_million_tokens(hourly, tok_s, use)
    batched = cost.usd_per_million_tokens(hourly, tok_s * faster, use)
    assert cost.saving_share(before, batched) == pytest.approx(1 - 1 / faster, abs=1e-9)
    full = cost.usd_per_million_tokens(hourly, tok_s, 1.0)
    assert cost.saving_share(before, full) == pytest.approx(1 - use, abs=1e-9)
    assert cost.saving_share(full, before) <= 1e-9


def test_prices_name_their_day_and_source():
    book = load_price_book()
    assert book.cloud_usd_per_hour("t4") == (0.5904, 0.81)
    assert book.cloud_usd_per_hour("abacus") is None
    for entry in (*book.cloud_gpus, *book.api_prices):
        assert entry.source.startswith(("https://", "ASSUMED"))
    for api in book.api_prices:
        assert (api.cached_input_usd_per_mtok or 0) <= api.input_usd_per_mtok
