"""Columns of the tables: what identifies a row, what was measured, and what is said of both."""

from __future__ import annotations

import re
from collections.abc import Iterable

import numpy as np
import pandas as pd

from edge_eval_lib import metrics, tasks
from edge_eval_lib.economics.published import MODEL, VARIANT

CONFIGURATION = [*MODEL, "method", "precision"]  # whose loads are of one size, whatever the task
METRICS = list(metrics.METRICS)

ADAPTATION = [
    "adapt_energy_j",
    "adapt_energy_lo_j",
    "adapt_energy_hi_j",
    "adapt_s",
    "adapt_peak_memory_gb",
    "adapt_power_w",
    "adapt_train_energy_j",  # of which the training alone, without loading the base
    "adapt_train_s",
    "adapt_train_peak_memory_gb",
]
ADAPTATION_TEXTS = ["adapt_executed_dtype", "adapt_instruction_set", "adapt_host"]
COMPRESSION = ["compress_energy_j", "compress_s"]
LOAD = ["load_energy_j", "load_s"]
LOAD_MODEL = ["load_model_energy_j"]  # without the import of the libraries
COLD_START = [
    "load_energy_j",
    "load_s",
    "load_interpreter_s",
    "load_import_energy_j",
    "load_import_s",
    "load_read_s",
    "load_place_s",
    "load_first_token_s",
]
# The range of an estimated energy ends in `_lo_j`, `_hi_j`, that of a figure made of it in
# `_estimate_lo`, `_estimate_hi`; `_lo`, `_hi` after the whole name is an interval over runs or
# prompts.
RANGES = [
    f"{name}_energy_{end}_j" for name in ("compress", "load", "load_model") for end in ("lo", "hi")
]
IDLE = ["idle_bare_power_w", "idle_loaded_power_w"]
SERVING = [
    "energy_per_request_j",
    "energy_per_request_lo_j",
    "energy_per_request_hi_j",
    "energy_per_request_net_j",
    "energy_per_token_j",
    "throughput_tok_s",
    "ttft_ms",
    "ttft_p95_ms",
    "tpot_ms",
    "tpot_p95_ms",
    "memory_gb",
    "reserved_gb",
    "memory_nominal_gb",
    "power_w",
    "requests",
    "failed_requests",
    "input_tokens_per_request",
    "output_tokens_per_request",
    "natural_tokens_per_request",
]
# Only in tables of studies in which a request is a conversation of several calls.
CALLS = ["calls_per_request", "latency_s"]
TEXTS = [
    "engine",
    "host",
    "executed_dtype",
    "instruction_set",
    "merge_base",
    "energy_source",
    "settings_hash",
    "window",
    "validity",
]
MEASURED = [
    *ADAPTATION,
    *COMPRESSION,
    *LOAD,
    *LOAD_MODEL,
    *RANGES,
    *IDLE,
    *SERVING,
    "batch_agreement",
]
OBSERVATION_COLUMNS = [
    *VARIANT,
    "repetition",
    "concurrency",
    "rate_per_s",  # of an open loop, which has no concurrency
    "prefix_caching",
    "prefix_cache_hit_rate",
    "gpus",
    *TEXTS,
    *ADAPTATION_TEXTS,
    *MEASURED,
    "rows_passed_over",  # of the adaptation: training rows of too many tokens
    "run",
    "notes",
]
# A cold serving run is one observation of these.
OVER_RUNS = [
    "energy_per_request_j",
    "energy_per_request_net_j",
    "energy_per_token_j",
    "throughput_tok_s",
    "ttft_ms",
    "tpot_ms",
    "memory_gb",
]
# Of a table of variants, beside what identifies a row; others come before the last ones.
FIRST = ["repetitions", "concurrency", "engine", "executed_dtype", "gpus"]
MIDDLE = [
    *ADAPTATION,
    *COMPRESSION,
    *LOAD,
    *LOAD_MODEL,
    *RANGES,
    *(f"{c}_pooled" for c in LOAD),
    *IDLE,
    "keep_warm_s",
    *SERVING,
    *CALLS,
    "score",
    "scored_prompts",
    "batch_agreement",
    "n_break",
    "n_break_full",
    "n_break_full_least",
    "n_break_full_most",
    "ipw",
    "score_per_watt",
    "rho_sys",
    "rho_sys_nominal",
    "q_ret_pct",
    "c_tax",
    "c_tax_model",
]
LAST = ["prices", "energy_source", "window", "validity", "merge_base", "host", "instruction_set",
        "settings_hash", "notes"]  # fmt: skip
