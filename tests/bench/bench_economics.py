"""How fast load, cost and carbon are computed.

    python tests/bench/bench_economics.py

Steps of the simulation a second; configurations a second through the closed form of a server's
load, cost and carbon, as arrays beside the same functions in a plain loop.
"""

from __future__ import annotations

import time

import numpy as np

from edge_eval_lib.economics import carbon, cost
from edge_eval_lib.economics.batching import arrivals_s, simulate
from edge_eval_lib.economics.server import Server, capacity_req_s
from edge_eval_lib.economics.steady import steady_state

STEPS_TARGET = CONFIGURATIONS_TARGET = 1e6
CONFIGURATIONS = 1_000_000
IN_A_LOOP = 1000
PROMPT, ANSWER = 300, 150


def simulation() -> None:
    """Steps a second of a server under nine tenths of what it takes."""
    server = Server(2e-4, 8e-3, 2e-4, 1e-7, max_batch=32)
    rate = 0.9 * float(capacity_req_s(server, PROMPT, ANSWER))
    simulate(server, arrivals_s(rate, 100), PROMPT, ANSWER)  # compiles, once
    arrivals = arrivals_s(rate, 100_000, 4)
    begin = time.perf_counter()
    run = simulate(server, arrivals, PROMPT, ANSWER)
    speed = run.steps / (time.perf_counter() - begin)
    print(f"simulated steps a second: {speed:.2g} (target >= {STEPS_TARGET:.0e})")


def figures(step_s, rate, power_w, usd_per_hour, intensity) -> np.ndarray:
    """The USD and g CO2e of a request, and infinite where the server cannot take the load."""
    state = steady_state(Server(2e-4, step_s, 2e-4, 1e-7), rate, PROMPT, ANSWER)
    seconds = np.where(state.utilisation < 1, state.busy_share / rate, np.inf)
    seconds = np.where(np.isfinite(seconds), seconds, 1e9)
    usd = cost.usd_per_request(usd_per_hour, seconds)
    carbon_g = carbon.serving_footprint(seconds * power_w, seconds, intensity, 1.3, 60e3, 5.0)
    return usd + carbon_g.total_g + state.latency_s


def configurations() -> None:
    """Load, cost and carbon of a million configurations, as arrays and one by one."""
    rng = np.random.default_rng(0)
    ranges = ((4e-3, 4e-2), (0.1, 2.0), (30, 300), (0.1, 4.0), (30, 700))
    drawn = [rng.uniform(*ends, CONFIGURATIONS) for ends in ranges]
    figures(*(column[:10] for column in drawn))
    begin = time.perf_counter()
    together = figures(*drawn)
    vector_s = time.perf_counter() - begin
    begin = time.perf_counter()
    alone = [figures(*row) for row in zip(*(c[:IN_A_LOOP] for c in drawn), strict=True)]
    loop_s = (time.perf_counter() - begin) / IN_A_LOOP * CONFIGURATIONS
    if not np.allclose(alone, together[:IN_A_LOOP]):
        raise SystemExit("the arrays and the loop disagree")
    print(
        f"configurations a second through load, cost and carbon: {CONFIGURATIONS / vector_s:.2g} "
        f"(target >= {CONFIGURATIONS_TARGET:.0e}), {loop_s / vector_s:.0f} times a plain loop"
    )


if __name__ == "__main__":
    simulation()
    configurations()
