"""Results of a power sweep: figures by setting, the knee with its interval, drift, the picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from edge_eval_lib.machine.knobs import KNOBS
from edge_eval_lib.results import figures
from edge_eval_lib.results.drawn import Drawn
from edge_eval_lib.results.readable import bounded, write_table
from edge_eval_lib.uncertainty import mean_interval, paired_bootstrap, paired_ratio_interval

QUANTITIES = ["energy_per_token_j", "tpot_ms", "ttft_ms", "throughput_tok_s", "power_w"]
# What a knee has the least of, by rule: of J/token, and of J/token x TPOT, the energy-delay
# product. The latter falls from one setting to a higher one as long as TPOT gains a larger share
# than J/token loses: it is least at the setting beyond which TPOT gains less than it costs.
RULES = {
    "least J/token": ["energy_per_token_j"],
    "least J/token x TPOT": ["energy_per_token_j", "tpot_ms"],
}
RESAMPLES = 9999
_ASIDE = 0.012  # of the range of settings, between two concurrencies in the picture


def by_setting(runs: pd.DataFrame, confidence: float = 0.95) -> pd.DataFrame:
    """Return the mean and its interval over repetitions, a row a concurrency and setting.

    Controls are left out. `sm_clock_mhz` is the clock that really ran.
    """
    rows = []
    for (concurrency, setting), part in _swept(runs).groupby(["concurrency", "setting"]):
        found = {"concurrency": concurrency, "setting": setting, "repetitions": len(part)}
        for name in [*QUANTITIES, "sm_clock_mhz"]:
            known = part[name].dropna()
            mean, low, high = mean_interval(known, confidence) if len(known) else [np.nan] * 3
            found |= {name: mean, f"{name}_lo": low, f"{name}_hi": high}
        verdicts = part["setting_verdict"].value_counts()
        found["setting_verdict"] = ", ".join(f"{n} x {what}" for what, n in verdicts.items())
        rows.append(found)
    return pd.DataFrame(rows)


def knees(runs: pd.DataFrame, confidence: float = 0.95, seed: int = 0) -> pd.DataFrame:
    """Return the knee by each rule, or the verdict that there is none, a row a concurrency.

    The interval is a percentile bootstrap over whole repetitions (settings of one repetition are
    resampled together), widened to settings that were visited. A knee lies within the range if
    both of its ends take more than it, by the paired interval over repetitions; it has none if one
    end takes more than the other.

    Args:
        runs: A row a window: concurrency, repetition, setting, control and the figures.
        confidence: Of every interval.
        seed: Draws the resamples.

    Returns:
        concurrency, rule, setting with `_lo` and `_hi`, `verdict` (`knee`, `none`, `flat`,
        `open`), `why`, and J/token and TPOT there over those of the highest setting. Without
        energies, or with one repetition, the verdict is `open`.
    """
    rows = []
    for concurrency, part in _swept(runs).groupby("concurrency"):
        tables = {
            name: part.pivot(index="repetition", columns="setting", values=name)
            for name in ("energy_per_token_j", "tpot_ms")
        }
        whole = pd.concat(tables, axis=1).astype(float).dropna().index
        tables = {name: table.loc[whole] for name, table in tables.items()}
        for rule, names in RULES.items():
            found = {"concurrency": concurrency, "rule": rule, "repetitions": len(whole)}
            if len(whole) < 2:
                why = "no interval without two whole repetitions that measured energy"
                rows.append(found | {"verdict": "open", "why": why})
                continue
            values = np.prod([tables[name].to_numpy(dtype=float) for name in names], axis=0)
            settings = tables["tpot_ms"].columns.to_numpy(dtype=float)
            found |= _knee(values, settings, confidence, seed)
            for name, table in tables.items():
                there, highest = table[found["setting"]], table[settings[-1]]
                ratio, low, high = paired_ratio_interval(there, highest, confidence)
                short = name.removesuffix("_j").removesuffix("_ms")
                found |= {f"{short}_ratio": ratio, f"{short}_ratio_lo": low}
                found |= {f"{short}_ratio_hi": high}
            rows.append(found)
    return pd.DataFrame(rows)


def _knee(
    values: np.ndarray, settings: np.ndarray, confidence: float, seed: int
) -> dict[str, object]:
    """Judge where values, a row a repetition and a column a setting, are least."""

    def least(*samples: np.ndarray, axis: int = -1) -> np.ndarray:
        return settings[np.argmin(np.stack([s.mean(axis=axis) for s in samples]), axis=0)]

    drawn = paired_bootstrap(values.T, least, seed, confidence, RESAMPLES).confidence_interval
    at = int(np.argmin(values.mean(axis=0)))
    found: dict[str, object] = {
        "setting": float(settings[at]),
        "setting_lo": float(settings[settings <= drawn.low][-1]),
        "setting_hi": float(settings[settings >= drawn.high][0]),
    }
    ends = {"lowest": 0, "highest": len(settings) - 1}
    above = {
        name: at != end and paired_ratio_interval(values[:, end], values[:, at], confidence)[1] > 1
        for name, end in ends.items()
    }
    if all(above.values()):
        return found | {"verdict": "knee", "why": "both ends of the range take more"}
    towards = [name for name, more in above.items() if not more]
    lower, higher = (values[:, end] for end in ends.values())
    if towards == ["highest"]:
        lower, higher = higher, lower
    if len(towards) == 2 or paired_ratio_interval(higher, lower, confidence)[1] <= 1:
        why = "nothing within the range can be told from its ends"
        return found | {"verdict": "flat", "why": f"no knee within the range: {why}"}
    why = f"it falls towards the {towards[0]} setting, {settings[ends[towards[0]]]:g}"
    return found | {"verdict": "none", "why": f"no knee within the range: {why}"}


def drift(runs: pd.DataFrame, confidence: float = 0.95) -> pd.DataFrame:
    """Return each repetition's first setting at its end over itself at its beginning."""
    rows = []
    for concurrency, part in runs.groupby("concurrency"):
        control = part[part["control"]].set_index("repetition")
        first = part[~part["control"]].merge(
            control["setting"], on=["repetition", "setting"], how="inner"
        )
        first = first.set_index("repetition")
        for name in ("energy_per_token_j", "tpot_ms", "power_w"):
            pairs = pd.concat([control[name], first[name]], axis=1).astype(float).dropna()
            if len(pairs):
                ratio, low, high = paired_ratio_interval(
                    pairs.iloc[:, 0], pairs.iloc[:, 1], confidence
                )
                rows.append(
                    {"concurrency": concurrency, "quantity": name, "repetitions": len(pairs)}
                    | {"ratio": ratio, "ratio_lo": low, "ratio_hi": high}
                )
    columns = ["concurrency", "quantity", "repetitions", "ratio", "ratio_lo", "ratio_hi"]
    return pd.DataFrame(rows, columns=columns)


