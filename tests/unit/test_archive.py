"""A packed study goes on elsewhere: what came is done, and what was left out is not missed."""

import os
import shutil
import zipfile

import pytest
from finished import ADAPTER

from edge_eval_lib.artefacts.place import place
from edge_eval_lib.errors import UserError
from edge_eval_lib.runs import archive
from edge_eval_lib.runs.finished import finished_runs


@pytest.fixture
def study(finished_study):
    return finished_study


def move_on(study, tmp_path, monkeypatch):
    monkeypatch.setenv("EDGE_EVAL_OUTPUTS", str(tmp_path / "elsewhere"))
    assert not finished_runs(study, study.runs())


def test_nothing_that_was_done_is_done_again(study, tmp_path, monkeypatch):
    packed = archive.pack(study, tmp_path / "outputs.zip")
    move_on(study, tmp_path, monkeypatch)
    assert archive.unpack(study, packed) == len(study.runs())
    assert len(finished_runs(study, study.runs())) == len(study.runs())


def test_it_does_not_matter_that_somebody_else_unpacked_it(study, tmp_path, monkeypatch):
    """As notebook services do with what is uploaded: every time of a file is lost."""
    packed = archive.pack(study, tmp_path / "outputs.zip")
    with zipfile.ZipFile(packed) as file:
        file.extractall(tmp_path / "input" / "dataset")
    # The worst order: what is needed looks newer than what needed it.
    for number, run in enumerate(reversed(study.runs())):
        settings = tmp_path / "input/dataset" / study.name / f"settings/{run.stage}/{run.name}.json"
        os.utime(settings, (2e9 + number, 2e9 + number))
    move_on(study, tmp_path, monkeypatch)
    archive.unpack(study, tmp_path / "input")
    assert len(finished_runs(study, study.runs())) == len(study.runs())


def test_a_run_that_was_not_finished_is_still_left(study, tmp_path, monkeypatch):
    last = next(run for run in study.runs() if run.stage == "serve")
    place(study, last.stage, last.name).notebook.unlink()
    packed = archive.pack(study, tmp_path / "outputs.zip")
    move_on(study, tmp_path, monkeypatch)
    assert archive.unpack(study, packed) == len(study.runs()) - 2  # its score is out of date, too
    assert (last.stage, last.name) not in finished_runs(study, study.runs())


def test_weights_stay_and_adapters_go(study, tmp_path):
    with zipfile.ZipFile(archive.pack(study, tmp_path / "outputs.zip")) as file:
        names = file.namelist()
    assert any(f"artefacts/adapters/{ADAPTER}/" in name for name in names)
    assert not any("artefacts/models" in name for name in names)
    assert all(name.startswith(f"{study.name}/") for name in names)


def test_packing_that_fails_leaves_the_last_file(study, tmp_path, monkeypatch):
    packed = archive.pack(study, tmp_path / "outputs.zip")
    before = packed.read_bytes()

    def full(*_arguments, **_options):
        raise OSError("No space left on device")

    monkeypatch.setattr(zipfile.ZipFile, "write", full)
    with pytest.raises(OSError, match="No space left"):
        archive.pack(study, packed)
    assert packed.read_bytes() == before
    assert not list(tmp_path.glob(".outputs.zip*"))


def test_what_cannot_be_taken_over_is_reported(study, tmp_path, monkeypatch):
    packed = archive.pack(study, tmp_path / "outputs.zip")
    with pytest.raises(UserError, match="holds runs already"):
        archive.unpack(study, packed)
    shutil.rmtree(study.directory)
    with pytest.raises(UserError, match="holds no run yet"):
        archive.pack(study, packed)
    (tmp_path / "no.zip").write_bytes(b"no zip")
    with pytest.raises(UserError, match=r"no\.zip cannot be unpacked"):
        archive.unpack(study, tmp_path / "no.zip")
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as file:
        file.writestr("other/runs/serve/x.ipynb", "{}")
    with pytest.raises(UserError, match="no runs of the study tiny"):
        archive.unpack(study, tmp_path / "other.zip")
