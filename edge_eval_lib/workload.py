"""Drives an engine through a serving run: cold load, warm-up, and every concurrency, timed."""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from edge_eval_lib import hardware
from edge_eval_lib.engines.base import Engine, Generation
from edge_eval_lib.study import Workload
from edge_eval_lib.tasks import Example

if TYPE_CHECKING:
    from edge_eval_lib.energy import Monitor, Window

HEAVY = ("torch", "transformers", "vllm")


@dataclass(frozen=True)
class Load:
    """A cold load, from a bare process to the first token, less a warm first token.

    Energies are J or None with `load_energy_reason`, times are s. `load_s` is the sum of its
    parts; `warm_first_token_*` is what the same request costs once everything is warm, and is
    taken off, for it is serving and not loading. `load_interpreter_s` is a bare Python start of
    its own: this process started with a notebook's machinery, which a server would not have.
    """

    load_s: float
    load_energy_j: float | None
    load_energy_lo_j: float | None
    load_energy_hi_j: float | None
    load_energy_source: str | None
    load_energy_reason: str | None
    load_power_w: float | None
    load_peak_memory_gb: float | None
    load_interpreter_s: float
    load_import_s: float
    load_read_s: float
    load_place_s: float
    load_first_token_s: float
    warm_first_token_s: float
    warm_first_token_energy_j: float | None
    weights_bytes: int
    evicted: bool
    evicted_reason: str | None
    residency_before: float | None
    residency_after: float | None
    load_checks: list[dict[str, Any]]


def cold_load(
    engine: Engine, directory: Path, messages: list[dict[str, str]], monitor: Monitor
) -> Load:
    """Load the engine's weights as a fresh server would and answer one token of `messages`.

    Evicts `directory`'s files from the page cache, then measures in one window: the imports, a
    sequential read of the files, placing the weights, the first token. Raises RuntimeError in a
    process that has already imported a deep-learning library: its load would not be cold.
    """
    warm = [name for name in HEAVY if name in sys.modules]
    if warm:
        raise RuntimeError(
            f"{', '.join(warm)} is already imported here: restart the kernel, a cold load needs a "
            "fresh process"
        )
    files = sorted(path for path in directory.rglob("*") if path.is_file())
    eviction = hardware.evict_from_page_cache(files)
    with monitor.window("load") as window:
        marks = [time.monotonic()]
        subprocess.run([sys.executable, "-I", "-c", "pass"], check=True)
        marks.append(time.monotonic())
        engine.import_libraries()
        marks.append(time.monotonic())
        for file in files:
            _read(file)
        marks.append(time.monotonic())
        engine.load()
        marks.append(time.monotonic())
        answer_one_token(engine, messages)
        marks.append(time.monotonic())
    # One warm token is too short for most energy sources to tell: as many as it takes.
    first, times = monitor.repeat_until_resolved(
        "warm first token", lambda: answer_one_token(engine, messages)
    )
    interpreter_s, import_s, read_s, place_s, first_token_s = np.diff(marks).tolist()
    return Load(
        load_s=window.seconds - first.seconds / times,
        load_energy_j=_less(window.energy_j, first.energy_j, times),
        load_energy_lo_j=_less(window.energy_lo_j, first.energy_lo_j, times),
        load_energy_hi_j=_less(window.energy_hi_j, first.energy_hi_j, times),
        load_energy_source=window.energy_source,
        load_energy_reason=window.energy_reason or first.energy_reason or None,
        load_power_w=window.power_w,
        load_peak_memory_gb=window.peak_memory_gb,
        load_interpreter_s=interpreter_s,
        load_import_s=import_s,
        load_read_s=read_s,
        load_place_s=place_s,
        load_first_token_s=first_token_s - first.seconds / times,
        warm_first_token_s=first.seconds / times,
        warm_first_token_energy_j=None if first.energy_j is None else first.energy_j / times,
        weights_bytes=sum(file.stat().st_size for file in files),
        evicted=eviction.evicted,
        evicted_reason=eviction.reason or None,
        residency_before=eviction.residency_before,
        residency_after=eviction.residency_after,
        load_checks=[asdict(check) for check in window.checks],
    )


def answer_one_token(engine: Engine, messages: list[dict[str, str]]) -> None:
    """One request, one token: what a load ends with."""
    engine.serve([engine.encode(messages)], output_tokens=1, concurrency=1)


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


@dataclass(frozen=True)
class Served:
    """What one concurrency of a serving run gave."""

    concurrency: int
    window: Window
    generations: list[Generation]


def warm_up(engine: Engine, prompts: list[list[int]], workload: Workload) -> float:
    """Answer `warmup_requests` prompts at the headline concurrency, unmeasured; the seconds."""
    start = time.monotonic()
    repeated = (prompts * workload.warmup_requests)[: workload.warmup_requests]
    engine.serve(repeated, workload.output_tokens, workload.headline_concurrency)
    return time.monotonic() - start


