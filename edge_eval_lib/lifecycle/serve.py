"""Drives an engine through a serving run: cold load, warm-up, every concurrency and arrival rate.

What it keeps (a table of requests, the windows' records, power samples) is all that the figures
are made from: `serving_figures` makes them in the notebook, and again for the tables.
"""

from __future__ import annotations

import math
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import psutil
from scipy import stats

from edge_eval_lib.energy.meter import Check
from edge_eval_lib.engines.base import ArrivalEngine, Engine, Generation, KvCache
from edge_eval_lib.errors import UserError
from edge_eval_lib.lifecycle import arrivals
from edge_eval_lib.machine import nvml, pagecache
from edge_eval_lib.study import Workload
from edge_eval_lib.tasks import Example

if TYPE_CHECKING:
    from edge_eval_lib.energy import Monitor, Window

HEAVY = ("torch", "transformers", "vllm")

# Warm-up: pieces of the same work, until the throughput of the last few has no trend.
FEWEST_PIECES = 3  # a slope and what is left of it need three points
TREND_PIECES = 5  # at most so many of the last are judged
PIECE_SHARE = 8  # a piece generates this part of the output tokens
TREND_SHARE = 0.05  # of the mean throughput that the trend may change it by over those pieces
NOISE_SHARE = 0.10  # and up to here, over 5 pieces, if noise alone explains it
SIGNIFICANT = 0.05

WARM_FIRST_TOKENS = 8  # measured, to tell their spread
CACHED_SHARE = 0.25  # of the free memory that weights may take to be read before they are placed:
# the model itself takes twice as much in float32, and the rest is for what serves
READ_ONCE = "the weights are large for this memory: they are read while they are placed"
ELSEWHERE = "the engine runs elsewhere: its load is not seen from here"


@dataclass(frozen=True)
class Load:
    """A cold load, from a bare process to the first token, less a warm first token.

    Energies are J or None with `load_energy_reason`, times are s. `load_s` is the sum of those of
    its parts that are known; `warm_first_token_*` is what the same request costs once everything is
    warm, and is taken off, for it is serving and not loading. What the first token took beyond that
    is a part only if it exceeds the spread of warm ones. `load_import_energy_*` is the libraries'
    part of the energy. `load_interpreter_s` is a bare Python start of its own: this process started
    with a notebook's machinery, which a server would not have. Nothing is known of an engine that
    runs elsewhere: it was loaded before.
    """

    load_s: float | None = None
    load_energy_j: float | None = None
    load_energy_lo_j: float | None = None
    load_energy_hi_j: float | None = None
    load_energy_source: str | None = None
    load_energy_reason: str | None = None
    load_power_w: float | None = None
    load_peak_memory_gb: float | None = None
    load_interpreter_s: float | None = None
    load_import_s: float | None = None
    load_import_energy_j: float | None = None
    load_import_energy_lo_j: float | None = None
    load_import_energy_hi_j: float | None = None
    load_import_energy_reason: str | None = None
    load_read_s: float | None = None
    load_read_reason: str | None = None
    load_place_s: float | None = None
    load_first_token_s: float | None = None
    load_first_token_reason: str | None = None
    warm_first_token_s: float | None = None
    warm_first_token_energy_j: float | None = None
    weights_bytes: int | None = None
    evicted: bool = False
    evicted_reason: str | None = None
    residency_before: float | None = None
    residency_after: float | None = None
    load_checks: list[dict[str, Any]] = field(default_factory=list)


