"""The published T4 figures (params/published), read as they stand.

Plans and comparisons read them from here. `edge_eval_lib.paper` checks them and argues with them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from edge_eval_lib.paths import project_root

MODEL = ["family", "size"]
ADAPTER = [*MODEL, "task", "method"]
VARIANT = [*ADAPTER, "precision"]
CARDS = 2  # Tesla T4 in the host that served
# Columns that were not published but may be added.
OPTIONAL = {
    "adaptation": "adapt_peak_memory_gb",
    "serving": "repetition",
    "quality": "judge_model",
}


@dataclass(frozen=True)
class Published:
    """The published tables; params/published/README.md says what a row of each is."""

    models: pd.DataFrame
    adaptation: pd.DataFrame
    compression: pd.DataFrame
    serving: pd.DataFrame
    quality: pd.DataFrame
    claims: pd.DataFrame


def folder() -> Path:
    """Return the directory that the published figures come in."""
    return project_root() / "params" / "published"


def read() -> Published:
    """Read the published tables without checking them; a test holds that the checks pass."""
    tables = {
        name: pd.read_csv(folder() / f"{name}.csv", float_precision="round_trip")
        for name in Published.__dataclass_fields__
    }
    for name, column in OPTIONAL.items():
        if column not in tables[name]:
            tables[name][column] = None
    return Published(**tables)


def for_rows(values: pd.Series, rows: pd.DataFrame) -> pd.Series:
    """Look `values` up for each of `rows`, by the columns that index them; NaN where missing."""
    found = values.reindex(pd.MultiIndex.from_frame(rows[list(values.index.names)]))
    return pd.Series(found.to_numpy(), index=rows.index)


def requests_in_flight(serving: pd.DataFrame) -> pd.Series:
    """Return requests decoded at once, by Little's law: tokens per second x seconds per token."""
    return serving["throughput_tok_s"] * serving["tpot_mean_ms"] / 1e3


def observations(figures: Published | None = None) -> pd.DataFrame:
    """Give the figures the shape of a live study's observations, a row a variant with its score.

    What a published figure cannot tell is empty, and `notes` says why. concurrency is the
    requests in flight that throughput and time per token imply; memory_gb is the nominal size of
    the weights, as the paper's; load_energy_j is load seconds x mean serving power, estimated.

    Args:
        figures: The published tables; by default those of params/published.

    Returns:
        A table as `results.tables.variants_table` takes it, its scores from 0 to 1.
    """
    figures = figures or read()
    serving, requests = figures.serving, figures.serving["requests"]
    quality = figures.quality.set_index(VARIANT)
    adapted = figures.adaptation.set_index(ADAPTER)
    sizes = figures.models.set_index(MODEL).filter(regex="^nominal_")
    sizes.columns = sizes.columns.str.extract("nominal_(.*)_gb", expand=False).rename("precision")
    nominal_gb = for_rows(sizes.stack(), serving)
    compression = _compression_of(figures.compression, serving)
    qlora = serving["method"] == "qlora"
    table = serving[VARIANT].assign(
        repetition=pd.to_numeric(serving["repetition"]).fillna(1).astype(int),
        concurrency=requests_in_flight(serving).round().astype(int),
        engine="vllm (published)",
        gpus=CARDS,
        host="2x Tesla T4 (published)",
        merge_base=np.array(["fp16" if q else None for q in qlora], dtype=object),
        adapt_energy_j=for_rows(adapted["adapt_energy_j"], serving),
        adapt_s=for_rows(adapted["adapt_s"], serving),
        adapt_peak_memory_gb=for_rows(adapted["adapt_peak_memory_gb"], serving).astype(float),
        adapt_power_w=for_rows(adapted["adapt_power_w"], serving),
        compress_energy_j=compression["compress_energy_j"],
        compress_s=compression["compress_s"],
        load_energy_j=serving["load_s"] * serving["power_mean_w"],
        load_s=serving["load_s"],
        energy_per_request_j=serving["serve_energy_j"] / requests,
        energy_per_token_j=serving["serve_energy_j"] / serving["output_tokens"],
        throughput_tok_s=serving["throughput_tok_s"],
        ttft_ms=serving["ttft_mean_ms"],
        tpot_ms=serving["tpot_mean_ms"],
        memory_gb=nominal_gb,
        memory_nominal_gb=nominal_gb,
        requests=requests,
        output_tokens_per_request=serving["output_tokens"] / requests,
        power_w=serving["power_mean_w"],
        score=for_rows(quality["score_mean"] / quality["score_maximum"], serving),
        energy_source="nvml-power (published); load estimated",
        run=[f"published_{row}" for row in serving.index],
    )
    notes = pd.DataFrame(
        {
            "always": "memory_gb: nominal size of the weights, not measured; "
            "load_energy_j: estimated, load seconds x mean serving power; "
            "energy_per_request_net_j: no idle power was published; "
            "adapt_peak_memory_gb, reserved_gb, ttft_p95_ms, tpot_p95_ms, "
            "input_tokens_per_request, natural_tokens_per_request: not published",
            "score": "score: " + for_rows(quality["score_metric"], serving) + ", mean of 3 passes",
            "load": "concurrency: requests in flight that throughput and time per token imply",
            "merge": np.array(
                [
                    "compress_energy_j: merge only, no quantisation was published" if q else None
                    for q in qlora
                ],
                dtype=object,
            ),
            "doubt": serving.get("implausible"),
        },
        index=serving.index,
    )
    table["notes"] = ["; ".join(filter(pd.notna, row)) for row in notes.to_numpy()]
    return table


def _compression_of(compression: pd.DataFrame, serving: pd.DataFrame) -> pd.DataFrame:
    """Energy and seconds from adapter to served weights: its merge, and its quantisation if any."""
    merges = compression[compression["operation"] == "merge"].set_index(ADAPTER)
    quantised = compression[compression["operation"] == "quantize"].set_index(VARIANT)
    needs_quantising = (serving["method"] == "lora") & (serving["precision"] != "fp16")
    return pd.DataFrame(
        {
            column: for_rows(merges[column], serving)
            + for_rows(quantised[column], serving).where(needs_quantising, 0.0)
            for column in ("compress_energy_j", "compress_s")
        }
    )
