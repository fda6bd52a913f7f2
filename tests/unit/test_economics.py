"""Memory: published values, how they move, what they refuse."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_eval_lib.economics import memory
from edge_eval_lib.economics.shape import ModelShape, shape_from_config

positive = st.floats(1e-3, 1e6)
factor = st.floats(1.01, 100)

# --- memory -----------------------------------------------------------------------------------

LLAMA_8B = ModelShape(32, 4096, 14336, 32, 8, 128, 128256)
LLAMA_3B = ModelShape(28, 3072, 8192, 24, 8, 128, 128256, tied_embeddings=True)
TINYLLAMA = ModelShape(22, 2048, 5632, 32, 4, 64, 32000)
QWEN_HALF_B = ModelShape(
    24, 896, 4864, 14, 2, 64, 151936, tied_embeddings=True, attention_bias=True
)
SMOLLM2 = ModelShape(30, 576, 1536, 9, 3, 64, 49152, tied_embeddings=True)


@pytest.mark.parametrize(
    ("layers", "kv_heads", "head_dim", "published"),
    [
        (40, 40, 128, 819_200),  # OPT-13B, arXiv 2309.06180
        (32, 32, 128, 524_288),  # Llama-2-7B
        (32, 8, 128, 131_072),  # Llama-3.1-8B
        (22, 4, 64, 22_528),  # TinyLlama
        (24, 2, 64, 12_288),  # Qwen2.5-0.5B
        (28, 2, 128, 28_672),  # Qwen2.5-1.5B
        (28, 4, 128, 57_344),  # Qwen2.5-7B
    ],
)
def test_kv_cache_of_published_models(layers, kv_heads, head_dim, published):
    per_token = memory.kv_cache_bytes_per_token(layers, kv_heads, head_dim)
    assert per_token == published
    assert memory.kv_cache_bytes_per_token(layers, kv_heads, head_dim, 1) == published / 2
    assert memory.kv_cache_bytes(1000, per_token) == 1000 * published


def test_a_sliding_window_bounds_the_cache():
    assert memory.kv_cache_bytes(1000, 10, window=4096) == 10_000
    assert memory.kv_cache_bytes(5000, 10, window=4096) == 40_960
    assert memory.kv_cache_bytes(np.array([1, 9000]), 10, 4096).tolist() == [10, 40_960]


@pytest.mark.parametrize(
    ("shape", "parameters"),
    [
        (LLAMA_8B, 8_030_261_248),
        (LLAMA_3B, 3_212_749_824),
        (TINYLLAMA, 1_100_048_384),
        (QWEN_HALF_B, 494_032_768),
        (SMOLLM2, 134_515_008),
    ],
)
def test_parameters_of_published_models(shape, parameters):
    assert shape.parameters == parameters


def test_weights_of_a_precision():
    assert TINYLLAMA.weight_bytes("fp16") == 2 * TINYLLAMA.parameters
    assert TINYLLAMA.weight_bytes("fp32") == 4 * TINYLLAMA.parameters
    sizes = [LLAMA_8B.weight_bytes(p) for p in ("fp32", "fp16", "int8", "int4")]
    assert sizes == sorted(sizes, reverse=True)
    # 6.98e9 parameters at 4.127 bits, embeddings, head and norms (1.05e9) at 16.
    assert sizes[-1] / 1e9 == pytest.approx(6.9793 * 4.127 / 8 + 1.0510 * 2, abs=1e-3)


def test_lora_parameters():
    # peft prints 41,943,040 trainable parameters for rank 16 on all seven modules.
    assert LLAMA_8B.lora_parameters(16) == 41_943_040
    assert LLAMA_8B.lora_parameters(8, ["q_proj", "v_proj"]) == 32 * 8 * (8192 + 4096 + 1024)


def test_shape_is_read_from_a_config():
    config = {
        "model_type": "qwen2",
        "num_hidden_layers": 24,
        "hidden_size": 896,
        "intermediate_size": 4864,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
        "vocab_size": 151936,
        "tie_word_embeddings": True,
        "sliding_window": 32768,
        "use_sliding_window": False,
    }
    assert shape_from_config(config) == QWEN_HALF_B
    sliding = shape_from_config({**config, "use_sliding_window": True})
    assert sliding.window == 32768
    with pytest.raises(ValueError, match="config has no field 'vocab_size'"):
        shape_from_config({k: v for k, v in config.items() if k != "vocab_size"})


@pytest.mark.parametrize(
    ("shape", "base_precision", "dropout", "measured_bytes"),
    [
        # What PyTorch kept for the backward pass of one layer, bytes a token (rank 16).
        (SMOLLM2, "fp32", 0.0, 40_428),
        (SMOLLM2, "fp32", 0.05, 69_612),
        (SMOLLM2, "fp16", 0.0, 37_356),
        (SMOLLM2, "fp16", 0.05, 57_324),
        (ModelShape(2, 256, 896, 8, 2, 32, 1000), "fp32", 0.0, 21_480),
        (ModelShape(2, 256, 896, 8, 2, 32, 1000), "fp16", 0.05, 28_648),
    ],
)
def test_activations_against_measured_ones(shape, base_precision, dropout, measured_bytes):
    tokens = 1000
    estimates = [
        memory.training_memory(
            shape,
            "lora",
            1,
            tokens,
            16,
            lora_dropout=dropout,
            base_precision=base_precision,
            answer_tokens=1,
            **more,
        ).activations_gb
        for more in ({"gradient_checkpointing": False}, {"gradient_checkpointing": True})
    ]
    value_bytes = 4 if base_precision == "fp32" else 2
    inputs = shape.layers * shape.hidden_size * value_bytes * tokens
    # Without checkpointing all layers are held, with it one layer and all layers' inputs.
    layer = (estimates[0] - estimates[1]) * 1e9 + inputs
    assert layer / (shape.layers - 1) / tokens == pytest.approx(measured_bytes, rel=0.08)


def test_layers_below_the_adapter_keep_nothing():
    training = {"batch_size": 1, "tokens": 100, "gradient_checkpointing": False}
    whole, half, logits = (
        memory.training_memory(SMOLLM2, "lora", **training, answer_tokens=1, adapted_share=share)
        for share in (1.0, 0.5, 0.0)
    )
    assert half.adapter_gb == whole.adapter_gb / 2
    kept_gb = whole.activations_gb - logits.activations_gb
    assert half.activations_gb - logits.activations_gb == pytest.approx(kept_gb / 2)
    assert half.weights_gb == whole.weights_gb


T4_GB = 15.66


def test_training_llama_8b_by_qlora_part_by_part():
    """Batch 4 x 1024 tokens on a T4, in GB; what is not quantised is cast to fp32."""
    training = {"batch_size": 4, "tokens": 1024, "lora_rank": 16, "lora_dropout": 0.05}
    short = memory.training_memory(LLAMA_8B, "qlora", **training, answer_tokens=30)
    # 6.98e9 parameters in 4 bits, 1.05e9 (embeddings, head, norms) in 32.
    assert short.weights_gb == pytest.approx(3.60 + 4.20, abs=0.01)
    inputs_gb = 32 * 4096 * 4096 * 4 / 1e9  # of 32 layers, 4096 tokens each 4096 wide, fp32
    layer_gb = short.activations_gb - inputs_gb
    assert layer_gb == pytest.approx(1.96, abs=0.02)
    assert short.total_gb == pytest.approx(12.6, abs=0.1)
    assert short.verdict(T4_GB) == "fits"
    # A token of the longest answer: 4 x 128,256 logits of 2 + 8 bytes; besides, the head's copy.
    for answer in (600, 900):
        long = memory.training_memory(LLAMA_8B, "qlora", **training, answer_tokens=answer)
        logits_gb = 4 * answer * 128_256 * 10 / 1e9
        copy_gb = 128_256 * 4096 * 2 / 1e9
        assert long.activations_gb == pytest.approx(inputs_gb + logits_gb + copy_gb)
    assert long.verdict(T4_GB) == "does not fit"
    assert memory.training_memory(LLAMA_8B, "qlora", **training).total_gb > long.total_gb
    # On a CPU everything is fp32 already: nothing is cast.
    cpu = {**training, "base_precision": "fp32", "gradient_checkpointing": False}
    by_qlora, by_lora = (
        memory.training_memory(LLAMA_8B, method, **cpu, answer_tokens=600)
        for method in ("qlora", "lora")
    )
    assert by_qlora.activations_gb == by_lora.activations_gb
    assert by_qlora.weights_gb == short.weights_gb


def test_what_fits_a_t4():
    """As published: 8B LoRA took two T4s, its QLoRA and the 3B models one."""
    training = {"batch_size": 2, "tokens": 1024, "lora_rank": 16}
    lora = memory.training_memory(LLAMA_8B, "lora", **training)
    assert lora.verdict(T4_GB) == "does not fit"
    assert lora.verdict(T4_GB, host_memory_gb=32) == "offload"
    assert lora.verdict(2 * T4_GB) == "fits"
    assert memory.training_memory(LLAMA_8B, "qlora", **training).verdict(T4_GB) == "fits"
    assert memory.training_memory(LLAMA_3B, "lora", **training).verdict(T4_GB) == "fits"
    verdicts = [
        memory.serving_memory(LLAMA_8B, precision, 32, 700).verdict(T4_GB)
        for precision in ("fp16", "int8", "int4")
    ]
    assert verdicts == ["does not fit", "fits", "fits"]


def test_verdict_at_its_borders():
    estimate = memory.MemoryEstimate(weights_gb=10.0, activations_gb=2.0, kv_cache_gb=3.0)
    assert estimate.total_gb == 15
    assert estimate.verdict(16, reserve_gb=1) == "fits"
    assert estimate.verdict(15.9, reserve_gb=1) == "does not fit"
    assert estimate.verdict(15.9, host_memory_gb=0.2, reserve_gb=1) == "offload"
    assert estimate.verdict(15.9, host_memory_gb=0.05, reserve_gb=1) == "does not fit"
    # All but the weights must stay on the device.
    assert estimate.verdict(5.5, host_memory_gb=100, reserve_gb=1) == "does not fit"


@given(st.integers(1, 64), st.integers(1, 4096))
def test_memory_grows_with_the_work(concurrency, tokens):
    one = memory.serving_memory(SMOLLM2, "fp16", concurrency, tokens)
    more = memory.serving_memory(SMOLLM2, "fp16", concurrency + 1, tokens + 1)
    assert more.kv_cache_gb > one.kv_cache_gb
    assert more.activations_gb > one.activations_gb
    assert more.weights_gb == one.weights_gb
    train = memory.training_memory(SMOLLM2, "qlora", concurrency, tokens, 16)
    longer = memory.training_memory(SMOLLM2, "qlora", concurrency, tokens + 1, 16)
    assert longer.total_gb > train.total_gb
    assert train.weights_gb < memory.training_memory(SMOLLM2, "lora", 1, 1, 16).weights_gb
    assert train.optimiser_gb == 2 * train.gradients_gb == 2 * train.adapter_gb


def test_what_is_not_quantised_is_held_in_the_type_that_is_computed_in():
    rest = SMOLLM2.parameters - SMOLLM2.linear_parameters
    for precision in ("int8", "int4"):
        half, single = (
            memory.serving_memory(SMOLLM2, precision, 1, 10, bytes_per_value=b).weights_gb
            for b in (2, 4)
        )
        assert (single - half) * 1e9 == pytest.approx(2 * rest)


# --- refusals of estimates; of the rest: test_bounds ---------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": "prefix"}, "^method must be 'lora', 'qlora' or 'full'"),
        ({"modules": ["c_attn"]}, "^modules must be some of"),
        ({"lora_rank": 0}, "^rank must be a whole number"),
        ({"batch_size": 0}, "^batch_size must be a whole number"),
        ({"base_precision": "int8"}, "^base_precision must be"),
        ({"answer_tokens": 0}, "^answer_tokens must be a whole number"),
    ],
)
def test_training_memory_refuses_by_name(change, message):
    good = {"method": "lora", "batch_size": 1, "tokens": 10, "lora_rank": 8}
    with pytest.raises(ValueError, match=message):
        memory.training_memory(SMOLLM2, **{**good, **change})


def test_shapes_and_precisions_are_checked():
    with pytest.raises(ValueError, match=r"^kv_heads must be a whole number of at least 1"):
        ModelShape(2, 64, 128, 4, 0, 16, 1000)
    with pytest.raises(ValueError, match=r"^precision must be one of"):
        memory.serving_memory(SMOLLM2, "int3", 1, 10)
    with pytest.raises(ValueError, match=r"^concurrency must be"):
        memory.serving_memory(SMOLLM2, "fp16", 0, 10)
    with pytest.raises(ValueError, match=r"^device_memory_gb must be above 0"):
        memory.serving_memory(SMOLLM2, "fp16", 1, 10).verdict(0)
