"""A power sweep from the plan to its page: a real tiny model, served on a simulated GPU's account.

The model works on the CPU; clocks, power and the energy counter are the simulation's.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
from tiny import make_tiny_study

from edge_eval_lib import scraps
from edge_eval_lib.paths import project_root

pytestmark = pytest.mark.end_to_end

SIMULATION = project_root() / "tests" / "simulated_gpu"
SWEEP = {
    "knob": "sm_clock_mhz",
    "points": [300.0, 795.0, 1590.0],
    "settle_seconds": 0.0,
    "exclusive": True,
}


def study_in(directory: Path, **sweep) -> Path:
    return make_tiny_study(
        directory,
        name="tiny-sweep",
        configurations=(("none", "fp16"),),
        repetitions=2,
        workload={"output_tokens": 48, "uncut_tokens": None},
        power_sweep=SWEEP | sweep,
    )


def start(*arguments, directory: Path) -> subprocess.Popen:
    paths = [str(SIMULATION), str(project_root()), os.environ.get("PYTHONPATH", "")]
    return subprocess.Popen(
        [sys.executable, "-m", "edge_eval_lib", *map(str, arguments)],
        env={
            **os.environ,
            "EDGE_EVAL_OUTPUTS": str(directory / "outputs"),
            "PYTHONPATH": os.pathsep.join(filter(None, paths)),
            "SIMULATED_GPU": str(directory / "gpu.json"),
            "CUDA_VISIBLE_DEVICES": "0",
        },
        cwd=project_root(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def command(*arguments, directory: Path) -> tuple[int, str]:
    process = start(*arguments, directory=directory)
    said, errors = process.communicate(timeout=600)
    return process.returncode, said + errors


def settings(directory: Path) -> tuple[int, list[int] | None]:
    now = json.loads((directory / "gpu.json").read_text())
    return now["limit_mw"], now["locked"]


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return study_in(tmp_path_factory.mktemp("sweep"))


@pytest.fixture(scope="module")
def outputs(path):
    code, said = command("all", path, directory=path.parent)
    assert code == 0, said
    return path.parent / "outputs" / "tiny-sweep"


def test_every_setting_was_served_and_the_gpu_is_as_it_was_found(outputs, path):
    runs = pd.read_parquet(outputs / "runs" / "power_sweep" / "power_sweep.runs.parquet")
    assert len(runs) == 2 * (3 + 1) * 2  # repetitions, visits, concurrencies
    swept = runs[~runs["control"]]
    assert (swept.groupby(["repetition", "concurrency"])["setting"].nunique() == 3).all()
    assert (runs["sm_clock_mhz"] == runs["setting"]).all()
    assert set(runs["setting_verdict"]) == {"held"}
    assert set(runs["energy_source"].dropna()) <= {"nvml-counter", "nvml-power"}
    assert settings(path.parent) == (70_000, None)
    # What the simulated GPU draws at each clock, J by its counter over real seconds.
    drawn = runs.dropna(subset="power_w").groupby("setting")["power_w"].median()
    expected = pd.Series({mhz: 14 + 56 * (mhz / 1590) ** 2 for mhz in SWEEP["points"]})
    assert len(drawn)
    assert (drawn / expected[drawn.index]).between(0.8, 1.25).all()


def test_the_page_tells_the_knees_and_its_tables_come_again_from_the_raw_data(outputs, path):
    report = outputs / "report.html"
    page = report.read_text(encoding="utf-8")
    assert "Unverified on hardware" in page
    recorded = scraps.read_scraps(outputs / "runs" / "power_sweep" / "power_sweep.ipynb")
    assert {knee["rule"] for knee in recorded["knees"]} == {
        "least J/token",
        "least J/token x TPOT",
    }
    knees = outputs / "tables" / "power_knee.csv"
    before = knees.read_bytes()
    for made in (knees, report, outputs / "figures" / "power_sweep.png"):
        made.unlink()
    code, said = command("report", path, directory=path.parent)
    assert code == 0, said
    assert knees.read_bytes() == before
    assert report.is_file()
    made = (outputs / "runs" / "power_sweep" / "power_sweep.ipynb").stat().st_mtime_ns
    code, said = command("all", path, directory=path.parent)
    assert code == 0, said
    assert (outputs / "runs" / "power_sweep" / "power_sweep.ipynb").stat().st_mtime_ns == made


def test_a_sweep_that_is_killed_in_its_course_leaves_the_gpu_as_it_was_found(tmp_path):
    study_in(tmp_path, points=[300.0, 795.0, 1200.0])
    process = start("all", tmp_path / "tiny-sweep.yaml", directory=tmp_path)
    ends = time.monotonic() + 300
    while time.monotonic() < ends and process.poll() is None:
        if (tmp_path / "gpu.json").is_file() and settings(tmp_path)[1]:
            break
        time.sleep(0.05)
    assert process.poll() is None
    assert settings(tmp_path)[1] is not None
    process.send_signal(signal.SIGKILL)  # its kernel dies with it, by the system
    process.communicate(timeout=60)
    while time.monotonic() < ends and settings(tmp_path)[1]:
        time.sleep(0.05)
    assert settings(tmp_path) == (70_000, None)


@pytest.mark.parametrize(
    ("sweep", "state", "sentence"),
    [
        ({"exclusive": False}, {}, "power_sweep.exclusive is false"),
        ({}, {"others": [4711]}, "process 4711 uses GPU 0 (Tesla T4)"),
        ({}, {"permitted": False}, "You may not set the SM clock of GPU 0 (Tesla T4)"),
    ],
)
def test_a_gpu_that_is_not_ours_is_not_touched(sweep, state, sentence, tmp_path):
    path = study_in(tmp_path, **sweep)
    (tmp_path / "gpu.json").write_text(json.dumps(state | {"turned": 0}))
    code, said = command("all", path, directory=tmp_path)
    assert code == 1
    assert sentence in said
    assert json.loads((tmp_path / "gpu.json").read_text())["turned"] == 0
