"""Drives an engine through a serving run: warm-up, every concurrency, every arrival rate.

In a closed loop the next request waits for a slot, so that a slow engine is asked less. In an open
loop requests come when they come: waiting for the engine is part of their time to the first token.

What a run keeps (a table of requests, the windows' records, power samples) is all that figures are
made from (results/serving.py).
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar, cast

import numpy as np
import pandas as pd
from scipy import special  # not stats: see cold_load

from edge_eval_lib import bars, tasks
from edge_eval_lib.bounds import Positive, Whole, checked
from edge_eval_lib.energy.meter import Check
from edge_eval_lib.engines.base import Engine, Generation, KvCache
from edge_eval_lib.errors import UserError
from edge_eval_lib.lifecycle.conversations import Conversation, Engines, converse_all
from edge_eval_lib.machine import nvml
from edge_eval_lib.study import Study, Workload
from edge_eval_lib.tasks import Converse, Example

if TYPE_CHECKING:
    from edge_eval_lib.energy import Monitor, Window

Result = TypeVar("Result")

# Warm-up: pieces of the same work, until the throughput of the last few has no trend.
FEWEST_PIECES = 3  # a slope and what is left of it need three points
TREND_PIECES = 5  # at most so many of the last are judged
PIECE_SHARE = 8  # a piece generates this part of the output tokens
TREND_SHARE = 0.05  # of the mean throughput that the trend may change it by over those pieces
NOISE_SHARE = 0.10  # and up to here, over 5 pieces, if noise alone explains it
SIGNIFICANT = 0.05

SATURATED_GAIN = 1.05  # twice the concurrency must give at least 5 % more throughput


@dataclass(frozen=True)
class WarmUp:
    """How a run was warmed up.

    `trend_share` is the fitted change of throughput over the last `judged` pieces, as a share of
    their mean; `p_value` is of no slope at all.
    """

    seconds: float
    requests: int
    throughput_tok_s: list[float]
    steady: bool
    trend_share: float | None
    p_value: float | None
    judged: int

    @property
    def check(self) -> Check:
        """The verdict as a validity check of what is measured next."""
        if self.trend_share is None:
            return Check("warmed up", "warning", "too few pieces of work to see a trend")
        detail = (
            f"throughput changed by {self.trend_share:+.1%} over the last {self.judged} of "
            f"{len(self.throughput_tok_s)} pieces (p = {self.p_value:.2g})"
        )
        return Check("warmed up", "ok" if self.steady else "warning", detail)


def warm_up(engine: Engine, prompts: list[list[int]], workload: Workload) -> WarmUp:
    """Answer the same batch over and over, unmeasured, until the throughput has no trend.

    A piece is one batch at the headline concurrency with an eighth of the output tokens. It ends
    with `steady` False once `warmup_requests` requests were answered (but never before three
    pieces were).
    """
    concurrency = workload.headline_concurrency
    batch = (prompts * concurrency)[:concurrency]
    tokens = max(2, workload.output_tokens // PIECE_SHARE)
    throughput: list[float] = []
    begun = time.monotonic()
    while True:
        start = time.monotonic()
        engine.serve(batch, tokens, concurrency)
        throughput.append(concurrency * tokens / (time.monotonic() - start))
        steady, trend_share, p_value, judged = throughput_trend(throughput)
        answered = len(throughput) * concurrency
        enough = len(throughput) >= FEWEST_PIECES and answered >= workload.warmup_requests
        if steady or enough:
            seconds = time.monotonic() - begun
            return WarmUp(seconds, answered, throughput, steady, trend_share, p_value, judged)


def throughput_trend(throughput: Sequence[float]) -> tuple[bool, float | None, float | None, int]:
    """Judge whether throughput is steady, by a straight line through its last values.

    Three to five of them are judged, the most that are steady, so that a slow start is left behind.
    Steady is a change of at most 5 % of their mean from the first to the last, or, over five
    values, one of at most 10 % that noise alone explains (p > 0.05).

    Returns:
        (steady, change, p-value of no slope, values judged); (False, None, None, 0) of fewer than
        three values.
    """
    judged: tuple[bool, float | None, float | None, int] = (False, None, None, 0)
    for count in range(FEWEST_PIECES, min(len(throughput), TREND_PIECES) + 1):
        values = throughput[-count:]
        slope, p_value = _line(values)
        change = slope * (count - 1) / float(np.mean(values))
        noise = count == TREND_PIECES and p_value > SIGNIFICANT
        steady = abs(change) <= (NOISE_SHARE if noise else TREND_SHARE)
        if steady or not judged[0]:
            judged = (steady, change, p_value, count)
    return judged


def _line(values: Sequence[float]) -> tuple[float, float]:
    """Slope of the line through values at 0, 1, 2, ..., and the p-value of none (two-sided t)."""
    if not np.ptp(values):
        return 0.0, 1.0
    places, free = np.arange(len(values)), len(values) - 2
    r = np.corrcoef(places, values)[0, 1]
    t = abs(r) * np.sqrt(free / max(1 - r * r, 1e-20))
    return float(r * np.std(values) / np.std(places)), float(2 * special.stdtr(free, -t))


@dataclass(frozen=True)
class Served:
    """What one window of a serving run gave.

    It served at one concurrency or, in an open loop, at `rate_per_s` requests a second.
    `generations` are in the order of the prompts. Where the task converses, `conversations` hold
    every call, and a generation is the outcome of one of them.

    `kv_cache` is what the engine took in advance, `prefix_cache_hit_rate` the share of the
    prompts' tokens that it found computed; None where it does neither.
    """

    concurrency: int | None
    window: Window
    generations: list[Generation]
    rate_per_s: float | None = None
    prefix_caching: bool = False
    kv_cache: KvCache | None = None
    prefix_cache_hit_rate: float | None = None
    conversations: list[Conversation] | None = None

    @property
    def answered(self) -> list[Generation]:
        """The requests that were answered in full."""
        return [generation for generation in self.generations if generation.failure is None]

    @property
    def failures(self) -> dict[str, int]:
        """How many requests failed for each reason; they never count in a latency."""
        return dict(Counter(g.failure for g in self.generations if g.failure is not None))


@dataclass(frozen=True)
class Conversing:
    """What a run's windows serve where its task converses, instead of the prompts alone."""

    converse: Converse
    examples: list[Example]
    engines: Engines


