"""The QLoRA paradox taken apart: time and power, arithmetic, memory."""

from __future__ import annotations

import numpy as np
import pandas as pd

from edge_eval_lib.economics.published import MODEL, for_rows
from edge_eval_lib.paper import evidence
from edge_eval_lib.paper.analysis import Paper
from edge_eval_lib.paper.plausible import T4_FP16_FLOPS, T4_FP32_FLOPS
from edge_eval_lib.results.columns import sort_variants

# Training with frozen weights and gradient checkpointing: forward, forward again, and the gradient
# with respect to activations, two operations a parameter each.
FLOPS_PER_PARAMETER_AND_TOKEN = 6.0


def decomposition(paper: Paper) -> pd.DataFrame:
    """Split QLoRA over LoRA energy into time x power, a row a model and task.

    ln(energy ratio) = ln(seconds ratio) + ln(power ratio); the shares are these terms over their
    sum (time above 100 % where power falls). card_seconds_ratio counts both cards of a two-card
    run. A `looks_like_qlora` LoRA run draws per card what QLoRA runs draw.
    """
    runs = paper.figures.adaptation.assign(
        watts_per_card=lambda t: t["adapt_power_w"] / t["gpus"],
        seconds_per_example=lambda t: t["adapt_s"] / t["train_examples"],
    ).set_index([*MODEL, "task", "method"])
    table = paper.adaptation.set_index([*MODEL, "task"])
    wide = runs[["gpus", "watts_per_card", "seconds_per_example", "train_examples"]].unstack()
    log_energy = np.log(table["energy_ratio"])
    watts, cards = wide["watts_per_card"], wide["gpus"]
    result = table[["energy_ratio", "seconds_ratio", "power_ratio"]].assign(
        time_share_pct=100 * np.log(table["seconds_ratio"]) / log_energy,
        power_share_pct=100 * np.log(table["power_ratio"]) / log_energy,
        card_seconds_ratio=table["seconds_ratio"] * cards["qlora"] / cards["lora"],
        watts_per_card_ratio=watts["qlora"] / watts["lora"],
        lora_gpus=cards["lora"],
        lora_watts_per_card=watts["lora"],
        qlora_watts_per_card=watts["qlora"],
        train_examples=wide[("train_examples", "lora")],
    )
    result["looks_like_qlora"] = (
        result["lora_watts_per_card"] >= result["qlora_watts_per_card"].min()
    )
    return sort_variants(result.reset_index())


def training_rate(paper: Paper) -> pd.DataFrame:
    """Return what arithmetic each training run can have used, a row a run.

    tokens_at_fp32_peak: mean tokens an example at which the run would have needed the whole fp32
    peak of its cards. With longer examples it must have run on tensor cores (fp16); bf16 on a T4
    is emulated in fp32 and cannot pass that peak.
    """
    runs = paper.figures.adaptation
    parameters = for_rows(paper.models["parameters"], runs)
    operations = FLOPS_PER_PARAMETER_AND_TOKEN * parameters * runs["train_examples"]
    table = runs[[*MODEL, "task", "method", "gpus", "train_examples", "adapt_s"]].assign(
        tokens_at_fp32_peak=T4_FP32_FLOPS * runs["gpus"] * runs["adapt_s"] / operations,
        tokens_at_fp16_peak=T4_FP16_FLOPS * runs["gpus"] * runs["adapt_s"] / operations,
    )
    return sort_variants(table)


def qlora_beside_embedded(paper: Paper) -> pd.DataFrame:
    """Set the embedded study's QLoRA over LoRA, where measured, beside the paper's."""
    columns = [*MODEL, "task", "energy_ratio", "seconds_ratio", "power_ratio"]
    published_rows = paper.adaptation[columns].assign(study="paper (fp16 against bf16)")
    if paper.embedded_adaptation is None:
        return published_rows
    measured = paper.embedded_adaptation.reindex(columns=columns)
    return pd.concat(
        [measured.assign(study="embedded (same dtype)"), published_rows], ignore_index=True
    )


def qlora_memory(paper: Paper) -> pd.DataFrame:
    """Return memory to train by LoRA and by QLoRA, GB: modelled, and measured where it was.

    The paper published none. saved_pct is what QLoRA saves; basis says where a row comes from.
    """
    modelled = evidence.modelled_training_memory().assign(
        basis="modelled by this kit: longest examples, batch 4, as in params/paper_t4.yaml"
    )
    if paper.embedded_adaptation is None:
        return modelled
    renamed = {"lora_peak_memory_gb": "lora_gb", "qlora_peak_memory_gb": "qlora_gb"}
    runs = paper.embedded_adaptation.rename(columns=renamed)
    runs = runs.reindex(columns=[*MODEL, "task", "lora_gb", "qlora_gb"])
    runs = runs.dropna(subset=["lora_gb", "qlora_gb"])
    runs = runs.assign(
        saved_pct=100 * (1 - runs["qlora_gb"] / runs["lora_gb"]),
        basis="measured by the embedded study",
    )
    return pd.concat([modelled, runs], ignore_index=True) if len(runs) else modelled
