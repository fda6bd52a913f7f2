"""Tables for people: one server under a day's load, and what to do with it between requests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from edge_eval_lib import metrics
from edge_eval_lib.bounds import NonNegative, Positive, checked
from edge_eval_lib.economics.batching import arrivals_s, highest_rate_req_s, simulate
from edge_eval_lib.economics.capacity import (
    ARRIVALS,
    DAY_PROFILE,
    day_shares,
    fixed_fleet,
    hourly_fleet,
    poisson_standby,
    standby,
    standby_j,
    standby_usd,
)
from edge_eval_lib.economics.cost import keep_warm_s
from edge_eval_lib.economics.server import Server
from edge_eval_lib.units import JOULES_PER_KWH

GAPS = 20_000  # between requests, of which what a pattern's standby comes to is the mean


@checked
def day_table(
    server: Server,
    requests_per_day: Positive[float],
    prompt_tokens,
    output_tokens,
    ttft_limit_s: Positive[float],
    tpot_limit_s: Positive[float],
    target: float = 0.9,
    profile: Sequence[float] = DAY_PROFILE,
    patterns: Mapping[str, float] = ARRIVALS,
) -> pd.DataFrame:
    """Simulate what a server holds, and how many of them a day takes, by how requests come.

    Args:
        server: Of `fit_server`, or from predicted speeds.
        requests_per_day: Among which `profile` divides the hours.
        prompt_tokens: A number, or one a request.
        output_tokens: A number, or one a request.
        ttft_limit_s: Most time to the first token.
        tpot_limit_s: Most mean time between tokens.
        target: Share of the requests that are to meet both.
        profile: 24 weights, one an hour.
        patterns: Names and variations of the gaps, see `arrivals_s`.

    Returns:
        A row a pattern: the highest rate of one server with its interval; servers for the busiest
        hour, their idle share, and that of a fleet scaled by the hour; TTFT, its 95th percentile,
        TPOT and the share in time in the busiest hour. Empty where no rate holds the limits.
    """
    rows = []
    busiest = requests_per_day * day_shares(profile).max() / 3600
    for name, variation in patterns.items():
        limits = (ttft_limit_s, tpot_limit_s, target, variation)
        rate, lo, hi = highest_rate_req_s(server, prompt_tokens, output_tokens, *limits)
        row = {"arrivals": name, "highest_rate_req_s": rate}
        row |= {"highest_rate_req_s_lo": lo, "highest_rate_req_s_hi": hi}
        if rate > 0:
            fixed, hourly = (
                f(requests_per_day, rate, profile) for f in (fixed_fleet, hourly_fleet)
            )
            comes = arrivals_s(busiest / fixed.cards, 2000, 8, variation)
            run = simulate(server, comes, prompt_tokens, output_tokens)
            met = (run.ttft_s <= ttft_limit_s) & (run.tpot_s <= tpot_limit_s)
            row |= {
                "cards": fixed.cards,
                "idle_share": fixed.idle_share,
                "idle_share_by_hour": hourly.idle_share,
                "ttft_ms": 1e3 * run.ttft_s.mean(),
                "ttft_p95_ms": 1e3 * np.quantile(run.ttft_s, 0.95),
                "tpot_ms": 1e3 * run.tpot_s.mean(),
                "share_in_time": met.mean(),
            }
        rows.append(row)
    return pd.DataFrame(rows)


@checked
def standby_table(
    rate_req_s: Positive[float],
    energy_per_request_j: Positive[float],
    load_s: NonNegative[float],
    load_energy_j: NonNegative[float],
    extra_idle_power_w: NonNegative[float],
    usd_per_hour: NonNegative[float],
    usd_per_request: Positive[float],
    electricity_usd_per_kwh: NonNegative[float] = 0.0,
    variation: NonNegative[float] = 1.0,
) -> pd.DataFrame:
    """Compare scaling to zero, unloading after the keep-warm time, and keeping warm.

    Args:
        rate_req_s: Requests a second, each much shorter than the gaps.
        energy_per_request_j: Of serving one.
        load_s: Of a cold load.
        load_energy_j: Of a cold load.
        extra_idle_power_w: Loaded and idle less bare and idle.
        usd_per_hour: What is billed while loading and while warm; 0 on a machine that is paid
            for anyway.
        usd_per_request: Of serving one.
        electricity_usd_per_kwh: On top; 0 where the hour's price holds it.
        variation: Of the gaps between requests, see `arrivals_s`; 1 is at random.

    Returns:
        A row a way: keep_s, cold_share, warm_s, J and USD a request on top of serving it, and these
        over a request's own (`standby_tax` of energy, `standby_tax_usd`): C_tax where every request
        is a cold start.
    """
    gaps_s = np.diff(arrivals_s(rate_req_s, GAPS, variation=variation)[0], prepend=0.0)

    ways = {
        "scale to zero": 0.0,
        "unload after the keep-warm time": keep_warm_s(load_energy_j, extra_idle_power_w, 0.0),
        "keep warm": np.inf,
    }
    rows = []
    for name, keep_s in ways.items():
        if variation == 1:
            way = poisson_standby(rate_req_s, keep_s)
        else:
            way = standby(gaps_s, min(keep_s, gaps_s.max()))
        energy_j = standby_j(way.cold_share, way.warm_s, load_energy_j, extra_idle_power_w)
        usd = standby_usd(way.cold_share, way.warm_s, load_s, usd_per_hour)
        usd += energy_j / JOULES_PER_KWH * electricity_usd_per_kwh
        rows.append(
            {
                "way": name,
                "keep_s": keep_s,
                "cold_share": way.cold_share,
                "warm_s": way.warm_s,
                "standby_j": energy_j,
                "standby_usd": usd,
                "standby_tax": metrics.cold_start_tax(energy_j, energy_per_request_j),
                "standby_tax_usd": metrics.cold_start_tax(usd, usd_per_request),
            }
        )
    return pd.DataFrame(rows)