def cold_load(
    engine: Engine, directory: Path, messages: list[dict[str, str]], monitor: Monitor
) -> Load:
    """Load the engine's weights as a fresh server would and answer one token of `messages`.

    Evicts `directory`'s files from the page cache, then measures in one window: the imports (a
    window of their own within it), a sequential read of the files, placing the weights, the first
    token. Reading tells the disk's part apart from placing; files that would not stay in the page
    cache until they are placed are not read first, or they would be read twice. Raises RuntimeError
    in a process that has already imported a deep-learning library: its load would not be cold. An
    engine that runs elsewhere is only reached.
    """
    if engine.remote:
        engine.import_libraries()
        engine.load()
        return Load(load_energy_reason=ELSEWHERE, evicted_reason=ELSEWHERE)
    warm = [name for name in HEAVY if name in sys.modules]
    if warm:
        raise RuntimeError(
            f"{', '.join(warm)} is already imported here: restart the kernel, a cold load needs a "
            "fresh process"
        )
    files = sorted(path for path in directory.rglob("*") if path.is_file())
    eviction = pagecache.evict(files)
    weights_bytes = sum(file.stat().st_size for file in files)
    with monitor.window("load") as window:
        marks = [time.monotonic()]
        subprocess.run([sys.executable, "-I", "-c", "pass"], check=True)
        marks.append(time.monotonic())
        with monitor.window("load imports") as imports:
            engine.import_libraries()
        marks.append(time.monotonic())
        cached = weights_bytes < CACHED_SHARE * psutil.virtual_memory().available
        if cached:
            for file in files:
                _read(file)
        marks.append(time.monotonic())
        engine.load()
        marks.append(time.monotonic())
        answer_one_token(engine, messages)
        marks.append(time.monotonic())
    # One warm token is too short for most energy sources to tell: as many as it takes.
    warm_s: list[float] = []

    def answer_warm() -> None:
        start = time.monotonic()
        answer_one_token(engine, messages)
        warm_s.append(time.monotonic() - start)

    first, times = monitor.repeat_until_resolved(
        "warm first token", answer_warm, at_least=WARM_FIRST_TOKENS
    )
    interpreter_s, import_s, read_s, place_s, cold_first_token_s = np.diff(marks).tolist()
    first_token_s, first_token_reason = beyond_warm(cold_first_token_s, warm_s)
    return Load(
        load_s=window.seconds - cold_first_token_s + (first_token_s or 0.0),
        load_energy_j=_less(window.energy_j, first.energy_j, times),
        load_energy_lo_j=_less(window.energy_lo_j, first.energy_lo_j, times),
        load_energy_hi_j=_less(window.energy_hi_j, first.energy_hi_j, times),
        load_energy_source=window.energy_source,
        load_energy_reason=window.energy_reason or first.energy_reason or None,
        load_power_w=window.power_w,
        load_peak_memory_gb=window.peak_memory_gb,
        load_interpreter_s=interpreter_s,
        load_import_s=import_s,
        load_import_energy_j=imports.energy_j,
        load_import_energy_lo_j=imports.energy_lo_j,
        load_import_energy_hi_j=imports.energy_hi_j,
        load_import_energy_reason=imports.energy_reason or None,
        load_read_s=read_s if cached else None,
        load_read_reason=None if cached else READ_ONCE,
        load_place_s=place_s,
        load_first_token_s=first_token_s,
        load_first_token_reason=first_token_reason,
        warm_first_token_s=first.seconds / times,
        warm_first_token_energy_j=None if first.energy_j is None else first.energy_j / times,
        weights_bytes=weights_bytes,
        evicted=eviction.evicted,
        evicted_reason=eviction.reason or None,
        residency_before=eviction.residency_before,
        residency_after=eviction.residency_after,
        load_checks=[asdict(check) for check in window.checks],
    )


def beyond_warm(cold_s: float, warm_s: Sequence[float]) -> tuple[float | None, str | None]:
    """What a cold first token took beyond a warm one, s; None and the reason if that is within the
    spread of warm ones.

    The spread is that of one more warm token (one-sided prediction interval of 95 %, Student's t).
    """
    count = len(warm_s)
    if count < 2:
        return None, "one warm token alone was measured, and its spread is not known"
    mean_s = float(np.mean(warm_s))
    spread_s = stats.t.ppf(0.95, count - 1) * np.std(warm_s, ddof=1) * math.sqrt(1 + 1 / count)
    if cold_s - mean_s > spread_s:
        return cold_s - mean_s, None
    return None, (
        f"the first token took {cold_s:.3g} s, warm ones {mean_s:.3g} + {spread_s:.2g} s: no "
        "difference is resolved"
    )


