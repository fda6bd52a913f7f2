"""The published T4 rows as measurements of speed and power, and what is fitted to them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pandas as pd
from scipy.optimize import lsq_linear

from edge_eval_lib.economics import fit as fits
from edge_eval_lib.economics import form, published, roofline
from edge_eval_lib.economics.form import QUANTITIES, Calibration, Range, Reference
from edge_eval_lib.economics.roofline import Device, Rates
from edge_eval_lib.economics.shape import ModelShape, stack
from edge_eval_lib.machine.declared import load_hardware
from edge_eval_lib.study import load_study

# Published prompts' lengths are not known: ASSUMED, as the paper prices 500 input tokens.
PROMPT_TOKENS = 500
PROMPT_RANGE = (250, 1000)
OUTPUT_TOKENS = 150
HARDWARE = "t4x2"


@cache
def rows() -> pd.DataFrame:
    """Return the 72 published serving rows in this module's quantities, with size n and bytes b.

    Columns: the variant's, model, concurrency (implied by the figures), output_tokens, nominal,
    bytes_per_weight, and the quantities.
    """
    seen = published.observations()
    rows = seen[[*published.VARIANT, "concurrency"]].copy()
    rows["model"] = rows["family"] + "-" + rows["size"]
    rows["output_tokens"] = seen["output_tokens_per_request"]
    study = load_study("paper_t4", repetitions=1)
    parameters = {m.name: m.parameters for m in study.models}
    rows["nominal"] = form.nominal_billions(rows["model"].map(parameters).to_numpy(float))
    rows["class"] = rows["nominal"].round()
    rows["bytes_per_weight"] = rows["precision"].map(form.BYTES_PER_WEIGHT)
    rows["tpot_s"], rows["ttft_s"] = seen["tpot_ms"] / 1e3, seen["ttft_ms"] / 1e3
    for name in ("throughput_tok_s", "energy_per_token_j", "power_w", "load_s"):
        rows[name] = seen[name]
    return rows


@cache
def shapes() -> dict[str, ModelShape]:
    """Return the shapes of the published models, by name."""
    study = load_study("paper_t4", repetitions=1)
    return {model.name: fits.shape_of(model) for model in study.models}


def shapes_of(rows: pd.DataFrame) -> ModelShape:
    """Stack the shapes of published rows, a number a row."""
    return stack([shapes()[model] for model in rows["model"]])


def fit_forms(rows: pd.DataFrame) -> dict[str, form.Form]:
    """Fit the form to rows, quantity by quantity."""
    size, b = rows["nominal"].to_numpy(float), rows["bytes_per_weight"].to_numpy(float)
    return {q: form.fit(size, b, rows[q].to_numpy(float)) for q in QUANTITIES}


def left_out(rows: pd.DataFrame, by: str = "model") -> pd.DataFrame:
    """Return log(predicted / measured) of every row, each model (or `by`) left out of its fit."""
    errors = [
        np.log(by_others / held[list(QUANTITIES)])
        for _, held in rows.groupby(by)
        for by_others in [predicted(fit_forms(rows.drop(held.index)), held)]
    ]
    return pd.concat(errors).reindex(rows.index)


def half_widths(rows: pd.DataFrame) -> dict[str, float]:
    """Return the 90 % half-widths of log y, by quantity, of errors made on models left out.

    An error counts where another model of the same size class stays in the fit, as one does of
    every published model. A fit that lacks a class is asked something else, and its errors are
    judged apart (`left_out(rows, "class")`): where one model is held out to judge the interval,
    leaving the other of its class out too would count as if it were the same.

    Raises:
        ValueError: No size class has two models.
    """
    errors = left_out(rows)
    counts = rows.groupby("class")["model"].transform("nunique") > 1
    if not counts.any():
        raise ValueError("rows must have two models of a size class at least")
    return {q: form.half_width(errors.loc[counts, q].to_numpy()) for q in QUANTITIES}


def predicted(forms: Mapping[str, form.Form], rows: pd.DataFrame) -> pd.DataFrame:
    """Return what fitted forms say of rows' sizes and precisions."""
    return pd.DataFrame(
        {q: forms[q](rows["nominal"], rows["bytes_per_weight"]) for q in QUANTITIES}
    )


def fit_rates(rows: pd.DataFrame) -> Rates:
    """Fit the roofline to published rows: launch a step and a layer, shares of the peaks (<= 1).

    Four numbers: TPOT tells launches and bandwidth, TTFT the arithmetic, of prompts of
    `PROMPT_TOKENS`.
    """
    shape, precision = shapes_of(rows), rows["precision"].to_numpy()
    device = joined(roofline.device_of(load_hardware(HARDWARE)))
    full = Rates(bandwidth_share=1.0, compute_share=1.0)
    work = (rows["concurrency"].to_numpy(), PROMPT_TOKENS + rows["output_tokens"].to_numpy() / 2)
    reading = roofline.step_s(shape, precision, device, *work, full)
    tpot_s, ttft_s = rows["tpot_s"].to_numpy(float), rows["ttft_s"].to_numpy(float)
    columns = np.column_stack([np.ones(len(rows)), shape.layers, reading])
    solved = lsq_linear(columns / tpot_s[:, None], np.ones(len(rows)), ([0, 0, 1], [1, 1, np.inf]))
    launch_s, layer_s, times = solved.x
    arithmetic = roofline.prompt_s(shape, precision, device, PROMPT_TOKENS, full)
    rest = launch_s + layer_s * shape.layers
    prompt = lsq_linear(
        (arithmetic / ttft_s)[:, None], 1 - np.minimum(rest / ttft_s, 1), ([1.0], [np.inf])
    )
    return Rates(
        bandwidth_share=float(1 / times),
        compute_share=float(1 / prompt.x[0]),
        launch_s=float(launch_s),
        launch_s_a_layer=dict.fromkeys(form.BYTES_PER_WEIGHT, float(layer_s)),
    )


