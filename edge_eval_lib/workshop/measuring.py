"""Exercises of workshop notebook 1: one request. Answers follow from what it measured."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edge_eval_lib.energy import Measurement
from edge_eval_lib.engines.base import Generation
from edge_eval_lib.errors import UserError
from edge_eval_lib.workshop.choice import choice, larger
from edge_eval_lib.workshop.exercise import Exercise, Mistake

GROWN = 2.0  # a figure has grown where it is at least so many times as large


def median_ms(requests: Sequence[Generation]) -> tuple[float, float]:
    """Return the median TTFT and TPOT of requests, ms."""
    ttft_ms = np.median([request.ttft_ms for request in requests])
    return float(ttft_ms), float(np.median([request.tpot_ms for request in requests]))


def energy_per_token(window: Measurement, tokens: int) -> float:
    """Return the joules of each of a window's tokens.

    Args:
        window: What was measured.
        tokens: How many were generated in it.

    Raises:
        UserError: The window has no energy, and why.
    """
    if window.energy_j is None:
        raise UserError(
            f"This machine gives no energy figure ({window.energy_reason}), and this notebook "
            "needs one: start it with CUDA_VISIBLE_DEVICES= to work on the processor, whose energy "
            "is at least estimated."
        )
    return window.energy_j / tokens


def tokens_read(tokens: int, text: str) -> Exercise:
    """How many tokens a prompt has whose text is shown."""
    words, characters = len(text.split()), len(text)
    return Exercise(
        answer=tokens,
        tolerance=0.2,
        hint_text=f"the text has {words} words. Rare words are several tokens, and signs, numbers "
        "and line breaks count as well; take 1.3 to 2 tokens a word.",
        solution_text=f"{words} words and {characters} characters are {tokens} tokens, "
        f"{tokens / words:.1f} a word. The marks of the chat's turns are among them.",
        mistakes=(
            Mistake(words, f"{words} are the words. Tokens are pieces of words: there are more."),
            Mistake(
                characters,
                f"{characters} are the characters. A token holds several of them: {tokens}.",
            ),
            Mistake(
                lambda given: given < words,
                "Fewer tokens than words? A common word is one token, every other one is several.",
            ),
            Mistake(
                lambda given: given > characters,
                "More tokens than characters? A token of English text holds about four.",
            ),
        ),
    )


def slower_token(ttft_ms: float, tpot_ms: float) -> Exercise:
    """Which takes longer: `first` token, `next` token, or `same`."""
    seen = (
        f"Measured: the first token after {ttft_ms:.0f} ms, each next one after {tpot_ms:.0f} ms."
    )
    return choice(
        larger(ttft_ms, tpot_ms, ("first", "next", "same")),
        {
            "first": f"{seen} Here reading the prompt takes no longer than one step: this machine "
            "has arithmetic to spare.",
            "next": f"{seen} A step after the first reads one token alone, its own last one: what "
            "it knows of the prompt is kept (the KV cache).",
            "same": f"{seen} Before the first token all of the prompt is read; before each next "
            "one, one token.",
        },
        "How many tokens does the model read before the first token of its answer, and how many "
        "before the second?",
        f"{seen} The prompt is read first, all of it; then a token a step, each a pass over all "
        "weights.",
    )


def what_grows(
    prompt_times: float, short_ms: tuple[float, float], long_ms: tuple[float, float]
) -> Exercise:
    """What at least doubles with a longer prompt: `ttft`, `tpot`, `both` or `neither`.

    Args:
        prompt_times: How many times as many tokens the longer prompt has.
        short_ms: TTFT and TPOT with the short prompt.
        long_ms: The same with the long one.
    """
    ttft_times, tpot_times = (late / soon for soon, late in zip(short_ms, long_ms, strict=True))
    seen = (
        f"Measured, with {prompt_times:.1f} times the prompt: TTFT {ttft_times:.1f} times, TPOT "
        f"{tpot_times:.1f} times as long."
    )
    grown = {(True, False): "ttft", (False, True): "tpot", (True, True): "both"}
    return choice(
        grown.get((ttft_times >= GROWN, tpot_times >= GROWN), "neither"),
        {
            "ttft": f"{seen} Look at both.",
            "tpot": f"{seen} A step reads one new token, however long the prompt was; it is before "
            "the first token that all of the prompt is read.",
            "both": f"{seen} A step looks back at more, but that is little beside reading all "
            "weights, which it does either way.",
            "neither": f"{seen} The prompt has to be read before the first token: what does it "
            "cost to read more of it?",
        },
        "The prompt is read once, before the first token. What is read before each later one?",
        f"{seen} Retrieved notes and long chats are paid for by waiting, less by the speed of "
        "reading.",
    )


def batch_speed(times: float, requests: int) -> Exercise:
    """How many times the tokens a second that so many requests at a time give, against one."""
    seen = f"Measured: {times:.1f} times the tokens a second."
    return Exercise(
        answer=times,
        tolerance=0.3,
        hint_text="a step reads all weights from memory, for one request or for all. What does it "
        "have to do for each request on top?",
        solution_text=f"{seen} The weights are read once for all; arithmetic is each request's "
        "own.",
        mistakes=(
            Mistake(
                lambda given: given > requests,
                f"{seen} More than {requests} times would make each request quicker in company "
                "than alone.",
            ),
            Mistake(
                lambda given: given > 0.85 * requests,
                f"{seen} {requests} times would need the others to cost nothing. Weights are "
                "shared; arithmetic is not.",
            ),
            Mistake(
                lambda given: given <= 1.15,
                f"{seen} Once as many is one after the other, and nothing shared. A batch reads "
                "the weights once for all.",
            ),
        ),
    )


def batch_energy(alone_j: float, together_j: float) -> Exercise:
    """What a token's joules do in company: `falls`, `stays` or `rises`."""
    seen = f"Measured: {alone_j:.2g} J a token alone, {together_j:.2g} J in company."
    return choice(
        larger(alone_j, together_j, ("falls", "rises", "stays")),
        {
            "falls": f"{seen} So many at a time did not help on this machine.",
            "stays": f"{seen} A second of work costs about the same, but how many tokens come of "
            "it?",
            "rises": f"{seen} The machine works longer for eight requests than for one, but there "
            "are eight times the tokens.",
        },
        "Joules are watts times seconds. In one second of work, how many tokens come alone, how "
        "many in company?",
        f"{seen} That is why a figure of energy says at how many requests at a time it was taken.",
    )


