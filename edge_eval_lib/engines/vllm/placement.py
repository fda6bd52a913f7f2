"""Which weights vLLM serves on which device, and how it places them and computes there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from edge_eval_lib.engines.base import context_length
from edge_eval_lib.errors import UserError
from edge_eval_lib.machine import host, nvml

BF16_CAPABILITY = (8, 0)


def load_arguments(directory: Path, compute_dtype: str) -> dict[str, Any]:
    """Return vLLM's arguments: how weights are placed on all GPUs of this process, or the CPU.

    UserError if they cannot be served here.
    """
    refuse_unservable(directory)
    dtype, on_gpu = serving_dtype(compute_dtype, read_quantization(directory).get("weight_bits"))
    return {
        "dtype": dtype,
        "load_format": "safetensors",
        "max_model_len": context_length(directory),
        "tensor_parallel_size": max(1, len(nvml.visible_indices())) if on_gpu else 1,
        "enforce_eager": not on_gpu,  # compiling for a CPU takes longer than it saves
        "seed": 0,
    }


def serving_dtype(compute_dtype: str, weight_bits: int | None = None) -> tuple[str, bool]:
    """Return the type that vLLM is to compute in, and whether that is on a GPU.

    On a CPU it is float32 whatever the study says, for half precision is slower there without
    special instructions; but vLLM's kernel for 4-bit weights is of bfloat16 alone, and so is the
    one that vLLM 0.32 takes for W8A8 where the CPU has AMX (try float32 again with 0.33).

    Raises:
        UserError: bfloat16 is wanted of a GPU that lacks it.
    """
    import torch

    if not torch.cuda.is_available():
        bfloat16_alone = weight_bits == 4 or (weight_bits == 8 and "amx" in host.cpu_flags())
        return "bfloat16" if bfloat16_alone else "float32", False
    if compute_dtype == "bfloat16" and torch.cuda.get_device_capability() < BF16_CAPABILITY:
        raise UserError(
            f"{torch.cuda.get_device_name()} has no bfloat16; set training.compute_dtype: float16."
        )
    return compute_dtype, True


def lora_rank(adapter: Path) -> int:
    """Return the smallest rank that vLLM knows and that holds the adapter."""
    rank = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))["r"]
    return next(r for r in (8, 16, 32, 64, 128, 256, 320, 512) if r >= rank)


def read_quantization(directory: Path) -> dict[str, Any]:
    """Return how weights are quantised: `method`, `weight_bits`, `input_bits`; empty if not."""
    config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    quantization = config.get("quantization_config")
    if not quantization:
        return {}
    groups = list(quantization.get("config_groups", {}).values())
    bits = {
        part: (groups[0].get(part) or {}).get("num_bits") if groups else quantization.get("bits")
        for part in ("weights", "input_activations")
    }
    return {
        "method": quantization["quant_method"],
        "weight_bits": bits["weights"],
        "input_bits": bits["input_activations"] if groups else None,
    }


def refuse_unservable(directory: Path) -> None:
    """Raise UserError for weights that vLLM does not serve on this machine."""
    quantized = read_quantization(directory)
    if quantized.get("method") == "bitsandbytes":
        raise UserError(
            f"{directory.name} was quantised with bitsandbytes, which vLLM does not serve; "
            "compress it in a study with workload.engine: vllm."
        )
    if (
        quantized.get("weight_bits") == 4
        and not nvml.visible_indices()
        and "avx512" not in host.cpu_flags()
    ):
        raise UserError(
            f"{directory.name} has 4-bit weights, which vLLM serves on a GPU or on a CPU with "
            "AVX-512 only; leave int4 out of this study or use workload.engine: transformers."
        )
