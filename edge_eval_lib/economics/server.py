"""A server that batches continuously: its speeds, and what it can take.

In a step every running request gets a token, and waiting ones join with their prompts, first come
first served. A step takes

    step_s + step_s_per_request B + step_s_per_cached_token C         (if any request runs)
    + prefill_s + prefill_s_per_token x prompt tokens that join       (if any request joins)

for B running requests with C tokens cached. A request that joins has its first token at the end of
that step. It reserves room for all its tokens, so that none is ever put out again. batching.py
simulates the same server step by step, steady.py is its steady state.
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
    prefill_s, per_s, intervals, limit = per_request(server, prompt_tokens, output_tokens)
    with np.errstate(divide="ignore"):
        seconds = prefill_s + intervals * (server.step_s / np.maximum(limit, 1) + per_s)
        return np.where(limit > 0, 1 / seconds, 0.0)[()]


def per_request(server: Server, prompt_tokens, output_tokens):
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
