"""Serving with transformers' `generate`: static batches, one after the other."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from edge_eval_lib.engines.base import (
    Engine,
    Generation,
    Requests,
    context_length,
    require_numbers,
    too_long,
)
from edge_eval_lib.models import prefixes

if TYPE_CHECKING:
    from lm_eval.api.model import LM
    from transformers import GenerationConfig

    from edge_eval_lib.models.likelihood import Reading
    from edge_eval_lib.models.prefixes import PrefixStore

BATCHES_KEPT = 2  # whose keys and values are kept, for prompts that go on from them


class TransformersEngine(Engine):
    """Batches of `concurrency` prompts, padded on the left; a batch ends together.

    With `prefix_caching`, while `share_prefixes` is True, keys and values of the sequences answered
    last are kept, and a prompt takes over what it has in common with one of them. They are those of
    two batches: what every conversation under way was answered last is among them.
    """

    name = "transformers"
    supports_prefix_caching = True
    launches_every_step = True
    # Of bitsandbytes' LLM.int8 and NF4.
    least_capability: ClassVar = {"int8": "7.5", "int4": "6.0"}

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.store: PrefixStore | None = None
        self.looked_up = self.taken_over = 0  # tokens of prompts, since the last `forget`

    @classmethod
    def harness_model(cls, directory: Path, compute_dtype: str, batch_size: int) -> LM:
        from lm_eval.models.huggingface import HFLM

        from edge_eval_lib import models

        return HFLM(
            pretrained=models.load_model(directory, compute_dtype),
            tokenizer=models.load_tokenizer(directory),
            backend="causal",
            max_length=context_length(directory),
            trust_remote_code=False,
            batch_size=batch_size,
        )

    def import_libraries(self) -> None:
        from edge_eval_lib.models import libraries

        libraries.import_for_inference(self.directory)

    def load(self) -> None:
        """Load the weights, and decode greedily whatever the model's own configuration says."""
        from transformers import GenerationConfig

        from edge_eval_lib import models

        self.open_tokenizer(self.directory)
        self.model = models.load_model(self.directory, self.compute_dtype).eval()
        self.room = getattr(self.model.config, "max_position_embeddings", None)
        # What a call's configuration leaves open is filled from the model's own: end-of-sequence
        # tokens that would stop it, and penalties that would make it other than greedy.
        self.model.generation_config = GenerationConfig()
        if self.prefix_caching:
            prefixes.require_whole_cache(self.model)

    def answer(self, requests: Requests) -> list[Generation]:
        """Answer the prompts batch by batch."""
        prompts = requests.prompts
        reasons = [too_long(prompt, requests.output_tokens, self.room) for prompt in prompts]
        fitting = [prompt for prompt, why in zip(prompts, reasons, strict=True) if why is None]
        answered: list[Generation] = []
        for start in range(0, len(fitting), requests.slots):
            batch = fitting[start : start + requests.slots]
            answered += self._batch(batch, requests)
        in_order = iter(answered)
        return [
            next(in_order) if why is None else Generation(prompt, time.monotonic(), failure=why)
            for prompt, why in zip(prompts, reasons, strict=True)
        ]

    def forget(self) -> None:
        """Forget all keys and values."""
        self.store, self.looked_up, self.taken_over = None, 0, 0

    def _batch(self, prompts: list[list[int]], requests: Requests) -> list[Generation]:
        import torch

        clock = TokenClock()
        submitted = time.monotonic()
        inputs = self._inputs(prompts, requests)
        with torch.inference_mode(), torch.random.fork_rng(enabled=requests.temperature > 0):
            if requests.temperature:
                torch.manual_seed(requests.seed)
            output = self.model.generate(
                **inputs,
                generation_config=self.decoding(requests),
                streamer=clock,
            )
            new = output.sequences[:, inputs["input_ids"].shape[1] :].tolist()
            if self.share_prefixes and self.store is not None:
                sequences = [prompt + tokens for prompt, tokens in zip(prompts, new, strict=True)]
                self.store.keep(sequences, inputs["attention_mask"], output.past_key_values)
        if requests.until_end:  # a batch ends together: what follows an answer's end is padding
            new = [tokens[: self.natural_length(tokens)] for tokens in new]
        generations = [
            Generation(prompt, submitted, tokens, clock.times_s[: len(tokens)])
            for prompt, tokens in zip(prompts, new, strict=True)
        ]
        if requests.confidence:
            note_logits(generations, output.logits)
        return generations

    def _inputs(self, prompts: list[list[int]], requests: Requests) -> dict[str, Any]:
        if not self.share_prefixes:
            inputs = self.tokenizer.pad({"input_ids": prompts}, return_tensors="pt")
            return dict(inputs.to(self.model.device))
        if self.store is None:
            self.store = prefixes.PrefixStore(BATCHES_KEPT * requests.slots)
        shared, taken_over = self.store.inputs(prompts, self.tokenizer.pad_token_id)
        self.looked_up += sum(map(len, prompts))
        self.taken_over += taken_over
        self.prefix_cache_hit_rate = self.taken_over / self.looked_up
        for name in ("input_ids", "attention_mask"):
            shared[name] = shared[name].to(self.model.device)
        return shared

    def decoding(self, requests: Requests) -> GenerationConfig:
        """Return how a batch is decoded: exactly as long as asked for, or `until_end`."""
        from transformers import GenerationConfig

        drawn: dict[str, Any] = {"do_sample": False}
        if requests.temperature:  # from the whole distribution: no other cut than the temperature
            drawn = {"do_sample": True, "temperature": requests.temperature, "top_k": 0}
        return GenerationConfig(
            max_new_tokens=requests.output_tokens,
            eos_token_id=sorted(self.stop_ids) if requests.until_end else None,
            pad_token_id=self.tokenizer.pad_token_id,
            return_dict_in_generate=True,
            output_logits=requests.confidence,
            **drawn,
        )

    def read(
        self, prompts: list[list[int]], texts: list[list[list[int]]], batch_size: int
    ) -> list[list[Reading]]:
        """Read texts after their prompts; INT8 layers scale over all at hand, so alone."""
        from edge_eval_lib.models.likelihood import NOT_READ, read_texts

        fits = [
            [self.room is None or len(prompt) + len(text) <= self.room for text in of_prompt]
            for prompt, of_prompt in zip(prompts, texts, strict=True)
        ]
        asked = [i for i, of_prompt in enumerate(fits) if any(of_prompt)]
        readings = read_texts(
            self.model,
            self.tokenizer,
            [prompts[i] for i in asked],
            [list(itertools.compress(texts[i], fits[i])) for i in asked],
            1 if self.executed_dtype() == "int8" else batch_size,
        )
        require_numbers(readings, self.directory, self.compute_dtype)
        in_order = (reading for of_prompt in readings for reading in of_prompt)
        return [[next(in_order) if fit else NOT_READ for fit in of_prompt] for of_prompt in fits]

    def unmeasured(self) -> AbstractContextManager[None]:
        """Unpack 4-bit weights once, instead of at every product."""
        from edge_eval_lib import models

        return models.weights_unpacked(self.model)

    def executed_dtype(self) -> str:
        from edge_eval_lib import models

        return models.executed_dtype(self.model)


def note_logits(generations: list[Generation], logits: Sequence[Any]) -> None:
    """Note how likely the tokens of a batch's generations were, by its logits step by step."""
    steps = [scores.float().log_softmax(-1) for scores in logits]
    two = [scores.topk(2).values.exp().tolist() for scores in steps]
    for row, generation in enumerate(generations):
        ids = generation.token_ids
        generation.logprobs = [float(steps[i][row, token]) for i, token in enumerate(ids)]
        generation.margins = [two[i][row][0] - two[i][row][1] for i in range(len(ids))]


class TokenClock:
    """A streamer that keeps when each step's tokens left the device, and nothing else."""

    def __init__(self) -> None:
        self.times_s: list[float] = []
        self._prompt_seen = False

    def put(self, token_ids: Any) -> None:
        """Note the time; generate hands over a copy on the CPU, so the step is done."""
        if self._prompt_seen:
            self.times_s.append(time.monotonic())
        self._prompt_seen = True

    def end(self) -> None:
        """Flush nothing: no text is kept."""


ENGINE = TransformersEngine
