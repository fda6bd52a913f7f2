"""Adaptation: LoRA on a frozen base, QLoRA on the same base in 4-bit NF4.

Both methods share data, batches, compute dtype and adapter; the base's precision is all that
differs, so that a difference in energy or time is the method's own.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edge_eval_lib import bars, compressions, models
from edge_eval_lib.errors import UserError
from edge_eval_lib.models import weights
from edge_eval_lib.models.likelihood import evaluating, gold_likelihoods
from edge_eval_lib.study import Training

if TYPE_CHECKING:
    from peft import LoraConfig, PeftModel
    from transformers import (
        BatchEncoding,
        BitsAndBytesConfig,
        PreTrainedModel,
        PreTrainedTokenizerBase,
        Trainer,
        TrainerCallback,
    )

    from edge_eval_lib.tasks import Example

IGNORED = -100  # the label that the loss leaves out
HELDOUT_AT_ONCE = 8  # examples in a forward pass without gradients


@dataclass(frozen=True)
class TrainingOutcome:
    """What training did: `losses` one a step (nats per answer token), tokens without padding."""

    losses: list[float]
    steps: int
    tokens_seen: int
    answer_tokens_seen: int
    executed_dtype: str


def encode(
    tokenizer: PreTrainedTokenizerBase, examples: Iterable[Example], max_tokens: int
) -> list[dict[str, list[int]]]:
    """Prompt and answer as token ids; labels are `IGNORED` on the prompt.

    An example longer than `max_tokens` raises UserError: cutting it would train on half an answer.
    Where examples are chosen with the tokenizer (task_examples), none is.
    """
    encoded = []
    for example in examples:
        prompt = models.prompt_ids(tokenizer, example.messages)
        answer = models.answer_ids(tokenizer, example.answer)
        length = len(prompt) + len(answer)
        if length > max_tokens:
            raise UserError(
                f"Training example {example.id} has {length} tokens, but training.max_tokens is "
                f"{max_tokens}; raise it to {length}."
            )
        encoded.append(
            {
                "input_ids": prompt + answer,
                "attention_mask": [1] * length,
                "labels": [IGNORED] * len(prompt) + answer,
            }
        )
    return encoded


def answer_batches(
    tokenizer: PreTrainedTokenizerBase,
) -> Callable[[list[dict[str, list[int]]]], BatchEncoding]:
    """Return what makes a batch of encoded examples.

    They are padded on the left, so that the answers end together and only their logits are
    computed. The loss is the same as with all of them.
    """
    import torch
    from transformers import DataCollatorForSeq2Seq

    pad = DataCollatorForSeq2Seq(tokenizer, label_pad_token_id=IGNORED)
    on_cpu = models.default_device() == "cpu"

    def collate(rows: list[dict[str, list[int]]]) -> BatchEncoding:
        batch = pad(rows)
        longest = max(sum(label != IGNORED for label in row["labels"]) for row in rows)
        # A token is predicted by the one before it.
        kept = min(longest + 1, batch["labels"].shape[1])
        batch["labels"] = batch["labels"][:, -kept:]
        # A number slices the states, and on CPUs a slice takes a slower product than places do.
        # With several GPUs places, being a tensor, could be divided among them like the examples.
        batch["logits_to_keep"] = torch.arange(-kept, 0) if on_cpu else kept
        return batch

    return collate


def nf4(compute_dtype: str) -> BitsAndBytesConfig:
    """NF4 with double quantisation: QLoRA's base (arXiv 2305.14314) and our INT4."""
    return compressions.configuration("int4", "bitsandbytes", compute_dtype)


def lora_config(training: Training, base_directory: Path) -> LoraConfig:
    """A study's settings as peft's, for a base."""
    from peft import LoraConfig

    return LoraConfig(
        r=training.lora_rank,
        lora_alpha=training.lora_alpha,
        lora_dropout=training.lora_dropout,
        task_type="CAUSAL_LM",
        **adapted_modules(base_directory, training.target_modules, training.adapted_share),
    )


