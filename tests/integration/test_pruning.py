"""Pruning and distillation on models that are made here: what is cut, and what is learnt back."""

from pathlib import Path

import pytest
import torch
from tiny import make_tiny_model

from edge_eval_lib import compressions, models
from edge_eval_lib.compressions import depth, distil, width
from edge_eval_lib.errors import UserError
from edge_eval_lib.lifecycle import compress
from edge_eval_lib.study import load_study

DEEP = {"num_hidden_layers": 4}


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("pruned") / "llama", **DEEP)


@pytest.fixture(scope="module")
def given(base) -> compressions.Given:
    study = load_study("embedded")
    small = {"lora_rank": 4, "lora_alpha": 8, "epochs": 3, "max_tokens": 512, "batch_size": 4}
    study = study.changed(
        training=study.training.model_dump() | small,
        data=study.data.model_dump() | {"train_examples": 12, "heldout_examples": 1},
    )
    return compress.given(study, "rag", base)


def trial(base: Path) -> torch.nn.Module:
    return models.load_model(base, "float32").eval()


def made(base: Path, precision: str, given: compressions.Given, folder: Path) -> compress.Artefact:
    """A precision from the base, every step of its chain checked as notebook 02 does."""
    at = {"fp16": base} | {p: folder / p for p in compressions.path(precision)[1:]}
    for step in compressions.path(precision)[1:]:
        source = at[compressions.source(step)]
        if compressions.change(step):
            artefact = compress.change(source, step, "float32", at[step], given)
        else:
            artefact = compress.quantize(source, step, "float32", at[step])
        compress.require_answers(artefact)
    compress.verify([artefact], base)
    return artefact


