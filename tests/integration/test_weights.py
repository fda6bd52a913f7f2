"""What is read of weights without torch: whether they are whole, numbers, and as a study says."""

import ast
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from IPython.core.inputtransformer2 import TransformerManager
from safetensors.numpy import save_file
from safetensors.torch import save_file as save_torch
from tiny import tiny_study

from edge_eval_lib import models
from edge_eval_lib.errors import UserError
from edge_eval_lib.models import weights
from edge_eval_lib.paths import project_root
from edge_eval_lib.runs import plan, problems
from edge_eval_lib.study import load_study

PARTS = {
    "model.embed_tokens.weight": (1024, 64),
    "model.layers.0.self_attn.q_proj.weight": (64, 64),
    "model.layers.0.mlp.down_proj.weight": (64, 128),
    "model.layers.0.input_layernorm.weight": (64,),
}
CONFIG = {"vocab_size": 1024, "hidden_size": 64}


def arrays():
    rng = np.random.default_rng(0)
    return {name: rng.standard_normal(shape).astype(np.float16) for name, shape in PARTS.items()}


@pytest.fixture(autouse=True)
def outputs(tmp_path, monkeypatch):
    monkeypatch.setenv("EDGE_EVAL_OUTPUTS", str(tmp_path / "outputs"))
    return tmp_path / "outputs"


@pytest.fixture
def directory(tmp_path):
    """A model in one file."""
    made = tmp_path / "llama"
    made.mkdir()
    save_file(arrays(), made / "model.safetensors")
    (made / "config.json").write_text(json.dumps(CONFIG))
    return made


