"""NVML's two meters over simulated drivers: every path, and waveforms of known energy."""

from __future__ import annotations

import itertools
import json
import math
import os
import sys
import time
import types

import pynvml
import pytest
from fake_nvml import Clock, FakeDriver, FakeGpu, constant, ramp, square

from edge_eval_lib.energy import Monitor
from edge_eval_lib.energy.meters import nvml_power, nvml_watch
from edge_eval_lib.energy.meters.nvml_counter import update_period_s


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def start(monkeypatch, clock):
    """Opens a monitor over simulated GPUs, as on the host (no container)."""

    def start(*gpus, visible=None):
        if visible is None:
            monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        else:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        driver = FakeDriver(list(gpus), clock)
        driver.install(monkeypatch)
        monkeypatch.setattr(nvml_watch, "in_host_pid_namespace", lambda: True)
        return Monitor(device="gpu", clock=clock, sleep=clock.sleep)

    return start


def measure(monitor, clock, seconds=10.0):
    with monitor.window("work") as window:
        clock.sleep(seconds)
    return window


def verdict(window, name):
    return next(check.verdict for check in window.checks if check.name == name)


def source(monitor, name):
    return next(source for source in monitor.sources if source.name == name)


WAVEFORMS = {
    "constant": constant(55.0),
    "ramp": ramp(20.0 - 8 * 1000.0, 8.0),  # 20 W at the start of the simulated time
    "square": square(20.0, 60.0, period_s=2.0),
    "fast square": square(20.0, 60.0, period_s=0.73),
}


@pytest.mark.parametrize("has_counter", [True, False], ids=["counter", "power"])
@pytest.mark.parametrize("shape", WAVEFORMS)
def test_known_waveforms_are_measured_within_one_percent(start, clock, shape, has_counter):
    waveform = WAVEFORMS[shape]
    gpu = FakeGpu(waveform, counter_period_s=0.1 if has_counter else None)
    monitor = start(gpu)
    clock.sleep(0.037)  # not on a refresh of the driver
    begin = clock.now
    window = measure(monitor, clock, seconds=20.44)
    truth = waveform.energy_j(clock.now) - waveform.energy_j(begin)
    assert window.energy_source == ("nvml-counter" if has_counter else "nvml-power")
    assert window.energy_j == pytest.approx(truth, rel=0.01)
    assert window.power_w == pytest.approx(truth / 20.44, rel=0.01)
    assert window.seconds == pytest.approx(20.44)
    assert verdict(window, "resolution") == "ok"
    if has_counter:
        assert window.energy_by_source_j["nvml-power"] == pytest.approx(truth, rel=0.015)


def test_a_sensor_that_sees_a_quarter_of_the_time_is_flagged_and_the_counter_is_right(start, clock):
    """A100 and H100 average power over a quarter of each refresh (arXiv 2312.02741)."""
    waveform = square(50.0, 150.0, period_s=0.1, duty=0.25)
    monitor = start(FakeGpu(waveform, sensor_share=0.25))
    begin = clock.now
    window = measure(monitor, clock)
    truth = waveform.energy_j(clock.now) - waveform.energy_j(begin)
    assert window.energy_source == "nvml-counter"
    assert window.energy_j == pytest.approx(truth, rel=0.01)
    assert window.energy_by_source_j["nvml-power"] == pytest.approx(150.0 * 10, rel=0.01)
    assert verdict(window, "counter against integral") == "warning"


def test_a_sensor_three_percent_off_is_detected_once_the_window_can_tell(start, clock):
    gpu = FakeGpu(constant(60.0))
    monitor = start(gpu)
    gpu.power_override_mw = 61_800
    assert verdict(measure(monitor, clock, seconds=3.0), "counter against integral") == (
        "not applicable"
    )
    assert verdict(measure(monitor, clock, seconds=30.0), "counter against integral") == "warning"


