"""Memory, operations, the roofline, and what a study's models need."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_eval_lib.economics import fit, flops, memory, roofline
from edge_eval_lib.economics.prediction_errors import (
    H100_ACTIVATIONS_GIB,
    H100_KV,
    H100_REQUESTS,
    H100_WEIGHTS_GIB,
    public_shape,
)
from edge_eval_lib.economics.requirements import COLUMNS, requirements
from edge_eval_lib.economics.shape import FORMATS, ModelShape, by_precision, stack
from edge_eval_lib.machine.declared import load_hardware
from edge_eval_lib.study import load_study

LLAMA_8B = public_shape("meta-llama/Llama-3.1-8B-Instruct")
QWEN_7B = public_shape("Qwen/Qwen2.5-7B-Instruct")
PEAKS = roofline.Rates(bandwidth_share=1.0, compute_share=1.0)
T4, T4X2 = (roofline.device_of(load_hardware(name)) for name in ("t4", "t4x2"))
H100 = roofline.device_of(load_hardware("h100"))
few = st.integers(1, 64)
many = st.integers(1, 4096)
precisions = st.sampled_from(["fp16", "int8", "int4"])


# --- memory -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("model", "cards"), H100_WEIGHTS_GIB)
def test_weights_of_published_models_on_an_h100(model, cards):
    weights_gb = public_shape(model).weight_bytes("fp16") / 1e9
    on_card = memory.MemoryEstimate(weights_gb).on_cards(cards).weights_gb
    published_gb = H100_WEIGHTS_GIB[model, cards] * memory.GIB / 1e9
    assert on_card == pytest.approx(published_gb, rel=0.01)


def test_the_kv_cache_of_a_published_model_on_an_h100():
    model, per_token, gib, tokens = H100_KV
    assert public_shape(model).kv_values_per_token * 2 == per_token == 163_840
    assert gib * memory.GIB / per_token == pytest.approx(tokens, rel=1e-3)


@pytest.mark.parametrize("model", H100_ACTIVATIONS_GIB)
def test_vllms_workspace_grows_with_the_vocabulary_and_not_with_the_model(model):
    workspace_gb = memory.vllm_workspace_gb(public_shape(model), H100_REQUESTS)
    published_gib = H100_ACTIVATIONS_GIB[model] + memory.NON_TORCH_GIB
    assert workspace_gb == pytest.approx(published_gib * memory.GIB / 1e9, rel=0.02)


def test_a_t4_has_less_than_its_datasheet_says():
    assert load_hardware("t4").memory_gb == pytest.approx(14_935 * 2**20 / 1e9, abs=0.005)


@pytest.mark.parametrize(
    ("name", "bits"),
    # NF4's constants by QLoRA's paper: 0.5 bits in blocks of 64, 0.127 quantised once more.
    [("fp16", 16), ("int8", 8), ("nf4-single", 4.5), ("int4", 4.127), ("w4a16", 4.125)],
)
def test_bits_of_a_weight_with_its_scales(name, bits):
    assert FORMATS[name].bits == pytest.approx(bits, abs=1e-4)


def test_int8_keeps_a_scale_a_row():
    rows = LLAMA_8B.layers * (2 * 4096 + 2 * 1024 + 2 * 14336 + 4096)
    rest = 2 * (LLAMA_8B.parameters - LLAMA_8B.linear_parameters)
    assert LLAMA_8B.weight_bytes("int8") == LLAMA_8B.linear_parameters + 4 * rows + rest


def test_a_step_reads_no_input_table_but_a_tied_one():
    tied = replace(LLAMA_8B, tied_embeddings=True)
    assert tied.read_bytes("fp16") == tied.weight_bytes("fp16")
    table = 128_256 * 4096
    assert LLAMA_8B.read_bytes("int4") == LLAMA_8B.weight_bytes("int4") - 2 * table


def test_full_fine_tuning_holds_sixteen_bytes_a_parameter():
    """ZeRO's 7.5 billion parameters take 120 GB; LoRA and QLoRA far less."""
    shape = ModelShape(36, 4096, 4 * 4096, 32, 32, 128, 50_000)
    need = {
        (method, precision): memory.training_memory(
            shape, method, 1, 16, 16, base_precision=precision
        )
        for method, precision in (("full", "fp16"), ("full", "fp32"), ("lora", "fp16"))
    }
    for precision in ("fp16", "fp32"):
        full = need["full", precision]
        held = full.weights_gb + full.gradients_gb + full.optimiser_gb
        assert held == pytest.approx(16 * shape.parameters / 1e9)
        assert full.adapter_gb == 0
    qlora = memory.training_memory(shape, "qlora", 1, 16, 16)
    assert qlora.total_gb < need["lora", "fp16"].total_gb < need["full", "fp16"].total_gb


