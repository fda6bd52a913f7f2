"""What every engine has in common, and what the workload driver asks of one."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from edge_eval_lib.errors import UserError

if TYPE_CHECKING:
    from lm_eval.api.model import LM

    from edge_eval_lib.machine.declared import Hardware
    from edge_eval_lib.models.likelihood import Likelihood, Reading
    from edge_eval_lib.study import Study
    from edge_eval_lib.tasks import Example


# Prompts and answers of a workload are far shorter; a model's own maximum may not fit the device.
MAX_TOKENS = 4096


@dataclass
class Generation:
    """One request. Times are seconds on the monotonic clock.

    Attributes:
        prompt_ids: The prompt's tokens.
        submitted_s: When the request was submitted.
        token_ids: As many as were asked for, whatever end-of-sequence tokens are among them, or
            up to the first of these where they were asked for until their end.
        token_times_s: When each token was there.
        failure: Why the request was not answered so, or None. Such a request is counted apart, and
            its times count in no latency.
        logprobs: Of each token, the natural logarithm of its probability; where it was asked for.
        margins: The probability of the likeliest token there less that of the second.
    """

    prompt_ids: list[int]
    submitted_s: float
    token_ids: list[int] = field(default_factory=list)
    token_times_s: list[float] = field(default_factory=list)
    failure: str | None = None
    logprobs: list[float] = field(default_factory=list)
    margins: list[float] = field(default_factory=list)

    @property
    def ttft_ms(self) -> float:
        """Return first token minus submission."""
        return 1e3 * (self.token_times_s[0] - self.submitted_s)

    @property
    def tpot_ms(self) -> float:
        """Return (last token - first token) / (tokens - 1); NaN of a single token."""
        if len(self.token_ids) == 1:
            return math.nan
        return 1e3 * (self.token_times_s[-1] - self.token_times_s[0]) / (len(self.token_ids) - 1)


@dataclass(frozen=True)
class Requests:
    """What an engine is asked: prompts, at most `slots` at a time, each from its arrival if given.

    An answer has `output_tokens`; `until_end`, at most these, and is over at its end-of-sequence.
    Decoding is greedy, or draws by `seed` at a `temperature` above 0. With `confidence` generations
    say how likely their tokens were, where the engine can tell.
    """

    prompts: list[list[int]]
    output_tokens: int
    slots: int
    arrivals_s: list[float] | None = None
    until_end: bool = False
    temperature: float = 0.0
    seed: int = 0
    confidence: bool = False


@dataclass(frozen=True)
class KvCache:
    """The KV cache in GB: what an engine took in advance, and the most that was filled of it.

    What requests filled since the last `forget` is of whole blocks of tokens, and an upper bound
    where they share prefixes.
    """

    reserved_gb: float
    used_gb: float


class Engine:
    """Loads one variant and answers requests. Nothing is loaded by the constructor.

    A subclass implements `load`, `answer`, `read` and `executed_dtype`, and
    says what it can in its class attributes.

    Args:
        directory: The weights, or at least their tokenizer.
        compute_dtype: What a study wants computed in.
        prefix_caching: Whether what prompts have in common may be computed once.
        served_name: What an endpoint calls the weights; by default as `directory`.

    Attributes:
        name: Stands in every table.
        continuous_batching: Whether a request takes the slot of another as soon as that one ends.
            A serving window then has a steady state, and requests may come when they like.
        remote: Whether another machine (or process) runs it: what that draws and holds is unknown.
        supports_prefix_caching: Whether `prefix_caching` may be True.
        launches_every_step: Whether the host launches each step's kernels, which takes time on a
            GPU.
        compressor: What quantises weights for it.
        least_capability: By how weights are stored (`int4`), the lowest CUDA compute capability
            that has the kernels.
        share_prefixes: Whether requests share prefixes; `serve` starts with nothing computed.
        prefix_cache_hit_rate: Of what was answered since the last `forget`: the share of the
            prompts' tokens.
    """

    name: ClassVar[str]
    continuous_batching: ClassVar[bool] = False
    remote: ClassVar[bool] = False
    supports_prefix_caching: ClassVar[bool] = False
    launches_every_step: ClassVar[bool] = False
    compressor: ClassVar[Literal["bitsandbytes", "llm-compressor"]] = "bitsandbytes"
    least_capability: ClassVar[dict[str, str]] = {}
    share_prefixes: bool = False
    prefix_cache_hit_rate: float | None = None

    def __init__(
        self,
        directory: Path,
        compute_dtype: str = "float32",
        prefix_caching: bool = False,
        served_name: str | None = None,
    ) -> None:
        if prefix_caching and not self.supports_prefix_caching:
            raise ValueError(f"the engine {self.name!r} has no prefix_caching")
        self.directory, self.compute_dtype = directory, compute_dtype
        self.prefix_caching = prefix_caching
        self.served_name = served_name or directory.name

    @classmethod
    def missing(cls, study: Study) -> list[str]:
        """Return what this environment lacks to serve a study, a sentence each."""
        return []

    @classmethod
    def unreachable(cls, served_names: Sequence[str]) -> str:
        """Return why what serves these models cannot be reached; empty if it can."""
        return ""

    @classmethod
    def lacking(cls, storage: str, hardware: Hardware, hardware_name: str) -> str:
        """Return why weights stored as `int8` or `int4` are not served there; empty if they are."""
        least, capability = cls.least_capability.get(storage), hardware.compute_capability
        if hardware.gpus and least and capability and _version(capability) < _version(least):
            return f"needs compute capability {least}, and {hardware_name} has {capability}"
        return ""

    @classmethod
    def harness_model(cls, directory: Path, compute_dtype: str, batch_size: int) -> LM:
        """Return the weights behind lm-evaluation-harness's interface, loaded as they are served.

        Texts of more tokens than a serving run has room for are cut on their left.
        """
        raise NotImplementedError(f"the engine {cls.name!r} does not load weights for the harness")

    def import_libraries(self) -> None:
        """Import what loading needs, so that its time can be measured apart."""

    def load(self) -> None:
        """Place the weights where they are computed with."""
        raise NotImplementedError

    def serve(
        self,
        prompts: list[list[int]],
        output_tokens: int,
        concurrency: int,
        until_end: bool = False,
    ) -> list[Generation]:
        """Answer every prompt greedily, in the prompts' order.

        Args:
            prompts: Token ids.
            output_tokens: How many tokens each answer has.
            concurrency: How many are answered at a time.
            until_end: An answer is over at its first end-of-sequence; `output_tokens` is the most
                that it may have.
        """
        self.forget()
        return self.answer(Requests(prompts, output_tokens, concurrency, until_end=until_end))

    def serve_arrivals(
        self, prompts: list[list[int]], output_tokens: int, arrivals_s: list[float]
    ) -> list[Generation]:
        """Answer prompt i as `serve` does, but submitted `arrivals_s[i]` seconds after the call.

        The times rise; a request counts as submitted then, however many are under way.

        Raises:
            ValueError: The engine has no continuous batching.
        """
        if not self.continuous_batching:
            raise ValueError(f"the engine {self.name!r} answers batch by batch")
        self.forget()
        return self.answer(Requests(prompts, output_tokens, len(prompts), arrivals_s))

    def answer(self, requests: Requests) -> list[Generation]:
        """Answer every request, in their order; what former ones computed may be used again."""
        raise NotImplementedError

    def forget(self) -> None:
        """Forget what former requests computed, and count anew what is used again."""

    def read(
        self, prompts: list[list[int]], texts: list[list[list[int]]], batch_size: int
    ) -> list[list[Reading]]:
        """Read texts (token ids) after their prompts, in one pass each; nothing is generated.

        `NOT_READ` where prompt and text are longer than the engine has room for, or where it does
        not say how likely given tokens are. At most `batch_size` prompts at a time, and only where
        that changes nothing.
        """
        raise NotImplementedError

    def unmeasured(self) -> AbstractContextManager[None]:
        """Have what is asked within the block answered faster, where that changes no answer."""
        return nullcontext()

    def likelihoods(self, examples: Iterable[Example], batch_size: int) -> list[Likelihood]:
        """Return the likelihood of each example's gold answer, teacher-forced."""
        from edge_eval_lib.models.likelihood import Likelihood

        examples = list(examples)
        prompts = [self.encode(example.messages) for example in examples]
        texts = [[self.encode_answer(example.answer)] for example in examples]
        return [
            Likelihood(gold.nll, gold.argmax_ids, example.id)
            for example, (gold,) in zip(
                examples, self.read(prompts, texts, batch_size), strict=True
            )
        ]

    def executed_dtype(self) -> str:
        """Return the arithmetic that the linear layers really execute."""
        raise NotImplementedError

    def kv_cache(self) -> KvCache | None:
        """Return the KV cache that was taken in advance; None where it grows with requests."""
        return None

    def open_tokenizer(self, directory: Path) -> None:
        """Load the tokenizer in `directory`, and which tokens end an answer."""
        from transformers import AutoConfig, GenerationConfig

        from edge_eval_lib import models

        self.tokenizer: Any = models.load_tokenizer(directory)
        try:
            stops = GenerationConfig.from_pretrained(directory).eos_token_id
        except OSError:  # the file is optional
            stops = AutoConfig.from_pretrained(directory, trust_remote_code=False)
            stops = getattr(stops, "eos_token_id", None)
        stops = stops if isinstance(stops, list) else [stops]
        self.stop_ids = {self.tokenizer.eos_token_id, *stops} - {None}

    def encode(self, messages: list[dict[str, str]]) -> list[int]:
        """Return a chat as prompt token ids."""
        from edge_eval_lib import models

        return models.prompt_ids(self.tokenizer, messages)

    def encode_answer(self, answer: str) -> list[int]:
        """Return an answer as token ids, its end-of-sequence token included."""
        from edge_eval_lib import models

        return models.answer_ids(self.tokenizer, answer)

    def decode(self, token_ids: list[int]) -> str:
        """Return the answer in generated tokens: what comes before the first end-of-sequence."""
        length = self.natural_length(token_ids)
        return self.tokenizer.decode(token_ids[:length], skip_special_tokens=True).strip()

    def ended(self, token_ids: list[int]) -> bool:
        """Return whether generated tokens hold an end-of-sequence."""
        return not self.stop_ids.isdisjoint(token_ids)

    def natural_length(self, token_ids: list[int]) -> int:
        """Return the tokens up to and with the first end-of-sequence; all if there is none."""
        stops = (i for i, token in enumerate(token_ids) if token in self.stop_ids)
        return next(stops, len(token_ids) - 1) + 1


