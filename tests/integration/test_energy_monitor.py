"""Windows on this machine's CPU: seconds, CPU time, the estimate, memory, failures."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
import time

import pytest

from edge_eval_lib.energy import Monitor, cpu_time, memory, process_tree
from edge_eval_lib.energy.cpu_time import CpuTime, cpu_seconds
from edge_eval_lib.energy.meter import worst_verdict
from edge_eval_lib.energy.meters import rapl
from edge_eval_lib.energy.polling import Poller
from edge_eval_lib.machine import declared

SPIN = "import time; end = time.process_time() + {0}\nwhile time.process_time() < end: pass"


@pytest.fixture
def cpu(monkeypatch, tmp_path):
    """A monitor of a machine with no meter at all, as many have none."""
    monkeypatch.setattr(rapl, "POWERCAP", tmp_path / "no RAPL here")
    with Monitor(device="cpu") as opened:
        yield opened


def spin(seconds):
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass


def test_the_estimate_is_a_labelled_range_around_cpu_time(cpu):
    with cpu.window("spin") as window:
        spin(0.05)
    watts = declared.load_hardware_file().cpu_model
    assert window.energy_source == "cpu-model"
    assert window.cpu_s == pytest.approx(0.05, abs=0.02)
    assert window.energy_j == pytest.approx(window.cpu_s * watts.typical_w)
    assert window.energy_lo_j == pytest.approx(window.cpu_s * watts.low_w)
    assert window.energy_hi_j == pytest.approx(window.cpu_s * watts.high_w)
    assert window.energy_net_j is None
    assert "hold a server's idle power" in window.energy_net_reason
    assert window.power_w == pytest.approx(window.energy_j / window.seconds)


def test_waiting_is_no_cpu_time(cpu):
    with cpu.window("wait") as window:
        time.sleep(0.1)
    assert window.seconds >= 0.1
    assert window.cpu_s < 0.05


def test_children_that_ended_and_children_that_live_count(cpu):
    with cpu.window("children") as window:
        subprocess.run([sys.executable, "-c", SPIN.format(0.2)], check=True)
        living = subprocess.Popen(
            [sys.executable, "-c", SPIN.format(0.2) + "\nprint(flush=True); input()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        living.stdout.readline()
    living.communicate(b"\n")
    assert window.cpu_s == pytest.approx(0.45, abs=0.15)


def test_what_a_living_child_got_from_its_own_children_counts(cpu):
    program = (
        "import subprocess, sys\n"
        f"subprocess.run([sys.executable, '-c', {SPIN.format(0.3)!r}])\n"
        "print(flush=True); input()"
    )
    with cpu.window("grandchildren") as window:
        child = subprocess.Popen(
            [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        child.stdout.readline()
    child.communicate(b"\n")
    assert window.cpu_s == pytest.approx(0.4, abs=0.12)


def test_what_a_child_did_before_the_window_does_not_count(cpu):
    child = subprocess.Popen(
        [sys.executable, "-c", SPIN.format(0.3) + "\nprint(flush=True); input()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    child.stdout.readline()
    with cpu.window("rest") as window:
        child.communicate(b"\n")
    assert child.returncode == 0
    assert window.cpu_s < 0.15


def test_cpu_time_that_vanished_with_its_process_is_unknown():
    begin = CpuTime(1.0, 0.0, {(7, 0.0): 5.0})
    assert cpu_seconds(begin, CpuTime(3.0, 0.0, {})) is None
    assert cpu_seconds(begin, CpuTime(3.0, 6.0, {})) == pytest.approx(3.0)
    assert cpu_seconds(begin, CpuTime(3.0, 0.0, {(7, 0.0): 5.5})) == pytest.approx(2.5)
    # A grandchild's time passes to its parent, which still lives.
    assert cpu_seconds(
        CpuTime(1.0, 0.0, {(7, 0.0): 5.0, (8, 0.0): 1.0}), CpuTime(1.0, 0.0, {(8, 0.0): 6.5})
    ) == pytest.approx(0.5)


def test_vanished_cpu_time_empties_the_energy_and_says_why(cpu, monkeypatch):
    lives = iter([{(7, 0.0): 5.0}, {}])
    monkeypatch.setattr(cpu_time, "_live", lambda: next(lives))
    with cpu.window("work") as window:
        pass
    assert (window.energy_j, window.cpu_s) == (None, None)
    assert "without being waited for" in window.energy_reason


DAEMON = """
import os, sys, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        end = time.process_time() + {seconds}
        while time.process_time() < end: pass
        if {lives}:
            print(flush=True)
            time.sleep(60)
        os._exit(0)
    os._exit(0)
