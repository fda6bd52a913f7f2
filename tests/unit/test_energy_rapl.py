"""RAPL's counters over a made-up powercap tree."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_eval_lib.energy.meter import MeterError
from edge_eval_lib.energy.meters import rapl
from edge_eval_lib.machine.nvml import Unavailable

RANGE_UJ = 262_143_328_850


@pytest.fixture
def powercap(tmp_path):
    """A machine of two packages, the first with cores and DRAM below it, and psys above all."""
    for zone, name in {
        "intel-rapl:0": "package-0",
        "intel-rapl:0:0": "core",
        "intel-rapl:0:1": "dram",
        "intel-rapl:1": "package-1",
        "intel-rapl:2": "psys",
        "intel-rapl-mmio:0": "package-0",
    }.items():
        write(tmp_path, zone, 1_000_000)
        (tmp_path / zone / "name").write_text(f"{name}\n")
        (tmp_path / zone / "max_energy_range_uj").write_text(f"{RANGE_UJ}\n")
    return tmp_path


def write(root: Path, zone: str, energy_uj: int) -> None:
    (root / zone).mkdir(exist_ok=True)
    (root / zone / "energy_uj").write_text(f"{energy_uj}\n")


def test_packages_and_dram_are_added_up_each_once(powercap):
    meter = rapl.Rapl(root=powercap)
    assert meter.devices == [
        "package-0 (intel-rapl:0)",
        "dram (intel-rapl:0:1)",
        "package-1 (intel-rapl:1)",
    ]
    begin = meter.begin()
    for zone, joules in {
        "intel-rapl:0": 10,
        "intel-rapl:0:0": 9,
        "intel-rapl:0:1": 2,
        "intel-rapl:1": 5,
        "intel-rapl:2": 40,
        "intel-rapl-mmio:0": 10,
    }.items():
        write(powercap, zone, 1_000_000 + joules * 1_000_000)
    assert meter.reading(begin, meter.end()).energy_j == pytest.approx(17.0)


def test_a_counter_that_wraps_round_goes_on(powercap):
    write(powercap, "intel-rapl:0", RANGE_UJ - 3_000_000)
    meter = rapl.Rapl(root=powercap)
    begin = meter.begin()
    write(powercap, "intel-rapl:0", 4_000_000)
    assert meter.reading(begin, meter.end()).energy_j == pytest.approx(7.0)


@given(st.lists(st.integers(1, RANGE_UJ - 1), min_size=1, max_size=8))
def test_visits_keep_count_over_any_number_of_wraps(tmp_path_factory, steps_uj):
    root = tmp_path_factory.mktemp("powercap")
    write(root, "intel-rapl:0", 0)
    (root / "intel-rapl:0" / "name").write_text("package-0")
    (root / "intel-rapl:0" / "max_energy_range_uj").write_text(str(RANGE_UJ))
    meter = rapl.Rapl(root=root)
    begin, total = meter.begin(), 0
    for step in steps_uj:
        total += step
        write(root, "intel-rapl:0", total % RANGE_UJ)
        meter.poll()
    assert meter.reading(begin, meter.end()).energy_j == pytest.approx(total / 1e6)


def test_a_counter_that_stands_still_gives_no_zero(powercap):
    meter = rapl.Rapl(root=powercap)
    reading = meter.reading(meter.begin(), meter.end())
    assert reading.energy_j is None
    assert "stood still" in reading.reason


def deny(monkeypatch, path: Path) -> None:
    real = Path.read_text

    def read_text(self, *arguments, **options):
        if self == path:
            raise PermissionError(13, "Permission denied", str(self))
        return real(self, *arguments, **options)

    monkeypatch.setattr(Path, "read_text", read_text)


def test_permission_denied_is_reported_with_what_helps(powercap, monkeypatch):
    deny(monkeypatch, powercap / "intel-rapl:0" / "energy_uj")
    with pytest.raises(Unavailable, match="may not be read; an administrator can allow it"):
        rapl.Rapl(root=powercap)


def test_permission_lost_within_a_window_is_a_meter_error(powercap, monkeypatch):
    meter = rapl.Rapl(root=powercap)
    meter.begin()
    deny(monkeypatch, powercap / "intel-rapl:1" / "energy_uj")
    meter.poll()
    with pytest.raises(MeterError, match="intel-rapl:1"):
        meter.end()


def test_a_machine_without_rapl_says_so(tmp_path):
    for root in (tmp_path, tmp_path / "absent"):
        with pytest.raises(Unavailable, match="no RAPL"):
            rapl.Rapl(root=root)
