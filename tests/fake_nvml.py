"""A driver of simulated GPUs behind pynvml's own signatures, and a clock that tests turn.

Nothing measured here counts as verified on hardware.
"""

from __future__ import annotations

import inspect
import math
import types
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from unittest import mock

import pynvml

from edge_eval_lib.energy import clocks
from edge_eval_lib.energy import monitor as monitor_module
from edge_eval_lib.energy.meters import nvml_power


@dataclass
class Waveform:
    """Power over time, W, and its integral from 0, J, both exact."""

    power_w: Callable[[float], float]
    energy_j: Callable[[float], float]


def constant(watts: float) -> Waveform:
    return Waveform(lambda t: watts, lambda t: watts * t)


def ramp(start_w: float, slope_w_per_s: float) -> Waveform:
    return Waveform(
        lambda t: start_w + slope_w_per_s * t, lambda t: start_w * t + slope_w_per_s * t * t / 2
    )


def square(low_w: float, high_w: float, period_s: float, duty: float = 0.5) -> Waveform:
    """High for `duty` of each period, first."""

    def energy(t: float) -> float:
        periods, phase = divmod(t, period_s)
        high = periods * duty * period_s + min(phase, duty * period_s)
        return low_w * t + (high_w - low_w) * high

    return Waveform(lambda t: high_w if t % period_s < duty * period_s else low_w, energy)


class Clock:
    """Simulated seconds; sampling threads become visits at the simulated times."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.wall_offset = 0.0
        self.boot_offset = 0.0
        self.pollers: list[Poller] = []

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        end = self.now + seconds
        while True:
            due = [poller for poller in self.pollers if poller.next_s <= end]
            if not due:
                break
            poller = min(due, key=lambda one: one.next_s)
            self.now = max(self.now, poller.next_s)
            poller.next_s += poller.interval_s
            poller.visit()
        self.now = end


@dataclass
class Poller:
    """Stands in for the monitor's thread."""

    visit: Callable[[], None]
    interval_s: float
    clock: Clock
    next_s: float = math.inf

    def resume(self) -> None:
        self.next_s = self.clock.now + self.interval_s

    def pause(self) -> None:
        self.next_s = math.inf

    def stop(self) -> None:
        self.pause()


JITTER_MW = 10  # a real sensor is never quite still


@dataclass
class FakeGpu:
    """One simulated GPU; `counter_period_s` None: no counter (before Volta)."""

    waveform: Waveform
    name: str = "Tesla T4"
    power_period_s: float = 0.1
    counter_period_s: float | None = 0.1
    instant: bool = True  # has the instantaneous power field
    sensor_share: float | None = None  # None: a point sample; else mean of that share of a period
    mig: bool = False
    temperature_c: float = 60.0
    throttle: int = 0
    utilisation: int = 90
    processes: dict[int, int | None] = field(default_factory=dict)
    errors: dict[str, int] = field(default_factory=dict)  # function -> NVML error code
    counter_offset_mj: int = 5_000_000
    power_override_mw: float | None = None
    counter_frozen_at_mj: int | None = None

    def power_mw(self, now: float) -> float:
        if self.power_override_mw is not None:
            return self.power_override_mw
        tick = math.floor(now / self.power_period_s + 1e-9) * self.power_period_s
        noise_mw = JITTER_MW if round(tick / self.power_period_s) % 2 else -JITTER_MW
        if self.sensor_share is None:
            return round(self.waveform.power_w(tick) * 1e3) + noise_mw
        span = self.sensor_share * self.power_period_s
        seen_j = self.waveform.energy_j(tick + span) - self.waveform.energy_j(tick)
        return round(seen_j / span * 1e3) + noise_mw

    def counter_mj(self, now: float) -> int:
        if self.counter_frozen_at_mj is not None:
            return self.counter_frozen_at_mj
        tick = math.floor(now / self.counter_period_s + 1e-9) * self.counter_period_s
        return self.counter_offset_mj + round(self.waveform.energy_j(tick) * 1e3)


@cache
def _autospecced() -> dict[str, mock.Mock]:
    """Every function of pynvml with its own signature; made once, which takes half a second."""
    names = [name for name in dir(pynvml) if name.startswith("nvml")]
    functions = {name: getattr(pynvml, name) for name in names}
    return {
        name: mock.create_autospec(function)
        for name, function in functions.items()
        if inspect.isfunction(function)
    }


