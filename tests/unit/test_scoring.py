"""Scores of answers: known values, what must hold for any text, missing answers."""

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_eval_lib.errors import UserError
from edge_eval_lib.lifecycle import score as scoring
from edge_eval_lib.lifecycle.data import task_examples
from edge_eval_lib.lifecycle.score import score_answers
from edge_eval_lib.study import load_study
from edge_eval_lib.tasks import PUBLISHED as TASKS
from edge_eval_lib.tasks import Example, Rule, dialogue, find, load_task, rag
from edge_eval_lib.tasks.base import normalise, token_overlap

FORM_COLUMNS = {"fact_f1", "fact_exact_match", "topic", "next_step"}  # missing without a house form
SCORE_COLUMNS = {"rag": "f1", "summarization": "rouge_l", "dialogue": "similarity"}
EXTRA_COLUMNS = {task: {*find(task).figures} - FORM_COLUMNS for task in TASKS}
# Scores of a dialogue load the embedding model.
SCORED = ["rag", "summarization", pytest.param("dialogue", marks=pytest.mark.slow)]

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


@pytest.mark.slow  # loads the embedding model
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


@pytest.mark.slow  # loads the embedding model
def test_similarity_does_not_depend_on_the_other_answers():
    golds = ["The carter brings the stove tomorrow.", "Collect the tent at gate two."]
    answers = ["The stove comes tomorrow.", "A tent, a very long sentence about " + "tents " * 40]
    together = score_answers(
        "dialogue", answers, [example(gold, str(n)) for n, gold in enumerate(golds)]
    )["score"]
    for answer, gold, score in zip(answers, golds, together, strict=True):
        assert score_one("dialogue", answer, gold)["score"] == pytest.approx(score, abs=1e-5)


@pytest.mark.parametrize("task", SCORED)
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
@pytest.mark.parametrize("task", SCORED)
def test_a_missing_answer_has_a_reason_and_no_score(task, missing):
    table = score_answers(task, [missing, "", "gold"], [example("gold", str(n)) for n in range(3)])
    lost, empty, right = (row for _, row in table.iterrows())
    assert math.isnan(lost["score"])
    assert all(math.isnan(lost[column]) for column in EXTRA_COLUMNS[task])
    assert "no answer" in lost["score_reason"]
    assert empty["score"] == 0
    assert empty["score_reason"] == ""
    assert right["score"] == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("task", SCORED)
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


# --- content apart from form -------------------------------------------------------------------


@pytest.fixture
def no_embedding(monkeypatch):
    """Every similarity is 0.5: no sentence-embedding model is loaded."""
    monkeypatch.setattr(dialogue, "_similarities", lambda answers, _: [0.5] * len(answers))


@pytest.fixture(scope="module")
def evaluation():
    return {task: load_task(task).evaluation for task in TASKS}


def scored(task, answer, examples):
    """Every example's row where `answer(example)` is what was answered."""
    return score_answers(task, [answer(each) for each in examples], examples)


@pytest.mark.usefixtures("no_embedding")
@pytest.mark.parametrize("task", TASKS)
def test_content_of_the_gold_answers_is_1_and_of_others_answers_is_lower(task, evaluation):
    examples = evaluation[task]
    gold = scored(task, lambda each: each.answer, examples)
    assert (gold["content"] == 1).all()
    assert (gold[find(task).content] == 1).all()
    others = score_answers(task, [e.answer for e in [*examples[1:], examples[0]]], examples)
    assert others["content"].mean() < 0.4


def test_a_notes_title_alone_holds_no_fact(evaluation):
    table = scored("rag", lambda each: each.details["title"], evaluation["rag"])
    assert (table["fact_f1"] == 0).all()
    assert (table["fact_exact_match"] == 0).all()
    assert table["f1"].mean() > 0.5  # what the score gives for the form


def test_the_fact_counts_with_the_right_title_another_or_none(evaluation):
    examples = evaluation["rag"]
    for title in ("{}: ", "Harbour log 1: ", "Mill ledger 12: ", ""):
        table = scored(
            "rag", lambda e, t=title: t.format(e.details["title"]) + e.details["fact"], examples
        )
        assert (table["fact_exact_match"] == 1).all(), title


def test_a_fact_among_other_words_is_no_exact_match(evaluation):
    row = scored("rag", lambda each: each.answer + " and so on", evaluation["rag"]).iloc[0]
    assert row["fact_exact_match"] == 0
    assert 0 < row["fact_f1"] < 1


def test_the_topic_is_what_stands_before_the_colon():
    gold = example("Roads: bridge shut Friday", topic="Roads")
    answers = [
        "roads: a bridge",
        "Water: bridge shut Friday",
        "Roads bridge shut",
        "The Roads:",
        "",
    ]
    table = score_answers("summarization", answers, [gold] * 5)
    assert table["topic"].tolist() == [1, 0, 0, 1, 0]
    assert table["content"].tolist() == table["topic"].tolist()


