"""The workshop's notebooks: what each must have, and what its exercises say."""

import re

import nbformat
import pandas as pd
import pytest

from edge_eval_lib import paper
from edge_eval_lib.workshop import misleading, student_copy
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


@pytest.fixture(scope="module")
def study():
    return paper.build()


@pytest.fixture(scope="module")
def variant(study):
    prices = ["api_usd_per_request", "local_usd_per_request"]
    table = study.variants.assign(**paper.table(study, "break_even")[prices])
    return table[table["precision"] == "int4"].iloc[0]


@pytest.fixture(scope="module")
def claims(study):
    claims = paper.table(study, "claims").set_index("claim_id")
    named = ["density_17x", "fidelity_97", "fidelity_rag_summ", "cold_start_100_large"]
    return claims.loc[named].assign(letter=list("abcd"))


EXERCISES = {
    "ipw": lambda row, claims: misleading.ipw(row),
    "statistic": lambda row, claims: misleading.statistic(pd.Series([1.0, 2.0, 6.0]), 6.0),
    "pays_back": lambda row, claims: misleading.pays_back(row, 512.0),
    "net_energy": lambda row, claims: misleading.net_energy(row, 28.0),
    "requests_in_flight": lambda row, claims: misleading.requests_in_flight(row),
    "cold_start_of_one": lambda row, claims: misleading.cold_start_of_one(row),
    "does_not_follow": lambda row, claims: misleading.does_not_follow(claims),
}


@pytest.mark.parametrize("name", EXERCISES)
def test_three_wrong_answers_get_three_messages(name, variant, claims, capsys):
    exercise = EXERCISES[name](variant, claims)
    assert exercise.check(exercise.answer)
    capsys.readouterr()
    said = set()
    for mistake in exercise.mistakes:
        assert not exercise.check(mistake.answer)
        said.add(capsys.readouterr().out)
    assert len(said) == len(exercise.mistakes) >= 3
    assert not any("Hint" in text for text in said)
    assert not exercise.check(...)
    assert "Hint: " in capsys.readouterr().out


def test_answers_are_those_of_the_table(variant, claims):
    assert misleading.ipw(variant).answer == pytest.approx(variant["ipw"])
    assert misleading.requests_in_flight(variant).answer == pytest.approx(35.16, abs=0.01)
    assert misleading.cold_start_of_one(variant).answer < variant["c_tax"] / 30
    assert misleading.pays_back(variant, 0.0).answer == 0
    assert misleading.net_energy(variant, 0.0).answer == variant["energy_per_request_j"]
    assert misleading.does_not_follow(claims).answer == "c"
