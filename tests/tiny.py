"""Tiny real models and studies, made on the spot for tests.

    python tests/tiny.py DIRECTORY      writes DIRECTORY/tiny.yaml and its model

Everything about them is real (architecture, tokenizer, chat template, safetensors) but the size:
two layers of width 64, so that a whole study runs in a minute or two.
"""

from __future__ import annotations

import argparse
import json
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

ALL_CONFIGURATIONS = (("lora", "fp16"), ("lora", "int8"), ("lora", "int4"), ("qlora", "int4"))
CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
ROLE_TOKENS = ["<|end|>", "<|pad|>", "<|system|>", "<|user|>", "<|assistant|>"]


def make_tiny_model(directory: Path, architecture: str = "llama") -> Path:
    """A randomly initialised two-layer `llama` or `qwen2` with a tokenizer of its own.

    Returns `directory`, which then holds what a local model needs. The tokenizer is a byte-level
    BPE trained on the texts of the embedded tasks.
    """
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import (
        LlamaConfig,
        LlamaForCausalLM,
        PreTrainedTokenizerFast,
        Qwen2Config,
        Qwen2ForCausalLM,
    )

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=1024,
        special_tokens=ROLE_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(_task_texts(), trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, eos_token="<|end|>", pad_token="<|pad|>"
    )
    tokenizer.chat_template = CHAT_TEMPLATE

    shapes = {
        "llama": (LlamaConfig, LlamaForCausalLM),
        "qwen2": (Qwen2Config, Qwen2ForCausalLM),
    }
    config_class, model_class = shapes[architecture]
    torch.manual_seed(0)
    model = model_class(
        config_class(
            vocab_size=len(tokenizer),
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=1024,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            tie_word_embeddings=True,
        )
    )
    directory.mkdir(parents=True, exist_ok=True)
    model.to(torch.float16).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def _task_texts() -> list[str]:
    """Every text in the embedded tasks' files."""
    texts: list[str] = []
    for file in resources.files("edge_eval_lib.tasks").joinpath("data").iterdir():
        if file.name.endswith(".jsonl"):
            for line in file.read_text(encoding="utf-8").splitlines():
                texts += _strings(json.loads(line))
    return texts


def _strings(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        value = value.values()
    return [text for item in value for text in _strings(item)] if not _is_number(value) else []


def _is_number(value: Any) -> bool:
    return value is None or isinstance(value, (int, float))


def tiny_study(
    directory: Path,
    name: str = "tiny",
    architecture: str = "llama",
    tasks: tuple[str, ...] = ("rag",),
    configurations: tuple[tuple[str, str], ...] = ALL_CONFIGURATIONS,
    **changes: Any,
) -> dict[str, Any]:
    """A study file's content for the tiny model in `directory`/`architecture`.

    `changes` replace top-level fields, or update them where both are mappings.
    """
    content: dict[str, Any] = {
        "name": name,
        "description": "A two-layer model made on the spot; its figures mean nothing.",
        "hardware": "this-machine",
        "models": [
            {
                "family": f"tiny{architecture}",
                "size": "0.1M",
                "source": "local",
                "location": architecture,
                "revision": "none",
                "licence": "Apache-2.0",
                "parameters": 140_000,
                "nominal_gb": {"fp16": 2.8e-4, "int8": 1.4e-4, "int4": 0.7e-4},
            }
        ],
        "tasks": list(tasks),
        "configurations": [{"method": m, "precision": p} for m, p in configurations],
        "data": {
            "source": "embedded",
            "train_examples": 8,
            "heldout_examples": 2,
            "evaluation_examples": 4,
        },
        "training": {
            "lora_rank": 4,
            "lora_alpha": 8,
            "lora_dropout": 0.0,
            "target_modules": ["q_proj", "v_proj", "down_proj"],
            "learning_rate": 1e-3,
            "batch_size": 4,
            "epochs": 1,
            "max_tokens": 512,
            "compute_dtype": "float32",
            "gradient_checkpointing": False,
        },
        "workload": {
            "engine": "transformers",
            "output_tokens": 4,
            "concurrency": [1, 4],
            "headline_concurrency": 4,
            "latency_prompts": 2,
            "warmup_requests": 1,
            "idle_seconds": 0.5,
        },
        "repetitions": 1,
        "prices": "paper",
        "seed": 7,
    }
    for field, value in changes.items():
        if isinstance(value, dict) and isinstance(content.get(field), dict):
            value = content[field] | value
        content[field] = value
    return content


def make_tiny_study(directory: Path, architecture: str = "llama", **options: Any) -> Path:
    """`tiny_study` written to `directory`/NAME.yaml, with its model beside it; returns the file."""
    content = tiny_study(directory, architecture=architecture, **options)
    if not (directory / architecture / "config.json").is_file():
        make_tiny_model(directory / architecture, architecture)
    path = directory / f"{content['name']}.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    return path


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Write a tiny study and its model.")
    parser.add_argument("directory", type=Path)
    parser.add_argument("--architecture", choices=["llama", "qwen2"], default="llama")
    arguments = parser.parse_args()
    study_name = "tiny" if arguments.architecture == "llama" else f"tiny-{arguments.architecture}"
    print(make_tiny_study(arguments.directory, arguments.architecture, name=study_name))