def conversing(
    study: Study, task: str, examples: list[Example], engines: Engines
) -> Conversing | None:
    """Return how a task converses about its examples; None where it asks once for an answer.

    Args:
        study: Whose `task_settings` the conversations go by.
        task: Its name.
        examples: What is asked.
        engines: By role; None is the run's own variant's.
    """
    converse = tasks.find(task).converse
    if converse is None:
        return None
    return Conversing(partial(converse, **study.task_settings.get(task, {})), examples, engines)


def serve_all(
    engine: Engine,
    prompts: list[list[int]],
    workload: Workload,
    seed: int,
    monitor: Monitor,
    conversing: Conversing | None = None,
) -> list[Served]:
    """Serve every measured window of a run.

    These are the workload's concurrencies, those of its sweep, the headline concurrency with prefix
    caching, and every arrival rate.

    `seed` draws the arrivals. Where the task is `conversing`, a request is a conversation with all
    its calls, retries and escalations. UserError as soon as no request of a window is answered.
    """
    known = len(workload.concurrency) + len(workload.arrival_rates_per_s) + workload.prefix_caching
    with bars.counted("windows served", known) as count:

        def measure(concurrency: int) -> Served:
            window = closed_loop(engine, prompts, concurrency, workload, monitor, conversing)
            count(1)  # between the windows: nothing is drawn within one
            return window

        def throughput(window: Served) -> float:
            tokens = sum(len(generation.token_ids) for generation in window.answered)
            return tokens / cast(float, window.window.seconds)

        served: dict[int | None, Served] = {n: measure(n) for n in workload.concurrency}
        if workload.largest_concurrency:
            swept = sweep_until_saturated(
                lambda concurrency: served.get(concurrency) or measure(concurrency),
                throughput,
                workload.largest_concurrency,
            )
            served |= {window.concurrency: window for window in swept}
        windows = list(served.values())
        if workload.prefix_caching:
            sharing = [engine, *(conversing.engines.values() if conversing else ())]
            for one in sharing:
                one.share_prefixes = one.prefix_caching
            windows.append(measure(workload.headline_concurrency))
            for one in sharing:
                one.share_prefixes = False
        for rate_per_s in workload.arrival_rates_per_s:
            windows.append(open_loop(engine, prompts, rate_per_s, workload, seed, monitor))
            count(1)
        return windows


def closed_loop(
    engine: Engine,
    prompts: list[list[int]],
    concurrency: int,
    workload: Workload,
    monitor: Monitor,
    conversing: Conversing | None = None,
) -> Served:
    """Answer the workload's prompts at one concurrency in one measured window."""
    prompts = prompts[: workload.prompts_at(concurrency, len(prompts))]
    sharing, conversations = engine.share_prefixes, None
    with monitor.window(closed_loop_name(concurrency, sharing)) as window:
        if conversing is None:
            generations = engine.serve(prompts, workload.output_tokens, concurrency)
        else:
            conversations = converse_all(
                conversing.converse,
                conversing.examples[: len(prompts)],
                conversing.engines,
                workload.output_tokens,
                concurrency,
            )
            generations = [conversation.outcome for conversation in conversations]
    served = Served(concurrency, window, generations, prefix_caching=sharing)
    return _served(engine, replace(served, conversations=conversations))


