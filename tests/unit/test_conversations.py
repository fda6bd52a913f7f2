"""Tasks that ask several times for one answer: rounds, failures, and whose energy is whose."""

import math

import numpy as np
import pandas as pd
import pytest
from finished import serving_record
from tiny import hashes, write_tiny_study

from edge_eval_lib import tasks
from edge_eval_lib.engines.base import Engine, Generation
from edge_eval_lib.errors import UserError
from edge_eval_lib.lifecycle import answers as answers_of
from edge_eval_lib.lifecycle import conversations, serve
from edge_eval_lib.models.likelihood import NOT_READ
from edge_eval_lib.results import serving
from edge_eval_lib.study import load_study
from edge_eval_lib.tasks import Call, CallFailedError, Example, Reply


class Clock:
    """Time that passes only while an engine answers, and windows that note it."""

    def __init__(self):
        self.now = 0.0

    def window(self, name):
        return Window(name, self)


class Window:
    def __init__(self, name, clock):
        self.name, self.clock = name, clock
        self.energy_j = self.energy_lo_j = self.energy_hi_j = 7.0
        self.energy_reason = ""

    def __enter__(self):
        self.start_monotonic_s = self.clock.now
        return self

    def __exit__(self, *error):
        self.seconds = self.clock.now - self.start_monotonic_s

    def as_dict(self):
        return {"s": self.seconds, "checks": [], "start_monotonic_s": self.start_monotonic_s}


class Echo(Engine):
    """Answers a chat's last message, a second a token; what holds `fail` is not answered."""

    name = "echo"
    stop_ids = frozenset({0})

    def __init__(self, clock, word="", remote=False):
        self.clock, self.word, self.asked, self.forgotten = clock, word, [], 0
        self.prefix_caching, self.remote = False, remote
        self.served_name = f"echo{word}"

    def import_libraries(self):
        self.clock.now += 1.0

    def load(self):
        self.clock.now += 2.0

    def executed_dtype(self):
        return "float32"

    def forget(self):
        self.forgotten += 1

    def encode(self, messages):
        return [ord(letter) for letter in messages[-1]["content"]]

    def encode_answer(self, answer):
        return [1]

    def decode(self, token_ids):
        return self.word + "".join(map(chr, token_ids)).rstrip("\0")

    def read(self, prompts, texts, batch_size):
        assert all(len(of_prompt) == 1 for of_prompt in texts)
        return [[NOT_READ] for _ in prompts]

    def answer(self, requests):
        self.asked.append(requests)
        generations = []
        for start in range(0, len(requests.prompts), requests.slots):
            batch = requests.prompts[start : start + requests.slots]
            begun = self.clock.now
            times = [begun + 1.0 + i for i in range(requests.output_tokens)]
            self.clock.now = times[-1]
            for prompt in batch:
                if "fail" in "".join(map(chr, prompt)):
                    generations.append(Generation(prompt, begun, failure="HTTP 503: busy"))
                    continue
                ids = (prompt + [0] * requests.output_tokens)[: requests.output_tokens]
                told = [[-0.5] * len(ids), [0.25] * len(ids)] if requests.confidence else [[], []]
                generations.append(Generation(prompt, begun, ids, list(times), None, *told))
        return generations


def user(text):
    return [{"role": "user", "content": text}]


def example(text):
    return Example(text, user(text), "gold")


def once(one):
    reply = yield Call(one.messages)
    return reply.text


def until_long_enough(one):
    """Ask with one letter more until the answer has four."""
    text = one.id
    while True:
        reply = yield Call(user(text))
        if len(reply.text) >= 4:
            return reply.text
        text += "x"


def settings(**changes):
    fields = {"headline_concurrency": 4, "concurrency": [1, 4], "output_tokens": 4}
    fields |= {"latency_prompts": 1, "uncut_tokens": 8}
    return load_study("embedded").workload.model_copy(update=fields | changes)


EXAMPLES = [example(text) for text in ("a", "bb", "ccc", "dddd", "eeee", "f")]