def serve_at(
    engine: Engine,
    prompts: list[list[int]],
    concurrency: int,
    output_tokens: int,
    monitor: Monitor,
) -> Served:
    """Answer every prompt at one concurrency in one measured window."""
    with monitor.window(f"serve at {concurrency}") as window:
        generations = engine.serve(prompts, output_tokens, concurrency)
    return Served(concurrency, window, generations)


def prompts_at(prompts: list[Any], concurrency: int, workload: Workload) -> list[Any]:
    """All prompts at the headline concurrency, the first few at any other."""
    if concurrency == workload.headline_concurrency:
        return prompts
    return prompts[: workload.latency_prompts]


def request_table(served: Served, engine: Engine, examples: list[Example]) -> pd.DataFrame:
    """A row a request: everything from which the run's latency figures can be recomputed."""
    return pd.DataFrame(
        {
            "concurrency": served.concurrency,
            "prompt_id": example.id,
            "submitted_s": generation.submitted_s - served.window.start_monotonic_s,
            "token_times_s": [
                t - served.window.start_monotonic_s for t in generation.token_times_s
            ],
            "token_ids": generation.token_ids,
            "input_tokens": len(generation.prompt_ids),
            "output_tokens": len(generation.token_ids),
            "natural_tokens": engine.natural_length(generation.token_ids),
            "ttft_ms": generation.ttft_ms,
            "tpot_ms": generation.tpot_ms,
        }
        for generation, example in zip(served.generations, examples, strict=False)
    )


def serving_figures(served: Served, requests: pd.DataFrame) -> dict[str, Any]:
    """One concurrency's figures under the names that the tables use; unknown ones are None."""
    window, count = served.window, len(requests)
    tokens = int(requests["output_tokens"].sum())

    def per(number: int, joules: float | None) -> float | None:
        return None if joules is None else joules / number

    reasons = {
        "energy_per_request_j": window.energy_reason,
        "energy_per_request_net_j": window.energy_net_reason,
        "memory_gb": window.peak_memory_reason,
    }
    return {
        "concurrency": served.concurrency,
        "requests": count,
        "seconds": window.seconds,
        "window": "whole",  # static batches have no steady state to cut out
        "energy_source": window.energy_source,
        "energy_per_request_j": per(count, window.energy_j),
        "energy_per_request_lo_j": per(count, window.energy_lo_j),
        "energy_per_request_hi_j": per(count, window.energy_hi_j),
        "energy_per_request_net_j": per(count, window.energy_net_j),
        "energy_per_token_j": per(tokens, window.energy_j),
        "throughput_tok_s": tokens / window.seconds,
        "ttft_ms": float(requests["ttft_ms"].mean()),
        "ttft_p95_ms": float(requests["ttft_ms"].quantile(0.95)),
        "tpot_ms": float(requests["tpot_ms"].mean()),
        "tpot_p95_ms": float(requests["tpot_ms"].quantile(0.95)),
        "memory_gb": window.peak_memory_gb,
        "power_w": window.power_w,
        "cpu_s": window.cpu_s,
        "input_tokens_per_request": float(requests["input_tokens"].mean()),
        "output_tokens_per_request": tokens / count,
        "natural_tokens_per_request": float(requests["natural_tokens"].mean()),
        "checks": [asdict(check) for check in window.checks],
        "notes": "; ".join(f"{name}: {why}" for name, why in reasons.items() if why) or None,
    }


def batch_agreement(requests: pd.DataFrame, headline_concurrency: int) -> float | None:
    """Share of requests that got, in a batch, exactly the tokens that they get alone.

    None if no prompt was answered both ways.
    """
    alone = requests[requests["concurrency"] == 1].set_index("prompt_id")["token_ids"]
    batched = requests[requests["concurrency"] == headline_concurrency]
    batched = batched.set_index("prompt_id")["token_ids"]
    both = alone.index.intersection(batched.index)
    if headline_concurrency == 1 or both.empty:
        return None
    return float((alone[both].map(list) == batched[both].map(list)).mean())


def answer_table(
    served: list[Served], engine: Engine, examples: list[Example], workload: Workload
) -> pd.DataFrame:
    """A row a prompt at the headline concurrency: the answer, and how likely the gold answer is."""
    headline = next(s for s in served if s.concurrency == workload.headline_concurrency)
    likelihoods = engine.likelihoods(examples, batch_size=workload.headline_concurrency)
    return pd.DataFrame(
        {
            "prompt_id": example.id,
            "answer": engine.decode(generation.token_ids),
            "reference": example.answer,
            "answer_tokens": engine.natural_length(generation.token_ids),
            "gold_nll": likelihood.nll,
            "gold_argmax_ids": likelihood.argmax_ids,
        }
        for example, generation, likelihood in zip(
            examples, headline.generations, likelihoods, strict=True
        )
    )


def power_samples(served: list[Served]) -> pd.DataFrame:
    """Every power sample of every window; empty where the energy source takes none."""
    return pd.concat(
        [one.window.samples.assign(window=one.window.name) for one in served], ignore_index=True
    )
