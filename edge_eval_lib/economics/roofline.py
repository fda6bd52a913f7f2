"""How long a device should take, from what it can read and compute: one model for plan and planner.

A step of a batch, and a prompt: launching kernels + the slower of reading and arithmetic (on a
CPU their sum: nothing overlaps) + what cards say to each other. `decode_step_s` is the floor,
at full peaks. Arguments broadcast as arrays.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np

from edge_eval_lib.bounds import NonNegative, Positive, PositiveShare, Whole, checked
from edge_eval_lib.economics import flops, latency
from edge_eval_lib.economics.shape import ModelShape, by_precision
from edge_eval_lib.machine.declared import Hardware

# Where a machine does not say: two AVX2 cores, measured; their power is params/hardware.yaml's.
CPU_TFLOPS = 0.2
CPU_BANDWIDTH_GB_S = 20.0
PCIE_GB_S = 16.0  # PCIe 3.0, 16 lanes, one direction: how T4s reach each other
ALL_REDUCE_S = 20e-6  # to start one among cards: ASSUMED
DISK_GB_S = 0.5  # weights that are not in the page cache: ASSUMED


@checked
@dataclass(frozen=True)
class Device:
    """One card's figures, or a CPU's, and how many there are; fields may be arrays (`stack`)."""

    name: Any  # gpu_names[0] of params/hardware.yaml, "cpu" without a GPU
    memory_gb: Positive
    bandwidth_gb_s: Positive
    fp16_tflops: Positive
    power_limit_w: Positive | None = None
    cards: Whole = 1
    link_gb_s: Positive = PCIE_GB_S

    @property
    def bandwidth_byte_s(self) -> Any:
        """All cards' peak bandwidth."""
        return np.multiply(self.bandwidth_gb_s, 1e9) * self.cards

    @property
    def flop_s(self) -> Any:
        """All cards' peak 16-bit arithmetic."""
        return np.multiply(self.fp16_tflops, 1e12) * self.cards


def device_of(hardware: Hardware) -> Device:
    """Return the device of declared hardware; a CPU that does not say is two AVX2 cores."""
    return Device(
        name=hardware.gpu_names[0] if hardware.gpu_names else "cpu",
        memory_gb=hardware.memory_gb,
        bandwidth_gb_s=hardware.bandwidth_gb_s or CPU_BANDWIDTH_GB_S,
        fp16_tflops=hardware.fp16_tflops or CPU_TFLOPS,
        power_limit_w=hardware.power_limit_w,
        cards=max(1, hardware.gpus),
        link_gb_s=hardware.link_gb_s or PCIE_GB_S,
    )


def stack_devices(devices: Sequence[Device]) -> Device:
    """Return one device whose fields are arrays, a number a device.

    Raises:
        ValueError: Some have a power limit and others do not, or some are CPUs: compute them apart.
    """
    if len({device.name == "cpu" for device in devices}) > 1:
        raise ValueError("devices must all be CPUs, or none")
    if len({device.power_limit_w is None for device in devices}) > 1:
        raise ValueError("devices must all have a power limit, or none")
    values = {f.name: [getattr(d, f.name) for d in devices] for f in fields(Device)}
    if values["power_limit_w"][0] is None:
        del values["power_limit_w"]
    return Device(**{name: np.array(column) for name, column in values.items()})


@checked
@dataclass(frozen=True)
class Rates:
    """What software reaches of a device's peaks, and what each step costs besides.

    Attributes:
        bandwidth_share: Of the peak bandwidth that reading weights and cache reaches.
        compute_share: Of the peak arithmetic that batches reach, and training.
        prompt_share: Of the peak arithmetic that prompts reach; by default `compute_share`.
        launch_s: A step costs, whatever the model.
        launch_s_a_layer: A layer costs, by precision.
        bytes_per_weight: What a step reads a weight, by precision, where that is not its format's.
        qlora_slower: Times that expanding 4-bit weights slows training.
        is_static: Whether a batch starts and ends together; else requests join when they come.
        overlaps: Whether reading and arithmetic go on at once.
    """

    bandwidth_share: PositiveShare
    compute_share: PositiveShare
    launch_s: NonNegative = 0.0
    launch_s_a_layer: Mapping[str, float] = field(default_factory=dict)
    bytes_per_weight: Mapping[str, float] = field(default_factory=dict)
    qlora_slower: Positive = 1.0
    is_static: bool = False
    overlaps: bool = True
    prompt_share: PositiveShare | None = None


