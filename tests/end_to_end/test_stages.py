"""Adaptation, compression and serving on tiny real models: what must be true of each."""

import json
import math
import shutil
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
import training as fine_tuning
from tiny import TINY_SHAPE, make_tiny_model
from transformers import BitsAndBytesConfig, DataCollatorForSeq2Seq

from edge_eval_lib import compressions, models
from edge_eval_lib.economics.memory import training_memory
from edge_eval_lib.economics.shape import shape_from_config
from edge_eval_lib.energy import Monitor
from edge_eval_lib.engines import open_engine
from edge_eval_lib.errors import UserError
from edge_eval_lib.lifecycle import adapt, cold_load, compress
from edge_eval_lib.models import likelihood
from edge_eval_lib.models.likelihood import Likelihood, evaluating, gold_likelihoods
from edge_eval_lib.study import Model, Training
from edge_eval_lib.tasks import load_task

pytestmark = [pytest.mark.end_to_end, pytest.mark.quick]

TRAINING = Training(
    lora_rank=4,
    lora_alpha=8,
    lora_dropout=0.0,
    target_modules=["q_proj", "v_proj", "down_proj"],
    learning_rate=5e-3,
    batch_size=4,
    epochs=2,
    max_tokens=512,
    compute_dtype="float32",
    gradient_checkpointing=False,
)


@pytest.fixture(scope="module", params=["llama", pytest.param("qwen2", marks=pytest.mark.slow)])
def base(request, tmp_path_factory):
    return make_tiny_model(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return make_tiny_model(tmp_path_factory.mktemp("llama_only"), "llama")


@pytest.fixture(scope="module")
def examples():
    return load_task("rag", train_examples=8, evaluation_examples=6, seed=1)


@pytest.fixture(scope="module")
def adapted(base, examples, tmp_path_factory):
    """Both methods' trained models, their outcomes and adapters."""
    tokenizer = models.load_tokenizer(base)
    encoded = adapt.encode(tokenizer, examples.train, TRAINING.max_tokens)
    found = {}
    for method in ("lora", "qlora"):
        directory = tmp_path_factory.mktemp(method)
        model = fine_tuning.load(base, method, TRAINING, seed=1)
        start = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}
        frozen = {n: p.detach().clone() for n, p in model.named_parameters() if not p.requires_grad}
        before = adapt.heldout_loss(model, tokenizer, examples.train, 4)
        outcome = fine_tuning.train(model, tokenizer, encoded, TRAINING, 1, directory / "scratch")
        after = adapt.heldout_loss(model, tokenizer, examples.train, 4)
        adapt.save_adapter(model, directory / "adapter")
        found[method] = {
            "model": model,
            "start": start,
            "frozen": frozen,
            "loss": (before, after),
            "outcome": outcome,
            "adapter": directory / "adapter",
        }
    return found


def test_only_the_answer_is_learnt(base, examples):
    tokenizer = models.load_tokenizer(base)
    for row, example in zip(
        adapt.encode(tokenizer, examples.train, 512), examples.train, strict=True
    ):
        learnt = [label for label in row["labels"] if label != adapt.IGNORED]
        assert tokenizer.decode(learnt) == example.answer + tokenizer.eos_token
        assert row["input_ids"][-len(learnt) :] == learnt
        assert len(row["labels"]) == len(row["input_ids"])


@pytest.mark.parametrize("modules", ["all-linear", ["v_proj", "down_proj"]])
def test_the_last_layers_alone_carry_the_adapter(base, examples, modules):
    tokenizer = models.load_tokenizer(base)
    rows = adapt.encode(tokenizer, examples.train, 512)[:2]
    settings = {"target_modules": modules, "adapted_share": 0.5}
    model = fine_tuning.load(base, "lora", TRAINING.model_copy(update=settings), seed=1).train()
    model(**adapt.answer_batches(tokenizer)(rows)).loss.backward()
    trained = {name for name, p in model.named_parameters() if p.grad is not None}
    whole = fine_tuning.load(
        base, "lora", TRAINING.model_copy(update=settings | {"adapted_share": 1.0}), seed=1
    )
    every = {name for name, p in whole.named_parameters() if p.requires_grad}
    layers = model.config.num_hidden_layers
    assert layers == 2
    assert trained == {name for name in every if ".layers.1." in name}