@pytest.fixture
def sharded(tmp_path):
    """The same model in two files with their index."""
    made = tmp_path / "sharded"
    made.mkdir()
    names, index = list(PARTS), {}
    for shard, held in enumerate((names[:2], names[2:]), start=1):
        file = f"model-0000{shard}-of-00002.safetensors"
        save_file({name: arrays()[name] for name in held}, made / file)
        index |= dict.fromkeys(held, file)
    (made / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    (made / "config.json").write_text(json.dumps(CONFIG))
    return made


def test_one_file_and_shards_hold_the_same(directory, sharded):
    one, two = weights.require_sound(directory), weights.require_sound(sharded)
    assert one.keys() == two.keys() == PARTS.keys()
    assert {name: tensor.shape for name, tensor in one.items()} == PARTS
    assert {name: tensor.nbytes for name, tensor in two.items()} == {
        name: 2 * int(np.prod(shape)) for name, shape in PARTS.items()
    }


def cut(file, change):
    content = file.read_bytes()
    file.write_bytes(content[:change] if change < 0 else content + b"\0" * change)


DAMAGE = {
    "a byte short": (lambda d: cut(d / "model.safetensors", -1), "damaged or cut short"),
    "half": (lambda d: cut(d / "model.safetensors", -70_000), "damaged or cut short"),
    "longer": (lambda d: cut(d / "model.safetensors", 8), "damaged or cut short"),
    "empty": (lambda d: (d / "model.safetensors").write_bytes(b""), "damaged or cut short"),
    "text": (lambda d: (d / "model.safetensors").write_text("version https://git-lfs"), "damaged"),
    "none": (lambda d: (d / "model.safetensors").unlink(), "holds no weights"),
    "pickle": (
        lambda d: (d / "model.safetensors").rename(d / "pytorch_model.bin"),
        r"pytorch_model\.bin only; safetensors are needed",
    ),
    "gguf": (lambda d: (d / "model.safetensors").rename(d / "m.gguf"), r"m\.gguf only"),
    "other name": (
        lambda d: (d / "model.safetensors").rename(d / "consolidated.safetensors"),
        "neither model.safetensors nor",
    ),
    "no directory": (shutil.rmtree, "there is no directory"),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_damaged_weights_are_refused_by_their_place(what, directory):
    damage, complaint = DAMAGE[what]
    damage(directory)
    with pytest.raises(UserError, match=complaint) as told:
        weights.require_sound(directory)
    assert str(directory) in str(told.value)


def reindex(directory, change):
    file = directory / "model.safetensors.index.json"
    index = json.loads(file.read_text())
    change(index["weight_map"])
    file.write_text(json.dumps(index))


FIRST, SECOND = (f"model-0000{n}-of-00002.safetensors" for n in (1, 2))
SHARDS = {
    "absent": (lambda d: (d / SECOND).unlink(), f"names {SECOND}, which is not there"),
    "cut": (lambda d: cut(d / SECOND, -1), f"{SECOND} is damaged or cut short"),
    "of another model": (
        lambda d: save_file({"model.layers.9.x.weight": np.ones((2, 2))}, d / SECOND),
        "lacks model.layers.0",
    ),
    "with more": (
        lambda d: reindex(d, lambda index: index.pop("model.layers.0.mlp.down_proj.weight")),
        "its index does not name",
    ),
    "swapped": (
        lambda d: reindex(d, lambda index: index.update(dict.fromkeys(index, FIRST))),
        "lacks model.layers.0",
    ),
    "twice": (lambda d: save_file(arrays(), d / SECOND), f"as {FIRST} does"),
    "without index": (
        lambda d: (d / "model.safetensors.index.json").unlink(),
        "neither model.safetensors nor",
    ),
    "index is no JSON": (
        lambda d: (d / "model.safetensors.index.json").write_text("{"),
        "cannot be read as JSON",
    ),
    "index of nothing": (
        lambda d: (d / "model.safetensors.index.json").write_text("{}"),
        "has no weight_map",
    ),
}


@pytest.mark.parametrize("what", SHARDS)
def test_shards_that_do_not_belong_together_are_refused(what, sharded):
    damage, complaint = SHARDS[what]
    damage(sharded)
    with pytest.raises(UserError, match=complaint):
        weights.read_tensors(sharded)


DTYPES = {
    torch.float64: torch.int64,
    torch.float32: torch.int32,
    torch.float16: torch.int16,
    torch.bfloat16: torch.int16,
    torch.float8_e5m2: torch.int8,
    torch.float8_e4m3fn: torch.int8,
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_what_is_no_number_is_counted_as_torch_counts_it(dtype, data, tmp_path_factory):
    bits = 8 * dtype.itemsize
    patterns = st.integers(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    drawn = data.draw(st.lists(patterns, min_size=1, max_size=40))
    values = torch.tensor(drawn, dtype=DTYPES[dtype]).view(dtype)
    directory = tmp_path_factory.mktemp("values")
    save_torch({"x": values}, directory / "model.safetensors")
    expected = int((~torch.isfinite(values.double())).sum())
    (tensor,) = weights.read_tensors(directory).values()
    assert weights._not_numbers(tensor) == expected
    if expected:
        with pytest.raises(UserError, match=f"{expected} of the {len(drawn)} values of x are NaN"):
            weights.require_sound(directory)
    else:
        weights.require_sound(directory)


def test_integers_are_no_nan_whatever_their_bits(tmp_path):
    save_file({"x": np.full(9, -1, np.int32)}, tmp_path / "model.safetensors")
    weights.require_sound(tmp_path)


def test_a_value_beyond_the_first_piece_that_is_read_is_seen(directory, monkeypatch):
    monkeypatch.setattr(weights, "CHUNK_BYTES", 64)
    held = arrays()
    held["model.layers.0.mlp.down_proj.weight"][-1, -1] = np.inf
    save_file(held, directory / "model.safetensors")
    with pytest.raises(UserError, match=r"1 of the 8192 values of model\.layers\.0\.mlp\.down"):
        weights.require_sound(directory)


def test_values_are_read_once_and_again_when_a_file_changed(directory, outputs, monkeypatch):
    read = []
    original = weights.require_numbers
    monkeypatch.setattr(weights, "require_numbers", lambda t: read.append(1) or original(t))
    before = sorted(directory.iterdir())
    for _ in range(3):
        weights.require_sound(directory)
    assert len(read) == 1
    assert sorted(directory.iterdir()) == before, "a person's directory stays as it is"
    assert list((outputs / "models").rglob("*.numbers"))
    os.utime(directory / "model.safetensors", ns=(1, 1))
    weights.require_sound(directory)
    assert len(read) == 2
    held = arrays()
    held["model.embed_tokens.weight"][0, 0] = np.nan
    save_file(held, directory / "model.safetensors")
    for _ in range(2):
        with pytest.raises(UserError, match="embed_tokens"):
            weights.require_sound(directory)


# --- what the study says of them --------------------------------------------------------------


@pytest.mark.parametrize(
    ("parameters", "nominal", "complaint"),
    [
        (77_888, {"fp16": 1.6e-4, "int8": 8e-5, "int4": 4e-5}, None),
        (60_000, {"fp16": 1.2e-4, "int4": 1e-4}, None),
        (1_000_000_000, {}, "parameters is 1000000000, but its weights hold 77888; write 77888"),
        (1, {}, "write 77888"),
        (77_888, {"fp16": 160.0}, r"nominal_gb of fp16 is 160, .* write 0\.000156"),
        (77_888, {"int4": 1e-6}, r"nominal_gb of int4 .* write 3\.89e-05"),
    ],
)
def test_a_size_that_the_weights_contradict_is_refused(directory, parameters, nominal, complaint):
    held = weights.read_tensors(directory)
    assert sum(tensor.elements for tensor in held.values()) == 77_888
    found = weights.contradiction(held, parameters, nominal)
    if complaint is None:
        assert found is None
    else:
        with pytest.raises(AssertionError, match=complaint):
            raise AssertionError(found)


@pytest.mark.parametrize(
    ("wanted", "lacking"),
    [
        (["q_proj", "down_proj"], None),
        (["self_attn.q_proj"], None),
        (["lm_head"], None),
        (["q_proj", "query_key_value"], "names query_key_value, .* there is: down_proj, q_proj"),
        (["proj"], "names proj"),
    ],
)
def test_target_modules_that_the_model_lacks_are_named_with_those_it_has(
    directory, wanted, lacking
):
    layers = weights.linear_layers(weights.read_tensors(directory))
    assert layers == {
        "model.layers.0.self_attn.q_proj": (64, 64),
        "model.layers.0.mlp.down_proj": (64, 128),
    }
    found = weights.lacking_modules(layers, wanted)
    assert (found is None) == (lacking is None)
    if lacking:
        with pytest.raises(AssertionError, match=lacking):
            raise AssertionError(found)


@pytest.mark.parametrize(
    ("vocabulary", "added", "refused"),
    [
        ({"a": 0, "b": 1023}, [], False),
        ({"a": 0, "b": 1024}, [], True),
        ({"a": 0, "<image>": 1024}, [1024], False),
        ([["a", 0.0]] * 1024, [], False),
        ([["a", 0.0]] * 1025, [], True),
    ],
)
def test_a_tokenizer_with_tokens_beyond_the_embedding_is_refused(
    directory, vocabulary, added, refused
):
    told = {"model": {"vocab": vocabulary}, "added_tokens": [{"id": i} for i in added]}
    (directory / "tokenizer.json").write_text(json.dumps(told))
    if refused:
        with pytest.raises(UserError, match=r"has token 1024, but config\.json gives the"):
            weights.require_vocabulary(directory)
    else:
        weights.require_vocabulary(directory)


def study_in(directory, **changes):
    content = tiny_study(directory, training={"target_modules": ["q_proj", "down_proj"]})
    content["models"][0] |= {"parameters": 77_888} | changes.pop("model", {})
    content |= changes
    path = directory / "tiny.yaml"
    path.write_text(yaml.safe_dump(content))
    return load_study(path)


def test_a_local_model_that_is_whole_has_no_problem(directory, tmp_path):
    # Layers this small gain little from NF4: each carries its tables.
    configurations = [{"method": "lora", "precision": "fp16"}]
    study = study_in(tmp_path, configurations=configurations)
    assert models.weight_problems(study) == []
    assert "torch" not in Path(weights.__file__).read_text().replace("without torch", "")


@pytest.mark.parametrize("what", ["no directory", "pickle", "half"])
def test_the_plan_names_a_model_whose_weights_are_not_there(what, directory, tmp_path):
    DAMAGE[what][0](directory)
    study = study_in(tmp_path)
    (told,) = models.weight_problems(study)
    assert told.startswith("tinyllama-0.1M_rag_lora_fp16 cannot run: model tinyllama-0.1M: ")
    with pytest.raises(UserError) as refused:
        problems.require_possible(study)
    assert told in str(refused.value)
    assert "Nothing is missing" not in plan.describe(study)
    assert told in plan.describe(study)


def test_a_package_that_is_missing_is_reported_by_the_plan(tmp_path):
    model = {"source": "package", "location": "no_such_package/x.gguf", "revision": "1"}
    (told,) = models.weight_problems(study_in(tmp_path, model=model))
    assert "the package 'no_such_package' is not installed" in told


def test_what_headers_say_against_a_study_is_reported_at_once(directory, tmp_path):
    study = study_in(
        tmp_path,
        model={"parameters": 10**9},
        training={
            **tiny_study(tmp_path)["training"],
            "target_modules": ["query_key_value"],
        },
    )
    told = "\n".join(models.weight_problems(study))
    assert "Model tinyllama-0.1M: parameters is 1000000000" in told
    assert "tinyllama-0.1M_rag_lora_fp16 cannot be adapted: training.target_modules names" in told
    assert "take 0." not in told


def test_layers_too_small_for_nf4_are_reported_before_the_run(directory, tmp_path):
    small = arrays() | {"model.layers.0.self_attn.q_proj.weight": np.ones((16, 16), np.float16)}
    small["model.layers.0.mlp.down_proj.weight"] = np.ones((16, 16), np.float16)
    save_file(small, directory / "model.safetensors")
    (told,) = models.weight_problems(study_in(tmp_path, model={"nominal_gb": {}}))
    assert "tinyllama-0.1M_rag_lora_int4 cannot be compressed: its layers are so small" in told


def test_layers_that_vllm_cannot_group_are_reported_before_the_run(directory, tmp_path):
    odd = arrays() | {"model.layers.0.mlp.down_proj.weight": np.ones((64, 100), np.float16)}
    save_file(odd, directory / "model.safetensors")
    workload = tiny_study(tmp_path)["workload"] | {"engine": "vllm"}
    (told,) = models.weight_problems(study_in(tmp_path, workload=workload))
    assert "down_proj has 100 inputs, which no group of 32 divides" in told


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"source": "package", "location": "a/x.gguf", "revision": "../../x"}, "the revision"),
        ({"source": "package", "location": "a/x.gguf", "revision": "a/b"}, "the revision"),
        ({"source": "package", "location": "a/x.gguf", "revision": "/etc"}, "the revision"),
        ({"source": "package", "location": "a/x.gguf", "revision": "v" * 300}, "revision"),
        ({"source": "package", "location": "a/../../x.gguf", "revision": "1"}, "PACKAGE/FILE"),
        ({"source": "package", "location": "x.gguf", "revision": "1"}, "PACKAGE/FILE"),
        ({"source": "hub", "location": "../x", "revision": "1"}, "OWNER/NAME"),
        ({"source": "hub", "location": "a/b", "revision": "../../x"}, "the revision"),
        ({"source": "hub", "location": "a/b", "revision": "refs/../../x"}, "the revision"),
        ({"source": "hub", "location": "a/b", "revision": "a\\..\\b"}, "the revision"),
    ],
)
def test_a_revision_or_location_cannot_leave_its_place(change, complaint, tmp_path):
    with pytest.raises(UserError, match=complaint):
        study_in(tmp_path, model=change)