Pair = tuple[list[int], list[int]]  # a prompt and a text


def read_pairs(
    prompts: list[list[int]],
    texts: list[list[list[int]]],
    read: Callable[[list[Pair]], Iterable[Reading]],
) -> list[list[Reading]]:
    """Read texts after their prompts by what reads them pair by pair, in order."""
    pairs = [(p, text) for p, of_prompt in zip(prompts, texts, strict=True) for text in of_prompt]
    in_order = iter(read(pairs))
    return [[next(in_order) for _ in of_prompt] for of_prompt in texts]


def ranked_reading(
    text: Sequence[int], positions: Sequence[Mapping[int, tuple[float, int]]]
) -> Reading:
    """Return a text's reading from the ranked tokens at each of its places.

    `positions` hold for each token of the text at least that one and the most likely: token id ->
    (log-probability in nats, rank from 1).
    """
    from edge_eval_lib.models.likelihood import Reading

    ranked = list(zip(text, positions, strict=True))
    nlls = [-position[token][0] for token, position in ranked]
    best = [min(position, key=lambda token: position[token][1]) for position in positions]
    return Reading(sum(nlls) / len(nlls), best, token_nlls=nlls)


def note_confidence(generation: Generation, token: int, ranked: Mapping[int, float]) -> None:
    """Note how likely a generated token was; `ranked` holds it and the two likeliest, in nats."""
    likeliest, second = sorted(ranked.values(), reverse=True)[:2]
    generation.logprobs.append(ranked[token])
    generation.margins.append(math.exp(likeliest) - math.exp(second))