def test_leaving_out_the_prompts_logits_changes_neither_loss_nor_gradient(base, examples):
    tokenizer = models.load_tokenizer(base)
    rows = adapt.encode(tokenizer, examples.train, 512)[:4]
    pad = DataCollatorForSeq2Seq(tokenizer, label_pad_token_id=adapt.IGNORED)
    model = fine_tuning.load(base, "lora", TRAINING, seed=1).train()
    found = []
    for batch in (pad(rows), adapt.answer_batches(tokenizer)(rows)):
        output = model(**batch)
        output.loss.backward()
        gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
        model.zero_grad()
        found.append((output.loss.item(), gradients, output.logits.shape[1]))
    (all_loss, all_gradients, all_logits), (loss, gradients, logits) = found
    assert logits < all_logits
    assert loss == pytest.approx(all_loss, rel=1e-6)
    for left, right in zip(all_gradients, gradients, strict=True):
        assert torch.allclose(left, right, atol=1e-6)


def test_the_logits_to_keep_are_divided_among_no_gpus(base, examples, monkeypatch):
    """A tensor would be, along its first dimension, where the trainer copies a model to each."""
    tokenizer = models.load_tokenizer(base)
    rows = adapt.encode(tokenizer, examples.train, 512)[:2]
    kept = {}
    for device in ("cpu", "cuda:0"):
        monkeypatch.setattr(models, "default_device", lambda device=device: device)
        kept[device] = adapt.answer_batches(tokenizer)(rows)["logits_to_keep"]
    assert isinstance(kept["cuda:0"], int)
    assert kept["cpu"].tolist() == list(range(-kept["cuda:0"], 0))


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU takes a slice as it is")
def test_the_head_gets_what_it_multiplies_in_one_piece(base, examples):
    """Of a slice torch makes a batched product on CPUs, which takes half as long again."""
    tokenizer = models.load_tokenizer(base)
    rows = adapt.encode(tokenizer, examples.train, 512)[:2]
    model = fine_tuning.load(base, "lora", TRAINING, seed=1).train()
    given = []
    head = model.get_output_embeddings()
    head.register_forward_pre_hook(lambda _module, states: given.append(*states))
    model(**adapt.answer_batches(tokenizer)(rows))
    assert [states.is_contiguous() for states in given] == [True]


def test_an_example_that_is_too_long_is_refused(base, examples):
    tokenizer = models.load_tokenizer(base)
    with pytest.raises(UserError, match=r"training\.max_tokens is 10; raise it to \d+"):
        adapt.encode(tokenizer, examples.train, max_tokens=10)


@pytest.mark.parametrize("method", ["lora", "qlora"])
def test_training_changes_the_adapter_alone_and_helps(adapted, method):
    run = adapted[method]
    now = dict(run["model"].named_parameters())
    assert all("lora_" in name for name in run["start"])
    assert any(not torch.equal(now[name], value) for name, value in run["start"].items())
    assert all(torch.equal(now[name], value) for name, value in run["frozen"].items())
    before, after = run["loss"]
    assert after < before
    assert len(run["outcome"].losses) == run["outcome"].steps == 4
    assert list(run["adapter"].glob("*.safetensors"))
    assert not list(run["adapter"].glob("*.bin"))


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """As broad in its vocabulary as models are, so that casts and logits weigh."""
    shape = {"vocab_size": 4096, "hidden_size": 256, "intermediate_size": 512}
    shape |= {"num_hidden_layers": 4, "head_dim": 64, "tie_word_embeddings": False}
    directory = tmp_path_factory.mktemp("wide")
    return models.write_random_model(TINY_SHAPE | {"model_type": "llama"} | shape, directory)