def sentences(found: pd.DataFrame, knob: str) -> list[str]:
    """Return what a sweep says, a sentence a concurrency and rule."""
    unit = KNOBS[knob].unit
    said = []
    for knee in found.to_dict("records"):
        begin = f"At concurrency {knee['concurrency']}, {knee['rule']}: "
        if knee["verdict"] == "open":
            said.append(f"{begin}open, {knee['why']}.")
            continue
        where = f"{knee['setting']:g} {unit} [{knee['setting_lo']:g}, {knee['setting_hi']:g}]"
        saved = (
            f"J/token {bounded(knee, 'energy_per_token_ratio', 3)} times and TPOT "
            f"{bounded(knee, 'tpot_ratio', 3)} times those at the highest setting"
        )
        verdict = "a knee" if knee["verdict"] == "knee" else knee["why"]
        said.append(f"{begin}{verdict}; least at {where}, where it takes {saved}.")
    return said


def verdicts(found: pd.DataFrame) -> list[dict[str, object]]:
    """Return the knees as a run records them, without what they take."""
    kept = ["concurrency", "rule", "verdict", "setting", "setting_lo", "setting_hi", "why"]
    plain = found.reindex(columns=kept).astype(object)
    return plain.where(plain.notna(), None).to_dict("records")


def draw(runs: pd.DataFrame, knob: str, stamp: str = "", path: Path | None = None) -> Drawn:
    """Draw J/token and TPOT over the setting, with intervals, and where each rule's knee lies.

    A line is a knee of least J/token, dashes one of least J/token x TPOT, a band its interval.
    """
    table, found = by_setting(runs), knees(runs)
    unit, what = KNOBS[knob].unit, KNOBS[knob].what
    headings = {"energy_per_token_j": "energy [J/token]", "tpot_ms": "time [ms/token]"}
    legend = {}
    with plt.rc_context(figures.STYLE):
        figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), sharex=True, layout="constrained")
    for axis, (name, label) in zip(axes, headings.items(), strict=True):
        aside = _ASIDE * np.ptp(table["setting"])  # or bars of one setting hide each other
        for place, (concurrency, part) in enumerate(table.groupby("concurrency")):
            colour, marker = figures.COLOURS[place], figures.MARKERS[place]
            at = part["setting"] + aside * (place - (table["concurrency"].nunique() - 1) / 2)
            legend[f"{concurrency} at a time"] = (colour, marker)
            bars = part[[f"{name}_lo", f"{name}_hi"]].sub(part[name], axis=0).abs().fillna(0)
            axis.errorbar(at, part[name], yerr=bars.to_numpy().T, marker=marker, color=colour)
            own = found[(found["concurrency"] == concurrency) & (found["verdict"] == "knee")]
            for knee in own.itertuples():
                dashed = "-" if knee.rule == "least J/token" else "--"
                axis.axvline(knee.setting, color=colour, ls=dashed, lw=1)
                axis.axvspan(knee.setting_lo, knee.setting_hi, color=colour, alpha=0.1)
        axis.set(ylabel=label, xlabel=f"{what} [{unit}]")
        highest = table[[name, f"{name}_hi"]].max()  # a bar may leave the picture, a mean not
        axis.set_ylim(0, 1.1 * min(highest.max(), 3 * highest[name]))
    reading = "upright: the knee of least J/token; dashed: of least J/token × TPOT; bands: its 95 %"
    figures.headline(figure, f"What does {what} cost, and save?", reading, legend)
    return figures.finish(figure, path, stamp, alt=" ".join(sentences(found, knob)))


def stamp_of(runs: pd.DataFrame) -> str:
    """Return model, host and energy source, for the foot of a figure."""
    parts: Sequence[str] = [
        ", ".join(sorted(runs[name].dropna().unique())) or "none"
        for name in ("model", "host", "energy_source")
    ]
    return f"{parts[0]} · {parts[1]} · energy: {parts[2]}"


def write_results(runs: pd.DataFrame, directory: Path) -> None:
    """Write tables/power_*.csv and figures/power_sweep.* below a directory."""
    tables = {
        "sweep_runs": runs,
        "sweep": by_setting(runs),
        "knee": knees(runs),
        "drift": drift(runs),
    }
    for name, table in tables.items():
        write_table(table, directory / "tables" / f"power_{name}.csv")
    draw(runs, str(runs["knob"].iloc[0]), stamp_of(runs), directory / "figures" / "power_sweep")


def _swept(runs: pd.DataFrame) -> pd.DataFrame:
    return runs[~runs["control"]]
