"""Windows: what a piece of work took in seconds, joules and memory.

monitor = Monitor()
with monitor.window("train") as window:
    ...
window.seconds, window.energy_j, window.energy_source, window.checks
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import math
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal

import pandas as pd

from edge_eval_lib.energy import checks, memory
from edge_eval_lib.energy.cpu_model import CpuModel, cpu_seconds
from edge_eval_lib.energy.interference import InterferenceWatch
from edge_eval_lib.energy.meter import Check, Meter, MeterError, Reading, Source, worst_verdict
from edge_eval_lib.energy.nvml_counter import NvmlCounter
from edge_eval_lib.energy.nvml_power import NvmlPower
from edge_eval_lib.energy.nvml_watch import NvmlWatch
from edge_eval_lib.energy.rapl import Rapl
from edge_eval_lib.machine import declared, host, nvml

GPU_SOURCES = ("nvml-counter", "nvml-power")
CPU_SOURCES = ("rapl", "cpu-model")
SHARED_IDLE = "the estimate's watts hold a server's idle power, and how much of it is not known"
ELSEWHERE = "the work runs elsewhere, where this process measures nothing"
NO_SAMPLES = pd.DataFrame(
    {"monotonic_s": pd.Series(dtype=float), "device": pd.Series(dtype=int)}
    | {"power_w": pd.Series(dtype=float)}
)
NO_GPU_CHECKS = [  # made once: a window must cost little
    checks.counter_against_integral(None, None, None, math.inf),
    checks.counter_advances(None),
    checks.power_changes(NO_SAMPLES, False),
    checks.sample_gap(NO_SAMPLES, math.inf),
    checks.throttling([]),
    checks.other_processes([]),
    checks.temperature([], (-math.inf, math.inf), {}),
]


@dataclass(frozen=True)
class IdleBaseline:
    """Mean power of an idle machine, W: `bare`, or `loaded` with weights resident."""

    name: str
    seconds: float
    power_w: float | None
    reason: str
    energy_source: str | None


class Window:
    """One measured piece of work; the figures are there once it has ended, None before.

    A figure that is not known is None, and its `..._reason` says why.
    """

    def __init__(self, monitor: Monitor, name: str) -> None:
        self._monitor = monitor
        self._state: dict[str, Any] = {}
        self.name = name
        self.seconds: float | None = None
        self.start_monotonic_s: float | None = None
        self.energy_j: float | None = None
        self.energy_lo_j: float | None = None
        self.energy_hi_j: float | None = None
        self.energy_net_j: float | None = None
        self.energy_source: str | None = None
        self.energy_reason = "the window has not ended"
        self.energy_net_reason = "the window has not ended"
        self.energy_by_source_j: dict[str, float | None] = {}
        self.power_w: float | None = None
        self.cpu_s: float | None = None
        self.peak_memory_gb: float | None = None
        self.peak_memory_source: str | None = None
        self.peak_memory_reason = "the window has not ended"
        self.device_memory_gb: float | None = None
        self.checks: list[Check] = []
        self.samples: pd.DataFrame = NO_SAMPLES

    def __enter__(self) -> Window:
        self._monitor._begin(self)
        return self

    def __exit__(self, *error: object) -> None:
        self._monitor._end(self)

    @property
    def verdict(self) -> str:
        """The worst verdict of the checks: invalid, warning or ok."""
        return worst_verdict(check.verdict for check in self.checks)

    @property
    def resolved(self) -> bool:
        """Whether the window was long enough for its energy source to resolve."""
        return all(check.verdict == "ok" for check in self.checks if check.name == "resolution")

    def as_dict(self, prefix: str = "") -> dict[str, Any]:
        """Every figure under `{prefix}_...` as JSON can hold it; None for what is not known."""
        start = f"{prefix}_" if prefix else ""
        figures = {
            "s": self.seconds,
            "start_monotonic_s": self.start_monotonic_s,
            "energy_j": self.energy_j,
            "energy_lo_j": self.energy_lo_j,
            "energy_hi_j": self.energy_hi_j,
            "energy_net_j": self.energy_net_j,
            "energy_source": self.energy_source,
            "energy_reason": self.energy_reason or None,
            "energy_net_reason": self.energy_net_reason or None,
            "energy_by_source_j": self.energy_by_source_j,
            "power_w": self.power_w,
            "cpu_s": self.cpu_s,
            "peak_memory_gb": self.peak_memory_gb,
            "peak_memory_source": self.peak_memory_source,
            "peak_memory_reason": self.peak_memory_reason or None,
            "device_memory_gb": self.device_memory_gb,
            "verdict": self.verdict,
            "checks": [asdict(check) for check in self.checks],
        }
        return {start + name: value for name, value in figures.items()}

    def __str__(self) -> str:
        if self.seconds is None:
            return f"{self.name}: still open"
        return f"{self.name}: {self.seconds:.3g} s, {self.energy_text}, {self.memory_text}"

    @property
    def energy_text(self) -> str:
        """The energy for a person, its source beside it."""
        if self.energy_j is None:
            return f"energy unknown ({self.energy_reason})"
        if self.energy_lo_j is not None:
            return (
                f"about {self.energy_j:.3g} J ({self.energy_lo_j:.3g} to {self.energy_hi_j:.3g}, "
                f"estimated: {self.energy_source})"
            )
        return f"{self.energy_j:.4g} J ({self.energy_source})"

    @property
    def memory_text(self) -> str:
        """The peak memory for a person."""
        if self.peak_memory_gb is None:
            return f"peak memory unknown ({self.peak_memory_reason})"
        return f"{self.peak_memory_gb:.3f} GB at peak ({self.peak_memory_source})"


class Monitor:
    """Opens the energy sources of this machine and measures windows with them.

    `device` says where the work runs: `gpu`, `cpu`, `elsewhere` (another machine or process, of
    which nothing can be told but seconds), or `auto`: the GPU if this process may use one and
    torch, if installed, is not a CPU build. Work on a GPU is never told by a CPU's meter, nor the
    other way round. `clock` and `sleep` count seconds.
    """

    def __init__(
        self,
        device: Literal["auto", "gpu", "cpu", "elsewhere"] = "auto",
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._clock, self._sleep = clock, sleep
        self._lock = threading.RLock()
        self._open: list[Window] = []
        self._samples: list[pd.DataFrame] = []
        self._idle_w: dict[str, float] = {}  # of the bare machine, by source
        self.sources: list[Source] = []
        self._meters: dict[str, Meter] = {}
        parameters = declared.load_hardware_file()
        self._warm_range_c = parameters.warm_range_c
        self._elsewhere = device == "elsewhere"
        self._on_gpu, cpu_reason = _where(device)
        model = parameters.cpu_model
        self._cpu = CpuModel(model.low_w, model.typical_w, model.high_w, host.cpu_name())
        self._cores = InterferenceWatch()
        if self._on_gpu:
            self._open_meter("nvml-counter", lambda: NvmlCounter(clock, sleep))
            self._open_meter("nvml-power", lambda: NvmlPower(clock, sleep))
        else:
            self.sources += [Source(name, False, cpu_reason) for name in GPU_SOURCES]
        if self._elsewhere:
            self.sources += [Source(name, False, ELSEWHERE) for name in CPU_SOURCES]
        else:
            self._open_meter("rapl", Rapl)
            self._open_meter("cpu-model", lambda: self._cpu)
        self._gpus = _gpus() if self._on_gpu else []
        self._watch = NvmlWatch(self._gpus, clock)
        self._pollers = [
            _Poller(meter.poll, meter.poll_interval_s)
            for meter in self._meters.values()
            if meter.poll_interval_s is not None
        ]
        if self._gpus:
            self._pollers.append(_Poller(self._watch.poll, self._watch.poll_interval_s))
        # Both of a GPU's meters measure the same, so one may stand in for the other; an estimate
        # never stands in for a measurement.
        self._candidates = (
            [name for name in GPU_SOURCES if name in self._meters]
            if self._on_gpu
            else [name for name in CPU_SOURCES if name in self._meters][:1]
        )
        self.energy_source: str | None = next(iter(self._candidates), None)
        self.energy_reason = "" if self.energy_source else self._why_none()
        memory.bare_interpreter_bytes()  # measured now, so that no window waits for it

    def _open_meter(self, name: str, opener: Callable[[], Meter]) -> None:
        try:
            self._meters[name] = opener()
            self.sources.append(Source(name, True, devices=list(self._meters[name].devices)))
        except nvml.Unavailable as why:
            self.sources.append(Source(name, False, str(why)))

    def _why_none(self) -> str:
        if self._elsewhere:
            return ELSEWHERE
        return "; ".join(
            f"{source.name}: {source.reason}"
            for source in self.sources
            if source.name in GPU_SOURCES and not source.available
        )

    def __enter__(self) -> Monitor:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Stops the sampling threads; windows still open end without samples from here on."""
        for poller in self._pollers:
            poller.stop()
        self._cores.close()

    def window(self, name: str) -> Window:
        """A context manager that measures its body; windows may nest, overlap and repeat names."""
        return Window(self, name)

    def power_samples(self) -> pd.DataFrame:
        """Every power sample of every window that has ended, with the name of its `window`."""
        nothing = NO_SAMPLES.assign(window=pd.Series(dtype=str))
        return pd.concat(self._samples, ignore_index=True) if self._samples else nothing

    def idle_baseline(
        self, seconds: float, name: Literal["bare", "loaded"] = "bare"
    ) -> IdleBaseline:
        """Measures the machine doing nothing for `seconds`; `bare` is then subtracted as idle.

        Take `bare` before anything is loaded, `loaded` with the weights resident. Raises
        ValueError for a duration that is not positive.
        """
        if not seconds > 0:
            raise ValueError(f"seconds must be positive, not {seconds}")
        if self.energy_source in (None, "cpu-model"):
            reason = self.energy_reason or SHARED_IDLE
            return IdleBaseline(name, 0.0, None, reason, self.energy_source)
        with self.window(f"idle {name}") as idle:
            self._sleep(seconds)
        source = idle.energy_source or self.energy_source
        crowd = next(check for check in idle.checks if check.name == "interference")
        if crowd.verdict == "invalid":
            reason = f"the machine was not idle: {crowd.detail}"
            return IdleBaseline(name, idle.seconds, None, reason, source)
        if name == "bare":
            self._idle_w = {
                source: joules / idle.seconds
                for source, joules in idle.energy_by_source_j.items()
                if joules is not None and source != "cpu-model" and idle.seconds
            }
        return IdleBaseline(name, idle.seconds, idle.power_w, idle.energy_reason, source)

    def repeat_until_resolved(
        self, name: str, body: Callable[[], Any], limit_s: float = 60.0, at_least: int = 1
    ) -> tuple[Window, int]:
        """Runs `body` in one window as often as its source needs to resolve it, `at_least` so often
        if that takes no longer than `limit_s`.

        Returns the window and the number of runs in it: energy and seconds of one run are the
        window's over that number. After `limit_s` the window ends unresolved, and says so.
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
        return window, runs

    def _begin(self, window: Window) -> None:
        """Slow looks first and the clock last, so that little of the meters is in the window."""
        state = window._state
        with self._lock:
            state["failures"] = {}
            state["peak"] = memory.begin()
            if self._gpus:
                state["watch"] = self._watch.begin()
            if not self._open:
                for poller in self._pollers:
                    poller.resume()
            self._open.append(window)
            state["cpu"] = self._cpu.begin()
            state["cores"] = self._cores.look(state["cpu"])
            state["synchronise"] = _synchronise()
            state["begin"] = {
                name: mark
                for name, meter in reversed(self._meters.items())
                if meter is not self._cpu
                and (mark := _read(name, meter.begin, state["failures"])) is not None
            }
            state["wall"], state["boot"] = _wall_s(), _boot_s()
            window.start_monotonic_s = state["start"] = self._clock()

    def _end(self, window: Window) -> None:
        problem = _synchronise()
        stop = self._clock()
        state = window._state
        wall_s, boot_s = _wall_s() - state["wall"], _difference(_boot_s(), state["boot"])
        ends = {
            name: mark
            for name, meter in self._meters.items()
            if name in state["begin"]
            and (mark := _read(name, meter.end, state["failures"])) is not None
        }
        cpu = self._cpu.end()
        cores = self._cores.look(cpu)
        with self._lock:
            window.seconds = stop - state["start"]
            self._tell_memory(window)
            readings = {
                name: self._meters[name].reading(state["begin"][name], ends[name]) for name in ends
            }
            readings |= {name: Reading(None, why) for name, why in state["failures"].items()}
            if "cpu-model" in self._meters:
                readings["cpu-model"] = self._cpu.reading(state["cpu"], cpu)
                window.cpu_s = cpu_seconds(state["cpu"], cpu)
            if "nvml-power" in ends:
                window.samples = self._meters["nvml-power"].samples(
                    state["begin"]["nvml-power"], ends["nvml-power"]
                )
                self._samples.append(window.samples.assign(window=window.name))
            window.checks = [
                *self._gpu_checks(window, readings),
                checks.interference(
                    ELSEWHERE if self._elsewhere else self._cores.between(state["cores"], cores),
                    self._on_gpu,
                ),
                checks.clock_step(window.seconds, wall_s, boot_s),
                checks.meter(state["failures"]),
                checks.synchronised(
                    problem or state["synchronise"], memory.torch_in_use() is not None
                ),
            ]
            self._tell_energy(window, readings)
            self._open.remove(window)
            if not self._open:
                self._rest()

    def _rest(self) -> None:
        for poller in self._pollers:
            poller.pause()
        self._watch.forget()
        if isinstance(power := self._meters.get("nvml-power"), NvmlPower):
            power.forget()

    def _tell_memory(self, window: Window) -> None:
        peak = memory.end(window._state["peak"], self._gpus)
        if self._elsewhere:
            peak = memory.PeakMemory(None, None, ELSEWHERE)
        window.peak_memory_gb = peak.gb
        window.peak_memory_source = peak.source
        window.peak_memory_reason = peak.reason
        window.device_memory_gb = peak.device_gb

    def _gpu_checks(self, window: Window, readings: dict[str, Reading]) -> list[Check]:
        if not self._on_gpu:
            return NO_GPU_CHECKS
        seen = []
        if self._gpus:
            seen = self._watch.between(window._state["watch"], self._watch.end())
        use = [value for look in seen for value in look.utilisation.values()]
        agreement = checks.counter_against_integral(
            readings.get("nvml-counter"),
            readings.get("nvml-power"),
            sum(use) / len(use) if use else None,
            sum(map(self._lag_s, GPU_SOURCES)) / window.seconds if window.seconds else math.inf,
        )
        power = self._meters.get("nvml-power")
        period_s = power.poll_interval_s if power and power.poll_interval_s else math.inf
        return [
            agreement,
            checks.counter_advances(readings.get("nvml-counter")),
            checks.power_changes(window.samples, agreement.verdict == "ok"),
            checks.sample_gap(window.samples, period_s),
            checks.throttling(seen),
            checks.other_processes(seen),
            checks.temperature(seen, self._warm_range_c, self._watch.slowdown_c),
        ]

    def _tell_energy(self, window: Window, readings: dict[str, Reading]) -> None:
        """The figure of the best source that has one, and what idle would have taken."""
        spoiled = {
            "nvml-power": ("power changes", "sample gap"),
            "nvml-counter": ("counter advances",),
        }
        verdicts = {check.name: check for check in window.checks}
        for name, reading in list(readings.items()):
            bad = [
                verdicts[check]
                for check in spoiled.get(name, ())
                if verdicts[check].verdict == "invalid"
            ]
            lag = checks.resolution(name, self._meters[name].resolution_s, window.seconds)
            if reading.energy_j is not None and (bad or lag.verdict == "invalid"):
                why = (bad or [lag])[0]
                readings[name] = Reading(None, f"{why.name}: {why.detail}")
        window.energy_by_source_j = {name: reading.energy_j for name, reading in readings.items()}
        window.energy_reason = window.energy_net_reason = self.energy_reason
        chosen = next(
            (name for name in self._candidates if readings[name].energy_j is not None), None
        )
        if chosen is None:
            window.checks.append(
                checks.resolution(
                    self.energy_source, self._lag_s(self.energy_source), window.seconds
                )
            )
            if self._candidates:
                window.energy_reason = "; ".join(
                    f"{name}: {readings[name].reason}" for name in self._candidates
                )
                window.energy_net_reason = window.energy_reason
            return
        reading = readings[chosen]
        window.checks.append(checks.resolution(chosen, self._lag_s(chosen), window.seconds))
        if chosen != self.energy_source:
            why = readings[self.energy_source].reason
            window.checks.append(
                Check("source", "warning", f"{chosen} used; {self.energy_source}: {why}")
            )
        window.energy_source, window.energy_reason = chosen, ""
        window.energy_j = reading.energy_j
        window.energy_lo_j, window.energy_hi_j = reading.lo_j, reading.hi_j
        window.power_w = reading.energy_j / window.seconds if window.seconds > 0 else None
        self._tell_net(window)

    def _tell_net(self, window: Window) -> None:
        idle_w = self._idle_w.get(window.energy_source)
        window.energy_net_reason = ""
        if window.energy_source == "cpu-model":
            window.energy_net_reason = SHARED_IDLE
        elif idle_w is None:
            window.energy_net_reason = "no idle baseline was measured"
        elif (net_j := window.energy_j - idle_w * window.seconds) < 0:
            window.energy_net_reason = "less than the idle baseline: within its noise"
        else:
            window.energy_net_j = net_j

    def _lag_s(self, source: str | None) -> float:
        return self._meters[source].resolution_s if source in self._meters else 0.0


class _Poller:
    """A daemon thread that calls `visit` every `interval_s` while it is not paused."""

    def __init__(self, visit: Callable[[], Any], interval_s: float) -> None:
        self._visit, self._interval_s = visit, interval_s
        self._wanted, self._stopped = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def resume(self) -> None:
        self._wanted.set()

    def pause(self) -> None:
        self._wanted.clear()

    def stop(self) -> None:
        self._stopped.set()
        self._wanted.set()
        self._thread.join(timeout=5)

    def _run(self) -> None:
        while not self._stopped.is_set():
            self._wanted.wait()
            if not self._stopped.wait(self._interval_s) and self._wanted.is_set():
                self._visit()


def _where(device: str) -> tuple[bool, str]:
    """Whether the work runs on a GPU, and if not, why its meters are not used."""
    if device == "cpu":
        return False, "the work runs on the CPU"
    if device == "elsewhere":
        return False, ELSEWHERE
    try:
        nvml.visible_devices()
    except nvml.Unavailable as why:
        return (False, str(why)) if device == "auto" else (True, "")
    if device == "auto" and _torch_is_cpu_only():
        return False, "torch is a build without CUDA: the work runs on the CPU"
    return True, ""


def _gpus() -> list[nvml.Device]:
    try:
        return nvml.visible_devices()
    except nvml.Unavailable:  # the work is said to run on a GPU that cannot be measured
        return []


def _torch_is_cpu_only() -> bool:
    torch = sys.modules.get("torch")
    if torch is not None and getattr(torch, "cuda", None) is not None:
        return not torch.cuda.is_available()
    try:
        return importlib.metadata.version("torch").endswith("+cpu")
    except importlib.metadata.PackageNotFoundError:
        return False


def _synchronise() -> str | None:
    """Waits until torch's devices have finished; returns what went wrong, if anything.

    Devices on which torch holds no memory are left alone: touching one would take some.
    """
    torch = memory.torch_in_use()
    if torch is None:
        return None
    try:
        for index in range(torch.cuda.device_count()):
            if torch.cuda.memory_reserved(index) > 0:
                torch.cuda.synchronize(index)
    except RuntimeError as error:  # how CUDA reports an error of earlier work
        return f"the device reports an error: {str(error).splitlines()[0]}"
    return None


def _read(name: str, read: Callable[[], Any], failures: dict[str, str]) -> Any:
    try:
        return read()
    except MeterError as error:
        failures[name] = str(error)
        return None


def _wall_s() -> float:
    return time.time()


def _boot_s() -> float | None:
    """Seconds since boot, sleep included; the monotonic clock stops while a machine sleeps."""
    with contextlib.suppress(AttributeError, OSError):
        return time.clock_gettime(time.CLOCK_BOOTTIME)
    return None


def _difference(end: float | None, begin: float | None) -> float | None:
    return None if end is None or begin is None else end - begin