def generates(directory: Path) -> list[int]:
    """What plain transformers answers with the weights in a directory."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(directory)
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    prompt = tokenizer("What is a plant?", return_tensors="pt")["input_ids"]
    new = model.generate(
        prompt, max_new_tokens=4, min_new_tokens=4, do_sample=False, pad_token_id=0
    )
    return new[0, prompt.shape[1] :].tolist()


# --- chains -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("chain", "path"),
    [
        ("fp16", ["fp16"]),
        ("int4", ["fp16", "int4"]),
        ("depth25-fp16", ["fp16", "depth25-fp16"]),
        (
            "depth25-distil-int4",
            ["fp16", "depth25-fp16", "depth25-distil-fp16", "depth25-distil-int4"],
        ),
        (
            "depth25-int4-distil",
            ["fp16", "depth25-fp16", "depth25-int4", "depth25-int4-distil"],
        ),
        ("int4-depth25", ["fp16", "int4", "int4-depth25"]),
    ],
)
def test_a_chain_is_made_from_left_to_right(chain, path):
    assert compressions.problem(chain) is None
    assert compressions.path(chain) == path
    changed = [step for step in path if compressions.change(step)]
    assert len(changed) == sum(word in ("depth25", "distil") for word in chain.split("-"))


def test_what_several_chains_share_is_made_once():
    wanted = ["depth25-distil-int8", "depth25-distil-int4", "int4"]
    left = compress.left_to_make(wanted, there=["fp16"])
    assert left == ["depth25-fp16", "depth25-distil-fp16", *wanted]
    assert compress.left_to_make(wanted[:1], there=["fp16", "depth25-distil-fp16"]) == wanted[:1]


@pytest.mark.parametrize(
    ("chain", "why"),
    [
        ("depth-fp16", "'depth' does not say how much; write a percentage from 1 to 99"),
        ("depth0-fp16", "'depth0' does not say how much"),
        ("depth100-fp16", "there is no compression 'depth100'"),
        ("distil25-fp16", "there is no compression 'distil25'"),
        ("depth25", "write depth25-fp16"),
        ("int8-depth25-int4", "says twice how weights are stored: int8 and int4"),
        ("depth25-fp16-distil", "fp16 stands last: nothing was quantised before distil"),
        ("int4-width25", "width25 cannot change quantised weights; it comes before int4"),
        ("int8-magnitude50", "magnitude50 cannot change quantised weights"),
    ],
)
def test_a_chain_that_cannot_be_made_is_refused(chain, why):
    assert why in (compressions.problem(chain) or "")


def test_a_file_that_compresses_nothing_is_named(tmp_path, monkeypatch):
    (tmp_path / "idle.py").write_text('"""Nothing."""\n')
    monkeypatch.setattr(compressions, "__path__", [*compressions.__path__, str(tmp_path)])
    said = compressions.problem("idle-fp16")
    assert said == "idle.py has neither an apply(model) nor a configuration(...)"


def test_vllm_is_not_asked_to_change_quantised_weights():
    study = load_study("embedded_vllm")
    with pytest.raises(UserError, match=r"int4-depth25 changes quantised weights, .*transformers"):
        study.changed(configurations=[{"method": "lora", "precision": "int4-depth25"}])


@pytest.mark.parametrize(
    ("chain", "dimensions"),
    [
        ("int4", (30, 1536)),
        ("depth25-int4", (22, 1536)),
        ("width33-distil-int4", (30, 1024)),
        ("width10-fp16", (30, 1280)),
        ("magnitude50-fp16", (30, 1536)),
        ("depth20-width33-fp16", (24, 1024)),
    ],
)
def test_dimensions_of_smollm2_after_a_chain(chain, dimensions):
    assert compressions.dimensions(chain, 30, 1536) == dimensions


# --- depth ------------------------------------------------------------------------------------


def test_a_layer_that_changes_nothing_goes_first(base, given):
    model = trial(base)
    with torch.no_grad():  # what it adds to its input is zero
        model.model.layers[2].self_attn.o_proj.weight.zero_()
        model.model.layers[2].mlp.down_proj.weight.zero_()
    texts = [row["input_ids"] for row in given.rows]
    influence = depth.block_influence(model, texts)
    assert influence[2] == pytest.approx(0, abs=1e-6)
    assert min(influence[:2] + influence[3:]) > 1e-4
    ids = torch.tensor([texts[0]])
    with torch.inference_mode():
        whole = model(ids).logits
        depth.apply(model, percent=25, given=given)
        cut = model(ids).logits
    assert len(model.model.layers) == model.config.num_hidden_layers == 3
    torch.testing.assert_close(cut, whole)


def test_models_of_another_kind_are_refused(given):
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(GPT2Config(n_layer=1, n_head=1, n_embd=8, vocab_size=16))
    with pytest.raises(UserError, match="GPT2LMHeadModel"):
        depth.apply(model, percent=50, given=given)


# --- width ------------------------------------------------------------------------------------


def test_width_is_cut_to_a_multiple_and_dead_neurons_go_first(base, given):
    model = trial(base)
    inner = model.config.intermediate_size
    dead = list(range(0, inner, 4))
    with torch.no_grad():
        for layer in model.model.layers:
            layer.mlp.down_proj.weight[:, dead] = 0
            layer.mlp.up_proj.weight[dead] = 0
    ids = torch.tensor([given.rows[0]["input_ids"]])
    with torch.no_grad():
        whole = model(ids).logits
        width.apply(model, percent=25, given=given)
        cut = model(ids).logits
    stay = width.dimensions(4, inner, 25)[1]
    assert stay == inner * 3 // 4
    assert stay % 16 == 0
    for layer in model.model.layers:
        assert layer.mlp.gate_proj.weight.shape[0] == layer.mlp.up_proj.weight.shape[0] == stay
        assert layer.mlp.down_proj.weight.shape[1] == stay
    torch.testing.assert_close(cut, whole, atol=1e-5, rtol=1e-4)
    assert all(parameter.grad is None for parameter in model.parameters())


# --- distillation -----------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_forward_kl_is_that_of_torch_distributions(temperature):
    student, teacher = torch.randn(2, 3, 5, 17, generator=torch.Generator().manual_seed(0))
    p, q = (torch.distributions.Categorical(logits=x / temperature) for x in (teacher, student))
    oracle = temperature**2 * torch.distributions.kl_divergence(p, q).mean()
    torch.testing.assert_close(distil.forward_kl(student, teacher, temperature), oracle)
    assert distil.forward_kl(teacher, teacher, temperature).abs() < 1e-6


def test_only_what_predicts_the_answer_counts():
    labels = torch.tensor([[-100, -100, 5, 6], [-100, 7, 8, 9]])
    counted = distil.predicts_answer(labels)
    assert counted.tolist() == [[False, True, True, False], [True, True, True, False]]


def test_distilling_brings_the_student_nearer_to_its_teacher(base, given, tmp_path):
    def divergence(artefact: compress.Artefact) -> float:
        student, teacher = trial(artefact.directory), trial(base)
        batch = given.collate(list(given.rows))
        counted = distil.predicts_answer(batch.pop("labels"))
        with torch.inference_mode():
            logits = [model(**batch).logits[counted] for model in (student, teacher)]
        return float(distil.forward_kl(*logits))

    for chain in ("depth50-distil-fp16", "depth50-int4-distil"):
        artefact = made(base, chain, given, tmp_path)
        before = tmp_path / compressions.source(chain)
        pruned = compress.Artefact("", before, 0, {}, 1.0)
        assert divergence(artefact) < divergence(pruned)


# --- what plain transformers makes of it ------------------------------------------------------


@pytest.mark.parametrize(
    "chain",
    [
        "depth25-fp16",
        "width25-distil-int8",
        "magnitude50-fp16",
        "int4-depth25",
        "int8-depth25",
        "depth25-int8-distil",
        "depth25-int4-distil",
    ],
)
def test_every_chain_loads_in_plain_transformers_and_answers(chain, base, given, tmp_path):
    artefact = made(base, chain, given, tmp_path)
    assert len(generates(artefact.directory)) == 4
    kind = {"fp16": "Linear", "int8": "Linear8bitLt", "int4": "Linear4bit"}
    assert set(artefact.linear_layers) == {kind[compressions.storage(chain)]}
    config = models.load_model(artefact.directory, "float32").config
    expected = compressions.dimensions(chain, 4, trial(base).config.intermediate_size)
    assert (config.num_hidden_layers, config.intermediate_size) == expected
    if chain.startswith("magnitude"):
        weight = trial(artefact.directory).model.layers[0].mlp.up_proj.weight
        assert float((weight == 0).float().mean()) == pytest.approx(0.5, abs=0.01)
