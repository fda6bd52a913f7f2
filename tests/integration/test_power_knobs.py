"""Who may turn a GPU's knob, and that what was found is put back: on a simulated GPU alone."""

import importlib.util
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pynvml
import pytest

from edge_eval_lib.errors import UserError
from edge_eval_lib.machine import knobs, nvml, watchdog
from edge_eval_lib.paths import project_root, user_directory

SIMULATION = project_root() / "tests" / "simulated_gpu"
SWEEPER = """
import random, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # tests in the background have it ignored
signal.signal(signal.SIGHUP, signal.SIG_DFL)
from edge_eval_lib.machine import watchdog
settings = {"sm_clock_mhz": range(300, 1590, 15), "power_limit_w": range(60, 70)}[sys.argv[1]]
with watchdog.turning(sys.argv[1], by="test") as turn:
    print("turning", flush=True)
    while True:
        turn(random.choice(settings))
"""


@pytest.fixture
def gpu(tmp_path, monkeypatch):
    """The simulated GPU of this process and those that it starts."""
    (tmp_path / "run").mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))
    monkeypatch.setenv("SIMULATED_GPU", str(tmp_path / "gpu.json"))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(SIMULATION), str(project_root())]))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(knobs, "PROCESS_STATUS", Path("none"))
    spec = importlib.util.spec_from_file_location("simulated", SIMULATION / "pynvml.py")
    simulated = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "simulated", simulated)
    spec.loader.exec_module(simulated)
    for name, function in vars(simulated).items():
        code = getattr(function, "__code__", None)
        if name.startswith("nvml") and code is not None and code.co_filename == spec.origin:
            monkeypatch.setattr(pynvml, name, function)
    monkeypatch.setattr(simulated, "NVMLError", pynvml.NVMLError)
    return simulated


def change(gpu, **fields):
    with gpu.state() as now:
        now |= fields


def sweeper(knob):
    command = [sys.executable, "-c", SWEEPER, knob]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def wait_for_watchdog(parent):
    """Until the watchdog of a process has ended."""
    ends = time.monotonic() + 30
    while time.monotonic() < ends:
        commands = (p.info["cmdline"] or [] for p in psutil.process_iter(["cmdline"]))
        if not any(f'"parent": {parent}' in command[-1] for command in commands if command):
            return
        time.sleep(0.02)
    raise AssertionError("the watchdog still runs")


# --- put back, whatever happens ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("knob", "value", "set_to"),
    [("sm_clock_mhz", 585, (70_000, [585, 585])), ("power_limit_w", 62.5, (62_500, None))],
)
def test_a_knob_is_turned_and_put_back(gpu, knob, value, set_to):
    with watchdog.turning(knob, by="test") as turn:
        turn(value)
        assert gpu.settings() == set_to
        assert len(list(user_directory().glob("settings-*.json"))) == 1
        assert watchdog.left_over() == []
    assert gpu.settings() == (70_000, None)
    assert list(user_directory().glob("settings-*.json")) == []


def test_what_was_found_is_put_back_and_not_the_default(gpu):
    change(gpu, limit_mw=65_000, locked=[300, 1005])
    with watchdog.turning("power_limit_w", by="test") as turn:
        turn(60)
    assert gpu.settings() == (65_000, [300, 1005])
    with watchdog.turning("sm_clock_mhz", by="test", locked_mhz=[300, 1005]) as turn:
        turn(1590)
    assert gpu.settings() == (65_000, [300, 1005])


def test_an_exception_puts_it_back_and_stays_what_it_was(gpu):
    with pytest.raises(ZeroDivisionError), watchdog.turning("sm_clock_mhz", by="test") as turn:
        turn(1 / (turn(300) or 0))
    assert gpu.settings() == (70_000, None)


