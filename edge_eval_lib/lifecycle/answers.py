"""Answers of a serving run: their text, how likely gold answers are, what batches change."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from edge_eval_lib.engines.base import Engine
from edge_eval_lib.lifecycle.serve import Served, closed_loop_name
from edge_eval_lib.models.likelihood import Reading
from edge_eval_lib.study import Workload
from edge_eval_lib.tasks import Example


@dataclass(frozen=True)
class AnswersRead:
    """What the model finds of one prompt's gold answer and of the tokens it answered in a batch.

    `batched` is None where that answer was not read. It tells how sure the model was of them.
    """

    prompt_id: str
    gold: Reading
    batched: Reading | None


def read_answers(
    served: list[Served],
    engine: Engine,
    examples: list[Example],
    workload: Workload,
    batched: bool = True,
) -> list[AnswersRead]:
    """Read every gold answer and, if `batched`, the answers at the headline concurrency.

    Nothing is measured meanwhile. Requests to an engine elsewhere are paid for: there only gold
    answers are read, and of tasks that converse, whose calls follow from other answers.
    """
    headline = _headline(served, workload)
    wanted = batched and not engine.remote and headline.conversations is None
    answered = [
        generation.token_ids if wanted and not generation.failure else []
        for generation in headline.generations
    ]
    prompts = [engine.encode(example.messages) for example in examples]
    golds = [engine.encode_answer(example.answer) for example in examples]
    texts = [
        [gold, tokens] if tokens else [gold] for gold, tokens in zip(golds, answered, strict=True)
    ]
    with engine.unmeasured():
        readings = engine.read(prompts, texts, workload.headline_concurrency)
    return [
        AnswersRead(example.id, gold, rest[0] if rest and rest[0].argmax_ids else None)
        for example, (gold, *rest) in zip(examples, readings, strict=True)
    ]


@dataclass(frozen=True)
class BatchAgreement:
    """Share of `batch_agreement_prompts` prompts that got, in a batch, the tokens they get alone.

    None where none was compared. So many of them were served alone, token by token; the others'
    batched tokens were read in one pass.
    """

    batch_agreement: float | None
    batch_agreement_prompts: int
    batch_agreement_served_alone: int


def batch_agreement(
    requests: pd.DataFrame, headline_concurrency: int, read: list[AnswersRead]
) -> BatchAgreement:
    """Compare every prompt's tokens at the headline concurrency with those it gets alone.

    A prompt that was also served at concurrency 1 is compared with that answer. The others were
    read, prompt and batched tokens together (`read_answers`): the answer alone is the same where
    every token is the likeliest after those before it. That costs a pass an answer instead of one
    a token; kernels that only single tokens take are not seen by it. What was not read is left out.
    """
    if headline_concurrency == 1:
        return BatchAgreement(None, 0, 0)
    alone, batched = (
        requests[requests["window"] == closed_loop_name(concurrency)]
        .drop_duplicates("prompt_id")
        .set_index("prompt_id")["token_ids"]
        for concurrency in (1, headline_concurrency)
    )
    likeliest = {answer.prompt_id: answer.batched.argmax_ids for answer in read if answer.batched}
    expected = likeliest | {name: list(ids) for name, ids in alone.items()}
    same = [expected[name] == list(ids) for name, ids in batched.items() if name in expected]
    served = len(alone.index.intersection(batched.index))
    return BatchAgreement(float(np.mean(same)) if same else None, len(same), served)


def answer_table(
    served: list[Served],
    engine: Engine,
    examples: list[Example],
    workload: Workload,
    read: list[AnswersRead],
) -> pd.DataFrame:
    """A row a prompt at the headline concurrency: the answer, and how likely the gold answer is.

    A request that failed has no answer; `failure` says why. `limit_reached` is 1 where the answer
    had no end within `output_tokens`, else 0. A conversation's answer is what it returned; length
    and limit are of its last call. `mean_logprob` (nats) and `mean_margin` (0..1) are
    the means over the answer's tokens, to its end or the limit: what a server knows while it
    generates, for nothing. NaN where the answer was not read.
    """
    headline = _headline(served, workload)
    if headline.conversations is None:
        texts = [
            None if generation.failure else engine.decode(generation.token_ids)
            for generation in headline.generations
        ]
    else:  # another engine's tokens may be none of this one's
        texts = [conversation.answer for conversation in headline.conversations]
    return pd.DataFrame(
        {
            "prompt_id": example.id,
            "answer": text,
            "failure": generation.failure,
            "reference": example.answer,
            "answer_tokens": None
            if generation.failure
            else engine.natural_length(generation.token_ids),
            "limit_reached": None
            if generation.failure
            else float(not engine.ended(generation.token_ids)),
            "gold_nll": answer.gold.nll,
            "gold_argmax_ids": answer.gold.argmax_ids,
            **_confidence(answer.batched, engine.natural_length(generation.token_ids)),
        }
        for example, generation, text, answer in zip(
            examples, headline.generations, texts, read, strict=True
        )
    )


def _confidence(reading: Reading | None, tokens: int) -> dict[str, float]:
    """How sure a model was of the first `tokens` of a text it answered."""
    nlls, margins = (reading.token_nlls, reading.token_margins) if reading else ([], [])
    return {
        "mean_logprob": -float(np.mean(nlls[:tokens])) if nlls else np.nan,
        "mean_margin": float(np.mean(margins[:tokens])) if margins else np.nan,
    }


def uncut_answers(
    answers: pd.DataFrame, served: list[Served], engine: Engine, workload: Workload
) -> pd.DataFrame:
    """`answers`, those that reached the limit continued until their end. Nothing is measured.

    A limit punishes the verbose, which is form. An answer goes on from the tokens that were
    measured, to at most `workload.uncut_tokens` in all (where that is None, none goes on). An
    endpoint that gives text instead of tokens is asked again from the prompt. `answer` and
    `answer_tokens` are then those of the uncut answer; `uncut` says which rows these are,
    `still_cut` is 1 where even they had no end. What a conversation returned stays as it is.
    """
    headline = _headline(served, workload)
    answers = answers.assign(uncut=False, still_cut=answers["limit_reached"])
    cut = [i for i, reached in enumerate(answers["limit_reached"]) if reached == 1]
    if workload.uncut_tokens is None or not cut or headline.conversations is not None:
        return answers
    generations = headline.generations
    given = [generations[i].token_ids for i in cut]
    if any(token < 0 for tokens in given for token in tokens):  # pieces of text
        given = [[] for _ in cut]
    begun = [generations[i].prompt_ids + tokens for i, tokens in zip(cut, given, strict=True)]
    most = workload.uncut_tokens - max(map(len, given))
    with engine.unmeasured():
        continued = engine.serve(begun, most, workload.headline_concurrency, True)
    for row, tokens, more in zip(answers.index[cut], given, continued, strict=True):
        if not more.failure:
            whole = tokens + more.token_ids
            answers.loc[row, ["answer", "answer_tokens"]] = [
                engine.decode(whole),
                engine.natural_length(whole),
            ]
            answers.loc[row, ["uncut", "still_cut"]] = [True, float(not engine.ended(whole))]
    return answers


def _headline(served: list[Served], workload: Workload) -> Served:
    """The window that answers are taken from."""
    name = closed_loop_name(workload.headline_concurrency)
    return next(window for window in served if window.window.name == name)
