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
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from edge_eval_lib import redaction
from edge_eval_lib.engines.base import (
    Engine,
    Generation,
    Pair,
    Requests,
    ranked_reading,
    read_pairs,
    wrong_length,
)
from edge_eval_lib.errors import UserError

if TYPE_CHECKING:
    from openai import AsyncOpenAI

    from edge_eval_lib.models.likelihood import Reading

URL_VARIABLE = "OPENAI_BASE_URL"
KEY_VARIABLE = "OPENAI_API_KEY"
LONGEST_REASON = 200
TIMEOUT_S = 600.0
# What vLLM's server adds to the protocol. Others may ignore it: answers that then end early fail.
EXACT_LENGTH = {"ignore_eos": True, "return_token_ids": True, "repetition_penalty": 1.0}
Item = TypeVar("Item")
Answer = TypeVar("Answer")


class OpenAiEngine(Engine):
    """Asks the endpoint for the model `served_name`; its tokenizer lies in `directory`.

    Prompts travel as token ids. An endpoint that does not return token ids is taken to send one
    token a piece of text; the pieces then get ids of their own, below 0.
    """

    name = "openai"
    continuous_batching = True
    remote = True

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.pieces: dict[str, int] = {}

    @classmethod
    def unreachable(cls, served_names: Sequence[str]) -> str:
        """Return why the endpoint does not serve these models; empty if it does."""
        import openai

        if not os.environ.get(URL_VARIABLE):
            return (
                f"engine: openai needs the endpoint's address in the environment variable "
                f"{URL_VARIABLE} (such as http://127.0.0.1:8000/v1)."
            )
        try:
            with openai.OpenAI(**_connection()) as client:
                offered = [model.id for model in client.models.list()]
        except openai.APIConnectionError:
            return (
                f"The endpoint that {URL_VARIABLE} names cannot be reached; start it, or correct "
                "the address."
            )
        except openai.APIStatusError as error:
            return (
                f"The endpoint that {URL_VARIABLE} names refuses to list its models (HTTP "
                f"{error.status_code}); check the address and {KEY_VARIABLE}."
            )
        lacking = [name for name in served_names if name not in offered]
        if not lacking:
            return ""
        return (
            f"The endpoint offers no model {lacking[0]!r} but {', '.join(offered) or 'none'}; "
            "serve the variant under its own name (vLLM: --served-model-name)."
        )

    def import_libraries(self) -> None:
        import openai  # noqa: F401

    def load(self) -> None:
        """Check that the endpoint answers and offers the model; UserError if not."""
        if why := self.unreachable([self.served_name]):
            raise UserError(why)
        self.open_tokenizer(self.directory)

    def answer(self, requests: Requests) -> list[Generation]:
        """Ask for every answer as soon as a slot is free, or when it is due."""
        numbers = range(len(requests.prompts))
        return _ask_all(numbers, partial(self._generate, requests), requests.slots)

    async def _generate(
        self, requests: Requests, client: AsyncOpenAI, number: int, start_s: float
    ) -> Generation:
        import openai

        prompt = requests.prompts[number]
        due = requests.arrivals_s[number] if requests.arrivals_s else None
        if due is not None:
            await asyncio.sleep(start_s + due - time.monotonic())
        generation = Generation(prompt, time.monotonic() if due is None else start_s + due)
        try:
            stream = await client.completions.create(
                model=self.served_name,
                prompt=generation.prompt_ids,
                max_tokens=requests.output_tokens,
                temperature=requests.temperature,
                stream=True,
                extra_body=EXACT_LENGTH | {"ignore_eos": not requests.until_end},
                **({"seed": requests.seed} if requests.temperature else {}),
                **({"logprobs": 2} if requests.confidence else {}),
            )
            async for chunk in stream:
                now = time.monotonic()
                for choice in chunk.choices:
                    ids = self._token_ids(choice)
                    generation.token_ids += ids
                    generation.token_times_s += [now] * len(ids)
                    note_logprobs(generation, choice.logprobs)
        except openai.APIStatusError as error:
            reason = redaction.redact(f"HTTP {error.status_code}: {error.message}")
            generation.failure = reason[:LONGEST_REASON]
        except openai.OpenAIError as error:
            generation.failure = type(error).__name__
        except (ValueError, TypeError, AttributeError) as error:  # what came is no JSON, or other
            generation.failure = f"not an answer of the protocol ({type(error).__name__})"
        else:
            generation.failure = wrong_length(generation, requests)
            answer = generation.token_ids
            if answer and not generation.failure and self._repeats_a_secret(answer):
                generation.token_ids = [self._piece(redaction.MASK)] * len(answer)
        return generation

    def _token_ids(self, choice: Any) -> list[int]:
        ids = (choice.model_extra or {}).get("token_ids")
        if ids is None:
            return [self._piece(choice.text)] if choice.text else []
        return ids

    def _piece(self, text: str) -> int:
        """Return the id, below 0, of a piece of text."""
        return self.pieces.setdefault(text, -1 - len(self.pieces))

    def _repeats_a_secret(self, token_ids: list[int]) -> bool:
        text = self._joined(token_ids) if token_ids[0] < 0 else self.tokenizer.decode(token_ids)
        return redaction.redact(text) != text

    def decode(self, token_ids: list[int]) -> str:
        """Return the answer in tokens or pieces of text."""
        if token_ids and token_ids[0] < 0:
            return self._joined(token_ids).strip()
        return super().decode(token_ids)

    def _joined(self, token_ids: list[int]) -> str:
        pieces = list(self.pieces)
        return "".join(pieces[-1 - token] for token in token_ids)

    def read(
        self, prompts: list[list[int]], texts: list[list[list[int]]], batch_size: int
    ) -> list[list[Reading]]:
        """Ask for the likelihood of every text; not read where the endpoint gives none."""

        async def ask(client: AsyncOpenAI, pair: Pair, _start_s: float) -> Reading:
            return await self._read(client, *pair)

        return read_pairs(prompts, texts, lambda pairs: _ask_all(pairs, ask, batch_size))

    async def _read(self, client: AsyncOpenAI, prompt: list[int], text: list[int]) -> Reading:
        import openai

        from edge_eval_lib.models.likelihood import NOT_READ

        try:
            completion = await client.completions.create(
                model=self.served_name,
                prompt=prompt + text,
                max_tokens=1,
                temperature=0.0,
                extra_body={"prompt_logprobs": 1},
            )
        except openai.OpenAIError:
            return NOT_READ
        ranked = (completion.choices[0].model_extra or {}).get("prompt_logprobs")
        if not ranked:
            return NOT_READ
        positions = [
            {int(token): (entry["logprob"], entry["rank"]) for token, entry in position.items()}
            for position in ranked[-len(text) :]
        ]
        return ranked_reading(text, positions)

    def executed_dtype(self) -> str:
        return "unknown: the endpoint does not tell"


