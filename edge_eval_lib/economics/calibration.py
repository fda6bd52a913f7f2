"""Calibrate speed and power with a user's own finished runs, and say how far that is off.

log(measured / roofline) is a line in precision, log concurrency, log prompt tokens and log size,
by least squares with a weak pull to 0: what the runs cannot tell is left to the roofline.
Throughput follows from TTFT and TPOT, energy from power and throughput.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pandas as pd

from edge_eval_lib import compressions
from edge_eval_lib.economics import form, latency, roofline, speed
from edge_eval_lib.economics.form import QUANTITIES, Calibration, Range, features
from edge_eval_lib.economics.roofline import Device, Rates
from edge_eval_lib.economics.shape import ModelShape, compressed, stack

VARIANT = ["family", "size", "task", "method", "precision"]
# The pull's strength, as rows of noise 0.1 against a coefficient of about 0.5.
_PULL = 0.04
LEAST_VARIANTS = 3
COLUMNS = {"tpot_s": ("tpot_ms", 1e-3), "ttft_s": ("ttft_ms", 1e-3)} | {
    name: (name, 1.0) for name in QUANTITIES[2:]
}
Shapes = Mapping[tuple[str, str], ModelShape]


def calibrate(serving: pd.DataFrame, shapes: Shapes, device: Device) -> Calibration:
    """Fit a study's own serving rows.

    Args:
        serving: tables/serving.csv of a finished study; rows that were not measured whole, or that
            others disturbed (`validity`), are left out.
        shapes: By (family, size).
        device: What served.

    Returns:
        A calibration for `speed.predict`; 90 % half-widths are of variants left out.

    Raises:
        ValueError: Fewer than three variants are left to fit.
    """
    rows = usable(serving)
    _require_variants(rows)
    errors = left_out(serving, shapes, device, VARIANT)
    widths = {q: form.half_width(errors[q].to_numpy()) for q in QUANTITIES}
    return replace(
        _fit(rows, shapes, device),
        half_widths=widths,
        new_size_half_widths=widths,
        # Twice the checked width: how far off it is elsewhere is not known. ASSUMED.
        outside_half_widths={q: 2 * width for q, width in widths.items()},
    )


def usable(serving: pd.DataFrame) -> pd.DataFrame:
    """Return the rows that can be calibrated with, output_tokens added.

    Rows that are whole, valid (`validity` is ok, or a warning), and of a storage that estimates
    know; `chain` keeps the precision, which becomes what it is estimated as.
    """
    needed = [column for column, _ in COLUMNS.values()]
    needed += ["concurrency", "input_tokens_per_request", "output_tokens_per_request"]
    rows = serving.dropna(subset=[c for c in needed if c in serving])
    lacking = sorted(set(needed) - set(serving))
    if lacking:
        raise ValueError(f"serving must have the columns {', '.join(lacking)}")
    rows = (
        rows[~rows["validity"].astype(str).str.contains("invalid")] if "validity" in rows else rows
    )
    # An answer may end before its tokens are out; the clock runs to the longest of a batch.
    longest = rows.groupby(VARIANT)["output_tokens_per_request"].transform("max")
    return rows.assign(
        output_tokens=longest.round().clip(lower=1),
        chain=rows["precision"],
        precision=[compressions.estimated_as(p) for p in rows["precision"]],
    )


def left_out(serving: pd.DataFrame, shapes: Shapes, device: Device, by: list[str]) -> pd.DataFrame:
    """Return log(predicted / measured) of every usable row, each group of `by` left out.

    Args:
        serving: tables/serving.csv.
        shapes: By (family, size).
        device: What served.
        by: Columns; `["concurrency"]` leaves all rows of a concurrency out at a time.

    Returns:
        A column a quantity; rows whose group is all there is are missing.
    """
    rows = usable(serving)
    _require_variants(rows)
    errors = []
    for _, held in rows.groupby(by):
        train = rows.drop(held.index)
        if train.empty:
            continue
        shape, precision, (concurrency, prompt, output) = _work(held, shapes)
        fitted = _fit(train, shapes, device)
        predicted = speed.predict(shape, precision, device, concurrency, prompt, output, fitted)
        logs = {q: np.log(getattr(predicted, q) / _of(held, q)) for q in QUANTITIES}
        errors.append(pd.DataFrame(logs, index=held.index))
    return pd.concat(errors) if errors else pd.DataFrame(columns=QUANTITIES)


def _fit(rows: pd.DataFrame, shapes: Shapes, device: Device) -> Calibration:
    """Fit rates and factors to rows; the intervals have no width yet."""
    rates = _rates(rows, shapes, device)
    shape, precision, (concurrency, prompt, output) = _work(rows, shapes)
    base = roofline.figures(shape, precision, device, concurrency, prompt, output, rates)
    found = features(shape, precision, concurrency, prompt)
    factors = {
        quantity: _factors(found, np.log(_of(rows, quantity) / base[quantity]))
        for quantity in ("tpot_s", "ttft_s", "power_w", "load_s")
    }
    request_s = latency.latency_s(_of(rows, "ttft_s"), _of(rows, "tpot_s"), output)
    overlap = np.log(_of(rows, "throughput_tok_s") * request_s / (concurrency * output))
    factors |= {"throughput_tok_s": {"one": float(overlap.mean())}, "energy_per_token_j": {}}
    sizes = sorted({int(parameters) for parameters in np.atleast_1d(shape.parameters)})

    def span(column: str) -> tuple[float, float]:
        return float(rows[column].min()), float(rows[column].max())

    return Calibration(
        basis=f"fitted to {len(rows)} own serving rows",
        range=Range(
            device=device.name,
            cards=device.cards,
            precisions=tuple(rows["precision"].unique()),
            parameters=tuple(sizes),
            concurrency=span("concurrency"),
            prompt_tokens=span("input_tokens_per_request"),
            output_tokens=span("output_tokens"),
        ),
        rates=rates,
        half_widths=dict.fromkeys(QUANTITIES, 0.0),
        new_size_half_widths=dict.fromkeys(QUANTITIES, 0.0),
        outside_half_widths=dict.fromkeys(QUANTITIES, 0.0),
        factors=factors,
    )


def _factors(found: Mapping[str, np.ndarray], logs: np.ndarray) -> dict[str, float]:
    """Fit a line by least squares, its slopes pulled to 0 about the rows' own middle."""
    columns = np.column_stack([np.broadcast_to(column, len(logs)) for column in found.values()])
    middle = columns.mean(axis=0)
    middle[0] = 0.0
    centred = columns - middle
    pull = _PULL * np.eye(columns.shape[1])
    pull[0, 0] = 0.0
    solved = np.linalg.solve(centred.T @ centred + pull, centred.T @ logs)
    solved[0] -= solved[1:] @ middle[1:]
    return dict(zip(found, map(float, solved), strict=True))


