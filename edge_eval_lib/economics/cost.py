"""Cost: USD an hour, a token, a request; where an order flips; what stands behind N_break.

Every argument may be a number, an array or a pandas Series. A negative, NaN or impossible argument
raises ValueError that names it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import qmc

from edge_eval_lib import metrics
from edge_eval_lib.bounds import NonNegative, Positive, PositiveShare, checked
from edge_eval_lib.economics.carbon import Pue
from edge_eval_lib.economics.prices import (
    Prices,
    api_usd_per_request,
    capital_recovery_factor,
)
from edge_eval_lib.units import HOURS_PER_YEAR, JOULES_PER_KWH

__all__ = [
    "BreakEvenCosts",
    "api_usd_per_request",
    "break_even_api_price",
    "break_even_electricity_price",
    "break_even_months",
    "capital_recovery_factor",
    "full_costs",
    "keep_warm_s",
    "order_flip_api_price",
    "over_ranges",
    "paper_costs",
    "rag_usd_per_request",
    "saving_share",
    "tco_usd",
    "usd_per_hour",
    "usd_per_million_tokens",
    "usd_per_request",
]


@checked
def usd_per_hour(
    capex_usd: NonNegative,
    discount_rate: NonNegative,
    years: Positive,
    power_kw: NonNegative,
    electricity_usd_per_kwh: NonNegative,
    pue: Pue = 1.0,
    other_usd_per_hour: NonNegative = 0.0,
):
    """Compute the USD an hour of a machine: capex x CRF / 8760 + kW x PUE x price + the rest.

    The rest is what else it takes, such as people: their share of a year's pay / 8760.
    """
    hardware = capex_usd * capital_recovery_factor(discount_rate, years) / HOURS_PER_YEAR
    return hardware + power_kw * pue * electricity_usd_per_kwh + other_usd_per_hour


@checked
def usd_per_million_tokens(
    usd_per_hour: NonNegative, throughput_tok_s: Positive, utilisation: PositiveShare = 1.0
):
    """Compute the USD per million tokens: 1e6 x USD an hour / (3600 x tok/s x utilisation).

    Args:
        usd_per_hour: What the machine costs.
        throughput_tok_s: Output tokens per second while it generates.
        utilisation: Share of the paid hours spent generating, above 0 and at most 1.

    Returns:
        USD.
    """
    return 1e6 * usd_per_hour / (3600 * throughput_tok_s * utilisation)


@checked
def break_even_api_price(
    fixed_usd: NonNegative, local_usd_per_request: NonNegative, requests: Positive
):
    """Compute the USD a request above which the API costs more over so many requests.

    local + fixed / N, break-even solved for the API's price; as N grows it falls to the local cost.
    """
    return local_usd_per_request + fixed_usd / requests


@checked
def break_even_electricity_price(
    api_usd_per_request: NonNegative,
    energy_per_request_j: Positive,
    other_local_usd_per_request: NonNegative = 0.0,
    pue: Pue = 1.0,
):
    """Compute the USD per kWh at which a local request costs what the API takes.

    (API - other) / (kWh x PUE), where `other_local_usd_per_request` is what a local request costs
    beside electricity. ValueError where that alone exceeds the API's price: no price of electricity
    is low enough.
    """
    left = api_usd_per_request - other_local_usd_per_request
    if np.any(np.asarray(left) < 0):
        raise ValueError("other_local_usd_per_request exceeds api_usd_per_request")
    return left / (energy_per_request_j / JOULES_PER_KWH * pue)


@checked
def order_flip_api_price(
    fixed_usd: NonNegative[float],
    local_usd_per_request: NonNegative[float],
    other_fixed_usd: NonNegative[float],
    other_local_usd_per_request: NonNegative[float],
) -> float:
    """Compute the USD an API request at which two models break even after as many requests.

    (F m - G l) / (F - G) for fixed costs F, G and local costs l, m a request. Below and above it
    the other order holds. NaN where no price above both local costs does this: one model breaks
    even first at every price, or both always together.
    """
    if fixed_usd == other_fixed_usd or local_usd_per_request == other_local_usd_per_request:
        return np.nan
    price = (fixed_usd * other_local_usd_per_request - other_fixed_usd * local_usd_per_request) / (
        fixed_usd - other_fixed_usd
    )
    return price if price > max(local_usd_per_request, other_local_usd_per_request) else np.nan


@checked
def usd_per_request(
    usd_per_hour: NonNegative, seconds_per_request: NonNegative, utilisation: PositiveShare = 1.0
):
    """Compute the USD of a request: USD an hour x its seconds of the machine / utilisation / 3600.

    Args:
        usd_per_hour: What the machine costs, one's own (`usd_per_hour`) or a cloud's.
        seconds_per_request: 1 / requests a second while it works: a batch shares its seconds.
        utilisation: Share of the paid hours in which it works.
    """
    return usd_per_hour * seconds_per_request / utilisation / 3600


@checked
def rag_usd_per_request(
    context_tokens: NonNegative,
    input_usd_per_mtok: NonNegative,
    retrieval_usd: NonNegative = 0.0,
    index_usd_per_month: NonNegative = 0.0,
    requests_per_month: Positive = 1.0,
):
    """Compute the USD that retrieval adds to a request: context + search + its part of the index.

    context tokens x price + retrieval + index a month / requests a month. On a machine of one's
    own a million input tokens cost `usd_per_million_tokens(usd_per_hour, 1 / prefill s a token)`.

    Args:
        context_tokens: What retrieval adds to the prompt.
        input_usd_per_mtok: Price of a million input tokens.
        retrieval_usd: A search, the question's embedding among it.
        index_usd_per_month: Building it anew and keeping it.
        requests_per_month: Among which the index is shared.
    """
    return (
        context_tokens * input_usd_per_mtok / 1e6
        + retrieval_usd
        + index_usd_per_month / requests_per_month
    )


@checked
def break_even_months(
    fixed_usd: NonNegative,
    api_usd_per_request: NonNegative,
    local_usd_per_request: NonNegative,
    requests_per_month: Positive,
):
    """Compute the months until both ways have cost the same: fixed / ((API - local) x requests)."""
    requests = metrics.break_even(fixed_usd, 0.0, api_usd_per_request, local_usd_per_request)
    return requests / requests_per_month


@checked
def tco_usd(
    fixed_usd: NonNegative, usd_per_year: NonNegative, discount_rate: NonNegative, years: Positive
):
    """Compute the total cost over years, in USD of today: fixed + a year's cost / CRF.

    1 / CRF = (1 - (1 + r)^-n) / r is what a USD each year is worth today.
    """
    return fixed_usd + usd_per_year / capital_recovery_factor(discount_rate, years)


def over_ranges(
    function: Callable[..., Any],
    ranges: Mapping[str, tuple[float, float]],
    draws: int = 1024,
    confidence: float = 0.9,
    seed: int = 0,
    **fixed: Any,
) -> tuple[float, float, float]:
    """Compute what a figure comes to where its inputs may lie anywhere in their ranges.

    Args:
        function: Takes arrays; a figure of this package.
        ranges: Its uncertain arguments as (least, most), each value as likely as another.
        draws: How many, a power of 2 (Sobol's sequence).
        confidence: Share of the draws between lo and hi.
        seed: Of the sequence.
        fixed: Its other arguments.

    Returns:
        (median, lo, hi) of the figure.
    """
    for name, (least, most) in ranges.items():
        if not least <= most:
            raise ValueError(f"{name} must be (least, most), not {(least, most)}")
    unit = qmc.Sobol(len(ranges), seed=seed).random(draws)
    drawn = {
        name: least + (most - least) * column
        for (name, (least, most)), column in zip(ranges.items(), unit.T, strict=True)
    }
    tail = (1 - confidence) / 2
    lo, median, hi = np.quantile(function(**drawn, **fixed), [tail, 0.5, 1 - tail])
    return float(median), float(lo), float(hi)


@checked
def saving_share(usd_before: Positive, usd_after: NonNegative):
    """Compute the share saved by a change, 1 - after / before; negative where it is dearer.

    Of USD a million tokens at another utilisation u it is 1 - u_before / u_after, likewise for the
    throughput that a larger batch or a quantised model brings.
    """
    return 1 - usd_after / usd_before


@checked
def keep_warm_s(
    load_energy_j: NonNegative, loaded_idle_power_w: NonNegative, bare_idle_power_w: NonNegative
):
    """Compute the idle time beyond which unloading and loading again takes less energy.

    T* = E_load / (P_idle_loaded - P_idle_bare), s; `inf` where being loaded draws no more than
    being bare. Published for data-centre GPUs: the context alone adds 26-66 W, break-even after
    1-5 minutes (arXiv 2605.23918).
    """
    # Joules and watts break even as dollars and dollars a request do.
    return metrics.break_even(load_energy_j, 0.0, loaded_idle_power_w, bare_idle_power_w)


@dataclass(frozen=True)
class BreakEvenCosts:
    """What stands behind N_break: every part in USD, so that a table can show what decides.

    The first five are spent once, before the first request; the others at each request. Numbers,
    arrays or Series.
    """

    adapt_usd: Any
    compress_usd: Any
    load_usd: Any
    hardware_usd: Any
    setup_usd: Any
    api_usd_per_request: Any
    electricity_usd_per_request: Any
    hardware_usd_per_request: Any

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
        """N_break; `inf` where the API costs no more."""
        return metrics.break_even(
            self.fixed_usd - self.setup_usd,
            self.setup_usd,
            self.api_usd_per_request,
            self.local_usd_per_request,
        )


@checked
def paper_costs(
    prices: Prices, adapt_energy_j: NonNegative, energy_per_request_j: NonNegative
) -> BreakEvenCosts:
    """Account as the paper does: electricity of adapting and serving, one API price a request."""
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


@checked
def full_costs(
    prices: Prices,
    *,
    adapt_energy_j: NonNegative,
    compress_energy_j: NonNegative,
    load_energy_j: NonNegative,
    seconds_before: NonNegative,
    energy_per_request_j: NonNegative,
    seconds_per_request: NonNegative,
    input_tokens_per_request: NonNegative,
    output_tokens_per_request: NonNegative,
) -> BreakEvenCosts:
    """Account in full: energy times PUE, hardware by the hour of use, labour, token prices.

    `seconds_before` is the machine's time for adapting, compressing and loading,
    `seconds_per_request` its share of time for one request (output tokens over throughput).
    """
    usd_per_second = prices.hardware_usd_per_hour / 3600
    return BreakEvenCosts(
        adapt_usd=prices.electricity_usd(adapt_energy_j) * prices.pue,
        compress_usd=prices.electricity_usd(compress_energy_j) * prices.pue,
        load_usd=prices.electricity_usd(load_energy_j) * prices.pue,
        hardware_usd=usd_per_second * seconds_before,
        setup_usd=prices.setup_usd,
        api_usd_per_request=api_usd_per_request(
            input_tokens_per_request,
            output_tokens_per_request,
            prices.api_input_usd_per_mtok,
            prices.api_output_usd_per_mtok,
        ),
        electricity_usd_per_request=prices.electricity_usd(energy_per_request_j) * prices.pue,
        hardware_usd_per_request=usd_per_second * seconds_per_request,
    )
