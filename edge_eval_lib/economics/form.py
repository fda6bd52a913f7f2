"""The fitted form of a figure in a model's size and precision, and the interval around it.

    y = k b^beta (n + n0)^delta

b is bytes a weight, n the nominal size in billions of parameters (the published classes: 1, 3 and
7), and n0 >= 0 what a model of no size would still cost. Four parameters a figure; k, beta and
delta by least squares of log y, n0 on a grid. How it was chosen: docs/predictions.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from edge_eval_lib.bounds import OpenShare, Positive, PositiveSequence, checked
from edge_eval_lib.economics.roofline import Device, Rates
from edge_eval_lib.economics.shape import FORMATS, ModelShape

# Of the published models, parameters and nominal size, which speed goes by: LLaMA-1B and Qwen-1.5B
# are as fast as each other, LLaMA-8B and Qwen-7B too. Between and beyond them it is interpolated.
_PARAMETERS = np.log([1.23581e9, 1.54372e9, 3.08593e9, 3.21275e9, 7.61561e9, 8.03027e9])
_NOMINAL = np.log([1.0, 1.0, 3.0, 3.0, 7.0, 7.0])
QUANTITIES = ("tpot_s", "ttft_s", "throughput_tok_s", "energy_per_token_j", "power_w", "load_s")
OFFSETS = np.concatenate([[0.0], np.geomspace(0.01, 10.0, 60)])
# Weak pull of n0 towards 0, so that it stays there where the sizes at hand cannot tell it.
PULL = 0.03

BYTES_PER_WEIGHT = {name: FORMATS[name].bytes_per_weight for name in ("fp16", "int8")} | {
    "int4": FORMATS["w4a16"].bytes_per_weight
}


@checked
def nominal_billions(parameters: Positive):
    """Return the nominal size of a model, in billions, as the published study counts it.

    Log-linear between the published models; in proportion beyond them.
    """
    logs = np.log(np.asarray(parameters, dtype=float))
    beyond = np.minimum(logs - _PARAMETERS[0], 0) + np.maximum(logs - _PARAMETERS[-1], 0)
    return np.exp(np.interp(logs, _PARAMETERS, _NOMINAL) + beyond)


@dataclass(frozen=True)
class Form:
    """A fitted form: y = exp(log_k) b^bytes_exponent (n + offset)^size_exponent."""

    log_k: float
    bytes_exponent: float
    size_exponent: float
    offset: float

    def __call__(self, nominal, bytes_per_weight):
        """Compute y of sizes n and bytes a weight b; numbers or arrays."""
        return np.exp(
            self.log_k
            + self.bytes_exponent * np.log(bytes_per_weight)
            + self.size_exponent * np.log(np.add(nominal, self.offset))
        )


@checked
def fit(
    nominal: PositiveSequence, bytes_per_weight: PositiveSequence, values: PositiveSequence
) -> Form:
    """Fit the form to rows of measurements: size n, bytes a weight b, value y.

    Raises:
        ValueError: There are fewer than two sizes or precisions, or each size has one of its own:
            an exponent has nothing to go by.
    """
    for name, column in (("nominal", nominal), ("bytes_per_weight", bytes_per_weight)):
        if len(np.unique(column)) < 2:
            raise ValueError(f"{name} must have two different values at least")
    logs, log_b = np.log(values), np.log(bytes_per_weight)
    # A least-squares fit for each offset, about the rows' middle.
    log_n = np.log(np.asarray(nominal) + OFFSETS[:, None])
    columns = np.stack(np.broadcast_arrays(log_b, log_n), axis=-1)
    middle = columns.mean(axis=1, keepdims=True)
    centred, rises = columns - middle, (logs - logs.mean())[:, None]
    turned = centred.transpose(0, 2, 1)
    try:
        slopes = np.linalg.solve(turned @ centred, turned @ rises)
    except np.linalg.LinAlgError:
        raise ValueError("nominal and bytes_per_weight must vary apart from each other") from None
    losses = ((centred @ slopes - rises) ** 2).sum(axis=(1, 2)) + (PULL * OFFSETS) ** 2
    best = int(losses.argmin())
    of_bytes, of_size = map(float, slopes[best, :, 0])
    log_k = float(logs.mean() - middle[best, 0] @ slopes[best, :, 0])
    return Form(log_k, of_bytes, of_size, float(OFFSETS[best]))


@checked
def half_width(log_errors: np.ndarray, confidence: OpenShare[float] = 0.9) -> float:
    """Return the conformal half-width of an interval of log y: the k-th smallest error's size.

    k = ceil((n + 1) x confidence) of n errors made on rows that were left out of their fit
    (split conformal prediction, arXiv 2107.07511); the largest where n is too few.
    """
    sizes = np.sort(np.abs(log_errors))
    k = int(np.ceil((len(sizes) + 1) * confidence))
    return float(sizes[min(k, len(sizes)) - 1])


@dataclass(frozen=True)
class Range:
    """What a calibration was fitted on: device and precisions; least and most of the others."""

    device: str
    cards: int
    precisions: tuple[str, ...]
    parameters: tuple[float, ...]  # of every fitted model
    concurrency: tuple[float, float]
    prompt_tokens: tuple[float, float]
    output_tokens: tuple[float, float]

    def holds(self, shape, precision, device, concurrency, prompt_tokens, output_tokens):
        """Return whether a configuration lies inside; arrays where arguments are."""
        inside = (np.asarray(device.name) == self.device) & (device.cards == np.asarray(self.cards))
        inside = inside & np.isin(precision, self.precisions)
        for value, (least, most) in (
            (shape.parameters, (min(self.parameters), max(self.parameters))),
            (concurrency, self.concurrency),
            (prompt_tokens, self.prompt_tokens),
            (output_tokens, self.output_tokens),
        ):
            inside = inside & (np.asarray(value) >= least) & (np.asarray(value) <= most)
        return inside

    def has_size(self, shape: ModelShape):
        """Return whether a fitted model had a shape's nominal size; an array where the shape is."""
        known = np.round(nominal_billions(np.array(self.parameters)), 3)
        return np.isin(np.round(nominal_billions(shape.parameters), 3), known)


