"""What end-to-end tests share: finished grids, and the project's notebooks without the paper's."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import nbformat
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


TABLES = """
from edge_eval_lib.results import observations, tables
from edge_eval_lib.runs import synthesis

made = synthesis.begin(study)
results = made.results
_, prices = observations.prices_of(results.study)
variants = tables.variants_table(results.headline, results.answers, prices)
for name, table in {"variants": variants, "checks": results.checks}.items():
    tables.write_table(table, made.outputs / "tables" / f"{name}.csv")
made.finish()
"""


@pytest.fixture(scope="module")
def _tables_alone(_without_the_paper: None, tmp_path_factory: pytest.TempPathFactory):
    """A synthesis that writes two tables and draws nothing, for tests of when it is made: pictures
    take a sixth of a minute. That its table of variants is notebook 05's, test_synthesis.py holds.
    """
    directory = tmp_path_factory.mktemp("tables_alone")
    for file in Path(os.environ["EDGE_EVAL_NOTEBOOKS"]).iterdir():
        if file.name != NOTEBOOKS["synthesis"]:
            (directory / file.name).symlink_to(file)
    cell = nbformat.v4.new_code_cell
    parameters = cell("study = None", metadata={"tags": ["parameters"]})
    notebook = nbformat.v4.new_notebook(cells=[parameters, cell(TABLES.strip())])
    python = {"name": "python3", "display_name": "Python 3", "language": "python"}
    notebook.metadata["kernelspec"] = python
    nbformat.write(notebook, directory / NOTEBOOKS["synthesis"])
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
