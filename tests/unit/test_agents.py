"""Answering in steps: the steps themselves, and what they take beside a single call."""

import itertools

import numpy as np
import pandas as pd
import pytest

from edge_eval_lib.results import agents, agents_shown, retries
from edge_eval_lib.tasks import CallFailedError, Reply, agent, find, load_task

# --- the steps --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def examples():
    return load_task("agent", train_examples=2, evaluation_examples=40).evaluation


def conversed(example, *answers):
    """Give these answers to its calls; what it asked, and what it returned."""
    turns, asked = agent.converse(example), []
    call = next(turns)
    for text in answers:
        asked.append(call)
        try:
            call = turns.send(Reply(text))
        except StopIteration as end:
            return asked, end.value
    pytest.fail(f"it still asks: {call}")


def note_of(example, attempt=0, place=0):
    return example.details["found"][attempt][place]


def words_of(note, count=2):
    return " ".join(note[1].rstrip(".").split()[-count:])


def test_the_same_questions_are_asked_as_by_one_call(examples):
    single = load_task("twopassages", train_examples=2, evaluation_examples=40).evaluation
    assert [e.messages for e in examples] == [e.messages for e in single]
    assert [e.answer for e in examples] == [e.answer for e in single]
    assert find("agent").adapter_of == "twopassages"
    for example in examples:
        found = [note for attempt in example.details["found"] for note in attempt]
        assert found[: agent.PASSAGES_PER_ATTEMPT] == example.details["shown"]
        assert len({*found}) == agent.PASSAGES_PER_ATTEMPT * agent.ATTEMPTS


def test_an_answer_that_is_in_a_note_ends_the_conversation(examples):
    example = examples[0]
    second = note_of(example, place=1)
    answer = f"Another title: {words_of(second)}"
    asked, returned = conversed(example, answer, answer)
    assert returned == answer
    assert asked[0].messages == example.messages  # it begins as the single call does
    follows = asked[1].messages[-1]["content"]
    assert second[1] in follows  # from the note alone in which it was found
    assert note_of(example)[1] not in follows
    assert asked[1].messages[: len(asked[0].messages)] == asked[0].messages


def test_a_retry_holds_all_former_steps_and_the_next_notes(examples):
    example = examples[1]
    garbled = f"{note_of(example)[0]}: WALNUSUSLS"
    second = note_of(example, attempt=1)
    answer = f"{second[0]}: {words_of(second)}"
    asked, returned = conversed(example, garbled, garbled, answer, answer)
    assert returned == answer
    lengths = [sum(len(m["content"]) for m in call.messages) for call in asked]
    assert lengths == sorted(lengths)
    for before, after in itertools.pairwise(asked):
        assert after.messages[: len(before.messages)] == before.messages
        assert after.messages[len(before.messages)]["role"] == "assistant"
    assert second[1] in asked[2].messages[-1]["content"]


def test_after_its_attempts_the_first_answer_is_returned(examples):
    example = examples[2]
    most = agent.ATTEMPTS * agent.CALLS_PER_ATTEMPT
    asked, returned = conversed(example, *[f"unheardof{i}" for i in range(most)])
    assert len(asked) == most
    assert returned == "unheardof1"


@pytest.mark.parametrize(
    ("answer", "title"),
    [
        ("Well survey 2: Seventeen fathoms", "Well survey 2"),
        ("Ferry timetable 1: seventeen fathoms.", "Well survey 2"),  # a title is form
        ("Fathoms", "Well survey 2"),
        ("Well survey 2: Half a mark", "Ferry timetable 1"),
        ("Well survey 2: Seventeen feet", None),
        ("Well survey 2:", None),
        ("", None),
    ],
)
def test_an_answer_is_checked_without_a_gold_answer(answer, title):
    notes = [
        ("Ferry timetable 1", "A crossing costs half a mark."),
        ("Well survey 2", "The Maiden Lane well is seventeen fathoms deep."),
    ]
    found = agent.note_that_says(answer, notes)
    assert (found and found[0]) == title


def test_a_failed_call_ends_the_conversation(examples):
    turns = agent.converse(examples[0])
    next(turns)
    with pytest.raises(CallFailedError):
        turns.throw(CallFailedError("HTTP 503"))


# --- what they take ---------------------------------------------------------------------------

VARIANT = {"family": "tiny", "size": "1M", "method": "lora"}


