"""A meter from outside the package: AMD GPUs by AMD's own library, which is simulated here.

The simulated `amdsmi` has the names and the answers of AMD SMI 7.0.2 that the meter uses. Nothing
measured here counts as verified on hardware.
"""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import types

import pandas as pd
import pytest

from edge_eval_lib.energy import Monitor, meter

AMD_METER = '''
"""`amd-counter`: the energy accumulators of AMD GPUs (amdsmi_get_energy_count)."""

from edge_eval_lib.energy.meter import Meter, MeterError, Reading, Unavailable, register


def handles():
    try:
        import amdsmi
    except ImportError:
        raise Unavailable("AMD SMI is not installed") from None
    try:
        amdsmi.amdsmi_init()
        return amdsmi.amdsmi_get_processor_handles()
    except amdsmi.AmdSmiException as error:
        raise Unavailable(f"AMD SMI says: {error}") from None


@register
class AmdCounter(Meter):
    """Joules by the accumulators of all AMD GPUs."""

    name, device = "amd-counter", "gpu"
    resolution_s = 0.001

    def __init__(self, *clocks):
        super().__init__(*clocks)
        self._handles = handles()
        self.devices = [f"AMD GPU {index}" for index, _ in enumerate(self._handles)]

    @classmethod
    def absence(cls):
        try:
            return "" if handles() else "this machine has no AMD GPU"
        except Unavailable as why:
            return str(why)

    def begin(self):
        import amdsmi

        try:
            counts = [amdsmi.amdsmi_get_energy_count(handle) for handle in self._handles]
        except amdsmi.AmdSmiException as error:
            raise MeterError(f"AMD SMI says: {error}") from error
        return sum(c["energy_accumulator"] * c["counter_resolution"] for c in counts)  # microjoules

    def reading(self, begin, end):
        return Reading((end - begin) / 1e6) if end > begin else Reading(None, "it stood still")
'''
RESOLUTION_UJ = 15.259


class Clock:
    """Simulated seconds."""

    now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def amdsmi(monkeypatch, clock):
    """Two simulated AMD GPUs of 300 and 200 W behind the library's own names."""

    class AmdSmiException(Exception):
        pass

    library = types.SimpleNamespace(
        AmdSmiException=AmdSmiException,
        lost=False,
        amdsmi_init=lambda: None,
        amdsmi_get_processor_handles=lambda: [300.0, 200.0],
    )

    def energy_count(watts):
        if library.lost:
            raise AmdSmiException("AMDSMI_STATUS_NO_RESPONSE")
        counted = round(watts * clock.now * 1e6 / RESOLUTION_UJ)
        timestamp = round(clock.now * 1e9)
        return {
            "energy_accumulator": counted,
            "counter_resolution": RESOLUTION_UJ,
            "timestamp": timestamp,
        }

    library.amdsmi_get_energy_count = energy_count
    monkeypatch.setitem(sys.modules, "amdsmi", library)
    return library


@pytest.fixture
def amd_meter(monkeypatch, tmp_path):
    """The meter's file, imported as a researcher would from beside a notebook."""
    (tmp_path / "amd_meter.py").write_text(AMD_METER)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(meter, "METERS", dict(meter.METERS))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    importlib.import_module("amd_meter")
    yield
    del sys.modules["amd_meter"]


