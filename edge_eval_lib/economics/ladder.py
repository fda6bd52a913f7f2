"""Predictors of the published T4 rows side by side, each fitted on one family, judged on the other.

From nothing fitted to the noise floor: what a published row says of its twin, LoRA-INT4 of
QLoRA-INT4 of one model and task, whose weights are alike. docs/predictions.md shows the table.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
import pandas as pd

from edge_eval_lib.economics import published, roofline
from edge_eval_lib.economics import published_speed as rows_of
from edge_eval_lib.economics.form import QUANTITIES
from edge_eval_lib.machine.declared import load_hardware

FAMILIES = ("llama", "qwen")
IN_FLIGHT = 32  # of params/paper_t4.yaml: what is asked for, where nothing was measured
START_S = 8.0  # a process and its imports: measured on two cores
# The forms that were fitted to the published rows before this one was taken, with its variations.
FORMS_TRIED = 30
NEAR_PEAK = 0.8
SHIPPED = "fitted form (shipped)"
NOISE = "noise floor: LoRA-INT4 beside QLoRA-INT4"


def nothing_fitted(_train: pd.DataFrame, held: pd.DataFrame) -> pd.DataFrame:
    """Predict by the cards' peaks and limits alone."""
    device = rows_of.joined(roofline.device_of(load_hardware(rows_of.HARDWARE)))
    peaks = roofline.Rates(bandwidth_share=1.0, compute_share=1.0)
    shape, precision = rows_of.shapes_of(held), held["precision"].to_numpy()
    work = (IN_FLIGHT, rows_of.PROMPT_TOKENS, held["output_tokens"].to_numpy())
    figures = roofline.figures(shape, precision, device, *work, peaks)
    stored_gb = shape.weight_bytes(rows_of.stored(precision)) / 1e9
    figures["load_s"] = START_S + stored_gb / roofline.DISK_GB_S
    return pd.DataFrame({q: figures[q] for q in QUANTITIES}, index=held.index)


def power_law_in_bytes(train: pd.DataFrame, held: pd.DataFrame) -> pd.DataFrame:
    """Predict by log y = a + c log(bytes of the weights)."""
    log_bytes = {
        id(rows): np.log(rows_of.shapes_of(rows).weight_bytes(rows_of.stored(rows["precision"])))
        for rows in (train, held)
    }
    lines = {q: np.polyfit(log_bytes[id(train)], np.log(train[q]), 1) for q in QUANTITIES}
    predicted = {q: np.exp(np.polyval(lines[q], log_bytes[id(held)])) for q in QUANTITIES}
    return pd.DataFrame(predicted, index=held.index)


def lookup(train: pd.DataFrame, held: pd.DataFrame) -> pd.DataFrame:
    """Predict by the geometric mean of the rows of the same size class and precision."""
    cell = ["class", "precision"]
    logs = np.log(train[list(QUANTITIES)]).groupby([train[column] for column in cell])
    asked = pd.MultiIndex.from_frame(held[cell])
    return np.exp(logs.mean().reindex(asked)).set_axis(held.index)


def fitted_form(train: pd.DataFrame, held: pd.DataFrame) -> pd.DataFrame:
    """Predict by the form that ships."""
    return rows_of.predicted(rows_of.fit_forms(train), held)


PREDICTORS: dict[str, Callable[[pd.DataFrame, pd.DataFrame], pd.DataFrame]] = {
    "nothing fitted": nothing_fitted,
    "physical roofline": rows_of.roofline_predicted,
    "power law in bytes": power_law_in_bytes,
    "lookup: size class x precision": lookup,
    SHIPPED: fitted_form,
}


LEFT_OUT = ("physical roofline", "power law in bytes", "lookup: size class x precision")


@cache
def ladder() -> pd.DataFrame:
    """Judge every predictor of the published rows, both ways, and the shipped one further.

    Returns:
        A row a quantity, predictor and direction: rows, mean_ape_pct and worst_ape_pct (absolute
        error, % of the measured), worst_row, and of the shipped form coverage_pct of its 90 %
        intervals.
    """
    rows = rows_of.rows()
    judged = []
    for family in FAMILIES:
        train, held = rows[rows["family"] == family], rows[rows["family"] != family]
        direction = f"fitted on {family}, judged on {held['family'].iloc[0]}"
        for name, predictor in PREDICTORS.items():
            judged += judge(predictor(train, held), held, name, direction)
    for name in LEFT_OUT:
        predicted = pd.concat(
            [PREDICTORS[name](rows.drop(held.index), held) for _, held in rows.groupby("model")]
        )
        judged += judge(predicted.reindex(rows.index), rows, name, "each model left out")
    for name, by in (("each model left out", "model"), ("each size class left out", "class")):
        predicted = np.exp(rows_of.left_out(rows, by)) * rows[list(QUANTITIES)]
        judged += judge(predicted, rows, SHIPPED, name, covered_left_out(rows, by))
    judged += judge(*_twins(rows), NOISE, "of one model and task")
    return pd.DataFrame(judged)


