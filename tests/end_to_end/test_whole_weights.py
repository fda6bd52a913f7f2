"""Weights that are not those of their configuration, or no numbers, never give a figure."""

import json
import shutil
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
import training as fine_tuning
from safetensors.torch import load_file, save_file
from tiny import TINY_SHAPE, make_tiny_model, make_tiny_study

from edge_eval_lib import models
from edge_eval_lib.engines import open_engine
from edge_eval_lib.errors import UserError
from edge_eval_lib.lifecycle import adapt, compress
from edge_eval_lib.models import load, weights
from edge_eval_lib.paths import project_root
from edge_eval_lib.runs.weights import adapter_directory, weights_to_serve
from edge_eval_lib.study import Training, load_study
from edge_eval_lib.tasks import load_task

pytestmark = pytest.mark.end_to_end

TRAINING = Training(
    lora_rank=4,
    lora_alpha=8,
    lora_dropout=0.0,
    learning_rate=5e-3,
    batch_size=4,
    epochs=1,
    max_tokens=512,
    compute_dtype="float32",
    gradient_checkpointing=False,
)
SCALES = ("absmax", "quant_map", "nested_absmax", "nested_quant_map")
LAYER = "model.layers.1.mlp.down_proj"


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return make_tiny_model(tmp_path_factory.mktemp("whole") / "llama")


@pytest.fixture(autouse=True)
def outputs(tmp_path, monkeypatch):
    monkeypatch.setenv("EDGE_EVAL_OUTPUTS", str(tmp_path / "outputs"))


@pytest.fixture
def copy(llama, tmp_path):
    """The model in a directory that the test may spoil."""
    return shutil.copytree(llama, tmp_path / "llama")


@pytest.fixture(scope="module")
def adapter(llama, tmp_path_factory):
    """An adapter of the model whose every tensor is other than at its start."""
    model = fine_tuning.load(llama, "lora", TRAINING, seed=1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.02)
    target = tmp_path_factory.mktemp("adapters") / "adapter"
    adapt.save_adapter(model, target)
    return target


@pytest.fixture
def spoiled(adapter, tmp_path):
    return shutil.copytree(adapter, tmp_path / "adapter")


def change(file, edit):
    """Edit the tensors of a file in place."""
    tensors = {name: value.clone() for name, value in load_file(file).items()}
    edit(tensors)
    save_file(tensors, file, metadata={"format": "pt"})


def configure(directory, **changes):
    file = directory / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def first(tensors, end):
    return next(name for name in tensors if name.endswith(end))


CONFIGURED = {
    "more layers": ({"num_hidden_layers": 4}, r"missing: model\.layers\.2\..* and 17 more"),
    "fewer layers": ({"num_hidden_layers": 1}, r"not the model's: model\.layers\.1\..* and 8 more"),
    "bert": ({"model_type": "bert"}, "missing: bert"),
    "qwen2": ({"model_type": "qwen2"}, r"missing: model\.layers\.0\.self_attn\.k_proj\.bias"),
    "gpt_neox": ({"model_type": "gpt_neox"}, "missing: gpt_neox"),
    "mistral": ({"model_type": "mistral"}, "declares LlamaForCausalLM"),
    "vocabulary": (
        {"vocab_size": 2000},
        r"embedding has 1024 tokens, but config\.json says 2000|"
        r"of another shape: model\.embed_tokens\.weight \(\[1024, 64\] instead of \[2000, 64\]\)",
    ),
    "smaller vocabulary": ({"vocab_size": 512}, "token 1023, but config.json gives the model 512"),
    "width": ({"intermediate_size": 256}, r"of another shape: .* and 5 more"),
    "untied": ({"tie_word_embeddings": False}, r"missing: lm_head\.weight"),
    "unknown": ({"model_type": "nope"}, "transformers does not load it"),
    "negative": ({"hidden_size": -3}, "transformers does not load it"),
    "text": ({"hidden_size": "64"}, "transformers does not load it"),
    "quantised": ({"quantization_config": {"quant_method": "awq"}}, "is quantised already"),
    "own code": (
        {"model_type": "own", "auto_map": {"AutoConfig": "own.Own", "AutoModelForCausalLM": "o.O"}},
        "transformers does not load it",
    ),
}