@pytest.mark.parametrize("knob", ["sm_clock_mhz", "power_limit_w"])
def test_twenty_of_twenty_kills_leave_the_gpu_as_it_was_found(gpu, knob):
    """At random moments, half of them before and half of them after the first turn; ten a knob."""
    moments = random.Random(knob)
    turned = 0
    for kill in range(10):
        process = sweeper(knob)
        if kill % 2:
            assert process.stdout.readline() == "turning\n"
            time.sleep(moments.uniform(0, 0.1))
        else:
            time.sleep(moments.uniform(0, 0.4))
        process.kill()
        process.wait()
        wait_for_watchdog(process.pid)
        assert gpu.settings() == (70_000, None), f"kill {kill}"
        assert list(user_directory().glob("settings-*.json")) == []
        with gpu.state() as now:
            turned += kill % 2 and now["turned"] > 1
            now["turned"] = 0
    assert turned == 5


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signals_to_the_whole_group_end_the_sweep_and_not_the_watchdog(gpu, number):
    process = subprocess.Popen(
        [sys.executable, "-c", SWEEPER, "power_limit_w"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    assert process.stdout.readline() == "turning\n"
    os.killpg(process.pid, number)
    process.wait(timeout=60)
    wait_for_watchdog(process.pid)
    assert gpu.settings() == (70_000, None)


def test_a_child_that_outlives_the_sweep_with_a_copy_of_its_pipe_does_not_keep_it(gpu):
    forking = SWEEPER.replace("while True:", "if not os.fork(): time.sleep(60)\n    while True:")
    command = [sys.executable, "-c", f"import os, time\n{forking}", "power_limit_w"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert process.stdout.readline() == "turning\n"
    process.kill()
    process.wait()
    wait_for_watchdog(process.pid)
    assert gpu.settings() == (70_000, None)
    os.killpg(process.pid, signal.SIGKILL)


def test_a_killed_watchdog_is_told_of_and_the_next_one_puts_back_what_it_found(gpu):
    process = sweeper("power_limit_w")
    assert process.stdout.readline() == "turning\n"
    note = next(user_directory().glob("settings-*.json"))
    os.kill(int(note.stem.removeprefix("settings-")), signal.SIGKILL)
    process.kill()
    process.wait()
    change(gpu, limit_mw=61_000)
    (said,) = watchdog.left_over()
    assert "A sweep was interrupted (test, " in said
    assert "the power limit of GPU 0 (Tesla T4) (now 61 W)" in said
    assert "`sudo nvidia-smi -i 0 -pl 70`" in said
    with watchdog.turning("sm_clock_mhz", by="test"):
        assert gpu.settings() == (70_000, None)
    assert watchdog.left_over() == []


def test_what_was_noted_before_the_last_boot_is_forgotten(gpu):
    """The driver forgot the setting, too."""
    note = user_directory() / "settings-1.json"
    found = {"GPU-simulated": [65_000]}
    content = {"knob": "power_limit_w", "found": found, "by": "test", "started": "then"}
    note.write_text(json.dumps(content | {"boot": "another"}))
    assert watchdog.left_over() == []
    assert not note.exists()


def test_a_gpu_that_refuses_to_be_put_back_is_said_and_noted(gpu):
    with (
        pytest.raises(UserError, match=r"could not be put back .*`sudo nvidia-smi -i 0 -pl 70`"),
        watchdog.turning("power_limit_w", by="test") as turn,
    ):
        change(gpu, permitted=bool(turn(60)))
    assert len(watchdog.left_over()) == 1


# --- refused ----------------------------------------------------------------------------------


def test_what_nvml_does_not_permit_is_one_sentence_and_changes_nothing(gpu):
    change(gpu, permitted=False)
    with (
        pytest.raises(UserError, match=r"^The SM clock of GPU 0 .*: Insufficient Permissions\.$"),
        watchdog.turning("sm_clock_mhz", by="test") as turn,
    ):
        turn(585)
    assert gpu.settings() == (70_000, None)
    assert list(user_directory().glob("settings-*.json")) == []


@pytest.mark.parametrize(
    ("state", "asked", "sentence"),
    [
        ({}, ("sm_clock_mhz", [300, 1590], True), ""),
        ({}, ("power_limit_w", [60, 66.5, 70], True), ""),
        ({}, ("sm_clock_mhz", [300], False), "exclusive is false"),
        ({"others": [77]}, ("sm_clock_mhz", [300], True), "process 77 uses GPU 0 (Tesla T4)"),
        ({}, ("sm_clock_mhz", [300, 590], True), "from 300 to 1590 MHz in steps; the nearest is"),
        ({}, ("power_limit_w", [50], True), "goes from 60 to 70 W."),
        (
            {"permitted": False},
            ("sm_clock_mhz", [300], True),
            "`sudo nvidia-smi -i 0 -lgc 300,300`",
        ),
    ],
)
def test_a_sweep_is_refused_in_one_sentence_that_says_why(gpu, state, asked, sentence):
    change(gpu, **state)
    refused = knobs.refusal(*asked)
    assert sentence in refused
    assert bool(refused) == bool(sentence)
    assert refused.count(". ") == 0
    assert gpu.settings() == (70_000, None)
    with gpu.state() as now:
        assert now["turned"] == 0


def test_without_a_gpu_a_sweep_is_refused_and_every_knob_says_why(monkeypatch):
    def absent():
        raise nvml.Unavailable("this machine has no NVIDIA GPU")

    monkeypatch.setattr(nvml, "visible_devices", absent)
    assert knobs.refusal("sm_clock_mhz", [300], True) == (
        "There is no GPU here of which the SM clock could be swept: this machine has no NVIDIA GPU."
    )
    rows = knobs.table()
    assert [row["knob"] for row in rows] == ["the SM clock", "the power limit"]
    assert {row["may be turned"] for row in rows} == {"no: this machine has no NVIDIA GPU"}


def test_the_preflight_table_tells_ranges_and_an_administrators_commands(gpu):
    clock, limit = knobs.table()
    assert clock["range"] == "300 to 1590 MHz"
    assert clock["to set it"] == "sudo nvidia-smi -i 0 -lgc MHz,MHz"
    assert clock["to undo"] == "sudo nvidia-smi -i 0 -rgc"
    assert (limit["range"], limit["now"]) == ("60 to 70 W", "70 W")
    assert limit["to undo"] == "sudo nvidia-smi -i 0 -pl 70"
    assert clock["may be turned"].startswith("yes")
    change(gpu, permitted=False)
    assert all(row["may be turned"].startswith("no: only an") for row in knobs.table())
