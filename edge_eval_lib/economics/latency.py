"""Latency: what a reader waits for, whether deadlines are met, and what the hardware allows.

Every argument may be a number or an array unless it is said to be a sequence. A negative, NaN or
impossible argument raises ValueError that names it.
"""

from __future__ import annotations

import numpy as np

from edge_eval_lib.bounds import (
    require_finite,
    require_non_negative,
    require_positive,
    require_share,
    require_whole,
)

# Times that differ by less than this, s, count as equal: sums of decimals do not meet exactly.
_SAME_TIME_S = 1e-9


def latency_s(ttft_s, tpot_s, output_tokens):
    """Seconds from submission to the last token: TTFT + TPOT (N - 1).

    After arXiv 2405.17147, which writes N; TPOT here is the mean of the N - 1 intervals between N
    tokens, so that N - 1 is exact. ValueError for less than one token.
    """
    require_non_negative(ttft_s=ttft_s, tpot_s=tpot_s)
    require_whole(1, output_tokens=output_tokens)
    require_finite(ttft_s=ttft_s, tpot_s=tpot_s, output_tokens=output_tokens)
    return ttft_s + tpot_s * (output_tokens - 1)


def deadline_miss_rate(intervals_s, ttft_s: float, tbt_s: float) -> float:
    """Share of one answer's deadlines that were missed, 0..1 (project-etalon's fluidity).

    `intervals_s` is the sequence of waits before each token; its first is the time to the first
    token. Deadlines start at `ttft_s` and follow every `tbt_s`. A late token misses every deadline
    that passed before it came, each of which counts as a token of the total; the next deadline is
    then its arrival + tbt_s. A token exactly in time is met.
    """
    intervals = _sequence("intervals_s", intervals_s)
    require_non_negative(intervals_s=intervals, ttft_s=ttft_s)
    require_positive(tbt_s=tbt_s)
    deadline = ttft_s
    missed = total = 0
    for arrival in np.cumsum(intervals):
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


def quality_of_experience(token_times_s, ttft_s: float, tok_s: float) -> float:
    """How near an answer came to a reader's pace, 0..1 (Andes, arXiv 2404.16283).

    `token_times_s` are one answer's token arrivals, s since submission, ascending. The reader
    expects the first token at `ttft_s` and then `tok_s` a second. Result: the integral over time of
    the tokens read over that of the tokens expected, both until the reader has finished, at most 1.
    Tokens are a fluid: one is read evenly until the next comes (the last one over the median
    interval), but never faster than `tok_s`. The formula is told here at second hand. By its nature
    one very late last token weighs little: all the others were long read.
    """
    times = _sequence("token_times_s", token_times_s)
    require_non_negative(token_times_s=times, ttft_s=ttft_s)
    require_positive(tok_s=tok_s)
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


def attainment(ttft_ms, tpot_ms, ttft_limit_ms: float, tpot_limit_ms: float) -> float:
    """Share of requests, 0..1, that met both limits; `ttft_ms`, `tpot_ms`: a number a request.

    MLPerf's limits for an 8B model: 2000 and 100 ms; interactive: 500 and 30 ms.
    """
    ttft_ms, tpot_ms = _sequence("ttft_ms", ttft_ms), _sequence("tpot_ms", tpot_ms)
    require_non_negative(ttft_ms=ttft_ms, tpot_ms=tpot_ms)
    require_positive(ttft_limit_ms=ttft_limit_ms, tpot_limit_ms=tpot_limit_ms)
    if len(ttft_ms) != len(tpot_ms):
        raise ValueError(
            f"tpot_ms must have one number a request: {len(ttft_ms)}, not {len(tpot_ms)}"
        )
    return float(np.mean((ttft_ms <= ttft_limit_ms) & (tpot_ms <= tpot_limit_ms)))


def goodput_req_s(rates_req_s, attainments, target: float = 0.9) -> float:
    """The highest request rate at which at least `target` of the requests met their limits.

    After DistServe; `attainments` holds `attainment` at each rate. NaN where no rate reached it:
    what a lower rate would have done is not known.
    """
    rates = _sequence("rates_req_s", rates_req_s)
    attainments = _sequence("attainments", attainments)
    require_positive(rates_req_s=rates)
    require_share(attainments=attainments, target=target)
    if len(rates) != len(attainments):
        raise ValueError(
            f"attainments must have one share a rate: {len(rates)}, not {len(attainments)}"
        )
    return float(max(rates[attainments >= target], default=np.nan))


def prefill_s(parameters, prompt_tokens, peak_flop_s, utilisation=1.0):
    """Seconds of arithmetic for a prompt, 2 P S / (FLOP/s x MFU): the least at utilisation 1.

    `peak_flop_s` in FLOP/s; attention's own operations and kernel launches, which
    arXiv 2506.04645 adds, are left out.
    """
    require_positive(parameters=parameters, peak_flop_s=peak_flop_s, utilisation=utilisation)
    require_share(utilisation=utilisation)
    require_non_negative(prompt_tokens=prompt_tokens)
    return 2 * parameters * prompt_tokens / (peak_flop_s * utilisation)


def decode_step_s(
    weight_bytes,
    parameters,
    bandwidth_byte_s,
    peak_flop_s,
    concurrency=1,
    context_tokens=0,
    kv_bytes_per_token=0,
    utilisation=1.0,
):
    """Seconds for one decoding step of a batch: the slower of reading and computing.

    max((W + B context k) / (bandwidth x MBU), 2 P B / FLOP/s): weights W and the batch's KV cache
    are read once a step, B tokens computed. `utilisation` is the share of the bandwidth (byte/s)
    that is reached; the least possible time at 1. Launch and communication are left out.
    """
    require_positive(
        weight_bytes=weight_bytes,
        parameters=parameters,
        bandwidth_byte_s=bandwidth_byte_s,
        peak_flop_s=peak_flop_s,
        utilisation=utilisation,
    )
    require_share(utilisation=utilisation)
    require_whole(1, concurrency=concurrency)
    require_non_negative(context_tokens=context_tokens, kv_bytes_per_token=kv_bytes_per_token)
    read_bytes = weight_bytes + concurrency * context_tokens * kv_bytes_per_token
    slower = np.maximum(
        read_bytes / (bandwidth_byte_s * utilisation),
        2 * parameters * concurrency / peak_flop_s,
    )
    return slower if np.ndim(slower) else float(slower)


def compute_bound_concurrency(peak_flop_s, bandwidth_byte_s, bytes_per_parameter=2.0):
    """Concurrency from which decoding is bound by arithmetic, KV cache aside: FLOP/s b / (2 BW)."""
    require_positive(
        peak_flop_s=peak_flop_s,
        bandwidth_byte_s=bandwidth_byte_s,
        bytes_per_parameter=bytes_per_parameter,
    )
    return peak_flop_s * bytes_per_parameter / (2 * bandwidth_byte_s)


def _sequence(name: str, values) -> np.ndarray:
    require_finite(**{name: values})
    values = np.asarray(values, dtype=float)
    if values.ndim != 1 or len(values) == 0:
        raise ValueError(f"{name} must be a sequence of at least one number")
    return values