def answer_one_token(engine: Engine, messages: list[dict[str, str]]) -> None:
    """One request, one token: what a load ends with."""
    (answer,) = engine.serve([engine.encode(messages)], output_tokens=1, concurrency=1)
    if answer.failure is not None:
        raise UserError(f"The first prompt was not answered: {answer.failure}.")


def _read(file: Path, chunk_bytes: int = 1 << 24) -> None:
    buffer = bytearray(chunk_bytes)
    with open(file, "rb", buffering=0) as stream:
        while stream.readinto(buffer):
            pass


def _less(energy_j: float | None, taken_off_j: float | None, times: int) -> float | None:
    """Energy less one part of `times` equal ones; None as soon as one is unknown."""
    if energy_j is None or taken_off_j is None:
        return None
    return energy_j - taken_off_j / times


# --- warm-up ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class WarmUp:
    """How a run was warmed up. `trend_share` is the fitted change of throughput over the last
    `judged` pieces, as a share of their mean; `p_value` is of no slope at all."""

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
    """Whether throughput is steady, by the slope of a straight line through its last values.

    Three to five of them are judged, the most that are steady, so that a slow start is left
    behind. Returns (steady, trend, p, judged): the line's change from the first to the last of
    them as a share of their mean, and the p-value of no slope. Steady is a trend of at most 5 %,
    or, over five values, one of at most 10 % that noise alone explains (p > 0.05). Fewer than
    three values tell nothing: (False, None, None, 0).
    """
    most = min(len(throughput), TREND_PIECES)
    found = [_trend(throughput[-count:]) for count in range(most, FEWEST_PIECES - 1, -1)]
    if not found:
        return False, None, None, 0
    return next((each for each in found if each[0]), found[0])


def _trend(values: Sequence[float]) -> tuple[bool, float, float, int]:
    """As `throughput_trend`, of all the values."""
    count = len(values)
    if np.ptp(values) == 0:
        return True, 0.0, 1.0, count
    line = stats.linregress(np.arange(count), values)
    trend, p_value = float(line.slope * (count - 1) / np.mean(values)), float(line.pvalue)
    noise = count == TREND_PIECES and p_value > SIGNIFICANT
    return abs(trend) <= (NOISE_SHARE if noise else TREND_SHARE), trend, p_value, count


# --- serving ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Served:
    """What one window of a serving run gave: at one concurrency, or, in an open loop, at
    `rate_per_s` requests a second. `generations` are in the order of the prompts.

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

    @property
    def answered(self) -> list[Generation]:
        """The requests that were answered in full."""
        return [generation for generation in self.generations if generation.failure is None]

    @property
    def failures(self) -> dict[str, int]:
        """How many requests failed for each reason; they never count in a latency."""
        return dict(Counter(g.failure for g in self.generations if g.failure is not None))


def serve_all(
    engine: Engine, prompts: list[list[int]], workload: Workload, seed: int, monitor: Monitor
) -> list[Served]:
    """Every measured window of a serving run: the workload's concurrencies, those of its sweep,
    the headline concurrency with prefix caching, and every arrival rate.

    `seed` draws the arrivals. UserError as soon as no request of a window is answered.
    """

    def measure(concurrency: int) -> Served:
        return closed_loop(engine, prompts, concurrency, workload, monitor)

    served = {concurrency: measure(concurrency) for concurrency in workload.concurrency}
    if workload.largest_concurrency:
        swept = arrivals.sweep_until_saturated(
            lambda concurrency: served.get(concurrency) or measure(concurrency),
            lambda one: sum(len(g.token_ids) for g in one.answered) / one.window.seconds,
            workload.largest_concurrency,
        )
        served |= {one.concurrency: one for one in swept}
    windows = list(served.values())
    if workload.prefix_caching:
        engine.share_prefixes = True
        windows.append(measure(workload.headline_concurrency))
        engine.share_prefixes = False
    windows += [
        open_loop(engine, prompts, rate_per_s, workload, seed, monitor)
        for rate_per_s in workload.arrival_rates_per_s
    ]
    return windows


def closed_loop(
    engine: Engine,
    prompts: list[list[int]],
    concurrency: int,
    workload: Workload,
    monitor: Monitor,
) -> Served:
    """Answer the workload's prompts at one concurrency in one measured window."""
    prompts = prompts[: workload.prompts_at(concurrency, len(prompts))]
    sharing = getattr(engine, "share_prefixes", False)
    with monitor.window(closed_loop_name(concurrency, sharing)) as window:
        generations = engine.serve(prompts, workload.output_tokens, concurrency)
    return _served(engine, Served(concurrency, window, generations, prefix_caching=sharing))