@pytest.mark.parametrize("what", CONFIGURED)
def test_a_configuration_that_the_weights_contradict_is_refused(what, copy):
    changes, complaint = CONFIGURED[what]
    configure(copy, **changes)
    with pytest.raises(UserError, match=complaint) as told:
        models.require_whole(copy)
    assert str(copy) in str(told.value)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("what", ["more layers", "fewer layers", "bert", "vocabulary"])
@pytest.mark.parametrize("method", ["lora", "qlora"])
def test_no_load_initialises_what_is_missing(what, method, copy):
    configure(copy, **CONFIGURED[what][0])
    with pytest.raises(UserError, match=CONFIGURED[what][1]):
        fine_tuning.load(copy, method, TRAINING, seed=1)
    with pytest.raises(UserError, match=CONFIGURED[what][1]):
        open_engine("transformers", copy, "float32").load()


TENSORS = {
    "a tensor lost": (lambda t: t.pop(f"{LAYER}.weight"), f"missing: {LAYER}"),
    "a tensor more": (lambda t: t.update(x=torch.ones(2)), "not the model's: x"),
    "a tensor cut": (
        lambda t: t.update({f"{LAYER}.weight": t[f"{LAYER}.weight"][:, :64].clone()}),
        "of another shape",
    ),
    "NaN": (lambda t: t[f"{LAYER}.weight"].fill_(float("nan")), "8192 of the 8192 values"),
    "infinity": (lambda t: t[f"{LAYER}.weight"][3, 5].fill_(-float("inf")), "1 of the 8192 values"),
}


@pytest.mark.parametrize("what", TENSORS)
def test_weights_with_tensors_lost_or_spoiled_are_refused(what, copy):
    spoil, complaint = TENSORS[what]
    change(copy / "model.safetensors", spoil)
    with pytest.raises(UserError, match=complaint):
        models.require_whole(copy)


def test_whole_weights_are_loaded_once_to_be_sure(copy, monkeypatch):
    loads = []
    original = load.require_complete
    monkeypatch.setattr(load, "require_complete", lambda d: loads.append(d) or original(d))
    for _ in range(3):
        models.require_whole(copy)
    assert len(loads) == 1
    change(copy / "model.safetensors", lambda t: t[f"{LAYER}.weight"].mul_(2))
    models.require_whole(copy)
    assert len(loads) == 2


WITHOUT_TORCH = """
import sys
from edge_eval_lib.runs import problems
from edge_eval_lib.errors import UserError
from edge_eval_lib.study import load_study
try:
    problems.require_possible(load_study(sys.argv[1]))
except UserError as error:
    print(error)
sys.exit("torch" in sys.modules)
"""


@pytest.mark.parametrize("what", [None, "more layers"])
def test_a_local_model_is_checked_before_the_first_run_without_torch(what, tmp_path):
    study = make_tiny_study(tmp_path)
    if what:
        configure(tmp_path / "llama", **CONFIGURED[what][0])
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, str(study)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    if what is None:
        assert done.stdout == ""
    else:
        start = "tinyllama-0.1M_rag_lora_fp16 cannot run: model tinyllama-0.1M: /"
        assert done.stdout.startswith(start)
        assert "missing: model.layers.2." in done.stdout


# --- adapters ---------------------------------------------------------------------------------

ADAPTERS = {
    "lost": (lambda t: t.pop(first(t, "lora_B.weight")), "missing: base_model"),
    "more": (lambda t: t.update({"base_model.model.x.lora_A.weight": torch.ones(4, 4)}), "not the"),
    "cut": (lambda t: t.update({first(t, "lora_A.weight"): torch.ones(4, 3)}), "no adapter for"),
    "NaN": (lambda t: t[first(t, "lora_A.weight")].fill_(float("nan")), "are NaN or infinite"),
    "infinity": (lambda t: t[first(t, "lora_B.weight")][0, 0].fill_(float("inf")), "1 of the"),
}


