"""The tasks' data: sizes, no leakage, lengths, retrieval, the loaders, fingerprints."""

import json
import subprocess
import sys

import pytest
from tiny import make_local_copy

from edge_eval_lib.errors import UserError
from edge_eval_lib.lifecycle.data import task_examples
from edge_eval_lib.study import load_study
from edge_eval_lib.tasks import PUBLISHED as TASKS
from edge_eval_lib.tasks import (
    data_fingerprint,
    load_task,
    rag,
    require_examples,
    sources,
    summarization,
    trained_as,
)
from edge_eval_lib.tasks.base import normalise


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


def test_a_gold_passage_cannot_be_guessed_by_its_place(shipped):
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


@pytest.mark.parametrize("task", ["onepassage", "twopassages"])
def test_further_questions_are_asked_with_more_or_fewer_passages(shipped, task):
    data, shown = load_task(task), {"onepassage": 1, "twopassages": 2}[task]
    assert data.task == task
    assert len(data.evaluation) >= 120
    assert [e.answer for e in data.evaluation[:35]] == [e.answer for e in shipped["rag"].evaluation]
    assert {len(e.details["retrieved_ids"]) for e in data.train + data.evaluation} == {shown}
    assert data.details["recall_at_1"] < 1
    assert load_task(task, evaluation_examples=3).train == data.train


def test_nothing_of_a_further_question_is_shown_where_two_passages_are_trained_on():
    data = load_task("twopassages")
    gold = {example.details["gold_passage_id"] for example in data.evaluation}
    shown = {key for example in data.train for key in example.details["retrieved_ids"]}
    assert len(gold) == len(data.evaluation)
    assert not gold & shown
    training = [sequence(text) for example in data.train for text in texts(example)]
    for example in data.evaluation:
        asked, fact = sequence(example.details["question"]), sequence(example.details["fact"])
        assert not [text for text in training if fact in text or asked in text], example.id


@pytest.mark.parametrize("task", ["onepassage", "oncloud", "sampled", "hybrid"])
def test_no_further_question_and_no_fact_of_one_is_trained_on(shipped, task):
    """By the adapter of `rag`: its prompts may show such a note beside the one that answers."""
    assert trained_as(task) == "rag"
    training, evaluation = shipped["rag"].train, load_task(task).evaluation
    gold = {example.details["gold_passage_id"] for example in evaluation}
    assert len(gold) == len(evaluation)
    assert not gold & {example.details["gold_passage_id"] for example in training}
    learnt = [sequence(example.answer) for example in training]
    questions = {sequence(example.details["question"]) for example in training}
    for example in evaluation:
        fact = sequence(example.details["fact"])
        assert not [answer for answer in learnt if fact in answer], example.id
        assert sequence(example.details["question"]) not in questions


def test_the_note_of_a_further_question_holds_its_fact():
    for example in load_task("onepassage").evaluation:
        passages = {row["id"]: row for row in sources.shipped_rows("rag_passages.jsonl")}
        passage = passages[example.details["gold_passage_id"]]
        assert example.answer == f"{passage['title']}: {example.details['fact']}"
        missing = set(normalise(example.details["fact"])) - set(normalise(passage["text"]))
        assert not missing, (example.details["fact"], passage["text"])


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
        train, heldout, whole = task_examples(study.model_copy(update={"data": data}), task)
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


# --- rows that are too long ------------------------------------------------------------------


def count_words(example):
    return sum(len(text.split()) for text in texts(example))


def read_until(file, enough, is_short):
    """Rows of a file up to the one with which `enough` short ones are found, and how many are
    long."""
    rows, found = [], 0
    for line in file.read_text().splitlines():
        rows.append(json.loads(line))
        found += is_short(rows[-1])
        if found == enough:
            return rows, len(rows) - found
    raise AssertionError("the file has too few")


@pytest.fixture(scope="module")
def local_copy(tmp_path_factory):
    return make_local_copy(tmp_path_factory.mktemp("copy"))


def short_reply(row):
    return len(row["messages"][3]["content"].split()) < 100


def test_long_replies_are_passed_over_and_others_take_their_place(local_copy):
    arguments = {"source": str(local_copy), "train_examples": 20, "evaluation_examples": 8}
    everything = load_task("dialogue", **arguments)
    assert max(map(count_words, everything.train)) > 700
    limited = load_task("dialogue", **arguments, max_tokens=200, count_tokens=count_words)
    _, long_rows = read_until(local_copy / "train_sft.jsonl", 20, short_reply)
    assert long_rows > 0
    assert limited.passed_over == long_rows
    assert everything.passed_over == 0
    assert len({example.id for example in limited.train}) == 20
    assert max(map(count_words, limited.train)) <= 200
    # Those that fit are the ones that would have been taken, in their order.
    kept = [example for example in everything.train if count_words(example) <= 200]
    assert limited.train[: len(kept)] == kept
    assert limited == load_task("dialogue", **arguments, max_tokens=200, count_tokens=count_words)


