"""The result of a measured window."""

from __future__ import annotations

import html
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import pandas as pd

from edge_eval_lib.energy.meter import Check, worst_verdict

NO_SAMPLES = pd.DataFrame(
    {"monotonic_s": pd.Series(dtype=float), "device": pd.Series(dtype=int)}
    | {"power_w": pd.Series(dtype=float)}
)
OPEN = "the window has not ended"


@dataclass(frozen=True)
class IdleBaseline:
    """Mean power of an idle machine, W: `bare`, or `loaded` with weights resident."""

    name: str
    seconds: float
    power_w: float | None
    reason: str
    energy_source: str | None


@dataclass(eq=False, repr=False)
class Measurement:
    """What one piece of work took. A figure that is not known is None, with its reason beside it.

    `energy_j` is gross, as the source measured or estimated it; `energy_lo_j` and `energy_hi_j` are
    an estimate's range, `energy_net_j` is less what the idle machine would have taken, and
    `energy_by_source_j` by every meter that is open. Times are of the monotonic clock. `cpu_s`
    counts this process and its descendants, `device_memory_gb` this process at the window's end.
    `peak_memory_source` is torch-allocated, device-process or resident. `runs` counts how often
    the work ran; `samples` are power samples: monotonic_s, device, power_w.
    """

    name: str
    seconds: float | None = None
    start_monotonic_s: float | None = None
    energy_j: float | None = None
    energy_lo_j: float | None = None
    energy_hi_j: float | None = None
    energy_net_j: float | None = None
    energy_source: str | None = None
    energy_reason: str = OPEN
    energy_net_reason: str = OPEN
    energy_by_source_j: dict[str, float | None] = field(default_factory=dict)
    power_w: float | None = None
    cpu_s: float | None = None
    peak_memory_gb: float | None = None
    peak_memory_source: str | None = None
    peak_memory_reason: str = OPEN
    device_memory_gb: float | None = None
    checks: list[Check] = field(default_factory=list)
    runs: int = 1
    samples: pd.DataFrame = field(default_factory=lambda: NO_SAMPLES)

    @property
    def verdict(self) -> str:
        """Return the worst verdict of the checks: invalid, warning or ok."""
        return worst_verdict(check.verdict for check in self.checks)

    @property
    def resolved(self) -> bool:
        """Return whether the window was long enough for its energy source to resolve."""
        return all(check.verdict == "ok" for check in self.checks if check.name == "resolution")

    def as_dict(self, prefix: str = "") -> dict[str, Any]:
        """Return every figure as JSON can hold it; the prefix `adapt` makes `adapt_s` and so on."""
        figures: dict[str, Any] = {"s": self.seconds}
        for figure in fields(self):
            if figure.name not in ("name", "seconds", "runs", "checks", "samples"):
                value = getattr(self, figure.name)
                figures[figure.name] = None if value == "" else value
        figures |= {"verdict": self.verdict, "checks": [asdict(check) for check in self.checks]}
        return {f"{prefix}_{name}" if prefix else name: value for name, value in figures.items()}

    @property
    def energy_text(self) -> str:
        """Return the energy for a person, with its source."""
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
        """Return the peak memory for a person."""
        if self.peak_memory_gb is None:
            return f"peak memory unknown ({self.peak_memory_reason})"
        return f"{self.peak_memory_gb:.3f} GB at peak ({self.peak_memory_source})"

    def __str__(self) -> str:
        if self.seconds is None:
            return f"{self.name}: still open"
        return f"{self.name}: {self.seconds:.3g} s, {self.energy_text}, {self.memory_text}"

    def as_table(self) -> pd.DataFrame:
        """Return the figures for a person, a row each, with the checks that are not ok."""
        if self.seconds is None:
            return pd.DataFrame({self.name: {"seconds": "still open"}})
        rows = {"seconds": f"{self.seconds:.4g}", "energy": self.energy_text}
        if self.runs > 1:
            rows["runs"] = f"{self.runs}: one took {self.seconds / self.runs:.4g} s"
            if self.energy_j is not None:
                rows["runs"] += f", {self.energy_j / self.runs:.4g} J"
        if self.cpu_s is not None:
            rows["CPU seconds"] = f"{self.cpu_s:.4g}"
        rows["memory"] = self.memory_text
        for check in self.checks:
            if check.verdict in ("warning", "invalid"):
                rows[f"{check.verdict}: {check.name}"] = check.detail
        return pd.DataFrame({self.name: rows})

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        rows = self.as_table()[self.name].items()
        cells = (
            f"<tr><th>{html.escape(str(k))}</th><td>{html.escape(v)}</td></tr>" for k, v in rows
        )
        return f"<table><caption>{html.escape(self.name)}</caption>{''.join(cells)}</table>"