@cache
def calibration(without: str | None = None) -> Calibration:
    """Fit the published rows: two T4, vLLM, 100 prompts at once, 23 to 42 of them in flight.

    Args:
        without: A model to leave out of the fitted forms, to see how far they are off on it.

    Returns:
        The calibration; widths and rates are always those of all models.
    """
    table = rows()
    if without is not None:
        return replace(calibration(), forms=fit_forms(table[table["model"] != without]))
    rates = fit_rates(table)
    inside, by_class = half_widths(table), left_out(table, "class")
    new_size = {q: max(inside[q], form.half_width(by_class[q].to_numpy())) for q in QUANTITIES}
    outside = pd.concat(
        [roofline_errors(table.drop(held.index), held) for _, held in table.groupby("model")]
    )
    sizes = [shape.parameters for shape in shapes().values()]
    device = roofline.device_of(load_hardware(HARDWARE))
    spans = {
        name: (float(table[name].min()), float(table[name].max()))
        for name in ("concurrency", "output_tokens")
    }
    return Calibration(
        basis="fitted to the published figures of two T4 under vLLM",
        range=Range(
            device=device.name,
            cards=published.CARDS,
            precisions=tuple(form.BYTES_PER_WEIGHT),
            parameters=tuple(sizes),
            prompt_tokens=PROMPT_RANGE,
            **spans,
        ),
        rates=rates,
        half_widths=inside,
        new_size_half_widths=new_size,
        outside_half_widths={
            q: max(new_size[q], form.half_width(outside[q].to_numpy())) for q in QUANTITIES
        },
        forms=fit_forms(table),
        reference=Reference(
            device, float(table["concurrency"].median()), PROMPT_TOKENS, OUTPUT_TOKENS
        ),
    )


def roofline_errors(train: pd.DataFrame, held: pd.DataFrame) -> pd.DataFrame:
    """Return log(predicted / measured) of the physical roofline fitted to `train`, of `held`."""
    return np.log(roofline_predicted(train, held) / held[list(QUANTITIES)])


def roofline_predicted(train: pd.DataFrame, held: pd.DataFrame) -> pd.DataFrame:
    """Predict `held` by the physical roofline whose rates are fitted to `train`.

    Times by `fit_rates`; power is an idle part and joules a byte read, at most the cards' limits;
    loading a start and seconds a byte. What is in flight is the mean of `train`, which a user can
    know beforehand: the row's own was computed from its results.
    """
    device = joined(roofline.device_of(load_hardware(HARDWARE)))
    rates, in_flight = fit_rates(train), round(train["concurrency"].mean())

    def figures(rows: pd.DataFrame) -> dict[str, np.ndarray]:
        shape, precision = shapes_of(rows), rows["precision"].to_numpy()
        work = (in_flight, PROMPT_TOKENS, rows["output_tokens"].to_numpy())
        found = roofline.figures(shape, precision, device, *work, rates)
        read = shape.read_bytes(stored(precision)) / found["tpot_s"] / 1e9
        return found | {"read_gb_s": read, "gb": shape.weight_bytes(stored(precision)) / 1e9}

    seen, asked = figures(train), figures(held)
    limit_w: Any = device.power_limit_w
    watts = _nonnegative(seen["read_gb_s"], train["power_w"].to_numpy(float))
    seconds = _nonnegative(seen["gb"], train["load_s"].to_numpy(float))
    asked["power_w"] = np.minimum(watts[0] + watts[1] * asked["read_gb_s"], limit_w)
    asked["load_s"] = seconds[0] + seconds[1] * asked["gb"]
    asked["energy_per_token_j"] = asked["power_w"] / asked["throughput_tok_s"]
    return pd.DataFrame({q: asked[q] for q in QUANTITIES}, index=held.index)


def joined(device: Device) -> Device:
    """Return several cards as one of their summed peaks: the least they can take together."""
    limit_w: Any = device.power_limit_w
    return Device(
        name=device.name,
        memory_gb=device.memory_gb * device.cards,
        bandwidth_gb_s=device.bandwidth_gb_s * device.cards,
        fp16_tflops=device.fp16_tflops * device.cards,
        power_limit_w=limit_w * device.cards,
    )


def _nonnegative(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Fit y = a + b x, a and b not below 0, by relative errors."""
    columns = np.column_stack([np.ones_like(x), x]) / y[:, None]
    return lsq_linear(columns, np.ones_like(y), (0, np.inf)).x


def stored(precision: np.ndarray | pd.Series) -> np.ndarray:
    """Name the formats that vLLM reads."""
    precision = np.asarray(precision)
    return np.where(precision == "int8", "w8a8", np.where(precision == "int4", "w4a16", precision))
