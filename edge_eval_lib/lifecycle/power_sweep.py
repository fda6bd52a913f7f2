"""What a GPU's knob does to serving: the order in which its settings are visited, and a visit.

Notebook 15_power_sweep turns the knob through a watchdog (machine/watchdog.py), waits until the GPU
has settled, warms up and measures the same serving windows at every setting.
"""

from __future__ import annotations

import contextlib
import os
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import pynvml

from edge_eval_lib.energy import process_tree
from edge_eval_lib.energy.meters.nvml_watch import in_host_pid_namespace
from edge_eval_lib.energy.polling import Poller
from edge_eval_lib.errors import UserError
from edge_eval_lib.machine import knobs, nvml
from edge_eval_lib.study import PowerSweep

CLOCK_EVERY_S = 0.2
STEP_MHZ = 15.0  # between neighbouring clocks of a T4: a reading may be one off


@dataclass(frozen=True)
class Visit:
    """A setting in a repetition; the `control` is its first setting once more, at its end."""

    repetition: int
    setting: float
    control: bool = False


def visits(points: list[float], repetitions: int, seed: int) -> list[Visit]:
    """Return the order in which settings are visited.

    Every repetition holds each setting once, in a random order of its own, so that drift falls on
    none more than on another; then its first one again, which shows how much drifted meanwhile.
    """
    order = []
    for repetition in range(1, repetitions + 1):
        shuffled = list(points)
        random.Random(f"{seed}/{repetition}").shuffle(shuffled)
        order += [Visit(repetition, setting) for setting in shuffled]
        order.append(Visit(repetition, shuffled[0], control=True))
    return order


def require_permitted(sweep: PowerSweep | None) -> None:
    """Raise UserError, in one sentence, for a sweep that may not be made on this machine now."""
    if sweep is None:
        raise UserError("This study has no section power_sweep; params/power_sweep.yaml has one.")
    if refused := knobs.refusal(sweep.knob, sweep.points, sweep.exclusive):
        raise UserError(refused)


def require_on_gpu() -> None:
    """Raise UserError if the weights that were loaded are on none of the GPUs that are turned.

    In a container a process does not know its id on the host: there it is not judged.
    """
    if not in_host_pid_namespace():
        return
    ours = {os.getpid(), *process_tree.descendants()}
    devices = nvml.visible_devices()
    if not any(ours & nvml.process_memory_bytes(device).keys() for device in devices):
        raise UserError(
            f"The engine holds no memory of {devices[0].label}: it works elsewhere, and a sweep "
            "would measure an idle GPU; is torch a build with CUDA?"
        )


@dataclass
class Clocks:
    """SM clocks that were seen while something was measured, MHz."""

    seen_mhz: list[float] = field(default_factory=list)

    def look(self) -> None:
        """Read every visible GPU once."""
        for device in nvml.visible_devices():
            with contextlib.suppress(pynvml.NVMLError):
                self.seen_mhz.append(knobs.sm_clock_mhz(device))

    def verdict(self, sweep: PowerSweep, setting: float) -> str:
        """Return whether a locked clock held: `held`, or `lower`, where heat or the limit cut it.

        Of a power limit nothing is judged, and the watchdog has read it back. UserError for a clock
        above the setting: then the driver takes no lock, and every figure would be of no setting.
        """
        if sweep.knob != "sm_clock_mhz":
            return "read back"
        if not self.seen_mhz:
            return "not seen"
        ran = median(self.seen_mhz)
        if ran > setting + STEP_MHZ:
            raise UserError(
                f"The SM clock was set to {setting:g} MHz and ran at {ran:g}: this GPU or driver "
                "takes no lock, so that nothing can be swept."
            )
        return "held" if ran >= setting - STEP_MHZ else "lower"


@contextlib.contextmanager
def clocks_seen() -> Iterator[Clocks]:
    """Watch the SM clocks of the visible GPUs within a `with`."""
    clocks = Clocks()
    clocks.look()
    poller = Poller(clocks.look, CLOCK_EVERY_S)
    poller.resume()
    try:
        yield clocks
    finally:
        poller.stop()
        clocks.look()


def row(
    visit: Visit, place: int, clocks: Clocks, verdict: str, figures: dict[str, Any]
) -> dict[str, Any]:
    """Return what a window of a visit measured, as tables/power_sweep_runs.csv has it.

    UserError where others were on the GPU meanwhile: then it is not ours to turn.
    """
    others = next((c for c in figures["checks"] if c["name"] == "other processes"), None)
    if others is not None and others["verdict"] == "invalid":
        raise UserError(f"The sweep ends, for the GPU is not ours alone: {others['detail']}.")
    kept = ["concurrency", "requests", "seconds", "energy_per_token_j", "energy_per_request_j"]
    kept += ["throughput_tok_s", "ttft_ms", "tpot_ms", "power_w", "energy_source", "notes"]
    doubts = [c["name"] for c in figures["checks"] if c["verdict"] in ("warning", "invalid")]
    return {
        "place": place,
        "repetition": visit.repetition,
        "setting": visit.setting,
        "control": visit.control,
        "sm_clock_mhz": median(clocks.seen_mhz) if clocks.seen_mhz else None,
        "setting_verdict": verdict,
        **{name: figures[name] for name in kept},
        "validity": "; ".join(doubts) or "ok",
    }