@pytest.mark.parametrize("what", ADAPTERS)
def test_an_adapter_that_is_not_whole_is_not_merged(what, llama, spoiled, tmp_path):
    spoil, complaint = ADAPTERS[what]
    change(spoiled / "adapter_model.safetensors", spoil)
    with pytest.raises(UserError, match=complaint):
        compress.merge(llama, spoiled, tmp_path / "fp16")
    assert not (tmp_path / "fp16").exists()


def test_a_cut_adapter_and_one_of_another_base_are_not_merged(llama, spoiled, tmp_path):
    other = models.write_random_model(TINY_SHAPE | {"model_type": "llama"}, tmp_path / "other")
    with pytest.raises(UserError, match="is an adapter of llama, not of other"):
        compress.merge(other, spoiled, tmp_path / "fp16")
    narrow = TINY_SHAPE | {"model_type": "llama", "intermediate_size": 64}
    shutil.rmtree(other)
    models.write_random_model(narrow, other.parent / "narrow" / "llama")
    with pytest.raises(UserError, match="no adapter for llama"):
        compress.merge(other.parent / "narrow" / "llama", spoiled, tmp_path / "fp16")
    file = spoiled / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(UserError, match="damaged or cut short"):
        compress.merge(llama, spoiled, tmp_path / "fp16")


def test_target_modules_that_the_model_lacks_are_named_with_those_it_has(llama):
    training = TRAINING.model_copy(update={"target_modules": ["q_proj", "query_key_value"]})
    for method in ("lora", "qlora"):
        with pytest.raises(UserError, match=r"names query_key_value, .*there is: down_proj"):
            fine_tuning.load(llama, method, training, seed=1)


