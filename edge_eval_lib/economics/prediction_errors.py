"""How far every prediction is off what was measured: one table for tables/prediction_errors.csv."""

from __future__ import annotations

import contextlib
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd

from edge_eval_lib.economics import calibration, fit, form_choice, ladder, latency, memory, roofline
from edge_eval_lib.economics.form import QUANTITIES
from edge_eval_lib.economics.shape import ModelShape, shape_from_config
from edge_eval_lib.machine.declared import load_hardware
from edge_eval_lib.paths import project_root
from edge_eval_lib.study import Study, read_yaml

COLUMNS = ["quantity", "predictor", "direction", "rows", "mean_ape_pct", "worst_ape_pct"]
COLUMNS += ["worst_row", "coverage_pct", "target_pct", "within_target_pct"]
MEMORY = "memory model"
# How far a prediction of a study's measured peaks may be off, %, and still serve to plan with.
SERVING_TARGET_PCT, TRAINING_TARGET_PCT = 5.0, 9.0
H100 = "published, H100 under vLLM"
# Weights and activations in GiB on each of so many cards
# (github.com/llm-d-incubation/llm-d-planner, e50305a;
# github.com/llm-d/llm-d-benchmark, config_explorer/empirical-vllm-memory-results.md).
H100_WEIGHTS_GIB = {
    ("meta-llama/Llama-3.1-8B-Instruct", 1): 14.99,
    ("Qwen/Qwen3-0.6B", 1): 1.12,
    ("Qwen/Qwen3-32B", 1): 61.03,
    ("Qwen/Qwen3-32B", 2): 30.59,
    ("mistralai/Mistral-Small-3.1-24B-Instruct-2503", 1): 44.76,
}
H100_ACTIVATIONS_GIB = {"meta-llama/Llama-3.1-8B-Instruct": 4.76, "Qwen/Qwen3-0.6B": 5.56}
H100_ACTIVATIONS_GIB["Qwen/Qwen3-32B"] = 5.64
H100_REQUESTS = 1024  # vLLM's max_num_seqs there
# Mistral's KV cache: bytes a token, and the tokens that its GiB hold.
H100_KV = ("mistralai/Mistral-Small-3.1-24B-Instruct-2503", 163_840, 28.20, 184_832)
# A request at a time, Llama-3.1-8B in FP16, measured; by whom and which engine is not at hand.
H100_TPOT_S = 7.32e-3


def prediction_errors(study: Study | None = None) -> pd.DataFrame:
    """Judge every prediction against what was measured.

    Args:
        study: One whose runs are finished: its own memory and live calibration are judged too.

    Returns:
        A row a quantity, predictor and direction: rows judged, mean_ape_pct and worst_ape_pct (%
        of the measured), worst_row; coverage_pct of 90 % intervals where there are any; and of a
        study's own memory target_pct and within_target_pct, the share of rows that are within it.
    """
    parts = [ladder.ladder(), h100_memory(), h100_speed()]
    if study is not None:
        parts += [own_memory(study), own_speed(study)]
    return pd.concat(parts, ignore_index=True).reindex(columns=COLUMNS)


def h100_memory() -> pd.DataFrame:
    """Judge the memory model against the published H100 figures."""
    kv_model, kv_bytes, kv_gib, kv_tokens = H100_KV
    per_token = public_shape(kv_model).kv_values_per_token * 2.0
    weights = {
        f"{model} on {cards}": (
            memory.MemoryEstimate(public_shape(model).weight_bytes("fp16") / memory.GIB)
            .on_cards(cards)
            .weights_gb,
            gib,
        )
        for (model, cards), gib in H100_WEIGHTS_GIB.items()
    }
    activations = {
        model: (
            memory.VLLM_SAMPLER_BYTES * public_shape(model).vocabulary_size * H100_REQUESTS
            / memory.GIB,
            gib,
        )
        for model, gib in H100_ACTIVATIONS_GIB.items()
    }  # fmt: skip
    rows: list[tuple[str, dict[str, tuple[float, float]]]] = [
        ("weights_gb", weights),
        ("kv_cache_bytes_per_token", {kv_model: (per_token, kv_bytes)}),
        ("kv_cache_tokens", {kv_model: (kv_gib * memory.GIB / per_token, kv_tokens)}),
        ("activations_gb (read off the first model)", activations),
    ]
    return pd.DataFrame([_row(name, MEMORY, H100, figures) for name, figures in rows])


