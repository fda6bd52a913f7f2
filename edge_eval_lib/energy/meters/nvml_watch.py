"""What happens on an NVIDIA GPU while it is measured: heat, throttling, use, other processes."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from typing import Any

import psutil
import pynvml

from edge_eval_lib.energy import process_tree
from edge_eval_lib.energy.meter import POWER_CAP, MeterError, Observation, Watch, register
from edge_eval_lib.machine import nvml

INITIAL_PID_NAMESPACE = "pid:[4026531836]"  # a constant of Linux: the namespace of the host
THROTTLE_REASONS = {
    "hardware slowdown": pynvml.nvmlClocksEventReasonHwSlowdown,
    "hardware thermal slowdown": pynvml.nvmlClocksEventReasonHwThermalSlowdown,
    "hardware power brake": pynvml.nvmlClocksEventReasonHwPowerBrakeSlowdown,
    "software thermal slowdown": pynvml.nvmlClocksEventReasonSwThermalSlowdown,
    POWER_CAP: pynvml.nvmlClocksEventReasonSwPowerCap,
}


@register
class NvmlWatch(Watch):
    """Observes the visible GPUs at both ends of a window and once a second between."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(clock)
        self._gpus = nvml.visible_devices()
        self._seen: list[Observation] = []
        self.slowdown_c = {gpu.label: _slowdown_c(gpu) for gpu in self._gpus}

    def poll(self) -> None:
        """Observe without looking for processes, which is slow."""
        self._seen.append(self._look())

    def begin(self) -> float:
        self._seen.append(self._look(processes=True))
        return self._seen[-1].monotonic_s

    def between(self, begin: float, end: float) -> list[Observation]:
        return [seen for seen in self._seen if begin <= seen.monotonic_s <= end]

    def forget(self) -> None:
        self._seen = []

    def process_memory_bytes(self) -> list[dict[int, int | None]]:
        try:
            return [nvml.process_memory_bytes(gpu) for gpu in self._gpus]
        except pynvml.NVMLError as error:
            raise MeterError(nvml.text(error)) from error

    def _look(self, processes: bool = False) -> Observation:
        seen = Observation(self._clock(), processes_known=processes)
        tree = {os.getpid(), *process_tree.descendants()} if processes else set()
        questions: list[tuple[dict[str, Any], Callable[[nvml.Device], Any]]] = [
            (seen.temperature_c, _temperature_c),
            (seen.throttle, _throttle),
            (seen.utilisation, _utilisation),
        ]
        for gpu in self._gpus:
            for answers, question in questions:
                with contextlib.suppress(pynvml.NVMLError):  # it stays out: 'not applicable'
                    answers[gpu.label] = question(gpu)
            if processes:
                with contextlib.suppress(pynvml.NVMLError):
                    _sort_processes(gpu, tree, seen)
        return seen


def _temperature_c(gpu: nvml.Device) -> float:
    return float(pynvml.nvmlDeviceGetTemperature(gpu.handle, pynvml.NVML_TEMPERATURE_GPU))


def _throttle(gpu: nvml.Device) -> list[str]:
    mask = pynvml.nvmlDeviceGetCurrentClocksEventReasons(gpu.handle)
    return [name for name, bit in THROTTLE_REASONS.items() if mask & bit]


def _utilisation(gpu: nvml.Device) -> float:
    return pynvml.nvmlDeviceGetUtilizationRates(gpu.handle).gpu / 100


def _slowdown_c(gpu: nvml.Device) -> float | None:
    limit = pynvml.NVML_TEMPERATURE_THRESHOLD_SLOWDOWN
    with contextlib.suppress(pynvml.NVMLError):
        return float(pynvml.nvmlDeviceGetTemperatureThreshold(gpu.handle, limit))
    return None


def _sort_processes(gpu: nvml.Device, tree: set[int], seen: Observation) -> None:
    """Note the device's processes that are not ours, or may not be.

    NVML counts process ids as the host does, so in a container ours are not recognised.
    """
    foreign = [pid for pid in nvml.process_memory_bytes(gpu) if pid not in tree]
    on_host = in_host_pid_namespace()
    seen.others[gpu.label] = [_process_label(pid) for pid in foreign] if on_host else []
    seen.unrecognised[gpu.label] = 0 if on_host else len(foreign)


def in_host_pid_namespace() -> bool:
    """Return whether this process runs outside any container."""
    try:
        return os.readlink("/proc/self/ns/pid") == INITIAL_PID_NAMESPACE
    except OSError:
        return False


def _process_label(pid: int) -> str:
    try:
        return f"{psutil.Process(pid).name()} ({pid})"
    except psutil.Error:
        return f"process {pid}"
