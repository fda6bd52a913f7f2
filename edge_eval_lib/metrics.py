"""The five figures of the paper (arXiv 2604.19342), as pure functions.

Every argument is a number, a NumPy array or a pandas Series, and so is the result. A negative,
NaN, infinite or impossible argument raises ValueError that names it; Series must share one index.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from edge_eval_lib.bounds import NonNegative, Positive, Share, checked


@checked
def break_even(
    train_usd: NonNegative,
    setup_usd: NonNegative,
    api_usd_per_request: NonNegative,
    local_usd_per_request: NonNegative,
):
    """N_break = (train_usd + setup_usd) / (api_usd_per_request - local_usd_per_request).

    Args:
        train_usd: Spent on adapting, before the first request.
        setup_usd: Spent on anything else before the first request.
        api_usd_per_request: What the API asks for a request.
        local_usd_per_request: What a request costs when served locally.

    Returns:
        Requests until both ways have cost the same; `inf` where the API costs no more than serving
        locally, however little was spent before.
    """
    arguments = (train_usd, setup_usd, api_usd_per_request, local_usd_per_request)
    train, setup, api, local = (np.asarray(value, dtype=float) for value in arguments)
    spent, saved = train + setup, api - local
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        requests = np.where(saved > 0, spent / saved, np.inf)
    for value in arguments:
        if isinstance(value, pd.Series):
            return pd.Series(requests, index=value.index)
    return requests if requests.ndim else float(requests)


@checked
def intelligence_per_watt(score: Share, energy_per_request_j: Positive, alpha: NonNegative = 1.0):
    """IPW = score * alpha / energy_per_request_j.

    Args:
        score: Lies in 0..1; a judge's 1-10 is divided by 10 first.
        energy_per_request_j: Energy of one request.
        alpha: Weight of the task.

    Returns:
        Score per joule, 1/J, in spite of the paper's name; score per watt is another figure.
    """
    return score * alpha / energy_per_request_j


@checked
def system_density(throughput_tok_s: NonNegative, memory_gb: Positive):
    """rho_sys = throughput_tok_s / memory_gb.

    Args:
        throughput_tok_s: Output tokens per second.
        memory_gb: Memory that serving needs; GB = 10^9 bytes.

    Returns:
        tok/s/GB.
    """
    return throughput_tok_s / memory_gb


@checked
def cold_start_tax(load_energy_j: NonNegative, energy_per_request_j: Positive):
    """C_tax = load_energy_j / energy_per_request_j.

    Args:
        load_energy_j: Energy of loading the model from a cold start.
        energy_per_request_j: Energy of one request.

    Returns:
        How many requests take as much energy as one load.
    """
    return load_energy_j / energy_per_request_j


@checked
def quantization_fidelity(score_quantized: NonNegative, score_fp16: Positive):
    """Q_ret = 100 * score_quantized / score_fp16.

    Args:
        score_quantized: Score of the quantised model, on a scale that starts at zero.
        score_fp16: Score of the same model at FP16; above 0, else nothing was there to retain.

    Returns:
        Percent.
    """
    return 100 * (score_quantized / score_fp16)