@cache
def public_shape(location: str) -> ModelShape:
    """Return a public model's shape from params/shapes.yaml."""
    return shape_from_config(read_yaml(project_root() / "params" / "shapes.yaml")[location])


def h100_speed() -> pd.DataFrame:
    """Judge the published T4 figures, carried to an H100, on the one time that is published."""
    from edge_eval_lib.economics import speed

    model = "meta-llama/Llama-3.1-8B-Instruct"
    device = roofline.device_of(load_hardware("h100"))
    predicted = speed.predict(public_shape(model), "fp16", device, 1)
    figures = {f"{model}, fp16, 1 request": (float(predicted.tpot_s), H100_TPOT_S)}
    row = _row("tpot_s", ladder.SHIPPED, "fitted on two T4, carried to an H100", figures)
    within = predicted.tpot_s_lo <= H100_TPOT_S <= predicted.tpot_s_hi
    return pd.DataFrame([row | {"coverage_pct": 100.0 * bool(within)}])


def own_memory(study: Study) -> pd.DataFrame:
    """Judge the memory model against a finished study's measured peaks."""
    tables, judged = study.directory / "tables", []
    serving, adaptation = _read(tables / "serving.csv"), _read(tables / "adaptation.csv")
    if serving is not None:
        figures = {
            f"{ladder.variant_name(row)} at {row['concurrency']:g}": (
                fit.served_need(study, row).total_gb,
                row["memory_gb"],
            )
            for _, row in serving.dropna(subset=["memory_gb"]).iterrows()
        }
        if figures:
            judged.append(_peaks("serving memory_gb", MEMORY, figures, SERVING_TARGET_PCT))
            twins = _memory_twins(serving)
            if twins:
                judged.append(_peaks("serving memory_gb", ladder.NOISE, twins, SERVING_TARGET_PCT))
    if adaptation is None:
        return pd.DataFrame(judged, columns=COLUMNS)
    for method in ("lora", "qlora"):
        column = f"{method}_train_peak_memory_gb"  # what loading held beside it is chance
        figures = {
            f"{row['family']}-{row['size']}_{row['task']}_{method}": (
                fit.trained_need(study, row, method).total_gb,
                row[column],
            )
            for _, row in adaptation.iterrows()
            if pd.notna(row.get(column))  # tables of an earlier version have no such column
        }
        if figures:
            judged.append(
                _peaks(f"{method} training memory_gb", MEMORY, figures, TRAINING_TARGET_PCT)
            )
    return pd.DataFrame(judged, columns=COLUMNS)


def _memory_twins(serving: pd.DataFrame) -> dict[str, tuple[float, float]]:
    """Return of each INT4 row the peak of its twin, whose weights have the same shape, and its own.

    What these differ by is the measurement's: two processes that did alike.
    """
    at = ["family", "size", "task", "precision", "concurrency"]
    rows = serving[serving["precision"].str.endswith("int4")].dropna(subset=["memory_gb"])
    pairs = rows.merge(rows, on=at, suffixes=("", "_twin"))
    pairs = pairs[pairs["method"] != pairs["method_twin"]]
    return {
        f"{ladder.variant_name(row)} at {row['concurrency']:g}": (
            row["memory_gb_twin"],
            row["memory_gb"],
        )
        for _, row in pairs.iterrows()
    }


