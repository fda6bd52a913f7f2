"""Whether what a study does fits the memory of the hardware that it declares.

Estimates from the models' shapes, before anything runs; it needs no network and imports no torch.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, NamedTuple

import orjson
import pandas as pd

from edge_eval_lib import compressions, tasks
from edge_eval_lib.economics import memory
from edge_eval_lib.economics.shape import LORA_MODULES, ModelShape, compressed, shape_from_config
from edge_eval_lib.machine.declared import Hardware, load_hardware
from edge_eval_lib.study import Model, Run, Study, Variant

# On a CPU the arithmetic is float32, whatever is stored.
BYTES_PER_VALUE = {"float32": 4.0, "float16": 2.0, "bfloat16": 2.0}
SHORT_ANSWER_SHARE = 0.1  # of training.max_tokens; tasks of longer answers are judged on their own
# What a device keeps for its context, the libraries' buffers and fragmentation.
RESERVE_GB = 1.0


class Fit(NamedTuple):
    """One step of one model on the declared hardware; `need` is None where `reason` says why.

    `verdict` is `fits` (on `devices` of them), `offload` (some weights wait in the host's memory)
    or `does not fit`.
    """

    need: memory.MemoryEstimate | None
    devices: int
    verdict: str | None
    reason: str | None


def shape_of(model: Model) -> ModelShape:
    """Return a model's shape, from its stanza, params/shapes.yaml, its files or the hub's cache.

    Raises:
        ValueError: None of them has it.
    """
    return _shape(model.name, model.source, model.location, model.revision, _frozen(model.config))


def shape_or_like(model: Model) -> ModelShape:
    """Return a model's shape, or one of 32 layers and as many parameters where it is not known.

    Good for times and sizes; whether it fits is judged by a known shape alone.
    """
    try:
        return shape_of(model)
    except ValueError:
        # 32 layers of 4 square projections and 3 of 3.5 times the width: 464 widths squared.
        width = max(1, round((model.parameters / 464) ** 0.5))
        return ModelShape(32, width, round(3.5 * width), 1, 1, width, 1, tied_embeddings=True)


def _frozen(config: dict | None) -> bytes:
    return orjson.dumps(config, option=orjson.OPT_SORT_KEYS)


@functools.cache
def _shape(name: str, source: str, location: str, revision: str, config: bytes) -> ModelShape:
    content = orjson.loads(config)
    if content is None:
        file = Path(location) / "config.json"
        if source == "hub":
            from huggingface_hub import try_to_load_from_cache

            cached = try_to_load_from_cache(location, "config.json", revision=revision)
            file = Path(cached) if isinstance(cached, str) else file
        if not file.is_file():
            raise ValueError(
                f"the shape of {name} is not known here before its weights are: "
                f"params/shapes.yaml has no {location}"
            )
        content = orjson.loads(file.read_bytes())
    return shape_from_config(content)


def step_of(run: Run | Variant) -> str:
    """Return the step of `fit_table` that a run takes, or that serving a variant is."""
    if isinstance(run, Variant):
        return serve_step(run.precision, run.task)
    if run.stage == "adapt":
        return adapt_step(run.parameters["method"], run.parameters["task"])
    return serve_step(run.parameters["precision"], run.parameters["task"])


def serve_step(precision: str, task: str) -> str:
    """Return the step of `fit_table` that serving a task is: one that calls other models too."""
    return f"serve {precision}" + (f", {task}" if tasks.find(task).roles else "")


def adapt_step(method: str, task: str) -> str:
    """Return the step of `fit_table` that adapting to a task is: long answers need more memory."""
    is_long = tasks.find(task).longest_answer_share > SHORT_ANSWER_SHARE
    return f"adapt by {method}" + (f", {task}" if is_long else "")


def fits(
    study: Study, hardware: Hardware | None = None, methods: Sequence[str] | None = None
) -> dict[tuple[str, str], Fit]:
    """Judge every step of every model on the hardware.

    A step's need is that of its largest moment: training with a full batch of the longest
    examples, serving at the highest concurrency with the longest prompts.

    Args:
        study: Whose models, training and workload.
        hardware: By default what the study declares.
        methods: Of adaptation, `lora`, `qlora` or `full`; by default the study's own.

    Returns:
        A `Fit` for each (model, step); the steps are those of `step_of`, or `every step` where
        the model's shape is not known.
    """
    hardware = hardware or load_hardware(study.hardware)
    judged = {}
    for model in study.models:
        try:
            needs = _needs(model, study, hardware, methods)
        except ValueError as error:
            judged[model.name, "every step"] = Fit(None, 1, None, str(error))
            continue
        for step, need in needs.items():
            verdict, devices = _judge(need, hardware, may_offload=step.startswith("serve"))
            judged[model.name, step] = Fit(need, devices, verdict, None)
    return judged


def _judge(need: memory.MemoryEstimate, hardware: Hardware, may_offload: bool) -> tuple[str, int]:
    """Return the verdict, and on how many devices: as few as do."""
    most = max(1, hardware.gpus)
    for devices in range(1, most + 1):
        if need.verdict(devices * hardware.memory_gb, 0.0, devices * RESERVE_GB) == "fits":
            return "fits", devices
    # Training reads every weight twice a step: over the bus it would not end.
    host_gb = (hardware.host_memory_gb or 0.0) if may_offload and hardware.gpus else 0.0
    return need.verdict(most * hardware.memory_gb, host_gb, most * RESERVE_GB), most


def devices_needed(judged: dict[tuple[str, str], Fit], run: Run) -> int:
    """Return over how many of the declared devices a run's model is spread, by `fits`."""
    if run.stage not in ("adapt", "serve", "harness"):
        return 1
    fit = judged.get((run.parameters["model"], step_of(run)))
    return 1 if fit is None else fit.devices


def fit_table(study: Study, hardware: Hardware | None = None) -> pd.DataFrame:
    """Set the memory that each model needs at each step beside what the device has.

    Args:
        study: Whose models, training and workload.
        hardware: By default what the study declares.

    Returns:
        model, step; GB: weights_gb, adapter_gb (with its gradients and optimiser), activations_gb,
        kv_cache_gb, workspace_gb (the engine's own), need_gb (together), device_gb; devices,
        verdict, and reason, which says why need_gb is missing.
    """
    hardware = hardware or load_hardware(study.hardware)
    rows = []
    for (model, step), fit in fits(study, hardware).items():
        row: dict[str, object] = {"model": model, "step": step, "device_gb": hardware.memory_gb}
        row |= {"devices": fit.devices, "verdict": fit.verdict, "reason": fit.reason}
        if need := fit.need:
            row["weights_gb"], row["need_gb"] = need.weights_gb, need.total_gb
            row["adapter_gb"] = need.adapter_gb + need.gradients_gb + need.optimiser_gb
            row["activations_gb"], row["kv_cache_gb"] = need.activations_gb, need.kv_cache_gb
            row["workspace_gb"] = need.workspace_gb
        rows.append(row)
    columns = ["model", "step", "weights_gb", "adapter_gb", "activations_gb", "kv_cache_gb"]
    columns += ["workspace_gb", "need_gb", "device_gb", "devices", "verdict", "reason"]
    return pd.DataFrame(rows).reindex(columns=columns)


def served_need(study: Study, row: Mapping[str, Any]) -> memory.MemoryEstimate:
    """Estimate what a row of tables/serving.csv should have taken, of its own requests' lengths.

    On a CPU the libraries' resident memory is part of what was measured, and what the warm-up at
    the headline concurrency took is not given back; on a GPU neither is.
    """
    variant = Variant(**{field.name: str(row[field.name]) for field in fields(Variant)})
    on_gpu = row["gpus"] > 0
    most = max(int(row["concurrency"]), 1 if on_gpu else study.workload.headline_concurrency)
    tokens = round(row["input_tokens_per_request"] + study.workload.output_tokens)
    return _served_need(study, variant, most, tokens, "none" if on_gpu else "cpu")


def trained_need(study: Study, row: Mapping[str, Any], method: str) -> memory.MemoryEstimate:
    """Estimate what a row of tables/adaptation.csv should have taken by `lora` or `qlora`.

    The examples are taken to be as long as they may be (training.max_tokens).
    """
    share = tasks.find(str(row["task"])).longest_answer_share
    shape = shape_of(study.model(f"{row['family']}-{row['size']}"))
    return _training_need(shape, study, method, share, load_hardware(study.hardware))


def _held(stored: str, value_bytes: float) -> str:
    """FP16 weights that are computed with in float32 are held in float32."""
    return "fp32" if stored == "fp16" and value_bytes == 4 else stored


def _training_need(
    shape: ModelShape, study: Study, method: str, answer_share: float, hardware: Hardware
) -> memory.MemoryEstimate:
    training = study.training
    modules, is_quantised = training.target_modules, method == "qlora"
    stored = "int4" if is_quantised else "fp16"
    workspace_gb = 0.0 if hardware.gpus else memory.cpu_workspace_gb(shape, stored, training=True)
    return memory.training_memory(
        shape,
        method,
        training.batch_size,
        training.max_tokens,
        training.lora_rank,
        modules=LORA_MODULES if modules == "all-linear" else modules,
        lora_dropout=training.lora_dropout,
        gradient_checkpointing=training.gradient_checkpointing,
        base_precision="fp32" if BYTES_PER_VALUE[training.compute_dtype] == 4 else "fp16",
        answer_tokens=max(1, round(answer_share * training.max_tokens)),
        workspace_gb=workspace_gb,
        adapted_share=training.adapted_share,
    )


def _needs(
    model: Model, study: Study, hardware: Hardware, methods: Sequence[str] | None
) -> dict[str, memory.MemoryEstimate]:
    shape, needs = shape_of(model), {}
    longest: dict[str, tuple[Any, float]] = {}
    own = (c.method for c in study.configurations if c.method != "none")
    for method in dict.fromkeys(own if methods is None else methods):
        for task in study.tasks:
            share = tasks.find(task).longest_answer_share
            step = adapt_step(method, task)
            longest[step] = method, max(share, longest.get(step, (method, 0.0))[1])
    for step, (method, share) in longest.items():
        needs[step] = _training_need(shape, study, method, share, hardware)
    served = {
        serve_step(v.precision, v.task): v for v in study.served_variants() if v.model == model.name
    }
    workspace = "cpu" if not hardware.gpus else study.workload.engine
    most = max(*study.workload.concurrency, study.workload.largest_concurrency or 1)
    tokens = study.training.max_tokens + study.workload.output_tokens
    for step, variant in served.items():
        needs[step] = _served_need(study, variant, most, tokens, workspace)
    return needs


def _served_need(
    study: Study, variant: Variant, most: int, tokens: int, workspace: str
) -> memory.MemoryEstimate:
    """Estimate serving `most` requests of so many tokens, and what their conversations call.

    `workspace` is what holds memory of its own: `cpu` for the libraries there, or an engine.
    """
    called = study.called_variants(variant)
    held = [other for role, other in called.items() if not study.engine_of(role).remote]
    needs = [_alone(study, other, most, tokens, workspace) for other in [variant, *held]]
    return functools.reduce(memory.side_by_side, needs)


def _alone(
    study: Study, variant: Variant, most: int, tokens: int, workspace: str
) -> memory.MemoryEstimate:
    shape = compressed(shape_of(study.model(variant.model)), variant.precision)
    stored = compressions.estimated_as(variant.precision)
    value_bytes = BYTES_PER_VALUE[study.training.compute_dtype]
    workspace_gb = 0.0
    if workspace == "cpu":
        workspace_gb = memory.cpu_workspace_gb(shape, stored)
    elif workspace == "vllm":
        workspace_gb = memory.vllm_workspace_gb(shape, most)
    need = memory.serving_memory(
        shape,
        _held(stored, value_bytes),
        most,
        tokens,
        bytes_per_value=value_bytes,
        workspace_gb=workspace_gb,
    )
    if workspace == "cpu":
        need = replace(need, kv_cache_gb=memory.CPU_CACHES * need.kv_cache_gb)
    return need
