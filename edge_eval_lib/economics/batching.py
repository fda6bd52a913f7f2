"""Continuous batching: one server under load, simulated step by step, and in closed form.

In a step every running request gets a token, and waiting ones join with their prompts, first come
first served. A step takes

    step_s + step_s_per_request B + step_s_per_cached_token C     (if any request runs)
    + prefill_s_per_token x prompt tokens that join

for B running requests with C tokens cached. A request that joins has its first token at the end of
that step. It reserves room for all its tokens, so that none is ever put out again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numba
import numpy as np

from edge_eval_lib.bounds import (
    NonNegative,
    OpenShare,
    Positive,
    Whole,
    at_least,
    checked,
    require,
    whole,
)
from edge_eval_lib.uncertainty import Interval, mean_interval

SECONDS_PER_DAY = 86_400.0
# Shares of a run's requests that are left out of its statistics: the server starts empty.
WARM_UP_SHARE = 0.1


@checked
@dataclass(frozen=True)
class Server:
    """What a server can do, from its calibrated speeds; `steady_state` also takes arrays.

    `max_batch` bounds the requests that run at a time, `kv_tokens` the tokens that they may hold;
    `inf` where nothing bounds them.
    """

    prefill_s_per_token: NonNegative[Any]
    step_s: NonNegative[Any]
    step_s_per_request: NonNegative[Any] = 0.0
    step_s_per_cached_token: NonNegative[Any] = 0.0
    max_batch: Annotated[Any, whole(1)] = 32
    kv_tokens: Annotated[Any, at_least(1)] = np.inf

    def batch_limit(self, tokens_per_request):
        """Compute how many requests of so many tokens, prompt and answer, run at a time."""
        return np.minimum(self.max_batch, np.floor(self.kv_tokens / tokens_per_request))


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
    weights = np.asarray(profile, float)
    require(NonNegative, profile=weights)
    if len(weights) != 24 or not weights.sum():
        raise ValueError("profile must be 24 weights, one an hour, not all 0")
    shares = np.concatenate([[0.0], np.cumsum(weights) / weights.sum()])
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


@numba.njit(cache=True)
def _simulate(
    arrivals,
    prompt,
    output,
    prefill_s,
    step_s,
    per_request_s,
    per_cached_s,
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
        step = decode + prefill_s * prompts
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


# --- closed form ------------------------------------------------------------------------------


def capacity_req_s(server: Server, prompt_tokens, output_tokens):
    """Compute the requests a second of a batch that is always full; arrays broadcast.

    b / (b prefill + (N - 1)(step + b (per request + per cached token x context))) with b the
    batch's limit and the mean context, prompt + N / 2. 0 where a request does not fit at all.
    """
    prefill_s, per_s, intervals, limit = _per_request(server, prompt_tokens, output_tokens)
    with np.errstate(divide="ignore"):
        seconds = prefill_s + intervals * (server.step_s / np.maximum(limit, 1) + per_s)
        return np.where(limit > 0, 1 / seconds, 0.0)[()]


@dataclass(frozen=True)
class SteadyState:
    """A server under a steady load; `inf` seconds where the load is more than it can take."""

    utilisation: Any  # rate over capacity
    busy_share: Any  # of the time
    batch: Any  # mean requests that run, also over idle time
    waiting_share: Any  # of the requests
    wait_s: Any  # before joining the batch
    ttft_s: Any
    tpot_s: Any
    latency_s: Any
    alone_ttft_s: Any  # of a request that meets no other
    spare_req_s: Any  # capacity - rate: what a queue empties with

    def share_ttft_within(self, limit_s):
        """Estimate the share of requests whose first token comes within `limit_s`.

        Beyond the TTFT of a request alone come the time to join, taken as exponential, and for
        `waiting_share` of the requests a wait that is exponential with the rate `spare_req_s`.
        """
        left = np.maximum(np.subtract(limit_s, self.alone_ttft_s), 0.0)
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            join = 1 / np.maximum(self.ttft_s - self.wait_s - self.alone_ttft_s, 1e-12)
            drain = np.where(self.spare_req_s == join, 0.999 * join, self.spare_req_s)
            joining = np.exp(-join * left)
            both = (join * np.exp(-drain * left) - drain * joining) / (join - drain)
            met = 1 - (1 - self.waiting_share) * joining - self.waiting_share * both
        fits = np.isfinite(self.ttft_s) & np.greater_equal(limit_s, self.alone_ttft_s)
        return np.where(fits, met, 0.0)[()]


def steady_state(server: Server, rate_req_s, prompt_tokens, output_tokens) -> SteadyState:
    """Compute what requests at random (Poisson) meet; arrays broadcast.

    A queue whose speed depends on how many are in it: with b running, a request leaves every
    (b prefill + (N - 1)(step + b per)) / b seconds, where `per` is a request's share of a step.
    That is Erlang C where steps do not depend on the batch, and processor sharing where they are
    proportional to it. The batch and Little's law give the time between tokens. The first token
    comes at the end of the step that follows the one under way: E[S^2] / 2 E[S] until then, and in
    it the prompts of all that came meanwhile.

    Args:
        server: Numbers or arrays.
        rate_req_s: Requests a second.
        prompt_tokens: Mean tokens of a prompt.
        output_tokens: Mean tokens of an answer, at least 1.

    Returns:
        Means in the steady state.
    """
    require(NonNegative, rate_req_s=rate_req_s)
    prefill_s, per_s, intervals, limit = _per_request(server, prompt_tokens, output_tokens)
    rate = np.asarray(rate_req_s, float)
    busy, batch, waiting, wait, ttft, tpot = _balance(
        rate, prefill_s, server.step_s, per_s, intervals, limit
    )
    capacity = capacity_req_s(server, prompt_tokens, output_tokens)
    with np.errstate(divide="ignore", invalid="ignore"):
        utilisation = np.where(capacity > 0, rate / capacity, np.inf)[()]
        latency = np.where(np.isfinite(ttft), ttft + tpot * intervals, np.inf)[()]
    return SteadyState(
        utilisation=utilisation,
        busy_share=busy,
        batch=batch,
        waiting_share=waiting,
        wait_s=wait,
        ttft_s=ttft,
        tpot_s=tpot,
        latency_s=latency,
        alone_ttft_s=prefill_s,
        spare_req_s=np.maximum(capacity - rate, 0.0),
    )


def _per_request(server: Server, prompt_tokens, output_tokens):
    """Return a request's prefill, its share of a step, its intervals and the batch's limit."""
    require(NonNegative, prompt_tokens=prompt_tokens)
    require(Annotated[Any, at_least(1)], output_tokens=output_tokens)
    prompt, output = np.asarray(prompt_tokens, float), np.asarray(output_tokens, float)
    per_s = server.step_s_per_request + server.step_s_per_cached_token * (prompt + output / 2)
    return (
        server.prefill_s_per_token * prompt,
        per_s,
        output - 1,
        server.batch_limit(prompt + output),
    )


@numba.guvectorize(
    "void(f8, f8, f8, f8, f8, f8, f8[:], f8[:], f8[:], f8[:], f8[:], f8[:])",
    "(),(),(),(),(),()->(),(),(),(),(),()",
    nopython=True,
    cache=True,
)
def _balance(
    rate, prefill_s, step_s, per_s, intervals, limit, busy, batch, waiting, wait, ttft, tpot
):  # fmt: skip
    fixed = rate * intervals * step_s
    shared = rate * (prefill_s + intervals * per_s)
    if limit < 1 or fixed / limit + shared >= 1:
        busy[0], waiting[0], batch[0] = 1.0, 1.0, limit
        wait[0] = ttft[0] = tpot[0] = np.inf
        return
    # Shares of the time with k in the server, over that with none, from balance: rate x
    # share(k - 1) = share(k) x speed(k).
    share = total = scale = 1.0
    running = k = 0.0
    ratio = np.inf
    while k < limit and not (ratio < 1 and share * ratio < 1e-14 * total * (1 - ratio)):
        k += 1
        ratio = fixed / k + shared
        share *= ratio
        total += share
        running += k * share
        if total > 1e200:
            share, total, running, scale = (
                share * 1e-200, total * 1e-200, running * 1e-200, scale * 1e-200,
            )  # fmt: skip
    waiting[0] = queue = 0.0
    if k == limit:  # beyond, the speed stays the same
        beyond = share * ratio / (1 - ratio)
        total += beyond
        running += k * beyond
        waiting[0] = (share + beyond) / total
        queue = beyond / (1 - ratio) / total
    busy[0], batch[0] = 1 - scale / total, running / total
    decode = step_s + per_s
    wait[0], ttft[0] = 0.0, prefill_s
    if rate > 0 and busy[0] > 0:
        wait[0] = queue / rate
        tpot[0] = (batch[0] / rate - prefill_s) / intervals if intervals > 0 else 0.0
        decode = step_s + per_s * batch[0] / busy[0]
        # Requests join at random: a step's prompts are Poisson, so are the long steps' visitors.
        step = decode / max(1 - rate * prefill_s, 1e-12)
        met = step + prefill_s * prefill_s * rate
        ttft[0] += wait[0] + busy[0] * (met / 2 + decode + prefill_s * rate * met)
    else:
        tpot[0] = decode if intervals > 0 else 0.0


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