def test_qlora_holds_what_the_plan_counts(wide):
    """Weights in their types, and what the backward pass needs: in 16 bits as on a GPU."""
    training = TRAINING.model_copy(
        update={"compute_dtype": "bfloat16", "gradient_checkpointing": True, "lora_dropout": 0.05}
    )
    model = fine_tuning.load(wide, "qlora", training, seed=1).train()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    held = sum(
        p.numel() * p.element_size() for n, p in model.named_parameters() if "lora_" not in n
    )
    shape = shape_from_config(json.loads((wide / "config.json").read_text()))
    batch, tokens, answer = 2, 256, 100
    need = training_memory(
        shape, "qlora", batch, tokens, 4, training.target_modules, 0.05, True, "fp16", answer
    )
    # The constants of the 4-bit blocks (3 % of them) are kept apart from the parameters.
    assert held == pytest.approx(need.weights_gb * 1e9, rel=0.01)
    assert need.weights_gb * 1e9 - shape.weight_bytes("int4") == pytest.approx(
        2 * (shape.parameters - shape.linear_parameters)
    )
    kept: dict[int, int] = {}
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    ids = torch.zeros(batch, tokens, dtype=torch.long)
    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast("cpu", dtype=torch.bfloat16),
    ):
        output = model(input_ids=ids, labels=ids[:, : answer + 1], logits_to_keep=answer + 1)
    assert output.logits.shape[1] == answer + 1
    # Of a logit, 4 of the 10 bytes are kept: the others are itself and its gradient.
    transient = 6 * batch * answer * shape.vocabulary_size
    assert sum(kept.values()) == pytest.approx(need.activations_gb * 1e9 - transient, rel=0.15)


def test_the_methods_differ_in_the_base_alone(adapted):
    lora, qlora = adapted["lora"], adapted["qlora"]
    assert lora["outcome"].executed_dtype == qlora["outcome"].executed_dtype == "float32"
    assert lora["outcome"].tokens_seen == qlora["outcome"].tokens_seen
    assert lora["start"].keys() == qlora["start"].keys()
    for name, value in lora["start"].items():
        assert torch.equal(value, qlora["start"][name]), name
    kinds = compress.count_linear_layers(qlora["model"].get_base_model())
    assert kinds["Linear4bit"] == 14  # seven projections in each of two layers


def test_evaluation_leaves_4_bit_layers_ready_to_train(adapted, base, examples):
    model = adapted["qlora"]["model"].train()
    with evaluating(model):
        assert not model.training
        gold_likelihoods(model, models.load_tokenizer(base), examples.evaluation, 4)
    assert model.training
    assert models.executed_dtype(model) == "float32"


def test_a_loss_that_is_not_a_number_stops_training(llama, examples, tmp_path):
    tokenizer = models.load_tokenizer(llama)
    encoded = adapt.encode(tokenizer, examples.train, 512)
    model = fine_tuning.load(llama, "lora", TRAINING, seed=1)
    with torch.no_grad():
        next(p for p in model.parameters() if p.requires_grad).fill_(float("nan"))
    with pytest.raises(UserError, match="The training loss is nan at step 1; lower"):
        fine_tuning.train(model, tokenizer, encoded, TRAINING, 1, tmp_path)


def test_target_modules_that_the_model_lacks_are_named(llama):
    wrong = TRAINING.model_copy(update={"target_modules": ["q_projection"]})
    with pytest.raises(UserError, match=r"training\.target_modules .*q_projection"):
        fine_tuning.load(llama, "lora", wrong, seed=1)


# --- compression and serving ------------------------------------------------------------------


@pytest.fixture(scope="module")
def weights(adapted, base, tmp_path_factory):
    directory = tmp_path_factory.mktemp("weights")
    found = {
        "fp16": compress.merge(base, adapted["lora"]["adapter"], directory / "fp16"),
    }
    for precision in ("int8", "int4"):
        found[precision] = compress.quantize(
            directory / "fp16", precision, "float32", directory / precision
        )
    return found


def test_every_layer_is_quantised_and_smaller(weights):
    assert weights["int8"].linear_layers == {"Linear8bitLt": 14}
    assert weights["int4"].linear_layers == {"Linear4bit": 14}
    # A byte a weight and a scale a row; half a byte and two levels of scales.
    assert 0.5 < weights["int8"].layers_share_of_fp16 < 0.56
    assert 0.25 < weights["int4"].layers_share_of_fp16 < compressions.largest_share("int4")
    for artefact in weights.values():
        assert sorted(p.suffix for p in artefact.directory.glob("model*")) == [".safetensors"]


