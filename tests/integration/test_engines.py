"""Arrivals, sweeps, failed requests, and what engines refuse before anything is loaded."""

import json
import os
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from endpoint import Replies, listening
from hypothesis import given
from hypothesis import strategies as st
from tiny import hashes, write_tiny_study

from edge_eval_lib import engines
from edge_eval_lib.engines import open_engine
from edge_eval_lib.engines.base import Generation, ranked_reading
from edge_eval_lib.engines.openai import OpenAiEngine, note_logprobs
from edge_eval_lib.engines.vllm import placement as vllm
from edge_eval_lib.errors import UserError
from edge_eval_lib.lifecycle import compress, llm_compressor, serve
from edge_eval_lib.machine import host, nvml
from edge_eval_lib.machine.declared import load_hardware
from edge_eval_lib.study import load_study

# --- open and closed loops --------------------------------------------------------------------


@given(rate=st.floats(0.01, 1000), requests=st.integers(1, 200), seed=st.integers(0, 2**32))
def test_arrivals_rise_and_follow_from_the_seed(rate, requests, seed):
    times = serve.poisson_arrivals(rate, requests, seed)
    assert times.shape == (requests,)
    assert (np.diff(times, prepend=0.0) >= 0).all()
    assert (times == serve.poisson_arrivals(rate, requests, seed)).all()
    twice = serve.poisson_arrivals(2 * rate, requests, seed)
    assert twice == pytest.approx(times / 2)


def test_gaps_between_arrivals_are_exponential_with_the_rate():
    from scipy import stats

    gaps = np.diff(serve.poisson_arrivals(4.0, 5000, seed=1), prepend=0.0)
    assert stats.kstest(gaps, stats.expon(scale=1 / 4.0).cdf).pvalue > 0.01
    assert gaps.mean() == pytest.approx(0.25, rel=0.05)


@pytest.mark.parametrize(
    ("rate", "requests", "named"), [(0, 1, "rate_per_s"), (-1, 1, "rate_per_s"), (1, 0, "requests")]
)
def test_impossible_arrivals_are_refused(rate, requests, named):
    with pytest.raises(ValueError, match=named):
        serve.poisson_arrivals(rate, requests, seed=0)


@pytest.mark.parametrize(
    ("throughput", "largest", "measured"),
    [
        ({1: 10, 2: 20, 4: 39, 8: 40, 16: 80}, 64, [1, 2, 4, 8]),  # 40 / 39 is no 5 % more
        ({1: 10, 2: 9}, 64, [1, 2]),
        ({1: 10, 2: 20, 4: 40}, 6, [1, 2, 4]),  # the largest allowed ends it
        ({1: 10}, 1, [1]),
        ({1: 0, 2: 0}, 8, [1, 2, 4, 8]),  # nothing answered: no saturation is seen
    ],
)
def test_concurrency_doubles_until_throughput_saturates(throughput, largest, measured):
    found = serve.sweep_until_saturated(
        lambda concurrency: concurrency, lambda c: throughput.get(c, 0), largest
    )
    assert found == measured


# --- likelihoods from ranked tokens -----------------------------------------------------------


def test_the_likelihood_is_the_gold_tokens_mean_and_the_first_rank_the_models_choice():
    found = ranked_reading([5, 6], [{5: (-0.5, 1)}, {6: (-2.0, 3), 9: (-0.1, 1)}])
    assert found.nll == pytest.approx(1.25)
    assert found.argmax_ids == [5, 9]


def test_how_sure_an_endpoint_was_is_what_it_says_of_two_tokens():
    answer = Generation([1], 0.0)
    said = SimpleNamespace(token_logprobs=[-0.5, -0.1], top_logprobs=[{"a": -0.5, "b": -1.5}, None])
    note_logprobs(answer, None)  # it says nothing
    note_logprobs(answer, said)
    assert answer.logprobs == [-0.5, -0.1]
    assert answer.margins[0] == pytest.approx(np.exp(-0.5) - np.exp(-1.5))
    assert np.isnan(answer.margins[1])


# --- what is refused before anything is loaded ------------------------------------------------


def test_unknown_engines_and_options_are_refused(tmp_path):
    with pytest.raises(ValueError, match="there is no engine 'tgi'"):
        open_engine("tgi", tmp_path, "float32")
    with pytest.raises(ValueError, match="prefix_caching"):
        open_engine("openai", tmp_path, "float32", prefix_caching=True)
    with pytest.raises(ValueError, match="'transformers' answers batch by batch"):
        open_engine("transformers", tmp_path, "float32").serve_arrivals([[7]], 3, [0.0])