def adapted_modules(
    base_directory: Path, target_modules: str | list[str], share: float
) -> dict[str, Any]:
    """Where the adapter of a base sits, in peft's words.

    Args:
        base_directory: The base's weights.
        target_modules: Which modules of a layer: their names, or `all-linear`.
        share: Of the layers, the last ones: one at least.

    Returns:
        Arguments of LoraConfig.
    """
    if share == 1:
        return {"target_modules": target_modules}
    linear = list(weights.linear_layers(weights.read_tensors(base_directory)))
    # `model.layers.11.mlp.down_proj`: what layers are called stands before the first number.
    numbered = [found for name in linear if (found := re.search(r"(\w+)\.(\d+)\.", name))]
    numbers = sorted({int(found[2]) for found in numbered})
    if target_modules == "all-linear":  # peft wants it spelt out
        target_modules = sorted({name.rsplit(".", 1)[-1] for name in linear})
    return {
        "target_modules": target_modules,
        "layers_to_transform": numbers[-max(1, round(share * len(numbers))) :],
        "layers_pattern": sorted({found[1] for found in numbered}),
    }


def load_for_training(
    directory: Path,
    lora: LoraConfig,
    seed: int,
    compute_dtype: str,
    quantization: BitsAndBytesConfig | None = None,
    gradient_checkpointing: bool = False,
) -> PeftModel:
    """Load the base with a fresh adapter, only the adapter trainable.

    Args:
        directory: The base's weights.
        lora: The adapter.
        seed: What the adapter is initialised from: the same for the same seed.
        compute_dtype: What layers compute in.
        quantization: How the base's layers are quantised (QLoRA), or None (LoRA).
        gradient_checkpointing: Whether activations are to be computed again.

    Returns:
        peft's model.

    Raises:
        UserError: The adapter's target modules are not the model's.
    """
    from peft import prepare_model_for_kbit_training

    base = models.load_model(directory, compute_dtype, quantization)
    if quantization is not None:
        base = prepare_model_for_kbit_training(base, use_gradient_checkpointing=False)
    model = add_adapter(base, lora, seed)
    if gradient_checkpointing:
        model.enable_input_require_grads()  # or nothing would flow back through frozen embeddings
    return model


def add_adapter(base: PreTrainedModel, lora: LoraConfig, seed: int) -> PeftModel:
    """Give `base` a fresh LoRA adapter, the same for the same seed; only the adapter trains."""
    from peft import get_peft_model
    from transformers import set_seed

    set_seed(seed)  # the same initial adapter for both methods
    wanted = lora.target_modules
    if not isinstance(wanted, str):  # `all-linear`, or a regular expression
        lacking = weights.lacking_modules(dict(_linear_modules(base)), sorted(wanted))
        if lacking:
            raise UserError(f"{lacking}.")
    try:
        return get_peft_model(base, lora)
    except ValueError as error:
        raise UserError(f"training.target_modules does not fit this model: {error}") from error


def _linear_modules(base: PreTrainedModel) -> Iterable[tuple[str, Any]]:
    """The layers that can be adapted: those with a matrix of weights that is no embedding."""
    embeddings = (base.get_input_embeddings(), base.get_output_embeddings())
    for name, module in base.named_modules():
        is_matrix = getattr(getattr(module, "weight", None), "ndim", 0) == 2
        if is_matrix and not any(module is embedding for embedding in embeddings):
            yield name, module


def load_adapter(base: PreTrainedModel, directory: Path, base_directory: Path) -> PeftModel:
    """`base` with the adapter in a directory, which must be one for it.

    UserError if the adapter was made on another base, lacks a tensor or has one that the base does
    not take, or if a value is no number. Costs milliseconds: an adapter is small.
    """
    from peft import PeftModel, get_peft_model_state_dict

    stored = weights.read_tensors(directory)
    weights.require_numbers(stored)
    made_on = weights.read_config(directory, "adapter_config.json").get("base_model_name_or_path")
    if made_on and Path(made_on).name != base_directory.name:
        raise UserError(
            f"{directory} is an adapter of {Path(made_on).name}, not of {base_directory.name}."
        )
    try:
        model = PeftModel.from_pretrained(base, str(directory))
    except (KeyError, RuntimeError, TypeError, ValueError) as error:
        said = " ".join(str(error).split())[:300]
        raise UserError(f"{directory} is no adapter for {base_directory.name} ({said}).") from error
    # peft leaves what is missing as it was initialised, and what is unexpected aside.
    taken = {name: tuple(value.shape) for name, value in get_peft_model_state_dict(model).items()}
    problem = models.difference(
        set(taken) - set(stored),
        set(stored) - set(taken),
        {name for name in set(taken) & set(stored) if taken[name] != stored[name].shape},
    )
    if problem:
        raise UserError(f"{directory} is no adapter for {base_directory.name}: {problem}.")
    return model


