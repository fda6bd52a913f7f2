"""Measuring a running endpoint that speaks the OpenAI completions protocol.

Where it is and how to be let in stand in the environment variables OPENAI_BASE_URL and
OPENAI_API_KEY alone; neither is ever written down. What the endpoint's machine draws and holds is
not this process's: energy, memory and load stay empty.
"""

from __future__ import annotations

import asyncio
import math
import os
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_eval_lib import redaction
from edge_eval_lib.engines.base import Generation
from edge_eval_lib.errors import UserError
from edge_eval_lib.models.tokens import ChatTokenizer, ranked_likelihood

if TYPE_CHECKING:
    from openai import AsyncOpenAI

    from edge_eval_lib.models.likelihood import Likelihood
    from edge_eval_lib.tasks import Example

URL_VARIABLE = "OPENAI_BASE_URL"
KEY_VARIABLE = "OPENAI_API_KEY"
LONGEST_REASON = 200
TIMEOUT_S = 600.0
# What vLLM's server adds to the protocol. Others may ignore it: answers that then end early fail.
EXACT_LENGTH = {"ignore_eos": True, "return_token_ids": True, "repetition_penalty": 1.0}


class OpenAiEngine(ChatTokenizer):
    """Asks the endpoint for the model `served_name`; its tokenizer lies in `directory`.

    Prompts travel as token ids. An endpoint that does not return token ids is taken to send one
    token a piece of text; the pieces then get ids of their own, below 0.
    """

    name = "openai"
    continuous_batching = True
    remote = True

    def __init__(self, directory: Path, served_name: str):
        self.directory = directory
        self.model = served_name
        self.pieces: dict[str, int] = {}

    def import_libraries(self) -> None:
        import openai  # noqa: F401

    def load(self) -> None:
        """Check that the endpoint answers and offers the model; UserError if not."""
        require_offered([self.model])
        self.open_tokenizer(self.directory)

    def serve(
        self,
        prompts: list[list[int]],
        output_tokens: int,
        concurrency: int,
        until_end: bool = False,
    ) -> list[Generation]:
        async def ask_all(client: AsyncOpenAI) -> list[Generation]:
            slots = asyncio.Semaphore(concurrency)

            async def in_a_slot(prompt: list[int]) -> Generation:
                async with slots:
                    generation = Generation(prompt, time.monotonic())
                    await self._ask(client, generation, output_tokens, until_end)
                    return generation

            return await asyncio.gather(*map(in_a_slot, prompts))

        return _in_a_loop(ask_all)

    def serve_arrivals(
        self, prompts: list[list[int]], output_tokens: int, arrivals_s: list[float]
    ) -> list[Generation]:
        async def ask_all(client: AsyncOpenAI) -> list[Generation]:
            start = time.monotonic()

            async def when_due(prompt: list[int], due_s: float) -> Generation:
                await asyncio.sleep(start + due_s - time.monotonic())
                generation = Generation(prompt, start + due_s)
                await self._ask(client, generation, output_tokens)
                return generation

            return await asyncio.gather(*map(when_due, prompts, arrivals_s))

        return _in_a_loop(ask_all)

    async def _ask(
        self,
        client: AsyncOpenAI,
        generation: Generation,
        output_tokens: int,
        until_end: bool = False,
    ) -> None:
        import openai

        try:
            stream = await client.completions.create(
                model=self.model,
                prompt=generation.prompt_ids,
                max_tokens=output_tokens,
                temperature=0.0,
                stream=True,
                extra_body=EXACT_LENGTH | {"ignore_eos": not until_end},
            )
            async for chunk in stream:
                now = time.monotonic()
                for choice in chunk.choices:
                    ids = self._token_ids(choice)
                    generation.token_ids += ids
                    generation.token_times_s += [now] * len(ids)
        except openai.APIStatusError as error:
            reason = redaction.redact(f"HTTP {error.status_code}: {error.message}")
            generation.failure = reason[:LONGEST_REASON]
        except openai.OpenAIError as error:
            generation.failure = type(error).__name__
        else:
            answered = len(generation.token_ids)
            if answered != output_tokens and not until_end:
                generation.failure = f"ended after {answered} of {output_tokens} tokens"
            elif self._repeats_a_secret(generation.token_ids):  # ids would tell it as text does
                generation.token_ids = [self._piece(redaction.MASK)] * answered

    def _token_ids(self, choice: Any) -> list[int]:
        told = (choice.model_extra or {}).get("token_ids")
        if told is not None:
            return told
        if not choice.text:
            return []
        return [self._piece(choice.text)]

    def _piece(self, text: str) -> int:
        """The id, below 0, of a piece of text."""
        return self.pieces.setdefault(text, -1 - len(self.pieces))

    def _repeats_a_secret(self, token_ids: list[int]) -> bool:
        text = self._joined(token_ids) if token_ids[0] < 0 else self.tokenizer.decode(token_ids)
        return redaction.redact(text) != text

    def decode(self, token_ids: list[int]) -> str:
        if token_ids and token_ids[0] < 0:
            return self._joined(token_ids).strip()
        return super().decode(token_ids)

    def _joined(self, token_ids: list[int]) -> str:
        pieces = list(self.pieces)
        return "".join(pieces[-1 - token] for token in token_ids)

    def likelihoods(self, examples: Iterable[Example], batch_size: int) -> list[Likelihood]:
        """NaN where the endpoint does not tell the likelihoods of a prompt's tokens."""
        from edge_eval_lib import models

        examples = list(examples)

        async def ask_all(client: AsyncOpenAI) -> list[Likelihood]:
            slots = asyncio.Semaphore(batch_size)

            async def in_a_slot(example: Example) -> Likelihood:
                answer = models.answer_ids(self.tokenizer, example.answer)
                async with slots:
                    return await self._likelihood(client, example, answer)

            return await asyncio.gather(*map(in_a_slot, examples))

        return _in_a_loop(ask_all)

    async def _likelihood(
        self, client: AsyncOpenAI, example: Example, answer: list[int]
    ) -> Likelihood:
        import openai

        from edge_eval_lib.models.likelihood import Likelihood

        unknown = Likelihood(example.id, math.nan, [])
        try:
            completion = await client.completions.create(
                model=self.model,
                prompt=self.encode(example.messages) + answer,
                max_tokens=1,
                temperature=0.0,
                extra_body={"prompt_logprobs": 1},
            )
        except openai.OpenAIError:
            return unknown
        told = (completion.choices[0].model_extra or {}).get("prompt_logprobs")
        if not told:
            return unknown
        positions = [
            {int(token): (entry["logprob"], entry["rank"]) for token, entry in position.items()}
            for position in told[-len(answer) :]
        ]
        return ranked_likelihood(example.id, answer, positions)

    def most_likely(self, prompt_ids: list[int], token_ids: list[int]) -> None:
        """Not asked for: an endpoint's requests are paid for, and its batches are not ours."""

    def executed_dtype(self) -> str:
        return "unknown: the endpoint does not tell"


