"""Windows: what a piece of work took in seconds, joules and memory.

monitor = Monitor()
with monitor.window("train") as window:
    ...
window.seconds, window.energy_j, window.energy_source, window.checks
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import pandas as pd

import edge_eval_lib.energy.meters  # noqa: F401  registers what is in the folder
from edge_eval_lib.energy import checks, clocks, cpu_time, devices, memory, meter
from edge_eval_lib.energy.cpu_time import CpuTime
from edge_eval_lib.energy.devices import ELSEWHERE, Device
from edge_eval_lib.energy.interference import CoreLook, InterferenceWatch
from edge_eval_lib.energy.measurement import NO_SAMPLES, IdleBaseline, Measurement
from edge_eval_lib.energy.meter import Meter, MeterError, Reading, Sampled
from edge_eval_lib.energy.polling import Poller
from edge_eval_lib.machine import declared

NO_GPU_CHECKS = checks.of_gpus(None, None, NO_SAMPLES, math.inf)  # once: a window must cost little
SHARED_IDLE = "the estimate's watts hold a server's idle power, and how much of it is not known"


@dataclass
class _Opening:
    """What was read when a window opened."""

    peak: memory.Peak
    watched: list[float]
    cpu: CpuTime
    cores: CoreLook
    synchronise: str | None
    failures: dict[str, str] = field(default_factory=dict)
    marks: dict[str, Any] = field(default_factory=dict)
    wall_s: float = 0.0
    boot_s: float | None = None
    start_s: float = 0.0


class Window(Measurement):
    """A measurement of the body of a `with`; its figures are there once that has ended."""

    def __init__(self, monitor: Monitor, name: str) -> None:
        super().__init__(name)
        self._monitor = monitor

    def __enter__(self) -> Window:
        self._opening = self._monitor._begin()
        self.start_monotonic_s = self._opening.start_s
        return self

    def __exit__(self, *error: object) -> None:
        self._monitor._end(self, self._opening)


class Monitor:
    """Opens the energy sources of this machine and measures windows with them.

    Work on a GPU is never measured by a CPU's meter, nor the other way round.

    Args:
        device: Where the work runs: `gpu`, `cpu`, `elsewhere` (another machine or process, of which
            only seconds are known), or `auto`: the GPU if this process may use one and torch, if
            installed, is not a CPU build.
        clock: Counts seconds.
        sleep: Waits for seconds.
    """

    def __init__(
        self,
        device: Device = "auto",
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._clock, self._sleep = clock, sleep
        self._lock = threading.RLock()
        self._open = 0  # windows
        self._samples: list[pd.DataFrame] = []
        self._idle_w: dict[str, float] = {}  # of the bare machine, by source
        self._warm_range_c = declared.load_hardware_file().warm_range_c
        self._elsewhere = device == "elsewhere"
        self._on_gpu, unused = devices.where(device)
        self.sources: list[meter.Source] = []
        self._meters: dict[str, Meter] = {}
        for kind in meter.in_order():
            self._open_meter(kind, unused.get(kind.name))
        self._watches = devices.open_watches(clock) if self._on_gpu else []
        self._cores = InterferenceWatch()
        visited: list[Meter | meter.Watch] = [*self._meters.values(), *self._watches]
        self._pollers = [
            Poller(source.poll, source.poll_interval_s)
            for source in visited
            if source.poll_interval_s is not None
        ]
        self._candidates = self._best()
        self.energy_source: str | None = next(iter(self._candidates), None)
        self.energy_reason = "" if self.energy_source else self._why_none()
        memory.bare_interpreter_bytes()  # measured now, so that no window waits for it

    def _open_meter(self, kind: type[Meter], unused: str | None) -> None:
        try:
            if unused:
                raise meter.Unavailable(unused)
            opened = kind(self._clock, self._sleep)
        except meter.Unavailable as why:
            self.sources.append(meter.Source(kind.name, False, str(why)))
        else:
            self._meters[kind.name] = opened
            self.sources.append(meter.Source(kind.name, True, devices=list(opened.devices)))

    def _best(self) -> list[str]:
        """Return the sources that may give the figure, the best first.

        Meters of the same devices measure the same, so one may stand in for the other; an estimate
        never stands in for a measurement.
        """
        device = "gpu" if self._on_gpu else "cpu"
        usable = [opened for opened in self._meters.values() if opened.device == device]
        return [
            opened.name
            for opened in usable
            if opened.devices == usable[0].devices and opened.estimated == usable[0].estimated
        ]

    def _why_none(self) -> str:
        if self._elsewhere:
            return ELSEWHERE
        return "; ".join(
            f"{source.name}: {source.reason}"
            for source in self.sources
            if not source.available and meter.METERS[source.name].device == "gpu"
        )

    def __enter__(self) -> Monitor:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop the sampling threads; windows still open end without samples from here on."""
        for poller in self._pollers:
            poller.stop()
        self._cores.close()

    def window(self, name: str) -> Window:
        """Return a context manager that measures its body.

        Windows may nest, overlap and repeat names.
        """
        return Window(self, name)

    def power_samples(self) -> pd.DataFrame:
        """Return every power sample of every ended window, with the name of its `window`."""
        nothing = NO_SAMPLES.assign(window=pd.Series(dtype=str))
        return pd.concat(self._samples, ignore_index=True) if self._samples else nothing

    def idle_baseline(
        self, seconds: float, name: Literal["bare", "loaded"] = "bare"
    ) -> IdleBaseline:
        """Measure the machine doing nothing; `bare` is then subtracted as idle.

        Args:
            seconds: How long to measure.
            name: `bare` before anything is loaded, `loaded` with the weights resident.

        Raises:
            ValueError: `seconds` is not positive.
        """
        if not seconds > 0:
            raise ValueError(f"seconds must be positive, not {seconds}")
        if self.energy_source is None or self._meters[self.energy_source].estimated:
            reason = self.energy_reason or SHARED_IDLE
            return IdleBaseline(name, 0.0, None, reason, self.energy_source)
        with self.window(f"idle {name}") as idle:
            self._sleep(seconds)
        seconds, source = idle.seconds or 0.0, idle.energy_source or self.energy_source
        crowd = next(check for check in idle.checks if check.name == "interference")
        if crowd.verdict == "invalid":
            reason = f"the machine was not idle: {crowd.detail}"
            return IdleBaseline(name, seconds, None, reason, source)
        if name == "bare":
            self._idle_w = {
                source: joules / seconds
                for source, joules in idle.energy_by_source_j.items()
                if joules is not None and not self._meters[source].estimated and seconds
            }
        return IdleBaseline(name, seconds, idle.power_w, idle.energy_reason, source)

    def repeat_until_resolved(
        self, name: str, body: Callable[[], Any], limit_s: float = 60.0, at_least: int = 1
    ) -> tuple[Window, int]:
        """Run `body` in one window as often as the energy source needs to resolve it.

        Args:
            name: The window's name.
            body: The work.
            limit_s: When to give up: the window then ends unresolved, and its checks say so.
            at_least: How often to run it, if that takes no longer than `limit_s`.

        Returns:
            The window and the number of runs in it; one run took the window's figures over that.
        """
        needed_s = min(limit_s, self._lag_s(self.energy_source) / checks.RESOLVED)
        runs = 0
        with self.window(name) as window:
            start = self._clock()
            while (
                runs == 0
                or (took_s := self._clock() - start) < needed_s
                or (runs < at_least and took_s < limit_s)
            ):
                body()
                runs += 1
        window.runs = runs
        return window, runs

    def _begin(self) -> _Opening:
        """Look at what is slow first and at the clock last: the window holds little of it."""
        with self._lock:
            peak = memory.begin()
            watched = [watch.begin() for watch in self._watches]
            if not self._open:
                for poller in self._pollers:
                    poller.resume()
            self._open += 1
            cpu = cpu_time.begin()
            opening = _Opening(peak, watched, cpu, self._cores.look(cpu), devices.synchronise())
            for name, opened in reversed(self._meters.items()):
                mark = cpu if opened.estimated else _read(name, opened.begin, opening.failures)
                if mark is not None:
                    opening.marks[name] = mark
            opening.wall_s, opening.boot_s = clocks.wall_s(), clocks.boot_s()
            opening.start_s = self._clock()
        return opening

    def _end(self, window: Window, opening: _Opening) -> None:
        problem = devices.synchronise()
        stop_s = self._clock()
        wall_s, boot_s = clocks.wall_s() - opening.wall_s, clocks.boot_s()
        if boot_s is not None and opening.boot_s is not None:
            boot_s -= opening.boot_s
        ends = {
            name: mark
            for name, opened in self._meters.items()
            if name in opening.marks
            and not opened.estimated
            and (mark := _read(name, opened.end, opening.failures)) is not None
        }
        cpu = cpu_time.end()
        cores = self._cores.look(cpu)
        with self._lock:
            window.seconds = stop_s - opening.start_s
            peak = memory.end(opening.peak, self._on_gpu, self._watches)
            if self._elsewhere:
                peak = memory.PeakMemory(None, None, ELSEWHERE)
            window.peak_memory_gb, window.peak_memory_source = peak.gb, peak.source
            window.peak_memory_reason, window.device_memory_gb = peak.reason, peak.device_gb
            readings: dict[str, Reading] = {}
            for name, opened in self._meters.items():
                end = cpu if opened.estimated else ends.get(name)
                if end is not None and name in opening.marks:
                    readings[name] = opened.reading(opening.marks[name], end)
                    if isinstance(opened, Sampled):
                        window.samples = opened.samples(opening.marks[name], end)
                        self._samples.append(window.samples.assign(window=window.name))
                else:
                    readings[name] = Reading(None, opening.failures.get(name, "it gave no value"))
            if not self._elsewhere:
                window.cpu_s = cpu_time.cpu_seconds(opening.cpu, cpu)
            window.checks = [
                *self._checks_of_gpus(window, opening, readings),
                checks.interference(
                    ELSEWHERE if self._elsewhere else self._cores.between(opening.cores, cores),
                    self._on_gpu,
                ),
                checks.clock_step(window.seconds, wall_s, boot_s),
                checks.meter(opening.failures),
                checks.synchronised(
                    (problem, opening.synchronise), memory.torch_in_use() is not None
                ),
            ]
            self._fill_energy(window, readings)
            self._open -= 1
            if not self._open:
                self._rest()

    def _rest(self) -> None:
        for poller in self._pollers:
            poller.pause()
        for watch in self._watches:
            watch.forget()
        for opened in self._meters.values():
            if isinstance(opened, Sampled):
                opened.forget()

    def _checks_of_gpus(
        self, window: Window, opening: _Opening, readings: dict[str, Reading]
    ) -> list[meter.Check]:
        if not self._on_gpu:
            return NO_GPU_CHECKS
        seen = [
            observation
            for watch, begin in zip(self._watches, opening.watched, strict=True)
            for observation in watch.between(begin, watch.begin())
        ]
        counter, sampled = self._first_gpu_meter(Meter), self._first_gpu_meter(Sampled)
        slowdown_c = {k: c for watch in self._watches for k, c in watch.slowdown_c.items()}
        return checks.of_gpus(
            None if counter is None else readings.get(counter.name),
            None if sampled is None else readings.get(sampled.name),
            window.samples,
            (sampled and sampled.poll_interval_s) or math.inf,
            sum(opened.resolution_s for opened in (counter, sampled) if opened),
            window.seconds or 0.0,
            seen,
            self._warm_range_c,
            slowdown_c,
        )

    def _first_gpu_meter(self, kind: type[Meter]) -> Meter | None:
        """Return the first GPU meter that samples, or that does not."""
        of_gpus = (opened for opened in self._meters.values() if opened.device == "gpu")
        return next((o for o in of_gpus if isinstance(o, Sampled) == (kind is Sampled)), None)

    def _fill_energy(self, window: Window, readings: dict[str, Reading]) -> None:
        """Take the figure of the best source that has one, and what idle would have taken."""
        seconds = window.seconds or 0.0
        bad_samples = [
            check
            for check in window.checks
            if check.verdict == "invalid" and check.name in ("power changes", "sample gap")
        ]
        for name, reading in list(readings.items()):
            lag = checks.resolution(name, self._lag_s(name), seconds)
            bad = bad_samples if isinstance(self._meters[name], Sampled) else []
            bad = bad + [lag] * (lag.verdict == "invalid")
            if reading.energy_j is not None and bad:
                readings[name] = Reading(None, f"{bad[0].name}: {bad[0].detail}")
        window.energy_by_source_j = {name: reading.energy_j for name, reading in readings.items()}
        by_best = {name: readings[name] for name in self._candidates}
        known = ((name, r) for name, r in by_best.items() if r.energy_j is not None)
        source, reading = next(known, (self.energy_source, Reading(None)))
        window.checks.append(checks.resolution(source, self._lag_s(source), seconds))
        if source is None or reading.energy_j is None:
            reasons = "; ".join(f"{name}: {r.reason}" for name, r in by_best.items())
            window.energy_reason = window.energy_net_reason = reasons or self.energy_reason
            return
        if source != (best := self._candidates[0]):
            why = f"{source} used; {best}: {readings[best].reason}"
            window.checks.append(meter.Check("source", "warning", why))
        window.energy_source, window.energy_reason = source, ""
        window.energy_j = reading.energy_j
        window.energy_lo_j, window.energy_hi_j = reading.lo_j, reading.hi_j
        window.power_w = reading.energy_j / seconds if seconds > 0 else None
        window.energy_net_j, window.energy_net_reason = self._net(source, reading.energy_j, seconds)

    def _net(self, source: str, energy_j: float, seconds: float) -> tuple[float | None, str]:
        if self._meters[source].estimated:
            return None, SHARED_IDLE
        if source not in self._idle_w:
            return None, "no idle baseline was measured"
        net_j = energy_j - self._idle_w[source] * seconds
        if net_j < 0:
            return None, "less than the idle baseline: within its noise"
        return net_j, ""

    def _lag_s(self, source: str | None) -> float:
        return self._meters[source].resolution_s if source in self._meters else 0.0


def _read(name: str, read: Callable[[], Any], failures: dict[str, str]) -> Any:
    try:
        return read()
    except MeterError as error:
        failures[name] = str(error)
        return None