def trainable_parameters(model: PeftModel) -> int:
    """How many parameters training changes."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def loss_watch() -> TrainerCallback:
    """Return a callback that stops training at once where there is nothing left to learn from.

    It raises UserError as soon as a loss is not a number. By hand it shows a bar, too.
    """
    from transformers import TrainerCallback

    showing, watched = contextlib.ExitStack(), bars.shown()  # imports stay out of the window

    class Watch(TrainerCallback):
        def on_train_begin(self, args, state, control, **kwargs):
            if watched:
                self.count = showing.enter_context(bars.counted("training steps", state.max_steps))

        def on_step_end(self, args, state, control, **kwargs):
            if watched:
                self.count(1)

        def on_train_end(self, args, state, control, **kwargs):
            showing.close()

        def on_step_begin(self, args, state, control, model=None, **kwargs):
            if not model.training:
                raise AssertionError("the model left train mode")

        def on_log(self, args, state, control, logs=None, **kwargs):
            if "loss" in logs:
                _require_number("training loss", logs["loss"], f" at step {state.global_step}")

    return Watch()


def trainer_defaults(compute_dtype: str, directory: Path) -> dict[str, Any]:
    """Trainer's arguments that are no choice here: no checkpoints, no reports, every loss kept.

    `directory` is scratch space for the trainer; nothing of value is left there.
    """
    on_gpu = models.default_device() != "cpu"
    return {
        "output_dir": str(directory),
        "fp16": compute_dtype == "float16",
        "bf16": compute_dtype == "bfloat16",
        "logging_steps": 1,
        "logging_nan_inf_filter": False,  # a NaN must be seen, not smoothed away
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": on_gpu,
        "use_cpu": not on_gpu,
    }


def outcome(trainer: Trainer) -> TrainingOutcome:
    """What a trainer did to its model."""
    done = trainer.state.epoch or 0.0
    rows = trainer.train_dataset
    labels = [label for row in rows for label in row["labels"]]
    return TrainingOutcome(
        losses=[entry["loss"] for entry in trainer.state.log_history if "loss" in entry],
        steps=trainer.state.global_step,
        tokens_seen=round(done * sum(len(row["input_ids"]) for row in rows)),
        answer_tokens_seen=round(done * sum(label != IGNORED for label in labels)),
        executed_dtype=models.executed_dtype(trainer.model),
    )


def executed_training(trainer: Trainer) -> dict[str, Any]:
    """With what a trainer really trained, read off the trainer and its model."""
    lora, arguments = trainer.model.peft_config["default"], trainer.args
    modules = lora.target_modules
    quantization = getattr(trainer.model.config, "quantization_config", None)
    return {
        "lora_rank": lora.r,
        "lora_alpha": lora.lora_alpha,
        "lora_dropout": lora.lora_dropout,
        "target_modules": modules if isinstance(modules, str) else sorted(modules),
        "layers": lora.layers_to_transform,  # None: all of them
        "learning_rate": arguments.learning_rate,
        "lr_scheduler_type": str(arguments.lr_scheduler_type.value),
        "batch_size": arguments.per_device_train_batch_size,
        "gradient_accumulation_steps": arguments.gradient_accumulation_steps,
        "epochs": arguments.num_train_epochs,
        "optimizer": str(getattr(arguments.optim, "value", arguments.optim)),
        "gradient_checkpointing": arguments.gradient_checkpointing,
        "examples": len(trainer.train_dataset),
        "seed": arguments.seed,
        "base_quantization": quantization and str(quantization.quant_method.value),
    }


def heldout_loss(
    model: PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Iterable[Example],
    batch_size: int = HELDOUT_AT_ONCE,
) -> float:
    """Mean negative log-likelihood (nats per answer token) of examples that are not trained on."""
    with evaluating(model):
        likelihoods = gold_likelihoods(model, tokenizer, examples, batch_size)
    loss = float(np.mean([likelihood.nll for likelihood in likelihoods]))
    _require_number("held-out loss", loss)
    return loss


def _require_number(what: str, loss: float, where: str = "") -> None:
    if not np.isfinite(loss):
        raise UserError(
            f"The {what} is {loss}{where}; lower training.learning_rate or use another "
            "training.compute_dtype."
        )


def save_adapter(model: PeftModel, target: Path) -> int:
    """Write the adapter as safetensors to `target`; its bytes on disk."""
    with models.published_directory(target) as directory:
        model.save_pretrained(directory, safe_serialization=True)
    return directory_bytes(target)


def directory_bytes(directory: Path) -> int:
    """Bytes of all files below a directory."""
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())
