"""Capacity: how many cards a day's load takes, how long they idle, and scale to zero or keep warm.

Every argument may be a number or an array unless it is said to be a sequence. A negative, NaN or
impossible argument raises ValueError that names it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from edge_eval_lib.bounds import NonNegative, NonNegativeSequence, Share, checked, require

# A day at an office: the hours' weights from midnight. ASSUMED: work from 8 to 18 h with a dip at
# noon, an evening, a quiet night.
DAY_PROFILE = (
    *(1, 1, 1, 1, 1, 1, 2, 5),
    *(9, 12, 12, 11, 8, 11, 12, 12, 10, 7),
    *(5, 4, 4, 3, 2, 1),
)

# How requests come: the standard deviation of the gaps between them over their mean. ASSUMED for
# bursts, up to five of which then come together.
ARRIVALS = {"steady": 0.0, "random": 1.0, "bursty": 3.0}


# --- cards over a day -------------------------------------------------------------------------


@checked
def cards_needed(rate_req_s: NonNegative, capacity_req_s: NonNegative, headroom: NonNegative = 0.0):
    """Compute the cards that hold a rate: ceil(rate (1 + headroom) / capacity of a card).

    Args:
        rate_req_s: Requests a second.
        capacity_req_s: What a card holds within its limits, such as its goodput.
        headroom: Share of the rate that is kept in reserve.

    Returns:
        Whole cards; `inf` where a card holds nothing.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        # Sums of decimals do not take a card more.
        cards = np.ceil(np.multiply(rate_req_s, np.add(1, headroom)) / capacity_req_s - 1e-9)
    return np.where(np.equal(rate_req_s, 0), 0.0, np.maximum(cards, 1.0))[()]


@dataclass(frozen=True)
class Fleet:
    """Cards of one kind, and the share of their time in which no request runs."""

    cards: Any  # most at a time
    card_hours_per_day: Any
    idle_share: Any  # 1 - what the day's requests take / what is there


def fixed_fleet(
    requests_per_day,
    capacity_req_s,
    profile: Sequence[float] = DAY_PROFILE,
    headroom=0.0,
) -> Fleet:
    """Size a fleet for the busiest hour that is there all day; its idle share is over-provisioning.

    Args:
        requests_per_day: Number or array.
        capacity_req_s: Requests a second that a card holds.
        profile: 24 weights, one an hour.
        headroom: Share in reserve at the busiest hour.

    Returns:
        The fleet; idle share 0 where there is no load.
    """
    peak = day_shares(profile).max() / 3600
    cards = cards_needed(np.multiply(requests_per_day, peak), capacity_req_s, headroom)
    return _fleet(cards, 24 * cards, requests_per_day, capacity_req_s)


def hourly_fleet(
    requests_per_day,
    capacity_req_s,
    profile: Sequence[float] = DAY_PROFILE,
    headroom=0.0,
) -> Fleet:
    """Size a fleet that is scaled to each hour's load; arguments as of `fixed_fleet`."""
    hours = [
        cards_needed(np.multiply(requests_per_day, share / 3600), capacity_req_s, headroom)
        for share in day_shares(profile)
    ]
    most = np.maximum.reduce(hours)
    return _fleet(most, np.sum(hours, axis=0), requests_per_day, capacity_req_s)


def _fleet(cards, card_hours, requests_per_day, capacity_req_s) -> Fleet:
    with np.errstate(divide="ignore", invalid="ignore"):
        used = np.divide(requests_per_day, np.multiply(capacity_req_s, 3600) * card_hours)
    idle = np.where(np.isfinite(card_hours) & (card_hours > 0), 1 - used, 0.0)[()]
    return Fleet(cards, card_hours, idle)


def day_shares(profile: Sequence[float]) -> np.ndarray:
    """Return the share of a day's requests that each of 24 hours has, by their weights."""
    weights = np.asarray(profile, float)
    require(NonNegative, profile=weights)
    if weights.shape != (24,) or not weights.sum():
        raise ValueError("profile must be 24 weights, one an hour, not all 0")
    return weights / weights.sum()


# --- scale to zero or keep warm ---------------------------------------------------------------


@dataclass(frozen=True)
class Standby:
    """What keeping a model loaded for some time after a request comes to, a request."""

    cold_share: Any  # of the requests, which find it unloaded
    warm_s: Any  # spent loaded and idle


@checked
def standby(gaps_s: NonNegativeSequence, keep_s: NonNegative[float]) -> Standby:
    """Compute the standby of any arrivals: gap > keep is a cold start, min(gap, keep) is warm.

    Args:
        gaps_s: Idle times between the end of a request and the next one's arrival.
        keep_s: Time after which the model is unloaded; 0 scales to zero.
    """
    return Standby(float(np.mean(gaps_s > keep_s)), float(np.mean(np.minimum(gaps_s, keep_s))))


def poisson_standby(rate_req_s, keep_s) -> Standby:
    """Compute the standby of requests at random: cold exp(-rate keep), warm (1 - cold) / rate.

    Args:
        rate_req_s: Requests a second, above 0, each much shorter than the gaps between them.
        keep_s: Time after which the model is unloaded; `inf` keeps it warm for good.
    """
    rate, keep = np.asarray(rate_req_s, float), np.asarray(keep_s, float)
    if not (rate > 0).all():
        raise ValueError("rate_req_s must be above 0")
    if not (keep >= 0).all():
        raise ValueError("keep_s must not be negative")
    cold = np.exp(-rate * keep)
    return Standby(cold[()], (-np.expm1(-rate * keep) / rate)[()])


@checked
def standby_j(
    cold_share: Share,
    warm_s: NonNegative,
    load_energy_j: NonNegative,
    extra_idle_power_w: NonNegative,
):
    """Compute the J a request of standing by: cold x load energy + warm x extra idle power.

    Args:
        cold_share: Of `Standby`.
        warm_s: Of `Standby`.
        load_energy_j: Energy of a cold load.
        extra_idle_power_w: Loaded and idle less bare and idle.
    """
    return cold_share * load_energy_j + warm_s * extra_idle_power_w


@checked
def standby_usd(
    cold_share: Share, warm_s: NonNegative, load_s: NonNegative, usd_per_hour: NonNegative
):
    """Compute the USD a request of standing by: (cold x load + warm) x USD an hour.

    What a cloud bills; on a machine of one's own only the electricity of `standby_j` is saved.
    """
    return (cold_share * load_s + warm_s) * usd_per_hour / 3600