def served_by(converse, asked, called=None, examples=EXAMPLES):
    clock = Clock()
    engine = Echo(clock)
    prompts = [engine.encode(one.messages) for one in examples]
    conversing = None
    if converse is not None:
        conversing = serve.Conversing(converse, examples, {None: engine, **(called or {})})
        for other in (called or {}).values():
            other.clock = clock
    return engine, serve.serve_all(engine, prompts, asked, 7, clock, conversing)


def figures_of(engine, served, examples=EXAMPLES, **measured):
    warm = serve.WarmUp(1.0, 8, [1.0], True, 0.0, 1.0, 3)
    record = serve.window_record(served, engine, warm)
    table = serve.request_table(served, engine, examples)
    window = serving_record(**{"window": served.window.name}) | record | measured
    return serving.serving_figures(window, table, pd.DataFrame()), table, record


def test_a_conversation_of_one_call_gives_the_figures_of_the_plain_path():
    asked = settings()
    plain, conversed = served_by(None, asked), served_by(once, asked)
    for (engine, one), (other_engine, other) in zip(
        zip([plain[0]] * 2, plain[1], strict=True),
        zip([conversed[0]] * 2, conversed[1], strict=True),
        strict=True,
    ):
        figures, table, _ = figures_of(engine, one)
        same, calls, _ = figures_of(other_engine, other)
        assert same.pop("calls_per_request") == 1
        assert same.pop("latency_s") == pytest.approx(same["ttft_ms"] / 1e3 + 3.0)
        assert same == figures
        assert calls.pop("call").tolist() == [1] * len(calls)
        assert calls.pop("role").isna().all()
        pd.testing.assert_frame_equal(calls, table)
    tables = [
        answers_of.answer_table(
            served, engine, EXAMPLES, asked,
            answers_of.read_answers(served, engine, EXAMPLES, asked, batched=False),
        )
        for engine, served in (plain, conversed)
    ]  # fmt: skip
    pd.testing.assert_frame_equal(*tables)


def test_a_round_answers_the_next_calls_of_all_that_are_under_way():
    engine, (_, headline) = served_by(until_long_enough, settings())
    rounds = [["".join(map(chr, p)) for p in asked.prompts] for asked in engine.asked[-6:]]
    assert rounds == [
        ["a", "bb", "ccc", "dddd"],
        ["ax", "bbx", "cccx", "eeee"],  # the place of an answered example is taken
        ["axx", "bbxx", "f"],
        ["axxx", "fx"],
        ["fxx"],
        ["fxxx"],
    ]
    assert engine.forgotten == 2  # a window each
    assert [len(one.calls) for one in headline.conversations] == [4, 3, 2, 1, 1, 4]
    assert [one.answer for one in headline.conversations] == [
        "axxx", "bbxx", "cccx", "dddd", "eeee", "fxxx",
    ]  # fmt: skip


def test_everything_is_of_whole_conversations():
    engine, (_, headline) = served_by(until_long_enough, settings())
    figures, table, record = figures_of(engine, headline, energy_j=60.0, energy_lo_j=30.0)
    assert len(table) == 15  # a row a call
    assert table.loc[table["prompt_id"] == "a", "call"].tolist() == [1, 2, 3, 4]
    assert figures["requests"] == 6
    assert figures["calls_per_request"] == 15 / 6
    assert figures["energy_per_request_j"] == 60.0 / 6
    assert figures["energy_per_request_lo_j"] == 30.0 / 6
    assert figures["output_tokens_per_request"] == 4 * 15 / 6
    assert figures["throughput_tok_s"] == pytest.approx(4 * 15 / record["s"])
    prompts = sum(len(prompt) for asked in engine.asked[-6:] for prompt in asked.prompts)
    assert figures["input_tokens_per_request"] == prompts / 6
    one = serving.per_request(table).set_index("prompt_id")
    # Four calls of four seconds, one after the other; the first token of the last after 13 s.
    assert one.loc["a", "latency_s"] == pytest.approx(16.0)
    assert one.loc["a", "ttft_ms"] == pytest.approx(13_000)
    assert one.loc["a", "tpot_ms"] == pytest.approx(1000)
    assert one.loc["dddd", "latency_s"] == pytest.approx(4.0)
    assert "failed_calls" in record
    assert figures["failed_requests"] == 0


