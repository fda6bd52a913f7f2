"""Three answers of a study: which are chosen, and what stands beside them."""

import numpy as np
import pandas as pd
import pytest

from edge_eval_lib.results import examples
from edge_eval_lib.study import load_study

STUDY = load_study("embedded")
KEY = {"family": "smollm2", "size": "135M", "task": "rag", "method": "lora", "precision": "int4"}


def answers(scores, **changes) -> pd.DataFrame:
    rows = [
        KEY
        | {"repetition": 1, "prompt_id": f"rag-evaluation-{n:03}", "score": score}
        | {"answer": f"answer {n}", "reference": f"gold {n}"}
        | changes
        for n, score in enumerate(scores, start=1)
    ]
    return pd.DataFrame(rows)


def test_best_middle_and_worst_are_three_different_answers():
    rows = examples.three(answers([0.5, 1.0, 0.0, 0.6, 1.0]))
    assert rows["place"].tolist() == ["best", "middle", "worst"]
    assert rows["score"].tolist() == [1.0, 0.6, 0.0]
    assert rows["prompt_id"].iloc[0] == "rag-evaluation-002"  # the first of two alike
    alike = examples.three(answers([0.0, 0.0, 0.0]))
    assert alike["prompt_id"].nunique() == 3


def test_the_base_and_answers_without_a_score_are_not_chosen():
    base = answers([1.0], method="none", precision="fp16")
    rows = examples.three(pd.concat([base, answers([0.5, np.nan, 0.2])], ignore_index=True))
    assert rows["score"].tolist() == [0.5, 0.2]
    assert examples.three(base).empty


def test_they_stand_below_their_questions_and_say_how_they_were_chosen():
    long = answers([1.0, 0.4, 0.0], answer="word " * 100)
    long.loc[2, "answer"] = ""
    lines = str(examples.shown(long, STUDY)).splitlines()
    assert lines[0] == "- **Best, score 1.0** (LoRA INT4)"
    assert lines[1] == "    - question: What was blown away in October?"
    assert lines[2] == "    - gold answer: gold 1"
    assert lines[3].endswith("word …")
    assert len(lines[3]) < examples.CHARACTERS + 20
    assert lines[11] == "    - answer: (empty)"
    assert lines[-1].startswith("Of 3 scored answers")
    assert str(examples.shown(long.assign(score=np.nan), STUDY)) == "No answer was scored."


@pytest.mark.parametrize(
    ("task", "start"), [("summarization", "Notice: "), ("dialogue", "A very large wardrobe.")]
)
def test_other_tasks_show_what_the_user_said_last(task, start):
    shown = examples.shown(answers([1.0], task=task, prompt_id=f"{task}-evaluation-001"), STUDY)
    question = str(shown).splitlines()[1].removeprefix("    - question: ")
    assert question.startswith(start)
    assert not question.endswith(":")


def test_what_a_model_says_is_no_markup():
    shown = str(examples.shown(answers([1.0], answer="<b>*x* | y</b>"), STUDY))
    assert "&lt;b&gt;\\*x\\* \\| y&lt;/b&gt;" in shown


def test_questions_that_lie_on_another_machine_are_said_to():
    elsewhere = STUDY.data.model_copy(update={"source": "/no/such/directory"})
    away = STUDY.model_copy(update={"data": elsewhere})
    assert str(examples.shown(answers([1.0, 0.5]), away)).count("not on this machine") == 2