@pytest.mark.parametrize("revision", ["main", "refs/pr/1", "v1.0-rc+2", "9213176726f574b556790"])
def test_revisions_as_the_hub_has_them_are_taken(revision, tmp_path):
    study = study_in(
        tmp_path, model={"source": "hub", "location": "a/b", "revision": revision, "config": None}
    )
    assert study.models[0].revision == revision


def test_a_config_that_refers_to_itself_is_refused_in_a_sentence(tmp_path):
    study_in(tmp_path)
    file = tmp_path / "tiny.yaml"
    looped = "- config: &loop {model_type: llama, more: *loop}\n  family:"
    file.write_text(file.read_text().replace("- family:", looped, 1))
    with pytest.raises(UserError, match="refers to itself"):
        load_study(tmp_path / "tiny.yaml")


def test_every_linear_layer_is_the_default_target(tmp_path):
    training = tiny_study(tmp_path)["training"]
    training.pop("target_modules")
    assert study_in(tmp_path, training=training).training.target_modules == "all-linear"


# --- no code of a model's own is ever run -------------------------------------------------------

# What loads something that may come with code, and what is never asked to run any.
LOADERS = ("from_pretrained", "from_config", "load_dataset", "SentenceTransformer", "EngineArgs")
LOADERS += ("LLM", "HFLM", "VLLM", "oneshot", "pipeline", "snapshot_load")
HARMLESS = {"PeftModel", "GenerationConfig"}  # adapters and settings: neither has code to run