def write_config(directory, **quantization):
    directory.mkdir(exist_ok=True)
    (directory / "config.json").write_text(json.dumps({"quantization_config": quantization}))
    return directory


W4A16 = {
    "quant_method": "compressed-tensors",
    "config_groups": {"group_0": {"weights": {"num_bits": 4}, "input_activations": None}},
}
W8A8 = {
    "quant_method": "compressed-tensors",
    "config_groups": {
        "group_0": {"weights": {"num_bits": 8}, "input_activations": {"num_bits": 8}}
    },
}


def test_weights_that_vllm_does_not_serve_here_are_named(tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"x was quantised with bitsandbytes.*engine: vllm"):
        vllm.refuse_unservable(write_config(tmp_path / "x", quant_method="bitsandbytes"))
    monkeypatch.setattr(nvml, "visible_indices", list)
    monkeypatch.setattr(host, "cpu_flags", lambda: ["avx2"])
    for four_bits in (W4A16, {"quant_method": "gptq", "bits": 4}):
        with pytest.raises(UserError, match=r"y has 4-bit weights.*AVX-512"):
            vllm.refuse_unservable(write_config(tmp_path / "y", **four_bits))
    vllm.refuse_unservable(write_config(tmp_path / "y", **W8A8))
    monkeypatch.setattr(host, "cpu_flags", lambda: ["avx2", "avx512"])
    vllm.refuse_unservable(write_config(tmp_path / "y", **W4A16))
    monkeypatch.setattr(host, "cpu_flags", lambda: ["avx2"])
    monkeypatch.setattr(nvml, "visible_indices", lambda: [0])
    vllm.refuse_unservable(write_config(tmp_path / "y", **W4A16))


def test_how_weights_are_quantised_is_read_from_their_configuration(tmp_path):
    read = vllm.read_quantization
    expected = {"method": "compressed-tensors", "weight_bits": 8, "input_bits": 8}
    assert read(write_config(tmp_path, **W8A8)) == expected
    assert read(write_config(tmp_path, **W4A16)) == expected | {
        "weight_bits": 4,
        "input_bits": None,
    }
    (tmp_path / "config.json").write_text("{}")
    assert read(tmp_path) == {}


@pytest.mark.parametrize(("rank", "told"), [(4, 8), (8, 8), (16, 16), (20, 32)])
def test_vllm_is_given_a_rank_that_it_knows(tmp_path, rank, told):
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": rank}))
    assert vllm.lora_rank(tmp_path) == told