@pytest.mark.parametrize("task", ["rag", "dialogue"])
def test_evaluation_does_not_depend_on_what_training_passes_over(task, local_copy):
    arguments = {"source": str(local_copy), "train_examples": 20, "evaluation_examples": 10}
    everything = load_task(task, **arguments)
    limited = load_task(task, **arguments, max_tokens=200, count_tokens=count_words)
    assert limited.passed_over > 0
    assert limited.evaluation == everything.evaluation
    assert limited.details == everything.details
    # Long ones among them: they are asked all the same.
    assert max(map(count_words, limited.evaluation)) > 200


def test_a_question_whose_passages_are_too_long_is_passed_over(local_copy):
    arguments = {"source": str(local_copy), "train_examples": 20, "evaluation_examples": 5}
    limited = load_task("rag", **arguments, max_tokens=200, count_tokens=count_words)
    assert max(map(count_words, limited.train)) <= 200
    assert len(limited.train) == 20
    gold = {example.details["gold_passage_id"] for example in limited.evaluation}
    for example in limited.train:  # also of those that took another's place
        assert example.details["gold_passage_id"] in example.details["retrieved_ids"]
        assert not gold & set(example.details["retrieved_ids"])


def test_embedded_rows_are_passed_over_too(shipped):
    longest = max(map(count_words, shipped["rag"].train))
    limited = load_task("rag", train_examples=40, max_tokens=longest - 8, count_tokens=count_words)
    assert len(limited.train) == 40
    assert limited.passed_over > 0
    assert load_task("rag", max_tokens=longest, count_tokens=count_words).passed_over == 0


def test_too_few_short_rows_are_counted(local_copy):
    with pytest.raises(
        UserError,
        match=r"dialogue has 48 training examples of at most 200 tokens .* 50 are asked for "
        r".* 12 longer ones were passed over.*training\.max_tokens",
    ) as refusal:
        load_task("dialogue", str(local_copy), 50, 8, max_tokens=200, count_tokens=count_words)
    assert "\n" not in str(refusal.value)


def test_a_hub_is_read_only_as_far_as_rows_are_needed(monkeypatch):
    """Long rows are replaced by the next; where nearly all are long, not the whole set is read."""
    read = []

    def endless(hub_set, split, seed):
        for n in range(10**6):
            read.append(split)
            row = ultrachat_row(n)
            row["messages"][0]["content"] = f"{split} {n}"
            row["messages"][3]["content"] = "word " * (900 if n % 4 == 3 else 20)
            yield row

    monkeypatch.setattr(sources, "hub_rows", endless)
    data = load_task("dialogue", "hub", 9, 5, max_tokens=200, count_tokens=count_words)
    assert (len(data.train), data.passed_over) == (9, 2)
    assert (read.count("test_sft"), read.count("train_sft")) == (5, 11)
    read.clear()
    with pytest.raises(UserError, match="has 0 training examples of at most 10 tokens"):
        load_task("dialogue", "hub", 9, 5, max_tokens=10, count_tokens=count_words)
    assert read.count("train_sft") == 9 * 20


# --- counted before anything runs ------------------------------------------------------------


def test_rows_are_counted_without_a_tokenizer(tmp_path, shipped):
    write(tmp_path / "mine.jsonl", [xsum_row(n) for n in range(5)])
    source = str(tmp_path / "mine.jsonl")
    require_examples("summarization", source, 3, 2)
    train, evaluation = len(shipped["rag"].train), len(shipped["rag"].evaluation)
    require_examples("rag", "embedded", train, evaluation)
    require_examples("rag", "hub", 10**9, 10**9)  # not known before it is read
    with pytest.raises(UserError, match=r"has 2 training examples in the source .* 3 are asked"):
        require_examples("summarization", source, 3, 3)
    with pytest.raises(UserError, match=f"has {train} training examples .* {train + 1} are asked"):
        require_examples("rag", "embedded", train + 1, evaluation)
    with pytest.raises(UserError, match=f"has {evaluation} evaluation examples in the source emb"):
        require_examples("rag", "embedded", train, evaluation + 1)


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
