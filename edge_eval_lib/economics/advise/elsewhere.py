"""Options on other hardware than they were measured on: predicted, and said to be."""

from __future__ import annotations

from typing import cast

import numpy as np
import pandas as pd

from edge_eval_lib import compressions
from edge_eval_lib.economics import fit, speed
from edge_eval_lib.economics.advise.options import API, TIMED, row_name, with_shares
from edge_eval_lib.economics.roofline import device_of
from edge_eval_lib.economics.shape import ModelShape, compressed, stack
from edge_eval_lib.errors import UserError
from edge_eval_lib.machine.declared import load_hardware
from edge_eval_lib.study import Study, Variant

Z_90 = 1.644854  # half a 90 % interval is this many standard errors
# The machine around the cards, as params/prices.yaml assumes for two T4. ASSUMED.
AROUND_USD = 1000.0


def on_hardware(
    options: pd.DataFrame, study: Study, hardware: str, input_tokens: float
) -> pd.DataFrame:
    """Return the options as they are predicted to do on hardware of params/hardware.yaml.

    Scores and what was spent before stay as they were measured. A variant that does not fit its
    memory, or of which no figure can be predicted, is left out.

    Args:
        options: Of `options.of_study`.
        study: Whose models they are, for their shapes and the memory that serving takes.
        hardware: A name; all of its cards share each model.
        input_tokens: Of a request, where the options' rows did not record it.

    Raises:
        UserError: Nothing can be said of any of them there.
    """
    declared = load_hardware(hardware)
    served, asked = options[options["deployment"] != API], options[options["deployment"] == API]
    judged = fit.fits(study, declared)
    left_out = dict(options.attrs["left_out"])
    kept: list[int] = []
    shapes: list[ModelShape] = []
    for index, row in served.iterrows():
        variant = Variant(*(row[c] for c in ("family", "size", "task", "method", "precision")))
        fits = judged.get((variant.model, fit.step_of(variant)))
        if fits is None or fits.verdict != "fits" or fits.devices > max(declared.gpus, 1):
            left_out[row_name(row)] = f"it does not fit {hardware}" if fits else "no known shape"
            continue
        kept.append(cast(int, index))
        shapes.append(compressed(fit.shape_of(study.model(variant.model)), variant.precision))
    if not kept:
        raise UserError(f"None of the variants fits {hardware}: {left_out}.")
    rows = served.loc[kept]
    prediction = speed.predict(
        stack(shapes),
        np.array([compressions.estimated_as(precision) for precision in rows["precision"]]),
        device_of(declared),
        rows["concurrency"].to_numpy(float),
        rows["input_tokens_per_request"].fillna(input_tokens).to_numpy(float),
        rows["output_tokens_per_request"].round().to_numpy(float),
    )
    rows = rows.assign(gpus=float(declared.gpus), extrapolated=prediction.extrapolated)
    rows = rows.assign(idle_loaded_power_w=np.nan, energy_source="nvml-power, predicted")
    units = {"throughput_tok_s": 1.0, "ttft_ms": 1e3, "tpot_ms": 1e3, "power_w": 1.0}
    for name in TIMED:
        figure = name.replace("_ms", "_s")
        value, high = getattr(prediction, figure), getattr(prediction, f"{figure}_hi")
        rows[name] = units[name] * value
        rows[f"error_{name}"] = np.log(high / value) / Z_90
    unknown = rows[TIMED].isna().any(axis=1)
    left_out |= {row_name(row): f"no speed or power predicted on {hardware}"
                 for _, row in rows[unknown].iterrows()}  # fmt: skip
    if unknown.all():
        raise UserError(f"Neither speed nor power can be predicted on {hardware}.")
    # The same variant stands once a deployment.
    known = rows[~unknown].groupby("deployment", group_keys=False, sort=False)
    parts = [with_shares(some) for _, some in known]
    parts += [asked] if len(asked) else []
    predicted = pd.concat(parts, ignore_index=True)
    predicted.attrs["left_out"] = left_out
    return predicted