def covered_left_out(rows: pd.DataFrame, by: str = "model") -> pd.DataFrame:
    """Return whether each row lies in the interval that the others give, each `by` left out.

    Fit and width both come from the others: what is judged was left out of all of it.
    """
    covered = []
    for _, held in rows.groupby(by):
        train = rows.drop(held.index)
        errors = np.log(fitted_form(train, held) / held[list(QUANTITIES)])
        covered.append(errors.abs() <= pd.Series(rows_of.half_widths(train)))
    return pd.concat(covered).reindex(rows.index)


def judge(
    predicted: pd.DataFrame,
    measured: pd.DataFrame,
    predictor: str,
    direction: str,
    covered: pd.DataFrame | None = None,
) -> list[dict[str, object]]:
    """Return mean and worst absolute error of each predicted quantity, a row each."""
    judged = []
    for quantity in predicted.columns:
        errors = 100 * (predicted[quantity] / measured[quantity] - 1).abs()
        worst = measured.loc[errors.idxmax()]
        row: dict[str, object] = {"quantity": quantity, "predictor": predictor}
        row |= {"direction": direction, "rows": len(errors), "mean_ape_pct": errors.mean()}
        row |= {"worst_ape_pct": errors.max(), "worst_row": variant_name(worst)}
        row["coverage_pct"] = None
        if covered is not None and quantity in covered:
            row["coverage_pct"] = 100 * covered[quantity].mean()
        judged.append(row)
    return judged


def variant_name(row: pd.Series) -> str:
    """Write a row's variant as `llama-1B_rag_lora_int4`."""
    return f"{row['family']}-{row['size']}_{row['task']}_{row['method']}_{row['precision']}"


def _twins(rows: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the other row of each INT4 pair beside the row itself."""
    int4 = rows[rows["precision"] == "int4"]
    key = [*published.MODEL, "task"]
    flipped = int4.assign(method=int4["method"].map({"lora": "qlora", "qlora": "lora"}))
    of_key = int4.set_index([*key, "method"])[list(QUANTITIES)]
    twin = of_key.reindex(pd.MultiIndex.from_frame(flipped[[*key, "method"]]))
    return twin.set_axis(int4.index), int4


def near_peak_bandwidth() -> pd.DataFrame:
    """Return the published rows that would need over 80 % of both cards' peak bandwidth.

    Weights alone, read once a step of the measured length; columns family, size, task, method,
    precision, share (of 640 GB/s).
    """
    rows = rows_of.rows()
    device = roofline.device_of(load_hardware(rows_of.HARDWARE))
    read = rows_of.shapes_of(rows).read_bytes(rows_of.stored(rows["precision"]))
    rows = rows.assign(share=read / rows["tpot_s"] / device.bandwidth_byte_s)
    return rows.loc[rows["share"] > NEAR_PEAK, [*published.VARIANT, "share"]]


def size_exponents() -> pd.DataFrame:
    """Estimate how time per token grows with parameters, against the claim of a square root.

    log TPOT = precision's constant + e log(parameters), by family and together; the interval is of
    six models (three of a family), by the t of leaving each out (jackknife).

    Returns:
        rows (`llama`, `qwen`, `both`): exponent, exponent_lo, exponent_hi, verdict on 0.5.
    """
    from scipy.stats import t

    rows = rows_of.rows()
    rows = rows.assign(log_size=np.log(rows_of.shapes_of(rows).parameters))

    def exponent(some: pd.DataFrame) -> float:
        constants = pd.get_dummies(some["precision"], dtype=float)
        columns = np.column_stack([constants, some["log_size"]])
        return float(np.linalg.lstsq(columns, np.log(some["tpot_s"]), rcond=None)[0][-1])

    found = []
    for name, some in [*rows.groupby("family"), ("both", rows)]:
        models = some["model"].unique()
        n, value = len(models), exponent(some)
        without = np.array([exponent(some[some["model"] != model]) for model in models])
        error = np.sqrt((n - 1) / n * ((without - without.mean()) ** 2).sum())
        half = t.ppf(0.975, n - 1) * error
        verdict = "refuted" if abs(value - 0.5) > half else "not refuted"
        found.append(
            {"rows": name, "exponent": value, "exponent_lo": value - half}
            | {"exponent_hi": value + half, "square_root": verdict}
        )
    return pd.DataFrame(found)
