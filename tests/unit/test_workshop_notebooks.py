"""The workshop's notebooks: what each must have, and what a student's copy must not."""

import re
from itertools import pairwise

import nbformat
import pytest

from edge_eval_lib.workshop import student_copy
from edge_eval_lib.workshop.copies import SOLUTION
from edge_eval_lib.workshop.run import sources


def is_solution(cell):
    return SOLUTION in cell.metadata.get("tags", [])


@pytest.fixture(params=sources(), ids=lambda path: path.stem)
def notebook(request):
    return nbformat.read(request.param, as_version=4)


def test_a_notebook_begins_with_its_title_and_goals(notebook):
    opening = notebook.cells[0]
    assert opening.cell_type == "markdown"
    assert opening.source.startswith("# ")
    assert "After this notebook you can" in opening.source
    assert len(re.findall(r"^- ", opening.source, re.MULTILINE)) >= 2


def test_each_exercise_has_one_solution_that_asserts(notebook):
    titles = [cell.source for cell in notebook.cells if cell.cell_type == "markdown"]
    titles = re.findall(r"^## (\d+)\. ", "\n".join(titles), re.MULTILINE)
    assert [int(number) for number in titles] == [*range(1, len(titles) + 1)]
    assert 4 <= len(titles) <= 7
    solutions = [cell.source for cell in notebook.cells if is_solution(cell)]
    assert len(solutions) == len(titles)
    for source in solutions:
        assert re.search(r"^assert task_\d\.check\(", source, re.MULTILINE)


def test_prose_stands_before_each_cell_of_code(notebook):
    cells = [cell for cell in notebook.cells if not is_solution(cell)]
    for before, cell in pairwise(cells):
        if cell.cell_type == "code":
            assert before.cell_type == "markdown", cell.source


def test_a_notebook_is_kept_without_outputs(notebook):
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not any(cell.outputs or cell.execution_count for cell in code)


def test_a_students_copy_asks_everything_and_solves_nothing(notebook):
    copy = student_copy(notebook)
    text = "\n".join(cell.source for cell in copy.cells)
    assert "assert " not in text
    assert not any(map(is_solution, copy.cells))
    assert text.count(" = ...  # ") == sum(map(is_solution, notebook.cells))
    for cell in filter(is_solution, notebook.cells):
        assert cell.source not in text