os.wait()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux hands orphans on")
@pytest.mark.parametrize("lives", [False, True])
def test_a_daemon_that_began_in_the_window_counts(cpu, lives):
    program = DAEMON.format(seconds=1.0, lives=lives)
    with cpu.window("daemon") as window:
        starter = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
        assert starter.wait() == 0  # its exit code is still ours to have
        starter.stdout.readline()  # until the daemon is done, or has ended
    try:
        assert window.cpu_s == pytest.approx(1.1, abs=0.3)
        assert window.energy_j > 0
        with cpu.window("next") as following:
            pass
        assert following.cpu_s < 0.3  # and once only
    finally:
        for pid in process_tree.descendants():
            os.kill(pid, signal.SIGKILL)
        starter.communicate()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux hands orphans on")
def test_orphans_are_inherited_only_while_a_window_is_open(cpu):
    def inherits():
        told = ctypes.c_int()
        ctypes.CDLL(None).prctl(37, ctypes.byref(told), 0, 0, 0)  # PR_GET_CHILD_SUBREAPER
        return bool(told.value)

    assert not inherits()
    with cpu.window("outer"):
        with cpu.window("inner"):
            assert inherits()
        assert inherits()
    assert not inherits()


def test_children_that_vanish_unseen_empty_the_figure(cpu):
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        with cpu.window("work") as window:
            spin(0.01)
    finally:
        signal.signal(signal.SIGCHLD, before)
    assert (window.cpu_s, window.energy_j) == (None, None)
    assert "SIGCHLD is ignored" in window.energy_reason


def test_a_window_survives_an_exception_and_lets_it_through(cpu):
    window = cpu.window("work")

    def body():
        with window:
            spin(0.01)
            raise KeyError("from the cell")

    with pytest.raises(KeyError, match="from the cell"):
        body()
    assert window.seconds > 0
    assert window.energy_j > 0
    with cpu.window("next") as following:
        spin(0.01)
    assert following.energy_j > 0


def test_before_its_end_a_window_knows_nothing(cpu):
    with cpu.window("work") as window:
        assert (window.seconds, window.energy_j, window.peak_memory_gb) == (None, None, None)
        assert "not ended" in window.energy_reason
        assert str(window) == "work: still open"


def test_scraps_hold_every_figure_and_never_nan(cpu):
    with cpu.window("work") as window:
        spin(0.01)
    scraps = window.as_dict("adapt")
    assert json.loads(json.dumps(scraps, allow_nan=False)) == scraps
    assert {
        "adapt_s",
        "adapt_energy_j",
        "adapt_energy_lo_j",
        "adapt_energy_hi_j",
        "adapt_energy_net_j",
        "adapt_energy_source",
        "adapt_energy_reason",
        "adapt_power_w",
        "adapt_cpu_s",
        "adapt_peak_memory_gb",
        "adapt_start_monotonic_s",
        "adapt_checks",
        "adapt_verdict",
    } <= set(scraps)
    assert scraps["adapt_s"] == window.seconds
    assert "energy_j" in window.as_dict()


def test_every_window_carries_every_check(cpu):
    with cpu.window("work") as window:
        spin(0.01)
    assert {check.name for check in window.checks} == {
        "counter against integral",
        "counter advances",
        "power changes",
        "sample gap",
        "throttling",
        "other processes",
        "temperature",
        "interference",
        "clock step",
        "meter",
        "synchronised",
        "resolution",
    }
    judged = [check for check in window.checks if check.name != "interference"]  # by the machine
    assert worst_verdict(check.verdict for check in judged) == "ok"
    assert window.samples.empty


COSTS = """
import subprocess, sys, time
from edge_eval_lib.energy import Monitor
monitor = Monitor()
child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
costs_s = []
for _ in range(10):
    start = time.process_time()
    for _ in range(10):
        with monitor.window("empty"):
            pass
    costs_s.append((time.process_time() - start) / 10)
child.communicate(b"")
print(min(costs_s))
"""


