"""What an energy source is: the interface of a meter, its registry, and the words for its answers.

A new meter is one new file in meters/ (or any module that is imported before the monitor opens):

    @register
    class Mine(Meter):
        name, device = "mine", "gpu"
        ...
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, TypeVar

import pandas as pd

from edge_eval_lib.machine.nvml import Unavailable

__all__ = ["Check", "Meter", "MeterError", "Observation", "Reading", "Sampled", "Source"]
__all__ += ["Unavailable", "Watch", "register", "worst_verdict"]

Verdict = Literal["ok", "warning", "invalid", "not applicable"]
POWER_CAP = "software power cap"  # the one reason for throttling that is how a GPU normally works


def worst_verdict(verdicts: Iterable[str]) -> str:
    """Return invalid, warning or ok: the worst verdict; `not applicable` does not count."""
    given = set(verdicts)
    return next((worst for worst in ("invalid", "warning") if worst in given), "ok")


class MeterError(Exception):
    """A source that was open could not be read; the message is the reason, for a person."""


@dataclass(frozen=True)
class Source:
    """An energy source: whether this machine has it, why not, and the devices it covers."""

    name: str
    available: bool
    reason: str = ""
    devices: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Check:
    """One named validity check of a window, its verdict and what led to it."""

    name: str
    verdict: Verdict
    detail: str = ""


@dataclass(frozen=True)
class Reading:
    """Energy of one window by one source, J; None with the reason if it is not known.

    `lo_j` and `hi_j` bound an estimate; a measured energy has none.
    """

    energy_j: float | None
    reason: str = ""
    lo_j: float | None = None
    hi_j: float | None = None


class Meter:
    """An open energy source; several devices are added up, each once.

    The constructor opens it, or raises Unavailable with the reason. `begin` and `end` read the
    hardware and return a mark; `reading` is computed from two marks. All three raise MeterError
    when the source fails.

    Attributes:
        name: The source's name in every table.
        device: Whether it measures GPUs or the processor.
        estimated: True if it computes joules from CPU time. Every window reads that anyway, and
            hands `reading` two `CpuTime`s; `begin` and `end` are not called.
        devices: What it covers. Another meter of the same devices may stand in for it.
        resolution_s: The time within which the source's value may lag the truth.
        poll_interval_s: How often it must be visited while a window is open; None: never.
    """

    name: ClassVar[str]
    device: ClassVar[Literal["gpu", "cpu"]]
    estimated: ClassVar[bool] = False
    devices: list[str]
    resolution_s: float
    poll_interval_s: float | None = None

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._clock, self._sleep = clock, sleep

    @classmethod
    def absence(cls) -> str:
        """Return why this process has no device of this kind; empty if it has one."""
        return ""

    def begin(self) -> Any:
        """Read the hardware at the start of a window."""
        raise NotImplementedError

    def end(self) -> Any:
        """Read the hardware at the end of a window."""
        return self.begin()

    def reading(self, begin: Any, end: Any) -> Reading:
        """Return the energy between two marks."""
        raise NotImplementedError

    def poll(self) -> None:
        """Visit the hardware; never raises."""


class Sampled(Meter):
    """A meter that samples power at its visits and integrates it."""

    def samples(self, begin: Any, end: Any) -> pd.DataFrame:
        """Return the samples between two marks: monotonic_s, device, power_w."""
        raise NotImplementedError

    def forget(self) -> None:
        """Drop the samples; called when no window is open."""
        raise NotImplementedError


@dataclass(frozen=True)
class Observation:
    """The state of all watched GPUs at one moment; what a GPU does not show is left out."""

    monotonic_s: float
    temperature_c: dict[str, float] = field(default_factory=dict)  # by device label
    throttle: dict[str, list[str]] = field(default_factory=dict)
    utilisation: dict[str, float] = field(default_factory=dict)  # 0..1
    others: dict[str, list[str]] = field(default_factory=dict)  # processes that are not ours
    unrecognised: dict[str, int] = field(default_factory=dict)  # perhaps ours, perhaps not
    processes_known: bool = False


class Watch:
    """Observes GPUs at both ends of a window and every `poll_interval_s` between.

    The constructor raises Unavailable where there is nothing to watch.
    """

    poll_interval_s = 1.0

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self.slowdown_c: dict[str, float | None] = {}  # by device label

    def begin(self) -> float:
        """Observe, processes included, and return the time."""
        raise NotImplementedError

    def poll(self) -> None:
        """Observe; never raises."""
        raise NotImplementedError

    def between(self, begin: float, end: float) -> list[Observation]:
        """Return what was observed between two times."""
        raise NotImplementedError

    def forget(self) -> None:
        """Drop what was observed; called when no window is open."""
        raise NotImplementedError

    def process_memory_bytes(self) -> list[dict[int, int | None]]:
        """Return, a device each, bytes of device memory by process id.

        Raises:
            MeterError: The driver does not show it.
        """
        raise NotImplementedError


METERS: dict[str, type[Meter]] = {}
WATCHES: dict[str, type[Watch]] = {}
Kind = TypeVar("Kind", bound=type)


def register(kind: Kind) -> Kind:
    """Add a kind of Meter or Watch to those that a monitor opens; a name once used is replaced."""
    if issubclass(kind, Watch):
        WATCHES[kind.__name__] = kind
    elif issubclass(kind, Meter):
        METERS[kind.name] = kind
    else:
        raise TypeError(f"{kind.__name__} is neither a Meter nor a Watch")
    return kind


def in_order() -> list[type[Meter]]:
    """Return the kinds of meters by precedence: GPUs', measured and unsampled ones first."""
    return sorted(
        METERS.values(),
        key=lambda kind: (kind.device != "gpu", kind.estimated, issubclass(kind, Sampled)),
    )
