"""Memory, latency, cost, carbon, keep-warm: published values, how they move, what they refuse."""

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_eval_lib import metrics
from edge_eval_lib.economics import carbon, cost, latency, memory, roofline
from edge_eval_lib.economics.cost import keep_warm_s
from edge_eval_lib.economics.prices import Prices
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


# --- latency ----------------------------------------------------------------------------------


def test_latency_counts_the_intervals_between_tokens():
    assert latency.latency_s(0.3, 0.03, 1) == 0.3
    assert latency.latency_s(0.3, 0.03, 11) == pytest.approx(0.6)
    assert latency.latency_s(0.3, 0.03, np.array([1, 11])) == pytest.approx([0.3, 0.6])


@pytest.mark.parametrize(
    ("intervals_s", "missed", "deadlines"),
    [
        ([0.2] + [0.051] * 5, 1, 6),
        ([0.2] + [0.029] * 9, 0, 10),
        ([0.5] + [0.029] * 9, 7, 16),
        ([0.29, 0.02, 0.02, 0.095, 0.025], 2, 6),
        ([0.3] + [0.03] * 99, 0, 100),  # each exactly in time
        ([0.3001], 1, 1),
    ],
)
def test_deadlines_as_etalon_counts_them(intervals_s, missed, deadlines):
    assert latency.deadline_miss_rate(intervals_s, 0.3, 0.03) == pytest.approx(missed / deadlines)


TOKEN = np.arange(50)


@pytest.mark.parametrize(
    ("token_times_s", "quality"),
    [
        (1 + TOKEN / 5, 1),
        (np.ones(50), 1),
        (np.full(50, 0.2), 1),
        (2 + TOKEN / 5, 250 / 300),
        (1 + TOKEN / 2.5, 500 / 750),
        ([1.0], 1),
        ([2.0], 0.1 / 1.1),
    ],
)
def test_quality_of_experience_of_published_cases(token_times_s, quality):
    assert latency.quality_of_experience(token_times_s, 1, 5) == pytest.approx(quality)


@given(
    st.lists(st.floats(0, 2), min_size=1, max_size=40),
    st.floats(0, 3),
    st.floats(0.5, 20),
    st.floats(0.01, 5),
)
def test_quality_of_experience_moves_as_it_must(intervals, ttft_s, tok_s, more):
    times = np.cumsum(intervals)
    quality = latency.quality_of_experience(times, ttft_s, tok_s)
    assert 0 < quality <= 1 or times[0] == 0
    # A reader who expects less, or an answer that is as late as it is expected, is no worse.
    assert latency.quality_of_experience(times, ttft_s + more, tok_s) >= quality - 1e-9
    late = latency.quality_of_experience(times + more, ttft_s, tok_s)
    assert latency.quality_of_experience(times + more, ttft_s + more, tok_s) >= late - 1e-9
    # Seconds or minutes.
    assert latency.quality_of_experience(times * 60, ttft_s * 60, tok_s / 60) == pytest.approx(
        quality
    )


def test_goodput_is_the_highest_rate_that_keeps_its_limits():
    # MLPerf's limits for an 8B model.
    assert latency.attainment([500, 1999, 2000, 2001], [90, 101, 100, 10], 2000, 100) == 0.5
    assert latency.goodput_req_s([1, 2, 4, 8], [1.0, 0.95, 0.9, 0.5]) == 4
    assert latency.goodput_req_s([1, 2], [1.0, 0.95], target=0.99) == 1
    assert math.isnan(latency.goodput_req_s([1, 2], [0.5, 0.2]))