def test_real_threads_and_a_real_clock_sample_a_window(monkeypatch):
    """The simulated clock replaces the sampling threads; this test does not."""
    gpu = FakeGpu(square(20.0, 60.0, period_s=0.2), power_period_s=0.05, counter_period_s=0.02)
    gpu.processes = {os.getpid(): 10**9}
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    FakeDriver([gpu], time.monotonic).install(monkeypatch)
    with Monitor(device="gpu") as monitor, monitor.window("work") as window:
        with monitor.window("inner") as inner:
            time.sleep(0.5)
        time.sleep(0.5)
    assert window.energy_by_source_j["nvml-counter"] == pytest.approx(40 * window.seconds, rel=0.1)
    assert window.energy_by_source_j["nvml-power"] is not None
    assert len(window.samples) > len(inner.samples) >= 5
    assert window.samples["monotonic_s"].is_monotonic_increasing
    assert window.samples["monotonic_s"].iloc[0] <= window.start_monotonic_s
    scraps = window.as_dict("serve")
    assert json.loads(json.dumps(scraps, allow_nan=False)) == scraps


def test_counter_and_integral_are_not_judged_on_an_idle_gpu(start, clock):
    gpu = FakeGpu(square(50.0, 150.0, period_s=0.1, duty=0.25), sensor_share=0.25, utilisation=0)
    assert verdict(measure(start(gpu), clock), "counter against integral") == "not applicable"


@pytest.mark.parametrize("period_s", [0.02, 0.1, 0.25])
def test_the_update_period_is_detected(start, clock, period_s):
    gpu = FakeGpu(ramp(20.0, 0.01), power_period_s=period_s, counter_period_s=period_s)
    monitor = start(gpu)
    assert monitor._meters["nvml-power"].resolution_s == pytest.approx(period_s, rel=0.15)
    assert monitor._meters["nvml-counter"].resolution_s == pytest.approx(period_s, rel=0.15)
    interval_s = monitor._meters["nvml-power"].poll_interval_s
    assert interval_s == pytest.approx(max(period_s / 2, 0.03), rel=0.15)  # 0.03: half a percent


def test_reads_that_cost_much_are_made_seldom(start, clock, monkeypatch):
    """Sampling may take half a percent of a core."""
    driver_gpu = FakeGpu(ramp(20.0, 0.01))
    start(driver_gpu)
    spent = itertools.count()
    monkeypatch.setattr(nvml_power, "thread_time", lambda: next(spent) * 0.5)  # 0.5 s for all
    reads = pynvml.nvmlDeviceGetFieldValues.call_count
    meter = nvml_power.NvmlPower(clock, clock.sleep)
    cost_s = 0.5 / (pynvml.nvmlDeviceGetFieldValues.call_count - reads - 1)
    assert (cost_s + nvml_power.WAKE_UP_S) / meter.poll_interval_s <= 0.005 * (1 + 1e-9)
    assert meter.poll_interval_s > meter.resolution_s


def test_a_steady_value_has_no_period(clock):
    assert update_period_s(lambda: 7.0, clock, clock.sleep) is None


def test_samples_are_kept_at_half_the_update_period(start, clock):
    window = measure(start(FakeGpu(ramp(0.0, 0.03))), clock, seconds=5.0)
    assert list(window.samples.columns) == ["monotonic_s", "device", "power_w"]
    assert len(window.samples) == pytest.approx(5.0 / 0.05, rel=0.15)
    assert window.samples["monotonic_s"].is_monotonic_increasing
    assert verdict(window, "sample gap") == "ok"


def test_the_mean_power_of_ampere_is_passed_over_for_the_instantaneous(start, clock):
    monitor = start(FakeGpu(constant(60.0), counter_period_s=None))
    measure(monitor, clock)
    assert pynvml.nvmlDeviceGetFieldValues.called
    assert not pynvml.nvmlDeviceGetPowerUsage.called


def test_without_the_instantaneous_field_the_power_usage_is_read(start, clock):
    monitor = start(FakeGpu(constant(60.0), counter_period_s=None, instant=False))
    assert measure(monitor, clock).energy_j == pytest.approx(600.0, rel=1e-6)
    assert pynvml.nvmlDeviceGetPowerUsage.called


def test_no_counter_is_reported_with_its_reason(start):
    monitor = start(FakeGpu(constant(60.0), counter_period_s=None))
    assert not source(monitor, "nvml-counter").available
    assert "GPU 0 (Tesla T4) has no energy counter" in source(monitor, "nvml-counter").reason
    assert monitor.energy_source == "nvml-power"


