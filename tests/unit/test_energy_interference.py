"""Other work on the cores that a run may use: the arithmetic, the verdicts, and a real crowd."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

import pytest

from edge_eval_lib.energy import Monitor, checks, interference
from edge_eval_lib.energy.cpu_time import CpuTime
from edge_eval_lib.energy.interference import CoreLook, CoreUse, InterferenceWatch

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
BUSY = "import os\nos.sched_setaffinity(0, {0})\nprint(flush=True)\nwhile True: pass"


def use(**changes):
    """Ten seconds on two cores, both ours, of which we used all."""
    figures = {"seconds": 10.0, "cores": 2, "entitled": 2.0, "busy_s": 20.0, "idle_s": 0.0}
    figures |= {"stolen_s": 0.0, "own_s": 20.0, "error_s": 0.04}
    return CoreUse(**(figures | changes))


def verdict(found, on_gpu=False):
    check = checks.interference(found, on_gpu)
    return check.verdict, check.detail


def test_work_of_our_own_is_no_interference():
    assert verdict(use()) == ("ok", "other work took 0% of its 2 cores")
    assert verdict(use(busy_s=1.0, own_s=1.0, idle_s=19.0))[0] == "ok"


@pytest.mark.parametrize(
    ("others_s", "expected"), [(0.6, "ok"), (1.2, "warning"), (4.0, "warning"), (6.0, "invalid")]
)
@pytest.mark.parametrize("idle_s", [0.0, 8.0])
def test_the_share_that_others_took_decides(others_s, expected, idle_s):
    found = use(own_s=20.0 - idle_s - others_s, busy_s=20.0 - idle_s, idle_s=idle_s)
    assert found.others_s == pytest.approx(others_s)
    assert verdict(found) == (expected, f"other work took {others_s / 20:.0%} of its 2 cores")


def test_stolen_time_counts_even_if_our_own_holds_it():
    assert use(stolen_s=6.0, busy_s=14.0, own_s=14.0).taken == pytest.approx(0.3)
    # A kernel that counts stolen time as its threads' own.
    assert use(stolen_s=6.0, busy_s=14.0, own_s=20.0).taken == pytest.approx(0.3)
    assert verdict(use(stolen_s=6.0, busy_s=14.0, own_s=14.0))[0] == "invalid"


def test_waiting_disks_and_interrupts_are_nobodys_work():
    begin, end = look(0.0), look(10.0, idle=500, iowait=300, irq=100, softirq=100, user=1000)
    found = InterferenceWatch().between(begin, end)
    assert found.others_s == pytest.approx(0.0, abs=1e-9)
    assert verdict(found)[0] == "ok"


def look(at_s, own_s=None, waits_s=None, live=None, **ticks):
    """What the system told at one moment; ticks are shared by two cores."""
    names = ("user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal")
    each = [ticks.get(name, 0) for name in names]
    own = CpuTime(sum(each[:3]) / 100 if own_s is None else own_s, 0.0, live or {})
    halves = {0: [t // 2 for t in each], 1: [t - t // 2 for t in each]}
    return CoreLook(at_s, own, halves, waits_s or {}, [])


@LINUX
def test_a_window_between_two_looks():
    watch = InterferenceWatch()
    found = watch.between(
        look(5.0, waits_s={"a": 1.0, "ended": 3.0}),
        look(15.0, 9.0, {"a": 3.0, "b": 0.5}, user=1500, steal=100, idle=400),
    )
    assert (found.seconds, found.cores) == (10.0, 2)
    assert found.others_s == pytest.approx(7.0)  # 15 busy less 9 of our own, and 1 stolen
    assert found.waited_s == pytest.approx(2.5)
    assert verdict(found) == ("invalid", "other work took 35% of its 2 cores")
    assert watch.between(look(0.0), look(10.0)) == (
        "this system does not count the time of its cores"
    )
    gone = look(10.0, 1.0, user=200, idle=1800)
    lost = look(0.0, live={(7, 1.0): 5.0})
    assert watch.between(lost, gone) == "our own CPU time is not known"
    nothing = CoreLook(0.0, CpuTime(0.0, 0.0, {}), {}, {}, [])
    assert "does not show" in watch.between(nothing, nothing)


def test_threads_that_wait_for_one_another_are_no_interference():
    assert verdict(use(waited_s=30.0))[0] == "ok"  # more threads than cores, nobody else there
    found = use(busy_s=20.0, own_s=19.6, waited_s=30.0)  # others: 2 % of the cores
    assert found.waited == pytest.approx(0.4 / 49.6)
    assert verdict(found)[0] == "ok"


def test_one_thread_that_waits_suffers_more_than_the_cores_share():
    """A single thread on eight cores that shares its core half of the time."""
    found = use(cores=8, entitled=8.0, own_s=5.0, busy_s=10.0, idle_s=70.0, waited_s=5.0)
    assert found.taken == pytest.approx(1 / 16)
    assert found.waited == pytest.approx(0.5)
    assert verdict(found)[0] == "invalid"
    assert "waited 50% of their time" in verdict(found)[1]


def test_a_window_at_rest_is_not_disturbed_by_a_short_wait():
    assert verdict(use(own_s=0.01, busy_s=0.05, idle_s=19.95, waited_s=0.03))[0] == "ok"


def test_a_quota_leaves_the_other_cores_to_others_and_holding_back_is_reported():
    crowd = {"cores": 64, "entitled": 4.0, "own_s": 38.0, "error_s": 1.28}
    assert verdict(use(**crowd, busy_s=538.0, idle_s=102.0))[0] == "ok"
    assert use(**crowd, busy_s=638.0, idle_s=2.0).taken == pytest.approx(0.0)
    assert use(**crowd, busy_s=640.0, idle_s=0.0).taken == pytest.approx(2 / 40)
    held = verdict(use(own_s=10.0, busy_s=10.0, idle_s=10.0, held_s=10.0))
    assert held == ("invalid", "a CPU quota held its threads back for 50% of their time")


def test_on_a_gpu_only_waiting_counts_and_only_as_a_warning():
    crowd = {"cores": 64, "entitled": 64.0, "own_s": 10.0, "busy_s": 400.0, "idle_s": 240.0}
    assert verdict(use(**crowd), on_gpu=True)[0] == "ok"
    told = verdict(use(**crowd, waited_s=10.0), on_gpu=True)
    assert told[0] == "warning"
    assert "waited 50%" in told[1]


@pytest.mark.parametrize(("seconds", "expected"), [(0.05, "not applicable"), (0.5, "ok")])
def test_a_window_too_short_for_ticks_is_not_judged(seconds, expected):
    found = use(seconds=seconds, busy_s=2 * seconds, own_s=2 * seconds)
    assert verdict(found)[0] == expected
    if expected == "not applicable":
        assert "too short" in verdict(found)[1]


def test_a_short_window_that_is_certain_is_judged():
    found = use(seconds=0.2, busy_s=0.4, own_s=0.1)
    assert (found.error, found.taken) == (pytest.approx(0.1), pytest.approx(0.75))
    assert verdict(found)[0] == "invalid"


def test_work_elsewhere_is_not_judged():
    with Monitor(device="elsewhere") as opened, opened.window("work") as window:
        time.sleep(0.01)
    found = next(check for check in window.checks if check.name == "interference")
    assert found.verdict == "not applicable"
    assert "elsewhere" in found.detail


def test_the_cores_counters_are_read_by_number():
    text = (
        b"cpu  9 9 9 9 9 9 9 9 0 0\ncpu0 1 2 3 4 5 6 7 8 0 0\ncpu11 8 7 6 5 4 3 2 1 0 0\nintr 5\n"
    )
    assert interference.core_ticks(text) == {
        0: [1, 2, 3, 4, 5, 6, 7, 8],
        11: [8, 7, 6, 5, 4, 3, 2, 1],
    }


@pytest.mark.parametrize("version", [1, 2])
def test_quotas_are_read_in_every_group_above(tmp_path, version):
    mount = tmp_path if version == 2 else tmp_path / "cpu,cpuacct"
    job = mount / "slurm" / "job"
    job.mkdir(parents=True)
    if version == 2:
        membership = "0::/slurm/job\n"
        (job / "cpu.max").write_text("max 100000\n")
        (mount / "slurm" / "cpu.max").write_text("150000 100000\n")
        (mount / "slurm" / "cpu.stat").write_text("usage_usec 1\nthrottled_usec 2500000\n")
    else:
        membership = "5:memory:/other\n4:cpu,cpuacct:/slurm/job\n0::/\n"
        (job / "cpu.cfs_quota_us").write_text("-1\n")
        (job / "cpu.cfs_period_us").write_text("100000\n")
        (mount / "slurm" / "cpu.cfs_quota_us").write_text("150000\n")
        (mount / "slurm" / "cpu.cfs_period_us").write_text("100000\n")
        (mount / "slurm" / "cpu.stat").write_text("nr_throttled 3\nthrottled_time 2500000000\n")
    (quota,) = interference.quotas(tmp_path, membership)
    assert quota.cores == 1.5
    assert interference.held_back_s(quota.directory) == pytest.approx(2.5)
    assert interference.quotas(tmp_path / "nothing", membership) == []


# --- a real crowd -----------------------------------------------------------------------------

MEASURE = """
import json, os, subprocess, sys, time
os.sched_setaffinity(0, {0})
from edge_eval_lib.energy import Monitor, cpu_time
SPIN = "import time\\nend = time.process_time() + 0.5\\nwhile time.process_time() < end: pass"
with Monitor(device="cpu") as monitor:
    with monitor.window("ours") as window:
        subprocess.run([sys.executable, "-I", "-S", "-c", SPIN], check=True)
        end = time.process_time() + 0.5
        while time.process_time() < end: pass
    end = monitor._cores.look(cpu_time.end())
    use = monitor._cores.between(window._opening.cores, end)