def test_a_quantised_cache_takes_its_share():
    plain = memory.serving_memory(LLAMA_8B, "fp16", 8, 1000)
    eight_bit = memory.serving_memory(LLAMA_8B, "fp16", 8, 1000, kv_bytes_per_value=1.0)
    assert eight_bit.kv_cache_gb == plain.kv_cache_gb / 2
    assert eight_bit.activations_gb == plain.activations_gb


@given(few, many, precisions)
def test_memory_moves_as_it_must(concurrency, tokens, precision):
    need = memory.serving_memory(QWEN_7B, precision, concurrency, tokens)
    for more in ((concurrency + 1, tokens), (concurrency, tokens + 1)):
        assert memory.serving_memory(QWEN_7B, precision, *more).total_gb > need.total_gb
    fp16 = memory.serving_memory(QWEN_7B, "fp16", concurrency, tokens)
    assert need.weights_gb <= fp16.weights_gb
    assert need.on_cards(2).total_gb < need.total_gb
    assert need.on_cards(1) == need


def test_many_configurations_at_once_are_those_one_by_one():
    shapes = stack([LLAMA_8B, QWEN_7B])
    names, asked = np.array([["fp16"], ["int8"], ["int4"]]), np.array([8, 32])
    need = memory.serving_memory(shapes, names, asked, 700)
    verdict = need.verdict(np.array([15.66, 80.0]))
    for i, shape in enumerate((LLAMA_8B, QWEN_7B)):
        for j, precision in enumerate(("fp16", "int8", "int4")):
            single = memory.serving_memory(shape, precision, int(asked[i]), 700)
            assert need.total_gb[j, i] == pytest.approx(single.total_gb)
            assert verdict[j, i] == single.verdict((15.66, 80.0)[i])


def test_shapes_of_two_kinds_are_not_stacked():
    with pytest.raises(ValueError, match="all slide their window, or none"):
        stack([LLAMA_8B, replace(LLAMA_8B, window=4096)])


@pytest.mark.parametrize("wrong", ["int3", np.array(["fp16", "int3"])])
def test_an_unknown_precision_is_named(wrong):
    with pytest.raises(ValueError, match=r"precision must be one of .* not 'int3'"):
        by_precision({"fp16": 1.0}, wrong)


# --- operations -------------------------------------------------------------------------------


def test_operations_of_prompts_and_answers():
    assert flops.prefill_flop(8e9, 1000) == 2 * 8e9 * 1000
    # 4 x head size x heads x layers x context x batch (arXiv 2506.04645), of half the context on
    # average while a prompt is read.
    width = flops.attention_width(LLAMA_8B)
    assert width == 32 * 32 * 128
    assert flops.decode_flop(8e9, 1000, width, 4) == 4 * (2 * 8e9 + 4 * width * 1000)
    read = sum(flops.decode_flop(8e9, s, width) for s in range(1000))
    assert flops.prefill_flop(8e9, 1000, width) == pytest.approx(read, rel=1e-3)


@pytest.mark.parametrize(
    ("method", "again", "per_parameter"),
    [("lora", False, 4), ("qlora", False, 4), ("full", False, 6), ("full", True, 8)],
)
def test_operations_of_training(method, again, per_parameter):
    assert flops.training_flop(2e9, 1e6, method, again) == per_parameter * 2e9 * 1e6


def test_an_unknown_method_is_named():
    with pytest.raises(ValueError, match=r"method must be one of .* not 'prefix'"):
        flops.training_flop(2e9, 1e6, "prefix")


# --- the roofline -----------------------------------------------------------------------------


def test_a_step_alone_is_reading_the_weights():
    step_s = roofline.step_s(LLAMA_8B, "fp16", H100, rates=PEAKS)
    assert step_s == pytest.approx(LLAMA_8B.read_bytes("fp16") / 3.35e12)
    assert step_s < 4.79e-3  # of all 8.03 billion, the unread input table among them


def test_a_batch_turns_compute_bound_where_reading_and_arithmetic_meet():
    # 203 requests on a T4 at 16 bits, from which the step grows with the batch.
    at = np.array([1, 200, 210, 420])
    step_s = roofline.step_s(LLAMA_8B, "fp16", T4, at, rates=PEAKS)
    assert step_s[0] == step_s[1] < step_s[2]
    assert step_s[3] == pytest.approx(2 * step_s[2])


