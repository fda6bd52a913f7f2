"""When requests come: a closed loop swept until throughput saturates, or an open loop at a rate.

In a closed loop the next request waits for a slot, so that a slow engine is asked less. In an open
loop requests come when they come: waiting for the engine is part of their time to the first token.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from edge_eval_lib.checks import require_positive, require_whole
from edge_eval_lib.engines.base import ArrivalEngine, Generation

if TYPE_CHECKING:
    from edge_eval_lib.energy import Monitor, Window

Result = TypeVar("Result")

SATURATED_GAIN = 1.05  # twice the concurrency must give at least 5 % more throughput


def poisson_arrivals(rate_per_s: float, requests: int, seed: int) -> np.ndarray:
    """Arrival times of a Poisson process in seconds from its start: shape (requests,), rising.

    The gaps are independent and exponential with mean 1 / `rate_per_s`; the same seed gives the
    same gaps at every rate, only scaled. Raises ValueError for a rate or a number of requests that
    is not positive.
    """
    require_positive(rate_per_s=rate_per_s)
    require_whole(1, requests=requests)
    return np.cumsum(np.random.default_rng(seed).exponential(size=requests)) / rate_per_s


def sweep_until_saturated(
    measure: Callable[[int], Result],
    throughput_tok_s: Callable[[Result], float],
    largest: int,
    gain: float = SATURATED_GAIN,
) -> list[Result]:
    """Measure at concurrency 1, 2, 4, ... until throughput saturates; every result, in order.

    Ends with the first concurrency whose throughput is less than `gain` times that of half of it,
    or with the last power of two that is at most `largest`.
    """
    require_whole(1, largest=largest)
    require_positive(gain=gain)
    results: list[Result] = []
    concurrency = 1
    while concurrency <= largest:
        results.append(measure(concurrency))
        rates = [throughput_tok_s(result) for result in results[-2:]]
        if len(rates) == 2 and rates[1] < gain * rates[0]:
            break
        concurrency *= 2
    return results


@dataclass(frozen=True)
class OpenLoop:
    """What an open loop at one rate gave: `rate_per_s` requests a second were offered."""

    rate_per_s: float
    window: Window
    generations: list[Generation]


def serve_open_loop(
    engine: ArrivalEngine,
    prompts: list[list[int]],
    output_tokens: int,
    rate_per_s: float,
    seed: int,
    monitor: Monitor,
) -> OpenLoop:
    """Offer every prompt at Poisson arrivals of that rate, in one measured window."""
    arrivals_s = poisson_arrivals(rate_per_s, len(prompts), seed).tolist()
    with monitor.window(f"open loop at {rate_per_s:g} requests/s") as window:
        generations = engine.serve_arrivals(prompts, output_tokens, arrivals_s)
    return OpenLoop(rate_per_s, window, generations)


def open_loop_figures(result: OpenLoop) -> dict[str, Any]:
    """One rate's figures: latencies of the answered requests, and how many failed.

    `throughput_tok_s` is output tokens over the window, which lasts until the last answer;
    energy is that of the whole window over the answered requests. A figure that no answered
    request can give is None.
    """
    answered, failed = split_failed(result.generations)
    ttft_ms = [generation.ttft_ms for generation in answered]
    tpot_ms = [generation.tpot_ms for generation in answered if len(generation.token_ids) > 1]
    tokens = sum(len(generation.token_ids) for generation in answered)
    joules = result.window.energy_j
    return {
        "rate_per_s": result.rate_per_s,
        "requests": len(answered),
        "failed_requests": len(failed),
        "failures": failure_counts(failed),
        "seconds": result.window.seconds,
        "throughput_tok_s": tokens / result.window.seconds,
        "ttft_ms": _mean(ttft_ms),
        "ttft_p95_ms": _p95(ttft_ms),
        "tpot_ms": _mean(tpot_ms),
        "tpot_p95_ms": _p95(tpot_ms),
        "energy_per_request_j": joules / len(answered) if answered and joules is not None else None,
        "energy_source": result.window.energy_source,
    }


def split_failed(generations: list[Generation]) -> tuple[list[Generation], list[Generation]]:
    """The answered requests, and those that failed: these never count in a latency."""
    answered = [generation for generation in generations if generation.failure is None]
    return answered, [generation for generation in generations if generation.failure is not None]


def failure_counts(failed: list[Generation]) -> dict[str, int]:
    """How many requests failed for each reason."""
    reasons = [str(generation.failure) for generation in failed]
    return {reason: reasons.count(reason) for reason in sorted(set(reasons))}


def _mean(values: list[float]) -> float | None:
    return float(np.mean(values)) if values else None


def _p95(values: list[float]) -> float | None:
    return float(np.quantile(values, 0.95)) if values else None