def _of(rows: pd.DataFrame, quantity: str) -> np.ndarray:
    column, unit = COLUMNS[quantity]
    return rows[column].to_numpy(float) * unit


def _rates(rows: pd.DataFrame, shapes: Shapes, device: Device) -> Rates:
    """Return the stated rates, but for what prompts reach: the median of the rows' own TTFT."""
    is_transformers = bool((rows["engine"] == "transformers").all())
    rates = roofline.rates_of(device.name != "cpu", is_transformers)
    shape, precision, (concurrency, prompt, _) = _work(rows, shapes)
    prompt = prompt * concurrency if rates.is_static else prompt
    before_s = roofline.prompt_s(shape, precision, device, 0, rates)
    computing_s = roofline.prompt_s(shape, precision, device, prompt, rates) - before_s
    times = float(np.median((_of(rows, "ttft_s") - before_s) / computing_s))
    return replace(rates, prompt_share=min(1.0, rates.compute_share / max(times, 1e-3)))


def _work(rows: pd.DataFrame, shapes: Shapes) -> tuple[ModelShape, np.ndarray, list[np.ndarray]]:
    served = zip(rows["family"], rows["size"], rows["chain"], strict=True)
    shape = stack([compressed(shapes[family, size], chain) for family, size, chain in served])
    columns = ("concurrency", "input_tokens_per_request", "output_tokens")
    return shape, rows["precision"].to_numpy(), [rows[c].to_numpy(float) for c in columns]


def _require_variants(rows: pd.DataFrame) -> None:
    if (many := len(rows.groupby(VARIANT))) < LEAST_VARIANTS:
        raise ValueError(
            f"serving must have at least {LEAST_VARIANTS} variants that were measured whole and "
            f"undisturbed; it has {many}"
        )
