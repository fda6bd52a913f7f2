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
    (b prefill + (N - 1)(step + b per)) / b seconds, where `per` is a request's share of a step and
    `prefill` what its own prompt takes (as if it joined alone).
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
        server.prefill_s + server.prefill_s_per_token * prompt,
        per_s,
        output - 1,
        server.batch_limit(prompt + output),
    )


@numba.guvectorize(
    "void(f8, f8, f8, f8, f8, f8, f8[:], f8[:], f8[:], f8[:], f8[:], f8[:])",
    "(),(),(),(),(),()->(),(),(),(),(),()",
    nopython=True,
    cache=CACHE,
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