# What rows must share for their speed and energy to be of the variants alone.
MIXED = {
    "executed_dtype": "executed dtype",
    "engine": "engine",
    "host": "host",
    "instruction_set": "instruction set",
}
ESTIMATED_SOURCE = "cpu-model"  # of energy: the one that is no meter
DOUBTFUL = ("invalid", "warning")
_METHODS = {"lora": "LoRA", "qlora": "QLoRA", "none": "base"}
_ORDER = {
    "task": tasks.names(),
    "method": ["none", "lora", "qlora"],
    "precision": ["fp16", "int8", "int4"],
}


def calls_in(table: pd.DataFrame) -> list[str]:
    """Those of `CALLS` that a table has."""
    return [c for c in CALLS if c in table]


def in_order(table: pd.DataFrame, names: Iterable[str]) -> list[str]:
    """Those of the columns that the table has, each followed by its bounds."""
    ends = ("", "_lo", "_hi", "_estimate_lo", "_estimate_hi")
    return [f"{name}{end}" for name in names for end in ends if f"{name}{end}" in table]


def joined(values: pd.Series) -> str | None:
    """The distinct texts of a group, separated by semicolons; None if there is none."""
    return "; ".join(dict.fromkeys(str(v) for v in values if not pd.isna(v))) or None


def variant_name(row) -> str:
    """`llama-1B_rag_lora_int4`."""
    return f"{row['family']}-{row['size']}_{row['task']}_{row['method']}_{row['precision']}"


def configuration_name(method: str, precision: str) -> str:
    """`LoRA INT4`, `base FP16`; a chain keeps its steps' names, `LoRA depth20-distil-INT4`."""
    stored = precision.upper()
    if "-" in precision:
        stored = re.sub(r"(?<![a-z])[a-z]{2,3}\d+(?!\w)", lambda m: m[0].upper(), precision)
    return f"{_METHODS.get(method, method)} {stored}"


def named(table: pd.DataFrame) -> pd.DataFrame:
    """The table with the names people use: `model`, and `configuration` where it has a method."""
    table = table.assign(model=(table["family"] + "-" + table["size"]).str.removesuffix("-"))
    if "method" in table:
        pairs = zip(table["method"], table["precision"], strict=True)
        table["configuration"] = [configuration_name(*pair) for pair in pairs]
    return table


def parameters_of(size: str) -> float:
    """`135M` -> 1.35e8, `1.5B` -> 1.5e9; infinity for a size that is no number (sorts last)."""
    match = re.fullmatch(r"([\d.]+)([KMBT])", str(size))
    return (
        float(match[1]) * 10.0 ** {"K": 3, "M": 6, "B": 9, "T": 12}[match[2]] if match else np.inf
    )


def sort_variants(table: pd.DataFrame) -> pd.DataFrame:
    """By family, number of parameters, and the paper's order of tasks, methods, precisions."""

    def rank(column: pd.Series) -> pd.Series:
        if column.name == "size":
            return column.map(parameters_of)
        order = _ORDER.get(str(column.name))
        if order is None:
            return column
        return column.map(lambda value: (order.index(value) if value in order else 99, str(value)))

    by = [c for c in [*VARIANT, "concurrency"] if c in table]
    return table.sort_values(by, key=rank, kind="stable", ignore_index=True)


def verdict(validity) -> str:
    """The worst verdict of a `validity`: invalid, warning, ok, or not checked."""
    text = validity if isinstance(validity, str) else ""
    worst = next((word for word in DOUBTFUL if f"{word}:" in text), None)
    return worst or ("ok" if re.search(r"\bok\b", text) else "not checked")


def doubtful_checks(validity: pd.Series) -> pd.Series:
    """The names of the checks that are not ok, a row each name, by the index of `validity`."""
    return validity.astype(str).str.findall(r"(?:invalid|warning): ([^;(]+?) \(").explode().dropna()


def mixed(table: pd.DataFrame) -> list[str]:
    """What the rows of a comparison do not share, a sentence each; none where they share it all.

    Engine, host, executed dtype and instruction set are looked at where the table has them; a
    value that is unknown is none of its own.
    """
    texts = []
    for column, name in MIXED.items():
        if column not in table:
            continue
        groups: dict[str, list[str]] = {}
        for _, row in table.dropna(subset=[column]).iterrows():
            of = _kind_of(row) if column == "executed_dtype" else []
            groups.setdefault(str(row[column]), []).extend(of)
        if len(groups) > 1:
            parts = [
                value + (f" ({', '.join(dict.fromkeys(of))})" if of else "")
                for value, of in groups.items()
            ]
            texts.append(f"Mixed {name}s: {'; '.join(parts)}.")
    return texts


def _kind_of(row: pd.Series) -> list[str]:
    if "source" in row:
        return [str(row["source"])]
    return [str(row["precision"]).upper()] if isinstance(row.get("precision"), str) else []