def calls(*rows):
    """Calls of (prompt, number, submitted, seconds) of two tokens each."""
    return pd.DataFrame(
        [
            {"prompt_id": prompt, "call": call, "submitted_s": at, "input_tokens": 10.0,
             "output_tokens": 2, "ttft_ms": 1e3 * seconds / 2, "tpot_ms": 1e3 * seconds / 2}
            for prompt, call, at, seconds in rows
        ]
    )  # fmt: skip


def test_a_windows_energy_is_shared_by_the_time_of_each_call():
    # One batch of two calls of 2 s, then a call of "a" alone of 2 s: "a" had 3 s of 4.
    used = agents.used_by_prompt(calls(("a", 1, 0, 2), ("b", 1, 0, 2), ("a", 2, 2, 2)), 80.0, 4.0)
    assert used.loc["a", "energy_j"] == pytest.approx(60)
    assert used["energy_j"].sum() == pytest.approx(80)
    assert used["seconds"].tolist() == pytest.approx([3, 1])
    assert used["latency_s"].tolist() == pytest.approx([4, 2])
    assert used["input_tokens"].tolist() == [20, 10]
    unknown = agents.used_by_prompt(calls(("a", 1, 0, 2)), None, 4.0)
    assert unknown["energy_j"].isna().all()


def test_a_single_token_has_only_its_first():
    one = calls(("a", 1, 0, 2)).assign(output_tokens=1, tpot_ms=np.nan)
    assert agents.service_s(one).tolist() == [1.0]


def prompts(task, precision, energy, correct, reused=False):
    count = len(correct)
    return pd.DataFrame(
        {
            **VARIANT, "task": task, "precision": precision, "prefix_caching": reused,
            "prompt_id": [f"p{i}" for i in range(count)], "calls": 2.0, "seconds": 1.0,
            "input_tokens": np.linspace(100, 120, count), "output_tokens": 8.0,
            "energy_j": energy, "usd": np.multiply(energy, 1e-6), "latency_s": 1.0,
            "correct": correct,
        }
    )  # fmt: skip


