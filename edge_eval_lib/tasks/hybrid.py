"""A cascade: `onepassage` answered here, and where that is unsure by the cloud of `oncloud`."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import replace

from edge_eval_lib.tasks import oncloud, onepassage
from edge_eval_lib.tasks.base import Call, CallFailedError, Example, Reply, TaskData
from edge_eval_lib.tasks.rag import HUB, PROMPT
from edge_eval_lib.tasks.sources import Row

__all__ = ["HUB", "PROMPT", "converse", "task"]

PASSAGES_HERE, PASSAGES_OF_CLOUD = onepassage.PASSAGES_PER_PROMPT, oncloud.PASSAGES_PER_PROMPT


def build(train: list[Row], evaluation: list[Row], source: str) -> TaskData:
    """Make the local examples, each with what the cloud is asked and shown."""
    here = onepassage.task.build(train, evaluation, source)
    cloud = oncloud.task.build(train, evaluation, source)
    asked = [
        replace(
            example,
            details=example.details | {"of_cloud": other.messages, "shown": other.details["shown"]},
        )
        for example, other in zip(here.evaluation, cloud.evaluation, strict=True)
    ]
    return replace(here, task="hybrid", evaluation=asked)


def converse(example: Example, below: float) -> Generator[Call, Reply, str]:
    """Answer here, and ask the cloud where the mean log-probability of the answer is `below`.

    A cloud that does not answer costs its call, and the local answer stands.
    """
    reply = yield Call(example.messages, confidence=True)
    if sum(reply.logprobs) >= below * len(reply.logprobs):
        return reply.text
    try:
        better = yield Call(example.details["of_cloud"], role="cloud")
    except CallFailedError:
        return reply.text
    return better.text


task = replace(
    onepassage.task,
    build=build,
    converse=converse,
    roles=("cloud",),
    settings=("below",),
    usual_calls=2,
)