def own_speed(study: Study) -> pd.DataFrame:
    """Judge a live calibration on variants and concurrencies that were left out of it."""
    serving = _read(study.directory / "tables" / "serving.csv")
    if serving is None:
        return pd.DataFrame(columns=COLUMNS)
    shapes = {(m.family, m.size): fit.shape_of(m) for m in study.models}
    device = roofline.device_of(load_hardware(study.hardware))
    rows = calibration.usable(serving)
    measured = pd.DataFrame(
        {q: rows[column] * unit for q, (column, unit) in calibration.COLUMNS.items()}
    )
    judged: list[dict[str, object]] = []
    for name, by in (
        ("each variant left out", calibration.VARIANT),
        ("each concurrency left out", ["concurrency"]),
    ):
        try:
            errors = calibration.left_out(serving, shapes, device, by)
        except ValueError:  # too few rows to fit
            continue
        if errors.empty:
            continue
        seen = rows.loc[errors.index].assign(**measured.loc[errors.index])
        predicted = np.exp(errors) * seen[list(QUANTITIES)]
        output = seen["output_tokens"]
        predicted["latency_s"] = latency.latency_s(predicted["ttft_s"], predicted["tpot_s"], output)
        seen["latency_s"] = latency.latency_s(seen["ttft_s"], seen["tpot_s"], output)
        covered = None
        if by == calibration.VARIANT:
            with contextlib.suppress(ValueError):  # one variant less is too few for an interval
                covered = _covered(serving, shapes, device, errors)
        judged += ladder.judge(predicted, seen, "live calibration", name, covered)
    return pd.DataFrame(judged, columns=COLUMNS)


def markdown(errors: pd.DataFrame | None = None) -> str:
    """Write the errors as docs/predictions.md shows them: mean (worst), % of the measured."""
    table = prediction_errors() if errors is None else errors
    cells = table["mean_ape_pct"].map("{:.1f}".format) + " ("
    cells += table["worst_ape_pct"].map("{:.0f}".format) + ")"
    covered = table["coverage_pct"].map(lambda share: "" if pd.isna(share) else f"{share:.0f} %")
    speed_rows = table["quantity"].isin(QUANTITIES)
    both = table["direction"].str.contains("judged on")
    blocks = []
    for direction in table.loc[both, "direction"].unique():
        at = table["direction"] == direction
        wide = (
            table[at]
            .assign(cell=cells[at])
            .pivot(index="predictor", columns="quantity", values="cell")
        )
        order = list(dict.fromkeys(table.loc[at, "predictor"]))
        wide = wide.reindex(index=order, columns=list(QUANTITIES)).reset_index()
        blocks.append(wide.rename(columns={"predictor": direction}).to_markdown(index=False))
    rest = table[~both].assign(error=cells[~both], covered=covered[~both])
    shown = ["predictor", "direction", "quantity", "rows", "error", "covered"]
    for is_speed in (True, False):
        blocks.append(rest.loc[speed_rows[~both] == is_speed, shown].to_markdown(index=False))
    return "\n\n".join(blocks)


def _covered(serving, shapes, device, errors: pd.DataFrame) -> pd.DataFrame:
    """Whether each row lies in the interval of a calibration that its variant was left out of."""
    covered = []
    for _, held in serving.loc[errors.index].groupby(calibration.VARIANT):
        widths = calibration.calibrate(serving.drop(held.index), shapes, device).half_widths
        covered.append(errors.loc[held.index].abs() <= pd.Series(widths))
    return pd.concat(covered).reindex(errors.index)


def _row(
    quantity: str, predictor: str, direction: str, figures: dict[str, tuple[float, float]]
) -> dict[str, object]:
    errors = {name: 100 * abs(p / m - 1) for name, (p, m) in figures.items()}
    worst = max(errors, key=lambda name: errors[name])
    return {
        "quantity": quantity,
        "predictor": predictor,
        "direction": direction,
        "rows": len(errors),
        "mean_ape_pct": float(np.mean(list(errors.values()))),
        "worst_ape_pct": errors[worst],
        "worst_row": worst,
        "coverage_pct": None,
    }


def _peaks(
    quantity: str, predictor: str, figures: dict[str, tuple[float, float]], target_pct: float
) -> dict[str, object]:
    """A row of a study's own peaks, with the share of them that are predicted within a target."""
    within = [100 * abs(p / m - 1) <= target_pct for p, m in figures.values()]
    row = _row(quantity, predictor, "measured peaks", figures)
    return row | {"target_pct": target_pct, "within_target_pct": 100 * float(np.mean(within))}


def _read(path: Path) -> pd.DataFrame | None:
    return pd.read_csv(path) if path.is_file() else None


if __name__ == "__main__":
    print(form_choice.markdown(), markdown(), sep="\n\n")
