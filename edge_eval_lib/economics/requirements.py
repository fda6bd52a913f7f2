"""What a study's models need on any hardware: memory part by part, operations, speed and power."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from edge_eval_lib import compressions
from edge_eval_lib.economics import fit, flops, roofline, speed
from edge_eval_lib.economics.form import QUANTITIES, Calibration
from edge_eval_lib.economics.shape import ModelShape, compressed
from edge_eval_lib.machine.declared import Hardware, load_hardware, load_hardware_file
from edge_eval_lib.study import Study

PARTS = ["weights", "adapter", "gradients", "optimiser", "activations", "kv_cache", "workspace"]
METHODS = ("lora", "qlora", "full")  # of adaptation, whatever the study does
SPEED = [f"{q}{end}" for q in QUANTITIES for end in ("", "_lo", "_hi")]
COLUMNS = [
    *("model", "step", "hardware", "cards"),
    *(f"{part}_gb" for part in PARTS),
    *("need_gb", "device_gb", "verdict", "reason", "flop", "concurrency", "prompt_tokens"),
    *("output_tokens", *SPEED, "extrapolated", "speed_basis"),
]


def requirements(
    study: Study,
    hardware: Sequence[str] | None = None,
    calibration: Calibration | None = None,
) -> pd.DataFrame:
    """Estimate what each step of each model needs and does on each hardware.

    Args:
        study: Whose models, training and workload.
        hardware: Names of params/hardware.yaml; by default the study's and all of them.
        calibration: Of `speed.predict`; by default the published figures'.

    Returns:
        A row a model, step (`fit.step_of`; adaptation by LoRA, QLoRA and of all weights) and
        hardware. GB: parts, need_gb (all parts on `cards`,
        the fewest, together) and device_gb (of one); verdict, and reason where nothing can be
        judged; flop of one request, or of the whole adaptation. Serving steps have speed and power
        of all the hardware's cards together at the study's headline concurrency, prompts of half
        of training.max_tokens, with 90 % intervals.
    """
    names = hardware or list(dict.fromkeys([study.hardware, *load_hardware_file().devices]))
    rows: list[dict[str, Any]] = []
    for name in names:
        declared = load_hardware(name)
        for (model, step), judged in fit.fits(study, declared, METHODS).items():
            row: dict[str, Any] = {"model": model, "step": step, "hardware": name}
            row |= {"cards": judged.devices, "device_gb": declared.memory_gb}
            row |= {"verdict": judged.verdict, "reason": judged.reason}
            if need := judged.need:
                row |= {f"{part}_gb": getattr(need, f"{part}_gb") for part in PARTS}
                row["need_gb"] = need.total_gb
                shape = fit.shape_of(study.model(model))
                row |= _work(study, step, shape, declared, calibration)
            rows.append(row)
    return pd.DataFrame(rows).reindex(columns=COLUMNS)


def _work(
    study: Study,
    step: str,
    shape: ModelShape,
    hardware: Hardware,
    calibration: Calibration | None,
) -> dict[str, Any]:
    """Operations of a step; of serving also speed and power."""
    training, workload = study.training, study.workload
    prompt_tokens, output_tokens = round(training.max_tokens / 2), workload.output_tokens
    parameters, width = shape.matrix_parameters, flops.attention_width(shape)
    if not step.startswith("serve"):
        tokens = study.data.train_examples * training.epochs * prompt_tokens
        method = step.split(",")[0].removeprefix("adapt by ")
        again = training.gradient_checkpointing
        return {"flop": flops.training_flop(parameters, tokens, method, again)}
    chain = step.split(",")[0].removeprefix("serve ")
    precision, shape = compressions.estimated_as(chain), compressed(shape, chain)
    parameters, width = shape.matrix_parameters, flops.attention_width(shape)
    concurrency = workload.headline_concurrency
    answer = flops.decode_flop(parameters, prompt_tokens + output_tokens / 2, width)
    row = {"flop": flops.prefill_flop(parameters, prompt_tokens, width) + output_tokens * answer}
    row |= {"concurrency": concurrency, "prompt_tokens": prompt_tokens}
    device = roofline.device_of(hardware)
    predicted = speed.predict(
        shape, precision, device, concurrency, prompt_tokens, output_tokens, calibration
    )
    figures = predicted.frame().iloc[0]
    row |= {column: figures[column] for column in [*SPEED, "extrapolated"]}
    return row | {"output_tokens": output_tokens, "speed_basis": predicted.basis}
