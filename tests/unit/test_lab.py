"""The lab: a folder for each run by hand, and the newest of them."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from edge_eval_lib import scraps
from edge_eval_lib.artefacts import lab
from edge_eval_lib.errors import UserError
from edge_eval_lib.runs import notebook
from edge_eval_lib.study import Variant, load_study

NAME = "smollm2-135M_rag_lora"


@pytest.fixture(autouse=True)
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("EDGE_EVAL_OUTPUTS", str(tmp_path))
    monkeypatch.delenv("EDGE_EVAL_RUN", raising=False)
    monkeypatch.delenv("EDGE_EVAL_RUN_DIRECTORY", raising=False)
    return load_study("embedded")


def ran(study, stage: str, when: int, **recorded: object) -> lab.Place:
    """A run by hand that wrote its artefacts and recorded something."""
    run = study.run(stage, NAME)
    for artefact in run.artefacts:
        (lab.running_folder() / artefact).mkdir(parents=True)
    scraps_of_run = {"stage": stage, "run": NAME, scraps.RUN_COMPLETE: True, "nothing": None}
    at = lab.publish(study, run, scraps_of_run | recorded)
    os.utime(at.notebook, ns=(when, when))
    return at


def test_what_was_executed_makes_the_folder(study, tmp_path: Path):
    first = ran(study, "adapt", 1, executed_training={"lora_rank": 8}, adapt_s=3.0)
    again = ran(study, "adapt", 2, executed_training={"lora_rank": 8}, adapt_s=4.0)
    other = ran(study, "adapt", 3, executed_training={"lora_rank": 32}, adapt_s=5.0)
    assert first.directory == again.directory != other.directory
    assert first.directory.name.startswith(f"{NAME}-")
    assert [at.directory for at in lab.lab_runs("adapt", NAME)] == [
        other.directory,
        again.directory,
    ]
    table = scraps.collect(tmp_path / "lab")
    assert sorted(table["adapt_s"]) == [4.0, 5.0]
    assert table["nothing"].isna().all()
    assert load_study(other.directory / "study.yaml").models == study.models
    assert list((tmp_path / "lab").glob(".*")) == []


def test_where_a_run_is_kept_is_among_the_outputs_that_jupyterlab_shows(study, monkeypatch, capsys):
    displayed = []
    monkeypatch.setattr("IPython.display.display", lambda output, raw: displayed.append(output))
    monkeypatch.setattr(scraps, "recorded", {"stage": "adapt", "run": NAME})
    run = notebook.Stage(study, study.run("adapt", NAME), study.models[0])
    run.raw.mkdir(parents=True, exist_ok=True)
    values = {f"value_{number}": number for number in range(60)}
    run.record(SimpleNamespace(as_scraps=lambda: values))
    assert len(displayed) < 50  # of a cell's outputs, JupyterLab hides further ones
    assert "kept in " in capsys.readouterr().out
    (at,) = lab.lab_runs("adapt", NAME)
    assert values.items() <= scraps.read_scraps(at.notebook).items()


def test_the_newest_adapter_is_used_and_weights_must_be_made_of_it(study, capsys):
    run = notebook.Stage(study, study.run("compress", NAME), study.models[0])
    serve = notebook.Stage(study, study.run("serve", f"{NAME}_int8_r01"), study.models[0])
    variant = Variant("smollm2", "135M", "rag", "lora", "int8")
    ran(study, "adapt", 1, executed_training={"lora_rank": 8})
    newest = ran(study, "adapt", 2, executed_training={"lora_rank": 32})
    assert run.adapter() == newest.directory / "artefacts" / "adapters" / NAME
    assert str(newest.directory) in capsys.readouterr().out
    with pytest.raises(UserError, match="run notebook 02 with it first"):
        serve.weights(variant)
    compressed = ran(study, "compress", 3)
    assert serve.weights(variant) == compressed.directory / "artefacts" / "models" / str(variant)


def test_without_a_lab_a_new_model_says_what_to_run_first(study, tmp_path: Path, monkeypatch):
    other = study.model_copy(update={"name": "embedded-other"})
    other._path = study.path
    run = notebook.Stage(other, study.run("compress", NAME), study.models[0])
    with pytest.raises(UserError, match=r"was not adapted yet, .*: run notebook 01"):
        run.adapter()


def test_what_a_run_left_that_never_ended_is_removed(tmp_path: Path):
    for process in (os.getpid(), 2**30):
        (tmp_path / "lab" / f".running-{process}").mkdir(parents=True)
    (tmp_path / "lab" / ".running-1").mkdir()
    lab.remove_abandoned()
    assert [path.name for path in (tmp_path / "lab").iterdir()] == [".running-1"]
