"""What unit tests share."""

import shutil
from pathlib import Path

import pytest
from finished import everything, make, study_below, undone

from edge_eval_lib.study import Study


@pytest.fixture(scope="session")
def _finished_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        study = study_below(root, patch)
        for key in everything(study):
            make(study, key)
    return root


@pytest.fixture
def finished_study(_finished_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Study:
    """The tiny study with all of its runs done."""
    study = study_below(tmp_path, monkeypatch)
    shutil.copytree(_finished_root / "outputs", tmp_path / "outputs")
    assert undone(study) == {}
    return study
