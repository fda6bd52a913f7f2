"""`nvml-counter`: the energy counter of NVIDIA GPUs from Volta on.

The driver adds up millijoules and refreshes the value every 20-100 ms, so a window's energy is
uncertain by up to one refresh at its edges.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pynvml

from edge_eval_lib.energy.meter import Meter, MeterError, Reading, register
from edge_eval_lib.machine import nvml

DEFAULT_UPDATE_PERIOD_S = 0.1  # the longest seen on data-centre GPUs (arXiv 2312.02741)


@register
class NvmlCounter(Meter):
    """Joules by the counters of all visible GPUs."""

    name, device = "nvml-counter", "gpu"

    def __init__(self, *clocks: Any) -> None:
        super().__init__(*clocks)
        self._gpus = nvml.measurable_devices()
        self.devices = [gpu.label for gpu in self._gpus]
        for gpu in self._gpus:
            try:
                pynvml.nvmlDeviceGetTotalEnergyConsumption(gpu.handle)
            except pynvml.NVMLError as error:
                raise nvml.Unavailable(
                    f"{gpu.label} has no energy counter; {nvml.text(error)}"
                ) from None
        first = self._gpus[0].index
        try:
            period_s = update_period_s(lambda: self.begin()[first], self._clock, self._sleep)
        except MeterError as error:
            raise nvml.Unavailable(str(error)) from None
        self.calibrated = period_s is not None
        self.resolution_s = period_s or DEFAULT_UPDATE_PERIOD_S

    @classmethod
    def absence(cls) -> str:
        return nvml.absence()

    def begin(self) -> dict[int, int]:
        """Return the millijoules since the driver was loaded, by device index."""
        mark = {}
        for gpu in self._gpus:
            try:
                mark[gpu.index] = pynvml.nvmlDeviceGetTotalEnergyConsumption(gpu.handle)
            except pynvml.NVMLError as error:
                raise MeterError(f"{gpu.label} could not be read; {nvml.text(error)}") from error
        return mark

    def reading(self, begin: dict[int, int], end: dict[int, int]) -> Reading:
        """Return the counters' advance; none where one went back or stood still."""
        for gpu in self._gpus:
            if end[gpu.index] < begin[gpu.index]:
                return Reading(
                    None, f"the counter of {gpu.label} went back: it was reset within the window"
                )
            if end[gpu.index] == begin[gpu.index]:
                return Reading(None, f"the counter of {gpu.label} stood still")
        return Reading(sum(end[gpu.index] - begin[gpu.index] for gpu in self._gpus) / 1e3)


def update_period_s(
    read: Callable[[], float],
    clock: Callable[[], float],
    sleep: Callable[[float], None],
    limit_s: float = 1.0,
    changes: int = 6,
    step_s: float = 0.002,
) -> float | None:
    """Return the period at which a value is refreshed, s: the median time between its changes.

    None if fewer than four changes were seen within `limit_s` (a device at rest may show the same
    power for long).
    """
    start = clock()
    previous, times = read(), list[float]()
    while len(times) < changes and clock() - start < limit_s:
        sleep(step_s)
        value = read()
        if value != previous:
            times.append(clock())
            previous = value
    if len(times) < 4:
        return None
    return statistics.median(b - a for a, b in pairwise(times))
