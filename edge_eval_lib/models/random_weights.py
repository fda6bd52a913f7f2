"""Models of a given shape with random weights, to measure what cannot be downloaded."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_eval_lib.models.load import default_device, published_directory

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LARGEST_TOKENIZER = 8192
ROLE_TOKENS = ["<|end|>", "<|pad|>", "<|system|>", "<|user|>", "<|assistant|>"]
CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def write_random_model(config: dict[str, Any], target: Path) -> Path:
    """A model of that shape with random FP16 weights, and a tokenizer, in `target`.

    `config` holds fields of transformers' configuration class for its `model_type`. Everything is
    real but what the weights know: speed, memory and energy are those of the shape; answers mean
    nothing. The tokenizer is a byte-level BPE of at most 8192 tokens trained on the texts of the
    embedded tasks, so that prompts take some more tokens than under the model's own.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    shape = {name: value for name, value in config.items() if name != "model_type"}
    tokenizer = _train_tokenizer(min(LARGEST_TOKENIZER, shape.get("vocab_size", LARGEST_TOKENIZER)))
    specials = {
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    built = AutoConfig.for_model(config["model_type"], **{**shape, **specials})
    torch.manual_seed(0)
    with torch.device(default_device()):
        model = AutoModelForCausalLM.from_config(
            built, dtype=torch.float16, trust_remote_code=False
        )
    with published_directory(target) as directory:
        model.save_pretrained(directory)
        tokenizer.save_pretrained(directory)
    return target


def _train_tokenizer(vocabulary_size: int) -> PreTrainedTokenizerBase:
    """Make a chat tokenizer of the texts that come with this project."""
    from tokenizers import ByteLevelBPETokenizer
    from transformers import PreTrainedTokenizerFast

    data = resources.files("edge_eval_lib.tasks").joinpath("data")
    texts = (
        str(value)
        for file in sorted(data.iterdir(), key=lambda file: file.name)
        if file.name.endswith(".jsonl")
        for line in file.read_text(encoding="utf-8").splitlines()
        for value in json.loads(line).values()
    )
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(
        texts, vocabulary_size, min_frequency=0, show_progress=False, special_tokens=ROLE_TOKENS
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe._tokenizer,
        eos_token="<|end|>",
        pad_token="<|pad|>",
        chat_template=CHAT_TEMPLATE,
    )