def test_a_counter_on_one_of_two_gpus_is_not_used_for_both(start, clock):
    monitor = start(FakeGpu(constant(40.0)), FakeGpu(constant(50.0), counter_period_s=None))
    window = measure(monitor, clock)
    assert window.energy_source == "nvml-power"
    assert window.energy_j == pytest.approx(900.0, rel=0.01)


def test_two_gpus_are_added_up_each_once(start, clock):
    monitor = start(FakeGpu(constant(40.0)), FakeGpu(constant(50.0)), visible="0,1,1")
    window = measure(monitor, clock)
    assert window.energy_j == pytest.approx(900.0, rel=0.01)
    assert set(window.samples["device"]) == {0, 1}
    assert source(monitor, "nvml-counter").devices == ["GPU 0 (Tesla T4)", "GPU 1 (Tesla T4)"]


@pytest.mark.parametrize(
    ("visible", "joules"),
    [("1", 500.0), ("GPU-1000", 500.0), ("0,7,1", 400.0), ("MIG-1", 500.0)],
)
def test_only_visible_gpus_count(start, clock, visible, joules):
    monitor = start(FakeGpu(constant(40.0)), FakeGpu(constant(50.0)), visible=visible)
    assert measure(monitor, clock).energy_j == pytest.approx(joules, rel=0.01)


def test_unlike_gpus_need_a_stated_order(start, monkeypatch):
    gpus = FakeGpu(constant(40.0)), FakeGpu(constant(50.0), name="NVIDIA H100 80GB HBM3")
    monkeypatch.delenv("CUDA_DEVICE_ORDER", raising=False)
    monitor = start(*gpus, visible="1")
    assert monitor.energy_source is None
    assert "CUDA_DEVICE_ORDER=PCI_BUS_ID" in monitor.energy_reason
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    assert source(start(*gpus, visible="1"), "nvml-counter").devices == [
        "GPU 1 (NVIDIA H100 80GB HBM3)"
    ]


def test_mig_leaves_energy_empty_and_never_takes_a_cpu_meter_instead(start, clock):
    monitor = start(FakeGpu(constant(60.0), mig=True))
    window = measure(monitor, clock)
    assert (monitor.energy_source, window.energy_source, window.energy_j) == (None, None, None)
    assert "MIG" in window.energy_reason
    assert window.seconds == pytest.approx(10.0)
    assert window.cpu_s is not None


def test_a_counter_reset_within_the_window_falls_back_on_the_integral(start, clock):
    gpu = FakeGpu(constant(60.0))
    monitor = start(gpu)
    with monitor.window("work") as window:
        clock.sleep(5)
        gpu.counter_offset_mj = -60_000_000
        clock.sleep(5)
    assert window.energy_by_source_j["nvml-counter"] is None
    assert verdict(window, "counter advances") == "invalid"
    assert window.energy_source == "nvml-power"
    assert window.energy_j == pytest.approx(600.0, rel=0.01)
    assert "went back" in next(c.detail for c in window.checks if c.name == "source")


def test_a_counter_that_stands_still_gives_no_zero(start, clock):
    gpu = FakeGpu(constant(60.0))
    monitor = start(gpu)
    gpu.counter_frozen_at_mj = 123
    gpu.errors["power"] = pynvml.NVML_ERROR_NOT_SUPPORTED
    window = measure(monitor, clock)
    assert window.energy_j is None
    assert window.power_w is None
    assert "stood still" in window.energy_reason
    assert window.energy_source is None


@pytest.mark.parametrize("garbage", [math.nan, 0.0, -1.0, math.inf])
def test_garbage_power_is_no_power(start, clock, garbage):
    gpu = FakeGpu(ramp(20.0, 0.01), counter_period_s=None)
    monitor = start(gpu)
    with monitor.window("work") as window:
        clock.sleep(5)
        gpu.power_override_mw = garbage
        clock.sleep(2)
        gpu.power_override_mw = None
        clock.sleep(3)
    assert window.energy_j is None
    assert "samples were no power" in window.energy_reason


def test_a_single_garbage_sample_is_passed_over(start, clock):
    gpu = FakeGpu(constant(60.0), counter_period_s=None)
    monitor = start(gpu)
    with monitor.window("work") as window:
        clock.sleep(5)
        gpu.power_override_mw = math.nan
        clock.sleep(0.05)
        gpu.power_override_mw = None
        clock.sleep(5)
    assert window.samples["power_w"].isna().sum() == 1
    assert window.energy_j == pytest.approx(60.0 * 10.05, rel=1e-6)