def kind_of_energy(window: Measurement) -> Exercise:
    """Whether a window's energy is `measured` or `estimated`."""
    source = window.energy_source
    seen = f"The window says: {window.energy_text}."
    return choice(
        "measured" if window.energy_lo_j is None else "estimated",
        {
            "measured": f"{seen} No meter was read: {source} multiplies the processor's seconds by "
            "watts that were measured on other machines, and says how far off that may be.",
            "estimated": f"{seen} {source} reads the hardware's own sensor, while the work is "
            "done.",
            "exact": f"{seen} No figure of energy is exact: a meter has its errors, an estimate "
            "more.",
            "neither": f"{seen} It has a source, and the source says which of the two it is.",
        },
        "Look at the name behind the joules, and whether a range stands there.",
        f"{seen} An estimate compares work on one machine; between machines it compares mostly "
        "assumptions. Unknown watts are never 0.",
    )


def energy_with_idle(energy_j: float, idle_w: float, every_s: float) -> Exercise:
    """Joules for a request, with what the machine draws while it waits for the next."""
    waiting_j = idle_w * every_s
    answer = energy_j + waiting_j
    return Exercise(
        answer=answer,
        unit="J",
        tolerance=0.05,
        hint_text=f"{idle_w:.3g} W for {every_s:g} s, and the request's own {energy_j:.3g} J on "
        "top.",
        solution_text=f"{idle_w:.3g} W x {every_s:g} s = {waiting_j:.4g} J of waiting, and "
        f"{energy_j:.3g} J for the request: waiting is {waiting_j / answer:.1%}. Net energy leaves "
        "waiting out, gross energy holds the part of it that fell into the request.",
        mistakes=(
            Mistake(
                energy_j,
                f"{energy_j:.3g} J is the request alone. Who pays while the machine waits?",
            ),
            Mistake(idle_w, f"{idle_w:.3g} are watts: joules a second. For how many seconds?"),
            Mistake(
                idle_w + energy_j,
                "Watts and joules cannot be added: multiply the watts by seconds.",
            ),
            Mistake(
                idle_w / every_s,
                "You divided: a watt is a joule a second, so joules are watts times seconds.",
            ),
        ),
    )
