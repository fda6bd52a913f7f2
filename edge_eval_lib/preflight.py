"""What this machine is, what it can measure, and whether a study fits the hardware it declares."""

from __future__ import annotations

from collections.abc import Iterable

import orjson
import pandas as pd

from edge_eval_lib.economics import memory
from edge_eval_lib.energy import Source
from edge_eval_lib.hardware import Host, load_hardware
from edge_eval_lib.models import model_directory
from edge_eval_lib.study import Model, Study

# On a CPU the arithmetic is float32, whatever is stored.
BYTES_PER_VALUE = {"float32": 4.0, "float16": 2.0, "bfloat16": 2.0}


def host_table(host: Host) -> pd.DataFrame:
    """The machine as rows of name and value; one row a GPU."""
    rows = {
        "processor": host.cpu,
        "cores": f"{host.cores} ({host.logical_cpus} logical)",
        "instruction sets": ", ".join(host.cpu_flags) or "none that matters here",
        "memory": f"{host.memory_gb:.1f} GB",
        "system": f"{host.os}, Python {host.python}",
    }
    for gpu in host.gpus:
        rows[f"GPU {gpu.index}"] = (
            f"{gpu.name}, {gpu.memory_gb} GB, compute capability {gpu.compute_capability}, "
            f"power limit {gpu.power_limit_w} W, driver {gpu.driver}"
        )
    if not host.gpus:
        rows["GPU"] = f"none: {host.gpu_reason}"
    return pd.DataFrame({"what": list(rows), "this machine": list(rows.values())})


def source_table(sources: Iterable[Source]) -> pd.DataFrame:
    """Each energy source, whether it can be read here, and of what or why not."""
    return pd.DataFrame(
        [
            {
                "source": source.name,
                "available": source.available,
                "of": ", ".join(source.devices) if source.available else source.reason,
            }
            for source in sources
        ]
    )


def fit_table(study: Study) -> pd.DataFrame:
    """The memory that each model needs at each step, beside what the declared device has.

    Columns: model, step, need_gb, device_gb, verdict (`fits`, `offload`, `does not fit`) and
    reason, which says why need_gb is missing. The needs are estimates from the model's shape.
    """
    device = load_hardware(study.hardware)
    rows = []
    for model in study.models:
        try:
            config = orjson.loads((model_directory(model) / "config.json").read_bytes())
            needs = _needs(memory.shape_from_config(config), model, study)
            reason = None
        except ValueError as error:
            needs, reason = {"every step": None}, str(error)
        for step, need in needs.items():
            rows.append(
                {
                    "model": model.name,
                    "step": step,
                    "need_gb": None if need is None else need.total_gb,
                    "device_gb": device.memory_gb,
                    "verdict": None if need is None else need.verdict(device.memory_gb),
                    "reason": reason,
                }
            )
    return pd.DataFrame(rows)


def _needs(
    shape: memory.ModelShape, model: Model, study: Study
) -> dict[str, memory.MemoryEstimate]:
    training, workload = study.training, study.workload
    value_bytes = BYTES_PER_VALUE[training.compute_dtype]
    needs = {}
    for method in dict.fromkeys(c.method for c in study.configurations if c.method != "none"):
        needs[f"adapt by {method}"] = memory.training_memory(
            shape,
            method,
            training.batch_size,
            training.max_tokens,
            training.lora_rank,
            modules=training.target_modules,
            lora_dropout=training.lora_dropout,
            gradient_checkpointing=training.gradient_checkpointing,
            base_precision="fp32" if value_bytes == 4 else "fp16",
        )
    for precision in dict.fromkeys(c.precision for c in study.configurations):
        # FP16 weights that are computed with in float32 are held in float32.
        held = "fp32" if precision == "fp16" and value_bytes == 4 else precision
        needs[f"serve {precision}"] = memory.serving_memory(
            shape,
            held,
            max(workload.concurrency),
            training.max_tokens + workload.output_tokens,
            bytes_per_value=value_bytes,
        )
    return needs