def test_merged_weights_answer_as_base_and_adapter(adapted, weights, base, examples):
    tokenizer = models.load_tokenizer(base)
    adapted["lora"]["model"].eval()
    apart = gold_likelihoods(adapted["lora"]["model"], tokenizer, examples.evaluation, 3)
    merged_model = models.load_model(weights["fp16"].directory, "float32").eval()
    merged = gold_likelihoods(merged_model, tokenizer, examples.evaluation, 3)
    for one, other in zip(apart, merged, strict=True):
        assert one.nll == pytest.approx(other.nll, abs=2e-3)  # FP16 storage


def test_weights_that_were_not_quantised_are_refused(weights, tmp_path):
    skipping = BitsAndBytesConfig(load_in_4bit=True, llm_int8_skip_modules=["q_proj", "lm_head"])
    with pytest.raises(RuntimeError, match=r"expected only Linear4bit layers, found .*'Linear': 2"):
        compress.quantize(
            weights["fp16"].directory,
            "int4",
            "float32",
            tmp_path / "w",
            configuration=skipping,
        )
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def engines(weights):
    found = {}
    for precision, artefact in weights.items():
        found[precision] = open_engine("transformers", artefact.directory, "float32")
        found[precision].load()
    return found


@pytest.mark.parametrize("precision", ["fp16", "int8", "int4"])
def test_every_request_gets_exactly_the_tokens_asked_for(engines, examples, precision):
    engine = engines[precision]
    prompts = [engine.encode(example.messages) for example in examples.evaluation]
    generations = engine.serve(prompts, output_tokens=7, concurrency=4)
    assert len(generations) == len(prompts)
    for prompt, generation in zip(prompts, generations, strict=True):
        assert generation.prompt_ids == prompt
        assert len(generation.token_ids) == len(generation.token_times_s) == 7
        assert generation.submitted_s < generation.token_times_s[0]
        assert generation.token_times_s == sorted(generation.token_times_s)
        assert generation.ttft_ms > 0
        assert generation.tpot_ms > 0


def test_in_float32_a_batch_gives_each_request_the_answer_it_gets_alone(engines, examples):
    engine = engines["fp16"]
    assert engine.executed_dtype() == "float32"
    prompts = [engine.encode(example.messages) for example in examples.evaluation]
    assert len({len(prompt) for prompt in prompts}) > 1  # padding takes part
    alone = engine.serve(prompts, output_tokens=12, concurrency=1)
    batched = engine.serve(prompts, output_tokens=12, concurrency=len(prompts))
    assert [g.token_ids for g in alone] == [g.token_ids for g in batched]
    for generation in alone:  # read in one pass, every token is the likeliest after the others
        ((read,),) = engine.read([generation.prompt_ids], [[generation.token_ids]], 1)
        assert read.argmax_ids == generation.token_ids
    # Several texts after a prompt, of several lengths, some prompts with fewer: each as if alone.
    texts = [[[9, 8, 7], g.token_ids, [5]][: 1 + i % 3] for i, g in enumerate(alone)]
    together = engine.read(prompts, texts, batch_size=4)
    for prompt, of_prompt, readings in zip(prompts, texts, together, strict=True):
        apart = [engine.read([prompt], [[text]], 1)[0][0] for text in of_prompt]
        assert [r.argmax_ids for r in readings] == [r.argmax_ids for r in apart]
        assert [r.nll for r in readings] == pytest.approx([r.nll for r in apart], abs=1e-4)
    assert together[1][1].argmax_ids == alone[1].token_ids
    single = engine.likelihoods(examples.evaluation, batch_size=1)
    together = engine.likelihoods(examples.evaluation, batch_size=6)
    for one, other in zip(single, together, strict=True):
        assert one.nll == pytest.approx(other.nll, abs=1e-4)
        assert one.argmax_ids == other.argmax_ids


