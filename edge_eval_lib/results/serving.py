"""Serving figures: a run's windows and raw data -> throughput, latency, energy, memory."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from edge_eval_lib.economics.latency import latency_s
from edge_eval_lib.energy.meter import worst_verdict

P95_REQUESTS = 20  # of fewer, the 95th percentile is the slowest request or a guess
STEADY_REQUESTS_PER_SLOT = 5  # fewer leave nothing between filling and draining
STEADY_GPU_S = 30.0


def steady_state(
    first_token_s: Sequence[float], last_token_s: Sequence[float], slots: int
) -> tuple[float, float] | None:
    """Begin and end of the time in which all of an engine's slots are taken; None without one.

    The ML.ENERGY benchmark's rule: from when as many requests as there are slots have their first
    token, until so many are finished that one more than the slots is left (n - slots - 1 of n).
    Needs five requests a slot. For engines with continuous batching: static batches fill and drain
    together. Raises ValueError if the two are not of the same requests.
    """
    if len(first_token_s) != len(last_token_s):
        raise ValueError(
            f"first_token_s and last_token_s are of {len(first_token_s)} and {len(last_token_s)} "
            "requests; they must be of the same ones"
        )
    requests = len(first_token_s)
    if slots < 1 or requests < STEADY_REQUESTS_PER_SLOT * slots:
        return None
    begin = sorted(first_token_s)[slots - 1]
    end = sorted(last_token_s)[requests - slots - 2]
    return (begin, end) if end > begin else None


@dataclass(frozen=True)
class Span:
    """The part of a window that throughput and energies are of: `whole` or `steady-state`."""

    label: str
    seconds: float
    tokens: int
    energy_share: float  # of the window's energy


def measured_span(window: Mapping[str, Any], requests: pd.DataFrame, power: pd.DataFrame) -> Span:
    """The steady state where the engine batches continuously, else the whole window.

    On a GPU a steady state must last 30 s. Its energy is the window's, shared out by the power
    samples, so that without samples a window with a known energy stays whole.
    """
    whole = Span("whole", window["s"], int(requests["output_tokens"].sum()), 1.0)
    if "failed_calls" in window:  # conversations, whose rounds begin and end together
        return whole
    open_loop = window["concurrency"] is None
    unshared = window["energy_j"] is not None and power.empty
    if open_loop or unshared or not window["continuous_batching"]:
        return whole
    times = requests["token_times_s"]
    steady = steady_state(times.str[0].tolist(), times.str[-1].tolist(), window["concurrency"])
    if steady is None:
        return whole
    begin, end = steady
    if window["on_gpu"] and end - begin < STEADY_GPU_S:
        return whole
    arrivals = np.concatenate([np.asarray(request, dtype=float) for request in times])
    tokens = int(((arrivals > begin) & (arrivals <= end)).sum())
    zero = window["start_monotonic_s"]
    share = math.nan if power.empty else power_share(power, zero + begin, zero + end)
    return Span("steady-state", end - begin, tokens, share)


def power_share(power: pd.DataFrame, begin_s: float, end_s: float) -> float:
    """The share of a window's energy between two times on the monotonic clock, by its samples."""
    part = whole = 0.0
    for _, samples in power.dropna().groupby("device"):
        times, watts = samples["monotonic_s"].to_numpy(), samples["power_w"].to_numpy()
        inside = times[(times > begin_s) & (times < end_s)]
        at = np.array([begin_s, *inside, end_s])
        part += float(np.trapezoid(np.interp(at, times, watts), at))
        whole += float(np.trapezoid(watts, times))
    return part / whole


def answered_in_s(calls: pd.DataFrame) -> pd.Series:
    """Compute the seconds from each call's submission to its last token.

    A single token has no time per token, and ends with its first.
    """
    tpot_s = calls["tpot_ms"].mask(calls["output_tokens"] == 1, 0.0) / 1e3
    return latency_s(calls["ttft_ms"] / 1e3, tpot_s, calls["output_tokens"])


def per_request(requests: pd.DataFrame) -> pd.DataFrame:
    """Put together the calls of every request that is a conversation; others stay as they are.

    Tokens of its calls are summed. Its first token is that of its last call, which ends in the
    answer, and counts from the submission of the first call; so does `latency_s`, until the last
    token. `tpot_ms` is of the last call, `calls` their number.
    """
    if "call" not in requests:
        return requests
    conversations, key = requests[requests["call"].notna()], ["window", "prompt_id"]
    calls = conversations.sort_values("call", kind="stable")
    first, last = (calls.drop_duplicates(key, keep=end).set_index(key) for end in ("first", "last"))
    counted = ["input_tokens", "output_tokens", "natural_tokens"]
    waited_s = last["submitted_s"] - first["submitted_s"]
    together = pd.DataFrame(
        {
            "submitted_s": first["submitted_s"],
            **calls.groupby(key)[counted].sum(),
            "ttft_ms": 1e3 * waited_s + last["ttft_ms"],
            "tpot_ms": last["tpot_ms"],
            "latency_s": waited_s + answered_in_s(last),
            "calls": calls.groupby(key).size(),
        }
    )
    asked = pd.MultiIndex.from_frame(conversations[key].drop_duplicates())
    alone = requests[requests["call"].isna()]
    return pd.concat([alone, together.loc[asked].reset_index()], ignore_index=True)