(check,) = [check for check in window.checks if check.name == "interference"]
print(json.dumps({"verdict": check.verdict, "detail": check.detail, "own_s": window.cpu_s,
                  "seconds": use.seconds, "others_s": use.others_s, "cores": list(end.ticks)}))
"""


def measured(core, busy_core):
    """A window of a CPU second, half of it a child's, pinned to `core`; a stranger spins on
    `busy_core`."""
    stranger = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", BUSY.replace("{0}", str({busy_core}))],
        stdout=subprocess.PIPE,
    )
    try:
        stranger.stdout.readline()
        done = subprocess.run(
            [sys.executable, "-c", MEASURE.replace("{0}", str({core}))],
            capture_output=True,
            text=True,
            check=True,
        )
        return json.loads(done.stdout)
    finally:
        stranger.kill()
        stranger.communicate()


@LINUX
@pytest.mark.slow  # keeps two processes busy for seconds
def test_a_stranger_on_our_core_is_detected():
    """What a machine that others use too can tell: it is crowded at the least by the stranger."""
    core = max(os.sched_getaffinity(0))
    found = measured(core, busy_core=core)
    assert found["verdict"] == "invalid"
    assert "other work" in found["detail"]
    assert found["others_s"] > 0.3 * found["seconds"]
    # Our child's half second is ours: it is not counted again as others'.
    assert found["own_s"] == pytest.approx(1.0, abs=0.3)
    assert found["others_s"] <= found["seconds"] - found["own_s"] + 0.1


@LINUX
@pytest.mark.slow  # keeps two processes busy for seconds
@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs a second core")
def test_a_stranger_on_another_core_does_not_count():
    one, other = sorted(os.sched_getaffinity(0))[-2:]
    found = measured(one, busy_core=other)
    assert found["cores"] == [one]
    assert found["others_s"] <= found["seconds"] - found["own_s"] + 0.1
