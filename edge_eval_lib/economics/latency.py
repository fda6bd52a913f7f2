"""Latency: what a reader waits for, whether deadlines are met, and queues in front of a server.

Every argument may be a number or an array unless it is said to be a sequence. A negative, NaN or
impossible argument raises ValueError that names it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy import special, stats

from edge_eval_lib.bounds import (
    FiniteSequence,
    NonNegative,
    NonNegativeSequence,
    OpenShare,
    Positive,
    Whole,
    checked,
)

# Times that differ by less than this, s, count as equal: sums of decimals do not meet exactly.
_SAME_TIME_S = 1e-9


@checked
def latency_s(ttft_s: NonNegative, tpot_s: NonNegative, output_tokens: Whole):
    """Compute the seconds from submission to the last token: TTFT + TPOT (N - 1).

    After arXiv 2405.17147, which writes N; TPOT here is the mean of the N - 1 intervals between N
    tokens, so that N - 1 is exact.

    Args:
        ttft_s: Time to the first token.
        tpot_s: Mean time between tokens.
        output_tokens: N, at least 1.

    Returns:
        Seconds.
    """
    return ttft_s + tpot_s * (output_tokens - 1)


@checked
def deadline_miss_rate(
    intervals_s: NonNegativeSequence, ttft_s: NonNegative[float], tbt_s: Positive[float]
) -> float:
    """Compute the share of one answer's deadlines that were missed (project-etalon's fluidity).

    A late token misses every deadline that passed before it came, each of which counts as a token
    of the total; the next deadline is then its arrival + tbt_s. A token exactly in time is met.

    Args:
        intervals_s: The waits before each token; the first is the time to the first token.
        ttft_s: The first deadline, since submission.
        tbt_s: Time from one deadline to the next.

    Returns:
        0..1.
    """
    deadline = ttft_s
    missed = total = 0
    for arrival in np.cumsum(intervals_s):
        late = arrival - deadline
        if late <= _SAME_TIME_S:
            total += 1
            deadline += tbt_s
        else:
            passed = int(np.ceil((late - _SAME_TIME_S) / tbt_s))
            missed += passed
            total += passed
            deadline = arrival + tbt_s
    return missed / total


@checked
def quality_of_experience(
    token_times_s: NonNegativeSequence, ttft_s: NonNegative[float], tok_s: Positive[float]
) -> float:
    """Compute how near an answer came to a reader's pace (Andes, arXiv 2404.16283).

    The integral over time of the tokens read over that of the tokens expected, both until the
    reader has finished. Tokens are a fluid: one is read evenly until the next comes (the last one
    over the median interval), but never faster than `tok_s`. The formula is taken from a secondary
    source. One very late last token weighs little: all the others were long read.

    Args:
        token_times_s: One answer's token arrivals since submission, ascending.
        ttft_s: When the reader expects the first token.
        tok_s: Tokens a second that the reader expects from then on.

    Returns:
        0..1.

    Raises:
        ValueError: An argument is impossible, or the times do not ascend.
    """
    times = token_times_s
    intervals = np.diff(times)
    if (intervals < 0).any():
        raise ValueError("token_times_s must ascend")
    count = len(times)
    last_interval = np.median(intervals) if count > 1 else 0.0
    # Token i is done at max(done[i - 1] + 1 / tok_s, next arrival).
    pace = np.arange(1, count + 1) / tok_s
    next_arrival = np.append(times[1:], times[-1] + last_interval)
    done = pace + np.maximum.accumulate(np.maximum(next_arrival - pace, times[0]))
    read = np.trapezoid(np.arange(count + 1), np.concatenate([times[:1], done]))
    reading_s = count / tok_s
    waited_s = max(done[-1] - ttft_s, 0.0)
    expected = tok_s * min(waited_s, reading_s) ** 2 / 2 + count * max(waited_s - reading_s, 0.0)
    return 1.0 if expected <= read else float(read / expected)


@checked
def attainment(
    ttft_ms: NonNegativeSequence,
    tpot_ms: NonNegativeSequence,
    ttft_limit_ms: Positive[float],
    tpot_limit_ms: Positive[float],
) -> float:
    """Compute the share of requests, 0..1, that met both limits; one number a request.

    MLPerf's limits for an 8B model: 2000 and 100 ms; interactive: 500 and 30 ms.
    """
    if len(ttft_ms) != len(tpot_ms):
        raise ValueError(
            f"tpot_ms must have one number a request: {len(ttft_ms)}, not {len(tpot_ms)}"
        )
    return float(np.mean((ttft_ms <= ttft_limit_ms) & (tpot_ms <= tpot_limit_ms)))


@checked
def trace_latencies(
    submitted_s: FiniteSequence, token_times_s: Sequence[Sequence[float] | np.ndarray]
) -> pd.DataFrame:
    """Compute what each request of a trace waited for, a row a request.

    ttft_s = first token - submission; tpot_s = (last - first) / (N - 1); jitter_s = standard
    deviation of the N - 1 intervals; worst_interval_s = the longest of them. With a single token
    there is no interval, and the three are empty.

    Args:
        submitted_s: When each request was submitted.
        token_times_s: When its tokens came, ascending, on the same clock.

    Returns:
        Columns ttft_s, tpot_s, latency_s, jitter_s, worst_interval_s, output_tokens.

    Raises:
        ValueError: A request has no token, or one before it was submitted or before its last.
    """
    if len(submitted_s) != len(token_times_s):
        raise ValueError(
            f"token_times_s must have a sequence a request: {len(submitted_s)}, "
            f"not {len(token_times_s)}"
        )
    rows = []
    for start, tokens in zip(submitted_s, token_times_s, strict=True):
        waits = np.diff(np.asarray(tokens, float), prepend=start)
        if not len(waits) or not (waits >= 0).all():
            raise ValueError("token_times_s must ascend from submission, with at least one token")
        intervals = waits[1:] if len(waits) > 1 else np.array([np.nan])
        rows.append(
            (waits[0], intervals.mean(), waits.sum(), intervals.std(), intervals.max(), len(waits))
        )
    names = ["ttft_s", "tpot_s", "latency_s", "jitter_s", "worst_interval_s", "output_tokens"]
    return pd.DataFrame(rows, columns=names)


@checked
def quantile_interval(
    values: NonNegativeSequence, share: OpenShare[float], confidence: OpenShare[float] = 0.95
) -> tuple[float, float, float]:
    """Estimate a quantile with its distribution-free interval between two order statistics.

    P(X_(l) <= quantile <= X_(u)) by the binomial distribution of how many values lie below it.

    Args:
        values: Independent observations, as of requests that came at random.
        share: 0.95 for the 95th percentile.
        confidence: Least probability that the interval holds the quantile.

    Returns:
        (value, lo, hi); -inf or inf where so few values cannot bound it on that side.
    """
    ordered = np.concatenate([[-np.inf], np.sort(values), [np.inf]])
    below = stats.binom(len(values), share)
    lowest = int(below.ppf((1 - confidence) / 2))
    highest = int(below.ppf((1 + confidence) / 2)) + 1
    value = float(np.quantile(values, share))
    return value, float(ordered[lowest]), float(ordered[highest])


@checked
def erlang_c(servers: Whole, offered_load: NonNegative):
    """Compute the share of requests that must wait in M/M/c (Erlang C).

    C = B / (1 - rho (1 - B)) with rho = a / c and Erlang's B = pmf(c; a) / cdf(c; a) of a Poisson
    variable. From a = c on, all wait: 1.

    Args:
        servers: c.
        offered_load: a = requests a second x seconds of service.

    Returns:
        0..1.
    """
    c, a = np.asarray(servers, float), np.asarray(offered_load, float)
    with np.errstate(divide="ignore", invalid="ignore"):
        log_pmf = special.xlogy(c, a) - a - special.gammaln(c + 1)
        blocked = np.exp(log_pmf) / special.pdtr(c, a)
        waiting = np.where(a < c, blocked / (1 - a / c * (1 - blocked)), 1.0)
    return _plain(waiting)


@checked
def queue_wait_s(rate_req_s: NonNegative, service_s: Positive, servers: Whole = 1):
    """Compute the mean wait before service in M/M/c: C(c, a) x service / (c - a); `inf` at a >= c.

    Args:
        rate_req_s: Requests a second, at random (Poisson).
        service_s: Mean seconds of service, exponentially distributed.
        servers: c, requests that are served at a time.

    Returns:
        Seconds.
    """
    offered = np.multiply(rate_req_s, service_s)
    spare = np.subtract(servers, offered)
    with np.errstate(divide="ignore", invalid="ignore"):
        wait = np.where(spare > 0, erlang_c(servers, offered) * np.divide(service_s, spare), np.inf)
    return _plain(wait)


@checked
def share_served_within(
    limit_s: NonNegative, rate_req_s: NonNegative, service_s: Positive, servers: Whole = 1
):
    """Compute the share of requests whose wait in M/M/c is within a limit.

    1 - C(c, a) exp(-(c - a) limit / service); 0 where the load is too much.
    """
    offered = np.multiply(rate_req_s, service_s)
    spare = np.maximum(np.subtract(servers, offered), 0)
    late = erlang_c(servers, offered) * np.exp(-spare * np.divide(limit_s, service_s))
    return _plain(np.asarray(1 - late))


@checked
def processor_sharing_s(service_s: NonNegative, utilisation: NonNegative):
    """Compute the mean stay in M/G/1 processor sharing: service / (1 - utilisation).

    Holds for any distribution of the service; `inf` from utilisation 1 on.

    Args:
        service_s: Seconds that the request takes when alone.
        utilisation: Requests a second x mean seconds alone.

    Returns:
        Seconds.
    """
    spare = 1 - np.asarray(utilisation, float)
    with np.errstate(divide="ignore", invalid="ignore"):
        stay = np.where(spare > 0, np.asarray(service_s, float) / spare, np.inf)
    return _plain(stay)


def _plain(values: np.ndarray):
    """Return an array, or the float that stands alone in one without dimensions."""
    return values if values.ndim else float(values)
