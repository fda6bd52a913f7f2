"""When requests come: a closed loop swept until throughput saturates, or an open loop at a rate.

In a closed loop the next request waits for a slot, so that a slow engine is asked less. In an open
loop requests come when they come: waiting for the engine is part of their time to the first token.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import numpy as np

from edge_eval_lib.bounds import Positive, Whole, checked

Result = TypeVar("Result")

SATURATED_GAIN = 1.05  # twice the concurrency must give at least 5 % more throughput


@checked
def poisson_arrivals(rate_per_s: Positive[float], requests: Whole[int], seed: int) -> np.ndarray:
    """Arrival times of a Poisson process in seconds from its start: shape (requests,), rising.

    The gaps are independent and exponential with mean 1 / `rate_per_s`; the same seed gives the
    same gaps at every rate, only scaled. Raises ValueError for a rate or a number of requests that
    is not positive.
    """
    return np.cumsum(np.random.default_rng(seed).exponential(size=requests)) / rate_per_s


@checked
def sweep_until_saturated(
    measure: Callable[[int], Result],
    throughput_tok_s: Callable[[Result], float],
    largest: Whole[int],
    gain: Positive[float] = SATURATED_GAIN,
) -> list[Result]:
    """Measure at concurrency 1, 2, 4, ... until throughput saturates; every result, in order.

    Ends with the first concurrency whose throughput is less than `gain` times that of half of it,
    or with the last power of two that is at most `largest`.
    """
    results: list[Result] = []
    concurrency = 1
    while concurrency <= largest:
        results.append(measure(concurrency))
        rates = [throughput_tok_s(result) for result in results[-2:]]
        if len(rates) == 2 and rates[1] < gain * rates[0]:
            break
        concurrency *= 2
    return results