def test_a_window_costs_little():
    """0.25 % of half a second at the most, beside a child: CPU time, the least of some tries.

    In a process of its own: every thread that other tests left is looked at in each window.
    """
    done = subprocess.run([sys.executable, "-c", COSTS], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 0.0025 * 0.5


def test_peak_memory_is_the_windows_own_and_windows_nest(cpu):
    with cpu.window("before") as before:
        pass
    with cpu.window("outer") as outer:
        block = bytearray(200_000_000)
        del block
        with cpu.window("inner") as inner:
            block = bytearray(100_000_000)
            del block
    with cpu.window("after") as after:
        pass
    resident = before.peak_memory_gb
    assert outer.peak_memory_gb - resident == pytest.approx(0.2, abs=0.03)
    assert inner.peak_memory_gb - resident == pytest.approx(0.1, abs=0.03)
    assert after.peak_memory_gb - resident == pytest.approx(0.0, abs=0.03)
    assert outer.peak_memory_source == "resident"


def test_a_bare_interpreter_is_subtracted(cpu):
    bare = memory.bare_interpreter_bytes()
    assert 3e6 < bare < 1e8
    with cpu.window("work") as window:
        pass
    with open("/proc/self/status") as status:
        peak = memory._field_bytes(status.read(), "VmHWM")
    assert window.peak_memory_gb == pytest.approx((peak - bare) / 1e9, abs=0.01)


def test_a_peak_that_cannot_be_reset_counts_only_if_it_rose(cpu, monkeypatch):
    monkeypatch.setattr(memory, "_reset_resident_peak", lambda: False)
    marks = iter([300_000_000, 300_000_000, 300_000_000, 400_000_000])
    monkeypatch.setattr(memory, "_resident_peak_bytes", lambda: next(marks))
    monkeypatch.setattr(memory, "bare_interpreter_bytes", lambda: 10_000_000)
    peak = memory.begin()
    peak_memory = memory.end(peak, on_gpu=False)
    assert peak_memory.gb is None
    assert "could not be reset" in peak_memory.reason


def test_a_peak_that_rose_without_a_reset_is_the_windows(monkeypatch):
    monkeypatch.setattr(memory, "_reset_resident_peak", lambda: False)
    marks = iter([300_000_000, 300_000_000, 400_000_000])
    monkeypatch.setattr(memory, "_resident_peak_bytes", lambda: next(marks))
    monkeypatch.setattr(memory, "bare_interpreter_bytes", lambda: 10_000_000)
    assert memory.end(memory.begin(), on_gpu=False).gb == pytest.approx(0.39)


def test_rapl_goes_before_the_estimate_which_never_stands_in_for_it(tmp_path, monkeypatch):
    zone = tmp_path / "intel-rapl:0"
    zone.mkdir()
    files = {"name": "package-0", "energy_uj": "0", "max_energy_range_uj": "262143328850"}
    for name, text in files.items():
        (zone / name).write_text(text)
    monkeypatch.setattr(rapl, "POWERCAP", tmp_path)
    with Monitor(device="cpu") as opened:
        assert opened.energy_source == "rapl"
        with opened.window("work") as window:
            time.sleep(0.05)
            (zone / "energy_uj").write_text("3000000")
        assert (window.energy_source, window.energy_j) == ("rapl", 3.0)
        assert window.energy_lo_j is None
        assert set(window.energy_by_source_j) == {"rapl", "cpu-model"}
        (zone / "energy_uj").unlink()
        with opened.window("lost") as window:
            time.sleep(0.05)
        assert (window.energy_source, window.energy_j) == (None, None)
        assert "could not be read" in window.energy_reason
        assert window.energy_by_source_j["cpu-model"] > 0
        assert "rapl" in next(check.detail for check in window.checks if check.name == "meter")


def test_sampling_threads_end_with_the_monitor(tmp_path, monkeypatch):
    visits = []
    poller = Poller(lambda: visits.append(1), 0.002)
    time.sleep(0.02)
    assert visits == []
    poller.resume()
    time.sleep(0.05)
    poller.stop()
    assert len(visits) >= 2
    assert not poller._thread.is_alive()


def test_an_idle_baseline_of_an_estimate_is_none_with_its_reason(cpu):
    baseline = cpu.idle_baseline(0.05)
    assert baseline.power_w is None
    assert "hold a server's idle power" in baseline.reason
    assert baseline.energy_source == "cpu-model"


@pytest.mark.parametrize("seconds", [0, -1.0, float("nan")])
def test_an_idle_baseline_needs_time(cpu, seconds):
    with pytest.raises(ValueError, match="seconds"):
        cpu.idle_baseline(seconds)


def test_missing_sources_say_why(cpu):
    assert [source.name for source in cpu.sources] == [
        "nvml-counter",
        "nvml-power",
        "rapl",
        "cpu-model",
    ]
    for source in cpu.sources:
        assert source.available == (not source.reason)
    assert cpu.energy_source == "cpu-model"


def test_a_gpu_that_is_not_there_has_no_energy(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with Monitor(device="gpu") as opened, opened.window("work") as window:
        spin(0.01)
    assert opened.energy_source is None
    assert "nvml-counter" in opened.energy_reason
    assert window.energy_j is None
    assert window.energy_reason == opened.energy_reason
