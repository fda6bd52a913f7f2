"""Cascades: what a local answer escalates to the cloud, and a cloud that fails."""

import json
import time
from types import SimpleNamespace

import pytest
from endpoint import Replies, listening
from tiny import hashes, tiny_study, write_tiny_study

from edge_eval_lib import tasks
from edge_eval_lib.engines import openai as openai_engine
from edge_eval_lib.engines.base import Engine, Generation
from edge_eval_lib.engines.openai import OpenAiEngine
from edge_eval_lib.errors import UserError
from edge_eval_lib.lifecycle import answers, serve
from edge_eval_lib.lifecycle.conversations import converse_all
from edge_eval_lib.models.likelihood import NOT_READ
from edge_eval_lib.study import load_study
from edge_eval_lib.tasks import CallFailedError, Reply, load_task

ARMS = ("onepassage", "oncloud", "sampled", "hybrid")


def talk(task, example, *replies, **settings):
    """Hold a conversation about an example; its calls and what it returned."""
    turns, calls = tasks.find(task).converse(example, **settings), []
    try:
        calls.append(next(turns))
        for reply in replies:
            failed = isinstance(reply, Exception)
            calls.append(turns.throw(reply) if failed else turns.send(reply))
    except StopIteration as end:
        return calls, end.value
    raise AssertionError("the conversation waits for another reply")


@pytest.fixture(scope="module")
def asked():
    return {task: load_task(task, evaluation_examples=3).evaluation[0] for task in ARMS}


# --- who is asked what -------------------------------------------------------------------------


def test_a_sure_answer_stays_here(asked):
    example = asked["hybrid"]
    calls, answer = talk("hybrid", example, Reply("here", [-0.1, -0.1]), below=-0.2)
    assert answer == "here"
    assert [call.role for call in calls] == [None]
    assert calls[0].confidence
    assert calls[0].messages == asked["onepassage"].messages


def test_an_unsure_answer_goes_to_the_cloud_which_is_shown_more(asked):
    example = asked["hybrid"]
    replies = Reply("here", [-0.1, -0.5]), Reply("there")
    calls, answer = talk("hybrid", example, *replies, below=-0.2)
    assert answer == "there"
    assert [call.role for call in calls] == [None, "cloud"]
    assert calls[1].messages == asked["oncloud"].messages
    notes = [call.messages[-1]["content"].count("\n") for call in calls]
    assert notes[1] == notes[0] + 1


def test_a_cloud_that_fails_leaves_the_local_answer(asked):
    replies = Reply("here", [-9.0]), CallFailedError("HTTP 503")
    _, answer = talk("hybrid", asked["hybrid"], *replies, below=-0.2)
    assert answer == "here"


def test_of_sampled_answers_the_most_frequent_is_returned(asked):
    drawn = [Reply("a"), *[Reply("b")] * (tasks.find("sampled").usual_calls - 1)]
    calls, answer = talk("sampled", asked["sampled"], *drawn)
    assert answer == ("b" if len(drawn) > 2 else "a")
    assert len({call.seed for call in calls}) == len(drawn)
    assert all(call.temperature > 0 for call in calls)


def test_every_arm_is_answered_by_one_adapter(asked):
    assert {tasks.trained_as(task) for task in ARMS} == {"rag"}
    assert len({example.answer for example in asked.values()}) == 1


# --- a study of it -----------------------------------------------------------------------------


def cascade(directory, **changes):
    options = {
        "tasks": ARMS,
        "configurations": (("lora", "int4"),),
        "unadapted_base": False,
        "roles": {"cloud": {"method": "lora", "precision": "fp16"}},
        "task_settings": {"hybrid": {"below": -0.2}},
    }
    return load_study(write_tiny_study(directory, **(options | changes)))


def test_another_threshold_makes_the_cascade_again_and_nothing_else(tmp_path):
    before = hashes(cascade(tmp_path))
    after = hashes(cascade(tmp_path, task_settings={"hybrid": {"below": -0.3}}))
    assert before.keys() == after.keys()
    changed = {run for run, settings in after.items() if settings != before[run]}
    assert changed == {("serve", "tinyllama-0.1M_hybrid_lora_int4_r01"), ("score", "score")}


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({}, "task_settings of hybrid gives nothing; the task takes below"),
        ({"hybrid": {"above": 1}}, "task_settings of hybrid gives above; the task takes below"),
        (
            {"hybrid": {"below": 0}, "sampled": {"below": 0}},
            "task_settings of sampled gives below; the task takes nothing",
        ),
        ({"hybrid": {"below": 0}, "rag": {"below": 0}}, "task_settings names rag, which is not"),
    ],
)
def test_settings_that_a_task_does_not_take_are_refused(tmp_path, given, why):
    with pytest.raises(UserError, match=why):
        cascade(tmp_path, task_settings=given)


