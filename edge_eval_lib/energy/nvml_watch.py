"""What happens on a GPU while it is measured: temperature, throttling, use, other processes."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import psutil
import pynvml

from edge_eval_lib.energy import process_tree
from edge_eval_lib.machine import nvml

INITIAL_PID_NAMESPACE = "pid:[4026531836]"  # a constant of Linux: the namespace of the host
THROTTLE_REASONS = {
    "hardware slowdown": pynvml.nvmlClocksEventReasonHwSlowdown,
    "hardware thermal slowdown": pynvml.nvmlClocksEventReasonHwThermalSlowdown,
    "hardware power brake": pynvml.nvmlClocksEventReasonHwPowerBrakeSlowdown,
    "software thermal slowdown": pynvml.nvmlClocksEventReasonSwThermalSlowdown,
    "software power cap": pynvml.nvmlClocksEventReasonSwPowerCap,
}
POWER_CAP = "software power cap"


@dataclass(frozen=True)
class Observation:
    """The state of all watched GPUs at one moment; what a GPU does not tell is left out."""

    monotonic_s: float
    temperature_c: dict[str, float] = field(default_factory=dict)  # by device label
    throttle: dict[str, list[str]] = field(default_factory=dict)
    utilisation: dict[str, float] = field(default_factory=dict)  # 0..1
    others: dict[str, list[str]] = field(default_factory=dict)  # processes that are not ours
    unrecognised: dict[str, int] = field(default_factory=dict)  # cannot be told from ours
    processes_known: bool = False


class NvmlWatch:
    """Looks at the GPUs at both ends of a window and once a second between."""

    poll_interval_s = 1.0

    def __init__(
        self, gpus: list[nvml.Device], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.gpus = gpus
        self._clock = clock
        self._seen: list[Observation] = []
        self.slowdown_c = {gpu.label: _slowdown_c(gpu) for gpu in gpus}

    def poll(self) -> None:
        self._seen.append(self._look())

    def begin(self) -> float:
        """Looks, processes included (slow), and returns the time."""
        self._seen.append(self._look(processes=True))
        return self._seen[-1].monotonic_s

    end = begin

    def between(self, begin: float, end: float) -> list[Observation]:
        return [seen for seen in self._seen if begin <= seen.monotonic_s <= end]

    def forget(self) -> None:
        """Drops what was seen; called when no window is open."""
        self._seen = []

    def _look(self, processes: bool = False) -> Observation:
        seen = Observation(self._clock(), processes_known=processes)
        tree = {os.getpid(), *process_tree.descendants()} if processes else set()
        for gpu in self.gpus:
            _ask(lambda gpu=gpu: seen.temperature_c.update({gpu.label: _temperature_c(gpu)}))
            _ask(lambda gpu=gpu: seen.throttle.update({gpu.label: _throttle(gpu)}))
            _ask(lambda gpu=gpu: seen.utilisation.update({gpu.label: _utilisation(gpu)}))
            if processes:
                _ask(lambda gpu=gpu: _sort_processes(gpu, tree, seen))
        return seen


def _ask(question: Callable[[], None]) -> None:
    """What a GPU or driver cannot tell stays out; the checks say 'not applicable' then."""
    try:
        question()
    except pynvml.NVMLError:
        return


def _temperature_c(gpu: nvml.Device) -> float:
    return float(pynvml.nvmlDeviceGetTemperature(gpu.handle, pynvml.NVML_TEMPERATURE_GPU))


def _throttle(gpu: nvml.Device) -> list[str]:
    mask = pynvml.nvmlDeviceGetCurrentClocksEventReasons(gpu.handle)
    return [name for name, bit in THROTTLE_REASONS.items() if mask & bit]


def _utilisation(gpu: nvml.Device) -> float:
    return pynvml.nvmlDeviceGetUtilizationRates(gpu.handle).gpu / 100


def _slowdown_c(gpu: nvml.Device) -> float | None:
    try:
        return float(
            pynvml.nvmlDeviceGetTemperatureThreshold(
                gpu.handle, pynvml.NVML_TEMPERATURE_THRESHOLD_SLOWDOWN
            )
        )
    except pynvml.NVMLError:
        return None


def _sort_processes(gpu: nvml.Device, tree: set[int], seen: Observation) -> None:
    """In a container NVML counts process ids as the host does: who is who cannot be told then."""
    foreign = [pid for pid in nvml.process_memory_bytes(gpu) if pid not in tree]
    if in_host_pid_namespace():
        seen.others[gpu.label] = [_process_label(pid) for pid in foreign]
        seen.unrecognised[gpu.label] = 0
    else:
        seen.others[gpu.label] = []
        seen.unrecognised[gpu.label] = len(foreign)


def in_host_pid_namespace() -> bool:
    try:
        return os.readlink("/proc/self/ns/pid") == INITIAL_PID_NAMESPACE
    except OSError:
        return False


def _process_label(pid: int) -> str:
    try:
        return f"{psutil.Process(pid).name()} ({pid})"
    except psutil.Error:
        return f"process {pid}"
