"""Speed and power of serving, predicted with intervals, before anything runs.

A calibration is a fit to measured rows. Inside its range it predicts as it was checked to; outside,
it is carried there by the ratio of the physical roofline, and says `extrapolated`.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import pandas as pd

from edge_eval_lib.bounds import NonNegative, Whole, checked
from edge_eval_lib.economics import cost, form, latency, published_speed, roofline
from edge_eval_lib.economics.roofline import Device
from edge_eval_lib.economics.shape import ModelShape, by_precision

STATED = "the stated roofline of a CPU, calibrated by nothing"
# ASSUMED: INT8 on a CPU with AVX-512 is 2.6 times as fast as on the one that was read off.
STATED_HALF_WIDTHS = dict.fromkeys(form.QUANTITIES, float(np.log(3)))
Work = tuple[Any, Any, Any]  # concurrency, prompt tokens, output tokens


@dataclass(frozen=True)
class Prediction:
    """Predicted figures with 90 % intervals; arrays of one shape, NaN where nothing tells.

    Power is of all cards together, throughput of all requests in flight. Where `extrapolated`, the
    interval was not checked: it is as wide as the physical roofline's own on models left out.
    """

    tpot_s: Any
    ttft_s: Any
    throughput_tok_s: Any
    energy_per_token_j: Any
    power_w: Any
    load_s: Any
    tpot_s_lo: Any
    ttft_s_lo: Any
    throughput_tok_s_lo: Any
    energy_per_token_j_lo: Any
    power_w_lo: Any
    load_s_lo: Any
    tpot_s_hi: Any
    ttft_s_hi: Any
    throughput_tok_s_hi: Any
    energy_per_token_j_hi: Any
    power_w_hi: Any
    load_s_hi: Any
    extrapolated: Any
    basis: str

    def frame(self) -> pd.DataFrame:
        """Return the figures as columns, a row a configuration."""
        columns = {f.name: np.ravel(getattr(self, f.name)) for f in fields(self)[:-1]}
        return pd.DataFrame(columns).assign(basis=self.basis)


@checked
def predict(
    shape: ModelShape,
    precision: Any,
    device: Device,
    concurrency: Whole = 1,
    prompt_tokens: NonNegative = published_speed.PROMPT_TOKENS,
    output_tokens: Whole = 150,
    calibration: form.Calibration | None = None,
) -> Prediction:
    """Predict speed and power of serving: y = fit x roofline / roofline where it was fitted.

    All arguments, and the fields of `shape` and `device`, broadcast as NumPy arrays.

    Args:
        shape: The model's, or several (`shape.stack`).
        precision: `fp16`, `int8` or `int4`, or an array of them.
        device: What serves, or several (`roofline.stack_devices`); its cards share each model.
        concurrency: Requests in flight.
        prompt_tokens: Of a request.
        output_tokens: Of a request.
        calibration: By default `published_speed.calibration()`: two T4, vLLM, 23 to 42 in flight;
            of a CPU, which no GPU tells of, the roofline as it stands, within a factor of 3.

    Returns:
        The figures with their intervals.
    """
    is_stated = calibration is None and isinstance(device.name, str) and device.name == "cpu"
    calibration = calibration or published_speed.calibration()
    work = (concurrency, prompt_tokens, output_tokens)
    inside = calibration.range.holds(shape, precision, device, *work)
    if is_stated:
        values = _stated(shape, precision, device, work)
        calibration = replace(calibration, basis=STATED, outside_half_widths=STATED_HALF_WIDTHS)
    elif calibration.forms is not None:
        values = _carried(calibration, shape, precision, device, work)
    else:
        values = _calibrated(calibration, shape, precision, device, work)
    columns: dict[str, Any] = {}
    known = calibration.range.has_size(shape)
    for quantity, value in values.items():
        within = np.where(
            known,
            np.exp(calibration.half_widths[quantity]),
            np.exp(calibration.new_size_half_widths[quantity]),
        )
        outside = np.exp(calibration.outside_half_widths[quantity])
        factor: Any = np.where(inside, within, outside)
        value, factor, extrapolated = np.broadcast_arrays(value, factor, ~inside)
        columns |= {quantity: value, f"{quantity}_lo": value / factor}
        columns[f"{quantity}_hi"] = value * factor
    shape_of_all = np.broadcast_shapes(*(np.shape(c) for c in columns.values()))
    columns = {name: np.broadcast_to(c, shape_of_all) for name, c in columns.items()}
    extrapolated = np.broadcast_to(extrapolated, shape_of_all)
    return Prediction(**columns, extrapolated=extrapolated, basis=calibration.basis)


def _carried(
    calibration: form.Calibration, shape: ModelShape, precision: Any, device: Device, work: Work
) -> dict[str, Any]:
    """The forms' values, times the roofline's ratio to where they stand."""
    assert calibration.forms is not None
    assert calibration.reference is not None
    at, rates = calibration.reference, calibration.rates
    there = roofline.figures(shape, precision, device, *work, rates)
    asked = (at.concurrency, at.prompt_tokens, at.output_tokens)
    here = roofline.figures(shape, precision, at.device, *asked, rates)
    nominal = form.nominal_billions(shape.parameters)
    b = by_precision(form.BYTES_PER_WEIGHT, precision)
    values = {
        q: fitted(nominal, b) * (there[q] / here[q]) for q, fitted in calibration.forms.items()
    }
    if device.power_limit_w is None:
        values |= {q: np.nan * values[q] for q in ("power_w", "energy_per_token_j")}
    return values


def _stated(shape: ModelShape, precision: Any, device: Device, work: Work) -> dict[str, Any]:
    """The roofline of a CPU as it stands; power its limit's, where one is declared."""
    values = roofline.figures(shape, precision, device, *work, roofline.CPU)
    if device.power_limit_w is None:
        values |= {"power_w": np.nan, "energy_per_token_j": np.nan}
    return values | {"load_s": shape.weight_bytes(precision) / 1e9 / roofline.DISK_GB_S}