def test_a_device_lost_in_the_middle_costs_the_energy_and_nothing_else(start, clock):
    gpu = FakeGpu(constant(60.0))
    monitor = start(gpu)
    with monitor.window("work") as window:
        clock.sleep(5)
        gpu.errors["all"] = pynvml.NVML_ERROR_GPU_IS_LOST
        clock.sleep(5)
    assert window.energy_j is None
    assert "GPU is lost" in window.energy_reason
    assert verdict(window, "meter") == "invalid"
    assert window.seconds == pytest.approx(10.0)
    assert window.peak_memory_gb is not None
    gpu.errors.clear()
    assert measure(monitor, clock).energy_j == pytest.approx(600.0, rel=0.01)


def test_a_device_lost_before_the_window_costs_only_the_energy(start, clock):
    gpu = FakeGpu(constant(60.0))
    monitor = start(gpu)
    gpu.errors["all"] = pynvml.NVML_ERROR_GPU_IS_LOST
    window = measure(monitor, clock)
    assert (window.energy_j, window.energy_source) == (None, None)
    assert "GPU is lost" in window.energy_reason
    assert window.seconds == pytest.approx(10.0)


def test_a_sampling_gap_is_detected(start, clock):
    gpu = FakeGpu(ramp(20.0, 0.01), counter_period_s=None)
    monitor = start(gpu)
    with monitor.window("work") as window:
        clock.sleep(5)
        gpu.errors["power"] = pynvml.NVML_ERROR_TIMEOUT
        clock.sleep(0.4)
        gpu.errors.clear()
        clock.sleep(5)
    assert verdict(window, "sample gap") == "warning"
    assert window.energy_j is not None
    with monitor.window("work") as window:
        clock.sleep(5)
        gpu.errors["power"] = pynvml.NVML_ERROR_TIMEOUT
        clock.sleep(3)
        gpu.errors.clear()
        clock.sleep(2)
    assert verdict(window, "sample gap") == "invalid"
    assert window.energy_j is None
    assert "sample gap" in window.energy_reason


def test_power_that_never_changes_is_believed_only_if_the_counter_agrees(start, clock):
    gpu = FakeGpu(constant(60.0))
    monitor = start(gpu)
    gpu.power_override_mw = 60_000
    window = measure(monitor, clock)
    assert verdict(window, "power changes") == "warning"
    assert window.energy_by_source_j["nvml-power"] == pytest.approx(600.0)
    gpu = FakeGpu(ramp(20.0, 0.01), counter_period_s=None)
    monitor = start(gpu)
    gpu.power_override_mw = 60_000
    window = measure(monitor, clock)
    assert verdict(window, "power changes") == "invalid"
    assert window.energy_j is None


def test_a_window_too_short_is_empty_or_marked(start, clock):
    monitor = start(FakeGpu(ramp(20.0, 0.01)))
    unresolvable = measure(monitor, clock, seconds=0.2)
    assert unresolvable.energy_j is None
    assert "resolution" in unresolvable.energy_reason
    assert not unresolvable.resolved
    rough = measure(monitor, clock, seconds=1.0)
    assert rough.energy_j is not None
    assert verdict(rough, "resolution") == "warning"
    assert measure(monitor, clock, seconds=3.0).resolved


def test_a_short_work_is_repeated_until_it_is_resolved(start, clock):
    monitor = start(FakeGpu(constant(60.0)))
    window, runs = monitor.repeat_until_resolved("load", lambda: clock.sleep(0.3))
    assert window.resolved
    assert window.energy_j / runs == pytest.approx(60.0 * 0.3, rel=0.05)
    window, runs = monitor.repeat_until_resolved("load", lambda: clock.sleep(0.3), limit_s=0.5)
    assert (runs, window.resolved) == (2, False)


