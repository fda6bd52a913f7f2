"""What the workload driver asks of a serving engine."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from edge_eval_lib.models.likelihood import Likelihood
    from edge_eval_lib.tasks import Example


@dataclass
class Generation:
    """One request. Times are seconds on the monotonic clock.

    `token_ids` is as long as was asked for, whatever end-of-sequence tokens it holds (unless it was
    asked for until its end); `token_times_s` is when each of them was there. A request that was not
    answered so says why in `failure`: it is counted apart, and its times are nobody's latency.
    """

    prompt_ids: list[int]
    submitted_s: float
    token_ids: list[int] = field(default_factory=list)
    token_times_s: list[float] = field(default_factory=list)
    failure: str | None = None

    @property
    def ttft_ms(self) -> float:
        """First token minus submission."""
        return 1e3 * (self.token_times_s[0] - self.submitted_s)

    @property
    def tpot_ms(self) -> float:
        """(Last token - first token) / (tokens - 1)."""
        return 1e3 * (self.token_times_s[-1] - self.token_times_s[0]) / (len(self.token_ids) - 1)


@dataclass(frozen=True)
class KvCache:
    """The KV cache in GB: what an engine took in advance, and the most that the requests of its
    last `serve` filled of it.

    What they filled is of whole blocks of tokens, and an upper bound where requests share prefixes.
    """

    reserved_gb: float
    used_gb: float


class Engine(Protocol):
    """Loads one variant and answers requests. `name` stands in every table.

    `continuous_batching` says whether a request takes the slot of another as soon as that one
    ends, so that a serving window has a steady state between filling and draining. `remote` is one
    that another machine (or process) runs: what it draws and holds is not this process's.
    """

    name: str
    continuous_batching: bool
    remote: bool

    def import_libraries(self) -> None:
        """Import what loading needs, so that its time can be told apart."""

    def load(self) -> None:
        """Place the weights where they are computed with."""

    def encode(self, messages: list[dict[str, str]]) -> list[int]:
        """A chat as prompt token ids."""

    def decode(self, token_ids: list[int]) -> str:
        """The answer in generated tokens: what comes before the first end-of-sequence."""

    def natural_length(self, token_ids: list[int]) -> int:
        """Tokens up to and with the first end-of-sequence, or all of them if there is none."""

    def ended(self, token_ids: list[int]) -> bool:
        """Whether generated tokens hold an end-of-sequence."""

    def serve(
        self,
        prompts: list[list[int]],
        output_tokens: int,
        concurrency: int,
        until_end: bool = False,
    ) -> list[Generation]:
        """Answer every prompt greedily with exactly `output_tokens` tokens, at most `concurrency`
        at a time, in the prompts' order. With `until_end` an answer is over at its first
        end-of-sequence, and `output_tokens` is the most that it may have."""

    def likelihoods(self, examples: Iterable[Example], batch_size: int) -> list[Likelihood]:
        """The likelihood of each example's gold answer, teacher-forced; NaN where prompt and answer
        are longer than the engine has room for."""

    def most_likely(self, prompt_ids: list[int], token_ids: list[int]) -> list[int] | None:
        """The most likely token at each place of `token_ids`, given those before it and the
        prompt, in one pass and alone; None where the engine does not tell."""

    def executed_dtype(self) -> str:
        """The arithmetic that the linear layers really execute."""

    def kv_cache(self) -> KvCache | None:
        """The KV cache that was taken in advance; None where it grows with the requests."""


class PrefixCachingEngine(Engine, Protocol):
    """An engine that can compute what prompts have in common once."""

    share_prefixes: bool  # whether the next `serve` does; it starts with nothing computed
    prefix_cache_hit_rate: float | None  # of the last `serve`: share of its prompts' tokens


class ArrivalEngine(Engine, Protocol):
    """An engine that also takes requests when they come. Such engines batch continuously."""

    def serve_arrivals(
        self, prompts: list[list[int]], output_tokens: int, arrivals_s: list[float]
    ) -> list[Generation]:
        """As `serve`, but prompt i comes `arrivals_s[i]` (rising) seconds after the call, however
        many are under way; that is when it counts as submitted."""