def _calibrated(
    calibration: form.Calibration, shape: ModelShape, precision: Any, device: Device, work: Work
) -> dict[str, Any]:
    """The roofline's values times the factors; throughput and energy follow from the others."""
    assert calibration.factors is not None
    concurrency, _, output_tokens = work
    values = roofline.figures(shape, precision, device, *work, calibration.rates)
    found = form.features(shape, precision, *work)
    for quantity in form.QUANTITIES:
        if quantity == "throughput_tok_s":
            request_s = latency.latency_s(values["ttft_s"], values["tpot_s"], output_tokens)
            values[quantity] = np.multiply(concurrency, output_tokens) / request_s
        factor = sum(c * found[name] for name, c in calibration.factors[quantity].items())
        values[quantity] = values[quantity] * np.exp(factor)
    energy_j = values["power_w"] / values["throughput_tok_s"]
    return values | {"energy_per_token_j": energy_j}


def cost_against_speed(
    shape: ModelShape,
    precision: str,
    device: Device,
    usd_per_hour: float,
    concurrency: Any = (1, 2, 4, 8, 16, 32, 64, 128),
    **asked: Any,
) -> pd.DataFrame:
    """Set what a token costs beside how fast each reader gets them, as more are served at once.

    Args:
        shape: The model's.
        precision: Of its weights.
        device: What serves.
        usd_per_hour: Of all its cards.
        concurrency: Requests in flight, a row each.
        **asked: Further arguments of `predict`.

    Returns:
        concurrency, tok_s_per_request (1 / TPOT), throughput_tok_s, usd_per_million_tokens,
        compute_bound (whether arithmetic takes a step longer than reading), extrapolated.
    """
    at_once = np.asarray(concurrency)
    predicted = predict(shape, precision, device, at_once, **asked)
    peaks = roofline.Rates(bandwidth_share=1.0, compute_share=1.0)
    alone_s, batch_s = (
        roofline.step_s(shape, precision, replace(device, cards=1), c, 0, peaks)
        for c in (1, at_once)
    )
    return pd.DataFrame(
        {
            "concurrency": at_once,
            "tok_s_per_request": 1 / predicted.tpot_s,
            "throughput_tok_s": predicted.throughput_tok_s,
            "usd_per_million_tokens": cost.usd_per_million_tokens(
                usd_per_hour, predicted.throughput_tok_s
            ),
            "compute_bound": batch_s > alone_s,
            "extrapolated": predicted.extrapolated,
        }
    )