def test_a_trace_gives_every_wait_of_its_requests():
    table = latency.trace_latencies([0.0, 1.0], [[0.5, 0.6, 0.9], [1.25]])
    first, second = table.to_dict("records")
    assert first == pytest.approx(
        {
            "ttft_s": 0.5,
            "tpot_s": 0.2,
            "latency_s": 0.9,
            "jitter_s": 0.1,
            "worst_interval_s": 0.3,
            "output_tokens": 3,
        }
    )
    assert first["latency_s"] == pytest.approx(latency.latency_s(0.5, 0.2, 3))
    assert second["ttft_s"] == second["latency_s"] == 0.25
    assert all(math.isnan(second[name]) for name in ("tpot_s", "jitter_s", "worst_interval_s"))
    for tokens in ([], [0.5], [1.5, 1.4]):
        with pytest.raises(ValueError, match=r"^token_times_s must ascend from submission"):
            latency.trace_latencies([1.0], [tokens])
    with pytest.raises(
        ValueError, match=r"^token_times_s must have a sequence a request: 2, not 1"
    ):
        latency.trace_latencies([0.0, 1.0], [[0.5]])


def test_a_quantile_has_the_interval_of_its_order_statistics():
    # 100 values: the median lies between the 40th and the 61st with 95 % (binomial tables).
    assert latency.quantile_interval(np.arange(1, 101), 0.5) == (50.5, 40, 61)
    assert latency.quantile_interval(np.arange(24), 0.95)[2] == np.inf
    rng = np.random.default_rng(0)
    found = [latency.quantile_interval(rng.exponential(size=200), 0.95) for _ in range(500)]
    truth = -np.log(0.05)
    assert 0.94 < np.mean([lo <= truth <= hi for _, lo, hi in found]) < 0.99


def test_queues_of_published_tables():
    # Erlang C: 8 erlangs on 10 servers; M/M/1 waits a/(1 - a) services.
    assert latency.erlang_c(10, 8) == pytest.approx(0.40918, abs=1e-5)
    assert latency.erlang_c([1, 2], [0.5, 1.0]) == pytest.approx([0.5, 1 / 3])
    assert latency.queue_wait_s(0.9, 1.0, 1) == pytest.approx(9)
    assert latency.queue_wait_s(2.0, 1.0, 2) == np.inf
    assert latency.share_served_within(1.0, 0.5, 1.0) == pytest.approx(1 - 0.5 * math.exp(-0.5))
    assert latency.share_served_within(9.0, 3.0, 1.0, 2) == 0
    assert latency.processor_sharing_s(2.0, [0.0, 0.5, 1.0]) == pytest.approx([2, 4, np.inf])


@given(st.integers(1, 200), st.floats(0, 1), st.floats(0, 0.5))
def test_queues_move_as_they_must(servers, load, more):
    low, high = servers * load, servers * (load + more)
    assert 0 <= latency.erlang_c(servers, low) <= latency.erlang_c(servers, high) <= 1
    assert latency.erlang_c(servers + 1, low) <= latency.erlang_c(servers, low) + 1e-12
    assert latency.queue_wait_s(low, 1.0, servers) <= latency.queue_wait_s(high, 1.0, servers)
    within = latency.share_served_within([0.0, 1.0], low, 1.0, servers)
    assert within[0] <= within[1]
    assert within[0] == pytest.approx(1 - latency.erlang_c(servers, low))


T4 = {"peak_flop_s": 65e12, "bandwidth_byte_s": 320e9}
A100 = {"peak_flop_s": 312e12, "bandwidth_byte_s": 2.039e12}
H100 = {"peak_flop_s": 989e12, "bandwidth_byte_s": 3.35e12}


def test_floors_of_published_devices():
    eight_b = roofline.decode_step_s(weight_bytes=16.06e9, parameters=8.03e9, **H100)
    assert eight_b == pytest.approx(4.79e-3, abs=5e-6)
    assert eight_b < 7.32e-3  # measured
    tiny = roofline.decode_step_s(weight_bytes=2.2e9, parameters=1.1e9, **T4)
    assert tiny == pytest.approx(6.875e-3)
    bound = [roofline.compute_bound_concurrency(**device) for device in (T4, A100, H100)]
    assert [round(b) for b in bound] == [203, 153, 295]