def sources():
    for file in sorted((project_root() / "edge_eval_lib").rglob("*.py")):
        yield file.name, file.read_text(encoding="utf-8")
    for file in sorted((project_root() / "notebooks").rglob("*.ipynb")):
        cells = json.loads(file.read_text(encoding="utf-8"))["cells"]
        for cell in cells:
            if cell["cell_type"] == "code":
                code = TransformerManager().transform_cell("".join(cell["source"]))  # of magics
                yield f"{file.name} {cell.get('id')}", code


def test_no_loader_may_run_a_models_own_code():
    seen, lax = [], []
    for place, text in sources():
        for node in ast.walk(ast.parse(text)):
            if not isinstance(node, ast.Call):
                continue
            name = getattr(node.func, "attr", getattr(node.func, "id", None))
            owner = getattr(getattr(node.func, "value", None), "id", None)
            if name not in LOADERS or owner in HARMLESS:
                continue
            seen.append(name)
            told = {keyword.arg: getattr(keyword.value, "value", None) for keyword in node.keywords}
            if not any(told.get(f"trust_remote_code{end}") is False for end in ("", "_model")):
                lax.append(f"{place}:{node.lineno} {name}")
    assert {"from_pretrained", "from_config", "EngineArgs", "HFLM", "VLLM", "oneshot"} <= set(seen)
    assert lax == []


def test_training_beyond_the_model_s_context_is_refused_before_a_run(directory, tmp_path):
    (directory / "config.json").write_text(json.dumps(CONFIG | {"max_position_embeddings": 1024}))
    training = tiny_study(tmp_path)["training"] | {"max_tokens": 2000}
    one = [{"method": "lora", "precision": "fp16"}]
    study = study_in(
        tmp_path, training=training | {"target_modules": "all-linear"}, configurations=one
    )
    (told,) = models.weight_problems(study)
    assert told.endswith(
        "cannot be adapted: training.max_tokens is 2,000, but the model's context holds 1,024 "
        "tokens (max_position_embeddings); lower it."
    )
