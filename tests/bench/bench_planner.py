"""How many configurations a second the planner goes through, vectorised and in a plain loop.

    python tests/bench/bench_planner.py [STUDY]

A configuration is a model, precision, device, concurrency, length of prompt and answer: its memory,
speed and power, waiting, USD and g CO2e a request. Beside it, the planner's own evaluation of its
options, and the whole choice.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import fields, replace
from itertools import product

import numpy as np

from edge_eval_lib.economics import carbon, cost, fit, latency, memory, speed
from edge_eval_lib.economics.advise import choice as advise_choice
from edge_eval_lib.economics.advise import evaluation
from edge_eval_lib.economics.roofline import device_of, stack_devices
from edge_eval_lib.economics.shape import stack
from edge_eval_lib.machine.declared import load_hardware
from edge_eval_lib.runs import planner
from edge_eval_lib.study import load_study

TARGET = 1e6
IN_A_LOOP = 200
# Least, most and number of concurrencies, tokens in and tokens out.
WORK = [(1, 64, 16), (50, 2000, 24), (10, 500, 24)]
DEVICES = ("t4", "t4x2", "l4", "a100", "h100")


def figures(shape, precision, device, concurrency, prompt_tokens, output_tokens):
    """Everything of one configuration, or of arrays of them."""
    needed = memory.serving_memory(shape, precision, concurrency, prompt_tokens + output_tokens)
    predicted = speed.predict(shape, precision, device, concurrency, prompt_tokens, output_tokens)
    service_s = latency.latency_s(predicted.ttft_s, predicted.tpot_s, output_tokens)
    rate_req_s = 0.5 * concurrency / service_s
    wait_s = latency.queue_wait_s(rate_req_s, service_s, concurrency)
    energy_j = predicted.energy_per_token_j * output_tokens
    hour_usd = cost.usd_per_hour(5000.0, 0.05, 5.0, predicted.power_w / 1e3, 0.12, 1.56)
    usd = hour_usd / 3600 / rate_req_s
    grams = carbon.operational_g(energy_j / 3.6e6, 369.0, 1.56)
    return needed.total_gb, wait_s + service_s, usd, grams


def on_axis(record, shape: tuple[int, ...]):
    """A record of arrays, a number a model or device, along one axis of the grid."""
    arrays = {
        f.name: value.reshape(shape)
        for f in fields(record)
        if isinstance(value := getattr(record, f.name), np.ndarray)
    }
    return replace(record, **arrays)


def rate(run: Callable[[], object], count: int, repeat: int = 3) -> float:
    """Configurations a second, the best of some tries."""
    seconds = []
    for _ in range(repeat):
        started = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - started)
    return count / min(seconds)


def main() -> None:
    study = load_study("paper_t4")
    shapes = [fit.shape_of(model) for model in study.models]
    devices = [device_of(load_hardware(name)) for name in DEVICES]
    # A grid: an axis each for model, device, precision, concurrency, tokens in and out.
    axes = [np.arange(len(shapes)), np.arange(len(devices)), np.array(["fp16", "int8", "int4"])]
    axes += [np.unique(np.geomspace(least, most, n).round()) for least, most, n in WORK]
    model, device, precision, *work = np.meshgrid(*axes, indexing="ij", sparse=True)
    many_shapes = on_axis(stack(shapes), model.shape)
    many_devices = on_axis(stack_devices(devices), device.shape)
    count = int(np.prod([len(axis) for axis in axes]))
    vectorised = rate(lambda: figures(many_shapes, precision, many_devices, *work), count)
    some = list(product(*map(range, map(len, axes))))[:: count // IN_A_LOOP]

    def alone(place: tuple[int, ...]) -> tuple[float, ...]:
        at = [axis[i] for axis, i in zip(axes, place, strict=True)]
        return figures(shapes[at[0]], str(at[2]), devices[at[1]], *map(float, at[3:]))

    plain = rate(lambda: [alone(place) for place in some], len(some), repeat=1)
    together = figures(many_shapes, precision, many_devices, *work)
    for many, one in zip(together, alone(some[7]), strict=True):
        everywhere = np.broadcast_to(many, [len(axis) for axis in axes])
        np.testing.assert_allclose(everywhere[some[7]], one, rtol=1e-9)
    print(
        f"memory, speed, waiting, cost and carbon: {vectorised:,.0f} configurations a second "
        f"(target >= {TARGET:,.0f}); a plain loop over the same functions: {plain:,.0f}, "
        f"{vectorised / plain:,.0f} times slower"
    )

    question = planner.begin("published", need={"ttft_ms": 1000})
    drawn = question.choice
    inputs = question.inputs.at(
        np.random.default_rng(0).random((len(question.inputs.varied()), 4096))
    )
    evaluated = rate(
        lambda: evaluation.evaluate(drawn.options, inputs, question.need), len(drawn.options) * 4096
    )
    started = time.perf_counter()
    advise_choice.flips(advise_choice.choose(question.options, question.inputs))
    print(
        f"the planner's options: {evaluated:,.0f} evaluations a second; the whole choice, with "
        f"what flips it: {time.perf_counter() - started:.2f} s"
    )
    with tempfile.TemporaryDirectory() as outputs:
        command = [sys.executable, "-m", "edge_eval_lib", "advise", "published"]
        started = time.perf_counter()
        subprocess.run(
            command,
            env=os.environ | {"EDGE_EVAL_OUTPUTS": outputs},
            check=True,
            capture_output=True,
        )
        print(
            f"advise published, with its notebook and page: {time.perf_counter() - started:.1f} s "
            "(target of the notebook: <= 20 s)"
        )


if __name__ == "__main__":
    main()