def require_numbers(
    readings: list[list[Reading]], directory: Path, compute_dtype: str
) -> list[list[Reading]]:
    """Return the readings; UserError if a likelihood is no number: the model's logits were none."""
    if all(math.isfinite(r.nll) for of_prompt in readings for r in of_prompt if r.argmax_ids):
        return readings
    raise UserError(
        f"{directory}: the likelihood of an answer is no number, so the model's logits are NaN or "
        f"infinite; its weights overflow training.compute_dtype ({compute_dtype}), or are damaged."
    )


def wrong_length(generation: Generation, requests: Requests) -> str | None:
    """Return why an answer is not as long as was asked for; None if it is."""
    answered = len(generation.token_ids)
    if answered == requests.output_tokens or requests.until_end:
        return None
    return f"ended after {answered} of {requests.output_tokens} tokens"


def too_long(prompt_ids: list[int], output_tokens: int, room: int | None) -> str | None:
    """Return why a request has no answer: beyond its context a model would answer anything."""
    length = len(prompt_ids) + output_tokens
    if room is None or length <= room:
        return None
    return f"prompt and answer have {length} tokens, more than {room}"


def context_length(directory: Path) -> int:
    """Return the longest prompt and answer together, in tokens, that an engine has room for."""
    config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    return min(MAX_TOKENS, config.get("max_position_embeddings", MAX_TOKENS))


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split("."))
