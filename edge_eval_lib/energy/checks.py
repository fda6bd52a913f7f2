"""The validity checks of a window: pure functions of what was recorded.

Verdicts: `ok`; `warning`: true of the window, but perhaps not comparable with others; `invalid`:
do not use the figure; `not applicable`: this machine or window gives nothing to judge.
"""

from __future__ import annotations

import math

import pandas as pd

from edge_eval_lib.energy.interference import CoreUse
from edge_eval_lib.energy.meter import Check, Reading
from edge_eval_lib.energy.nvml_watch import POWER_CAP, Observation

AGREEMENT = 0.02  # of counter and integral under load
LOADED = 0.10  # mean utilisation from which a GPU counts as under load
RESOLVED = 0.05  # edge uncertainty up to which a window is resolved
USABLE = 0.25  # edge uncertainty beyond which no figure is given
GAP = 4.0  # update periods between samples that make a gap
MISSED_SHARE = 0.05  # of the window within gaps that makes the integral invalid
STEADY_SAMPLES = 20  # equal power samples in a row before the sensor is thought stuck
CLOCK_STEP_S = 0.1
TEMPERATURE_DRIFT_C = 15.0
DISTURBED = 0.05  # of its cores that other work may take before a window is doubtful
SPOILED = 0.25  # and beyond this its figures are those of a crowd


def resolution(source: str | None, lag_s: float, seconds: float) -> Check:
    """Whether the window is long enough for its source.

    At both edges the source may lag by up to `lag_s`, so the energy is uncertain by lag_s/seconds.
    """
    name = "resolution"
    if source is None:
        return Check(name, "not applicable", "no energy source")
    share = math.inf if seconds <= 0 else lag_s / seconds
    if share <= RESOLVED:
        return Check(name, "ok", f"edges ±{share:.1%}")
    needed = lag_s / RESOLVED
    detail = f"{source} lags {lag_s * 1e3:.0f} ms: {needed:.1f} s are needed, not {seconds:.2f} s"
    if share <= USABLE:
        return Check(name, "warning", f"edges ±{share:.0%}; {detail}")
    return Check(name, "invalid", detail)


def counter_against_integral(
    counter: Reading | None,
    integral: Reading | None,
    utilisation: float | None,
    edges: float,
) -> Check:
    """Counter and integrated power of the same window: 2 % apart at most under load.

    `edges` is the share of the window by which the two may lag each other.
    """
    name = "counter against integral"
    if counter is None or integral is None:
        return Check(name, "not applicable", "one of the two sources is not there")
    if counter.energy_j is None or integral.energy_j is None:
        return Check(name, "not applicable", counter.reason or integral.reason)
    difference = integral.energy_j / counter.energy_j - 1
    detail = f"integral {difference:+.2%} from counter"
    if abs(difference) <= AGREEMENT:
        return Check(name, "ok", detail)
    if utilisation is not None and utilisation < LOADED:
        return Check(name, "not applicable", f"{detail}, at {utilisation:.0%} utilisation")
    if abs(difference) <= AGREEMENT + edges:
        return Check(name, "not applicable", f"{detail}, edges ±{edges:.1%}: too short to tell")
    return Check(name, "warning", detail)


def counter_advances(counter: Reading | None) -> Check:
    """A counter that stands still or goes back measures nothing."""
    name = "counter advances"
    if counter is None:
        return Check(name, "not applicable", "no counter")
    if counter.energy_j is None:
        return Check(name, "invalid", counter.reason)
    return Check(name, "ok")


def power_changes(samples: pd.DataFrame, corroborated: bool) -> Check:
    """Power that never changes is a stuck sensor, unless the counter agrees with it."""
    name = "power changes"
    if samples.empty:
        return Check(name, "not applicable", "no power samples")
    per_device = samples.dropna().groupby("device")["power_w"]
    if not len(per_device) or per_device.count().min() < STEADY_SAMPLES:
        return Check(name, "not applicable", "too few samples")
    stuck = [str(device) for device, watts in per_device if watts.nunique() == 1]
    if not stuck:
        return Check(name, "ok")
    detail = f"GPU {', '.join(stuck)}: every sample the same"
    return Check(name, "warning" if corroborated else "invalid", detail)


def sample_gap(samples: pd.DataFrame, period_s: float) -> Check:
    """Time without a sample, during which power is only guessed by a straight line."""
    name = "sample gap"
    if samples.empty:
        return Check(name, "not applicable", "no power samples")
    times = samples.dropna()["monotonic_s"].drop_duplicates()
    if len(times) < 2:
        return Check(name, "invalid", "fewer than two power samples")
    steps = times.diff().dropna()
    gaps = steps[steps > GAP * period_s]
    if gaps.empty:
        return Check(name, "ok")
    share = gaps.sum() / (times.iloc[-1] - times.iloc[0])
    detail = f"{len(gaps)} gaps, the longest {gaps.max():.2f} s, {share:.1%} of the window"
    return Check(name, "warning" if share <= MISSED_SHARE else "invalid", detail)