def test_two_cards_are_faster_but_not_twice():
    single = roofline.step_s(LLAMA_8B, "fp16", T4, 8, 500, PEAKS)
    both = roofline.step_s(LLAMA_8B, "fp16", T4X2, 8, 500, PEAKS)
    assert single / 2 < both < single


@given(few, many, precisions)
def test_the_roofline_moves_as_it_must(concurrency, tokens, precision):
    for rates in (roofline.TRANSFORMERS_GPU, roofline.GRAPH_GPU, roofline.CPU):
        step_s = roofline.step_s(QWEN_7B, precision, T4, concurrency, tokens, rates)
        prompt_s = roofline.prompt_s(QWEN_7B, precision, T4, tokens, rates)
        assert roofline.step_s(QWEN_7B, precision, T4, concurrency + 1, tokens, rates) >= step_s
        assert roofline.step_s(QWEN_7B, precision, T4, concurrency, tokens + 1, rates) >= step_s
        assert roofline.prompt_s(QWEN_7B, precision, T4, tokens + 1, rates) >= prompt_s
        assert roofline.step_s(QWEN_7B, precision, H100, concurrency, tokens, rates) < step_s
        assert roofline.step_s(LLAMA_8B, precision, T4, concurrency, tokens, rates) > step_s


def test_a_window_bounds_what_a_step_reads():
    slides = replace(LLAMA_8B, window=1024)
    short, long = (roofline.step_s(slides, "fp16", T4, 8, c) for c in (1024, 8192))
    assert short == long == roofline.step_s(LLAMA_8B, "fp16", T4, 8, 1024)


def test_devices_are_stacked_only_of_a_kind():
    both = roofline.stack_devices([T4, H100])
    assert both.bandwidth_byte_s.tolist() == [320e9, 3350e9]
    with pytest.raises(ValueError, match="all have a power limit, or none"):
        roofline.stack_devices([T4, replace(T4, power_limit_w=None)])
    with pytest.raises(ValueError, match="all be CPUs, or none"):
        roofline.stack_devices([T4, replace(T4, name="cpu")])


# --- a study's models on any hardware ---------------------------------------------------------


@pytest.fixture(scope="module")
def table():
    return requirements(load_study("paper_t4", repetitions=1), ["t4x2", "h200", "cpu-node"])


def test_requirements_are_whole(table):
    assert list(table.columns) == COLUMNS
    parts = table.filter(regex="(weights|adapter|gradients|optimiser|activ.*|cache|space)_gb")
    assert parts.sum(axis=1).to_numpy() == pytest.approx(table["need_gb"].to_numpy())
    served = table["step"].str.startswith("serve")
    assert served.any()
    assert not served.all()
    assert table.loc[served, "tpot_s"].notna().all()
    assert table.loc[~served, "tpot_s"].isna().all()
    assert (table["flop"] > 0).all()


def test_adapting_all_weights_needs_most_and_qlora_least_where_weights_count(table):
    of_8b = table.query("model == 'llama-8B' and hardware == 'h200'").set_index("step")
    need_gb = [of_8b.loc[f"adapt by {m}", "need_gb"] for m in ("qlora", "lora", "full")]
    assert need_gb == sorted(need_gb)
    assert of_8b.loc["adapt by full", "flop"] > of_8b.loc["adapt by lora", "flop"]


def test_only_what_was_calibrated_is_not_extrapolated(table):
    served = table[table["step"].str.startswith("serve")]
    assert not served.loc[served["hardware"] == "t4x2", "extrapolated"].any()
    assert served.loc[served["hardware"] != "t4x2", "extrapolated"].all()


def test_requirements_of_every_declared_device():
    study = load_study("t4_free")
    table = requirements(study)
    assert set(table["hardware"]) >= {"t4", "l4", "a10", "a30", "a100", "h100", "h200", "cpu-node"}
    assert table["verdict"].notna().all()


def test_a_shape_that_is_not_known_is_stood_in_for_by_size():
    model = load_study("paper_t4").models[0]
    unknown = model.model_copy(update={"location": "nobody/none", "config": None})
    assert fit.shape_or_like(unknown).parameters == pytest.approx(model.parameters, rel=0.02)
    assert fit.shape_or_like(model) == fit.shape_of(model)