@dataclass(frozen=True)
class Reference:
    """Where a fitted form stands: the roofline's ratio to it carries the form elsewhere."""

    device: Device
    concurrency: float
    prompt_tokens: float
    output_tokens: float


@dataclass(frozen=True)
class Calibration:
    """A fit to measured rows.

    Attributes:
        basis: What it was fitted to, in a phrase.
        range: Outside of it a prediction is extrapolated.
        rates: Of the roofline that carries it.
        half_widths: Of the 90 % interval of log y, by quantity.
        new_size_half_widths: The same inside the range, of a size that no fitted model had.
        outside_half_widths: The roofline's own, of models left out.
        forms: By quantity, the fitted form at `reference`; or
        factors: by quantity, coefficients of `features` on top of the roofline.
        reference: Where the forms stand; None for factors.
    """

    basis: str
    range: Range
    rates: Rates
    half_widths: Mapping[str, float]
    new_size_half_widths: Mapping[str, float]
    outside_half_widths: Mapping[str, float]
    forms: Mapping[str, Form] | None = None
    factors: Mapping[str, Mapping[str, float]] | None = None
    reference: Reference | None = None


def features(shape: ModelShape, precision: Any, concurrency: Any, prompt_tokens: Any, *_: Any):
    """Return what a factor on top of the roofline may depend on, by name."""
    names = np.asarray(precision)
    return {
        "one": 1.0,
        "int8": 1.0 * (names == "int8"),
        "int4": 1.0 * (names == "int4"),
        "log_concurrency": np.log(concurrency),
        "log_prompt": np.log(np.maximum(prompt_tokens, 1)),
        "log_size": np.log(nominal_billions(shape.parameters)),
    }
