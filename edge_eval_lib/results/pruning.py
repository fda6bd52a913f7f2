"""Pruning, distillation and quantisation set side by side: losses, their sum, speed-ups, students.

A chain of compressions is taken apart by its words: `depth20-distil-int4` joins
`depth20-distil-fp16` and `int4`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from edge_eval_lib import compressions
from edge_eval_lib.economics import calibration, fit, roofline, speed
from edge_eval_lib.economics.prices import Prices
from edge_eval_lib.economics.shape import compressed
from edge_eval_lib.machine.declared import load_hardware
from edge_eval_lib.results import tables
from edge_eval_lib.results.arms import SEED, arms_table
from edge_eval_lib.results.columns import VARIANT
from edge_eval_lib.results.means import per_prompt
from edge_eval_lib.results.observations import Results
from edge_eval_lib.results.savings import WHOLE, named, pairs_of_runs
from edge_eval_lib.study import Study
from edge_eval_lib.study.stanzas import size_in_words
from edge_eval_lib.uncertainty import mean_interval, paired_bootstrap, paired_ratio_interval

HIGHER_IS_BETTER = {"score": True, "gold_nll": False}
OVER_RUNS = {
    "energy_per_request_j": "energy_change_pct",
    "throughput_tok_s": "throughput_change_pct",
    "memory_gb": "memory_change_pct",
}
_ENDS = ("", "_lo", "_hi")
# What each table has, also where no chain stands beside FP16.
_SAVED = [*VARIANT, "paired_runs", *(f"{c}{end}" for c in OVER_RUNS.values() for end in _ENDS)]
_JOINT = [*VARIANT, "figure", "prompts", "first", "second", "first_loss", "second_loss",
          "joint_loss", *(f"beyond_sum{end}" for end in _ENDS), "verdict"]  # fmt: skip
_SPEED_UPS = [*VARIANT, "concurrency", "paired_runs", *(f"speed_up{end}" for end in _ENDS),
              "predicted", "agrees", "prediction_basis"]  # fmt: skip


def pruned_arms(results: Results, prices: Prices) -> pd.DataFrame:
    """Set what a chain saves beside what it loses: `arms_table`, and a few columns more.

    Returns:
        A row an arm with `score`, `gold_nll` and `gold_nll_loss`, which is the difference to FP16
        (intervals over prompts), `disk_gb` and `parameters`, and the intervals over runs of energy
        and throughput, where there are several.
    """
    table = arms_table(results, prices).set_index(VARIANT)
    for figure in HIGHER_IS_BETTER:
        prompts = prompts_of(results, figure)
        for arm in table.index.intersection(prompts.columns):
            bounds = mean_interval(prompts[arm].dropna())
            table.loc[arm, [figure, f"{figure}_lo", f"{figure}_hi"]] = bounds
            whole = (*arm[:-1], WHOLE)
            if figure == "gold_nll" and whole in prompts and arm != whole:
                bounds = mean_interval((prompts[arm] - prompts[whole]).dropna())
                table.loc[arm, [f"{figure}_loss{end}" for end in ("", "_lo", "_hi")]] = bounds
    for arm, runs in results.headline.groupby(VARIANT, sort=False):
        for figure in ("energy_per_request_j", "throughput_tok_s"):
            bounds = mean_interval(runs[figure].astype(float))
            table.loc[arm, [f"{figure}_lo", f"{figure}_hi"]] = bounds[1:]
    table["disk_gb"] = table.index.map(_disk_gb(results))
    shapes = {model.name: fit.shape_of(model) for model in results.study.models}
    table["parameters"] = [
        compressed(shapes[f"{family}-{size}"], precision).parameters
        for family, size, _, _, precision in table.index
    ]
    return table.reset_index()


def saved(results: Results) -> pd.DataFrame:
    """What each chain changes of energy, throughput and memory against FP16, in per cent.

    Runs are paired by repetition; with one pair there is no interval, and no conclusion.
    """
    rows = []
    for arm, own, whole in pairs_of_runs(results.headline):
        row: dict[str, Any] = arm | {"paired_runs": len(own)}
        for figure, name in OVER_RUNS.items():
            ratio = paired_ratio_interval(own[figure].astype(float), whole[figure].astype(float))
            row |= named(name, [100 * (value - 1) for value in ratio])
        rows.append(row)
    return pd.DataFrame(rows, columns=_SAVED)


# --- is the joint loss the sum of the single ones? ----------------------------------------------


def parts(precision: str) -> tuple[str, str] | None:
    """The two chains that one joins: what changes the model, and how it is then stored.

    None for a chain that does only one of both.
    """
    stored = compressions.storage(precision)
    changes = [word for word in precision.split("-") if word != stored]
    if not changes or stored == WHOLE:
        return None
    return "-".join([*changes, WHOLE]), stored


def joint_losses(results: Results) -> pd.DataFrame:
    """Compare the loss of each joint chain with the sum of its parts' losses, prompt by prompt.

    beyond = (joint - whole) - (first - whole) - (second - whole), a loss being a lower score or a
    higher negative log-likelihood of the gold answer; the interval is a paired bootstrap's over
    prompts (percentiles).

    Returns:
        A row a joint chain and figure: the three losses, `beyond_sum` with its interval, and a
        verdict, `the sum` where the interval holds 0.
    """
    rows = []
    for figure, higher in HIGHER_IS_BETTER.items():
        prompts = prompts_of(results, figure)
        for arm in prompts:
            joined = parts(arm[-1])
            keys = [(*arm[:-1], p) for p in (WHOLE, *(joined or ()))]
            if joined is None or not set(keys) <= set(prompts.columns):
                continue
            values = prompts[[*keys, arm]].dropna().to_numpy(float)
            losses = (values[:, 1:] - values[:, :1]) * (-1 if higher else 1)
            beyond = losses[:, 2] - losses[:, 0] - losses[:, 1]
            low, high = _bootstrap(beyond)
            row = dict(zip(VARIANT, arm, strict=True)) | {"figure": figure, "prompts": len(values)}
            row |= {"first": joined[0], "second": joined[1]}
            names = ("first_loss", "second_loss", "joint_loss")
            row |= dict(zip(names, losses.mean(axis=0), strict=True))
            row |= named("beyond_sum", (float(beyond.mean()), low, high))
            row["verdict"] = "more" if low > 0 else "less" if high < 0 else "the sum"
            rows.append(row)
    return pd.DataFrame(rows, columns=_JOINT)


def _bootstrap(values: np.ndarray) -> tuple[float, float]:
    if len(values) < 2 or np.ptp(values) == 0:
        return float(values.mean()), float(values.mean())
    interval = paired_bootstrap((values,), np.mean, SEED).confidence_interval
    return float(interval.low), float(interval.high)


# --- does depth's speed-up agree with the planner's? -------------------------------------------


def speed_ups(results: Results) -> pd.DataFrame:
    """Set the speed-up of every unquantised chain beside what the planner predicts of its shape.

    measured = TPOT of FP16 / TPOT of the chain, over runs paired by repetition (Fieller);
    predicted = the same ratio by `economics.speed`, calibrated with the unpruned variants alone.

    Returns:
        A row a chain and concurrency: `paired_runs`, `speed_up` with its interval, `predicted`,
        `agrees` (empty without an interval), and on what the prediction stands.
    """
    study = results.study
    device = roofline.device_of(load_hardware(study.hardware))
    shapes = {(m.family, m.size): fit.shape_of(m) for m in study.models}
    own, basis = _calibrated(results, shapes, device)
    rows = []
    for arm, runs, whole in pairs_of_runs(results.closed_loop):
        if compressions.storage(arm["precision"]) != WHOLE:
            continue
        shape = shapes[arm["family"], arm["size"]]
        concurrency, prompt, output = (
            float(whole[column].astype(float).mean())
            for column in ("concurrency", "input_tokens_per_request", "output_tokens_per_request")
        )
        times = [
            speed.predict(model, WHOLE, device, concurrency, prompt, output, calibration=own).tpot_s
            for model in (shape, compressed(shape, arm["precision"]))
        ]
        ratio = paired_ratio_interval(whole["tpot_ms"].astype(float), runs["tpot_ms"].astype(float))
        row = arm | {"concurrency": int(concurrency), "paired_runs": len(runs)}
        row |= named("speed_up", ratio) | {"predicted": float(times[0] / times[1])}
        known = np.isfinite(ratio[1])
        row["agrees"] = bool(ratio[1] <= row["predicted"] <= ratio[2]) if known else None
        rows.append(row | {"prediction_basis": basis})
    return pd.DataFrame(rows, columns=_SPEED_UPS)


def _calibrated(results: Results, shapes: Mapping, device: roofline.Device) -> tuple[Any, str]:
    rows = tables.serving_table(results.closed_loop)
    unpruned = rows[[not compressions.changes_shape(p) for p in rows["precision"]]]
    try:
        own = calibration.calibrate(unpruned, shapes, device)
    except ValueError as error:
        return None, f"{speed.STATED} ({error})"
    return own, own.basis


# --- a student is a second size ----------------------------------------------------------------


def students(variants: pd.DataFrame, study: Study) -> pd.DataFrame:
    """Give pruned variants the size that they have, so that a frontier has a row a student.

    Their precision becomes how they are stored: `depth20-distil-int4` of 135M is `int4` of 113M.
    """
    shapes = {}
    for model in study.models:
        try:
            shapes[model.family, model.size] = fit.shape_of(model)
        except ValueError:  # a shape that is not known here keeps its size
            continue
    table = variants.copy()
    for at, row in variants.iterrows():
        shape = shapes.get((row["family"], row["size"]))
        if shape is not None and compressions.changes_shape(row["precision"]):
            own = compressed(shape, row["precision"]).parameters
            table.loc[at, ["size", "precision"]] = (
                size_in_words(own),
                compressions.storage(row["precision"]),
            )
    return table


def prompts_of(results: Results, figure: str) -> pd.DataFrame:
    """A figure by prompt, a column a variant."""
    return per_prompt(results.answers)[figure].unstack(VARIANT)


def _disk_gb(results: Results) -> dict[tuple, float]:
    sizes = {}
    for run in results.runs[results.runs["stage"] == "compress"].to_dict("records"):
        for row in run["artefacts"]:
            key = (*(run[c] for c in VARIANT[:-1]), row["precision"])
            sizes[key] = row["disk_mb"] / 1e3
    return sizes