def clock_step(monotonic_s: float, wall_s: float, boot_s: float | None) -> Check:
    """The wall clock was set, or the machine slept, within the window.

    Energy and seconds use the monotonic clock, so only sleep spoils them.
    """
    name = "clock step"
    if boot_s is not None and abs(boot_s - monotonic_s) > CLOCK_STEP_S:
        return Check(name, "invalid", f"the machine slept {boot_s - monotonic_s:.1f} s")
    step = wall_s - monotonic_s
    if abs(step) > CLOCK_STEP_S + 1e-3 * monotonic_s:
        return Check(name, "warning", f"the wall clock was set by {step:+.1f} s")
    return Check(name, "ok")


def throttling(seen: list[Observation]) -> Check:
    """Clocks held down: by heat or hardware invalid, by the power limit a warning."""
    name = "throttling"
    told = [look.throttle for look in seen if look.throttle]
    if not told:
        return Check(name, "not applicable", "no GPU tells it")
    reasons = [{reason for reasons in look.values() for reason in reasons} for look in told]
    active = sorted(set().union(*reasons))
    if not active:
        return Check(name, "ok")
    shares = [
        f"{reason} in {sum(reason in found for found in reasons)} of {len(told)} looks"
        for reason in active
    ]
    return Check(name, "warning" if active == [POWER_CAP] else "invalid", "; ".join(shares))


def other_processes(seen: list[Observation]) -> Check:
    """Another process on the device: its energy cannot be told from ours."""
    name = "other processes"
    told = [look for look in seen if look.processes_known and look.others]
    if not told:
        return Check(name, "not applicable", "no GPU tells it")
    others = sorted({label for look in told for found in look.others.values() for label in found})
    if others:
        return Check(name, "invalid", f"also on the device: {', '.join(others)}")
    unrecognised = max(max(look.unrecognised.values(), default=0) for look in told)
    if unrecognised > 1:
        return Check(
            name, "warning", f"{unrecognised} processes; in a container ours is not told apart"
        )
    return Check(name, "ok")


def interference(found: CoreUse | str, on_gpu: bool) -> Check:
    """Other work on the cores that this run may use; `found` is a reason where that is not known.

    Judged by the largest of the cores' share that others took, our threads' wait for a core because
    of it, and what a CPU quota held back. Work on a GPU needs few of the cores: what others take is
    not held against it, only waiting is, and that disturbs without spoiling.
    """
    name = "interference"
    if isinstance(found, str):
        return Check(name, "not applicable", found)
    told = [
        (found.waited, "its threads waited {:.0%} of their time for a core, taken by other work"),
        (found.held, "a CPU quota held its threads back for {:.0%} of their time"),
    ]
    error = 0.0
    if not on_gpu:
        error = found.error
        told.insert(0, (found.taken, "other work took {:.0%} of its " + _cores(found.cores)))
    share, words = max(told, key=lambda one: one[0])
    certain = share - (error if share == found.taken else 0.0)
    if certain >= SPOILED and not on_gpu:
        return Check(name, "invalid", words.format(share))
    if certain >= DISTURBED:
        return Check(name, "warning", words.format(share))
    if error > DISTURBED:
        short = f"{found.seconds:.2g} s are too short to tell: {words.format(share)} ± {error:.0%}"
        return Check(name, "not applicable", short)
    return Check(name, "ok", words.format(share))


def _cores(count: int) -> str:
    return "core" if count == 1 else f"{count} cores"


def temperature(
    seen: list[Observation],
    warm_range_c: tuple[float, float],
    slowdown_c: dict[str, float | None],
) -> Check:
    """Device temperature outside the range in which figures compare, or drifting within."""
    name = "temperature"
    found: dict[str, list[float]] = {}
    for look in seen:
        for label, celsius in look.temperature_c.items():
            found.setdefault(label, []).append(celsius)
    if not found:
        return Check(name, "not applicable", "no GPU tells it")
    low, high = warm_range_c
    problems = []
    for label, celsius in found.items():
        limit = slowdown_c.get(label)
        if limit is not None and max(celsius) >= limit:
            return Check(
                name, "invalid", f"{label}: {max(celsius):.0f} °C, slows down at {limit:.0f}"
            )
        if min(celsius) < low or max(celsius) > high:
            problems.append(
                f"{label}: {min(celsius):.0f}-{max(celsius):.0f} °C, outside {low:.0f}-{high:.0f}"
            )
        elif max(celsius) - min(celsius) > TEMPERATURE_DRIFT_C:
            problems.append(f"{label}: drifted from {celsius[0]:.0f} to {celsius[-1]:.0f} °C")
    if problems:
        return Check(name, "warning", "; ".join(problems))
    return Check(
        name, "ok", "; ".join(f"{k}: {v[0]:.0f} to {v[-1]:.0f} °C" for k, v in found.items())
    )


def meter(failures: dict[str, str]) -> Check:
    """A source that was there when the monitor opened and failed within the window."""
    if not failures:
        return Check("meter", "ok")
    return Check("meter", "invalid", "; ".join(f"{name}: {why}" for name, why in failures.items()))


def synchronised(problem: str | None, used: bool) -> Check:
    """Whether the device had finished its work when the window's ends were read."""
    if problem:
        return Check("synchronised", "invalid", problem)
    return Check("synchronised", "ok" if used else "not applicable")
