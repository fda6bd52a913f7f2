"""From chats to token ids and back: a model's own tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from edge_eval_lib.errors import UserError, one_line

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from edge_eval_lib.tasks import Example


def load_tokenizer(directory: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a model directory, padding on the left as batched generation needs."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(
            directory, padding_side="left", trust_remote_code=False
        )
    except Exception as error:  # as in load.load_weights
        raise UserError(f"{directory} has no tokenizer that loads ({one_line(error)}).") from error
    if tokenizer.chat_template is None:
        raise UserError(f"{directory} has no chat template; an instruction-tuned model is needed.")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def prompt_ids(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]]) -> list[int]:
    """Token ids of a chat up to where the assistant begins to answer."""
    text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def answer_ids(tokenizer: PreTrainedTokenizerBase, answer: str) -> list[int]:
    """Token ids of an answer, its end-of-sequence token included."""
    ids = tokenizer(answer, add_special_tokens=False)["input_ids"]
    return [*ids, tokenizer.eos_token_id]


def count_tokens(tokenizer: PreTrainedTokenizerBase, example: Example) -> int:
    """Tokens of an example's prompt and answer together."""
    prompt = prompt_ids(tokenizer, example.messages)
    return len(prompt) + len(answer_ids(tokenizer, example.answer))
