"""The workshop's exercises: what they accept, and what they say of what they do not."""

import nbformat.v4 as nb
import numpy as np
import pytest

from edge_eval_lib.workshop import Exercise, Mistake, student_copy

ENERGY = Exercise(
    answer=20.0,
    unit="J",
    hint_text="watts times seconds",
    solution_text="5 W for 4 s",
    mistakes=(Mistake(1.25, "You divided."), Mistake(9.0, "You added.")),
)


@pytest.mark.parametrize("answer", [20, np.int64(20), 20.3, "20", "20 J", "0.02 kJ", "20000mJ"])
def test_a_right_answer_in_any_unit_is_right(answer, capsys):
    assert ENERGY.check(answer)
    assert capsys.readouterr().out == "Right.\n"


@pytest.mark.parametrize("answer", [20.5, 19.5, -20, "20 kJ", float("inf")])
def test_what_is_beyond_the_tolerance_is_wrong(answer):
    assert not ENERGY.check(answer)


def test_each_wrong_answer_gets_a_message_of_its_own(capsys):
    said = []
    for answer in (1.25, 9, 0.02, 100, 2, "20 s", float("nan"), True):
        assert not ENERGY.check(answer)
        said.append(capsys.readouterr().out)
    assert len(set(said)) >= 7
    assert said[0] == "You divided.\n"
    assert "they are kJ" in said[2]
    assert said[3].startswith("Too high")
    assert said[4].startswith("Too low")
    assert "mJ, J, kJ" in said[5]


@pytest.mark.parametrize("answer", [None, ...])
def test_an_unanswered_exercise_prints_its_hint_and_goes_on(answer, capsys):
    assert not ENERGY.check(answer)
    assert capsys.readouterr().out == "Not answered yet. Hint: watts times seconds\n"


def test_words_are_compared_without_case_and_rules_by_their_function(capsys):
    idle = Mistake("gross", "Idle is in.")
    word = Exercise("Net", "idle?", "Idle is subtracted.", mistakes=(idle,))
    assert word.check(" NET ")
    assert not word.check("gross")
    assert "Idle is in." in capsys.readouterr().out
    rule = Exercise(lambda answer: answer > 3, "more", "Any above 3.")
    assert rule.check(4)
    assert not rule.check("four")


def test_a_solution_says_answer_unit_and_reason(capsys):
    ENERGY.solution()
    assert capsys.readouterr().out == "20.0 J: 5 W for 4 s\n"


def test_a_student_copy_lacks_the_solutions_and_leaves_its_source_alone():
    source = nb.new_notebook(
        cells=[
            nb.new_code_cell("mine = ..."),
            nb.new_code_cell("assert task.check(20)", metadata={"tags": ["solution"]}),
            nb.new_code_cell("task.check(mine)", outputs=[nb.new_output("stream", text="x")]),
        ]
    )
    copy = student_copy(source)
    assert [cell.source for cell in copy.cells] == ["mine = ...", "task.check(mine)"]
    assert not any(cell.outputs for cell in copy.cells)
    assert len(source.cells) == 3
