"""Arms of an experiment: which grid they make, and what a correct answer takes."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from edge_eval_lib import metrics, tasks
from edge_eval_lib.errors import UserError
from edge_eval_lib.results import arms, arms_shown
from edge_eval_lib.results.columns import VARIANT
from edge_eval_lib.study import load_study

STUDY = load_study("rag_or_finetuning")
TAUGHT = ("smollm2", "135M", "closedbook", "lora", "fp16")
READING = ("smollm2", "135M", "openbook", "none", "fp16")


def answers(correct: dict[tuple, list[float]], ids=None) -> pd.DataFrame:
    """A scored row an arm and prompt, of a content of 0 or 1."""
    rows = [
        dict(zip(VARIANT, arm, strict=True))
        | {"repetition": 1, "prompt_id": f"q{i}", "content": content, "score": content / 2}
        for arm, contents in correct.items()
        for i, content in enumerate(contents)
    ]
    return pd.DataFrame(rows)


# --- the grid ---------------------------------------------------------------------------------


def test_an_adapter_answers_every_task_that_names_its_own():
    runs = STUDY.runs()
    assert [r.name for r in runs if r.stage == "adapt"] == ["smollm2-135M_closedbook_lora"]
    (compress,) = [r for r in runs if r.stage == "compress"]
    assert compress.precisions == ("fp16",)
    serves = {r.name: r for r in runs if r.stage == "serve"}
    assert len(serves) == 4
    read = serves["smollm2-135M_openbook_lora_fp16_r01"]
    assert read.needs == (("compress", "smollm2-135M_closedbook_lora"),)
    assert read.settings["asks"]["task"] == "openbook"
    assert read.settings["task"] == "closedbook"
    asked = {name: run.settings_hash for name, run in serves.items()}
    assert len(set(asked.values())) == 4
    variants = {str(v): v for v in STUDY.variants()}
    same = {variants[f"smollm2-135M_{task}_lora_fp16"].weights for task in STUDY.tasks}
    assert same == {"smollm2-135M_closedbook_lora_fp16"}


def test_a_configuration_may_be_of_some_tasks_alone():
    some = [{"method": "lora", "precision": "int4", "tasks": ["openbook"]}]
    study = STUDY.changed(configurations=some, unadapted_base=False)
    assert [str(v) for v in study.served_variants()] == ["smollm2-135M_openbook_lora_int4"]


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"correct_from": {"rag": 0.5}}, "correct_from names rag, which is not among"),
        ({"correct_from": {"openbook": 1.5}}, "correct_from"),
        (
            {"configurations": [{"method": "lora", "precision": "fp16", "tasks": ["rag"]}]},
            "configurations lora/fp16 tasks names rag",
        ),
    ],
)
def test_a_part_names_tasks_of_the_study(changed, said):
    with pytest.raises(UserError, match=said):
        STUDY.changed(**changed)


# --- the corpus -------------------------------------------------------------------------------


def test_every_fact_is_taught_and_asked_in_wordings_of_its_own():
    data = tasks.load_task("closedbook")
    taught, asked = (
        {e.messages[-1]["content"] for e in part} for part in (data.train, data.evaluation)
    )
    assert not taught & asked
    facts = {(e.details["gold_passage_id"], e.answer) for e in data.train}
    assert 24 <= len(facts) <= 48
    assert facts == {
        (e.details["gold_passage_id"], e.answer) for e in data.evaluation[: len(facts)]
    }


def test_both_ways_ask_the_same_questions_and_notes_hold_the_answer():
    closed, opened = (tasks.load_task(name) for name in ("closedbook", "openbook"))
    assert [e.id for e in closed.evaluation] == [e.id for e in opened.evaluation]
    assert opened.details["recall_at_2"] > 0.95
    for own, other in zip(closed.evaluation, opened.evaluation, strict=True):
        assert own.messages[-1]["content"] in other.messages[-1]["content"]
        assert own.answer.lower() in " ".join(other.details["shown"]).lower()
        assert own.answer.lower() not in own.messages[-1]["content"].lower()


@pytest.mark.parametrize(
    ("answer", "states"),
    [
        ("Ines Tarl", 1.0),
        ("The Halcyon is commanded by Ines Tarl.", 1.0),
        ("Ines Tarl, and it carries copper bells", 0.0),  # both facts are no answer
        ("copper bells", 0.0),
        ("Ines", 0.0),
        ("", 0.0),
    ],
)
def test_an_answer_states_the_fact_that_was_asked_for(answer, states):
    data = tasks.load_task("closedbook")
    (asked, *_) = [e for e in data.evaluation if e.answer == "Ines Tarl"]
    (figures,) = tasks.find("closedbook").score([answer], [asked])
    assert figures["states"] == states


# --- correct answers --------------------------------------------------------------------------


def test_correct_answers_of_two_tasks_stand_side_by_side():
    table = arms.correct_answers(
        answers({TAUGHT: [1, 0, 1], READING: [0, 0, 1]}), {"closedbook": 1.0, "openbook": 1.0}
    )
    assert table[TAUGHT].tolist() == [1, 0, 1]
    assert table[READING].tolist() == [0, 0, 1]
    with pytest.raises(UserError, match="correct_from says nothing of openbook"):
        arms.correct_answers(answers({READING: [1]}), {"closedbook": 1.0})


def test_an_unscored_answer_is_neither_right_nor_wrong():
    table = arms.correct_answers(answers({TAUGHT: [1, np.nan]}), {"closedbook": 0.5})
    assert np.isnan(table[TAUGHT]["q1"])


@pytest.mark.parametrize(
    ("correct", "low", "high"), [(0, 0.0, 0.2775), (7, 0.3968, 0.8922), (10, 0.7225, 1.0)]
)
def test_the_share_has_wilsons_interval(correct, low, high):
    assert arms.share_interval(correct, 10) == pytest.approx((correct / 10, low, high), abs=1e-4)


# --- the crossover ----------------------------------------------------------------------------


def test_the_crossover_is_a_break_even_of_correct_answers():
    own, other = [1] * 80 + [0] * 20, [1] * 60 + [0] * 40
    paid, low, high = arms.crossover(1000.0, 2.0, 6.0, own, other)
    assert paid == pytest.approx(metrics.break_even(1000.0, 0.0, 6.0 / 0.6, 2.0 / 0.8))
    assert low < paid < high


def test_a_dearer_arm_never_pays_and_more_to_pay_takes_longer():
    own, other = [1] * 50 + [0] * 50, [1] * 50 + [0] * 50
    assert arms.crossover(1000.0, 6.0, 2.0, own, other)[0] == np.inf
    once, twice = (arms.crossover(fixed, 2.0, 6.0, own, other)[0] for fixed in (500.0, 1000.0))
    assert twice == pytest.approx(2 * once)


def test_an_arm_that_is_never_right_never_pays():
    assert arms.crossover(10.0, 1.0, 2.0, [0] * 20, [1] * 20)[0] == np.inf


def test_against_an_arm_that_is_never_right_any_other_has_paid_at_once():
    paid, _, high = arms.crossover(10.0, 1.0, 2.0, [1] * 20, [0] * 20)
    assert paid < 1
    assert high < 1


# --- sentences --------------------------------------------------------------------------------


def compared(difference: float, low: float, high: float) -> pd.DataFrame:
    row = dict(zip(VARIANT, TAUGHT, strict=True)) | {"prompts": 64, "difference": difference}
    return pd.DataFrame([row | {"difference_lo": low, "difference_hi": high}])


@pytest.mark.parametrize(
    ("figures", "said"),
    [
        ((0.4, 0.2, 0.6), "more than the base: +40 points [+20, +60]"),
        ((-0.4, -0.6, -0.2), "fewer than the base: -40 points [-60, -20]"),
        ((0.1, -0.1, 0.3), "not told apart from the base: +10 points [-10, +30]"),
    ],
)
def test_a_difference_is_said_with_its_interval(figures, said):
    assert said in arms_shown.difference(compared(*figures), TAUGHT, "the base")


def test_never_is_said_as_such():
    row = {"currency": "J", "answers": np.inf, "answers_lo": np.inf, "answers_hi": np.inf}
    (text,) = arms_shown.paid(pd.DataFrame([row]), TAUGHT, "the base")
    assert text == "In J, closedbook, LoRA FP16 never pays against the base."
    row |= {"answers": 100.0, "answers_lo": 50.0}
    (text,) = arms_shown.paid(pd.DataFrame([row]), TAUGHT, "the base")
    assert "after 100 correct answers [50, never]" in text


def test_pictures_of_arms_say_each_ones_share_and_energy():
    rows = pd.DataFrame(
        [
            dict(zip(VARIANT, TAUGHT, strict=True))
            | {"correct_share": 0.5, "energy_per_correct_j": 4.0},
            dict(zip(VARIANT, (*TAUGHT[:3], "none", "fp16"), strict=True))
            | {"correct_share": 0.0, "energy_per_correct_j": np.nan},
        ]
    )
    said = arms_shown.bars_words(rows)
    assert "LoRA FP16: 50 % correct, 4 J each" in said
    assert said.endswith("base FP16: 0 % correct.")


def test_a_curve_is_said_at_some_scores_the_best_arm_first():
    rows = [
        dict(zip(VARIANT, (*TAUGHT[:4], precision), strict=True))
        | {"correct_from": score, "correct_share": share}
        for precision, shares in (("fp16", (0.6, 0.5, 0.1)), ("int4", (0.7, 0.4, 0.1)))
        for score, share in zip((0.5, 0.8, 1.0), shares, strict=True)
    ]
    said = arms_shown.curve_words(pd.DataFrame(rows))
    first, second, _ = said.split("; ")
    assert first.index("INT4 70 %") < first.index("FP16 60 %")
    assert second.index("FP16 50 %") < second.index("INT4 40 %")


def test_bars_and_lines_are_drawn_of_arms_that_answered():
    rows = pd.DataFrame(
        [
            dict(zip(VARIANT, arm, strict=True))
            | {"correct_share": share, "correct_share_lo": 0.0, "correct_share_hi": 0.9}
            | {"energy_per_correct_j": joules, "energy_per_correct_j_lo": 1.0}
            | {"energy_per_correct_j_hi": np.inf, "adapt_energy_j": 100.0}
            | {"compress_energy_j": np.nan}
            for arm, share, joules in ((TAUGHT, 0.5, 4.0), (READING, 0.0, np.nan))
        ]
    )
    _, (left, right) = plt.subplots(1, 2)
    arms_shown.draw_bars(left, rows, "energy_per_correct_j", "energy [J]")
    assert [text.get_text() for text in left.texts] == ["no correct answer"]
    assert len(left.patches) == 1
    legend = arms_shown.draw_crossover(right, rows, TAUGHT, READING)
    assert list(legend) == ["closedbook, LoRA FP16"]
    assert right.get_xlabel().endswith("[log]")
    plt.close("all")
