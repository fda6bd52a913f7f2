"""What every energy source has in common: the interface, and the words for its answers."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

Verdict = Literal["ok", "warning", "invalid", "not applicable"]


def worst_verdict(verdicts: Iterable[str]) -> str:
    """invalid, warning or ok: the worst of many checks; what was not applicable does not count."""
    found = set(verdicts)
    return next((worst for worst in ("invalid", "warning") if worst in found), "ok")


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
    """One named validity check of a window and what it found."""

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


class Meter(Protocol):
    """An open energy source; several devices are added up, each once.

    `begin` and `end` read the hardware and return a mark; `reading` is computed from two marks.
    All three raise MeterError when the source fails. `resolution_s` is the time within which the
    source's value may lag the truth. A meter that must be visited while a window is open has
    `poll_interval_s` and `poll`.
    """

    name: str
    devices: list[str]
    resolution_s: float
    poll_interval_s: float | None

    def begin(self) -> Any: ...
    def end(self) -> Any: ...
    def reading(self, begin: Any, end: Any) -> Reading: ...
    def poll(self) -> None: ...
