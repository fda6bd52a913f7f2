"""From chats to token ids and back: a model's own tokenizer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_eval_lib.errors import UserError, one_line

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from edge_eval_lib.models.likelihood import Likelihood
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


class ChatTokenizer:
    """The part of an engine that makes prompt tokens of chats and answers of generated tokens."""

    remote = False

    def open_tokenizer(self, directory: Path) -> None:
        """Load the tokenizer in `directory`, and which tokens end an answer."""
        from transformers import AutoConfig, GenerationConfig

        self.tokenizer = load_tokenizer(directory)
        try:
            stops = GenerationConfig.from_pretrained(directory).eos_token_id
        except OSError:  # the file is optional
            stops = AutoConfig.from_pretrained(directory, trust_remote_code=False)
            stops = getattr(stops, "eos_token_id", None)
        stops = stops if isinstance(stops, list) else [stops]
        self.stop_ids = {self.tokenizer.eos_token_id, *stops} - {None}

    def encode(self, messages: list[dict[str, str]]) -> list[int]:
        return prompt_ids(self.tokenizer, messages)

    def decode(self, token_ids: list[int]) -> str:
        length = self.natural_length(token_ids)
        return self.tokenizer.decode(token_ids[:length], skip_special_tokens=True).strip()

    def kv_cache(self) -> Any:
        """Return what the engine tells of its cache; by default nothing."""
        return None

    def ended(self, token_ids: list[int]) -> bool:
        return not self.stop_ids.isdisjoint(token_ids)

    def natural_length(self, token_ids: list[int]) -> int:
        stops = (i for i, token in enumerate(token_ids) if token in self.stop_ids)
        return next(stops, len(token_ids) - 1) + 1


def ranked_likelihood(
    prompt_id: str, answer: Sequence[int], positions: Sequence[Mapping[int, tuple[float, int]]]
) -> Likelihood:
    """A gold answer's likelihood from what vLLM tells of a prompt's tokens.

    `positions` has, for each token of `answer`, at least that token and the most likely one: token
    id -> (log-probability in nats, rank from 1).
    """
    from edge_eval_lib.models.likelihood import Likelihood

    told = list(zip(answer, positions, strict=True))
    nll = -sum(position[token][0] for token, position in told) / len(told)
    best = [min(position, key=lambda token: position[token][1]) for position in positions]
    return Likelihood(prompt_id, nll, best)
