"""A cold load: from a bare process to the first token, measured as a fresh server would take it."""

from __future__ import annotations

import math
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import psutil
from scipy import special  # not stats: it takes as long to import as a small model to load

from edge_eval_lib.engines.base import Engine
from edge_eval_lib.errors import UserError
from edge_eval_lib.machine import pagecache

if TYPE_CHECKING:
    from edge_eval_lib.energy import Monitor

HEAVY = ("torch", "transformers", "vllm")
WARM_FIRST_TOKENS = 4  # measured, for their spread
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
    token. Reading separates the disk's part from placing; files that would not stay in the page
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
    # One warm token is too short for most energy sources: as many as it takes.
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
        load_s=cast(float, window.seconds) - cold_first_token_s + (first_token_s or 0.0),
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
        warm_first_token_s=cast(float, first.seconds) / times,
        warm_first_token_energy_j=None if first.energy_j is None else first.energy_j / times,
        weights_bytes=weights_bytes,
        evicted=eviction.evicted,
        evicted_reason=eviction.reason or None,
        residency_before=eviction.residency_before,
        residency_after=eviction.residency_after,
        load_checks=[asdict(check) for check in window.checks],
    )


def beyond_warm(cold_s: float, warm_s: Sequence[float]) -> tuple[float | None, str | None]:
    """Return what a cold first token took beyond a warm one, s.

    None and the reason if that is within the spread of warm ones.

    The spread is that of one more warm token (one-sided prediction interval of 95 %, Student's t).
    """
    count = len(warm_s)
    if count < 2:
        return None, "one warm token alone was measured, and its spread is not known"
    mean_s = float(np.mean(warm_s))
    spread_s = special.stdtrit(count - 1, 0.95) * np.std(warm_s, ddof=1) * math.sqrt(1 + 1 / count)
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
