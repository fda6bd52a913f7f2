"""A server that batches continuously: its speeds, what it can take, and its steady state.

In a step every running request gets a token, and waiting ones join with their prompts, first come
first served. A step takes

    step_s + step_s_per_request B + step_s_per_cached_token C         (if any request runs)
    + prefill_s + prefill_s_per_token x prompt tokens that join       (if any request joins)

for B running requests with C tokens cached. A request that joins has its first token at the end of
that step. It reserves room for all its tokens, so that none is ever put out again. batching.py
simulates the same server step by step.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import numba
import numpy as np
from scipy import optimize

from edge_eval_lib.bounds import (
    NonNegative,
    Positive,
    PositiveSequence,
    at_least,
    checked,
    require,
    whole,
)


def may_cache() -> bool:
    """Check that numba can keep what it compiles: not in a read-only place without a home."""
    try:
        numba.njit(cache=True)(may_cache)
    except RuntimeError:
        return False
    return True


CACHE = may_cache()


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
    prefill_s: NonNegative[Any] = 0.0

    def batch_limit(self, tokens_per_request):
        """Compute how many requests of so many tokens, prompt and answer, run at a time."""
        return np.minimum(self.max_batch, np.floor(self.kv_tokens / tokens_per_request))


@checked
def fit_server(
    concurrency: PositiveSequence,
    tpot_s: PositiveSequence,
    ttft_s: PositiveSequence,
    prompt_tokens: Positive[float],
    max_batch: float = np.inf,
    kv_tokens: float = np.inf,
) -> Server:
    """Fit a server to what was measured with so many requests at a time, all begun together.

    TPOT = step_s + step_s_per_request c; TTFT = prefill_s + prefill_s_per_token c x prompt; no part
    below 0 (non-negative least squares). Of a single concurrency the step is taken as fixed and the
    prefill as proportional.

    Args:
        concurrency: c, a number a measurement.
        tpot_s: Mean time between tokens with each.
        ttft_s: Mean time to the first token with each.
        prompt_tokens: Mean tokens of a prompt.
        max_batch: Of the server.
        kv_tokens: Of the server.
    """
    if not len(concurrency) == len(tpot_s) == len(ttft_s):
        raise ValueError("concurrency must have one number a measurement, as tpot_s and ttft_s")
    ones = np.ones_like(concurrency)
    several = len(np.unique(concurrency)) > 1
    step = optimize.nnls(np.column_stack([ones, several * concurrency]), tpot_s)[0]
    prompts = concurrency * prompt_tokens
    prefill = optimize.nnls(np.column_stack([several * ones, prompts]), ttft_s)[0]
    return Server(prefill[1], step[0], step[1], 0.0, max_batch, kv_tokens, prefill[0])


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
    drain_req_s: Any  # what a queue empties with: (capacity - rate) / mean bunch

    def share_ttft_within(self, limit_s):
        """Estimate the share of requests whose first token comes within `limit_s`.

        Beyond the TTFT of a request alone come the time to join, taken as exponential, and for
        `waiting_share` of the requests a wait that is exponential with the rate `drain_req_s`.
        """
        with np.errstate(invalid="ignore", divide="ignore"):
            return 1 - _late(limit_s, *self._waits)

    def ttft_quantile_s(self, share):
        """Estimate the TTFT that `share` of the requests keep: `share_ttft_within` turned round."""
        with np.errstate(invalid="ignore", divide="ignore"):
            return _ttft_quantile(share, *self._waits)

    @property
    def _waits(self) -> tuple:
        return self.alone_ttft_s, self.ttft_s, self.wait_s, self.waiting_share, self.drain_req_s


def steady_state(
    server: Server, rate_req_s, prompt_tokens, output_tokens, variation=1.0
) -> SteadyState:
    """Compute what requests meet; arrays broadcast.

    A queue whose speed depends on how many are in it: with b running, a request leaves every
    (b prefill + (N - 1)(step + b per)) / b seconds, where `per` is a request's share of a step and
    `prefill` what its own prompt takes (as if it joined alone).
    That is Erlang C where steps do not depend on the batch, and processor sharing where they are
    proportional to it. The batch and Little's law give the time between tokens. The first token
    comes at the end of the step that follows the one under way: E[S^2] / 2 E[S] until then, and in
    it the prompts of all that came meanwhile.

    Requests come at random (Poisson), or in bunches at random: gaps that vary more, by the
    coefficient of variation v, are those of bunches of a geometric size, (v^2 + 1) / 2 in the mean,
    whose requests come at once. Gaps that vary less shorten the wait for a place alone, in the
    proportion of (v^2 + 1) / 2 (Allen and Cunneen).

    Args:
        server: Numbers or arrays.
        rate_req_s: Requests a second.
        prompt_tokens: Mean tokens of a prompt.
        output_tokens: Mean tokens of an answer, at least 1.
        variation: Standard deviation of the gaps between requests over their mean.

    Returns:
        Means in the steady state.
    """
    require(NonNegative, rate_req_s=rate_req_s)
    prefill_s, per_s, intervals, limit = _per_request(server, prompt_tokens, output_tokens)
    rate = np.asarray(rate_req_s, float)
    require(NonNegative, variation=variation)
    bunch = mean_bunch(variation)
    busy, batch, waiting, wait, ttft, tpot = _balance(
        rate, prefill_s, server.step_s, per_s, intervals, limit, bunch
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
        drain_req_s=np.maximum(capacity - rate, 0.0) / bunch,
    )


def mean_bunch(variation):
    """Return how many requests come together in the mean, by the variation of the gaps."""
    return (np.square(variation) + 1) / 2


def highest_steady_rate_req_s(
    server: Server,
    prompt_tokens,
    output_tokens,
    ttft_limit_s,
    tpot_limit_s,
    share=0.9,
    most=1.0,
    variation=1.0,
):
    """Find the rate up to which `share` of the requests keep their TTFT, and the mean its TPOT.

    The closed form of `batching.highest_rate_req_s`, for millions of configurations: bisected on
    `steady_state`, whose latencies never fall with the rate. Arrays broadcast.

    Args:
        server: Numbers or arrays.
        prompt_tokens: Mean tokens of a prompt.
        output_tokens: Mean tokens of an answer.
        ttft_limit_s: Most time to the first token; `inf` for none.
        tpot_limit_s: Most mean time between tokens; `inf` for none.
        share: Of the requests that keep `ttft_limit_s`.
        most: Share of the capacity that the rate may reach at most.
        variation: As of `steady_state`.

    Returns:
        Requests a second; 0 where even a request alone misses a limit.
    """
    prefill_s, per_s, intervals, limit = _per_request(server, prompt_tokens, output_tokens)
    most_req_s = np.multiply(capacity_req_s(server, prompt_tokens, output_tokens), most)
    with np.errstate(invalid="ignore", divide="ignore"):
        return _highest(
            most_req_s, prefill_s, server.step_s, per_s, intervals, limit, mean_bunch(variation),
            ttft_limit_s, tpot_limit_s, share,
        )  # fmt: skip


def _per_request(server: Server, prompt_tokens, output_tokens):
    """Return a request's prefill, its share of a step, its intervals and the batch's limit."""
    require(NonNegative, prompt_tokens=prompt_tokens)
    require(Annotated[Any, at_least(1)], output_tokens=output_tokens)
    prompt, output = np.asarray(prompt_tokens, float), np.asarray(output_tokens, float)
    per_s = server.step_s_per_request + server.step_s_per_cached_token * (prompt + output / 2)
    return (
        server.prefill_s + server.prefill_s_per_token * prompt,
        per_s,
        output - 1,
        server.batch_limit(prompt + output),
    )


@numba.njit(cache=CACHE)
def _queue(fixed, shared, limit, more):
    """Return busy, batch, waiting share and mean queue where another follows with chance `more`."""
    # Shares of the time with k in the server, over that with none, from balance: the rate of
    # bunches that lead from below k to k or beyond = share(k) x speed(k). Of a geometric bunch one
    # more follows with probability `more`; `below` is the sum of share(j) more^(k - 1 - j).
    share = total = scale = 1.0
    running = k = below = 0.0
    ratio = np.inf
    # Small shares fall off by ratio / mean bunch + more at most.
    while k < limit and not (
        ratio * (1 - more) + more < 1
        and share * (ratio + more) < 1e-14 * total * (1 - ratio * (1 - more) - more)
    ):
        k += 1
        ratio = fixed / k + shared
        below = share + more * below
        share = ratio * (1 - more) * below
        total += share
        running += k * share
        if total > 1e200:
            share, total, running, scale, below = (
                share * 1e-200, total * 1e-200, running * 1e-200, scale * 1e-200, below * 1e-200,
            )  # fmt: skip
    waiting = queue = 0.0
    if k == limit:  # beyond, the speed stays the same
        falls = ratio * (1 - more) + more
        first = ratio * (1 - more) * (share + more * below)
        beyond = first / (1 - falls)
        total += beyond
        running += k * beyond
        waiting = (share + beyond + more * below) / total
        queue = first / (1 - falls) ** 2 / total
    return 1 - scale / total, running / total, waiting, queue


@numba.njit(cache=CACHE)
def _state(rate, prefill_s, step_s, per_s, intervals, limit, bunch):
    """Return busy, batch, waiting, wait, ttft, tpot of one server."""
    fixed = rate * intervals * step_s
    shared = rate * (prefill_s + intervals * per_s)
    if limit < 1 or fixed / limit + shared >= 1:
        return 1.0, limit, 1.0, np.inf, np.inf, np.inf
    more = max(1 - 1 / bunch, 0.0)
    busy, batch, waiting, queue = _queue(fixed, shared, limit, more)
    # The step under way is taken to be met as often as at random: by fewer bunches, each of more.
    meets = _queue(fixed, shared, limit, 0.0)[0] if more > 0 else busy
    if not (rate > 0 and busy > 0):
        return busy, batch, 0.0, 0.0, prefill_s, (step_s + per_s if intervals > 0 else 0.0)
    # Gaps that vary less than at random leave the batch as it is and shorten the wait.
    wait = queue / rate * min(bunch, 1.0)
    tpot = (batch / rate - prefill_s) / intervals if intervals > 0 else 0.0
    decode = step_s + per_s * batch / busy
    # Requests join at random: a step's prompts are Poisson, so are the long steps' visitors. Those
    # of a bunch that came before the request join with it, if it finds a place.
    together = prefill_s * max(bunch - 1, 0.0) * (1 - waiting)
    step = decode / max(1 - rate * prefill_s, 1e-12)
    met = step + prefill_s * prefill_s * rate * max(2 * bunch - 1, 1.0)
    ttft = prefill_s + wait + together + meets * (met / 2 + decode + prefill_s * rate * met)
    return busy, batch, waiting, wait, ttft, tpot


@numba.guvectorize(
    "void(f8, f8, f8, f8, f8, f8, f8, f8[:], f8[:], f8[:], f8[:], f8[:], f8[:])",
    "(),(),(),(),(),(),()->(),(),(),(),(),()",
    nopython=True,
    cache=CACHE,
)
def _balance(
    rate, prefill_s, step_s, per_s, intervals, limit, bunch, busy, batch, waiting, wait, ttft, tpot
):  # fmt: skip
    busy[0], batch[0], waiting[0], wait[0], ttft[0], tpot[0] = _state(
        rate, prefill_s, step_s, per_s, intervals, limit, bunch
    )


@numba.njit(cache=CACHE)
def _share_late(limit_s, alone, ttft, wait, waiting, drain):
    if limit_s < alone or not np.isfinite(ttft):
        return 1.0
    if limit_s == np.inf:
        return 0.0
    join = 1 / max(ttft - wait - alone, 1e-12)
    if drain == join:
        drain = 0.999 * join
    joining = np.exp(-join * (limit_s - alone))
    both = (join * np.exp(-drain * (limit_s - alone)) - drain * joining) / (join - drain)
    return (1 - waiting) * joining + waiting * both


@numba.vectorize(["f8(f8, f8, f8, f8, f8, f8)"], cache=CACHE)
def _late(limit_s, alone, ttft, wait, waiting, drain):
    return _share_late(limit_s, alone, ttft, wait, waiting, drain)


@numba.vectorize(["f8(f8, f8, f8, f8, f8, f8)"], cache=CACHE)
def _ttft_quantile(share, alone, ttft, wait, waiting, drain):
    if not np.isfinite(ttft):
        return np.inf
    late = 1 - share
    low, high = alone, ttft
    while _share_late(high, alone, ttft, wait, waiting, drain) > late:
        low, high = high, high + 2 * (high - alone)
    # Secants between the logarithms, which are nearly lines: Illinois' regula falsi.
    above = np.log(_share_late(low, alone, ttft, wait, waiting, drain) / late)
    below = np.log(_share_late(high, alone, ttft, wait, waiting, drain) / late)
    at, side = high, 0
    for _ in range(40):
        if below >= 0 or high - low < 1e-12 * high:
            break
        at = (low * below - high * above) / (below - above)
        found = np.log(_share_late(at, alone, ttft, wait, waiting, drain) / late)
        if abs(found) < 1e-10:
            break
        if found > 0:
            low, above = at, found
            below = below / 2 if side == 1 else below
            side = 1
        else:
            high, below = at, found
            above = above / 2 if side == -1 else above
            side = -1
    return at


@numba.vectorize(["f8(f8, f8, f8, f8, f8, f8, f8, f8, f8, f8)"], cache=CACHE)
def _highest(
    most_req_s, prefill_s, step_s, per_s, intervals, limit, bunch, ttft_limit_s, tpot_limit_s, share
):
    if not most_req_s > 0:
        return 0.0
    # What a batch that is always full serves, as capacity_req_s.
    capacity = 1 / (prefill_s + intervals * (step_s / limit + per_s))
    low, high, rate = 0.0, most_req_s, most_req_s
    for _ in range(20):
        _busy, _batch, waiting, wait, ttft, tpot = _state(
            rate, prefill_s, step_s, per_s, intervals, limit, bunch
        )
        drain = max(capacity - rate, 0.0) / bunch
        late = _share_late(ttft_limit_s, prefill_s, ttft, wait, waiting, drain)
        if late <= 1 - share + 1e-12 and tpot <= tpot_limit_s:
            low = rate
            if rate == most_req_s:
                break
        else:
            high = rate
        rate = (low + high) / 2
        if high - low < 1e-3 * high:
            break
    return low