def test_what_is_longer_than_the_context_is_not_answered_and_says_why(engines, examples):
    engine, (first, second) = engines["fp16"], examples.evaluation[:2]
    prompts = [engine.encode(example.messages) for example in (first, second)]
    too_long = prompts[0] * (1024 // len(prompts[0]) + 1)
    served = engine.serve([prompts[0], too_long, prompts[1]], output_tokens=4, concurrency=2)
    alone = engine.serve(prompts, output_tokens=4, concurrency=2)
    assert [g.token_ids for g in served] == [alone[0].token_ids, [], alone[1].token_ids]
    assert served[1].failure == f"prompt and answer have {len(too_long) + 4} tokens, more than 1024"
    assert served[0].failure is served[2].failure is None
    with pytest.raises(UserError, match="first prompt was not answered: prompt and answer have"):
        cold_load.answer_one_token(engine, [{"role": "user", "content": "a well " * 1024}])


def test_long_gold_answers_are_judged_in_smaller_batches(engines, examples, monkeypatch):
    engine = engines["fp16"]
    whole = engine.likelihoods(examples.evaluation, batch_size=6)
    monkeypatch.setattr(likelihood, "LOGITS_AT_ONCE", 20)  # one answer, or two
    assert engine.likelihoods(examples.evaluation, batch_size=6) == [
        Likelihood(pytest.approx(w.nll, abs=1e-4), w.argmax_ids, w.prompt_id) for w in whole
    ]
    endless = replace(examples.evaluation[1], answer="well " * 2000)
    told = engine.likelihoods([examples.evaluation[0], endless, examples.evaluation[2]], 3)
    assert [one.nll for one in told] == pytest.approx(
        [whole[0].nll, math.nan, whole[2].nll], abs=1e-4, nan_ok=True
    )


def test_a_models_own_sampling_habits_do_not_count(engines, weights, examples, tmp_path):
    habits = {"repetition_penalty": 5.0, "eos_token_id": [0], "do_sample": True, "top_k": 3}
    shutil.copytree(weights["fp16"].directory, tmp_path / "weights")
    (tmp_path / "weights" / "generation_config.json").write_text(json.dumps(habits))
    engine = open_engine("transformers", tmp_path / "weights", "float32")
    engine.load()
    prompts = [engine.encode(example.messages) for example in examples.evaluation]
    expected = engines["fp16"].serve(prompts, output_tokens=12, concurrency=3)
    found = engine.serve(prompts, output_tokens=12, concurrency=3)
    assert [g.token_ids for g in found] == [g.token_ids for g in expected]
    assert engine.natural_length([5, 0, 5]) == 2


def test_until_its_end_an_answer_is_the_same_up_to_its_end(engines, examples, monkeypatch):
    engine = engines["fp16"]
    prompts = [engine.encode(example.messages) for example in examples.evaluation]
    exact = [g.token_ids for g in engine.serve(prompts, output_tokens=12, concurrency=3)]
    monkeypatch.setattr(engine, "stop_ids", {exact[0][3]})  # an end that is surely met
    ending = engine.serve(prompts, 12, 3, until_end=True)
    for whole, generation in zip(exact, ending, strict=True):
        assert generation.token_ids == whole[: engine.natural_length(whole)]
        assert len(generation.token_times_s) == len(generation.token_ids)
        assert engine.ended(generation.token_ids) == (exact[0][3] in whole)
    assert len(ending[0].token_ids) <= 4
    assert [g.token_ids for g in engine.serve(prompts, 12, 3)] == exact  # as before


def test_likelihood_is_the_models_own_loss_on_the_answer(engines, examples):
    engine = engines["fp16"]
    example = examples.evaluation[0]
    (row,) = adapt.encode(engine.tokenizer, [example], 512)
    batch = {name: torch.tensor([ids]) for name, ids in row.items()}
    with torch.inference_mode():
        loss = engine.model(**batch).loss.item()
    (likelihood,) = engine.likelihoods([example], batch_size=1)
    assert likelihood.nll == pytest.approx(loss, abs=1e-4)


def test_an_answer_ends_at_its_first_end_of_sequence(engines):
    engine = engines["fp16"]
    end = engine.tokenizer.eos_token_id
    words = engine.tokenizer("nine o'clock", add_special_tokens=False)["input_ids"]
    assert engine.decode([*words, end, *words]) == "nine o'clock"
    assert engine.natural_length([*words, end, *words]) == len(words) + 1
    assert engine.natural_length(words) == len(words)
    assert engine.decode([end, *words]) == ""


def test_a_load_is_cold_only_in_a_fresh_process(engines, llama, examples):
    with pytest.raises(RuntimeError, match="torch, transformers is already imported here"):
        cold_load.cold_load(
            engines["fp16"], llama, examples.evaluation[0].messages, Monitor(device="cpu")
        )


COLD_LOAD = """
import sys
from pathlib import Path
from edge_eval_lib.energy import Monitor
from edge_eval_lib.engines import open_engine
from edge_eval_lib.lifecycle.cold_load import cold_load
with Monitor(device="cpu") as monitor:
    engine = open_engine("transformers", Path(sys.argv[1]), "float32")
    load = cold_load(engine, Path(sys.argv[1]), [{"role": "user", "content": "Hi"}], monitor)
parts = [getattr(load, f"load_{part}_s")
         for part in ("interpreter", "import", "read", "place", "first_token")]
known = [part for part in parts if part is not None]
assert abs(sum(known) - load.load_s) < 0.05, (parts, load.load_s)
assert min(known) > 0, parts
assert len(known) >= 4, parts
assert (load.load_first_token_s is None) == bool(load.load_first_token_reason), load
assert load.load_import_s > 0.5 * load.load_s, parts
assert load.load_import_energy_j is None or (
    0.2 * load.load_energy_j < load.load_import_energy_j < load.load_energy_j
    and load.load_import_energy_lo_j < load.load_import_energy_j < load.load_import_energy_hi_j
), load
assert load.evicted or load.evicted_reason, load
assert load.load_energy_j is None or 0 < load.load_energy_j < load.load_energy_hi_j, load
assert load.load_energy_source == monitor.energy_source
"""


def test_the_parts_of_a_cold_load_add_up(llama):
    done = subprocess.run(
        [sys.executable, "-c", COLD_LOAD, str(llama)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


# --- where weights come from ------------------------------------------------------------------


def model(**changes) -> Model:
    fields = {
        "family": "x",
        "size": "1B",
        "source": "local",
        "location": "/nowhere",
        "revision": "r",
        "licence": "l",
        "parameters": 1,
        "nominal_gb": {},
    }
    return Model(**(fields | changes))


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({}, r"x-1B: .*nowhere must hold config\.json"),
        ({"source": "package", "location": "no_such/x.gguf"}, "'no_such' is not installed"),
        ({"source": "package", "location": "yaml/x.gguf"}, "'yaml' has no file 'x.gguf'"),
        ({"source": "hub", "location": "a/b", "gated": True}, "gated; .*HF_TOKEN"),
        ({"source": "hub", "location": "a/b"}, "a/b at revision r cannot be had"),
    ],
)
def test_weights_that_are_not_there_are_refused_in_a_sentence(changes, complaint, monkeypatch):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=complaint):
        models.model_directory(model(**changes))


def test_a_directory_appears_only_when_it_is_whole(tmp_path):
    target = tmp_path / "weights"

    def write(fail):
        with models.published_directory(target) as directory:
            (directory / "file").write_text("new")
            assert not (target / "file").exists() or (target / "file").read_text() == "old"
            if fail:
                raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write(fail=True)
    assert list(tmp_path.iterdir()) == []
    target.mkdir()
    (target / "file").write_text("old")
    with pytest.raises(OSError, match="disk full"):
        write(fail=True)
    assert (target / "file").read_text() == "old"
    write(fail=False)
    assert (target / "file").read_text() == "new"
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize(
    ("error", "dtype"), [(6e-8, "float32"), (3e-4, "float16"), (3e-3, "bfloat16"), (0.1, "unknown")]
)
def test_the_executed_type_is_read_off_the_rounding_error(error, dtype):
    assert models.dtype_of_error(error) == dtype


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_executed_type_is_measured(llama, dtype):
    assert models.executed_dtype(models.load_model(llama, dtype)) == dtype
