"""One run: its places, its lock, its reasons. (Executing one: tests/end_to_end.)"""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from edge_eval_lib.artefacts import completion
from edge_eval_lib.artefacts.place import (
    Place,
    place,
    read_failure,
    write_atomically,
)
from edge_eval_lib.errors import UserError
from edge_eval_lib.paths import user_directory
from edge_eval_lib.runs import catalogue, devices, kernel, measured, notebook, runner
from edge_eval_lib.runs.progress import Progress
from edge_eval_lib.study import Study, load_study


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Study:
    monkeypatch.setenv("EDGE_EVAL_OUTPUTS", str(tmp_path / "outputs"))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.delenv("EDGE_EVAL_RUN", raising=False)
    monkeypatch.delenv("EDGE_EVAL_RUN_DIRECTORY", raising=False)
    return load_study("embedded")


def test_published_and_running_files_never_share_a_directory(study: Study):
    at = place(study, "serve", "x_r01")
    assert at.notebook == study.directory / "runs" / "serve" / "x_r01.ipynb"
    assert not at.running.is_relative_to(study.directory / "runs")
    assert place(study, "paper", "paper").directory == study.directory.parent / "paper"


def test_raw_data_go_where_the_run_says_else_to_the_lab(
    study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    run = notebook.Stage(study, study.runs()[1], study.models[0])
    assert run.raw.is_relative_to(study.directory.parent / "lab")
    monkeypatch.setenv("EDGE_EVAL_RUN_DIRECTORY", str(tmp_path / "raw"))
    assert run.raw == tmp_path / "raw"
    assert (tmp_path / "raw").is_dir()


def test_a_run_inside_the_grid_starts_no_other(study: Study, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("EDGE_EVAL_RUN", "serve/x")
    with pytest.raises(UserError, match="The adapt run smollm2-135M_rag_lora is not finished"):
        runner.require(study, "adapt", "smollm2-135M_rag_lora")


def test_publishing_replaces_a_run_and_its_raw_data_together(study: Study):
    run = study.run("adapt", "smollm2-135M_rag_lora")
    at = place(study, run.stage, run.name)
    for raw, text in (("losses.parquet", "first"), ("steps.parquet", "second")):
        (at.running / "raw").mkdir(parents=True)
        (at.running / "raw" / raw).write_text(text)
        (at.running / "notebook.ipynb").write_text(text)
        runner._publish(at, run, study)
        assert at.notebook.read_text() == text
        assert [path.name for path in at.notebook.parent.glob("*.parquet")] == [f"{run.name}.{raw}"]
        record = completion.read(at)
        assert record["settings"] == run.settings
        assert set(record["products"]) == {
            f"runs/adapt/{run.name}.ipynb",
            f"runs/adapt/{run.name}.{raw}",
        }
        assert completion.survey(study, [run]) == {}
        assert not at.running.exists()


def test_a_failure_is_kept_with_its_notebook_until_the_run_succeeds(study: Study):
    run = study.run("adapt", "smollm2-135M_rag_lora")
    at = place(study, run.stage, run.name)
    assert read_failure(at) is None
    (at.running / "raw").mkdir(parents=True)
    (at.running / "notebook.ipynb").write_text("half")
    runner._keep_failure(at, run, "It broke.", 1.5)
    assert read_failure(at)["reason"] == "It broke."
    assert at.failed_notebook.read_text() == "half"
    assert not at.notebook.exists()
    assert not at.running.exists()
    (at.running / "raw").mkdir(parents=True)
    (at.running / "notebook.ipynb").write_text("whole")
    runner._publish(at, run, study)
    assert read_failure(at) is None
    assert not at.failed_notebook.exists()


def test_the_report_s_settings_follow_the_study_and_its_prices(study: Study):
    again = catalogue.find_run(load_study("embedded"), "synthesis", "synthesis")
    assert catalogue.find_run(study, "synthesis", "synthesis").settings_hash == again.settings_hash
    other = study.model_copy(update={"prices": "paper"})
    other._path = study.path
    changed = catalogue.find_run(other, "synthesis", "synthesis")
    assert changed.settings_hash != again.settings_hash


@pytest.mark.parametrize(
    ("name", "message", "sentence"),
    [
        ("UserError", "Lower training.learning_rate.", "Lower training.learning_rate."),
        ("ValueError", "one\n  two", "ValueError: one two"),
        ("MemoryError", "", "MemoryError"),
    ],
)
def test_a_reason_is_one_line(name: str, message: str, sentence: str):
    assert kernel.sentence(name, message) == sentence


def test_a_long_reason_is_cut():
    assert len(kernel.sentence("ValueError", "x" * 10_000)) == kernel.LONGEST_REASON


def test_a_lock_excludes_other_processes_and_ends_with_its_own(study: Study):
    take = (
        "import sys; from edge_eval_lib.runs.devices import lock_file, try_lock;"
        "lock = try_lock(lock_file('machine'), 'me'); print(lock is not None, flush=True);"
        "sys.stdin.read()"
    )
    command = [sys.executable, "-c", take]
    first = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=os.environ, text=True
    )
    assert first.stdout.readline() == "True\n"
    machine = devices.lock_file("machine")
    assert devices.try_lock(machine, "another") is None
    assert devices.owner_of(machine) == "me"
    first.kill()
    first.wait()
    assert devices.try_lock(machine, "another") is not None


def test_locks_lie_in_a_directory_of_the_user_alone(study: Study, tmp_path: Path):
    directory = user_directory()
    assert directory.parent == tmp_path
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700


def test_a_reader_never_sees_half_a_file(tmp_path: Path):
    write_atomically(tmp_path / "a.json", {"a": 1})
    write_atomically(tmp_path / "a.json", {"a": 2})
    assert json.loads((tmp_path / "a.json").read_text()) == {"a": 2}
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def published(at: Place, **recorded) -> Place:
    cells = [
        {
            "outputs": [
                {"data": {"application/scrapbook.scrap.json+json": {"name": name, "data": value}}}
                for name, value in recorded.items()
            ]
        }
    ]
    at.notebook.parent.mkdir(parents=True, exist_ok=True)
    at.notebook.write_text(json.dumps({"cells": cells}))
    return at


def check(verdict: str, detail: str = "other work took 31% of its 2 cores") -> list[dict]:
    return [
        {"name": "interference", "verdict": verdict, "detail": detail},
        {"name": "resolution", "verdict": "invalid", "detail": "too short"},
    ]


def test_a_run_that_other_work_disturbed_is_reported_in_a_line(
    study: Study, capsys: pytest.CaptureFixture[str]
):
    at = place(study, "serve", "x_r01")
    assert measured.disturbance({"load_checks": check("ok")}) is None
    windows = [
        {"window": "serve at 1", "checks": check("warning", "other work took 9% of its 2 cores")},
        {"window": "serve at 8", "checks": check("invalid")},
        {"window": "serve at 4", "checks": check("not applicable", "too short")},
    ]
    recorded = {"load_checks": None, "serving_windows": windows}
    told = measured.disturbance(recorded)
    assert told == "other work took 31% of its 2 cores in 'serve at 8', and one more window"
    published(at, **recorded)
    with Progress(study) as shown:
        shown.under_way["serve", "x_r01"] = 0.0
        shown.begun.append(("serve", "x_r01"))
        shown.end(("serve", "x_r01"))
    assert capsys.readouterr().out.splitlines()[-1] == f"serve  x_r01: disturbed: {told}"