# What a T4 reaches under transformers was read off a published run: Qwen2.5-0.5B (24 layers) at
# 24.4 tok/s in FP16 and 6.3 in LLM.int8 (github.com/dohu012/llm-quantization-benchmark), NF4 1.57
# times as slow as FP16 (earino.github.io, "Your int8 Quantization Is 2.5x Slower"). The shares and
# QLoRA's factor are ASSUMED.
TRANSFORMERS_GPU = Rates(
    bandwidth_share=0.5,
    compute_share=0.3,
    launch_s_a_layer={"fp16": 1.7e-3, "int8": 6.6e-3, "int4": 2.7e-3},
    qlora_slower=2.0,
    is_static=True,
)
# vLLM replays a recorded graph: launching costs next to nothing. Shares ASSUMED.
GRAPH_GPU = Rates(bandwidth_share=0.5, compute_share=0.3, qlora_slower=2.0)
# FP16 is computed in fp32; bitsandbytes slows INT8 3.1 times and INT4 2.3 times: measured on two
# AVX2 cores.
CPU = Rates(
    bandwidth_share=0.5,
    compute_share=0.3,
    bytes_per_weight={"fp32": 4.0, "fp16": 4.0, "int8": 4.0 * 3.1, "int4": 4.0 * 2.3},
    is_static=True,
    overlaps=False,
)


def rates_of(is_gpu: bool, launches_every_step: bool) -> Rates:
    """Return the stated rates of a CPU, or of a GPU by whether the engine launches every step."""
    if not is_gpu:
        return CPU
    return TRANSFORMERS_GPU if launches_every_step else GRAPH_GPU


@checked
def step_s(
    shape: ModelShape,
    precision: Any,
    device: Device,
    concurrency: Whole = 1,
    context_tokens: NonNegative = 0,
    rates: Rates = GRAPH_GPU,
):
    """Compute the seconds of one decoding step of a batch.

    launch + max((W + B ctx k) / (bandwidth share), B (2 P + 4 w ctx) / (FLOP/s share)) +
    all-reduces: weights W and cache k a token are read, B tokens computed; two all-reduces a layer
    between cards. After arXiv 2506.04645. Where nothing overlaps, the sum instead of the larger.
    """
    seen = context_tokens if shape.window is None else np.minimum(context_tokens, shape.window)
    weights = _read_bytes(shape, precision, rates)
    cache = concurrency * seen * shape.kv_values_per_token * 2.0
    reading = (weights + cache) / (device.bandwidth_byte_s * rates.bandwidth_share)
    operations = flops.decode_flop(
        shape.matrix_parameters, seen, flops.attention_width(shape), concurrency
    )
    computing = operations / (device.flop_s * rates.compute_share)
    talking = _talk_s(shape, device, concurrency)
    return _launch_s(shape, precision, rates) + _together(reading, computing, rates) + talking


@checked
def prompt_s(
    shape: ModelShape,
    precision: Any,
    device: Device,
    prompt_tokens: NonNegative,
    rates: Rates = GRAPH_GPU,
):
    """Compute the seconds of a prompt, or of a batch's prompts together: 2 P S + 2 w S^2 (flops).

    Weights are read once; launching and talking cost as in a step.
    """
    operations = flops.prefill_flop(
        shape.matrix_parameters, prompt_tokens, flops.attention_width(shape)
    )
    computing = operations / (device.flop_s * (rates.prompt_share or rates.compute_share))
    bandwidth = device.bandwidth_byte_s * rates.bandwidth_share
    reading = _read_bytes(shape, precision, rates) / bandwidth
    talking = _talk_s(shape, device, prompt_tokens)
    return _launch_s(shape, precision, rates) + _together(reading, computing, rates) + talking


@checked
def training_s(
    parameters: Positive,
    tokens: NonNegative,
    method: str,
    device: Device,
    gradient_checkpointing: bool = True,
    rates: Rates = GRAPH_GPU,
):
    """Compute the seconds to train on `tokens`: operations (flops) / (FLOP/s share)."""
    operations = flops.training_flop(parameters, tokens, method, gradient_checkpointing)
    slower = rates.qlora_slower if method == "qlora" else 1.0
    return slower * operations / (device.flop_s * rates.compute_share)