class FakeDriver:
    """NVML's functions over a list of GPUs; what is not written here is 'not supported'."""

    def __init__(self, gpus: list[FakeGpu], clock: Clock) -> None:
        self.gpus, self.clock = gpus, clock
        self.reads: list[str] = []

    def install(self, monkeypatch) -> None:
        for name, double in _autospecced().items():
            double.reset_mock()
            unsupported = pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
            double.side_effect = getattr(self, name, unsupported)
            monkeypatch.setattr(pynvml, name, double)
        if isinstance(self.clock, Clock):
            self._simulate_time(monkeypatch, self.clock)

    def _simulate_time(self, monkeypatch, clock: Clock) -> None:
        monkeypatch.setattr(nvml_power, "thread_time", lambda: 0.0)  # a mock costs more than NVML

        def register(visit, interval_s):
            clock.pollers.append(Poller(visit, interval_s, clock))
            return clock.pollers[-1]

        monkeypatch.setattr(monitor_module, "Poller", register)
        monkeypatch.setattr(clocks, "wall_s", lambda: clock.now + clock.wall_offset)
        monkeypatch.setattr(clocks, "boot_s", lambda: clock.now + clock.boot_offset)

    def _gpu(self, handle: int, function: str) -> FakeGpu:
        gpu = self.gpus[handle]
        code = gpu.errors.get(function) or gpu.errors.get("all")
        if code:
            raise pynvml.NVMLError(code)
        return gpu

    def nvmlInit(self):
        return None

    def nvmlDeviceGetCount(self):
        return len(self.gpus)

    def nvmlDeviceGetHandleByIndex(self, index):
        return index

    def nvmlDeviceGetName(self, handle):
        return self.gpus[handle].name

    def nvmlDeviceGetIndex(self, handle):
        return handle

    def nvmlDeviceGetUUID(self, handle):
        return f"GPU-{handle}000-abcd"

    def nvmlDeviceGetHandleByUUID(self, uuid):
        return int(uuid.removeprefix("MIG-")[0])

    def nvmlDeviceGetDeviceHandleFromMigDeviceHandle(self, handle):
        return handle

    def nvmlDeviceGetMigMode(self, handle):
        return [int(self._gpu(handle, "mig").mig)] * 2

    def nvmlDeviceGetTotalEnergyConsumption(self, handle):
        self.reads.append("counter")
        gpu = self._gpu(handle, "counter")
        if gpu.counter_period_s is None:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
        return gpu.counter_mj(self.clock())

    def nvmlDeviceGetPowerUsage(self, handle):
        return self._gpu(handle, "power").power_mw(self.clock())

    def nvmlDeviceGetFieldValues(self, handle, fieldIds):
        gpu = self._gpu(handle, "power")
        assert fieldIds == [pynvml.NVML_FI_DEV_POWER_INSTANT]
        unsupported = 0 if gpu.instant else pynvml.NVML_ERROR_NOT_SUPPORTED
        milliwatts = gpu.power_mw(self.clock()) if gpu.instant else 0
        value = types.SimpleNamespace(uiVal=milliwatts)
        return [types.SimpleNamespace(nvmlReturn=unsupported, value=value)]

    def nvmlDeviceGetTemperature(self, handle, sensor):
        assert sensor == pynvml.NVML_TEMPERATURE_GPU
        return self._gpu(handle, "temperature").temperature_c

    def nvmlDeviceGetTemperatureThreshold(self, handle, thresholdType):
        assert thresholdType == pynvml.NVML_TEMPERATURE_THRESHOLD_SLOWDOWN
        return 93

    def nvmlDeviceGetCurrentClocksEventReasons(self, handle):
        return self._gpu(handle, "throttle").throttle

    def nvmlDeviceGetUtilizationRates(self, handle):
        return types.SimpleNamespace(gpu=self._gpu(handle, "utilisation").utilisation)

    def nvmlDeviceGetComputeRunningProcesses(self, handle):
        return [
            types.SimpleNamespace(pid=pid, usedGpuMemory=used)
            for pid, used in self._gpu(handle, "processes").processes.items()
        ]

    def nvmlDeviceGetMemoryInfo(self, handle, version=None):
        return types.SimpleNamespace(total=16_106_127_360)

    def nvmlDeviceGetCudaComputeCapability(self, handle):
        return (7, 5)

    def nvmlDeviceGetPowerManagementLimit(self, handle):
        return 70_000

    def nvmlDeviceGetPersistenceMode(self, handle):
        return 1

    def nvmlSystemGetDriverVersion(self):
        return "580.00"