COUNT = 40
RNG = np.random.default_rng(1)
SINGLE = RNG.uniform(1, 2, COUNT)
HALF = np.tile([1.0, 0.0], COUNT // 2)
TABLE = pd.concat(
    [
        prompts("twopassages", "fp16", SINGLE, HALF),
        prompts("agent", "fp16", 3 * SINGLE, np.ones(COUNT)),
        prompts("agent", "int4", 9 * SINGLE, np.zeros(COUNT)),
        prompts("twopassages", "int4", SINGLE, HALF),
        prompts("agent", "fp16", 2 * SINGLE, np.ones(COUNT), reused=True),
    ],
    ignore_index=True,
)


def test_a_solved_task_bears_those_that_were_not():
    solved = agents.solved_table(TABLE).set_index(["task", "precision", "prefix_caching"])
    one = solved.loc[("twopassages", "fp16", False)]
    assert one["solved_share"] == 0.5
    assert one["solved_share_lo"] < 0.5 < one["solved_share_hi"]
    assert one["solved_energy_j"] == pytest.approx(2 * SINGLE.mean())
    assert one["solved_energy_j_lo"] < one["solved_energy_j"]
    assert np.isnan(solved.loc[("agent", "int4", False), "solved_energy_j"])  # none is solved
    assert solved.loc[("agent", "fp16", True), "task_energy_j"] == pytest.approx(2 * SINGLE.mean())


def test_inflation_is_against_the_single_call_of_the_same_configuration():
    found = agents.inflation_table(TABLE, "twopassages")
    found = found.set_index(["precision", "prefix_caching"])
    assert found.loc[("fp16", False), "energy_times"] == pytest.approx(3)
    assert found.loc[("fp16", False), "energy_times_lo"] == pytest.approx(3)  # of every prompt
    assert found.loc[("fp16", True), "energy_times"] == pytest.approx(2)
    # Three times the energy, twice the solved tasks.
    solved = found.loc[("fp16", False)]
    assert solved["solved_energy_times"] == pytest.approx(1.5)
    assert solved["solved_energy_times_lo"] < 1.5 < solved["solved_energy_times_hi"]
    assert found.loc[("int4", False), "solved_energy_times"] == np.inf
    against = agents.against_one_answer(TABLE, "twopassages", "fp16")
    assert against["solved_energy_times"].tolist() == pytest.approx([1.5, 1.0, np.inf])


def test_unknown_energy_gives_no_ratio():
    found = agents.inflation_table(TABLE.assign(energy_j=np.nan), "twopassages")
    assert found[["energy_times", "solved_energy_times"]].isna().all(axis=None)
    assert found["input_tokens_times"].notna().all()


def test_small_calls_for_a_large_ones_answer():
    rows = [
        ("1B", "int4", 2.0, 1e-5, 0.5),
        ("8B", "fp16", 20.0, 5e-5, 0.8),
        ("8B", "int4", 9, 1, 1),
    ]
    table = pd.DataFrame(
        [
            {"family": "llama", "task": "rag", "method": "lora", "size": size,
             "precision": precision, "energy_per_request_j": j, "usd_per_request": usd, "score": s}
            for size, precision, j, usd, s in rows
        ]
    )  # fmt: skip
    (pair,) = retries.break_even_calls(table).to_dict("records")
    assert (pair["small"], pair["large"], pair["precision"]) == ("llama-1B", "llama-8B", "int4")
    assert pair["calls"] == pytest.approx(10)
    assert pair["usd_calls"] == pytest.approx(5)
    assert pair["calls_per_solved"] == pytest.approx(6.25)
    assert retries.break_even_calls(table[:1]).empty


@pytest.mark.parametrize(
    ("calls", "verdict"),
    [(8.0, "yes"), (10.0, "no"), (9.0, "open: the interval holds the break-even")],
)
def test_retries_are_dearer_where_the_whole_interval_says_so(calls, verdict):
    inflation = agents.inflation_table(TABLE, "twopassages").assign(
        energy_times_lo=8.5, energy_times_hi=9.5
    )
    pair = pd.DataFrame([{"precision": "int4", "calls": calls}])
    (row,) = retries.dearer_than_large(inflation, pair).to_dict("records")
    assert row["verdict"] == verdict
    assert row["times"] == pytest.approx(9)


def test_the_published_figures_answer_for_every_family():
    from edge_eval_lib.results.observations import prices_of
    from edge_eval_lib.study import load_study

    book, _ = prices_of(load_study("agents"))
    table = retries.break_even_calls(retries.published_costs(book.prices("paper")))
    assert {*table["large"]} == {"llama-8B", "qwen-7B"}
    assert (table["calls"] > 1).all()  # a large model's request always takes more
    row = table[(table["large"] == "llama-8B") & (table["task"] == "rag")].set_index("precision")
    # 2,215.81 J of 100 requests over 649.63 J (params/published/serving.csv).
    assert row.loc["fp16", "calls"] == pytest.approx(3.41, abs=0.01)


def test_conclusions_say_what_was_found():
    inflation = agents.inflation_table(TABLE, "twopassages")
    reuse = pd.DataFrame(
        [{**VARIANT, "task": "agent", "precision": "fp16", "energy_times": 0.7, "hit_rate": 0.5,
          "same_tokens": 1.0}]
    )  # fmt: skip
    dearer = pd.DataFrame({"verdict": ["yes", "no", "no"]})
    said = agents_shown.conclusions(
        agents.solved_table(TABLE), inflation, reuse, dearer, "twopassages"
    )
    assert said[0].startswith(
        "LoRA FP16: in steps 100 % are solved, by one call 50 %; a task takes 3.0 [3.0, 3.0] times"
    )
    assert "a solved one 1.5 [1.0, 2.0] times" in said[0]
    assert "solved one" not in said[1]  # of none that is solved
    assert "computed once a task takes 0.70 times the energy; 50 %" in said[2]
    assert "in 1 of 3 pairs" in said[3]


def test_pictures_say_the_shares_the_energies_and_how_prompts_grow():
    said = agents_shown.solved_words(agents.solved_table(TABLE), "twopassages")
    assert "In steps 0 to 100 % are solved" in said
    assert "By one call 50 % are solved" in said
    assert said.count("J with the prefix shared") == 1  # only steps were served with it
    steps = calls(("a", 1, 0, 2), ("a", 2, 2, 2), ("b", 1, 0, 2)).assign(
        **VARIANT, precision="fp16"
    )
    steps["input_tokens"] = [10, 30, 20]
    said = agents_shown.context_words(steps)
    assert "15 tokens in call 1 and 30 in call 2, which 1 of 2 questions reach" in said


def test_tables_say_usd_per_thousand_and_how_prefixes_were_computed():
    text = str(agents_shown.for_people(agents.solved_table(TABLE), ["solved_usd"]))
    assert "USD per 1,000 solved tasks" in text
    assert "computed anew" in text
    assert "_" not in text
