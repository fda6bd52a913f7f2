"""The validity checks of a window: pure functions of what was recorded.

Verdicts: `ok`; `warning`: true of the window, but perhaps not comparable with others; `invalid`:
do not use the figure; `not applicable`: this machine or window gives nothing to judge.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import pandas as pd

from edge_eval_lib.energy.interference import CoreUse
from edge_eval_lib.energy.meter import POWER_CAP, Check, Observation, Reading, Verdict

# What is judged, by check: above the first a warning, above the second invalid.
LIMITS = {
    "resolution": (0.05, 0.25),  # uncertain share of the energy, by the source's lag at the edges
    "counter against integral": (0.02, math.inf),  # share by which they differ under load
    "sample gap": (0.0, 0.05),  # share of the window within gaps
    "interference": (0.05, 0.25),  # share of its cores that other work took
}
RESOLVED = LIMITS["resolution"][0]
LOADED = 0.10  # mean utilisation from which a GPU counts as under load
GAP = 4.0  # update periods between samples that make a gap
STEADY_SAMPLES = 20  # equal power samples in a row before the sensor is thought stuck
CLOCK_STEP_S = 0.1
TEMPERATURE_DRIFT_C = 15.0
NO_GPU = "no GPU shows it"


def _graded(name: str, share: float, detail: str) -> Check:
    warning, invalid = LIMITS[name]
    verdict: Verdict = "invalid" if share > invalid else "warning" if share > warning else "ok"
    return Check(name, verdict, detail)


def _nothing(name: str, why: str) -> Check:
    return Check(name, "not applicable", why)


def resolution(source: str | None, lag_s: float, seconds: float) -> Check:
    """Judge whether the window is long enough for its source.

    At both edges the source may lag by up to `lag_s`, so the energy is uncertain by lag_s/seconds.
    """
    if source is None:
        return _nothing("resolution", "no energy source")
    share = lag_s / seconds if seconds > 0 else math.inf
    detail = f"edges ±{share:.1%}"
    if share > RESOLVED:
        needed_s = lag_s / RESOLVED
        detail += f"; {source} lags {lag_s * 1e3:.0f} ms: {needed_s:.1f} s are needed"
        detail += f", not {seconds:.2f} s"
    return _graded("resolution", share, detail)


def counter_against_integral(
    counter: Reading | None, integral: Reading | None, utilisation: float | None, edges: float
) -> Check:
    """Compare counter and integrated power of the same window under load.

    `edges` is the share of the window by which the two may lag each other.
    """
    name = "counter against integral"
    if counter is None or integral is None:
        return _nothing(name, "one of the two sources is not there")
    if counter.energy_j is None or integral.energy_j is None:
        return _nothing(name, counter.reason or integral.reason)
    difference = integral.energy_j / counter.energy_j - 1
    detail = f"integral {difference:+.2%} from counter"
    check = _graded(name, abs(difference), detail)
    if check.verdict == "ok":
        return check
    if utilisation is not None and utilisation < LOADED:
        return _nothing(name, f"{detail}, at {utilisation:.0%} utilisation")
    if abs(difference) <= LIMITS[name][0] + edges:
        return _nothing(name, f"{detail}, edges ±{edges:.1%}: too short to say")
    return check


def counter_advances(counter: Reading | None) -> Check:
    """Refuse a counter that stands still or goes back: it measures nothing."""
    if counter is None:
        return _nothing("counter advances", "no counter")
    return Check(
        "counter advances", "ok" if counter.energy_j is not None else "invalid", counter.reason
    )


def power_changes(samples: pd.DataFrame, corroborated: bool) -> Check:
    """Refuse power that never changes, a stuck sensor, unless the counter agrees with it."""
    name = "power changes"
    if samples.empty:
        return _nothing(name, "no power samples")
    per_device = samples.dropna().groupby("device")["power_w"]
    if not len(per_device) or per_device.count().min() < STEADY_SAMPLES:
        return _nothing(name, "too few samples")
    stuck = [str(device) for device, watts in per_device if watts.nunique() == 1]
    if not stuck:
        return Check(name, "ok")
    detail = f"GPU {', '.join(stuck)}: every sample the same"
    return Check(name, "warning" if corroborated else "invalid", detail)


def sample_gap(samples: pd.DataFrame, period_s: float) -> Check:
    """Judge the time without a sample, in which power is interpolated by a straight line."""
    name = "sample gap"
    if samples.empty:
        return _nothing(name, "no power samples")
    times = samples.dropna()["monotonic_s"].drop_duplicates()
    if len(times) < 2:
        return Check(name, "invalid", "fewer than two power samples")
    steps = times.diff().dropna()
    gaps = steps[steps > GAP * period_s]
    if gaps.empty:
        return Check(name, "ok")
    share = gaps.sum() / (times.iloc[-1] - times.iloc[0])
    detail = f"{len(gaps)} gaps, the longest {gaps.max():.2f} s, {share:.1%} of the window"
    return _graded(name, share, detail)


def clock_step(monotonic_s: float, wall_s: float, boot_s: float | None) -> Check:
    """Notice that the wall clock was set, or that the machine slept, within the window.

    Energy and seconds use the monotonic clock, so only sleep spoils them.
    """
    if boot_s is not None and abs(boot_s - monotonic_s) > CLOCK_STEP_S:
        return Check("clock step", "invalid", f"the machine slept {boot_s - monotonic_s:.1f} s")
    step_s = wall_s - monotonic_s
    if abs(step_s) > CLOCK_STEP_S + 1e-3 * monotonic_s:
        return Check("clock step", "warning", f"the wall clock was set by {step_s:+.1f} s")
    return Check("clock step", "ok")


def throttling(seen: Sequence[Observation]) -> Check:
    """Notice clocks held down: by heat or hardware invalid, by the power limit a warning."""
    known = [set().union(*look.throttle.values()) for look in seen if look.throttle]
    if not known:
        return _nothing("throttling", NO_GPU)
    active = sorted(set().union(*known))
    if not active:
        return Check("throttling", "ok")
    detail = "; ".join(
        f"{reason} in {sum(reason in reasons for reasons in known)} of {len(known)} looks"
        for reason in active
    )
    return Check("throttling", "warning" if active == [POWER_CAP] else "invalid", detail)


def other_processes(seen: Sequence[Observation]) -> Check:
    """Refuse a device that another process uses: their energies cannot be separated."""
    name = "other processes"
    known = [look for look in seen if look.processes_known and look.others]
    if not known:
        return _nothing(name, NO_GPU)
    others = {label for look in known for labels in look.others.values() for label in labels}
    if others:
        return Check(name, "invalid", f"also on the device: {', '.join(sorted(others))}")
    count = max(max(look.unrecognised.values(), default=0) for look in known)
    if count > 1:
        detail = f"{count} processes; in a container ours is not recognised among them"
        return Check(name, "warning", detail)
    return Check(name, "ok")


def interference(use: CoreUse | str, on_gpu: bool) -> Check:
    """Judge other work on the cores that this run may use; `use` is a reason where not known.

    The largest counts of the cores' share that others took, our threads' wait for a core because
    of it, and what a CPU quota held back. Work on a GPU needs few of the cores: what others take is
    not held against it, only waiting is, and that disturbs without spoiling.
    """
    name = "interference"
    if isinstance(use, str):
        return _nothing(name, use)
    cores = "core" if use.cores == 1 else f"{use.cores} cores"
    waiting = "its threads waited {:.0%} of their time for a core, taken by other work"
    shares = [
        (use.waited, 0.0, waiting),
        (use.held, 0.0, "a CPU quota held its threads back for {:.0%} of their time"),
    ]
    if not on_gpu:
        shares.insert(0, (use.taken, use.error, "other work took {:.0%} of its " + cores))
    share, error, sentence = max(shares, key=lambda candidate: candidate[0])
    detail = sentence.format(share)
    check = _graded(name, share - error, detail)
    if check.verdict == "ok" and not on_gpu and use.error > LIMITS[name][0]:
        return _nothing(
            name, f"{use.seconds:.2g} s are too short to say: {detail} ± {use.error:.0%}"
        )
    return Check(name, "warning", detail) if on_gpu and check.verdict == "invalid" else check


def temperature(
    seen: Sequence[Observation],
    warm_range_c: Sequence[float],
    slowdown_c: dict[str, float | None],
) -> Check:
    """Judge the devices' temperature: within the range in which figures compare, and steady."""
    name = "temperature"
    by_device: dict[str, list[float]] = {}
    for look in seen:
        for label, degrees in look.temperature_c.items():
            by_device.setdefault(label, []).append(degrees)
    if not by_device:
        return _nothing(name, NO_GPU)
    low, high = warm_range_c
    problems = []
    for label, celsius in by_device.items():
        coolest, warmest, limit = min(celsius), max(celsius), slowdown_c.get(label)
        if limit is not None and warmest >= limit:
            return Check(name, "invalid", f"{label}: {warmest:.0f} °C, slows down at {limit:.0f}")
        if coolest < low or warmest > high:
            span = f"{coolest:.0f}-{warmest:.0f} °C, outside {low:.0f}-{high:.0f}"
            problems.append(f"{label}: {span}")
        elif warmest - coolest > TEMPERATURE_DRIFT_C:
            problems.append(f"{label}: drifted from {celsius[0]:.0f} to {celsius[-1]:.0f} °C")
    if problems:
        return Check(name, "warning", "; ".join(problems))
    steady = (f"{label}: {c[0]:.0f} to {c[-1]:.0f} °C" for label, c in by_device.items())
    return Check(name, "ok", "; ".join(steady))


