"""A model's own tokenizer, for engines that are handed token ids and hand back token ids."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edge_eval_lib.engines.base import KvCache
    from edge_eval_lib.models.likelihood import Likelihood


class ChatTokenizer:
    """The part of an engine that makes prompt tokens of chats and answers of generated tokens."""

    remote = False

    def open_tokenizer(self, directory: Path) -> None:
        """Load the tokenizer in `directory`, and which tokens end an answer."""
        from transformers import AutoConfig, GenerationConfig

        from edge_eval_lib.models import load as models

        self.tokenizer = models.load_tokenizer(directory)
        try:
            stops = GenerationConfig.from_pretrained(directory).eos_token_id
        except OSError:  # the file is optional
            stops = AutoConfig.from_pretrained(directory, trust_remote_code=False)
            stops = getattr(stops, "eos_token_id", None)
        stops = stops if isinstance(stops, list) else [stops]
        self.stop_ids = {self.tokenizer.eos_token_id, *stops} - {None}

    def encode(self, messages: list[dict[str, str]]) -> list[int]:
        from edge_eval_lib.models import load as models

        return models.prompt_ids(self.tokenizer, messages)

    def decode(self, token_ids: list[int]) -> str:
        length = self.natural_length(token_ids)
        return self.tokenizer.decode(token_ids[:length], skip_special_tokens=True).strip()

    def kv_cache(self) -> KvCache | None:
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