def require_offered(names: Iterable[str]) -> None:
    """UserError unless the endpoint answers and offers every model of those names."""
    import openai

    if not os.environ.get(URL_VARIABLE):
        raise UserError(
            f"engine: openai needs the endpoint's address in the environment variable "
            f"{URL_VARIABLE} (such as http://127.0.0.1:8000/v1)."
        )
    try:
        with openai.OpenAI(**_connection()) as client:
            offered = [model.id for model in client.models.list()]
    except openai.APIConnectionError:
        raise UserError(
            f"The endpoint that {URL_VARIABLE} names cannot be reached; start it, or correct "
            "the address."
        ) from None
    except openai.APIStatusError as error:
        raise UserError(
            f"The endpoint that {URL_VARIABLE} names refuses to list its models (HTTP "
            f"{error.status_code}); check the address and {KEY_VARIABLE}."
        ) from None
    for name in names:
        if name not in offered:
            raise UserError(
                f"The endpoint offers no model {name!r} but {', '.join(offered) or 'none'}; "
                "serve the variant under its own name (vLLM: --served-model-name)."
            )


def _connection() -> dict[str, Any]:
    """How to reach the endpoint. Nothing is tried twice: a failure is counted, not hidden."""
    return {
        "base_url": os.environ[URL_VARIABLE],
        "api_key": os.environ.get(KEY_VARIABLE) or "none",
        "max_retries": 0,
        "timeout": TIMEOUT_S,
    }


def _in_a_loop(ask_all: Any) -> Any:
    """What `ask_all(client)` gives, in an event loop of its own: a notebook has one running."""
    import openai

    async def with_client() -> Any:
        async with openai.AsyncOpenAI(**_connection()) as client:
            return await ask_all(client)

    with ThreadPoolExecutor(max_workers=1) as thread:
        return thread.submit(asyncio.run, with_client()).result()
