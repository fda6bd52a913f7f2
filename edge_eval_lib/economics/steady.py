"""The steady state of a server that batches continuously, in closed form: millions a second.

A birth-death queue whose speed depends on how many it serves; server.py says what a step takes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numba
import numpy as np

from edge_eval_lib.bounds import NonNegative, require
from edge_eval_lib.economics.server import CACHE, Server, capacity_req_s, per_request


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
    drain_req_s: Any  # what a queue empties with: (capacity - rate) / bunch
    bunch: Any  # how many requests come together in the mean; below 1 where gaps vary little

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

    Requests come at random (Poisson), or in bunches at random (`bunch_of`), of a geometric size,
    whose requests come at once. Gaps that vary less than at random shorten the wait for a place
    alone, in the proportion of (v^2 + 1) / 2 (Allen and Cunneen).

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
    prefill_s, per_s, intervals, limit = per_request(server, prompt_tokens, output_tokens)
    rate = np.asarray(rate_req_s, float)
    require(NonNegative, variation=variation)
    bunch = _bunch(rate, prefill_s + intervals * (server.step_s + per_s), variation)
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
        bunch=bunch,
    )


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
    prefill_s, per_s, intervals, limit = per_request(server, prompt_tokens, output_tokens)
    most_req_s = np.multiply(capacity_req_s(server, prompt_tokens, output_tokens), most)
    with np.errstate(invalid="ignore", divide="ignore"):
        return _highest(
            most_req_s, prefill_s, server.step_s, per_s, intervals, limit, variation,
            ttft_limit_s, tpot_limit_s, share,
        )  # fmt: skip


@numba.njit(cache=CACHE)
def _gamma_cdf(shape, x):
    """Return the chance that a Gamma variable of scale 1 is at most x, by its series."""
    if x <= 0 or x > 30:
        return 0.0 if x <= 0 else 1.0
    term = total = 1 / shape
    n = shape
    while term > 1e-12 * total:
        n += 1
        term *= x / n
        total += term
    return total * math.exp(shape * math.log(x) - x - math.lgamma(shape))


@numba.njit(cache=CACHE)
def bunch_of(rate, alone_s, variation):
    """Return how many requests come together in the mean, by the variation v of their gaps.

    (v^2 + 1) / 2 in the long run: bunches of that size have gaps that vary as much. Gaps that are
    Gamma distributed (`batching.arrivals_s`) bunch on every scale: the next request is of the same
    bunch if it comes within the time that a request takes alone.
    """
    most = (variation**2 + 1) / 2
    if most <= 1:
        return most
    shape = 1 / variation**2
    more = _gamma_cdf(shape, rate * alone_s * shape)
    return 1 / (1 - min(more, 1 - 1 / most))


@numba.vectorize(["f8(f8, f8, f8)"], cache=CACHE)
def _bunch(rate, alone_s, variation):
    return bunch_of(rate, alone_s, variation)


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


@numba.njit(cache=CACHE)
def _states(given, found):
    """Fill the rows of `found`, a quantity of `_state` each, from those of `given`."""
    for i in range(given.shape[1]):
        found[0, i], found[1, i], found[2, i], found[3, i], found[4, i], found[5, i] = _state(
            given[0, i], given[1, i], given[2, i], given[3, i], given[4, i], given[5, i],
            given[6, i],
        )  # fmt: skip


def _balance(*arguments):
    """Return what `_state` returns, of arguments that broadcast.

    Not by numba's generalised ufuncs: two processes that compile one at once keep parts in its
    cache that do not fit each other (github.com/numba/numba/issues/10128).
    """
    shaped = np.broadcast_arrays(*arguments)
    given = np.array([array.ravel() for array in shaped], dtype=float)
    found = np.empty((6, given.shape[1]))
    _states(given, found)
    return tuple(row.reshape(shaped[0].shape)[()] for row in found)


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
    most_req_s, prefill_s, step_s, per_s, intervals, limit, variation, ttft_limit_s, tpot_limit_s,
    share,
):  # fmt: skip
    if not most_req_s > 0:
        return 0.0
    # What a batch that is always full serves, as capacity_req_s.
    capacity = 1 / (prefill_s + intervals * (step_s / limit + per_s))
    low, high, rate = 0.0, most_req_s, most_req_s
    alone_s = prefill_s + intervals * (step_s + per_s)
    for _ in range(20):
        bunch = bunch_of(rate, alone_s, variation)
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
