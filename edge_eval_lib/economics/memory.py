"""Memory: the KV cache, and whether training or serving a model fits a device.

Estimates from a model's shape, for planning before anything runs; GB = 10^9 bytes. A negative, NaN
or impossible argument raises ValueError that names it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from edge_eval_lib.bounds import (
    NonNegative,
    Positive,
    Share,
    Whole,
    checked,
)
from edge_eval_lib.units import BYTES_PER_WEIGHT

LORA_MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


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


@checked
@dataclass(frozen=True)
class ModelShape:
    """A decoder with gated feed-forward layers (Llama, Qwen, Mistral, Gemma, Phi-3), in numbers."""

    layers: Whole[int]
    hidden_size: Whole[int]
    intermediate_size: Whole[int]
    attention_heads: Whole[int]
    kv_heads: Whole[int]
    head_dim: Whole[int]
    vocabulary_size: Whole[int]
    tied_embeddings: bool = False
    attention_bias: bool = False
    window: Whole[int] | None = None

    @property
    def module_sizes(self) -> dict[str, tuple[int, int]]:
        """(inputs, outputs) of each linear module of a layer, by its usual name."""
        queries = self.attention_heads * self.head_dim
        keys = self.kv_heads * self.head_dim
        hidden, inner = self.hidden_size, self.intermediate_size
        return {
            "q_proj": (hidden, queries),
            "k_proj": (hidden, keys),
            "v_proj": (hidden, keys),
            "o_proj": (queries, hidden),
            "gate_proj": (hidden, inner),
            "up_proj": (hidden, inner),
            "down_proj": (inner, hidden),
        }

    @property
    def linear_parameters(self) -> int:
        """Parameters of the layers' linear modules: what quantisation compresses."""
        return self.layers * sum(inputs * outputs for inputs, outputs in self.module_sizes.values())

    @property
    def parameters(self) -> int:
        """All parameters, tied embeddings counted once."""
        embeddings = self.vocabulary_size * self.hidden_size * (1 if self.tied_embeddings else 2)
        norms = (2 * self.layers + 1) * self.hidden_size
        bias = 0
        if self.attention_bias:
            bias = self.layers * (self.attention_heads + 2 * self.kv_heads) * self.head_dim
        return self.linear_parameters + embeddings + norms + bias

    @checked
    def weight_bytes(self, precision: str, rest_bytes: Positive[float] | None = None) -> float:
        """Compute the bytes of the weights.

        Embeddings, output head and norms are not quantised: they take `rest_bytes` a parameter, by
        default those of fp16 (fp32 where all are).
        """
        if precision not in BYTES_PER_WEIGHT:
            known = list(BYTES_PER_WEIGHT)
            raise ValueError(f"precision must be one of {known}, not {precision!r}")
        if rest_bytes is None:
            rest_bytes = BYTES_PER_WEIGHT["fp32" if precision == "fp32" else "fp16"]
        rest = self.parameters - self.linear_parameters
        return self.linear_parameters * BYTES_PER_WEIGHT[precision] + rest * rest_bytes

    @checked
    def lora_parameters(self, rank: Whole[int], modules: Sequence[str] = LORA_MODULES) -> int:
        """Count a LoRA adapter's parameters: rank x (inputs + outputs) of each layer's modules."""
        sizes = self.module_sizes
        unknown = [m for m in modules if m not in sizes]
        if unknown or not modules:
            raise ValueError(f"modules must be some of {list(sizes)}, not {list(modules)}")
        return self.layers * rank * sum(sum(sizes[m]) for m in modules)


def shape_from_config(config: Mapping[str, Any]) -> ModelShape:
    """Return the shape in a transformers config.json, read as a mapping.

    ValueError naming the first field that it lacks: a model of another kind has other fields.
    Where only some layers slide their window, as in Gemma, none is returned: the cache is then
    estimated from above.
    """

    def field(name: str):
        if config.get(name) is None:
            raise ValueError(f"config has no field {name!r}: not a decoder of a known shape")
        return config[name]

    heads = field("num_attention_heads")
    # Qwen2 has query, key and value biases without saying so in its config.
    bias = config.get("attention_bias", config.get("model_type") == "qwen2")
    every_layer_slides = config.get("use_sliding_window", True) and not (
        str(config.get("model_type")).startswith("gemma")
        or "full_attention" in (config.get("layer_types") or [])
    )
    window = config.get("sliding_window") if every_layer_slides else None
    return ModelShape(
        layers=field("num_hidden_layers"),
        hidden_size=field("hidden_size"),
        intermediate_size=field("intermediate_size"),
        attention_heads=heads,
        kv_heads=config.get("num_key_value_heads") or heads,
        head_dim=config.get("head_dim") or field("hidden_size") // heads,
        vocabulary_size=field("vocab_size"),
        tied_embeddings=bool(config.get("tie_word_embeddings", False)),
        attention_bias=bool(bias),
        window=window,
    )


