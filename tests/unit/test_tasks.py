"""The tasks' data: sizes, no leakage, lengths, retrieval, the loaders, fingerprints."""

import json
import subprocess
import sys

import pytest

from edge_eval_lib import stage
from edge_eval_lib.errors import UserError
from edge_eval_lib.scoring import normalise
from edge_eval_lib.study import load_study
from edge_eval_lib.tasks import TASKS, data_fingerprint, load_task, rag, sources, summarization


@pytest.fixture(scope="module")
def shipped():
    return {task: load_task(task) for task in TASKS}


def sequence(text):
    return " " + " ".join(normalise(text)) + " "


def texts(example):
    return [message["content"] for message in example.messages] + [example.answer]


# --- the embedded sets -------------------------------------------------------------------------


@pytest.mark.parametrize("task", TASKS)
def test_the_embedded_sets_are_large_enough_and_well_formed(shipped, task):
    data = shipped[task]
    assert data.task == task
    assert len(data.train) >= 64
    assert len(data.evaluation) >= 32
    examples = data.train + data.evaluation
    assert len({example.id for example in examples}) == len(examples)
    for example in examples:
        roles = [message["role"] for message in example.messages]
        assert roles == (
            ["system", "user", "assistant", "user"] if task == "dialogue" else ["system", "user"]
        )
        assert all(text.strip() == text and text for text in texts(example))


@pytest.mark.parametrize("task", TASKS)
def test_no_text_is_used_twice(shipped, task):
    examples = shipped[task].train + shipped[task].evaluation
    for part in ("prompt", "answer"):
        seen = [
            sequence(example.answer if part == "answer" else example.messages[-1]["content"])
            for example in examples
        ]
        assert len(set(seen)) == len(seen)


@pytest.mark.parametrize("task", TASKS)
def test_no_evaluation_answer_stands_in_the_training_data(shipped, task):
    training = [sequence(text) for example in shipped[task].train for text in texts(example)]
    for example in shipped[task].evaluation:
        assert not [text for text in training if sequence(example.answer) in text]


def test_the_fact_that_answers_an_evaluation_question_is_not_trained_on(shipped):
    """Not even without the name of its note."""
    training = [sequence(text) for example in shipped["rag"].train for text in texts(example)]
    for example in shipped["rag"].evaluation:
        fact = example.answer.split(": ", 1)[1]
        assert not [text for text in training if sequence(fact) in text], fact


def test_no_evaluation_passage_appears_in_training(shipped):
    data = shipped["rag"]
    gold = {example.details["gold_passage_id"] for example in data.evaluation}
    shown = {key for example in data.train for key in example.details["retrieved_ids"]}
    assert len(gold) == len(data.evaluation)
    assert not gold & shown
    assert not gold & {example.details["gold_passage_id"] for example in data.train}


def test_no_sentence_of_an_evaluation_prompt_is_trained_on(shipped):
    for task in ("summarization", "dialogue"):
        training = {
            sequence(sentence)
            for example in shipped[task].train
            for message in example.messages[1:]
            for sentence in message["content"].replace("?", ".").split(".")
            if len(sentence.split()) > 4
        }
        for example in shipped[task].evaluation:
            for message in example.messages[1:]:
                for sentence in message["content"].replace("?", ".").split("."):
                    assert sequence(sentence) not in training, sentence


def test_what_is_asked_does_not_change_what_is_trained_on(shipped):
    assert load_task("rag", evaluation_examples=3).train == shipped["rag"].train


def test_prompts_and_answers_are_short_enough_for_the_embedded_study(shipped):
    """In words, at most: tokens are fewer than twice the words in these texts."""
    for data in shipped.values():
        for example in data.train + data.evaluation:
            assert sum(len(m["content"].split()) for m in example.messages) <= 60
            assert len(example.answer.split()) <= 14


def test_retrieval_finds_most_gold_passages_but_ranks_some_second(shipped):
    details = shipped["rag"].details
    assert details["passages"] >= 200
    assert 0.6 <= details["recall_at_1"] < details["recall_at_2"]
    assert details["recall_at_2"] >= 0.9


def test_a_gold_passage_cannot_be_told_by_its_place(shipped):
    first = 0
    for example in shipped["rag"].evaluation:
        title = example.answer.split(": ", 1)[0]
        first += example.messages[1]["content"].startswith(f"Notes:\n{title}: ")
    assert 0.25 <= first / len(shipped["rag"].evaluation) <= 0.75


def test_the_note_named_in_an_answer_holds_the_fact(shipped):
    passages = {row["id"]: row for row in sources.shipped_rows("rag_passages.jsonl")}
    for example in shipped["rag"].train + shipped["rag"].evaluation:
        passage = passages[example.details["gold_passage_id"]]
        title, fact = example.answer.split(": ", 1)
        assert title == passage["title"]
        missing = set(normalise(fact)) - set(normalise(passage["text"]))
        assert not missing or len(missing) < len(normalise(fact)), (fact, passage["text"])


