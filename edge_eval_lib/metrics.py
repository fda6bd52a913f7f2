"""The five figures of the paper (arXiv 2604.19342), as pure functions.

Every argument is a number, a NumPy array or a pandas Series, and so is the result. A negative,
NaN, infinite or impossible argument raises ValueError that names it; Series must share one index.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from edge_eval_lib.bounds import (
    require_finite,
    require_non_negative,
    require_positive,
    require_share,
)


def break_even(train_usd, setup_usd, api_usd_per_request, local_usd_per_request):
    """N_break, requests: how many it takes until what was spent before the first one has paid.

    (train_usd + setup_usd) / (api_usd_per_request - local_usd_per_request), all in USD; `inf`
    where the API is not dearer than serving locally, however little was spent before.
    """
    arguments = {
        "train_usd": train_usd,
        "setup_usd": setup_usd,
        "api_usd_per_request": api_usd_per_request,
        "local_usd_per_request": local_usd_per_request,
    }
    require_non_negative(**arguments)
    spent = np.asarray(train_usd, dtype=float) + np.asarray(setup_usd, dtype=float)
    saved = np.asarray(api_usd_per_request, dtype=float) - np.asarray(
        local_usd_per_request, dtype=float
    )
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        requests = np.where(saved > 0, spent / saved, np.inf)
    for value in arguments.values():
        if isinstance(value, pd.Series):
            return pd.Series(requests, index=value.index)
    return requests if requests.ndim else float(requests)


def intelligence_per_watt(score, energy_per_request_j, alpha=1.0):
    """IPW, 1/J: score * alpha / energy_per_request_j.

    `score` lies in 0..1 (a judge's 1-10 is divided by 10 first), `alpha` weighs a task. In spite
    of the paper's name this is score per joule; score per watt is another figure.
    """
    require_share(score=score)
    require_non_negative(alpha=alpha)
    require_positive(energy_per_request_j=energy_per_request_j)
    require_finite(score=score, energy_per_request_j=energy_per_request_j, alpha=alpha)
    return score * alpha / energy_per_request_j


def system_density(throughput_tok_s, memory_gb):
    """rho_sys, tok/s/GB: output tokens per second over memory (GB = 10^9 bytes)."""
    require_non_negative(throughput_tok_s=throughput_tok_s)
    require_positive(memory_gb=memory_gb)
    require_finite(throughput_tok_s=throughput_tok_s, memory_gb=memory_gb)
    return throughput_tok_s / memory_gb


def cold_start_tax(load_energy_j, energy_per_request_j):
    """C_tax, a ratio: the energy of a load over that of a request, both in J."""
    require_non_negative(load_energy_j=load_energy_j)
    require_positive(energy_per_request_j=energy_per_request_j)
    require_finite(load_energy_j=load_energy_j, energy_per_request_j=energy_per_request_j)
    return load_energy_j / energy_per_request_j


def quantization_fidelity(score_quantized, score_fp16):
    """Q_ret, percent: 100 * score_quantized / score_fp16, two scores on one scale from zero.

    ValueError where score_fp16 is 0: nothing was there to retain.
    """
    require_non_negative(score_quantized=score_quantized)
    require_positive(score_fp16=score_fp16)
    require_finite(score_quantized=score_quantized, score_fp16=score_fp16)
    return 100 * (score_quantized / score_fp16)
