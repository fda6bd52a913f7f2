"""Options: what a finished study offers, a row for each variant, batch limit and deployment.

Tables of results in, a table out. Measured figures stand as they are; the error of one that was
measured once is that of rows that should be alike.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from edge_eval_lib.economics.server import fit_server
from edge_eval_lib.errors import UserError, nearest
from edge_eval_lib.uncertainty import NORMAL_95

VARIANT = ["family", "size", "task", "method", "precision"]
ON_PREMISES, CLOUD, SERVERLESS, API = "on premises", "cloud", "serverless", "API"
DEPLOYMENTS = (ON_PREMISES, CLOUD, SERVERLESS, API)
RENTED = (CLOUD, SERVERLESS)
TIMED = ["throughput_tok_s", "ttft_ms", "tpot_ms", "power_w"]
NEEDED = [*TIMED, "concurrency", "output_tokens_per_request", "score"]
ONCE = ["adapt_energy_j", "adapt_s", "compress_energy_j", "load_energy_j", "load_s"]
IDLE = ["idle_loaded_power_w", "idle_bare_power_w"]
# Where a study has no two rows that should be alike: the paper's T4 rows differ by 4 % (TPOT).
ASSUMED_ERROR = 0.05


def of_study(
    variants: pd.DataFrame,
    serving: pd.DataFrame | None = None,
    task: str | None = None,
    deployments: Sequence[str] = DEPLOYMENTS,
) -> pd.DataFrame:
    """Tabulate a task's options.

    A variant served at several concurrencies is an option at each: the concurrency is how many
    requests it takes at once, and the latencies are those measured with that many. Variants of
    which a needed figure is missing are left out (`attrs["left_out"]` says which and why).

    Args:
        variants: A study's variants.csv.
        serving: Its serving.csv, for other concurrencies.
        task: Whose variants; by default the first one's.
        deployments: Some of DEPLOYMENTS.

    Returns:
        The options, with `error_<figure>`: relative standard errors of the timed figures, absolute
        of the score; `doubtful` where a validity check is not ok. The API is the last row, with
        prices alone.

    Raises:
        UserError: There is no variant of that task, or none that can be served.
    """
    tasks = list(dict.fromkeys(variants["task"]))
    task = task or (tasks[0] if tasks else "")
    if task not in tasks:
        raise UserError(f"No variant of the task {task!r} was served; {nearest(task, tasks)}")
    unknown = [name for name in deployments if name not in DEPLOYMENTS]
    if unknown:
        raise UserError(
            f"There is no deployment {unknown[0]!r}; {nearest(unknown[0], DEPLOYMENTS)}"
        )
    rows = _operating_points(variants, serving)
    errors = error_of_timed(rows)
    rows = rows[rows["task"] == task]
    missing = rows[NEEDED].isna()
    left_out = {
        row_name(rows.loc[i]): "no " + ", ".join(missing.columns[missing.loc[i]])
        for i in rows.index[missing.any(axis=1)]
    }
    rows = rows[~missing.any(axis=1)].reset_index(drop=True)
    if rows.empty and API not in deployments:
        raise UserError(f"No variant of {task} has the figures that a choice needs: {left_out}.")
    rows = with_shares(_with_errors(rows, errors))
    rows["measured_row"] = np.arange(len(rows))
    loadable = rows[rows["load_s"].notna()]  # what a serverless machine needs to be known
    parts = [
        (loadable if name == SERVERLESS else rows).assign(deployment=name)
        for name in deployments
        if name != API
    ]
    if API in deployments:
        parts.append(pd.DataFrame([{"task": task, "deployment": API, "doubtful": False}]))
    columns = [*rows, "deployment"]  # the API alone has few of them
    options = pd.concat(parts, ignore_index=True).reindex(columns=columns)
    options.attrs["left_out"] = left_out
    return options


def with_shares(rows: pd.DataFrame) -> pd.DataFrame:
    """Add what of a row's figures a request would take that meets no other.

    `step_share` of the time per token, `prompt_share` of the TTFT: by a server fitted to the
    variant at every concurrency (`fit_server`); of a single one the step is taken as fixed, and
    the TTFT as that of so many prompts. `alone_ttft_ms` is at least a step: a prompt reads the
    weights as a step does.
    """
    parts = []
    for _, some in rows.groupby(VARIANT, sort=False):
        at = some["concurrency"].to_numpy(float)
        tpot_s, ttft_s = (some[name].to_numpy(float) / 1e3 for name in ("tpot_ms", "ttft_ms"))
        server = fit_server(at, tpot_s, ttft_s, prompt_tokens=1.0)
        step = server.step_s + server.step_s_per_request * at
        first = server.prefill_s + server.prefill_s_per_token * at
        alone = server.prefill_s + server.prefill_s_per_token
        parts.append(some.assign(step_share=server.step_s / step, prompt_share=alone / first))
    if not parts:
        return rows
    shared = pd.concat(parts).reindex(rows.index)
    tpot_ms = shared["step_share"] * shared["tpot_ms"]
    prompt_ms = shared["prompt_share"] * shared["ttft_ms"]
    least_ms = np.minimum(tpot_ms, shared["ttft_ms"])
    return shared.assign(alone_tpot_ms=tpot_ms, alone_ttft_ms=np.maximum(prompt_ms, least_ms))


def row_name(row) -> str:
    """`llama-1B_rag_lora_int4`; `API` for the API."""
    if not isinstance(row["family"], str):
        return API
    return f"{row['family']}-{row['size']}_{row['task']}_{row['method']}_{row['precision']}"


def error_of_timed(rows: pd.DataFrame) -> dict[str, float]:
    """Return the relative standard error of a figure that was measured once.

    Of LoRA-INT4 and QLoRA-INT4 of one model and task the weights have the same shape and format,
    so that their speed and power should be alike: the root mean square of log(a / b), over √2.
    ASSUMED_ERROR where there is no such pair.
    """
    at = [*VARIANT[:3], "concurrency"]
    int4 = rows[rows["precision"] == "int4"]
    if "concurrency" in int4 and int4["concurrency"].nunique() > 4:  # what was implied, not set
        at = VARIANT[:3]
    pairs = int4[int4["method"] == "lora"].merge(
        int4[int4["method"] == "qlora"], on=at, suffixes=("", "_like")
    )
    errors = {}
    for name in TIMED:
        ratio = np.log(pairs[name] / pairs[f"{name}_like"]).dropna()
        errors[name] = float(np.sqrt((ratio**2).mean() / 2)) if len(ratio) else ASSUMED_ERROR
    return errors


def _operating_points(variants: pd.DataFrame, serving: pd.DataFrame | None) -> pd.DataFrame:
    """Every variant at every concurrency, with what was spent once and the score."""
    if serving is None or serving.empty:
        rows = variants.copy()
    else:
        kept = [c for c in [*VARIANT, *ONCE, "score", "score_lo", "score_hi", "scored_prompts",
                            "memory_nominal_gb", *IDLE] if c in variants]  # fmt: skip
        own = [c for c in serving if c in VARIANT or c not in kept]
        rows = serving[own].merge(variants[kept], on=VARIANT, how="inner")
    columns = [*NEEDED, *ONCE, "score_lo", "score_hi", "scored_prompts", "requests", "gpus",
               "memory_gb", "memory_nominal_gb", "input_tokens_per_request", *IDLE,
               "energy_per_request_lo_j", "energy_per_request_hi_j", "energy_per_request_j",
               *(f"{c}{end}" for c in TIMED for end in ("_lo", "_hi"))]  # fmt: skip
    texts = [*VARIANT, "validity", "energy_source", "host"]
    rows = rows.reindex(columns=[*texts, *columns])
    return rows.astype(dict.fromkeys(columns, float))


def _with_errors(rows: pd.DataFrame, once: dict[str, float]) -> pd.DataFrame:
    """Add `error_<figure>`: by the row's interval where it has one."""
    for name in TIMED:
        own = (rows[f"{name}_hi"] - rows[f"{name}_lo"]) / (2 * NORMAL_95) / rows[name]
        rows[f"error_{name}"] = own.where(np.isfinite(own)).fillna(once[name])
    of_interval = (rows["score_hi"] - rows["score_lo"]) / (2 * NORMAL_95)
    prompts = rows["scored_prompts"].fillna(rows["requests"]).fillna(100)
    of_share = np.sqrt((rows["score"] * (1 - rows["score"])).clip(lower=0) / prompts)
    rows["error_score"] = of_interval.where(np.isfinite(of_interval)).fillna(of_share)
    doubt = rows["validity"].astype(str).str.contains("warning:|invalid:")
    return rows.assign(doubtful=doubt)
