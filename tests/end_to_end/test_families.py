"""Five architectures, tiny, through adaptation, compression and serving by their stanza alone."""

import orjson
import pytest
import yaml
from tiny import TINY_SHAPE, tiny_study

from edge_eval_lib import adapt, compress, models
from edge_eval_lib.engines import open_engine
from edge_eval_lib.errors import UserError
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
        model = adapt.load_for_training(base, method, training, seed=1)
        adapted = [name for name, _ in model.named_modules() if name.endswith("lora_A.default")]
        assert len(adapted) == layers, "the output head must stay as it is"
        before = adapt.heldout_loss(model, tokenizer, examples.train, 4)
        outcome = adapt.train(model, tokenizer, encoded, training, 1, tmp_path / "scratch")
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
    assert len(tokenizer) <= models.LARGEST_TOKENIZER < 20_000
    assert tokenizer.decode([19_999]) == ""
    model = models.load_model(directory, "float32")
    assert model.get_output_embeddings().weight.shape == (20_000, 64)


def test_an_architecture_that_transformers_does_not_know_is_named(tmp_path, monkeypatch):
    study = study_of(tmp_path, "llama", monkeypatch, model_type="lama")
    with pytest.raises(UserError, match=r"llama-0\.1M: transformers makes no model .*lama"):
        models.model_directory(study.models[0])