def note_logprobs(generation: Generation, logprobs: Any) -> None:
    """Note how likely a piece's tokens were, where the endpoint says it of two tokens at least."""
    if logprobs is None:
        return
    for logprob, ranked in zip(
        logprobs.token_logprobs or (), logprobs.top_logprobs or (), strict=False
    ):
        likeliest, second = (sorted((ranked or {}).values(), reverse=True) + [math.nan] * 2)[:2]
        generation.logprobs.append(logprob)
        generation.margins.append(math.exp(likeliest) - math.exp(second))


def _connection() -> dict[str, Any]:
    """Return how to reach the endpoint. Nothing is tried twice: a failure counts."""
    return {
        "base_url": os.environ[URL_VARIABLE],
        "api_key": os.environ.get(KEY_VARIABLE) or "none",
        "max_retries": 0,
        "timeout": TIMEOUT_S,
    }


def _ask_all(
    items: Sequence[Item],
    ask: Callable[[AsyncOpenAI, Item, float], Awaitable[Answer]],
    slots: int,
) -> list[Answer]:
    """Return what `ask(client, item, start)` gives for each item, at most `slots` at a time.

    It runs in an event loop of its own, since a notebook has one running.
    """
    import openai

    async def ask_all() -> list[Answer]:
        free, start_s = asyncio.Semaphore(slots), time.monotonic()
        async with openai.AsyncOpenAI(**_connection()) as client:

            async def in_a_slot(item: Item) -> Answer:
                async with free:
                    return await ask(client, item, start_s)

            return await asyncio.gather(*map(in_a_slot, items))

    with ThreadPoolExecutor(max_workers=1) as thread:
        return thread.submit(asyncio.run, ask_all()).result()


ENGINE = OpenAiEngine