def test_calls_are_answered_by_their_role_in_their_length():
    def escalate(one):
        cheap = yield Call(one.messages, output_tokens=2, confidence=True)
        assert set(cheap.logprobs) == {-0.5}
        assert set(cheap.margins) == {0.25}
        dear = yield Call(one.messages, role="cloud", temperature=0.7, seed=3)
        assert dear.logprobs == []
        return dear.text

    cloud = Echo(None, "cloud:")
    engine, (_, headline) = served_by(escalate, settings(), {"cloud": cloud})
    assert [one.answer for one in headline.conversations][:2] == ["cloud:a", "cloud:bb"]
    assert {asked.output_tokens for asked in engine.asked} == {2}
    assert {asked.confidence for asked in engine.asked} == {True}
    assert {(a.output_tokens, a.temperature, a.seed) for a in cloud.asked} == {(4, 0.7, 3)}
    _, table, _ = figures_of(engine, headline)
    assert table.groupby("role", dropna=False).size().to_dict() == {"cloud": 6, np.nan: 6}
    with pytest.raises(ValueError, match="'cloud', which is none of the task's roles"):
        served_by(escalate, settings())


def fails_on_its_second_call(one):
    yield Call(one.messages)
    reply = yield Call(user("fail" if one.id in ("bb", "f") else "fine"))
    return reply.text


def falls_back(one):
    first = yield Call(one.messages)
    try:
        reply = yield Call(user("fail"), role="cloud")
    except CallFailedError:
        return first.text
    return reply.text


def test_a_call_that_fails_costs_its_example_alone():
    engine, served = served_by(fails_on_its_second_call, settings())
    headline = served[1]
    figures, table, record = figures_of(engine, headline, energy_j=60.0)
    assert headline.failures == record["failed_calls"] == {"HTTP 503: busy": 2}
    assert (figures["requests"], figures["failed_requests"]) == (4, 2)
    assert figures["energy_per_request_j"] == 15.0  # theirs is borne by those that were answered
    assert "failed_calls: 2 x HTTP 503: busy" in figures["notes"]
    assert not {"bb", "f"} & {*table["prompt_id"]}
    read = answers_of.read_answers(served, engine, EXAMPLES, settings())
    answers = answers_of.answer_table(served, engine, EXAMPLES, settings(), read)
    assert answers["failure"].notna().tolist() == [False, True, False, False, False, True]
    assert answers["answer"].isna().tolist() == answers["failure"].notna().tolist()
    uncut = answers_of.uncut_answers(answers, served, engine, settings())
    assert uncut["answer"].equals(answers["answer"])  # what was returned is what counts


def test_a_conversation_may_go_on_without_a_call_that_failed():
    engine, (_, headline) = served_by(falls_back, settings(), {"cloud": Echo(None, "cloud:")})
    figures, table, record = figures_of(engine, headline)
    assert [one.answer for one in headline.conversations] == [one.id for one in EXAMPLES]
    assert record["failed_calls"] == {"HTTP 503: busy": 6}
    assert (figures["requests"], figures["failed_requests"]) == (6, 0)
    assert len(table) == 6


def test_garbage_is_for_the_conversation_to_refuse():
    def strict(one):
        reply = yield Call(one.messages)
        if reply.text == "ccc":
            raise CallFailedError("the answer is no number")
        return reply.text

    _, (_, headline) = served_by(strict, settings())
    assert headline.failures == {"the answer is no number": 1}


@pytest.mark.parametrize(
    ("converse", "error", "match"),
    [
        (lambda one: iter(()), TypeError, "returned None; it should return its answer"),
        (lambda one: (yield Call(one.messages)), TypeError, "should return its answer, a text"),
    ],
)
def test_a_conversation_without_an_answer_is_a_mistake_of_the_task(converse, error, match):
    with pytest.raises(error, match=match):
        served_by(converse, settings())


def test_a_conversation_has_to_ask_something():
    def silent(one):
        return one.id
        yield

    with pytest.raises(ValueError, match="the conversation about a ended without a call"):
        served_by(silent, settings())


