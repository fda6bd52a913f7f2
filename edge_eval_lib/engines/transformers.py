"""Serving with transformers' `generate`: static batches, one after the other."""

from __future__ import annotations

import itertools
import time
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

if TYPE_CHECKING:
    from lm_eval.api.model import LM
    from transformers import GenerationConfig

    from edge_eval_lib.models.likelihood import Reading


class TransformersEngine(Engine):
    """Batches of `concurrency` prompts, padded on the left; a batch ends together."""

    name = "transformers"
    launches_every_step = True
    # Of bitsandbytes' LLM.int8 and NF4.
    least_capability: ClassVar = {"int8": "7.5", "int4": "6.0"}

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

    def answer(self, requests: Requests) -> list[Generation]:
        """Answer the prompts batch by batch."""
        prompts, output_tokens = requests.prompts, requests.output_tokens
        reasons = [too_long(prompt, output_tokens, self.room) for prompt in prompts]
        fitting = [prompt for prompt, why in zip(prompts, reasons, strict=True) if why is None]
        answered: list[Generation] = []
        for start in range(0, len(fitting), requests.slots):
            batch = fitting[start : start + requests.slots]
            answered += self._batch(batch, output_tokens, requests.until_end)
        in_order = iter(answered)
        return [
            next(in_order) if why is None else Generation(prompt, time.monotonic(), failure=why)
            for prompt, why in zip(prompts, reasons, strict=True)
        ]

    def _batch(
        self, prompts: list[list[int]], output_tokens: int, until_end: bool
    ) -> list[Generation]:
        import torch

        clock = TokenClock()
        submitted = time.monotonic()
        inputs = self.tokenizer.pad({"input_ids": prompts}, return_tensors="pt")
        with torch.inference_mode():
            output = self.model.generate(
                **inputs.to(self.model.device),
                generation_config=self.greedy(output_tokens, until_end),
                streamer=clock,
            )
        new = output[:, inputs["input_ids"].shape[1] :].tolist()
        if until_end:  # a batch ends together: what follows an answer's own end is padding
            new = [tokens[: self.natural_length(tokens)] for tokens in new]
        return [
            Generation(prompt, submitted, tokens, clock.times_s[: len(tokens)])
            for prompt, tokens in zip(prompts, new, strict=True)
        ]

    def greedy(self, output_tokens: int, until_end: bool = False) -> GenerationConfig:
        """Return greedy decoding of `output_tokens`, or of at most that many `until_end`."""
        from transformers import GenerationConfig

        return GenerationConfig(
            max_new_tokens=output_tokens,
            do_sample=False,
            eos_token_id=sorted(self.stop_ids) if until_end else None,
            pad_token_id=self.tokenizer.pad_token_id,
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

    def executed_dtype(self) -> str:
        from edge_eval_lib import models

        return models.executed_dtype(self.model)


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