def test_idle_is_subtracted_when_it_was_measured(start, clock):
    gpu = FakeGpu(constant(10.0))
    monitor = start(gpu)
    assert measure(monitor, clock).energy_net_reason == "no idle baseline was measured"
    bare = monitor.idle_baseline(5.0)
    assert bare.power_w == pytest.approx(10.0, rel=0.03)
    assert (bare.energy_source, bare.name) == ("nvml-counter", "bare")
    gpu.waveform = constant(36.0)
    loaded = monitor.idle_baseline(5.0, name="loaded")
    assert loaded.power_w == pytest.approx(36.0, rel=0.03)
    gpu.waveform = constant(60.0)
    window = measure(monitor, clock)
    assert window.energy_j == pytest.approx(600.0, rel=0.01)
    assert window.energy_net_j == pytest.approx(500.0, rel=0.02)
    gpu.waveform = constant(5.0)
    window = measure(monitor, clock)
    assert window.energy_net_j is None
    assert "idle" in window.energy_net_reason


def test_windows_nest_and_overlap(start, clock):
    monitor = start(FakeGpu(constant(60.0)))
    outer, other = monitor.window("outer"), monitor.window("other")
    with outer:
        clock.sleep(4)
        with monitor.window("inner") as inner:
            clock.sleep(4)
            other.__enter__()
            clock.sleep(4)
    clock.sleep(4)
    other.__exit__(None, None, None)
    for window, seconds in ((outer, 12), (inner, 8), (other, 8)):
        assert window.seconds == pytest.approx(seconds)
        assert window.energy_j == pytest.approx(60.0 * seconds, rel=0.02)
        assert window.samples["power_w"].mean() == pytest.approx(60.0, rel=1e-3)


def test_samples_are_dropped_when_no_window_is_open(start, clock):
    monitor = start(FakeGpu(constant(60.0)))
    measure(monitor, clock)
    assert monitor._meters["nvml-power"]._samples == []
    clock.sleep(10)
    assert monitor._meters["nvml-power"]._samples == []


THERMAL = pynvml.nvmlClocksEventReasonHwThermalSlowdown
POWER_CAP = pynvml.nvmlClocksEventReasonSwPowerCap
IDLE = pynvml.nvmlClocksEventReasonGpuIdle


@pytest.mark.parametrize(
    ("mask", "expected"),
    [
        (IDLE, "ok"),
        (POWER_CAP, "warning"),
        (THERMAL, "invalid"),
        (THERMAL | POWER_CAP, "invalid"),
    ],
)
def test_throttling_within_the_window_is_detected(start, clock, mask, expected):
    gpu = FakeGpu(constant(60.0))
    monitor = start(gpu)
    with monitor.window("work") as window:
        clock.sleep(3)
        gpu.throttle = mask
        clock.sleep(3)
        gpu.throttle = 0
        clock.sleep(3)
    assert verdict(window, "throttling") == expected
    assert window.energy_j is not None


def test_another_process_on_the_device_is_detected(start, clock):
    gpu = FakeGpu(constant(60.0), processes={os.getpid(): 10**9})
    monitor = start(gpu)
    window = measure(monitor, clock)
    assert verdict(window, "other processes") == "ok"
    assert window.device_memory_gb == pytest.approx(1.0)
    gpu.processes[os.getppid()] = 10**9
    assert verdict(measure(monitor, clock), "other processes") == "invalid"


def test_in_a_container_processes_are_not_kept_apart(start, clock, monkeypatch):
    gpu = FakeGpu(constant(60.0), processes={4_000_001: None})
    monitor = start(gpu)
    monkeypatch.setattr(nvml_watch, "in_host_pid_namespace", lambda: False)
    assert verdict(measure(monitor, clock), "other processes") == "ok"
    gpu.processes[4_000_002] = None
    assert verdict(measure(monitor, clock), "other processes") == "warning"


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [(60, 62, "ok"), (25, 60, "warning"), (50, 70, "warning"), (80, 94, "invalid")],
)
def test_temperature_is_judged(start, clock, before, after, expected):
    gpu = FakeGpu(constant(60.0), temperature_c=before)
    monitor = start(gpu)
    with monitor.window("work") as window:
        clock.sleep(5)
        gpu.temperature_c = after
        clock.sleep(5)
    assert verdict(window, "temperature") == expected


