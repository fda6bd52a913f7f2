"""Five architectures, tiny, through adaptation, compression and serving by their stanza alone."""

import shutil

import orjson
import pandas as pd
import pytest
import torch
import training as fine_tuning
import yaml
from safetensors.torch import load_file
from tiny import TINY_SHAPE, tiny_study

from edge_eval_lib import models
from edge_eval_lib.engines import open_engine
from edge_eval_lib.errors import UserError
from edge_eval_lib.lifecycle import adapt, compress
from edge_eval_lib.lifecycle import score as scoring
from edge_eval_lib.models.random_weights import LARGEST_TOKENIZER
from edge_eval_lib.runs.weights import adapter_directory, weights_directory, weights_to_serve
from edge_eval_lib.study import load_study
from edge_eval_lib.tasks import load_task

pytestmark = pytest.mark.end_to_end

ARCHITECTURES = ["llama", "qwen2", "mistral", "gemma2", "gemma3_text", "phi3"]
# Linear layers of one decoder layer: phi3 fuses queries, keys and values, and gate and up.
LAYERS = {"phi3": 4}


def study_of(directory, architecture, monkeypatch, **config):
    """A study whose only model is a stanza with random weights in a tiny shape."""
    monkeypatch.setenv("EDGE_EVAL_OUTPUTS", str(directory / "outputs"))
    content = tiny_study(
        directory, training={"target_modules": "all-linear", "learning_rate": 5e-3, "epochs": 2}
    )
    content["models"][0] |= {"family": architecture.replace("_", "-"), "source": "random"}
    content["models"][0] |= {"location": f"tiny/{architecture}"}
    shapes = {f"tiny/{architecture}": TINY_SHAPE | {"model_type": architecture} | config}
    (directory / "shapes.yaml").write_text(yaml.safe_dump(shapes))
    path = directory / "tiny.yaml"
    path.write_text(yaml.safe_dump(content))
    return load_study(path)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_family_goes_through_the_chain_by_its_stanza_alone(architecture, tmp_path, monkeypatch):
    study = study_of(tmp_path, architecture, monkeypatch)
    examples = load_task("rag", train_examples=8, evaluation_examples=3, seed=1)
    training, layers = study.training, 2 * LAYERS.get(architecture, 7)
    base = models.model_directory(study.models[0])
    config = orjson.loads((base / "config.json").read_bytes())
    assert config["model_type"] == architecture
    assert {name: config[name] for name in TINY_SHAPE if name in config} | TINY_SHAPE == TINY_SHAPE

    tokenizer = models.load_tokenizer(base)
    encoded = adapt.encode(tokenizer, examples.train, training.max_tokens)
    for method in ("lora", "qlora"):
        model = fine_tuning.load(base, method, training, seed=1)
        adapted = [name for name, _ in model.named_modules() if name.endswith("lora_A.default")]
        assert len(adapted) == layers, "the output head must stay as it is"
        before = adapt.heldout_loss(model, tokenizer, examples.train, 4)
        outcome = fine_tuning.train(model, tokenizer, encoded, training, 1, tmp_path / "scratch")
        assert outcome.executed_dtype == "float32"
        assert adapt.heldout_loss(model, tokenizer, examples.train, 4) < before
        adapt.save_adapter(model, tmp_path / method)

    weights = {"fp16": compress.merge(base, tmp_path / "lora", tmp_path / "fp16")}
    for precision in ("int8", "int4"):
        weights[precision] = compress.quantize(
            tmp_path / "fp16", precision, "float32", tmp_path / precision
        )
    for precision, artefact in weights.items():
        assert sum(artefact.linear_layers.values()) == layers
        engine = open_engine("transformers", artefact.directory, "float32")
        engine.load()
        prompts = [engine.encode(example.messages) for example in examples.evaluation]
        generations = engine.serve(prompts, output_tokens=5, concurrency=3)
        assert [len(g.token_ids) for g in generations] == [5, 5, 5], precision
        assert all(isinstance(engine.decode(g.token_ids), str) for g in generations)


def test_deleted_weights_are_built_again_the_same(tmp_path, monkeypatch):
    study = study_of(tmp_path, "phi3", monkeypatch)
    base, variant = models.model_directory(study.models[0]), study.variants()[2]
    assert variant.precision == "int4"
    adapter = fine_tuning.load(base, "lora", study.training, seed=1)
    with torch.no_grad():
        for name, parameter in adapter.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.02)
    adapt.save_adapter(adapter, adapter_directory(study, variant.adapter))
    directory = weights_directory(study, variant)
    merged = compress.merge(base, adapter_directory(study, variant.adapter), tmp_path / "fp16")
    compress.quantize(merged.directory, "int4", "float32", directory)
    before = load_file(directory / "model.safetensors")
    shutil.rmtree(directory)
    assert weights_to_serve(study, variant) == directory
    again = load_file(directory / "model.safetensors")
    assert before.keys() == again.keys()
    assert all(torch.equal(value, again[name]) for name, value in before.items())


