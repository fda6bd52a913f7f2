"""A study on a real SLURM of one node, which the tests start and stop."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import nbformat
import pandas as pd
import pytest
import tiny
from slurm_cluster import missing_programs
from slurm_cluster import slurm as running_slurm

from edge_eval_lib.runs import slurm
from edge_eval_lib.study import NOTEBOOKS

pytestmark = [pytest.mark.end_to_end, pytest.mark.usefixtures("_tables_alone")]

MAKE_ALL_WITHIN_S = 400
CONFIGURATIONS = (("lora", "fp16"), ("lora", "int4"))
ADAPTER = "tinyllama-0.1M_rag_lora"
CANCELLED = f"serve/{ADAPTER}_int4_r01"
EVERY_RUN = {
    "preflight/preflight",
    f"adapt/{ADAPTER}",
    f"compress/{ADAPTER}",
    f"serve/{ADAPTER}_fp16_r01",
    CANCELLED,
    "score/score",
    "synthesis/synthesis",
}
OUTPUT = "settings/serve/some_run.json"  # of the tests that submit jobs of their own


@pytest.fixture(autouse=True)
def _needs_slurm() -> None:
    missing = missing_programs()
    if missing and os.environ.get("REQUIRE_SLURM"):
        pytest.fail(f"SLURM is required and lacks {', '.join(missing)}")
    if missing:
        pytest.skip(f"SLURM is missing: no {', '.join(missing)} (Debian: slurm-wlm, munge)")


def wait_for(condition: Callable[[], bool], seconds: float = 60) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.2)


# --- a study ---------------------------------------------------------------------------------


@pytest.fixture
def environment(tmp_path: Path) -> Iterator[dict[str, str]]:
    """A SLURM, and the outputs and locks of the test's own."""
    with running_slurm(tmp_path / "slurm") as cluster:
        yield cluster | {
            "EDGE_EVAL_OUTPUTS": str(tmp_path / "outputs"),
            "XDG_RUNTIME_DIR": str(tmp_path),
        }


def add_a_paper(environment: dict[str, str], directory: Path) -> None:
    """A paper's page of one cell beside the other notebooks, in a directory of its own."""
    shutil.copytree(os.environ["EDGE_EVAL_NOTEBOOKS"], directory, symlinks=True)
    cell = nbformat.v4.new_code_cell("from edge_eval_lib import scraps\n\nscraps.complete()")
    python = {"name": "python3", "display_name": "Python 3", "language": "python"}
    notebook = nbformat.v4.new_notebook(cells=[cell], metadata={"kernelspec": python})
    nbformat.write(notebook, directory / NOTEBOOKS["paper"])
    environment["EDGE_EVAL_NOTEBOOKS"] = str(directory)


@pytest.mark.timeout(2 * MAKE_ALL_WITHIN_S + 60)
def test_a_study_survives_the_loss_of_a_job_and_loses_nothing_finished(environment, tmp_path):
    add_a_paper(environment, tmp_path / "notebooks")
    study = tiny.make_tiny_study(tmp_path, configurations=CONFIGURATIONS, unadapted_base=False)
    outputs = tmp_path / "outputs" / "tiny"
    command = [sys.executable, "-m", "edge_eval_lib", "all", str(study), "--profile", "slurm"]

    def start() -> subprocess.Popen[str]:
        return subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def finish(process: subprocess.Popen[str]) -> str:
        try:
            return process.communicate(timeout=MAKE_ALL_WITHIN_S)[0]
        finally:
            process.kill()

    def published() -> dict[str, bytes]:
        paths = outputs.glob("runs/*/*.ipynb")
        return {f"{path.parent.name}/{path.stem}": path.read_bytes() for path in paths}

    first = start()
    try:
        executing = outputs / "running" / CANCELLED / "notebook.ipynb"
        wait_for(lambda: executing.is_file() or first.poll() is not None, MAKE_ALL_WITHIN_S)
        _cancel(environment, CANCELLED)
    finally:
        told = finish(first)
    assert first.returncode == 1, told
    assert f"FAILED  {CANCELLED.replace('/', '  ')}: SLURM's job" in told
    assert "was cancelled on" in told
    assert "Traceback" not in told
    kept = published()
    assert set(kept) == EVERY_RUN - {CANCELLED}
    assert (tmp_path / "outputs" / "paper" / "report.html").is_file()
    # The rest was scored and reported all the same.
    assert set(pd.read_csv(outputs / "tables" / "variants.csv")["precision"]) == {"fp16"}

    second = start()
    told = finish(second)
    assert second.returncode == 0, told
    done = published()
    assert set(done) == EVERY_RUN
    again = {"score/score", "synthesis/synthesis"}  # they had done without the cancelled run
    assert {run for run in kept if done[run] != kept[run]} == again
    assert set(pd.read_csv(outputs / "tables" / "variants.csv")["precision"]) == {"fp16", "int4"}
    assert (outputs / "report.html").is_file()
    assert not list(outputs.glob("failed/*/*.json"))
    # Every run was a job of SLURM's.
    jobs = {f"{log.parent.name}/{log.stem}" for log in outputs.glob("slurm/*/*.log")}
    assert jobs == EVERY_RUN | {"paper/paper"}
    assert _answer(environment, "squeue", "--noheader") == ""


