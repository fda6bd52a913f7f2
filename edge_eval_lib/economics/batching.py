"""Continuous batching, simulated step by step: when requests come, and what they wait for.

A step is that of server.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numba
import numpy as np

from edge_eval_lib.bounds import NonNegative, OpenShare, Positive, Whole, checked, require
from edge_eval_lib.economics.capacity import day_shares
from edge_eval_lib.economics.server import CACHE, Server, capacity_req_s
from edge_eval_lib.uncertainty import Interval, mean_interval
from edge_eval_lib.units import SECONDS_PER_DAY

# Shares of a run's requests that are left out of its statistics: the server starts empty.
WARM_UP_SHARE = 0.1


# --- arrivals ---------------------------------------------------------------------------------


@checked
def arrivals_s(
    rate_req_s: Positive[float],
    requests: Whole[int],
    replications: Whole[int] = 1,
    variation: NonNegative[float] = 1.0,
    profile: Sequence[float] | None = None,
    seed: int = 0,
) -> np.ndarray:
    """Draw when requests come: at random, in bursts, or along a day.

    The gaps are Gamma distributed with the coefficient of variation `variation`: 0 is a clock, 1
    Poisson, more are bursts. The same seed gives the same gaps at every rate, only scaled. With a
    profile, time runs faster in busy hours, so that each hour has its share of the day's requests.

    Args:
        rate_req_s: Mean requests a second (over a day, with a profile).
        requests: How many.
        replications: How many independent times.
        variation: Standard deviation of the gaps over their mean.
        profile: 24 weights, one an hour from midnight, of which the day is made.
        seed: Of the random numbers.

    Returns:
        Seconds, an ascending row a replication.
    """
    rng = np.random.default_rng(seed)
    shape = (replications, requests)
    squared = variation**2
    gaps = rng.gamma(1 / squared, squared, shape) if squared else np.ones(shape)
    even = np.cumsum(gaps, axis=1) / rate_req_s
    if profile is None:
        return even
    shares = np.concatenate([[0.0], np.cumsum(day_shares(profile))])
    days, of_day = np.divmod(even / SECONDS_PER_DAY, 1)
    return (days + np.interp(of_day, shares, np.linspace(0, 1, 25))) * SECONDS_PER_DAY


# --- simulation -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Simulation:
    """What was simulated: a row a replication, a column a request; seconds."""

    wait_s: np.ndarray  # until it joined the batch
    ttft_s: np.ndarray
    tpot_s: np.ndarray  # 0 for a single token
    latency_s: np.ndarray
    batch: np.ndarray  # mean requests in a step, a number a replication
    busy_share: np.ndarray  # of the time, a number a replication
    steps: int
    # With keep_steps: when each step of a replication ended, and each request's first of them.
    step_ends_s: list[np.ndarray] | None
    first_step: np.ndarray

    def interval(
        self, figure: np.ndarray, of: Callable = np.mean, confidence: float = 0.95
    ) -> Interval:
        """Estimate a figure with its t interval over replications, each after its warm-up."""
        kept = figure[:, int(figure.shape[1] * WARM_UP_SHARE) :]
        return mean_interval(of(kept, axis=1), confidence)

    def token_times_s(self, replication: int, request: int, tokens: int) -> np.ndarray:
        """Return when the tokens of a request came; of a simulation that kept its steps."""
        if self.step_ends_s is None:
            raise ValueError("token times are known of a simulation with keep_steps=True")
        first = self.first_step[replication, request]
        return self.step_ends_s[replication][first : first + tokens]


def simulate(
    server: Server, arrivals_s, prompt_tokens, output_tokens, keep_steps: bool = False
) -> Simulation:
    """Simulate a server that batches continuously, step by step.

    Args:
        server: Numbers, not arrays.
        arrivals_s: When requests come, ascending; a row a replication.
        prompt_tokens: A number, or one a request.
        output_tokens: A number, or one a request; at least 1.
        keep_steps: Keep the end of every step, so that every token's time is known.

    Returns:
        Times of every request.

    Raises:
        ValueError: An argument is impossible, or a request can never fit into the server.
    """
    require(Whole, prompt_tokens=np.add(prompt_tokens, 1), output_tokens=output_tokens)
    arrivals = np.atleast_2d(np.asarray(arrivals_s, float))
    require(NonNegative, arrivals_s=np.diff(arrivals, axis=1, prepend=0.0))
    prompt, output = (
        np.broadcast_to(tokens, arrivals.shape).astype(np.int64)
        for tokens in (prompt_tokens, output_tokens)
    )
    longest = int((prompt + output).max())
    if longest > server.kv_tokens:
        raise ValueError(f"kv_tokens must hold the longest request: {longest} tokens")
    limits = float(server.max_batch), float(server.kv_tokens)
    seconds = (
        float(server.prefill_s_per_token),
        float(server.step_s),
        float(server.step_s_per_request),
        float(server.step_s_per_cached_token),
        float(server.prefill_s),
    )
    runs = [
        _simulate(*row, *seconds, *limits, keep_steps)
        for row in zip(arrivals, prompt, output, strict=True)
    ]
    joined, first, last, first_step, ends, figures = (
        list(column) for column in zip(*runs, strict=True)
    )
    ttft, latency = np.array(first) - arrivals, np.array(last) - arrivals
    steps, busy_s, batch_s, span_s = np.array(figures).T
    return Simulation(
        wait_s=np.array(joined) - arrivals,
        ttft_s=ttft,
        tpot_s=(latency - ttft) / np.maximum(output - 1, 1),
        latency_s=latency,
        batch=batch_s / np.maximum(busy_s, np.finfo(float).tiny),
        busy_share=busy_s / np.maximum(span_s, np.finfo(float).tiny),
        steps=int(steps.sum()),
        step_ends_s=ends if keep_steps else None,
        first_step=np.array(first_step),
    )


@numba.njit(cache=CACHE)
def _simulate(
    arrivals,
    prompt,
    output,
    prefill_s,
    step_s,
    per_request_s,
    per_cached_s,
    fixed_prefill_s,
    max_batch,
    kv_tokens,
    keep,
):
    n = len(arrivals)
    joined, first, last = np.empty(n), np.empty(n), np.empty(n)
    first_step = np.empty(n, np.int64)
    ends = np.empty(1024 if keep else 0)
    # A calendar: the requests that end with a step hang in its slot, one behind the other.
    slots = output.max()
    slot, behind = np.full(slots, -1), np.full(n, -1)
    now = busy_s = batch_s = cached = reserved = 0.0
    steps = waiting = running = 0
    while waiting < n or running:
        if not running and arrivals[waiting] > now:
            now = arrivals[waiting]
        decode = step_s + per_request_s * running + per_cached_s * cached if running else 0.0
        joining = 0
        begin, prompts = waiting, 0
        while (
            waiting < n
            and arrivals[waiting] <= now
            and running + joining < max_batch
            and reserved + prompt[waiting] + output[waiting] <= kv_tokens
        ):
            end = (steps + output[waiting] - 1) % slots
            slot[end], behind[waiting] = waiting, slot[end]
            joined[waiting], first_step[waiting] = now, steps
            prompts += prompt[waiting]
            reserved += prompt[waiting] + output[waiting]
            joining += 1
            waiting += 1
        step = decode + prefill_s * prompts + (fixed_prefill_s if joining else 0.0)
        now += step
        first[begin:waiting] = now
        running += joining
        busy_s += step
        batch_s += running * step
        cached += prompts + running
        if keep:
            if steps == len(ends):
                ends = np.concatenate((ends, np.empty(len(ends))))
            ends[steps] = now
        request = slot[steps % slots]
        slot[steps % slots] = -1
        while request >= 0:
            last[request] = now
            running -= 1
            cached -= prompt[request] + output[request]
            reserved -= prompt[request] + output[request]
            request = behind[request]
        steps += 1
    kept = ends[:steps] if keep else ends
    return joined, first, last, first_step, kept, (steps, busy_s, batch_s, now - arrivals[0])


# --- goodput ----------------------------------------------------------------------------------


@checked
def highest_rate_req_s(
    server: Server,
    prompt_tokens,
    output_tokens,
    ttft_limit_s: Positive[float],
    tpot_limit_s: Positive[float],
    target: OpenShare[float] = 0.9,
    variation: NonNegative[float] = 1.0,
    requests: Whole[int] = 2000,
    replications: Whole[int] = 8,
    seed: int = 0,
) -> Interval:
    """Find the goodput: the highest rate at which `target` of the requests meet both limits.

    After DistServe. Each replication is searched by itself, on the same requests that come closer
    and closer, to 1 %; the interval is Student's over replications.

    Args:
        server: Numbers, not arrays.
        prompt_tokens: A number, or one a request.
        output_tokens: A number, or one a request.
        ttft_limit_s: Most time to the first token.
        tpot_limit_s: Most mean time between an answer's tokens.
        target: Share of the requests.
        variation: Of the gaps between requests, see `arrivals_s`.
        requests: A replication's, the first tenth of which is left out.
        replications: How often.
        seed: Of the arrivals.

    Returns:
        (requests a second, lo, hi); zeros where even a request alone misses a limit.
    """
    unit = arrivals_s(1.0, requests, replications, variation, seed=seed)

    def held(row: np.ndarray, rate: float) -> bool:
        run = simulate(server, row / rate, prompt_tokens, output_tokens)
        met = (run.ttft_s <= ttft_limit_s) & (run.tpot_s <= tpot_limit_s)
        return bool(met[:, int(requests * WARM_UP_SHARE) :].mean() >= target)

    # From requests so far apart that they hardly meet to twice what a full batch takes.
    alone = simulate(server, [0.0], int(np.max(prompt_tokens)), int(np.max(output_tokens)))
    least = 1e-3 / max(float(alone.latency_s[0, 0]), 1e-12)
    most = 2 * float(capacity_req_s(server, np.mean(prompt_tokens), np.mean(output_tokens)))
    rates = []
    for row in unit:
        low, high = least, most
        if not held(row, low):
            rates.append(0.0)
            continue
        while high > 1.01 * low:
            middle = float(np.sqrt(low * high))
            low, high = (middle, high) if held(row, middle) else (low, middle)
        rates.append(low)
    return mean_interval(np.array(rates))