def test_retrieve_ranks_by_shared_words():
    passages = [
        {"id": "a", "text": "The tug Petrel burns peat oil."},
        {"id": "b", "text": "The tug Gannet burns birch gas."},
        {"id": "c", "text": "Geese may not race."},
    ]
    found = rag.retrieve(["What does the Gannet tug burn?", "May geese race?"], passages, k=2)
    assert [row["id"] for row in found[0]] == ["b", "a"]
    assert found[1][0]["id"] == "c"


# --- selection ---------------------------------------------------------------------------------


def test_the_seed_draws_training_examples_and_leaves_evaluation_alone(shipped):
    one = load_task("dialogue", train_examples=10, evaluation_examples=5, seed=1)
    two = load_task("dialogue", train_examples=10, evaluation_examples=5, seed=2)
    assert one == load_task("dialogue", train_examples=10, evaluation_examples=5, seed=1)
    assert one.train != two.train
    assert one.evaluation == two.evaluation == shipped["dialogue"].evaluation[:5]


@pytest.mark.parametrize("task", TASKS)
def test_held_out_examples_are_the_same_however_many_are_trained_on(task):
    study = load_study("embedded")
    assert study.data.heldout_examples >= 24  # what training settings are chosen on
    drawn = {}
    for count in (8, study.data.train_examples):
        data = study.data.model_copy(update={"train_examples": count})
        train, heldout, whole = stage.task_examples(study.model_copy(update={"data": data}), task)
        assert len(train) == count
        assert len(heldout) == study.data.heldout_examples
        assert not {e.id for e in heldout} & {e.id for e in [*train, *whole.evaluation]}
        drawn[count] = heldout
    assert drawn[8] == drawn[study.data.train_examples]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"task": "poetry"}, "poetry"),
        ({"task": "rag", "train_examples": 5000}, "training examples"),
        ({"task": "rag", "evaluation_examples": 5000}, "evaluation examples"),
        ({"task": "rag", "evaluation_examples": 0}, "evaluation_examples"),
        ({"task": "rag", "source": "no/such/place"}, "does not exist"),
    ],
)
def test_bad_requests_are_refused_in_one_sentence(arguments, words):
    with pytest.raises(UserError, match=words) as refusal:
        load_task(**arguments)
    assert "\n" not in str(refusal.value)


# --- hub sets, from local files of their schema ----------------------------------------------


def squad_row(n, question=0, answers=("the answer",)):
    return {
        "id": f"{n}-{question}",
        "title": f"Some_Town_{n}",
        "context": f"The river {'abcdefghij'[n]}{n}x flows past the bridge number{n}.",
        "question": f"Which bridge does the river {'abcdefghij'[n]}{n}x pass? ",
        "answers": {"text": list(answers), "answer_start": [0] * len(answers)},
    }


def xsum_row(n):
    return {"id": n, "document": f"Long story {n}.\nIt goes on.", "summary": f"Story {n}. "}


def ultrachat_row(n, turns=4):
    messages = [
        {"content": f"turn {n} {i}", "role": "user" if i % 2 == 0 else "assistant"}
        for i in range(turns)
    ]
    return {"prompt": messages[0]["content"], "prompt_id": f"p{n}", "messages": messages}


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_squad_gives_one_question_a_context_and_searches_the_chosen_contexts(tmp_path):
    write(tmp_path / "train.jsonl", [squad_row(n) for n in (0, 1, 2)])
    write(
        tmp_path / "validation.jsonl",
        [squad_row(3), squad_row(3, 1), squad_row(4, answers=()), squad_row(5)],
    )
    data = load_task("rag", str(tmp_path), train_examples=3, evaluation_examples=2)
    assert [example.id for example in data.evaluation] == ["3-0", "5-0"]
    assert {example.id for example in data.train} == {"0-0", "1-0", "2-0"}
    assert data.details == {"passages": 5, "recall_at_1": 1.0, "recall_at_2": 1.0}
    example = data.evaluation[0]
    assert example.answer == "the answer"
    assert "Some Town 3: The river d3x flows" in example.messages[1]["content"]
    gold = {example.details["gold_passage_id"] for example in data.evaluation}
    for trained in data.train:
        assert not gold & set(trained.details["retrieved_ids"])


def test_xsum_becomes_one_sentence_summaries(tmp_path):
    write(tmp_path / "train.jsonl", [xsum_row(n) for n in range(3)])
    write(tmp_path / "test.jsonl", [{**xsum_row(9), "summary": " "}, xsum_row(3)])
    data = load_task("summarization", str(tmp_path), train_examples=2, evaluation_examples=1)
    (example,) = data.evaluation
    assert example.answer == "Story 3."
    assert "Long story 3. It goes on." in example.messages[1]["content"]
    assert len(data.train) == 2