def _cancel(environment: dict[str, str], run: str) -> None:
    jobs = _answer(environment, "squeue", "--noheader", "--format=%A %j").splitlines()
    (number,) = [line.split()[0] for line in jobs if line.endswith(f"/{run}")]
    _answer(environment, "scancel", number)


def _answer(environment: dict[str, str], *command: str) -> str:
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=30, check=True
    )
    return done.stdout.strip()


# --- single jobs -----------------------------------------------------------------------------


def use(cluster: dict[str, str], directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Submit from `directory` to that SLURM."""
    directory.mkdir(exist_ok=True)
    monkeypatch.chdir(directory)
    for name in ("SLURM_CONF", "PATH"):
        monkeypatch.setenv(name, cluster[name])


def script(directory: Path, *lines: str) -> str:
    path = directory / f"job{len(list(directory.glob('job*')))}.sh"
    path.write_text("\n".join(["#!/bin/sh", *lines, ""]), encoding="utf-8")
    return str(path)


def ended(job: str) -> str:
    """The status of a job that has ended."""
    wait_for(lambda: slurm.status(job) != "running")
    return slurm.status(job)


@pytest.mark.timeout(120)
def test_two_jobs_share_a_node_with_a_gpu_each(tmp_path, monkeypatch):
    with running_slurm(tmp_path / "slurm", gpus=2) as cluster:
        use(cluster, tmp_path / "outputs", monkeypatch)
        meet = [
            "echo $CUDA_VISIBLE_DEVICES > $SLURM_JOB_ID.gpu",
            "until [ $(ls *.gpu | wc -l) = 2 ]; do sleep 0.2; done",  # both run at one time
        ]
        outputs = ("settings/serve/one.json", "settings/serve/other.json")
        jobs = [slurm.submit(1, output, [], script(tmp_path, *meet)) for output in outputs]
        assert [ended(job) for job in jobs] == ["success", "success"]
        taken = [Path(f"{job}.gpu").read_text().strip() for job in jobs]
        assert sorted(taken) == ["0", "1"]


@pytest.mark.timeout(120)
def test_a_job_left_behind_by_a_killed_make_is_replaced(tmp_path, monkeypatch):
    with running_slurm(tmp_path / "slurm") as cluster:
        use(cluster, tmp_path / "outputs", monkeypatch)
        left = slurm.submit(1, OUTPUT, [], script(tmp_path, "touch started", "sleep 100"))
        wait_for(Path("started").exists)
        new = slurm.submit(1, OUTPUT, [], script(tmp_path, "true"))
        assert ended(new) == "success"
        assert slurm.status(left) == "failed"


@pytest.mark.timeout(120)
def test_outputs_that_a_node_does_not_share_are_reported(tmp_path, monkeypatch):
    """The node's daemon runs where another file system hides the outputs."""
    hide = 'mount -t tmpfs none "$0" && exec "$@"'
    outputs = tmp_path / "outputs"
    outputs.mkdir()
    unshared = ("unshare", "--mount", "sh", "-c", hide, str(outputs))
    if subprocess.run([*unshared, "true"], capture_output=True).returncode:
        pytest.skip("mount namespaces are missing: this process may not unshare")
    with running_slurm(tmp_path / "slurm", node_prefix=unshared) as cluster:
        use(cluster, outputs, monkeypatch)
        monkeypatch.setattr(slurm, "SEEN_WITHIN_S", 1.0)
        job = slurm.submit(1, OUTPUT, [], script(tmp_path, "true"))
        assert ended(job) == "failed"
        told = json.loads((outputs / "failed" / "serve" / "some_run.json").read_bytes())["reason"]
        assert f"does not share {outputs} with" in told
