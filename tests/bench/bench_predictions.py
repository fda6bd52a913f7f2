"""Memory, speed and power of many configurations at once, beside a plain loop over them.

    python tests/bench/bench_predictions.py

Prints configurations a second of both (target of the arrays: >= 1,000,000).
"""

import time
from dataclasses import fields, replace

import numpy as np

from edge_eval_lib.economics import memory, published_speed, roofline, speed
from edge_eval_lib.economics.shape import stack
from edge_eval_lib.machine.declared import load_hardware

DEVICES = ("t4", "t4x2", "l4", "a10", "a30", "a100", "h100", "h200")
PRECISIONS = ("fp16", "int8", "int4")
LOOPED = 500


def main() -> None:
    shapes = list(published_speed.shapes().values())
    devices = [roofline.device_of(load_hardware(name)) for name in DEVICES]
    concurrency, prompts = np.arange(1, 65), np.linspace(100, 2000, 120).round()
    published_speed.calibration()  # fitted once

    def evaluate(shape, precision, device, at_once, prompt):
        predicted = speed.predict(shape, precision, device, at_once, prompt)
        need = memory.serving_memory(shape, precision, at_once, prompt + 150)
        return predicted, need.verdict(device.memory_gb)

    axes = (
        along(stack(shapes), (-1, 1, 1, 1, 1)),
        np.array(PRECISIONS).reshape(-1, 1, 1, 1),
        along(roofline.stack_devices(devices), (-1, 1, 1)),
        concurrency.reshape(-1, 1),
        prompts,
    )
    evaluate(*axes)  # warm
    start = time.perf_counter()
    predicted, _ = evaluate(*axes)
    arrays_s = time.perf_counter() - start
    many = predicted.tpot_s.size

    rng = np.random.default_rng(0)
    picked = [
        (
            shapes[rng.integers(len(shapes))],
            str(rng.choice(PRECISIONS)),
            devices[rng.integers(len(devices))],
            int(rng.choice(concurrency)),
            float(rng.choice(prompts)),
        )
        for _ in range(LOOPED)
    ]
    start = time.perf_counter()
    for configuration in picked:
        evaluate(*configuration)
    loop_s = time.perf_counter() - start
    print(f"memory, speed and power, {many:,} configurations")
    print(f"  arrays      {many / arrays_s:12,.0f} a second   (target >= 1,000,000)")
    print(f"  plain loop  {LOOPED / loop_s:12,.0f} a second")
    print(f"  ratio       {many / arrays_s * loop_s / LOOPED:12,.0f}")


def along(fields_of, axes: tuple[int, ...]):
    """Lay the arrays in a dataclass's fields along one axis of a grid."""
    values = {f.name: getattr(fields_of, f.name) for f in fields(fields_of)}
    return replace(
        fields_of, **{n: np.reshape(v, axes) for n, v in values.items() if v is not None}
    )


if __name__ == "__main__":
    main()