def test_long_documents_are_cut(tmp_path):
    write(tmp_path / "train.jsonl", [xsum_row(0)])
    write(tmp_path / "test.jsonl", [{**xsum_row(1), "document": "word " * 5000}])
    data = load_task("summarization", str(tmp_path), train_examples=1, evaluation_examples=1)
    words = data.evaluation[0].messages[1]["content"].split()
    assert words.count("word") == summarization.MAX_DOCUMENT_WORDS


def test_ultrachat_gives_the_second_reply_and_passes_over_short_dialogues(tmp_path):
    write(tmp_path / "train_sft.jsonl", [ultrachat_row(0, turns=2), ultrachat_row(1, turns=6)])
    write(tmp_path / "test_sft.jsonl", [ultrachat_row(2)])
    data = load_task("dialogue", str(tmp_path), train_examples=1, evaluation_examples=1)
    assert data.train[0].id == "p1"
    assert data.train[0].answer == "turn 1 3"
    assert [m["content"] for m in data.train[0].messages[1:]] == [
        "turn 1 0",
        "turn 1 1",
        "turn 1 2",
    ]


def test_one_file_is_split_without_overlap(tmp_path):
    file = tmp_path / "mine.jsonl"
    write(file, [xsum_row(n) for n in range(5)])
    data = load_task("summarization", str(file), train_examples=3, evaluation_examples=2)
    assert [example.id for example in data.evaluation] == ["0", "1"]
    assert {example.id for example in data.train} == {"2", "3", "4"}


def test_rows_of_another_schema_are_refused_with_their_columns(tmp_path):
    write(tmp_path / "mine.jsonl", [{"article": "x", "highlights": "y"}])
    with pytest.raises(UserError, match=r"article, highlights"):
        load_task("summarization", str(tmp_path / "mine.jsonl"), 1, 1)


def test_a_broken_file_is_refused(tmp_path):
    (tmp_path / "mine.jsonl").write_text('{"id": 1, "document"\n')
    with pytest.raises(UserError, match=r"mine\.jsonl could not be read") as refusal:
        load_task("summarization", str(tmp_path / "mine.jsonl"), 1, 1)
    assert "\n" not in str(refusal.value)


def test_too_few_local_examples_are_counted(tmp_path):
    write(tmp_path / "mine.jsonl", [xsum_row(n) for n in range(3)])
    with pytest.raises(UserError, match=r"has 1 training examples .* 2 are asked for"):
        load_task("summarization", str(tmp_path / "mine.jsonl"), 2, 2)


# --- fingerprints ------------------------------------------------------------------------------


def test_a_fingerprint_changes_with_prompt_and_selection_of_that_task_alone(monkeypatch):
    before = {task: data_fingerprint(task, evaluation_examples=24) for task in TASKS}
    assert len(set(before.values())) == 3
    assert before["rag"] == data_fingerprint("rag", evaluation_examples=24)
    assert before["rag"] != data_fingerprint("rag", evaluation_examples=8)
    assert before["rag"] != data_fingerprint("rag", evaluation_examples=24, seed=1)
    monkeypatch.setitem(summarization.PROMPT, "embedded_system", "Say less.")
    after = {task: data_fingerprint(task, evaluation_examples=24) for task in TASKS}
    assert [task for task in TASKS if after[task] != before[task]] == ["summarization"]


def test_a_fingerprint_changes_with_the_data(tmp_path, monkeypatch):
    write(tmp_path / "mine.jsonl", [xsum_row(1)])
    before = data_fingerprint("summarization", str(tmp_path / "mine.jsonl"))
    write(tmp_path / "mine.jsonl", [xsum_row(2)])
    assert data_fingerprint("summarization", str(tmp_path / "mine.jsonl")) != before
    shipped = data_fingerprint("rag")
    monkeypatch.setattr(sources, "shipped_bytes", lambda name: b"other")
    assert data_fingerprint("rag") != shipped


def test_a_hub_fingerprint_needs_no_connection_and_follows_the_revision(monkeypatch):
    before = data_fingerprint("rag", "hub")
    assert before != data_fingerprint("rag")
    moved = sources.HubSet(rag.HUB.repository, "another", "train", "validation")
    monkeypatch.setattr(rag, "HUB", moved)
    assert data_fingerprint("rag", "hub") != before


def test_planning_imports_no_model_library():
    code = (
        "import sys; from edge_eval_lib.tasks import data_fingerprint; data_fingerprint('rag');"
        "print({'torch', 'transformers', 'datasets', 'sentence_transformers'} & set(sys.modules))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "set()"
