import math

import finished
import nbformat
import numpy as np
import papermill
import pytest
import scrapbook

from edge_eval_lib import scraps


def execute(tmp_path, *cells):
    """Execute a notebook of these cells in a kernel; where it lies."""
    notebook = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell(source) for source in cells],
        metadata={"kernelspec": {"name": "python3", "display_name": "Python 3"}},
    )
    source = tmp_path / "source.ipynb"
    nbformat.write(notebook, source)
    path = tmp_path / "runs" / "run.ipynb"
    path.parent.mkdir()
    papermill.execute_notebook(str(source), str(path), progress_bar=False)
    return path


VALUES = {
    "text": "12",
    "none": None,
    "flag": False,
    "integer": np.int64(3),
    "number": np.float32(0.5),
    "nested": {"a": [1, 2.5, None], "b": {"c": "x"}},
}


def test_every_kind_of_value_comes_back_as_it_went_in(tmp_path):
    path = execute(
        tmp_path,
        "import numpy as np\nfrom edge_eval_lib.scraps import complete, record_all",
        f"record_all({VALUES!r})",
        "complete()",
    )
    expected = VALUES | {"integer": 3, "number": 0.5, "run_complete": True}
    assert scraps.read_scraps(path) == expected
    assert scrapbook.read_notebook(str(path)).scraps["nested"].data == VALUES["nested"]
    table = scraps.collect(tmp_path / "runs")
    assert table["integer"].tolist() == [3]
    assert table["notebook"].tolist() == [str(path)]


def test_a_name_recorded_in_two_cells_is_refused(tmp_path):
    path = tmp_path / "run.ipynb"
    path.write_bytes(finished.executed(("a", 1), ("a", 2), (scraps.RUN_COMPLETE, True)))
    with pytest.raises(ValueError, match="'a' twice"):
        scraps.read_scraps(path)
    assert not scraps.is_complete(path)


def test_unfinished_and_broken_notebooks_are_named_and_are_no_runs(tmp_path):
    unfinished = tmp_path / "runs" / "unfinished.ipynb"
    unfinished.parent.mkdir()
    unfinished.write_bytes(finished.executed(("a", 1)))
    broken = tmp_path / "runs" / "broken.ipynb"
    broken.write_text('{"cells": [')
    table = scraps.collect(tmp_path / "runs")
    assert table.empty
    assert table.attrs["unreadable"] == sorted([str(broken), str(unfinished)])


@pytest.mark.parametrize(
    "value", [math.nan, math.inf, np.float64("nan"), {"a": [math.nan]}, (1, 2), {1: 2}, object()]
)
def test_values_that_would_be_lost_are_refused(value):
    with pytest.raises(ValueError, match="'energy_j"):
        scraps.record("energy_j", value)