def test_an_adapter_that_is_missing_too_is_reported(tmp_path, monkeypatch):
    study = study_of(tmp_path, "llama", monkeypatch)
    with pytest.raises(UserError, match=r"The adapter llama-0\.1M_rag_lora is missing"):
        weights_to_serve(study, study.variants()[0])


@pytest.mark.parametrize(("free_share", "on_cpu"), [(1.0, True), (3.0, False)])
def test_a_merge_without_room_on_the_gpu_is_done_on_the_cpu(
    free_share, on_cpu, tmp_path, monkeypatch
):
    base = models.model_directory(study_of(tmp_path, "llama", monkeypatch).models[0])
    stored = sum(compress.tensor_bytes(base).values())
    asked = {}

    class Asked(Exception):
        pass

    def load(*_arguments, **options):
        asked.update(options)
        raise Asked

    monkeypatch.setattr(models, "free_device_bytes", lambda: int(free_share * stored))
    monkeypatch.setattr(models, "load_model", load)
    with pytest.raises(Asked):
        compress.merge(base, tmp_path, tmp_path / "out")
    assert asked == {"on_cpu": on_cpu}


def test_random_weights_are_made_once_and_are_the_shapes(tmp_path, monkeypatch):
    model = study_of(tmp_path, "llama", monkeypatch).models[0]
    first = models.model_directory(model)
    made = first.stat().st_mtime_ns
    assert models.model_directory(model) == first
    assert first.stat().st_mtime_ns == made
    wider = study_of(tmp_path, "llama", monkeypatch, intermediate_size=256).models[0]
    assert models.model_directory(wider) != first
    sizes = compress.tensor_bytes(models.model_directory(wider))
    assert sizes["model.layers.1.mlp.up_proj.weight"] == 2 * 64 * 256


def test_a_token_beyond_the_small_tokenizer_decodes_to_nothing(tmp_path, monkeypatch):
    study = study_of(tmp_path, "qwen2", monkeypatch, vocab_size=20_000)
    directory = models.model_directory(study.models[0])
    tokenizer = models.load_tokenizer(directory)
    assert len(tokenizer) <= LARGEST_TOKENIZER < 20_000
    assert tokenizer.decode([19_999]) == ""
    model = models.load_model(directory, "float32")
    assert model.get_output_embeddings().weight.shape == (20_000, 64)


@pytest.mark.parametrize("source", ["random", "local"])
def test_answers_of_random_weights_are_not_scored(source, tmp_path, monkeypatch):
    study = study_of(tmp_path, "llama", monkeypatch)
    model = study.models[0].model_copy(update={"source": source})
    study = study.model_copy(update={"models": [model]})
    examples = load_task("rag", "embedded", 10, 4, study.seed).evaluation
    answers = pd.DataFrame(
        {
            "prompt_id": [e.id for e in examples],
            "answer": [e.answer for e in examples],
            "reference": [e.answer for e in examples],
            "gold_nll": 1.0,
            "failure": None,
            "gold_argmax_ids": [[1]] * 4,
            "answer_tokens": 3,
        }
    )
    answers.to_parquet(tmp_path / "run.answers.parquet")
    run = dict(zip(scoring.RUN_COLUMNS, ["llama", "0.1M", "rag", "lora", "fp16", 1], strict=True))
    run["notebook"] = str(tmp_path / "run.ipynb")
    monkeypatch.setattr(scoring, "served_runs", lambda _: pd.DataFrame([run]))
    scored = scoring.together([scoring.score_served(run) for run in scoring.served(study)])
    if source == "local":
        assert (scored["score"] == 1).all()
        assert scored[["gold_nll", "top1_agreement"]].notna().all(axis=None)
    else:
        assert scored[["score", "gold_nll", "top1_agreement", "answer"]].isna().all(axis=None)
        assert set(scored["score_reason"]) == {"the model's weights are random"}


def test_an_architecture_that_transformers_does_not_know_is_named(tmp_path, monkeypatch):
    study = study_of(tmp_path, "llama", monkeypatch, model_type="lama")
    with pytest.raises(UserError, match=r"llama-0\.1M: transformers makes no model .*lama"):
        models.model_directory(study.models[0])