def test_decoding_is_bound_by_reading_then_by_computing():
    model = {"weight_bytes": 2.2e9, "parameters": 1.1e9, **T4}
    assert roofline.decode_step_s(**model, concurrency=203) == roofline.decode_step_s(**model)
    assert roofline.decode_step_s(**model, concurrency=406) == pytest.approx(
        2 * 1.1e9 * 406 / 65e12
    )
    full = roofline.decode_step_s(
        **model, concurrency=8, context_tokens=1000, kv_bytes_per_token=22_528, utilisation=0.5
    )
    assert full == pytest.approx((2.2e9 + 8 * 1000 * 22_528) / (320e9 * 0.5))
    steps = roofline.decode_step_s(**model, concurrency=np.array([1, 406]))
    assert steps[1] > steps[0]


def test_prefill():
    assert roofline.prefill_s(8e9, 1000, 65e12) == pytest.approx(16 / 65)
    assert roofline.prefill_s(8e9, 1000, 65e12, 0.5) == pytest.approx(32 / 65)


# --- cost -------------------------------------------------------------------------------------


def test_usd_per_million_tokens_of_published_rates():
    assert cost.usd_per_million_tokens(2, 9806) == pytest.approx(0.05665, abs=5e-6)
    assert cost.usd_per_million_tokens(2, 1069.6) == pytest.approx(0.5194, abs=5e-5)
    assert cost.usd_per_million_tokens(2, 9806, 0.5) == pytest.approx(2 * 0.056655, abs=1e-5)


def test_capital_recovery():
    # A loan of 1 at 5 % over 5 years is paid back by 0.230975 a year.
    assert cost.capital_recovery_factor(0.05, 5) == pytest.approx(0.05 * 1.05**5 / (1.05**5 - 1))
    assert cost.capital_recovery_factor(0.05, 5) == pytest.approx(0.230975, abs=1e-6)
    assert cost.capital_recovery_factor(0, 4) == 0.25
    assert cost.capital_recovery_factor(1e-12, 4) == pytest.approx(0.25)
    assert cost.capital_recovery_factor(5e-324, 0.5) == 2  # the smallest number there is


@given(st.floats(0, 1), st.floats(0.5, 30))
def test_capital_recovery_pays_the_price_back(rate, years):
    factor = cost.capital_recovery_factor(rate, years)
    assert factor >= 1 / years - 1e-9
    assert cost.capital_recovery_factor(rate + 0.01, years) > factor
    assert cost.capital_recovery_factor(rate, years + 1) < factor


def test_usd_per_hour_adds_its_parts():
    hour = cost.usd_per_hour(8760, 0, 2, power_kw=0.5, electricity_usd_per_kwh=0.12, pue=1.5)
    assert hour == pytest.approx(0.5 + 0.5 * 1.5 * 0.12)
    more = cost.usd_per_hour(8760, 0, 2, 0.5, 0.12, 1.5, other_usd_per_hour=0.3)
    assert more - hour == pytest.approx(0.3)


@given(positive, positive, positive, positive)
def test_at_its_break_even_price_an_api_is_paid_for(fixed, local, requests, more):
    price = cost.break_even_api_price(fixed, local, requests)
    assert local + fixed / requests == price
    assert cost.break_even_api_price(fixed, local, requests + more) <= price
    if price > local * (1 + 1e-9):
        assert metrics.break_even(fixed, 0, price, local) == pytest.approx(requests, rel=1e-3)


def test_break_even_electricity_price():
    # 2.3621 J a request: electricity would have to cost 1905 USD/kWh to reach 0.00125 USD.
    price = cost.break_even_electricity_price(0.00125, 2.3621)
    assert price == pytest.approx(0.00125 * 3.6e6 / 2.3621)
    assert cost.break_even_electricity_price(0.00125, 2.3621, pue=2) == pytest.approx(price / 2)
    assert cost.break_even_electricity_price(0.00125, 2.3621, 0.00125) == 0
    with pytest.raises(ValueError, match="other_local_usd_per_request exceeds"):
        cost.break_even_electricity_price(0.001, 2.0, 0.002)


