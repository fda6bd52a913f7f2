"""A decoder's shape in numbers, and the bytes of its weights by precision.

Fields may be NumPy arrays, one number a model (`stack`), so that many models are computed at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from edge_eval_lib import compressions
from edge_eval_lib.bounds import NonNegative, Positive, Whole, checked

LORA_MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class WeightFormat:
    """How a precision stores the linear modules: bits a weight with its scales, bytes a row."""

    bits: float
    row_bytes: float = 0.0  # a scale of each output of a module

    @property
    def bytes_per_weight(self) -> float:
        """Return bytes a weight, without the scales of rows."""
        return self.bits / 8


# int4 and int8 are bitsandbytes', which the engine transformers reads; w4a16 and w8a8 are
# llm-compressor's, which vLLM reads.
FORMATS = {
    "fp32": WeightFormat(32),
    "fp16": WeightFormat(16),
    "int8": WeightFormat(8, row_bytes=4),  # LLM.int8(), arXiv 2208.07339: an fp32 scale a row
    # NF4 with double quantisation: an 8-bit constant a block of 64 weights and an fp32 one a block
    # of 256 constants, 0.127 bits together (QLoRA, arXiv 2305.14314); without it, 0.5 bits.
    "int4": WeightFormat(4 + 0.127),
    "nf4-single": WeightFormat(4 + 32 / 64),
    "w8a8": WeightFormat(8, row_bytes=2),  # a 16-bit scale a row
    "w4a16": WeightFormat(4 + 16 / 128),  # symmetric: a 16-bit scale a group of 128
}

_BYTES = {name: stored.bytes_per_weight for name, stored in FORMATS.items()}
_ROW_BYTES = {name: stored.row_bytes for name, stored in FORMATS.items()}
_REST_BYTES = {name: 4.0 if name == "fp32" else 2.0 for name in FORMATS}


def by_precision(values: Mapping[str, float], precision: Any) -> Any:
    """Look a number up for one precision, or for each of an array of them.

    Raises:
        ValueError: A precision is not a key of `values`.
    """
    if isinstance(precision, str):
        if precision not in values:
            raise ValueError(f"precision must be one of {list(values)}, not {precision!r}")
        return values[precision]
    names = np.asarray(precision)
    result = np.full(names.shape, np.nan)
    for name, value in values.items():
        result[names == name] = value
    if np.isnan(result).any():
        wrong = str(names[np.isnan(result)][0])
        raise ValueError(f"precision must be one of {list(values)}, not {wrong!r}")
    return result


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
    other_parameters: NonNegative[int] = 0  # beside the decoder, as an image encoder

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
        embeddings = self.vocabulary_size * self.hidden_size * (2 - self.tied_embeddings)
        norms = (2 * self.layers + 1) * self.hidden_size
        heads = self.attention_heads + 2 * self.kv_heads
        bias = self.attention_bias * self.layers * heads * self.head_dim
        return self.linear_parameters + embeddings + norms + bias + self.other_parameters

    @property
    def matrix_parameters(self) -> int:
        """Parameters that a token is multiplied with: the linear modules and the output head."""
        return self.linear_parameters + self.vocabulary_size * self.hidden_size

    @property
    def linear_rows(self) -> int:
        """Outputs of all linear modules: rows that have a scale of their own in some formats."""
        return self.layers * sum(outputs for _, outputs in self.module_sizes.values())

    @property
    def kv_values_per_token(self) -> int:
        """Numbers that a token leaves in the KV cache: 2 x layers x heads x size."""
        return 2 * self.layers * self.kv_heads * self.head_dim

    @checked
    def weight_bytes(self, precision: Any, rest_bytes: Positive | None = None) -> Any:
        """Compute the bytes of the weights, the scales of a quantisation among them.

        Embeddings, output head and norms are not quantised: they take `rest_bytes` a parameter, by
        default those of fp16 (fp32 where all are).

        Args:
            precision: A key of `FORMATS`, or an array of them.
            rest_bytes: Of what is not quantised.

        Returns:
            Bytes.
        """
        weight = by_precision(_BYTES, precision)
        rows = by_precision(_ROW_BYTES, precision)
        if rest_bytes is None:
            rest_bytes = by_precision(_REST_BYTES, precision)
        rest = self.parameters - self.linear_parameters
        return self.linear_parameters * weight + self.linear_rows * rows + rest * rest_bytes

    def read_bytes(self, precision: Any) -> Any:
        """Compute the weights that a decoding step reads: all but an input table of its own."""
        table = self.vocabulary_size * self.hidden_size * (1 - self.tied_embeddings)
        unread = (table + self.other_parameters) * by_precision(_REST_BYTES, precision)
        return self.weight_bytes(precision) - unread

    @checked
    def lora_parameters(self, rank: Whole[int], modules: Sequence[str] = LORA_MODULES) -> int:
        """Count a LoRA adapter's parameters: rank x (inputs + outputs) of each layer's modules."""
        sizes = self.module_sizes
        unknown = [m for m in modules if m not in sizes]
        if unknown or not modules:
            raise ValueError(f"modules must be some of {list(sizes)}, not {list(modules)}")
        return self.layers * rank * sum(sum(sizes[m]) for m in modules)


def compressed(shape: ModelShape, precision: str) -> ModelShape:
    """Return a model's shape after a chain of compressions, as `depth25-int4`."""
    layers, inner = compressions.dimensions(precision, shape.layers, shape.intermediate_size)
    return replace(shape, layers=layers, intermediate_size=inner)


def stack(shapes: Sequence[ModelShape]) -> ModelShape:
    """Return one shape whose fields are arrays, a number a model.

    Raises:
        ValueError: Some models slide their window and others do not: compute them apart.
    """
    if len({shape.window is None for shape in shapes}) > 1:
        raise ValueError("shapes must all slide their window, or none")
    columns: dict[str, Any] = {
        f.name: np.array([getattr(shape, f.name) for shape in shapes]) for f in fields(ModelShape)
    }
    if shapes[0].window is None:
        columns["window"] = None
    return ModelShape(**columns)


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
        other_parameters=config.get("other_parameters", 0),
    )
