"""Cost: USD an hour, a token, a request; where an order flips; what stands behind N_break.

Every argument may be a number, an array or a pandas Series. A negative, NaN or impossible argument
raises ValueError that names it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from edge_eval_lib import metrics
from edge_eval_lib.bounds import (
    require_at_least,
    require_non_negative,
    require_positive,
    require_share,
)
from edge_eval_lib.economics.prices import HOURS_PER_YEAR, JOULES_PER_KWH, Prices


def capital_recovery_factor(discount_rate: float, years: float) -> float:
    """Share of a price to be paid back each year: r (1+r)^n / ((1+r)^n - 1); 1/n at r = 0."""
    require_non_negative(discount_rate=discount_rate)
    require_positive(years=years)
    if discount_rate < 1e-15:  # no digit differs from r = 0, and smaller products underflow
        return 1 / years
    # -expm1(-n log1p(r)) is 1 - (1+r)^-n without loss at tiny rates.
    return float(discount_rate / -np.expm1(-years * np.log1p(discount_rate)))


def usd_per_hour(
    capex_usd,
    discount_rate,
    years,
    power_kw,
    electricity_usd_per_kwh,
    pue=1.0,
    other_usd_per_hour=0.0,
):
    """USD an hour of a machine: capex x CRF / 8760 + kW x PUE x price + other operation."""
    require_non_negative(
        capex_usd=capex_usd,
        power_kw=power_kw,
        electricity_usd_per_kwh=electricity_usd_per_kwh,
        other_usd_per_hour=other_usd_per_hour,
    )
    require_at_least(1, pue=pue)
    hardware = capex_usd * capital_recovery_factor(discount_rate, years) / HOURS_PER_YEAR
    return hardware + power_kw * pue * electricity_usd_per_kwh + other_usd_per_hour


def usd_per_million_tokens(usd_per_hour, throughput_tok_s, utilisation=1.0):
    """USD per million tokens: 1e6 x USD an hour / (3600 x tok/s x utilisation).

    `utilisation` is the share of the paid hours spent generating, above 0 and at most 1.
    """
    require_non_negative(usd_per_hour=usd_per_hour)
    require_positive(throughput_tok_s=throughput_tok_s, utilisation=utilisation)
    require_share(utilisation=utilisation)
    return 1e6 * usd_per_hour / (3600 * throughput_tok_s * utilisation)


def break_even_api_price(fixed_usd, local_usd_per_request, requests):
    """USD a request above which the API has become the dearer one after so many requests.

    local + fixed / N, break-even solved for the API's price; as N grows it falls to the local cost.
    """
    require_non_negative(fixed_usd=fixed_usd, local_usd_per_request=local_usd_per_request)
    require_positive(requests=requests)
    return local_usd_per_request + fixed_usd / requests


def break_even_electricity_price(
    api_usd_per_request, energy_per_request_j, other_local_usd_per_request=0.0, pue=1.0
):
    """USD per kWh at which a local request costs what the API takes: (API - other) / (kWh x PUE).

    `other_local_usd_per_request` is what a local request costs beside electricity. ValueError where
    that alone exceeds the API's price: no price of electricity is low enough.
    """
    require_non_negative(
        api_usd_per_request=api_usd_per_request,
        other_local_usd_per_request=other_local_usd_per_request,
    )
    require_positive(energy_per_request_j=energy_per_request_j)
    require_at_least(1, pue=pue)
    left = api_usd_per_request - other_local_usd_per_request
    if np.any(np.asarray(left) < 0):
        raise ValueError("other_local_usd_per_request exceeds api_usd_per_request")
    return left / (energy_per_request_j / JOULES_PER_KWH * pue)


def order_flip_api_price(
    fixed_usd: float,
    local_usd_per_request: float,
    other_fixed_usd: float,
    other_local_usd_per_request: float,
) -> float:
    """USD an API request at which two models break even after the same number of requests.

    (F m - G l) / (F - G) for fixed costs F, G and local costs l, m a request. Below and above it
    the other order holds. NaN where no price above both local costs does this: one model breaks
    even first at every price, or both always together.
    """
    require_non_negative(
        fixed_usd=fixed_usd,
        local_usd_per_request=local_usd_per_request,
        other_fixed_usd=other_fixed_usd,
        other_local_usd_per_request=other_local_usd_per_request,
    )
    if fixed_usd == other_fixed_usd or local_usd_per_request == other_local_usd_per_request:
        return np.nan
    price = (fixed_usd * other_local_usd_per_request - other_fixed_usd * local_usd_per_request) / (
        fixed_usd - other_fixed_usd
    )
    return price if price > max(local_usd_per_request, other_local_usd_per_request) else np.nan


def rag_usd_per_request(context_tokens, input_usd_per_mtok, retrieval_usd=0.0):
    """USD that retrieval adds to a request: context tokens x input price + the retrieval itself."""
    require_non_negative(
        context_tokens=context_tokens,
        input_usd_per_mtok=input_usd_per_mtok,
        retrieval_usd=retrieval_usd,
    )
    return context_tokens * input_usd_per_mtok / 1e6 + retrieval_usd


@dataclass(frozen=True)
class BreakEvenCosts:
    """What stands behind N_break: every part in USD, so that a table can show what decides.

    The first five are spent once, before the first request; the others at each request. Numbers,
    arrays or Series.
    """

    adapt_usd: float
    compress_usd: float
    load_usd: float
    hardware_usd: float
    setup_usd: float
    api_usd_per_request: float
    electricity_usd_per_request: float
    hardware_usd_per_request: float

    @property
    def fixed_usd(self):
        """All that is spent once: electricity, hardware and labour before the first request."""
        return (
            self.adapt_usd + self.compress_usd + self.load_usd + self.hardware_usd + self.setup_usd
        )

    @property
    def local_usd_per_request(self):
        """A request served here: electricity and hardware."""
        return self.electricity_usd_per_request + self.hardware_usd_per_request

    @property
    def requests(self):
        """N_break; `inf` where the API is not dearer."""
        return metrics.break_even(
            self.fixed_usd - self.setup_usd,
            self.setup_usd,
            self.api_usd_per_request,
            self.local_usd_per_request,
        )


def paper_costs(prices: Prices, adapt_energy_j, energy_per_request_j) -> BreakEvenCosts:
    """The paper's accounting: electricity of adapting and serving against one price a request."""
    require_non_negative(adapt_energy_j=adapt_energy_j, energy_per_request_j=energy_per_request_j)
    return BreakEvenCosts(
        adapt_usd=prices.electricity_usd(adapt_energy_j),
        compress_usd=0.0,
        load_usd=0.0,
        hardware_usd=0.0,
        setup_usd=0.0,
        api_usd_per_request=prices.api_usd_per_request,
        electricity_usd_per_request=prices.electricity_usd(energy_per_request_j),
        hardware_usd_per_request=0.0,
    )


