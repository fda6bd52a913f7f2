"""What end-to-end tests share: finished grids, and the project's notebooks without the paper's."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from grids import Grid, write_notebooks

from edge_eval_lib.paths import project_root
from edge_eval_lib.study import NOTEBOOKS


@pytest.fixture(scope="module", autouse=True)
def _without_the_paper(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The project's notebooks but the paper's, which needs no study, and takes a third of a minute
    in each new directory of outputs."""
    directory = tmp_path_factory.mktemp("notebooks")
    for file in (project_root() / "notebooks").glob("*.ipynb"):
        if file.name != NOTEBOOKS["paper"]:
            (directory / file.name).symlink_to(file)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGE_EVAL_NOTEBOOKS", str(directory))
        yield


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Grid:
    """A grid that was run to its end; tests work on copies."""
    grid = Grid(tmp_path_factory.mktemp("finished"))
    write_notebooks(grid.directory / "notebooks")
    grid.write_study()
    grid.misbehave()
    done = grid.all()
    assert done.returncode == 0, done.stdout + done.stderr
    return grid


@pytest.fixture
def grid(finished: Grid, tmp_path: Path) -> Iterator[Grid]:
    """A finished grid of the test's own; whatever it started is ended after the test."""
    directory = tmp_path / "grid"
    shutil.copytree(finished.directory, directory, copy_function=shutil.copyfile)  # other dates
    copy = Grid(directory)
    (copy.outputs / "study.json").unlink()  # it names the original's study file
    yield copy
    for process in copy.processes():
        process.kill()