def test_a_gpu_that_tells_nothing_but_energy_is_measured_all_the_same(start, clock):
    silent = dict.fromkeys(
        ("temperature", "throttle", "utilisation", "processes", "mig"),
        pynvml.NVML_ERROR_NOT_SUPPORTED,
    )
    window = measure(start(FakeGpu(constant(60.0), errors=silent)), clock)
    assert window.energy_j == pytest.approx(600.0, rel=0.01)
    for name in ("temperature", "throttling", "other processes"):
        assert verdict(window, name) == "not applicable"


def test_a_set_clock_warns_and_sleep_invalidates(start, clock):
    monitor = start(FakeGpu(constant(60.0)))
    with monitor.window("work") as window:
        clock.sleep(5)
        clock.wall_offset += 3600
        clock.sleep(5)
    assert verdict(window, "clock step") == "warning"
    assert window.seconds == pytest.approx(10.0)
    with monitor.window("work") as window:
        clock.sleep(5)
        clock.boot_offset += 60
        clock.sleep(5)
    assert verdict(window, "clock step") == "invalid"


class FakeCuda:
    def __init__(self, reads):
        self.reads, self.peak, self.failing = reads, 3_000_000_000, False

    def is_initialized(self):
        return True

    def is_available(self):
        return True

    def device_count(self):
        return 2

    def memory_reserved(self, index):
        return 10**9 if index == 0 else 0

    def synchronize(self, index):
        self.reads.append(f"synchronise {index}")
        if self.failing:
            raise RuntimeError("CUDA error: device-side assert triggered\nmore")

    def max_memory_allocated(self, index):
        return self.peak if index == 0 else 0

    def reset_peak_memory_stats(self, index):
        self.peak = 10**9 if index == 0 else self.peak


def test_the_device_is_synchronised_before_both_reads(start, clock, monkeypatch):
    monitor = start(FakeGpu(constant(60.0)))
    reads = []
    monkeypatch.setitem(sys.modules, "torch", types.SimpleNamespace(cuda=FakeCuda(reads)))
    pynvml.nvmlDeviceGetTotalEnergyConsumption.side_effect = lambda handle: (
        reads.append("counter") or int(clock.now * 60_000)
    )
    with monitor.window("work") as window:
        reads.append("work")
        clock.sleep(10)
    assert reads == ["synchronise 0", "counter", "work", "synchronise 0", "counter"]
    assert verdict(window, "synchronised") == "ok"


def test_device_memory_is_torchs_peak_within_the_window(start, clock, monkeypatch):
    monitor = start(FakeGpu(constant(60.0)))
    cuda = FakeCuda([])
    monkeypatch.setitem(sys.modules, "torch", types.SimpleNamespace(cuda=cuda))
    with monitor.window("outer") as outer:
        cuda.peak = 5 * 10**9
        with monitor.window("inner") as inner:
            cuda.peak = 2 * 10**9
    assert (outer.peak_memory_gb, inner.peak_memory_gb) == (5.0, 2.0)
    assert outer.peak_memory_source == "torch-allocated"


def test_a_device_error_in_the_body_reaches_the_caller_and_the_check(start, clock, monkeypatch):
    monitor = start(FakeGpu(constant(60.0)))
    cuda = FakeCuda([])
    monkeypatch.setitem(sys.modules, "torch", types.SimpleNamespace(cuda=cuda))
    window = monitor.window("work")

    def body():
        with window:
            clock.sleep(10)
            cuda.failing = True
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        body()
    assert verdict(window, "synchronised") == "invalid"
    assert window.energy_j == pytest.approx(600.0, rel=0.01)


def test_work_on_the_cpu_of_a_machine_with_gpus_is_not_measured_by_them(start, monkeypatch, clock):
    """The torch that is installed or imported decides where work runs."""
    start(FakeGpu(constant(60.0)))
    cuda = types.SimpleNamespace(is_available=lambda: False, is_initialized=lambda: False)
    monkeypatch.setitem(sys.modules, "torch", types.SimpleNamespace(cuda=cuda))
    monitor = Monitor(clock=clock, sleep=clock.sleep)
    assert monitor.energy_source in ("rapl", "cpu-model")
    assert "without CUDA" in source(monitor, "nvml-counter").reason
    cuda.is_available = lambda: True
    assert Monitor(clock=clock, sleep=clock.sleep).energy_source == "nvml-counter"