def closed_loop_name(concurrency: int, prefix_caching: bool = False) -> str:
    """What the window of a closed loop is called, in request tables too."""
    return f"serve at {concurrency}{' with prefix caching' if prefix_caching else ''}"


def open_loop(
    engine: ArrivalEngine,
    prompts: list[list[int]],
    rate_per_s: float,
    workload: Workload,
    seed: int,
    monitor: Monitor,
) -> Served:
    """Offer every prompt at Poisson arrivals of that rate, in one measured window."""
    due_s = arrivals.poisson_arrivals(rate_per_s, len(prompts), seed).tolist()
    with monitor.window(f"open loop at {rate_per_s:g} requests/s") as window:
        generations = engine.serve_arrivals(prompts, workload.output_tokens, due_s)
    return _served(engine, Served(None, window, generations, rate_per_s=rate_per_s))


def _served(engine: Engine, served: Served) -> Served:
    """With what the engine tells of its caches; UserError if no request was answered."""
    if not served.answered:
        reason = next(iter(served.failures))
        raise UserError(
            f"No request of {served.window.name!r} was answered by the engine {engine.name}; the "
            f"first failed with: {reason}."
        )
    hit_rate = getattr(engine, "prefix_cache_hit_rate", None) if served.prefix_caching else None
    return replace(served, kv_cache=engine.kv_cache(), prefix_cache_hit_rate=hit_rate)


def window_record(served: Served, engine: Engine, warm: WarmUp) -> dict[str, Any]:
    """What a serving window was, as a scrap: with the requests, all that its figures need."""
    record = served.window.as_dict()
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

    Times are seconds since the window began.
    """
    start = served.window.start_monotonic_s
    return pd.DataFrame(
        {
            "window": served.window.name,
            "concurrency": served.concurrency,
            "prompt_id": example.id,
            "submitted_s": generation.submitted_s - start,
            "token_times_s": [t - start for t in generation.token_times_s],
            "token_ids": generation.token_ids,
            "input_tokens": len(generation.prompt_ids),
            "output_tokens": len(generation.token_ids),
            "natural_tokens": engine.natural_length(generation.token_ids),
            "ttft_ms": generation.ttft_ms,
            "tpot_ms": generation.tpot_ms,
        }
        for generation, example in zip(served.generations, examples, strict=False)
        if generation.failure is None
    )


@dataclass(frozen=True)
class BatchAgreement:
    """Share of `batch_agreement_prompts` prompts that got, in a batch, the tokens that they get
    alone; None where none was compared. So many of them were served alone, token by token; the
    others' batched tokens were read in one pass."""

    batch_agreement: float | None
    batch_agreement_prompts: int
    batch_agreement_served_alone: int