def closed_loop_name(concurrency: int, prefix_caching: bool = False) -> str:
    """What the window of a closed loop is called, in request tables too."""
    return f"serve at {concurrency}{' with prefix caching' if prefix_caching else ''}"


def open_loop(
    engine: Engine,
    prompts: list[list[int]],
    rate_per_s: float,
    workload: Workload,
    seed: int,
    monitor: Monitor,
) -> Served:
    """Offer every prompt at Poisson arrivals of that rate, in one measured window."""
    due_s = poisson_arrivals(rate_per_s, len(prompts), seed).tolist()
    with monitor.window(f"open loop at {rate_per_s:g} requests/s") as window:
        generations = engine.serve_arrivals(prompts, workload.output_tokens, due_s)
    return _served(engine, Served(None, window, generations, rate_per_s=rate_per_s))


def _served(engine: Engine, served: Served) -> Served:
    """With what the engine reports of its caches; UserError if no request was answered."""
    if not served.answered:
        reason = next(iter(served.failures))
        raise UserError(
            f"No request of {served.window.name!r} was answered by the engine {engine.name}; the "
            f"first failed with: {reason}."
        )
    hit_rate = engine.prefix_cache_hit_rate if served.prefix_caching else None
    return replace(served, kv_cache=engine.kv_cache(), prefix_cache_hit_rate=hit_rate)


def window_record(served: Served, engine: Engine, warm: WarmUp) -> dict[str, Any]:
    """What a serving window was, as a scrap: with the requests, all that its figures need.

    Of conversations it also has the calls that failed, whether or not one went on without them.
    """
    record = served.window.as_dict()
    if served.conversations is not None:
        made = (call for conversation in served.conversations for call in conversation.calls)
        failed = Counter(answer.failure for _, answer in made if answer.failure is not None)
        record["failed_calls"] = dict(failed)
    return record | {
        "window": served.window.name,
        "on_gpu": bool(nvml.visible_indices()) and not engine.remote,
        "concurrency": served.concurrency,
        "rate_per_s": served.rate_per_s,
        "prefix_caching": served.prefix_caching,
        "prefix_cache_hit_rate": served.prefix_cache_hit_rate,
        "kv_cache": asdict(served.kv_cache) if served.kv_cache else None,
        "failures": served.failures,
        "continuous_batching": engine.continuous_batching,
        "checks": [*record["checks"], asdict(warm.check)],
    }


def request_table(served: Served, engine: Engine, examples: list[Example]) -> pd.DataFrame:
    """A row an answered request: all from which the run's latency figures can be recomputed.

    Times are seconds since the window began. Of a conversation that ended with an answer, a row a
    call that was answered: with its number from 1, `call`, and the `role` that answered, empty
    where that is the run's own variant.
    """
    start = cast(float, served.window.start_monotonic_s)
    rows: list[tuple[dict[str, Any], Generation]] = [
        ({"prompt_id": example.id}, generation)
        for generation, example in zip(served.generations, examples, strict=False)
        if generation.failure is None
    ]
    if served.conversations is not None:
        rows = [
            ({"prompt_id": one.example.id, "call": number, "role": call.role}, generation)
            for one in served.conversations
            for number, (call, generation) in enumerate(one.calls, 1)
            if one.failure is None and generation.failure is None
        ]
    return pd.DataFrame(
        {
            "window": served.window.name,
            "concurrency": served.concurrency,
            **identity,
            "submitted_s": generation.submitted_s - start,
            "token_times_s": [t - start for t in generation.token_times_s],
            "token_ids": generation.token_ids,
            "input_tokens": len(generation.prompt_ids),
            "output_tokens": len(generation.token_ids),
            "natural_tokens": engine.natural_length(generation.token_ids),
            "ttft_ms": generation.ttft_ms,
            "tpot_ms": generation.tpot_ms,
        }
        for identity, generation in rows
    )


@checked
def poisson_arrivals(rate_per_s: Positive[float], requests: Whole[int], seed: int) -> np.ndarray:
    """Draw arrival times of a Poisson process, s: the same gaps at every rate, only scaled."""
    return np.cumsum(np.random.default_rng(seed).exponential(size=requests)) / rate_per_s


@checked
def sweep_until_saturated(
    measure: Callable[[int], Result],
    throughput_tok_s: Callable[[Result], float],
    largest: Whole[int],
    gain: Positive[float] = SATURATED_GAIN,
) -> list[Result]:
    """Measure at concurrency 1, 2, 4, ... until throughput saturates; every result, in order.

    Ends with the first concurrency whose throughput is less than `gain` times that of half of it,
    or with the last power of two that is at most `largest`.
    """
    results: list[Result] = []
    concurrency = 1
    while concurrency <= largest:
        results.append(measure(concurrency))
        rates = [throughput_tok_s(result) for result in results[-2:]]
        if len(rates) == 2 and rates[1] < gain * rates[0]:
            break
        concurrency *= 2
    return results