def test_order_flips_where_both_break_even_together():
    # Dear to set up and cheap to run against the opposite.
    price = cost.order_flip_api_price(20, 0.0005, 10, 0.001)
    assert price == pytest.approx(0.0015)
    assert metrics.break_even(20, 0, price, 0.0005) == pytest.approx(20_000)
    assert metrics.break_even(10, 0, price, 0.001) == pytest.approx(20_000)
    assert metrics.break_even(20, 0, 0.0012, 0.0005) < metrics.break_even(10, 0, 0.0012, 0.001)
    assert metrics.break_even(20, 0, 0.0020, 0.0005) > metrics.break_even(10, 0, 0.0020, 0.001)


@pytest.mark.parametrize(
    "models", [(10, 0.001, 20, 0.002), (10, 0.001, 10, 0.002), (10, 0.001, 20, 0.001)]
)
def test_order_that_never_flips(models):
    assert math.isnan(cost.order_flip_api_price(*models))


@given(positive, positive, positive, positive)
def test_order_flip_is_symmetric(fixed, local, other_fixed, other_local):
    there = cost.order_flip_api_price(fixed, local, other_fixed, other_local)
    back = cost.order_flip_api_price(other_fixed, other_local, fixed, local)
    assert there == pytest.approx(back, nan_ok=True)


def test_fine_tuning_against_retrieval():
    with_retrieval = 0.001 + cost.rag_usd_per_request(2000, 2.50, retrieval_usd=0.0005)
    assert with_retrieval == pytest.approx(0.0065)
    assert metrics.break_even(110, 0, with_retrieval, 0.001) == pytest.approx(20_000)


PRICES = Prices(
    electricity_usd_per_kwh=0.12,
    api_usd_per_request=0.00125,
    api_input_usd_per_mtok=2.5,
    api_output_usd_per_mtok=10.0,
    api_input_tokens_per_request=500.0,
    pue=1.5,
    hardware_usd=8760.0,
    hardware_lifetime_years=2.0,
    discount_rate=0.0,
    utilisation=0.5,
    setup_hours=8.0,
    labour_usd_per_hour=64.0,
)
FULL = {
    "adapt_energy_j": 3.6e6,
    "compress_energy_j": 1.8e6,
    "load_energy_j": 3.6e5,
    "seconds_before": 7200.0,
    "energy_per_request_j": 3.6,
    "seconds_per_request": 0.036,
    "input_tokens_per_request": 500.0,
    "output_tokens_per_request": 150.0,
}


def test_the_papers_accounting():
    costs = cost.paper_costs(PRICES, 92122.30, 2.3621)
    assert costs.requests == pytest.approx(2.4567, abs=5e-5)
    assert costs.fixed_usd == costs.adapt_usd
    assert costs.local_usd_per_request < 1e-4 * costs.api_usd_per_request


def test_the_full_accounting_part_by_part():
    costs = cost.full_costs(PRICES, **FULL)
    assert costs.adapt_usd == pytest.approx(0.18)
    assert costs.compress_usd == pytest.approx(0.09)
    assert costs.load_usd == pytest.approx(0.018)
    assert costs.hardware_usd == pytest.approx(2.0)  # 1 USD for each hour of use
    assert costs.setup_usd == 512
    assert costs.fixed_usd == pytest.approx(514.288)
    assert costs.api_usd_per_request == pytest.approx(0.00275)
    assert costs.electricity_usd_per_request == pytest.approx(1.8e-7)
    assert costs.hardware_usd_per_request == pytest.approx(1e-5)
    assert costs.requests == pytest.approx(514.288 / (0.00275 - 1.018e-5))


