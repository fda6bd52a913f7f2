"""Scores of answers: known values, what must hold for any text, missing answers."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_eval_lib.errors import UserError
from edge_eval_lib.scoring import normalise, score_answers, token_overlap
from edge_eval_lib.tasks import Example

EXTRA_COLUMNS = {
    "rag": {"f1", "exact_match", "precision", "recall"},
    "summarization": {"rouge_l", "precision", "recall"},
    "dialogue": {"similarity", "recall"},
}
SCORE_COLUMNS = {"rag": "f1", "summarization": "rouge_l", "dialogue": "similarity"}

texts = st.text(alphabet="abc the,.!\n", max_size=40)


def example(answer, id="p1", **details):
    return Example(id, [{"role": "user", "content": "?"}], answer, details)


def score_one(task, answer, gold, **details):
    return score_answers(task, [answer], [example(gold, **details)]).iloc[0]


def test_normalisation_follows_squad():
    assert normalise("The Cat, an  old-ish one!") == ["cat", "oldish", "one"]
    assert normalise("theatre and anthem") == ["theatre", "and", "anthem"]


def test_token_f1_of_a_worked_example():
    # 2 of 4 answer tokens are among the 3 of the reference: P = 1/2, R = 2/3, F1 = 4/7
    row = score_one("rag", "It burns birch gas", "birch gas: Log")
    assert row["precision"] == pytest.approx(1 / 2)
    assert row["recall"] == pytest.approx(2 / 3)
    assert row["score"] == row["f1"] == pytest.approx(4 / 7)
    assert row["exact_match"] == 0


def test_repeating_a_gold_token_earns_nothing():
    assert token_overlap("gas gas gas gas", "birch gas")["recall"] == pytest.approx(1 / 2)
    assert token_overlap("gas gas gas gas", "birch gas")["precision"] == pytest.approx(1 / 4)


def test_exact_match_disregards_case_articles_and_punctuation():
    assert score_one("rag", "the salt gate.", "Salt Gate")["exact_match"] == 1
    assert score_one("rag", "gate salt", "Salt Gate")["exact_match"] == 0
    assert score_one("rag", "gate salt", "Salt Gate")["score"] == 1


def test_the_best_of_several_accepted_answers_counts():
    row = score_one("rag", "ten past four", "16:10", answers=["16:10", "ten past four"])
    assert row["score"] == row["exact_match"] == 1
    assert row["reference"] == "16:10"


def test_rouge_l_of_a_worked_example():
    # longest common subsequence "well opens sunday" = 3 of 5 answer and 4 reference words
    row = score_one("summarization", "our well here opens Sunday", "Water: well opens Sunday")
    assert row["precision"] == pytest.approx(3 / 5)
    assert row["recall"] == pytest.approx(3 / 4)
    assert row["score"] == row["rouge_l"] == pytest.approx(2 / 3)


def test_rouge_l_minds_the_order_of_words():
    told = score_one("summarization", "well opens Sunday", "well opens Sunday")["score"]
    shuffled = score_one("summarization", "Sunday opens well", "well opens Sunday")["score"]
    assert told == 1
    assert shuffled == pytest.approx(1 / 3)


def test_similarity_is_higher_for_what_means_the_same():
    gold = "Broken handle. Next: bring the barrow to the bench."
    rows = score_answers(
        "dialogue",
        [
            gold,
            "The handle broke, so take your wheelbarrow to the workbench.",
            "Tulips in June.",
            "",
        ],
        [example(gold, str(n)) for n in range(4)],
    )
    same, paraphrase, other, empty = rows["score"]
    assert same == pytest.approx(1, abs=1e-5)
    assert 1 > paraphrase > other > empty
    assert empty == 0
    assert paraphrase > 0.5
    assert rows["recall"].iloc[0] == 1


def test_similarity_does_not_depend_on_the_other_answers():
    golds = ["The carter brings the stove tomorrow.", "Collect the tent at gate two."]
    answers = ["The stove comes tomorrow.", "A tent, a very long sentence about " + "tents " * 40]
    together = score_answers(
        "dialogue", answers, [example(gold, str(n)) for n, gold in enumerate(golds)]
    )["score"]
    for answer, gold, score in zip(answers, golds, together, strict=True):
        assert score_one("dialogue", answer, gold)["score"] == pytest.approx(score, abs=1e-5)


@pytest.mark.parametrize("task", EXTRA_COLUMNS)
def test_every_prompt_has_its_row_with_the_tasks_columns(task):
    examples = [example("one two", "b"), example("three four", "a")]
    table = score_answers(task, ["one two", "nothing alike"], examples)
    assert list(table["prompt_id"]) == ["b", "a"]
    assert list(table["reference"]) == ["one two", "three four"]
    assert list(table["answer"]) == ["one two", "nothing alike"]
    assert EXTRA_COLUMNS[task] <= set(table.columns)
    assert (table["score"] == table[SCORE_COLUMNS[task]]).all()
    assert list(table["score_reason"]) == ["", ""]
    assert table["score"].iloc[0] > table["score"].iloc[1]


@pytest.mark.parametrize("missing", [None, math.nan])
@pytest.mark.parametrize("task", EXTRA_COLUMNS)
def test_a_missing_answer_has_a_reason_and_no_score(task, missing):
    table = score_answers(task, [missing, "", "gold"], [example("gold", str(n)) for n in range(3)])
    lost, empty, right = (row for _, row in table.iterrows())
    assert math.isnan(lost["score"])
    assert all(math.isnan(lost[column]) for column in EXTRA_COLUMNS[task])
    assert "no answer" in lost["score_reason"]
    assert empty["score"] == 0
    assert empty["score_reason"] == ""
    assert right["score"] == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("task", EXTRA_COLUMNS)
def test_no_answers_give_an_empty_table_with_columns(task):
    table = score_answers(task, [], [])
    assert table.empty
    assert {"prompt_id", "score", "score_reason", *EXTRA_COLUMNS[task]} <= set(table.columns)


def test_an_unknown_task_and_unequal_lengths_are_refused():
    with pytest.raises(UserError, match="poetry"):
        score_answers("poetry", [], [])
    with pytest.raises(ValueError, match="answers has 1 items, examples has 0"):
        score_answers("rag", ["x"], [])


@given(answer=texts, gold=texts)
def test_scores_stay_between_0_and_1(answer, gold):
    for task in ("rag", "summarization"):
        row = score_one(task, answer, gold)
        assert all(0 <= row[column] <= 1 for column in {"score", *EXTRA_COLUMNS[task]})


@given(answer=texts, gold=texts)
def test_token_f1_lies_between_precision_and_recall_and_is_symmetric(answer, gold):
    figures = token_overlap(answer, gold)
    low, high = sorted((figures["precision"], figures["recall"]))
    assert low - 1e-12 <= figures["f1"] <= high + 1e-12
    assert figures["f1"] == pytest.approx(token_overlap(gold, answer)["f1"])
    assert figures["exact_match"] <= figures["f1"]


@given(gold=texts.filter(lambda text: normalise(text)), addition=texts)
def test_adding_words_never_lowers_recall_nor_raises_it_above_the_gold(gold, addition):
    assert token_overlap(f"{gold} {addition}", gold)["recall"] == 1
