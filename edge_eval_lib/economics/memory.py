"""Memory: the KV cache, and whether training or serving a model fits a device.

Estimates from a model's shape, for planning before anything runs; GB = 10^9 bytes. A negative, NaN
or impossible argument raises ValueError that names it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass, replace
from typing import Any

import numpy as np

from edge_eval_lib.bounds import (
    NonNegative,
    Positive,
    Share,
    Whole,
    checked,
    require,
)
from edge_eval_lib.economics.shape import FORMATS, LORA_MODULES, ModelShape

VALUE_BYTES = {"fp32": 4.0, "fp16": 2.0}
# What vLLM's profiling run holds beside the weights on a GPU, whatever the model's size: it samples
# for as many requests as it may serve at once. 38.9 B a logit of Llama-3.1-8B on an H100 (4.76 GiB
# over 1,024 x 128,256); Qwen3-0.6B, Qwen3-32B and gpt-oss-20b lie within 2 % of that
# (github.com/llm-d/llm-d-benchmark, config_explorer/empirical-vllm-memory-results.md).
VLLM_SAMPLER_BYTES = 38.9
NON_TORCH_GIB = 0.13  # the device's context and libraries, of the same runs
GIB = 2**30
# Resident memory of a process on a CPU beside its model (x86-64, torch 2.13, transformers 5.19):
# 0.51 and 0.54 in the windows of the default study's imports, to serve and to train, and up to 0.1
# more once a model was served or trained.
CPU_LIBRARIES_GB = {"serve": 0.555, "train": 0.65}
# On a CPU a cache that grows by concatenation stays resident twice: what a step frees is too small
# for what the next one asks. With prompts of 60 to 220 tokens, eight at a time, SmolLM2-135M grew
# by 0.8 (INT4) to 1.0 MB (FP16) a token of each; its cache takes 0.37, its activations 0.17.
CPU_CACHES = 2


@checked
def kv_cache_bytes_per_token(
    layers: Whole, kv_heads: Whole, head_dim: Whole, bytes_per_value: Positive = 2
):
    """Compute what one token takes in the KV cache: 2 x layers x heads x size x bytes.

    The 2 are keys and values. Source: arXiv 2309.06180, which gives 819,200 for OPT-13B.

    Args:
        layers: Layers that attend.
        kv_heads: Key-value heads: fewer than attention heads in grouped-query attention.
        head_dim: Size of a head.
        bytes_per_value: 2 for 16-bit values.

    Returns:
        Bytes.
    """
    return 2 * layers * kv_heads * head_dim * bytes_per_value


@checked
def kv_cache_bytes(tokens: NonNegative, bytes_per_token: NonNegative, window: Whole | None = None):
    """Compute the size of one sequence's KV cache.

    Args:
        tokens: Of prompt and answer.
        bytes_per_token: Of `kv_cache_bytes_per_token`.
        window: Length of a sliding window, of which only the last tokens are kept.

    Returns:
        Bytes.
    """
    return (tokens if window is None else np.minimum(tokens, window)) * bytes_per_token


@dataclass(frozen=True)
class MemoryEstimate:
    """What a run needs on its device, part by part, GB: numbers, or arrays."""

    weights_gb: float
    adapter_gb: float = 0.0
    gradients_gb: float = 0.0
    optimiser_gb: float = 0.0
    activations_gb: float = 0.0
    kv_cache_gb: float = 0.0
    workspace_gb: float = 0.0  # what the engine holds whatever the model: libraries, buffers

    @property
    def total_gb(self) -> float:
        """All parts together."""
        return sum(astuple(self))

    @property
    def _beside_weights_gb(self) -> float:
        return self.total_gb - self.weights_gb

    @checked
    def verdict(
        self,
        device_memory_gb: Positive,
        host_memory_gb: NonNegative = 0.0,
        reserve_gb: NonNegative = 1.0,
    ) -> Any:
        """Judge whether it fits a device (or several: their memory added up).

        Args:
            device_memory_gb: What the device has.
            host_memory_gb: Where weights may wait that the device cannot hold.
            reserve_gb: Stays free for the device's context, the libraries' buffers and
                fragmentation.

        Returns:
            `offload` where the weights do not fit as a whole, yet all other parts do, and the
            weights that are over fit the host's memory.
        """
        usable_gb = np.asarray(device_memory_gb) - reserve_gb
        over_gb = self.total_gb - usable_gb
        may_offload = (self._beside_weights_gb < usable_gb) & (over_gb <= host_memory_gb)
        verdict = np.where(over_gb <= 0, "fits", np.where(may_offload, "offload", "does not fit"))
        return verdict if verdict.ndim else str(verdict)

    def on_cards(self, cards: int) -> MemoryEstimate:
        """Return each card's share where tensor parallelism splits weights and cache evenly.

        Activations and workspace are whole on every card.
        """
        require(Whole, cards=cards)
        return replace(
            self,
            weights_gb=self.weights_gb / cards,
            adapter_gb=self.adapter_gb / cards,
            gradients_gb=self.gradients_gb / cards,
            optimiser_gb=self.optimiser_gb / cards,
            kv_cache_gb=self.kv_cache_gb / cards,
        )


def side_by_side(first: MemoryEstimate, second: MemoryEstimate) -> MemoryEstimate:
    """Add up two models that one process holds and serves in turn.

    Weights and caches of both; activations and the engine's own of the larger, for libraries are
    there once and one model computes at a time.
    """
    return MemoryEstimate(
        weights_gb=first.weights_gb + second.weights_gb,
        kv_cache_gb=first.kv_cache_gb + second.kv_cache_gb,
        activations_gb=max(first.activations_gb, second.activations_gb),
        workspace_gb=max(first.workspace_gb, second.workspace_gb),
    )


def cpu_workspace_gb(shape: ModelShape, precision: str, training: bool = False) -> float:
    """Estimate what is resident on a CPU beside weights and cache, GB.

    The libraries; and with bitsandbytes what was read in 16 bits and is held otherwise: weights are
    used where the file maps them, so that the file's embeddings and norms stay resident beside
    those in fp32. What loading freed is given back (`machine.heap`). NF4's scales are unpacked when
    they are loaded (`models.load.unpack_scales`).
    """
    beside = 0.0
    if precision not in VALUE_BYTES:
        beside = VALUE_BYTES["fp16"] * (shape.parameters - shape.linear_parameters)
    if precision == "int4":
        single, double = FORMATS["nf4-single"], FORMATS["int4"]
        more_bytes = single.bytes_per_weight - double.bytes_per_weight
        beside += more_bytes * shape.linear_parameters
    return CPU_LIBRARIES_GB["train" if training else "serve"] + beside / 1e9


def vllm_workspace_gb(shape: ModelShape, most_requests: Any = 256) -> Any:
    """Estimate what vLLM holds on each GPU beside weights and KV cache, GB.

    38.9 B x vocabulary x requests that it may serve at once (`max_num_seqs`) + 0.13 GiB.
    """
    require(Whole, most_requests=most_requests)
    sampling = VLLM_SAMPLER_BYTES * shape.vocabulary_size * most_requests
    return (sampling + NON_TORCH_GIB * GIB) / 1e9


@checked
def serving_memory(
    shape: ModelShape,
    precision: Any,
    concurrency: Whole,
    tokens_per_request: Whole,
    bytes_per_value: Positive = 2.0,
    kv_bytes_per_value: Positive | None = None,
    workspace_gb: NonNegative = 0.0,
) -> MemoryEstimate:
    """Estimate the memory to serve several requests at once.

    Activations are the prompts of one batch passing through one layer (its input and the two inner
    products of the feed-forward part), and a row of logits in fp32 a request.

    Args:
        shape: The model's.
        precision: Of the quantised weights, a key of `shape.FORMATS`, or an array of them.
        concurrency: Requests at once.
        tokens_per_request: Prompt and answer, all in the cache.
        bytes_per_value: Of the type that is computed in; what is not quantised is held in it.
        kv_bytes_per_value: Of a quantised KV cache, 1 for 8 bits; by default `bytes_per_value`.
        workspace_gb: What the engine holds whatever the model (`vllm_workspace_gb`).

    Returns:
        The estimate, part by part; arrays where arguments are.
    """
    if kv_bytes_per_value is None:
        kv_bytes_per_value = bytes_per_value
    per_token = shape.kv_values_per_token * kv_bytes_per_value
    cache = concurrency * kv_cache_bytes(tokens_per_request, per_token, shape.window)
    layer = (
        concurrency
        * tokens_per_request
        * bytes_per_value
        * (4 * shape.hidden_size + 2 * shape.intermediate_size)
    )
    return MemoryEstimate(
        weights_gb=shape.weight_bytes(precision, bytes_per_value) / 1e9,
        activations_gb=(layer + 4 * concurrency * shape.vocabulary_size) / 1e9,
        kv_cache_gb=cache / 1e9,
        workspace_gb=workspace_gb,
    )


@checked
def training_memory(
    shape: ModelShape,
    method: str,
    batch_size: Whole[int],
    tokens: Whole[int],
    lora_rank: int = 16,
    modules: Sequence[str] = LORA_MODULES,
    lora_dropout: Share[float] = 0.0,
    gradient_checkpointing: bool = True,
    base_precision: str = "fp16",
    answer_tokens: Whole[int] | None = None,
    workspace_gb: NonNegative[float] = 0.0,
    adapted_share: Share[float] = 1.0,
) -> MemoryEstimate:
    """Estimate the memory to train with AdamW: a LoRA adapter over a frozen base, or all weights.

    `full` fine-tuning holds 16 B a parameter: in fp32 weights, gradients and two moments; in 16
    bits weights and gradients, an fp32 copy and the moments (ZeRO, arXiv 1910.02054).

    Adapter, gradients and AdamW's two moments are fp32. Of an NF4 base, all that is not quantised
    (embeddings, output head, norms) is cast to fp32 by peft's prepare_model_for_kbit_training;
    what passes from layer to layer is then fp32 as well, and where 16 bits are computed in,
    autocast keeps a 16-bit copy of the output head.

    With gradient checkpointing every layer's input is held and, at a time, one layer's activations
    or the logits, which are done with before the first layer is computed again; without, all
    layers' and the logits. Logits are held in the compute type, and in fp32 with their gradient.
    What a layer holds was counted from the tensors that PyTorch kept for the backward pass of small
    Llamas under peft (attention scores never stored); the estimate is within 8 % of that.

    Args:
        shape: The model's.
        method: `lora`, `qlora` (over an NF4 base) or `full`.
        batch_size: Examples of a batch.
        tokens: Of the longest example.
        lora_rank: The adapter's.
        modules: Linear modules that the adapter is added to.
        lora_dropout: Share of the adapter's inputs that is dropped.
        gradient_checkpointing: Whether activations are computed again instead of held.
        base_precision: `fp32` or `fp16`: the type that is computed in, and held in for `lora`.
        answer_tokens: Of the longest answer, for which logits are computed; by default `tokens`.
        workspace_gb: What the libraries hold whatever the model.
        adapted_share: Share of the layers that carry the adapter, the last ones: those before them
            keep nothing for the backward pass.

    Returns:
        The estimate, part by part.
    """
    if method not in ("lora", "qlora", "full"):
        raise ValueError(f"method must be 'lora', 'qlora' or 'full', not {method!r}")
    if base_precision not in VALUE_BYTES:
        raise ValueError(f"base_precision must be 'fp32' or 'fp16', not {base_precision!r}")
    answer_tokens = tokens if answer_tokens is None else answer_tokens
    is_full, value_bytes = method == "full", VALUE_BYTES[base_precision]
    modules = () if is_full else modules
    layers = round(adapted_share * shape.layers)
    adapter = 0 if is_full else 4 * shape.lora_parameters(lora_rank, modules) * adapted_share
    batch_tokens = batch_size * tokens
    layer = batch_tokens * _layer_bytes_per_token(shape, modules, lora_dropout, value_bytes)
    layer_input = shape.hidden_size * batch_tokens * (4 if method == "qlora" else value_bytes)
    logits = batch_size * answer_tokens * shape.vocabulary_size * (value_bytes + 8)
    if method == "qlora" and value_bytes < 4:
        logits += shape.vocabulary_size * shape.hidden_size * value_bytes  # the head's copy
    if gradient_checkpointing:
        activations = layers * layer_input + max(layer, logits)
    else:
        activations = layers * layer + logits
    weight_bytes = (
        shape.weight_bytes("int4", 4) if method == "qlora" else shape.weight_bytes(base_precision)
    )
    gradients, moments = adapter, 2 * adapter
    if is_full:
        gradients, moments = weight_bytes, 16 * shape.parameters - 2 * weight_bytes
    return MemoryEstimate(
        weights_gb=weight_bytes / 1e9,
        adapter_gb=adapter / 1e9,
        gradients_gb=gradients / 1e9,
        optimiser_gb=moments / 1e9,
        activations_gb=activations / 1e9,
        workspace_gb=workspace_gb,
    )


def _layer_bytes_per_token(
    shape: ModelShape, modules: Sequence[str], lora_dropout: float, value_bytes: float
) -> float:
    """Bytes that the backward pass of one adapted layer keeps for a token."""
    sizes = shape.module_sizes
    queries, keys = sizes["q_proj"][1], sizes["k_proj"][1]
    values = 4 * shape.intermediate_size + 4 * shape.hidden_size + 2 * queries + 2 * keys
    # The adapter is fp32: a 16-bit input is copied for it, and dropout keeps its own.
    copy_bytes = 4 if value_bytes < 4 else 0
    if lora_dropout > 0:
        copy_bytes += 4 if value_bytes < 4 else 6
    return value_bytes * values + copy_bytes * sum(sizes[m][0] for m in modules)