def test_vllm_computes_in_what_the_device_has(monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for flags, dtype in ((["avx2"], "float32"), (["avx512", "amx"], "bfloat16")):
        monkeypatch.setattr(host, "cpu_flags", lambda flags=flags: flags)
        assert vllm.serving_dtype("float16", weight_bits=8) == (dtype, False)
        assert vllm.serving_dtype("float16") == ("float32", False)
    assert vllm.serving_dtype("float16", weight_bits=4) == ("bfloat16", False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Tesla T4")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 5))
    with pytest.raises(UserError, match=r"Tesla T4 has no bfloat16; set training\.compute_dtype"):
        vllm.serving_dtype("bfloat16")
    assert vllm.serving_dtype("float16") == ("float16", True)


def test_a_missing_llm_compressor_is_refused_in_a_sentence(tmp_path, monkeypatch):
    monkeypatch.setenv(llm_compressor.PYTHON_VARIABLE, str(tmp_path / "python"))
    with pytest.raises(UserError, match="run make llm-compressor"):
        compress.quantize(tmp_path, "int8", "float32", tmp_path / "target", "vllm")
    with pytest.raises(ValueError, match="there is no compression 'int2'; there are "):
        compress.quantize(tmp_path, "int2", "float32", tmp_path / "target", "vllm")


# --- an endpoint ------------------------------------------------------------------------------


class Endpoint(Replies):
    """Answers as small servers do: no token ids, one piece of text a token."""

    pieces = (" a", " b", " a")

    def do_GET(self):
        self.reply({"object": "list", "data": [{"id": "variant", "object": "model"}]})

    def do_POST(self):
        asked = self.asked()
        self.server.asked.append((asked, self.headers["Authorization"]))
        if asked["prompt"] == [0]:
            self.reply({"error": {"message": "busy"}}, status=503)
        elif "prompt_logprobs" in asked:  # it knows nothing of them
            self.reply({"id": "1", "choices": [{"index": 0, "text": "x"}]})
        else:
            pieces = self.pieces[: 1 if asked["prompt"] == [9] else None]
            self.stream(pieces, cut=asked["prompt"] == [8])


@pytest.fixture
def endpoint(monkeypatch):
    pytest.importorskip("openai")
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(OpenAiEngine, "open_tokenizer", lambda self, directory: None)
    with listening(Endpoint, asked=[]) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", f"http://127.0.0.1:{server.server_port}/v1")
        yield server


def test_an_endpoint_without_token_ids_gives_a_time_for_every_piece(endpoint, tmp_path):
    engine = OpenAiEngine(tmp_path, served_name="variant")
    engine.load()
    first, second = engine.serve([[1, 2], [3]], output_tokens=3, concurrency=2)
    assert first.failure is second.failure is None
    assert first.token_ids == [-1, -2, -1]
    assert engine.decode(first.token_ids) == "a b a"
    assert len(first.token_times_s) == 3
    assert first.submitted_s <= first.token_times_s[0] <= first.token_times_s[-1]
    asked, authorization = endpoint.asked[0]
    assert authorization == "Bearer secret"
    assert asked["ignore_eos"] is True
    assert (asked["temperature"], asked["max_tokens"], asked["stream"]) == (0.0, 3, True)


def test_an_answer_that_ends_at_once_is_empty(endpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(Endpoint, "pieces", ())
    engine = OpenAiEngine(tmp_path, served_name="variant")
    engine.load()
    (answer,) = engine.serve([[1]], output_tokens=3, concurrency=1, until_end=True)
    assert (answer.token_ids, answer.failure) == ([], None)


def test_requests_that_fail_at_an_endpoint_say_why_and_are_not_repeated(endpoint, tmp_path):
    engine = OpenAiEngine(tmp_path, served_name="variant")
    engine.load()
    busy, whole, short, cut = engine.serve([[0], [1], [9], [8]], output_tokens=3, concurrency=1)
    assert "HTTP 503" in busy.failure
    assert whole.failure is None
    assert short.failure == "ended after 1 of 3 tokens"
    assert cut.failure == "APIConnectionError"
    assert [asked["prompt"] for asked, _ in endpoint.asked] == [[0], [1], [9], [8]]


def test_requests_of_an_open_loop_count_from_when_they_were_due(endpoint, tmp_path):
    engine = OpenAiEngine(tmp_path, served_name="variant")
    engine.load()
    first, second = engine.serve_arrivals([[1], [2]], output_tokens=3, arrivals_s=[0.0, 0.2])
    assert second.submitted_s - first.submitted_s == pytest.approx(0.2, abs=1e-6)
    assert second.token_times_s[0] >= second.submitted_s


def test_an_endpoint_that_is_not_there_or_serves_another_model_is_reported(
    endpoint, tmp_path, monkeypatch
):
    with pytest.raises(UserError, match="offers no model 'other' but variant"):
        OpenAiEngine(tmp_path, served_name="other").load()
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")
    with pytest.raises(UserError, match="cannot be reached") as refused:
        OpenAiEngine(tmp_path, served_name="variant").load()
    assert "127.0.0.1" not in str(refused.value)
    monkeypatch.delenv("OPENAI_BASE_URL")
    with pytest.raises(UserError, match="environment variable OPENAI_BASE_URL"):
        OpenAiEngine(tmp_path, served_name="variant").load()


def test_an_engine_works_inside_a_running_event_loop(endpoint, tmp_path):
    import asyncio

    engine = OpenAiEngine(tmp_path, served_name="variant")

    async def as_in_a_notebook():
        engine.load()
        return engine.serve([[1]], output_tokens=3, concurrency=1)

    assert asyncio.run(as_in_a_notebook())[0].failure is None


# --- what a study says of its engine ----------------------------------------------------------


def load(directory, **changes):
    (directory / "llama").mkdir(exist_ok=True)
    return load_study(write_tiny_study(directory, **changes))


def test_another_engine_compresses_and_serves_anew_but_adapts_as_before(tmp_path):
    before = hashes(load(tmp_path))
    after = hashes(load(tmp_path, workload={"engine": "vllm"}))
    calibrated = hashes(load(tmp_path, workload={"engine": "vllm"}, calibration_examples=4))
    for stage, name in before:
        same = before[stage, name] == after[stage, name]
        assert same == (stage in ("preflight", "adapt")), (stage, name)
        if stage == "compress":
            assert after[stage, name] != calibrated[stage, name]


def test_options_at_their_default_do_not_change_what_a_run_is(tmp_path):
    plain = load(tmp_path, workload={"engine": "vllm"})
    told = load(tmp_path, workload={"engine": "vllm", "prefix_caching": False})
    cached = load(tmp_path, workload={"engine": "vllm", "prefix_caching": True})
    assert hashes(plain) == hashes(told) != hashes(cached)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        (
            {"workload": {"engine": "openai", "prefix_caching": True}},
            "prefix_caching needs engine: transformers or vllm",
        ),
        ({"calibration_examples": 4}, "calibration_examples needs workload.engine: vllm"),
        (
            {"workload": {"engine": "vllm"}, "calibration_examples": 99},
            "calibration_examples is 99, more than the 8 of data.train_examples",
        ),
        (
            {"workload": {"engine": "vlm"}},
            "workload.engine' is 'vlm', but there is no such engine; did you mean 'vllm'",
        ),
    ],
)
def test_an_engine_that_a_study_may_not_have_is_reported(tmp_path, changes, complaint):
    with pytest.raises(UserError, match=complaint):
        load(tmp_path, **changes)


# --- an engine from outside -------------------------------------------------------------------

ECHO = """
from edge_eval_lib.engines.base import Engine, Generation

class Echo(Engine):
    name = "echo"
    continuous_batching = True
    least_capability = {"int8": "9.0"}

    def load(self):
        self.loaded = True

    def answer(self, requests):
        n = requests.output_tokens
        return [Generation(p, 0.0, p[:1] * n, [1.0] * n) for p in requests.prompts]

    def executed_dtype(self):
        return self.compute_dtype

ENGINE = Echo
"""


@pytest.fixture
def echo(tmp_path, monkeypatch):
    """A new engine: one file in a folder outside the library."""
    folder = tmp_path / "mine" / "engines"
    folder.mkdir(parents=True)
    (folder / "echo.py").write_text(ECHO)
    monkeypatch.setattr(engines, "__path__", [*engines.__path__, str(folder)])
    yield
    sys.modules.pop("edge_eval_lib.engines.echo", None)


def test_a_new_engine_is_one_file_and_a_name_in_the_study(echo, tmp_path):
    study = load(tmp_path, workload={"engine": "echo", "arrival_rates_per_s": [2.0]})
    assert study.workload.engine == "echo"
    assert study.workload.engine_kind.missing(study) == []
    t4 = load_hardware("t4")
    why = study.workload.engine_kind.lacking("int8", t4, "t4")
    assert why == "needs compute capability 9.0, and t4 has 7.5"
    engine = open_engine(study.workload.engine, tmp_path, "float32", served_name="variant")
    engine.load()
    (answer,) = engine.serve([[7, 8]], output_tokens=3, concurrency=1)
    assert (answer.token_ids, answer.failure, engine.remote) == ([7, 7, 7], None, False)
    assert hashes(study) != hashes(load(tmp_path))
    with pytest.raises(
        UserError, match=r"prefix_caching needs engine: transformers or vllm, not echo"
    ):
        load(tmp_path, workload={"engine": "echo", "prefix_caching": True})


def test_a_folder_that_the_environment_names_holds_engines(echo, tmp_path):
    program = (
        "from edge_eval_lib import engines; print(*engines.names(), engines.kind('echo').name)"
    )
    environment = os.environ | {"EDGE_EVAL_EXTENSIONS": str(tmp_path / "mine")}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=environment
    )
    assert done.stdout.split() == ["echo", "openai", "transformers", "vllm", "echo"], done.stderr


def test_what_an_engine_can_is_known_without_its_libraries():
    program = (
        "import sys\n"
        "from edge_eval_lib import engines\n"
        "assert engines.able('supports_prefix_caching') == 'transformers or vllm'\n"
        "assert engines.able('remote', False) == 'transformers or vllm'\n"
        "assert not {'torch', 'transformers', 'vllm', 'openai'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
