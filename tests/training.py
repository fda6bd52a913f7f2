"""Trains an adapter as notebook 01 does, for tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edge_eval_lib.lifecycle import adapt
from edge_eval_lib.study import Training


def load(base: Path, method: str, training: Training, seed: int) -> Any:
    """The base with a fresh adapter, by a study's settings."""
    return adapt.load_for_training(
        base,
        adapt.lora_config(training, base),
        seed,
        training.compute_dtype,
        quantization=adapt.nf4(training.compute_dtype) if method == "qlora" else None,
        gradient_checkpointing=training.gradient_checkpointing,
    )


def train(
    model: Any, tokenizer: Any, encoded: list[Any], training: Training, seed: int, scratch: Path
) -> adapt.TrainingOutcome:
    """Train the adapter in place."""
    from transformers import Trainer, TrainingArguments

    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            learning_rate=training.learning_rate,
            lr_scheduler_type="cosine",
            warmup_steps=1,
            num_train_epochs=training.epochs,
            per_device_train_batch_size=training.batch_size,
            gradient_checkpointing=training.gradient_checkpointing,
            seed=seed,
            data_seed=seed,
            **adapt.trainer_defaults(training.compute_dtype, scratch),
        ),
        train_dataset=encoded,
        data_collator=adapt.answer_batches(tokenizer),
        callbacks=[adapt.loss_watch()],
    )
    trainer.train()
    return adapt.outcome(trainer)