def batch_agreement(
    requests: pd.DataFrame,
    headline_concurrency: int,
    engine: Engine | None,
    examples: list[Example],
) -> BatchAgreement:
    """Whether batches change answers: every prompt's tokens at the headline concurrency beside
    those that the model gives it alone, unmeasured.

    A prompt that was also served at concurrency 1 is compared with that answer. The others are
    read once, prompt and batched tokens together (`Engine.most_likely`): the answer alone is the
    same where every token is the likeliest after those before it. That costs a prefill a prompt
    instead of a pass a token; kernels that only single tokens take are not seen by it. Without an
    engine the others are left out.
    """
    alone, batched = (
        requests[requests["window"] == closed_loop_name(concurrency)]
        .drop_duplicates("prompt_id")
        .set_index("prompt_id")["token_ids"]
        for concurrency in (1, headline_concurrency)
    )
    if headline_concurrency == 1:
        return BatchAgreement(None, 0, 0)
    messages = {example.id: example.messages for example in examples}
    same = []
    for prompt_id, tokens in batched.items():
        tokens = list(tokens)
        if prompt_id in alone.index:
            expected = list(alone[prompt_id])
        elif engine is None:
            expected = None
        else:
            expected = engine.most_likely(engine.encode(messages[prompt_id]), tokens)
        if expected is not None:
            same.append(expected == tokens)
    served = len(alone.index.intersection(batched.index))
    return BatchAgreement(float(np.mean(same)) if same else None, len(same), served)


def answer_table(
    served: list[Served], engine: Engine, examples: list[Example], workload: Workload
) -> pd.DataFrame:
    """A row a prompt at the headline concurrency: the answer, and how likely the gold answer is.

    A request that failed has no answer; `failure` says why. `limit_reached` is 1 where the answer
    had no end within `output_tokens`, else 0.
    """
    name = closed_loop_name(workload.headline_concurrency)
    headline = next(one for one in served if one.window.name == name)
    likelihoods = engine.likelihoods(examples, batch_size=workload.headline_concurrency)
    return pd.DataFrame(
        {
            "prompt_id": example.id,
            "answer": None if generation.failure else engine.decode(generation.token_ids),
            "failure": generation.failure,
            "reference": example.answer,
            "answer_tokens": None
            if generation.failure
            else engine.natural_length(generation.token_ids),
            "limit_reached": None
            if generation.failure
            else float(not engine.ended(generation.token_ids)),
            "gold_nll": likelihood.nll,
            "gold_argmax_ids": likelihood.argmax_ids,
        }
        for example, generation, likelihood in zip(
            examples, headline.generations, likelihoods, strict=True
        )
    )


def uncut_answers(
    answers: pd.DataFrame, engine: Engine, prompts: list[list[int]], workload: Workload
) -> pd.DataFrame:
    """`answers`, those that reached the limit asked again until their end. Nothing is measured.

    A limit punishes the verbose, which is form. At most `workload.uncut_tokens` tokens are given
    (where that is None, nothing is asked again). `answer` and `answer_tokens` are then those of the
    uncut answer; `uncut` says which rows these are, `still_cut` is 1 where even they had no end.
    """
    answers = answers.assign(uncut=False, still_cut=answers["limit_reached"])
    cut = [i for i, reached in enumerate(answers["limit_reached"]) if reached == 1]
    if workload.uncut_tokens is None or not cut:
        return answers
    generations = engine.serve(
        [prompts[i] for i in cut], workload.uncut_tokens, workload.headline_concurrency, True
    )
    for row, generation in zip(answers.index[cut], generations, strict=True):
        if not generation.failure:
            tokens = generation.token_ids
            answers.loc[row, ["answer", "answer_tokens"]] = [
                engine.decode(tokens),
                engine.natural_length(tokens),
            ]
            answers.loc[row, ["uncut", "still_cut"]] = [True, float(not engine.ended(tokens))]
    return answers