def test_an_answer_of_nobody_is_none():
    def stubborn(one):
        try:
            yield Call(user("fail"))
        except CallFailedError:
            return "made up"

    with pytest.raises(UserError, match=r"No request of 'serve at 1' was answered .*HTTP 503"):
        served_by(stubborn, settings())


def test_what_conversations_call_is_loaded_in_a_window_of_its_own():
    clock = Clock()
    rows = conversations.load_called(
        {"large": Echo(clock), "cloud": Echo(clock, remote=True)}, clock
    )
    assert [(row["role"], row["load_s"], row["load_energy_j"]) for row in rows] == [
        ("large", 3.0, 7.0),
        ("cloud", None, None),
    ]
    assert "elsewhere" in rows[1]["load_energy_reason"]
    assert rows[0]["load_energy_reason"] is None


def test_single_tokens_have_no_time_per_output_token():
    def yes_or_no(one):
        yield Call(one.messages)
        reply = yield Call(one.messages, output_tokens=1)
        return reply.text

    engine, (_, headline) = served_by(yes_or_no, settings())
    figures, table, _ = figures_of(engine, headline)
    assert math.isnan(table["tpot_ms"].iloc[1])
    assert serving.per_request(table)["latency_s"].notna().all()
    assert figures["ttft_ms"] == pytest.approx(figures["latency_s"] * 1e3)


# --- the study --------------------------------------------------------------------------------

CASCADE = """
from dataclasses import replace

from edge_eval_lib.tasks import Call
from edge_eval_lib.tasks.rag import task as rag

def converse(example):
    cheap = yield Call(example.messages)
    if cheap.text:
        return cheap.text
    return (yield Call(example.messages, role="cloud")).text

task = replace(rag, adapter_of="rag", converse=converse, roles=("cloud",), usual_calls=2)
"""


@pytest.fixture
def cascade(tmp_path, monkeypatch):
    """A task that may call another model."""
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "cascade.py").write_text(CASCADE)
    monkeypatch.setattr(tasks, "__path__", [*tasks.__path__, str(tmp_path / "tasks")])
    tasks.trained_as.cache_clear()
    return tmp_path


def cascade_study(directory, **changes):
    content = {"tasks": ("rag", "cascade"), "configurations": (("lora", "int4"),)}
    content |= {"roles": {"cloud": {"method": "lora", "precision": "fp16"}}}
    return load_study(write_tiny_study(directory, **(content | changes)))


def test_what_is_called_is_made_and_needed_by_the_run(cascade):
    study = cascade_study(cascade)
    runs = {run.name: run for run in study.runs() if run.stage in ("compress", "serve")}
    adapter = "tinyllama-0.1M_rag_lora"
    assert {*runs[adapter].precisions} == {"int4", "fp16"}
    served = runs["tinyllama-0.1M_cascade_lora_int4_r01"]
    assert served.needs == (("compress", adapter),)
    assert served.settings["roles"]["cloud"]["precision"] == "fp16"
    base = runs["tinyllama-0.1M_cascade_none_fp16_r01"]
    assert base.needs == (("compress", adapter),)
    other = cascade_study(cascade, roles={"cloud": {"method": "none", "precision": "fp16"}})
    changed = {key for key, value in hashes(other).items() if hashes(study).get(key) != value}
    assert {key[1] for key in changed if key[0] == "serve"} == {
        "tinyllama-0.1M_cascade_lora_int4_r01", "tinyllama-0.1M_cascade_none_fp16_r01",
    }  # fmt: skip


def test_roles_that_the_study_does_not_say_are_refused(cascade):
    with pytest.raises(UserError, match="the task cascade calls cloud; say under roles"):
        cascade_study(cascade, roles={})
    wrong = {"cloud": {"model": "llama-8B", "method": "none", "precision": "fp16"}}
    with pytest.raises(UserError, match="roles cloud names the model 'llama-8B'"):
        cascade_study(cascade, roles=wrong)
    with pytest.raises(UserError, match="asks several times for one answer"):
        cascade_study(cascade, workload={"engine": "openai", "arrival_rates_per_s": [1.0]})


def test_a_reply_says_nothing_of_its_certainty_unasked():
    assert Reply("text") == Reply("text", [], [])