def figures(
    shape: ModelShape,
    precision: Any,
    device: Device,
    concurrency: Any,
    prompt_tokens: Any,
    output_tokens: Any,
    rates: Rates,
) -> dict[str, Any]:
    """Compute each quantity from the physical roofline.

    Power is the limit, 1 where none is known, and loading 1: they carry no ratio. A static
    batch reads all its prompts before its first token. Throughput is B N / latency.
    """
    context = np.add(prompt_tokens, np.divide(output_tokens, 2))
    tpot_s = step_s(shape, precision, device, concurrency, context, rates)
    together = np.multiply(prompt_tokens, concurrency) if rates.is_static else prompt_tokens
    ttft_s = prompt_s(shape, precision, device, together, rates)
    request_s = latency.latency_s(ttft_s, tpot_s, output_tokens)
    throughput_tok_s = np.multiply(concurrency, output_tokens) / request_s
    limit_w: Any = 1.0 if device.power_limit_w is None else device.power_limit_w
    power_w = np.multiply(limit_w, device.cards)
    return {
        "tpot_s": tpot_s,
        "ttft_s": ttft_s,
        "throughput_tok_s": throughput_tok_s,
        "energy_per_token_j": power_w / throughput_tok_s,
        "power_w": power_w,
        "load_s": 1.0,
    }


def _read_bytes(shape: ModelShape, precision: Any, rates: Rates) -> Any:
    if rates.bytes_per_weight:
        return shape.matrix_parameters * by_precision(rates.bytes_per_weight, precision)
    return shape.read_bytes(precision)


def _together(reading: Any, computing: Any, rates: Rates) -> Any:
    return np.maximum(reading, computing) if rates.overlaps else reading + computing


def _launch_s(shape: ModelShape, precision: Any, rates: Rates) -> Any:
    if not rates.launch_s_a_layer:
        return rates.launch_s
    return rates.launch_s + shape.layers * by_precision(rates.launch_s_a_layer, precision)


def _talk_s(shape: ModelShape, device: Device, tokens: Any) -> Any:
    """Two ring all-reduces a layer, each of 2 (n - 1) / n of the tokens' 16-bit hidden states."""
    share = 2 * np.subtract(device.cards, 1) / device.cards
    message = share * tokens * shape.hidden_size * 2.0 / (np.multiply(device.link_gb_s, 1e9))
    return 2 * shape.layers * (message + ALL_REDUCE_S * (share > 0))


# --- floors, at full peaks and of numbers alone ------------------------------------------------


@checked
def prefill_s(
    parameters: Positive,
    prompt_tokens: NonNegative,
    peak_flop_s: Positive,
    utilisation: PositiveShare = 1.0,
):
    """Compute the seconds of arithmetic for a prompt: 2 P S / (FLOP/s x MFU).

    The least at utilisation 1. Attention's own operations and kernel launches, which
    arXiv 2506.04645 adds, are left out.
    """
    return 2 * parameters * prompt_tokens / (peak_flop_s * utilisation)


@checked
def decode_step_s(
    weight_bytes: Positive,
    parameters: Positive,
    bandwidth_byte_s: Positive,
    peak_flop_s: Positive,
    concurrency: Whole = 1,
    context_tokens: NonNegative = 0,
    kv_bytes_per_token: NonNegative = 0,
    utilisation: PositiveShare = 1.0,
):
    """Compute the seconds of one decoding step of a batch: the slower of reading and computing.

    max((W + B context k) / (bandwidth x MBU), 2 P B / FLOP/s): weights W and the batch's KV cache
    are read once a step, B tokens computed. `utilisation` is the share of the bandwidth that is
    reached; the result is the least possible at 1. Launch and communication are left out.
    """
    read_bytes = weight_bytes + concurrency * context_tokens * kv_bytes_per_token
    slower = np.maximum(
        read_bytes / (bandwidth_byte_s * utilisation),
        2 * parameters * concurrency / peak_flop_s,
    )
    return slower if np.ndim(slower) else float(slower)


@checked
def compute_bound_concurrency(
    peak_flop_s: Positive, bandwidth_byte_s: Positive, bytes_per_parameter: Positive = 2.0
):
    """Find the concurrency from which arithmetic bounds decoding: FLOP/s b / (2 BW), without KV."""
    return peak_flop_s * bytes_per_parameter / (2 * bandwidth_byte_s)