def test_a_packages_model_is_converted_in_a_process_of_its_own(tmp_path):
    program = (
        "import sys\n"
        "from edge_eval_lib import models\n"
        "from edge_eval_lib.study import load_study\n"
        f"study = load_study({str(project_root() / 'params' / 'embedded.yaml')!r})\n"
        "directory = models.model_directory(study.models[0])\n"
        "print(directory, *({'torch', 'gguf'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    (directory,) = (tmp_path / "outputs" / "models").glob("smollm2-135M-*")
    assert done.stdout.split() == [str(directory)], done.stderr
    values = weights.read_tensors(directory)
    assert sum(value.numel() for value in load_file(directory / "model.safetensors").values()) > 1e8
    assert len(weights.linear_layers(values)) == 7 * 30


def test_a_package_whose_file_is_damaged_is_named(tmp_path, monkeypatch):
    (tmp_path / "spoiled").mkdir()
    (tmp_path / "spoiled" / "x.gguf").write_bytes(b"GGUF" + bytes(100))
    monkeypatch.syspath_prepend(tmp_path)
    (model,) = load_study(project_root() / "params" / "embedded.yaml").models
    spoiled = model.model_copy(update={"location": "spoiled/x.gguf"})
    with pytest.raises(UserError, match=r"Model smollm2-135M: .*spoiled: .*does not load it"):
        models.model_directory(spoiled)
    assert not list((tmp_path / "outputs" / "models").glob("*"))


# --- what compress writes ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def compressed(llama, adapter, tmp_path_factory):
    folder = tmp_path_factory.mktemp("compressed")
    made = {"fp16": compress.merge(llama, adapter, folder / "fp16")}
    for precision in ("int8", "int4"):
        made[precision] = compress.quantize(
            folder / "fp16", precision, "float32", folder / precision
        )
    return made


def test_what_compress_writes_is_whole(compressed, llama):
    compress.verify(compressed.values(), llama)
    for precision, artefact in compressed.items():
        assert weights.is_known(artefact.directory, "numbers"), precision
        models.load_model(artefact.directory, "float32")


@pytest.mark.parametrize("precision", ["fp16", "int8", "int4"])
def test_compressed_weights_that_lost_a_tensor_are_refused(precision, compressed, llama, tmp_path):
    directory = shutil.copytree(compressed[precision].directory, tmp_path / precision)
    lost = f"{LAYER}.weight"
    change(directory / "model.safetensors", lambda t: t.pop(lost))
    with pytest.raises(UserError, match=f"missing: {lost}"):
        compress.verify([compress.Artefact(precision, directory, 1, {}, 1.0)], llama)
    with pytest.raises(UserError):
        models.load_model(directory, "float32")


@pytest.mark.parametrize("lost", ["SCB", *(f"weight.{part}" for part in SCALES)])
def test_a_quantised_layer_without_its_scales_is_refused(lost, compressed, tmp_path):
    precision = "int8" if lost == "SCB" else "int4"
    directory = shutil.copytree(compressed[precision].directory, tmp_path / precision)
    change(directory / "model.safetensors", lambda t: t.pop(f"{LAYER}.{lost}"))
    with pytest.raises(UserError):
        models.load_model(directory, "float32")


def test_the_bytes_of_nf4_layers_are_predicted(compressed, llama):
    layers = weights.linear_layers(weights.read_tensors(llama))
    assert len(layers) == 14
    told = compressed["int4"].layers_share_of_fp16
    assert weights.nf4_share(layers) == pytest.approx(told, rel=0.02)


def test_weights_that_overflow_do_not_leave_compress(copy, adapter, tmp_path):
    change(copy / "model.safetensors", lambda t: t["model.embed_tokens.weight"].fill_(99.0))
    change(copy / "model.safetensors", lambda t: t["model.norm.weight"].fill_(60_000.0))
    with torch.no_grad():
        model = models.load_model(copy, "float16")
    with pytest.raises(UserError, match=r"logits are NaN or infinite; .* overflow float16"):
        models.require_logits(model, "x")


def test_logits_that_are_no_numbers_are_not_served(copy):
    change(copy / "model.safetensors", lambda t: t["model.embed_tokens.weight"].fill_(99.0))
    change(copy / "model.safetensors", lambda t: t["model.norm.weight"].fill_(60_000.0))
    engine = open_engine("transformers", copy, "float16")
    engine.load()
    examples = load_task("rag", train_examples=1, evaluation_examples=2, seed=1).evaluation
    with pytest.raises(UserError, match=r"likelihood of an answer is no number"):
        engine.likelihoods(examples, 2)


def test_damaged_weights_of_a_variant_are_built_again(tmp_path):
    study = load_study(make_tiny_study(tmp_path))
    base, variant = models.model_directory(study.models[0]), study.variants()[2]
    model = fine_tuning.load(base, "lora", study.training, seed=1)
    adapt.save_adapter(model, adapter_directory(study, variant.adapter))
    directory = weights_to_serve(study, variant)
    file = directory / "model.safetensors"
    whole = {name: value.clone() for name, value in load_file(file).items()}
    file.write_bytes(file.read_bytes()[:-100])
    assert weights_to_serve(study, variant) == directory
    again = load_file(file)
    assert again.keys() == whole.keys()
    assert all(torch.equal(value, again[name]) for name, value in whole.items())


# --- one arithmetic for all precisions ---------------------------------------------------------


def test_4_bit_layers_compute_in_float32_while_they_serve(compressed):
    """Also on a CPU with AVX512-BF16, where bitsandbytes would pack them for bfloat16."""
    engine = open_engine("transformers", compressed["int4"].directory, "float32")
    engine.load()
    prompts = [engine.encode([{"role": "user", "content": "Where is the key?"}])]
    engine.serve(prompts, output_tokens=3, concurrency=1)
    assert engine.executed_dtype() == "float32"


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU's kernels read packed scales")
def test_scales_that_are_unpacked_once_give_the_same_numbers_on_a_cpu(compressed):
    packed, unpacked = (
        models.load_model(compressed["int4"].directory, "float32", to_write=to_write).eval()
        for to_write in (True, False)
    )
    layers = [layer for layer in unpacked.modules() if type(layer).__name__ == "Linear4bit"]
    assert len(layers) == 14
    stored = [layer for layer in packed.modules() if type(layer).__name__ == "Linear4bit"]
    assert all(layer.weight.quant_state.nested for layer in stored)
    assert not any(layer.weight.quant_state.nested for layer in layers)
    assert all(layer.weight.quant_state.absmax.dtype == torch.float32 for layer in layers)
    with torch.inference_mode():
        assert torch.equal(*(model(torch.arange(8)[None]).logits for model in (packed, unpacked)))
    assert models.executed_dtype(unpacked) == "float32"


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU's kernels read packed weights")
def test_weights_that_are_unpacked_once_give_the_same_answers(compressed, monkeypatch):
    engine = open_engine("transformers", compressed["int4"].directory, "float32")
    engine.load()
    layers = [layer for layer in engine.model.modules() if type(layer).__name__ == "Linear4bit"]
    prompts, texts = [[5, 6, 7], [8, 9]], [[[7, 8], [9]], [[6]]]

    def asked():
        answers = engine.serve(prompts, 6, 2)
        return [answer.token_ids for answer in answers], engine.read(prompts, texts, 2)

    packed = asked()
    with engine.unmeasured():
        assert sum("forward" in vars(layer) for layer in layers) == 14
        assert asked() == packed
    assert not any("forward" in vars(layer) for layer in layers)
    little = SimpleNamespace(available=1 << 10)
    monkeypatch.setattr("psutil.virtual_memory", lambda: little)
    with engine.unmeasured():
        assert not any("forward" in vars(layer) for layer in layers)
        assert asked() == packed


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_other_layers_are_left_as_they_are(compressed, precision):
    engine = open_engine("transformers", compressed[precision].directory, "float32")
    engine.load()
    with engine.unmeasured():
        assert not any("forward" in vars(layer) for layer in engine.model.modules())


def test_a_model_that_is_not_quantised_is_served_without_bitsandbytes(compressed):
    """Its libraries would count in the load's time and memory."""
    program = (
        "import sys; from pathlib import Path; from edge_eval_lib.engines import open_engine\n"
        "engine = open_engine('transformers', Path(sys.argv[1]), 'float32')\n"
        "engine.import_libraries(); engine.load(); engine.serve([[5, 6]], 2, 1)\n"
        "print('torch' in sys.modules, 'bitsandbytes' in sys.modules)"
    )
    command = [sys.executable, "-c", program, str(compressed["fp16"].directory)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.stdout.split() == ["True", "False"], done.stderr


def test_bfloat16_is_computed_where_it_was_asked_for(compressed, tmp_path):
    made = compress.quantize(
        compressed["fp16"].directory, "int4", "bfloat16", tmp_path / "bfloat16"
    )
    model = models.load_model(made.directory, "bfloat16").eval()
    with torch.inference_mode():
        model(torch.arange(8)[None])
    assert models.executed_dtype(model) == "bfloat16"


@pytest.mark.parametrize(("hidden", "intermediate"), [(72, 100), (64, 129), (96, 160)])
def test_4_bit_layers_of_odd_widths_are_made_and_served(hidden, intermediate, tmp_path):
    shape = TINY_SHAPE | {"hidden_size": hidden, "head_dim": hidden // 4, "model_type": "llama"}
    shape |= {"intermediate_size": intermediate}
    base = models.write_random_model(shape, tmp_path / "odd")
    models.require_whole(base)
    made = compress.quantize(base, "int4", "float32", tmp_path / "int4")
    compress.verify([made], base)
    engine = open_engine("transformers", made.directory, "float32")
    engine.load()
    example = load_task("rag", train_examples=1, evaluation_examples=1, seed=1).evaluation[0]
    (answer,) = engine.serve([engine.encode(example.messages)], output_tokens=3, concurrency=1)
    assert len(answer.token_ids) == 3
    assert engine.executed_dtype() == "float32"
    model = fine_tuning.load(base, "qlora", TRAINING, seed=1).train()
    ids = torch.arange(8)[None]
    assert torch.isfinite(model(input_ids=ids, labels=ids).loss)
    assert models.executed_dtype(model) == "float32"
