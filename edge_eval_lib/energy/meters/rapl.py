"""`rapl`: the energy counters of the processor package and its memory (Linux powercap)."""

from __future__ import annotations

import contextlib
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge_eval_lib.energy.meter import Meter, MeterError, Reading, Unavailable, register

POWERCAP = Path("/sys/class/powercap")


@dataclass
class _Zone:
    """One counter: `total_uj` goes on where energy_uj wraps round at `range_uj`."""

    label: str
    path: Path
    range_uj: int
    last_uj: int
    total_uj: int = 0


@register
class Rapl(Meter):
    """Joules of all packages and their DRAM, the whole machine's."""

    name, device = "rapl", "cpu"
    resolution_s = 0.001
    poll_interval_s = 30.0  # a 65 kJ counter wraps round no sooner than this below 2 kW

    def __init__(self, *clocks: Any, root: Path | None = None) -> None:
        super().__init__(*clocks)
        self._lock = threading.Lock()
        self._zones = _zones(root or POWERCAP)
        self.devices = [zone.label for zone in self._zones]

    def begin(self) -> list[int]:
        """Return the microjoules since opening, by zone, free of wrap-around."""
        with self._lock:
            for zone in self._zones:
                now = _read(zone.path / "energy_uj")
                if now < zone.last_uj:
                    zone.total_uj += zone.range_uj
                zone.total_uj += now - zone.last_uj
                zone.last_uj = now
            return [zone.total_uj for zone in self._zones]

    def poll(self) -> None:
        """Read, so that no wrap-around is missed; a failure is met by the window's own end."""
        with contextlib.suppress(MeterError):
            self.begin()

    def reading(self, begin: list[int], end: list[int]) -> Reading:
        """Return the counters' advance; none where they stood still."""
        total_uj = sum(end) - sum(begin)
        if total_uj <= 0:
            return Reading(None, "the RAPL counters stood still")
        return Reading(total_uj / 1e6)


def _zones(root: Path) -> list[_Zone]:
    """Return the packages (intel-rapl:N) and the DRAM below them.

    Cores and uncore are parts of a package, and psys contains it: they would count twice.
    """
    zones = []
    packages = sorted(root.glob("intel-rapl:*")) if root.is_dir() else []
    for directory in packages:
        try:
            name = (directory / "name").read_text().strip()
        except OSError:
            continue
        if not name.startswith("package") and name != "dram":
            continue
        try:
            energy = _read(directory / "energy_uj")
            zones.append(
                _Zone(
                    f"{name} ({directory.name})",
                    directory,
                    _read(directory / "max_energy_range_uj"),
                    energy,
                )
            )
        except MeterError as error:
            raise Unavailable(str(error)) from None
    if not zones:
        raise Unavailable("this machine shows no RAPL counters (/sys/class/powercap)")
    return zones


def _read(path: Path) -> int:
    try:
        return int(path.read_text())
    except PermissionError:
        raise MeterError(
            f"{path} may not be read; an administrator can allow it with chmod a+r"
        ) from None
    except (OSError, ValueError) as error:
        raise MeterError(f"{path} could not be read: {error}") from None
