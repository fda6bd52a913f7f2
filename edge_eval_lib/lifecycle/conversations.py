"""Drives conversations: tasks that ask a model several times for one answer.

As many conversations as the concurrency says are under way, a new one from the round in which
another ended. In a round the next calls of all are answered, together where they are of one kind:
one role, length and way of decoding.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_eval_lib.engines import kind, open_engine
from edge_eval_lib.engines.base import Engine, Generation, Requests
from edge_eval_lib.study import Study, Variant
from edge_eval_lib.tasks import Call, CallFailedError, Converse, Example, Reply

if TYPE_CHECKING:
    from edge_eval_lib.energy import Monitor

Engines = Mapping[str | None, Engine]  # by role; None is the run's own variant's


@dataclass
class Conversation:
    """One example's calls with the generation that answered each, and what came of them.

    `answer` is what is scored, None where there is none, and then `failure` says why.
    """

    example: Example
    calls: list[tuple[Call, Generation]] = field(default_factory=list)
    answer: str | None = None
    failure: str | None = None

    @property
    def outcome(self) -> Generation:
        """The last call that was answered (of none, the last), failed where the conversation is."""
        generations = [generation for _, generation in self.calls]
        answered = [generation for generation in generations if generation.failure is None]
        return replace((answered or generations)[-1], failure=self.failure)


def open_called(
    study: Study, variant: Variant, weights: Callable[[Variant], Path]
) -> dict[str, Engine]:
    """Choose the engines that a variant's conversations call beside its own, by role.

    Nothing is loaded yet. `weights` says where a variant's lie.
    """
    engines = {}
    for role, other in study.called_variants(variant).items():
        name = study.roles[role].engine or study.workload.engine
        caching = study.workload.prefix_caching and kind(name).supports_prefix_caching
        dtype = study.training.compute_dtype
        engines[role] = open_engine(name, weights(other), dtype, caching, other.served_name)
    return engines


def load_called(called: Mapping[str, Engine], monitor: Monitor) -> list[dict[str, Any]]:
    """Load those engines, each in a measured window of its own; what that took, a row a role.

    The libraries are there and the run's own weights were measured from cold: this is what a
    server takes to hold these weights as well.
    """
    rows = []
    for role, engine in called.items():
        with monitor.window(f"load {role}") as window:
            engine.import_libraries()
            engine.load()
        here = None if engine.remote else window
        reason = "the engine runs elsewhere: its load is not seen from here"
        rows.append(
            {
                "role": role,
                "engine": engine.name,
                "weights": engine.served_name,
                "executed_dtype": engine.executed_dtype(),
                "remote": engine.remote,
                "load_s": here and here.seconds,
                "load_energy_j": here and here.energy_j,
                "load_energy_lo_j": here and here.energy_lo_j,
                "load_energy_hi_j": here and here.energy_hi_j,
                "load_energy_reason": (here.energy_reason if here else reason) or None,
            }
        )
    return rows


def converse_all(
    converse: Converse,
    examples: Sequence[Example],
    engines: Engines,
    output_tokens: int,
    concurrency: int,
) -> list[Conversation]:
    """Hold a conversation about each example, so many at a time; in the examples' order.

    Raises:
        ValueError: A conversation makes no call, or calls a role that has no engine.
        TypeError: It returns something else than a text.
    """
    for engine in engines.values():
        engine.forget()
    conversations = [Conversation(example) for example in examples]
    waiting = deque(conversations)
    under_way: list[tuple[Conversation, Generator[Call, Reply, str], Call]] = []
    while waiting or under_way:
        while waiting and len(under_way) < concurrency:
            begun = waiting.popleft()
            turns = converse(begun.example)
            if (call := _go_on(begun, turns, None)) is not None:
                under_way.append((begun, turns, call))
            elif not begun.calls:
                raise ValueError(
                    f"the conversation about {begun.example.id} ended without a call: "
                    f"{begun.failure or begun.answer!r}"
                )
        kinds: dict[tuple, list[int]] = {}
        for place, (_, _, call) in enumerate(under_way):
            kind = (call.role, call.output_tokens, call.temperature, call.seed, call.confidence)
            kinds.setdefault(kind, []).append(place)
        replies: dict[int, Generation] = {}
        for places in kinds.values():
            calls = [under_way[place][2] for place in places]
            answers = answer_calls(calls, engines, output_tokens, concurrency)
            replies |= dict(zip(places, answers, strict=True))
        still: list[tuple[Conversation, Generator[Call, Reply, str], Call]] = []
        for place, (conversation, turns, call) in enumerate(under_way):
            conversation.calls.append((call, replies[place]))
            following = _go_on(conversation, turns, _reply(engines[call.role], replies[place]))
            if following is not None:
                still.append((conversation, turns, following))
        under_way = still
    return conversations


def answer_calls(
    calls: Sequence[Call], engines: Engines, output_tokens: int, concurrency: int
) -> list[Generation]:
    """Answer calls of one kind together."""
    first = calls[0]
    if first.role not in engines:
        raise ValueError(f"a conversation calls {first.role!r}, which is none of the task's roles")
    engine = engines[first.role]
    return engine.answer(
        Requests(
            [engine.encode(call.messages) for call in calls],
            first.output_tokens or output_tokens,
            concurrency,
            temperature=first.temperature,
            seed=first.seed,
            confidence=first.confidence,
        )
    )


def _reply(engine: Engine, generation: Generation) -> Reply | str:
    """What a conversation is told of a generation: the reply, or why there is none."""
    if generation.failure is not None:
        return generation.failure
    length = engine.natural_length(generation.token_ids)
    return Reply(
        engine.decode(generation.token_ids),
        generation.logprobs[:length],
        generation.margins[:length],
    )


def _go_on(
    conversation: Conversation, turns: Generator[Call, Reply, str], reply: Reply | str | None
) -> Call | None:
    """Have the next call of a conversation; None where it ended, which is then noted."""
    try:
        if isinstance(reply, str):
            return turns.throw(CallFailedError(reply))
        return next(turns) if reply is None else turns.send(reply)
    except StopIteration as end:
        if not isinstance(end.value, str):
            raise TypeError(
                f"the conversation about {conversation.example.id} returned {end.value!r}; it "
                "should return its answer, a text"
            ) from end
        if conversation.calls and all(answer.failure for _, answer in conversation.calls):
            conversation.failure = conversation.calls[-1][1].failure  # a text of nobody's
        else:
            conversation.answer = end.value
    except CallFailedError as failed:
        conversation.failure = str(failed)
    return None