def meter(failures: dict[str, str]) -> Check:
    """Notice a source that was there when the monitor opened and failed within the window."""
    detail = "; ".join(f"{name}: {why}" for name, why in failures.items())
    return Check("meter", "invalid" if failures else "ok", detail)


def synchronised(problems: Iterable[str | None], used: bool) -> Check:
    """Notice a device that had not finished its work when the window's ends were read."""
    problem = next(filter(None, problems), None)
    if problem:
        return Check("synchronised", "invalid", problem)
    return Check("synchronised", "ok" if used else "not applicable")


def of_gpus(
    counter: Reading | None,
    integral: Reading | None,
    samples: pd.DataFrame,
    period_s: float,
    lag_s: float = 0.0,
    seconds: float = 0.0,
    seen: Sequence[Observation] = (),
    warm_range_c: Sequence[float] = (-math.inf, math.inf),
    slowdown_c: dict[str, float | None] | None = None,
) -> list[Check]:
    """Return every check of a window's GPUs.

    `counter` and `integral` are its energy by a counter and by sampled power, which together may
    lag by `lag_s`; `warm_range_c` are the temperatures at which figures compare, `slowdown_c` those
    at which a device slows down.
    """
    used = [share for look in seen for share in look.utilisation.values()]
    agreement = counter_against_integral(
        counter,
        integral,
        sum(used) / len(used) if used else None,
        lag_s / seconds if seconds else math.inf,
    )
    return [
        agreement,
        counter_advances(counter),
        power_changes(samples, agreement.verdict == "ok"),
        sample_gap(samples, period_s),
        throttling(seen),
        other_processes(seen),
        temperature(seen, warm_range_c, slowdown_c or {}),
    ]