def serving_figures(
    window: Mapping[str, Any], requests: pd.DataFrame, power: pd.DataFrame
) -> dict[str, Any]:
    """One concurrency's figures under the names that the tables use; unknown ones are None.

    `window` is its `window_record`, `requests` its rows of the request table, `power` its power
    samples (monotonic_s, device, power_w; empty where its source takes none). What throughput and
    energies are of stands in the figure `window` (`measured_span`); latencies are of all requests.
    Where a request is a conversation (`per_request`), everything is of whole conversations: energy
    per request is the window's, with every call, retry and escalation, over the answers.
    """
    requests = per_request(requests)
    span = measured_span(window, requests, power)
    output_tokens = float(requests["output_tokens"].mean())
    answered = span.tokens / output_tokens  # requests, as a fraction in a steady state
    energy = {
        name: None if window[name] is None else window[name] * span.energy_share
        for name in ("energy_j", "energy_lo_j", "energy_hi_j")
    }
    energy["energy_net_j"], net_reason = None, window["energy_net_reason"]
    if window["energy_net_j"] is not None:
        idle_w = (window["energy_j"] - window["energy_net_j"]) / window["s"]
        net_j = energy["energy_j"] - idle_w * span.seconds
        energy["energy_net_j"] = net_j if net_j > 0 else None
        net_reason = None if net_j > 0 else "less than the idle baseline: within its noise"
    few = len(requests) < P95_REQUESTS
    too_few = f"of {len(requests)} requests; it takes {P95_REQUESTS}" if few else None
    reasons = {
        "ttft_p95_ms": too_few,
        "tpot_p95_ms": too_few,
        "energy_per_request_j": window["energy_reason"],
        "energy_per_request_net_j": net_reason,
        "memory_gb": window["peak_memory_reason"],
        "failed_requests": _counted(window["failures"]),
    }
    memory_gb, kv_cache = window["peak_memory_gb"], window["kv_cache"]
    if memory_gb is not None and kv_cache is not None:
        memory_gb += kv_cache["used_gb"] - kv_cache["reserved_gb"]

    def per(number: float, name: str) -> float | None:
        value = energy[name]
        return None if value is None else value / number

    of_calls = {}
    if "failed_calls" in window:
        reasons["failed_calls"] = _counted(window["failed_calls"])
        of_calls = {
            "calls_per_request": float(requests["calls"].mean()),
            "latency_s": float(requests["latency_s"].mean()),
        }
    return {
        **of_calls,
        "concurrency": window["concurrency"],
        "rate_per_s": window["rate_per_s"],
        "prefix_caching": window["prefix_caching"],
        "prefix_cache_hit_rate": window["prefix_cache_hit_rate"],
        "requests": len(requests),
        "failed_requests": sum(window["failures"].values()),
        "seconds": span.seconds,
        "window": span.label,
        "energy_source": window["energy_source"],
        "energy_per_request_j": per(answered, "energy_j"),
        "energy_per_request_lo_j": per(answered, "energy_lo_j"),
        "energy_per_request_hi_j": per(answered, "energy_hi_j"),
        "energy_per_request_net_j": per(answered, "energy_net_j"),
        "energy_per_token_j": per(span.tokens, "energy_j"),
        "throughput_tok_s": span.tokens / span.seconds,
        "ttft_ms": float(requests["ttft_ms"].mean()),
        "ttft_p95_ms": None if few else float(requests["ttft_ms"].quantile(0.95)),
        "tpot_ms": float(requests["tpot_ms"].mean()),
        "tpot_p95_ms": None if few else float(requests["tpot_ms"].quantile(0.95)),
        "memory_gb": memory_gb,
        "reserved_gb": kv_cache["reserved_gb"] if kv_cache else None,
        "power_w": per(span.seconds, "energy_j"),
        "cpu_s": window["cpu_s"],
        "input_tokens_per_request": float(requests["input_tokens"].mean()),
        "output_tokens_per_request": output_tokens,
        "natural_tokens_per_request": float(requests["natural_tokens"].mean()),
        "verdict": worst_verdict(check["verdict"] for check in window["checks"]),
        "checks": window["checks"],
        "notes": "; ".join(f"{name}: {why}" for name, why in reasons.items() if why) or None,
    }


def _counted(failures: Mapping[str, int]) -> str:
    return ", ".join(f"{n} x {why}" for why, n in failures.items())


def recomputed(
    windows: Sequence[Mapping[str, Any]], requests: pd.DataFrame, power: pd.DataFrame
) -> list[dict[str, Any]]:
    """Compute the figures of every window of a run from what the run kept.

    That is its windows' records, its request table, and its power samples of all windows.
    """
    return [
        serving_figures(
            window,
            requests[requests["window"] == window["window"]],
            power[power["window"] == window["window"]],
        )
        for window in windows
    ]