def test_its_energy_gets_into_a_window_with_its_name(amdsmi, amd_meter, clock, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", types.SimpleNamespace(cuda=Rocm()))
    with Monitor(clock=clock) as monitor, monitor.window("work") as window:
        clock.now += 10
    assert monitor.energy_source == window.energy_source == "amd-counter"
    assert window.energy_j == pytest.approx(5000.0, rel=1e-6)
    assert window.power_w == pytest.approx(500.0, rel=1e-6)
    assert window.as_dict("serve")["serve_energy_source"] == "amd-counter"
    assert (window.peak_memory_gb, window.peak_memory_source) == (4.0, "torch-allocated")
    (source,) = [source for source in monitor.sources if source.name == "amd-counter"]
    assert source.devices == ["AMD GPU 0", "AMD GPU 1"]
    verdicts = {check.name: check.verdict for check in window.checks}
    assert (verdicts["counter advances"], verdicts["resolution"]) == ("ok", "ok")
    assert verdicts["throttling"] == "not applicable"


class Rocm:
    """torch's device memory as a ROCm build shows it, under CUDA's name."""

    def is_available(self):
        return True

    def is_initialized(self):
        return True

    def device_count(self):
        return 1

    def memory_reserved(self, index):
        return 0

    def max_memory_allocated(self, index):
        return 4 * 10**9

    def reset_peak_memory_stats(self, index):
        return None


def test_its_idle_is_subtracted(amdsmi, amd_meter, clock):
    def sleep(seconds):
        clock.now += seconds

    with Monitor("gpu", clock, sleep) as monitor:
        assert monitor.idle_baseline(5.0).power_w == pytest.approx(500.0, rel=1e-6)
        with monitor.window("work") as window:
            clock.now += 10
    assert window.energy_net_j == pytest.approx(0.0, abs=0.1) or window.energy_net_reason


def test_when_it_fails_no_other_meter_stands_in(amdsmi, amd_meter, clock):
    with Monitor("gpu", clock) as monitor, monitor.window("work") as window:
        clock.now += 10
        amdsmi.lost = True
    assert (window.energy_j, window.energy_source) == (None, None)
    assert "amd-counter: AMD SMI says: AMDSMI_STATUS_NO_RESPONSE" in window.energy_reason
    assert "amd-counter" in next(c.detail for c in window.checks if c.name == "meter")


def test_where_there_is_no_such_gpu_it_says_so_and_the_processor_is_measured(amd_meter):
    with Monitor() as monitor:
        missing = {source.name: source.reason for source in monitor.sources}
        assert missing["amd-counter"] == "AMD SMI is not installed"
        assert monitor.energy_source in ("rapl", "cpu-model")


def test_a_file_in_the_folder_needs_nothing_else(tmp_path):
    (tmp_path / "meters").mkdir()
    (tmp_path / "meters" / "mine.py").write_text(
        "from edge_eval_lib.energy.meter import Meter, Reading, register\n"
        "@register\n"
        "class Mine(Meter):\n"
        "    name, device, devices, resolution_s = 'mine', 'cpu', ['wall plug'], 1e-6\n"
        "    def begin(self): return self._clock()\n"
        "    def reading(self, begin, end): return Reading(7.0 * (end - begin))\n"
    )
    program = (
        "from edge_eval_lib.energy import Monitor\n"
        "now = [1000.0]\n"
        "with Monitor('cpu', lambda: now[0]) as monitor, monitor.window('work') as window:\n"
        "    now[0] += 10\n"
        "print(window.energy_source, window.power_w)"
    )
    environment = os.environ | {"EDGE_EVAL_EXTENSIONS": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=environment
    )
    assert done.stdout.split() == ["mine", "7.0"], done.stderr


def test_a_sampled_meter_from_outside_fills_the_samples(monkeypatch):
    class Plug(meter.Sampled):
        name, device, devices, resolution_s = "plug", "cpu", ["plug"], 1e-6

        def __init__(self, *clocks):
            super().__init__(*clocks)
            self.kept = []

        def begin(self):
            self.kept.append(self._clock())
            return self.kept[-1]

        def reading(self, begin, end):
            return meter.Reading(3.0 * (end - begin))

        def samples(self, begin, end):
            return pd.DataFrame({"monotonic_s": self.kept, "device": 0, "power_w": 3.0})

        def forget(self):
            self.kept = []

    monkeypatch.setattr(meter, "METERS", dict(meter.METERS))
    meter.register(Plug)
    with Monitor("cpu") as monitor:
        with monitor.window("work") as window:
            sum(range(10**6))
        assert monitor._meters["plug"].kept == []
    assert window.energy_source == "plug"
    assert len(window.samples) == 2
    assert set(monitor.power_samples()["window"]) == {"work"}
