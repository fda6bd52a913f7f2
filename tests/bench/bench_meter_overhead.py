"""What measuring costs: CPU time of a meter's threads and calls over the time of its windows.

    python tests/bench/bench_meter_overhead.py

Runs the same work (hashing on one thread, in windows of half a second) under Edge-Eval's monitor,
Zeus's and codecarbon's, and under none, each in a process of its own that measures whatever this
machine has. Zeus and codecarbon are optional: pip install -e .[bench].
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import pandas as pd

WINDOWS = 8
WINDOW_S = 0.5
BLOCK = bytes(1 << 16)


def work() -> tuple[float, float]:
    """Hashes for half a second; returns CPU seconds of this thread and wall seconds."""
    start, cpu = time.perf_counter(), time.thread_time()
    while time.perf_counter() - start < WINDOW_S:
        hashlib.sha256(BLOCK).digest()
    return time.thread_time() - cpu, time.perf_counter() - start


Meter = tuple[Callable[[str], None], Callable[[str], float | None], str]


def nothing() -> Meter:
    return lambda name: None, lambda name: None, "nothing"


def edge_eval() -> Meter:
    from edge_eval_lib.energy import Monitor

    monitor, windows = Monitor(), {}

    def begin(name: str) -> None:
        windows[name] = monitor.window(name).__enter__()

    def end(name: str) -> float:
        windows[name].__exit__(None, None, None)
        return windows[name].seconds

    return begin, end, ", ".join(source.name for source in monitor.sources if source.available)


def zeus() -> Meter:
    from zeus.monitor import ZeusMonitor

    monitor = ZeusMonitor()
    sources = [f"{len(monitor.gpu_indices)} GPUs", f"{len(monitor.cpu_indices)} RAPL packages"]
    return monitor.begin_window, lambda name: monitor.end_window(name).time, ", ".join(sources)


def codecarbon() -> Meter:
    from codecarbon import OfflineEmissionsTracker

    tracker = OfflineEmissionsTracker(
        country_iso_code="USA", save_to_file=False, log_level="error", allow_multiple_runs=True
    )
    sources = ", ".join(type(device).__name__ for device in tracker._hardware)

    def end(name: str) -> None:
        tracker.stop_task(name)

    return tracker.start_task, end, sources


METERS = {"none": nothing, "edge-eval": edge_eval, "zeus": zeus, "codecarbon": codecarbon}


def cpu_s() -> float:
    """CPU seconds of this process, its threads and the children that it has waited for."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def measure(meter: str) -> dict[str, float | str | None]:
    """One meter in this process: opening, then windows; shares are of the windows' time."""
    start = time.perf_counter()
    begin, end, sources = METERS[meter]()
    opened_s = time.perf_counter() - start
    begin("warm-up")
    work()
    end("warm-up")
    calls, inside, worked, walled = [], [], 0.0, 0.0
    cpu = cpu_s()
    for index in range(WINDOWS):
        called = time.perf_counter()
        begin(str(index))
        begun = time.perf_counter()
        work_cpu_s, work_wall_s = work()
        ending = time.perf_counter()
        told_s = end(str(index))
        calls.append(begun - called + time.perf_counter() - ending)
        worked, walled = worked + work_cpu_s, walled + work_wall_s
        if told_s is not None:
            inside.append(told_s - work_wall_s)
    return {
        "meter": meter,
        "open_s": opened_s,
        "cpu_share_pct": 100 * (cpu_s() - cpu - worked) / walled,
        "begin_and_end_ms": 1e3 * statistics.median(calls),
        "within_window_us": 1e6 * statistics.median(inside) if inside else None,
        "measures": sources,
    }


def main() -> None:
    rows = []
    for meter in METERS:
        package = meter.replace("edge-eval", "edge_eval_lib")
        if meter != "none" and importlib.util.find_spec(package) is None:
            rows.append({"meter": meter, "measures": "not installed"})
            continue
        done = subprocess.run(
            [sys.executable, __file__, "--meter", meter], capture_output=True, text=True, timeout=60
        )
        if done.returncode:
            why = done.stderr.strip().splitlines()[-1] if done.stderr.strip() else "no message"
            rows.append({"meter": meter, "measures": f"failed: {why}"})
        else:
            rows.append(json.loads(done.stdout.splitlines()[-1]))
    table = pd.DataFrame(rows).set_index("meter")
    formats = {
        "open_s": "{:.2f}",
        "cpu_share_pct": "{:.3f}",
        "begin_and_end_ms": "{:.2f}",
        "within_window_us": "{:.1f}",
    }
    for column, form in formats.items():
        table[column] = table[column].map(form.format, na_action="ignore")
    print(
        f"{WINDOWS} windows of {WINDOW_S} s; cpu_share_pct: CPU time of threads and calls over the "
        f"windows' time,\nthe work's own taken off ('none' is the noise); within_window_us: what a "
        f"window tells over what its work took;\nload average {os.getloadavg()[0]:.1f}\n"
    )
    print(table.fillna("-").to_string())


if __name__ == "__main__":
    if "--meter" in sys.argv:  # make bench also hands over a study, which does not matter here
        print(json.dumps(measure(sys.argv[-1])))
    else:
        main()
