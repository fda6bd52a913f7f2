"""Adaptation: LoRA on a frozen base, QLoRA on the same base in 4-bit NF4.

Both methods share data, batches, compute dtype and adapter; the base's precision is all that
differs, so that a difference in energy or time is the method's own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edge_eval_lib.errors import UserError
from edge_eval_lib.models import load as models
from edge_eval_lib.models import weights
from edge_eval_lib.models.likelihood import evaluating, gold_likelihoods
from edge_eval_lib.study import Training

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import BatchEncoding, PreTrainedModel, PreTrainedTokenizerBase

    from edge_eval_lib.tasks import Example

IGNORED = -100  # the label that the loss leaves out


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
    """What makes a batch of encoded examples: padded on the left, so that the answers end together
    and only their logits are computed. The loss is the same as with all of them.
    """
    from transformers import DataCollatorForSeq2Seq

    pad = DataCollatorForSeq2Seq(tokenizer, label_pad_token_id=IGNORED)

    def collate(rows: list[dict[str, list[int]]]) -> BatchEncoding:
        batch = pad(rows)
        longest = max(sum(label != IGNORED for label in row["labels"]) for row in rows)
        kept = min(longest + 1, batch["labels"].shape[1])  # a token is told by the one before it
        batch["labels"], batch["logits_to_keep"] = batch["labels"][:, -kept:], kept
        return batch

    return collate


def nf4(compute_dtype: str) -> Any:
    """NF4 with double quantisation: QLoRA's base (arXiv 2305.14314) and our INT4."""
    import torch
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=getattr(torch, compute_dtype),
    )


def load_for_training(directory: Path, method: str, training: Training, seed: int) -> PeftModel:
    """The base with a fresh adapter, only the adapter trainable. `method` is `lora` or `qlora`."""
    from peft import prepare_model_for_kbit_training

    if method not in ("lora", "qlora"):
        raise ValueError(f"method is {method!r}; it is 'lora' or 'qlora'")
    quantization = nf4(training.compute_dtype) if method == "qlora" else None
    base = models.load_model(directory, training.compute_dtype, quantization)
    if method == "qlora":
        base = prepare_model_for_kbit_training(base, use_gradient_checkpointing=False)
    model = add_adapter(base, training, seed)
    if training.gradient_checkpointing:
        model.enable_input_require_grads()  # or nothing would flow back through frozen embeddings
    return model


def add_adapter(base: PreTrainedModel, training: Training, seed: int) -> PeftModel:
    """`base` with a fresh LoRA adapter, the same for the same seed; only the adapter trains."""
    from peft import LoraConfig, get_peft_model
    from transformers import set_seed

    set_seed(seed)  # the same initial adapter for both methods
    wanted = training.target_modules
    if wanted != "all-linear":
        lacking = weights.lacking_modules(dict(_linear_modules(base)), wanted)
        if lacking:
            raise UserError(f"{lacking}.")
    config = LoraConfig(
        r=training.lora_rank,
        lora_alpha=training.lora_alpha,
        lora_dropout=training.lora_dropout,
        target_modules=training.target_modules,
        task_type="CAUSAL_LM",
    )
    try:
        return get_peft_model(base, config)
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
    told = models.difference(
        set(taken) - set(stored),
        set(stored) - set(taken),
        {name for name in set(taken) & set(stored) if taken[name] != stored[name].shape},
    )
    if told:
        raise UserError(f"{directory} is no adapter for {base_directory.name}: {told}.")
    return model


def trainable_parameters(model: PeftModel) -> int:
    """How many parameters training changes."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def train(
    model: PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    encoded: list[dict[str, list[int]]],
    training: Training,
    seed: int,
    directory: Path,
) -> TrainingOutcome:
    """Train the adapter in place. Raises UserError as soon as the loss is not a number.

    `directory` is scratch space for the trainer; nothing of value is left there.
    """
    from transformers import Trainer, TrainerCallback, TrainingArguments

    class Watch(TrainerCallback):
        """Keeps every step's loss; stops at once when there is nothing left to learn from."""

        losses: list[float] = []  # noqa: RUF012  one a call of train()

        def on_step_begin(self, args, state, control, model=None, **kwargs):
            if not model.training:
                raise AssertionError("the model left train mode")

        def on_log(self, args, state, control, logs=None, **kwargs):
            if "loss" not in logs:
                return
            self.losses.append(logs["loss"])
            _require_number("training loss", logs["loss"], f" at step {state.global_step}")

    watch = Watch()
    arguments = TrainingArguments(
        output_dir=str(directory),
        num_train_epochs=training.epochs,
        per_device_train_batch_size=training.batch_size,
        learning_rate=training.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=1,
        fp16=training.compute_dtype == "float16",
        bf16=training.compute_dtype == "bfloat16",
        gradient_checkpointing=training.gradient_checkpointing,
        logging_steps=1,
        logging_nan_inf_filter=False,  # a NaN must be seen, not smoothed away
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=models.default_device() != "cpu",
        use_cpu=models.default_device() == "cpu",
        seed=seed,
        data_seed=seed,
    )
    model.train()
    executed = models.executed_dtype(model)
    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=encoded,
        data_collator=answer_batches(tokenizer),
        callbacks=[watch],
    )
    trainer.train()
    return TrainingOutcome(
        losses=watch.losses,
        steps=trainer.state.global_step,
        tokens_seen=training.epochs * sum(len(row["input_ids"]) for row in encoded),
        answer_tokens_seen=training.epochs
        * sum(label != IGNORED for row in encoded for label in row["labels"]),
        executed_dtype=executed,
    )


def heldout_loss(
    model: PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Iterable[Example],
    batch_size: int,
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
