"""The five figures of the paper (arXiv 2604.19342), as pure functions.

Every argument is a number, a NumPy array or a pandas Series, and so is the result. A negative,
NaN, infinite or impossible argument raises ValueError that names it; Series must share one index.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

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


@dataclass(frozen=True)
class Metric:
    """What is said of a metric wherever it is shown: the only place for it."""

    name: str  # its column
    symbol: str
    unit: str
    better: Literal["min", "max"]
    formula: str

    @property
    def heading(self) -> str:
        """Symbol and unit, as over a column or beside an axis."""
        return f"{self.symbol} [{self.unit}]"

    def variation(self, words: str) -> str:
        """The heading of the same figure computed in another way."""
        return f"{self.symbol}, {words} [{self.unit}]"


METRICS = {
    metric.name: metric
    for metric in (
        Metric(
            "n_break",
            "N_break",
            "requests",
            "min",
            "electricity of adapting / (the API's price for a request − electricity of a request "
            "here)",
        ),
        Metric("ipw", "IPW", "1/J", "max", "score / energy of a request"),
        Metric(
            "rho_sys", "ρ_sys", "tok/s/GB", "max", "output tokens a second / memory that serving "
            "needed at peak",
        ),
        Metric(
            "q_ret_pct", "Q_ret", "%", "max", "score / score of LoRA-FP16 on the same model, task "
            "and prompts",
        ),
        Metric(
            "c_tax", "C_tax", "ratio", "min", "energy of a cold load up to the first token / "
            "energy of a request",
        ),
    )
}  # fmt: skip