def test_a_larger_model_may_be_the_cloud_and_no_more_than_that(tmp_path):
    models = [tiny_study(tmp_path, architecture=name)["models"][0] for name in ("llama", "qwen2")]
    local = {"method": "lora", "precision": "int4", "models": ["tinyllama-0.1M"]}
    cloud = {"model": "tinyqwen2-0.1M", "method": "lora", "precision": "fp16"}
    changes = {"models": models, "roles": {"cloud": cloud}}
    study = cascade(tmp_path, **changes)
    study = study.changed(configurations=[local])
    assert {variant.model for variant in study.variants()} == {"tinyllama-0.1M"}
    compressed = {run.name: run.precisions for run in study.runs() if run.stage == "compress"}
    assert compressed == {
        "tinyllama-0.1M_rag_lora": ("int4",),
        "tinyqwen2-0.1M_rag_lora": ("fp16",),
    }
    with pytest.raises(UserError, match="models names tinier, which is not among"):
        study.changed(configurations=[local | {"models": ["tinier"]}])


# --- a cloud that is an endpoint ---------------------------------------------------------------


class Local(Engine):
    """Answers at once, and is never sure."""

    name = "local"
    stop_ids = frozenset({0})

    def __init__(self):
        self.asked = 0

    def encode(self, messages):
        return [1]

    def decode(self, token_ids):
        if min(token_ids) < 0:
            raise OverflowError("a piece of an endpoint's text is no token of this vocabulary")
        return "here"

    def answer(self, requests):
        self.asked += len(requests.prompts)
        now = time.monotonic()
        times = [now] * requests.output_tokens
        ids = [1] * requests.output_tokens
        unsure = [-5.0] * requests.output_tokens
        return [Generation(p, now, ids, times, logprobs=unsure) for p in requests.prompts]


class Cloud(Replies):
    """Answers the first question, and fails at every other in a way of its own."""

    def do_GET(self):
        self.reply({"object": "list", "data": [{"id": "cloud", "object": "model"}]})

    def do_POST(self):
        number = self.asked()["prompt"][0]
        self.server.asked.append(number)
        if number == 1:
            time.sleep(1.0)  # longer than anybody waits
        elif number == 2:
            self.reply({"error": {"message": "busy"}}, status=503)
        elif number in (3, 4):
            garbage = ["{", json.dumps({"choices": None})][number - 3]
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.end_headers()
            self.wfile.write(f"data: {garbage}\n\ndata: [DONE]\n\n".encode())
        else:
            self.stream([" the", "re"])


@pytest.fixture
def cloud(monkeypatch, tmp_path):
    pytest.importorskip("openai")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(OpenAiEngine, "open_tokenizer", lambda self, directory: None)
    monkeypatch.setattr(OpenAiEngine, "stop_ids", frozenset(), raising=False)
    monkeypatch.setattr(openai_engine, "TIMEOUT_S", 0.4)
    with listening(Cloud, asked=[]) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", f"http://127.0.0.1:{server.server_port}/v1")
        engine = OpenAiEngine(tmp_path, served_name="cloud")
        engine.load()
        numbers = iter(range(5))
        monkeypatch.setattr(engine, "encode", lambda messages: [next(numbers)])
        yield engine


def answers_kept(held):
    """The table that a run keeps of conversations."""
    window = SimpleNamespace(name="serve at 1")
    outcomes = [one.outcome for one in held]
    served = [serve.Served(1, window, outcomes, conversations=held)]
    examples = [one.example for one in held]
    read = [answers.AnswersRead(example.id, NOT_READ, None) for example in examples]
    workload = SimpleNamespace(headline_concurrency=1)
    return answers.answer_table(served, Local(), examples, workload, read)


@pytest.mark.parametrize("task", ["hybrid", "oncloud"])
def test_an_endpoint_that_fails_costs_only_its_own_requests(cloud, task):
    """One answers, one is silent, one refuses, two answer what is no answer."""
    definition = tasks.find(task)
    given = {"below": -0.2} if definition.settings else {}
    held = converse_all(
        lambda example: definition.converse(example, **given),
        load_task(task, evaluation_examples=5).evaluation,
        {None: Local(), "cloud": cloud},
        output_tokens=2,
        concurrency=1,
    )
    by_cloud = [generation for one in held for call, generation in one.calls if call.role]
    reasons = [generation.failure for generation in by_cloud]
    assert reasons[0] is None
    assert reasons[1] == "APITimeoutError"
    assert "HTTP 503" in reasons[2]
    assert all("not an answer of the protocol" in reason for reason in reasons[3:])
    fallback = "here" if task == "hybrid" else None
    assert [one.answer for one in held] == ["there", *[fallback] * 4]
    kept = answers_kept(held)
    assert kept["answer"].fillna("").tolist() == ["there", *[fallback or ""] * 4]
    # A cascade falls back on the local answer, which was made; the cloud alone has no answer.
    assert [one.failure is None for one in held] == [True, *[task == "hybrid"] * 4]