@pytest.mark.parametrize(
    ("reply", "right"),
    [
        ("Large. Next: the carter brings the stove tomorrow.", 1),
        ("Next: the carter brings your other thing tomorrow", 1),
        ("Monday. Next: the carter brings the stove.", 0),  # not when
        ("Monday. Next: collect the stove at gate two.", 0),
        ("The carter brings the stove tomorrow.", 0),  # not told as the next step
        ("Monday. Next: the carter brings the stove tomorrow and collect it at gate two.", 0),
        ("", 0),
    ],
)
@pytest.mark.usefixtures("no_embedding")
def test_the_next_step_is_given_whole_or_not(reply, right):
    gold = "Promised for Monday. Next: the carter brings the stove tomorrow."
    row = score_one("dialogue", reply, gold, step=dialogue.step_kind(gold))
    assert row["next_step"] == row["content"] == right


def test_every_shipped_reply_has_one_of_the_eight_steps():
    data = load_task("dialogue")
    kinds = [each.details["step"] for each in data.train + data.evaluation]
    assert set(kinds) == set(range(8))


@pytest.mark.usefixtures("no_embedding")
@pytest.mark.parametrize("task", TASKS)
def test_without_a_house_form_content_is_the_score(task):
    row = score_one(task, "one two", "one three")
    assert row["content"] == row["score"]
    assert row.reindex(list(FORM_COLUMNS & {*find(task).figures})).isna().all()


# --- answers without a model -------------------------------------------------------------------


# With the first 24 evaluation prompts, which may be added to but never replaced.
@pytest.mark.parametrize(
    ("task", "least"),
    [
        ("rag", 0.68),
        ("summarization", 0.56),
        pytest.param("dialogue", 0.66, marks=pytest.mark.slow),  # loads the embedding model
    ],
)
def test_rules_without_a_model_reach_what_they_are_known_to_reach(task, least):
    training, _, data = task_examples(load_study("embedded"), task)
    table = scoring.answer_without_model(task, training, data.evaluation[:24])
    assert len(table) == 24
    assert table["score"].mean() >= least
    assert table["rule"].nunique() == table["content_rule"].nunique() == 1
    assert table["content"].mean() > 0


def test_rules_are_chosen_on_training_examples_alone(monkeypatch):
    rules = [
        Rule("says one", lambda each, training: "one"),
        Rule("says two", lambda each, training: "two"),
        Rule("cannot", lambda each, training: None),
    ]
    monkeypatch.setattr(rag, "task", replace(rag.task, no_model_rules=rules))
    training = [example("one", "t1"), example("one", "t2"), example("two", "t3")]
    table = scoring.answer_without_model("rag", training, [example("two", "e1")])
    assert table["answer"].tolist() == ["one"]
    assert table["rule"].tolist() == ["says one"]
    assert table["score"].tolist() == [0]


@pytest.mark.parametrize("rules", [[], [Rule("cannot", lambda each, training: None)]])
def test_where_no_rule_applies_every_row_says_so(rules, monkeypatch):
    monkeypatch.setattr(rag, "task", replace(rag.task, no_model_rules=rules))
    table = scoring.answer_without_model("rag", [example("one", "t1")], [example("two", "e1")])
    (row,) = table.to_dict("records")
    assert math.isnan(row["score"])
    assert math.isnan(row["content"])
    assert row["score_reason"] == row["rule"] == row["content_rule"]
    assert row["rule"] == "no rule without a model applies to these data"


def test_a_rule_sees_the_prompt_and_other_examples_never_the_answer():
    for task in TASKS:
        data = load_task(task)
        hidden = [
            replace(each, answer="?", details=each.details | {"fact": "?", "topic": "?", "step": 0})
            for each in data.evaluation[:8]
        ]
        for rule in find(task).no_model_rules:
            for each, blind in zip(data.evaluation, hidden, strict=False):
                assert rule.answer(each, data.train) == rule.answer(blind, data.train)
        for rule in find(task).no_model_rules:  # an example is not its own neighbour
            one = data.train[0]
            assert rule.answer(one, data.train) == rule.answer(one, data.train[1:])


@pytest.mark.usefixtures("no_embedding")
@pytest.mark.parametrize("task", TASKS)
def test_rules_answer_data_without_a_house_form_too(task):
    details = {
        "shown": [("Rome", "Rome has hills. It has seven of them.")],
        "question": "How many hills has Rome?",
        "text": "It rained. The match was called off.",
    }
    turns = [
        {"role": role, "content": words}
        for role, words in (("user", "Hello?"), ("assistant", "Yes?"), ("user", "Help me."))
    ]
    examples = [Example(str(n), turns, f"gold {n}", details) for n in range(3)]
    table = scoring.answer_without_model(task, examples, examples)
    assert (table["content"] == table["score"]).all()
    assert not table["answer"].str.contains("Next:").any()