def full_costs(
    prices: Prices,
    *,
    adapt_energy_j,
    compress_energy_j,
    load_energy_j,
    seconds_before,
    energy_per_request_j,
    seconds_per_request,
    input_tokens_per_request,
    output_tokens_per_request,
) -> BreakEvenCosts:
    """The full accounting: energy times PUE, hardware by the hour of use, labour, token prices.

    `seconds_before` is the machine's time for adapting, compressing and loading,
    `seconds_per_request` its share of time for one request (output tokens over throughput).
    """
    require_non_negative(
        adapt_energy_j=adapt_energy_j,
        compress_energy_j=compress_energy_j,
        load_energy_j=load_energy_j,
        seconds_before=seconds_before,
        energy_per_request_j=energy_per_request_j,
        seconds_per_request=seconds_per_request,
        input_tokens_per_request=input_tokens_per_request,
        output_tokens_per_request=output_tokens_per_request,
    )
    usd_per_second = prices.hardware_usd_per_hour / 3600
    return BreakEvenCosts(
        adapt_usd=prices.electricity_usd(adapt_energy_j) * prices.pue,
        compress_usd=prices.electricity_usd(compress_energy_j) * prices.pue,
        load_usd=prices.electricity_usd(load_energy_j) * prices.pue,
        hardware_usd=usd_per_second * seconds_before,
        setup_usd=prices.setup_usd,
        api_usd_per_request=prices.api_request_usd(
            input_tokens_per_request, output_tokens_per_request
        ),
        electricity_usd_per_request=prices.electricity_usd(energy_per_request_j) * prices.pue,
        hardware_usd_per_request=usd_per_second * seconds_per_request,
    )