def test_full_accounting_of_series():
    table = pd.DataFrame([FULL, FULL], index=["a", "b"])
    table.loc["b", "seconds_per_request"] = 3600.0
    requests = cost.full_costs(PRICES, **table).requests
    assert requests["a"] == pytest.approx(cost.full_costs(PRICES, **FULL).requests)
    assert requests["b"] == np.inf


@pytest.mark.parametrize("name", ["adapt_energy_j", "seconds_before", "compress_energy_j"])
def test_whatever_is_spent_before_delays_break_even(name):
    more = cost.full_costs(PRICES, **{**FULL, name: 2 * FULL[name]})
    assert more.requests > cost.full_costs(PRICES, **FULL).requests


# --- carbon -----------------------------------------------------------------------------------


def test_published_carbon():
    # BLOOM: 1,082,990 h at 0.4 kW, 57 g/kWh.
    assert carbon.operational_g(1_082_990 * 0.4, 57) / 1e6 == pytest.approx(24.69, abs=0.005)
    # GPT-3: 10,000 GPUs x 14.8 days x 330 W, PUE 1.1, 429 g/kWh (arXiv 2104.10350).
    gpt3 = carbon.operational_g(10_000 * 14.8 * 24 * 0.33, 429, pue=1.1) / 1e6
    assert gpt3 == pytest.approx(552.1, rel=0.003)
    assert gpt3 == pytest.approx(553.34, rel=0.003)
    mix = carbon.mix_intensity_g_per_kwh([0.25, 0.35, 0.26, 0.14], [995, 816, 743, 29])
    assert mix == pytest.approx(731.59)


def test_software_carbon_intensity():
    embodied = carbon.embodied_g(164_000, time_share=1 / 43_800, resource_share=0.5)
    assert embodied == pytest.approx(164_000 / 43_800 / 2)
    sci = carbon.software_carbon_intensity_g(0.7, 400, embodied, functional_units=10_000)
    assert sci == pytest.approx((280 + embodied) / 10_000)


@given(positive, positive, st.floats(1, 3), factor)
def test_operational_carbon_moves_as_it_must(energy, intensity, pue, more):
    grams = carbon.operational_g(energy, intensity, pue)
    assert grams >= carbon.operational_g(energy, intensity)
    assert carbon.operational_g(energy * more, intensity, pue) == pytest.approx(grams * more)
    assert carbon.operational_g(energy, intensity * more, pue) == pytest.approx(grams * more)
    assert carbon.operational_g(np.array([energy]), intensity, pue)[0] == grams


@given(st.lists(st.floats(0.01, 1), min_size=1, max_size=5), positive)
def test_a_mix_lies_between_its_sources(weights, least):
    shares = np.array(weights) / sum(weights)
    intensities = least * np.arange(1, len(weights) + 1)
    mix = carbon.mix_intensity_g_per_kwh(shares, intensities)
    assert least * (1 - 1e-9) <= mix <= intensities[-1] * (1 + 1e-9)


# --- keep warm --------------------------------------------------------------------------------


def test_keep_warm_of_published_figures():
    assert keep_warm_s(7630.5, 36, 10) == pytest.approx(293, abs=0.5)
    assert keep_warm_s(7630.5, 10, 10) == np.inf
    assert keep_warm_s(7630.5, 9, 10) == np.inf
    both = keep_warm_s(pd.Series([7630.5, 7630.5]), pd.Series([36, 10]), 10)
    assert both[0] == pytest.approx(293, abs=0.5)
    assert both[1] == np.inf


@given(positive, positive, positive, factor)
def test_keep_warm_moves_as_it_must(load, bare, extra, more):
    seconds = keep_warm_s(load, bare + extra, bare)
    assert keep_warm_s(load * more, bare + extra, bare) == pytest.approx(seconds * more)
    assert keep_warm_s(load, bare + extra * more, bare) < seconds


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
