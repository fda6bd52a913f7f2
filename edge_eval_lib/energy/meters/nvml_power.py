"""`nvml-power`: sampled power of NVIDIA GPUs, integrated by the trapezoidal rule.

Samples are taken at half the driver's update period, found by watching the value change, or as
often as half a percent of a core allows, and kept.
"""

from __future__ import annotations

import math
import threading
from bisect import bisect_left, bisect_right
from time import thread_time
from typing import Any

import numpy as np
import pandas as pd
import pynvml

from edge_eval_lib.energy.meter import MeterError, Reading, Sampled, register
from edge_eval_lib.energy.meters.nvml_counter import DEFAULT_UPDATE_PERIOD_S, update_period_s
from edge_eval_lib.machine import nvml

CPU_SHARE = 0.005  # of one core that sampling may take
WAKE_UP_S = 1.5e-4  # CPU time of waking a sampling thread, as measured on a virtual machine
LOST_SHARE = 0.05  # of the samples that may be unreadable before the integral is not trusted


@register
class NvmlPower(Sampled):
    """Joules by integrating the power of all visible GPUs."""

    name, device = "nvml-power", "gpu"

    def __init__(self, *clocks: Any) -> None:
        super().__init__(*clocks)
        self._gpus = nvml.measurable_devices()
        self.devices = [gpu.label for gpu in self._gpus]
        self._instant = all(_has_instant_power(gpu) for gpu in self._gpus)
        self._lock = threading.Lock()
        self._samples: list[tuple[float, list[float]]] = []  # monotonic s, W of each GPU
        cpu_start, reads = thread_time(), 0

        def read() -> float:
            nonlocal reads
            reads += 1
            return self._power_w(self._gpus[0])

        try:
            period_s = update_period_s(read, self._clock, self._sleep)
        except pynvml.NVMLError as error:
            raise nvml.Unavailable(
                f"{self.devices[0]} shows no power; {nvml.text(error)}"
            ) from None
        cost_s = (thread_time() - cpu_start) / reads * len(self._gpus)
        self.calibrated = period_s is not None
        self.resolution_s = period_s or DEFAULT_UPDATE_PERIOD_S
        self.poll_interval_s = max(self.resolution_s / 2, (cost_s + WAKE_UP_S) / CPU_SHARE)

    @classmethod
    def absence(cls) -> str:
        return nvml.absence()

    def _power_w(self, gpu: nvml.Device) -> float:
        """Return the watts of one GPU; NaN for a value that cannot be a power."""
        if self._instant:
            value = _instant_power_mw(gpu)
        else:
            value = pynvml.nvmlDeviceGetPowerUsage(gpu.handle)
        watts = float(value) / 1e3
        return watts if math.isfinite(watts) and watts > 0 else math.nan

    def begin(self) -> float:
        """Take a sample and return its time."""
        try:
            return self._sample()
        except pynvml.NVMLError as error:
            raise MeterError(f"the power could not be read; {nvml.text(error)}") from error

    def poll(self) -> None:
        """Take a sample; one that fails leaves a gap, which the window's checks find."""
        try:
            self._sample()
        except pynvml.NVMLError:
            return

    def _sample(self) -> float:
        watts = [self._power_w(gpu) for gpu in self._gpus]
        with self._lock:  # windows sample too, from other threads: keep the order of time
            now = self._clock()
            self._samples.append((now, watts))
        return now

    def samples(self, begin: float, end: float) -> pd.DataFrame:
        """Return the samples of one window: monotonic_s, device (NVML's index), power_w."""
        return pd.DataFrame(
            [
                (at, gpu.index, power_w)
                for at, watts in self._between(begin, end)
                for gpu, power_w in zip(self._gpus, watts, strict=True)
            ],
            columns=["monotonic_s", "device", "power_w"],
        )

    def reading(self, begin: float, end: float) -> Reading:
        """Integrate power over time, unless too many samples are no power."""
        samples = self._between(begin, end)
        times = np.array([at for at, _ in samples])
        watts = np.array([watts for _, watts in samples])
        known = ~np.isnan(watts).any(axis=1)
        lost = int((~known).sum())
        if lost > LOST_SHARE * len(times) or not (known[0] and known[-1]):
            return Reading(None, f"{lost} of {len(times)} power samples were no power")
        return Reading(float(np.trapezoid(watts[known].sum(axis=1), times[known])))

    def forget(self) -> None:
        self._samples = []

    def _between(self, begin: float, end: float) -> list[tuple[float, list[float]]]:
        def at(sample: tuple[float, list[float]]) -> float:
            return sample[0]

        first = bisect_left(self._samples, begin, key=at)
        return self._samples[first : bisect_right(self._samples, end, key=at)]


def _instant_power_mw(gpu: nvml.Device) -> float:
    value = pynvml.nvmlDeviceGetFieldValues(gpu.handle, [pynvml.NVML_FI_DEV_POWER_INSTANT])[0]
    if value.nvmlReturn != pynvml.NVML_SUCCESS:
        raise pynvml.NVMLError(value.nvmlReturn)
    return value.value.uiVal


def _has_instant_power(gpu: nvml.Device) -> bool:
    """Return whether there is a better value than nvmlDeviceGetPowerUsage.

    That one is a mean over a second on most GPUs since Ampere.
    """
    try:
        return _instant_power_mw(gpu) > 0
    except pynvml.NVMLError:
        return False