@dataclass(frozen=True)
class MemoryEstimate:
    """What a run needs on its device, part by part, GB."""

    weights_gb: float
    adapter_gb: float = 0.0
    gradients_gb: float = 0.0
    optimiser_gb: float = 0.0
    activations_gb: float = 0.0
    kv_cache_gb: float = 0.0

    @property
    def total_gb(self) -> float:
        """All parts together."""
        return self.weights_gb + self._beside_weights_gb

    @property
    def _beside_weights_gb(self) -> float:
        return (
            self.adapter_gb
            + self.gradients_gb
            + self.optimiser_gb
            + self.activations_gb
            + self.kv_cache_gb
        )

    @checked
    def verdict(
        self,
        device_memory_gb: Positive[float],
        host_memory_gb: NonNegative[float] = 0.0,
        reserve_gb: NonNegative[float] = 1.0,
    ) -> Literal["fits", "offload", "does not fit"]:
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
        usable_gb = device_memory_gb - reserve_gb
        if self.total_gb <= usable_gb:
            return "fits"
        if self._beside_weights_gb < usable_gb and self.total_gb - usable_gb <= host_memory_gb:
            return "offload"
        return "does not fit"


@checked
def serving_memory(
    shape: ModelShape,
    precision: str,
    concurrency: Whole[int],
    tokens_per_request: Whole[int],
    bytes_per_value: float = 2.0,
) -> MemoryEstimate:
    """Estimate the memory to serve several requests at once.

    Activations are the prompts of one batch passing through one layer (its input and the two inner
    products of the feed-forward part), and a row of logits in fp32 a request.

    Args:
        shape: The model's.
        precision: Of the quantised weights, a key of `BYTES_PER_WEIGHT`.
        concurrency: Requests at once.
        tokens_per_request: Prompt and answer, all in the cache.
        bytes_per_value: Of the type that is computed in; what is not quantised is held in it.

    Returns:
        The estimate, part by part.
    """
    per_token = kv_cache_bytes_per_token(
        shape.layers, shape.kv_heads, shape.head_dim, bytes_per_value
    )
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
        kv_cache_gb=float(cache) / 1e9,
    )


@checked
def training_memory(
    shape: ModelShape,
    method: str,
    batch_size: Whole[int],
    tokens: Whole[int],
    lora_rank: int,
    modules: Sequence[str] = LORA_MODULES,
    lora_dropout: Share[float] = 0.0,
    gradient_checkpointing: bool = True,
    base_precision: str = "fp16",
    answer_tokens: Whole[int] | None = None,
) -> MemoryEstimate:
    """Estimate the memory to train a LoRA adapter with AdamW over a frozen base (NF4 for qlora).

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
        method: `lora` or `qlora`.
        batch_size: Examples of a batch.
        tokens: Of the longest example.
        lora_rank: The adapter's.
        modules: Linear modules that the adapter is added to.
        lora_dropout: Share of the adapter's inputs that is dropped.
        gradient_checkpointing: Whether activations are computed again instead of held.
        base_precision: `fp32` or `fp16`: the type that is computed in, and held in for `lora`.
        answer_tokens: Of the longest answer, for which logits are computed; by default `tokens`.

    Returns:
        The estimate, part by part.
    """
    if method not in ("lora", "qlora"):
        raise ValueError(f"method must be 'lora' or 'qlora', not {method!r}")
    if base_precision not in ("fp32", "fp16"):
        raise ValueError(f"base_precision must be 'fp32' or 'fp16', not {base_precision!r}")
    answer_tokens = tokens if answer_tokens is None else answer_tokens
    adapter = 4 * shape.lora_parameters(lora_rank, modules)
    value_bytes = BYTES_PER_WEIGHT[base_precision]
    batch_tokens = batch_size * tokens
    layer = batch_tokens * _layer_bytes_per_token(shape, modules, lora_dropout, value_bytes)
    layer_input = shape.hidden_size * batch_tokens * (4 if method == "qlora" else value_bytes)
    logits = batch_size * answer_tokens * shape.vocabulary_size * (value_bytes + 8)
    if method == "qlora" and value_bytes < 4:
        logits += shape.vocabulary_size * shape.hidden_size * value_bytes  # the head's copy
    if gradient_checkpointing:
        activations = shape.layers * layer_input + max(layer, logits)
    else:
        activations = shape.layers * layer + logits
    weight_bytes = (
        shape.weight_bytes("int4", 4) if method == "qlora" else shape.weight_bytes(base_precision)
    )
    return MemoryEstimate(
        weights_gb=weight_bytes / 1e9,
        adapter_gb=adapter / 1e9,
        gradients_gb=adapter / 1e9,
        optimiser_gb=2 * adapter / 1e9,
        activations_gb=activations / 1e9,
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
